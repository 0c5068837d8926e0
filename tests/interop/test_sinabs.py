"""sinabs' neurons, run by sinabs, against the canonical neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snngraph.frontends.canonical import NotCanonicalError
from snngraph.frontends.sinabs import Sinabs
from tests.interop.calls import assert_same_calls
from tests.interop.proof import CHANNELS, Kind, Trace, assert_same_neuron, calibrated, inputs

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


# -- as a model calls them -----------------------------------------------------------------------------------------------------


def batches(scale: float = 1.0) -> Tensor:
    return scale * inputs("random").transpose(0, 1)  # [N, T, C]


def connection() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(CHANNELS, CHANNELS, dtype=torch.float64)


LAYERS: dict[str, Any] = {
    "IAF": layers.IAF,
    "LIF": lambda **o: layers.LIF(5.0, **o),
    "LIF with synapse": lambda **o: layers.LIF(5.0, tau_syn=3.0, norm_input=False, **o),
    "IAFSqueeze": lambda **o: layers.IAFSqueeze(num_timesteps=16, **o),
    "LIFSqueeze": lambda **o: layers.LIFSqueeze(tau_mem=5.0, batch_size=6, **o),
    "IAFRecurrent": lambda **o: layers.IAFRecurrent(SpikesAs64(connection()), **o),
    "LIFRecurrent": lambda **o: layers.LIFRecurrent(5.0, SpikesAs64(connection()), tau_syn=3.0, **o),
}


class SpikesAs64(nn.Module):
    """sinabs' spikes are float32, whatever the input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, spikes: Tensor) -> Tensor:
        return self.inner(spikes.double()) / 2  # type: ignore[no-any-return]


@RESETS
@SPIKES
@pytest.mark.parametrize("kind", LAYERS)
def test_calls(kind: str, spike: str, reset: str, amount: float | None) -> None:
    """In two calls, between which the state goes on; spikes and the states left."""
    layer = LAYERS[kind](**options(spike, reset, amount), min_v_mem=-0.75).double()

    def run(x: Tensor) -> Any:
        x = x.flatten(0, 1) if "Squeeze" in kind else x
        first, middle = layer(x), layer.v_mem
        return first, middle, layer(x.flip(0)), layer.v_mem, getattr(layer, "i_syn", None)

    spikes = assert_same_calls(layer, batches(2.0), run, tolerance=1e-7 if "Recurrent" in kind else 1e-12)[0]
    assert 0 < (spikes != 0).double().mean() < 1


def test_resets_between_calls_and_single_steps() -> None:
    layer = layers.LIF(5.0, tau_syn=3.0).double()

    def run(x: Tensor) -> Any:
        first = [layer(x[:, t : t + 1]) for t in range(5)]
        layer.reset_states()
        return torch.cat([*first, layer(x[:, 5:])], 1), layer.v_mem, layer.i_syn

    assert_same_calls(layer, batches(3.0), run)


@pytest.mark.parametrize("kind", ["LIF", "LIF with synapse", "LIFRecurrent", "ALIF", "ExpLeak"])
def test_reset(kind: str) -> None:
    others = {"ALIF": lambda: layers.ALIF(5.0, 7.0), "ExpLeak": lambda: layers.ExpLeak(5.0)}
    layer = others.get(kind, LAYERS.get(kind))().float()  # type: ignore[misc]
    if kind == "LIFRecurrent":
        layer.rec_connect = nn.Linear(CHANNELS, CHANNELS)
    layer(batches().float())
    ADAPTER.reset(layer)
    assert {buffer.shape for name, buffer in layer.named_buffers()} == {(0,)}
    layer(batches()[:2].float())


# -- what is not taken for the library's neuron --------------------------------------------------------------------------------


def test_changed_dynamics_are_refused() -> None:
    class Louder(layers.LIF):  # type: ignore[misc, name-defined]
        def forward(self, input_data: Tensor) -> Any:
            return super().forward(2 * input_data)

    class Slower(layers.IAF):  # type: ignore[misc, name-defined]
        @property
        def alpha_mem_calculated(self) -> Tensor:
            return torch.tensor(0.5)

    for layer, changed in ((Louder(5.0), "forward of LIF"), (Slower(), "alpha_mem_calculated of IAF")):
        with pytest.raises(NotCanonicalError, match=f"replaces {changed}"):
            ADAPTER.neuron(layer)

    class MultiSpike(activation.MultiSpike):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, v_mem: Tensor, spike_threshold: Tensor, surrogate_grad_fn: Any) -> Any:
            return activation.MultiSpike.forward(ctx, v_mem, 2 * spike_threshold, surrogate_grad_fn)

    with pytest.raises(NotCanonicalError, match="spike_fn"):
        ADAPTER.neuron(layers.IAF(spike_fn=MultiSpike))


@pytest.mark.parametrize("name", ["ALIF", "ALIFRecurrent", "ExpLeak", "ExpLeakSqueeze"])
def test_others_have_dynamics_of_their_own(name: str) -> None:
    arguments: dict[str, Any] = {"tau_mem": 5.0}
    arguments |= {"tau_adapt": 7.0} if name.startswith("ALIF") else {}
    arguments |= {"rec_connect": connection()} if name == "ALIFRecurrent" else {}
    arguments |= {"num_timesteps": 4} if name == "ExpLeakSqueeze" else {}
    layer = getattr(layers, name)(**arguments)
    assert ADAPTER.matches(layer)
    with pytest.raises(NotCanonicalError, match=f"{name} has dynamics of its own"):
        ADAPTER.neuron(layer)
