"""The table of translations, and how operators that work element by element choose their layout."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, fx

from snngraph.lowering.builder import Builder, Shape, Value, merged, normal

__all__ = ["Table", "Translation", "number", "pointwise", "promoted", "stacked_layout"]

Translation: TypeAlias = Callable[..., Any]
"""Takes the builder, the graph node and the operator's arguments by name; gives a value, or a tuple where the operator does."""


_Function = TypeVar("_Function", bound=Translation)


class Table(dict[Any, Translation]):
    """Operator -> translation."""

    def on(self, *targets: Any) -> Callable[[_Function], _Function]:
        """Registers the translation of ``targets``."""

        def register(translation: _Function) -> _Function:
            self.update(dict.fromkeys(targets, translation))
            return translation

        return register


def number(builder: Builder, x: float | Value, dtype: torch.dtype = torch.float32) -> Value:
    """A Python number as a constant; values pass through, cast."""
    if isinstance(x, Value):
        return builder.cast(x, dtype)
    return builder.constant(torch.tensor(x, dtype=torch.float64 if dtype.is_floating_point else dtype))


def promoted(node: fx.Node, operands: Sequence[Any]) -> torch.dtype:
    """The type PyTorch computes in, given the graph's operands."""
    fakes = [x.meta["val"] if isinstance(x, fx.Node) else x for x in operands]
    if len(fakes) == 1:
        return normal(fakes[0].dtype)
    dtypes = [torch.result_type(a, b) for a, b in itertools.pairwise(fakes)]
    return normal(reduce(torch.promote_types, dtypes))


def stacked_layout(value: Value) -> bool:
    """Whether ``value`` is ``[T, N, ...]`` held as ``[T*N, ...]``."""
    return value.source is None and len(value.shape) > 1 and value.layout != value.shape and value.layout == merged(value.shape)


def pointwise(
    builder: Builder, shape: Shape, op: str, operands: Sequence[Value | None], dtype: torch.dtype, **attributes: Any
) -> Value:
    """An operator whose inputs broadcast to ``shape``, computed in the layout its inputs have."""
    present = [x for x in operands if x is not None]
    for candidate in dict.fromkeys(x.layout for x in present if x.source is None and x.shape == shape and x.layout != x.shape):
        aligned = [None if x is None else _in_layout(builder, x, shape, candidate) for x in operands]
        if all((a is None) == (x is None) for a, x in zip(aligned, operands, strict=True)):
            return builder.value(builder.emit(op, *aligned, **attributes), shape, dtype, layout=candidate)
    lazy = [_unexpanded(x, present, shape) for x in operands]
    return builder.value(builder.emit(op, *lazy, **attributes), shape, dtype)


def _in_layout(builder: Builder, x: Value, shape: Shape, layout: Shape) -> Value | None:
    """``x``, which broadcasts to ``shape``, as something that broadcasts to ``layout``; ``None`` if only a copy would."""
    if x.shape == shape:
        return builder.view(x, layout)
    if all(d == 1 for d in x.shape):
        return builder.view(x, ())
    if x.source is not None or layout != merged(shape):
        return None
    if len(x.shape) <= len(shape) - 2:
        return x
    full = (1,) * (len(shape) - len(x.shape)) + x.shape
    if full[:2] == shape[:2] or full[:2] == (1, 1):
        return builder.view(x, merged(full))
    return None


def _unexpanded(x: Value | None, present: Sequence[Value], shape: Shape) -> Value | None:
    """An expansion need not be computed where another operand has the full shape anyway."""
    if x is None or x.source is None or not any(y.source is None and y.shape == shape for y in present):
        return x
    return x.source


def as_tensor(x: Any) -> Tensor:
    """A list of integers as the operand of a Reshape, Slice and the like."""
    return torch.tensor(x, dtype=torch.int64)
