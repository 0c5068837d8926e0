"""The model as a file: names, types, metadata; and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from snngraph.errors import GraphError, LoweringError, UnsupportedOperatorError
from snngraph.graph import SpikingGraph
from snngraph.lowering import OPSET, lower
from snngraph.testing import parse, random_inputs
from tests.lowering.engines import ENGINES, outputs, run

TWO_LAYERS = """x[4, N, 6] ->
a = lif(x, decay=0.5, threshold=0.4)
b = lif(split_time(linear(flatten_time(a), w[5, 6])), decay=0.5, threshold=0.2)
return b, mean(b, 0)"""


def renamed(graph: SpikingGraph, **names: str) -> SpikingGraph:
    for node in graph.nodes:
        if node.name in names:
            node.meta["neuron"] = names[node.name]
    return graph


def test_metadata() -> None:
    model = lower(parse(TWO_LAYERS), batch=2).model
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)] == [("", 20)]
    assert {n.domain for n in model.graph.node} == {""}
    assert model.producer_name == "snngraph"
    assert model.ir_version <= 10
    assert not any(n.doc_string for n in model.graph.node)
    assert [i.name for i in model.graph.input] == ["x"]
    assert [o.name for o in model.graph.output] == ["output", "output_1"]
    onnx.checker.check_model(model, full_check=True)


def test_deterministic() -> None:
    first, second = (lower(parse(TWO_LAYERS), batch=2).model.SerializeToString() for _ in range(2))
    assert first == second


def test_only_float32() -> None:
    model = lower(parse(TWO_LAYERS), batch=2).model
    assert {t.data_type for t in model.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    used = {name for n in model.graph.node for name in n.input}
    assert {t.name for t in model.graph.initializer} <= used


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("steps", [1, 4])
def test_neuron_layers_are_where_they_say(steps: int, engine: str) -> None:
    graph = renamed(parse(TWO_LAYERS.replace("x[4,", f"x[{steps},")), a="net.layers.0#2", b="head")
    lowered = lower(graph, batch=2)
    assert [layer.name for layer in lowered.layers] == ["net.layers.0#2", "head"]
    assert lowered.layers[0].spikes == "net.layers.0#2.spikes"
    assert lowered.layers[0].membrane == tuple(f"net.layers.0#2.membrane.{t}" for t in range(steps))
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    names = [name for layer in lowered.layers for name in (layer.spikes, *layer.membrane)]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names)
    inputs = random_inputs(graph)
    found = dict(zip(names, run(model, inputs, engine)[2:], strict=True))
    x = inputs[0].float().numpy()
    for t in range(steps):
        assert found[f"net.layers.0#2.membrane.{t}"].shape == (2, 6)
    np.testing.assert_array_equal(found["net.layers.0#2.membrane.0"], x[0])
    fired = np.concatenate([found[f"net.layers.0#2.membrane.{t}"] >= 0.4 for t in range(steps)])
    np.testing.assert_array_equal(found["net.layers.0#2.spikes"], fired)
    np.testing.assert_array_equal(found["head.spikes"].reshape(steps, 2, 5), outputs(graph, inputs)[0])


@pytest.mark.parametrize("stacked", [True, False])
def test_spikes_of_a_chain(stacked: bool) -> None:
    """The tensor of all steps is there whether the graph joins the steps or not."""
    end = "stack([s0, s1, s2])" if stacked else "s0 + s1 * 2 + s2 * 4"
    text = "\n".join(
        [
            "x[3, N, 6] ->",
            "s0 = lif_step(select(x, 0, 0), decay=0.5, threshold=0.3)",
            "s1 = lif_step(select(x, 0, 1), v=s0.v, decay=0.5, threshold=0.3)",
            "s2 = lif_step(select(x, 0, 2), v=s1.v, decay=0.5, threshold=0.3)",
            f"return {end}",
        ]
    )
    graph = renamed(parse(text), s0="cell", s1="cell", s2="cell")
    lowered = lower(graph, batch=2)
    (layer,) = lowered.layers
    assert len(layer.membrane) == 3
    model = onnx.ModelProto()
    model.CopyFrom(lowered.model)
    model.graph.output.append(onnx.helper.make_tensor_value_info(layer.spikes, onnx.TensorProto.FLOAT, None))
    inputs = random_inputs(graph)
    result, spikes = run(model, inputs, "onnxruntime")
    steps = spikes.reshape(3, 2, 6)
    np.testing.assert_array_equal(result, steps if stacked else steps[0] + 2 * steps[1] + 4 * steps[2])


@pytest.mark.parametrize("engine", ENGINES)
def test_inputs_and_constants_may_be_outputs(engine: str) -> None:
    graph = parse("x[2, N, 3] ->\ns = lif(x, decay=0.5)\nreturn s.s, s.s, x, w[3], s.v")
    inputs = random_inputs(graph)
    for a, b in zip(run(lower(graph, batch=2), inputs, engine), outputs(graph.to(torch.float32), inputs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_free_batch_is_named() -> None:
    lowered = lower(parse(TWO_LAYERS), batch="dynamic")
    assert lowered.inputs[0].shape == (4, None, 6)
    assert [s.shape for s in lowered.outputs] == [(4, None, 5), (None, 5)]
    dims = [
        d.dim_param
        for value in (*lowered.model.graph.input, *lowered.model.graph.output)
        for d in value.type.tensor_type.shape.dim
    ]
    assert set(dims) == {"", "N"}


def test_a_fixed_batch_can_not_be_free() -> None:
    graph = parse(TWO_LAYERS)
    graph.facts = replace(graph.facts, free_batch=False, notes=("the batch size is fixed at 2: it is written down",))
    with pytest.raises(LoweringError, match="at batch 2 only: the batch size is fixed at 2: it is written down"):
        lower(graph, batch="dynamic")
    with pytest.raises(GraphError, match="at batch 2 only"):
        lower(graph, batch=3)
    assert lower(graph, batch=2).inputs[0].shape == (4, 2, 6)


def test_all_unsupported_operators_in_one_message() -> None:
    text = "x[2, N, 4, 4] ->\na = linalg_det(x)\nb = relu(unsqueeze(a, 2)) * 2\nc = erfinv(b)\n"
    graph = parse(text + "return max_pool2d_with_indices(x, [2, 2])[1], c")
    for node in graph.nodes:
        if "erfinv" in node.name or node.name == "c":
            node.meta.update(module_path="net.head", source="/home/me/model.py:42")
    with pytest.raises(UnsupportedOperatorError) as caught:
        lower(graph, batch=2)
    message = str(caught.value)
    assert "in module 'net.head' /home/me/model.py:42" in message
    assert "aten.erfinv.default is not known" in message
    assert "positions of the maxima" in message
    assert "linalg_det" in message


def test_numbers_beyond_float32() -> None:
    graph = parse("x[2, N, 4] ->\nreturn x * w[4]")
    graph.tensors()["w"].fill_(1e300)
    with pytest.raises(LoweringError, match=r"w: 1e\+300 is too large for float32"):
        lower(graph, batch=2)
    with pytest.raises(LoweringError, match=r"threshold: 1e\+39 is too large for float32"):
        _big_threshold()


def _big_threshold() -> None:
    graph = parse("x[2, N, 4] ->\nreturn lif(x, decay=0.5, threshold=threshold[4])")
    graph.tensors()["threshold"].fill_(1e39)
    lower(graph, batch=2)


def test_infinity_stays() -> None:
    graph = parse("x[2, N, 4] ->\nreturn where.ScalarOther(gt.Scalar(x, 0), x, -inf)")
    assert np.isneginf(run(lower(graph, batch=2), [-torch.ones(2, 2, 4)], "onnxruntime")[0]).all()


def test_rounded_once() -> None:
    """Batch norm's scale is computed in float64: 1/sqrt(v + eps) of rounded numbers would be another float32."""
    graph = parse("x[2, N, 3] ->\nreturn batch_norm(flatten_time(x), g[3], b[3], m[3], v[3], 1e-5)")
    tensors, model = graph.tensors(), lower(graph, batch=2).model
    scale = (tensors["g"] / torch.sqrt(tensors["v"] + 1e-5)).float().numpy()
    constants = [onnx.numpy_helper.to_array(t).ravel() for t in model.graph.initializer]
    assert any(c.dtype == np.float32 and c.shape == (3,) and (c == scale).all() for c in constants)
