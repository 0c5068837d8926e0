"""From ``torch.export`` to a :class:`SpikingGraph` whose batch size is free.

The model is exported at two batch sizes. Both graphs have the same operators; the sizes in which they differ carry the batch,
and are written as ``-1``. So nothing in a graph is symbolic, and yet it runs at any batch size.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind

from snngraph.errors import CaptureError
from snngraph.frontends import adapters, state, writes
from snngraph.frontends.batch_axis import FixedBatchError, Raw, drop_batch_arguments, free_the_batch
from snngraph.frontends.time_axis import Axes, ModelRunner
from snngraph.graph import (
    LIF,
    LIF_STEP,
    Facts,
    SpikingGraph,
    Time,
    is_op,
    module_path,
    previous_step,
)
from snngraph.types import TensorSpec

__all__ = ["exported_graph"]

aten = torch.ops.aten
_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_ASSERTIONS = (aten._assert_tensor_metadata.default,)


def exported_graph(
    model: nn.Module, inputs: Sequence[Tensor], axes: Axes, runner: ModelRunner, *, name: str, prefix: str = ""
) -> SpikingGraph:
    """Captures ``model`` by ``torch.export`` under the adapters of its neurons.

    Args:
        model: in evaluation mode.
        inputs: the example.
        axes: what is known of its axes.
        runner: runs the model, and resets it.
        name: the graph's name.
        prefix: the start of module paths that is ours, not the model's.

    Raises:
        CaptureError: the model can not be exported, or changes a buffer in forward.
    """
    notes: tuple[str, ...] = ()
    example_batch = axes.batch or 1
    batch = example_batch
    free = axes.batch is not None
    if axes.batch is None:
        why = "the model does not run, or changes its number of steps, when the example's batch is doubled"
        notes = (f"the batch size is fixed: {why}",)
    else:
        batch = max(2, example_batch)  # at 1, what carries the batch and what broadcasts look alike
        try:
            raw = _export(model, axes.resized(inputs, batch), runner)
            far = 3 * batch + 7  # far away, so that what is constant for small batches alone is seen to change
            free_the_batch(raw, _export(model, axes.resized(inputs, far), runner, origins=False))
        except (CaptureError, FixedBatchError) as reason:
            free, batch = False, example_batch
            notes = (f"the batch size is fixed at {batch}: {reason}",)
    if not free:
        raw = _export(model, inputs, runner)
    graph, tensors, names = _without_prefix(raw, prefix, model) if prefix else raw
    _name_neurons(graph)
    shapes = [tuple(x.shape) for x in (axes.resized(inputs, batch) if free else inputs)]
    specs = tuple(
        TensorSpec(name, shape, "float32", axes.time_dim, axes.batch_dim) for name, shape in zip(names, shapes, strict=True)
    )
    facts = Facts(
        inputs=specs,
        time=Time(axes.steps, tuple(s.time_dim for s in specs)),
        batch=batch,
        free_batch=free,
        example_batch=example_batch,
        name=name,
        notes=notes,
        dtype=torch.float32,
    )
    return SpikingGraph(graph, tensors, facts)


def _without_prefix(raw: Raw, prefix: str, model: nn.Module) -> Raw:
    """Module paths, tensors and inputs under the names they have in the module ``prefix``, which the model wraps."""
    graph, tensors, names = raw
    parameters = inspect.signature(model.get_submodule(prefix).forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = positional[: len(names)] if len(positional) >= len(names) else names
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
        node._rename(name)
    for node in graph.nodes:
        path = node.meta.get("module_path", "")
        node.meta["module_path"] = "" if path == prefix else path.removeprefix(f"{prefix}.")
        if node.op == "get_attr":
            node.target = str(node.target).removeprefix(f"{prefix}.")
    return graph, {k.removeprefix(f"{prefix}."): t for k, t in tensors.items()}, names


def _export(model: nn.Module, inputs: Sequence[Tensor], runner: ModelRunner, *, origins: bool = True) -> Raw:
    """Exports and decomposes; without ``origins`` no node knows its source line, and a large model takes less time."""
    table = torch.export.default_decompositions()
    for target in (aten.linear.default, *writes.KEPT_WHOLE):  # one operator to fold into and to lower, not three
        table.pop(target, None)
    runner.reset()
    try:
        with _stack_traces(origins):
            with state.unchanged(model), adapters.adapted(model):
                program = torch.export.export(model, tuple(x.clone() for x in inputs), strict=False)
            program = program.run_decompositions(table)
    except Exception as error:
        what = f"{type(error).__name__}: {_first_lines(error)}"
        raise CaptureError(f"torch.export can not capture {type(model).__name__}: {what}") from error
    finally:
        runner.reset()
    raw = _flatten(program)
    writes.rewrite_writes(raw[0], raw[1])
    drop_batch_arguments(raw[0])
    return raw


@contextlib.contextmanager
def _stack_traces(wanted: bool) -> Iterator[None]:
    """Within it the exporter keeps the model's source line with every node, or does not."""
    before = fx.config.do_not_emit_stack_traces
    fx.config.do_not_emit_stack_traces = before or not wanted
    try:
        yield
    finally:
        fx.config.do_not_emit_stack_traces = before


def _first_lines(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n  ".join(lines[:8])


def _flatten(program: torch.export.ExportedProgram) -> Raw:
    """Parameters, buffers and constants become ``get_attr`` nodes; the graph's inputs are the user's alone."""
    signature = program.graph_signature
    mutated = [s.target for s in signature.output_specs if s.kind is not OutputKind.USER_OUTPUT]
    if mutated:
        buffers = ", ".join(map(str, mutated))
        raise CaptureError(f"the model changes {buffers} in forward: a compiled model can not; freeze it first")
    kinds = {s.arg.name: s for s in signature.input_specs}
    state = {**program.state_dict, **program.constants}
    graph, tensors, names = fx.Graph(), {}, []
    mapping: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind is InputKind.USER_INPUT:
                name = re.sub(r"\W", "_", node.name)
                mapping[node] = graph.placeholder(name)
                mapping[node].meta["val"] = node.meta.get("val")
                names.append(name)
            elif node.users:
                target = str(spec.target)
                value = state[target]
                if not isinstance(value, Tensor):
                    raise CaptureError(f"the model holds {target}, a {type(value).__name__}, which is not a tensor")
                tensors[target] = value.detach()
                mapping[node] = graph.get_attr(target)
                mapping[node].meta["val"] = node.meta.get("val")
        elif node.target in _ASSERTIONS:
            continue  # of types, which differ when the graph runs in float64
        elif node.op == "output":
            values = [mapping[n] for n in node.args[0]]
            graph.output(tuple(values) if len(values) > 1 else values[0])
        else:
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
            mapping[node].meta = _meta(node)
    return graph, tensors, names


def _meta(node: fx.Node) -> dict[str, Any]:
    meta: dict[str, Any] = {"val": node.meta.get("val")}
    stack = node.meta.get("nn_module_stack")
    if stack:
        meta["module_path"] = str(list(stack.values())[-1][0])
    frames = [f for f in _FRAME.findall(node.meta.get("stack_trace") or "") if not re.search(r"/(torch|snngraph)/", f[0])]
    frames = frames or _FRAME.findall(node.meta.get("stack_trace") or "")
    if frames:
        meta["source"] = f"{frames[-1][0]}:{frames[-1][1]}"
    return meta


def _name_neurons(graph: fx.Graph) -> None:
    """Names every layer of neurons after its module; the steps of one chain share a name, and a second use gets ``#2``."""
    used: dict[str, int] = {}
    for node in graph.nodes:
        if not is_op(node, LIF, LIF_STEP):
            continue
        previous = previous_step(node) if is_op(node, LIF_STEP) else None
        if previous is not None:
            node.meta["neuron"] = previous.meta["neuron"]
            continue
        base = module_path(node) or "neuron"
        used[base] = used.get(base, 0) + 1
        node.meta["neuron"] = base if used[base] == 1 else f"{base}#{used[base]}"
