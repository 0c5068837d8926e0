"""``to_nir``: a graph as NIR (Neuromorphic Intermediate Representation, https://neuroir.org).

The graph is read operator by operator. Every value is a sum of NIR nodes, each perhaps some steps late, over the whole sequence or
at one step. The T copies of a recurrent network become one node: what feeds it is read off the last of them, and the others have
to agree. What has no NIR node is refused with the module and the source line. The result is read back, and has to compute the same
before it is given out.
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

import snngraph
from snngraph.analysis.spikes import run_with_spikes
from snngraph.errors import NirExportError
from snngraph.frontends.nir import from_nir
from snngraph.frontends.nir_file import load_nir, write
from snngraph.frontends.nir_graph import components
from snngraph.frontends.nir_neurons import KEY, SCHEMA, Discretisation, InexpressibleError, equations, record_of
from snngraph.graph import (
    LIF,
    LIF_STEP,
    OUTPUT_NAMES,
    VIEWS,
    SpikingGraph,
    arguments,
    describe,
    is_op,
    module_path,
    operand,
    previous_step,
    shape_of,
)
from snngraph.passes.base import Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.passes.fold_batch_norm import FoldBatchNorm
from snngraph.runtime import artifact
from snngraph.types import TensorSpec

__all__ = ["ALLOWED", "to_nir"]

aten = torch.ops.aten

_TIES = 1e-6  # the share of neuron-steps that may sit on the threshold to the last bit
_NUMBERS = (
    *("decay", "threshold", "input_gain", "bias", "v_reset", "reset_amount", "gain"),
    *("syn_decay", "syn_gain", "floor"),
)

ALLOWED = ("soft reset", "delayed reset", "counts", "floor")
"""What NIR has no word for, and only snngraph's record in the metadata can say."""


def to_nir(
    source: SpikingGraph | nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float,
    integrator: str = "euler",
    allow: Collection[str] = (),
    example: Any = None,
    force: bool = False,
    **trace_options: Any,
) -> Any:
    """Writes a network as NIR.

    Batch norms are folded into the layers around them. Every neuron's parameters are NIR's, such that steps of ``dt`` give the same
    neuron; its very parameters, comparison, reset and first potential stand in the node's metadata, from which
    :func:`snngraph.from_nir` makes the same neuron again.

    Args:
        source: a graph, or a model that :func:`snngraph.trace` takes, with ``example``.
        path: a file to write, if any: whole, or not at all.
        dt: the length of a step, in the unit that the time constants shall have. Most tools expect 1e-4.
        integrator: ``"euler"`` or ``"exponential"``: what turns the neurons' decays into time constants.
        allow: which of ``"soft reset"``, ``"delayed reset"``, ``"counts"`` and ``"floor"`` may be written though NIR has no word for
            them: other tools will read a neuron with a hard reset, at once, that emits single spikes.
        example: an example input, for a model.
        force: replace a file that exists.
        **trace_options: for :func:`snngraph.trace`, with a model.

    Returns:
        The ``nir.NIRGraph``.

    Raises:
        NirExportError: NIR can not say a part of the network; the message names it.
        NirDiscretisationError: ``dt`` or ``integrator`` has no such value.
        ArtifactExistsError, ArtifactWriteError: the file can not be written; what stood there is untouched.
        NirNotInstalledError: the package ``nir`` is missing.
    """
    nir = load_nir()
    step = Discretisation(dt=dt, integrator=integrator)
    if unknown := sorted(set(allow) - set(ALLOWED)):
        raise NirExportError(f"allow has {unknown[0]!r}: expected some of {', '.join(map(repr, ALLOWED))}")
    if path is not None:
        artifact.check_destination(path, force)
    graph = _traced(source, example, trace_options)
    graph = Pipeline((Canonicalize(), FoldBatchNorm(), Canonicalize(), EliminateDead()), title="to_nir")(graph).graph
    reader = _Reader(graph, step, frozenset(allow), nir)
    result = reader.read()
    _compare(graph, result, reader.neurons, reader.layouts())
    if path is not None:
        write(path, result, force)
    return result


def _traced(source: SpikingGraph | nn.Module, example: Any, options: Mapping[str, Any]) -> SpikingGraph:
    if isinstance(source, SpikingGraph):
        if example is not None or options:
            raise NirExportError("example and the options of trace belong to a model; a graph was given")
        return source
    if example is None:
        raise NirExportError(f"a {type(source).__name__} is captured first: give example, an input for snngraph.trace")
    from snngraph.frontends.capture import trace

    return trace(source, example, **options)


def _compare(graph: SpikingGraph, result: Any, neurons: Mapping[str, str], layouts: Mapping[str, str]) -> None:
    """Reads ``result`` back and runs both on random inputs in float64.

    Raises:
        NirExportError: they differ.
    """
    again = from_nir(result)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in graph.example_inputs()]
    for x, spec in zip(inputs, graph.inputs, strict=True):
        x.select(spec.batch_dim or 0, 0).mul_(4.0)  # one sample that drives the net hard
    turned = [x.transpose(0, 1) if s.time_dim == 1 else x for x, s in zip(inputs, graph.inputs, strict=True)]
    (wanted, spikes), (found, others) = run_with_spikes(graph, inputs), run_with_spikes(again, turned)
    wanted = [y.transpose(0, 1) if layouts[n.name] == "NT" else y for y, n in zip(wanted, graph.output_nodes, strict=True)]
    differ = "the network that NIR's nodes make differs from this one"
    flips = 0
    for layer, name in neurons.items():
        a, b = spikes[layer], others[name][: len(spikes[layer])]  # steps that nothing reads are not in the graph
        flips += int((a != b).sum()) if a.shape == b.shape else a.numel()
    if flips > sum(s.numel() for s in spikes.values()) * _TIES:
        raise NirExportError(f"{differ}: {flips} spikes on a random input; a step of it is unlike the others")
    for k, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape or (not flips and not torch.allclose(a, b, rtol=1e-9, atol=1e-9)):
            raise NirExportError(f"{differ} in output {k} on a random input; a step of it is unlike the others")


# -- values --------------------------------------------------------------------------------------------------------------------

Terms: TypeAlias = frozenset[tuple[str, int]]
"""NIR nodes whose outputs are summed, and by how many steps each is late."""


@dataclass(frozen=True)
class _Value:
    """What a graph node holds: a sum of NIR nodes.

    Args:
        terms: the sum.
        shape: one sample's.
        step: the time step, or ``None``: all steps.
        layout: what stands before ``shape``: ``"TN"``, ``"NT"``, ``"flat"`` (both merged, time first); ``"N"`` at one step.
        dropped: how many of the last steps a slice has dropped.
    """

    terms: Terms
    shape: tuple[int, ...]
    step: int | None
    layout: str
    dropped: int = 0

    @property
    def leading(self) -> int:
        """The number of dimensions before ``shape``."""
        return 2 if self.layout in ("TN", "NT") else 1

    def at(self, step: int) -> _Value:
        """The same value, counted from a later step."""
        assert self.step is not None
        late = step - self.step
        if late < 0:
            raise _RefusalError("it reads a later step")
        return replace(self, terms=frozenset((name, d + late) for name, d in self.terms), step=step)


class _RefusalError(Exception):
    """Why an operator has no NIR node."""


class _UnknownError(Exception):
    """A value that is not among those of the last steps."""


class _Reader:
    """Reads a graph into NIR nodes and edges: once for the last steps, which decide, and once for all steps, which have to agree."""

    def __init__(self, graph: SpikingGraph, step: Discretisation, allow: frozenset[str], nir: Any) -> None:
        self.graph, self.step, self.allow, self.nir = graph, step, allow, nir
        self.steps = graph.time.steps
        self.nodes: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.feeds: dict[str, Terms] = {}
        self.neurons: dict[str, str] = {}  # the graph's layers, and their nodes
        self.values: dict[fx.Node, _Value] = {}
        self._made: dict[Any, str] = {}
        self._settled = False
        self._neuron_nodes: dict[fx.Node, str] = {}
        self._index: dict[fx.Node, tuple[fx.Node, int]] = {}
        self._last: dict[fx.Node, fx.Node] = {}
        for node in graph.nodes:
            if is_op(node, LIF_STEP):
                previous = previous_step(node)
                self._index[node] = (node, 0) if previous is None else (self._index[previous][0], self._index[previous][1] + 1)
                self._last[self._index[node][0]] = node

    def read(self) -> Any:
        """The NIR graph.

        Raises:
            NirExportError: the message names the operator.
        """
        if not self.graph.free_batch:
            raise NirExportError(f"NIR's shapes have no batch, and this network runs at batch {self.graph.batch} only")
        deciding = self._deciding()
        for node in self.graph.nodes:
            if node in deciding:
                self._visit(node)
        outputs = [self._output(n, k) for k, n in enumerate(self.graph.output_nodes)]
        result = self._graph(outputs)
        self._settled, self.values = True, {}
        for node in self.graph.nodes:
            if node.op in ("placeholder", "call_function"):
                self._visit(node)
        return result

    def _deciding(self) -> set[fx.Node]:
        """All that the outputs need, of steps the last alone; the neurons at the steps before it without what feeds them."""
        found: set[fx.Node] = {n for n in self.graph.nodes if n.op == "placeholder"}
        stack = list(self.graph.output_nodes)
        while stack:
            node = stack.pop()
            if node in found:
                continue
            found.add(node)
            if is_op(node, aten.stack.default):
                stack.append(operand(node)[-1])
            elif is_op(node, LIF_STEP):
                last = self._last[self._index[node][0]]
                stack += [operand(node)] if node is last else [last]
            else:
                stack += node.all_input_nodes
        return found

    def _visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.values[node] = self._input(node)
        if node.op != "call_function":
            return
        handler = _HANDLERS.get(node.target)
        try:
            if handler is None:
                raise _RefusalError("no NIR node does this")
            self.values[node] = handler(self, node)
        except _UnknownError:
            assert self._settled
        except _RefusalError as reason:
            if not self._settled:
                raise NirExportError(f"NIR can not say {describe(node)}: {reason}") from None

    def value(self, node: object) -> _Value:
        """The value of an operand.

        Raises:
            _RefusalError: it is a constant.
            _UnknownError: it is no value that the last steps have.
        """
        if isinstance(node, fx.Node) and node in self.values:
            return self.values[node]
        if self._settled:
            raise _UnknownError
        raise _RefusalError("a constant stands where NIR has a signal")

    # -- NIR nodes ---------------------------------------------------------------------------------------------------------

    def add(self, node: fx.Node | None, title: str, made: Any, shape: tuple[int, ...]) -> str:
        """A NIR node, named after the module that ``node`` comes from, or ``title``."""
        base = re.sub(r"/", "_", (node is not None and module_path(node)) or title)
        name, k = base, 1
        while name in self.nodes:
            k += 1
            name = f"{base}_{k}"
        self.nodes[name], self.shapes[name] = made, shape
        return name

    def layer(
        self, node: fx.Node, title: str, x: _Value, key: tuple[Any, ...], shape: tuple[int, ...], make: Callable[[], Any]
    ) -> _Value:
        """What a layer without state makes of ``x``: its node, once for all steps."""
        late = min(d for _, d in x.terms)
        terms = frozenset((name, d - late) for name, d in x.terms)
        known = (title, terms, *key)
        if known not in self._made:
            if self._settled:
                raise _UnknownError
            made = make()
            made.input_type, made.output_type = {"input": np.array(x.shape)}, {"output": np.array(shape)}
            self._made[known] = self.add(node, title, made, shape)
            self.feeds[self._made[known]] = terms
        return replace(x, terms=frozenset([(self._made[known], late)]), shape=shape)

    def scaled(self, node: fx.Node, x: _Value, factor: Any) -> _Value:
        """``x`` times a constant per neuron."""
        scale = np.broadcast_to(np.asarray(factor, dtype=np.float64), x.shape).copy()
        return self.layer(node, "scale", x, (scale.tobytes(),), x.shape, lambda: self.nir.Scale(scale))

    def constant(self, node: object, what: str) -> Tensor:
        """A constant operand.

        Raises:
            _RefusalError: the network computes it.
        """
        if isinstance(node, int | float):
            return torch.tensor(float(node), dtype=torch.float64)
        found = self.graph.constant(node)
        if found is None:
            raise _RefusalError(f"its {what} is computed by the network")
        return found.double()

    def per_sample(self, value: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """A constant as one sample sees it: without dimensions of time and batch.

        Raises:
            _RefusalError: it differs between steps or samples, or would change the shape.
        """
        extra = value.dim() - len(shape)
        if extra > 0:
            if any(n != 1 for n in value.shape[:extra]):
                raise _RefusalError(f"its {what} differs between steps or samples")
            value = value.reshape(value.shape[extra:])
        if any(a not in (1, b) for a, b in zip(reversed(value.shape), reversed(shape), strict=False)):
            raise _RefusalError(f"its {what} changes the shape")
        return value

    def neuron(self, node: fx.Node, first: fx.Node, uses: set[str], shape: tuple[int, ...]) -> str:
        """The NIR node of a neuron, made once for all its steps.

        Raises:
            _RefusalError: NIR has no such neuron.
        """
        if first in self._neuron_nodes:
            return self._neuron_nodes[first]
        parameters, v_init = self._parameters(first, shape)
        spiking = self._spikes(parameters, uses)
        try:
            kind, values = equations(parameters, shape, self.step, spiking=spiking)
        except InexpressibleError as reason:
            raise _RefusalError(str(reason)) from None
        record = record_of(parameters, v_init, self.step)
        made = getattr(self.nir, kind)(**values, metadata={KEY: record})
        name = self.add(node, str(node.meta.get("neuron", "neuron")), made, shape)
        self._neuron_nodes[first] = name
        if spiking:
            self.neurons[node.meta.get("neuron", node.name)] = name
        return name

    def _parameters(self, node: fx.Node, shape: tuple[int, ...], *, state: bool = True) -> tuple[dict[str, Any], float | Tensor]:
        """The neuron's parameters and, unless it is left out, the potential it starts with."""
        given = arguments(node)
        found: dict[str, Any] = {k: given[k] for k in ("fire", "reset", "delay", "emit")}
        for name in (*_NUMBERS, *(("v", "i") if state else ())):
            if given[name] is not None:
                value = self.per_sample(self.constant(given[name], name), shape, name)
                found[name] = float(value) if value.dim() == 0 else value
        if np.any(np.asarray(found.pop("i", 0.0)) != 0):
            raise _RefusalError("its synaptic current does not start at 0")
        v_init: float | Tensor = found.pop("v", 0.0)
        return found, v_init

    def _spikes(self, parameters: dict[str, Any], uses: set[str]) -> bool:
        """Whether its spikes are read, or its potential; refuses what NIR has no word for."""
        if "s" not in uses:
            if parameters["reset"] != "none" or parameters.get("floor") is not None:
                raise _RefusalError("its potential is read, and it resets or has a floor; LI and CubaLI have neither")
            parameters |= {"threshold": math.inf, "fire": ">", "delay": "none", "emit": "spike"}
            return False
        if len(uses) > 1:
            raise _RefusalError("its potential is read besides its spikes")
        if parameters["emit"] == "signed":
            raise _RefusalError("it emits signed spikes")
        present = {
            "soft reset": parameters["reset"] == "soft",
            "delayed reset": parameters["delay"] != "none",
            "counts": parameters["emit"] == "count",
            "floor": parameters.get("floor") is not None,
        }
        for what, there in present.items():
            if there and what not in self.allow:
                raise _RefusalError(
                    f"{what}: NIR has no word for it, and other tools would read another neuron; allow=({what!r},) writes it for "
                    "snngraph alone"
                )
        return True

    # -- inputs, outputs, edges --------------------------------------------------------------------------------------------

    def _input(self, node: fx.Node) -> _Value:
        spec = self.graph.inputs[[n for n in self.graph.nodes if n.op == "placeholder"].index(node)]
        if (spec.time_dim, spec.batch_dim) not in ((0, 1), (1, 0)):
            raise NirExportError(f"NIR's inputs are signals over time; {spec.name} is {_axes(spec)}: capture it as [T, N, ...]")
        shape = tuple(int(n or 0) for n in spec.shape[2:])
        if spec.name not in self.nodes:
            self.nodes[spec.name], self.shapes[spec.name] = self.nir.Input(np.array(shape)), shape
        return _Value(frozenset([(spec.name, 0)]), shape, None, "TN" if spec.time_dim == 0 else "NT")

    def _output(self, node: fx.Node, k: int) -> str:
        if node not in self.values:
            raise NirExportError(f"output {k} is a constant")
        value = self.values[node]
        if value.step is not None or value.layout == "flat" or value.dropped:
            raise NirExportError(f"NIR's outputs are signals over time; output {k} is not [T, N, ...]: {describe(node)}")
        name = self.add(None, "output", self.nir.Output(np.array(value.shape)), value.shape)
        self.feeds[name] = value.terms
        return name

    def layouts(self) -> dict[str, str]:
        """How time and batch stand in every output."""
        return {n.name: self.values[n].layout for n in self.graph.output_nodes}

    def _graph(self, outputs: list[str]) -> Any:
        plain = [(source, name) for name, terms in self.feeds.items() for source, _ in terms]
        place = {name: k for k, c in enumerate(components(list(self.nodes), plain)) for name in c}
        edges: list[tuple[str, str]] = []
        late: list[tuple[str, str]] = []
        for name, terms in self.feeds.items():
            for source, steps in sorted(terms):
                if steps == 1 and place[source] == place[name] and (source, 0) not in terms:
                    late.append((source, name))  # how recurrent connections are written
                elif steps:
                    source = self._delay(source, steps, edges)
                edges.append((source, name))
        inputs = [spec.name for spec in self.graph.inputs]
        record = {
            "schema": SCHEMA,
            "version": snngraph.__version__,
            "dt": self.step.step,
            "integrator": self.step.integrator,
            "time_steps": self.steps,
            "inputs": json.dumps(inputs),
            "outputs": json.dumps(outputs),
            "late_edges": json.dumps(late),
        }
        return self.nir.NIRGraph(self.nodes, edges, metadata={KEY: record}, type_check=False)

    def _delay(self, source: str, steps: int, edges: list[tuple[str, str]]) -> str:
        """A Delay after ``source``, made once."""
        known = ("delay", source, steps)
        if known not in self._made:
            shape = self.shapes[source]
            made = self.nir.Delay(np.full(shape, steps * self.step.step))
            self._made[known] = self.add(None, f"{source}_delay", made, shape)
            edges.append((source, self._made[known]))
        return self._made[known]

    def agree(self, node: fx.Node, t: int, found: _Value | None, terms: Terms) -> None:
        """Holds what step ``t`` reads against what the last one does.

        Raises:
            NirExportError: it reads something else. The first steps may: what is late is not there yet; running the network tells
                whether that is all.
        """
        reach = sum(d for feeds in self.feeds.values() for _, d in feeds)
        if t >= reach and (found is None or found.terms != terms):
            raise NirExportError(f"NIR's networks do the same at every step; step {t} of {describe(node)} is unlike the last")

    def step_of(self, node: fx.Node) -> tuple[fx.Node, int]:
        """The first step of a neuron, and which one ``node`` is."""
        return self._index[node]

    def is_last(self, node: fx.Node) -> bool:
        """Whether no later step of this neuron is read."""
        return self._last[self._index[node][0]] is node

    def uses(self, first: fx.Node) -> set[str]:
        """Which outputs of a neuron's steps are read, other than by its own next step."""
        found = set()
        for node, (start, _) in self._index.items():
            for item in node.users if start is first else ():
                if any(not (is_op(u, LIF_STEP) and previous_step(u) is node) for u in item.users):
                    found.add(OUTPUT_NAMES[operand(item, 1)])
        return found

    def same_parameters(self, node: fx.Node, first: fx.Node, shape: tuple[int, ...]) -> None:
        """Holds a step's parameters against the first's.

        Raises:
            NirExportError: they differ.
        """
        (a, _), (b, _) = (self._parameters(n, shape, state=False) for n in (node, first))
        if a.keys() != b.keys() or any(not np.array_equal(np.asarray(a[k]), np.asarray(b[k])) for k in a):
            raise NirExportError(f"NIR's neurons are the same at every step; {describe(node)} is unlike the first")

    @property
    def settled(self) -> bool:
        """Whether the last steps are read, and all are now held against them."""
        return self._settled


def _axes(spec: TensorSpec) -> str:
    return "static, without a time axis" if spec.time_dim is None else f"time at axis {spec.time_dim}, batch at {spec.batch_dim}"


# -- operators -----------------------------------------------------------------------------------------------------------------


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    """In float32 where that loses nothing."""
    single = value.float()
    return (single if torch.equal(single.double(), value) else value).numpy().copy()


def _key(*values: Any) -> tuple[Any, ...]:
    """What tells one layer's arguments from another's; equal tensors are one, whatever their names."""
    return tuple(
        (tuple(v.shape), hashlib.sha256(v.contiguous().numpy().tobytes()).digest()) if isinstance(v, Tensor) else repr(v)
        for v in values
    )


def _samples(x: _Value, node: fx.Node) -> tuple[int, ...]:
    """One sample's shape of a layer's result."""
    if x.dropped:
        raise _RefusalError("it runs on a part of the steps")
    return shape_of(node)[x.leading :]


def _linear(reader: _Reader, node: fx.Node) -> _Value:
    x = reader.value(operand(node))
    p = arguments(node)
    weight = reader.constant(p["weight"], "weight")
    bias = None if p["bias"] is None else reader.constant(p["bias"], "bias")
    if len(x.shape) != 1:
        raise _RefusalError(f"a linear layer of NIR takes vectors, not {list(x.shape)}")
    nir = reader.nir

    def make() -> Any:
        return nir.Linear(_array(weight)) if bias is None else nir.Affine(_array(weight), _array(bias))

    return reader.layer(node, "linear", x, _key(weight, bias), _samples(x, node), make)


def _convolution(reader: _Reader, node: fx.Node) -> _Value:
    x = reader.value(operand(node))
    p = arguments(node)
    weight = reader.constant(p["weight"], "weight")
    bias = torch.zeros(weight.shape[0]).double() if p["bias"] is None else reader.constant(p["bias"], "bias")
    rank = weight.dim() - 2
    if p["transposed"] or rank not in (1, 2) or len(x.shape) != rank + 1 or x.leading != 1:
        raise _RefusalError("NIR has convolutions in one and two dimensions, none transposed")
    windows = {name: _sizes(p[name], rank) for name in ("stride", "padding", "dilation")}

    def make() -> Any:
        if rank == 1:
            first = {name: sizes[0] for name, sizes in windows.items()}
            return reader.nir.Conv1d(x.shape[1], _array(weight), groups=p["groups"], bias=_array(bias), **first)
        return reader.nir.Conv2d(tuple(x.shape[1:]), _array(weight), groups=p["groups"], bias=_array(bias), **windows)

    return reader.layer(node, "conv", x, _key(weight, bias, windows, p["groups"]), _samples(x, node), make)


def _sizes(values: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(values) * (rank if len(values) == 1 else 1)


def _avg_pool(reader: _Reader, node: fx.Node) -> _Value:
    x = reader.value(operand(node))
    p = arguments(node)
    kernel, padding = _sizes(p["kernel_size"], 2), _sizes(p["padding"], 2)
    stride = _sizes(p["stride"], 2) if p["stride"] else kernel
    if p["ceil_mode"] or (any(padding) and not p["count_include_pad"]) or p["divisor_override"] not in (None, 1):
        raise _RefusalError("NIR's pooling rounds down, counts its padding, and divides by the kernel or not at all")
    return _pool(reader, node, x, kernel, stride, padding, summed=p["divisor_override"] == 1)


def _pool(
    reader: _Reader,
    node: fx.Node,
    x: _Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    summed: bool,
) -> _Value:
    if len(x.shape) != 3 or x.leading != 1:
        raise _RefusalError(f"NIR pools images [C, H, W], not {list(x.shape)}")
    sizes = [np.array(s) for s in (kernel, stride, padding)]
    shape = (x.shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[1:], kernel, stride, padding, strict=True)))
    kind = reader.nir.SumPool2d if summed else reader.nir.AvgPool2d
    return reader.layer(node, "sumpool" if summed else "avgpool", x, _key(kernel, stride, padding), shape, lambda: kind(*sizes))


def _mean(reader: _Reader, node: fx.Node) -> _Value:
    x = reader.value(operand(node))
    rank = len(x.shape) + x.leading
    over = {d % rank for d in arguments(node)["dim"] or range(rank)}
    if min(over) < x.leading:
        raise _RefusalError(
            "it sums over time or over the batch; NIR's outputs are signals over time: return those of every step"
        )
    if len(x.shape) != 3 or over != {rank - 1, rank - 2}:
        raise _RefusalError("NIR averages images over height and width alone")
    pooled = _pool(reader, node, x, x.shape[1:], x.shape[1:], (0, 0), summed=False)
    return pooled if arguments(node)["keepdim"] else _flattened(reader, node, pooled, pooled.shape[:1])


def _reshape(reader: _Reader, node: fx.Node) -> _Value:
    x = reader.value(operand(node))
    batch, shape = reader.graph.batch, shape_of(node)
    if x.step is not None and shape[:1] == (batch,):
        return _flattened(reader, node, x, shape[1:])
    if x.step is None and not x.dropped and x.layout != "NT":
        if shape[:2] == (reader.steps, batch):
            return _flattened(reader, node, replace(x, layout="TN"), shape[2:])
        if shape[:1] == (reader.steps * batch,):
            return _flattened(reader, node, replace(x, layout="flat"), shape[1:])
    raise _RefusalError("it mixes steps, samples and neurons")


def _flattened(reader: _Reader, node: fx.Node, x: _Value, shape: tuple[int, ...]) -> _Value:
    if shape == x.shape:
        return x
    rank = len(x.shape)
    for start in range(rank):
        for end in range(start, rank):
            if (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]) == shape:
                given = {"input": np.array(x.shape)}
                return reader.layer(node, "flatten", x, (start, end), shape, lambda: reader.nir.Flatten(given, start, end))  # noqa: B023
    raise _RefusalError(f"NIR flattens neighbouring dimensions; it does not make {list(shape)} of {list(x.shape)}")


def _permute(reader: _Reader, node: fx.Node) -> _Value:
    x, order = reader.value(operand(node)), list(operand(node, 1))
    rank = len(order)
    if x.layout not in ("TN", "NT") or [d % rank for d in order] != [1, 0, *range(2, rank)]:
        raise _RefusalError("NIR has no permutation")
    return replace(x, layout="NT" if x.layout == "TN" else "TN")


def _select(reader: _Reader, node: fx.Node) -> _Value:
    x, p = reader.value(operand(node)), arguments(node)
    if x.dropped or x.step is not None or p["dim"] != {"TN": 0, "NT": 1}.get(x.layout):
        raise _RefusalError("NIR does not select a part of a signal")
    return replace(x, step=p["index"] % reader.steps, layout="N")


def _stack(reader: _Reader, node: fx.Node) -> _Value:
    frames, dim = operand(node), arguments(node)["dim"]
    if len(frames) != reader.steps or dim not in (0, 1):
        raise _RefusalError("it stacks other things than the steps")
    last = reader.value(frames[-1])
    if last.step is None:
        raise _RefusalError("it stacks other things than the steps")
    last = last.at(reader.steps - 1)
    if reader.settled:
        for t, frame in enumerate(frames):
            found = reader.values.get(frame)
            reader.agree(node, t, None if found is None else found.at(t), last.terms)
    return replace(last, step=None, layout="TN" if dim == 0 else "NT")


def _slice(reader: _Reader, node: fx.Node) -> _Value:
    x, p = reader.value(operand(node)), arguments(node)
    end = min(p["end"], reader.steps) if p["end"] is not None else reader.steps
    if x.layout != "TN" or x.dropped or (p["dim"], p["start"] or 0, p["step"]) != (0, 0, 1) or end <= 0:
        raise _RefusalError("NIR does not cut a signal")
    return replace(x, dropped=reader.steps - end)


def _pad(reader: _Reader, node: fx.Node) -> _Value:
    x, p = reader.value(operand(node)), arguments(node)
    late = x.dropped
    if x.layout != "TN" or not late or p["value"] != 0 or list(p["pad"]) != [0, 0] * (len(x.shape) + 1) + [late, 0]:
        raise _RefusalError("NIR pads within convolutions and pooling alone")
    return replace(x, terms=frozenset((name, d + late) for name, d in x.terms), dropped=0)


def _aligned(a: _Value, b: _Value) -> tuple[_Value, _Value]:
    if a.step is not None and b.step is not None:
        later = max(a.step, b.step)
        a, b = a.at(later), b.at(later)
    if (a.step, a.layout, a.dropped, a.shape) != (b.step, b.layout, b.dropped, b.shape):
        raise _RefusalError("its operands are signals of different shapes or steps")
    return a, b


def _sum(reader: _Reader, node: fx.Node) -> _Value:
    p = arguments(node)
    sides = [p["self"], p["other"]]
    if not all(isinstance(n, fx.Node) and reader.graph.constant(n) is None for n in sides):
        raise _RefusalError("NIR adds constants within Affine and convolutions alone")
    a, b = _aligned(*(reader.value(n) for n in sides))
    factor = p["alpha"] * (-1 if is_op(node, aten.sub.Tensor) else 1)
    if factor != 1:
        b = reader.scaled(node, b, factor)
    for twice in a.terms & b.terms:  # NIR has no two edges between two nodes
        doubled = reader.scaled(node, replace(a, terms=frozenset([twice])), 2.0)
        a = replace(a, terms=(a.terms - {twice}) | doubled.terms)
        b = replace(b, terms=b.terms - {twice})
    return replace(a, terms=a.terms | b.terms)


def _product(reader: _Reader, node: fx.Node) -> _Value:
    p = arguments(node)
    a, b = p["self"], p["other"]
    if is_op(node, aten.mul.Tensor) and (not isinstance(a, fx.Node) or reader.graph.constant(a) is not None):
        a, b = b, a
    x = reader.value(a)
    if isinstance(b, fx.Node) and reader.graph.constant(b) is None:
        raise _RefusalError("a product of two signals (an attention gate); NIR scales by constants alone")
    factor = reader.per_sample(reader.constant(b, "factor"), x.shape, "factor")
    return reader.scaled(node, x, (1 / factor if is_op(node, aten.div.Tensor) else factor).numpy())


def _lif(reader: _Reader, node: fx.Node) -> _Value:
    x = reader.value(operand(node))
    uses = {OUTPUT_NAMES[operand(user, 1)] for user in node.users}
    if uses & {"v", "i"}:
        raise _RefusalError("its state after the last step is read")
    if x.layout != "TN" or x.dropped:
        raise _RefusalError("it does not run over [T, N, ...]")
    name = reader.neuron(node, node, uses, x.shape)
    reader.feeds.setdefault(name, x.terms)
    return _levelled(reader, node, replace(x, terms=frozenset([(name, 0)])))


def _levelled(reader: _Reader, node: fx.Node, x: _Value) -> _Value:
    level = arguments(node)["level"]
    if level is None:
        return x
    return reader.scaled(node, x, reader.per_sample(reader.constant(level, "level"), x.shape, "level").numpy())


def _lif_step(reader: _Reader, node: fx.Node) -> _Value:
    first, k = reader.step_of(node)
    shape = shape_of(operand(node))[1:]
    name = reader.neuron(node, first, reader.uses(first), shape)
    if reader.settled:
        found = reader.values.get(operand(node))
        reader.same_parameters(node, first, shape)
        reader.agree(node, k, None if found is None else found.at(k), reader.feeds[name])
    elif reader.is_last(node):
        x = reader.value(operand(node))
        if x.step is None:
            raise _RefusalError("it reads other things than a step")
        reader.feeds[name] = x.at(k).terms
    return _levelled(reader, node, _Value(frozenset([(name, 0)]), shape, k, "N"))


def _item(reader: _Reader, node: fx.Node) -> _Value:
    if not is_op(operand(node), LIF, LIF_STEP):
        raise _RefusalError("no NIR node does this")
    return reader.value(operand(node))


_HANDLERS: dict[Any, Callable[[_Reader, fx.Node], _Value]] = {
    operator.getitem: _item,
    LIF: _lif,
    LIF_STEP: _lif_step,
    aten.linear.default: _linear,
    aten.convolution.default: _convolution,
    aten.avg_pool2d.default: _avg_pool,
    aten.mean.dim: _mean,
    aten.permute.default: _permute,
    aten.select.int: _select,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.constant_pad_nd.default: _pad,
    aten.add.Tensor: _sum,
    aten.sub.Tensor: _sum,
    aten.mul.Tensor: _product,
    aten.div.Tensor: _product,
    **dict.fromkeys(VIEWS, _reshape),
}
