"""From a network of NIR nodes to a graph of operators over T steps."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from snngraph import pipelines
from snngraph.errors import NirGraphError
from snngraph.frontends.canonical import Canonical
from snngraph.frontends.nir.graph import Edge, Network, components, ordered
from snngraph.frontends.nir.layers import Calculator, emit, fitting
from snngraph.frontends.nir.neurons import SILENT
from snngraph.graph import LIF, LIF_STEP, OUTPUT_NAMES, RESHAPE, Facts, SpikingGraph, Time
from snngraph.types import TensorSpec

__all__ = ["Part", "build"]

aten = torch.ops.aten
_WORDS = ("fire", "reset", "delay", "emit")


@dataclass(frozen=True)
class Part:
    """What a node is once it is read: a layer, a neuron (and the shapes of its arrays), a delay in steps, or a port's shape."""

    kind: str
    layer: Mapping[str, Any] | None = None
    neuron: Canonical | None = None
    late_input: bool = False
    sizes: tuple[tuple[int, ...], ...] = ()
    delays: np.ndarray[Any, np.dtype[np.int64]] | None = None
    shape: tuple[int, ...] | None = None

    @property
    def breaks(self) -> bool:
        """Whether it gives nothing of the current step."""
        return self.delays is not None and bool((self.delays > 0).all())


def build(
    network: Network,
    parts: Mapping[str, Part],
    late: frozenset[Edge],
    steps: int,
    batch_size: int,
    title: str,
    path: str,
) -> SpikingGraph:
    """The graph.

    Args:
        network: the nodes and edges.
        parts: what every node is.
        late: the edges that are read one step late.
        steps: the number of steps.
        batch_size: of the example that was none.
        title: the network, for messages.
        path: the file, if it came from one.

    Raises:
        NirGraphError: shapes do not fit.
    """
    shapes = _shapes(network, parts, title)
    builder = _Builder(network, parts, shapes, late, steps, max(2, batch_size), path)
    builder.run()
    specs = tuple(
        TensorSpec(_identifier(name), (steps, builder.batch, *shapes[name]), "float32", 0, 1) for name in network.inputs
    )
    notes = tuple(f"NIR node {name!r} reaches no output and is left out" for name in network.unused)
    facts = Facts(
        specs,
        Time(steps, (0,) * len(specs)),
        builder.batch,
        example_batch=batch_size,
        name=re.sub(r"\.nir$", "", title),
        notes=notes,
    )
    graph = SpikingGraph(builder.fx, builder.tensors, facts)
    graph.check()
    return pipelines.capture()(graph).graph


def _identifier(name: str) -> str:
    text = re.sub(r"\W", "_", name)
    return text if text.isidentifier() else f"_{text}"


# -- shapes --------------------------------------------------------------------------------------------------------------------


def _shapes(network: Network, parts: Mapping[str, Part], title: str) -> dict[str, tuple[int, ...]]:
    """One sample's shape after every node, from the inputs on; every node gets one, as all are fed."""
    found: dict[str, tuple[int, ...]] = {}
    targets: dict[str, list[str]] = {}
    for source, target in network.edges:
        targets.setdefault(source, []).append(target)
    waiting = list(network.inputs)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = _shape(name, network, parts[name], found, title)
        waiting.extend(targets.get(name, ()))
    lost = [name for name in network.nodes if name not in found]
    if lost:
        raise NirGraphError(f"{title}: no input reaches {', '.join(map(repr, lost))}")
    for source, target in network.edges:
        other = network.nodes[target].sources[0]
        if found[source] != found[other]:
            raise NirGraphError(
                f"{title}: {target!r} is fed {list(found[other])} by {other!r} and {list(found[source])} by {source!r}; "
                "what is summed has one shape"
            )
    return found


def _shape(name: str, network: Network, part: Part, found: Mapping[str, tuple[int, ...]], title: str) -> tuple[int, ...]:
    node = network.nodes[name]
    if node.kind == "Input":
        if part.shape is None:
            raise NirGraphError(f"{title}: the input {name!r} has no shape")
        return part.shape
    source = next(s for s in node.sources if s in found)
    shape = found[source]
    try:
        if part.layer is not None:
            calculator = Calculator("meta")
            result = emit(calculator, part.kind, name, part.layer, torch.empty((1, *shape), dtype=torch.float64, device="meta"))
            return calculator.shape(result)[1:]
        for sizes in part.sizes:
            fitting(torch.empty(sizes, device="meta"), shape, "a parameter")
        if part.delays is not None:
            fitting(torch.from_numpy(part.delays), shape, "delay")
    except (RuntimeError, ValueError, IndexError, NirGraphError) as error:
        raise NirGraphError(f"{title}: {name!r} ({node.kind}) does not take {list(shape)} from {source!r}: {error}") from error
    if part.shape not in (None, shape):
        raise NirGraphError(f"{title}: the output {name!r} is fed {list(shape)} by {source!r}, but says {list(part.shape or ())}")
    return shape


# -- operators -----------------------------------------------------------------------------------------------------------------


class _Signal:
    """What a node gives: ``[T, N, *shape]``, the same as ``[T*N, *shape]``, or T frames; each made when it is asked for."""

    def __init__(self, builder: _Builder, shape: tuple[int, ...], **forms: Any) -> None:
        self.builder, self.shape = builder, shape
        self._sequence: fx.Node | None = forms.get("sequence")
        self._flat: fx.Node | None = forms.get("flat")
        self._frames: dict[int, fx.Node] = forms.get("frames", {})

    @property
    def is_flat(self) -> bool:
        return self._flat is not None

    def sequence(self) -> fx.Node:
        if self._sequence is None:
            call = self.builder.call
            if self._flat is not None:
                self._sequence = call(RESHAPE, self._flat, [self.builder.steps, -1, *self.shape])
            else:
                self._sequence = call(aten.stack.default, [self._frames[t] for t in range(self.builder.steps)], 0)
        return self._sequence

    def flat(self) -> fx.Node:
        if self._flat is None:
            self._flat = self.builder.call(RESHAPE, self.sequence(), [-1, *self.shape])
        return self._flat

    def frame(self, t: int) -> fx.Node:
        if t not in self._frames:
            self._frames[t] = self.builder.call(aten.select.int, self.sequence(), 0, t)
        return self._frames[t]


class _Builder:
    """Writes operators into an ``fx.Graph``."""

    def __init__(
        self,
        network: Network,
        parts: Mapping[str, Part],
        shapes: Mapping[str, tuple[int, ...]],
        late: frozenset[Edge],
        steps: int,
        batch: int,
        path: str,
    ) -> None:
        self.network, self.parts, self.shapes, self.late = network, parts, shapes, late
        self.steps, self.batch = steps, batch
        self.fx = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.signals: dict[str, _Signal] = {}
        self._constants: dict[str, fx.Node] = {}
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._origin: dict[str, Any] = {"source": path} if path else {}

    # a Machine

    def call(self, target: Any, *args: Any, **keywords: Any) -> fx.Node:
        """One operator."""
        name = target._schema.name.split("::")[1] if hasattr(target, "_schema") else None
        node = self.fx.create_node("call_function", target, args, keywords, name)
        fakes, fake_keywords = fx.node.map_arg((args, keywords), lambda n: n.meta["val"])
        with self._mode:
            node.meta["val"] = target(*fakes, **fake_keywords)
        node.meta.update(self._origin)
        return node

    def constant(self, name: str, value: Tensor) -> fx.Node:
        """A ``get_attr`` node, one for each name."""
        if name not in self._constants:
            base = re.sub(r"\W", "_", name)
            unique, k = base, 1
            while unique in self.tensors or hasattr(fx.GraphModule, unique) or hasattr(torch.nn.Module(), unique):
                unique, k = f"{base}_{k}", k + 1
            self.tensors[unique] = value
            node = self.fx.get_attr(unique)
            node.meta["val"] = self._mode.from_tensor(value)
            self._constants[name] = node
        return self._constants[name]

    def shape(self, x: fx.Node) -> tuple[int, ...]:
        """The shape of a node."""
        return tuple(x.meta["val"].shape)

    # the network

    def run(self) -> None:
        """Writes everything."""
        for name in self.network.inputs:
            node = self.fx.placeholder(_identifier(name))
            shape = self.shapes[name]
            node.meta["val"] = self._mode.from_tensor(torch.empty((self.steps, self.batch, *shape), dtype=torch.float64))
            self.signals[name] = _Signal(self, shape, sequence=node)
        edges = self.network.edges
        for component in components(list(self.network.nodes), edges):
            if len(component) == 1 and (component[0], component[0]) not in edges:
                self._at_once(component[0])
            else:
                self._stepped(component, edges)
        results = tuple(self.signals[name].sequence() for name in self.network.outputs)
        self.fx.output(results if len(results) > 1 else results[0])

    def _at(self, name: str) -> None:
        self._origin["module_path"] = name

    def _at_once(self, name: str) -> None:
        """A node outside all cycles, over the whole sequence."""
        if self.network.nodes[name].kind == "Input":
            return
        self._at(name)
        part, x = self.parts[name], self._sum([self.signals[s] for s in self.network.nodes[name].sources])
        if part.layer is not None:
            self.signals[name] = _Signal(self, self.shapes[name], flat=emit(self, part.kind, name, part.layer, x.flat()))
        elif part.neuron is not None:
            sequence = self._shifted(x.sequence(), 1) if part.late_input else x.sequence()
            node = self._neuron(LIF, name, sequence, None, with_h=part.kind in SILENT)
            self.signals[name] = _Signal(self, x.shape, sequence=self._emitted(name, node))
        elif part.delays is not None:
            delayed = self._delayed(name, lambda k: self._shifted(x.sequence(), k))
            self.signals[name] = _Signal(self, x.shape, sequence=delayed)
        else:
            self.signals[name] = x

    def _sum(self, signals: Sequence[_Signal]) -> _Signal:
        first = signals[0]
        if len(signals) == 1:
            return first
        if all(s.is_flat for s in signals):
            return _Signal(self, first.shape, flat=self._added([s.flat() for s in signals]))
        return _Signal(self, first.shape, sequence=self._added([s.sequence() for s in signals]))

    def _added(self, terms: Sequence[fx.Node]) -> fx.Node:
        total = terms[0]
        for term in terms[1:]:
            total = self.call(aten.add.Tensor, total, term)
        return total

    def _shifted(self, sequence: fx.Node, k: int) -> fx.Node:
        """The sequence ``k`` steps late, zero before."""
        if k == 0:
            return sequence
        if k >= self.steps:
            return self.call(aten.zeros_like.default, sequence)
        kept = self.call(aten.slice.Tensor, sequence, 0, 0, self.steps - k)
        return self.call(aten.constant_pad_nd.default, kept, [0, 0] * (len(self.shape(sequence)) - 1) + [k, 0], 0.0)

    def _delayed(self, name: str, at: Callable[[int], fx.Node]) -> fx.Node:
        """``at(k)`` for the delay ``k`` of every entry."""
        delays = self.parts[name].delays
        assert delays is not None
        amounts = sorted({int(k) for k in delays.flat})
        result = at(amounts[0])
        for k in amounts[1:]:
            mask = self.constant(f"{name}.late_{k}", torch.from_numpy(delays == k))
            result = self.call(aten.where.self, mask, at(k), result)
        return result

    def _neuron(self, target: Any, name: str, x: fx.Node, previous: fx.Node | None, **options: Any) -> fx.Node:
        """A neuron node, from rest or from the state that ``previous`` left."""
        neuron = self.parts[name].neuron
        assert neuron is not None
        p, shape = neuron.parameters, self.shapes[name]

        def tensor(key: str, value: float | Tensor) -> fx.Node:
            kept = fitting(value, shape, key) if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            return self.constant(f"{name}.{key}", kept)

        named = {k: tensor(k, v) for k, v in p.items() if k not in (*_WORDS, "decay", "threshold")}
        words = {k: p[k] for k in _WORDS if k in p}
        v = (
            tensor("v_init", neuron.v_rest)
            if previous is None
            else self.call(operator.getitem, previous, OUTPUT_NAMES.index("v"))
        )
        if previous is not None and neuron.has_synapse:
            named["i"] = self.call(operator.getitem, previous, OUTPUT_NAMES.index("i"))
        on = {k: True for k, wanted in options.items() if wanted}
        node = self.call(target, x, v, tensor("decay", p["decay"]), tensor("threshold", p["threshold"]), **named, **words, **on)
        node.meta["neuron"] = name
        return node

    def _emitted(self, name: str, node: fx.Node) -> fx.Node:
        """The spikes of a neuron, or the potential of one that has none."""
        return self.call(operator.getitem, node, OUTPUT_NAMES.index("h" if self.parts[name].kind in SILENT else "s"))

    # cycles

    def _stepped(self, component: Sequence[str], edges: Iterable[Edge]) -> None:
        """The nodes of a cycle, step by step."""
        inner = [e for e in edges if set(e) <= set(component)]
        at_once = [e for e in inner if e not in self.late and not self.parts[e[1]].breaks]
        order = ordered(component, at_once)
        breaking = [name for name in component if self.parts[name].breaks]
        frames: dict[str, list[fx.Node]] = {name: [] for name in component}
        inputs: dict[str, list[fx.Node | None]] = {name: [] for name in component}
        state: dict[str, fx.Node] = {}
        for t in range(self.steps):
            for name in order:
                if name not in breaking:
                    inputs[name].append(self._input(name, t, frames))
                self._at(name)
                frames[name].append(self._frame(name, t, inputs[name], state))
            for name in breaking:  # read from the next step on
                inputs[name].append(self._input(name, t, frames))
        for name in component:
            self.signals[name] = _Signal(self, self.shapes[name], frames=dict(enumerate(frames[name])))

    def _frame(self, name: str, t: int, inputs: Sequence[fx.Node | None], state: dict[str, fx.Node]) -> fx.Node:
        """What a node gives at step ``t``; a neuron leaves its state."""
        part = self.parts[name]
        if part.delays is not None:
            return self._delayed(name, lambda k: self._past(name, inputs, t - k))
        x = self._past(name, inputs, t - part.late_input)
        if part.layer is not None:
            made: fx.Node = emit(self, part.kind, name, part.layer, x)
            return made
        if part.neuron is not None:
            state[name] = self._neuron(LIF_STEP, name, x, state.get(name))
            return self._emitted(name, state[name])
        return x

    def _input(self, name: str, t: int, frames: Mapping[str, Sequence[fx.Node]]) -> fx.Node | None:
        """The sum of what feeds a node on a cycle at step ``t``; ``None`` if that is nothing yet."""
        self._at(name)
        terms, before = [], []
        for source in self.network.nodes[name].sources:
            if source not in frames:
                terms.append(self.signals[source].frame(t))
            elif (source, name) not in self.late:
                terms.append(frames[source][t])
            elif t > 0:
                terms.append(frames[source][t - 1])
            elif (value := self._before(source, ())) is not None:
                before.append(self.constant(f"{source}.before", value))
        if before and not terms:
            terms = [self._silence(name)]
        return self._added([*terms, *before]) if terms else None

    def _past(self, name: str, inputs: Sequence[fx.Node | None], t: int) -> fx.Node:
        found = inputs[t] if t >= 0 else None
        return self._silence(name) if found is None else found

    def _silence(self, name: str) -> fx.Node:
        """Zeros of the shape of a node's input, ``[N, *shape]``, made from a frame of the input: the batch size is free."""
        shape = self.shapes[self.network.nodes[name].sources[0]]
        x = self.call(aten.zeros_like.default, self.signals[self.network.inputs[0]].frame(0))
        rank = len(self.shape(x))
        one = self.call(aten.amax.default, x, list(range(1, rank)), False) if rank > 1 else x
        column = self.call(RESHAPE, one, [-1, *(1 for _ in shape)])
        return self.call(aten.expand.default, column, [-1, *shape])

    def _before(self, name: str, on_the_way: tuple[str, ...]) -> Tensor | None:
        """What a node gives before the first step, ``[1, *shape]``, with no input and no spikes yet; ``None``: zeros."""
        part = self.parts[name]
        if part.kind in SILENT and part.neuron is not None:
            rest = torch.as_tensor(part.neuron.v_rest, dtype=torch.float64).expand(1, *self.shapes[name])
            return rest.clone() if rest.any() else None
        if part.layer is None or name in on_the_way:
            return None
        sources = self.network.nodes[name].sources
        values = [v for s in sources if (v := self._before(s, (*on_the_way, name))) is not None]
        if not values and part.layer.get("bias") is None:
            return None
        x = torch.zeros((1, *self.shapes[sources[0]]), dtype=torch.float64)
        for value in values:
            x = x + value
        result: Tensor = emit(Calculator(), part.kind, name, part.layer, x)
        return result
