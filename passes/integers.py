"""The integers behind a tensor with levels: for passes that compute with ``k`` where the graph has ``scale * k``.

Where the scale is 1 and nothing was rounded they are the tensor itself. Else the operators that made it are put down once more,
for integers, back to the spikes or to what is integers already: an average becomes a sum, a constant factor goes, a sum's
operands are brought to one unit. ``scale * k`` is the tensor in real arithmetic, and ``k`` is exact in floating point.

Of a neuron with a level ``k`` is the sign of what it emits: the neuron stays, and so does what its layer is known to emit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from fractions import Fraction
from typing import Any, TypeAlias, TypeVar

import torch
from torch import fx

from snngraph.analysis.levels import ADAPTIVE_POOLS, AVERAGE_POOLS, EXTREMES, MAX_POOLS, SAME, SPLITS, Levels
from snngraph.errors import PassError
from snngraph.graph import LIF, LIF_STEP, arguments, is_op, operand, origin_of, shape_of
from snngraph.passes.base import Rewriter

__all__ = ["Integers"]

aten = torch.ops.aten

_Rule: TypeAlias = "Callable[[Integers, fx.Node, dict[str, Any]], fx.Node]"
_R = TypeVar("_R", bound=Callable[..., Any])
_RULES: dict[Any, _Rule] = {}


class Integers:
    """Makes the integer counterparts of tensors that have levels, in the graph that a pass rewrites.

    Args:
        edit: of the pass; what it had not replaced before still stands.
        levels: of the nodes as the pass found them.
    """

    def __init__(self, edit: Rewriter, levels: dict[fx.Node, Levels]) -> None:
        self.graph = edit.graph
        self.levels = levels
        self._made: dict[fx.Node, fx.Node] = {}

    def of(self, node: fx.Node) -> fx.Node:
        """The node that holds ``k`` in the shape and type of ``node``; made behind it, with what it needs, on the first call.

        Raises:
            PassError: ``node`` has no levels.
        """
        if node not in self.levels:
            raise PassError(f"{node.name} holds no integers times a constant")
        for needed in self._needed(node):
            if needed not in self._made:
                with self.graph.graph.inserting_before(needed.next):
                    self._made[needed] = self._counterpart(needed)
        return self._made.get(node, node)

    def _is_whole(self, node: fx.Node) -> bool:
        known = self.levels[node]
        return known.unit == 1 and known.exact

    def _needed(self, node: fx.Node) -> list[fx.Node]:
        """What has to be made for ``node``, operands first; a loop, because an unrolled sum may be longer than Python's stack."""
        found: dict[fx.Node, None] = {}
        waiting = [(node, False)]
        while waiting:
            n, ready = waiting.pop()
            if ready:
                found[n] = None
            elif n not in found and not (n in self.levels and self._is_whole(n)) and n not in self._made:
                waiting.append((n, True))
                if n in self.levels and self.levels[n].constant is None and not _is_emitted(n):
                    inputs = operand(n).all_input_nodes if is_op(n, operator.getitem) else n.all_input_nodes
                    waiting.extend((m, False) for m in inputs if m in self.levels)
        return list(found)

    def _counterpart(self, node: fx.Node) -> fx.Node:
        known = self.levels[node]
        if node.op == "get_attr":
            value = self.graph.constant(node)
            assert value is not None
            return self.graph.add_tensor(f"{node.target}_levels", (value.double() / known.scale).round().to(value.dtype))
        if known.constant is not None:
            return self.call(node, aten.full_like.default, node, float(known.low))
        return _RULES[node.target](self, node, {} if is_op(node, operator.getitem) else arguments(node))

    def call(self, like: fx.Node, target: Any, *args: Any, **keywords: Any) -> fx.Node:
        """A new node, which comes from where ``like`` comes from."""
        new = self.graph.graph.call_function(target, args, keywords)
        new.meta = origin_of(like)
        return new

    def again(self, node: fx.Node, /, **changed: Any) -> fx.Node:
        """The same operator with some arguments changed."""
        target: Any = node.target
        names = [a.name for a in target._schema.arguments]
        args = [changed.pop(name, a) for name, a in zip(names, node.args, strict=False)]
        return self.call(node, target, *args, **{**node.kwargs, **changed})

    def k(self, a: fx.Node) -> fx.Node:
        """The integers of an operand, in its own unit."""
        return self._made.get(a, a) if self.levels[a].constant is None or self._is_whole(a) else self.of(a)

    def within(self, a: Any, node: fx.Node, times: Fraction | int = 1) -> Any:
        """``times * a`` as integers in the unit of ``node``."""
        unit = self.levels[node].unit
        if not isinstance(a, fx.Node):
            return _number(Fraction(a) * times / unit, node)
        factor = self.levels[a].unit * times / unit
        if factor == 1 or self.levels[a].constant == 0:
            return self.k(a)
        return self.call(node, aten.mul.Tensor, self.k(a), _number(factor, a))


def _number(a: Fraction, like: fx.Node) -> float | int:
    """A whole number that leaves the type of ``like`` as it is."""
    return float(a) if like.meta["val"].is_floating_point() else int(a)


def _is_emitted(node: fx.Node) -> bool:
    return is_op(node, operator.getitem) and is_op(operand(node), LIF, LIF_STEP)


def _on(*targets: Any) -> Callable[[_R], _R]:
    def register(rule: _R) -> _R:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def _first(node: fx.Node) -> str:
    target: Any = node.target
    return str(target._schema.arguments[0].name)


# -- the same of the integers ----------------------------------------------------------------------------------------------------


@_on(*SAME, *MAX_POOLS, *SPLITS, *EXTREMES)
@_on(aten.neg.default, aten.abs.default, aten.relu.default, aten.square.default, aten.pow.Tensor_Scalar)
@_on(aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default)
@_on(aten.sum.dim_IntList, aten.sum.default, aten.cumsum.default)
def _same(ints: Integers, node: fx.Node, _: dict[str, Any]) -> fx.Node:
    return ints.again(node, **{_first(node): ints.k(operand(node))})


@_on(operator.getitem)
def _output(ints: Integers, node: fx.Node, _: dict[str, Any]) -> fx.Node:
    if _is_emitted(node):
        return ints.call(node, aten.sign.default, node)
    source = operand(node)
    if source not in ints._made:
        with ints.graph.graph.inserting_before(source.next):
            ints._made[source] = _same(ints, source, {})
    return ints.call(node, operator.getitem, ints._made[source], operand(node, 1))


@_on(aten.copy.default)
def _copied(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    return ints.again(node, src=ints.k(given["src"]))


# -- in one unit -----------------------------------------------------------------------------------------------------------------


@_on(aten.cat.default, aten.stack.default)
def _joined(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    return ints.again(node, tensors=[ints.within(part, node) for part in given["tensors"]])


@_on(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
@_on(aten.maximum.default, aten.minimum.default)
def _of_two(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    return ints.again(node, **{name: ints.within(given[name], node) for name in ("self", "other")})


@_on(aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.constant_pad_nd.default)
@_on(aten.select_scatter.default, aten.slice_scatter.default, aten.scatter.src, aten.scatter.value)
def _written(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    filled = "value" if "value" in given else "src"
    return ints.again(node, **{name: ints.within(given[name], node) for name in ("self", filled)})


@_on(aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.hardtanh.default)
@_on(aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor)
def _clamped(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    """A number that is no multiple of the unit limits nothing: rounded outwards it still does not."""
    x: fx.Node = ints.within(given["self"], node)
    for names, op, outwards in (
        (("min_val", "min"), aten.maximum.default, math.floor),
        (("max_val", "max"), aten.minimum.default, math.ceil),
    ):
        limit = next((given[name] for name in names if given.get(name) is not None), None)
        if isinstance(limit, fx.Node):
            x = ints.call(node, op, x, ints.within(limit, node))
        elif limit is not None and math.isfinite(limit):
            at = _number(Fraction(outwards(Fraction(limit) / ints.levels[node].unit)), node)
            bounded = aten.clamp_min.default if outwards is math.floor else aten.clamp_max.default
            x = ints.call(node, bounded, x, at)
    return x


@_on(aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Tensor, aten.rsub.Scalar)
def _sum(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    times = {"self": Fraction(1), "other": Fraction(1)}
    times["self" if node.target in (aten.rsub.Tensor, aten.rsub.Scalar) else "other"] = Fraction(given["alpha"])
    a, b = (ints.within(given[name], node, times[name]) for name in ("self", "other"))
    if node.target in (aten.rsub.Tensor, aten.rsub.Scalar):
        target, a, b = (aten.sub.Tensor, b, a) if isinstance(b, fx.Node) else (aten.rsub.Scalar, a, b)
    else:
        target = aten.add.Tensor if node.target in (aten.add.Tensor, aten.add.Scalar) else aten.sub.Tensor
    return ints.call(node, target, a, b)


# -- without a factor ------------------------------------------------------------------------------------------------------------


@_on(aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
def _scaled(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    """A constant goes but for its sign."""
    a, b = given["self"], given["other"]
    for x, c in ((a, b), (b, a)):
        constant = ints.levels[c].constant if isinstance(c, fx.Node) else Fraction(c)
        if constant is not None:
            return _without(ints, node, x, c, constant)
    return ints.call(node, aten.mul.Tensor, ints.k(a), ints.k(b))


def _without(ints: Integers, node: fx.Node, x: fx.Node, c: Any, constant: Fraction) -> fx.Node:
    k, dtype = ints.k(x), node.meta["val"].dtype
    if x.meta["val"].dtype != dtype:  # integers or truth values times a number
        k = ints.call(node, aten._to_copy.default, k, dtype=dtype)
    if isinstance(c, fx.Node) and shape_of(x) != shape_of(node):
        return ints.call(node, aten.mul.Tensor, k, ints.call(node, aten.sign.default, c))
    return k if constant > 0 else ints.call(node, aten.neg.default, k)


@_on(aten.mean.dim, aten.mean.default)
def _mean(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    x = ints.k(given["self"])
    return ints.call(node, aten.sum.dim_IntList, x, given.get("dim"), given.get("keepdim", False))


@_on(*AVERAGE_POOLS)
def _average_pool(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    override = given.get("divisor_override")
    sizes = [list(given[name]) for name in ("kernel_size", "stride", "padding")]
    return _sum_pool(ints, node, AVERAGE_POOLS[node.target], sizes, given["ceil_mode"], -1 if override and override < 0 else 1)


@_on(*ADAPTIVE_POOLS)
def _adaptive_pool(ints: Integers, node: fx.Node, given: dict[str, Any]) -> fx.Node:
    outputs = list(given["output_size"])
    rank = len(outputs)
    if all(n == 1 for n in outputs):
        return ints.call(node, aten.sum.dim_IntList, ints.k(given["self"]), list(range(-rank, 0)), True)
    kernel = [n // out for n, out in zip(shape_of(given["self"])[-rank:], outputs, strict=True)]
    return _sum_pool(ints, node, rank, [kernel, kernel, [0] * rank], False, 1)


_POOLS = {2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


def _sum_pool(ints: Integers, node: fx.Node, rank: int, sizes: list[list[int]], ceil: bool, divisor: int) -> fx.Node:
    """Average pooling that divides by 1 or -1; of one dimension, which knows no other divisor, in two."""
    x = ints.k(operand(node))
    if rank > 1:
        return ints.call(node, _POOLS[rank], x, *sizes, ceil, True, divisor)
    kernel, stride, padding = ([n, *size] if size else [] for n, size in zip((1, 1, 0), sizes, strict=True))
    flat = ints.call(node, aten.unsqueeze.default, x, -2)
    pooled = ints.call(node, aten.avg_pool2d.default, flat, kernel, stride, padding, ceil, True, divisor)
    return ints.call(node, aten.squeeze.dim, pooled, -2)


# -- matrix products -------------------------------------------------------------------------------------------------------------


@_on(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default)
def _matrix_product(ints: Integers, node: fx.Node, _: dict[str, Any]) -> fx.Node:
    """Of a matrix whose elements are all the same the sign is left."""
    operands: list[fx.Node] = [operand(node), operand(node, 1)]
    factors = [ints.levels[a].constant for a in operands]
    kept = [ints.k(a) if c is None else ints.call(node, aten.sign.default, a) for a, c in zip(operands, factors, strict=True)]
    return ints.call(node, node.target, *kept)
