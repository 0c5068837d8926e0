"""(x * a) * b == x * (a * b) for constants a and b: exact in floats where both are powers of two, else equal up to rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from snngraph.graph import SpikingGraph, is_op
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["JoinScales"]

MUL = torch.ops.aten.mul.Tensor


@dataclass(frozen=True)
class JoinScales(Pass):
    """Joins two constant factors in a row into one.

    Args:
        powers_of_two_only: leave other factors alone, so that every spike stays the same, bit for bit.
    """

    name: ClassVar[str] = "join_scales"
    exactness: ClassVar[Exactness] = "real"
    powers_of_two_only: bool = True

    def run(self, graph: SpikingGraph) -> PassResult:
        edit = Rewriter(graph)
        for node in graph.nodes:
            inner = node.args[0] if node.args else None
            if not (is_op(node, MUL) and is_op(inner, MUL)):
                continue
            assert isinstance(inner, torch.fx.Node)
            a, b = graph.number(inner.args[1]), graph.number(node.args[1])
            if a is None or b is None:
                edit.refuse(node, "a factor is no constant number")
            elif self.powers_of_two_only and not (is_power_of_two(a) and is_power_of_two(b)):
                edit.refuse(node, f"{a:g} and {b:g} are not both powers of two")
            else:
                edit.did(node, f"{a:g} * {b:g} is one factor")
                node.args = (inner.args[0], a * b)
        return edit.result()


def is_power_of_two(value: float) -> bool:
    return abs(math.frexp(value)[0]) == 0.5
