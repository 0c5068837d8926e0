"""What passes that move scales share: finding ``a*x`` with a small ``a``, and taking ``a`` through views of ``x``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from snngraph.analysis.batch import shape_with_free_batch
from snngraph.analysis.bounds import Interval
from snngraph.graph import RESHAPE, SpikingGraph, is_op, module_path, operand, shape_of

__all__ = ["Scale", "Scales", "aligned", "joint", "numel"]

aten = torch.ops.aten


def numel(shape: Sequence[int]) -> int:
    """The number of elements of a shape."""
    return int(torch.Size(shape).numel())


def aligned(shape: Sequence[int], rank: int) -> tuple[int, ...]:
    """A shape as broadcasting sees it: leading ones up to ``rank``."""
    return (1,) * (rank - len(shape)) + tuple(shape)


@dataclass(frozen=True, slots=True)
class Scale:
    """A factor of a tensor.

    Args:
        node: its value; a plain number stays a number.
        shape: its shape at the graph's sample batch size, with as many dimensions as the tensor it scales.
        batch_dim: which of them carries the batch.
        least: what every entry is proved to be at least.
        constant: whether it is a constant of the graph.
    """

    node: fx.Node | float
    shape: tuple[int, ...]
    batch_dim: int | None = None
    least: float = -math.inf
    constant: bool = False

    def __str__(self) -> str:
        sizes = ", ".join("N" if d == self.batch_dim else str(n) for d, n in enumerate(self.shape))
        return f"{(module_path(self.node) or self.node.name) if isinstance(self.node, fx.Node) else self.node}[{sizes}]"

    @property
    def nonnegative(self) -> bool:
        """Whether no entry can be negative."""
        return self.least >= 0.0

    @property
    def elements(self) -> int:
        """The number of entries."""
        return numel(self.shape)

    def constant_along(self, dim: int) -> bool:
        """Whether the scale is the same all along a dimension, at every batch size."""
        return self.shape[dim] == 1 and dim != self.batch_dim


def joint(node: fx.Node, parts: Sequence[Scale]) -> Scale:
    """``node``, the product of ``parts``, as a scale."""
    shape = tuple(max(sizes) for sizes in zip(*(p.shape for p in parts), strict=True))
    return Scale(node, shape, next((p.batch_dim for p in parts if p.batch_dim is not None), None))


class Scales:
    """The scales of one graph as it stands; to be made anew after the graph is finished."""

    def __init__(self, graph: SpikingGraph, dims: dict[fx.Node, int | None], found: dict[fx.Node, Interval]) -> None:
        self.graph, self.dims, self.bounds = graph, dims, found

    # -- finding -----------------------------------------------------------------------------------------------------------

    def split(self, node: object) -> tuple[Scale, fx.Node] | None:
        """``a`` and ``x`` when ``node`` is ``a * x`` (or ``x`` over a number), ``a`` the smaller and ``x`` of full size."""
        if not isinstance(node, fx.Node) or len(node.args) < 2 or "val" not in node.meta:
            return None
        if is_op(node, aten.div.Tensor):
            x, by = node.args
            number = self.graph.number(by)
            if isinstance(x, fx.Node) and number and self._is_scaled(x, node):
                return self._number(1.0 / number, len(shape_of(node))), x
            return None
        if not is_op(node, aten.mul.Tensor):
            return None
        shape = shape_of(node)
        for x, a in (node.args, node.args[::-1]):
            if not isinstance(x, fx.Node) or not self._is_scaled(x, node):
                continue
            scale = self.of(a, len(shape))
            if scale is not None and scale.elements < numel(shape):
                return scale, x
        return None

    def _is_scaled(self, x: fx.Node, product: fx.Node) -> bool:
        """Whether ``x`` may be what a product is a multiple of: of its shape and floating (an integer takes part in no fold)."""
        return "val" in x.meta and self.same_shape(x, product) and bool(x.meta["val"].is_floating_point())

    def of(self, a: object, rank: int) -> Scale | None:
        """``a`` as the scale of a tensor with ``rank`` dimensions; ``None`` for a constant that is not finite."""
        if isinstance(a, fx.Node) and isinstance(a.meta.get("val"), Tensor) and a.meta["val"].is_floating_point():
            shape = shape_of(a)
            batch = self.dims.get(a)
            value = self.graph.constant(a)
            if value is not None and not bool(value.isfinite().all()):
                return None
            least = self.bounds.get(a, (-math.inf, 0.0))[0]
            at = None if batch is None else batch + rank - len(shape)
            return Scale(a, aligned(shape, rank), at, least, value is not None)
        finite = isinstance(a, int | float) and not isinstance(a, bool) and math.isfinite(a)
        return self._number(float(a), rank) if isinstance(a, int | float) and finite else None

    def _number(self, a: float, rank: int) -> Scale:
        return Scale(a, (1,) * rank, None, a, True)

    def same_shape(self, x: fx.Node, y: fx.Node) -> bool:
        """Whether two tensors have one shape, at every batch size."""
        return shape_of(x) == shape_of(y) and self.dims.get(x) == self.dims.get(y)

    # -- taking through views ----------------------------------------------------------------------------------------------

    def through(self, scale: Scale, view: fx.Node) -> Scale | None:
        """``a'`` with ``view(a * x) == a' * view(x)``, for a reshape or a permutation; ``None`` where there is no small one.

        New nodes are put before ``view``.
        """
        rank = len(shape_of(view))
        if all(map(scale.constant_along, range(len(scale.shape)))):
            return replace(scale, shape=(1,) * rank)
        if is_op(view, aten.permute.default):
            return self._permuted(scale, [d % rank for d in operand(view, 1)], view)
        return self._reshaped(scale, view) if is_op(view, RESHAPE) else None

    def _permuted(self, scale: Scale, order: list[int], view: fx.Node) -> Scale:
        with self.graph.graph.inserting_before(view):
            node = self.graph.graph.call_function(aten.permute.default, (self.ranked(scale), order))
        batch = order.index(scale.batch_dim) if scale.batch_dim is not None else None
        return replace(scale, node=node, shape=tuple(scale.shape[d] for d in order), batch_dim=batch)

    def _reshaped(self, scale: Scale, view: fx.Node) -> Scale | None:
        before, after = shape_of(operand(view)), shape_of(view)
        batch = self.dims.get(operand(view))
        expanded, target = list(scale.shape), list[int]()
        for inside, outside in _groups(before, after, batch, self.dims.get(view)):
            if all(map(scale.constant_along, inside)):
                target += [1] * len(outside)
                continue
            for d in inside:
                expanded[d] = before[d]
            target += [after[d] for d in outside]
        repeats = batch is not None and scale.batch_dim is None and expanded[batch] != scale.shape[batch]
        if repeats or numel(target) >= numel(after):
            return None  # repeated over a free batch, for which no size can be written; or as large as what it scales
        at = None if scale.batch_dim is None else self.dims.get(view)
        with self.graph.graph.inserting_before(view):
            node = self.ranked(scale)
            if tuple(expanded) != scale.shape:
                wide = shape_with_free_batch(tuple(expanded), scale.batch_dim)
                node = self.graph.graph.call_function(aten.expand.default, (node, wide))
            node = self.graph.graph.call_function(RESHAPE, (node, shape_with_free_batch(tuple(target), at)))
        return replace(scale, node=node, shape=tuple(target), batch_dim=at)

    def ranked(self, scale: Scale) -> fx.Node:
        """The scale's node with all dimensions of :attr:`Scale.shape`, made at the insertion point where it has fewer."""
        node = scale.node
        if not isinstance(node, fx.Node):
            return self.graph.add_tensor("scale", torch.full(scale.shape, node, dtype=self.graph.dtype))
        if "val" in node.meta and shape_of(node) == scale.shape:
            return node
        return self.graph.graph.call_function(RESHAPE, (node, shape_with_free_batch(scale.shape, scale.batch_dim)))

    def reshaped(self, scale: Scale, keep: Sequence[int]) -> fx.Node | float:
        """The scale with only the dimensions ``keep``; the others have to be of size 1. Made at the insertion point."""
        if not isinstance(scale.node, fx.Node) or len(keep) == len(scale.shape):
            return scale.node
        shape = tuple(scale.shape[d] for d in keep)
        batch = keep.index(scale.batch_dim) if scale.batch_dim is not None else None
        return self.graph.graph.call_function(RESHAPE, (scale.node, shape_with_free_batch(shape, batch)))


def _groups(
    before: tuple[int, ...], after: tuple[int, ...], batch: int | None, batch_after: int | None
) -> list[tuple[list[int], list[int]]]:
    """Which dimensions of a reshape's input make which of its output: the finest such pairing that holds at every batch size."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    left: list[int] = []
    right: list[int] = []
    p = q = 1
    while i < len(before) or j < len(after):
        if (p <= q and i < len(before)) or j == len(after):
            left.append(i)
            p *= before[i]
            i += 1
        else:
            right.append(j)
            q *= after[j]
            j += 1
        settled = p == q and left and right
        same_side = (batch in left) == (batch_after in right)
        if settled and same_side:
            groups.append((left, right))
            left, right, p, q = [], [], 1, 1
    if left or right:
        if groups:
            groups[-1] = (groups[-1][0] + left, groups[-1][1] + right)
        else:
            groups.append((left, right))
    return groups
