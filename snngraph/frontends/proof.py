"""The proofs that a captured graph computes what the model computes: bit for bit, and in float64."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from snngraph.analysis.spikes import run_with_spikes
from snngraph.errors import CaptureMismatchError
from snngraph.frontends.batch_axis import equal_tensors
from snngraph.frontends.call import Call, outputs_of
from snngraph.frontends.runner import Runner
from snngraph.frontends.time_axis import Axes
from snngraph.graph import SpikingGraph

__all__ = ["compare_bitwise", "compare_float64", "compare_on", "fresh_inputs", "trainable_as_in"]


def compare_bitwise(
    graph: SpikingGraph, runner: Runner, inputs: Sequence[Tensor], expected: Sequence[Tensor], axes: Axes
) -> None:
    """On the example; and on a fresh input (the example's values in another order), at another batch size where that is free.

    A small one, but not 1: what the model makes of a single sample is seen when that is the example.
    """
    compare_on("the example", graph, runner, inputs, expected)
    other = 3 if axes.batch == 2 else 2
    fresh = fresh_inputs(axes.resized(inputs, other) if graph.free_batch and axes.batch is not None else inputs)
    compare_on("a second input", graph, runner, fresh, runner(fresh))


def fresh_inputs(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Other inputs of the same shapes: the values in another order, or random ones where there is nothing to reorder."""
    generator = torch.Generator().manual_seed(0)
    return [
        x.flatten()[torch.randperm(x.numel(), generator=generator)].view(x.shape)
        if x.numel() and bool((x != x.flatten()[0]).any())
        else torch.rand(x.shape, generator=generator)
        for x in inputs
    ]


@contextlib.contextmanager
def trainable_as_in(call: Call, graph: SpikingGraph) -> Iterator[None]:
    """Within it, the graph's tensors require gradients where the model's parameters do.

    A matrix product picks its kernel by that too, without gradients being recorded: ``x @ w`` of a permuted ``x`` folds the
    leading dimensions into one product when ``w`` requires them, and runs a batched one, summed in another order, otherwise.
    """
    trained = {name for name, p in call.inner.named_parameters(remove_duplicate=False) if p.requires_grad}
    tensors = [t for name, t in graph.tensors().items() if name in trained and t.is_floating_point()]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)


def compare_on(what: str, graph: SpikingGraph, runner: Runner, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Bit for bit, at the batch size of ``inputs``; or, where that fails, in float64 to 1e-10.

    Raises:
        CaptureMismatchError: they differ, or the graph does not run.
    """
    try:
        found = outputs_of(graph(*inputs))
    except Exception as error:
        raise CaptureMismatchError(f"on {what}, the captured graph does not run: {error}") from error
    for k, (a, b) in enumerate(zip(expected, found, strict=True)):
        if equal_tensors(a, b):
            continue
        if not all(equal_tensors(x, y) for x, y in zip(expected, runner(inputs), strict=True)):
            raise CaptureMismatchError(
                f"two runs of the model on {what} differ: it draws random numbers in forward, changes its own parameters, or "
                "keeps state from call to call; reset foreign state with trace(..., reset=callable)"
            )
        if _equals_in_float64(graph, runner, inputs):
            return
        raise CaptureMismatchError(
            f"on {what}, output {k} of the captured graph differs from the model's by up to {_difference(a, b)}: state kept from "
            "call to call (trace(..., reset=callable) resets it), a parameter changed in forward, control flow on the data, or a "
            "batch of one treated otherwise than others (squeeze without a dimension)"
        )


def _equals_in_float64(graph: SpikingGraph, runner: Runner, inputs: Sequence[Tensor]) -> bool:
    """Whether graph and model agree to 1e-10: an operator may be exported as others that add in another order (weight norm)."""
    runner.reset()
    try:
        model = copy.deepcopy(runner.model).double()
        wanted = model(*(x.double() for x in inputs))
    except Exception:  # a model that computes in float32 by itself, or that can not be copied
        return False
    found = outputs_of(graph.to(torch.float64)(*inputs))
    pairs = zip(wanted, found, strict=True)
    return all(a.shape == b.shape and torch.allclose(a, b.to(a.dtype), rtol=1e-10, atol=1e-10) for a, b in pairs)


def compare_float64(before: SpikingGraph, after: SpikingGraph, inputs: Sequence[Tensor], what: str) -> None:
    """Outputs to 1e-10 and every spike, but for ties: one neuron-step in a million may sit on the threshold to the last bit."""
    (wanted, spikes), (found, others) = run_with_spikes(before, inputs), run_with_spikes(after, inputs)
    passes = f"this is a bug in snngraph. Passes: {', '.join(after.history) or 'none'}"
    flips = 0
    for name in spikes.keys() & others.keys():
        if spikes[name].shape != others[name].shape:
            raise CaptureMismatchError(f"{what}, the spikes of {name} have another shape; {passes}")
        flips += int((spikes[name] != others[name]).sum())
    if flips > sum(s.numel() for s in spikes.values()) / 1e6:
        raise CaptureMismatchError(f"{what}, {flips} spikes differ in float64; {passes}")
    for k, (a, b) in enumerate(zip(wanted, found, strict=True)):
        close = a.shape == b.shape and (
            flips > 0 or torch.allclose(a.double(), b.double(), rtol=1e-10, atol=1e-10, equal_nan=True)
        )
        if not close or a.dtype != b.dtype:
            raise CaptureMismatchError(f"{what}, output {k} differs by {_difference(a, b)} in float64; {passes}")


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"its shape: {list(b.shape)} for {list(a.shape)}"
    return f"{float((a.double() - b.double()).abs().max()):.3g}"
