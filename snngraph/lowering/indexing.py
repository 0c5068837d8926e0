"""Look-ups by position, padding, and tensors filled with one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from snngraph.lowering.builder import Batch, Builder, Refusal, Shape, Value, merged, numel
from snngraph.lowering.table import Table, as_tensor, number, stacked_layout

__all__ = ["TABLE", "padded"]

aten = torch.ops.aten
TABLE = Table()


@TABLE.on(aten.index_select.default)
def _index_select(builder: Builder, node: fx.Node, self: Value, dim: int, index: Value) -> Value:
    return builder.value(builder.emit("Gather", self, index, axis=dim % len(self.shape)), builder.shape(node), self.dtype)


@TABLE.on(aten.embedding.default)
def _embedding(builder: Builder, node: fx.Node, weight: Value, indices: Value, **_: Any) -> Value:
    return builder.value(builder.emit("Gather", weight, indices, axis=0), builder.shape(node), weight.dtype)


@TABLE.on(aten.gather.default)
def _gather(builder: Builder, node: fx.Node, self: Value, dim: int, index: Value, **_: Any) -> Value:
    return builder.value(builder.emit("GatherElements", self, index, axis=dim % len(self.shape)), builder.shape(node), self.dtype)


@TABLE.on(aten.index.Tensor, aten._unsafe_index.Tensor)
def _index(builder: Builder, node: fx.Node, self: Value, indices: Sequence[Value | None]) -> Value:
    """One index tensor; or constant ones for neighbouring dimensions, which are then looked up as one."""
    given = [(axis, x) for axis, x in enumerate(indices) if x is not None]
    if any(x.dtype == torch.bool for _, x in given):
        raise Refusal("a mask as index: the number of elements depends on the data")
    if len(given) == 1:
        return builder.value(builder.emit("Gather", self, given[0][1], axis=given[0][0]), builder.shape(node), self.dtype)
    first, count = given[0][0], len(given)
    sizes = self.shape[first : first + count]
    constants = [x.constant for _, x in given if x.constant is not None]
    if len(constants) < count or given[-1][0] != first + count - 1 or any(isinstance(d, Batch) for d in sizes):
        raise Refusal("several index tensors that are not constants for neighbouring dimensions of a fixed size")
    position = torch.zeros((), dtype=torch.int64)
    for index, size in zip(constants, sizes, strict=True):
        position = position * int(str(size)) + index % int(str(size))
    flat = builder.view(self, (*self.shape[:first], numel(sizes), *self.shape[first + count :]))
    return builder.value(builder.emit("Gather", flat, position, axis=first), builder.shape(node), self.dtype)


@TABLE.on(aten.unfold.default)
def _unfold(builder: Builder, node: fx.Node, self: Value, dimension: int, size: int, step: int) -> Value:
    shape = builder.shape(node)
    axis, rank = dimension % len(self.shape), len(self.shape)
    windows = torch.arange(int(str(shape[axis])))[:, None] * step + torch.arange(size)
    found = builder.value(
        builder.emit("Gather", self, windows, axis=axis), (*shape[: axis + 1], size, *shape[axis + 1 : -1]), self.dtype
    )
    order = [*range(axis + 1), *range(axis + 2, rank + 1), axis + 1]  # the window comes last
    return found if axis == rank - 1 else builder.value(builder.emit("Transpose", found, perm=order), shape, self.dtype)


@TABLE.on(aten.diagonal.default)
def _diagonal(builder: Builder, node: fx.Node, self: Value, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Value:
    rank, shape = len(self.shape), builder.shape(node)
    first, second = dim1 % rank, dim2 % rank
    if (first, second) != (rank - 2, rank - 1) or any(isinstance(d, Batch) for d in self.shape[-2:]):
        raise Refusal("a diagonal of other dimensions than the last two")
    rows, columns = (int(str(d)) for d in self.shape[-2:])
    row = torch.arange(int(str(shape[-1]))) + max(0, -offset)
    flat = builder.view(self, (*self.shape[:-2], rows * columns))
    return builder.value(builder.emit("Gather", flat, row * columns + row + offset, axis=rank - 2), shape, self.dtype)


@TABLE.on(aten.scatter.src, aten.scatter.value, aten.scatter_add.default)
def _scatter(builder: Builder, node: fx.Node, self: Value, dim: int, index: Value, src: Any = None, value: float = 0) -> Value:
    written = Value("", index.shape, index.shape, self.dtype, source=number(builder, value, self.dtype)) if src is None else src
    if written.shape != index.shape:
        raise Refusal("an index smaller than the source")
    how = {"reduction": "add"} if node.target is aten.scatter_add.default else {}
    tensor = builder.emit("ScatterElements", self, index, written, axis=dim % len(self.shape), **how)
    return builder.value(tensor, self.shape, self.dtype)


@TABLE.on(aten.pixel_shuffle.default)
def _pixel_shuffle(builder: Builder, node: fx.Node, self: Value, upscale_factor: int) -> Value:
    return builder.value(
        builder.emit("DepthToSpace", self, blocksize=upscale_factor, mode="CRD"), builder.shape(node), self.dtype
    )


# -- padding and constants -----------------------------------------------------------------------------------------------------


def padded(builder: Builder, value: Value, pad: Sequence[int], shape: Shape, mode: str, fill: float | None = None) -> Value:
    """``pad`` as in PyTorch: (before, after) of the last dimension, then the one before it ..."""
    count = len(pad) // 2
    inner = stacked_layout(value) and count <= len(value.shape) - 2
    rank = len(value.shape) - inner
    ends = [0] * (2 * rank)
    for k in range(count):
        ends[rank - 1 - k], ends[2 * rank - 1 - k] = pad[2 * k], pad[2 * k + 1]
    operands: list[Any] = [value.tensor if inner else value, as_tensor(ends)]
    if fill:
        operands.append(number(builder, fill, value.dtype))
    tensor = builder.emit("Pad", *operands, mode=mode)
    return builder.value(tensor, shape, value.dtype, layout=merged(shape) if inner else shape)


@TABLE.on(aten.constant_pad_nd.default)
def _constant_pad(builder: Builder, node: fx.Node, self: Value, pad: Sequence[int], value: float = 0) -> Value:
    return padded(builder, self, pad, builder.shape(node), "constant", value)


@TABLE.on(aten.reflection_pad1d.default, aten.reflection_pad2d.default, aten.reflection_pad3d.default)
def _reflection_pad(builder: Builder, node: fx.Node, self: Value, padding: Sequence[int]) -> Value:
    return padded(builder, self, padding, builder.shape(node), "reflect")


@TABLE.on(aten.replication_pad1d.default, aten.replication_pad2d.default, aten.replication_pad3d.default)
def _replication_pad(builder: Builder, node: fx.Node, self: Value, padding: Sequence[int]) -> Value:
    return padded(builder, self, padding, builder.shape(node), "edge")


_FILLED: dict[Any, float] = {
    **dict.fromkeys((aten.ones.default, aten.ones_like.default, aten.new_ones.default), 1.0),
    **dict.fromkeys((aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default), 0.0),
    **dict.fromkeys((aten.empty.memory_format, aten.empty_like.default), 0.0),  # anything will do
    **dict.fromkeys((aten.full.default, aten.full_like.default, aten.new_full.default, aten.scalar_tensor.default), 0.0),
}


@TABLE.on(*_FILLED)
def _full(builder: Builder, node: fx.Node, fill_value: float | None = None, s: float | None = None, **_: Any) -> Value:
    shape, dtype = builder.shape(node), builder.dtype(node)
    given = [x for x in (fill_value, s) if x is not None]
    fill = given[0] if given else _FILLED[node.target]
    one = builder.constant(torch.tensor(fill, dtype=torch.float64 if dtype.is_floating_point else dtype))
    return one if not shape else Value("", shape, shape, dtype, source=one)


@TABLE.on(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(builder: Builder, node: fx.Node, **_: Any) -> Value:
    with torch.no_grad():
        return builder.constant(node.target(*node.args, **{**node.kwargs, "device": "cpu"}))  # type: ignore[operator]
