"""``python -m benchmarks.plot [names...]``: the results of the attention cases as ``docs/attention.md`` and ``.svg``.

Both follow from the JSON files alone, so that the same results give the same bytes. A case without a result, and a result
without a row, are said by name.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from xml.sax.saxutils import escape

__all__ = ["Result", "main", "markdown", "read", "svg"]

ROOT: Final = Path(__file__).parents[1]
COMMAND: Final = "python -m benchmarks attention\npython -m benchmarks.plot"

#: What rows are called in the table and in the plot, by the beginning of their names, and their colours.
SERIES: Final = {
    "PyTorch": "#8c8c8c",
    "torch.compile": "#c44e52",
    "ONNX Runtime": "#8172b3",
    "OpenVINO f32": "#4c72b0",
    "OpenVINO default": "#a6c0e4",
    "passes off": "#dd9b3f",
}
NOTES: Final = {
    "PyTorch": "eager",
    "torch.compile": "inductor",
    "ONNX Runtime": "plain export",
    "OpenVINO f32": "plain export",
    "OpenVINO default": "plain export; bfloat16 where the CPU has it",
    "passes off": "snngraph without the attention passes",
}


MEMORY: Final = ("eager", "engine", "engine_off")
MEMORY_PARTS: Final = ("model_mib", "call_mib", "peak_mib")
INTRODUCTION: Final = """\
Nets with attention, batch 1, on a CPU: the time of each way to run them, divided by that of snngraph's engine on OpenVINO,
whose precision stands beside its time. Above 1 the engine is faster. All run in turn in one process with the same number of
threads; a ratio is taken within a round, and the median over rounds is shown. *Passes off* is the same engine from a pipeline
without `compose_low_rank`, `sink_scales` and `fold_attention`; it is shown beside the peers, but is none. The weights are random,
calibrated so that every layer fires at 5 to 30 %. A number in brackets is of a row that is less exact than float32. The spikes of
the engines are checked against float64 in the same run.
"""


@dataclass(frozen=True)
class Result:
    """One case, as its JSON file has it."""

    name: str
    document: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The rows of :data:`SERIES` that there are."""
        found: dict[str, Mapping[str, Any]] = {}
        for row in self.document["rows"]:
            if row["kind"] == "variant":
                found["passes off"] = row
            elif row["kind"] == "peer":
                series = max((s for s in SERIES if row["name"].startswith(s)), key=len, default=None)
                if series is not None:
                    found[series] = row
        return found

    @property
    def engine(self) -> Mapping[str, Any]:
        """The engine that the ratios refer to."""
        row: Mapping[str, Any] = next(r for r in self.document["rows"] if r["kind"] == "engine" and r["median_ms"] is not None)
        return row

    @property
    def gaps(self) -> list[str]:
        """The rows without a number, with the reason."""
        found = self.rows
        return [
            f"{series}: {found[series]['failure'] or 'not timed' if series in found else 'not asked for'}"
            for series in SERIES
            if series not in found or found[series]["ratio"] is None
        ]


def read(folder: Path, names: Sequence[str]) -> tuple[list[Result], dict[str, str]]:
    """The results that are there, and of the others why they are not."""
    results, missing = [], {}
    for name in names:
        path = folder / f"{name}.json"
        try:
            document = json.loads(path.read_text())
        except FileNotFoundError:
            missing[name] = "not measured yet"
            continue
        except ValueError:
            missing[name] = "its file is no JSON"
            continue
        if not isinstance(document, dict) or "rows" not in document or "attention" not in document:
            missing[name] = "its file is not of this benchmark: measure it again"
            continue
        results.append(Result(name, document))
    return results, missing


# -- the table -----------------------------------------------------------------------------------------------------------------


def markdown(results: Sequence[Result], missing: Mapping[str, str]) -> str:
    """The whole page."""
    return "\n".join(_page(results, missing)) + "\n"


def _page(results: Sequence[Result], missing: Mapping[str, str]) -> Iterator[str]:
    yield "# What the attention passes bring\n"
    yield INTRODUCTION
    if results:
        yield "![Time of each way to run the nets, relative to snngraph](attention.svg)\n"
        yield from _table(
            ("", *SERIES, "snngraph", "flips"),
            ([str(r.document["model"]), *(_ratio(r.rows.get(series)) for series in SERIES), _ms(r), _flips(r)] for r in results),
        )
        yield "\nFlips: wrong spikes of the engine, each layer fed with float64's spikes; float32's own in brackets.\n"
        yield "## Converting, and memory\n"
        yield "Capturing, optimizing and building in a fresh process. The bars: below 120 s and 8 GiB.\n"
        yield from _table(
            ("", "trace s", "optimize s", "build s", "together s", "peak GiB"),
            ([str(r.document["model"]), *_conversion(r.document["attention"]["conversion"])] for r in results),
        )
        yield ""
        if measured := [r for r in results if "memory" in r.document["attention"]]:
            yield "The map summed rank by rank: MiB of the model and of a call, beyond the libraries, each in a fresh process.\n"
            yield from _table(
                (
                    "",
                    "eager: model",
                    "call",
                    "together",
                    "engine: model",
                    "call",
                    "together",
                    "passes off: model",
                    "call",
                    "together",
                ),
                ([str(r.document["model"]), *_memory(r.document["attention"]["memory"])] for r in measured),
            )
            yield ""
    notes = [f"- {r.document['model']}: {problem}" for r in results for problem in r.document.get("problems", ())]
    if notes:
        yield "## Bars that are missed\n"
        yield from [*notes, ""]
    gaps = [f"- {r.document['model']}: {gap}" for r in results for gap in r.gaps]
    gaps += [f"- `{name}`: {reason}" for name, reason in missing.items()]
    if gaps:
        yield "## What has no number\n"
        yield from [*gaps, ""]
    yield "## How\n"
    machines = sorted({f"{_machine(r.document)}" for r in results})
    yield from (f"- {machine}" for machine in machines)
    if dates := sorted(str(r.document["date"])[:10] for r in results):
        yield f"- measured {dates[0]}" + (f" to {dates[-1]}" if dates[-1] != dates[0] else "")
    if busy := [str(r.document["model"]) for r in results if r.document.get("busy")]:
        yield f"- the machine was busy with something else while these were timed: {', '.join(busy)}"
    if results:
        yield ""
    yield f"The numbers are in `benchmarks/results/`. This page and its plot are made from them:\n\n```\n{COMMAND}\n```"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Any) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _ratio(row: Mapping[str, Any] | None) -> str:
    if row is None or row["ratio"] is None:
        return "-"
    text = f"{row['ratio']:.2f}"
    return text if row["exact"] else f"({text})"


def _ms(result: Result) -> str:
    row = result.engine
    return f"1 ({row['median_ms']:.3g} ms, {row['name'].rpartition(' ')[2]})"


def _flips(result: Result) -> str:
    row = result.engine
    return "-" if row["flips"] is None else f"{row['flips']} ({row['flips_float32']})"


def _conversion(found: Mapping[str, Any]) -> list[str]:
    stages = [f"{found['stages'][stage]:.1f}" for stage in ("trace", "optimize", "build")]
    return [*stages, f"{found['seconds']:.1f}", f"{found['peak_gib']:.2f}"]


def _memory(found: Mapping[str, Any]) -> list[str]:
    return [f"{found[what][part]:.0f}" for what in MEMORY for part in MEMORY_PARTS]


def _machine(document: Mapping[str, Any]) -> str:
    versions = document["versions"]
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "openvino") if name in versions)
    return f"{document['hardware'].get('cpu', 'unknown CPU')}, {document['threads']} threads; {libraries}"


# -- the plot ------------------------------------------------------------------------------------------------------------------

_WIDTH, _LEFT, _RIGHT, _BAR, _GAP, _TOP = 890, 230, 90, 11, 14, 64
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def svg(results: Sequence[Result]) -> str:
    """Grouped bars on a logarithmic scale, from 1, the engine's time: to the right slower, to the left faster."""
    ratios = [row["ratio"] for r in results for row in r.rows.values() if row["ratio"]]
    low = max((t for t in _TICKS if t <= 0.95 * min([*ratios, 1.0])), default=_TICKS[0])
    high = min((t for t in _TICKS if t >= max([*ratios, 2.0])), default=_TICKS[-1])
    groups = [[(s, r.rows[s]) for s in SERIES if s in r.rows and r.rows[s]["ratio"]] for r in results]
    height = _TOP + sum(_BAR * max(len(group), 1) + _GAP for group in groups) + 40

    def across(ratio: float) -> float:
        part = math.log(min(max(ratio, low), high) / low) / math.log(high / low)
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="11">',
        "<title>Time relative to snngraph with its attention passes, batch 1</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
    ]
    x = 12.0
    for series, colour in SERIES.items():
        lines.append(f'<rect x="{x:.0f}" y="12" width="10" height="10" fill="{colour}"/>')
        lines.append(f'<text x="{x + 14:.0f}" y="21">{escape(series)}<title>{escape(NOTES[series])}</title></text>')
        x += 30 + 6.6 * len(series)
    lines.append('<text x="12" y="42" fill="#555">time / time of snngraph with its attention passes (1), logarithmic</text>')
    bottom = height - 30
    for tick in (t for t in _TICKS if low <= t <= high):
        colour, thick = ("#222", 1.5) if tick == 1 else ("#ddd", 1)
        at = f"{across(tick):.1f}"
        lines.append(f'<line x1="{at}" y1="{_TOP - 8}" x2="{at}" y2="{bottom}" stroke="{colour}" stroke-width="{thick}"/>')
        lines.append(f'<text x="{at}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    y, one = float(_TOP), across(1.0)
    for result, group in zip(results, groups, strict=True):
        deep = _BAR * max(len(group), 1)
        title = escape(str(result.document["model"]))
        lines.append(f'<text x="{_LEFT - 10}" y="{y + deep / 2 + 4:.1f}" text-anchor="end">{title}</text>')
        for series, row in group:
            start, end = sorted((one, across(row["ratio"])))
            box = f'x="{start:.1f}" y="{y:.1f}" width="{max(end - start, 0.5):.1f}" height="{_BAR - 1}"'
            lines.append(f'<rect {box} fill="{SERIES[series]}"/>')
            words = f"{row['ratio']:.2f}" + ("" if row["exact"] else " not exact")
            lines.append(f'<text x="{max(end, one) + 4:.1f}" y="{y + _BAR - 2:.1f}" font-size="9" fill="#333">{words}</text>')
            y += _BAR
        y += _GAP + (0 if group else _BAR)
    return "\n".join([*lines, "</svg>"]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both files. Cases without a result are said, in the page too."""
    from benchmarks.__main__ import GROUPS

    known = GROUPS["attention"]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plot", description="The attention benchmark as a page and a plot."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(known)}  [all]")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder to write to  [docs]")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"no attention case is named {', '.join(unknown)}; known: {', '.join(known)}")
    results, missing = read(options.results, options.names or known)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in (("attention.md", markdown(results, missing)), ("attention.svg", svg(results))):
        (options.out / name).write_text(text)
        print(f"written: {options.out / name}")
    for name, reason in missing.items():
        print(f"no result: {name}: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
