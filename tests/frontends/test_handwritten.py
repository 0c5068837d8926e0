"""Nets whose neurons nobody has told us of: the axes are found, the steps merged, at any batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.testing import assert_graph, parse


def leaky(v: Any, current: Tensor) -> tuple[Tensor, Tensor]:
    v = v * 0.5 + current
    s = (v > 0.2).float()
    return s, v * (1 - s)


class Static(nn.Module):
    """An image that the model repeats itself, two layers, spikes counted."""

    def __init__(self, steps: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.steps = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(256, 5), steps
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        v: Any = 0.0
        w: Any = 0.0
        total: Any = 0.0
        for _ in range(self.steps):
            s, v = leaky(v, self.conv(x))
            y, w = leaky(w, self.fc(s.flatten(1)))
            total = total + y
        return total / self.steps  # type: ignore[no-any-return]


def test_steps_of_a_static_image_are_counted() -> None:
    model, x = Static(), torch.rand(2, 2, 8, 8)
    graph = snngraph.trace(model, x)
    assert (graph.time.steps, graph.inputs[0].time_dim, graph.inputs[0].batch_dim) == (6, None, 0)
    assert [len(layer.nodes) for layer in graph.neurons] == [1, 1]
    other = torch.rand(5, 2, 8, 8)
    with torch.no_grad():
        assert torch.allclose(graph(other).float(), model(other))
    assert 0 < model(other).mean() < 1


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 5)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        v, w, out = torch.zeros(x.shape[1], 16), torch.zeros(x.shape[1], 5), torch.zeros(x.shape[0], x.shape[1], 5)
        for t in range(x.shape[0]):
            s, v = leaky(v, self.a(x[t]))
            out[t], w = leaky(w, self.b(s))
        return out


def test_the_graph_does_not_grow_with_time() -> None:
    sizes = {T: len(list(snngraph.trace(TwoLayers(), torch.rand(T, 2, 8)).nodes)) for T in (4, 9)}
    assert sizes[4] == sizes[9]


def test_a_neuron_that_fires_one_step_late_is_no_fixed_loop() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(8, 5)
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            v, out = torch.zeros(x.shape[1], 5), []
            for frame in x:
                s = (v > 0.2).float()
                v = v * 0.5 * (1 - s) + self.fc(frame)
                out.append(s)
            return torch.stack(out)

    model, x = Late(), torch.rand(5, 2, 8)
    graph = snngraph.trace(model, x)
    with torch.no_grad():
        assert torch.equal(graph(x).float(), model(x))


def test_what_was_recognised_is_told() -> None:
    graph = snngraph.trace(TwoLayers(), torch.rand(4, 2, 8))
    assert [found.form for found in graph.recognitions] == [
        "lif(threshold=0.2, fire='>', decay=0.5, reset='hard', v_reset=0)"
    ] * 2
    assert all(":" in found.path for found in graph.recognitions), "a source line, where there is no module"


def test_a_wrong_recognition_is_found_on_the_whole_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were lift_neurons wrong, the neurons would stay operators, and the graph right."""
    from snngraph.passes import lift_neurons

    def off(self: Any, name: str, value: Tensor) -> Any:
        return self.edit.graph.add_tensor(name.replace(".", "_").replace(":", "_"), value * 1.5)

    monkeypatch.setattr(lift_neurons._Writer, "_constant", off)
    model, x = TwoLayers(), torch.rand(4, 2, 8)
    graph = snngraph.trace(model, x)
    assert not graph.neurons
    assert any("stay ordinary operators" in note for note in graph.notes)
    with torch.no_grad():
        assert torch.equal(graph(x).float(), model(x))


@pytest.mark.parametrize(
    "text", ["select(stack([relu(x[0]), tanh(x[1])], 0), 0, 1)", "select(stack([relu(x[0]), tanh(x[1])], 1), 1, 1)"]
)
def test_an_entry_of_a_stack_is_what_was_stacked(text: str) -> None:
    from snngraph.passes.canonicalize import Canonicalize

    assert_graph(Canonicalize()(parse(f"x[2, N, 8] -> {text}")).graph, "x[2, N, 8] -> tanh(x[1])")


def test_nothing_added_is_nothing() -> None:
    from snngraph.passes.canonicalize import Canonicalize

    assert_graph(Canonicalize()(parse("x[2, N, 8] -> relu(x) + 0.0")).graph, "x[2, N, 8] -> relu(x)")
