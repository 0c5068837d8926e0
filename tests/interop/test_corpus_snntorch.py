"""Networks in the styles of snnTorch's tutorials: traced, and compared with snnTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.errors import WarmStateWarning
from tests.interop.calls import traced

snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
utils = pytest.importorskip("snntorch.utils")

STEPS = 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def louder(layer: Any, gain: float = 4.0) -> Any:
    """So that untrained layers make the neurons behind them fire."""
    with torch.no_grad():
        layer.weight.mul_(gain)
    return layer


class FullyConnected(nn.Module):
    """A static image, states handed on by hand, one of them detached, spikes and potentials recorded and stacked at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = louder(nn.Linear(12, 8))
        self.lif1 = snn.Leaky(beta=torch.rand(8), threshold=torch.rand(8) + 0.5, learn_beta=True)
        self.fc2 = louder(nn.Linear(8, 6))
        self.lif2 = snn.Synaptic(alpha=0.5, beta=0.8, reset_mechanism="zero")
        self.fc3 = louder(nn.Linear(6, 3))
        self.lif3 = snn.Leaky(beta=0.8, reset_delay=False, graded_spikes_factor=0.5)

    def forward(self, x: Tensor) -> Any:
        mem1, mem3 = self.lif1.init_leaky(), self.lif3.reset_mem()
        syn2, mem2 = self.lif2.init_synaptic()
        spk_rec, mem_rec, mem1_rec = [], [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1.detach())
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk3, mem3 = self.lif3(self.fc3(spk2), mem3)
            spk_rec.append(spk3)
            mem_rec.append(mem3)
            mem1_rec.append(mem1)
        return torch.stack(spk_rec, dim=0), torch.stack(mem_rec, dim=0), torch.stack(mem1_rec)


def test_fully_connected() -> None:
    graph = traced(FullyConnected(), torch.randn(2, 12), {"lif1": 1, "lif2": 1, "lif3": 1}, engine=True)
    assert graph.free_batch
    assert all("snntorch 1" in known.library for known in graph.recognitions)


class Convolutional(nn.Module):
    """Time first; the states in the modules, reset at the beginning of forward; a readout of the last layer's potential."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = louder(nn.Conv2d(1, 4, 3))
        self.lif1 = snn.Lapicque(beta=0.7, init_hidden=True)
        self.pool = nn.MaxPool2d(2)
        self.fc = louder(nn.Linear(4 * 3 * 3, 3), 8.0)
        self.lif2 = snn.Leaky(beta=0.9, init_hidden=True, output=True, reset_mechanism="none")

    def forward(self, x: Tensor) -> Any:
        utils.reset(self)
        spk_rec, mem_rec = [], []
        for step in range(x.size(0)):
            spk, mem = self.lif2(self.fc(self.pool(self.lif1(self.conv(x[step]))).flatten(1)))
            spk_rec.append(spk)
            mem_rec.append(mem)
        return torch.stack(spk_rec).sum(0), torch.stack(mem_rec).max(0).values


def test_convolutional_and_warm() -> None:
    net, x = Convolutional(), torch.rand(STEPS, 2, 1, 8, 8)
    net.eval()(torch.rand(4, 5, 1, 8, 8))
    kept = net.lif1.mem
    assert kept.any()
    with pytest.warns(WarmStateWarning):
        traced(net, x, {"lif1": 1, "lif2": 1}, engine=True)
    assert net.lif1.mem is kept


def test_sequential_stepped_from_outside() -> None:
    """The last layer returns spikes and potential; both come back, one row per step. No warning after utils.reset."""
    net = nn.Sequential(
        louder(nn.Linear(6, 8)),
        snn.Leaky(beta=0.7, init_hidden=True),
        louder(nn.Linear(8, 3)),
        snn.Leaky(beta=0.7, init_hidden=True, output=True),
    )

    def run(x: Tensor) -> Any:
        spk_rec, mem_rec = zip(*(net(frame) for frame in x), strict=True)
        return torch.stack(spk_rec), torch.stack(mem_rec)

    x = torch.rand(STEPS, 2, 6)
    run(torch.rand(4, 5, 6))
    utils.reset(net)
    traced(net, x, {"1": 1, "3": 1}, run, time_steps=STEPS)


class Recurrent(nn.Module):
    """Spikes fed back within the layers: their steps can not be merged."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = louder(nn.Linear(6, 8))
        self.lif1 = snn.RLeaky(beta=0.7, linear_features=8)
        self.lif2 = snn.RSynaptic(alpha=0.5, beta=0.7, all_to_all=False, V=0.5, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        spk, mem = self.lif1.init_rleaky()
        recorded = []
        for frame in x:
            spk, mem = self.lif1(self.fc1(frame), spk, mem)
            recorded.append(self.lif2(spk))
        return torch.stack(recorded).mean(0)


def test_recurrent() -> None:
    graph = traced(Recurrent(), torch.rand(STEPS, 2, 6), {"lif1": STEPS, "lif2": STEPS}, engine=True)
    assert graph.free_batch


class Doubled(snn.Leaky):  # type: ignore[misc, name-defined]
    def fire(self, mem: Tensor) -> Any:
        return super().fire(2 * mem)


class Foreign(nn.Module):
    """Neurons that stay as operators, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = louder(nn.Linear(6, 4))
        self.alpha = snn.Alpha(alpha=0.8, beta=0.6, init_hidden=True)
        self.doubled = Doubled(beta=0.5, init_hidden=True)
        self.leaky = snn.Leaky(beta=0.7, init_hidden=True)

    def forward(self, x: Tensor) -> Tensor:
        recorded = []
        for frame in x:
            current = self.fc(frame)
            recorded.append(torch.cat([n(current) for n in (self.alpha, self.doubled, self.leaky)], 1))
        return torch.stack(recorded)


def test_neurons_that_stay_as_operators() -> None:
    net, x = Foreign().eval(), torch.rand(STEPS, 2, 6)
    graph = snngraph.trace(net, x)
    reasons = {known.path: known.reason for known in graph.recognitions if known.library.startswith("snntorch")}
    assert reasons["leaky"] == ""
    assert "Alpha has dynamics of its own" in reasons["alpha"]
    assert "Doubled replaces fire" in reasons["doubled"]
    with torch.no_grad():
        torch.testing.assert_close(graph(x).float(), net(x))
