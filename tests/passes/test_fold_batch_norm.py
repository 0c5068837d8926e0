from __future__ import annotations

import pytest

from snngraph.passes.fold_batch_norm import FoldBatchNorm
from snngraph.testing import assert_equivalent, assert_graph, parse

NORM = "g[4], b[4], m[4], v[4]"
COMPUTED = "reshape(mean.dim(x, [0, 1, 3, 4]), [1, 4, 1, 1])"


def test_into_a_convolution() -> None:
    before = parse(
        f"x[3, N, 2, 5, 5] -> c = conv2d(flatten_time(x), w[4, 2, 3, 3]); n = batch_norm(c, {NORM}); lif(split_time(n)).s"
    )
    result = FoldBatchNorm()(before)
    assert result.changed
    assert_graph(result.graph, "x[3, N, 2, 5, 5] -> c = conv2d(flatten_time(x), w[4, 2, 3, 3], f[4]); lif(split_time(c)).s")
    assert_equivalent(before, result.graph, tolerance=1e-12)
    assert [n.kind for n in result.notes] == ["rewrite"]


@pytest.mark.parametrize("bias", ["None", "q[4]"])
def test_into_a_linear_layer_through_a_reshape(bias: str) -> None:
    """Batch norm over the features of ``[T, N, F]`` turned into ``[T*N, F]``."""
    before = parse(f"x[3, N, 6] -> c = linear(x, w[4, 6], {bias}); n = batch_norm(flatten_time(c), {NORM}); lif(split_time(n)).s")
    result = FoldBatchNorm()(before)
    assert_graph(result.graph, "x[3, N, 6] -> c = linear(x, w[4, 6], f[4]); lif(split_time(flatten_time(c))).s")
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_into_a_linear_layer_through_a_permutation() -> None:
    """Batch norm over the channels of ``[N, C, L]``, where the layer makes ``[N, L, C]``."""
    before = parse(
        f"x[3, N, 5, 6] -> c = linear(flatten_time(x), w[4, 6]); n = batch_norm(permute(c, [0, 2, 1]), {NORM}); n * 1.5"
    )
    result = FoldBatchNorm()(before)
    assert_graph(result.graph, "x[3, N, 5, 6] -> c = linear(flatten_time(x), w[4, 6], f[4]); permute(c, [0, 2, 1]) * 1.5")
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_into_the_gain_and_bias_of_a_neuron() -> None:
    before = parse(
        f"x[3, N, 4, 5, 5] -> n = batch_norm(flatten_time(x), {NORM}); lif(split_time(n), decay=0.5, input_gain=0.5).s"
    )
    result = FoldBatchNorm()(before)
    assert_graph(
        result.graph,
        "x[3, N, 4, 5, 5] -> m = split_time(flatten_time(x));"
        "lif(m, decay=0.5, input_gain=0.5, gain=a[4, 1, 1], bias=c[4, 1, 1]).s",
    )
    assert_equivalent(before, result.graph, tolerance=1e-12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"c = conv2d(flatten_time(x), w[4, 4, 1, 1]); n = batch_norm(c, {NORM}); n + c", "read by 2 operators"),
        (f"n = batch_norm(flatten_time(x), {NORM}); n * 2.0", "no neuron takes its output as its input"),
        (f"n = batch_norm(flatten_time(x), {NORM}); lif(split_time(n), syn_decay=0.5).s", "synapse"),
        (f"n = batch_norm(select(x, 0, 0), {NORM}); lif_step(n, v=n).s", "as its input alone"),
        (f"n = batch_norm(flatten_time(x), {NORM}); lif(split_time(n), gain=k[3, 1, 1, 1, 1]).s", "varies over time"),
        (f"n = batch_norm(conv2d(flatten_time(x), {COMPUTED}), g[1], b[1], m[1], v[1]); n * 2.0", "not constants"),
    ],
)
def test_refusals_say_why(text: str, reason: str) -> None:
    graph = parse(f"x[3, N, 4, 5, 5] -> {text}")
    result = FoldBatchNorm()(graph)
    assert not result.changed
    assert result.graph is graph
    (note,) = result.notes
    assert note.kind == "refused"
    assert reason in note.text
