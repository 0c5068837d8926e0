"""``snngraph convert``: a model becomes an engine file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from snngraph.cli.options import BuildOptions, ExampleOptions, Force, Model, ModelOptions, RandomOptions, TraceOptions
from snngraph.cli.output import Output

EXAMPLES = (
    "snngraph convert net.py:build -o net.snn --weights net.pt --input example.npy",
    "snngraph convert snngraph.demo.model:build -o net.snn --shape 8,1,2,24,24 --batch dynamic",
    "snngraph convert net.nir -o net.snn --time-steps 8 --model-arg dt=1e-4 --model-arg reset=hard --model-arg 'fire=>'",
    "snngraph convert demo -o demo.snn --verify events.npy --onnx demo.onnx",
)


def convert(
    out: Output,
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The engine file to write, net.snn.")],
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    trace: TraceOptions,
    build: BuildOptions,
    onnx: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the lowered model alone, for any other runtime.")
    ] = None,
    verify: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Verify the engine on these inputs before it is written; once for each input of the model."
        ),
    ] = None,
    force: Force = False,
) -> int:
    """Convert a trained model into an engine file.

    The model is captured, optimized, lowered and compiled. With --verify its spikes are compared with float64's, the result is
    recorded in the file, and an engine that is not right is not written (exit code 1).
    """
    from snngraph.cli.arrays import check_output, read_array

    check_output(output, force)
    check_output(onnx, force)
    batch_size = build.batch_size()

    import snngraph
    from snngraph.api import check_options
    from snngraph.cli.models import capture
    from snngraph.runtime import artifact

    check_options(build.target, build.precision, build.mode)
    inputs = tuple(read_array(path, out) for path in verify or [])
    captured = capture(out, model, source, example, random, trace)
    with out.stage("optimize"):
        graph = snngraph.optimize(captured.graph, build.target, build.precision, passes=build.passes or None)
    with out.stage("build"):
        engine = snngraph.build(graph, build.target, build.precision, build.mode, batch_size=batch_size, threads=build.threads)
    with engine:
        manifest, report = engine.manifest, None
        if inputs:
            with out.progress("verify") as advance:
                report = snngraph.verify(captured.graph, engine, inputs, progress=advance)
            manifest = replace(manifest, verify=report.summary())
        right = report is None or report.ok
        size = 0
        if right:
            artifact.write(output, manifest, engine.model, force)
            if onnx is not None:
                artifact.write_bytes(onnx, engine.model, force)
            size = output.stat().st_size
        if report is not None:
            out.print(report)
        if right:
            out.print(f"{output}: {size / 1e6:.2f} MB, {engine!r}")
        else:
            out.print(f"{output} was not written: the engine is not right", style="bold red")
        out.result(
            {
                "ok": right,
                "file": str(output) if right else None,
                "bytes": size,
                "onnx": str(onnx) if onnx is not None and right else None,
                "engine": engine.manifest.to_json(),
                "verify": None if report is None else report.to_dict(),
            }
        )
    return 0 if right else 1
