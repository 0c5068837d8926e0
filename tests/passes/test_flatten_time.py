from __future__ import annotations

import pytest

from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.flatten_time import FlattenTime
from snngraph.testing import assert_equivalent, assert_graph, parse


@pytest.mark.parametrize(
    ("body", "flat"),
    [
        ("relu(x * 2.0)", "split_time(relu(flatten_time(x) * 2.0))"),
        ("x * w[4, 1, 1]", "split_time(flatten_time(x) * w[4, 1, 1])"),
        ("x + lif(x).s", "split_time(flatten_time(x) + flatten_time(lif(x).s))"),
        ("mean(x, [3, 4])", "split_time(mean(flatten_time(x), [2, 3]))"),
        ("mean(x, [-1])", "split_time(mean(flatten_time(x), [3]))"),
        ("linear(x, w[7, 6])", "split_time(linear(flatten_time(x), w[7, 6]))"),
        ("permute(x, [0, 1, 4, 2, 3])", "split_time(permute(flatten_time(x), [0, 3, 1, 2]))"),
        ("_softmax(x, 2, False)", "split_time(_softmax(flatten_time(x), 1, False))"),
        ("where.self(x > 0, x, x * 0.5)", "m = flatten_time(x); split_time(where.self(m > 0, m, m * 0.5))"),
    ],
)
def test_operators_move_to_merged_time(body: str, flat: str) -> None:
    body, flat = (t.replace("x > 0", "gt.Scalar(x, 0)").replace("m > 0", "gt.Scalar(m, 0)") for t in (body, flat))
    before = parse(f"x[3, N, 4, 6, 6] -> {body}")
    result = FlattenTime()(before)
    assert result.changed
    after = Canonicalize()(result.graph).graph
    assert_graph(after, f"x[3, N, 4, 6, 6] -> {flat}")
    assert_equivalent(before, after, tolerance=1e-12)


def test_keyword_arguments_are_kept() -> None:
    before = parse("x[3, N, 4, 6, 6] -> linear(x, w[7, 6], bias=b[7])")
    assert_equivalent(before, FlattenTime()(before).graph, tolerance=1e-12)


@pytest.mark.parametrize(
    "body",
    [
        "mean(x, [0])",  # over time
        "mean(x, [1, 2])",  # over samples
        "x * k[3, 1, 1, 1, 1]",  # a factor per step broadcasts over the batch
        "permute(x, [1, 0, 2, 3, 4])",
        "lif(x).s",
    ],
)
def test_what_tells_steps_or_samples_apart_stays(body: str) -> None:
    assert not FlattenTime()(parse(f"x[3, N, 4, 6, 6] -> {body}")).changed
