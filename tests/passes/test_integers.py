"""The counterparts hold the integers of the tensors that they stand for."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import fx

from snngraph.analysis.levels import Levels, infer_spike_levels
from snngraph.errors import PassError
from snngraph.graph import SpikingGraph
from snngraph.passes.base import Rewriter
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.passes.integers import Integers
from snngraph.testing import assert_equivalent, assert_graph, parse, random_inputs
from tests.analysis.level_graphs import level_graphs, multiples, peaks_of, values_of, with_constants

S = "s = flatten_time(lif(x, decay=0.5).s)"


def _with_integers(graph: SpikingGraph, wanted: Collection[fx.Node], levels: dict[fx.Node, Levels]) -> SpikingGraph:
    """``graph`` with the integers of ``wanted`` as its outputs."""
    edit = Rewriter(graph)
    integers = Integers(edit, levels)
    found = [integers.of(node) for node in wanted]
    assert found == [integers.of(node) for node in wanted], "made twice"
    graph.graph.output_node().args = (tuple(found) if len(found) > 1 else found[0],)
    graph.facts = replace(graph.facts, output_batch_dims=None)
    result = graph.finish()
    result.check()
    return result


def _assert_integers(graph: SpikingGraph, seed: int = 0) -> None:
    """Of every node with levels, in float64 and float32."""
    levels = infer_spike_levels(graph)
    peaks = peaks_of(graph, levels)
    edited = graph.copy()
    wanted = [n for n in edited.nodes if n in infer_spike_levels(edited)]
    names = [n.name for n in wanted]
    result = _with_integers(edited, wanted, infer_spike_levels(edited))
    by_name = {n.name: n for n in levels}
    inputs = random_inputs(graph, seed=seed)
    for dtype in (torch.float64, torch.float32):
        values = values_of(graph.to(dtype), inputs)
        found = result.to(dtype)(*inputs)
        for name, k in zip(names, found if len(names) > 1 else [found], strict=True):
            known, value = levels[by_name[name]], values[name]
            assert k.shape == value.shape
            assert k.dtype == value.dtype, name
            rounding = torch.finfo(dtype).eps * 32 * peaks[by_name[name]] / known.scale
            assert float(k.double().min()) >= known.low
            assert float(k.double().max()) <= known.high
            assert torch.equal(k.double(), k.double().round())
            if known.exact or rounding < 0.4:
                assert torch.equal(k.double(), multiples(name, value, known, rounding)), name


def _integers_of(expression: str, *statements: str) -> SpikingGraph:
    body = "\n".join([*statements, f"out = {expression}", "return out"])
    text = f"x[3, N, 4, 6, 6] ->\n{S}\n{body}\n"
    _assert_integers(with_constants(parse(text)))
    graph = with_constants(parse(text))
    return _with_integers(graph, graph.output_nodes, infer_spike_levels(graph))


BMM = "bmm(reshape({}, [-1, 6, 6]), reshape({}, [-1, 6, 6]))"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("s", "s"),
        ("s + s", "s + s"),
        ("s * 0.25", "s"),
        ("s * -0.25", "neg(s)"),
        ("s / 3.0", "s"),
        ("gt.Scalar(s, 0.5) * 0.5", "_to_copy(gt.Scalar(s, 0.5), dtype='float32')"),
        ("s * 0.5 + s", "s + s * 2.0"),
        ("sub.Tensor(s, s * 0.5, alpha=3)", "s * 2.0 - s * 3.0"),
        ("rsub.Scalar(s * 0.5, 1.0)", "rsub.Scalar(s, 2.0)"),
        ("s * 0.5 - 1.0", "s - 2.0"),
        ("relu(s * 1.5 - 1.0)", "relu(s * 3.0 - 2.0)"),
        ("clamp(s * 0.5, -0.3, 0.5)", "clamp_max(clamp_min(s, -1.0), 1.0)"),
        ("maximum(s * 0.5, s * 0.25)", "maximum(s * 2.0, s)"),
        ("where.self(gt.Scalar(s, 0.0), s * 0.5, s)", "where.self(gt.Scalar(s, 0.0), s, s * 2.0)"),
        ("masked_fill.Scalar(s * 0.5, gt.Scalar(s, 0.0), 2.0)", "masked_fill.Scalar(s, gt.Scalar(s, 0.0), 4.0)"),
        ("cat([s * 0.5, s], 1)", "cat([s, s * 2.0], 1)"),
        ("constant_pad_nd(s * 0.5, [1, 1], 1.0)", "constant_pad_nd(s, [1, 1], 2.0)"),
        ("(s * 0.5) * (s * 0.1)", "s * s"),
        ("pow.Tensor_Scalar(s * 0.5, 2)", "pow.Tensor_Scalar(s, 2)"),
        (BMM.format("s * 0.5", "s"), BMM.format("s", "s")),
        (
            BMM.format("s", "full_like(s, -0.5)"),
            BMM.format("s", "full_like(s, -0.5)").replace(", reshape(", ", sign(reshape(") + ")",
        ),
        ("permute(reshape(s * 0.5, [-1, 4, 36]), [0, 2, 1])", "permute(reshape(s, [-1, 4, 36]), [0, 2, 1])"),
        ("split_with_sizes(s * 0.5, [1, 3], 1)[1]", "split_with_sizes(s, [1, 3], 1)[1]"),
        ("max_pool2d(s * 0.1, 2)", "max_pool2d(s, 2)"),
        ("s * tenths[1, 4, 1, 1]", "s * k[1, 4, 1, 1]"),
        ("mean(s, [1], True) * full_like(s, -0.5)", "sum.dim_IntList(s, [1], True) * sign(full_like(s, -0.5))"),
        ("full_like(s, 0.3)", "full_like(full_like(s, 0.3), 1.0)"),
        ("_to_copy(s * 300.0, dtype='int64') * 0.5", "_to_copy(_to_copy(s, dtype='int64'), dtype='float32')"),
        ("clamp(_to_copy(s * 300.0, dtype='int64'), 0, 600)", "clamp_max(clamp_min(_to_copy(s, dtype='int64'), 0), 2)"),
    ],
)
def test_arithmetic(expression: str, expected: str) -> None:
    assert_graph(_integers_of(expression), f"x[3, N, 4, 6, 6] ->\n{S}\nout = {expected}\nreturn out\n")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mean(s, [2, 3])", "sum.dim_IntList(s, [2, 3], False)"),
        ("mean(mean(s, [2, 3], True), [1])", "sum.dim_IntList(sum.dim_IntList(s, [2, 3], True), [1], False)"),
        ("sum.dim_IntList(s * 0.5, [1])", "sum.dim_IntList(s, [1])"),
        ("mean(s, [1]) * 4.0", "mean(s, [1]) * 4.0"),  # exact as it is
        ("mean(s, [1, 2, 3]) * 144.0", "sum.dim_IntList(s, [1, 2, 3], False)"),  # almost integers
        ("avg_pool2d(s, [2, 2])", "avg_pool2d(s, [2, 2], [], [0, 0], False, True, 1)"),
        ("avg_pool2d(s, [4, 4], [2, 2], [1, 1], True)", "avg_pool2d(s, [4, 4], [2, 2], [1, 1], True, True, 1)"),
        ("avg_pool2d(s, [3, 3], [2], [1], False, True, -4)", "avg_pool2d(s, [3, 3], [2], [1], False, True, -1)"),
        (
            "avg_pool1d(reshape(s, [-1, 4, 36]), [5], [2], [1])",
            "squeeze.dim(avg_pool2d(unsqueeze(reshape(s, [-1, 4, 36]), -2), [1, 5], [1, 2], [0, 1], False, True, 1), -2)",
        ),
        ("avg_pool3d(split_time(s), [1, 2, 2])", "avg_pool3d(split_time(s), [1, 2, 2], [], [0, 0, 0], False, True, 1)"),
        ("_adaptive_avg_pool2d(s, [1, 1])", "sum.dim_IntList(s, [-2, -1], True)"),
        ("_adaptive_avg_pool2d(s, [3, 2])", "avg_pool2d(s, [2, 3], [2, 3], [0, 0], False, True, 1)"),
        (
            "max_pool2d(avg_pool2d(s, [3, 3], [1, 1], [1, 1]), 2)",
            "max_pool2d(avg_pool2d(s, [3, 3], [1, 1], [1, 1], False, True, 1), 2)",
        ),
    ],
)
def test_averages_are_sums(expression: str, expected: str) -> None:
    assert_graph(_integers_of(expression), f"x[3, N, 4, 6, 6] ->\n{S}\nout = {expected}\nreturn out\n")


@pytest.mark.parametrize("options", ["level=0.1", "level=-3.0", "level=0.1, emit='signed', reset='soft'"])
def test_a_neuron_keeps_its_level(options: str) -> None:
    graph = _integers_of("avg_pool2d(t, [2, 2])", f"l = lif(x, {options})", "t = flatten_time(l)")
    neuron = f"l = lif(x, {options})\nt = reshape(sign(l), [-1, 4, 6, 6])\n"
    assert_graph(graph, f"x[3, N, 4, 6, 6] ->\n{neuron}out = avg_pool2d(t, [2, 2], [], [0, 0], False, True, 1)\nreturn out\n")
    assert [layer.name for layer in graph.neurons] == ["l"]


def test_nothing_is_made_twice_or_for_nobody() -> None:
    graph = parse(f"x[3, N, 4, 6, 6] ->\n{S}\na = s * 0.5\nb = mean(a, [1])\nc = avg_pool2d(a, [2, 2])\nreturn b, c\n")
    levels, before = infer_spike_levels(graph), len(list(graph.nodes))
    integers = Integers(Rewriter(graph), levels)
    made = integers.of(graph.output_nodes[1])
    assert len(list(graph.nodes)) == before + 1
    assert integers.of(graph.output_nodes[1]) is made


def test_real_tensors_have_no_integers() -> None:
    graph = parse(f"x[3, N, 4, 6, 6] ->\n{S}\nreturn sigmoid(s)\n")
    with pytest.raises(PassError, match="sigmoid holds no integers"):
        Integers(Rewriter(graph), infer_spike_levels(graph)).of(graph.output_nodes[0])


def test_layers_behind_averages_and_levels_get_integers() -> None:
    before = parse(
        """x[3, N, 2, 12, 12] ->
        c0 = conv2d(flatten_time(x), w0[4, 2, 3, 3], None, padding=1)
        s0 = lif(split_time(c0), decay=0.5, threshold=0.25, level=0.1)
        p0 = avg_pool2d(flatten_time(s0.s), [3, 3], [1, 1], [1, 1])
        c1 = conv2d(p0 + flatten_time(s0.s), w1[4, 4, 3, 3], b1[4], padding=1)
        s1 = lif(split_time(c1), decay=0.5, threshold=0.01)
        m = mean(flatten_time(s1.s) * 0.5, [2, 3])
        z = linear(m, u[5, 4], ub[5])
        return mean(split_time(z), 0)
        """
    )
    after = IntegerSynapses(digits=4, everywhere=True)(before).graph
    assert_equivalent(before, after, tolerance=1e-8)
    assert after.format().count("integer_conv(") == 1
    assert "sign(s0.s)" in after.format()
    assert ", True, 1)" in after.format()


def test_a_long_sum_is_no_deep_recursion() -> None:
    body = "\n".join(f"a{k + 1} = a{k} + s * 0.5" for k in range(1500))
    graph = parse(f"x[3, N, 4, 6, 6] ->\n{S}\na0 = s * 0.25\n{body}\nreturn a1500\n")
    result = _with_integers(graph, graph.output_nodes, infer_spike_levels(graph))
    assert float(result(*random_inputs(result))[0].max()) == 3001.0


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=level_graphs())
def test_counterparts_hold_the_integers(graph: SpikingGraph) -> None:
    _assert_integers(graph)
