"""Marks the integers that integer layers read where they arise, so that an engine holds them in 8 bits from there on.

``snn::levels(x, low, high)`` is ``x``. It is put behind a neuron, an addition, a sum: behind every operator that computes
integers, on the way to an integer layer. What only moves them (a view, a transposition, a split, a concatenation, max pooling)
hands 8 bits on as it gets them: marked once more behind a transposition, OpenVINO would compute the layer in float32. Readers
off the way to an integer layer keep reading the tensor itself.

Exactness: bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from snngraph.analysis.levels import SPLITS, Levels, infer_spike_levels
from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, LEVELS, VIEWS, SpikingGraph, is_op, operand, origin_of
from snngraph.integer import MOST_LEVELS
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["MarkLevels"]

aten = torch.ops.aten
_LAYERS = (INTEGER_CONV, INTEGER_LINEAR)
_MOVES = frozenset(
    (
        *VIEWS,
        *SPLITS,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.cat.default,
        aten.max_pool2d_with_indices.default,
        aten.max_pool3d_with_indices.default,
    )
)


@dataclass(frozen=True)
class MarkLevels(Pass):
    """Puts ``snn::levels`` behind what computes the integers that integer layers read."""

    name: ClassVar[str] = "mark_levels"
    exactness: ClassVar[Exactness] = "bitwise"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Walks back from every integer layer."""
        edit = Rewriter(graph)
        layers = [node for node in graph.nodes if is_op(node, *_LAYERS)]
        if layers:
            levels = infer_spike_levels(graph)
            way = _way(layers, levels)
            for node in [n for n in graph.nodes if n in way and _computes(n)]:
                _mark(edit, node, levels[node], way)
        return edit.result()


def _way(layers: Iterable[fx.Node], levels: dict[fx.Node, Levels]) -> set[fx.Node]:
    """What hands integers of at most 8 bits on to an integer layer, and the layers."""
    found = set(layers)
    stack = [operand(layer) for layer in found]
    while stack:
        node = stack.pop()
        if node in found or not _fits(node, levels):
            continue
        found.add(node)
        stack.extend(node.all_input_nodes)
    return found


def _fits(node: fx.Node, levels: dict[fx.Node, Levels]) -> bool:
    if node.target in _MOVES and node not in levels:  # an operator with several outputs
        return True
    known = levels.get(node)
    return known is not None and known.unit == 1 and known.largest <= MOST_LEVELS


def _computes(node: fx.Node) -> bool:
    """Whether it is to be marked: it makes floating-point integers out of something else."""
    if node.op != "call_function" or is_op(node, *_LAYERS, LEVELS) or node.target in _MOVES:
        return False
    if is_op(node, operator.getitem):
        return operand(node).target not in _MOVES
    return bool(node.meta["val"].is_floating_point())


def _mark(edit: Rewriter, node: fx.Node, known: Levels, way: set[fx.Node]) -> None:
    readers = [user for user in node.users if user in way]
    if not readers or all(is_op(user, LEVELS) for user in readers):
        return
    with edit.graph.graph.inserting_after(node):
        mark = edit.graph.graph.call_function(LEVELS, (node, known.low, known.high))
    mark.meta = origin_of(node)
    for user in readers:
        user.replace_input_with(node, mark)
    edit.did(node, f"integers {known.low}..{known.high}")
