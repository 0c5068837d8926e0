"""The graph snngraph works on: an ``fx.GraphModule`` of core ATen and ``snn::`` operators, with its time axis and its neurons.

Its tensors are held in float64: a float32 weight is exact there, a pass that folds one into another loses nothing, and the
lowering rounds once. The batch size is free wherever the model allows it: shapes inside the graph are written with ``-1`` in
the dimension that carries the batch, and the sizes in ``node.meta["val"]`` are those of one sample batch size,
:attr:`SpikingGraph.batch`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from snngraph import integer, ops
from snngraph.errors import GraphError
from snngraph.types import TensorSpec

__all__ = ["NeuronLayerInfo", "Recognition", "SpikingGraph", "Time", "arguments", "is_op", "operand", "shape_of"]

LIF = torch.ops.snn.lif.default
LIF_STEP = torch.ops.snn.lif_step.default
LEVELS = integer.LEVELS
INTEGER_CONV = integer.INTEGER_CONV
INTEGER_LINEAR = integer.INTEGER_LINEAR
RESHAPE = torch.ops.aten.reshape.default  # the canonical view: unlike aten.view it takes any memory layout
_ARITHMETIC = tuple(getattr(torch.ops.aten, name).Tensor for name in ("add", "sub", "mul", "div"))
VIEWS = (RESHAPE, torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
OUTPUT_NAMES = ops.NeuronOutput._fields
TRAINING_ONLY = ("surrogate", "alpha", "detach_reset")  # arguments of a neuron that change gradients, not values


@dataclass(frozen=True, slots=True)
class Time:
    """The time axis of a graph: how many steps, and the axis that holds them on every input (``None`` on a static one)."""

    steps: int
    dims: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Recognition:
    """What became of one neuron of the model.

    Args:
        path: its module path, or source line where it is no module.
        kind: its class, or how it was found.
        library: the library it comes from, with version; empty for the model's own code.
        form: the canonical neuron it is, ``lif(decay=0.5, ...)``; empty where it is kept as ordinary operators.
        reason: why it is kept as operators.
    """

    path: str
    kind: str
    library: str = ""
    form: str = ""
    reason: str = ""

    def __str__(self) -> str:
        what = f"{self.path or 'the model'}: {self.kind}" + (f" ({self.library})" if self.library else "")
        return f"{what} = {self.form}" if self.form else f"{what}, kept as operators: {self.reason}"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a graph besides its nodes and tensors; see :class:`SpikingGraph`."""

    inputs: tuple[TensorSpec, ...]
    time: Time
    batch: int
    free_batch: bool = True
    example_batch: int = 1
    name: str = "model"
    notes: tuple[str, ...] = ()
    history: tuple[str, ...] = ()
    output_batch_dims: tuple[int | None, ...] | None = None
    dtype: torch.dtype = torch.float64
    output_names: tuple[str, ...] = ()
    recognitions: tuple[Recognition, ...] = ()


@dataclass(frozen=True, slots=True)
class NeuronLayerInfo:
    """One layer of neurons.

    Args:
        name: the neuron module's path in the model; ``#2`` and so on tell apart several uses of one module.
        nodes: one ``snn::lif`` node, or the chain of its ``snn::lif_step`` nodes in the order of time.
        shape: one sample's layer, without time and batch.
    """

    name: str
    nodes: tuple[fx.Node, ...]
    shape: tuple[int, ...]

    @property
    def neurons(self) -> int:
        """The number of neurons of one sample."""
        return int(torch.Size(self.shape).numel())


def is_op(node: object, *targets: Any) -> bool:
    """Whether ``node`` is a call of one of the operators ``targets``."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator call by name, defaults filled in. The names are those of the operator's schema."""
    target: Any = node.target
    given = zip((a.name for a in target._schema.arguments), node.args, strict=False)
    return {**defaults_of(target), **dict(given), **node.kwargs}


def defaults_of(target: Any) -> dict[str, Any]:
    """The arguments of an operator that have a default, with it."""
    return {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}


def operand(node: object, k: int = 0) -> Any:
    """The ``k``-th positional argument of a node; ``Any``, because fx's own type is a union of everything."""
    if not isinstance(node, fx.Node):
        raise GraphError(f"{node!r} is no node: it has no operands")
    return node.args[k]


def shape_of(node: object) -> tuple[int, ...]:
    """The shape of a node's single output, at the graph's sample batch size."""
    value = node.meta["val"] if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        raise GraphError(f"{node} is not one tensor")
    return tuple(value.shape)


def origin_of(node: fx.Node) -> dict[str, Any]:
    """What a node's ``meta`` tells of where it comes from: everything but its value. For the node that takes its place."""
    return {k: v for k, v in node.meta.items() if k != "val"}


def previous_step(node: fx.Node) -> fx.Node | None:
    """The ``lif_step`` that left the membrane potential a neuron starts from, if one did."""
    state = arguments(node)["v"]
    if not is_op(state, operator.getitem):
        return None
    source: fx.Node = operand(state)
    return source if is_op(source, LIF_STEP) and operand(state, 1) == OUTPUT_NAMES.index("v") else None


class SpikingGraph:
    """A captured spiking network.

    Attributes:
        module: the ``fx.GraphModule``. Calling it casts floating inputs to the type of its tensors (float64 unless changed).
        facts: everything else that is known.
    """

    def __init__(self, graph: fx.Graph, tensors: Mapping[str, Tensor], facts: Facts, *, inferred: bool = False) -> None:
        used = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        self.module = fx.GraphModule({k: t for k, t in tensors.items() if k in used}, graph, class_name="SpikingModule")
        self.module.register_forward_pre_hook(self._cast_inputs)
        self.facts = facts
        self._fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._inferred: tuple[_Fingerprint, list[Any]] | None = None  # by what, and the values it gave
        self._batch_dims: tuple[_Fingerprint, dict[fx.Node, int | None]] | None = None
        if not inferred:
            self.infer()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The specification of every input, in the layout the model has."""
        return self.facts.inputs

    @property
    def time(self) -> Time:
        """The time axis."""
        return self.facts.time

    @property
    def batch(self) -> int:
        """The batch size of the shapes in ``node.meta["val"]``."""
        return self.facts.batch

    @property
    def free_batch(self) -> bool:
        """Whether the graph runs at any batch size; otherwise only at :attr:`batch`, for the reason among the notes."""
        return self.facts.free_batch

    @property
    def name(self) -> str:
        """The model's class name."""
        return self.facts.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What the capture found worth telling."""
        return self.facts.notes

    @property
    def recognitions(self) -> tuple[Recognition, ...]:
        """What became of every neuron of the model: recognised as what, or kept as operators and why."""
        return self.facts.recognitions

    @property
    def history(self) -> tuple[str, ...]:
        """The passes that made this graph, in order, with their options."""
        return self.facts.history

    # -- running -----------------------------------------------------------------------------------------------------------

    def __call__(self, *inputs: Tensor) -> Any:
        """Runs the graph; floating inputs are cast to the graph's type. Outputs as the model gives them."""
        with torch.no_grad():
            return self.module(*inputs)

    def to(self, dtype: torch.dtype) -> SpikingGraph:
        """A copy whose tensors have ``dtype``; the 0-d numbers of neurons keep their digits."""
        mapping: dict[fx.Node, fx.Node] = {}
        graph = self._copy_of_graph(mapping)
        for node in graph.nodes:
            kind = node.kwargs.get("dtype")
            if isinstance(kind, torch.dtype) and kind.is_floating_point:
                node.kwargs = {**node.kwargs, "dtype": dtype}
            if is_op(node, *_ARITHMETIC) and node.meta["val"].is_floating_point():
                _widen(graph, node, dtype)
        result = self._derived(graph, {k: _cast(t, dtype) for k, t in self.tensors().items()}, dtype)
        known = self.known_batch_dims()
        if known is not None:
            result.keep_batch_dims({mapping[node]: dim for node, dim in known.items() if node in mapping})
        return result

    def _cast_inputs(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Follows ``module.double()`` and ``module.float()`` too."""
        kinds = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() and t.dim()}
        dtype = kinds.pop() if len(kinds) == 1 else self.dtype
        return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)

    def example_inputs(self, batch: int | None = None) -> list[Tensor]:
        """Uninitialised inputs of the graph's shapes, at the sample batch size or another."""
        size = self.batch if batch is None else batch
        shapes = [tuple(size if d == s.batch_dim else int(n or 0) for d, n in enumerate(s.shape)) for s in self.inputs]
        dtype = self.dtype
        return [
            torch.empty(shape, dtype=dtype if s.dtype.startswith("float") else getattr(torch, s.dtype))
            for shape, s in zip(shapes, self.inputs, strict=True)
        ]

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the graph's tensors."""
        return self.facts.dtype

    # -- looking -----------------------------------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph:
        """The ``fx.Graph``."""
        return self.module.graph

    @property
    def nodes(self) -> Iterator[fx.Node]:
        """The nodes, in order."""
        return iter(list(self.module.graph.nodes))

    @property
    def output_nodes(self) -> tuple[fx.Node, ...]:
        """The nodes whose values the graph returns."""
        return tuple(a for a in pytree.tree_leaves(self.graph.output_node().args) if isinstance(a, fx.Node))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs; time and batch axes are those that carry ``T`` steps and the batch."""
        return _output_specs(self)

    @property
    def live_nodes(self) -> set[fx.Node]:
        """The nodes that some output depends on."""
        found: set[fx.Node] = set()
        stack = [self.graph.output_node()]
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack.extend(node.all_input_nodes)
        return found

    @property
    def neurons(self) -> tuple[NeuronLayerInfo, ...]:
        """The layers of neurons, in the order in which they first run."""
        chains: dict[str, list[fx.Node]] = {}
        for node in self.nodes:
            if is_op(node, LIF, LIF_STEP):
                chains.setdefault(node.meta.get("neuron", node.name), []).append(node)
        return tuple(
            NeuronLayerInfo(name, tuple(nodes), shape_of(operand(nodes[0]))[2 if is_op(nodes[0], LIF) else 1 :])
            for name, nodes in chains.items()
        )

    def tensors(self) -> dict[str, Tensor]:
        """The graph's constant tensors by name."""
        return {**dict(self.module.named_parameters()), **dict(self.module.named_buffers())}

    def constant(self, node: object) -> Tensor | None:
        """The value of a ``get_attr`` node, or ``None`` for anything else."""
        if not (isinstance(node, fx.Node) and node.op == "get_attr"):
            return None
        holder: Any = self.module
        for part in str(node.target).split("."):
            holder = getattr(holder, part)
        assert isinstance(holder, Tensor)
        return holder

    def number(self, node: object) -> float | None:
        """The value of a plain number or of a constant with one element, else ``None``."""
        if isinstance(node, bool | int | float):
            return float(node)
        tensor = self.constant(node)
        return float(tensor) if tensor is not None and tensor.numel() == 1 and tensor.dim() == 0 else None

    def format(self) -> str:
        """The graph as stable text (the language of :mod:`snngraph.format`)."""
        from snngraph.format import format_graph

        return format_graph(self)

    def check(self) -> None:
        """Checks the invariants of the representation.

        Raises:
            GraphCheckError: the first one that is broken, with the equations around it.
        """
        from snngraph.check import check_graph

        check_graph(self)

    def __repr__(self) -> str:
        layers = self.neurons
        count = sum(1 for node in self.nodes if node.op == "call_function" and node.target is not operator.getitem)
        return f"<SpikingGraph {self.name}: {count} operators, {len(layers)} neuron layers, {self.time.steps} steps>"

    # -- changing ----------------------------------------------------------------------------------------------------------

    def copy(self) -> SpikingGraph:
        """A copy to edit: its own nodes, the same tensors."""
        mapping: dict[fx.Node, fx.Node] = {}
        result = SpikingGraph(self._copy_of_graph(mapping), self.tensors(), self.facts, inferred=True)
        fingerprint = result._fingerprint()
        if self.is_inferred():
            result._inferred = (fingerprint, [node.meta.get("val") for node in result.nodes])
        known = self.known_batch_dims()
        if known is not None:
            result._batch_dims = (fingerprint, {mapping[node]: dim for node, dim in known.items() if node in mapping})
        return result

    def with_history(self, entry: str) -> SpikingGraph:
        """This graph, with one more entry in its history."""
        self.facts = replace(self.facts, history=(*self.history, entry))
        return self

    def add_tensor(self, name: str, tensor: Tensor) -> fx.Node:
        """A new ``get_attr`` node (at the current insertion point) for ``tensor``, under ``name`` or, if taken, ``name_1`` ..."""
        taken = self.tensors()
        base = name.replace(".", "_") if any(k.startswith(name + ".") or name.startswith(k + ".") for k in taken) else name
        unique, k = base, 0
        while unique in taken or hasattr(self.module, unique):
            k += 1
            unique = f"{base}_{k}"
        holder: torch.nn.Module = self.module
        *path, leaf = unique.split(".")
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, torch.nn.Module())
            holder = getattr(holder, part)
        holder.register_buffer(leaf, tensor)
        node = self.graph.get_attr(unique)
        node.meta["val"] = self._fake_mode.from_tensor(tensor)
        return node

    def finish(self) -> SpikingGraph:
        """To be called after edits: removes dead nodes and tensors, sorts the nodes, recompiles, and infers all shapes anew.

        Nodes may have been put before what they use; their order is kept otherwise.
        """
        return self._derived(_sorted(self.graph, self.live_nodes), self.tensors())

    def infer(self) -> None:
        """Recomputes ``node.meta["val"]`` (shapes and types) of every node from the inputs.

        Raises:
            GraphError: an operator does not accept its arguments.
        """
        inputs = [self._fake_mode.from_tensor(x) for x in self.example_inputs()]
        _Inference(self.module, self._fake_mode).run(*inputs)
        self._inferred = (self._fingerprint(), [node.meta.get("val") for node in self.nodes])
        if self.facts.output_batch_dims is None:
            self.facts = replace(self.facts, output_batch_dims=_output_batch_dims(self))

    def is_inferred(self) -> bool:
        """Whether every recorded shape is what :meth:`infer` gave, and nothing was changed since."""
        if self._inferred is None or not _same(self._inferred[0], self._fingerprint()):
            return False
        return all(value is node.meta.get("val") for value, node in zip(self._inferred[1], self.nodes, strict=True))

    def known_batch_dims(self) -> dict[fx.Node, int | None] | None:
        """What :func:`snngraph.analysis.batch.batch_dims` found, if nothing was changed since."""
        known = self._batch_dims
        return dict(known[1]) if known is not None and _same(known[0], self._fingerprint()) else None

    def keep_batch_dims(self, dims: Mapping[fx.Node, int | None]) -> None:
        """Keeps them for :meth:`known_batch_dims`."""
        self._batch_dims = (self._fingerprint(), dict(dims))

    def _fingerprint(self) -> _Fingerprint:
        """Everything that shapes depend on; a changed node has new arguments, as fx's own are immutable."""
        tensors = self.tensors()
        parts: _Fingerprint = [self.inputs, self.batch, self.dtype]
        for node in self.module.graph.nodes:
            tensor = tensors.get(node.target) if node.op == "get_attr" else None
            parts += (node, node.target, node.args, node.kwargs, *(() if tensor is None else (tensor,)))
        return parts

    def _copy_of_graph(self, mapping: dict[fx.Node, fx.Node] | None = None) -> fx.Graph:
        graph = fx.Graph()
        mapping = {} if mapping is None else mapping
        result = graph.graph_copy(self.graph, mapping)
        graph.output(result)
        for old, new in mapping.items():
            new.meta = dict(old.meta)
        return graph

    def _derived(self, graph: fx.Graph, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> SpikingGraph:
        return SpikingGraph(graph, tensors, replace(self.facts, dtype=dtype or self.dtype))

    def at_batch(self, batch: int) -> SpikingGraph:
        """A copy whose inferred shapes are those of another batch size.

        Raises:
            GraphError: the model fixes its batch size.
        """
        if batch != self.batch and not self.free_batch:
            raise GraphError(f"this model runs at batch {self.batch} only: {' '.join(self.notes)}")
        shapes = (tuple(batch if d == s.batch_dim else n for d, n in enumerate(s.shape)) for s in self.inputs)
        inputs = tuple(replace(s, shape=shape) for s, shape in zip(self.inputs, shapes, strict=True))
        return SpikingGraph(self._copy_of_graph(), self.tensors(), replace(self.facts, inputs=inputs, batch=batch))


_Fingerprint: TypeAlias = list[Any]


def _same(a: _Fingerprint, b: _Fingerprint) -> bool:
    """By identity: equal arguments may differ in type (1, 1.0 and True), the same ones can not."""
    return len(a) == len(b) and all(x is y or (type(x) is int and x == y) for x, y in zip(a, b, strict=True))


def _sorted(graph: fx.Graph, live: set[fx.Node]) -> fx.Graph:
    """The graph of the live nodes and all inputs, every node after its own inputs."""
    result, mapping = fx.Graph(), dict[fx.Node, fx.Node]()
    for root in (n for n in graph.nodes if n in live or n.op == "placeholder"):
        stack = [root]
        while stack:
            waiting = [n for n in stack[-1].all_input_nodes if n not in mapping]
            if waiting:
                stack.extend(waiting)
                continue
            node = stack.pop()
            if node not in mapping:
                mapping[node] = result.node_copy(node, mapping.__getitem__)
    return result


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and (tensor.dim() or tensor.dtype != torch.float64) else tensor


def _widen(graph: fx.Graph, node: fx.Node, dtype: torch.dtype) -> None:
    """Arithmetic of integers or truth values with a number, ``(x > 0) * 1.0``, gives PyTorch's default type: it is told ours."""
    operands = [n for n in node.args if isinstance(n, fx.Node)]
    if any(n.meta["val"].is_floating_point() for n in operands):
        return
    with graph.inserting_before(node):
        for n in operands:
            wide = graph.call_function(torch.ops.aten._to_copy.default, (n,), {"dtype": dtype})
            wide.meta = {**origin_of(node), "val": n.meta["val"].to(dtype)}
            node.replace_input_with(n, wide)


class _Inference(fx.Interpreter):
    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self.mode = mode

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            value: Any = self.mode.from_tensor(self.fetch_attr(str(n.target)))
        else:
            try:
                with self.mode:
                    value = super().run_node(n)
            except Exception as error:
                raise GraphError(f"{describe(n)} does not accept its arguments: {error}") from error
        if n.op != "output":
            n.meta["val"] = value
        return value


def describe(node: fx.Node) -> str:
    """An operator call with the shapes of its inputs and the module and source line it comes from, for messages."""

    def show(a: Any) -> str:
        if isinstance(a, fx.Node):
            value = a.meta.get("val")
            return f"{a.name}{list(value.shape)}" if isinstance(value, Tensor) else a.name
        return str(a)

    name = getattr(node.target, "__name__", str(node.target))
    text = f"{node.name} = {name}({', '.join(show(a) for a in (*node.args, *node.kwargs.values()))})"
    place = " ".join(filter(None, (module_path(node) and f"in module {module_path(node)!r}", source_line(node))))
    return f"{text} [{place}]" if place else text


def module_path(node: fx.Node) -> str:
    """The path of the module in whose forward the node was made, or an empty string."""
    return str(node.meta.get("module_path", ""))


def source_line(node: fx.Node) -> str:
    """``file:line`` of the model's code that made the node, or an empty string."""
    return str(node.meta.get("source", ""))


def _output_specs(graph: SpikingGraph) -> tuple[TensorSpec, ...]:
    from snngraph.analysis.time import has_time_at

    taken = {spec.name for spec in graph.inputs}
    specs = []
    for k, (node, batch_dim) in enumerate(zip(graph.output_nodes, graph.facts.output_batch_dims or (), strict=True)):
        value = node.meta["val"]
        time_dim = next((d for d in range(value.dim()) if d != batch_dim and has_time_at(graph, node, d)), None)
        dtype = "float32" if value.is_floating_point() else str(value.dtype).removeprefix("torch.")
        given = graph.facts.output_names[k] if k < len(graph.facts.output_names) else ""
        name = given or (f"output_{k}" if k else "output")
        while name in taken:
            name += "_"
        taken.add(name)
        specs.append(TensorSpec(name, tuple(value.shape), dtype, time_dim, batch_dim))
    return tuple(specs)


def _output_batch_dims(graph: SpikingGraph) -> tuple[int | None, ...]:
    from snngraph.analysis.batch import batch_dims

    if graph.free_batch:
        dims = batch_dims(graph)
        return tuple(dims[node] for node in graph.output_nodes)
    return tuple(next((d for d, n in enumerate(shape_of(node)) if n == graph.batch), None) for node in graph.output_nodes)
