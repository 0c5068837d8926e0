"""Bounds of values, proved by interval arithmetic: which gates can not be negative, which can not be zero.

Every node with one tensor gets an interval ``[low, high]`` that holds all its entries whatever the inputs are, NaN aside. An
operator that is not listed has no bounds. ``sigmoid`` lies in ``[0, 1]``, the ends included: in floating point it reaches both.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from snngraph.graph import OUTPUT_NAMES, RESHAPE, SpikingGraph, arguments, is_neuron, is_op, operand

__all__ = ["Interval", "bounds"]

aten = torch.ops.aten

Interval: TypeAlias = tuple[float, float]
_ALL: Interval = (-math.inf, math.inf)

_SAME = frozenset(
    (
        *(RESHAPE, aten.permute.default, aten.expand.default, aten.select.int, aten.slice.Tensor, aten.clone.default),
        *(aten.mean.dim, aten.amax.default, aten.amin.default, aten.max_pool2d_with_indices.default, aten.index_select.default),
        *(aten.max_pool3d_with_indices.default, aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default),
        *(aten.adaptive_avg_pool1d.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.repeat.default),
        *(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default, aten.max.dim, aten.min.dim),
    )
)
"""Operators whose results are among, or between, the entries of their input."""
_AVERAGE_POOLS = frozenset((aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default))  # padding brings zeros


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0.0 or b == 0.0 else a * b


def _mul(a: Interval, b: Interval) -> Interval:
    ends = [_product(p, q) for p in a for q in b]
    return min(ends), max(ends)


def _add(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1]


def _relu(a: Interval) -> Interval:
    return max(a[0], 0.0), max(a[1], 0.0)


def _sigmoid(a: Interval) -> Interval:
    low, high = (0.0 if x < -700 else 1.0 / (1.0 + math.exp(-x)) for x in a)
    return low, high


def _exp(a: Interval) -> Interval:
    low, high = (math.inf if x > 700 else math.exp(x) for x in a)
    return low, high


def _absolute(a: Interval) -> Interval:
    low = 0.0 if a[0] <= 0.0 <= a[1] else min(map(abs, a))
    return low, max(map(abs, a))


def _monotone(function: Callable[[float], float]) -> Callable[[Interval], Interval]:
    return lambda a: (function(a[0]), function(a[1]))


_UNARY: dict[Any, Callable[[Interval], Interval]] = {
    aten.relu.default: _relu,
    aten.sigmoid.default: _sigmoid,
    aten.tanh.default: _monotone(math.tanh),
    aten.exp.default: _exp,
    aten.abs.default: _absolute,
    aten.neg.default: lambda a: (-a[1], -a[0]),
    aten.sqrt.default: lambda a: (math.sqrt(max(a[0], 0.0)), math.sqrt(max(a[1], 0.0))),
    aten.softplus.default: lambda _: (0.0, math.inf),
    aten.hardsigmoid.default: lambda _: (0.0, 1.0),
    aten._softmax.default: lambda _: (0.0, 1.0),
    aten.reciprocal.default: lambda a: (1.0 / a[1] if a[1] else math.inf, 1.0 / a[0]) if a[0] > 0.0 else _ALL,
    aten.rsqrt.default: lambda a: (a[1] ** -0.5 if a[1] else math.inf, a[0] ** -0.5) if a[0] > 0.0 else _ALL,
}


def bounds(graph: SpikingGraph) -> dict[fx.Node, Interval]:
    """An interval for every node with one tensor, or whose first output is meant (pooling with indices)."""
    found: dict[fx.Node, Interval] = {}
    for node in graph.nodes:
        if node.op == "get_attr":
            found[node] = _constant(graph.constant(node))
        elif node.op == "call_function":
            low, high = _call(node, found)
            found[node] = _ALL if math.isnan(low) or math.isnan(high) else (low, high)
    return found


def _constant(value: Tensor | None) -> Interval:
    if value is None or not value.numel() or value.dtype == torch.bool:
        return _ALL
    low, high = (float(x) for x in torch.aminmax(value))
    return _ALL if math.isnan(low) else (low, high)


def _call(node: fx.Node, found: dict[fx.Node, Interval]) -> Interval:
    target: Any = node.target

    def of(a: object) -> Interval:
        if isinstance(a, fx.Node):
            return found.get(a, _ALL)
        return (float(a), float(a)) if isinstance(a, int | float) else _ALL

    if target is operator.getitem:
        return _output(node, found)
    if target in _SAME:
        return of(operand(node))
    if target in _AVERAGE_POOLS:
        low, high = of(operand(node))
        if arguments(node).get("divisor_override") is not None:
            return _ALL
        return min(low, 0.0), max(high, 0.0)
    if target in _UNARY:
        return _UNARY[target](of(operand(node)))
    if is_op(node, aten.mul.Tensor):
        a, b = operand(node), operand(node, 1)
        low, high = _mul(of(a), of(b))
        return (max(low, 0.0), high) if a is b else (low, high)
    if is_op(node, aten.div.Tensor):
        low, high = of(operand(node, 1))
        return _mul(of(operand(node)), (1.0 / high, 1.0 / low)) if low > 0.0 else _ALL
    if is_op(node, aten.add.Tensor, aten.sub.Tensor):
        alpha = float(arguments(node)["alpha"])
        alpha = -alpha if is_op(node, aten.sub.Tensor) else alpha
        return _add(of(operand(node)), _mul((alpha, alpha), of(operand(node, 1))))
    if is_op(node, aten.sum.dim_IntList):
        low, high = of(operand(node))
        return (low if low >= 0.0 else -math.inf), (high if high <= 0.0 else math.inf)
    if is_op(node, aten.clamp.default, aten.clamp_min.default, aten.hardtanh.default):
        return _clamped(node, of(operand(node)))
    if is_op(node, aten.maximum.default):
        a, b = of(operand(node)), of(operand(node, 1))
        return max(a[0], b[0]), max(a[1], b[1])
    if is_op(node, aten.minimum.default):
        a, b = of(operand(node)), of(operand(node, 1))
        return min(a[0], b[0]), min(a[1], b[1])
    if is_op(node, aten.where.self):
        return _hull([of(a) for a in node.args[1:]])
    if is_op(node, aten.cat.default, aten.stack.default):
        return _hull([of(a) for a in operand(node)])
    if is_op(node, aten.bmm.default, aten.mm.default):
        low, high = _mul(of(operand(node)), of(operand(node, 1)))
        return (0.0 if low >= 0.0 else -math.inf), (0.0 if high <= 0.0 else math.inf)
    if is_op(node, aten.convolution.default, aten.linear.default):
        bias = of(arguments(node)["bias"]) if arguments(node)["bias"] is not None else (0.0, 0.0)
        low, high = _mul(of(operand(node)), of(operand(node, 1)))
        return (bias[0] if low >= 0.0 else -math.inf), (bias[1] if high <= 0.0 else math.inf)
    if is_op(node, aten.pow.Tensor_Scalar) and operand(node, 1) in (2, 2.0, 4, 4.0):
        return 0.0, math.inf
    return _ALL


def _output(node: fx.Node, found: dict[fx.Node, Interval]) -> Interval:
    source, k = operand(node), operand(node, 1)
    if is_neuron(source) and OUTPUT_NAMES[k] == "s":
        given = arguments(source)
        positive = found.get(given["threshold"], _ALL)[0] > 0.0  # a count divides by the threshold
        emitted = {"spike": (0.0, 1.0), "count": (0.0, math.inf) if positive else _ALL, "signed": (-1.0, 1.0)}[given["emit"]]
        level = (1.0, 1.0) if given["level"] is None else found.get(given["level"], _ALL)
        return _mul(emitted, level)
    if not is_neuron(source) and k == 0 and getattr(source, "target", None) in _SAME:
        return found.get(source, _ALL)
    return _ALL


def _clamped(node: fx.Node, a: Interval) -> Interval:
    given = arguments(node)
    low, high = (given.get("min_val", given.get("min")), given.get("max_val", given.get("max")))
    least = low if isinstance(low, int | float) else -math.inf
    most = high if isinstance(high, int | float) else math.inf
    return min(max(a[0], least), most), min(max(a[1], least), most)


def _hull(parts: list[Interval]) -> Interval:
    return min((p[0] for p in parts), default=-math.inf), max((p[1] for p in parts), default=math.inf)
