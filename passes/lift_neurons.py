"""Membrane arithmetic written out step by step becomes ``snn::lif_step``, however it is spelled.

A model that computes its neurons itself, or a library nobody has told us of, arrives as an unrolled loop of plain operators:
sums, products, comparisons, selects. This pass finds the potentials of such a loop (:mod:`snngraph.analysis.chains`,
:mod:`snngraph.analysis.recurrences`), asks which canonical neuron their step function is and proves it on numbers
(:mod:`snngraph.analysis.identification`, :mod:`snngraph.analysis.sequences`), and puts one ``lif_step`` per step in its place:

    s_t, v_{t+1}, _, h_t = lif_step(x_t, v_t; decay, threshold, ...)

Whatever reads a potential reads ``h_t``, whatever reads a spike reads ``s_t``; what becomes of them otherwise (a recorded
potential after its reset, a readout) stays as it is written. What is no canonical neuron stays too, with the reason; so does a
single step, which shows no recurrence.

Exactness: real. The operator sums in its own order.
"""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from snngraph.analysis.chains import find_chains
from snngraph.analysis.elementwise import Elementwise, TooLargeError
from snngraph.analysis.families import Families
from snngraph.analysis.firing import Emitted, emitted, firings
from snngraph.analysis.identification import identify, is_step_of
from snngraph.analysis.recurrences import Recurrence, resolve
from snngraph.analysis.sequences import Fed, Input, is_neuron_over_time, over_time
from snngraph.analysis.synapses import with_synapse
from snngraph.graph import LIF_STEP, SpikingGraph, module_path, origin_of, source_line
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["RECOGNISED", "LiftNeurons"]

RECOGNISED = "recognised as "  # begins the note of every neuron that was
aten = torch.ops.aten
_MOST_NEURONS = 1 << 20


@dataclass(frozen=True)
class LiftNeurons(Pass):
    """Recognises neurons written as plain operators."""

    name: ClassVar[str] = "lift_neurons"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Finds and proves all neurons first, then writes them."""
        edit = Rewriter(graph)
        with torch.no_grad():
            lifted = _found(edit)
        taken = {str(n.meta["neuron"]) for n in graph.nodes if "neuron" in n.meta}
        writer = _Writer(edit)
        for neuron in lifted:
            writer.write(neuron, _name_of(neuron.recurrence, taken))
        return edit.result()


@dataclass(frozen=True)
class _Lifted:
    recurrence: Recurrence
    fed: Fed
    emitted: tuple[tuple[Emitted, ...], ...]


def _found(edit: Rewriter) -> list[_Lifted]:
    area = Elementwise(edit.graph)
    recurrences: dict[tuple[fx.Node, ...], Recurrence] = {}
    chains, others = find_chains(area, edit.graph.time.steps)
    refused = {decision: (decision, reason) for decision, reason in others.items()}
    for chain in chains:
        found = resolve(area, chain)
        if isinstance(found, str):
            refused[chain.decisions[0]] = ([chain.decisions[-1], *chain.paths[-1]][-1], found)
        elif not any(set(found.potentials) <= set(other) for other in recurrences):
            recurrences[found.potentials] = found
    known = {h: (k, t) for k, potentials in enumerate(recurrences) for t, h in enumerate(potentials)}
    families = Families(edit.graph, known)
    result = []
    for recurrence in recurrences.values():
        lifted = _identified(area, recurrence, families, known)
        if isinstance(lifted, str):
            refused[recurrence.decisions[0]] = (recurrence.potentials[-1], lifted)
        else:
            result.append(lifted)
    inner = {n for lifted in result for step in lifted.recurrence.steps for n in step.program.nodes}
    for decision, (charge, reason) in refused.items():
        if decision not in inner:
            edit.refuse(charge, reason)
    return result


def _identified(area: Elementwise, recurrence: Recurrence, families: Families, known: Collection[fx.Node]) -> _Lifted | str:
    """The neuron, proved, or why there is none."""
    try:
        return _proved(area, recurrence, families, known)
    except TooLargeError as error:
        return str(error)


def _proved(area: Elementwise, recurrence: Recurrence, families: Families, known: Collection[fx.Node]) -> _Lifted | str:
    potentials = recurrence.potentials
    if recurrence.steps[-1].program.extent.numel() > _MOST_NEURONS:
        return f"its parameters differ for more than {_MOST_NEURONS} neurons"
    reason = "its decision to fire is not a threshold on its membrane potential"
    for firing in firings(area, potentials[0], known):
        neuron = identify(recurrence.steps[-1], firing, has_state=recurrence.has_state)
        if isinstance(neuron, str):
            reason = neuron
            continue
        if not all(is_step_of(neuron, step) for step in recurrence.steps):
            reason = f"it is not {neuron}, which it resembles"
            continue
        for fed in (with_synapse(area, recurrence, neuron, families), over_time(area, recurrence, neuron, families)):
            if fed is not None and is_neuron_over_time(area, recurrence, fed):
                return _Lifted(recurrence, fed, tuple(tuple(emitted(area, h, known, firing)) for h in potentials))
        reason = f"it could not be proved to be {neuron}"
    return reason


def _name_of(recurrence: Recurrence, taken: set[str]) -> str:
    node = recurrence.potentials[-1]
    path, line = source_line(node).rpartition(":")[::2]
    base = module_path(node) or (f"{Path(path).stem}:{line}" if path else recurrence.decisions[0].name)
    name, k = base, 1
    while name in taken:
        k += 1
        name = f"{base}#{k}"
    taken.add(name)
    return name


# -- writing -------------------------------------------------------------------------------------------------------------------


_MASKS = {"positive": aten.gt.Scalar, "negative": aten.lt.Scalar, "nonzero": aten.ne.Scalar}


class _Writer:
    def __init__(self, edit: Rewriter) -> None:
        self.edit, self.graph = edit, edit.graph.graph
        self.now: dict[fx.Node, fx.Node] = {}  # what stands for a node that was replaced

    def write(self, lifted: _Lifted, name: str) -> None:
        """Puts the steps of a neuron in the place of its arithmetic."""
        fed = lifted.fed
        options = {k: a for k, a in fed.neuron.parameters.items() if not isinstance(a, Tensor)}
        with self.graph.inserting_before(next(iter(self.graph.nodes))):
            constants = {k: self._constant(f"{name}.{k}", a) for k, a in fed.neuron.parameters.items() if isinstance(a, Tensor)}
            v = self._constant(f"{name}.v", fed.v)
            i = None if fed.i is None else self._constant(f"{name}.i", fed.i)
        origin = origin_of(lifted.recurrence.potentials[-1])  # the first potential may be what a layer gives
        positional = (constants.pop("decay"), constants.pop("threshold"))
        self.edit.did(lifted.recurrence.potentials[-1], f"{RECOGNISED}{fed.neuron}")
        for potential, given, outputs in zip(lifted.recurrence.potentials, fed.inputs, lifted.emitted, strict=True):
            with self.graph.inserting_before(potential.next):
                keywords = {**constants, **options, **({} if i is None else {"i": i})}
                step = self.graph.call_function(LIF_STEP, (self._sum(given), v, *positional), dict(sorted(keywords.items())))
                step.meta = {**origin, "neuron": name}
                s, v, i, h = (self.graph.call_function(operator.getitem, (step, k)) for k in range(4))
                i = i if "syn_decay" in constants else None
            for output in outputs:
                self._replace_output(output, s)
            if potential not in given.nodes:
                self._replace(potential, h)

    def _replace_output(self, output: Emitted, s: fx.Node) -> None:
        """What reads an operator that computes the spikes ``s``, a multiple or a mask of them, reads that of ``s``."""
        with self.graph.inserting_before(output.node.next):
            if output.kind == "spikes":
                self._replace(output.node, self._scaled(s, torch.tensor(output.factor, dtype=torch.float64)))
            elif output.node.meta["val"].dtype == torch.bool:
                self._replace(output.node, self.graph.call_function(_MASKS[output.kind], (s, 0.0)))

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.now[node] = by

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        kept = (
            value.clone() if not value.dim() else value.to(self.edit.graph.dtype, copy=True)
        )  # it may be the model's own tensor
        return self.edit.graph.add_tensor(re.sub(r"\W", "_", name), kept)

    def _sum(self, given: Input) -> fx.Node:
        """``sum_k weights[k]*nodes[k] + offset`` as operators."""
        terms = [self._scaled(self.now.get(node, node), weight) for node, weight in zip(given.nodes, given.weights, strict=True)]
        total = functools.reduce(lambda a, b: self.graph.call_function(aten.add.Tensor, (a, b)), terms)
        if given.offset.dim() or float(given.offset):
            total = self.graph.call_function(aten.add.Tensor, (total, self._factor(given.offset)))
        return total

    def _scaled(self, node: fx.Node, weight: Tensor) -> fx.Node:
        if not weight.dim() and float(weight) == 1.0:
            return node
        return self.graph.call_function(aten.mul.Tensor, (node, self._factor(weight)))

    def _factor(self, value: Tensor) -> Any:
        return float(value) if not value.dim() else self._constant("weight", value)
