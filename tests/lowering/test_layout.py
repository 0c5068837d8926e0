"""What the lowered model looks like: 4-D throughout, one Split and one Concat per neuron layer, nothing done twice."""

from __future__ import annotations

from typing import Literal

import onnx
import pytest
import torch

from snngraph.lowering import Lowered, lower
from snngraph.testing import parse, random_inputs
from tests.lowering.engines import ENGINES, assert_close, count, outputs, run

NETWORK = """x[4, N, 2, 8, 8] ->
c = conv2d(flatten_time(x), w1[6, 2, 3, 3], None, 1, 1)
a = lif(split_time(batch_norm(c, g[6], b[6], m[6], v[6])), decay=0.5, threshold=0.4)
d = conv2d(flatten_time(a), w2[6, 6, 3, 3], None, 1, 1)
e = lif(split_time(d) + a, decay=0.5, threshold=0.8)
p = max_pool2d(flatten_time(e), 2)
h = split_time(linear(view(p, [-1, 96]), w3[10, 96], b3[10]))
o = lif(h, decay=0.5, threshold=0.3)
return mean(o, 0)"""


Batch = int | Literal["dynamic"]


def ranks(lowered: Lowered) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(lowered.model, strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    return {v.name: len(v.type.tensor_type.shape.dim) for v in values}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3, "dynamic"])
def test_network(batch: Batch, engine: str) -> None:
    graph = parse(NETWORK)
    lowered = lower(graph, batch=batch)
    for size in (1, 3) if batch == "dynamic" else (batch,):
        inputs = random_inputs(graph, size)
        wanted = outputs(graph, inputs)
        assert_close(run(lowered, inputs, engine), wanted, 1e-6)
        assert 0.05 < float(wanted[0].mean()) < 0.8


@pytest.mark.parametrize("batch", [2, "dynamic"])
def test_four_dimensions_everywhere(batch: Batch) -> None:
    lowered = lower(parse(NETWORK), batch=batch)
    assert count(lowered, "Split") == count(lowered, "Concat") == 3
    assert count(lowered, "Transpose") == count(lowered, "Shape") == count(lowered, "Loop") == count(lowered, "Scan") == 0
    reshapes = [n for n in lowered.model.graph.node if n.op_type == "Reshape"]
    assert [(n.input[0], n.output[0]) for n in reshapes if n.input[0] == "x"] == [("x", reshapes[0].output[0])]
    assert len(reshapes) == 4  # the input to 4-D, the features to rows, the last spikes to [T, N, 10, 1], their mean to [N, 10]
    assert {name for name, rank in ranks(lowered).items() if rank == 5} == {"x"}


def test_one_step_needs_no_split() -> None:
    lowered = lower(parse(NETWORK.replace("x[4,", "x[1,")), batch=2)
    assert count(lowered, "Split") == count(lowered, "Concat") == 0


def test_inverse_views_cancel() -> None:
    views = "y = split_time(flatten_time(split_time(flatten_time(x))))"
    lowered = lower(
        parse(f"x[4, N, 3, 2, 2] ->\n{views}\nz = view(view(y, [4, -1, 12]), [4, -1, 3, 2, 2])\nreturn z * 2"), batch=2
    )
    assert [n.op_type for n in lowered.model.graph.node] == ["Mul"]


def test_a_view_nobody_reads_is_not_made() -> None:
    lowered = lower(parse("x[4, N, 8] ->\na = flatten_time(x)\nb = x * 2\nreturn b"), batch=2)
    assert [n.op_type for n in lowered.model.graph.node] == ["Mul"]


def test_five_dimensions_are_made_once_where_they_are_needed() -> None:
    text = "x[4, N, 3, 2, 2] ->\ns = lif(x, decay=0.5)\nreturn mean.dim(s, [0, 2]), amax(s, [0])"
    lowered = lower(parse(text), batch=2)
    made = [n for n in lowered.model.graph.node if n.op_type == "Reshape" and n.input[0] == "s.spikes"]
    assert len(made) == 1


def test_a_repeated_image_is_not_copied() -> None:
    """Every step of ``expand(image)`` is the image itself."""
    lowered = lower(parse("x[N, 8] ->\ny = expand(unsqueeze(x * 2, 0), [1, -1, -1])\nreturn y"), batch=2)
    assert count(lowered, "Expand") == 0
    graph = parse("x[4, N, 8], image[N, 8] ->\ny = expand(unsqueeze(image * 2, 0), [4, -1, -1])\nreturn lif(y, decay=0.5), y + x")
    lowered = lower(graph, batch=2)
    assert count(lowered, "Expand") == count(lowered, "Split") == 0
    inputs = random_inputs(graph)
    assert_close(run(lowered, inputs, "onnxruntime"), outputs(graph, inputs), 1e-6)


def test_stepped_layers_read_one_split() -> None:
    steps = [f"s{t} = lif_step(select(y, 0, {t}){f', v=s{t - 1}.v' if t else ''}, decay=0.5, threshold=0.3)" for t in range(4)]
    text = "x[4, N, 2, 4, 4] ->\ny = split_time(conv2d(flatten_time(x), w[3, 2, 3, 3], None, 1, 1))\n" + "\n".join(steps)
    lowered = lower(parse(text + "\nreturn conv2d(flatten_time(stack([s0, s1, s2, s3])), u[3, 3, 3, 3])"), batch=2)
    assert count(lowered, "Split") == count(lowered, "Concat") == 1
    assert count(lowered, "Reshape") == 1
    assert lowered.layers[0].spikes in {name for n in lowered.model.graph.node if n.op_type == "Conv" for name in n.input}


def test_equal_constants_and_equal_nodes_exist_once() -> None:
    text = "x[4, N, 2, 4, 4] ->\ny = flatten_time(x)\na = relu(y) * 0.5\nb = relu(y) * 0.5\nreturn a + w[2, 1, 1], b + w[2, 1, 1]"
    lowered = lower(parse(text), batch=2)
    assert count(lowered, "Relu") == count(lowered, "Mul") == 1
    names = [t.name for t in lowered.model.graph.initializer]
    assert len(names) == len({t.raw_data + bytes(t.dims) for t in lowered.model.graph.initializer})


def test_unused_steps_of_a_state_are_not_computed() -> None:
    lowered = lower(parse("x[3, N, 8] ->\nreturn lif(x, decay=0.5)"), batch=2)
    assert count(lowered, "Where") == 2  # no reset after the last step
    lowered = lower(parse("x[3, N, 8] ->\ns = lif(x, decay=0.5)\nreturn s.s, s.v"), batch=2)
    assert count(lowered, "Where") == 3


def test_gates_scale_the_merged_tensor() -> None:
    """A gate [T, N, C, 1, 1] multiplies [T*N, C, H, W] without five dimensions."""
    text = """x[4, N, 3, 6, 6], q[4, N, 3, 1, 1] ->
c = split_time(conv2d(flatten_time(x), w[3, 3, 3, 3], None, 1, 1))
return lif(c * sigmoid(q) * scale[3, 1, 1], decay=0.5, threshold=0.2)"""
    lowered = lower(parse(text), batch=2)
    assert {name for name, rank in ranks(lowered).items() if rank == 5} <= {"x", "q", "output"} | set(_sigmoid_outputs(lowered))


def _sigmoid_outputs(lowered: Lowered) -> list[str]:
    return [name for n in lowered.model.graph.node if n.op_type == "Sigmoid" for name in n.output]


def test_shapes_agree_with_the_graph() -> None:
    lowered = lower(parse(NETWORK), batch=3)
    assert [s.shape for s in lowered.inputs] == [(4, 3, 2, 8, 8)]
    assert [s.shape for s in lowered.outputs] == [(3, 10)]
    assert lowered.outputs[0].batch_dim == 0
    assert torch.Size(lowered.layers[0].shape).numel() == lowered.layers[0].neurons == 384
