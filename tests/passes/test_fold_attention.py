"""fold_attention: every row of the table of folds, that it happens, that it is refused, and that it is equal in float64."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from snngraph.graph import LIF, SpikingGraph, arguments, is_op, shape_of
from snngraph.passes.base import PassResult
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.fold_attention import LEAST_SCALE, FoldAttention
from snngraph.testing import assert_equivalent, assert_graph, parse, run_with_spikes
from tests.passes.random_graphs import NEURONS

PER_CHANNEL = "a = sigmoid(reshape(mean(x, [0, 3, 4]), [1, -1, 4, 1, 1]))"
PER_PIXEL = "b = sigmoid(reshape(mean(x, [0, 2]), [1, -1, 1, 6, 6]))"
PER_STEP = "t = sigmoid(reshape(mean(x, [2, 3, 4]), [5, -1, 1, 1, 1]))"
SIGNED = "a = reshape(mean(x, [0, 3, 4]), [1, -1, 4, 1, 1])"


def _run(body: str, batch: int = 2, steps: int = 5) -> tuple[SpikingGraph, PassResult]:
    before = parse(f"x[{steps}, N, 4, 6, 6] ->\n{body}\n", batch=batch)
    result = FoldAttention()(before)
    assert_equivalent(before, result.graph)
    again = FoldAttention()(Canonicalize()(result.graph).graph)
    assert not again.changed, "a second run finds nothing"
    return before, result


def _neuron(graph: SpikingGraph) -> dict[str, Any]:
    (node,) = (n for n in graph.nodes if is_op(n, LIF))
    return arguments(node)


def _refusals(result: PassResult) -> str:
    return " | ".join(n.text for n in result.notes if n.kind == "refused")


def test_the_graph_it_makes() -> None:
    _, result = _run(f"{PER_CHANNEL}\ns = lif(x * a, decay=0.5, threshold=1.0)\nreturn s.s")
    assert_graph(
        result.graph,
        """
        x[5, N, 4, 6, 6] ->
        a = sigmoid(reshape(mean(x, [0, 3, 4]), [1, -1, 4, 1, 1]))
        g = reshape(clamp(a, 7.888609052210118e-31), [-1, 4, 1, 1])
        s = lif(x, decay=0.5, threshold=div.Tensor(1.0, g), v=0.0, v_reset=0.0)
        return s.s
        """,
    )


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("neuron", [n for n in NEURONS if "syn_decay" not in n])
def test_a_scale_constant_over_time_divides_the_threshold(neuron: str, batch: int) -> None:
    """Hard, soft and delayed resets, floors, biases, counts: everything additive is divided."""
    _, result = _run(f"{PER_CHANNEL}\ns = lif(x * a, {neuron})\nreturn s.s, mean(s.s, [0])", batch)
    found = _neuron(result.graph)
    assert found["x"].op == "placeholder"
    assert found["gain"] is None
    assert "div" in str(found["threshold"])


def test_a_synapse_too() -> None:
    _, result = _run(
        f"{PER_CHANNEL}\ns = lif(x * a, decay=0.5, syn_decay=0.5, syn_gain=0.7, input_gain=0.9, threshold=0.3)\nreturn s.s"
    )
    found = _neuron(result.graph)
    assert found["x"].op == "placeholder"
    assert found["input_gain"] is not None, "behind the synapse it has other units"


def test_the_initial_state_is_divided() -> None:
    _, result = _run(f"{PER_CHANNEL}\ns = lif(x * a, decay=0.9, threshold=0.5, v=0.25, bias=0.1)\nreturn s.s")
    found = _neuron(result.graph)
    assert all("div" in str(found[k]) for k in ("v", "bias", "threshold"))


def test_several_factors_go_together() -> None:
    _, result = _run(f"{PER_CHANNEL}\n{PER_PIXEL}\ns = lif(b * (a * x), decay=0.3, threshold=0.3, v_reset=0.3)\nreturn s.s")
    found = _neuron(result.graph)
    assert found["gain"] is None
    assert found["x"].op == "placeholder"
    assert sum(n.target is torch.ops.aten.clamp.default for n in result.graph.nodes) == 1, "the product is clamped, once"


def test_mixed_factors_go_apart() -> None:
    """A factor over time to the gain, the others to the threshold."""
    _, result = _run(f"{PER_STEP}\n{PER_CHANNEL}\n{PER_PIXEL}\ns = lif(b * (a * (t * x)), threshold=0.3)\nreturn s.s")
    found = _neuron(result.graph)
    assert shape_of(found["gain"]) == (5, 2, 1, 1, 1)
    assert "div" in str(found["threshold"])
    assert found["x"].op == "placeholder"


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_scale_over_time_is_the_gain(neuron: str) -> None:
    _, result = _run(f"{PER_STEP}\ns = lif(x * t, {neuron})\nreturn s.s, s.v")
    assert shape_of(_neuron(result.graph)["gain"]) == (5, 2, 1, 1, 1)


@pytest.mark.parametrize("expression", ["relu(x * a)", "reshape(reshape(x * a, [-1, 4, 6, 6]), [5, -1, 4, 6, 6])"])
def test_relu_and_views_stand_between(expression: str) -> None:
    _, result = _run(f"{PER_CHANNEL}\ns = lif({expression}, threshold=0.3)\nreturn s.s")
    assert "div" in str(_neuron(result.graph)["threshold"])


def test_a_scale_is_taken_through_merged_time() -> None:
    """A gate applied on ``[T*N, ...]``, as code with containers does."""
    gate = "g = sigmoid(mean(flatten_time(x), [2, 3], True))"
    _, result = _run(f"{gate}\ns = lif(split_time(flatten_time(x) * g), threshold=0.3)\nreturn s.s")
    assert shape_of(_neuron(result.graph)["gain"]) == (5, 2, 4, 1, 1)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_permutation_stands_between(batch: int) -> None:
    gate = "g = sigmoid(reshape(mean(x, [0, 3, 4]), [-1, 1, 4, 1, 1]))"
    _, result = _run(
        f"{gate}\ny = permute(permute(x, [1, 0, 2, 3, 4]) * g, [1, 0, 2, 3, 4])\ns = lif(y, threshold=0.3)\nreturn s.s", batch
    )
    assert "div" in str(_neuron(result.graph)["threshold"])


def test_a_scale_of_unknown_sign_is_the_gain() -> None:
    _, result = _run(f"{SIGNED}\ns = lif(x * a, threshold=0.2)\nreturn s.s")
    assert _neuron(result.graph)["gain"] is not None
    assert "div" not in str(_neuron(result.graph)["threshold"])


def test_a_scale_of_unknown_sign_does_not_pass_a_relu() -> None:
    _, result = _run(f"{SIGNED}\ns = lif(relu(x * a), threshold=0.2)\nreturn s.s")
    assert not result.changed
    assert "may be negative, so it can not pass relu" in _refusals(result)


def test_a_gate_of_zero_never_spikes() -> None:
    """``sigmoid`` reaches 0: the threshold is divided by 2^-100 instead, and stays finite in float32."""
    before, result = _run(
        "a = sigmoid(reshape(mean(x, [0, 3, 4]), [1, -1, 4, 1, 1]) * 1e6)\ns = lif(x * a, threshold=0.01)\nreturn s.s"
    )
    graph = result.graph
    x = torch.randn(5, 2, 4, 6, 6, dtype=torch.float64)
    x[:, 0] = -x[:, 0].abs()  # its gates are all zero
    _, spikes = run_with_spikes(graph, [x])
    _, wanted = run_with_spikes(before, [x])
    (layer,) = spikes.values()
    assert not layer[:, 0].any()
    assert layer[:, 1].any()
    assert all(torch.equal(spikes[k], wanted[k]) for k in wanted)
    assert torch.tensor(0.01 / LEAST_SCALE, dtype=torch.float32).isfinite()


@pytest.mark.parametrize("output", ["s.v", "s.i"])
def test_an_observed_state_keeps_its_units(output: str) -> None:
    _, result = _run(f"{PER_CHANNEL}\ns = lif(x * a, decay=0.5, syn_decay=0.5, threshold=0.3)\nreturn s.s, {output}")
    assert "its membrane potential or current is read" in " ".join(n.text for n in result.notes)
    assert _neuron(result.graph)["gain"] is not None


def test_an_observed_membrane_leaves_the_constant_gain() -> None:
    _, result = _run("s = lif(x, decay=0.5, input_gain=0.5, threshold=0.3, with_h=True)\nreturn s.s, s.h")
    assert not result.changed


@pytest.mark.parametrize("threshold", ["0.0", "th[4, 1, 1]", "reshape(mean(x, [0, 3, 4]), [-1, 4, 1, 1])"])
def test_a_threshold_that_may_be_zero_is_not_divided(threshold: str) -> None:
    _, result = _run(f"{PER_CHANNEL}\ns = lif(x * a, threshold={threshold}, fire='>')\nreturn s.s")
    assert "its threshold is not proved to be positive" in " ".join(n.text for n in result.notes)
    assert _neuron(result.graph)["gain"] is not None


def test_a_residual_keeps_its_multiplication() -> None:
    _, result = _run(f"{PER_CHANNEL}\ns = lif(relu(x * a) + x, threshold=0.5)\nreturn s.s")
    assert not result.changed
    assert "added to a residual: it stays a multiplication" in _refusals(result)


def test_a_batch_norm_stands_between() -> None:
    norm = "n = split_time(batch_norm(flatten_time(x * a), g[4], e[4], m[4], v[4]))"
    _, result = _run(f"{PER_CHANNEL}\n{norm}\ns = lif(n, threshold=0.5)\nreturn s.s")
    assert not result.changed
    assert "stands between the scale and the neuron" in _refusals(result)


def test_a_product_that_others_read_is_made_anyway() -> None:
    _, result = _run(f"{PER_CHANNEL}\ny = x * a\ns = lif(y, threshold=0.5)\nreturn s.s, mean(y, [0])")
    assert not result.changed
    assert "stays a product, which 2 operators read" in _refusals(result)


def test_a_gain_as_large_as_the_input_is_refused() -> None:
    _, result = _run(
        "t = mean(x, [3, 4], True)\np = mean(x, [2], True)\ns = lif(x * t * p, threshold=0.5)\nreturn s.s",
    )
    assert not result.changed
    assert "a gain as large as the input itself" in _refusals(result)


@pytest.mark.parametrize("gain", [0.5, 0.25, 0.3])
def test_the_neurons_own_gain_divides_its_threshold(gain: float) -> None:
    _, result = _run(f"s = lif(x, decay=0.5, input_gain={gain}, threshold=1.0, v_reset=-0.25, bias=0.125)\nreturn s.s")
    text = Canonicalize()(result.graph).graph.format()
    assert "input_gain" not in text
    assert f"threshold={1.0 / gain}" in text
    assert f"v_reset={-0.25 / gain}" in text


def test_one_step_keeps_its_multiplication_as_gain() -> None:
    """Over one step a division of the threshold would cost as much."""
    gate = "a = sigmoid(reshape(mean(x, [0, 3, 4]), [1, -1, 4, 1, 1]))"
    _, result = _run(f"{gate}\ns = lif(x * a, threshold=0.3)\nreturn s.s", steps=1)
    assert _neuron(result.graph)["gain"] is not None


def test_a_constant_scale_is_folded_for_good() -> None:
    """DSSA's scales: constants after a matrix product, one per head."""
    before = parse(
        "x[5, N, 4, 6, 6] ->\ns = lif(x * clamp(w[4, 1, 1], 0.01, 1.0) * 0.125, decay=0.5, threshold=0.01)\nreturn s.s\n"
    )
    folded = Canonicalize()(FoldAttention()(before).graph).graph
    assert_equivalent(before, folded)
    assert "mul" not in folded.format()


def test_stepped_neurons_take_a_gain() -> None:
    graph = parse(
        "x[1, N, 4] ->\ng = reshape(sigmoid(mean(x, [0, 2])), [-1, 1])\ny = select(x, 0, 0) * g\n"
        "s = lif_step(y, threshold=0.3)\nreturn s.s\n"
    )
    result = FoldAttention()(graph)
    assert_equivalent(graph, result.graph)
    assert result.changed
    assert "gain" in result.graph.format()


def test_every_combination_of_factors_and_neurons() -> None:
    factors = {"a": PER_CHANNEL, "b": PER_PIXEL, "t": PER_STEP}
    for r, neuron in itertools.product(range(1, 4), (NEURONS[0], NEURONS[3], NEURONS[4])):
        for chosen in itertools.permutations(factors, r):
            product = "x"
            for name in chosen:
                product = f"({name} * {product})"
            _run("\n".join([*(factors[c] for c in chosen), f"s = lif(relu({product}), {neuron})", "return s.s"]))


def test_an_infinite_constant_is_no_scale() -> None:
    before = parse("x[3, N, 4] ->\ns = lif(relu(x) * g[4], threshold=0.5)\nreturn s.s\n")
    (constant,) = (n for n in before.nodes if n.op == "get_attr" and "g" in str(n.target))
    value = before.constant(constant)
    assert value is not None
    value[0] = float("inf")
    assert not FoldAttention()(before).changed
