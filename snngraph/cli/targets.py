"""``snngraph targets``: what engines can be built for on this machine."""

from __future__ import annotations

from dataclasses import asdict

from snngraph.cli.output import Output

EXAMPLES = ("snngraph targets", "snngraph targets --json")


def targets(out: Output) -> None:
    """List the engine targets: which can be used here, and what the others lack."""
    from rich.table import Table

    from snngraph.runtime.backends import targets as find

    infos = find()
    table = Table("target", "usable", "version", "device", "missing", "install with")
    for info in infos:
        table.add_row(
            info.name, "yes" if info.available else "no", info.version or "", info.device, info.missing or "", info.install or ""
        )
    out.print(table)
    out.result({"targets": [asdict(info) for info in infos]})
