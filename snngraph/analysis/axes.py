"""Where the entries of a value come from: an index, followed down through views to the tensor that is viewed.

An index says for every dimension of a value which :class:`Axis` of a larger computation runs along it. A dimension may hold
several, the outermost first, as a reshape merges them, or a :class:`Fixed` entry, as a select takes one; a dimension of one entry
holds nothing. ``select(x[N, R, H], 1, 2)`` under the index ``((n,), (h,))`` is ``x`` under ``((n,), (Fixed(2),), (h,))``.

A size is a pair: that at the graph's sample batch size, and that at another. Arithmetic with both finds where the batch is, and
never takes it for a dimension that happens to have as many entries.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snngraph.graph import VIEWS, SpikingGraph, arguments, is_op, operand

__all__ = ["Axis", "Digit", "Fixed", "Index", "IndexMaps", "Size", "digits_of"]

aten = torch.ops.aten
Size = tuple[int, int]

_RESHAPES = (*VIEWS, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.flatten.using_ints)
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)


@dataclass(eq=False, slots=True)
class Axis:
    """One running index; two axes are the same only if they are one object.

    Args:
        size: how many entries it runs over.
        parts: the outer and the inner axis it is made of, once a reshape has split it.
    """

    size: Size
    parts: tuple[Axis, Axis] | None = None

    @property
    def carries_batch(self) -> bool:
        """Whether its size changes with the batch size."""
        return self.size[0] != self.size[1]


@dataclass(frozen=True, slots=True)
class Fixed:
    """One entry of a dimension, or of a part of it, with ``count`` entries."""

    value: int
    count: int

    @property
    def size(self) -> Size:
        """The size of what it is an entry of."""
        return self.count, self.count


Digit = Axis | Fixed
Index = tuple[tuple[Digit, ...], ...]


def digits_of(index: Index) -> Iterator[Digit]:
    """All digits of an index, the outermost first."""
    return (digit for digits in index for digit in digits)


class IndexMaps:
    """Follows indices through the views of one graph."""

    def __init__(self, graph: SpikingGraph) -> None:
        other = graph.at_batch(graph.batch + 1) if graph.free_batch else graph
        self._graph = graph
        self._batch: Size = (graph.batch, other.batch)
        self._sizes: dict[fx.Node, tuple[Size, ...]] = {}
        self._constants: dict[object, fx.Node] = {}
        for a, b in zip(graph.nodes, other.nodes, strict=True):
            x, y = a.meta.get("val"), b.meta.get("val")
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                self._sizes[a] = tuple(zip(x.shape, y.shape, strict=True))

    def __contains__(self, node: fx.Node) -> bool:
        """Whether the node has one tensor as its output."""
        return node in self._sizes

    def sizes(self, node: fx.Node) -> tuple[Size, ...]:
        """The sizes of a node's single output."""
        return self._sizes[node]

    def one(self, node: fx.Node) -> fx.Node:
        """One node for all that hold the same constant."""
        return self._constants.setdefault(node.target, node) if node.op == "get_attr" else node

    def fresh(self, node: fx.Node) -> Index:
        """An index with an axis of its own along every dimension of ``node``."""
        return tuple((Axis(size),) if size != (1, 1) else () for size in self._sizes[node])

    def resolve(self, digits: Iterable[Digit]) -> tuple[Digit, ...]:
        """The digits, with every axis that has been split replaced by its parts."""
        result: list[Digit] = []
        waiting = list(digits)[::-1]
        while waiting:
            digit = waiting.pop()
            if isinstance(digit, Axis) and digit.parts is not None:
                waiting.extend(reversed(digit.parts))
            else:
                result.append(digit)
        return tuple(result)

    def resolved(self, index: Index) -> Index:
        """:meth:`resolve` for every dimension."""
        return tuple(self.resolve(digits) for digits in index)

    def regroup(self, digits: Iterable[Digit], sizes: Sequence[Size]) -> Index | None:
        """The digits distributed over dimensions of ``sizes``; axes are split where a dimension ends inside one.

        ``None`` where that is not possible, for example when two reshapes split one axis differently.
        """
        left, groups = list(self.resolve(digits)), []
        for wanted in reversed(sizes):
            group: list[Digit] = []
            while wanted != (1, 1):
                if not left:
                    return None
                digit = left.pop()
                if (rest := _quotient(wanted, digit.size)) is not None:
                    group.append(digit)
                    wanted = rest
                    continue
                outer = _quotient(digit.size, wanted)
                if outer is None or not self._is_size(outer) or not self._is_size(wanted):
                    return None
                before, after = _split(digit, outer, wanted)
                left.append(before)
                group.append(after)
                wanted = (1, 1)
            groups.append(tuple(reversed(group)))
        return None if left else tuple(reversed(groups))

    def _is_size(self, size: Size) -> bool:
        """Whether it is a constant, or a constant times the batch size."""
        (a, b), (m, n) = size, self._batch
        return a == b or (a % m == 0 and a // m * n == b)

    def broadcast(self, node: fx.Node, index: Index) -> Index:
        """The index of an operand that is broadcast to a value under ``index``."""
        sizes = self._sizes[node]
        lead = len(index) - len(sizes)
        return tuple(() if size == (1, 1) else index[lead + d] for d, size in enumerate(sizes))

    def source(self, node: fx.Node, index: Index) -> tuple[fx.Node, Index] | None:
        """What ``node`` is a view of, and the entries of it that ``node`` has at ``index``; ``None`` when it is no view.

        Reshapes, permutations, expansions, repetitions and copies; and one entry of a dimension, taken by select, slice, split,
        unbind, index_select or indexing with a constant.
        """
        if node.op != "call_function" or node not in self._sizes:
            return None
        if is_op(node, operator.getitem):
            return self._piece(node, index)
        x = node.args[0] if node.args else None
        if not isinstance(x, fx.Node) or x not in self._sizes:
            return None
        if is_op(node, *_COPIES):
            return x, index
        if is_op(node, *_RESHAPES):
            found = self.regroup(digits_of(index), self._sizes[x])
            return None if found is None else (x, found)
        if is_op(node, aten.permute.default):
            order = [d % len(index) for d in operand(node, 1)]
            return x, tuple(index[order.index(d)] for d in range(len(order)))
        if is_op(node, aten.expand.default):
            return x, self.broadcast(x, index)
        if is_op(node, aten.repeat.default):
            return self._repeated(x, index, operand(node, 1))
        if is_op(node, aten.select.int):
            return self._entry(x, index, operand(node, 1), operand(node, 2), kept=False)
        if is_op(node, aten.slice.Tensor):
            found_arguments = arguments(node)
            dim, start = found_arguments["dim"], found_arguments["start"] or 0
            return self._entry(x, index, dim, start, kept=True) if self._is_one(node, dim) else None
        if is_op(node, aten.index_select.default):
            dim, position = operand(node, 1), self._graph.constant(operand(node, 2))
            one = position is not None and position.numel() == 1
            return self._entry(x, index, dim, int(position), kept=True) if one and position is not None else None
        if is_op(node, aten.index.Tensor):
            return self._indexed(node, x, index)
        return None

    def _repeated(self, x: fx.Node, index: Index, times: Sequence[int]) -> tuple[fx.Node, Index] | None:
        found, lead = [], len(index) - len(self._sizes[x])
        for digits, count, size in zip(index[lead:], times[lead:], self._sizes[x], strict=True):
            grouped = self.regroup(digits, [(count, count), size])
            if grouped is None:
                return None
            found.append(grouped[1])
        return x, tuple(found)

    def _is_one(self, node: fx.Node, dim: int) -> bool:
        return self._sizes[node][dim] == (1, 1)

    def _indexed(self, node: fx.Node, x: fx.Node, index: Index) -> tuple[fx.Node, Index] | None:
        given = [(d, n) for d, n in enumerate(operand(node, 1)) if n is not None]
        position = self._graph.constant(given[0][1]) if len(given) == 1 else None
        if position is None or position.numel() != 1 or position.dim() > 1 or position.dtype == torch.bool:
            return None
        return self._entry(x, index, given[0][0], int(position), kept=position.dim() == 1)

    def _piece(self, node: fx.Node, index: Index) -> tuple[fx.Node, Index] | None:
        parts: fx.Node = operand(node)
        k: int = operand(node, 1)
        if is_op(parts, aten.unbind.int):
            return self._entry(operand(parts), index, arguments(parts)["dim"], k, kept=False)
        if not is_op(parts, aten.split_with_sizes.default, aten.split.Tensor):
            return None
        dim: int = arguments(parts)["dim"]
        if not self._is_one(node, dim):
            return None
        lengths = operand(parts, 1)
        start = sum(lengths[:k]) if isinstance(lengths, list | tuple) else k * lengths
        return self._entry(operand(parts), index, dim, start, kept=True)

    def _entry(self, x: fx.Node, index: Index, dim: int, k: int, *, kept: bool) -> tuple[fx.Node, Index] | None:
        sizes = self._sizes[x]
        dim %= len(sizes)
        size, other = sizes[dim]
        if size != other or not -size <= k < size:
            return None
        digits = (Fixed(k % size, size),) if size > 1 else ()
        return x, (*index[:dim], digits, *index[dim + kept :])


def _quotient(size: Size, by: Size) -> Size | None:
    exact = by[0] and by[1] and size[0] % by[0] == 0 and size[1] % by[1] == 0
    return (size[0] // by[0], size[1] // by[1]) if exact else None


def _split(digit: Digit, outer: Size, inner: Size) -> tuple[Digit, Digit]:
    if isinstance(digit, Fixed):
        high, low = divmod(digit.value, inner[0])
        return Fixed(high, outer[0]), Fixed(low, inner[0])
    digit.parts = Axis(outer), Axis(inner)
    return digit.parts
