"""Engines and peers on a CPU, batch 1."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks import nets
from benchmarks.outcome import Outcome
from snngraph.benchmark import CHECKED, BenchmarkReport, compare

__all__ = ["CASES", "problems_of", "run", "tell"]

Case = tuple[str, nn.Module, list[Tensor], int]  # title, model, inputs to check (the first is timed), rounds


def _demo(checked: int | None) -> Case:
    from snngraph.demo.data import load_digits
    from snngraph.demo.model import T
    from snngraph.demo.training import load_demo_model

    x = torch.from_numpy(load_digits(T).test_x[:, : checked or 32])
    return "demo (TCJA, digits)", load_demo_model(), [digit.contiguous() for digit in x.split(1, 1)], 100


def _cifar10dvs(checked: int | None) -> Case:
    net = nets.NETS["tcja_cifar10dvs"]
    return net.title, nets.calibrated(net), nets.inputs(net, checked or CHECKED), 20


CASES: dict[str, Callable[[int | None], Case]] = {"demo": _demo, "tcja_cifar10dvs": _cifar10dvs}


def run(name: str, rounds: int | None = None, peers: list[str] | None = None, *, check: int | None = None) -> Outcome:
    """Times one of :data:`CASES`."""
    title, model, checked, default = CASES[name](check)
    report = compare(model, checked[0], rounds=rounds or default, peers=peers, check=checked, progress=tell)
    report = replace(report, model=title)
    return Outcome(report.to_dict(), report.markdown(), problems_of(report))


def problems_of(report: BenchmarkReport) -> tuple[str, ...]:
    """Which of the engines are not right, and why."""
    return tuple(f"{r.name}: {r.failure or r.remark}" for r in report.rows if r.kind != "peer" and not r.ok)


def tell(what: str, done: int, total: int) -> None:
    """Says what is being done, but no more than the first round of timing."""
    if not what.startswith("time, round") or what.startswith("time, round 1 "):
        print(f"  [{done}/{total}] {what}", file=sys.stderr, flush=True)
