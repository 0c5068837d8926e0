"""Networks in the styles of Norse's tutorials: traced, and compared with Norse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from tests.interop.calls import traced

norse = pytest.importorskip("norse.torch", reason="Norse is not installed")

STEPS = 3


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fast() -> Any:
    """Neurons that fire within a few steps."""
    return norse.LIFParameters(tau_mem_inv=torch.tensor(400.0), tau_syn_inv=torch.tensor(300.0), v_th=torch.tensor(0.25))


class OverTime(nn.Module):
    """Whole sequences through SequentialState; the spikes of the last layer are counted, its state is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = norse.SequentialState(
            norse.Lift(nn.Conv2d(1, 4, 3)),
            norse.LIF(fast()),
            norse.Lift(nn.MaxPool2d(2)),
            nn.Flatten(2),
            nn.Linear(4 * 9, 4),
            norse.IAF(norse.IAFParameters(v_th=torch.tensor(0.05))),
        )

    def forward(self, x: Tensor) -> Any:
        spikes, state = self.net(x)
        return spikes.sum(0), state[5].v


def test_over_time() -> None:
    graph = traced(OverTime(), 3 * torch.rand(STEPS, 2, 1, 8, 8), {"net.1": 1, "net.5": 1}, engine=True)
    assert all("norse 1" in known.library for known in graph.recognitions if known.path.startswith("net."))


class ByHand(nn.Module):
    """Cells in SequentialState, the state handed on in a loop; a leaky readout whose largest potential decides."""

    def __init__(self) -> None:
        super().__init__()
        box = norse.LIFBoxParameters(tau_mem_inv=torch.tensor(400.0), v_th=torch.tensor(0.05))
        self.encode = norse.SequentialState(nn.Linear(6, 8), norse.LIFCell(fast()), nn.Linear(8, 5), norse.LIFBoxCell(box))
        self.readout = norse.SequentialState(nn.Linear(5, 3, bias=False), norse.LICell())

    def forward(self, x: Tensor) -> Tensor:
        state = left = None
        voltages = []
        for frame in x:
            z, state = self.encode(frame, state)
            v, left = self.readout(z, left)
            voltages.append(v)
        return torch.stack(voltages).max(0).values.log_softmax(1)


def test_by_hand() -> None:
    graph = traced(ByHand(), 20 * torch.rand(STEPS, 2, 6), {"encode.1": 1, "encode.3": 1}, engine=True)
    reasons = {known.path: known.reason for known in graph.recognitions}
    assert "LICell has dynamics of its own" in reasons["readout.1"]


def test_stepped_from_outside() -> None:
    """The state that a step returns is the next one's argument."""
    net = norse.SequentialState(nn.Linear(6, 8), norse.LIFCell(fast()), nn.Linear(8, 3), norse.LIFCell(fast()))

    def run(x: Tensor) -> Tensor:
        state, recorded = None, []
        for frame in x:
            z, state = net(frame, state)
            recorded.append(z)
        return torch.stack(recorded)

    traced(net, 5 * torch.rand(STEPS, 2, 6), {"1": 1, "3": 1}, run, time_steps=STEPS)


def test_recurrent() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = norse.LIFRecurrent(6, 8, fast())
            self.cell = norse.LIFRecurrentCell(8, 4, fast())

        def forward(self, x: Tensor) -> Any:
            z, _ = self.layer(x)
            state: Any = None
            for frame in z:
                out, state = self.cell(frame, state)
            return out, state.v, z

    traced(Net(), 3 * torch.rand(STEPS, 2, 6), {"layer": STEPS, "cell": STEPS})


class Others(nn.Module):
    """Neurons that stay as operators."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        p = norse.LIFRefracParameters(fast(), torch.tensor(2.0))
        self.refractory = norse.LIFRefracCell(p)
        self.adaptive = norse.LSNNCell()
        self.lif = norse.LIFCell(fast())

    def forward(self, x: Tensor) -> Tensor:
        states: list[Any] = [None] * 3
        recorded = []
        for frame in x:
            current = 5 * self.fc(frame)
            outputs = []
            for k, cell in enumerate((self.refractory, self.adaptive, self.lif)):
                z, states[k] = cell(current, states[k])
                outputs.append(z)
            recorded.append(torch.cat(outputs, 1))
        return torch.stack(recorded)


def test_neurons_that_stay_as_operators() -> None:
    net, x = Others().eval(), 3 * torch.rand(STEPS, 2, 6)
    graph = snngraph.trace(net, x)
    reasons = {known.path: known.reason for known in graph.recognitions if known.library}
    assert reasons["lif"] == ""
    assert all("dynamics of its own" in reasons[name] for name in ("refractory", "adaptive"))
    with torch.no_grad():
        expected = net(x)
    assert (expected[..., :4] != 0).any()
    torch.testing.assert_close(graph(x).float(), expected)
