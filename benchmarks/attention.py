"""What the attention passes bring: nets with attention, engines with and without these passes, and their peers, batch 1.

Each case is measured in three ways:

- all engines and peers in turn, in this process: :func:`snngraph.benchmark.compare`;
- capturing, optimizing and building, each timed, with the peak of memory, in a fresh process;
- of the maps that are summed over ranks, the memory that a call needs: the eager loop and the engine, each in a fresh process.
"""

from __future__ import annotations

import gc
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

import snngraph
from benchmarks import cpu, memory
from benchmarks.outcome import Outcome
from snngraph import benchmark, pipelines
from snngraph.models.calibration import calibrate, firing_rates
from snngraph.passes.base import Pass
from snngraph.report.benchmark import BenchmarkReport

__all__ = ["CASES", "OFF", "Case", "passes_off", "run"]

#: The title of the row without the attention passes, and what these are.
OFF: Final = "attention passes off"
ATTENTION_PASSES: Final = ("compose_low_rank", "sink_scales", "fold_attention")
#: The bars of every case: converting takes less.
SECONDS, GIB = 120.0, 8.0
#: Seconds in which torch.compile has to compile, its two modes together.
PATIENCE: Final = 100.0
MEMORY: Final = ("eager", "engine", "engine_off")
ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """A net with attention.

    Args:
        title: its name in tables.
        model: builds it, with random weights; given ``True``, a tiny one.
        example: an input, likewise.
        rounds: how often each engine and peer is timed.
        calibrated: builds a net of the same weights that is quicker to calibrate, if there is one.
        off_over_on: the bar: the time without the attention passes, divided by the time with them.
        over_eager: the bar: PyTorch's time divided by the engine's.
        memory: whether the memory that the net and its calls take is measured.
        less_memory: the bar: the engine and its calls take less than the eager net and its calls.
    """

    title: str
    model: Callable[[bool], nn.Module]
    example: Callable[[bool], Tensor]
    rounds: int
    calibrated: Callable[[bool], nn.Module] | None = None
    off_over_on: float | None = None
    over_eager: float | None = None
    memory: bool = False
    less_memory: bool = False


def passes_off(target: str = "openvino") -> tuple[Pass, ...]:
    """The default pipeline without the attention passes."""
    return tuple(p for p in pipelines.default(target).passes if p.name not in ATTENTION_PASSES)


# -- the cases -----------------------------------------------------------------------------------------------------------------


def _image(small: bool) -> Tensor:
    size = 32 if small else 224
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(1))


def _spikingresformer(small: bool) -> nn.Module:
    from snngraph.models.spikingresformer import SpikingResformer, spikingresformer_ti

    return SpikingResformer(2, 32, 5) if small else spikingresformer_ti(T=4)


def _att_res_snn(T: int, small: bool) -> nn.Module:
    from snngraph.models.ma import att_res_snn18

    return att_res_snn18(T, num_classes=5, img_size=32, channels=(8, 8, 16, 16)) if small else att_res_snn18(T)


def _ma_gesture(small: bool) -> nn.Module:
    from snngraph.models.ma import ma_snn_gesture

    return ma_snn_gesture("TCSA", 5, size=16, channels=(8, 8, 8), hidden=16) if small else ma_snn_gesture("TCSA", 60)


def _tcja(small: bool) -> nn.Module:
    from snngraph.models.tcja import tcja_dvs128gesture, tcja_small

    return tcja_small(T=4) if small else tcja_dvs128gesture(T=20)


def _pfa(rank: int, by_rank: bool, small: bool) -> nn.Module:
    from snngraph.models.pfa import pfa_vgg

    if small:
        return pfa_vgg("cifar10dvs", T=4, rank=rank, size=16, channels=(8,) * 8, by_rank=by_rank)
    return pfa_vgg("cifar10dvs", T=10, rank=rank, by_rank=by_rank)


def _pfa_layer(small: bool, *, by_rank: bool = True) -> nn.Module:
    """One attention layer of the VGG, its second, with next to nothing behind it."""
    from snngraph.models.layers import StepWise
    from snngraph.models.pfa import PFA, PFAByRank
    from snngraph.neurons import LIF

    T, channels, rank = (4, 8, 4) if small else (10, 128, 64)
    attention = (PFAByRank if by_rank else PFA)(T, channels, rank)
    return nn.Sequential(attention, StepWise(nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8)), LIF())


def _pooled_spikes(small: bool) -> Tensor:
    T, channels, side = (4, 8, 6) if small else (10, 128, 24)
    return torch.randint(0, 3, (T, 1, channels, side, side), generator=torch.Generator().manual_seed(1)) / 4


def _pfa_case(rank: int, *, by_rank: bool) -> Case:
    return Case(
        f"PFA VGG, rank {rank}, " + ("summed rank by rank" if by_rank else "one contraction"),
        lambda small: _pfa(rank, by_rank, small),
        lambda small: cpu.events(4, 16) if small else cpu.events(10, 128),
        rounds=12,
        calibrated=(lambda small: _pfa(rank, False, small)) if by_rank else None,
        off_over_on=1.2 if by_rank else None,
        over_eager=5.0 if by_rank and rank == 64 else None,
        memory=by_rank,
        less_memory=by_rank and rank == 64,
    )


CASES: Final = {
    "spikingresformer_ti": Case("SpikingResformer-Ti, T 4", _spikingresformer, _image, rounds=10, off_over_on=0.98),
    "att_res_snn18_t1": Case("Att-Res-SNN-18, T 1", lambda small: _att_res_snn(1, small), _image, rounds=20, off_over_on=0.98),
    "att_res_snn18_t4": Case("Att-Res-SNN-18, T 4", lambda small: _att_res_snn(4, small), _image, rounds=15, off_over_on=0.98),
    "ma_gesture_tcsa": Case(
        "MA-SNN Gesture TCSA, T 60",
        _ma_gesture,
        lambda small: cpu.events(5, 16) if small else cpu.events(60, 32),
        rounds=15,
        off_over_on=1.2,
    ),
    "tcja_dvs128": Case(
        "TCJA DVS128 Gesture",
        _tcja,
        lambda small: cpu.events(4, 24) if small else cpu.events(20, 128),
        rounds=15,
        off_over_on=1.2,
    ),
    "pfa_vgg_r8": _pfa_case(8, by_rank=False),
    "pfa_vgg_r64": _pfa_case(64, by_rank=False),
    "pfa_vgg_loop_r8": _pfa_case(8, by_rank=True),
    "pfa_vgg_loop_r64": _pfa_case(64, by_rank=True),
    "pfa_layer_loop_r64": Case(
        "PFA layer, rank 64, summed rank by rank",
        _pfa_layer,
        _pooled_spikes,
        rounds=20,
        calibrated=lambda small: _pfa_layer(small, by_rank=False),
        off_over_on=1.2,
        over_eager=5.0,
        memory=True,
        less_memory=True,
    ),
}


def _redrawn(x: Tensor, seed: int) -> Tensor:
    """Another input like ``x``, whose entries are independent draws: the same in another order, so that no tie comes back."""
    order = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(seed))
    return x.flatten()[order].view_as(x)


# -- measuring -----------------------------------------------------------------------------------------------------------------


def run(name: str, rounds: int | None = None, peers: list[str] | None = None, *, small: bool = False) -> Outcome:
    """Measures one of :data:`CASES`; ``small`` with a tiny net, to try it: its ratios say nothing."""
    case = CASES[name]
    cpu.tell("calibrate", 0, 1)
    model = _calibrated(case, small)
    x = case.example(small)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pt")
        torch.save(model.state_dict(), weights)
        found: dict[str, Any] = {"conversion": _in_fresh_process("conversion", name, weights, small)}
        if case.memory and memory.measurable():
            found["memory"] = {what: _in_fresh_process(f"{what}_memory", name, weights, small) for what in MEMORY}
    gc.collect()
    report = benchmark.compare(
        model,
        x,
        rounds=rounds or (2 if small else case.rounds),
        peers=peers,
        check=[x, *(_redrawn(x, k) for k in range(1, benchmark.CHECKED))],
        targets=("openvino",),
        variants={OFF: passes_off("openvino")},
        patience=PATIENCE,
        progress=cpu.tell,
    )
    report = replace(report, model=case.title)
    found["off_over_on"] = _off_over_on(report)
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


def _calibrated(case: Case, small: bool) -> nn.Module:
    """The net, every layer of it firing at 5 to 30 %."""
    torch.manual_seed(0)
    model, x = case.model(small).eval(), case.example(small)
    if case.calibrated is None:
        calibrate(model, x, cpu.LOW, cpu.HIGH)
    else:
        other = case.calibrated(small).eval()
        calibrate(other, x, cpu.LOW, cpu.HIGH)
        model.load_state_dict(other.state_dict())
    rates = firing_rates(model, x)
    assert all(cpu.LOW <= rate <= cpu.HIGH for rate in rates.values()), rates
    return model


def _without_bars(case: Case) -> Case:
    return replace(case, off_over_on=None, over_eager=None, less_memory=False)


def _off_over_on(report: BenchmarkReport) -> float | None:
    """The time without the attention passes, divided by the time with them: the median over rounds."""
    title = f"{report.engine.name}, {OFF}"
    return next((row.ratio for row in report.rows if row.name == title), None)


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
    return _fresh(f"from benchmarks.attention import {what} as f; found = f({name!r}, {str(weights)!r}, {small})")


def _fresh(code: str) -> dict[str, Any]:
    """Runs code in a fresh interpreter; gives ``found`` back."""
    command = [sys.executable, "-c", f"import json; {code}; print(json.dumps(found))"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _load(name: str, weights: str, small: bool) -> tuple[nn.Module, Tensor]:
    model = CASES[name].model(small).eval()
    model.load_state_dict(torch.load(weights))
    return model, CASES[name].example(small)


def conversion(name: str, weights: str, small: bool) -> dict[str, Any]:
    """Captures, optimizes and builds an OpenVINO engine."""
    model, x = _load(name, weights, small)
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
    model, x = _load(name, weights, small)
    with torch.inference_mode():
        return memory.taken(before, lambda: model(x))


def engine_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """Of the engine, converted in this process and loaded in another, which has no PyTorch."""
    return _engine_memory(name, weights, small, None)


def engine_off_memory(name: str, weights: str, small: bool) -> dict[str, float]:
    """The same without the attention passes."""
    return _engine_memory(name, weights, small, passes_off())


def _engine_memory(name: str, weights: str, small: bool, passes: tuple[Pass, ...] | None) -> dict[str, float]:
    model, x = _load(name, weights, small)
    path = Path(weights).with_suffix(".snn")
    snngraph.convert(model, x, path=path, passes=passes, force=True).close()
    return _fresh(f"from benchmarks.memory import loaded as f; found = f({str(path)!r})")
