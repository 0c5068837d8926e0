"""Which nodes of an unrolled graph are the same computation at different steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from snngraph.graph import LIF_STEP, SpikingGraph, arguments, is_op, previous_step, shape_of

__all__ = ["Families"]

aten = torch.ops.aten
_STATIC, _MIXED = -1, -2


class Families:
    """The step and the family of every node.

    ``select(x, dim, t)`` with as many entries as steps belongs to step ``t``, and so does what is computed from values of step
    ``t`` and values without a step alone. Two nodes of one family are computed alike, from members of the same families.

    Args:
        graph: the graph.
        recurrent: the values that depend on earlier steps, with what stands for their family and their step.
    """

    def __init__(self, graph: SpikingGraph, recurrent: Mapping[fx.Node, tuple[Any, int]]) -> None:
        self._found: dict[fx.Node, tuple[int, int]] = {}  # step, family
        self._names: dict[Any, int] = {}
        position: dict[fx.Node, tuple[fx.Node, int]] = {}
        for node in graph.nodes:
            if is_op(node, LIF_STEP):
                previous = previous_step(node)
                head, t = (node, 0) if previous is None else position[previous]
                position[node] = (head, t + (previous is not None))
            self._found[node] = self._classify(graph, node, recurrent.get(node) or position.get(node))

    def of(self, node: fx.Node) -> tuple[int, int] | None:
        """Step (-1: at all steps alike) and family; ``None`` for what mixes steps."""
        found = self._found[node]
        return None if found[0] == _MIXED else found

    def counterpart(self, node: fx.Node, step: int, among: Iterable[fx.Node]) -> fx.Node | None:
        """The node that is at ``step`` what ``node`` is at its own; itself, if it is the same at all steps."""
        found = self.of(node)
        if found is None:
            return None
        wanted = found if found[0] == _STATIC else (step, found[1])
        return next((n for n in among if self._found[n] == wanted and (found[0] != _STATIC or n is node)), None)

    def _classify(self, graph: SpikingGraph, node: fx.Node, recurrent: tuple[Any, int] | None) -> tuple[int, int]:
        if recurrent is not None:
            return recurrent[1], self._name(("recurrent", recurrent[0]))
        if node.op != "call_function":
            return _STATIC, self._name(node.target if node.op == "get_attr" else node)
        if is_op(node, aten.select.int):
            given = arguments(node)
            source, dim = given["self"], given["dim"]
            if self._found[source][0] == _STATIC and shape_of(source)[dim] == graph.time.steps:
                return given["index"] % graph.time.steps, self._name(("select", source, dim % len(shape_of(source))))
        steps = {self._found[n][0] for n in node.all_input_nodes} - {_STATIC}
        if not steps or self._stacks_all_steps(node, graph.time.steps):
            return _STATIC, self._name(node)
        if len(steps) > 1 or _MIXED in steps:
            return _MIXED, -1
        return steps.pop(), self._name((node.target, self._frozen(node.args), self._frozen(tuple(sorted(node.kwargs.items())))))

    def _stacks_all_steps(self, node: fx.Node, steps: int) -> bool:
        """Whether it puts the members of one family side by side, in order: what comes of that belongs to no step."""
        if not is_op(node, aten.stack.default, aten.cat.default):
            return False
        parts = [self._found[n] for n in node.args[0]]  # type: ignore[union-attr, index]
        return [step for step, _ in parts] == list(range(steps)) and len({family for _, family in parts}) == 1

    def _frozen(self, a: Any) -> Any:
        if isinstance(a, list | tuple):
            return tuple(map(self._frozen, a))
        return ("node", self._found[a][1]) if isinstance(a, fx.Node) else (type(a).__name__, a)

    def _name(self, key: Any) -> int:
        return self._names.setdefault(key, len(self._names))
