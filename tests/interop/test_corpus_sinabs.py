"""Networks in the styles of sinabs' tutorials: traced, and compared with sinabs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.errors import WarmStateWarning
from tests.interop.calls import traced

sinabs = pytest.importorskip("sinabs", reason="sinabs is not installed")
layers = pytest.importorskip("sinabs.layers")
activation = pytest.importorskip("sinabs.activation")
from_torch = pytest.importorskip("sinabs.from_torch")

STEPS = 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Squeezed(nn.Module):
    """Time and batch in one dimension between the layers; the spikes are counted."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            layers.IAFSqueeze(num_timesteps=STEPS, min_v_mem=-1.0),
            layers.SumPool2d(2),
            nn.Flatten(),
            nn.Linear(4 * 9, 3, bias=False),
            layers.LIFSqueeze(
                tau_mem=5.0,
                tau_syn=3.0,
                num_timesteps=STEPS,
                norm_input=False,
                spike_threshold=torch.tensor(0.25),
                spike_fn=activation.SingleSpike,
            ),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1)  # type: ignore[no-any-return]


def test_squeezed_and_warm() -> None:
    net, x = Squeezed(), 3 * torch.rand(2, STEPS, 1, 8, 8)
    net.eval()(torch.rand(5, STEPS, 1, 8, 8))
    kept = net.net[1].v_mem
    with pytest.warns(WarmStateWarning):
        graph = traced(net, x, {"net.1": 1, "net.5": 1}, engine=True)
    assert net.net[1].v_mem is kept
    assert graph.free_batch
    sinabs.reset_states(net)  # zeros, in the batch size of the last call, are no state


def test_converted_from_a_network_with_relu() -> None:
    ann = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 5), nn.ReLU())
    net = from_torch.from_model(ann, batch_size=1, spike_threshold=torch.tensor(0.25)).eval()
    traced(net, 3 * torch.rand(STEPS, 1, 8, 8), {"spiking_model.1": 1, "spiking_model.5": 1}, time_dim=0)


def test_layers_over_batch_and_time() -> None:
    """[N, T, ...]; a convolution repeated over time, time constants per neuron, resets to a value, a readout of the state."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layers.Repeat(nn.Conv2d(1, 4, 3))
            tau = torch.rand(4, 1, 1) * 3 + 1
            self.lif = layers.LIF(tau, spike_threshold=torch.tensor(0.25), reset_fn=activation.MembraneReset(0.1))
            self.fc = nn.Linear(4 * 9, 4)
            self.iaf = layers.IAF(spike_fn=activation.SingleSpike)

        def forward(self, x: Tensor) -> Any:
            spikes = self.iaf(self.fc(self.lif(self.conv(x)).flatten(2)))
            return spikes.mean(1), self.iaf.v_mem

    traced(Net(), 3 * torch.rand(2, STEPS, 1, 5, 5), {"lif": 1, "iaf": 1}, engine=True)


def test_recurrent() -> None:
    net = nn.Sequential(
        nn.Linear(6, 8),
        layers.LIFRecurrent(5.0, nn.Linear(8, 8), tau_syn=3.0, spike_threshold=torch.tensor(0.25)),
        nn.Linear(8, 3),
    )
    traced(net, 5 * torch.rand(2, STEPS, 6), {"1": STEPS})


def test_one_step_after_another() -> None:
    """Called with one step at a time: the state stays in the layers, and the steps are one neuron."""
    net = nn.Sequential(nn.Linear(6, 8), layers.LIF(5.0), nn.Linear(8, 3), layers.IAF(spike_threshold=torch.tensor(0.25)))
    x = 15 * torch.rand(STEPS, 2, 1, 6)
    traced(net, x, {"1": 1, "3": 1}, lambda x: torch.stack([net(frame) for frame in x]), time_steps=STEPS)


class Others(nn.Module):
    """Layers that stay as operators, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.adaptive = layers.ALIF(5.0, 7.0, norm_input=False)
        self.readout = layers.ExpLeak(5.0)
        self.most = layers.IAF(spike_fn=activation.MaxSpike(2))
        self.iaf = layers.IAF()

    def forward(self, x: Tensor) -> Tensor:
        current = 3 * self.fc(x)
        return torch.cat([layer(current) for layer in (self.adaptive, self.readout, self.most, self.iaf)], 2)


def test_layers_that_stay_as_operators() -> None:
    net, x = Others().eval(), 3 * torch.rand(2, STEPS, 6)
    graph = snngraph.trace(net, x)
    reasons = {known.path: known.reason for known in graph.recognitions if known.library}
    assert reasons["iaf"] == ""
    assert "ALIF has dynamics of its own" in reasons["adaptive"]
    assert "ExpLeak has dynamics of its own" in reasons["readout"]
    assert "MaxSpike" in reasons["most"]
    with torch.no_grad():
        expected = net(x)
    assert all(part.any() for part in expected.split(4, dim=2))
    torch.testing.assert_close(graph(x).float(), expected)
