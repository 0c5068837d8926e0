"""Integer synapses as ONNX operators that every engine knows: 8 bits in the standard form of quantized models.

A tensor of levels passes ``QuantizeLinear -> DequantizeLinear`` with a scale of 1, a layer is one ``Conv`` or ``MatMul`` per
digit whose weight is a ``DequantizeLinear`` of int8 with a scale of 1, and what follows is float32: scales per channel, the sum
of the digits, the bias. An engine with integer kernels fuses the four (int8 products, int32 sums, scaled to float32); one without
them computes the same integers in float32, exact as long as they stay below 2**24.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, LEVELS
from snngraph.lowering.builder import Builder, Refusal, Value
from snngraph.lowering.table import Table

__all__ = ["TABLE"]

TABLE = Table()
_ONE = torch.ones((), dtype=torch.float64)


@TABLE.on(LEVELS)
def _levels(builder: Builder, node: fx.Node, x: Value, low: int, high: int) -> Value:
    zero = torch.zeros((), dtype=torch.int8 if low < 0 else torch.uint8)
    if x.constant is not None:
        return x
    if x.source is not None:
        return builder.value(_held(builder, builder.name(x), zero), x.shape)
    return builder.value(_held(builder, x.tensor, zero), x.shape, layout=x.layout)


def _held(builder: Builder, tensor: str, zero: Tensor) -> str:
    """A tensor of integers, held in 8 bits on the way."""
    return builder.emit("DequantizeLinear", builder.emit("QuantizeLinear", tensor, _ONE, zero), _ONE, zero)


@TABLE.on(INTEGER_CONV)
def _integer_conv(
    builder: Builder,
    node: fx.Node,
    x: Value,
    digits: Value,
    scales: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Value:
    rank = len(digits.shape) - 3
    shape = builder.shape(node)
    options = {
        "kernel_shape": list(digits.shape[3:]),
        "group": groups,
        **{k: _all(v, rank) for k, v in (("strides", stride), ("dilations", dilation))},
        "pads": _all(padding, rank) * 2,
    }
    parts = [builder.emit("Conv", x, weight, **options) for weight in _weights(builder, digits)]
    total = _summed(builder, parts, scales, bias, (-1, *[1] * rank))
    return builder.value(total, shape)


@TABLE.on(INTEGER_LINEAR)
def _integer_linear(builder: Builder, node: fx.Node, x: Value, digits: Value, scales: Value, bias: Value | None = None) -> Value:
    shape = builder.shape(node)
    as_held = x.source is None and x.layout[-1:] == x.shape[-1:] and len(x.layout) > 1
    rows = x.layout if as_held else x.shape
    held = builder.view(x, rows)
    parts = [builder.emit("MatMul", held, weight) for weight in _weights(builder, digits, transposed=True)]
    total = _summed(builder, parts, scales, bias, (-1,))
    return builder.value(total, shape, layout=(*rows[:-1], shape[-1]))


def _all(sizes: Sequence[int], rank: int) -> list[int]:
    return list(sizes) * (rank if len(sizes) == 1 else 1)


def _weights(builder: Builder, digits: Value, *, transposed: bool = False) -> list[str]:
    """One weight per digit, the largest digit first."""
    if digits.constant is None:
        raise Refusal("digits that the graph computes")
    parts = [d.mT.contiguous() if transposed else d for d in digits.constant.to(torch.int8)]
    # ONNX Runtime fails where two layers share a weight, or two weights a zero point (whose default is 0): its names clash.
    names = [builder.initializer(d, f"{digits.title}.{k}", shared=False) for k, d in enumerate(parts)]
    return [builder.emit("DequantizeLinear", name, _ONE) for name in names]


def _summed(builder: Builder, parts: Sequence[str], scales: Value, bias: Value | None, aligned: Sequence[int]) -> str:
    """The digits' sums, each scaled per channel, added up smallest first; the bias goes with the largest."""
    if scales.constant is None:
        raise Refusal("scales that the graph computes")
    total = ""
    for k in reversed(range(len(parts))):
        scale = builder.constant(scales.constant[k].reshape(tuple(aligned)), f"{scales.title}.{k}")
        part = builder.emit("Mul", parts[k], scale)
        if k == 0 and bias is not None:
            shape = tuple(int(str(d)) for d in (*bias.shape, *aligned[1:]))
            part = builder.emit("Add", part, builder.view(bias, shape))
        total = builder.emit("Add", part, total) if total else part
    return total
