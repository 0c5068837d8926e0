"""The Typer application: every command, from a module of its own."""

from __future__ import annotations

from typing import Annotated

import typer

import snngraph
from snngraph.cli import bench, convert, demo, inspect, passes, run, targets, verify
from snngraph.cli.commands import command

__all__ = ["app"]

# Plain help: it starts three times as fast as Rich's, and its examples can be copied.
app = typer.Typer(
    name="snngraph",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="\b\nExamples:\n"
    "  snngraph convert net.py:build -o net.snn --weights net.pt --input example.npy\n"
    "  snngraph run net.snn --input x.npy",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"snngraph {snngraph.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Compile trained PyTorch spiking neural networks into fast, verified inference engines.

    Exit codes: 0 all is well, 1 a verification failed, 2 bad usage or input, 3 a bug, 130 interrupted.
    """


command(app, examples=convert.EXAMPLES)(convert.convert)
command(app, examples=run.EXAMPLES)(run.run)
command(app, examples=verify.EXAMPLES)(verify.verify)
command(app, examples=bench.EXAMPLES)(bench.bench)
command(app, examples=inspect.EXAMPLES)(inspect.inspect)
command(app, examples=passes.EXAMPLES)(passes.passes)
command(app, examples=targets.EXAMPLES)(targets.targets)
command(app, examples=demo.EXAMPLES)(demo.demo)
