"""Which dimensions carry the batch, and which operators treat a leading dimension as independent samples."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from snngraph.errors import GraphError
from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, LEVELS, VIEWS, SpikingGraph, arguments, operand, shape_of

__all__ = ["acts_per_sample", "batch_dims", "shape_with_free_batch"]

aten = torch.ops.aten

_UNARY = (
    "relu sigmoid tanh gelu exp log sqrt rsqrt neg abs sin cos reciprocal clamp hardtanh leaky_relu elu erf floor ceil round "
    "sign logical_not silu softplus hardswish hardsigmoid log1p expm1 trunc isnan _to_copy clone bitwise_not square "
    "full_like zeros_like ones_like"
)
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
ELEMENTWISE_UNARY = frozenset(getattr(aten, name).default for name in _UNARY.split())
ELEMENTWISE = (
    frozenset(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div", "remainder", *_COMPARISONS))
    | frozenset(getattr(aten, name).Scalar for name in _COMPARISONS)
    | frozenset((aten.where.self, aten.maximum.default, aten.minimum.default, aten.logical_and.default, aten.logical_or.default))
    | frozenset((aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.div.Tensor_mode, aten.logical_xor.default))
    | frozenset((aten.bitwise_and.Tensor, aten.bitwise_or.Tensor, aten.bitwise_xor.Tensor, aten.clamp.Tensor, aten.lerp.Scalar))
    | frozenset((aten.clamp_min.default, aten.clamp_max.default, aten.clamp_min.Tensor, aten.clamp_max.Tensor))
    | ELEMENTWISE_UNARY
)
REDUCTIONS = frozenset((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default))
_PER_SAMPLE = frozenset(
    (
        aten.convolution.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.group_norm.default,
        aten.avg_pool2d.default,
        aten.avg_pool1d.default,
        aten.avg_pool3d.default,
        aten.max_pool2d_with_indices.default,
        aten._adaptive_avg_pool2d.default,
        aten.upsample_nearest2d.vec,
        aten.upsample_bilinear2d.vec,
        aten.bmm.default,
        INTEGER_CONV,
        LEVELS,
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
    known = graph.known_batch_dims()
    if known is not None:
        return known
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    wide: dict[fx.Node, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            wide[n] = super().run_node(n)
            return wide[n]

    with mode:
        inputs = [mode.from_tensor(x) for x in graph.example_inputs(graph.batch + 1)]
        try:
            Recorder(graph.module).run(*inputs)
        except Exception as error:
            raise GraphError(
                f"the graph does not run at batch {graph.batch + 1} though its batch size is free: {error}"
            ) from error
    found: dict[fx.Node, int | None] = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        a, b = _shapes(node.meta["val"]), _shapes(wide[node])
        if a is not None and b is not None:
            found[node] = next((d for d, (m, n) in enumerate(zip(a, b, strict=True)) if m != n), None)
    graph.keep_batch_dims(found)
    return found


def shape_with_free_batch(shape: tuple[int, ...], batch_dim: int | None) -> list[int]:
    """``shape`` as a reshape's argument: ``-1`` where the batch is."""
    return [-1 if d == batch_dim else n for d, n in enumerate(shape)]


def acts_per_sample(node: fx.Node, dims: dict[fx.Node, int | None]) -> bool:
    """Whether the operator computes every entry along its first dimension from the same entry of its inputs alone.

    Args:
        node: an operator call.
        dims: of :func:`batch_dims`. The result and everything that carries the batch have to carry it in dimension 0; in
            elementwise operators at the result's rank, in others as the first argument.
    """
    if dims.get(node, 0) != 0 or any(dims.get(n, 0) not in (0, None) for n in node.all_input_nodes):
        return False
    target = node.target
    if target is operator.getitem:
        return True
    carrying = [n for n in node.all_input_nodes if dims.get(n) == 0]
    if target in ELEMENTWISE:
        return all(len(shape_of(n)) == len(shape_of(node)) for n in carrying)
    if target is aten.cat.default:
        parts: list[fx.Node] = operand(node)
        return all(p in carrying for p in parts) and arguments(node)["dim"] % len(shape_of(node)) != 0
    if target is aten.bmm.default:
        return len(carrying) == len(set(node.all_input_nodes))
    uses = [a for a in tree_leaves((node.args, node.kwargs)) if isinstance(a, fx.Node) and a in carrying]
    if uses != [operand(node)]:
        return False
    return _only_first_argument(node)


def _only_first_argument(node: fx.Node) -> bool:
    target, rank = node.target, len(shape_of(operand(node)))
    if target in _PER_SAMPLE:
        return True
    if target in (aten.linear.default, INTEGER_LINEAR):
        return rank >= 2
    if target in REDUCTIONS:
        over = arguments(node)["dim"]
        return isinstance(over, list | tuple) and bool(over) and 0 not in {d % rank for d in over}
    if target in (aten._softmax.default, aten._log_softmax.default, aten.select.int, aten.slice.Tensor):
        dim: int = arguments(node)["dim"]
        return dim % rank != 0
    if target is aten.expand.default:
        sizes: list[int] = operand(node, 1)
        return len(sizes) == rank and sizes[0] == -1
    if target is aten.permute.default:
        order: list[int] = operand(node, 1)
        return order[0] % rank == 0
    if target in VIEWS:
        shape: list[int] = operand(node, 1)
        return shape_of(operand(node))[:1] == shape_of(node)[:1] and shape[0] == -1
    if target is aten.constant_pad_nd.default:
        padding: list[int] = operand(node, 1)
        return len(padding) // 2 < rank
    return False
