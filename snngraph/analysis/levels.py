"""Which tensors hold small integers times one constant: spikes, and what sums, pooling and residual additions make of them.

A tensor has levels if, whatever the inputs are, each of its elements is ``scale * k`` with an integer ``k`` in ``low..high``.
Every operator has a rule that gives the levels of its result from those of its operands. An operator without a rule gives none,
nor does a count that depends on the batch size: such a tensor is real.

In floating point a tensor with levels is off by rounding alone, and :attr:`Levels.exact` says where it is not off at all: where
all scales on the way are such as a float holds. A mean over nine spikes is rounded, so nine times that mean is only almost an
integer, and a cast of it to integers has no levels.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx

from snngraph.analysis.multiples import Levels, RealError, hull
from snngraph.graph import LEVELS, LIF, LIF_STEP, RESHAPE, SpikingGraph, arguments, operand, shape_of

__all__ = ["Levels", "infer_spike_levels", "same_divisor", "why_real"]

aten = torch.ops.aten

_Found: TypeAlias = "Levels | tuple[Levels | None, ...]"
_Rule: TypeAlias = "Callable[[_Scope, fx.Node, dict[str, Any]], _Found]"
_R = TypeVar("_R", bound=Callable[..., Any])
_RULES: dict[Any, _Rule] = {}


def infer_spike_levels(graph: SpikingGraph) -> dict[fx.Node, Levels]:
    """The levels of every node with one tensor that has some; boolean tensors are ``0..1``. What is absent is real."""
    return _Scope(graph).found


def why_real(graph: SpikingGraph) -> dict[fx.Node, str]:
    """Why the nodes with one tensor that have no levels have none: the operator that lost them, and the reason."""
    return _Scope(graph).reasons


class _OperandError(RealError):
    """An operand has no levels; for its reason."""


class _Scope:
    """The levels of a graph, found in order, and the sizes that are the same at every batch size."""

    def __init__(self, graph: SpikingGraph) -> None:
        self.graph = graph
        self.found: dict[fx.Node, Levels] = {}
        self.several: dict[fx.Node, tuple[Levels | None, ...]] = {}
        self.reasons: dict[fx.Node, str] = {}
        self._varies = _sizes_of_the_batch(graph)
        for node in graph.nodes:
            try:
                self._infer(node)
            except _OperandError as error:
                self.reasons[node] = str(error)
            except RealError as error:
                self.reasons[node] = f"{node.name}: {error}"

    def _infer(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            found = self._by_rule(node) if node.op == "call_function" else ()
            self.several[node] = found if isinstance(found, tuple) else ()
            return
        found = Levels(0, 1) if value.dtype == torch.bool else self._by_rule(node)
        assert isinstance(found, Levels)
        self.found[node] = found.held_as(value.dtype)

    def _by_rule(self, node: fx.Node) -> _Found:
        if node.op == "get_attr":
            value = self.graph.constant(node)
            assert value is not None
            return Levels.of_tensor(value)
        rule = _RULES.get(node.target)
        if rule is None:
            raise RealError("an input" if node.op == "placeholder" else str(node.target))
        return rule(self, node, {} if node.target is operator.getitem else arguments(node))

    def of(self, a: object) -> Levels:
        """The levels of an operand, which may be a number.

        Raises:
            RealError: it has none.
        """
        if isinstance(a, int | float):
            return Levels.of_number(a)
        if isinstance(a, fx.Node) and a in self.found:
            return self.found[a]
        raise _OperandError(self.reasons.get(a, "") if isinstance(a, fx.Node) else f"{a} is no tensor")

    def size(self, x: fx.Node, *dims: int) -> int:
        """How many elements lie along ``dims``.

        Raises:
            RealError: that depends on the batch size.
        """
        shape = shape_of(x)
        over = {d % len(shape) for d in dims} if shape else set()
        if over & self._varies.get(x, set()):
            raise RealError(f"what is made of {x.name} depends on the batch size")
        return math.prod(shape[d] for d in over)


def _sizes_of_the_batch(graph: SpikingGraph) -> dict[fx.Node, set[int]]:
    """All dimensions that grow with the batch: there are two where samples met in a product."""
    if not graph.free_batch:
        return {}
    pairs = zip(graph.nodes, graph.at_batch(graph.batch + 1).nodes, strict=True)
    return {
        node: {d for d, (m, n) in enumerate(zip(shape_of(node), shape_of(wide), strict=True)) if m != n}
        for node, wide in pairs
        if isinstance(node.meta.get("val"), Tensor)
    }


# -- rules ---------------------------------------------------------------------------------------------------------------------


def _on(*targets: Any) -> Callable[[_R], _R]:
    def register(rule: _R) -> _R:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


@_on(operator.getitem)
def _output(scope: _Scope, node: fx.Node, _: dict[str, Any]) -> Levels:
    source, k = operand(node), operand(node, 1)
    found = scope.several.get(source, ())[k : k + 1] if isinstance(k, int) and k >= 0 else ()
    if found and found[0] is not None:
        return found[0]
    raise _OperandError(scope.reasons.get(source) or f"{node.name}: output {k} of {source.name}")


@_on(LIF, LIF_STEP)
def _neuron(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> _Found:
    """A count has no bound. A level that is not one number has to be an integer for every neuron."""
    if given["emit"] == "count":
        raise RealError("a count of spikes without a bound")
    emitted = Levels(-1 if given["emit"] == "signed" else 0, 1)
    level = Levels(1, 1) if given["level"] is None else scope.of(given["level"])
    if level.constant is None and not (level.exact and level.unit == 1):
        raise RealError("levels that differ from neuron to neuron")
    return emitted * level, None, None, None


# fmt: off
SAME = frozenset((
    RESHAPE, aten.view.default, aten._unsafe_view.default, aten.view_copy.default, aten.unsqueeze.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.flatten.using_ints, aten.unflatten.int, aten.permute.default, aten.transpose.int,
    aten.t.default, aten.expand.default, aten.expand_as.default, aten.repeat.default, aten.clone.default, aten.alias.default,
    aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default, aten._to_copy.default, aten.select.int,
    aten.slice.Tensor, aten.flip.default, aten.roll.default, aten.unfold.default, aten.diagonal.default,
    aten.pixel_shuffle.default, aten.index_select.default, aten.gather.default, aten.index.Tensor, aten._unsafe_index.Tensor,
    aten.embedding.default, aten.amax.default, aten.amin.default, aten.max.default, aten.min.default, LEVELS,
    *(getattr(aten, f"{kind}_pad{rank}d").default for kind in ("reflection", "replication") for rank in (1, 2, 3)),
    *(getattr(getattr(aten, f"upsample_nearest{rank}d"), name) for name in ("default", "vec") for rank in (1, 2, 3)),
))
"""Operators whose results are among the elements of their first operand; which ones, its order alone may decide."""
SPLITS = frozenset((
    aten.split.Tensor, aten.split_with_sizes.default, aten.split_with_sizes_copy.default, aten.unbind.int, aten.chunk.default,
))
EXTREMES = frozenset((
    aten.max.dim, aten.min.dim, aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default, aten.sort.default,
    aten.topk.default,
))
"""Operators that give elements of their operand and their positions."""
MAX_POOLS = frozenset((
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
))
AVERAGE_POOLS: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}
ADAPTIVE_POOLS = frozenset((
    aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default, aten.adaptive_avg_pool1d.default,
))
# fmt: on


def _sign(x: Levels) -> Levels:
    return Levels(max(min(x.low, 1), -1), max(min(x.high, 1), -1), exact=_exact(x))


def _whole(x: Levels) -> Levels:
    if x.unit.denominator != 1:
        raise RealError("fractions are rounded")
    return replace(x, exact=_exact(x))


def _exact(x: Levels) -> bool:
    if x.exact:
        return True
    raise RealError("what was rounded may jump")


def _squared(x: Levels) -> Levels:
    return abs(x) * abs(x)


_UNARY: dict[Any, Callable[[Levels], Levels]] = {
    **dict.fromkeys(SAME, lambda x: x),
    **dict.fromkeys((aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default), _whole),
    aten.neg.default: lambda x: -x,
    aten.abs.default: abs,
    aten.relu.default: lambda x: x.at_least(Levels(0, 0)),
    aten.sign.default: _sign,
    aten.square.default: _squared,
}
_BINARY: dict[Any, Callable[[Levels, Levels], Levels]] = {
    aten.maximum.default: Levels.at_least,
    aten.minimum.default: Levels.at_most,
    **dict.fromkeys((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar), hull),
}


@_on(*_UNARY)
def _of_one(scope: _Scope, node: fx.Node, _: dict[str, Any]) -> Levels:
    return _UNARY[node.target](scope.of(operand(node)))


@_on(*_BINARY)
def _of_two(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    return _BINARY[node.target](scope.of(given["self"]), scope.of(given["other"]))


@_on(*SPLITS)
def _parts(scope: _Scope, node: fx.Node, _: dict[str, Any]) -> _Found:
    return (scope.of(operand(node)),) * len(node.meta["val"])


@_on(*EXTREMES)
def _extremes(scope: _Scope, node: fx.Node, _: dict[str, Any]) -> _Found:
    return scope.of(operand(node)), None


@_on(*MAX_POOLS)
def _max_pool(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> _Found:
    """Padding never wins. But with a dilation a window may hold nothing else, which makes it -inf."""
    if any(d != 1 for d in given["dilation"]) and (any(given["padding"]) or given["ceil_mode"]):
        raise RealError("a dilated window may lie in the padding")
    x = scope.of(operand(node))
    return x if isinstance(node.meta["val"], Tensor) else (x, None)


@_on(aten.cat.default, aten.stack.default)
def _joined(scope: _Scope, _: fx.Node, given: dict[str, Any]) -> Levels:
    return hull(*(scope.of(part) for part in given["tensors"]))


@_on(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.constant_pad_nd.default)
@_on(aten.select_scatter.default, aten.slice_scatter.default, aten.scatter.src, aten.scatter.value)
def _written(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    return hull(scope.of(operand(node)), scope.of(given["value"] if "value" in given else given["src"]))


@_on(aten.copy.default)
def _copied(scope: _Scope, _: fx.Node, given: dict[str, Any]) -> Levels:
    return scope.of(given["src"])


@_on(aten.ones.default, aten.ones_like.default, aten.new_ones.default)
@_on(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
@_on(aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default)
def _filled(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    fill = given.get("fill_value", given.get("s", float("ones" in str(node.target))))
    return scope.of(fill)


@_on(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor, aten.rsub.Scalar)
def _sum(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    a, b = scope.of(given["self"]), scope.of(given["other"])
    if node.target in (aten.rsub.Tensor, aten.rsub.Scalar):
        a, b = b, a
    b = b * scope.of(given["alpha"])
    return a + b if node.target in (aten.add.Tensor, aten.add.Scalar) else a - b


@_on(aten.mul.Tensor, aten.mul.Scalar)
def _product(scope: _Scope, _: fx.Node, given: dict[str, Any]) -> Levels:
    a, b = scope.of(given["self"]), scope.of(given["other"])
    return _squared(a) if given["self"] is given["other"] else a * b


@_on(aten.pow.Tensor_Scalar)
def _power(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    if given["exponent"] != 2:  # other powers are no products: they are rounded as an engine likes
        raise RealError("a power")
    return _squared(scope.of(operand(node)))


@_on(aten.div.Tensor, aten.div.Scalar)
def _quotient(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    by = scope.of(given["other"])
    if by.constant is None:
        raise RealError("a division by what varies")
    return scope.of(given["self"]).over(by.constant)


@_on(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default)
@_on(aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamped(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    x = scope.of(operand(node))
    least, most = given.get("min_val", given.get("min")), given.get("max_val", given.get("max"))
    if least is not None and not (isinstance(least, int | float) and least <= x.low * x.unit):
        x = x.at_least(scope.of(least))
    if most is not None and not (isinstance(most, int | float) and most >= x.high * x.unit):
        x = x.at_most(scope.of(most))
    return x


# -- sums ------------------------------------------------------------------------------------------------------------------------


@_on(aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default)
def _reduced(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    x, dim = operand(node), given.get("dim")
    count = scope.size(x, *([dim] if isinstance(dim, int) else dim or range(len(shape_of(x)))))
    total = scope.of(x).times(count)
    return total.over(count) if node.target in (aten.mean.dim, aten.mean.default) else total


@_on(aten.cumsum.default)
def _cumulated(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    x: fx.Node = operand(node)
    return hull(scope.of(x), scope.of(x).times(scope.size(x, given["dim"])))


@_on(*AVERAGE_POOLS)
def _average_pool(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    """A window's sum may miss what lies outside, but all windows have one divisor."""
    x, rank = operand(node), AVERAGE_POOLS[node.target]
    scope.size(x, *range(-rank, 0))
    total = scope.of(x).times(math.prod(_per_dim(given["kernel_size"], rank)))
    divisor = same_divisor(shape_of(x)[-rank:], given)
    if divisor is None:
        raise RealError("windows at the edges have another divisor")
    return (hull(total, Levels(0, 0)) if any(given["padding"]) or given["ceil_mode"] else total).over(divisor)


def same_divisor(sizes: Sequence[int], given: dict[str, Any]) -> int | None:
    """What an average pooling of ``sizes`` divides every window's sum by; ``None`` where windows at the edges have another."""
    rank = len(sizes)
    kernel, pad = _per_dim(given["kernel_size"], rank), _per_dim(given["padding"], rank)
    stride = _per_dim(given["stride"], rank) if given["stride"] else kernel
    if (override := given.get("divisor_override")) is not None:
        return int(override)
    beyond = given["ceil_mode"] and any((n + 2 * p - k) % s for n, p, k, s in zip(sizes, pad, kernel, stride, strict=True))
    return None if beyond or (any(pad) and not given["count_include_pad"]) else math.prod(kernel)


def _per_dim(sizes: Sequence[int], rank: int) -> list[int]:
    return list(sizes) * (rank if len(sizes) == 1 else 1)


@_on(*ADAPTIVE_POOLS)
def _adaptive_pool(scope: _Scope, node: fx.Node, given: dict[str, Any]) -> Levels:
    x, outputs = operand(node), given["output_size"]
    count, sizes = scope.size(x, *range(-len(outputs), 0)), shape_of(x)[-len(outputs) :]
    if any(n % out for n, out in zip(sizes, outputs, strict=True)):
        raise RealError("windows of several sizes")
    count //= math.prod(outputs)
    return scope.of(x).times(count).over(count)


@_on(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default)
def _matrix_product(scope: _Scope, node: fx.Node, _: dict[str, Any]) -> Levels:
    a, b = operand(node), operand(node, 1)
    return (scope.of(a) * scope.of(b)).times(scope.size(a, -1))
