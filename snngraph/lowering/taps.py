"""Spikes and membrane potentials of a lowered model made visible, and its layers cut apart.

:func:`tap` adds outputs: every layer's spikes and membrane as the model computes them by itself. :func:`cut_at_spikes` also feeds
every layer from outside: what reads a layer's spikes reads a new input instead, so one run gives the answer of each layer to
spikes that are known to be right, whatever the layers before it do. A neuron's own reset keeps reading the neuron's own spike.

Both work on the ONNX model alone, by the tensor names in :class:`~snngraph.types.NeuronLayer`, and on one habit of the lowering:
the nodes made for one operator of the graph are named ``operator``, ``operator.1`` and so on. They change no arithmetic; that a
runtime may fuse a model with more outputs in another way is for the caller to measure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from snngraph.errors import LoweringError
from snngraph.types import NeuronLayer

__all__ = ["add_outputs", "cut_at_spikes", "forced_name", "membrane_name", "tap", "threshold_name"]

_Shape = list[int | str | None]
_VIEWS = ("Identity", "Reshape")


def tap(model: ModelProto, layers: Sequence[NeuronLayer]) -> ModelProto:
    """The same model with every layer's spikes and its :func:`membrane_name` among its outputs, time-major ``[T*N, *shape]``.

    The model's own outputs stay first and in their order. Spikes that are an output already are not repeated. (One output for
    the T membrane potentials, because OpenVINO then fuses a layer's steps as it does without; T outputs split them, and that
    changes bits.)

    Raises:
        LoweringError: the model holds no tensor of a name that a layer gives, or has one of a name to be made.
    """
    result, shapes = _copy(model, layers), _shapes(model)
    _tap(result, layers, shapes)
    return result


def cut_at_spikes(model: ModelProto, layers: Sequence[NeuronLayer]) -> ModelProto:
    """:func:`tap`, with a new input :func:`forced_name` in place of each layer's spikes, float32 ``[T*N, *shape]``.

    The model's own outputs are then those that follow from the forced spikes; an output that is itself a layer's spikes stays
    what the layer computes. A layer whose spikes nobody reads gets no input, so every new input is used.

    Raises:
        LoweringError: as for :func:`tap`, or no node of the model makes a spike tensor.
    """
    result, shapes = _copy(model, layers), _shapes(model)
    cuts = [_Cut(result.graph, layer) for layer in layers]  # all of them look at the model as it was
    for cut in cuts:
        if cut.apply(name := forced_name(cut.layer)):
            shape = shapes.get(cut.layer.spikes) or ["time_and_batch", *cut.layer.shape]
            result.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    _tap(result, layers, shapes)
    return result


def forced_name(layer: NeuronLayer) -> str:
    """The name of the input that :func:`cut_at_spikes` makes for a layer."""
    return f"{layer.spikes}.forced"


def membrane_name(layer: NeuronLayer) -> str:
    """The name of the output that :func:`tap` and :func:`cut_at_spikes` make of a layer's T membrane potentials."""
    return f"{layer.spikes}.membrane"


def threshold_name(model: ModelProto, layer: NeuronLayer) -> str | None:
    """The tensor that the layer's membrane is compared with in the first step, or ``None`` where there is no such comparison."""
    makers = {name: node for node in model.graph.node for name in node.output}
    membrane = _origin(makers, layer.membrane[0])
    readers = [node for node in model.graph.node if node.input and node.input[0] in (membrane, layer.membrane[0])]
    for kinds in (("GreaterOrEqual", "Greater"), ("Div",)):
        for node in readers:
            if node.op_type in kinds:
                return str(node.input[1])
    return None


def add_outputs(model: ModelProto, names: Iterable[str]) -> None:
    """Makes float32 tensors outputs of the model, in place, unless they are already."""
    present, shapes = {value.name for value in model.graph.output}, _shapes(model)
    for name in dict.fromkeys(names):
        if name not in present:
            model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes.get(name)))


# -- the parts -----------------------------------------------------------------------------------------------------------------


def _copy(model: ModelProto, layers: Sequence[NeuronLayer]) -> ModelProto:
    defined = _defined(model)
    for layer in layers:
        if missing := [name for name in (layer.spikes, *layer.membrane) if name not in defined]:
            raise LoweringError(f"layer {layer.name!r}: the model holds no tensor {', '.join(map(repr, missing))}")
        if clash := {forced_name(layer), membrane_name(layer)} & defined:
            raise LoweringError(
                f"layer {layer.name!r}: the model has a tensor {clash.pop()!r} already; tap the model as it was lowered"
            )
    result = ModelProto()
    result.CopyFrom(model)
    return result


def _defined(model: ModelProto) -> set[str]:
    graph = model.graph
    return {
        *(name for node in graph.node for name in node.output if name),
        *(value.name for value in graph.input),
        *(value.name for value in graph.initializer),
    }


def _shapes(model: ModelProto) -> dict[str, _Shape]:
    """The shape of every tensor for which ONNX can infer it. A static model stays static, so that a runtime compiles it alike."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found: dict[str, _Shape] = {}
    for value in (*inferred.value_info, *inferred.input, *inferred.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            found[value.name] = [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims]
    return found


def _tap(model: ModelProto, layers: Sequence[NeuronLayer], shapes: dict[str, _Shape]) -> None:
    present = {value.name for value in model.graph.output}
    for layer in layers:
        name = membrane_name(layer)
        model.graph.node.append(helper.make_node("Concat", list(layer.membrane), [name], name=name, axis=0))
        shape = shapes.get(layer.spikes) or ["time_and_batch", *layer.shape]
        wanted = [name] if layer.spikes in present else [layer.spikes, name]
        model.graph.output.extend(helper.make_tensor_value_info(title, TensorProto.FLOAT, shape) for title in wanted)


def _origin(makers: dict[str, NodeProto], name: str) -> str:
    """The tensor that ``name`` is a view of."""
    while name in makers and makers[name].op_type in _VIEWS:
        name = str(makers[name].input[0])
    return name


def _operator(node: NodeProto) -> str:
    """The operator of the graph that a node was made for."""
    return str(node.name).partition(".")[0]


class _Cut:
    """Where one layer is cut: who reads its spikes, all steps in one tensor or step by step, apart from the layer itself."""

    def __init__(self, graph: GraphProto, layer: NeuronLayer) -> None:
        self.graph, self.layer = graph, layer
        makers = {name: node for node in graph.node for name in node.output}
        if layer.spikes not in makers:
            raise LoweringError(
                f"layer {layer.name!r}: its spikes {layer.spikes!r} are no node's output, so they can not be forced"
            )
        maker = makers[layer.spikes]
        joins = maker.op_type == "Concat" and len(maker.input) == len(layer.membrane) > 1
        steps = list(maker.input) if joins else []
        inside = {_operator(makers[origin]) for s in steps or [layer.spikes] if (origin := _origin(makers, s)) in makers}
        self.whole = list(_readers(graph, layer.spikes, [] if joins else inside))
        self.steps = [[reader for reader in _readers(graph, s, inside) if reader[0] is not maker] for s in steps]

    def apply(self, forced: str) -> bool:
        """Makes the readers read ``forced``; says whether there are any."""
        for container, k in self.whole:
            _set(container, k, forced)
        if any(self.steps):
            names = [f"{forced}.{t}" for t in range(len(self.steps))]
            for name, readers in zip(names, self.steps, strict=True):
                for container, k in readers:
                    _set(container, k, name)
            split = helper.make_node("Split", [forced], names, name=f"{forced}.steps", axis=0, num_outputs=len(names))
            self.graph.node.insert(0, split)
        return bool(self.whole or any(self.steps))


_Reader = tuple[NodeProto | onnx.ValueInfoProto, int]


def _set(reader: NodeProto | onnx.ValueInfoProto, k: int, name: str) -> None:
    if isinstance(reader, NodeProto):
        reader.input[k] = name
    else:
        reader.name = name


def _readers(graph: GraphProto, name: str, inside: Iterable[str], nested: bool = False) -> Iterator[_Reader]:
    """The operands that are ``name``, in nested graphs too, apart from those of nodes made for the operators ``inside``."""
    for node in graph.node:
        if nested or _operator(node) not in inside or not node.name:
            yield from ((node, k) for k, operand in enumerate(node.input) if operand == name)
        for inner in _subgraphs(node):
            if name not in {made for n in inner.node for made in n.output} | {value.name for value in inner.input}:
                yield from _readers(inner, name, (), nested=True)
                yield from ((value, 0) for value in inner.output if value.name == name)  # a branch that hands it through


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
