"""The inverse of :mod:`snngraph.passes.merge_time` for neurons: ``lif`` becomes T times ``lif_step``, its output a stack.

``s, v_T = lif(x, v_0)`` is ``s_t, v_{t+1} = lif_step(x_t, v_t)`` for t = 0 ... T-1, by definition of the operator: exactness
``bitwise``. Layers without state stay on ``[T*N, ...]``; they do not know of time.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from snngraph.graph import LIF, LIF_STEP, SpikingGraph, arguments, defaults_of, is_op, operand, origin_of, shape_of
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["UnrollTime"]

aten = torch.ops.aten


@dataclass(frozen=True)
class UnrollTime(Pass):
    """Writes every neuron out step by step."""

    name: ClassVar[str] = "unroll_time"
    exactness: ClassVar[Exactness] = "bitwise"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Replaces every ``snn::lif``."""
        edit = Rewriter(graph)
        for node in graph.nodes:
            if is_op(node, LIF):
                _unroll(graph.graph, node, graph.time.steps)
                edit.did(node, f"written out as {graph.time.steps} steps")
        return edit.result()


def _unroll(graph: fx.Graph, node: fx.Node, steps: int) -> None:
    found = arguments(node)
    defaults = defaults_of(node.target)
    keywords = {k: v for k, v in found.items() if k in defaults and v != defaults[k] and k not in ("with_h", "gain", "i")}
    gain = found["gain"]
    over_time = gain is not None and len(shape_of(gain)) == len(shape_of(found["x"]))
    varies = over_time and shape_of(gain)[0] > 1
    v, i = found["v"], found["i"]
    outputs: dict[int, list[fx.Node]] = {0: [], 3: []}

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.call_function(target, args, kwargs)

    with graph.inserting_before(node):
        for t in range(steps):
            extra = {}
            if gain is not None:
                extra["gain"] = call(aten.select.int, gain, 0, t if varies else 0) if over_time else gain
            if i is not None:
                extra["i"] = i
            x = call(aten.select.int, found["x"], 0, t)
            step = call(LIF_STEP, x, v, found["decay"], found["threshold"], **dict(sorted({**keywords, **extra}.items())))
            step.meta = origin_of(node)
            v = call(operator.getitem, step, 1)
            i = call(operator.getitem, step, 2) if found["syn_decay"] is not None else None
            for k, values in outputs.items():
                values.append(call(operator.getitem, step, k))
        last = {1: v, 2: i if i is not None else call(operator.getitem, step, 2)}
        for output in list(node.users):
            k = operand(output, 1)
            output.replace_all_uses_with(last[k] if k in last else call(aten.stack.default, outputs[k], 0))
