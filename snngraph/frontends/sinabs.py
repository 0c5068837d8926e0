"""The neurons of Sinabs."""

from __future__ import annotations

from typing import Any

from torch import nn

from snngraph.frontends.adapters import Adapter
from snngraph.frontends.canonical import Canonical

__all__ = ["Sinabs"]


class Sinabs(Adapter):
    """The adapter of Sinabs."""

    name = "sinabs"
    distribution = "sinabs"

    def matches(self, module: nn.Module) -> bool:
        """None yet."""
        return False

    def neuron(self, module: nn.Module) -> Canonical:
        """None yet."""
        raise NotImplementedError

    def forward(self, module: nn.Module, neuron: Canonical, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """None yet."""
        raise NotImplementedError
