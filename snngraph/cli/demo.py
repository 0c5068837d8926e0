"""``snngraph demo``: the whole way on a small example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from snngraph.cli.output import Output

EXAMPLES = ("snngraph demo", "snngraph demo --out out/demo --no-train --json")


def demo(
    out: Output,
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results go.")] = Path("out/demo"),
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Train the net, or take the weights that come with the package.")
    ] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Train and verify less.")] = False,
) -> int:
    """Train a small spiking net on digits seen by an event camera, convert it, verify it and time it."""
    from snngraph.demo.run import run_demo

    result = run_demo(out=folder, train=train, quick=quick, console=out.console)
    out.result(result.to_dict())
    return 0 if result.ok else 1
