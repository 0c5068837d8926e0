"""From a model to a :class:`SpikingGraph` whose batch size is free, by ``torch.export``.

The model is exported at two batch sizes. Both graphs have the same operators; the sizes in which they differ carry the batch,
and are written as ``-1``. So nothing in a graph is symbolic, and yet it runs at any batch size.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx
from torch.export.graph_signature import InputKind, OutputKind

from snngraph.errors import CaptureError, DataDependentError, RandomnessError
from snngraph.frontends import adapters, state, writes
from snngraph.frontends.batch_axis import FixedBatchError, OtherOperatorsError, Raw, free_the_batch, spell_out
from snngraph.frontends.call import Call
from snngraph.frontends.recording import exportable, recorded, size_depends_on_data
from snngraph.frontends.runner import Runner
from snngraph.frontends.source import model_frames, where_raised
from snngraph.frontends.time_axis import Axes
from snngraph.graph import (
    LIF,
    LIF_STEP,
    Facts,
    SpikingGraph,
    Time,
    describe,
    is_op,
    module_path,
    previous_step,
)
from snngraph.types import TensorSpec

__all__ = ["exported_graph"]

aten = torch.ops.aten
_READS = (aten._local_scalar_dense.default, aten.item.default)
_ASSERTIONS = (aten._assert_tensor_metadata.default,)


def exported_graph(
    call: Call, inputs: Sequence[Tensor], axes: Axes, runner: Runner, *, own: bool = False, free: bool = True
) -> SpikingGraph:
    """Captures a model as it is called.

    Args:
        call: the model, in evaluation mode.
        inputs: the example.
        axes: what is known of its axes.
        runner: runs the model, and resets it.
        own: foreign neurons keep their own arithmetic, step by step, instead of becoming ``snn::`` operators.
        free: the batch size is made free where the model allows it; otherwise it is the example's.

    Raises:
        CaptureError: the model can not be captured.
        DataDependentError: its forward branches on its data.
    """
    tracer = _Tracer(call, runner, own)
    notes: tuple[str, ...] = ()
    example_batch = axes.batch or 1
    batch = example_batch
    free = free and axes.batch is not None
    if axes.batch is None:
        why = "the model does not run, or changes its number of steps, when the example's batch is doubled"
        notes = (f"the batch size is fixed: {why}",)
    elif free:
        batch = max(2, example_batch)  # at 1, what carries the batch and what broadcasts look alike
        try:
            try:
                raw = tracer.at_any_batch(inputs, axes, batch)
            except OtherOperatorsError:
                batch += 1  # the model may treat the batch size of its last use, the example's, otherwise than others
                raw = tracer.at_any_batch(inputs, axes, batch)
        except (CaptureError, FixedBatchError) as reason:
            free, batch = False, example_batch
            notes = (f"the batch size is fixed at {batch}: {reason}",)
    if not free:
        raw = tracer(inputs, origins=not own)
    graph, tensors, names = raw
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
        name=type(call.inner).__name__,
        notes=(*notes, *tracer.notes),
        dtype=torch.float32,
        output_names=runner.output_names,
    )
    result = SpikingGraph(graph, tensors, facts)
    _refuse_random_numbers(result)
    _refuse_narrow_types(result)
    return result


def _refuse_narrow_types(graph: SpikingGraph) -> None:
    """A graph computes in one floating type: what a model rounds to half precision on the way would not be rounded."""
    for node in graph.nodes:
        if node.kwargs.get("dtype") in (torch.float16, torch.bfloat16):
            raise CaptureError(
                f"the model computes in {node.kwargs['dtype']} in forward: {describe(node)}. Its rounding can not be kept: leave "
                "the cast or the autocast out"
            )


def _refuse_random_numbers(graph: SpikingGraph) -> None:
    live = graph.live_nodes
    for node in graph.nodes:
        if node in live and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise RandomnessError(
                f"the model draws random numbers in forward: {describe(node)}. A compiled model can not: draw them outside and "
                "pass them in (a Poisson encoder's spikes are then the model's input), or call model.eval()"
            )


class _Tracer:
    """Captures one model at several sizes: by ``torch.export``, or, where that fails once, from recorded runs ever after."""

    def __init__(self, call: Call, runner: Runner, own: bool) -> None:
        self.call, self.runner, self.own = call, runner, own
        self.records = False
        self.notes: tuple[str, ...] = ()

    def __call__(self, inputs: Sequence[Tensor], *, origins: bool = True) -> Raw:
        if not self.records:
            try:
                return self._capture(inputs, origins)
            except CaptureError as refusal:
                self.records = True
                try:
                    raw = self._capture(inputs, origins)
                except CaptureError as error:
                    raise error if isinstance(error, DataDependentError) else refusal from error
                self.notes = (f"captured from a recorded run: {refusal}",)
                return raw
        return self._capture(inputs, origins)

    def at_any_batch(self, inputs: Sequence[Tensor], axes: Axes, batch: int) -> Raw:
        """The graph at ``batch``, with ``-1`` where the batch is.

        Raises:
            FixedBatchError: at another batch size it is another graph.
        """
        raw = self(axes.resized(inputs, batch))
        far = 3 * batch + 7  # far away, so that what is constant for small batches alone is seen to change
        free_the_batch(raw, self(axes.resized(inputs, far), origins=False))
        return raw

    def _capture(self, inputs: Sequence[Tensor], origins: bool) -> Raw:
        table = torch.export.default_decompositions()
        for target in (aten.linear.default, *writes.KEPT_WHOLE):  # one operator to fold into and to lower, not three
            table.pop(target, None)
        self.runner.reset()
        try:
            with _stack_traces(origins):
                program = self._exported([x.clone() for x in inputs]).run_decompositions(table)
        except CaptureError:
            raise
        except Exception as error:
            where = f"{type(self.call.inner).__name__} can not be captured, {where_raised(error)}"
            raise CaptureError(f"{where}\n  {type(error).__name__}: {_first_lines(error)}") from error
        finally:
            self.runner.reset()
        raw = _without_prefix(_flatten(program), self.call)
        writes.rewrite_writes(raw[0], raw[1])
        spell_out(raw[0])
        return raw

    def _exported(self, inputs: Sequence[Tensor]) -> torch.export.ExportedProgram:
        with state.unchanged(self.call), adapters.adapted(self.call, bitwise_only=self.own):
            if not self.records:
                with exportable(), contextlib.redirect_stderr(io.StringIO()):  # it prints the graph of what it refuses
                    return torch.export.export(self.call, tuple(inputs), strict=False)
            model = recorded(self.call, inputs)
        with fx_traceback.preserve_node_meta():  # module paths and source lines of the recorded nodes
            return torch.export.export(model, tuple(inputs), strict=False)


def _without_prefix(raw: Raw, call: Call) -> Raw:
    """Module paths, tensors and inputs under the names they have in the model, which the call wraps as ``inner``."""
    graph, tensors, names = raw
    parameters = inspect.signature(call.inner.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = positional[: len(names)] if len(positional) >= len(names) else names
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node, name in zip(placeholders, names, strict=True):
        node.target = name
        node._rename(name)
    for node in graph.nodes:
        path = node.meta.get("module_path", "")
        node.meta["module_path"] = "" if path == "inner" else path.removeprefix("inner.")
        if node.op == "get_attr":
            node.target = str(node.target).removeprefix("inner.")
    return graph, {k.removeprefix("inner."): t for k, t in tensors.items()}, names


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
    # What is written to a parameter or buffer ends with the call: every run of a graph starts from the state as captured.
    returned = [s.kind is OutputKind.USER_OUTPUT for s in signature.output_specs]
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
        elif node.target in _READS or size_depends_on_data(node):
            raise CaptureError(f"the model reads a number out of a tensor{_line(node)}")
        elif node.target in _ASSERTIONS:
            continue  # of types, which differ when the graph runs in float64
        elif node.op == "output":
            values = [mapping[n] for n, is_result in zip(node.args[0], returned, strict=True) if is_result]
            graph.output(tuple(values) if len(values) > 1 else values[0])
        else:
            mapping[node] = graph.node_copy(node, lambda n: mapping[n])
            mapping[node].meta = _meta(node)
    return graph, tensors, names


def _line(node: fx.Node) -> str:
    frames = model_frames(node.meta.get("stack_trace") or "")
    return f", {frames[-1]}" if frames else ""


def _meta(node: fx.Node) -> dict[str, Any]:
    meta: dict[str, Any] = {"val": node.meta.get("val")}
    stack = node.meta.get("nn_module_stack")
    if stack:
        meta["module_path"] = str(list(stack.values())[-1][0])
    if frames := model_frames(node.meta.get("stack_trace") or ""):
        meta["source"] = frames[-1]
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
