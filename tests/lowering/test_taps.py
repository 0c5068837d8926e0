"""All numbers are multiples of 1/8 and all decays 1/2, so float32 is exact and every comparison here is of bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from snngraph.errors import LoweringError
from snngraph.graph import SpikingGraph
from snngraph.lowering import Lowered, lower
from snngraph.lowering.taps import add_outputs, cut_at_spikes, forced_name, membrane_name, tap, threshold_name
from snngraph.testing import parse, run_with_spikes
from snngraph.types import NeuronLayer
from tests.lowering.engines import ENGINES, run

Array = NDArray[Any]

TWO_LAYERS = """x[T, N, 6] ->
a = lif(linear(x, w1[5, 6]), decay=0.5, threshold=1.0, v_reset=0.0).s
b = lif(linear(a, w2[4, 5]), decay=0.5, threshold=1.0, v_reset=0.0).s
return sum.dim_IntList(b, [0])
"""


def exact(text: str, T: int = 4, batch: int = 2) -> SpikingGraph:
    graph = parse(text.replace("x[T,", f"x[{T},"), batch=batch)
    generator = torch.Generator().manual_seed(3)
    for tensor in graph.tensors().values():
        if tensor.dim():
            tensor.copy_(torch.randint(-6, 10, tensor.shape, generator=generator) / 8)
    return graph


def inputs(graph: SpikingGraph, batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 5, x.shape, generator=generator).double() / 4 for x in graph.example_inputs(batch)]


def named(model: onnx.ModelProto, feeds: list[Tensor], engine: str) -> dict[str, Array]:
    return dict(zip((o.name for o in model.graph.output), run(model, feeds, engine), strict=True))


def forced_feeds(model: onnx.ModelProto, lowered: Lowered, spikes: dict[str, Tensor]) -> list[Tensor]:
    by_name = {forced_name(layer): spikes[layer.name].reshape(-1, *layer.shape) for layer in lowered.layers}
    return [by_name[value.name] for value in model.graph.input[len(lowered.inputs) :]]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("T", [1, 4, 5])
@pytest.mark.parametrize(("batch", "run_at"), [(1, 1), (3, 3), ("dynamic", 2)])
def test_tap_shows_what_the_model_computes(engine: str, T: int, batch: Any, run_at: int) -> None:
    graph = exact(TWO_LAYERS, T, 2)
    lowered = lower(graph, batch=batch)
    model = tap(lowered.model, lowered.layers)
    onnx.checker.check_model(model, full_check=True)
    x = inputs(graph, run_at)
    (wanted,), spikes = run_with_spikes(graph, x)
    found = named(model, x, engine)
    assert next(iter(found)) == "output"
    assert np.array_equal(found["output"], wanted.numpy())
    assert len(found) == 1 + 2 * 2
    for layer in lowered.layers:
        s = spikes[layer.name]
        assert 0 < float(s.mean()) < 1
        assert np.array_equal(found[layer.spikes], s.reshape(-1, *layer.shape).numpy())
        h = found[membrane_name(layer)]
        assert h.shape == (T * run_at, *layer.shape)
        assert np.array_equal(h.reshape(s.shape) >= 1, s.bool().numpy())


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("T", [1, 4, 5])
@pytest.mark.parametrize(("batch", "run_at"), [(1, 1), (3, 3), ("dynamic", 2)])
def test_a_cut_layer_answers_to_the_spikes_it_is_given(engine: str, T: int, batch: Any, run_at: int) -> None:
    graph = exact(TWO_LAYERS, T, 2)
    lowered = lower(graph, batch=batch)
    model = cut_at_spikes(lowered.model, lowered.layers)
    onnx.checker.check_model(model, full_check=True)
    x, other = inputs(graph, run_at), inputs(graph, run_at, seed=2)
    _, spikes = run_with_spikes(graph, x)
    (wanted,), elsewhere = run_with_spikes(graph, other)
    assert not torch.equal(spikes["lif_1"], elsewhere["lif_1"])
    found = named(model, [*x, *forced_feeds(model, lowered, elsewhere)], engine)
    first, second = lowered.layers
    assert np.array_equal(found[first.spikes], spikes["lif"].reshape(-1, 5).numpy())  # of its own input
    assert np.array_equal(found[second.spikes], elsewhere["lif_1"].reshape(-1, 4).numpy())  # of the spikes it was given
    assert np.array_equal(found["output"], wanted.numpy())


def test_the_models_stay_untouched() -> None:
    lowered = lower(exact(TWO_LAYERS), batch=2)
    before = lowered.model.SerializeToString()
    tap(lowered.model, lowered.layers)
    cut_at_spikes(lowered.model, lowered.layers)
    assert lowered.model.SerializeToString() == before


def test_static_shapes_stay_static() -> None:
    lowered = lower(exact(TWO_LAYERS), batch=3)
    model = cut_at_spikes(lowered.model, lowered.layers)
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in (*model.graph.input, *model.graph.output)]
    assert all(all(shape) for shape in shapes)
    assert shapes[1:3] == [[12, 5], [12, 4]]


@pytest.mark.parametrize("engine", ENGINES)
def test_spikes_that_are_an_output_and_feed_nothing_get_no_input(engine: str) -> None:
    graph = exact("x[T, N, 6] ->\ns = lif(linear(x, w[5, 6]), decay=0.5, threshold=1.0, v_reset=0.0).s\nreturn s")
    lowered = lower(graph, batch=2)
    model = cut_at_spikes(lowered.model, lowered.layers)
    x = inputs(graph, 2)
    feeds = forced_feeds(model, lowered, {"lif": torch.zeros(4, 2, 5)})
    (wanted,), _ = run_with_spikes(graph, x)
    found = named(model, [*x, *feeds], engine)
    assert np.array_equal(found[lowered.layers[0].spikes].reshape(4, 2, 5), wanted.numpy())


@pytest.mark.parametrize("engine", ENGINES)
def test_spikes_that_are_an_output_and_feed_a_layer(engine: str) -> None:
    graph = exact(TWO_LAYERS.replace("return", "return a,"))
    lowered = lower(graph, batch=2)
    model = cut_at_spikes(lowered.model, lowered.layers)
    x = inputs(graph, 2)
    _, spikes = run_with_spikes(graph, x)
    _, elsewhere = run_with_spikes(graph, inputs(graph, 2, seed=1))
    found = named(model, [*x, *forced_feeds(model, lowered, elsewhere)], engine)
    first, second = lowered.layers
    assert np.array_equal(found[first.spikes], spikes["lif"].reshape(-1, 5).numpy())
    assert np.array_equal(found[second.spikes], elsewhere["lif_1"].reshape(-1, 4).numpy())


RECURRENT = """x[3, N, 4] ->
x0 = select(x, 0, 0)
x1 = select(x, 0, 1)
x2 = select(x, 0, 2)
n0 = lif_step(x0, decay=0.5, threshold=1.0, OPTIONS)
n1 = lif_step(x1 + linear(n0.s, u[4, 4]), v=n0.v, decay=0.5, threshold=1.0, OPTIONS)
n2 = lif_step(x2 + linear(n1.s, u[4, 4]), v=n1.v, decay=0.5, threshold=1.0, OPTIONS)
return n2.s
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("options", ["v_reset=0.0", 'reset="soft"', 'reset="soft", delay="with"'])
def test_a_chain_of_steps_is_cut_between_its_steps_but_keeps_its_own_reset(engine: str, options: str) -> None:
    graph = exact(RECURRENT.replace("OPTIONS", options))
    for node in graph.nodes:
        if "lif_step" in str(node.target):
            node.meta["neuron"] = "cell"
    lowered = lower(graph, batch=2)
    (layer,) = lowered.layers
    x = inputs(graph, 2)
    spikes = run_with_spikes(graph, x)[1]["cell"]
    forced = 1 - spikes
    tapped = named(tap(lowered.model, lowered.layers), x, engine)
    assert np.array_equal(tapped[layer.spikes], spikes.reshape(-1, 4).numpy())
    model = cut_at_spikes(lowered.model, lowered.layers)
    found = named(model, [*x, *forced_feeds(model, lowered, {"cell": forced})], engine)
    (u,) = (t for t in graph.tensors().values() if t.dim() == 2)
    v, decided = torch.zeros(2, 4).double(), torch.zeros(2, 4).double()
    for t in range(3):
        current = x[0][t] + (forced[t - 1] @ u.T if t else 0)
        h = 0.5 * v + current - (decided if "delay" in options else 0)
        decided = (h >= 1).double()
        v = h if "delay" in options else torch.where(decided > 0, h - 1 if "soft" in options else 0.0, h)
        assert np.array_equal(found[membrane_name(layer)].reshape(3, 2, 4)[t], h.numpy())
        assert np.array_equal(found[layer.spikes].reshape(3, 2, 4)[t], decided.numpy())


def test_thresholds_are_found() -> None:
    lowered = lower(exact(TWO_LAYERS.replace("threshold=1.0", "threshold=0.75", 1)), batch=2)
    constants = {value.name: onnx.numpy_helper.to_array(value) for value in lowered.model.graph.initializer}
    names = [threshold_name(lowered.model, layer) for layer in lowered.layers]
    assert [float(constants[name]) for name in names if name is not None] == [0.75, 1.0]


def test_outputs_are_added_once() -> None:
    lowered = lower(exact(TWO_LAYERS), batch=2)
    name = lowered.layers[0].spikes
    add_outputs(lowered.model, [name, name])
    add_outputs(lowered.model, [name])
    assert [value.name for value in lowered.model.graph.output] == ["output", name]
    onnx.checker.check_model(lowered.model, full_check=True)


def test_readers_in_nested_graphs_are_cut_too() -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["s"], ["minus"])],
        "then",
        [],
        [helper.make_tensor_value_info("minus", TensorProto.FLOAT, [2, 3])],
    )
    through = helper.make_graph(
        [helper.make_node("Identity", ["s"], ["same"])],
        "else",
        [],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, [2, 3])],
    )
    value = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Relu", ["x"], ["h"]),
                helper.make_node("Ceil", ["h"], ["s"]),
                helper.make_node("If", ["choose"], ["y"], then_branch=branch, else_branch=through),
            ],
            "nested",
            [value("x", TensorProto.FLOAT, [2, 3]), value("choose", TensorProto.BOOL, [])],
            [value("y", TensorProto.FLOAT, [2, 3])],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=9,
    )
    model = cut_at_spikes(model, [NeuronLayer("n", 3, (3,), "s", ("h",))])
    forced = torch.full((2, 3), 7.0)
    found = named(model, [torch.zeros(2, 3), torch.tensor(True), forced], "onnxruntime")
    assert np.array_equal(found["y"], -forced.numpy())
    assert not found["s"].any()


def test_refusals() -> None:
    lowered = lower(exact(TWO_LAYERS), batch=2)
    with pytest.raises(LoweringError, match="'ghost': the model holds no tensor 'nothing'"):
        tap(lowered.model, [NeuronLayer("ghost", 1, (1,), "nothing", ("x",))])
    with pytest.raises(LoweringError, match="no node's output"):
        cut_at_spikes(lowered.model, [NeuronLayer("input", 6, (6,), "x", ("x",))])
    first = lowered.layers[0]
    once = cut_at_spikes(lowered.model, [first])
    with pytest.raises(LoweringError, match="already"):
        cut_at_spikes(once, [first])
