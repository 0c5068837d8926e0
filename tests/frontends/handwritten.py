"""Nets that are written out step by step, and what has to hold for the graph of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import snngraph
from snngraph import neurons

STEPS, BATCH, FEATURES = 3, 4, 6
SHAPE = (STEPS, BATCH, FEATURES)
IMAGES = (STEPS, BATCH, 2, 6, 6)

Forward = Callable[["Net", Tensor], Any]


class Net(nn.Module):
    """Layers for a forward that is given: neurons for one step (``n``, ``n2``) and for a sequence (``whole``)."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.given = forward
        self.fc, self.rec = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.conv, self.conv_rec = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.circular = nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular")
        self.norm, self.norm2d = nn.GroupNorm(2, FEATURES), nn.GroupNorm(1, 2)
        self.n = neurons.LIF(threshold=0.3, step_mode="s")
        self.n2 = neurons.LIF(threshold=0.2, v_reset=None, step_mode="s")
        self.whole = neurons.LIF(threshold=0.3)
        self.start = nn.Parameter(torch.randn(FEATURES) * 0.3)

    def forward(self, x: Tensor) -> Any:
        return self.given(self, x)


def net(forward: Forward) -> Net:
    torch.manual_seed(0)
    return Net(forward).eval()


def in_float64(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What the model gives in float64, from the reset state; what it makes by itself is float64 too."""
    model.double()
    neurons.reset(model)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            result = model(x.double())
    finally:
        torch.set_default_dtype(torch.float32)
        model.float()
        neurons.reset(model)
    return list(result) if isinstance(result, tuple) else [result]


def outputs(graph: snngraph.SpikingGraph, x: Tensor) -> list[Tensor]:
    result = graph(x)
    return list(result) if isinstance(result, tuple) else [result]


def inputs(graph: snngraph.SpikingGraph, batch: int, seed: int = 0) -> Tensor:
    (spec,) = graph.inputs
    shape = [batch if d == spec.batch_dim else int(n or 0) for d, n in enumerate(spec.shape)]
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captured(
    forward: Forward, shape: Sequence[int] = SHAPE, *, batches: Sequence[int] = (1, 2, 5), free: bool = True, **keywords: Any
) -> snngraph.SpikingGraph:
    """The graph of a net with this forward, known to equal it at these batch sizes."""
    model = net(forward)
    graph = snngraph.trace(model, torch.randn(tuple(shape)), **keywords)
    assert graph.free_batch == free, graph.notes
    graph.check()
    for batch in batches if free else [graph.batch]:
        x = inputs(graph, batch)
        for found, wanted in zip(outputs(graph, x), in_float64(model, x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)
    return graph


def assert_engines(graph: snngraph.SpikingGraph, batches: Sequence[int] = (1, 3)) -> None:
    """Both CPU engines take any batch, and give the graph's numbers."""
    for target in ("onnxruntime", "openvino"):
        optimized = snngraph.optimize(graph, target=target)
        engine = snngraph.build(optimized, target=target, batch_size="dynamic" if graph.free_batch else graph.batch)
        for batch in batches if graph.free_batch else [graph.batch]:
            x = inputs(graph, batch)
            result = engine.run(x.numpy())
            for found, wanted in zip(result if isinstance(result, tuple | list) else [result], outputs(graph, x), strict=True):
                torch.testing.assert_close(torch.as_tensor(found), wanted, rtol=1e-5, atol=1e-5, check_dtype=False)


def count(graph: snngraph.SpikingGraph, operator: str) -> int:
    return graph.format().count(f" {operator}(")
