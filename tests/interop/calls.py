"""A model run by its library, and again with its neurons computed by their adapters; and a model against its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import snngraph
from snngraph.analysis.spikes import run_with_spikes
from snngraph.frontends import adapters, state
from snngraph.frontends.call import outputs_of

Run = Callable[[Tensor], Any]


def assert_same_calls(model: nn.Module, x: Tensor, run: Run | None = None, *, tolerance: float = 1e-12) -> list[Tensor]:
    """All that ``run(x)`` returns, by the library and by the adapters, from the reset state; the library's is returned."""
    run = run or model
    with state.fresh_state(model), torch.no_grad():
        assert all(found.neuron is not None for found in adapters.found_in(model))
        with state.unchanged(model):
            expected = outputs_of(run(x))
        with adapters.adapted(model):
            found = outputs_of(run(x))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.expand(a.shape).to(a.dtype), rtol=0, atol=tolerance)
    return expected


def traced(
    model: nn.Module, x: Tensor, layers: dict[str, int], run: Run | None = None, *, engine: bool = False, **options: Any
) -> snngraph.SpikingGraph:
    """The graph of ``model``, which answers as the library does on another input too, and whose neurons fire.

    Args:
        model: in any mode; it is set to evaluation.
        x: the example.
        layers: the neuron layers expected, and in how many nodes: 1 when time is merged, else the number of steps.
        run: how a user calls the model, from its reset state; the model itself unless given.
        engine: builds one with ONNX Runtime, too, and asks it as well.
        **options: of :func:`snngraph.trace`.
    """
    graph = snngraph.trace(model.eval(), x, **options)
    assert {layer.name: len(layer.nodes) for layer in graph.neurons} == layers
    fresh = x.flatten()[torch.randperm(x.numel(), generator=torch.Generator().manual_seed(1))].view(x.shape)
    with state.fresh_state(model), torch.no_grad():
        expected = outputs_of((run or model)(fresh))
    found, spikes = run_with_spikes(graph, [fresh])
    for name, fired in spikes.items():
        rate = (fired != 0).double().mean().item()
        assert 0.02 < rate < 0.9, f"{name} fires at {rate:.0%} of its steps"
    _assert_close(found, expected)
    if engine:
        with snngraph.build(snngraph.optimize(graph, target="onnxruntime"), target="onnxruntime", threads=1) as built:
            _assert_close(outputs_of(built.run(fresh)), expected)
    return graph


def _assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-5)
