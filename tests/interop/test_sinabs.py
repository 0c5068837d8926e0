"""sinabs' neurons, run by sinabs, against the canonical neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snngraph.frontends.sinabs import Sinabs
from tests.interop.proof import CHANNELS, Kind, Trace, assert_same_neuron, calibrated

layers = pytest.importorskip("sinabs.layers", reason="sinabs is not installed")
activation = pytest.importorskip("sinabs.activation")

ADAPTER = Sinabs()
KINDS = pytest.mark.parametrize("kind", ["random", "quantised"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
SPIKES = pytest.mark.parametrize("spike", ["MultiSpike", "SingleSpike"])
RESETS = pytest.mark.parametrize(
    ("reset", "amount"),
    [("MembraneSubtract", None), ("MembraneSubtract", 0.75), ("MembraneReset", 0.0), ("MembraneReset", 0.125)],
)


def drive(layer: Any, x: Tensor) -> Trace:
    """sinabs is batch-first and records its states itself."""
    layer.reset_states()
    layer.record_states = True
    with torch.no_grad():
        s = layer(x.transpose(0, 1)).transpose(0, 1)
    current = layer.recordings.get("i_syn")
    return Trace(s, layer.recordings["v_mem"].transpose(0, 1), None if current is None else current.transpose(0, 1))


def options(spike: str, reset: str, amount: float | None) -> dict[str, Any]:
    return {
        "spike_fn": getattr(activation, spike),
        "reset_fn": getattr(activation, reset)(amount),
        # in float64 sinabs still multiplies count by threshold in float32: a threshold of few bits keeps that exact
        "spike_threshold": torch.tensor(0.875),
    }


@DTYPES
@KINDS
@RESETS
@SPIKES
@pytest.mark.parametrize("floor", [None, -0.5])
def test_iaf(floor: float | None, spike: str, reset: str, amount: float | None, kind: Kind, dtype: torch.dtype) -> None:
    layer = layers.IAF(**options(spike, reset, amount), min_v_mem=floor).to(dtype)
    canonical = ADAPTER.neuron(layer)
    exact = kind == "quantised" or (floor is None and amount != 0.125)
    tolerance = 0.0 if exact else {torch.float64: 1e-12, torch.float32: 1e-6}[dtype]  # its floor is relu(v - min) + min
    x = calibrated(canonical, kind, dtype)
    assert_same_neuron(canonical, lambda x: drive(layer, x), x, tolerance=tolerance, ties=kind == "quantised")


@RESETS
@SPIKES
@pytest.mark.parametrize("norm_input", [True, False])
@pytest.mark.parametrize("tau_syn", [None, 3.0])
@pytest.mark.parametrize("floor", [None, -0.25])
def test_lif(floor: float | None, tau_syn: float | None, norm_input: bool, spike: str, reset: str, amount: float | None) -> None:
    layer = layers.LIF(5.0, tau_syn, norm_input=norm_input, min_v_mem=floor, **options(spike, reset, amount)).double()
    canonical = ADAPTER.neuron(layer)
    assert_same_neuron(canonical, lambda x: drive(layer, x), calibrated(canonical, "random"))


@RESETS
@SPIKES
@pytest.mark.parametrize("norm_input", [True, False])
def test_lif_ties(norm_input: bool, spike: str, reset: str, amount: float | None) -> None:
    layer = layers.LIF(2.0, norm_input=norm_input, train_alphas=True, **options(spike, reset, amount)).double()
    layer.alpha_mem.data.fill_(0.5)
    canonical = ADAPTER.neuron(layer)
    assert_same_neuron(canonical, lambda x: drive(layer, x), calibrated(canonical, "quantised"), tolerance=0.0, ties=True)


@SPIKES
@pytest.mark.parametrize("norm_input", [True, False])
def test_lif_in_float32(norm_input: bool, spike: str) -> None:
    """Bit for bit without norm_input; 1 - alpha is taken in float64, of which sinabs takes the difference of float32 numbers."""
    layer = layers.LIF(5.0, norm_input=norm_input, **options(spike, "MembraneSubtract", None))
    canonical = ADAPTER.neuron(layer)
    x = calibrated(canonical, "random", torch.float32)
    assert_same_neuron(canonical, lambda x: drive(layer, x), x, tolerance=1e-6 if norm_input else 0.0)


def test_lif_per_neuron() -> None:
    random = torch.Generator().manual_seed(5)
    tau_mem, tau_syn = (torch.rand(CHANNELS, generator=random) * 5 + 1 for _ in range(2))
    layer = layers.LIF(tau_mem, tau_syn).double()
    canonical = ADAPTER.neuron(layer)
    assert_same_neuron(canonical, lambda x: drive(layer, x), calibrated(canonical, "random"))


def test_what_is_not_expressed_is_refused() -> None:
    with pytest.raises(ValueError, match="not expressed"):
        ADAPTER.neuron(layers.LIF(5.0, spike_fn=activation.MaxSpike(3)))
    with pytest.raises(ValueError, match="not expressed"):
        ADAPTER.neuron(layers.LIF(5.0, reset_fn=lambda spikes, state, threshold: state))
