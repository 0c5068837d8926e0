"""Engines and peers on a CPU, batch 1. Nets with random weights are calibrated, so that every layer fires at 5 to 30 %."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.outcome import Outcome
from snngraph.benchmark import compare
from snngraph.models.calibration import calibrate

__all__ = ["CASES", "run"]

LOW, HIGH = 0.05, 0.30
Case = tuple[str, nn.Module, Tensor, list[Tensor], int]  # title, model, example, inputs to check, rounds


def _demo() -> Case:
    from snngraph.demo.data import load_digits
    from snngraph.demo.model import T
    from snngraph.demo.training import load_demo_model

    x = torch.from_numpy(load_digits(T).test_x[:, :32])
    digits = [x[:, k : k + 1].contiguous() for k in range(32)]
    return "demo (TCJA, digits)", load_demo_model(), digits[0], digits, 100


def _dvs128() -> Case:
    from snngraph.models.tcja import tcja_dvs128gesture

    torch.manual_seed(0)
    return _calibrated("TCJA DVS128 Gesture", tcja_dvs128gesture(T=20).eval(), _events(20, 128), 4)


def _cifar10dvs() -> Case:
    from snngraph.models.tcja import tcja_cifar10dvs

    torch.manual_seed(0)
    return _calibrated("TCJA CIFAR10-DVS", tcja_cifar10dvs(T=10).eval(), _events(10, 128), 8)


def _events(T: int, size: int) -> Tensor:
    """Event counts of which a tenth are not 0."""
    return torch.poisson(torch.full((T, 1, 2, size, size), 0.105), generator=torch.Generator().manual_seed(1))


def _calibrated(title: str, model: nn.Module, x: Tensor, checked: int) -> Case:
    rates = calibrate(model, x, LOW, HIGH)
    assert all(LOW <= rate <= HIGH for rate in rates.values()), rates
    return title, model, x, [x.roll(k, -1) for k in range(checked)], 20


CASES: dict[str, Callable[[], Case]] = {"demo": _demo, "tcja_dvs128": _dvs128, "tcja_cifar10dvs": _cifar10dvs}


def run(name: str, rounds: int | None = None, peers: list[str] | None = None) -> Outcome:
    """Times one of :data:`CASES`."""
    title, model, x, checked, default = CASES[name]()

    def tell(what: str, done: int, total: int) -> None:
        if not what.startswith("time, round") or what.startswith("time, round 1 "):
            print(f"  [{done}/{total}] {what}", file=sys.stderr, flush=True)

    report = compare(model, x, rounds=rounds or default, peers=peers, check=checked, progress=tell)
    report = replace(report, model=title)
    problems = tuple(f"{r.name}: {r.failure or r.remark}" for r in report.rows if r.kind == "engine" and not r.exact)
    return Outcome(report.to_dict(), report.markdown(), problems)
