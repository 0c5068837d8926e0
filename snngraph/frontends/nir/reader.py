"""A graph as NIR nodes: what a value of the graph is, and how nodes and edges are found.

Every value is a sum of NIR nodes, each perhaps some steps late, over the whole sequence or at one step. The T copies of a
recurrent network become one node: what feeds it is read off the last of them, and the others have to agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx

import snngraph
from snngraph.errors import NirExportError
from snngraph.frontends.nir.graph import components
from snngraph.frontends.nir.neurons import Discretisation, InexpressibleError, equations
from snngraph.frontends.nir.record import KEY, NUMBERS, SCHEMA, record_of
from snngraph.graph import LIF_STEP, OUTPUT_NAMES, SpikingGraph, arguments, describe, is_op, module_path, operand, previous_step
from snngraph.types import TensorSpec

__all__ = ["Handler", "Reader", "RefusalError", "Terms", "UnknownError", "Value"]

aten = torch.ops.aten

Terms: TypeAlias = frozenset[tuple[str, int]]
"""NIR nodes whose outputs are summed, and by how many steps each is late."""


@dataclass(frozen=True)
class Value:
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

    def at(self, step: int) -> Value:
        """The same value, counted from a later step."""
        assert self.step is not None
        late = step - self.step
        if late < 0:
            raise RefusalError("it reads a later step")
        return replace(self, terms=frozenset((name, d + late) for name, d in self.terms), step=step)


Handler: TypeAlias = "Callable[[Reader, fx.Node], Value]"
"""What an operator makes of the values of its operands."""


class RefusalError(Exception):
    """Why an operator has no NIR node."""


class UnknownError(Exception):
    """A value that is not among those of the last steps."""


class Reader:
    """Reads a graph into NIR nodes and edges: the last steps first, which decide; then all of them, which have to agree."""

    def __init__(
        self, graph: SpikingGraph, step: Discretisation, allow: frozenset[str], nir: Any, handlers: Mapping[Any, Handler]
    ) -> None:
        self.graph, self.step, self.allow, self.nir, self.handlers = graph, step, allow, nir, handlers
        self.steps = graph.time.steps
        self.nodes: dict[str, Any] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.feeds: dict[str, Terms] = {}
        self.neurons: dict[str, str] = {}  # the graph's layers, and their nodes
        self.values: dict[fx.Node, Value] = {}
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
            if is_op(node, aten.stack.default, aten.cat.default):
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
        handler = self.handlers.get(node.target)
        try:
            if handler is None:
                raise RefusalError("no NIR node does this")
            self.values[node] = handler(self, node)
        except UnknownError:
            assert self._settled
        except RefusalError as reason:
            if not self._settled:
                raise NirExportError(f"NIR can not say {describe(node)}: {reason}") from None

    def value(self, node: object) -> Value:
        """The value of an operand.

        Raises:
            RefusalError: it is a constant.
            UnknownError: it is no value that the last steps have.
        """
        if isinstance(node, fx.Node) and node in self.values:
            return self.values[node]
        if self._settled:
            raise UnknownError
        raise RefusalError("a constant stands where NIR has a signal")

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
        self, node: fx.Node, title: str, x: Value, key: tuple[Any, ...], shape: tuple[int, ...], make: Callable[[], Any]
    ) -> Value:
        """What a layer without state makes of ``x``: its node, once for all steps."""
        known = (title, x.terms, *key)
        if known not in self._made:
            if self._settled:
                raise UnknownError
            made = make()
            made.input_type, made.output_type = {"input": np.array(x.shape)}, {"output": np.array(shape)}
            self._made[known] = self.add(node, title, made, shape)
            self.feeds[self._made[known]] = x.terms
        return replace(x, terms=frozenset([(self._made[known], 0)]), shape=shape)

    def scaled(self, node: fx.Node, x: Value, factor: Any) -> Value:
        """``x`` times a constant per neuron."""
        scale = np.broadcast_to(np.asarray(factor, dtype=np.float64), x.shape).copy()
        return self.layer(node, "scale", x, (scale.tobytes(),), x.shape, lambda: self.nir.Scale(scale))

    def constant(self, node: object, what: str) -> Tensor:
        """A constant operand.

        Raises:
            RefusalError: the network computes it.
        """
        if isinstance(node, int | float):
            return torch.tensor(float(node), dtype=torch.float64)
        found = self.graph.constant(node)
        if found is None:
            raise RefusalError(f"its {what} is computed by the network")
        return found.double()

    def per_sample(self, value: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
        """A constant as one sample sees it: without dimensions of time and batch.

        Raises:
            RefusalError: it differs between steps or samples, or would change the shape.
        """
        extra = value.dim() - len(shape)
        if extra > 0:
            if any(n != 1 for n in value.shape[:extra]):
                raise RefusalError(f"its {what} differs between steps or samples")
            value = value.reshape(value.shape[extra:])
        if any(a not in (1, b) for a, b in zip(reversed(value.shape), reversed(shape), strict=False)):
            raise RefusalError(f"its {what} changes the shape")
        return value.reshape((*[1] * (len(shape) - value.dim()), *value.shape)) if value.dim() else value

    def neuron(self, node: fx.Node, first: fx.Node, uses: set[str], shape: tuple[int, ...]) -> str:
        """The NIR node of a neuron, made once for all its steps.

        Raises:
            RefusalError: NIR has no such neuron.
        """
        if first in self._neuron_nodes:
            return self._neuron_nodes[first]
        parameters, v_init = self._parameters(first, shape)
        spiking = self._spikes(parameters, uses)
        try:
            kind, values = equations(parameters, shape, self.step, spiking=spiking)
        except InexpressibleError as reason:
            raise RefusalError(str(reason)) from None
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
        for name in (*NUMBERS, *(("v", "i") if state else ())):
            if given[name] is not None:
                value = self.per_sample(self.constant(given[name], name), shape, name)
                found[name] = float(value) if value.dim() == 0 else value
        if np.any(np.asarray(found.pop("i", 0.0)) != 0):
            raise RefusalError("its synaptic current does not start at 0")
        v_init: float | Tensor = found.pop("v", 0.0)
        return found, v_init

    def _spikes(self, parameters: dict[str, Any], uses: set[str]) -> bool:
        """Whether its spikes are read, or its potential; refuses what NIR has no word for."""
        if "s" not in uses:
            if parameters["reset"] != "none" or parameters.get("floor") is not None:
                raise RefusalError("its potential is read, and it resets or has a floor; LI and CubaLI have neither")
            parameters |= {"threshold": math.inf, "fire": ">", "delay": "none", "emit": "spike"}
            return False
        if parameters["reset"] == "none":
            parameters["delay"] = "none"
        if len(uses) > 1:
            raise RefusalError("its potential is read besides its spikes")
        if parameters["emit"] == "signed":
            raise RefusalError("it emits signed spikes")
        present = {
            "soft reset": parameters["reset"] == "soft",
            "delayed reset": parameters["delay"] != "none",
            "counts": parameters["emit"] == "count",
            "floor": parameters.get("floor") is not None,
        }
        for what, there in present.items():
            if there and what not in self.allow:
                raise RefusalError(
                    f"{what}: NIR has no word for it, and other tools would read another neuron; allow=({what!r},) writes it for "
                    "snngraph alone"
                )
        return True

    # -- inputs, outputs, edges --------------------------------------------------------------------------------------------

    def _input(self, node: fx.Node) -> Value:
        spec = self.graph.inputs[[n for n in self.graph.nodes if n.op == "placeholder"].index(node)]
        if (spec.time_dim, spec.batch_dim) not in ((0, 1), (1, 0)):
            raise NirExportError(f"NIR's inputs are signals over time; {spec.name} is {_axes(spec)}: capture it as [T, N, ...]")
        shape = tuple(int(n or 0) for n in spec.shape[2:])
        if spec.name not in self.nodes:
            self.nodes[spec.name], self.shapes[spec.name] = self.nir.Input(np.array(shape)), shape
        return Value(frozenset([(spec.name, 0)]), shape, None, "TN" if spec.time_dim == 0 else "NT")

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

    def agree(self, node: fx.Node, t: int, found: Value | None, terms: Terms) -> None:
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
