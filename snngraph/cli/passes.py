"""``snngraph passes``: which passes there are, and what they do to a model."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snngraph.cli.options import ExampleOptions, ModelOptions, RandomOptions, Target, TraceOptions
from snngraph.cli.output import Output

if TYPE_CHECKING:
    from snngraph.passes.base import PassResult

EXAMPLES = (
    "snngraph passes",
    "snngraph passes --explain demo",
    "snngraph passes --explain demo --all",
    "snngraph passes --explain net.py:build --shape 4,1,2,32,32 --pass fold_batch_norm",
)
BOOKKEEPING = ("canonicalize", "flatten_time", "eliminate_dead")
"""Passes whose rewrites only clear the way for others."""


def passes(
    out: Output,
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    trace: TraceOptions,
    explain: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Run the passes on this model and say what each did, and did not do and why."),
    ] = None,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="NAME", help="With --explain: these passes instead of the default; repeatable."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help=f"With --explain: the rewrites of {', '.join(BOOKKEEPING)} too, one by one.")
    ] = False,
    target: Target = "openvino",
    precision: Annotated[str | None, typer.Option(help="With --explain: as of convert.")] = None,
) -> None:
    """List the passes, those of other packages included, or explain what they do to a model."""
    if explain is None:
        if chosen:
            raise typer.BadParameter("--pass belongs to --explain MODEL")
        if everything:
            raise typer.BadParameter("--all belongs to --explain MODEL")
        _list(out)
    else:
        _explain(out, explain, source, example, random, trace, chosen, everything, target, precision)


def _list(out: Output) -> None:
    from rich.table import Column, Table

    from snngraph.passes import registry

    infos = registry.available()
    table = Table(Column("pass", no_wrap=True), "package", "exactness", "options", "what it does")
    for info in infos:
        options = ", ".join(f"{name}={default!r}" for name, default in info.options.items())
        table.add_row(info.name, info.package, info.exactness, options, info.summary)
    out.print(table)
    out.result({"passes": [dataclasses.asdict(info) for info in infos]})


def _explain(
    out: Output,
    model: str,
    source: ModelOptions,
    example: ExampleOptions,
    random: RandomOptions,
    trace: TraceOptions,
    chosen: list[str] | None,
    everything: bool,
    target: str,
    precision: str | None,
) -> None:
    from snngraph import pipelines
    from snngraph.api import precision_for
    from snngraph.cli.models import capture
    from snngraph.passes import registry
    from snngraph.runtime.backends import backend_class

    if chosen:
        pipeline = registry.pipeline(chosen)
    else:
        pipeline = pipelines.default(target, precision_for(target, precision), backend_class(target).fused)
    captured = capture(out, model, source, example, random, trace)
    with out.stage("passes"):
        result = pipeline(captured.graph)
    out.print(f"{pipeline}")
    counts = Counter(note.by for note in result.notes if note.kind == "rewrite" and note.by in BOOKKEEPING and not everything)
    for note in result.notes:
        if note.kind == "rewrite" and note.by in counts:
            if count := counts[note.by]:  # once, where the first of them stands
                out.print(f"{note.by}: {count} rewrite{'' if count == 1 else 's'} (--all shows them)", style="dim")
            counts[note.by] = 0
        else:
            out.print(str(note), style="green" if note.kind == "rewrite" else "yellow")
    rewrites = sum(note.kind == "rewrite" for note in result.notes)
    out.print(
        f"{rewrites} rewrites, {len(result.notes) - rewrites} near misses refused with a reason; changed: {_changed(result)}"
    )
    out.result(_document(str(pipeline), result))


def _changed(result: PassResult) -> str:
    return "yes" if result.changed else "no"


def _document(pipeline: str, result: PassResult) -> dict[str, Any]:
    return {
        "pipeline": pipeline,
        "changed": result.changed,
        "passes": list(result.graph.history),
        "notes": [dataclasses.asdict(note) for note in result.notes],
    }
