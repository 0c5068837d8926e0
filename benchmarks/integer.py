"""What integer synapses bring: engines in precision exact, int8 and fp32 and their peers, and what each digit adds; batch 1.

Each case times and checks engines and peers in turn in this process (:func:`snngraph.benchmark.compare`), on :data:`CHECKED`
independent inputs, and measures the memory of the exact engine and of OpenVINO f32, each in a fresh process.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

import snngraph
from benchmarks import cpu, memory, nets
from benchmarks.outcome import Outcome
from snngraph import benchmark, peers, pipelines
from snngraph.passes.base import Pass
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.report.benchmark import BenchmarkReport, Row

__all__ = ["CASES", "DIGITS", "Bar", "Case", "run", "with_digits"]

TARGET: Final = "openvino"
#: Independent inputs that are checked: verdicts over fewer are weak.
CHECKED: Final = 32
#: The bars of every case: the error before the threshold / float32's, and the exact engine's memory / OpenVINO f32's.
MEMBRANE, MEMORY = 1.25, 1.5
#: Seconds in which torch.compile has to compile, its two modes together.
PATIENCE: Final = 100.0


@dataclass(frozen=True)
class Bar:
    """A peer's time, divided by that of the engine of a precision, is ``least`` or more.

    Args:
        precision: the engine's.
        peer: its name; ``None`` for the fastest that is as right as float32.
        least: the bar.
    """

    precision: str
    peer: str | None
    least: float

    def value(self, report: BenchmarkReport) -> float | None:
        """What was measured; ``None`` where one of the two was not timed."""
        rows = {row.name: row for row in report.rows}
        peer = report.to_beat if self.peer is None else rows.get(self.peer)
        engine = rows.get(f"snngraph {TARGET} {self.precision}")
        if peer is None or engine is None or peer.ratio is None or not engine.ratio:
            return None
        return peer.ratio / engine.ratio

    def __str__(self) -> str:
        return f"time of {self.peer or 'the fastest exact peer'} / time of {self.precision}"


@dataclass(frozen=True)
class Case:
    """How one of :data:`benchmarks.nets.NETS` is measured.

    Args:
        net: its name.
        rounds: how often each engine and peer is timed.
        precisions: of the engines; the first is the one that all are measured against.
        bars: of their times.
    """

    net: str
    rounds: int
    precisions: tuple[str, ...] = ("exact", "fp32")
    bars: tuple[Bar, ...] = (Bar("exact", None, 1.5),)


CASES: Final = {
    "sew_resnet18": Case(
        "sew_resnet18",
        20,
        ("exact", "int8", "fp32"),
        (
            Bar("exact", "PyTorch", 8.0),
            Bar("exact", "OpenVINO f32", 3.0),
            Bar("int8", "PyTorch", 12.0),
            Bar("int8", "OpenVINO f32", 5.0),
        ),
    ),
    "exact_spikingresformer_ti": Case("spikingresformer_ti", 10),
    "exact_att_res_snn18_t4": Case("att_res_snn18_t4", 15),
    "exact_ma_gesture_tcsa": Case("ma_gesture_tcsa", 15),
    "exact_tcja_dvs128": Case("tcja_dvs128", 15),
    "exact_pfa_vgg": Case("pfa_vgg_r8", 12),
}
#: What 1 to 4 digits bring: the nets.
DIGITS: Final = {"digits_sew_resnet18": "sew_resnet18"}


def with_digits(count: int) -> tuple[Pass, ...]:
    """The exact pipeline with another number of digits to a weight."""
    passes = pipelines.default(TARGET, "exact").passes
    return tuple(replace(p, digits=count) if isinstance(p, IntegerSynapses) else p for p in passes)


def run(
    name: str, rounds: int | None = None, peers: list[str] | None = None, *, check: int | None = None, small: bool = False
) -> Outcome:
    """Measures one of :data:`CASES` or :data:`DIGITS`; ``small`` with a tiny net, to try it: its ratios say nothing."""
    cpu.tell("calibrate", 0, 1)
    if name in DIGITS:
        return _digits(DIGITS[name], rounds, peers, check, small)
    case = CASES[name]
    net = nets.NETS[case.net]
    model = nets.calibrated(net, small=small)
    found: dict[str, Any] = {}
    if memory.measurable():
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder, "weights.pt")
            torch.save(model.state_dict(), weights)
            found["memory"] = _memory(case.net, weights, small)
    gc.collect()
    checked = nets.inputs(net, check or CHECKED, small=small)
    report = benchmark.compare(
        model,
        checked[0],
        rounds=rounds or (2 if small else case.rounds),
        peers=peers,
        check=checked,
        targets=(TARGET,),
        precisions=case.precisions,
        patience=PATIENCE,
        progress=cpu.tell,
    )
    report = replace(report, model=net.title)
    found["bars"] = [{"of": str(bar), "least": bar.least, "found": bar.value(report)} for bar in case.bars]
    return _outcome(report, found, _summary(found), small)


def _outcome(report: BenchmarkReport, found: dict[str, Any], summary: str, small: bool) -> Outcome:
    problems = (*cpu.problems_of(report), *(() if small else _missed(report.rows, found)))
    document = {**report.to_dict(), "integer": found, "problems": list(problems), "ok": not problems}
    return Outcome(document, f"{report.markdown()}\n\n{summary}", problems)


def _missed(rows: Sequence[Row], found: dict[str, Any]) -> list[str]:
    """The bars that are missed; a number that could not be taken misses its bar."""
    missed = []
    for bar in found["bars"]:
        if bar["found"] is None or bar["found"] < bar["least"]:
            value = "unknown" if bar["found"] is None else format(bar["found"], ".2f")
            missed.append(f"{bar['of']} is {value}, the bar is {bar['least']:g}")
    for row in rows:
        if row.kind != "peer" and not row.approximate and (row.membrane_ratio or 0.0) > MEMBRANE:
            missed.append(
                f"{row.name}: error before the threshold is {row.membrane_ratio:.3g} times float32's, the bar is {MEMBRANE:g}"
            )
    if "memory" in found and found["memory"]["ratio"] > MEMORY:
        missed.append(
            f"the exact engine takes {found['memory']['ratio']:.2f} times the memory of OpenVINO f32, the bar is {MEMORY:g}"
        )
    return missed


def _summary(found: dict[str, Any]) -> str:
    lines = []
    for bar in found["bars"]:
        value = "unknown" if bar["found"] is None else format(bar["found"], ".2f")
        lines.append(f"{bar['of']}: {value} (the bar is {bar['least']:g})")
    if "memory" in found:
        ours, theirs, ratio = (found["memory"][what] for what in ("engine", "plain", "ratio"))
        parts = ", ".join(
            f"{title} {mib['peak_mib']:.0f} MiB, {mib['call_mib']:.0f} of them for a call"
            for title, mib in (("exact", ours), ("OpenVINO f32", theirs))
        )
        lines.append(f"memory: {parts}; {ratio:.2f} times as much (the bar is {MEMORY:g})")
    return "\n\n".join(lines)


# -- digits --------------------------------------------------------------------------------------------------------------------


def _digits(name: str, rounds: int | None, peers: list[str] | None, check: int | None, small: bool) -> Outcome:
    """Engines of 1 to 4 digits; no peers unless asked for."""
    net = nets.NETS[name]
    model = nets.calibrated(net, small=small)
    checked = nets.inputs(net, check or CHECKED, small=small)
    usual = pipelines.DIGITS["exact"]
    report = benchmark.compare(
        model,
        checked[0],
        rounds=rounds or (2 if small else 10),
        peers=peers or (),
        check=checked,
        targets=(TARGET,),
        precisions=("exact",),
        variants={f"digits={k}": with_digits(k) for k in (1, 2, 3, 4) if k != usual},
        patience=PATIENCE,
        progress=cpu.tell,
    )
    report = replace(report, model=net.title)
    rows = {usual: report.engine} | {int(r.name.rpartition("=")[2]): r for r in report.rows if r.kind == "variant"}
    head = ("digits", "ms", "time", "flips", "float32", "membrane / float32's", "output error", "equal predictions")
    lines = ["| " + " | ".join(head) + " |", "|" + " ---: |" * len(head)]
    lines += ["| " + " | ".join(_digits_cells(count, rows[count], report.checked)) + " |" for count in sorted(rows)]
    found = {"bars": [], "digits": {str(count): rows[count].name for count in sorted(rows)}}
    return _outcome(report, found, "\n".join(lines), small)


def _digits_cells(count: int, row: Row, checked: int) -> list[str]:
    if row.median_ms is None or row.error is None:
        return [str(count), row.failure, *[""] * 6]
    membrane = "" if row.membrane_ratio is None else f"{row.membrane_ratio:.3g}"
    return [
        str(count),
        f"{row.median_ms:.3g}",
        f"{row.ratio:.2f}",
        str(row.flips),
        str(row.flips_float32),
        membrane,
        f"{row.error:.1e}",
        f"{row.predictions_equal} of {checked}",
    ]


# -- in fresh processes --------------------------------------------------------------------------------------------------------


def _memory(name: str, weights: Path, small: bool) -> dict[str, Any]:
    """Of the exact engine, of OpenVINO held to float32 on the plain export, and their ratio, with a call."""
    found: dict[str, Any] = {}
    for what in ("engine", "plain"):
        cpu.tell(f"memory of {what}, in a fresh process", 0, 1)
        found[what] = memory.fresh(
            f"from benchmarks.integer import {what}_memory as f; found = f({name!r}, {str(weights)!r}, {small})"
        )
    return {**found, "ratio": found["engine"]["peak_mib"] / found["plain"]["peak_mib"]}


def engine_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """Of the exact engine, converted in this process and loaded in another, which has no PyTorch."""
    model, x = nets.load(name, weights, small)
    path = Path(weights).with_suffix(".snn")
    snngraph.convert(model, x, path=path, target=TARGET, precision="exact").close()
    return memory.fresh(f"from benchmarks.memory import loaded as f; found = f({str(path)!r})")


def plain_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """Of OpenVINO held to float32, on the model exported in this process and loaded in another."""
    model, x = nets.load(name, weights, small)
    path = Path(weights).with_suffix(".onnx")
    with peers.quiet():
        path.write_bytes(peers.PlainModel(model, (x,)).onnx)
    return memory.fresh(f"from benchmarks.memory import plain as f; found = f({str(path)!r})")
