"""snnTorch's neurons, run by snnTorch, against the canonical neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snngraph import ops
from snngraph.frontends.snntorch import SnnTorch
from tests.interop.proof import BATCH, CHANNELS, Kind, Trace, assert_same_neuron, calibrated, inputs, stack

snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")

ADAPTER = SnnTorch()
RESETS = ["subtract", "zero", "none"]
KINDS = pytest.mark.parametrize("kind", ["random", "quantised"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def drive(module: Any, x: Tensor) -> Trace:
    steps, state = [], module.reset_mem()
    with torch.no_grad():
        for frame in x:
            s, *state = module(frame, *(state if isinstance(state, (tuple, list)) else (state,)))
            steps.append((s, state[-1].clone(), *(syn.clone() for syn in state[:-1])))
    return stack(steps)


@DTYPES
@KINDS
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_leaky(reset: str, reset_delay: bool, kind: Kind, dtype: torch.dtype) -> None:
    module = snntorch.Leaky(beta=0.5, reset_mechanism=reset, reset_delay=reset_delay).to(dtype)
    canonical = ADAPTER.neuron(module)
    assert_same_neuron(
        canonical, lambda x: drive(module, x), calibrated(canonical, kind, dtype), tolerance=0.0, ties=kind == "quantised"
    )


def test_leaky_with_reset_at_once_is_not_a_plain_soft_reset() -> None:
    """After an input of over two thresholds the stored potential is still above it, and the library fires on h - threshold."""
    module = snntorch.Leaky(beta=0.5, reset_delay=False).double()
    x = torch.tensor([[3.5], [0.25], [0.0]], dtype=torch.float64)
    expected = drive(module, x).s
    canonical = ADAPTER.neuron(module)
    assert torch.equal(ops.lif(x, **canonical.parameters).s, expected)
    assert not torch.equal(ops.lif(x, **{**canonical.parameters, "delay": "none"}).s, expected)


@DTYPES
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_leaky_per_neuron_and_graded(reset: str, reset_delay: bool, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(3)
    module = snntorch.Leaky(
        beta=torch.rand(CHANNELS, generator=random) * 1.4 - 0.2,  # clamped to [0, 1] in the forward pass
        threshold=torch.rand(CHANNELS, generator=random) + 0.5,
        graded_spikes_factor=0.7,
        reset_mechanism=reset,
        reset_delay=reset_delay,
        learn_beta=True,
        learn_threshold=True,
    ).to(dtype)
    canonical = ADAPTER.neuron(module)
    assert_same_neuron(canonical, lambda x: drive(module, x), calibrated(canonical, "random", dtype), tolerance=0.0)


def test_leaky_zero_keeps_the_input_of_the_step() -> None:
    x = torch.full((6, 1), 2.0)
    module = snntorch.Leaky(beta=0.5, reset_mechanism="zero")
    out = ops.lif(x, **ADAPTER.neuron(module).parameters)
    assert torch.equal(out.s, torch.ones_like(x))
    assert torch.equal(out.s, drive(module, x).s)


@KINDS
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    "circuit", [{"R": 1, "C": 2}, {"R": 2.0, "C": 1.5, "time_step": 0.5}, {"beta": 0.7}, {"beta": 0.6, "R": 3.0}]
)
def test_lapicque(circuit: dict[str, float], reset: str, kind: Kind) -> None:
    module = snntorch.Lapicque(**circuit, reset_mechanism=reset).double()
    canonical = ADAPTER.neuron(module)
    ties = kind == "quantised" and "beta" not in circuit and "time_step" not in circuit
    if kind == "random" or ties:
        assert_same_neuron(canonical, lambda x: drive(module, x), calibrated(canonical, kind), ties=ties)


@DTYPES
@KINDS
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_synaptic(reset: str, reset_delay: bool, kind: Kind, dtype: torch.dtype) -> None:
    beta = 0.75 if kind == "random" else 0.5
    module = snntorch.Synaptic(alpha=0.5, beta=beta, reset_mechanism=reset, reset_delay=reset_delay).to(dtype)
    canonical = ADAPTER.neuron(module)
    assert_same_neuron(
        canonical, lambda x: drive(module, x), calibrated(canonical, kind, dtype), tolerance=0.0, ties=kind == "quantised"
    )


@KINDS
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("all_to_all", [True, False])
def test_rleaky_cell(all_to_all: bool, reset: str, reset_delay: bool, kind: Kind) -> None:
    """The recurrence is the graph's; the cell is the canonical neuron, one step at a time."""
    recurrence = {"linear_features": CHANNELS} if all_to_all else {"V": -0.5, "all_to_all": False}
    options = {"reset_mechanism": reset, "reset_delay": reset_delay, "spike_grad": lambda u: (u > 0).to(u.dtype)}
    module = snntorch.RLeaky(beta=0.5, **options, **recurrence).double()  # its own surrogates return float32 spikes, always
    weights = torch.randint(-3, 3, (CHANNELS, CHANNELS), generator=torch.Generator().manual_seed(0)) / 16
    if all_to_all:  # quantised, too
        module.recurrent = nn.Linear(CHANNELS, CHANNELS, dtype=torch.float64).requires_grad_(False)
        module.recurrent.weight.copy_(weights)
        module.recurrent.bias.fill_(-0.125)
    canonical = ADAPTER.neuron(module)
    rates, ties = [], []
    for scale in (0.5, 1.0, 2.0):
        x = inputs(kind, scale=scale)
        s = spikes = mem = v = torch.zeros(BATCH, CHANNELS, dtype=torch.float64)
        fired = []
        with torch.no_grad():
            for frame in x:
                spikes, mem = module(frame, spikes, mem)
                out = ops.lif_step(frame + module.recurrent(s), v, **canonical.parameters)
                s, v = out.s, out.v
                assert torch.equal(s, spikes)
                torch.testing.assert_close(v, mem, rtol=0, atol=1e-12)
                fired.append(s)
                ties.append(out.h == module.threshold)
        rates.append(torch.stack(fired).mean().item())
    assert any(0.05 <= rate <= 0.4 for rate in rates)
    assert kind == "random" or bool(torch.stack(ties).any())


def test_what_is_not_expressed_is_refused() -> None:
    with pytest.warns(UserWarning, match="Inhibition"):
        inhibited = snntorch.Leaky(beta=0.5, inhibition=True)
    for module in (inhibited, snntorch.Leaky(beta=0.5, state_quant=torch.round)):
        with pytest.raises(ValueError, match="not expressed"):
            ADAPTER.neuron(module)
    with pytest.raises(ValueError, match="below zero"):
        ADAPTER.neuron(snntorch.Leaky(beta=0.5, threshold=-1.0, reset_mechanism="zero", reset_delay=False))
