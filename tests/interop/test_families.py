"""MA-LIF, RES-LIF, TET-LIF and SJ-LIF, written as MODELS.md and the authors' code write them, against the canonical neuron."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from snngraph import neurons, ops
from snngraph.frontends.canonical import Canonical
from tests.interop import mappings
from tests.interop.proof import Kind, Trace, assert_same_neuron, calibrated, stack

KINDS = pytest.mark.parametrize("kind", ["random", "quantised"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@DTYPES
@pytest.mark.parametrize(
    ("alpha", "beta", "threshold", "kind"),
    [(0.3, 0.0, 0.3, "random"), (0.3, 0.05, 0.3, "random"), (0.5, 0.0, 0.25, "quantised"), (0.5, 0.03125, 0.25, "quantised")],
)
def test_ma_lif(alpha: float, beta: float, threshold: float, kind: Kind, dtype: torch.dtype) -> None:
    def drive(x: Tensor) -> Trace:
        u = torch.zeros_like(x[0])
        steps = []
        for frame in x:
            h = u + frame
            s = (h >= threshold).to(x.dtype)
            u = alpha * (s * threshold + (1 - s) * h) + beta
            steps.append((s, u))
        return stack(steps)

    canonical = mappings.ma_lif(alpha, beta, threshold)
    tolerance = 0.0 if beta == 0.0 else {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]
    x = calibrated(canonical, kind, dtype)
    assert_same_neuron(canonical, drive, x, tolerance=tolerance, ties=kind == "quantised")


@DTYPES
@KINDS
@pytest.mark.parametrize("delayed", [False, True])
def test_res_lif(delayed: bool, kind: Kind, dtype: torch.dtype) -> None:
    decay = 0.25

    def drive(x: Tensor) -> Trace:
        mem = spike = torch.zeros_like(x[0])
        steps = []
        for frame in x:
            mem = mem * decay * (1 - spike) + frame
            spike = (mem > 0.5).to(x.dtype)
            steps.append((spike, mem if delayed else mem * (1 - spike)))
        return stack(steps)

    canonical = mappings.res_lif_delayed(decay) if delayed else mappings.res_lif(decay)
    assert_same_neuron(canonical, drive, calibrated(canonical, kind, dtype), tolerance=0.0, ties=kind == "quantised")


@DTYPES
@KINDS
def test_tet_lif(kind: Kind, dtype: torch.dtype) -> None:
    def drive(x: Tensor) -> Trace:
        mem = torch.zeros_like(x[0])
        steps = []
        for frame in x:
            mem = mem * 0.5 + frame
            spike = ((mem - 1.0) > 0).to(x.dtype)
            mem = (1 - spike) * mem
            steps.append((spike, mem))
        return stack(steps)

    canonical = mappings.tet_lif()
    assert_same_neuron(canonical, drive, calibrated(canonical, kind, dtype), tolerance=0.0, ties=kind == "quantised")


@KINDS
def test_sj_lif(kind: Kind) -> None:
    def drive(x: Tensor) -> Trace:
        v = torch.zeros_like(x[0])
        steps = []
        for frame in x:
            h = v + (frame - v) / 2.0
            s = (h >= 1.0).to(x.dtype)
            v = h * (1.0 - s)
            steps.append((s, v))
        return stack(steps)

    canonical = Canonical(neurons.LIF(tau=2.0).parameters_of_neuron())
    assert_same_neuron(canonical, drive, calibrated(canonical, kind), ties=kind == "quantised")


def test_the_comparison_decides_ties() -> None:
    """Same input, met thresholds: `>=` fires where `>` does not."""
    x = torch.tensor([[1.0], [0.5], [0.5]], dtype=torch.float64)
    strict = mappings.tet_lif().parameters
    assert ops.lif(x, **strict).s.flatten().tolist() == [0.0, 0.0, 0.0]
    assert ops.lif(x, **{**strict, "fire": ">="}).s.flatten().tolist() == [1.0, 0.0, 0.0]
