"""docs/compatibility.md, made from what the cases give."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.compatibility import handwritten, libraries
from tests.compatibility.case import Case, Row, examine

__all__ = ["CASES", "PAGE", "line", "missing", "render"]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
CASES: tuple[Case, ...] = (*libraries.CASES, *handwritten.CASES)

_TITLES = {
    "spikingjelly": "SpikingJelly",
    "snntorch": "snnTorch",
    "norse": "Norse",
    "sinabs": "sinabs",
    "": "Hand-written neurons",
}
_HEAD = """# What is captured

This page is written by `python -m tests.compatibility`, and the tests check every line of it. Each line is a small net of one or
two layers, built with the library itself, traced, optimized and run in ONNX Runtime on another input and another batch size than
it was captured on. *As* says what the neuron was recognised as, or why it is kept as ordinary operators; both run. *Steps* says
whether the T copies of a step became one operator over time; a recurrent net keeps them. *Differs* counts the numbers of the
engine's outputs (spikes, and membrane potentials where the net returns them) that are not those of the net itself, of all.
"""
_COLUMNS = "| Neuron | Style | As | Steps | Differs |\n|---|---|---|---|---|\n"


def missing(case: Case) -> bool:
    """Whether the case's library is not installed."""
    return bool(case.library) and importlib.util.find_spec(case.library) is None


def line(case: Case, row: Row) -> str:
    """A case as a line of its library's table."""
    what = f"`{row.found}`" if row.found != "operators" else f"operators: {row.reason}"
    steps = "merged" if row.merged else "apart"
    return f"| {case.neuron} | {case.style} | {what} | {steps} | {row.differing} of {row.outputs} |"


def render(cases: Sequence[Case] = CASES) -> str:
    """The page."""
    tables: Mapping[str, list[str]] = {library: [] for library in _TITLES}
    for case in cases:
        tables[case.library].append(line(case, examine(case)))
    parts = [_HEAD]
    for library, lines in tables.items():
        title = _TITLES[library] + (f" {importlib.metadata.version(library)}" if library else "")
        parts.append(
            f"## {title}\n\n| Neuron | Style | As | Steps | Differs |\n|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
        )
    return "\n".join(parts)
