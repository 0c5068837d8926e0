"""Lowers a graph to one ONNX model: standard operators, float32, 4-D, time unrolled in the neurons only."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import onnx
import torch
from onnx import helper
from torch import Tensor, fx

import snngraph
from snngraph.errors import LoweringError, UnsupportedOperatorError
from snngraph.graph import LIF, LIF_STEP, SpikingGraph, arguments, describe, is_op
from snngraph.lowering.builder import Batch, Builder, Refusal, Shape, Value, normal, onnx_type
from snngraph.lowering.neuron import Steps, lower_lif, lower_step, outputs_used
from snngraph.lowering.operators import TRANSLATIONS
from snngraph.passes.expand_fused import expanded
from snngraph.types import NeuronLayer, TensorSpec

__all__ = ["OPSET", "Lowered", "lower"]

OPSET = 20
_IR_VERSION = 9  # the one that came with opset 20; newer ones are refused by engines that know the opset
_FOLD_LIMIT = 2**16  # a constant that grows beyond this many elements when folded is computed by the engine


@dataclass(frozen=True, slots=True)
class Lowered:
    """A lowered graph.

    Args:
        model: the ONNX model.
        inputs: its inputs; a free batch is ``None`` in their shapes.
        outputs: its outputs.
        layers: where each layer of neurons lives in it, in the order in which they first run.
    """

    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[NeuronLayer, ...]


def lower(graph: SpikingGraph, *, batch: int | Literal["dynamic"], fused: Sequence[str] = ()) -> Lowered:
    """The ONNX model of a graph.

    Args:
        graph: the graph; its float64 tensors are rounded to float32 here, once.
        batch: the batch size, or ``"dynamic"`` for a model that takes any.
        fused: the fused operators that stay one node; the others are written out first.

    Raises:
        UnsupportedOperatorError: names every operator that has no translation, with its module and source line.
        LoweringError: a number does not fit float32, or the batch size can not be free.
        GraphError: the graph runs at another batch size only.
    """
    graph = expanded(graph, fused)
    if batch == "dynamic":
        if not graph.free_batch:
            raise LoweringError(
                f"a dynamic batch is impossible, this model runs at batch {graph.batch} only: {' '.join(graph.notes)}"
            )
        at = graph.at_batch(2)  # not 1: a size of 1 would look like a dimension to broadcast
        shapes = _shapes(at, graph.at_batch(3))
    else:
        at = graph.at_batch(batch)
        shapes = _shapes(at)
    try:
        return _Lowering(at, shapes, dynamic=batch == "dynamic").run()
    except Refusal as reason:  # of an output's shape; those of operators are collected
        raise LoweringError(str(reason)) from reason


def _shapes(graph: SpikingGraph, other: SpikingGraph | None = None) -> dict[fx.Node, Any]:
    """The shapes of all nodes; with the same graph at batch size 2 and 3, free dimensions are those that differ."""
    twins = zip(graph.nodes, (graph if other is None else other).nodes, strict=True)
    return {node: _shape(node, node.meta.get("val"), twin.meta.get("val")) for node, twin in twins if node.op != "output"}


def _shape(node: fx.Node, value: Any, other: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_shape(node, a, b) for a, b in zip(value, other, strict=True))
    if not isinstance(value, Tensor):
        return ()
    return tuple(_dim(node, int(a), int(b)) for a, b in zip(value.shape, other.shape, strict=True))


def _dim(node: fx.Node, at_two: int, at_three: int) -> int | Batch:
    if at_two == at_three:
        return at_two
    if at_two != 2 * (at_three - at_two):
        raise LoweringError(
            f"{describe(node)}: a dimension is {at_two} at batch 2 and {at_three} at batch 3; build with a fixed batch size"
        )
    return Batch(at_three - at_two)


class _Lowering:
    def __init__(self, graph: SpikingGraph, shapes: dict[fx.Node, Any], *, dynamic: bool) -> None:
        self.graph, self.dynamic = graph, dynamic
        self.inputs = [replace(s, shape=_free(shapes[n])) for s, n in zip(graph.inputs, self._placeholders(graph), strict=True)]
        reserved = [s.name for s in (*graph.inputs, *graph.outputs)]
        for layer in graph.neurons:
            steps = range(graph.time.steps)
            reserved += [f"{layer.name}.spikes", *(f"{layer.name}.{kind}.{t}" for kind in ("spikes", "membrane") for t in steps)]
        self.builder = Builder(shapes, reserved)
        if dynamic:
            carriers = [(s.name, s.batch_dim) for s in self.inputs if s.batch_dim is not None]
            self.builder.batch_input = carriers[0] if carriers else None
        self.values: dict[fx.Node, Any] = {}
        self.steps: dict[fx.Node, Steps] = {}
        self.spikes: dict[fx.Node, Value] = {}
        self.problems: list[str] = []
        self.tensors_seen: set[str] = set()

    @staticmethod
    def _placeholders(graph: SpikingGraph) -> list[fx.Node]:
        return [n for n in graph.nodes if n.op == "placeholder"]

    def run(self) -> Lowered:
        for node, spec in zip(self._placeholders(self.graph), self.inputs, strict=True):
            self.values[node] = self.builder.value(spec.name, self.builder.shape(node), normal(_dtype(spec)))
        for node in self.graph.nodes:
            if node.op in ("get_attr", "call_function"):
                self.values[node] = self._value(node)
                self._note_readers(node)
        if self.problems:
            raise UnsupportedOperatorError(
                "no ONNX translation for:\n" + "\n".join(f"  {p}" for p in self.problems) + "\n"
                "Write these parts with other operators, or remove them from what is converted."
            )
        outputs = self.graph.output_nodes
        names = [self._output(self.values[n], spec.name) for n, spec in zip(outputs, self.graph.outputs, strict=True)]
        layers = tuple(self._layer(k) for k in range(len(self.graph.neurons)))
        for tensor, spec in zip(names, self.graph.outputs, strict=True):
            self.builder.rename(tensor, spec.name)
        return self._finish(outputs, layers)

    # -- nodes -------------------------------------------------------------------------------------------------------------

    def _value(self, node: fx.Node) -> Any:
        builder = self.builder
        builder.context = node.name
        if node.op == "get_attr":
            tensor = self.graph.constant(node)
            assert tensor is not None
            return builder.constant(tensor, str(node.target))
        if node.target is operator.getitem:
            return self.values[node.all_input_nodes[0]][int(str(node.args[1]))]
        try:
            return self._neuron(node) if is_op(node, LIF, LIF_STEP) else self._operator(node)
        except Refusal as reason:
            self.problems.append(f"{describe(node)}: {reason}")
        return self._stand_in(node)

    def _note_readers(self, node: fx.Node) -> None:
        """Tells the builder whether the tensor of this node, which may be a view of another's, has one reader."""
        value = self.values[node]
        tensors = {v.tensor for v in (value if isinstance(value, tuple | list) else [value]) if isinstance(v, Value) and v.tensor}
        for tensor in tensors:
            if tensor not in self.tensors_seen and len(node.users) == 1:
                self.builder.private.add(tensor)
            elif len(node.users) > 1:
                self.builder.private.discard(tensor)
            self.tensors_seen.add(tensor)

    def _operator(self, node: fx.Node) -> Any:
        translation = TRANSLATIONS.get(node.target)
        if translation is None:
            raise Refusal(f"the operator {node.target} is not known")
        if (folded := self._folded(node)) is not None:
            return folded
        given = {k: fx.node.map_arg(v, lambda n: self.values[n]) for k, v in arguments(node).items()}
        return translation(self.builder, node, **given)

    def _folded(self, node: fx.Node) -> Any:
        """The result of an operator on constants, computed here in float64, unless it is much larger than they are."""
        sources = [self.values[n] for n in node.all_input_nodes]
        if not all(isinstance(v, Value) and v.constant is not None for v in sources) or not isinstance(node.meta["val"], Tensor):
            return None
        if any(isinstance(d, Batch) for d in self.builder.shape(node)):
            return None
        if node.meta["val"].numel() > max(_FOLD_LIMIT, *(v.constant.numel() for v in sources), 0):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self.values[n].constant)
        with torch.no_grad():
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        title = sources[0].title if len(sources) == 1 else ""
        return self.builder.constant(result, title)

    def _neuron(self, node: fx.Node) -> Any:
        given = {k: fx.node.map_arg(v, lambda n: self.values[n]) for k, v in arguments(node).items()}
        one = lower_lif if is_op(node, LIF) else lower_step
        values, self.steps[node] = one(self.builder, given, outputs_used(node))
        assert values[0] is not None
        self.spikes[node] = values[0]
        return values

    def _stand_in(self, node: fx.Node) -> Any:
        """Something with the right shape, so that the rest of the graph is looked at too and every problem found at once."""
        value, shape = node.meta["val"], self.builder.shapes[node]

        def one(v: Any, s: Shape) -> Any:
            return self.builder.value(self.builder.fresh(), s, normal(v.dtype)) if isinstance(v, Tensor) else None

        return (
            tuple(one(v, s) for v, s in zip(value, shape, strict=True)) if isinstance(value, tuple | list) else one(value, shape)
        )

    # -- what the model shows ----------------------------------------------------------------------------------------------

    def _output(self, value: Value, title: str) -> str:
        self.builder.context = title
        return self.builder.name(value)

    def _layer(self, k: int) -> NeuronLayer:
        """Names a layer's tensors. The steps of a chain that nothing stacks get a Concat that engines drop unless it is read."""
        info, builder = self.graph.neurons[k], self.builder
        builder.context = info.name
        found = [self.steps[node] for node in info.nodes]
        membrane = [h for steps in found for h in steps.membrane]
        if len(info.nodes) == 1:
            whole = self.spikes[info.nodes[0]].tensor
        else:
            whole = builder.joined([self.spikes[node] for node in info.nodes]).tensor
        builder.rename(whole, f"{info.name}.spikes")
        for t, h in enumerate(membrane):
            builder.rename(h, f"{info.name}.membrane.{t}")
        for t, s in enumerate(s for steps in found for s in steps.spikes):
            if len(membrane) > 1:
                builder.rename(s, f"{info.name}.spikes.{t}")
        names = tuple(f"{info.name}.membrane.{t}" for t in range(len(membrane)))
        return NeuronLayer(info.name, info.neurons, info.shape, f"{info.name}.spikes", names)

    def _finish(self, outputs: Sequence[fx.Node], layers: tuple[NeuronLayer, ...]) -> Lowered:
        specs = [replace(s, shape=_free(self.builder.shape(n))) for s, n in zip(self.graph.outputs, outputs, strict=True)]
        nodes = self.builder.finished_nodes()
        used = {name for node in nodes for name in node.input}
        model = helper.make_model(
            helper.make_graph(
                nodes,
                self.graph.name,
                [
                    _info(s.name, self.builder.shape(n), _dtype(s))
                    for s, n in zip(self.inputs, self._placeholders(self.graph), strict=True)
                ],
                [_info(s.name, self.builder.shape(n), n.meta["val"].dtype) for s, n in zip(specs, outputs, strict=True)],
                [tensor for name, tensor in self.builder.initializers.items() if name in used],  # others were folded
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=_IR_VERSION,
            producer_name="snngraph",
            producer_version=snngraph.__version__,
        )
        try:
            onnx.checker.check_model(model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise LoweringError(f"the lowered model is not valid ONNX, which is a bug of snngraph: {error}") from error
        return Lowered(model, tuple(self.inputs), tuple(specs), layers)


def _dtype(spec: TensorSpec) -> torch.dtype:
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _free(shape: Iterable[int | Batch]) -> tuple[int | None, ...]:
    return tuple(None if isinstance(d, Batch) else d for d in shape)


def _info(name: str, shape: Shape, dtype: torch.dtype) -> onnx.ValueInfoProto:
    dims = [("N" if d.times == 1 else f"{d.times}N") if isinstance(d, Batch) else d for d in shape]
    return helper.make_tensor_value_info(name, onnx_type(normal(dtype)), dims)
