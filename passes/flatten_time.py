"""Operators run on ``[T*N, ...]`` instead of ``[T, N, ...]``: one dimension less, and the reshapes between layers cancel.

``f(x) == split(f'(merge(x)))`` where ``merge`` makes ``[T, N, ...]`` into ``[T*N, ...]``, ``split`` is its inverse, and ``f'``
is ``f`` with its dimensions shifted by one; for every ``f`` that treats both leading dimensions as independent: elementwise
operators, reductions and softmax over later dimensions, linear layers, permutations that leave the first two alone. What remains
are the reshapes at a neuron, which the lowering takes away. Engines are faster on 4-D than on 5-D tensors.

Exactness: real (a matrix product on merged rows may be summed in another order).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from snngraph.analysis.batch import ELEMENTWISE, REDUCTIONS, batch_dims
from snngraph.graph import RESHAPE, SpikingGraph, is_op, operand, origin_of, shape_of
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["FlattenTime"]

aten = torch.ops.aten


@dataclass(frozen=True)
class FlattenTime(Pass):
    """Merges time into the batch wherever operators do not care."""

    name: ClassVar[str] = "flatten_time"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """One walk; the reshapes it leaves between two rewritten operators are joined by ``canonicalize``."""
        edit = Rewriter(graph)
        dims = batch_dims(graph)
        for node in [n for n in graph.nodes if n.op == "call_function"]:
            new = _shifted(graph, node, dims) if _leads_with_time(graph, node, dims) else None
            if new is None:
                continue
            target, operands, rest, keywords = new
            with graph.graph.inserting_before(node):
                merged = [_merge(graph, n, node, dims) for n in operands]
                flat = graph.graph.call_function(target, (*merged, *rest), keywords)
                flat.meta = origin_of(node)
                split = graph.graph.call_function(RESHAPE, (flat, [graph.time.steps, -1, *shape_of(node)[2:]]))
            split.meta["val"] = node.meta["val"]
            dims[split] = 1
            node.replace_all_uses_with(split)
            edit.did(node, "runs on [T*N, ...]")
        return edit.result()


def _leads_with_time(graph: SpikingGraph, node: Any, dims: dict[fx.Node, int | None]) -> bool:
    """Whether ``node`` is one tensor ``[T, N, ...]`` with something behind the batch."""
    if not isinstance(node, fx.Node) or not isinstance(node.meta["val"], torch.Tensor):
        return False
    shape = shape_of(node)
    return len(shape) >= 3 and shape[0] == graph.time.steps and dims.get(node) == 1


_New = tuple[Any, list[Any], tuple[Any, ...], dict[str, Any]]


def _shifted(graph: SpikingGraph, node: fx.Node, dims: dict[fx.Node, int | None]) -> _New | None:
    """The operator on merged operands: target, operands, other arguments, keywords; ``None`` when it must stay."""
    if node.target in ELEMENTWISE:
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if not all(_mergeable(graph, n, node, dims) for n in operands) or list(node.args[: len(operands)]) != operands:
            return None
        return node.target, operands, node.args[len(operands) :], dict(node.kwargs)
    first = node.args[0] if node.args else None
    if not _leads_with_time(graph, first, dims):
        return None
    rank = len(shape_of(first))
    if node.target in REDUCTIONS and len(node.args) > 1:
        over = [d % rank for d in operand(node, 1)]
        if min(over, default=0) < 2:
            return None
        return node.target, [first], ([d - 1 for d in over], *node.args[2:]), dict(node.kwargs)
    if is_op(node, aten._softmax.default, aten._log_softmax.default):
        dim = operand(node, 1) % rank
        return None if dim < 2 else (node.target, [first], (dim - 1, *node.args[2:]), dict(node.kwargs))
    if is_op(node, aten.linear.default):
        return node.target, [first], node.args[1:], dict(node.kwargs)
    if is_op(node, aten.permute.default):
        order = [d % rank for d in operand(node, 1)]
        return None if order[:2] != [0, 1] else (node.target, [first], ([0, *(d - 1 for d in order[2:])],), {})
    return None


def _mergeable(graph: SpikingGraph, x: fx.Node, node: fx.Node, dims: dict[fx.Node, int | None]) -> bool:
    shape, rank = shape_of(x), len(shape_of(node))
    if len(shape) == rank:
        return (shape[0] == graph.time.steps and dims.get(x) == 1) or shape[:2] == (1, 1)
    return len(shape) <= rank - 2 and dims.get(x) is None  # it broadcasts over both


def _merge(graph: SpikingGraph, x: fx.Node, node: fx.Node, dims: dict[fx.Node, int | None]) -> fx.Node:
    shape = shape_of(x)
    if node.target in ELEMENTWISE and len(shape) != len(shape_of(node)):
        return x  # it broadcasts over both
    return graph.graph.call_function(RESHAPE, (x, [-1 if dims.get(x) == 1 else 1, *shape[2:]]))
