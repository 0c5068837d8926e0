"""What the attention passes bring: nets with attention, engines with and without these passes, and their peers, batch 1.

Each case is measured in three ways:

- all engines and peers in turn, in this process: :func:`snngraph.benchmark.compare`;
- capturing, optimizing and building, each timed, with the peak of memory, in a fresh process;
- of the maps that are summed over ranks, the memory that a call needs: the eager loop and the engine, each in a fresh process.
"""

from __future__ import annotations

import gc
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import snngraph
from benchmarks import cpu, memory, nets
from benchmarks.outcome import Outcome
from snngraph import benchmark, pipelines
from snngraph.passes.base import Pass
from snngraph.runtime.backends import backend_class

__all__ = ["CASES", "OFF", "Case", "passes_off", "run"]

#: The title of the row without the attention passes, and what these are.
OFF: Final = "attention passes off"
ATTENTION_PASSES: Final = ("compose_low_rank", "sink_scales", "fold_attention")
#: The bars of every case: converting takes less.
SECONDS, GIB = 120.0, 8.0
#: Seconds in which torch.compile has to compile, its two modes together.
PATIENCE: Final = 100.0
MEMORY: Final = ("eager", "engine", "engine_off")


@dataclass(frozen=True)
class Case:
    """How one of :data:`benchmarks.nets.NETS` is measured.

    Args:
        rounds: how often each engine and peer is timed.
        off_over_on: the bar: the time without the attention passes, divided by the time with them.
        over_eager: the bar: PyTorch's time divided by the engine's.
        memory: whether the memory that the net and its calls take is measured.
        less_memory: the bar: the engine and its calls take less than the eager net and its calls.
    """

    rounds: int
    off_over_on: float | None = None
    over_eager: float | None = None
    memory: bool = False
    less_memory: bool = False


CASES: Final = {
    "spikingresformer_ti": Case(10, off_over_on=0.98),
    "att_res_snn18_t1": Case(20, off_over_on=0.98),
    "att_res_snn18_t4": Case(15, off_over_on=0.98),
    "ma_gesture_tcsa": Case(15, off_over_on=1.2),
    "tcja_dvs128": Case(15, off_over_on=1.2),
    "pfa_vgg_r8": Case(12),
    "pfa_vgg_r64": Case(12),
    "pfa_vgg_loop_r8": Case(12, off_over_on=1.2, memory=True),
    "pfa_vgg_loop_r64": Case(12, off_over_on=1.2, over_eager=5.0, memory=True, less_memory=True),
    "pfa_layer_loop_r64": Case(20, off_over_on=1.2, over_eager=5.0, memory=True, less_memory=True),
}


def passes_off(target: str = "openvino", precision: str | None = None) -> tuple[Pass, ...]:
    """The pipeline of a precision, by default the target's own, without the attention passes."""
    chosen = precision or backend_class(target).default_precision()
    return tuple(p for p in pipelines.default(target, chosen).passes if p.name not in ATTENTION_PASSES)


# -- measuring -----------------------------------------------------------------------------------------------------------------


def run(
    name: str, rounds: int | None = None, peers: list[str] | None = None, *, check: int | None = None, small: bool = False
) -> Outcome:
    """Measures one of :data:`CASES`; ``small`` with a tiny net, to try it: its ratios say nothing."""
    case, net = CASES[name], nets.NETS[name]
    cpu.tell("calibrate", 0, 1)
    model = nets.calibrated(net, small=small)
    checked = nets.inputs(net, check or benchmark.CHECKED, small=small)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pt")
        torch.save(model.state_dict(), weights)
        found: dict[str, Any] = {"conversion": _in_fresh_process("conversion", name, weights, small)}
        if case.memory and memory.measurable():
            found["memory"] = {what: _in_fresh_process(f"{what}_memory", name, weights, small) for what in MEMORY}
    gc.collect()
    precision = backend_class("openvino").default_precision()
    report = benchmark.compare(
        model,
        checked[0],
        rounds=rounds or (2 if small else case.rounds),
        peers=peers,
        check=checked,
        targets=("openvino",),
        precisions=(precision,),
        variants={OFF: passes_off("openvino", precision)},
        patience=PATIENCE,
        progress=cpu.tell,
    )
    report = replace(report, model=net.title)
    found["off_over_on"] = next((row.ratio for row in report.rows if row.kind == "variant"), None)
    found["over_eager"] = next((row.ratio for row in report.rows if row.name == "PyTorch"), None)
    found["bars"] = {
        "off_over_on": case.off_over_on,
        "over_eager": case.over_eager,
        "conversion_seconds": SECONDS,
        "conversion_peak_gib": GIB,
        "memory": "less than eager" if case.less_memory else None,
    }
    problems = (*cpu.problems_of(report), *_missed(_without_bars(case) if small else case, found))
    document = {**report.to_dict(), "attention": found, "problems": list(problems), "ok": not problems}
    return Outcome(document, f"{report.markdown()}\n\n{_summary(found)}", problems)


def _without_bars(case: Case) -> Case:
    return replace(case, off_over_on=None, over_eager=None, less_memory=False)


def _missed(case: Case, found: dict[str, Any]) -> list[str]:
    """The bars that are missed; a number that could not be taken misses its bar."""
    missed = []
    for key, what, bar in (
        ("off_over_on", "time without the attention passes / time with them", case.off_over_on),
        ("over_eager", "PyTorch's time / the engine's", case.over_eager),
    ):
        value = found[key]
        if bar is not None and (value is None or value < bar):
            missed.append(f"{what} is {'unknown' if value is None else format(value, '.3f')}, the bar is {bar:g}")
    conversion = found["conversion"]
    for value, unit, bar in ((conversion["seconds"], "s", SECONDS), (conversion["peak_gib"], "GiB at the peak", GIB)):
        if not value < bar:
            missed.append(f"converting takes {value:.1f} {unit}, the bar is {bar:g}")
    if case.less_memory and "memory" not in found:
        missed.append("the memory of a call is unknown: this system can not measure it")
    elif case.less_memory:
        eager, engine = (found["memory"][what]["peak_mib"] for what in ("eager", "engine"))
        if not engine < eager:
            missed.append(f"the engine and its calls take {engine:.0f} MiB, the eager loop over ranks {eager:.0f}")
    return missed


def _summary(found: dict[str, Any]) -> str:
    lines = []
    if (ratio := found["off_over_on"]) is not None:
        lines.append(f"without the attention passes the engine takes {ratio:.3f} times as long")
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in found["conversion"]["stages"].items())
    seconds, peak = found["conversion"]["seconds"], found["conversion"]["peak_gib"]
    lines.append(f"converting: {seconds:.1f} s ({stages}), {peak:.2f} GiB at the peak")
    for what, mib in found.get("memory", {}).items():
        parts = f"{mib['model_mib']:.0f} MiB for the model, {mib['call_mib']:.0f} MiB more for a call"
        lines.append(f"memory of {what.replace('_', ', attention passes ')}: {parts}, {mib['peak_mib']:.0f} MiB together")
    return "\n\n".join(lines)


# -- in fresh processes --------------------------------------------------------------------------------------------------------


def _in_fresh_process(what: str, name: str, weights: Path, small: bool) -> dict[str, Any]:
    cpu.tell(f"{what}, in a fresh process", 0, 1)
    return memory.fresh(f"from benchmarks.attention import {what} as f; found = f({name!r}, {str(weights)!r}, {small})")


def conversion(name: str, weights: str, small: bool) -> dict[str, Any]:
    """Captures, optimizes and builds an OpenVINO engine."""
    model, x = nets.load(name, weights, small)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    marks = [time.perf_counter()]
    graph = snngraph.trace(model, x)
    marks.append(time.perf_counter())
    graph = snngraph.optimize(graph)
    marks.append(time.perf_counter())
    snngraph.build(graph).close()
    marks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    unit = 2 ** (30 if sys.platform == "darwin" else 20)
    stages = {stage: end - start for stage, start, end in zip(("trace", "optimize", "build"), marks, marks[1:], strict=False)}
    return {"seconds": marks[-1] - marks[0], "stages": stages, "peak_gib": peak / unit, "peak_gib_before": before / unit}


def eager_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """Of the net in PyTorch."""
    with torch.inference_mode():
        nn.Conv2d(2, 8, 3)(torch.zeros(1, 2, 8, 8))  # what the library takes once is none of the net's memory
    before = memory.resident_mib()
    model, x = nets.load(name, weights, small)
    with torch.inference_mode():
        return memory.taken(before, lambda: model(x))


def engine_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """Of the engine, converted in this process and loaded in another, which has no PyTorch."""
    return _engine_memory(name, weights, small, None)


def engine_off_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """The same without the attention passes."""
    return _engine_memory(name, weights, small, passes_off())


def _engine_memory(name: str, weights: str, small: bool, passes: tuple[Pass, ...] | None) -> dict[str, float]:
    model, x = nets.load(name, weights, small)
    path = Path(weights).with_suffix(".snn")
    snngraph.convert(model, x, path=path, passes=passes, force=True).close()
    return memory.fresh(f"from benchmarks.memory import loaded as f; found = f({str(path)!r})")
