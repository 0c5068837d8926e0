"""``trace``: a model becomes a :class:`SpikingGraph`.

The model is exported twice with ``torch.export``, at two batch sizes, under the adapters of its neurons. Where the two graphs
differ the batch stands: those sizes become ``-1``, and the graph runs at any batch size. It is then compared with the model bit
for bit, on the example and on a second input, before anything is rewritten; and again, in float64, after time has been merged.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from snngraph import pipelines
from snngraph.analysis.batch import batch_dims
from snngraph.analysis.spikes import run_with_spikes
from snngraph.errors import (
    BatchStatisticsWarning,
    CaptureError,
    CaptureMismatchError,
    ForwardFailedError,
    TimeAxisError,
    TrainingModeError,
    WarmStateWarning,
)
from snngraph.frontends import state
from snngraph.frontends.batch_axis import equal_tensors
from snngraph.frontends.export import exported_graph
from snngraph.frontends.time_axis import Axes, infer_axes
from snngraph.graph import SpikingGraph, is_op, module_path, operand, shape_of

__all__ = ["trace"]

_AUTO = "auto"
_LARGE_NET = 5e7  # numbers that all operators together compute for one sample


def trace(
    model: nn.Module,
    example: Any,
    *,
    time_steps: int | None = None,
    time_dim: int | str | None = _AUTO,
    batch_dim: int | None = None,
    reset: Callable[[], object] | None = None,
    time_reduction: str | None = None,
) -> SpikingGraph:
    """Captures a trained model as a graph.

    Args:
        model: in evaluation mode. Without ``time_steps`` it takes the whole sequence, ``[T, N, ...]`` or ``[N, T, ...]``, or a
            static input ``[N, ...]`` that it repeats itself.
        example: one input, or a tuple of several; tensors or NumPy arrays.
        time_steps: the model takes one step, and is called so many times from the reset state; the example is ``[T, N, ...]``
            (``time_dim=0``), ``[N, T, ...]`` (``time_dim=1``) or static ``[N, ...]`` (``time_dim=None``).
        time_dim: the example's time axis; inferred unless given.
        batch_dim: the example's batch axis; inferred unless given.
        reset: called without arguments before every run, to reset state that no adapter knows.
        time_reduction: what to do with the outputs of a model called step by step: ``None`` stacks them, ``[T, N, ...]``;
            ``"mean"``, ``"sum"`` and ``"last"`` reduce them over time.

    Returns:
        The graph, canonical, with time merged.

    Raises:
        TrainingModeError: the model or a part of it is in training mode.
        ForwardFailedError: the model's forward raises on the example.
        TimeAxisError: the time axis can not be told, or contradicts ``time_steps``.
        CaptureMismatchError: the graph does not compute what the model computes (state, randomness, control flow on data).
        CaptureError: the model can not be exported; the message says where.
        NonFiniteConstantError: a number that the model computes from its parameters alone is infinite or NaN.

    Warns:
        WarmStateWarning: the model carried membrane state from an earlier call.
        BatchStatisticsWarning: a batch norm without running statistics normalises by the batch it is given.
    """
    inputs = _as_tensors(example)
    _require_eval(model)
    name, stepped = type(model).__name__, time_steps is not None
    guessed = time_steps is not None and time_dim == _AUTO
    if time_steps is not None:
        dim = (0 if inputs[0].dim() and inputs[0].shape[0] == time_steps else None) if time_dim == _AUTO else time_dim
        model = _Stepped(model, time_steps, dim, time_reduction, inputs)
        time_dim = dim
    elif time_reduction is not None:
        raise CaptureError("time_reduction belongs to a model that is called step by step: give time_steps too")
    with state.fresh_state(model) as was_warm, torch.no_grad(), _quiet():
        if was_warm:
            warnings.warn(
                "the model carries membrane state from an earlier call; it is captured from the reset state, its state is kept",
                WarmStateWarning,
                stacklevel=2,
            )
        runner = _Runner(model, reset)
        expected = runner(inputs)
        axes = infer_axes(runner, inputs, time_dim=time_dim, batch_dim=batch_dim, time_steps=time_steps)
        if guessed and axes.time_dim == 0 and axes.batch_dim is None:
            raise TimeAxisError(
                f"the first axis of the example, {list(inputs[0].shape)}, has time_steps={time_steps} entries, but one step of "
                "it has no batch axis: give time_dim=0 if it is time, time_dim=None if the example is a static batch"
            )
        graph = exported_graph(model, inputs, axes, runner, name=name, prefix="inner" if stepped else "")
        with _trainable_as_in(model, graph, "inner." if stepped else ""):
            _compare_bitwise(graph, runner, inputs, expected, axes)
    if mixing := _batch_statistics(graph):
        shown = ", ".join(mixing[:5]) + (f" and {len(mixing) - 5} more" if len(mixing) > 5 else "")
        note = (
            f"batch statistics: {shown} normalises by the mean and variance of the batch it is given (no running statistics), "
            "so the engine's answers depend on the batch size and on the samples beside each other"
        )
        graph.facts = replace(graph.facts, notes=(*graph.notes, note))
        warnings.warn(note, BatchStatisticsWarning, stacklevel=2)
    captured = graph.to(torch.float64)
    result = pipelines.capture()(captured)
    merged = result.graph
    merged.facts = replace(merged.facts, notes=(*graph.notes, *(str(n) for n in result.notes if n.kind == "refused")))
    _compare_float64(captured, merged, _fresh(axes.resized(inputs, _batch_to_compare(captured))) if graph.free_batch else inputs)
    return merged


def _batch_statistics(graph: SpikingGraph) -> list[str]:
    """The modules that mix samples by normalising over the batch; an instance norm, exported alike, has it among the channels."""
    dims = batch_dims(graph)
    found = []
    for node in graph.nodes:
        if is_op(node, torch.ops.aten._native_batch_norm_legit.no_stats):
            source = operand(node)
            if dims.get(source) == 0 or (not graph.free_batch and shape_of(source)[0] > 1):
                found.append(module_path(node) or node.name)
    return list(dict.fromkeys(found))


def _batch_to_compare(graph: SpikingGraph) -> int:
    """2, so that samples and steps can not be taken for one another; 1 for a large net, which takes long in float64."""
    values = (v for n in graph.nodes if n.op == "call_function" for v in torch.utils._pytree.tree_leaves(n.meta["val"]))
    return 2 if sum(v.numel() for v in values if isinstance(v, Tensor)) < _LARGE_NET * graph.batch else 1


def _as_tensors(example: Any) -> tuple[Tensor, ...]:
    values = example if isinstance(example, tuple | list) else (example,)
    if not values:
        raise CaptureError("no example input: give a tensor, a NumPy array or a tuple of them")
    tensors = tuple(torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values)
    for k, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise CaptureError(f"example input {k} is a {type(tensor).__name__}: expected a tensor or a NumPy array")
        if not tensor.is_floating_point():
            raise CaptureError(f"example input {k} has type {tensor.dtype}: expected float32, give x.float()")
        if tensor.dtype != torch.float32:
            hint = "models are captured in float32, give x.float() and model.float()"
            raise CaptureError(f"example input {k} has type {tensor.dtype}: {hint}")
        if tensor.device.type != "cpu":
            raise CaptureError(f"example input {k} is on {tensor.device}: move model and example to the CPU for the capture")
    # a copy: contiguous() keeps the strides of dimensions of size 1, which decide the memory layout of convolutions
    return tuple(t.detach().clone(memory_format=torch.contiguous_format) for t in tensors)


def _require_eval(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        shown = ", ".join(training[:5]) + (f" and {len(training) - 5} more" if len(training) > 5 else "")
        raise TrainingModeError(
            f"in training mode: {shown}. Dropout and batch norm would behave as in training; call model.eval() first"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 and parameter.is_floating_point():
            hint = "models are captured in float32, call model.float() first"
            raise CaptureError(f"parameter {name} has type {parameter.dtype}: {hint}")


class _Stepped(nn.Module):
    """Calls a one-step model ``steps`` times from the reset state."""

    def __init__(self, model: nn.Module, steps: int, time_dim: Any, reduction: str | None, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        if steps < 1:
            raise TimeAxisError(f"time_steps={steps}: expected at least 1")
        if reduction not in (None, "mean", "sum", "last"):
            raise CaptureError(f"time_reduction={reduction!r}: expected None, 'mean', 'sum' or 'last'")
        if time_dim not in (0, 1, None):
            raise TimeAxisError(f"time_dim={time_dim!r}: expected 0, 1 or None")
        for k, x in enumerate(inputs):
            if time_dim is not None and (x.dim() <= time_dim or x.shape[time_dim] != steps):
                raise TimeAxisError(
                    f"time_steps={steps}, but axis {time_dim} of example input {k} with shape {list(x.shape)} does not have "
                    f"{steps} entries; for an input without time axis give time_dim=None"
                )
        self.inner = model
        self.steps, self.time_dim, self.reduction = steps, time_dim, reduction
        self.training = False

    def forward(self, *inputs: Tensor) -> Any:
        outputs = []
        for t in range(self.steps):
            outputs.append(self.inner(*(x if self.time_dim is None else x.select(self.time_dim, t) for x in inputs)))
        if not isinstance(outputs[0], Tensor):
            raise CaptureError(f"one step returns a {type(outputs[0]).__name__}: wrap the model so that it returns one tensor")
        if self.reduction == "last":
            return outputs[-1]
        stacked = torch.stack(outputs)
        if self.reduction == "mean":
            return stacked.mean(0)
        return stacked.sum(0) if self.reduction == "sum" else stacked


class _Runner:
    """Runs the model as its user would, from the reset state, and leaves it reset."""

    def __init__(self, model: nn.Module, reset: Callable[[], object] | None) -> None:
        self.model, self.user_reset = model, reset

    def reset(self) -> None:
        state.reset_state(self.model)
        if self.user_reset is not None:
            self.user_reset()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        self.reset()
        try:
            result = self.model(*(x.clone() for x in inputs))
        except Exception as error:
            if isinstance(error, CaptureError):
                raise
            shapes = ", ".join(str(list(x.shape)) for x in inputs)
            raise ForwardFailedError(
                f"the model's forward raised {type(error).__name__} on an input of shape {shapes}: {error}\n  {_where(error)}"
            ) from error
        finally:
            self.reset()
        return outputs_of(result)


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors of a model's result: one tensor, or a tuple or list of them.

    Raises:
        CaptureError: anything else.
    """
    values = list(result) if isinstance(result, tuple | list) else [result]
    for k, value in enumerate(values):
        if not isinstance(value, Tensor):
            hint = "expected tensors; wrap the model to return tensors only"
            raise CaptureError(f"output {k} of the model is a {type(value).__name__}: {hint}")
    return values


def _where(error: BaseException) -> str:
    """The last line of the model's own code in a traceback."""
    stack = traceback.extract_tb(error.__traceback__)
    frames = [f for f in stack if "/torch/" not in f.filename and "/snngraph/" not in f.filename]
    return f"at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "(in PyTorch)"


def _compare_bitwise(
    graph: SpikingGraph, runner: _Runner, inputs: Sequence[Tensor], expected: Sequence[Tensor], axes: Axes
) -> None:
    """On the example; and on a fresh input (the example's values in another order), at another batch size where that is free.

    A small one, but not 1: what the model makes of a single sample is seen when that is the example.
    """
    _compare_on("the example", graph, runner, inputs, expected)
    other = 3 if axes.batch == 2 else 2
    fresh = _fresh(axes.resized(inputs, other) if graph.free_batch and axes.batch is not None else inputs)
    _compare_on("a second input", graph, runner, fresh, runner(fresh))


def _fresh(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Other inputs of the same shapes: the values in another order, or random ones where there is nothing to reorder."""
    generator = torch.Generator().manual_seed(0)
    return [
        x.flatten()[torch.randperm(x.numel(), generator=generator)].view(x.shape)
        if x.numel() and bool((x != x.flatten()[0]).any())
        else torch.rand(x.shape, generator=generator)
        for x in inputs
    ]


@contextlib.contextmanager
def _trainable_as_in(model: nn.Module, graph: SpikingGraph, prefix: str) -> Iterator[None]:
    """Within it, the graph's tensors require gradients where the model's parameters do.

    A matrix product picks its kernel by that too, without gradients being recorded: ``x @ w`` of a permuted ``x`` folds the
    leading dimensions into one product when ``w`` requires them, and runs a batched one, summed in another order, otherwise.
    """
    trained = {name.removeprefix(prefix) for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    tensors = [t for name, t in graph.tensors().items() if name in trained and t.is_floating_point()]
    try:
        for tensor in tensors:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)


def _compare_on(what: str, graph: SpikingGraph, runner: _Runner, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
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
        raise CaptureMismatchError(
            f"on {what}, output {k} of the captured graph differs from the model's by up to {_difference(a, b)}: state kept from "
            "call to call (trace(..., reset=callable) resets it), a parameter changed in forward, control flow on the data, or a "
            "batch of one treated otherwise than others (squeeze without a dimension)"
        )


def _compare_float64(before: SpikingGraph, after: SpikingGraph, inputs: Sequence[Tensor]) -> None:
    """Outputs to 1e-10 and every spike, but for ties: one neuron-step in a million may sit on the threshold to the last bit."""
    (wanted, spikes), (found, others) = run_with_spikes(before, inputs), run_with_spikes(after, inputs)
    passes = f"this is a bug in snngraph. Passes: {', '.join(after.history)}"
    flips = 0
    for name in spikes.keys() & others.keys():
        if spikes[name].shape != others[name].shape:
            raise CaptureMismatchError(f"after time was merged, the spikes of {name} have another shape; {passes}")
        flips += int((spikes[name] != others[name]).sum())
    if flips > sum(s.numel() for s in spikes.values()) / 1e6:
        raise CaptureMismatchError(f"after time was merged, {flips} spikes differ in float64; {passes}")
    for k, (a, b) in enumerate(zip(wanted, found, strict=True)):
        close = a.shape == b.shape and (
            flips > 0 or torch.allclose(a.double(), b.double(), rtol=1e-10, atol=1e-10, equal_nan=True)
        )
        if not close or a.dtype != b.dtype:
            raise CaptureMismatchError(f"after time was merged, output {k} differs by {_difference(a, b)} in float64; {passes}")


def _difference(a: Tensor, b: Tensor) -> str:
    if a.shape != b.shape:
        return f"its shape: {list(b.shape)} for {list(a.shape)}"
    return f"{float((a.double() - b.double()).abs().max()):.3g}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what PyTorch's own exporter warns about itself; the model's own warnings and ours pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
        logger = logging.getLogger("torch._subclasses.fake_tensor")
        level = logger.level
        logger.setLevel(logging.CRITICAL)  # shapes that do not fit are tried on purpose
        try:
            yield
        finally:
            logger.setLevel(level)
