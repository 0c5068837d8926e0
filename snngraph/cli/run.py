"""``snngraph run``: an engine file on arrays. Needs no PyTorch."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snngraph.cli.options import Force, Threads
from snngraph.cli.output import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from snngraph.runtime.engine import Engine
    from snngraph.types import TensorSpec

    Array = NDArray[Any]

EXAMPLES = (
    "snngraph run net.snn --input x.npy -o y.npy",
    "snngraph run net.snn --input x.npy --target onnxruntime --threads 4 --json",
)
_BATCH = 32  # of an engine whose batch size is free
_SHOWN = 10


def run(
    out: Output,
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="An engine file, net.snn.")],
    input: Annotated[
        list[Path], typer.Option(metavar="FILE", help="An input, .npy or .npz with one array; once for each input.")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the outputs: .npy, or .npz with each by its name."),
    ] = None,
    target: Annotated[str | None, typer.Option(help="Another target than the engine was built for.")] = None,
    threads: Threads = None,
    force: Force = False,
) -> int:
    """Run an engine on any number of samples, in batches of its own size.

    Prints the predictions (the largest output along the first axis after the batch, of the mean over time) and the time it took.
    Needs no PyTorch.
    """
    from snngraph.cli.arrays import check_output, read_array, write_arrays
    from snngraph.errors import InputError
    from snngraph.runtime.engine import load

    check_output(output, force, (".npy", ".npz"))
    with load(engine, threads=threads, target=target) as network:
        if output is not None and output.suffix == ".npy" and len(network.outputs) > 1:
            raise InputError(f"the engine has {len(network.outputs)} outputs: write them to a .npz file, not to {output.name!r}")
        types = [spec.dtype for spec in network.inputs]
        arrays = [read_array(path, out, dtype) for path, dtype in zip(input, types + ["float32"] * len(input), strict=False)]
        outputs, predictions, times, samples = _run(out, network, arrays)
        named = {spec.name: value for spec, value in zip(network.outputs, outputs, strict=True)}
        if output is not None:
            write_arrays(output, named, force)
        milliseconds = {"total": sum(times), "median_batch": statistics.median(times), "slowest_batch": max(times)}
        _show(out, network, samples, predictions, milliseconds, output)
        out.result(
            {
                "engine": str(engine),
                "target": network.target,
                "samples": samples,
                "batches": len(times),
                "outputs": {name: {"shape": list(value.shape), "dtype": str(value.dtype)} for name, value in named.items()},
                "predictions": predictions,
                "milliseconds": milliseconds,
                "output": None if output is None else str(output),
            }
        )
    return 0


def _run(out: Output, network: Engine, arrays: list[Array]) -> tuple[list[Array], list[int] | None, list[float], int]:
    """All outputs, the predictions, the milliseconds of every batch, and the number of samples."""
    import numpy as np

    from snngraph.errors import InputBatchError
    from snngraph.runtime.outputs import Rows, find_rows

    def infer(batch: list[Array]) -> list[Array]:
        result = network.run(*batch)
        return list(result) if isinstance(result, tuple) else [result]

    specs = network.inputs
    fits = len(arrays) == len(specs) and all(a.ndim == len(s.shape) for a, s in zip(arrays, specs, strict=True))
    dims = [spec.batch_dim for spec in specs]
    if not fits or None in dims or any(spec.batch_dim is None for spec in network.outputs):
        start = time.perf_counter()
        found = infer(arrays)  # it says what does not fit
        return found, _predictions(found[0], network.outputs[0]), [1e3 * (time.perf_counter() - start)], 1
    counts = sorted({a.shape[d or 0] for a, d in zip(arrays, dims, strict=True)})
    if len(counts) > 1 or not counts[0]:
        raise InputBatchError(
            f"the inputs have {' and '.join(map(str, counts))} samples: expected the same number, at least 1, in each"
        )
    samples, fixed = counts[0], specs[0].shape[dims[0] or 0]
    size = fixed or _BATCH
    parts: list[list[Array]] = [[] for _ in network.outputs]
    rows: list[Rows] = []
    split: list[TensorSpec] = []
    times = []
    with out.progress("run") as advance:
        for first in range(0, samples, size):
            count = min(size, samples - first)
            # A fixed batch is filled up with repetitions, which are dropped again.
            index = first + np.arange(fixed or count) % count
            batch = [a.take(index, d) for a, d in zip(arrays, dims, strict=True)]
            start = time.perf_counter()
            results = infer(batch)
            times.append(1e3 * (time.perf_counter() - start))
            if not rows:
                spikes = [layer.spikes for layer in network.layers]
                rows = find_rows(infer, specs, batch, network.outputs, results, network.time_steps, time_first=spikes)
                split = [order.spec(spec, network.time_steps) for order, spec in zip(rows, network.outputs, strict=True)]
            for k, (value, spec) in enumerate(zip(results, network.outputs, strict=True)):
                parts[k].append(rows[k].split(value, spec.batch_dim or 0).take(np.arange(count), split[k].batch_dim))
            advance(first + count, samples)
    joined = [np.concatenate(part, spec.batch_dim or 0) for part, spec in zip(parts, split, strict=True)]
    merged = [order.merge(y, spec.batch_dim or 0) for order, y, spec in zip(rows, joined, network.outputs, strict=True)]
    return merged, _predictions(joined[0], split[0]), times, samples


def _predictions(output: Array, spec: TensorSpec) -> list[int] | None:
    """The class of every sample, where there are classes to choose from."""
    if spec.batch_dim is None:
        return None
    scores, batch_dim = output, spec.batch_dim
    if spec.time_dim is not None:
        scores = scores.mean(spec.time_dim)
        batch_dim -= spec.time_dim < batch_dim
    if scores.ndim != 2 or scores.shape[1 - batch_dim] < 2:
        return None
    return [int(best) for best in scores.argmax(1 - batch_dim)]


def _show(
    out: Output, network: Engine, samples: int, predictions: list[int] | None, milliseconds: dict[str, float], output: Path | None
) -> None:
    if predictions is not None:
        first = ", ".join(map(str, predictions[:_SHOWN])) + (", ..." if samples > _SHOWN else "")
        common = ", ".join(f"{label}: {count}" for label, count in Counter(predictions).most_common(_SHOWN))
        out.print(f"predictions: {first}", f"by class: {common}")
    total = milliseconds["total"]
    out.print(
        f"{samples} samples in {total:.1f} ms on {network.target}: {1e3 * samples / max(total, 1e-9):.1f} per second, "
        f"{milliseconds['median_batch']:.2f} ms a batch (median)"
    )
    if output is not None:
        out.print(f"written: {output}")
