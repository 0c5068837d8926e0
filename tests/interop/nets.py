"""Nets of foreign neurons: made to fire, captured, and compared with themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import snngraph
from snngraph.analysis.spikes import run_with_spikes

Forget = Callable[[nn.Module], object]


@contextmanager
def firing_rates(model: nn.Module, is_neuron: Callable[[nn.Module], bool]) -> Iterator[dict[str, float]]:
    """Within it, the share of nonzero outputs of every neuron module of ``model`` in its last call."""
    rates: dict[str, float] = {}

    def record(name: str) -> Any:
        return lambda _module, _inputs, output: rates.update({name: float((output != 0).double().mean())})

    hooks = [m.register_forward_hook(record(name)) for name, m in model.named_modules() if is_neuron(m)]
    try:
        yield rates
    finally:
        for hook in hooks:
            hook.remove()


def made_to_fire(model: nn.Module, x: Tensor, forget: Forget, *, scale: float = 2.0, shift: float = 0.75) -> nn.Module:
    """Batch norms of what they see, then scaled and shifted; what is no batch norm and stands before neurons stays."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        nn.init.constant_(norm.weight, scale)
        nn.init.constant_(norm.bias, shift)
    model.train()
    with torch.no_grad():
        model(x)
    forget(model)
    return model.eval()


def run(model: nn.Module, x: Tensor, forget: Forget) -> Any:
    """From the reset state, and back to it."""
    forget(model)
    with torch.no_grad():
        result = model(x)
    forget(model)
    return result


def assert_same_net(
    graph: snngraph.SpikingGraph, model: nn.Module, x: Tensor, forget: Forget, *, neurons: Sequence[str] | None = None
) -> None:
    """The graph gives in float64 what the model gives in float64, at another batch size, too; all its neurons fire."""
    if neurons is not None:
        assert [layer.name for layer in graph.neurons] == list(neurons)
    exact = copy.deepcopy(model).double()
    axis = graph.inputs[0].batch_dim
    for values in (x, x.flip(-1)) if axis is None or not graph.free_batch else (x, torch.cat([x, x.flip(-1)], axis)):
        found, spikes = run_with_spikes(graph, (values.double(),))
        expected = run(exact, values.double(), forget)
        assert len(found) == 1
        torch.testing.assert_close(found[0], expected.double(), rtol=1e-10, atol=1e-10)
        silent = [name for name, s in spikes.items() if not bool((s != 0).any())]
        assert not silent, f"no spike in {silent}"
