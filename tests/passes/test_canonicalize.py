from __future__ import annotations

import pytest

from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.testing import assert_equivalent, assert_graph, parse


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("relu(clone(x))", "relu(x)"),
        ("relu(x * 1.0)", "relu(x)"),
        ("relu(x / 1.0)", "relu(x)"),
        ("relu(x - 0.0)", "relu(x)"),
        ("relu(permute(x, [0, 1, 2, 3]))", "relu(x)"),
        ("relu(flatten_time(split_time(flatten_time(x))))", "relu(flatten_time(x))"),
        ("relu(split_time(flatten_time(x)))", "relu(x)"),
        ("relu(unsqueeze(x, 2))", "relu(reshape(x, [3, -1, 1, 4, 5]))"),
        ("relu(squeeze.dim(unsqueeze(x, 0), 0))", "relu(x)"),
        ("relu(x) + relu(x)", "r = relu(x); r + r"),
        ("relu(squeeze.dim(slice.Tensor(x, 0, 1, 2), 0))", "relu(select(x, 0, 1))"),
        ("relu(max.dim(x, 2)[0])", "relu(amax(x, [2], False))"),
        ("relu(min.dim(x, -1, True)[0])", "relu(amin(x, [-1], True))"),
        ("relu(adaptive_max_pool2d(x, [1, 1])[0])", "relu(amax(x, [-2, -1], True))"),
        ("x * sigmoid(w[4, 1])", "x * w[4, 1]"),
        ("lif(x, decay=0.5, input_gain=1.0, bias=0.0, gain=1.0).s", "lif(x, decay=0.5).s"),
        ("lif(x, decay=sigmoid(w[5])).s", "lif(x, decay=w[5]).s"),
        ("lif(x, reset='soft', v_reset=0.5).s", "lif(x, reset='soft').s"),
    ],
)
def test_one_spelling(before: str, after: str) -> None:
    graph = parse(f"x[3, N, 4, 5] -> {before}")
    result = Canonicalize()(graph)
    assert result.changed
    assert_graph(result.graph, f"x[3, N, 4, 5] -> {after}")
    assert_equivalent(graph, result.graph, tolerance=0.0)
    again = Canonicalize()(result.graph)
    assert not again.changed
    assert again.graph is result.graph


def test_pooling_to_one_value_is_a_mean() -> None:
    graph = parse("x[3, N, 4, 5] -> relu(_adaptive_avg_pool2d(x, [1, 1]))")
    result = Canonicalize()(graph)
    assert_graph(result.graph, "x[3, N, 4, 5] -> relu(mean.dim(x, [-2, -1], True))")
    assert_equivalent(graph, result.graph, tolerance=1e-15)


@pytest.mark.parametrize("text", ["relu(x)", "x * 2.0", "relu(lif(x).s)"])
def test_what_must_stay(text: str) -> None:
    graph = Canonicalize()(parse(f"x[3, N, 4, 5] -> {text}")).graph  # shares the numbers of the neuron
    assert_graph(graph, f"x[3, N, 4, 5] -> {text}")
    assert not Canonicalize()(graph).changed


def test_two_equal_neurons_stay_two() -> None:
    graph = Canonicalize()(parse("x[3, N, 4, 5] -> lif(x).s + lif(x).s")).graph
    assert len(graph.neurons) == 2


@pytest.mark.parametrize("text", ["reshape(x, [2, -1]) * 2.0", "gt.Scalar(x, 0) * 1.0 + gt.Scalar(x, 0) * 1.0"])
def test_what_only_looks_like_an_identity_stays(text: str) -> None:
    """A reshape that keeps the shape at one batch size; a product that makes numbers of truths."""
    graph = parse(f"x[N, 2], T=3 -> {text}")
    assert_equivalent(graph, Canonicalize()(graph).graph, tolerance=0.0, batches=(2, 4))


def test_dead_operators_and_tensors_go() -> None:
    graph = parse("x[3, N, 4, 5] -> d = relu(x * w[5]); e = lif(d); x * 2.0")
    result = EliminateDead()(graph)
    assert result.changed
    assert_graph(result.graph, "x[3, N, 4, 5] -> x * 2.0")
    assert not result.graph.tensors()
    assert not EliminateDead()(result.graph).changed
