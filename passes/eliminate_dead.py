"""Nodes that no output needs are removed, with the constants only they used. Nothing that is computed changes: ``bitwise``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from snngraph.errors import PassError
from snngraph.graph import SpikingGraph
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["EliminateDead"]


@dataclass(frozen=True)
class EliminateDead(Pass):
    """Removes what no output needs; a neuron layer whose spikes nobody reads goes too."""

    name: ClassVar[str] = "eliminate_dead"
    exactness: ClassVar[Exactness] = "bitwise"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Walks from the outputs back."""
        edit = Rewriter(graph)
        for node in reversed(list(graph.nodes)):
            if not node.users and node.op in ("call_function", "get_attr"):
                edit.did(node, "nothing uses it")
                graph.graph.erase_node(node)
        return edit.result()

    def ensures(self, before: SpikingGraph, result: PassResult) -> None:
        """Every node is used."""
        dead = [n.name for n in result.graph.nodes if not n.users and n.op not in ("placeholder", "output")]
        if dead:
            raise PassError(f"{self} left what nothing uses: {', '.join(dead)}")
        self.ensures_outputs(before, result)
