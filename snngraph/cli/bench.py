"""``snngraph bench``: an engine timed in turn with its peers, its spikes checked in the same run."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snngraph.cli.options import ExampleOptions, Force, ModelOptions, RandomOptions, Threads, TraceOptions
from snngraph.cli.output import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from snngraph.runtime.engine import Engine

EXAMPLES = (
    "snngraph bench net.py:build --weights net.pt --input example.npy --save bench.json",
    "snngraph bench net.py:build --weights net.pt --shape 4,1,3,32,32 --target openvino --precision exact --precision int8",
    "snngraph bench net.snn net.py:build --weights net.pt --peer PyTorch --peer 'ONNX Runtime'",
    "snngraph bench net.snn --threads 2",
)


def bench(
    out: Output,
    subject: Annotated[str, typer.Argument(metavar="MODEL|ENGINE", help="A model to build engines of, or an engine file.")],
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    trace: TraceOptions,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="With an engine file: the model it came from, for the peers.")
    ] = None,
    target: Annotated[str | None, typer.Option(help="Build the engine for this target.  [default: one for each]")] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Build an engine of this precision: exact, fp32, int8; repeatable.  [default: the target's, and fp32]",
        ),
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A peer to time, as 'ONNX Runtime'; repeatable.  [default: all]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed in turn.")] = 20,
    threads: Threads = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as .json.")] = None,
    force: Force = False,
) -> int:
    """Time engines against their peers: the model in PyTorch, torch.compile, and other runtimes.

    All are timed in turn in one run, and the engines' spikes are checked: exit code 1 says that one is not right. The first
    engine is the one that all are measured against. int8 approximates: its flips and errors are shown, and are no failure. An
    engine file without its model is timed alone.
    """
    from snngraph.cli.arrays import check_output

    check_output(save, force, (".json",))
    if ".nir" in (Path(subject).suffix, Path(model or "").suffix):
        raise typer.BadParameter(
            "bench times engines against PyTorch, and a NIR file has no PyTorch model: convert it, bench net.snn"
        )
    is_engine = Path(subject).suffix == ".snn" or Path(subject).is_file()
    if not is_engine and model is not None:
        raise typer.BadParameter(f"{subject!r} is no engine file, and a second model was given")
    if is_engine and (target is not None or precision):
        raise typer.BadParameter("--target and --precision belong to a model; an engine file is timed as it is")
    if trace.time_steps is not None:
        raise typer.BadParameter("bench times models that take whole sequences: --time-steps is for models that take one step")
    if is_engine and model is None:
        return _alone(out, Path(subject), example, random, threads, rounds, save)

    import torch

    import snngraph
    from snngraph import benchmark
    from snngraph.api import check_options
    from snngraph.cli.models import capture, example_inputs, named_model

    with contextlib.ExitStack() as stack:
        network: Engine | None = None
        if is_engine:
            assert model is not None
            network = stack.enter_context(snngraph.load(subject, threads=threads))
            if example.input or example.shape:
                inputs = example_inputs(out, model, example, random)
            else:
                inputs = tuple(map(torch.from_numpy, _random_inputs(out, network, random)))
            net, graph = named_model(out, model, source), None
            if trace != TraceOptions():
                graph = snngraph.trace(net, inputs, **trace.keywords())
        else:
            captured = capture(out, subject, source, example, random, trace)
            net, inputs, graph = captured.model, captured.example, captured.graph
            if target is not None:
                for name in precision or (None,):
                    check_options(target, name)
        with out.progress("bench") as advance:
            report = benchmark.compare(
                net,
                inputs,
                engine=network,
                peers=peer,
                rounds=rounds,
                threads=threads,
                progress=lambda what, done, total: advance(done, total),
                graph=graph,
                targets=benchmark.TARGETS if target is None else [target],
                precisions=precision or None,
            )
    if save is not None:
        report.save(save)
    out.print(report)
    out.result(report.to_dict())
    return 0 if report.ok else 1


def _alone(
    out: Output,
    path: Path,
    example: ExampleOptions,
    random: RandomOptions,
    threads: int | None,
    rounds: int,
    save: Path | None,
) -> int:
    import json

    import numpy as np

    from snngraph.cli.arrays import parse_shape, random_array, read_array
    from snngraph.runtime import artifact
    from snngraph.runtime.engine import load

    with load(path, threads=threads) as network:
        if example.input:
            inputs = [read_array(file, out, spec.dtype) for file, spec in zip(example.input, network.inputs, strict=False)]
        elif example.shape:
            inputs = [random_array(parse_shape(text), random, k) for k, text in enumerate(example.shape)]
        else:
            inputs = _random_inputs(out, network, random)
        times = []
        network.run(*inputs)  # a warm-up, which also says what does not fit
        with out.progress("bench") as advance:
            for done in range(rounds):
                start = time.perf_counter()
                network.run(*inputs)
                times.append(1e3 * (time.perf_counter() - start))
                advance(done + 1, rounds)
        median, p99 = float(np.median(times)), float(np.percentile(times, 99))
        document: dict[str, Any] = {
            "engine": str(path),
            "rounds": rounds,
            "milliseconds": {"median": median, "p99": p99},
            "properties": network.properties(),
        }
    if save is not None:
        artifact.write_bytes(save, (json.dumps(document, indent=2, default=str) + "\n").encode(), force=True)
    out.print(f"{path} on {document['properties']['target']}: median {median:.3f} ms, p99 {p99:.3f} ms over {rounds} rounds")
    out.print("timed alone: give the model too, to compare it with its peers and to check its spikes")
    out.result(document)
    return 0


def _random_inputs(out: Output, network: Engine, random: RandomOptions) -> list[NDArray[Any]]:
    from snngraph.cli.arrays import describe, random_array

    out.note(f"input: {describe(random)}")
    return [random_array([size or 1 for size in spec.shape], random, k) for k, spec in enumerate(network.inputs)]
