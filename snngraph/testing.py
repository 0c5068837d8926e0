"""What tests of passes need: graphs from text, structural equality, and equivalence in float64."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import torch
from torch import Tensor

from snngraph.analysis.spikes import run_with_spikes
from snngraph.format import canonical_format, parse
from snngraph.graph import SpikingGraph

__all__ = ["assert_equivalent", "assert_graph", "parse", "random_inputs", "run_with_spikes"]


def assert_graph(graph: SpikingGraph, expected: str) -> None:
    """Asserts that ``graph`` has the structure written in ``expected``; names and the order of independent operators are free.

    Raises:
        AssertionError: with the difference.
    """
    want, got = canonical_format(parse(expected, batch=graph.batch)), canonical_format(graph)
    if want != got:
        difference = difflib.unified_diff(want.splitlines(), got.splitlines(), "expected", "got", lineterm="")
        raise AssertionError("\n".join(difference))


def random_inputs(graph: SpikingGraph, batch: int | None = None, seed: int = 0) -> list[Tensor]:
    """Normal random inputs in float64 of the graph's shapes, scaled so that neurons fire sometimes."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(x.shape, generator=generator, dtype=torch.float64) * 1.5 for x in graph.example_inputs(batch)]


def assert_equivalent(
    before: SpikingGraph, after: SpikingGraph, *, tolerance: float = 1e-10, batches: Sequence[int] = (1, 3), seed: int = 0
) -> None:
    """Asserts in float64 that two graphs give equal spikes and outputs within ``tolerance`` on random inputs.

    Raises:
        AssertionError: says which output or neuron layer differs and by how much.
    """
    for batch in batches if before.free_batch else (before.batch,):
        inputs = random_inputs(before, batch, seed)
        (wanted, spikes), (found, other) = run_with_spikes(before, inputs), run_with_spikes(after, inputs)
        missing = _live_layers(before) - other.keys()
        assert not missing, f"neuron layers are gone: {', '.join(sorted(missing))}"
        for name in spikes.keys() & other.keys():
            flips = int((spikes[name] != other[name]).sum())
            assert flips == 0, f"batch {batch}: {flips} of {spikes[name].numel()} spikes of {name} differ"
        for k, (a, b) in enumerate(zip(wanted, found, strict=True)):
            assert a.shape == b.shape, f"batch {batch}: output {k} has shape {tuple(b.shape)}, expected {tuple(a.shape)}"
            error = float((a - b).abs().max()) if a.numel() else 0.0
            assert error <= tolerance, f"batch {batch}: output {k} differs by {error:.3g}"


def _live_layers(graph: SpikingGraph) -> set[str]:
    live = graph.live_nodes
    return {layer.name for layer in graph.neurons if live.intersection(layer.nodes)}
