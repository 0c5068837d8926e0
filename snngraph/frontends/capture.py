"""``trace``: a model becomes a :class:`SpikingGraph`.

The model is exported twice with ``torch.export``, at two batch sizes, under the adapters of its neurons. Where the two graphs
differ the batch stands: those sizes become ``-1``, and the graph runs at any batch size. It is then compared with the model bit
for bit, on the example and on a second input, before anything is rewritten; and again, in float64, after time has been merged.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from snngraph import pipelines
from snngraph.analysis.batch import batch_dims
from snngraph.errors import (
    BatchStatisticsWarning,
    CaptureError,
    CaptureMismatchError,
    GraphCheckError,
    TimeAxisError,
    TrainingModeError,
    WarmStateWarning,
)
from snngraph.frontends import adapters, state
from snngraph.frontends.call import Call
from snngraph.frontends.export import exported_graph
from snngraph.frontends.proof import compare_bitwise, compare_float64, compare_on, fresh_inputs, trainable_as_in
from snngraph.frontends.runner import Runner, few, what_it_leaves
from snngraph.frontends.time_axis import Axes, infer_axes, runs_longer
from snngraph.graph import Recognition, SpikingGraph, arguments, is_op, module_path, operand, shape_of, source_line
from snngraph.passes.base import Note
from snngraph.passes.lift_neurons import RECOGNISED, LiftNeurons

__all__ = ["trace"]

_AUTO = "auto"
_MANY_NODES = 500
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
        model: in evaluation mode. Without ``time_steps`` it takes the whole sequence, ``[T, N, ...]``, ``[N, T, ...]`` or
            ``[N, ..., T]``, or a static input ``[N, ...]`` that it repeats itself. It returns a tensor, or a tuple, list or
            dictionary of tensors, however nested.
        example: one input, or a tuple of several; tensors or NumPy arrays.
        time_steps: the model takes one step, and is called so many times from the reset state; the example is ``[T, N, ...]``
            (``time_dim=0``), has time in another axis, or is static, ``[N, ...]`` (``time_dim=None``). A model with an optional
            argument ``state`` that returns ``(output, state)`` is given its state again at the next step.
        time_dim: the example's time axis; inferred unless given.
        batch_dim: the example's batch axis; inferred unless given.
        reset: called without arguments before every run, to reset state that no adapter knows.
        time_reduction: what to do with the outputs of a model called step by step: ``None`` stacks them, ``[T, N, ...]``;
            ``"mean"``, ``"sum"`` and ``"last"`` reduce them over time.

    Returns:
        The graph, canonical, with time merged. Its ``recognitions`` say what became of every neuron.

    Raises:
        TrainingModeError: the model or a part of it is in training mode.
        ForwardFailedError: the model's forward raises on the example.
        TimeAxisError: the time axis can not be told, or contradicts ``time_steps``, or the model reads only some of the steps.
        WarmStateError: a module that no adapter knows carries state from an earlier call.
        DataDependentError: the model's forward branches on numbers that depend on its input.
        RandomnessError: the model's forward draws random numbers.
        CaptureMismatchError: the graph does not compute what the model computes (state, control flow on data).
        CaptureError: the model can not be captured; the message says where.
        NonFiniteConstantError: a number that the model computes from its parameters alone is infinite or NaN.

    Warns:
        WarmStateWarning: the model carried membrane state from an earlier call.
        KeptStateWarning: the model keeps state from call to call, though it is not called step by step.
        ParameterChangedWarning: the model's forward rewrites its own parameters.
        BatchStatisticsWarning: a batch norm without running statistics normalises by the batch it is given.
    """
    inputs = _as_tensors(example)
    _require_ready(model)
    guessed = time_steps is not None and time_dim == _AUTO
    if time_steps is not None and time_dim == _AUTO:
        time_dim = 0 if inputs[0].dim() and inputs[0].shape[0] == time_steps else None
    if isinstance(time_dim, int) and time_dim < 0:
        time_dim += inputs[0].dim()
    call = Call(model, inputs, steps=time_steps, time_dim=time_dim, reduction=time_reduction)
    with state.fresh_state(call) as was_warm, torch.no_grad(), _quiet():
        if was_warm:
            warnings.warn(
                "the model carries membrane state from an earlier call; it is captured from the reset state, its state is kept",
                WarmStateWarning,
                stacklevel=2,
            )
        not_reset = adapters.reset_neurons(model)
        neurons = [replace(found, known=found.path not in not_reset) for found in adapters.found_in(model)]
        for found in neurons:
            found.adapter.prepare(found.module)  # a neuron set to a GPU backend runs here, too; put back afterwards
        runner = Runner(call, reset)
        expected = [y.clone() for y in runner.run(inputs)]  # an output may be the very tensor that the model keeps as its state
        notes = what_it_leaves(runner, inputs, expected, neurons)
        axes = infer_axes(runner, inputs, time_dim=time_dim, batch_dim=batch_dim, time_steps=time_steps)
        if guessed and axes.time_dim == 0 and axes.batch_dim is None:
            raise TimeAxisError(
                f"the first axis of the example, {list(inputs[0].shape)}, has time_steps={time_steps} entries, but one step of "
                "it has no batch axis: give time_dim=0 if it is time, time_dim=None if the example is a static batch"
            )
        captured = _captured(call, inputs, expected, axes, runner, neurons)
        if time_steps is None:
            _refuse_unread_steps(captured, runner, inputs)
    if mixing := _batch_statistics(captured):
        text = (
            f"batch statistics: {few(mixing)} normalises by the mean and variance of the batch it is given (no running "
            "statistics), so the engine's answers depend on the batch size and on the samples beside each other"
        )
        notes.append((BatchStatisticsWarning, text))
    for category, text in notes:
        warnings.warn(text, category, stacklevel=2)
    small = fresh_inputs(axes.resized(inputs, _batch_to_compare(captured)) if captured.free_batch else inputs)
    told = [*captured.notes, *(text for _, text in notes)]
    result = pipelines.capture()(captured)
    try:
        compare_float64(captured, result.graph, small, "after time was merged")
    except CaptureMismatchError as error:  # one more proof of what lift_neurons recognised, on the whole model
        result = pipelines.capture(lift=False)(captured)
        compare_float64(captured, result.graph, small, "after time was merged")
        told.append(f"hand-written neurons stay ordinary operators: {error}")
    merged = result.graph
    refused = (str(n) for n in result.notes if n.kind == "refused")
    merged.facts = replace(merged.facts, notes=(*told, *refused), recognitions=_recognitions(neurons, result.notes))
    return merged


def _captured(
    call: Call,
    inputs: Sequence[Tensor],
    expected: Sequence[Tensor],
    axes: Axes,
    runner: Runner,
    neurons: Sequence[adapters.Found],
) -> SpikingGraph:
    """The graph, proved against the model; its tensors in float64.

    It is the model bit for bit, if its foreign neurons compute in the order of their library, or if that makes no difference on
    the example and on a fresh input. Otherwise a second graph, with the library's own arithmetic, is, and the first equals that
    in float64.
    """
    foreign = any(found.neuron is not None and not found.adapter.bitwise for found in neurons)
    graph, refusal = None, ""
    try:
        candidate = exported_graph(call, inputs, axes, runner)
        if foreign:
            candidate.check()  # a neuron that is called twice in a step has no chain of T steps
        graph = candidate
        with trainable_as_in(call, graph):
            compare_bitwise(graph, runner, inputs, expected, axes)
        return graph.to(torch.float64)
    except (CaptureError, GraphCheckError) as error:
        if not foreign:
            raise
        refusal = str(error)
    reference = exported_graph(call, inputs, axes, runner, own=True, free=False)
    fresh = fresh_inputs(inputs)
    with trainable_as_in(call, reference):
        compare_on("the example", reference, runner, inputs, expected)
        compare_on("a second input", reference, runner, fresh, runner(fresh))
    exact = reference.to(torch.float64)
    try:
        if graph is None:
            raise CaptureError(refusal)
        result = graph.to(torch.float64)
        for x in (inputs, fresh):
            compare_float64(exact, result, x, "with its neurons in canonical form")
        _compare_resized(call, inputs, axes, runner, result)
    except CaptureError as error:
        result = exported_graph(call, inputs, axes, runner, own=True).to(torch.float64)
        compare_float64(exact, result, fresh, "with its batch size free")
        result.facts = replace(result.facts, notes=(*result.notes, f"the neurons keep their own arithmetic: {error}"))
    return result


def _compare_resized(call: Call, inputs: Sequence[Tensor], axes: Axes, runner: Runner, graph: SpikingGraph) -> None:
    """At another batch size, with a graph of the library's own arithmetic; left out for a large net, which takes long."""
    if not graph.free_batch or axes.batch is None or _is_large(graph) or len(graph.graph.nodes) > _MANY_NODES:
        return
    size = 3 if axes.batch == 2 else 2
    other = fresh_inputs(axes.resized(inputs, size))
    resized = exported_graph(call, other, replace(axes, batch=size), runner, own=True, free=False)
    compare_float64(resized.to(torch.float64), graph, other, "at another batch size")


def _recognitions(neurons: Sequence[adapters.Found], notes: Sequence[Note]) -> tuple[Recognition, ...]:
    """Of the modules that an adapter knows; and of what was recognised by its arithmetic, or nearly."""
    known = {
        found.path: Recognition(
            found.path, type(found.module).__name__, found.adapter.library(), str(found.neuron or ""), found.reason
        )
        for found in neurons
    }
    written = []
    for note in notes:
        if note.by != LiftNeurons.name:
            continue
        form = note.text.removeprefix(RECOGNISED) if note.kind == "rewrite" else ""
        module = known.get(note.module)
        if module is None:
            written.append(Recognition(note.module or note.source, "neuron", form=form, reason="" if form else note.text))
        elif form and not module.form:
            known[note.module] = replace(module, form=form, reason="")
    return (*known.values(), *written)


def _refuse_unread_steps(graph: SpikingGraph, runner: Runner, inputs: Sequence[Tensor]) -> None:
    """A loop of a fixed length over a longer input: the steps that it leaves out.

    A neuron that fires from the potential of the step before leaves out the last as well, but its loop grows with the input.
    """
    for spec, node in zip(graph.inputs, (n for n in graph.nodes if n.op == "placeholder"), strict=True):
        for dim, size in enumerate(shape_of(node)):
            reads = [_entries(user, dim, size) for user in node.users]
            read = {k for entries in reads if entries is not None for k in entries}
            partial = reads and None not in reads and len(read) < size and dim != spec.batch_dim
            if not partial or (dim != spec.time_dim and read != set(range(graph.time.steps))) or runs_longer(runner, inputs, dim):
                continue
            raise TimeAxisError(
                f"the model reads {len(read)} of the {size} entries of axis {dim} of the example: its number of steps is fixed "
                f"in the code{_at(list(node.users)[-1])}. Give an example of {len(read)} steps"
            )


def _entries(user: fx.Node, dim: int, size: int) -> range | None:
    """Which entries along ``dim`` of its input an operator reads; ``None``: all."""
    if is_op(user, torch.ops.aten.select.int) and operand(user, 1) % len(shape_of(operand(user))) == dim:
        return range(operand(user, 2) % size, operand(user, 2) % size + 1)
    if is_op(user, torch.ops.aten.slice.Tensor):
        found = arguments(user)
        if found["dim"] % len(shape_of(operand(user))) == dim:
            return range(size)[found["start"] : found["end"] : found["step"]]
    return None


def _at(node: fx.Node) -> str:
    return f" ({source_line(node)})" if source_line(node) else ""


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
    return 1 if _is_large(graph) else 2


def _is_large(graph: SpikingGraph) -> bool:
    values = (v for n in graph.nodes if n.op == "call_function" for v in torch.utils._pytree.tree_leaves(n.meta["val"]))
    return sum(v.numel() for v in values if isinstance(v, Tensor)) >= _LARGE_NET * graph.batch


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


def _require_ready(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got a {type(model).__name__}")
    scripted = [
        name or "the model itself" for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)
    ]
    if scripted:
        raise CaptureError(f"TorchScript modules can not be captured: {few(scripted)}. Give the module that they were made of")
    training = [name or "the model itself" for name, module in model.named_modules() if module.training]
    if training:
        raise TrainingModeError(
            f"in training mode: {few(training)}. Dropout and batch norm would behave as in training; call model.eval() first"
        )
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 and parameter.is_floating_point():
            hint = "models are captured in float32, call model.float() first"
            raise CaptureError(f"parameter {name} has type {parameter.dtype}: {hint}")
        if parameter.device.type != "cpu":
            raise CaptureError(f"parameter {name} is on {parameter.device}: move the model to the CPU for the capture")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what PyTorch's own exporter warns about itself; the model's own warnings and ours pass."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
        warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
        # shapes that do not fit, and models that read numbers, are tried on purpose
        loggers = [logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "fx.experimental.symbolic_shapes")]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
