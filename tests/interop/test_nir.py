"""NIR nodes, integrated with steps written out here, against the canonical neuron that a discretisation makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from snngraph import ops
from snngraph.frontends.canonical import Canonical
from snngraph.frontends.nir.neurons import Discretisation
from tests.interop.proof import CHANNELS, Kind, Trace, assert_same_neuron, calibrated, stack

nir = pytest.importorskip("nir", reason="NIR is not installed")

EULER: dict[str, Any] = {"integrator": "euler", "fire": ">", "reset": "hard"}
CASES = pytest.mark.parametrize(("kind", "dt"), [("random", 0.1), ("random", 1.0), ("quantised", 1.0)])


def per_neuron(
    kind: Kind, low: float, high: float, dyadic: float, seed: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if kind == "quantised":
        return np.full(CHANNELS, dyadic)
    return np.random.default_rng(seed).uniform(low, high, CHANNELS)


def discretised(node: Any, dt: float, v_init: float | str = 0.0, **options: str) -> Canonical:
    values = {name: array for name, array in vars(node).items() if isinstance(array, np.ndarray)}
    return Discretisation(dt=dt, v_init=v_init, **{**EULER, **options}).canonical(type(node).__name__, values)


def prove(canonical: Canonical, drive: object, kind: Kind) -> None:
    assert callable(drive)
    assert_same_neuron(canonical, drive, calibrated(canonical, kind), ties=kind == "quantised")


@CASES
def test_if(kind: Kind, dt: float) -> None:
    node = nir.IF(per_neuron(kind, 1, 2, 0.5, 1), per_neuron(kind, 0.5, 1, 0.75, 2), per_neuron(kind, -0.2, 0.2, -0.25, 3))
    r, threshold, v_reset = (torch.tensor(a) for a in (node.r, node.v_threshold, node.v_reset))

    def drive(x: Tensor) -> Trace:
        v, steps = torch.zeros_like(x[0]), []
        for current in x:
            v = v + dt * r * current
            s = (v > threshold).double()
            v = torch.where(s > 0, v_reset, v)
            steps.append((s, v))
        return stack(steps)

    prove(discretised(node, dt), drive, kind)


@CASES
def test_lif(kind: Kind, dt: float) -> None:
    node = nir.LIF(
        tau=per_neuron(kind, 1.5, 4, 2.0, 1),
        r=per_neuron(kind, 1, 2, 2.0, 2),
        v_leak=per_neuron(kind, -0.2, 0.2, 0.125, 3),
        v_threshold=per_neuron(kind, 0.5, 1, 0.75, 4),
        v_reset=per_neuron(kind, -0.2, 0.2, -0.25, 5),
    )
    tau, r, v_leak, threshold, v_reset = (
        torch.tensor(a) for a in (node.tau, node.r, node.v_leak, node.v_threshold, node.v_reset)
    )

    def drive(x: Tensor) -> Trace:
        v, steps = v_leak.expand(x[0].shape), []
        for current in x:
            v = v + dt / tau * ((v_leak - v) + r * current)
            s = (v > threshold).double()
            v = torch.where(s > 0, v_reset, v)
            steps.append((s, v))
        return stack(steps)

    prove(discretised(node, dt, "v_leak"), drive, kind)


@CASES
@pytest.mark.parametrize("charged_with", ["new", "old"])
def test_cubalif(kind: Kind, dt: float, charged_with: str) -> None:
    node = nir.CubaLIF(
        tau_syn=per_neuron(kind, 1.2, 3, 2.0, 1),
        tau_mem=per_neuron(kind, 1.5, 4, 2.0, 2),
        r=per_neuron(kind, 1, 2, 2.0, 3),
        v_leak=per_neuron(kind, -0.2, 0.2, 0.125, 4),
        v_threshold=per_neuron(kind, 0.5, 1, 0.75, 5),
        v_reset=per_neuron(kind, -0.2, 0.2, -0.25, 6),
        w_in=per_neuron(kind, 1, 2, 1.0, 7),
    )
    arrays = (node.tau_syn, node.tau_mem, node.r, node.v_leak, node.v_threshold, node.v_reset, node.w_in)
    tau_syn, tau_mem, r, v_leak, threshold, v_reset, w_in = (torch.tensor(a) for a in arrays)

    def drive(x: Tensor) -> Trace:
        v, i, steps = torch.zeros_like(x[0]), torch.zeros_like(x[0]), []
        for spikes in x:
            old = i
            i = i + dt / tau_syn * (-i + w_in * spikes)
            v = v + dt / tau_mem * ((v_leak - v) + r * (i if charged_with == "new" else old))
            s = (v > threshold).double()
            v = torch.where(s > 0, v_reset, v)
            steps.append((s, v, i))
        return stack(steps)

    canonical = discretised(node, dt)
    if charged_with == "new":
        prove(canonical, drive, kind)
        return
    x = calibrated(canonical, kind)
    late = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
    expected, out = drive(x), ops.lif(late, **canonical.parameters)
    assert torch.equal(out.s, expected.s)
    torch.testing.assert_close(out.v, expected.v[-1], rtol=0, atol=1e-12)


@CASES
@pytest.mark.parametrize("integrator", ["euler", "exponential"])
def test_lif_driven_by_impulses(kind: Kind, dt: float, integrator: str) -> None:
    """The exact step of the equation without input, or Euler's, and a jump of R for every spike; soft reset, counts."""
    node = nir.LIF(
        tau=per_neuron(kind, 1.5, 4, 2.0, 1),
        r=per_neuron(kind, 1, 2, 2.0, 2),
        v_leak=per_neuron(kind, -0.2, 0.2, 0.125, 3),
        v_threshold=per_neuron(kind, 0.5, 1, 0.75, 4),
    )
    tau, r, v_leak, threshold = (torch.tensor(a) for a in (node.tau, node.r, node.v_leak, node.v_threshold))
    rate = 1 - torch.exp(-dt / tau) if integrator == "exponential" else dt / tau

    def drive(x: Tensor) -> Trace:
        v, steps = torch.zeros_like(x[0]), []
        for current in x:
            v = v + rate * (v_leak - v) + r * current
            s = torch.where(v > 0, torch.trunc(v / threshold), 0.0)
            v = v - s * threshold
            steps.append((s, v))
        return stack(steps)

    options = {"integrator": integrator, "membrane_input": "impulse", "fire": ">=", "reset": "soft", "emit": "count"}
    prove(discretised(node, dt, **options), drive, "random")
