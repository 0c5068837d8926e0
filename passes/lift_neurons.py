"""Membrane arithmetic written out step by step becomes ``snn::lif_step``, however it is spelled.

A model that computes its neurons itself, or a library nobody has told us of, arrives as an unrolled loop of plain operators:
sums, products, comparisons, selects. This pass finds the potentials of such a loop (:mod:`snngraph.analysis.recurrences`), asks
which canonical neuron their step function is and proves it on numbers (:mod:`snngraph.analysis.identification`,
:mod:`snngraph.analysis.sequences`), and puts one ``lif_step`` per step in its place:

    s_t, v_{t+1}, _, h_t = lif_step(x_t, v_t; decay, threshold, ...)

Whatever reads a potential reads ``h_t``, whatever reads a spike reads ``s_t``; what becomes of them otherwise (a recorded
potential after its reset, a readout) stays as it is written. What is no canonical neuron stays too, with the reason.

Exactness: real. The operator sums in its own order.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from snngraph.analysis.decisions import Decision, decisions_on
from snngraph.analysis.elementwise import Elementwise
from snngraph.analysis.families import Families
from snngraph.analysis.identification import Neuron, StepFunction, identify, is_step_of
from snngraph.analysis.recurrences import Recurrence, find_chains, resolve
from snngraph.analysis.sequences import Input, Start, is_neuron_over_time, start_of
from snngraph.graph import LIF_STEP, OUTPUT_NAMES, SpikingGraph, module_path, origin_of, source_line
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["RECOGNISED", "LiftNeurons"]

RECOGNISED = "recognised as "  # begins the note of every neuron that was
aten = torch.ops.aten


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
        for neuron in lifted:
            _write(edit, neuron, _name_of(neuron.recurrence, taken))
        return edit.result()


@dataclass(frozen=True)
class _Lifted:
    recurrence: Recurrence
    neuron: Neuron
    inputs: tuple[Input, ...]
    start: Start
    spikes: tuple[tuple[Decision, ...], ...]


def _found(edit: Rewriter) -> list[_Lifted]:
    area = Elementwise(edit.graph)
    recurrences: dict[tuple[fx.Node, ...], Recurrence] = {}
    for chain in find_chains(area, edit.graph.time.steps):
        found = resolve(area, chain)
        if isinstance(found, str):
            edit.refuse(chain.decisions[0], found)
        elif not any(set(found.potentials) <= set(other) for other in recurrences):
            recurrences[found.potentials] = found
    known = {h: (k, t) for k, potentials in enumerate(recurrences) for t, h in enumerate(potentials)}
    families = Families(edit.graph, known)
    result = []
    for recurrence in recurrences.values():
        lifted = _identified(area, recurrence, families)
        if isinstance(lifted, str):
            edit.refuse(recurrence.decisions[0], lifted)
        else:
            result.append(lifted)
    return result


def _identified(area: Elementwise, recurrence: Recurrence, families: Families) -> _Lifted | str:
    """The neuron and its proof, or why there is none."""
    potentials = recurrence.potentials
    functions = [StepFunction(*at) for at in zip(recurrence.steps, potentials, potentials[1:], strict=False)]
    spikes = [decisions_on(area, h) for h in potentials]
    reason = "its decision to fire is not a threshold on its membrane potential"
    for decision in _distinct(spikes[0]):
        neuron = identify(functions[-1], decision)
        if isinstance(neuron, str):
            reason = neuron
            continue
        if not all(is_step_of(neuron, function) for function in functions):
            reason = f"it is not {neuron}, which it resembles"
            continue
        start = start_of(area, recurrence, neuron, families)
        zero = torch.zeros((), dtype=torch.float64)
        inputs = (start.input, *(Input(step.inputs, neuron.weights, zero) for step in recurrence.steps))
        if not is_neuron_over_time(area, recurrence, neuron, inputs, start):
            reason = f"it could not be proved to be {neuron}"
            continue
        same = tuple(tuple(d for d in at if _same(d, decision)) for at in spikes)
        if all(same):
            return _Lifted(recurrence, neuron, inputs, start, same)
        reason = "its threshold differs from step to step"
    return reason


def _distinct(decisions: list[Decision]) -> list[Decision]:
    found: list[Decision] = []
    for decision in decisions:
        if not any(_same(decision, other) for other in found):
            found.append(decision)
    return found


def _same(a: Decision, b: Decision) -> bool:
    return a.at_threshold == b.at_threshold and torch.equal(a.threshold, b.threshold)


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


def _write(edit: Rewriter, lifted: _Lifted, name: str) -> None:
    graph, neuron, potentials = edit.graph.graph, lifted.neuron, lifted.recurrence.potentials
    with graph.inserting_before(next(iter(graph.nodes))):
        constants = {k: _constant(edit, f"{name}.{k}", a) for k, a in neuron.parameters.items() if isinstance(a, Tensor)}
        v = _constant(edit, f"{name}.v", lifted.start.v)
    options = {k: a for k, a in neuron.parameters.items() if not isinstance(a, Tensor)}
    keywords = {**{k: n for k, n in constants.items() if k not in ("decay", "threshold")}, **options}
    if options["reset"] == "hard":
        keywords.setdefault("v_reset", constants.get("v_reset"))
    edit.did(lifted.recurrence.decisions[0], f"{RECOGNISED}{neuron}")
    for potential, given, spikes in zip(potentials, lifted.inputs, lifted.spikes, strict=True):
        with graph.inserting_before(potential.next):
            x = _sum(edit, given)
            step = graph.call_function(
                LIF_STEP, (x, v, constants["decay"], constants["threshold"]), dict(sorted(keywords.items()))
            )
            step.meta = {**origin_of(potential), "neuron": name}
            s, v, h = (graph.call_function(operator.getitem, (step, OUTPUT_NAMES.index(k))) for k in ("s", "v", "h"))
        for decision in spikes:
            _replace_decision(graph, decision, s)
        if potential not in given.nodes:
            potential.replace_all_uses_with(h)


def _replace_decision(graph: fx.Graph, decision: Decision, s: fx.Node) -> None:
    """What is the spikes or a multiple of them is written so; a mask is ``s > 0``, and the rest is computed from that."""
    node, value = decision.node, decision.node.meta["val"]
    with graph.inserting_before(node.next):
        if not value.is_floating_point():
            if decision.low or value.dtype != torch.bool:
                return
            node.replace_all_uses_with(graph.call_function(aten.gt.Scalar, (s, 0.0)))
        elif decision.low == 0.0:
            node.replace_all_uses_with(s if decision.high == 1.0 else graph.call_function(aten.mul.Tensor, (s, decision.high)))


def _constant(edit: Rewriter, name: str, value: Tensor) -> fx.Node:
    kept = value.clone() if not value.dim() else value.to(edit.graph.dtype, copy=True)  # it may be one of the model's own tensors
    return edit.graph.add_tensor(re.sub(r"\W", "_", name), kept)


def _sum(edit: Rewriter, given: Input) -> fx.Node:
    """``sum_k weights[k]*nodes[k] + offset`` as operators."""
    graph = edit.graph.graph
    total: Any = None
    for node, weight in zip(given.nodes, given.weights, strict=True):
        term = node if _is(weight, 1.0) else graph.call_function(aten.mul.Tensor, (node, _factor(edit, weight)))
        total = term if total is None else graph.call_function(aten.add.Tensor, (total, term))
    if not _is(given.offset, 0.0):
        total = graph.call_function(aten.add.Tensor, (total, _factor(edit, given.offset)))
    return total  # type: ignore[no-any-return]


def _factor(edit: Rewriter, value: Tensor) -> Any:
    return float(value) if not value.dim() else _constant(edit, "weight", value)


def _is(value: Tensor, number: float) -> bool:
    return not value.dim() and float(value) == number
