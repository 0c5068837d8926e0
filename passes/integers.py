"""The integers themselves of a tensor of levels."""

from __future__ import annotations

from torch import fx

from snngraph.analysis.levels import Levels
from snngraph.passes.base import Rewriter

__all__ = ["Integers"]


class Integers:
    """Finds, or builds, the node that holds the integers ``k`` of a node with the levels ``scale * k``."""

    def __init__(self, edit: Rewriter, levels: dict[fx.Node, Levels]) -> None:
        self.edit, self.levels = edit, levels

    def of(self, node: fx.Node) -> fx.Node | None:
        """The integers of ``node``; ``None`` where they have no node."""
        return node if self.levels[node].scale == 1 else None
