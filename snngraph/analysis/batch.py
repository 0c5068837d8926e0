"""Which dimensions carry the batch, and which operators treat a leading dimension as independent samples."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from snngraph.graph import VIEWS, SpikingGraph, arguments, operand, shape_of

__all__ = ["batch_dims", "independent_of_leading", "shape_with_free_batch"]

aten = torch.ops.aten

_UNARY = (
    "relu sigmoid tanh gelu exp log sqrt rsqrt neg abs sin cos reciprocal clamp hardtanh leaky_relu elu erf floor ceil round "
    "sign logical_not silu softplus hardswish hardsigmoid log1p expm1 trunc isnan _to_copy clone"
)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ELEMENTWISE_UNARY = frozenset(getattr(aten, name).default for name in _UNARY.split())
ELEMENTWISE = (
    frozenset(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div", "remainder", *_COMPARISONS))
    | frozenset(getattr(aten, name).Scalar for name in _COMPARISONS)
    | frozenset((aten.where.self, aten.maximum.default, aten.minimum.default, aten.logical_and.default, aten.logical_or.default))
    | frozenset((aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.div.Tensor_mode))
    | ELEMENTWISE_UNARY
)
REDUCTIONS = frozenset((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default))
_PER_SAMPLE = frozenset(
    (
        aten.convolution.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.avg_pool2d.default,
        aten.avg_pool1d.default,
        aten.avg_pool3d.default,
        aten.max_pool2d_with_indices.default,
        aten._adaptive_avg_pool2d.default,
        aten.native_group_norm.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.bmm.default,
    )
)


def _shapes(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def batch_dims(graph: SpikingGraph) -> dict[fx.Node, int | None]:
    """For every node with one tensor: the dimension that carries the batch, alone or merged with others; ``None`` without one.

    Found by inferring all shapes at a second batch size: what changes is the batch. Empty for a graph whose batch size is fixed.
    """
    if not graph.free_batch:
        return {}
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    wide: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            wide[n] = super().run_node(n)
            return wide[n]

    with mode:
        Recorder(graph.module).run(*[mode.from_tensor(x) for x in graph.example_inputs(graph.batch + 1)])
    found: dict[fx.Node, int | None] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        a, b = _shapes(node.meta["val"]), _shapes(wide[node])
        if a is not None and b is not None:
            found[node] = next((d for d, (m, n) in enumerate(zip(a, b, strict=True)) if m != n), None)
    return found


def shape_with_free_batch(shape: tuple[int, ...], batch_dim: int | None) -> list[int]:
    """``shape`` as a reshape's argument: ``-1`` where the batch is."""
    return [-1 if d == batch_dim else n for d, n in enumerate(shape)]


def independent_of_leading(node: fx.Node) -> bool:
    """Whether the operator computes every entry along its first dimension from the same entry of its inputs alone.

    Only for operators whose first argument carries samples in dimension 0; every other tensor is a constant or carries them too.
    """
    target = node.target
    if target is operator.getitem or target in ELEMENTWISE or target in _PER_SAMPLE:
        return True
    if target is aten.linear.default:
        return len(shape_of(node)) >= 2
    if target in REDUCTIONS:
        rank, dims = len(shape_of(operand(node))), arguments(node)["dim"]
        return isinstance(dims, list | tuple) and bool(dims) and 0 not in {d % rank for d in dims}
    if target is aten._softmax.default or target is aten._log_softmax.default:
        dim: int = operand(node, 1)
        return dim % len(shape_of(node)) != 0
    if target is aten.permute.default:
        order: list[int] = operand(node, 1)
        return order[0] == 0
    if target in VIEWS:
        before, after = shape_of(operand(node)), shape_of(node)
        shape: list[int] = operand(node, 1)
        return bool(before) and before[:1] == after[:1] and shape[0] == -1
    if target in (aten.cat.default, aten.select.int, aten.slice.Tensor):
        dim = arguments(node)["dim"]
        return dim > 0
    if target is aten.constant_pad_nd.default:
        padding: list[int] = operand(node, 1)
        return len(padding) // 2 < len(shape_of(node))
    return False
