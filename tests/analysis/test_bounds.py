"""Bounds hold for what a graph computes, and prove what the passes need."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, fx

from snngraph.analysis.bounds import bounds
from snngraph.graph import SpikingGraph
from snngraph.testing import parse, random_inputs
from tests.passes.random_graphs import graphs


def _of(expression: str, *statements: str, batch: int = 2) -> tuple[float, float]:
    body = "\n".join([*statements, f"y = {expression}", "return y"])
    graph = parse(f"x[3, N, 4, 6, 6] ->\n{body}\n", batch=batch)
    return bounds(graph)[graph.output_nodes[0]]


@pytest.mark.parametrize(
    ("expression", "low", "high"),
    [
        ("sigmoid(x)", 0.0, 1.0),
        ("clamp(sigmoid(x), 0.001)", 0.001, 1.0),
        ("sigmoid(x) + 0.5", 0.5, 1.5),
        ("sigmoid(x) - 2.0", -2.0, -1.0),
        ("relu(x)", 0.0, math.inf),
        ("relu(x) * sigmoid(x)", 0.0, math.inf),
        ("x * x", 0.0, math.inf),
        ("abs(x)", 0.0, math.inf),
        ("exp(x)", 0.0, math.inf),
        ("neg(sigmoid(x))", -1.0, 0.0),
        ("tanh(x)", -1.0, 1.0),
        ("mean(sigmoid(x), [2, 3])", 0.0, 1.0),
        ("amax(neg(relu(x)), [2])", -math.inf, 0.0),
        ("sum.dim_IntList(sigmoid(x), [2])", 0.0, math.inf),
        ("lif(x, threshold=1.0).s", 0.0, 1.0),
        ("lif(x, threshold=1.0, level=2.0).s", 0.0, 2.0),
        ("lif(x, threshold=1.0, emit='signed', reset='soft').s", -1.0, 1.0),
        ("lif(x, threshold=1.0, emit='count', reset='soft').s", 0.0, math.inf),
        ("max_pool2d(flatten_time(sigmoid(x)), 2)", 0.0, 1.0),
        ("sigmoid(x) / (sigmoid(x) + 1.0)", 0.0, 1.0),
        ("x - 1.0", -math.inf, math.inf),
        ("lif(x, threshold=1.0).v", -math.inf, math.inf),
        ("sigmoid(x) / sigmoid(x)", -math.inf, math.inf),  # by what may be zero
    ],
)
def test_what_is_proved(expression: str, low: float, high: float) -> None:
    assert _of(expression) == pytest.approx((low, high))


def test_constants_count() -> None:
    graph = parse("x[2, N, 4] ->\ny = x * w[4]\nreturn y\n")
    (constant,) = (n for n in graph.nodes if n.op == "get_attr")
    value = graph.constant(constant)
    assert value is not None
    assert bounds(graph)[constant] == (float(value.min()), float(value.max()))


class _Watch(fx.Interpreter):
    """Runs a graph and compares every value with its bounds."""

    def __init__(self, graph: SpikingGraph) -> None:
        super().__init__(graph.module)
        self.bounds = bounds(graph)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.bounds and isinstance(value, Tensor) and value.numel() and value.is_floating_point():
            low, high = self.bounds[n]
            assert float(value.min()) >= low - 1e-9, n
            assert float(value.max()) <= high + 1e-9, n
        return value


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graph=graphs())
def test_every_value_lies_within_its_bounds(graph: SpikingGraph) -> None:
    with torch.no_grad():
        _Watch(graph).run(*random_inputs(graph))


@pytest.mark.parametrize(
    "expression",
    [
        "avg_pool2d(sigmoid(flatten_time(x)), [2, 2], [2, 2], [0, 0], False, True, 1)",
        "avg_pool2d(sigmoid(flatten_time(x)), [2, 2], [2, 2], [0, 0], False, True, -1)",
        "avg_pool2d(sigmoid(flatten_time(x)) + 1.0, [3, 3], [2, 2], [1, 1], False, True)",
        "add.Tensor(sigmoid(x) + 0.5, sigmoid(x) + 1.0, alpha=0)",
        "add.Tensor(sigmoid(x), sigmoid(x), alpha=-2)",
        "sub.Tensor(sigmoid(x), sigmoid(x), alpha=3)",
        "lif(x, threshold=-0.5, emit='count', reset='soft').s",
        "lif(x, threshold=0.5, level=-2.0).s",
        "sigmoid(x) / (sigmoid(x) + 0.25)",
        "neg(sigmoid(x)) / (sigmoid(x) + 0.25)",
        "where.self(gt.Scalar(x, 0.0), sigmoid(x), neg(sigmoid(x)))",
        "clamp(x, -0.5, 0.25) * clamp(x, -0.25, 2.0)",
        "conv2d(flatten_time(sigmoid(x)), relu(w[3, 4, 3, 3]), b[3], padding=1)",
        "_softmax(x, 2, False)",
        "sum.dim_IntList(neg(sigmoid(x)), [2])",
        "maximum(sigmoid(x), x) + minimum(sigmoid(x), x)",
        "pow.Tensor_Scalar(x, 2.0) + abs(x)",
        "sqrt(abs(x)) + rsqrt(abs(x) + 0.1) + reciprocal(sigmoid(x) + 0.1)",
        "cat([sigmoid(x), neg(sigmoid(x))], 2)",
        "tanh(x) * tanh(x) - exp(clamp(x, -1.0, 1.0))",
    ],
)
def test_spelled_out_operators_lie_within_their_bounds(expression: str) -> None:
    graph = parse(f"x[3, N, 4, 6, 6] ->\ny = {expression}\nreturn y\n")
    with torch.no_grad():
        for seed in range(3):
            _Watch(graph).run(*random_inputs(graph, seed=seed))
