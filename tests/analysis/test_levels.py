"""What is said to be integers times a constant is that, on every input and in every precision."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import snngraph
from snngraph.analysis.levels import Levels, infer_spike_levels, why_real
from snngraph.graph import SpikingGraph, is_op, operand
from snngraph.models.calibration import calibrate
from snngraph.models.ma import att_res_snn18, ma_snn_gesture
from snngraph.models.pfa import pfa_vgg
from snngraph.models.spikingresformer import SpikingResformer
from snngraph.models.tcja import tcja_small
from snngraph.testing import parse, random_inputs
from tests.analysis.level_graphs import assert_levels, level_graphs, with_constants
from tests.passes.random_graphs import graphs

aten = torch.ops.aten
S = "s = flatten_time(lif(x).s)"
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _graph(expression: str, *statements: str) -> SpikingGraph:
    body = "\n".join([*statements, f"y = {expression}", "return y"])
    return with_constants(parse(f"x[3, N, 4, 6, 6] ->\n{S}\n{body}\n"))


def _of(expression: str, *statements: str) -> str:
    """The levels of an expression, ``real`` without any; checked on inputs."""
    graph = _graph(expression, *statements)
    found = assert_levels(graph, random_inputs(graph)).get(graph.output_nodes[0])
    return "real" if found is None else f"{found}{'' if found.exact else ', rounded'}"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("lif(x).s", "0..1"),
        ("select(x, 0, 0) + 0.0", "real"),
        ("lif_step(select(x, 0, 0)).s", "0..1"),
        ("lif(x, emit='signed', reset='soft').s", "-1..1"),
        ("lif(x, emit='count', reset='soft').s", "real"),
        ("lif(x).v", "real"),
        ("lif(x, with_h=True).h", "real"),
        ("lif(x, level=0.5).s", "0..1 * 1/2"),
        ("lif(x, level=0.1).s", "0..1 * 0.1, rounded"),
        ("lif(x, level=-2.0).s", "-1..0 * 2"),
        ("lif(x, level=w[4, 1, 1]).s", "real"),
        ("lif(x, level=whole[1, 4, 1, 1]).s", "-2..3"),
        ("lif(x, level=tenths[1, 4, 1, 1]).s", "real"),
        ("lif(x, level=sigmoid(amax(x, [0]))).s", "real"),
    ],
)
def test_neurons(expression: str, expected: str) -> None:
    assert _of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("permute(split_time(s), [1, 0, 2, 3, 4])", "0..1"),
        ("repeat(expand(select(s, 1, 0), [-1, 6, 6]), [1, 2, 1])", "0..1"),
        ("split_with_sizes(s, [1, 3], 1)[1]", "0..1"),
        ("unbind.int(s, 1)[-1]", "real"),  # no graph counts from the end
        ("cat([s, s * 0.5], 1)", "0..2 * 1/2"),
        ("stack([s, neg(s)])", "-1..1"),
        ("constant_pad_nd(s, [1, 1])", "0..1"),
        ("constant_pad_nd(s * 0.25, [1, 1], -1.0)", "-4..1 * 1/4"),
        ("constant_pad_nd(s, [1, 1], 0.3)", "real"),
        ("upsample_nearest2d.vec(s, [12, 12], None)", "0..1"),
        ("upsample_bilinear2d.vec(s, [12, 12], False, None)", "real"),
        ("replication_pad2d(s, [1, 1, 1, 1])", "0..1"),
        ("levels(s + s, 0, 2)", "0..2"),
        ("levels(x, 0, 2)", "real"),  # what it is said to be is no proof
        ("_to_copy(s, dtype='int64')", "0..1"),
        ("_to_copy(s * 0.5, dtype='int64')", "real"),
        ("_to_copy(s * 300.0, dtype='int64')", "0..1 * 300"),
        ("_to_copy(s * 100.0 + s * 55.0, dtype='uint8')", "real"),
        ("_to_copy(sum.dim_IntList(s, [1]), dtype='uint8')", "0..4"),
        ("_to_copy(neg(s), dtype='uint8')", "real"),
        ("_to_copy(mean(s, [1, 2, 3]) * 144.0, dtype='int64')", "real"),  # 0.99999994 would become 0
        ("_to_copy(mean(s, [1]) * 4.0, dtype='int64')", "0..4"),
        ("_to_copy(x, dtype='bool')", "0..1"),
    ],
)
def test_moved(expression: str, expected: str) -> None:
    assert _of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("max_pool2d(s, 2)", "0..1"),
        ("max_pool2d_with_indices(neg(s), [3, 3], [2, 2], [1, 1])[0]", "-1..0"),
        ("max_pool2d_with_indices(s, [3, 3], [2, 2], [1, 1])[1]", "real"),
        ("max_pool2d_with_indices(s, [2, 2], [1, 1], [1, 1], [5, 5])[0]", "real"),  # -inf in the corners
        ("max_pool2d_with_indices(s, [2, 2], [1, 1], [0, 0], [3, 3])[0]", "0..1"),
        ("adaptive_max_pool2d(s, [4, 4])[0]", "0..1"),
        ("avg_pool2d(s, [2, 2])", "0..4 * 1/4"),
        ("avg_pool2d(s, [3, 3])", "0..9 * 1/9, rounded"),
        ("avg_pool2d(s, [3, 3], [2, 2], [1, 1])", "0..9 * 1/9, rounded"),
        ("avg_pool2d(s + 1.0, [2, 2], [1, 1], [1, 1])", "0..8 * 1/4"),  # a corner holds one element
        ("avg_pool2d(s, [3, 3], [2, 2], [1, 1], False, False)", "real"),
        ("avg_pool2d(s, [2, 2], [2, 2], [0, 0], False, False)", "0..4 * 1/4"),
        ("avg_pool2d(s, [4, 4], [4, 4], [0, 0], True)", "real"),
        ("avg_pool2d(s, [2, 2], [2, 2], [0, 0], True)", "0..4 * 1/4"),
        ("avg_pool2d(s, [4, 4], [4, 4], [0, 0], True, True, 8)", "0..16 * 1/8"),
        ("avg_pool2d(s, [2, 2], [2, 2], [0, 0], False, True, -1)", "-4..0"),
        ("avg_pool1d(reshape(s, [-1, 4, 36]), [4], [4], [2])", "0..4 * 1/4"),
        ("_adaptive_avg_pool2d(s, [3, 2])", "0..6 * 1/6, rounded"),
        ("_adaptive_avg_pool2d(s, [4, 4])", "real"),
    ],
)
def test_pooling(expression: str, expected: str) -> None:
    assert _of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("mean(s, [2, 3])", "0..36 * 1/36, rounded"),
        ("mean(split_time(s), [0])", "0..3 * 1/3, rounded"),
        ("mean(split_time(s), [0]) * 3.0", "0..3, rounded"),
        ("mean(s, [1]) * 4.0", "0..4"),
        ("mean(s, [0])", "real"),  # time and batch are one dimension here
        ("sum.dim_IntList(split_time(s), [1])", "real"),
        ("sum.dim_IntList(s, [-1, 1], True)", "0..24"),
        ("sum.dim_IntList(gt.Scalar(x, 0.0), [-1])", "0..6"),
        ("cumsum(neg(s), 1)", "-4..0"),
        ("amax(split_time(s) * 0.5, [0, 1])", "0..1 * 1/2"),
        ("max.dim(s, 1)[0]", "0..1"),
        ("bmm(reshape(s, [-1, 6, 6]), reshape(s * 0.5, [-1, 6, 6]))", "0..6 * 1/2"),
        ("mm(reshape(s, [-1, 12]), permute(reshape(s, [-1, 12]), [1, 0]))", "0..12"),
        ("mean(mm(reshape(s, [-1, 12]), permute(reshape(s, [-1, 12]), [1, 0])), [1])", "real"),  # of all samples
        ("sum.dim_IntList(ge.Scalar(mm(reshape(x, [-1, 12]), permute(reshape(x, [-1, 12]), [1, 0])), 0.0), [1])", "real"),
        ("mm(permute(reshape(s, [-1, 12]), [1, 0]), reshape(s, [-1, 12]))", "real"),
    ],
)
def test_sums(expression: str, expected: str) -> None:
    assert _of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("s + s", "0..2"),
        ("s * rsub.Scalar(s, 1.0)", "0..1"),
        ("add.Tensor(s, s, alpha=-3)", "-3..1"),
        ("s * 0.5 + s * 0.75", "0..5 * 1/4"),
        ("s * 0.1 + s * 0.1", "0..2 * 0.1, rounded"),
        ("s * 0.1 + s * 0.3", "real"),  # as floats they have no common measure of use
        ("avg_pool2d(s, [2, 2]) + avg_pool2d(s, [2, 2]) / 3.0", "0..16 * 1/12, rounded"),
        ("s + 0.5", "1..3 * 1/2"),
        ("(s - s) * (s - s)", "-1..1"),
        ("abs(s - 2.0)", "1..2"),
        ("neg(s) * neg(s)", "0..1"),
        ("pow.Tensor_Scalar(s - s, 2)", "0..1"),
        ("pow.Tensor_Scalar(s, 0.5)", "real"),
        ("s / -4.0", "-1..0 * 1/4"),
        ("s / 0.0", "real"),
        ("s / (s + 1.0)", "real"),
        ("div.Tensor(1.0, s + 1.0)", "real"),
        ("relu(s - 2.0)", "0..0"),
        ("clamp(s + s, 0.0, 1.0)", "0..1"),
        ("clamp(s, -0.3, 1.7)", "0..1"),
        ("clamp(s, 0.001)", "real"),
        ("hardtanh(s * -4.0, -1.0, 1.0)", "-1..0"),
        ("maximum(s, s * 0.5)", "0..2 * 1/2"),
        ("minimum(s - 1.0, s)", "-1..0"),
        ("where.self(gt.Scalar(s, 0.5), s, neg(s))", "-1..1"),
        ("where.self(gt.Scalar(s, 0.5), s, sigmoid(s))", "real"),
        ("masked_fill.Scalar(s, gt.Scalar(s, 0.5), 3.0)", "0..3"),
        ("masked_fill.Scalar(s, gt.Scalar(s, 0.5), -inf)", "real"),
        ("logical_not(x)", "0..1"),
        ("sign(s - s)", "-1..1"),
        ("sign(avg_pool2d(s, [3, 3]) - mean(s, [2, 3], True))", "real"),  # of what may be 1e-9 instead of 0
        ("floor(s + s)", "0..2"),
        ("floor(s * 0.5)", "real"),
        ("sigmoid(s)", "real"),
        ("s * sigmoid(mean(s, [2, 3], True))", "real"),
        ("batch_norm(s, g[4], e[4], m[4], v[4])", "real"),
        ("s * w[1, 4, 1, 1]", "real"),
        ("s * whole[1, 4, 1, 1]", "-2..3"),
        ("s * tenths[1, 4, 1, 1]", "-2..4 * 0.1, rounded"),
        ("ones_like(s) - s", "0..1"),
        ("s * full_like(s, 0.25)", "0..1 * 1/4"),
        ("empty_like(s)", "real"),
        ("s * 4096.0 + s * 4095.0", "0..8191"),
        ("s * 3.0 / 3.0", "0..1, rounded"),  # as a product with 0.33333334 it may be
        ("(s * 4097.0) * (s * 4097.0)", "0..1 * 16785409, rounded"),
        ("(s * 4096.0 + s) * (s * 4096.0 + s)", "real"),  # float32 holds no 4097*4097
    ],
)
def test_arithmetic(expression: str, expected: str) -> None:
    assert _of(expression) == expected


def test_a_constant_that_is_not_finite_has_no_levels() -> None:
    graph = _graph("s * whole[1, 4, 1, 1]")
    next(t for name, t in graph.tensors().items() if name == "whole")[0, 0] = torch.inf
    assert graph.output_nodes[0] not in infer_spike_levels(graph)


def test_a_fixed_batch_is_a_size_like_others() -> None:
    graph = _graph("mean(s, [0])")
    graph.facts = replace(graph.facts, free_batch=False)
    assert infer_spike_levels(graph)[graph.output_nodes[0]] == Levels(0, 6, Fraction(1, 6), exact=False)


def test_the_reason_names_the_operator_that_lost_the_levels() -> None:
    graph = _graph("reshape(avg_pool2d(sigmoid(s), [2, 2]), [-1, 36]) * 2.0")
    assert why_real(graph)[graph.output_nodes[0]] == "sigmoid: aten.sigmoid.default"
    graph = _graph("avg_pool2d(s, [3, 3], [2, 2], [1, 1], False, False) * 2.0")
    assert why_real(graph)[graph.output_nodes[0]] == "avg_pool2d: windows at the edges have another divisor"


def test_every_node_has_levels_or_a_reason() -> None:
    graph = _graph("linear(reshape(s, [-1, 144]), u[5, 144], b[5]) * 2.0", "q = lif(x, emit='count', reset='soft').s")
    found, reasons = infer_spike_levels(graph), why_real(graph)
    tensors = {n for n in graph.nodes if n.op != "output" and isinstance(n.meta["val"], torch.Tensor)}
    assert found.keys().isdisjoint(reasons)
    assert tensors <= found.keys() | reasons.keys()
    assert all(reasons.values())


@relaxed
@given(graph=level_graphs())
def test_levels_hold(graph: SpikingGraph) -> None:
    for seed in range(2):
        assert_levels(graph, random_inputs(graph, seed=seed))


@settings(relaxed, max_examples=10)
@given(graph=graphs())
def test_levels_hold_in_random_networks(graph: SpikingGraph) -> None:
    assert_levels(graph, random_inputs(graph))


# -- models ----------------------------------------------------------------------------------------------------------------------


def _image() -> Tensor:
    return torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def _events(steps: int, size: int) -> Tensor:
    counts = torch.poisson(torch.full((steps, 1, 2, size, size), 0.5), generator=torch.Generator().manual_seed(1))
    return counts.clamp(max=4)


# The model, its example, and its layers with weights that take something else than spikes.
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, str]]] = {
    "SpikingResformer": (
        lambda: SpikingResformer(2, 32, 5),
        _image,
        {"stem.conv": "real", "classifier": "real"},
    ),
    "Att-Res-SNN": (
        lambda: att_res_snn18(2, num_classes=5, img_size=32, channels=(8, 8, 16, 16)),
        _image,
        {"stem.conv": "real", "*.shortcut.conv": "real", "*.attention.*": "real", "fc": "0..2 * 1/2"},
    ),
    "MA-SNN": (
        lambda: ma_snn_gesture("TCSA", 5, size=16, channels=(8, 8, 8), hidden=16),
        lambda: _events(5, 16),
        {"features.conv1.conv": "real", "*.attention?.*": "real"},
    ),
    "TCJA": (
        lambda: tcja_small(T=4),
        lambda: _events(4, 24),
        {
            "features.conv1.conv": "real",
            "features.conv3.conv": "real",  # its input is gated
            "classifier.fc1": "real",
            "features.tcja2.*": "0..144 * 1/144",
            "features.tcja3.*": "0..36 * 1/36",
        },
    ),
    "PFA": (
        lambda: pfa_vgg("cifar10dvs", T=4, rank=8, size=16, channels=(8,) * 8),
        lambda: _events(4, 16),
        {
            "features.pfa0.*": "real",
            "features.conv[1357].conv": "real",  # gated
            "features.pfa[2468].spatial": "0..32 * 1/32",
            "features.pfa2.*": "0..256 * 1/256",
            "features.pfa4.*": "0..64 * 1/64",
            "features.pfa6.*": "0..16 * 1/16",
            "features.pfa8.*": "0..4 * 1/4",
            "classifier.fc": "real",
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str) -> None:
    build, example, others = MODELS[name]
    torch.manual_seed(0)
    model, x = build().eval(), example()
    calibrate(model, x, 0.05, 0.3)
    graph = snngraph.optimize(snngraph.trace(model, x), precision="fp32")
    found = assert_levels(graph, random_inputs(graph))
    for node in graph.nodes:
        if is_op(node, aten.convolution.default, aten.linear.default):
            layer = re.sub(r"\.weight.*", "", str(operand(node, 1).target))
            expected = next((levels for pattern, levels in others.items() if fnmatch(layer, pattern)), "0..1")
            assert str(found.get(operand(node), "real")) == expected, layer
