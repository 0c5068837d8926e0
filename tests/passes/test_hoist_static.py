from __future__ import annotations

from snngraph.passes.hoist_static import HoistStatic
from snngraph.testing import assert_equivalent, assert_graph, parse

REPEAT = "k[4, N, 1, 1, 1], x[N, 2, 5, 5] -> r = reshape(expand(reshape(x, [1, -1, 2, 5, 5]), [4, -1, 2, 5, 5]), [-1, 2, 5, 5])\n"


def test_a_repeated_image_goes_through_its_stem_once() -> None:
    before = parse(REPEAT + "c = relu(conv2d(r, w[3, 2, 3, 3], b[3])); lif(split_time(c)).s + k")
    result = HoistStatic()(before)
    assert result.changed
    expected = (
        "k[4, N, 1, 1, 1], x[N, 2, 5, 5] -> c = relu(conv2d(x, w[3, 2, 3, 3], b[3]));"
        "r = reshape(expand(reshape(c, [1, -1, 3, 3, 3]), [4, -1, 3, 3, 3]), [-1, 3, 3, 3]); lif(split_time(r)).s + k"
    )
    assert_graph(result.graph, expected)
    assert_equivalent(before, result.graph)


def test_another_input_that_varies_stops_it() -> None:
    before = parse(REPEAT + "c = r + flatten_time(k); lif(split_time(c)).s")
    result = HoistStatic()(before)
    assert not result.changed


def test_an_operator_that_mixes_samples_stops_it() -> None:
    before = parse(REPEAT + "c = r * 2.0; q = c - mean(c, 0, True); lif(split_time(q)).s + k")
    result = HoistStatic()(before)
    assert "mean.dim(reshape" in result.graph.format()
    assert_equivalent(before, result.graph)


def test_a_weight_that_is_repeated_stops_it() -> None:
    before = parse("x[N, 8], T=3 -> r = reshape(expand(reshape(x, [1, -1, 8]), [3, -1, 8]), [-1, 8]); linear(w[3, 8], r)")
    assert not HoistStatic()(before).changed


def test_a_sequence_has_nothing_to_hoist() -> None:
    assert not HoistStatic()(parse("x[4, N, 2, 5, 5] -> lif(x).s")).changed
