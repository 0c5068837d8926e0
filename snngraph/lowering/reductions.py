"""Operators that reduce dimensions, or work along one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from snngraph.lowering.builder import Builder, Refusal, Shape, Value, numel
from snngraph.lowering.elementwise import truth
from snngraph.lowering.table import Table, as_tensor, number, pointwise, stacked_layout

__all__ = ["TABLE", "reduced"]

aten = torch.ops.aten
TABLE = Table()


def reduced(builder: Builder, op: str, x: Value, dims: Sequence[int] | int | None, *, keepdim: bool = False) -> Value:
    """``x`` reduced over ``dims`` (all of them if none are given)."""
    rank = len(x.shape)
    axes = sorted({d % rank for d in ([dims] if isinstance(dims, int) else dims or range(rank))}) if rank else []
    if not axes:
        return x
    kept: Shape = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    shape = kept if keepdim else tuple(n for d, n in enumerate(x.shape) if d not in axes)
    if stacked_layout(x) and (axes[0] > 1 or x.shape[1] == 1):
        # Of one sample, [T, 1, ...] held as [T, ...], steps can be reduced as they lie, without a tensor of five dimensions.
        x, axes = builder.view(x, x.layout), sorted({max(d - 1, 0) for d in axes if d != 1})
        if not axes:
            return builder.view(x, shape)
    if len(x.shape) == 3:
        # OpenVINO (2026.4) fuses a per-channel operator behind a reduction of three dimensions along the wrong one; and, told to
        # drop dimensions, it has merged two reductions along wrong ones (https://github.com/openvinotoolkit/openvino/issues/31833).
        # Four dimensions, all kept, are right, and free.
        x = builder.view(x, (*x.shape, 1))
    large = [d for d, n in enumerate(x.shape) if n != 1]
    if builder.made_by(x) == op and len(large) <= 4 and not set(axes).isdisjoint(large):
        # OpenVINO merges a reduction with an equal one before it into one over all their dimensions, and so reads the large
        # tensor again that the first had made small. Not with a reshape between them.
        ones = 4 - len(large)
        axes = [ones + large.index(d) for d in axes if d in large]
        x = builder.view(x, (1,) * ones + tuple(x.shape[d] for d in large))
    layout = tuple(1 if d in axes else n for d, n in enumerate(x.shape))
    return builder.value(builder.emit(op, x, as_tensor(axes), keepdims=1), shape, x.dtype, layout=layout)


_REDUCTIONS: dict[Any, str] = {
    aten.sum.dim_IntList: "ReduceSum",
    aten.sum.default: "ReduceSum",
    aten.mean.dim: "ReduceMean",
    aten.mean.default: "ReduceMean",
    aten.amax.default: "ReduceMax",
    aten.amin.default: "ReduceMin",
    aten.prod.dim_int: "ReduceProd",
    aten.prod.default: "ReduceProd",
}


@TABLE.on(*_REDUCTIONS)
def _reduce(builder: Builder, node: fx.Node, self: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    x = builder.cast(self, builder.dtype(node))
    return reduced(builder, _REDUCTIONS[node.target], x, dim, keepdim=keepdim)


@TABLE.on(aten.any.default, aten.any.dim, aten.any.dims, aten.all.default, aten.all.dim, aten.all.dims)
def _any(builder: Builder, node: fx.Node, self: Value, dim: Any = None, keepdim: bool = False) -> Value:
    op = "ReduceMax" if ".any." in f".{node.target}" else "ReduceMin"
    found = reduced(builder, op, builder.cast(truth(builder, self), torch.int32), dim, keepdim=keepdim)
    return builder.cast(found, torch.bool)


def _position(builder: Builder, op: str, x: Value, dim: int | None, *, keepdim: bool) -> Value:
    if dim is None:
        flat = builder.view(x, (numel(x.shape),))
        return builder.value(builder.emit(op, flat, axis=0, keepdims=0), (), torch.int64)
    axis = dim % len(x.shape)
    shape = (*x.shape[:axis], *([1] if keepdim else []), *x.shape[axis + 1 :])
    return builder.value(builder.emit(op, x, axis=axis, keepdims=int(keepdim)), shape, torch.int64)


@TABLE.on(aten.argmax.default, aten.argmin.default)
def _arg(builder: Builder, node: fx.Node, self: Value, dim: int | None = None, keepdim: bool = False) -> Value:
    op = "ArgMax" if "argmax" in str(node.target) else "ArgMin"
    return builder.view(_position(builder, op, self, dim, keepdim=keepdim), builder.shape(node))


@TABLE.on(aten.max.dim, aten.min.dim)
def _extreme(builder: Builder, node: fx.Node, self: Value, dim: int, keepdim: bool = False) -> tuple[Value, ...]:
    largest = node.target is aten.max.dim
    values = reduced(builder, "ReduceMax" if largest else "ReduceMin", self, dim, keepdim=keepdim)
    return values, _position(builder, "ArgMax" if largest else "ArgMin", self, dim, keepdim=keepdim)


@TABLE.on(aten.max.default, aten.min.default)
def _extreme_of_all(builder: Builder, node: fx.Node, self: Value) -> Value:
    return reduced(builder, "ReduceMax" if node.target is aten.max.default else "ReduceMin", self, None)


@TABLE.on(aten.linalg_vector_norm.default)
def _norm(
    builder: Builder, node: fx.Node, self: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, **_: Any
) -> Value:
    op = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(ord))
    if op is None:
        raise Refusal(f"a norm of order {ord}; 1 and 2 are supported")
    return reduced(builder, op, self, dim, keepdim=keepdim)


@TABLE.on(aten.var.correction, aten.var.dim)
def _variance(
    builder: Builder,
    node: fx.Node,
    self: Value,
    dim: Any = None,
    correction: float | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Value:
    mean = reduced(builder, "ReduceMean", self, dim, keepdim=True)
    centred = pointwise(builder, self.shape, "Sub", [self, mean], torch.float32)
    square = pointwise(builder, self.shape, "Mul", [centred, centred], torch.float32)
    less = (1 if unbiased else 0) if correction is None else correction
    if not less:
        return reduced(builder, "ReduceMean", square, dim, keepdim=keepdim)
    total = reduced(builder, "ReduceSum", square, dim, keepdim=keepdim)
    count = numel(tuple(n if kept == 1 else 1 for n, kept in zip(self.shape, mean.shape, strict=True)))
    if not isinstance(count, int):
        raise Refusal("a corrected variance over a free batch; build with a fixed batch size")
    return pointwise(builder, total.shape, "Mul", [total, number(builder, 1 / (count - less))], torch.float32)


# -- along one dimension -------------------------------------------------------------------------------------------------------


@TABLE.on(aten._softmax.default, aten._log_softmax.default, aten.softmax.int, aten.log_softmax.int)
def _softmax(builder: Builder, node: fx.Node, self: Value, dim: int, **_: Any) -> Value:
    axis = dim % len(self.shape)
    op = "LogSoftmax" if "log" in str(node.target) else "Softmax"
    if stacked_layout(self) and axis > 1:
        return builder.value(builder.emit(op, self.tensor, axis=axis - 1), self.shape, layout=self.layout)
    return builder.value(builder.emit(op, self, axis=axis), self.shape)


@TABLE.on(aten._safe_softmax.default)
def _safe_softmax(builder: Builder, node: fx.Node, self: Value, dim: int, **_: Any) -> Value:
    """Zeros, not NaN, for a row in which everything is masked."""
    largest = reduced(builder, "ReduceMax", self, dim, keepdim=True)
    # not "equal -inf": OpenVINO's maximum of nothing but -inf is the lowest finite number
    masked = pointwise(builder, largest.shape, "Less", [largest, number(builder, -3.4e38)], torch.bool)
    plain = _softmax(builder, node, self, dim)
    return pointwise(builder, self.shape, "Where", [masked, number(builder, 0.0), plain], torch.float32)


@TABLE.on(aten.cumsum.default)
def _cumsum(builder: Builder, node: fx.Node, self: Value, dim: int, **_: Any) -> Value:
    x = builder.cast(self, builder.dtype(node))
    axis = torch.tensor(dim % len(self.shape), dtype=torch.int64)
    return builder.value(builder.emit("CumSum", x, axis), self.shape, x.dtype)


@TABLE.on(aten.sort.default)
def _sort(builder: Builder, node: fx.Node, self: Value, dim: int = -1, descending: bool = False) -> tuple[Value, ...]:
    size = self.shape[dim]
    if not isinstance(size, int):
        raise Refusal("it sorts along the free batch; build with a fixed batch size")
    return _topk(builder, node, self, size, dim, descending)


@TABLE.on(aten.topk.default)
def _topk(
    builder: Builder, node: fx.Node, self: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True
) -> tuple[Value, ...]:
    names = builder.emit_many(
        "TopK", [self, as_tensor([k])], 2, axis=dim % len(self.shape), largest=int(largest), sorted=int(sorted)
    )
    values, positions = builder.shapes[node]
    return builder.value(names[0], values, self.dtype), builder.value(names[1], positions, torch.int64)
