"""Layers with weights: convolutions, matrix products, normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.lowering.builder import Builder, Refusal, Shape, Value, merged, numel
from snngraph.lowering.reductions import reduced
from snngraph.lowering.table import Table, number, pointwise

__all__ = ["TABLE"]

aten = torch.ops.aten
TABLE = Table()


@TABLE.on(aten.convolution.default)
def _convolution(
    builder: Builder,
    node: fx.Node,
    input: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    rank = len(weight.shape) - 2
    options: dict[str, Any] = {"strides": _all(stride, rank), "pads": _all(padding, rank) * 2, "dilations": _all(dilation, rank)}
    if transposed and any(output_padding):
        options["output_padding"] = _all(output_padding, rank)
    x = input if len(input.shape) == rank + 2 else builder.view(input, (1, *input.shape))  # PyTorch lets one sample's batch out
    operands = [x, weight] if bias is None else [x, weight, bias]
    op = "ConvTranspose" if transposed else "Conv"
    tensor = builder.emit(op, *operands, kernel_shape=list(weight.shape[2:]), group=groups, **options)
    shape = builder.shape(node)
    return builder.value(tensor, shape, layout=shape if x is input else (1, *shape))


def _all(sizes: Sequence[int], rank: int) -> list[int]:
    return list(sizes) * (rank if len(sizes) == 1 else 1)


# -- matrix products -----------------------------------------------------------------------------------------------------------


def _transposed(builder: Builder, value: Value) -> Value:
    if value.constant is not None:
        return builder.constant(value.constant.mT, value.title)
    perm = [*range(len(value.shape) - 2), len(value.shape) - 1, len(value.shape) - 2]
    tensor = builder.emit("Transpose", value, perm=perm)
    return builder.value(tensor, (*value.shape[:-2], value.shape[-1], value.shape[-2]), value.dtype)


@TABLE.on(aten.linear.default)
def _linear(builder: Builder, node: fx.Node, input: Value, weight: Value, bias: Value | None = None) -> Value:
    """Whatever dimensions stand before the features are rows."""
    shape = builder.shape(node)
    as_held = input.source is None and input.layout[-1:] == input.shape[-1:] and len(input.layout) > 1
    rows: Shape = input.layout if as_held else merged(input.shape) if len(input.shape) > 2 else input.shape
    x, layout = builder.view(input, rows), (*rows[:-1], weight.shape[0])
    if len(rows) == 2:
        operands = [x, weight] if bias is None else [x, weight, bias]
        return builder.value(builder.emit("Gemm", *operands, transB=1), shape, layout=layout)
    product = builder.emit("MatMul", x, _transposed(builder, weight))
    return builder.value(product if bias is None else builder.emit("Add", product, bias), shape, layout=layout)


@TABLE.on(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default)
def _matmul(builder: Builder, node: fx.Node, **operands: Value) -> Value:
    a, b = operands.values()
    return builder.value(builder.emit("MatMul", a, b), builder.shape(node))


@TABLE.on(aten.addmm.default)
def _addmm(builder: Builder, node: fx.Node, self: Value, mat1: Value, mat2: Value, beta: float = 1, alpha: float = 1) -> Value:
    """The weight of a linear layer comes transposed; Gemm takes it as it is stored."""
    scale = {"alpha": float(alpha), "beta": float(beta)} if (alpha, beta) != (1, 1) else {}
    return builder.value(builder.emit("Gemm", mat1, mat2, self, **scale), builder.shape(node))


@TABLE.on(aten.baddbmm.default)
def _baddbmm(
    builder: Builder, node: fx.Node, self: Value, batch1: Value, batch2: Value, beta: float = 1, alpha: float = 1
) -> Value:
    shape = builder.shape(node)
    parts = [builder.value(builder.emit("MatMul", batch1, batch2), shape), self]
    for k, factor in enumerate((alpha, beta)):
        if factor != 1:
            parts[k] = pointwise(builder, parts[k].shape, "Mul", [parts[k], number(builder, factor)], torch.float32)
    return pointwise(builder, shape, "Add", parts, torch.float32)


# -- normalisations ------------------------------------------------------------------------------------------------------------


def _per_channel(builder: Builder, tensor: Tensor, x: Value, title: str) -> Value:
    return builder.constant(tensor.reshape(-1, *[1] * (len(x.shape) - 2)), title)


@TABLE.on(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    builder: Builder,
    node: fx.Node,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> tuple[Value | None, ...]:
    """``x*scale + shift``, as PyTorch computes it, with scale and shift from float64; engines fold it into a convolution."""
    mean, variance, w, b = (None if v is None else v.constant for v in (running_mean, running_var, weight, bias))
    if mean is None or variance is None or (weight is not None and w is None) or (bias is not None and b is None):
        raise Refusal("statistics or weights that the graph computes")
    scale = torch.rsqrt(variance.double() + eps) * (1 if w is None else w)
    shift = (0 if b is None else b) - mean * scale
    title, dtype, shape = running_mean.title.rpartition(".")[0] or node.name, torch.float32, input.shape
    y = pointwise(builder, shape, "Mul", [input, _per_channel(builder, scale, input, f"{title}.scale")], dtype)
    return pointwise(builder, shape, "Add", [y, _per_channel(builder, shift, input, f"{title}.shift")], dtype), None, None


def _affine(builder: Builder, y: Value, weight: Value | None, bias: Value | None, shape: Shape) -> Value:
    """``y * weight + bias``, the parameters seen as ``shape``."""
    for op, parameter in (("Mul", weight), ("Add", bias)):
        if parameter is not None:
            y = pointwise(builder, y.shape, op, [y, builder.view(parameter, shape)], torch.float32)
    return y


@TABLE.on(aten._native_batch_norm_legit.no_stats)
def _batch_statistics(
    builder: Builder,
    node: fx.Node,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Value | None, ...]:
    axes = [0, *range(2, len(input.shape))]
    channels: Shape = (1, input.shape[1], *[1] * (len(input.shape) - 2))
    y = _normalised(builder, input, axes, eps, twice=True)
    return _affine(builder, y, weight, bias, channels[1:]), None, None


def _normalised(builder: Builder, x: Value, axes: Sequence[int], eps: float, *, twice: bool = False) -> Value:
    """``(x - mean) / sqrt(variance + eps)`` over ``axes``; the variance from the centred values, as PyTorch does.

    ``twice``: what is left of the mean is taken out once more. Over a batch PyTorch sums in float64, engines in float32; and
    a mean that is off by its last bits moves every neuron of a channel alike.
    """
    dtype = torch.float32
    mean = _mean(builder, x, axes)
    centred = pointwise(builder, x.shape, "Sub", [x, mean], dtype)
    if twice:
        centred = pointwise(builder, x.shape, "Sub", [centred, _mean(builder, centred, axes)], dtype)
    square = pointwise(builder, x.shape, "Mul", [centred, centred], dtype)
    variance = _mean(builder, square, axes)
    root = pointwise(builder, mean.shape, "Add", [variance, number(builder, eps)], dtype)
    root = pointwise(builder, mean.shape, "Sqrt", [root], dtype)
    return pointwise(builder, x.shape, "Div", [centred, root], dtype)


def _mean(builder: Builder, x: Value, axes: Sequence[int]) -> Value:
    """One axis at a time, the last first: short sums lose less than one over all of them, which engines add up in a row.

    Means and sums in turn, because OpenVINO makes one reduction of two alike.
    """
    for k, axis in reversed(list(enumerate(sorted(axes)))):
        size = x.shape[axis]
        if k % 2 and isinstance(size, int):
            x = reduced(builder, "ReduceSum", x, [axis], keepdim=True)
            x = pointwise(builder, x.shape, "Mul", [x, number(builder, 1 / size)], torch.float32)
        else:
            x = reduced(builder, "ReduceMean", x, [axis], keepdim=True)
    return x


@TABLE.on(aten.native_layer_norm.default)
def _layer_norm(
    builder: Builder,
    node: fx.Node,
    input: Value,
    normalized_shape: Sequence[int],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> tuple[Value | None, ...]:
    count = len(normalized_shape)
    if weight is None:
        weight = builder.constant(torch.ones(tuple(normalized_shape), dtype=torch.float64))
    rows = input.layout if input.source is None and input.layout[-count:] == input.shape[-count:] else input.shape
    operands = [builder.view(input, rows), weight, *([] if bias is None else [bias])]
    tensor = builder.emit("LayerNormalization", *operands, axis=-count, epsilon=float(eps))
    return builder.value(tensor, input.shape, layout=rows), None, None


@TABLE.on(aten.group_norm.default)
def _group_norm(
    builder: Builder,
    node: fx.Node,
    input: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """By hand: what opset 20 calls GroupNormalization has one weight per group, not per channel."""
    samples, features = input.shape[0], numel(input.shape[1:])
    assert isinstance(features, int)
    grouped = builder.view(input, (samples, num_groups, features // num_groups))
    y = builder.view(_normalised(builder, grouped, [2], eps), input.shape)
    return _affine(builder, y, weight, bias, (input.shape[1], *[1] * (len(input.shape) - 2)))


@TABLE.on(aten.native_group_norm.default)
def _native_group_norm(
    builder: Builder,
    node: fx.Node,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> tuple[Value | None, ...]:
    return _group_norm(builder, node, input, group, weight, bias, eps), None, None
