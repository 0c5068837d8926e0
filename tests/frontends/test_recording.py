"""Idioms of Python that a tracer does not see: each model is captured, and computes what the model computes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

import snngraph
from snngraph import neurons
from snngraph.errors import CaptureError, DataDependentError


class Policy(nn.Module):
    """An actor and a critic; the distribution checks the probabilities that it is given."""

    scale: Tensor

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 8)
        self.lif = neurons.LIF(threshold=0.3)
        self.actor, self.critic = nn.Linear(8, 3), nn.Linear(8, 1)
        self.register_buffer("scale", torch.tensor(0.5))
        self.reads = reads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rate = self.lif(self.fc(x)).mean(0)
        scale = self.scale.item() if self.reads else 0.5  # a number that only a recorded run can read
        policy = Categorical(torch.softmax(self.actor(rate) * scale, 1))
        return policy.entropy(), self.critic(rate)


def test_a_distribution_is_captured_without_the_checks_of_its_arguments() -> None:
    before = Distribution._validate_args
    for reads in (False, True):
        torch.manual_seed(0)
        model = Policy(reads).eval()
        graph = snngraph.trace(model, torch.randn(5, 2, 4))
        assert graph.free_batch
        x = torch.randn(5, 3, 4)
        for found, expected in zip(graph(x), model(x), strict=True):
            torch.testing.assert_close(found.float(), expected)
    assert Distribution._validate_args == before, "as they were before the capture: torch.compile switches them off for good"


def written_by_rows(x: Tensor) -> Tensor:
    rows = torch.zeros(x.shape)
    for t in range(x.shape[0]):
        rows[t] = x[t]
    return rows


def written_to_a_view(x: Tensor) -> Tensor:
    whole = torch.zeros(x.shape)
    flat = whole.view(-1)
    whole.copy_(x)
    return flat


def written_to_a_part(x: Tensor) -> Tensor:
    whole = torch.zeros(2, *x.shape)
    _, second = whole.unbind(0)
    second.add_(x)
    return whole


def read_before_it_is_written(x: Tensor) -> Tensor:
    zeros = torch.zeros(x.shape)
    return zeros if float(zeros.sum()) == 0.0 else x


class Reads(nn.Module):
    """Reads a number out of what ``made`` makes of the input."""

    def __init__(self, made: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.made = made
        self.lif = neurons.LIF(threshold=0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if self.made(x).abs().sum().item() > 0 else 1.0
        spikes: Tensor = self.lif(x * scale)
        return spikes.sum(0)


@pytest.mark.parametrize("made", [written_by_rows, written_to_a_view, written_to_a_part])
def test_what_is_written_in_place_from_the_input_depends_on_it(made: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(DataDependentError, match="depends on its input"):
        snngraph.trace(Reads(made).eval(), torch.randn(5, 2, 4))


def test_what_is_not_written_from_the_input_may_be_read() -> None:
    graph = snngraph.trace(Reads(read_before_it_is_written).eval(), torch.randn(5, 2, 4))
    assert len(graph.neurons) == 1


class Watched(nn.Module):
    """Counts and records its spikes, and does ``use`` with what it read."""

    def __init__(self, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 8), neurons.LIF(threshold=0.5, step_mode="s")
        self.use = use
        self.spikes: Any = 0
        self.rates: list[Any] = []
        self.records: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[1], 8)
        for frame in x:
            s = self.lif(self.fc(frame))
            self.spikes += s.sum().item()
            self.rates.append(round(100 * s.mean().item() / 8, 2))
            self.records.append(s.data.cpu().numpy().mean(0))
            total = total + s
        return self.use(self, total)


def test_a_model_may_watch_its_spikes() -> None:
    torch.manual_seed(0)
    model = Watched(lambda _, y: y).eval()
    graph = snngraph.trace(model, torch.randn(5, 2, 4))
    assert graph.free_batch
    assert [len(layer.nodes) for layer in graph.neurons] == [1]
    assert (model.spikes, model.rates, model.records) == (0, [], []), "what a capture leaves is taken back"
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(graph(x).float(), model(x))
    assert model.spikes > 0


USES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "decides": lambda m, y: y if m.spikes > 3 else -y,
    "truth": lambda m, y: y if m.spikes else -y,
    "multiplies": lambda m, y: y * m.spikes,
    "multiplied": lambda m, y: m.spikes * y,
    "divides": lambda m, y: y / (m.spikes + 1),
    "tensor": lambda m, y: y + torch.tensor(m.spikes),
    "as_tensor": lambda m, y: y + torch.as_tensor(m.records[0]),
    "filled": lambda m, y: y + torch.full((), m.spikes),
    "numpy": lambda m, y: y + torch.from_numpy(m.records[0]),
    "math": lambda m, y: y + math.sqrt(m.spikes),
    "float": lambda m, y: y + float(m.rates[0]),
    "range": lambda m, y: y + sum(range(int(m.spikes))),
    "largest": lambda m, y: y + max(m.rates),
    "indexed": lambda m, y: y[: int(m.spikes)],
    "array": lambda m, y: y + float(np.asarray(m.rates).sum()),
}


@pytest.mark.parametrize("use", USES)
def test_what_a_model_reads_from_its_input_decides_nothing(use: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(CaptureError, match="depends on its input"):
        snngraph.trace(Watched(USES[use]).eval(), torch.randn(5, 2, 4))


class Clamped(nn.Module):
    """Clamps its weights in every forward, around autograd."""

    def __init__(self, in_place: bool, reads: bool) -> None:
        super().__init__()
        self.fc, self.lif = nn.Linear(4, 8), neurons.LIF(threshold=0.5)
        self.in_place, self.reads = in_place, reads

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.fc.weight.data.clamp_(-0.3, 0.3)
        else:
            self.fc.weight.data = self.fc.weight.data.clamp(-0.3, 0.3)
        scale = self.fc.bias.abs().max().item() if self.reads else 1.0  # only a recorded run can read it
        spikes: Tensor = self.lif(self.fc(x) * scale)
        return spikes.sum(0)


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.filterwarnings("ignore::snngraph.errors.ParameterChangedWarning")
def test_weights_written_in_forward_are_put_back(in_place: bool, reads: bool) -> None:
    torch.manual_seed(0)
    model = Clamped(in_place, reads).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = snngraph.trace(model, torch.randn(5, 2, 4))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    x = torch.randn(5, 3, 4)
    torch.testing.assert_close(graph(x).float(), model(x))


class Marked(Tensor):
    """A tensor subclass, as snnTorch 0.6 makes of a state that is not yet there."""


def test_a_reset_may_build_its_state_of_a_tensor_subclass() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.state = nn.Linear(4, 8), torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            v = (
                0.5 * torch.zeros_like(self.fc(x)) + self.fc(x)
                if isinstance(self.state, Marked)
                else 0.5 * self.state + self.fc(x)
            )
            spikes = (v > 1).to(x.dtype)
            self.state = v * (1 - spikes)
            assert isinstance(spikes, Tensor)
            return spikes

    torch.manual_seed(0)
    model = Counted().eval()

    def reset() -> None:
        model.state = Tensor._make_subclass(Marked, torch.empty(1))

    graph = snngraph.trace(model, torch.randn(5, 2, 4), time_steps=5, reset=reset)
    x = torch.randn(5, 3, 4)
    reset()
    torch.testing.assert_close(graph(x).float(), torch.stack([model(frame) for frame in x]))
