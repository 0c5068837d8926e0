"""Sums and products, however they are nested and whatever views stand between: their terms, and their factors.

:func:`sum_of` walks a chain or tree of additions, ``sum`` and ``mean`` over a stack included, down to what is added up;
:func:`product_of` walks multiplications and outer products down to what is multiplied. Both give every part with its index
(:mod:`snngraph.analysis.axes`), that is, as a function of the axes of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from snngraph.analysis.axes import Axis, Fixed, Index, IndexMaps, Size, digits_of
from snngraph.graph import SpikingGraph, arguments, is_op, operand

__all__ = ["Product", "Sum", "Term", "is_sum", "product_of", "sum_of"]

aten = torch.ops.aten
_ADDITIONS = (aten.add.Tensor, aten.sub.Tensor)
_TOTALS = (aten.sum.dim_IntList, aten.mean.dim)
_OUTER = (aten.bmm.default, aten.mm.default)
_ZEROS = (aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
_FILLED = (aten.full.default, aten.full_like.default, aten.new_full.default)


@dataclass(frozen=True, slots=True)
class Term:
    """``coefficient * node[index]``, summed over the axes ``summed``, which the sum itself does not have.

    Args:
        whole: where there are such axes, the term after that summation.
    """

    node: fx.Node
    index: Index
    coefficient: float
    summed: tuple[Axis, ...] = ()
    whole: Term | None = None


@dataclass(slots=True)
class Sum:
    """The terms of a sum.

    Args:
        root: the node that holds the sum.
        index: the axes of ``root``.
        terms: what is added up; zeros are left out.
        offset: the plain numbers among the terms, added up.
        interior: the nodes between ``root`` and the terms: ``root``, partial sums and views of them, read by nobody else.
    """

    root: fx.Node
    index: Index
    terms: list[Term] = field(default_factory=list)
    offset: float = 0.0
    interior: set[fx.Node] = field(default_factory=set)


@dataclass(slots=True)
class Product:
    """The factors of a product.

    Args:
        coefficient: the plain numbers among them, multiplied.
        factors: the others, with their indices.
        interior: the nodes between the product and its factors: products, and views of them.
    """

    coefficient: float = 1.0
    factors: list[tuple[fx.Node, Index]] = field(default_factory=list)
    interior: set[fx.Node] = field(default_factory=set)


def is_sum(node: object) -> bool:
    """Whether the operator adds something up: an addition, a subtraction, a sum or a mean over dimensions."""
    return is_op(node, *_ADDITIONS, *_TOTALS)


def sum_of(graph: SpikingGraph, maps: IndexMaps, root: fx.Node) -> Sum:
    """The terms of the sum that ends in ``root``; a partial sum that others read too is a term."""
    result = Sum(root, maps.fresh(root), interior={root})
    waiting = [Term(root, result.index, 1.0)]
    while waiting:
        term = waiting.pop()
        found, between = term, [term.node]
        while found.node is not root and len(found.node.users) == 1:
            below = maps.source(found.node, found.index)
            if below is None:
                break
            found = Term(*below, term.coefficient, term.summed, term.whole)
            between.append(found.node)
        if _is_zero(graph, found.node):
            continue
        parts = _parts(graph, maps, found, result) if found.node is root or len(found.node.users) == 1 else None
        if parts is None:
            result.terms.append(term)
        else:
            result.interior.update(between)
            waiting.extend(reversed(parts))
    return result


def _parts(graph: SpikingGraph, maps: IndexMaps, term: Term, result: Sum) -> list[Term] | None:
    """What a partial sum is the sum of; ``None`` when it is a term. Numbers are added to the result at once."""
    node, index, c = term.node, term.index, term.coefficient
    if is_op(node, *_ADDITIONS) and not term.summed:
        a, b = node.args[:2]
        weight = c * float(arguments(node)["alpha"]) * (-1 if is_op(node, aten.sub.Tensor) else 1)
        pairs: list[tuple[Any, float]] = [(a, c + weight)] if a is b else [(a, c), (b, weight)]
        result.offset += sum(w * value for x, w in pairs if (value := graph.number(x)) is not None)
        return [Term(x, maps.broadcast(x, index), w) for x, w in pairs if graph.number(x) is None]
    if is_op(node, aten.neg.default):
        return [Term(operand(node), index, -c, term.summed, term.whole)]
    if is_op(node, *_TOTALS) and not term.summed:
        return _total(maps, term)
    if is_op(node, aten.cat.default, aten.stack.default) and term.summed:
        return _stacked(maps, term)
    return None


def _total(maps: IndexMaps, term: Term) -> list[Term] | None:
    found, x = arguments(term.node), operand(term.node)
    sizes = maps.sizes(x)
    reduced = {d % len(sizes) for d in found["dim"] or range(len(sizes))}
    if any(sizes[d][0] != sizes[d][1] for d in reduced) or found.get("dtype") is not None:
        return None
    axes = {d: Axis(sizes[d]) for d in reduced if sizes[d] != (1, 1)}
    kept = iter(term.index)
    index: list[tuple[Any, ...]] = []
    for d in range(len(sizes)):
        if d in reduced:
            index.append((axes[d],) if d in axes else ())
            if found["keepdim"]:
                next(kept)
        else:
            index.append(next(kept))
    share = 1 / math.prod(sizes[d][0] for d in reduced) if is_op(term.node, aten.mean.dim) else 1.0
    return [Term(x, tuple(index), term.coefficient * share, tuple(axes.values()), term)]


def _stacked(maps: IndexMaps, term: Term) -> list[Term] | None:
    """The pieces of a stack that is summed over; the axis over the pieces is gone, so is the need for the whole."""
    pieces: list[fx.Node] = operand(term.node)
    dim = arguments(term.node)["dim"] % len(term.index)
    count, length = len(pieces), (1, 1)
    if is_op(term.node, aten.cat.default):
        if len({maps.sizes(p) for p in pieces}) > 1:
            return None
        length = maps.sizes(pieces[0])[dim]
    grouped = maps.regroup(term.index[dim], [(count, count), length])
    if grouped is None or list(maps.resolve(term.summed)) != list(grouped[0]):
        return None
    inner = (grouped[1],) if is_op(term.node, aten.cat.default) else ()
    index = (*term.index[:dim], *inner, *term.index[dim + 1 :])
    return [Term(piece, index, term.coefficient) for piece in pieces]


def _is_zero(graph: SpikingGraph, node: fx.Node) -> bool:
    constant = graph.constant(node)
    if constant is not None:
        return not bool(constant.any())
    return is_op(node, *_ZEROS) or (is_op(node, *_FILLED) and operand(node, 1) == 0)


def product_of(graph: SpikingGraph, maps: IndexMaps, term: Term) -> Product:
    """The factors of a term.

    A factor that is a product and that several operators read is taken apart only where it holds more than the term uses of it,
    and varies along more axes than its own factors do.
    """
    result = Product(term.coefficient)
    waiting: list[tuple[Any, Index, bool, tuple[fx.Node, ...]]] = [(term.node, term.index, False, ())]
    summed = set(maps.resolve(term.summed))
    while waiting:
        node, index, shared, above = waiting.pop()
        value = _number(graph, node)
        if value is not None:
            result.coefficient *= value
            continue
        shared, path = shared or (bool(above) and len(node.users) > 1), (*above, node)
        view = maps.source(node, index)
        if view is not None:
            waiting.append((*view, shared, path))
            continue
        factors = _factors(graph, maps, node, index)
        if factors is not None and shared:
            digits = [set(maps.resolve(digits_of(i))) for _, i in factors]
            more = any(isinstance(d, Fixed) or d in summed for d in set().union(*digits))
            factors = factors if more and any(d != digits[0] for d in digits) else None
        if factors is None:
            result.factors.append((maps.one(node), index))
            continue
        result.interior.update(path)
        if is_op(node, aten.neg.default):
            result.coefficient *= -1
        if is_op(node, aten.div.Tensor):
            result.coefficient /= _number(graph, operand(node, 1)) or 1.0
        waiting.extend((x, i, shared, path) for x, i in reversed(factors))
    return result


def _number(graph: SpikingGraph, node: object) -> float | None:
    value = graph.number(node)
    if value is None and (tensor := graph.constant(node)) is not None and tensor.numel() == 1:
        return float(tensor)
    return value


def _factors(graph: SpikingGraph, maps: IndexMaps, node: fx.Node, index: Index) -> list[tuple[Any, Index]] | None:
    """What ``node`` is the product of; of a quotient by a number and of a negation, the one operand."""
    if is_op(node, aten.mul.Tensor) and node.args[0] is not node.args[1]:
        return [(x, maps.broadcast(x, index) if isinstance(x, fx.Node) else ()) for x in node.args[:2]]
    if is_op(node, aten.neg.default):
        return [(operand(node), index)]
    if is_op(node, aten.div.Tensor) and _number(graph, operand(node, 1)):
        return [(operand(node), maps.broadcast(operand(node), index))]
    if is_op(node, *_OUTER):
        a, b = operand(node), operand(node, 1)
        one: Size = maps.sizes(a)[-1]
        return [(a, (*index[:-1], ())), (b, (*index[:-2], (), index[-1]))] if one == (1, 1) else None
    return None
