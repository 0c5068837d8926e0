"""Norse's neurons, run by Norse, against the canonical neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snngraph.frontends.norse import Norse
from tests.interop.proof import Kind, Trace, assert_same_neuron, calibrated, stack

norse = pytest.importorskip("norse.torch", reason="Norse is not installed")
reset_functions = pytest.importorskip("norse.torch.functional.reset")

ADAPTER = Norse()
KINDS = pytest.mark.parametrize("kind", ["random", "quantised"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def parameter(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)  # never Norse's own defaults: its cells mark them as requiring a gradient


def drive(cell: Any, x: Tensor) -> Trace:
    steps, state = [], None
    with torch.no_grad():
        for frame in x:
            s, state = cell(frame, state)
            steps.append((s, state.v, state.i) if hasattr(state, "i") else (s, state.v))
    return stack(steps)


@DTYPES
@KINDS
@pytest.mark.parametrize("v_reset", [0.0, -0.25])
def test_iaf(v_reset: float, kind: Kind, dtype: torch.dtype) -> None:
    cell = norse.IAFCell(norse.IAFParameters(v_th=parameter(0.75, dtype), v_reset=parameter(v_reset, dtype)))
    canonical = ADAPTER.neuron(cell)
    x = calibrated(canonical, kind, dtype)
    assert_same_neuron(canonical, lambda x: drive(cell, x), x, tolerance=0.0, ties=kind == "quantised")


@KINDS
@pytest.mark.parametrize("v_leak", [0.0, 0.125])
@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
def test_lif_box(v_reset: float | None, v_leak: float, kind: Kind) -> None:
    method = {"reset_method": reset_functions.reset_subtract} if v_reset is None else {"v_reset": parameter(v_reset)}
    rate = 500.0 if kind == "quantised" else 310.0
    p = norse.LIFBoxParameters(tau_mem_inv=parameter(rate), v_leak=parameter(v_leak), v_th=parameter(0.75), **method)
    cell = norse.LIFBoxCell(p, dt=0.001)
    canonical = ADAPTER.neuron(cell)
    assert_same_neuron(canonical, lambda x: drive(cell, x), calibrated(canonical, kind), ties=kind == "quantised")


@KINDS
@pytest.mark.parametrize("v_leak", [0.0, 0.125])
@pytest.mark.parametrize("v_reset", [0.0, -0.25])
def test_lif(v_reset: float, v_leak: float, kind: Kind) -> None:
    mem, syn = (500.0, 500.0) if kind == "quantised" else (310.0, 170.0)
    p = norse.LIFParameters(parameter(syn), parameter(mem), parameter(v_leak), parameter(0.75), parameter(v_reset))
    cell = norse.LIFCell(p, dt=0.001)
    canonical = ADAPTER.neuron(cell)
    assert_same_neuron(canonical, lambda x: drive(cell, x), calibrated(canonical, kind), ties=kind == "quantised")


def test_parameters_of_a_float32_model_are_combined_in_float64() -> None:
    """As in a captured graph that runs in float64: 1 - dt/tau of the float32 values, rounded once, at the very end."""
    values = [parameter(value, torch.float32) for value in (200.0, 310.0, 0.1, 0.7, 0.05)]
    canonical = ADAPTER.neuron(norse.LIFCell(norse.LIFParameters(*values), dt=0.001))
    cell = norse.LIFCell(norse.LIFParameters(*(value.double() for value in values)), dt=0.001)
    assert_same_neuron(canonical, lambda x: drive(cell, x), calibrated(canonical, "random"))


def test_what_is_not_expressed_is_refused() -> None:
    forgets = norse.LIFCell(norse.LIFParameters(tau_syn_inv=parameter(1000.0)), dt=0.001)
    with pytest.raises(ValueError, match="forgets"):
        ADAPTER.neuron(forgets)

    def reset_by_half(z: Tensor, v: Tensor, reset: Tensor, th: Tensor) -> Tensor:
        return v - 0.5 * z * th

    with pytest.raises(ValueError, match="not expressed"):
        ADAPTER.neuron(norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=reset_by_half)))
