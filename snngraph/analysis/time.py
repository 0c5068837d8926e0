"""Which dimension of a value is time, proved from the operators that made it; a size that happens to be T proves nothing."""

from __future__ import annotations

import operator

import torch
from torch import fx

from snngraph.analysis.batch import ELEMENTWISE, REDUCTIONS
from snngraph.graph import FUSED, LIF, RESHAPE, SpikingGraph, arguments, is_op, operand, shape_of

__all__ = ["has_time_at"]

aten = torch.ops.aten


def has_time_at(graph: SpikingGraph, node: fx.Node, dim: int) -> bool:
    """Whether dimension ``dim`` of ``node`` is time: what a neuron emits over time, or what steps were stacked into."""
    steps = graph.time.steps
    if not isinstance(node.meta["val"], torch.Tensor) or not 0 <= dim < len(shape_of(node)) or shape_of(node)[dim] != steps:
        return False
    if node.op == "placeholder":
        return graph.time.dims[[n for n in graph.nodes if n.op == "placeholder"].index(node)] == dim
    if is_op(node, operator.getitem):
        source, output = operand(node), operand(node, 1)
        return dim == 0 and ((is_op(source, LIF) and output in (0, 3)) or (is_op(source, *FUSED) and output == 3))
    if is_op(node, RESHAPE):
        source, sizes = operand(node), operand(node, 1)
        if dim == 0 and is_op(source, aten.cat.default) and arguments(source)["dim"] == 0 and len(operand(source)) == steps:
            return shape_of(operand(source)[0]) == shape_of(node)[1:]  # a stack, as it is exported
        split = dim == 0 and list(sizes[:2]) == [steps, -1]
        return split and (shape_of(source)[0] != steps or (is_op(source, operator.getitem) and is_op(operand(source), *FUSED)))
    if is_op(node, aten.permute.default):
        return has_time_at(graph, operand(node), operand(node, 1)[dim] % len(shape_of(node)))
    if is_op(node, aten.stack.default, aten.cat.default):
        at = arguments(node)["dim"] % len(shape_of(node))
        return at == dim and len(operand(node)) == steps
    if node.target in ELEMENTWISE or is_op(node, aten.linear.default):
        return any(len(shape_of(n)) == len(shape_of(node)) and has_time_at(graph, n, dim) for n in node.all_input_nodes)
    if node.target in REDUCTIONS:
        source, found = operand(node), arguments(node)
        over = {d % len(shape_of(source)) for d in found["dim"] or ()}
        return bool(over) and min(over) > dim and has_time_at(graph, source, dim)
    return False
