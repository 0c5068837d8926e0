"""Runs a graph and keeps the spikes of every neuron layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.graph import LIF, LIF_STEP, SpikingGraph, is_op
from snngraph.passes.expand_fused import expanded

__all__ = ["run_with_spikes"]


class _Recorder(fx.Interpreter):
    def __init__(self, graph: SpikingGraph) -> None:
        super().__init__(graph.module)
        self.spikes: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if is_op(n, LIF, LIF_STEP):
            steps = value[0] if is_op(n, LIF) else value[0].unsqueeze(0)
            self.spikes.setdefault(n.meta.get("neuron", n.name), []).append(steps)
        return value


def run_with_spikes(graph: SpikingGraph, inputs: Sequence[Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Runs a graph; returns its outputs and, for every neuron layer, its spikes ``[T, N, ...]``."""
    graph = expanded(graph)
    recorder = _Recorder(graph)
    with torch.no_grad():
        result = recorder.run(*[x.to(graph.dtype) for x in inputs])
    outputs = list(result) if isinstance(result, tuple | list) else [result]
    return outputs, {name: torch.cat(steps) for name, steps in recorder.spikes.items()}
