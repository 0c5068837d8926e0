"""What does not depend on time runs once, not T times: ``f(repeat_T(x)) == repeat_T(f(x))`` for ``f`` that treats samples apart.

A static image shown for T steps, ``[N, ...]`` repeated to ``[T, N, ...]``, goes through its first layers T times over. The
repetition is moved behind every operator that treats the leading dimension as independent samples, as far as the first neuron,
which takes the same input at every step.

Exactness: real (a layer on ``[N, ...]`` may sum in another order than on ``[T*N, ...]``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from snngraph.analysis.batch import acts_per_sample, batch_dims
from snngraph.graph import RESHAPE, SpikingGraph, is_op, operand, origin_of, shape_of
from snngraph.passes.base import Pass, PassResult, Rewriter, repeat_over_time
from snngraph.types import Exactness

__all__ = ["HoistStatic"]

aten = torch.ops.aten


@dataclass(frozen=True)
class HoistStatic(Pass):
    """Moves repetitions over time behind the operators that do not need them."""

    name: ClassVar[str] = "hoist_static"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """One walk in the order of the graph; a moved repetition meets the next operator in turn."""
        edit = Rewriter(graph)
        if not graph.free_batch:
            return edit.result()
        dims = batch_dims(graph)
        once: dict[fx.Node, fx.Node] = {}  # a merged, repeated value [T*N, ...] -> the value itself, [N, ...]
        for node in graph.nodes:
            source = _repeated(graph, node)
            if source is not None and dims.get(source) == 0:
                once[node] = source
                continue
            inputs = [n for n in node.all_input_nodes if n in once]
            if not inputs or not acts_per_sample(node, dims):
                continue
            if any(n not in once and graph.constant(n) is None for n in node.all_input_nodes):
                continue  # another input that does vary
            with graph.graph.inserting_before(node):
                hoisted = graph.graph.node_copy(node, lambda n: once.get(n, n))
            hoisted.meta = origin_of(node)
            once[node] = hoisted
        _repeat_where_needed(edit, once)
        return edit.result()


def _repeated(graph: SpikingGraph, node: fx.Node) -> fx.Node | None:
    """``x`` when ``node`` is ``[N, ...]`` repeated over time and merged, ``[T*N, ...]``."""
    steps = graph.time.steps
    repeated = operand(node) if is_op(node, RESHAPE) else None
    if steps < 2 or not is_op(repeated, aten.expand.default, aten.repeat.default) or not is_op(operand(repeated), RESHAPE):
        return None
    one: fx.Node = operand(repeated)  # [1, N, ...]
    x: fx.Node = operand(one)
    shape = shape_of(x)
    if not shape or shape_of(one) != (1, *shape) or shape_of(repeated) != (steps, *shape):
        return None
    return x if shape_of(node) == (steps * shape[0], *shape[1:]) else None


def _repeat_where_needed(edit: Rewriter, once: dict[fx.Node, fx.Node]) -> None:
    graph, steps = edit.graph, edit.graph.time.steps
    for node, value in once.items():
        if _repeated(graph, node) is value or isinstance(node.meta["val"], tuple | list):
            continue
        users = [u for u in node.users if u not in once]
        edit.did(node, f"does not depend on time: runs once instead of {steps} times")
        if not users:
            continue
        shape = shape_of(node)[1:]
        with graph.graph.inserting_before(node):
            merged = graph.graph.call_function(RESHAPE, (repeat_over_time(graph.graph, value, steps, shape), [-1, *shape]))
        for user in users:
            user.replace_input_with(node, merged)
