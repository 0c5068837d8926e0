"""A sum of rank-one maps is one contraction: ``sum_r w_r * S[n,r,h,w] * Tf[n,r,t] * Cf[n,r,c] == (w*Tf (x) Cf)^T S``.

A loop over the rank makes one map of full size for every ``r``. Here the factors are slices of tensors over all ``r``; those that
share an axis stay together, the groups are put on two sides, ``L [N, M, R]`` and ``Q [N, R, K]``, multiplied out so that both are
as small as they can be, and one matrix product makes the map. The loop is recognised by what it computes, not by its spelling:
additions in any order or a stack that is summed, products by broadcasting or as matrices, slices by any operator, with any views
between (:mod:`snngraph.analysis.sums`, :mod:`snngraph.analysis.axes`).

* Terms belong together when their factors are entries of the same tensors, or else have the same shapes: those are stacked.
* A factor that is the same in every term is taken out of the sum. What does not belong stays added.
* A product that is summed over a dimension, ``(a[:, :, None] * b[:, None]).sum(-1)``, is a contraction as well.

Refused: factors that all hang together through the axes they vary along; terms no larger than their factors; a partial sum, or
one term's map, that others read too.

Exactness: real (the sum runs in another order).
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from snngraph.analysis.axes import Axis, Digit, Fixed, Index, IndexMaps, Size, digits_of
from snngraph.analysis.sums import Product, Sum, Term, is_sum, product_of, sum_of
from snngraph.graph import RESHAPE, SpikingGraph, origin_of
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["ComposeLowRank"]

aten = torch.ops.aten


@dataclass(frozen=True)
class ComposeLowRank(Pass):
    """Makes a sum of rank-one maps one matrix product, never one map per rank."""

    name: ClassVar[str] = "compose_low_rank"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Finds all sums first, the last one first, as it may hold others; then rewrites them in the order of the graph."""
        edit = Rewriter(graph)
        maps = IndexMaps(graph)
        found: list[_Found] = []
        inside: set[fx.Node] = set()
        for node in reversed(list(graph.nodes)):
            if is_sum(node) and node not in inside and node in maps and node.meta["val"].is_floating_point():
                total = sum_of(graph, maps, node)
                inside |= total.interior
                found.append(_Found(graph, maps, total))
        _refuse_shared_partial_sums(edit, found)
        replaced: dict[fx.Node, fx.Node] = {}
        for one in reversed(found):
            for plan in one.plans:
                if plan.reason:
                    edit.refuse(one.total.root, plan.reason)
            plans = [plan for plan in one.plans if not plan.reason]
            if plans:
                ranks = ", ".join(str(math.prod(a.size[0] for a in plan.rank)) for plan in plans)
                edit.did(one.total.root, f"a sum of {ranks} products is a matrix product")
                replaced[one.total.root] = _Writer(graph, maps, one.total, replaced).write(plans)
        return edit.result()


# -- what belongs together -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Operand:
    """One factor of a group of terms, over all of them.

    Args:
        nodes: the tensor whose entries it is, or one tensor per term, to be stacked.
        index: its axes; the entry a :class:`Fixed` digit takes is that of the first term.
        picks: for the digits, by position, that differ between the terms: the entry that each term takes.
        axes: the axes it varies along, those of the rank included.
    """

    nodes: tuple[fx.Node, ...]
    index: Index
    picks: dict[int, list[int]]
    axes: frozenset[Axis]


@dataclass(slots=True)
class _Plan:
    """How a group of terms becomes one product; with a ``reason``, why it does not."""

    terms: list[Term]
    rank: tuple[Axis, ...] = ()
    weights: list[float] | float = 1.0
    left: tuple[_Operand, ...] = ()
    right: tuple[_Operand, ...] = ()
    common: tuple[_Operand, ...] = ()
    reason: str = ""


class _Found:
    """A sum, and the groups of its terms that are or nearly are sums of rank-one maps."""

    def __init__(self, graph: SpikingGraph, maps: IndexMaps, total: Sum) -> None:
        self.maps, self.total = maps, total
        self.products = [product_of(graph, maps, term) for term in total.terms]
        self.axes = [d for d in maps.resolve(digits_of(total.index)) if isinstance(d, Axis)]
        self.plans = [plan for group in self._groups() if (plan := self._plan(group))] if self._can_be_added() else []

    def _can_be_added(self) -> bool:
        """Whether every term can be given the shape of the sum; a batch it does not have can not be written down."""
        whole = self.maps.resolved(self.total.index)
        return all(
            (index := self.maps.resolved(term.index)) == self.maps.broadcast(term.node, whole)
            or self._covers(frozenset(d for d in digits_of(index) if isinstance(d, Axis)))
            for term in ((t.whole or t) for t in self.total.terms)
        )

    def slices(self) -> set[frozenset[fx.Node]]:
        """For every term the tensors it takes slices of."""
        sets = (frozenset(n for n, i in p.factors if any(isinstance(d, Fixed) for d in digits_of(i))) for p in self.products)
        return {s for s in sets if s}

    def _groups(self) -> list[list[int]]:
        """Terms by the tensors their factors are entries of; then, of what is left alone, by the shapes alone."""
        alone: list[int] = []
        groups: list[list[int]] = []
        same: defaultdict[Any, list[int]] = defaultdict(list)
        for k, term in enumerate(self.total.terms):
            if term.summed:
                groups.append([k])
            else:
                same[self._key(self.products[k], with_nodes=True)].append(k)
        for members in same.values():
            groups.append(members) if len(members) > 1 else alone.extend(members)
        alike: defaultdict[Any, list[int]] = defaultdict(list)
        for k in alone:
            alike[self._key(self.products[k], with_nodes=False)].append(k)
        return groups + [members for members in alike.values() if len(members) > 1]

    def _key(self, product: Product, *, with_nodes: bool) -> Any:
        self._sort(product)
        return tuple((node if with_nodes else None, self._shape(index)) for node, index in product.factors)

    def _sort(self, product: Product) -> None:
        """Factors in an order that is the same in every term."""
        product.factors = [(node, self.maps.resolved(index)) for node, index in product.factors]
        product.factors.sort(key=lambda f: (repr(self._shape(f[1])), f[0].name, [d.value for d in _entries(f[1])]))

    def _shape(self, index: Index) -> Any:
        return tuple(tuple(("entry", d.count) if isinstance(d, Fixed) else ("axis", id(d)) for d in digits) for digits in index)

    def _plan(self, group: list[int]) -> _Plan | None:
        products = [self.products[k] for k in group]
        if not all(node.meta["val"].is_floating_point() for p in products for node, _ in p.factors):
            return None  # a matrix product takes one floating type
        plan = _Plan([self.total.terms[k] for k in group])
        if len(group) == 1:
            self._sort(products[0])
            plan.rank = tuple(a for a in self.maps.resolve(plan.terms[0].summed) if isinstance(a, Axis))
        else:
            plan.rank = (Axis((len(group), len(group))),)
            order = sorted(range(len(group)), key=lambda k: [d.value for _, i in products[k].factors for d in _entries(i)])
            products = [products[k] for k in order]
        weights = [p.coefficient for p in products]
        plan.weights = weights[0] if len(set(weights)) == 1 else weights
        operands = [self._operand(plan.rank, factors) for factors in zip(*(p.factors for p in products), strict=True)]
        rank = set(plan.rank)
        varying = [o for o in operands if o.axes & rank]
        maps = [o for o in varying if o.axes - rank]
        if sum(bool(o.axes - rank - {a for a in self.axes if a.carries_batch}) for o in varying) < 2 or not rank:
            return None
        reason = self._sides(plan, varying, [o for o in operands if not o.axes & rank])
        plan.reason = reason or self._elsewhere(group)
        sliced = len(group) > 1 and all(len(o.nodes) == 1 for o in maps)
        return plan if not plan.reason or sliced else None

    def _operand(self, rank: tuple[Axis, ...], factors: Sequence[tuple[fx.Node, Index]]) -> _Operand:
        index = factors[0][1]
        axes = frozenset(d for d in digits_of(index) if isinstance(d, Axis))
        nodes = tuple(n for n, _ in factors)
        picks: dict[int, list[int]] = {}
        for position, digit in enumerate(digits_of(index)):
            if isinstance(digit, Fixed):
                entries = [
                    d.value for _, i in factors for p, d in enumerate(digits_of(i)) if p == position and isinstance(d, Fixed)
                ]
                if len(set(entries)) > 1:
                    picks[position] = entries
        if len(set(nodes)) == 1:
            return _Operand(nodes[:1], index, picks, axes | {*rank} if picks else axes)
        return _Operand(nodes, index, picks, axes | {*rank})

    def _sides(self, plan: _Plan, varying: list[_Operand], common: list[_Operand]) -> str:
        """Puts the factors on two sides that share no axis but the batch's and the rank's; or says why there are none."""
        rank = set(plan.rank)
        batch = {a for a in self.axes if a.carries_batch}
        everywhere = frozenset.intersection(*(s for o in varying if (s := o.axes - rank - batch))) | batch
        components: list[tuple[frozenset[Axis], list[_Operand]]] = []
        weights = [o for o in varying if not o.axes - rank - everywhere]
        for o in (o for o in varying if o not in weights):
            joined, members = o.axes - rank - everywhere, [o]
            for component in [c for c in components if c[0] & joined]:
                components.remove(component)
                joined, members = joined | component[0], component[1] + members
            components.append((joined, members))
        if len(components) < 2:
            return "its factors hang together through the axes they vary along, so its terms are no outer products"
        rest = range(1, len(components))
        choices = [set(chosen) for k in range(len(rest)) for chosen in itertools.combinations(rest, k)]
        splits = [
            ([c for i, c in enumerate(components) if i == 0 or i in s], [c for i, c in enumerate(components) if i and i not in s])
            for s in choices
        ]
        sides = min(splits, key=lambda split: sum(_count(a for c in side for a in c[0]) for side in split))
        left, right = ([o for c in side for o in c[1]] for side in sides)
        first = [min(self.axes.index(a) for a in _axes(side) - rank - everywhere) for side in (left, right)]
        if first[0] > first[1]:
            left, right = right, left  # the fewer permutations after it
        sizes = [_count(_axes(side) - rank - everywhere) for side in (left, right)]
        if math.prod(sizes) <= sum(sizes):
            return f"its terms, of {math.prod(sizes)} numbers, are no larger than their factors"
        small, large = (left, right) if sizes[0] <= sizes[1] else (right, left)
        for o in weights:
            (small if o.axes <= _axes(small) or not o.axes <= _axes(large) else large).append(o)
        outside: list[_Operand] = []
        for o in common:
            side = next((s for s in (small, large) if o.axes <= _axes(s)), outside)
            side.append(o)
        if not self._covers(_axes(left) | _axes(right) | _axes(outside)):
            return "the sum has a batch that none of its factors have"
        plan.left, plan.right, plan.common = tuple(left), tuple(right), tuple(outside)
        return ""

    def _covers(self, axes: frozenset[Axis]) -> bool:
        return all(a in axes for a in self.axes if a.carries_batch)

    def _elsewhere(self, group: list[int]) -> str:
        """Whether something of the terms' own size is read by others, and so will be computed all the same."""
        inside = self.total.interior.union(*(self.products[k].interior for k in group))
        size = _count(self.axes)
        for k in group:
            for node in self.products[k].interior:
                if _count_of(node) >= size and not all(user in inside for user in node.users):
                    return f"{node.name}, a map of its full size, is read by others too"
        return ""


def _refuse_shared_partial_sums(edit: Rewriter, found: list[_Found]) -> None:
    """A sum that others read too, and that goes on with terms of the same tensors, stays as it is, and what goes on with it."""
    by_root = {one.total.root: one for one in found}
    slices = {one.total.root: one.slices() for one in found}
    for one in found:
        for term in one.total.terms:
            node, index = term.node, term.index
            while node not in by_root and (view := one.maps.source(node, index)):
                node, index = view
            part = by_root.get(node)
            if part is None or len(node.users) < 2 or not slices[node] & slices[one.total.root]:
                continue
            if part.plans or one.plans:
                edit.refuse(node, f"a partial sum that {len(node.users)} operators read")
            part.plans, one.plans = [], []


def _entries(index: Index) -> list[Fixed]:
    return [d for d in digits_of(index) if isinstance(d, Fixed)]


def _axes(operands: Iterable[_Operand]) -> frozenset[Axis]:
    return frozenset().union(*(o.axes for o in operands))


def _count(axes: Iterable[Axis]) -> int:
    return math.prod(a.size[0] for a in axes)


def _count_of(node: fx.Node) -> int:
    value = node.meta["val"]
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


# -- writing it down -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Value:
    """A node whose dimensions are known: an axis each, or ``None`` for one of a single entry."""

    node: fx.Node
    dims: tuple[Axis | None, ...]


class _Writer:
    """Writes one sum anew, before its root."""

    def __init__(self, graph: SpikingGraph, maps: IndexMaps, total: Sum, replaced: dict[fx.Node, fx.Node]) -> None:
        self.graph, self.maps, self.total, self.replaced = graph, maps, total, replaced
        self.index = maps.resolved(total.index)
        self.axes = [d for d in digits_of(self.index) if isinstance(d, Axis)]
        self.fresh: set[fx.Node] = set()

    def write(self, plans: Sequence[_Plan]) -> fx.Node:
        """The node that takes the root's place."""
        root = self.total.root
        composed = {id(term) for plan in plans for term in plan.terms}
        with self.graph.graph.inserting_before(root):
            result: fx.Node | None = None
            for plan in plans:
                part = self._whole(self._contracted(plan))
                result = part if result is None else self._call(aten.add.Tensor, result, part)
            assert result is not None
            for term in self.total.terms:
                if id(term) not in composed:
                    result = self._added(result, term.whole or term)
            if self.total.offset:
                result = self._call(aten.add.Tensor, result, self.total.offset)
        root.replace_all_uses_with(result)
        return result

    def _call(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.graph.call_function(target, args)
        node.meta = origin_of(self.total.root)
        self.fresh.add(node)
        return node

    def _reshape(self, node: fx.Node, sizes: Sequence[Size]) -> fx.Node:
        if node in self.fresh and node.target is RESHAPE:
            node = node.args[0]  # type: ignore[assignment]
        return self._call(RESHAPE, node, [-1 if a != b else a for a, b in sizes])

    def _added(self, result: fx.Node, term: Term) -> fx.Node:
        node = self.replaced.get(term.node, term.node)
        index = self.maps.resolved(term.index)
        if index != self.maps.broadcast(term.node, self.index):
            node = self._whole(self._viewed(_Operand((term.node,), index, {}, frozenset()), ()))
        if abs(term.coefficient) != 1:
            node, sign = self._call(aten.mul.Tensor, node, term.coefficient), 1.0
        else:
            sign = term.coefficient
        return self._call(aten.add.Tensor if sign > 0 else aten.sub.Tensor, result, node)

    def _whole(self, value: _Value) -> fx.Node:
        """``value`` in the shape of the root; axes it does not have are repeated."""
        value = self._ordered(value, self.axes)
        node = value.node
        if None in value.dims:
            node = self._call(aten.expand.default, node, [-1 if a in value.dims else a.size[0] for a in self.axes])
        sizes = self.maps.sizes(self.total.root)
        return node if tuple(a.size for a in self.axes) == sizes else self._reshape(node, sizes)

    def _ordered(self, value: _Value, order: Sequence[Axis]) -> _Value:
        """``value`` with the dimensions ``order``; of a single entry where it has no such axis."""
        held = [d for d, a in enumerate(value.dims) if a is not None]
        wanted = [value.dims.index(a) for a in order if a in value.dims]
        node = value.node
        dims = tuple(a if a in value.dims else None for a in order)
        if held != wanted:
            if len(held) < len(value.dims):
                node = self._reshape(node, [a.size for a in value.dims if a is not None])
                wanted = [held.index(d) for d in wanted]
                held = list(range(len(held)))
            if wanted != held:
                node = self._call(aten.permute.default, node, wanted)
            value = _Value(node, tuple(a for a in dims if a is not None))
        return _Value(node if value.dims == dims else self._reshape(node, [_size(a) for a in dims]), dims)

    def _viewed(self, operand: _Operand, rank: tuple[Axis, ...]) -> _Value:
        """A factor with a dimension for every axis, its entries of all terms along the axis of the rank."""
        if len(operand.nodes) > 1:
            views = []
            for k, node in enumerate(operand.nodes):
                positions = enumerate(digits_of(operand.index))
                taken = [
                    Fixed(operand.picks[p][k], d.count) if p in operand.picks and isinstance(d, Fixed) else d
                    for p, d in positions
                ]
                views.append(self._entries(node, taken))
            stacked = self._call(aten.stack.default, [v.node for v in views])
            return _Value(stacked, (*rank, *views[0].dims))
        if not operand.picks:
            return self._entries(operand.nodes[0], list(digits_of(operand.index)))
        digits = list(digits_of(operand.index))
        taken = [_Picked(d.count) if p in operand.picks and isinstance(d, Fixed) else d for p, d in enumerate(digits)]
        value = self._entries(operand.nodes[0], taken)
        node, picked = value.node, [d for d, a in enumerate(value.dims) if isinstance(a, _Picked)]
        dims: list[Axis | None] = list(value.dims)
        counts = [dims[d].size[0] for d in picked]  # type: ignore[union-attr]
        if len(picked) > 1:
            order = [*picked, *(d for d in range(len(dims)) if d not in picked)]
            node = self._call(aten.permute.default, node, order)
            dims = [dims[d] for d in order]
            count = math.prod(counts)
            dims = [Axis((count, count)), *dims[len(picked) :]]
            node, picked = self._reshape(node, [_size(a) for a in dims]), [0]
        entries = [0] * len(next(iter(operand.picks.values())))
        for count, values in zip(counts, operand.picks.values(), strict=True):
            entries = [e * count + v for e, v in zip(entries, values, strict=True)]
        dims[picked[0]] = rank[0]
        return _Value(self._taken(node, picked[0], entries, math.prod(counts)), tuple(dims))

    def _taken(self, node: fx.Node, dim: int, entries: list[int], count: int) -> fx.Node:
        if entries == list(range(count)):
            return node
        if entries == list(range(entries[0], entries[-1] + 1)):
            return self._call(aten.slice.Tensor, node, dim, entries[0], entries[-1] + 1)
        position = self.graph.add_tensor(f"{self.total.root.name}_ranks", torch.tensor(entries))
        return self._call(aten.index_select.default, node, dim, position)

    def _entries(self, node: fx.Node, digits: Sequence[Digit]) -> _Value:
        """``node`` with a dimension for every axis among ``digits``, at the entries the others fix."""
        sizes = [d.size for d in digits]
        view = self.replaced.get(node, node)
        if sizes != list(self.maps.sizes(node)):
            view = self._reshape(view, sizes)
        dims: list[Axis | None] = []
        for digit in digits:
            if isinstance(digit, Fixed):
                view = self._call(aten.select.int, view, len(dims), digit.value)
            else:
                dims.append(digit)
        return _Value(view, tuple(dims))

    def _side(self, plan: _Plan, operands: Sequence[_Operand], order: Sequence[Axis], weighted: bool) -> fx.Node:
        """The factors of one side multiplied, with the dimensions ``order``."""
        values = [self._viewed(o, plan.rank) for o in operands]
        values.sort(key=lambda v: _count(a for a in v.dims if a is not None))
        if weighted and isinstance(plan.weights, list):
            weights = self.graph.add_tensor(f"{self.total.root.name}_weights", torch.tensor(plan.weights, dtype=self.graph.dtype))
            values.insert(0, _Value(weights, plan.rank))
        product: fx.Node | None = None
        for value in values:
            aligned = self._ordered(value, order[next(k for k, a in enumerate([*order, None]) if a in value.dims or a is None) :])
            product = aligned.node if product is None else self._call(aten.mul.Tensor, product, aligned.node)
            if weighted and value is values[0] and isinstance(plan.weights, float) and plan.weights != 1.0:
                product = self._call(aten.mul.Tensor, product, plan.weights)
        assert product is not None
        axes = {a for v in values for a in v.dims}
        if any(a not in axes for a in order):  # an axis of the rank that this side does not vary along
            product = self._reshape(product, [_size(a if a in axes else None) for a in order])
            product = self._call(aten.expand.default, product, [-1 if a in axes else a.size[0] for a in order])
        return product

    def _contracted(self, plan: _Plan) -> _Value:
        rank = set(plan.rank)
        left, right = _axes(plan.left) - rank, _axes(plan.right) - rank
        shared, rows, columns = ([a for a in self.axes if a in s] for s in (left & right, left - right, right - left))
        smaller_left = _count(rows) <= _count(columns)
        a = self._side(plan, plan.left, [*shared, *rows, *plan.rank], smaller_left)
        b = self._side(plan, plan.right, [*shared, *plan.rank, *columns], not smaller_left)
        n, m, r, k = (_product(axes) for axes in (shared, rows, plan.rank, columns))
        lead = [n] if shared else []
        if (len(shared), len(rows), len(plan.rank)) != (len(lead), 1, 1):
            a = self._reshape(a, [*lead, m, r])
        if (len(shared), len(plan.rank), len(columns)) != (len(lead), 1, 1):
            b = self._reshape(b, [*lead, r, k])
        product = self._call(aten.bmm.default if shared else aten.mm.default, a, b)
        dims = (*shared, *rows, *columns)
        if [*lead, m, k] != [x.size for x in dims]:
            product = self._reshape(product, [x.size for x in dims])
        value = _Value(product, dims)
        for factor in plan.common:
            value = self._multiplied(value, self._viewed(factor, plan.rank))
        return value

    def _multiplied(self, a: _Value, b: _Value) -> _Value:
        """Two values multiplied over all axes of either."""
        order = [x for x in self.axes if x in a.dims or x in b.dims]
        return _Value(self._call(aten.mul.Tensor, *(self._ordered(v, order).node for v in (a, b))), tuple(order))


class _Picked(Axis):
    """Stands for a dimension along which every term takes another entry."""

    def __init__(self, count: int) -> None:
        super().__init__((count, count))


def _size(axis: Axis | None) -> Size:
    return (1, 1) if axis is None else axis.size


def _product(axes: Iterable[Axis]) -> Size:
    sizes = [a.size for a in axes]
    return math.prod(a for a, _ in sizes), math.prod(b for _, b in sizes)
