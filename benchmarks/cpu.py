"""Engines and peers on a CPU, batch 1. Nets with random weights are calibrated, so that every layer fires at 5 to 30 %."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.outcome import Outcome
from snngraph.benchmark import BenchmarkReport, compare
from snngraph.models.calibration import calibrate

__all__ = ["CASES", "HIGH", "LOW", "events", "problems_of", "run", "tell"]

LOW, HIGH = 0.05, 0.30
Case = tuple[str, nn.Module, Tensor, list[Tensor], int]  # title, model, example, inputs to check, rounds


def _demo() -> Case:
    from snngraph.demo.data import load_digits
    from snngraph.demo.model import T
    from snngraph.demo.training import load_demo_model

    x = torch.from_numpy(load_digits(T).test_x[:, :32])
    digits = [x[:, k : k + 1].contiguous() for k in range(32)]
    return "demo (TCJA, digits)", load_demo_model(), digits[0], digits, 100


def _cifar10dvs() -> Case:
    from snngraph.models.tcja import tcja_cifar10dvs

    torch.manual_seed(0)
    return _calibrated("TCJA CIFAR10-DVS", tcja_cifar10dvs(T=10).eval(), events(10, 128), 8)


def events(T: int, size: int) -> Tensor:
    """Event counts of which a tenth are not 0."""
    return torch.poisson(torch.full((T, 1, 2, size, size), 0.105), generator=torch.Generator().manual_seed(1))


def _calibrated(title: str, model: nn.Module, x: Tensor, checked: int) -> Case:
    rates = calibrate(model, x, LOW, HIGH)
    assert all(LOW <= rate <= HIGH for rate in rates.values()), rates
    return title, model, x, [x.roll(k, -1) for k in range(checked)], 20


CASES: dict[str, Callable[[], Case]] = {"demo": _demo, "tcja_cifar10dvs": _cifar10dvs}


def run(name: str, rounds: int | None = None, peers: list[str] | None = None) -> Outcome:
    """Times one of :data:`CASES`."""
    title, model, x, checked, default = CASES[name]()
    report = compare(model, x, rounds=rounds or default, peers=peers, check=checked, progress=tell)
    report = replace(report, model=title)
    return Outcome(report.to_dict(), report.markdown(), problems_of(report))


def problems_of(report: BenchmarkReport) -> tuple[str, ...]:
    """Which of the engines are not right, and why."""
    return tuple(f"{r.name}: {r.failure or r.remark}" for r in report.rows if r.kind != "peer" and not r.exact)


def tell(what: str, done: int, total: int) -> None:
    """Says what is being done, but no more than the first round of timing."""
    if not what.startswith("time, round") or what.startswith("time, round 1 "):
        print(f"  [{done}/{total}] {what}", file=sys.stderr, flush=True)
