"""Operators that move elements: views, permutations, pieces, and joining."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from snngraph.lowering.builder import Batch, Builder, Refusal, Shape, Value, merged, numel
from snngraph.lowering.table import Table, as_tensor, stacked_layout

__all__ = ["TABLE"]

aten = torch.ops.aten
TABLE = Table()


@TABLE.on(
    aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.unsqueeze.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.flatten.using_ints, aten.unflatten.int, aten.clone.default, aten.alias.default,
    aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default, aten.view_copy.default,
)  # fmt: skip
def _view(builder: Builder, node: fx.Node, self: Value, **_: Any) -> Value:
    return builder.view(self, builder.shape(node))


@TABLE.on(aten.permute.default, aten.transpose.int, aten.t.default)
def _permute(builder: Builder, node: fx.Node, self: Value, dims: Sequence[int] = (), dim0: int = 0, dim1: int = 1) -> Value:
    rank = len(self.shape)
    order = [d % rank for d in dims]
    if not order:
        order = list(range(rank))
        if rank > 1:
            order[dim0], order[dim1] = order[dim1], order[dim0]
    if [d for d in order if self.shape[d] != 1] == [d for d in range(rank) if self.shape[d] != 1]:
        return builder.view(self, builder.shape(node))  # only dimensions of size 1 move
    if stacked_layout(self) and order[:2] == [0, 1]:
        tensor = builder.emit("Transpose", self.tensor, perm=[0, *(d - 1 for d in order[2:])])
        return builder.value(tensor, builder.shape(node), self.dtype, layout=merged(builder.shape(node)))
    return builder.value(builder.emit("Transpose", self, perm=order), builder.shape(node), self.dtype)


@TABLE.on(aten.expand.default, aten.expand_as.default)
def _expand(builder: Builder, node: fx.Node, self: Value, **_: Any) -> Value:
    shape = builder.shape(node)
    if shape == self.shape:
        return self
    return Value("", shape, shape, self.dtype, source=self if self.source is None else self.source)


@TABLE.on(aten.repeat.default)
def _repeat(builder: Builder, node: fx.Node, self: Value, repeats: Sequence[int]) -> Value:
    shape = builder.shape(node)
    full: Shape = (1,) * (len(shape) - len(self.shape)) + self.shape
    aligned = builder.view(self, full)
    if all(n == 1 or d == 1 for n, d in zip(repeats, full, strict=True)):
        return _expand(builder, node, aligned)
    return builder.value(builder.emit("Tile", aligned, as_tensor(list(repeats))), shape, self.dtype)


# -- pieces --------------------------------------------------------------------------------------------------------------------


def _selections(node: fx.Node, dim: int) -> int:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return sum(1 for u in source.users if u.target is aten.select.int and u.args[0] is source and u.args[1] == dim)


@TABLE.on(aten.select.int)
def _select(builder: Builder, node: fx.Node, self: Value, dim: int, index: int) -> Value:
    rank = len(self.shape)
    axis, size = dim % rank, self.shape[dim]
    if axis == 0 and isinstance(size, int) and (_selections(node, dim) == size or self.source is not None):
        return builder.steps(self)[index % size]
    position = torch.tensor(index, dtype=torch.int64)
    if stacked_layout(self) and axis > 1:
        tensor = builder.emit("Gather", self.tensor, position, axis=axis - 1)
        return builder.value(tensor, builder.shape(node), self.dtype, layout=merged(builder.shape(node)))
    return builder.value(builder.emit("Gather", self, position, axis=axis), builder.shape(node), self.dtype)


def piece(builder: Builder, value: Value, axis: int, start: int, stop: int, step: int, shape: Shape) -> Value:
    """``value[start:stop:step]`` along ``axis``; ``shape`` is the result's."""
    limits = [as_tensor([n]) for n in (start, stop)]
    if stacked_layout(value) and axis > 1:
        tensor = builder.emit("Slice", value.tensor, *limits, as_tensor([axis - 1]), as_tensor([step]))
        return builder.value(tensor, shape, value.dtype, layout=merged(shape))
    return builder.value(builder.emit("Slice", value, *limits, as_tensor([axis]), as_tensor([step])), shape, value.dtype)


@TABLE.on(aten.slice.Tensor)
def _slice(
    builder: Builder, node: fx.Node, self: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Value:
    shape = builder.shape(node)
    if shape == self.shape:
        return self
    axis = dim % len(self.shape)
    return piece(builder, self, axis, start or 0, 2**63 - 1 if end is None else end, step, shape)


@TABLE.on(aten.flip.default)
def _flip(builder: Builder, node: fx.Node, self: Value, dims: Sequence[int]) -> Value:
    result = self
    for dim in dims:
        result = piece(builder, result, dim % len(self.shape), -1, -(2**63) + 1, -1, self.shape)
    return result


@TABLE.on(aten.split_with_sizes.default, aten.split.Tensor, aten.split_with_sizes_copy.default)
def _split(builder: Builder, node: fx.Node, self: Value, dim: int = 0, **_: Any) -> tuple[Value, ...]:
    shapes: tuple[Shape, ...] = builder.shapes[node]
    axis = dim % len(self.shape)
    sizes = [s[axis] for s in shapes]
    if any(isinstance(d, Batch) for d in sizes):
        raise Refusal("it splits the free batch; build with a fixed batch size")
    if len(shapes) == 1:
        return (self,)
    if stacked_layout(self) and axis > 1:
        names = builder.emit_many("Split", [self.tensor, as_tensor(sizes)], len(shapes), axis=axis - 1)
        return tuple(builder.value(n, s, self.dtype, layout=merged(s)) for n, s in zip(names, shapes, strict=True))
    names = builder.emit_many("Split", [self, as_tensor(sizes)], len(shapes), axis=axis)
    return tuple(builder.value(n, s, self.dtype) for n, s in zip(names, shapes, strict=True))


@TABLE.on(aten.unbind.int)
def _unbind(builder: Builder, node: fx.Node, self: Value, dim: int = 0) -> tuple[Value, ...]:
    shapes: tuple[Shape, ...] = builder.shapes[node]
    axis = dim % len(self.shape)
    if axis == 0:
        return tuple(builder.steps(self))
    names = (
        builder.emit_many("Split", [self], len(shapes), axis=axis, num_outputs=len(shapes))
        if len(shapes) > 1
        else [builder.name(self)]
    )
    layout = (*self.shape[:axis], 1, *self.shape[axis + 1 :])
    return tuple(builder.value(n, s, self.dtype, layout=layout) for n, s in zip(names, shapes, strict=True))


# -- joining -------------------------------------------------------------------------------------------------------------------


def joined(builder: Builder, values: Sequence[Value], axis: int, shape: Shape, dtype: torch.dtype) -> Value:
    """The values one after the other along ``axis``."""
    values = [builder.cast(v, dtype) for v in values]
    if len(values) == 1:
        return builder.view(values[0], shape)
    if axis > 1 and any(stacked_layout(v) for v in values):
        names = [builder.name(builder.view(v, merged(v.shape))) for v in values]
        return builder.value(builder.emit("Concat", *names, axis=axis - 1), shape, dtype, layout=merged(shape))
    if axis == 0 and any(stacked_layout(v) for v in values):
        names = [builder.name(builder.view(v, merged(v.shape))) for v in values]
        return builder.value(builder.emit("Concat", *names, axis=0), shape, dtype, layout=merged(shape))
    return builder.value(builder.emit("Concat", *[builder.name(v) for v in values], axis=axis), shape, dtype)


@TABLE.on(aten.cat.default)
def _cat(builder: Builder, node: fx.Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    shape = builder.shape(node)
    full = [v for v in tensors if len(v.shape) == len(shape) and numel(v.shape) != 0]  # cat ignores empty tensors
    return joined(builder, full, dim % len(shape), shape, builder.dtype(node))


@TABLE.on(aten.stack.default)
def _stack(builder: Builder, node: fx.Node, tensors: Sequence[Value], dim: int = 0) -> Value:
    shape = builder.shape(node)
    axis, dtype = dim % len(shape), builder.dtype(node)
    if axis == 0:
        return builder.joined([builder.cast(v, dtype) for v in tensors])
    parts = [builder.view(v, (*v.shape[:axis], 1, *v.shape[axis:])) for v in tensors]
    return joined(builder, parts, axis, shape, dtype)


@TABLE.on(aten.copy.default)
def _copy(builder: Builder, node: fx.Node, self: Value, src: Value, **_: Any) -> Value:
    return _expand(builder, node, builder.cast(src, self.dtype))


@TABLE.on(aten.select_scatter.default)
def _select_scatter(builder: Builder, node: fx.Node, self: Value, src: Value, dim: int, index: int) -> Value:
    axis, size = dim % len(self.shape), self.shape[dim]
    if isinstance(size, Batch):
        raise Refusal("it writes into the free batch; build with a fixed batch size")
    at = index % size
    return _replaced(builder, self, builder.view(src, (*self.shape[:axis], 1, *self.shape[axis + 1 :])), axis, at, at + 1)


@TABLE.on(aten.slice_scatter.default)
def _slice_scatter(
    builder: Builder,
    node: fx.Node,
    self: Value,
    src: Value,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Value:
    axis, size = dim % len(self.shape), self.shape[dim]
    if src.shape == self.shape:
        return builder.cast(src, self.dtype)
    if isinstance(size, Batch) or step != 1:
        raise Refusal("it writes into the free batch, or with a step")
    first, last, _ = slice(start, end).indices(size)
    return _replaced(builder, self, src, axis, first, last)


def _replaced(builder: Builder, value: Value, part: Value, axis: int, start: int, stop: int) -> Value:
    size = int(str(value.shape[axis]))

    def rest(a: int, b: int) -> list[Value]:
        return [piece(builder, value, axis, a, b, 1, (*value.shape[:axis], b - a, *value.shape[axis + 1 :]))] if b > a else []

    return joined(builder, [*rest(0, start), part, *rest(stop, size)], axis, value.shape, value.dtype)


@TABLE.on(aten.roll.default)
def _roll(builder: Builder, node: fx.Node, self: Value, shifts: Sequence[int], dims: Sequence[int] = ()) -> Value:
    if not dims:
        raise Refusal("without dims")
    result = self
    for shift, dim in zip(shifts, dims, strict=True):
        axis = dim % len(self.shape)
        size = self.shape[axis]
        if isinstance(size, Batch):
            raise Refusal("it rolls the free batch; build with a fixed batch size")
        cut = (size - shift) % size
        if cut:
            head, tail = ((*self.shape[:axis], n, *self.shape[axis + 1 :]) for n in (cut, size - cut))
            parts = [piece(builder, result, axis, cut, size, 1, tail), piece(builder, result, axis, 0, cut, 1, head)]
            result = joined(builder, parts, axis, self.shape, self.dtype)
    return result
