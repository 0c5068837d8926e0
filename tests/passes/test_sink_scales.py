"""sink_scales: each rewrite happens, equals the original in float64, and is refused where its condition fails."""

from __future__ import annotations

import pytest
import torch

import snngraph
from snngraph.graph import SpikingGraph, operand, shape_of
from snngraph.neurons import LIF
from snngraph.passes.base import PassResult
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.fold_attention import FoldAttention
from snngraph.passes.sink_scales import SinkScales
from snngraph.testing import assert_equivalent, assert_graph, parse

GATE_T = "a = sigmoid(reshape(mean(x, [2, 3, 4]), [3, -1, 1, 1, 1]))"
GATE_C = "b = sigmoid(reshape(mean(x, [0, 3, 4]), [1, -1, 4, 1, 1]))"
GATE_TC = "a = sigmoid(mean(x, [3, 4], True))"
SIGNED_T = "a = reshape(mean(x, [2, 3, 4]), [3, -1, 1, 1, 1])"


def _run(body: str, batch: int = 2) -> tuple[SpikingGraph, PassResult]:
    before = parse(f"x[3, N, 4, 6, 6] ->\n{body}\n", batch=batch)
    result = SinkScales()(before)
    assert_equivalent(before, result.graph, tolerance=1e-13)
    assert not SinkScales()(Canonicalize()(result.graph).graph).changed, "a second run finds nothing"
    return before, result


def _refusals(result: PassResult) -> str:
    return " | ".join(n.text for n in result.notes if n.kind == "refused")


def _full_size(graph: SpikingGraph, target: str) -> int:
    """How many multiplications, or other operators, of the size of the input there are."""
    return sum(str(n.target) == target and shape_of(n)[-2:] == (6, 6) and len(shape_of(n)) >= 4 for n in graph.nodes)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("reduction", ["mean", "amax", "sum.dim_IntList"])
@pytest.mark.parametrize("keep", ["", ", True"])
def test_a_reduction_comes_before_the_scale(reduction: str, keep: str, batch: int) -> None:
    _, result = _run(f"{GATE_TC}\ny = {reduction}(x * a, [3, 4]{keep})\nreturn y", batch)
    assert result.changed
    assert _full_size(result.graph, "aten.mul.Tensor") == 0


@pytest.mark.parametrize("reduction", ["mean", "amax"])
def test_a_reduction_is_split_where_the_scale_varies(reduction: str) -> None:
    """MA-SNN's channel attention after its temporal attention: pool over H and W, then scale, then reduce over T."""
    _, result = _run(f"{GATE_T}\ny = {reduction}(a * x, [0, 3, 4])\nreturn y")
    assert _full_size(result.graph, "aten.mul.Tensor") == 0
    assert "after the reduction over [3, 4]" in str(result.notes[0])


def test_the_whole_statistics_of_a_chain() -> None:
    """Channel statistics of a tensor scaled over time, spatial statistics of one scaled over time and channels."""
    before, result = _run(
        f"{GATE_T}\ny = a * x\nb = sigmoid(reshape(mean(y, [0, 3, 4]) + amax(y, [0, 3, 4]), [1, -1, 4, 1, 1]))\nz = b * y\n"
        "return mean(z, [0, 2]), amax(z, [0, 2])"
    )
    assert (_full_size(before, "aten.mul.Tensor"), _full_size(result.graph, "aten.mul.Tensor")) == (2, 3)
    full = [n for n in result.graph.nodes if str(n.target) == "aten.mul.Tensor" and shape_of(n) == (3, 2, 4, 6, 6)]
    assert len(full) == 1, "the product that a maximum over channels and time needs, made once"


def test_a_mean_alone_needs_no_product_at_all_when_the_scale_is_constant_over_time() -> None:
    _, result = _run(f"{GATE_C}\ny = b * x\nreturn mean(y, [0, 2]), amax(y, [0, 2])")
    assert not [n for n in result.graph.nodes if str(n.target) == "aten.mul.Tensor" and shape_of(n)[0] == 3]


def test_reductions_of_one_tensor_share_their_part() -> None:
    _, result = _run("return mean(x, [3, 4]), mean(x, [2, 3, 4]), amax(x, [0, 2, 3, 4]), amax(x, [3, 4], True), mean(x, [0])")
    statistics = ("aten.mean.dim", "aten.amax.default")
    of_x = [n for n in result.graph.nodes if str(n.target) in statistics and operand(n).op == "placeholder"]
    assert len(of_x) == 3


def test_a_maximum_needs_a_scale_that_is_not_negative() -> None:
    _, result = _run(f"{SIGNED_T}\nreturn amax(a * x, [0, 3, 4]), mean(a * x, [0, 3, 4])")
    assert "may be negative, so it can not leave a maximum" in _refusals(result)
    assert _full_size(result.graph, "aten.mul.Tensor") >= 1  # for the maximum; the mean does without


@pytest.mark.parametrize(
    "pool", ["max_pool2d(y, 2)", "avg_pool2d(y, [2, 2], [2, 2])", "max_pool2d(relu(y), 2)", "_adaptive_avg_pool2d(y, [3, 3])"]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_pooling_comes_before_the_gate(pool: str, batch: int) -> None:
    """TCJA: a gate per step and channel on a time-major tensor, pooled after time is merged."""
    _, result = _run(f"{GATE_TC}\ns = lif(x, threshold=0.7)\ny = flatten_time(s.s * a)\nreturn {pool}", batch)
    assert result.changed
    assert _full_size(result.graph, "aten.mul.Tensor") == 0


def test_pooling_keeps_a_gate_that_varies_in_the_window() -> None:
    _, result = _run("a = sigmoid(mean(x, [0, 2], True))\ny = flatten_time(x * a)\nreturn max_pool2d(y, 2)")
    assert not result.changed
    assert "varies in the pooling's window" in _refusals(result) or "spread" in _refusals(result) or not _refusals(result)


def test_max_pooling_needs_a_gate_that_is_not_negative() -> None:
    _, result = _run("a = mean(x, [3, 4], True)\ny = flatten_time(x * a)\nreturn max_pool2d(y, 2), avg_pool2d(y, [2, 2], [2, 2])")
    assert "can not leave a maximum" in _refusals(result)
    assert any("after the pooling" in n.text for n in result.notes)


def test_relu_keeps_a_scale_of_unknown_sign() -> None:
    _, result = _run("a = mean(x, [3, 4], True)\nreturn avg_pool2d(relu(flatten_time(x * a)), [2, 2], [2, 2])")
    assert not result.changed


def test_a_relu_of_what_is_not_negative_goes() -> None:
    _, result = _run("s = lif(x, threshold=0.5)\nreturn relu(s.s * sigmoid(x))")
    assert "relu" not in result.graph.format()
    _, result = _run("return relu(x * sigmoid(x))")
    assert not result.changed


LAYER = "c = conv2d(flatten_time(y), w[5, 4, 3, 3], {bias}, padding=1)\ns = lif(split_time(c), {neuron})\nreturn s.s"


@pytest.mark.parametrize("bias", ["None", "b[5]"])
@pytest.mark.parametrize("neuron", ["threshold=0.3", "threshold=0.3, bias=0.1, input_gain=0.5", "threshold=0.3, gain=g[5, 1, 1]"])
def test_a_gate_per_step_follows_the_convolution(bias: str, neuron: str) -> None:
    _, result = _run(f"{GATE_T}\ny = a * x\n{LAYER.format(bias=bias, neuron=neuron)}")
    assert any("after the layer" in n.text for n in result.notes)
    (conv,) = (n for n in result.graph.nodes if "convolution" in str(n.target))
    assert conv.args[2] is None, "the bias is not scaled"
    assert "sigmoid" not in str(conv.args[0])


def test_a_gate_per_step_follows_a_linear_layer() -> None:
    _, result = _run(
        f"{GATE_T}\ny = reshape(a * x, [3, -1, 144])\ns = lif(linear(y, w[5, 144], b[5]), threshold=0.3)\nreturn s.s"
    )
    assert any("after the layer" in n.text for n in result.notes)


@pytest.mark.parametrize(
    ("gate", "end", "reason"),
    [
        (GATE_TC, LAYER.format(bias="None", neuron="threshold=0.3"), "varies over the layer's inputs"),
        (GATE_T, "return conv2d(flatten_time(y), w[5, 4, 3, 3], None, padding=1)", "no neuron takes its output alone"),
        (GATE_T, LAYER.format(bias="b[5]", neuron="threshold=0.3, syn_decay=0.5"), "can not go to the neuron"),
        (GATE_T, LAYER.format(bias="b[5]", neuron="threshold=0.3, gain=g[3, 1, 1, 1, 1]"), "can not go to the neuron"),
    ],
)
def test_a_gate_stays_before_the_layer(gate: str, end: str, reason: str) -> None:
    _, result = _run(f"{gate}\ny = a * x\n{end}")
    assert not result.changed
    assert reason in _refusals(result)


def test_a_constant_goes_into_the_weights() -> None:
    _, result = _run("c = conv2d(flatten_time(x), w[5, 4, 3, 3], b[5]) * 0.3\nreturn mean(c, [2, 3])")
    assert result.changed
    assert_graph(
        result.graph,
        "x[3, N, 4, 6, 6] ->\nc = conv2d(flatten_time(x), w[5, 4, 3, 3], b[5])\nreturn mean(c, [2, 3])",
    )


def test_a_constant_before_a_neuron_is_left_to_it() -> None:
    _, result = _run("c = conv2d(flatten_time(x), w[5, 4, 3, 3], b[5]) * 0.3\ns = lif(split_time(c), threshold=0.4)\nreturn s.s")
    assert not result.changed


def test_a_statistic_that_is_used_elsewhere_keeps_its_tensor() -> None:
    """A product that is an output is made anyway; the statistic may still come from the smaller side."""
    _, result = _run(f"{GATE_T}\ny = a * x\nreturn y, mean(y, [0, 3, 4])")
    assert _full_size(result.graph, "aten.mul.Tensor") == 1


@pytest.mark.parametrize(
    "body",
    [
        "return mean(gt.Scalar(x, 0.0) / 2.0, [3, 4])",
        "s = lif(gt.Scalar(x, 0.0) / 2.0 * 1.5, threshold=0.3)\nreturn s.s",
    ],
)
def test_a_count_over_a_number_is_no_scaled_tensor(body: str) -> None:
    """Its operand is an integer, which no fold can take the place of."""
    before = parse(f"x[3, N, 4, 6, 6] ->\n{body}\n")
    for step in (SinkScales(), FoldAttention()):
        assert_equivalent(before, step(before).graph)


def test_a_gate_before_a_layer_with_bias_and_a_flattening_view() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = torch.nn.Conv2d(4, 5, 3), LIF(threshold=0.3), LIF(threshold=0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            gate = y.mean((2, 3, 4), keepdim=True).sigmoid()
            z: torch.Tensor = self.second(self.conv((y * gate).flatten(0, 1)).reshape(3, 2, -1))
            return z

    torch.manual_seed(0)
    graph = snngraph.trace(Net().eval(), torch.rand(3, 2, 4, 6, 6))
    assert_equivalent(graph, snngraph.optimize(graph))


def test_a_bias_that_becomes_one_number_per_step_stays() -> None:
    """A convolution whose channels are the steps: its bias differs from step to step, so no neuron can take it."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.lif = torch.nn.Conv1d(4, 4, 3, padding=1), LIF(threshold=0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate = x.mean((1, 2), keepdim=True).sigmoid()
            z: torch.Tensor = self.lif(self.conv(x * gate).reshape(4, 1, 7))
            return z

    torch.manual_seed(0)
    graph = snngraph.trace(Net().eval(), torch.rand(1, 4, 7), time_dim=1)
    assert_equivalent(graph, snngraph.optimize(graph))


def test_many_scales_in_a_row_all_move() -> None:
    gates = "\n".join(f"y{k + 1} = y{k} * sigmoid(mean(y{k}, [3, 4], True))" for k in range(24))
    _, result = _run(f"y0 = x * 1.0\n{gates}\nreturn mean(y24, [3, 4])")
    assert _full_size(result.graph, "aten.mul.Tensor") <= 1
