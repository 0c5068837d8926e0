"""``snngraph bench``: an engine timed in turn with its peers, its spikes checked in the same run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snngraph.cli.options import BuildOptions, ExampleOptions, Force, ModelOptions, RandomOptions
from snngraph.cli.output import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from snngraph.runtime.engine import Engine

EXAMPLES = (
    "snngraph bench net.py:build --weights net.pt --input example.npy --save bench.json",
    "snngraph bench net.snn net.py:build --weights net.pt --peer eager --peer onnxruntime",
    "snngraph bench net.snn --threads 2",
)


def bench(
    out: Output,
    subject: Annotated[str, typer.Argument(metavar="MODEL|ENGINE", help="A model to build an engine of, or an engine file.")],
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    build: BuildOptions,
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="With an engine file: the model it came from, for the peers.")
    ] = None,
    peer: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A peer to time; repeatable.  [default: all]")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 20,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the result as .json.")] = None,
    force: Force = False,
) -> int:
    """Time an engine against its peers: the model in PyTorch, torch.compile, and other runtimes.

    All are timed in turn in one run, after a warm-up, and the engine's spikes are checked. An engine file without its model is
    timed alone.
    """
    from snngraph.cli.arrays import check_output

    check_output(save, force, (".json",))
    is_engine = Path(subject).suffix == ".snn" or Path(subject).is_file()
    if not is_engine and model is not None:
        raise typer.BadParameter(f"{subject!r} is no engine file, and a second model was given")
    if is_engine and model is None:
        return _alone(out, Path(subject), example, random, build, rounds, save)
    return _compared(out, subject if is_engine else None, model or subject, source, example, random, build, peer, rounds, save)


def _compared(
    out: Output,
    engine: str | None,
    model: str,
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    build: BuildOptions,
    peers: list[str] | None,
    rounds: int,
    save: Path | None,
) -> int:
    import torch

    import snngraph
    from snngraph import benchmark
    from snngraph.cli.models import example_inputs, named_model

    if engine is not None:
        network = snngraph.load(engine, threads=build.threads)
        given = example.input or example.shape
        inputs = example_inputs(out, model, example, random) if given else _random_inputs(out, network, random)
        net = named_model(out, model, source)
    else:
        inputs = example_inputs(out, model, example, random)
        net = named_model(out, model, source)
        with out.stage("convert"):
            network = snngraph.convert(
                net,
                inputs,
                target=build.target,
                precision=build.precision,
                mode=build.mode,
                batch_size=build.batch_size(),
                passes=build.passes or None,
                threads=build.threads,
            )
    if len(inputs) != 1:
        raise typer.BadParameter(f"bench times models with one input, got {len(inputs)}")
    (x,) = (value if isinstance(value, torch.Tensor) else torch.from_numpy(value) for value in inputs)
    with network, out.progress("bench") as advance:
        report = benchmark.compare(
            net,
            x,
            engine=network,
            peers=peers or None,
            rounds=rounds,
            threads=build.threads,
            progress=lambda name, done, total: advance(done, total),
        )
    if save is not None:
        report.save(save)
    out.print(report)
    out.result(report.to_dict())
    return 0


def _alone(
    out: Output, path: Path, example: ExampleOptions, random: RandomOptions, build: BuildOptions, rounds: int, save: Path | None
) -> int:
    import json

    import numpy as np

    from snngraph.cli.arrays import parse_shape, random_array, read_array
    from snngraph.runtime import artifact
    from snngraph.runtime.engine import load

    with load(path, threads=build.threads) as network:
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
