"""``snngraph verify``: an engine file against the model it came from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snngraph.cli.options import Force, Model, ModelOptions, RandomOptions, Threads, TraceOptions
from snngraph.cli.output import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from snngraph.runtime.engine import Engine

EXAMPLES = (
    "snngraph verify net.snn net.py:build --weights net.pt --inputs x.npy --save report.html",
    "snngraph verify demo.snn demo --random 64",
)
_ENOUGH = 32


def verify(
    out: Output,
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file, net.snn.")],
    model: Model,
    source: ModelOptions,
    random: RandomOptions,
    trace: TraceOptions,
    inputs: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="The inputs, .npy or .npz; once for each input of the model.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--random", metavar="N", min=1, help=f"N random inputs instead.  [default: {_ENOUGH}]")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as .html or .json.")] = None,
    target: Annotated[str | None, typer.Option(help="Another target than the engine was built for.")] = None,
    threads: Threads = None,
    force: Force = False,
) -> int:
    """Compare an engine's spikes with the model's, in float64, layer by layer.

    Exit code 0: the engine is as right as PyTorch's float32. Exit code 1: it is not.
    """
    from snngraph.cli.arrays import check_output

    if inputs and samples is not None:
        raise typer.BadParameter("give --inputs or --random, not both")
    check_output(save, force, (".html", ".json"))

    import torch

    import snngraph
    from snngraph.cli.models import is_nir, named_model, nir_graph

    with out.stage("load the engine"):
        network = snngraph.load(engine, threads=threads, target=target)
    with network:
        arrays = _inputs(out, network, inputs, samples or _ENOUGH, random)
        if is_nir(model):
            graph = nir_graph(out, model, source, trace)
        else:
            net = named_model(out, model, source)
            with out.stage("capture"):
                graph = snngraph.trace(net, tuple(torch.from_numpy(a) for a in _example(network, arrays)), **trace.keywords())
        with out.progress("verify") as advance:
            report = snngraph.verify(graph, network, tuple(arrays), progress=advance)
    if save is not None:
        report.save(save)
    out.print(report)
    if save is not None:
        out.print(f"written: {save}")
    out.result(report.to_dict())
    return 0 if report.ok else 1


def _inputs(out: Output, network: Engine, paths: list[Path] | None, samples: int, random: RandomOptions) -> list[NDArray[Any]]:
    from snngraph.cli.arrays import describe, random_array, read_array

    if paths:
        return [read_array(path, out) for path in paths]
    out.note(f"{samples} inputs: {describe(random)}")
    shapes = [
        tuple(samples if d == spec.batch_dim else size or 1 for d, size in enumerate(spec.shape)) for spec in network.inputs
    ]
    return [random_array(shape, random, k) for k, shape in enumerate(shapes)]


def _example(network: Engine, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The first samples, as many as the engine takes at once; repeated where there are fewer."""
    import numpy as np

    from snngraph.errors import InputCountError, InputRankError

    if len(arrays) != len(network.inputs):
        raise InputCountError(
            f"the engine takes {len(network.inputs)} inputs, got {len(arrays)} files: give --inputs once for each"
        )
    found = []
    for array, spec in zip(arrays, network.inputs, strict=True):
        if array.ndim != len(spec.shape):
            raise InputRankError(f"input {spec.name!r} has {array.ndim} dimensions, the engine takes {len(spec.shape)}")
        if spec.batch_dim is not None and array.shape[spec.batch_dim]:
            index = np.arange(spec.shape[spec.batch_dim] or 1) % array.shape[spec.batch_dim]
            array = array.take(index, spec.batch_dim)
        found.append(array)
    return found
