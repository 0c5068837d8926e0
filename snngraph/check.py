"""The invariants every graph keeps, checked before and after each pass.

Known operators only, none that mutates; consistent shapes and types; one time length; one owner of every neuron state; no
dangling uses.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.errors import GraphCheckError, GraphError
from snngraph.graph import FUSED, LIF, LIF_STEP, SpikingGraph, arguments, describe, is_op, previous_step, shape_of

__all__ = ["check_graph"]

_STEP_PARAMETERS = (
    *("v", "decay", "threshold", "input_gain", "bias", "v_reset", "reset_amount"),
    *("i", "syn_decay", "syn_gain", "floor", "level"),
)


def check_graph(graph: SpikingGraph) -> None:
    """Checks every invariant.

    Raises:
        GraphCheckError: the first one that is broken, with the equations around it.
    """
    try:
        graph.graph.lint()
    except RuntimeError as error:
        raise GraphCheckError(f"dangling or doubly defined node: {error}") from error
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    if len(placeholders) != len(graph.inputs):
        raise GraphCheckError(f"{len(placeholders)} placeholders, but {len(graph.inputs)} inputs are specified")
    for node in graph.nodes:
        if problem := _operator(node) or _operands(node):
            raise GraphCheckError(_located(graph, node, problem))
    _shapes(graph)
    for node in graph.nodes:
        if problem := _neuron(graph, node):
            raise GraphCheckError(_located(graph, node, problem))
    _states(graph)


def _operator(node: fx.Node) -> str | None:
    if node.op in ("placeholder", "get_attr", "output"):
        return None
    if node.op != "call_function":
        return f"a {node.op} node; a graph calls operators only"
    if node.target is operator.getitem:
        return None
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace not in ("aten", "snn"):
        return f"{node.target} is no ATen or snn operator"
    if node.target._schema.is_mutable:
        return f"{node.target} changes a tensor in place; graphs hold functional operators only"
    return None


def _operands(node: fx.Node) -> str | None:
    for argument in torch.utils._pytree.tree_leaves((node.args, node.kwargs)):
        if isinstance(argument, Tensor):
            return "a tensor stands among the arguments; constants are get_attr nodes"
        if isinstance(argument, torch.SymInt):
            return "a symbolic size stands among the arguments; write -1 in the dimension that carries the batch"
    return None


def _shapes(graph: SpikingGraph) -> None:
    if graph.is_inferred():
        return
    recorded = {node: node.meta.get("val") for node in graph.nodes}
    try:
        graph.infer()
    except GraphError as error:
        raise GraphCheckError(str(error)) from error
    for node, before in recorded.items():
        after = node.meta.get("val")
        if node.op != "output" and _signature(before) != _signature(after):
            raise GraphCheckError(
                _located(graph, node, f"the recorded shape is {_signature(before)}, the operator gives {_signature(after)}")
            )


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (str(value.dtype).removeprefix("torch."), *value.shape)
    if isinstance(value, tuple | list):
        return tuple(_signature(v) for v in value)
    return value


def _neuron(graph: SpikingGraph, node: fx.Node) -> str | None:
    if is_op(node, *FUSED):
        return _fused(graph, arguments(node))
    if not is_op(node, LIF, LIF_STEP):
        return None
    found = arguments(node)
    shape = shape_of(found["x"])
    sequence = is_op(node, LIF)
    if sequence and (not shape or shape[0] != graph.time.steps):
        return f"it runs over {shape[0] if shape else 0} steps, the graph has {graph.time.steps}"
    step = shape[1:] if sequence else shape
    for name in (*_STEP_PARAMETERS, "gain"):
        parameter = found[name]
        if not isinstance(parameter, fx.Node):
            continue
        actual = shape_of(parameter)
        target = shape if name == "gain" and sequence else step
        if not _broadcasts(actual, target):
            return f"{name} has shape {list(actual)}, which does not broadcast to {list(target)}"
    if found["reset"] == "hard" and found["v_reset"] is None:
        return "a hard reset without v_reset"
    return None


def _fused(graph: SpikingGraph, found: dict[str, Any]) -> str | None:
    """Its shapes it has checked itself."""
    if found["steps"] != graph.time.steps:
        return f"it runs over {found['steps']} steps, the graph has {graph.time.steps}"
    if found["reset"] == "hard" and found["v_reset"] is None:
        return "a hard reset without v_reset"
    return None


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def _states(graph: SpikingGraph) -> None:
    """A state may be read by one neuron only, and a chain of steps is no longer than the time axis."""
    length: dict[fx.Node, int] = {}
    for node in graph.nodes:
        if not is_op(node, LIF_STEP):
            continue
        previous = previous_step(node)
        length[node] = 1 if previous is None else 1 + length[previous]
        if length[node] > graph.time.steps:
            raise GraphCheckError(_located(graph, node, f"its chain of steps is longer than the {graph.time.steps} time steps"))
        followers = {u for output in node.users for u in output.users if is_op(u, LIF_STEP) and previous_step(u) is node}
        if len(followers) > 1:
            raise GraphCheckError(
                _located(graph, node, f"its state is read by {len(followers)} neurons; every state has one owner")
            )


def _located(graph: SpikingGraph, node: fx.Node, problem: str) -> str:
    nodes = list(graph.nodes)
    at = nodes.index(node)
    around = "\n".join(("> " if n is node else "  ") + describe(n) for n in nodes[max(0, at - 3) : at + 3])
    return f"{describe(node)}: {problem}.\n{around}"
