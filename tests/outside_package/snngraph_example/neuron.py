"""A neuron of a library that snngraph does not know, the adapter that tells it, and a net of such neurons."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from snngraph.frontends.adapters import Adapter
from snngraph.frontends.canonical import Canonical

__all__ = ["Cell", "CellAdapter", "build"]


class Cell(nn.Module):
    """A leaky neuron, called step by step; it keeps its membrane potential."""

    def __init__(self, leak: float = 0.5, threshold: float = 1.0) -> None:
        super().__init__()
        self.leak, self.threshold = leak, threshold
        self.membrane: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        membrane = torch.zeros_like(x) if self.membrane is None else self.membrane
        charged = self.leak * membrane + x
        spikes = (charged >= self.threshold).to(x)
        self.membrane = torch.where(spikes > 0, 0.0, charged)
        return spikes


class CellAdapter(Adapter):
    name = "example"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, Cell)

    def neuron(self, module: nn.Module) -> Canonical:
        return Canonical({"decay": module.leak, "threshold": module.threshold, "v_reset": 0.0})

    def forward(self, module: nn.Module, neuron: Canonical, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        return neuron.step(args[0], memory).s

    def reset(self, module: nn.Module) -> None:
        assert isinstance(module, Cell)
        module.membrane = None


class Net(nn.Module):
    """``[T, N, 6]`` -> mean spikes ``[N, 3]``; its input is scaled twice."""

    def __init__(self, second: float) -> None:
        super().__init__()
        self.second = second
        self.layer, self.cell = nn.Linear(6, 3), Cell(threshold=0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 4.0 * self.second
        return torch.stack([self.cell(self.layer(x[t])) for t in range(len(x))]).mean(0)


def build(second: float = 0.5) -> nn.Module:
    return Net(second).eval()
