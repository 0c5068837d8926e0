"""Layers on spikes become integer layers: which, with how many digits, and what the others are refused for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, LEVELS, SpikingGraph, is_neuron, is_op, operand
from snngraph.passes.base import PassResult
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.passes.mark_levels import MarkLevels
from snngraph.testing import parse, random_inputs

CONV = """x[T=3, N, 2, 8, 8] ->
s = lif(x, decay=0.5, threshold=1.0)
y = conv2d(flatten_time(s.s), w[4, 2, 3, 3], b[4], padding=1)
z = lif(split_time(y), decay=0.5, threshold=0.2)
return z.s"""


def run(text: str, digits: int = 3, *, everywhere: bool = True, weights: dict[str, torch.Tensor] | None = None) -> PassResult:
    graph = parse(text)
    for name, value in (weights or {}).items():
        holder = graph.tensors()[name]
        holder.copy_(value.expand_as(holder))
    return IntegerSynapses(digits, everywhere=everywhere)(graph)


def layers(graph: SpikingGraph) -> list[int]:
    """The digits of every integer layer."""
    return [int(n.args[1].meta["val"].shape[0]) for n in graph.nodes if is_op(n, INTEGER_CONV, INTEGER_LINEAR)]  # type: ignore[union-attr]


def assert_same(before: SpikingGraph, after: SpikingGraph, tolerance: float) -> None:
    """Equal outputs in float64, but for what the digits leave of the weights."""
    inputs = [4 * x for x in random_inputs(before, batch=3, seed=5)]
    a, b = before(*inputs), after(*inputs)
    for p, q in zip(*((v if isinstance(v, tuple | list) else (v,)) for v in (a, b)), strict=True):
        torch.testing.assert_close(q, p, rtol=0, atol=tolerance)


def test_a_convolution_on_spikes() -> None:
    result = run(CONV)
    assert layers(result.graph) == [3]
    assert_same(parse(CONV), result.graph, 0)
    assert "3 digits; its input is 0..1" in str(result.notes)


@pytest.mark.parametrize(("digits", "tolerance"), [(1, 5e-2), (2, 3e-4), (3, 1e-6), (4, 4e-9)])
def test_digits(digits: int, tolerance: float) -> None:
    text = CONV.replace("return z.s", "return y")
    result = run(text, digits)
    assert layers(result.graph) == [digits]
    assert_same(parse(text), result.graph, tolerance)
    with pytest.raises(AssertionError):
        assert_same(parse(text), result.graph, tolerance / 300)


@pytest.mark.parametrize("digits", [0, 5])
def test_a_number_of_digits_that_does_not_exist(digits: int) -> None:
    with pytest.raises(ValueError, match="expected 1 to 4"):
        IntegerSynapses(digits)


def test_weights_that_need_fewer_digits_get_fewer() -> None:
    weight = torch.tensor([1.0, -1.0, 0.5, 0.25]).reshape(4, 1, 1, 1)
    assert layers(run(CONV, 4, weights={"w": weight}).graph) == [1]


def test_weights_far_above_the_others_get_more_digits() -> None:
    weight = torch.linspace(0.5, 1, 72).reshape(4, 2, 3, 3)
    assert layers(run(CONV, 3, weights={"w": weight}).graph) == [3]
    weight[:, 0, 0, 0] = 20.0
    assert layers(run(CONV, 3, weights={"w": weight}).graph) == [4]
    assert layers(run(CONV, 4, weights={"w": weight}).graph) == [4], "four were asked for, and are enough"
    assert layers(run(CONV, 1, weights={"w": weight}).graph) == [1], "asked for one digit, it gets one"


@pytest.mark.parametrize("digits", [3, 4])
@pytest.mark.parametrize("largest", [1e5, 1e30])
def test_weights_beyond_four_digits_stay(largest: float, digits: int) -> None:
    """However large it is, one weight of 18 is no more than 4 times the root of their mean square."""
    weight = torch.linspace(0.5, 1, 72).reshape(4, 2, 3, 3)
    weight[0, 0, 0, 0] = largest
    result = run(CONV, digits, weights={"w": weight})
    assert not result.changed
    assert "so far above the others" in str(result.notes)


def test_weights_of_zero_do_not_make_the_others_large() -> None:
    weight = torch.zeros(4, 64, 3, 3)
    weight[:, ::8] = torch.linspace(0.5, 1, 4 * 8 * 9).reshape(4, 8, 3, 3)
    text = CONV.replace("[T=3, N, 2, 8, 8]", "[T=3, N, 64, 4, 4]").replace("w[4, 2, 3, 3]", "w[4, 64, 3, 3]")
    assert layers(run(text, 3, weights={"w": weight}).graph) == [3]


FIRE = "x[T=3, N, 2, 8, 8], g[N, 2, 1, 1] ->\ns = lif(x, threshold=1.0)\n"


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("conv2d(flatten_time(x), w[4, 2, 3, 3], b[4])", "its input is real: x: an input"),
        ("conv2d(flatten_time(s.s * g), w[4, 2, 3, 3], b[4])", "its input is real: g: an input"),
        ("convolution(flatten_time(s.s), w[2, 4, 3, 3], None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1)", "transposed"),
        ("conv2d(flatten_time(s.s) * 0.5 + flatten_time(s.s) * 64.0, w[4, 2, 3, 3], b[4])", "levels up to 129, at most 127"),
    ],
)
def test_refusals(returned: str, reason: str) -> None:
    result = run(f"{FIRE}return {returned}")
    assert not result.changed
    assert any(note.kind == "refused" and reason in note.text for note in result.notes), result.notes


@pytest.mark.parametrize("product", ["mm(flatten_time(s.s), w[8, 4])", "addmm(b[4], flatten_time(s.s), w[8, 4])"])
def test_a_product_with_a_matrix_is_a_linear_layer(product: str) -> None:
    text = f"x[T=3, N, 8] ->\ns = lif(x, decay=0.5, threshold=1.0)\nreturn {product}"
    result = run(text)
    assert layers(result.graph) == [3]
    assert_same(parse(text), result.graph, 1e-6)
    scaled = text.replace("w[8, 4])", "w[8, 4], beta=2)")
    assert ("addmm" not in product) or not run(scaled).changed


def test_a_weight_the_graph_computes_is_refused() -> None:
    text = "x[T=3, N, 8] ->\ns = lif(x, threshold=1.0)\nreturn linear(flatten_time(s.s), w[4, 8] * w[4, 8])"
    assert "its weight is no constant" in str(run(text).notes)


def test_sums_that_int32_might_not_hold_are_refused() -> None:
    text = "x[T=1, N, {0}] ->\ns = lif(x, threshold=1.0)\nreturn linear(flatten_time(s.s * 0.5 + s.s * 63.0), w[1, {0}])"
    assert run(text.format(130_000)).changed
    result = run(text.format(135_000))
    assert not result.changed
    assert "int32 might not hold sums of 135000 products" in str(result.notes)


def test_nan_in_a_weight_is_refused() -> None:
    weight = torch.ones(4, 2, 3, 3)
    weight[1, 1, 1, 1] = torch.nan
    graph = parse(CONV)
    graph.tensors()["w"].copy_(weight)
    result = IntegerSynapses(everywhere=True).run(graph)
    assert "NaN" in str(result.notes)
    assert not result.changed


def test_small_layers_and_short_sums_stay() -> None:
    result = run(CONV, everywhere=False)
    assert not result.changed
    assert "it is small" in str(result.notes)
    wide = CONV.replace("8, 8]", "128, 128]").replace("w[4, ", "w[64, ").replace("b[4]", "b[64]")
    result = run(wide, everywhere=False)
    assert not result.changed
    assert "its sums are short (18 products)" in str(result.notes)


def test_a_second_run_changes_nothing() -> None:
    once = run(CONV).graph
    assert not IntegerSynapses(everywhere=True)(once).changed


# -- marks ---------------------------------------------------------------------------------------------------------------------

RESIDUAL = """x[T=3, N, 2, 8, 8] ->
s = lif(x, decay=0.5, threshold=1.0)
y = conv2d(flatten_time(s.s), w[2, 2, 3, 3], b[2], padding=1)
z = lif(split_time(y), decay=0.5, threshold=0.2)
r = z.s + s.s
u = conv2d(max_pool2d(flatten_time(r), 2), v[4, 2, 3, 3], c[4])
return u, z.s"""


def test_integers_are_marked_where_they_arise() -> None:
    integer = run(RESIDUAL).graph
    result = MarkLevels()(integer)
    marks = [n for n in result.graph.nodes if is_op(n, LEVELS)]
    assert {(n.args[0].target.__name__, *n.args[1:]) for n in marks} == {("getitem", 0, 1), ("add.Tensor", 0, 2)}  # type: ignore[union-attr]
    assert not any(is_op(n, LEVELS) for n in result.graph.output_nodes), "who is off the way reads the spikes themselves"
    x = random_inputs(integer, batch=2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(integer(*x), result.graph(*x), strict=True))
    assert not MarkLevels()(result.graph).changed


def marked(text: str) -> list[fx.Node]:
    graph = MarkLevels()(run(text).graph).graph
    return [operand(n) for n in graph.nodes if is_op(n, LEVELS)]


@pytest.mark.parametrize(
    ("moved", "channels"),
    [("permute(flatten_time(s.s), [0, 1, 3, 2])", 4), ("split_with_sizes(flatten_time(s.s), [2, 2], 1)[1]", 2)],
)
def test_what_only_moves_integers_is_not_marked_again(moved: str, channels: int) -> None:
    text = f"x[T=3, N, 4, 8, 8] ->\ns = lif(x, threshold=1.0)\nm = {moved}\nreturn conv2d(m, w[2, {channels}, 3, 3], b[2])"
    (found,) = marked(text)
    assert is_neuron(operand(found))


def test_one_of_several_outputs_is_marked() -> None:
    text = "x[T=3, N, 4, 8] ->\ns = lif(x, decay=0.5, threshold=1.0)\nm = max.dim(s.s, 2)\nreturn linear(m[0], w[2, 8], b[2])"
    (found,) = marked(text)
    assert is_op(operand(found), torch.ops.aten.max.dim)


def test_a_graph_without_integer_layers_gets_no_marks() -> None:
    assert not MarkLevels()(parse(RESIDUAL)).changed


def test_they_print_and_parse() -> None:
    graph = MarkLevels()(run(RESIDUAL).graph).graph
    text = graph.format()
    assert "integer_conv(" in text
    assert "levels(" in text
    assert layers(parse(text)) == [3, 3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1, 2, 3]))
def test_random_weights_and_strides(seed: int, digits: int, stride: int) -> None:
    text = RESIDUAL.replace("c[4])", f"c[4], stride={stride})")
    graph = parse(text, seed=seed)
    result = MarkLevels()(IntegerSynapses(digits, everywhere=True)(graph).graph).graph
    assert layers(result) == [digits, digits]
    inputs = [4 * x for x in random_inputs(graph, batch=2, seed=seed)]
    found, wanted = result.to(torch.float64)(*inputs), graph(*inputs)
    if digits >= 3:
        assert torch.equal(found[1], wanted[1]), "a spike would differ with a chance of 1e-5"
        torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
