"""The public functions that turn a graph into an engine; :func:`snngraph.trace` and :func:`snngraph.load` stand elsewhere."""

from __future__ import annotations

import difflib
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import fx

import snngraph
from snngraph import pipelines
from snngraph.errors import EngineModeError, InputBatchError, PrecisionNotAvailableError, UnknownPrecisionError
from snngraph.frontends.capture import trace
from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, SpikingGraph, is_op, operand, shape_of
from snngraph.lowering.onnx import lower
from snngraph.lowering.taps import add_outputs
from snngraph.passes import registry
from snngraph.passes.base import Pass
from snngraph.passes.expand_fused import expanded
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.runtime import artifact
from snngraph.runtime.backend import BackendOptions
from snngraph.runtime.backends import backend_class
from snngraph.runtime.engine import Engine
from snngraph.runtime.manifest import Manifest
from snngraph.types import Mode, NeuronLayer, Precision, TensorSpec
from snngraph.verification import verify_engine as verify

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build", "convert", "export_onnx", "optimize", "verify"]

DEFAULT_TARGET = "openvino"
BatchSize = int | Literal["dynamic"] | None


def optimize(
    graph: SpikingGraph,
    target: str = DEFAULT_TARGET,
    precision: str | None = None,
    *,
    passes: Iterable[str | Pass] | None = None,
) -> SpikingGraph:
    """Rewrites a graph for an engine.

    Args:
        graph: as :func:`snngraph.trace` gives it; it is not changed.
        target: the engine target.
        precision: ``"fp32"``; ``"exact"``, as exact as float32 with integer synapses (:mod:`snngraph.passes.integer_synapses`),
            three digits to a weight; ``"int8"``, one digit. By default the faster of the first two on this machine.
        passes: a pipeline of your own instead of the default: passes, their names, or names with options.

    Raises:
        UnknownTargetError, TargetNotInstalledError, UnknownPrecisionError, PrecisionNotAvailableError: see :func:`build`.
        UnknownPassError: no pass has that name.
        PassError: a pass failed or refused; the message carries the graph it was given.
    """
    chosen = precision_for(target, precision)
    pipeline = pipelines.default(target, chosen, backend_class(target).fused) if passes is None else registry.pipeline(passes)
    return pipeline(graph).graph


def build(
    graph: SpikingGraph,
    target: str = DEFAULT_TARGET,
    precision: str | None = None,
    mode: str = "sequence",
    *,
    batch_size: BatchSize = None,
    threads: int | None = None,
    taps: bool = False,
) -> Engine:
    """Lowers a graph to ONNX and compiles it.

    Args:
        graph: usually an optimized one.
        target: ``"openvino"``, ``"onnxruntime"``, or a target of an outside package; see :func:`snngraph.targets`.
        precision: see :func:`optimize`; by default that of the graph.
        mode: ``"sequence"``: a call takes all time steps; ``"step"`` is not available yet.
        batch_size: a number, or ``"dynamic"`` for any; the example's unless given.
        threads: number of threads; all usable cores unless given.
        taps: the engine also returns the spikes of every neuron layer, ``[T*N, ...]`` time-major, after the model's outputs.

    Raises:
        UnknownTargetError: no such target.
        TargetNotInstalledError: its library is missing; the message names the extra.
        UnknownPrecisionError: no such precision.
        PrecisionNotAvailableError: the target does not offer the precision, or the graph was optimized for another.
        EngineModeError: no such mode, or not available yet.
        LoweringError: the graph can not be lowered (an operator without translation, a batch that can not be free).
        BackendError: the engine library failed.
    """
    _require_mode(mode)
    chosen = _precision_of(graph, target, precision)
    lowered = lower(graph, batch=_batch(graph, batch_size), fused=backend_class(target).fused)
    outputs = lowered.outputs
    if taps:
        add_outputs(lowered.model, [layer.spikes for layer in lowered.layers])
        outputs = (*outputs, *(_tap_spec(layer, graph.time.steps, lowered.inputs) for layer in lowered.layers))
    manifest = Manifest(
        snngraph_version=snngraph.__version__,
        name=graph.name,
        target=target,
        precision=chosen,
        mode=cast(Mode, mode),
        time_steps=graph.time.steps,
        inputs=lowered.inputs,
        outputs=outputs,
        layers=lowered.layers,
        passes=graph.history,
        versions=_versions(target),
    )
    return Engine(manifest, lowered.model.SerializeToString(deterministic=True), threads=threads)


def convert(
    model: nn.Module,
    example: Any,
    *,
    target: str = DEFAULT_TARGET,
    precision: str | None = None,
    mode: str = "sequence",
    path: str | os.PathLike[str] | None = None,
    force: bool = False,
    passes: Iterable[str | Pass] | None = None,
    batch_size: BatchSize = None,
    threads: int | None = None,
    taps: bool = False,
    progress: Callable[[str], object] | None = None,
    **trace_kwargs: Any,
) -> Engine:
    """Captures, optimizes and builds in one call.

    Args:
        model: in evaluation mode; see :func:`snngraph.trace`, which takes ``trace_kwargs``.
        example: an example input.
        target: see :func:`build`, also for ``precision``, ``mode``, ``batch_size``, ``threads`` and ``taps``.
        path: where to save the engine, if at all.
        force: overwrite a file at ``path``.
        passes: see :func:`optimize`.
        progress: called with the name of every stage as it begins.

    Raises:
        SnnGraphError: whatever :func:`snngraph.trace`, :func:`optimize`, :func:`build` and ``Engine.save`` raise. What can be
            known beforehand (target, precision, mode, an existing file) is checked before any work.
    """
    check_options(target, precision, mode)
    if path is not None:
        artifact.check_destination(path, force)
    tell = progress or (lambda _: None)
    tell("capture")
    graph = trace(model, example, **trace_kwargs)
    tell("optimize")
    graph = optimize(graph, target, precision, passes=passes)
    tell("build")
    engine = build(graph, target, precision, mode, batch_size=batch_size, threads=threads, taps=taps)
    if path is not None:
        tell("save")
        engine.save(path, force=force)
    return engine


def export_onnx(graph: SpikingGraph, path: str | os.PathLike[str], *, batch_size: BatchSize = None, force: bool = False) -> None:
    """Writes the lowered model alone, for any other runtime: standard operators, opset 20, float32.

    Raises:
        ArtifactExistsError: the file exists and ``force`` is not given.
        LoweringError: the graph can not be lowered.
        ArtifactWriteError: writing failed; what stood there before is untouched.
    """
    artifact.check_destination(path, force)
    lowered = lower(graph, batch=_batch(graph, batch_size))
    artifact.write_bytes(path, lowered.model.SerializeToString(deterministic=True), force)


def _batch(graph: SpikingGraph, batch_size: BatchSize) -> int | Literal["dynamic"]:
    if batch_size is None:
        return graph.facts.example_batch
    given: object = batch_size
    if given == "dynamic" or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return batch_size
    raise InputBatchError(f"batch_size={batch_size!r}: expected a positive integer, 'dynamic', or None for the example's")


def check_options(target: str = DEFAULT_TARGET, precision: str | None = None, mode: str = "sequence") -> None:
    """Says, before any work, whether an engine can be built so.

    Raises:
        TargetError, EngineModeError: as :func:`build`.
    """
    _require_mode(mode)
    precision_for(target, precision)


def precision_for(target: str, precision: str | None = None) -> Precision:
    """The precision to optimize for: the one asked for, or the target's default on this machine.

    Raises:
        TargetError: no such target or precision, or the target does not offer it.
    """
    backend = backend_class(target)
    if precision is None:
        return backend.default_precision()
    known = get_args(Precision)
    if precision not in known:
        near = difflib.get_close_matches(precision, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UnknownPrecisionError(f"no precision is named {precision!r}{hint} Known: {', '.join(known)}")
    backend.check(precision, BackendOptions(backend.devices[0]))
    return cast(Precision, precision)


def _precision_of(graph: SpikingGraph, target: str, precision: str | None) -> Precision:
    """The precision of a graph that is lowered as it is: what it holds decides, unless another is asked for.

    Raises:
        PrecisionNotAvailableError: the graph holds integer layers of another precision.
    """
    layers = [node for node in expanded(graph).nodes if is_op(node, INTEGER_CONV, INTEGER_LINEAR)]
    made: Precision | None = _integer_precision(graph, layers) if layers else None
    if precision is None:
        return made or "fp32"
    chosen = precision_for(target, precision)
    if made is not None and chosen != made:
        raise PrecisionNotAvailableError(
            f"precision {chosen!r} was asked for, but the graph holds {len(layers)} integer layers of precision {made!r}: "
            f"optimize it with precision={chosen!r}"
        )
    return chosen


def _integer_precision(graph: SpikingGraph, layers: Sequence[fx.Node]) -> Precision:
    """By the digits that were asked for, of which weights that need fewer have fewer; by those there are if nobody knows."""
    passes = registry.pipeline(entry for entry in graph.history if entry.partition("(")[0] == IntegerSynapses.name).passes
    asked = [p.digits for p in passes if isinstance(p, IntegerSynapses)]
    digits = min(asked) if asked else max(shape_of(operand(node, 1))[0] for node in layers)
    return "exact" if digits >= pipelines.DIGITS["exact"] else "int8"


def _require_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise EngineModeError(f"no mode is named {mode!r}: expected 'sequence' or 'step'")
    if mode == "step":
        raise EngineModeError("mode 'step' is not available yet: engines take the whole sequence; use mode='sequence'")


def _tap_spec(layer: NeuronLayer, steps: int, inputs: tuple[TensorSpec, ...]) -> TensorSpec:
    spec = inputs[0]
    batch = 1 if spec.batch_dim is None else spec.shape[spec.batch_dim]
    return TensorSpec(layer.spikes, (None if batch is None else steps * batch, *layer.shape), "float32", None, 0)


def _versions(target: str) -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("numpy", "onnx", target):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
