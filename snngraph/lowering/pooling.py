"""Pooling and resizing.

PyTorch's ``ceil_mode`` adds a last window that begins inside the input; it is written here as padding at the end, because engines
do not agree on how ONNX's ``ceil_mode`` divides that window's sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from snngraph.lowering.builder import Builder, Refusal, Shape, Value
from snngraph.lowering.indexing import padded
from snngraph.lowering.reductions import reduced
from snngraph.lowering.table import Table, number, pointwise

__all__ = ["TABLE"]

aten = torch.ops.aten
TABLE = Table()


def _all(sizes: Sequence[int], rank: int) -> list[int]:
    return list(sizes) * (rank if len(sizes) == 1 else 1)


def _batched(builder: Builder, x: Value, rank: int) -> Value:
    """With a batch dimension: PyTorch lets it out."""
    return x if len(x.shape) == rank + 2 else builder.view(x, (1, *x.shape))


def _sizes(x: Value, rank: int) -> list[int]:
    sizes = [d for d in x.shape[-rank:] if isinstance(d, int)]
    if len(sizes) != rank:
        raise Refusal("it pools over the free batch; build with a fixed batch size")
    return sizes


def _end_padding(
    size: list[int], out: Shape, kernel: list[int], stride: list[int], pad: list[int], dilation: list[int]
) -> list[int]:
    """What stands after the input so that the last window fits: at least the padding asked for."""
    needed = [(int(str(o)) - 1) * s + d * (k - 1) + 1 for o, k, s, d in zip(out, kernel, stride, dilation, strict=True)]
    return [max(p, n - i - p) for i, n, p in zip(size, needed, pad, strict=True)]


@TABLE.on(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def _max_pool_with_indices(builder: Builder, node: fx.Node, self: Value, **options: Any) -> tuple[Value | None, ...]:
    if any(user.args[1] == 1 for user in node.users):
        raise Refusal("the positions of the maxima are used; only the maxima can be")
    return _pooled_maxima(builder, self, builder.shapes[node][0], len(options["kernel_size"]), **options), None


@TABLE.on(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default)
def _max_pool(builder: Builder, node: fx.Node, self: Value, **options: Any) -> Value:
    return _pooled_maxima(builder, self, builder.shape(node), int(str(node.target)[13]), **options)


def _pooled_maxima(
    builder: Builder,
    x: Value,
    shape: Shape,
    rank: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
) -> Value:
    kernel, pad, dilations = _all(kernel_size, rank), _all(padding, rank), _all(dilation, rank)
    strides = _all(stride, rank) if stride else kernel
    ends = _end_padding(_sizes(x, rank), shape[-rank:], kernel, strides, pad, dilations) if ceil_mode else pad
    batched = _batched(builder, x, rank)
    tensor = builder.emit("MaxPool", batched, kernel_shape=kernel, strides=strides, pads=[*pad, *ends], dilations=dilations)
    return builder.value(tensor, shape, layout=shape if batched is x else (1, *shape))


@TABLE.on(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(
    builder: Builder,
    node: fx.Node,
    self: Value,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    rank, shape = int(str(node.target)[13]), builder.shape(node)
    kernel, pad = _all(kernel_size, rank), _all(padding, rank)
    strides = _all(stride, rank) if stride else kernel
    sizes = _sizes(self, rank)
    ends = _end_padding(sizes, shape[-rank:], kernel, strides, pad, [1] * rank) if ceil_mode else pad
    x = _batched(builder, self, rank)
    layout = shape if x is self else (1, *shape)
    if divisor_override is not None:
        count_include_pad, ends_counted = True, True
    else:
        ends_counted = ends == pad  # the sum of a window that reaches past the padding is divided by what it holds
    if count_include_pad and not ends_counted and any(pad):
        wider: Shape = (*x.shape[:-rank], *(n + 2 * p for n, p in zip(sizes, pad, strict=True)))
        x = padded(builder, x, [p for p in reversed(pad) for _ in range(2)], wider, "constant")
        ends, pad = [e - p for e, p in zip(ends, pad, strict=True)], [0] * rank
    include = int(count_include_pad and ends_counted and any([*pad, *ends]))
    options: dict[str, Any] = {"count_include_pad": 1} if include else {}
    tensor = builder.emit("AveragePool", x, kernel_shape=kernel, strides=strides, pads=[*pad, *ends], **options)
    mean = builder.value(tensor, shape, layout=layout)
    if divisor_override is None:
        return mean
    factor = torch.Size(kernel).numel() / divisor_override
    return pointwise(builder, shape, "Mul", [mean, number(builder, factor)], torch.float32)


# -- adaptive ------------------------------------------------------------------------------------------------------------------


@TABLE.on(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default, aten.adaptive_avg_pool1d.default)
def _adaptive_avg_pool(builder: Builder, node: fx.Node, self: Value, output_size: Sequence[int]) -> Value:
    """A mean, an average pooling where the windows are equal, else one constant matrix product per dimension."""
    rank, shape = len(output_size), builder.shape(node)
    sizes = _sizes(self, rank)
    if all(n == 1 for n in output_size):
        return reduced(builder, "ReduceMean", self, list(range(-rank, 0)), keepdim=True)
    x = _batched(builder, self, rank)
    if all(n % out == 0 for n, out in zip(sizes, output_size, strict=True)):
        kernel = [n // out for n, out in zip(sizes, output_size, strict=True)]
        tensor = builder.emit("AveragePool", x, kernel_shape=kernel, strides=kernel)
        return builder.value(tensor, shape, layout=shape if x is self else (1, *shape))
    if rank == 3:
        raise Refusal(f"adaptive pooling of {sizes} to {list(output_size)}: sizes that do not divide")
    tensor = builder.name(x)
    if rank == 2:
        tensor = builder.emit("MatMul", _windows(sizes[0], output_size[0]), tensor)
    tensor = builder.emit("MatMul", tensor, _windows(sizes[-1], output_size[-1]).mT.contiguous())
    return builder.value(tensor, shape, layout=shape if x is self else (1, *shape))


def _windows(size: int, out: int) -> torch.Tensor:
    """``[out, size]``: the mean over PyTorch's windows, from ``floor(k*size/out)`` to ``ceil((k+1)*size/out)``."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for k in range(out):
        start, stop = k * size // out, -(-(k + 1) * size // out)
        matrix[k, start:stop] = 1 / (stop - start)
    return matrix


@TABLE.on(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def _adaptive_max_pool(builder: Builder, node: fx.Node, self: Value, output_size: Sequence[int]) -> tuple[Value | None, ...]:
    rank, shape = len(output_size), builder.shapes[node][0]
    sizes = _sizes(self, rank)
    if any(user.args[1] == 1 for user in node.users) or any(n % out for n, out in zip(sizes, output_size, strict=True)):
        raise Refusal(f"adaptive pooling of {sizes} to {list(output_size)} with sizes that do not divide, or with positions")
    kernel = [n // out for n, out in zip(sizes, output_size, strict=True)]
    return _pooled_maxima(builder, self, shape, rank, kernel, kernel, [0] * rank, [1] * rank, False), None


# -- resizing ------------------------------------------------------------------------------------------------------------------


def _resize(builder: Builder, node: fx.Node, options: dict[str, Any], **how: str) -> Value:
    """To the sizes; or by the scale factors where these say more, because both sides then compute positions with them."""
    x, shape = options.get("self", options.get("input")), builder.shape(node)
    assert isinstance(x, Value)
    sizes, out = _sizes(x, len(shape) - 2), [int(str(d)) for d in shape[2:]]
    scales = [
        s for s in options.get("scale_factors") or [v for k, v in options.items() if k.startswith("scales")] if s is not None
    ]
    axes = list(range(2, len(shape)))
    if not scales or all(n * s == o for n, s, o in zip(sizes, scales, out, strict=True)):
        return builder.value(builder.emit("Resize", x, None, None, torch.tensor(out), axes=axes, **how), shape)
    factors = torch.tensor(scales, dtype=torch.float64)
    if [int(n * f) for n, f in zip(sizes, factors.float().tolist(), strict=True)] != out:
        raise Refusal(f"the scale factors {scales} give other sizes in float32")
    return builder.value(builder.emit("Resize", x, None, factors, axes=axes, **how), shape)


_NEAREST = [aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d]


@TABLE.on(*(packet.default for packet in _NEAREST), *(packet.vec for packet in _NEAREST))
def _nearest(builder: Builder, node: fx.Node, **options: Any) -> Value:
    return _resize(builder, node, options, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")


_LINEAR = [aten.upsample_linear1d, aten.upsample_bilinear2d]


@TABLE.on(*(packet.default for packet in _LINEAR), *(packet.vec for packet in _LINEAR))
def _linear(builder: Builder, node: fx.Node, align_corners: bool, **options: Any) -> Value:
    mode = "align_corners" if align_corners else "pytorch_half_pixel"
    return _resize(builder, node, options, mode="linear", coordinate_transformation_mode=mode)


@TABLE.on(aten.grid_sampler_2d.default)
def _grid_sampler(
    builder: Builder, node: fx.Node, input: Value, grid: Value, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> Value:
    mode, padding = ("linear", "nearest", "cubic")[interpolation_mode], ("zeros", "border", "reflection")[padding_mode]
    options: dict[str, Any] = {"mode": mode, "padding_mode": padding, "align_corners": int(align_corners)}
    return builder.value(builder.emit("GridSample", input, grid, **options), builder.shape(node))
