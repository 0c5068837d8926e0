"""Networks from NIR graphs: every node against PyTorch or against steps written out here, cycles, and what is refused."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import snngraph
from snngraph.errors import (
    NirCorruptError,
    NirDiscretisationError,
    NirError,
    NirGraphError,
    NirNotInstalledError,
    NirReadError,
    NirVersionError,
)
from snngraph.graph import SpikingGraph

nir = pytest.importorskip("nir", reason="NIR is not installed")
h5py = pytest.importorskip("h5py", reason="h5py is not installed")

T, N = 6, 3
EULER: dict[str, Any] = {"dt": 0.5, "integrator": "euler", "fire": ">", "reset": "hard"}
Nodes = dict[str, Any]


def random(*shape: int, seed: int = 0, low: float = -1.0, high: float = 1.0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).uniform(low, high, shape)


def lif(*shape: int, tau: float = 2.0) -> Any:
    one = np.ones(shape)
    return nir.LIF(tau=tau * one, r=tau / 0.5 * one, v_leak=0 * one, v_threshold=one)


def chain(shape: tuple[int, ...], *nodes: Any, out: tuple[int, ...]) -> Any:
    named = {
        "input": nir.Input(np.array(shape)),
        **{f"n{k}": node for k, node in enumerate(nodes)},
        "output": nir.Output(np.array(out)),
    }
    return network(named, *zip(list(named), list(named)[1:], strict=False))


def network(nodes: Nodes, *edges: tuple[str, str]) -> Any:
    return nir.NIRGraph(nodes, list(edges), type_check=False)


def inputs(*shape: int, steps: int = T, seed: int = 0) -> Tensor:
    return torch.randn(steps, N, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def read(graph: Any, steps: int = T, **arguments: Any) -> SpikingGraph:
    found = snngraph.from_nir(graph, time_steps=steps, **arguments)
    found.check()
    return found


def t(array: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


# -- nodes without state -------------------------------------------------------------------------------------------------------


def pooled(x: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(x, (2, 3), 2, (0, 1))


W1, W2, B4 = random(4, 3, 3), random(4, 3, 3, 2), random(4, seed=1)
LAYERS: dict[str, tuple[Any, tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "linear": (nir.Linear(random(4, 5)), (5,), lambda x: x @ t(random(4, 5)).T),
    "affine": (nir.Affine(random(4, 5), B4), (5,), lambda x: x @ t(random(4, 5)).T + t(B4)),
    "conv1d": (
        nir.Conv1d(None, W1, 2, 1, 1, 1, B4),
        (3, 9),
        lambda x: torch.conv1d(x, t(W1), t(B4), 2, 1),
    ),
    "conv1d, same": (
        nir.Conv1d(9, random(4, 3, 4), 1, "same", 1, 1, B4),
        (3, 9),
        lambda x: torch.conv1d(torch.nn.functional.pad(x, (1, 2)), t(random(4, 3, 4)), t(B4)),
    ),
    "conv2d, not square": (
        nir.Conv2d(None, W2, (1, 2), (1, 0), (1, 1), 1, B4),
        (3, 7, 6),
        lambda x: torch.conv2d(x, t(W2), t(B4), (1, 2), (1, 0)),
    ),
    "conv2d, grouped and dilated": (
        nir.Conv2d((7, 7), random(4, 2, 3, 3), 1, "valid", 2, 2, np.zeros(4)),
        (4, 7, 7),
        lambda x: torch.conv2d(x, t(random(4, 2, 3, 3)), None, 1, 0, 2, 2),
    ),
    "flatten": (nir.Flatten({"input": np.array([2, 3, 4])}, 0, -1), (2, 3, 4), lambda x: x.flatten(1)),
    "flatten, in part": (nir.Flatten(None, 1, 2), (2, 3, 4), lambda x: x.flatten(2)),
    "sum": (nir.SumPool2d(np.array([2, 3]), np.array([2, 2]), np.array([0, 1])), (3, 6, 6), lambda x: 6 * pooled(x)),
    "average": (nir.AvgPool2d(np.array([2, 3]), np.array([2, 2]), np.array([0, 1])), (3, 6, 6), pooled),
    "scale": (nir.Scale(random(3, 4)), (3, 4), lambda x: x * t(random(3, 4))),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    node, shape, function = LAYERS[name]
    x = inputs(*shape)
    expected = function(x.flatten(0, 1)).unflatten(0, (T, N))
    found = read(chain(shape, node, out=tuple(expected.shape[2:])))(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_threshold() -> None:
    x = inputs(4).round()
    threshold = np.array([0.0, 1.0, -1.0, 0.5])
    graph = chain((4,), nir.Threshold(threshold), out=(4,))
    assert torch.equal(read(graph, fire=">")(x), (x > t(threshold)).double())
    assert torch.equal(read(graph, fire=">=")(x), (x >= t(threshold)).double())


@pytest.mark.parametrize("steps", [0, 1, 3, 9])
def test_delay(steps: int) -> None:
    x = inputs(4)
    found = read(chain((4,), nir.Delay(np.full(4, steps * 0.5)), out=(4,)), dt=0.5)(x)
    expected = torch.zeros_like(x)
    expected[min(steps, T) :] = x[: max(T - steps, 0)]
    assert torch.equal(found, expected)


def test_delays_of_each_entry() -> None:
    x = inputs(3)
    found = read(chain((3,), nir.Delay(np.array([0.0, 1.0, 2.0])), out=(3,)), dt=1.0)(x)
    for k in range(3):
        assert torch.equal(found[k:, :, k], x[: T - k, :, k])
        assert not found[:k, :, k].any()


# -- neurons -------------------------------------------------------------------------------------------------------------------


def test_parameters_of_one_neuron_each() -> None:
    """Every neuron has its own; the conversion is in float64."""
    tau, threshold, v_reset = random(4, low=1, high=3), random(4, low=0.5, high=1), random(4, seed=3)
    node = nir.LIF(tau, np.ones(4), random(4, seed=2), threshold, v_reset)
    x = inputs(4)
    found = read(chain((4,), node, out=(4,)), v_init="v_reset", **EULER)(x)
    v, out = t(v_reset).expand(N, 4), []
    for frame in x:
        v = v + 0.5 / t(tau) * (t(node.v_leak) - v + frame)
        s = v > t(threshold)
        v = torch.where(s, t(v_reset), v)
        out.append(s.double())
    assert 0 < float(torch.stack(out).mean()) < 1
    assert torch.equal(found, torch.stack(out))


def test_integrators_give_their_potential() -> None:
    x = inputs(4)
    one, tau = np.ones(4), random(4, low=1, high=3)
    found = read(chain((4,), nir.I(2 * one), out=(4,)), dt=0.5)(x)
    torch.testing.assert_close(found, x.cumsum(0), rtol=0, atol=1e-12)
    leaky = read(chain((4,), nir.LI(tau, one, 0.25 * one), out=(4,)), dt=0.5, integrator="exponential", v_init=1.0)(x)
    decay, v, out = torch.exp(-0.5 / t(tau)), torch.ones(N, 4).double(), []
    for frame in x:
        v = decay * v + (1 - decay) * (0.25 + frame)
        out.append(v)
    torch.testing.assert_close(leaky, torch.stack(out), rtol=0, atol=1e-12)


@pytest.mark.parametrize("charge", ["new", "previous"])
def test_current_based_integrator(charge: str) -> None:
    x = inputs(4)
    one = np.ones(4)
    node = nir.CubaLI(tau_syn=one, tau_mem=2 * one, r=one, v_leak=0 * one, w_in=3 * one)
    found = read(chain((4,), node, out=(4,)), dt=0.5, integrator="euler", charge=charge)(x)
    v = i = torch.zeros(N, 4).double()
    out = []
    for frame in x:
        before, i = i, i + 0.5 * (3 * frame - i)
        v = v + 0.25 * ((i if charge == "new" else before) - v)
        out.append(v)
    torch.testing.assert_close(found, torch.stack(out), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("delay", "reset"), [("none", "soft"), ("with", "soft"), ("both", "soft"), ("before", "hard")])
def test_resets(delay: str, reset: str) -> None:
    graph = read(chain((4,), lif(4), out=(4,)), **{**EULER, "reset": reset, "delay": delay, "floor": -0.5})
    (layer,) = graph.neurons
    assert layer.name == "n0"
    assert {k: layer.nodes[0].kwargs.get(k) for k in ("fire", "reset", "delay")} == {
        "fire": ">",
        "reset": reset if reset != "hard" else None,
        "delay": delay if delay != "none" else None,
    }
    assert graph.number(layer.nodes[0].kwargs["floor"]) == -0.5


def test_initial_potentials() -> None:
    one = np.ones(2)
    node = nir.LIF(2 * one, one, 0.25 * one, one, -0.5 * one)
    graph = chain((2,), node, out=(2,))
    with pytest.raises(NirDiscretisationError, match="v_init"):
        read(graph, **EULER)
    for v_init, expected in (("v_leak", 0.25), ("v_reset", -0.5), (0.125, 0.125)):
        found = read(graph, v_init=v_init, **EULER)
        assert found.number(found.neurons[0].nodes[0].args[1]) == expected


# -- structure -----------------------------------------------------------------------------------------------------------------


def test_branches_are_summed() -> None:
    """A residual block; the edges stand in no order."""
    w = random(4, 4)
    nodes = {
        "output": nir.Output(np.array([4])),
        "fc": nir.Linear(w),
        "input": nir.Input(np.array([4])),
        "twice": nir.Scale(2 * np.ones(4)),
    }
    graph = network(nodes, ("fc", "output"), ("input", "output"), ("twice", "output"), ("input", "fc"), ("input", "twice"))
    x = inputs(4)
    torch.testing.assert_close(read(graph)(x), x @ t(w).T + 3 * x, rtol=0, atol=1e-12)


def test_nested_graphs_are_laid_open() -> None:
    inner = chain((4,), lif(4), out=(4,))
    outer = chain((5,), nir.Linear(random(4, 5)), inner, out=(4,))
    flat = chain((5,), nir.Linear(random(4, 5)), lif(4), out=(4,))
    x = inputs(5)
    found = read(outer, **EULER)
    assert [layer.name for layer in found.neurons] == ["n1.n0"]
    assert torch.equal(found(x), read(flat, **EULER)(x))


def test_inputs_and_outputs_go_by_name() -> None:
    """A file has no order of nodes."""
    nodes = {
        "b": nir.Input(np.array([2])),
        "a": nir.Input(np.array([3])),
        "z": nir.Output(np.array([2])),
        "y": nir.Output(np.array([3])),
    }
    graph = read(network(nodes, ("b", "z"), ("a", "y")))
    assert [spec.name for spec in graph.inputs] == ["a", "b"]
    first, second = graph(inputs(3), inputs(2))
    assert (first.shape, second.shape) == ((T, N, 3), (T, N, 2))


def test_what_reaches_no_output_is_left_out() -> None:
    nodes = {"input": nir.Input(np.array([2])), "output": nir.Output(np.array([2])), "aside": nir.Scale(np.ones(2))}
    graph = read(network(nodes, ("input", "output"), ("input", "aside")))
    assert any("'aside'" in note for note in graph.notes)


def test_any_batch_size_and_module_paths() -> None:
    graph = read(chain((5,), nir.Linear(random(4, 5)), lif(4), out=(4,)), batch_size=4, **EULER)
    assert graph.free_batch
    assert graph.facts.example_batch == 4
    assert {node.meta.get("module_path") for node in graph.nodes if node.op == "call_function"} == {"n0", "n1"}


def test_extra_dimensions_are_dropped() -> None:
    graph = chain((1, 5), nir.Linear(random(4, 5)), out=(1, 4))
    assert read(graph, extra_dims=1)(inputs(5)).shape == (T, N, 4)
    with pytest.raises(NirGraphError, match="extra_dims=3"):
        read(graph, extra_dims=3)


# -- cycles --------------------------------------------------------------------------------------------------------------------


class Cell:
    """An Euler LIF of this file, step by step."""

    def __init__(self, size: int, tau: float = 2.0) -> None:
        self.v, self.s, self.tau = torch.zeros(N, size).double(), torch.zeros(N, size).double(), tau

    def __call__(self, x: Tensor) -> Tensor:
        h = self.v + 0.5 / self.tau * (self.tau / 0.5 * x - self.v)
        self.s = (h > 1).double()
        self.v = torch.where(self.s > 0, torch.zeros_like(h), h)
        return self.s


def recurrent(back: Any) -> Any:
    nodes = {"input": nir.Input(np.array([4])), "lif": lif(4), "back": back, "output": nir.Output(np.array([4]))}
    return network(nodes, ("input", "lif"), ("lif", "back"), ("back", "lif"), ("lif", "output"))


def test_recurrent_layer() -> None:
    """Its spikes come back a step late; its bias acts from the first step on, when no neuron has fired yet."""
    w, b = random(4, 4) * 2, random(4, seed=1) * 0.5
    x, cell, out = inputs(4), Cell(4), []
    for frame in x:
        out.append(cell(frame + cell.s @ t(w).T + t(b)))
    found = read(recurrent(nir.Affine(w, b)), **EULER)
    assert torch.equal(found(x), torch.stack(out))
    assert 0.1 < float(torch.stack(out).mean()) < 0.6


def test_recurrent_convolution_with_padding() -> None:
    """What a layer makes of silence is computed, not taken to be its bias; a second layer on the way back makes it matter."""
    w, b = random(2, 2, 3), random(2, seed=1)
    nodes = {
        "input": nir.Input(np.array([2, 5])),
        "lif": lif(2, 5),
        "one": nir.Conv1d(None, w, 1, 1, 1, 1, b),
        "two": nir.Conv1d(None, w, 1, 1, 1, 1, b),
        "output": nir.Output(np.array([2, 5])),
    }
    graph = network(nodes, ("input", "lif"), ("lif", "one"), ("one", "two"), ("two", "lif"), ("lif", "output"))
    x, out = inputs(2, 5), []
    v = s = torch.zeros(N, 2, 5).double()
    for frame in x:
        for _ in range(2):
            s = torch.conv1d(s, t(w), t(b), padding=1)
        v = v + 0.25 * (4 * (frame + s) - v)
        s = (v > 1).double()
        v = torch.where(s > 0, torch.zeros_like(v), v)
        out.append(s)
    assert torch.equal(read(graph, **EULER)(x), torch.stack(out))


def two_layers(*more: tuple[str, str], entries: tuple[str, ...] = ("up",)) -> Any:
    nodes = {
        "input": nir.Input(np.array([4])),
        "a": lif(4),
        "b": lif(4, tau=3.0),
        "up": nir.Linear(random(4, 4) * 2),
        "ab": nir.Linear(random(4, 4, seed=1) * 2),
        "ba": nir.Linear(random(4, 4, seed=2) * 2),
        "output": nir.Output(np.array([4])),
    }
    edges = [("input", "up"), ("a", "ab"), ("ab", "b"), ("b", "ba"), ("ba", "a"), ("b", "output")]
    return network(nodes, *edges, *[("up", {"up": "a"}.get(e, e)) for e in entries], *more)


def run_two_layers(x: Tensor, *, late: str, both: bool) -> Tensor:
    up, ab, ba = (t(random(4, 4, seed=k) * 2).T for k in range(3))
    a, b, out = Cell(4), Cell(4, 3.0), []
    for frame in x:
        drive = frame @ up
        if late == "ba":
            a(drive + b.s @ ba)
            b(a.s @ ab + (drive if both else 0))
        else:
            b(a.s @ ab + drive)
            a(drive + b.s @ ba)
        out.append(b.s)
    return torch.stack(out)


def test_the_edge_that_closes_the_loop_is_late() -> None:
    """Whatever the order of nodes and edges."""
    graph, x = two_layers(), inputs(4)
    expected = run_two_layers(x, late="ba", both=False)
    assert torch.equal(read(graph, **EULER)(x), expected)
    turned = network(dict(reversed(graph.nodes.items())), *reversed(graph.edges))
    assert torch.equal(read(turned, **EULER)(x), expected)


def test_a_cycle_with_two_entries_has_to_be_told() -> None:
    graph, x = two_layers(entries=("up", "b")), inputs(4)
    with pytest.raises(NirDiscretisationError, match="late_edges"):
        read(graph, **EULER)
    for late in ("ba", "ab"):
        edge = ("ba", "a") if late == "ba" else ("ab", "b")
        assert torch.equal(read(graph, late_edges=[edge], **EULER)(x), run_two_layers(x, late=late, both=True))
    with pytest.raises(NirDiscretisationError, match="no edge"):
        read(graph, late_edges=[("a", "b")], **EULER)


def test_a_neuron_that_feeds_itself() -> None:
    nodes = {"input": nir.Input(np.array([4])), "lif": lif(4), "output": nir.Output(np.array([4]))}
    graph = network(nodes, ("input", "lif"), ("lif", "lif"), ("lif", "output"))
    x, cell, out = inputs(4), Cell(4), []
    for frame in x:
        out.append(cell(frame + cell.s))
    assert torch.equal(read(graph, **EULER)(x), torch.stack(out))


@pytest.mark.parametrize("delay", [1, 2])
def test_a_delay_breaks_a_cycle(delay: int) -> None:
    """It is not late once more; and a neuron behind it starts in silence, whatever the inputs are."""
    nodes = {
        "input": nir.Input(np.array([3])),
        "fc": nir.Linear(random(4, 3) * 2),
        "a": lif(4),
        "wait": nir.Delay(np.full(4, delay * 0.5)),
        "b": lif(4, tau=3.0),
        "back": nir.Linear(random(4, 4, seed=1) * 3),
        "output": nir.Output(np.array([4])),
    }
    edges = [("input", "fc"), ("fc", "a"), ("a", "wait"), ("wait", "b"), ("b", "back"), ("back", "a"), ("a", "output")]
    x = inputs(3, steps=8)
    a, b = Cell(4), Cell(4, 3.0)
    out: list[Tensor] = []
    for k, frame in enumerate(x):
        b(out[k - delay] if k >= delay else torch.zeros(N, 4).double())
        out.append(a(frame @ t(random(4, 3) * 2).T + b.s @ t(random(4, 4, seed=1) * 3).T))
    found = read(network(nodes, *edges), steps=8, **EULER)
    assert torch.equal(found(x), torch.stack(out))
    x[0, 0, 0] = float("nan")  # silence is no product with the input
    assert not found(x)[:, 1:].isnan().any()


def test_potential_in_a_cycle_starts_at_rest() -> None:
    one = np.ones(2)
    nodes = {
        "input": nir.Input(np.array([2])),
        "sum": nir.Scale(0.5 * one),
        "li": nir.LI(2 * one, one, 0 * one),
        "output": nir.Output(np.array([2])),
    }
    graph = network(nodes, ("input", "sum"), ("sum", "li"), ("li", "sum"), ("li", "output"))
    x = inputs(2)
    v, out = torch.full((N, 2), 0.75).double(), []
    for frame in x:
        v = v + 0.25 * (0.5 * (frame + v) - v)
        out.append(v)
    found = read(graph, dt=0.5, integrator="euler", v_init=0.75)(x)
    torch.testing.assert_close(found, torch.stack(out), rtol=0, atol=1e-12)


# -- engines -------------------------------------------------------------------------------------------------------------------


def test_engine_of_a_nir_graph() -> None:
    """Convolution, neurons of their own parameters, a cycle with a delay and a potential at the end."""
    nodes = {
        "input": nir.Input(np.array([2, 6, 6])),
        "conv": nir.Conv2d(None, random(4, 2, 3, 3) * 1.5, 1, "same", 1, 1, B4),
        "lif1": nir.LIF(np.full((4, 6, 6), 1.0), np.full((4, 6, 6), 2.0), np.zeros((4, 6, 6)), random(4, 6, 6, low=0.5)),
        "pool": nir.SumPool2d(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])),
        "flatten": nir.Flatten(None, 0, -1),
        "fc": nir.Linear(random(8, 36)),
        "lif2": lif(8),
        "back": nir.Affine(random(8, 8), random(8, seed=2)),
        "wait": nir.Delay(np.full(8, 1.0)),
        "li": nir.LI(np.full(8, 2.0), np.ones(8), np.zeros(8)),
        "output": nir.Output(np.array([8])),
    }
    edges = [("input", "conv"), ("conv", "lif1"), ("lif1", "pool"), ("pool", "flatten"), ("flatten", "fc"), ("fc", "lif2")]
    edges += [("lif2", "back"), ("back", "lif2"), ("lif2", "wait"), ("wait", "lif2"), ("lif2", "li"), ("li", "output")]
    graph = read(network(nodes, *edges), **EULER)
    x = torch.randn(T, 32, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    with snngraph.build(snngraph.optimize(graph), batch_size="dynamic") as engine:
        report = snngraph.verify(graph, engine, x)
    assert report.ok, str(report)


# -- what is missing or wrong --------------------------------------------------------------------------------------------------


def test_everything_missing_is_named_at_once() -> None:
    graph = chain((4,), lif(4), out=(4,))
    with pytest.raises(NirDiscretisationError) as caught:
        read(graph)
    assert all(f"{name}:" in str(caught.value) for name in ("dt", "integrator", "fire", "reset"))
    with pytest.raises(NirDiscretisationError, match="time_steps"):
        snngraph.from_nir(graph, **EULER)
    read(chain((4,), nir.Linear(random(4, 4)), out=(4,)))  # nothing to discretise


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "time_steps": ({"time_steps": 0}, "positive integer"),
    "batch_size": ({"batch_size": True}, "positive integer"),
    "dt": ({"dt": -1.0}, "positive number"),
    "dt, nan": ({"dt": float("nan")}, "positive number"),
    "dt too long": ({"dt": 10.0}, "longer than tau=2"),
    "integrator": ({"integrator": "rk4"}, "'exponential'"),
    "fire": ({"fire": "=>"}, "'>='"),
    "reset": ({"reset": "zero"}, "'hard'"),
    "delay without a reset": ({"reset": "none", "delay": "with"}, "belongs to a reset"),
    "both": ({"delay": "both"}, "soft reset"),
    "emit": ({"emit": "signed"}, "'count'"),
    "v_init": ({"v_init": "rest"}, "'v_leak'"),
    "floor": ({"floor": float("inf")}, "a number"),
    "charge": ({"charge": "old"}, "'previous'"),
    "membrane_input": ({"membrane_input": "spike"}, "'impulse'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    arguments, message = WRONG[name]
    with pytest.raises(NirDiscretisationError, match=message):
        snngraph.from_nir(chain((4,), lif(4), out=(4,)), **{"time_steps": T, **EULER, **arguments})


def test_soft_reset_to_another_potential() -> None:
    one = np.ones(2)
    with pytest.raises(NirDiscretisationError, match="subtracts the threshold"):
        read(chain((2,), nir.IF(one, one, 0.5 * one), out=(2,)), **{**EULER, "reset": "soft"})
    with pytest.raises(NirDiscretisationError, match="no v_leak"):
        read(chain((2,), nir.IF(one, one, 0.5 * one), out=(2,)), **EULER, v_init="v_leak")


def test_delay_between_steps() -> None:
    with pytest.raises(NirDiscretisationError, match="whole number"):
        read(chain((2,), nir.Delay(np.full(2, 0.75)), out=(2,)), dt=0.5)


ONE = np.ones(4)
BROKEN: dict[str, tuple[Callable[[], Any], str]] = {
    "no graph": (lambda: lif(4), "expected a path or a nir.NIRGraph"),
    "no input": (lambda: network({"o": nir.Output(np.array([4]))}), "no Input"),
    "no output": (lambda: network({"i": nir.Input(np.array([4]))}), "no Output"),
    "edge to nowhere": (
        lambda: network({"i": nir.Input(np.array([4])), "o": nir.Output(np.array([4]))}, ("i", "x"), ("i", "o")),
        "'x', which is no node",
    ),
    "edge twice": (
        lambda: network({"i": nir.Input(np.array([4])), "o": nir.Output(np.array([4]))}, ("i", "o"), ("i", "o")),
        "comes twice",
    ),
    "nothing feeds it": (
        lambda: network(
            {"i": nir.Input(np.array([4])), "s": nir.Scale(ONE), "o": nir.Output(np.array([4]))}, ("s", "o"), ("i", "o")
        ),
        "nothing feeds 's'",
    ),
    "no node": (lambda: chain((4,), None, out=(4,)), "its writer had no NIR node"),
    "another node": (lambda: chain((4,), 3, out=(4,)), "is a int"),
    "shapes": (lambda: chain((5,), nir.Linear(random(4, 3)), out=(4,)), r"does not take \[5\]"),
    "shape of a neuron": (lambda: chain((3, 4), lif(4), out=(3, 4)), r"has shape \[4\], its input \[3, 4\]"),
    "shape of an output": (lambda: chain((4,), nir.Scale(ONE), out=(5,)), r"says \[5\]"),
    "shapes of a sum": (
        lambda: network(
            {"a": nir.Input(np.array([4])), "b": nir.Input(np.array([1])), "o": nir.Output(None)}, ("a", "o"), ("b", "o")
        ),
        "what is summed has one shape",
    ),
    "input without a shape": (lambda: network({"i": nir.Input(None), "o": nir.Output(None)}, ("i", "o")), "has no shape"),
    "bias": (lambda: chain((3,), nir.Affine(random(4, 3), random(3)), out=(4,)), "the weight's rows"),
    "weight": (lambda: chain((3,), nir.Linear(random(2, 4, 3)), out=(4,)), "expected 2"),
    "nan": (lambda: chain((4,), nir.Scale(ONE * np.nan), out=(4,)), "no array of finite numbers"),
    "tau": (lambda: chain((4,), nir.LIF(0 * ONE, ONE, 0 * ONE, ONE), out=(4,)), "tau is not positive"),
    "stride": (lambda: chain((3, 9), nir.Conv1d(None, W1, 1.5, 0, 1, 1, B4), out=(4, 7)), "stride=1.5"),
    "padding": (lambda: chain((3, 9), nir.Conv1d(None, W1, 2, "same", 1, 1, B4), out=(4, 7)), "no meaning with a stride"),
    "two inputs within": (
        lambda: chain(
            (4,),
            network(
                {"a": nir.Input(np.array([4])), "b": nir.Input(np.array([4])), "o": nir.Output(np.array([4]))},
                ("a", "o"),
                ("b", "o"),
            ),
            out=(4,),
        ),
        "has 2 inputs",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs(name: str) -> None:
    make, message = BROKEN[name]
    with pytest.raises(NirGraphError, match=message):
        read(make(), **EULER)


# -- files ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.nir"
    nir.write(
        path, chain((4,), nir.Affine(random(4, 4), random(4)), lif(4), nir.Flatten({"input": np.array([4])}, 0, -1), out=(4,))
    )
    return path


def test_a_file_is_the_graph(file: Path) -> None:
    graph = read(file, **EULER)
    assert graph.name == "net"
    assert torch.equal(graph(inputs(4)), read(nir.read(file), **EULER)(inputs(4)))
    assert torch.equal(graph(inputs(4)), read(str(file), **EULER)(inputs(4)))


def test_no_such_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none.nir", tmp_path):
        with pytest.raises(NirReadError, match="no file"):
            read(path)


def test_damaged_files(file: Path, tmp_path: Path) -> None:
    """Cut short or with changed bytes: an error of our own, or a graph that was not touched."""
    content = file.read_bytes()
    generator = np.random.default_rng(0)
    for k in range(45):
        damaged = bytearray(content)
        if k % 3 == 0:
            damaged = damaged[: int(generator.integers(len(content)))]
        else:
            for place in generator.integers(len(content), size=1 + k % 7):
                damaged[place] = int(generator.integers(256))
        path = tmp_path / f"damaged{k}.nir"
        path.write_bytes(damaged)
        with contextlib.suppress(NirError):
            read(path, **EULER)
    with pytest.raises(NirCorruptError):
        read(tmp_path / "damaged0.nir", **EULER)


@pytest.mark.parametrize(("version", "good"), [("0.2", True), ("1.0.8", True), ("1.7.dev3", True), ("2.0", False), ("x", False)])
def test_versions(file: Path, version: str, good: bool) -> None:
    with h5py.File(file, "r+") as content:
        del content["version"]
        content["version"] = version
    if good:
        read(file, **EULER)
        return
    with pytest.raises(NirVersionError, match=version):
        read(file, **EULER)


def test_files_that_are_no_nir_files(tmp_path: Path) -> None:
    path = tmp_path / "other.nir"
    path.write_text("no HDF5")
    with pytest.raises(NirCorruptError):
        read(path)
    with h5py.File(path, "w") as content:
        content["weights"] = np.ones(3)
    with pytest.raises(NirCorruptError, match="no NIR file"):
        read(path)


def test_unknown_node(file: Path) -> None:
    with h5py.File(file, "r+") as content:
        del content["node/nodes/n1/type"]
        content["node/nodes/n1/type"] = "Quantum"
    with pytest.raises(NirGraphError, match="'Quantum'"):
        read(file, **EULER)


def links_out(content: Any, folder: Path) -> None:
    content["node/nodes/n0/bias"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def links_within(content: Any, folder: Path) -> None:
    content["node/nodes/n0/bias"] = h5py.SoftLink("/node/nodes/n0/weight")


def lies_outside(content: Any, folder: Path) -> None:
    (folder / "raw.bin").write_bytes(bytes(32))
    content["node/nodes/n0"].create_dataset("bias", (4,), "f8", external=[(str(folder / "raw.bin"), 0, 32)])


def is_huge(content: Any, folder: Path) -> None:
    content["node/nodes/n0"].create_dataset("bias", (2**34,), "f8", chunks=(1024,))


def contains_itself(content: Any, folder: Path) -> None:
    content["node/nodes/n0/bias"] = content["node/nodes"]


@pytest.mark.parametrize("damage", [links_out, links_within, lies_outside, is_huge, contains_itself])
def test_files_that_reach_out(file: Path, tmp_path: Path, damage: Callable[[Any, Path], None]) -> None:
    with h5py.File(file, "r+") as content:
        del content["node/nodes/n0/bias"]
        damage(content, tmp_path)
    with pytest.raises(NirCorruptError):
        read(file, **EULER)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(NirNotInstalledError, match="snngraph\\[nir\\]"):
        snngraph.from_nir("net.nir")
