"""Hand-written neurons, as people spell them, are recognised; what is no canonical neuron is left alone, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.graph import SpikingGraph

State = tuple[Tensor, Tensor]  # membrane potential, spikes of the step before
Body = Callable[[Any, Tensor, Tensor, Tensor], State]


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + x.abs()) ** 2


fire: Callable[[Tensor], Tensor] = Surrogate.apply


class Cell(nn.Module):
    """One neuron; its state is given and returned."""

    def __init__(self, body: Body, features: int) -> None:
        super().__init__()
        self.body = body
        self.beta = nn.Parameter(torch.linspace(-1.0, 2.0, features))
        self.threshold = nn.Parameter(torch.linspace(0.3, 0.9, features))
        self.tau = 2.0

    def forward(self, x: Tensor, mem: Tensor, spk: Tensor) -> State:
        return self.body(self, x, mem, spk)


class Net(nn.Module):
    """Two layers and their neurons, stepped in a loop: `[T, N, 6]` to `[T, N, 5]`."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 8), nn.Linear(8, 5)
        self.lif1, self.lif2 = Cell(body, 8), Cell(body, 5)
        with torch.no_grad():
            for parameter in (*self.fc1.parameters(), *self.fc2.parameters()):
                parameter.mul_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        frame = self.fc1(x[0])
        state1 = torch.zeros_like(frame), torch.zeros_like(frame)
        state2 = torch.zeros_like(self.fc2(frame)), torch.zeros_like(self.fc2(frame))
        out = []
        for t in range(x.shape[0]):
            s, mem = self.lif1(self.fc1(x[t]), *state1)
            state1 = mem, s
            s, mem = self.lif2(self.fc2(s), *state2)
            state2 = mem, s
            out.append(s)
        return torch.stack(out)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


def traced(model: nn.Module, steps: int = 4) -> SpikingGraph:
    """The trace compares the graph with the model, in float32 before and in float64 after the passes."""
    torch.manual_seed(1)
    return snngraph.trace(model, torch.randn(steps, 3, 6) * 1.5, time_dim=0)


def neurons_of(graph: SpikingGraph) -> list[str]:
    return [
        line.partition("lif(")[2].partition(")")[0].partition(", ")[2] for line in graph.format().splitlines() if "= lif(" in line
    ]


# -- spellings -----------------------------------------------------------------------------------------------------------------


def soft(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.9 * mem + x
    spk = fire(mem - 1.0)
    return spk, mem - spk * 1.0


def times_one_minus_spike(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem + (x - mem) / m.tau
    spk = (mem >= 0.5).float()
    return spk, mem * (1 - spk)


def reset_at_the_next_step(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem * torch.sigmoid(m.beta) * (1 - spk) + x
    return torch.where(mem > m.threshold, 1.0, 0.0), mem


def masked_assignment(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem * 0.5 + x * 0.5
    spk = mem.ge(0.4).to(x)
    mem = mem.clone()
    mem[spk.bool()] = 0.125
    return spk, mem


SPELLINGS: dict[str, tuple[Body, str]] = {
    "soft": (soft, "decay=0.9, fire='>', reset='soft', threshold=1.0, v=0.0"),
    "times one minus spike": (times_one_minus_spike, "decay=0.5, input_gain=0.5, threshold=0.5, v=0.0, v_reset=0.0"),
    "reset at the next step": (
        reset_at_the_next_step,
        'decay="{name}_decay"[{n}], fire=\'>\', threshold="{name}_threshold"[{n}], v=0.0, v_reset=0.0',
    ),
    "masked assignment": (masked_assignment, "decay=0.5, threshold=0.4, v=0.0, v_reset=0.125"),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    body, expected = SPELLINGS[name]
    graph = traced(seeded(lambda: Net(body)))
    assert [n.name for n in graph.neurons] == ["lif1", "lif2"]
    wanted = [expected.replace("{name}", f"lif{k}").replace("{n}", str(n)) for k, n in ((1, 8), (2, 5))]
    assert neurons_of(graph) == wanted
