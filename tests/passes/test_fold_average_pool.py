"""fold_average_pool: the folded kernel equals convolution and pooling; and what is refused."""

from __future__ import annotations

import itertools

import pytest

from snngraph.graph import is_op, shape_of
from snngraph.passes.base import PassResult
from snngraph.passes.fold_average_pool import FoldAveragePool, aten
from snngraph.testing import assert_equivalent, parse


def _run(body: str) -> PassResult:
    before = parse(f"x[2, N, 4, 11, 12] ->\n{body}\n")
    result = FoldAveragePool()(before)
    assert_equivalent(before, result.graph, tolerance=1e-13)
    if result.changed:
        assert not FoldAveragePool()(result.graph).changed
    return result


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), list(itertools.product([1, 3], [1, 2], [0, 1], [1, 2])))
@pytest.mark.parametrize("window", ["[2, 2]", "[3, 2]"])
def test_the_folded_kernel(kernel: int, stride: int, padding: int, dilation: int, window: str) -> None:
    options = f"[{stride}, {stride}], [{padding}, {padding}], [{dilation}, {dilation}], False, [0, 0], 2"
    layer = f"convolution(flatten_time(x), w[6, 2, {kernel}, {kernel}], b[6], {options})"
    result = _run(f"return avg_pool2d({layer}, {window}, {window})")
    assert result.changed or any(reason in result.notes[0].text for reason in ("would multiply more often", "rounds more"))


def test_three_by_three_and_two_by_two_are_four_by_four() -> None:
    result = _run("return avg_pool2d(conv2d(flatten_time(x), w[6, 4, 3, 3], None, padding=1), [2, 2], [2, 2])")
    (conv,) = (n for n in result.graph.nodes if is_op(n, aten.convolution.default))
    assert shape_of(conv.args[1]) == (6, 4, 4, 4)
    assert conv.args[3] == [2, 2]


def test_a_long_sum_is_made_of_two() -> None:
    layer = "conv2d(relu(conv2d(flatten_time(x), v[32, 4, 1, 1], None)), w[6, 32, 3, 3], {bias}, padding=1)"
    for bias in ("None", "b[6]"):
        result = _run(f"return avg_pool2d({layer.format(bias=bias)}, [2, 2], [2, 2])")
        assert result.changed
        assert [n.args[-1] for n in result.graph.nodes if is_op(n, aten.convolution.default)] == [1, 2]


def test_a_long_sum_of_spikes_is_left_whole_for_integer_layers() -> None:
    text = "x[T=3, N, 32, 8, 8] ->\ns = lif(x)\nreturn avg_pool2d(conv2d({}, w[6, 32, 3, 3], b[6], padding=1), [2, 2], [2, 2])\n"
    for source, groups in (("flatten_time(s.s)", 1), ("flatten_time(x)", 2)):
        before = parse(text.format(source))
        result = FoldAveragePool(integers=True)(before)
        assert [n.args[-1] for n in result.graph.nodes if is_op(n, aten.convolution.default)] == [groups]
        assert_equivalent(before, result.graph, tolerance=1e-13)


def test_a_long_sum_that_can_not_be_halved_stays() -> None:
    layer = "convolution(flatten_time(x), w[6, 2, 7, 7], None, [1, 1], [3, 3], [1, 1], False, [0, 0], 2)"
    result = _run(f"return avg_pool2d({layer}, [2, 2], [2, 2])")
    assert not result.changed
    assert "rounds more" in result.notes[0].text


def test_other_dimensions() -> None:
    layer = "convolution(flatten_time(x), w[6, 4, 3], None, [1], [1], [1], False, [0], 1)"
    before = parse(f"x[2, N, 4, 12] ->\nreturn avg_pool1d({layer}, [2], [2])\n")
    result = FoldAveragePool()(before)
    assert result.changed
    assert_equivalent(before, result.graph, tolerance=1e-13)


CONV = "c = conv2d(flatten_time(x), w[6, 4, 3, 3], b[6], padding=1)\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{CONV}return avg_pool2d(c, [2, 2], [2, 2], [1, 1])", "it pads"),
        (f"{CONV}return avg_pool2d(c, [2, 2], [2, 2], [0, 0], True)", "rounds its size up"),
        (f"{CONV}return avg_pool2d(c, [2, 2], [2, 2], [0, 0], False, True, 3)", "another number"),
        (f"{CONV}return avg_pool2d(c, [2, 2], [2, 2]), mean(c, [1])", "is read by 2 operators"),
        (f"{CONV}return avg_pool2d(c, [2, 2], [1, 1])", "would multiply more often"),
        ("c = conv2d(flatten_time(x), relu(w[6, 4, 3, 3]) , None)\nreturn avg_pool2d(c, [2, 2], [2, 2])", "not constants"),
    ],
)
def test_refused(body: str, reason: str) -> None:
    result = _run(body)
    assert not result.changed
    assert reason in result.notes[0].text
