"""``snngraph inspect``: what an engine file or a model holds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snngraph.cli.options import ExampleOptions, ModelOptions, RandomOptions, Target, TraceOptions
from snngraph.cli.output import Output

if TYPE_CHECKING:
    from snngraph.graph import SpikingGraph
    from snngraph.runtime.manifest import Manifest
    from snngraph.types import TensorSpec

EXAMPLES = (
    "snngraph inspect net.snn",
    "snngraph inspect demo",
    "snngraph inspect net.py:build --shape 4,1,2,32,32 --before-after",
)


def inspect(
    out: Output,
    model: Annotated[
        str,
        typer.Argument(metavar="ENGINE|MODEL", help="An engine file, or a model: package.module:factory, file.py:factory, demo."),
    ],
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    trace: TraceOptions,
    after: Annotated[
        bool,
        typer.Option(
            "--before-after", "--after", "--passes", help="Of a model: the graph before and after the passes.  [default for demo]"
        ),
    ] = False,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="NAME", help="Of a model: after these passes, not the default ones; repeatable."),
    ] = None,
    target: Target = "openvino",
) -> None:
    """Show an engine file's manifest, or a model's graph before and after the passes."""
    if Path(model).suffix != ".nir" and (Path(model).is_file() or Path(model).suffix == ".snn"):
        _artifact(out, Path(model))
        return
    import snngraph
    from snngraph.cli.models import capture
    from snngraph.model_loading import DEMO

    graph = capture(out, model, source, example, random, trace).graph
    document = {"model": model, **_graph(graph)}
    both = after or bool(chosen) or model == DEMO
    if both:
        out.print("== before the passes ==", style="bold")
    out.print(repr(graph), graph.format().rstrip())
    if graph.recognitions:
        out.print("", "neurons:", *(f"  {found}" for found in graph.recognitions))
    if both:
        with out.stage("optimize"):
            optimized = snngraph.optimize(graph, target, passes=chosen or None)
        out.print("")
        out.print("== after the passes ==", style="bold")
        out.print(repr(optimized), f"passes: {', '.join(optimized.history)}", optimized.format().rstrip())
        document["optimized"] = _graph(optimized)
    out.result(document)


def _graph(graph: SpikingGraph) -> dict[str, Any]:
    return {
        "name": graph.name,
        "time_steps": graph.time.steps,
        "inputs": [describe(spec) for spec in graph.inputs],
        "outputs": [describe(spec) for spec in graph.outputs],
        "neurons": [{"name": info.name, "shape": list(info.shape), "neurons": info.neurons} for info in graph.neurons],
        "passes": list(graph.history),
        "notes": list(graph.notes),
        "recognitions": [dataclasses.asdict(found) for found in graph.recognitions],
        "graph": graph.format(),
    }


def describe(spec: TensorSpec) -> str:
    """A tensor in a line, with its axes in words."""
    axes = {spec.time_dim: "T", spec.batch_dim: "N"}
    sizes = [f"{axes[d]}={'any' if n is None else n}" if d in axes else str(n) for d, n in enumerate(spec.shape)]
    return f"{spec.name}: {spec.dtype}[{', '.join(sizes)}]"


def _artifact(out: Output, path: Path) -> None:
    from rich.table import Table

    from snngraph.runtime import artifact

    manifest, model = artifact.read(path)
    operators = _operators(model)
    for name, value in _lines(path, manifest, model, operators):
        out.print(f"{name:10} {value}")
    table = Table("layer", "neurons", "shape")
    for layer in manifest.layers:
        table.add_row(layer.name, str(layer.neurons), " x ".join(map(str, layer.shape)))
    out.print(table)
    out.result(
        {
            "file": str(path),
            "bytes": path.stat().st_size,
            "model_bytes": len(model),
            "operators": None if operators is None else dict(operators.most_common()),
            "manifest": manifest.to_json(),
        }
    )


def _lines(path: Path, manifest: Manifest, model: bytes, operators: Counter[str] | None) -> list[tuple[str, str]]:
    verified = "no" if manifest.verify is None else ", ".join(f"{key} {value}" for key, value in manifest.verify.items())
    lines = [
        ("network", f"{manifest.name}, {path.stat().st_size / 1e6:.2f} MB, written by snngraph {manifest.snngraph_version}"),
        (
            "engine",
            f"target {manifest.target}, precision {manifest.precision}, mode {manifest.mode}, {manifest.time_steps} time steps",
        ),
        *(("input", describe(spec)) for spec in manifest.inputs),
        *(("output", describe(spec)) for spec in manifest.outputs),
        ("passes", ", ".join(manifest.passes) or "none"),
        ("built with", ", ".join(f"{name} {version}" for name, version in manifest.versions.items())),
        ("options", ", ".join(f"{name} {value}" for name, value in manifest.options.items() if value is not None) or "none"),
        ("verified", verified),
        *(("sha256", f"{name} {value}") for name, value in manifest.hashes.items()),
    ]
    if operators is None:
        lines.append(("model", f"{len(model)} bytes of ONNX (its operators are counted where the onnx package is installed)"))
    else:
        counts = ", ".join(f"{name} {count}" for name, count in operators.most_common())
        lines.append(("model", f"{len(model)} bytes of ONNX, {sum(operators.values())} operators: {counts}"))
    return lines


def _operators(model: bytes) -> Counter[str] | None:
    try:
        import onnx
    except ImportError:
        return None
    return Counter(node.op_type for node in onnx.load_from_string(model).graph.node)
