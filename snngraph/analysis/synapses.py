"""A neuron's input that is itself a leaky sum over time is its synaptic current.

``i_t = a*i_{t-1} + sum_k c_k*x_k`` and a charge that reads ``p*i_t + q`` are the operator's ``syn_decay=a``, ``syn_gain=c_1`` and
``input_gain=gain*p``; ``q`` belongs to its bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx

from snngraph.analysis.elementwise import Elementwise, Program
from snngraph.analysis.families import Families
from snngraph.analysis.firing import along_probes, tidy
from snngraph.analysis.identification import Neuron
from snngraph.analysis.recurrences import Recurrence, Step, step_functions
from snngraph.analysis.sequences import Fed, Input, counterparts, rest_before

__all__ = ["with_synapse"]

_EXACT = 1e-10
_DEPTH = 4


def with_synapse(area: Elementwise, recurrence: Recurrence, neuron: Neuron, families: Families) -> Fed | None:
    """The neuron with its synapse, if its only input is such a sum. Not yet proved over time."""
    if len(neuron.weights) != 1 or len(recurrence.steps) < 2:
        return None
    read = [step.inputs[0] for step in recurrence.steps]
    currents = list(read)
    for _ in range(_DEPTH):
        found = _recurrent(area, currents)
        if found is not None:
            return _absorbed(area, recurrence, neuron, families, read, *found)
        operands = [area.operands(n) for n in currents]
        if len({n.target for n in currents}) > 1 or any(len(o) != 1 for o in operands):
            return None
        currents = [o[0] for o in operands]
    return None


def _recurrent(area: Elementwise, currents: list[fx.Node]) -> tuple[tuple[fx.Node, ...], tuple[Step, ...]] | None:
    """The currents of all steps, the first included, and their step functions."""
    first = _at_the_step_before(area, currents[1], currents[0])
    if first is None:
        return None
    whole = (first, *currents)
    found = step_functions(area, whole, area.descendants(first), first)
    return None if found is None or found[1] or not all(step.inputs for step in found[0]) else (whole, found[0])


def _at_the_step_before(area: Elementwise, later: fx.Node, earlier: fx.Node) -> fx.Node | None:
    """The node that ``earlier`` is computed from as ``later`` is from ``earlier``: by the same operators, at the same places."""
    waiting: list[tuple[fx.Node, fx.Node]] = [(later, earlier)]
    seen: set[fx.Node] = set()
    while waiting:
        a, b = waiting.pop()
        if a is earlier:
            return b
        if a in seen or a not in area or a.target != b.target or len(a.args) != len(b.args):
            continue
        seen.add(a)
        waiting.extend((x, y) for x, y in zip(a.args, b.args, strict=True) if isinstance(x, fx.Node) and isinstance(y, fx.Node))
    return None


def _absorbed(
    area: Elementwise,
    recurrence: Recurrence,
    neuron: Neuron,
    families: Families,
    read: Sequence[fx.Node],
    currents: tuple[fx.Node, ...],
    steps: tuple[Step, ...],
) -> Fed | None:
    line = _line(steps[-1])
    scaled = [_scaled(area, u, y) for u, y in zip(read, currents[1:], strict=True)]
    if (
        line is None
        or not all(_is_line(step, *line) for step in steps)
        or any(s is None or not _equal(s, scaled[0]) for s in scaled)
    ):
        return None
    decay, gains = line
    assert scaled[0] is not None
    factor, offset = scaled[0]
    gain = neuron.parameters.get("input_gain", torch.ones((), dtype=torch.float64))
    bias = neuron.parameters.get("bias", torch.zeros((), dtype=torch.float64)) + gain * offset
    kept = {k: a for k, a in neuron.parameters.items() if k not in ("input_gain", "bias")}
    charge = {"input_gain": gain * factor, "bias": bias}
    kept |= {k: tidy(a, []) for k, a in charge.items() if not bool((a == (k == "input_gain")).all())}
    one = torch.ones((), dtype=torch.float64)
    v = rest_before(area, Neuron(kept, (one,)), recurrence.potentials[0], Input(currents[:1], (one,)))
    if v is None:
        return None
    constants = steps[-1].program.constants
    synapse = {"syn_decay": tidy(decay, constants), "syn_gain": tidy(gains[0], constants)}
    if bool((synapse["syn_gain"] == 1).all()):
        del synapse["syn_gain"]
    weights = tuple(tidy(g / gains[0], constants) for g in gains)
    i, start = _start(area, families, currents[0], steps[-1].inputs, synapse, weights)
    later = (Input(step.inputs, weights) for step in steps)
    return Fed(replace(neuron, parameters={**kept, **synapse}, weights=weights), v, i, (start, *later))


def _start(
    area: Elementwise,
    families: Families,
    first: fx.Node,
    inputs: Sequence[fx.Node],
    synapse: dict[str, Tensor],
    weights: tuple[Tensor, ...],
) -> tuple[Tensor | None, Input]:
    """The current before the first step, and that step's input."""
    gain = synapse.get("syn_gain", torch.ones((), dtype=torch.float64))
    as_membrane = Neuron(
        {"decay": synapse["syn_decay"], "input_gain": gain, "threshold": torch.ones(()), "reset": "none"}, weights
    )
    nodes = counterparts(area, families, first, inputs)
    if nodes is not None:
        i = rest_before(area, as_membrane, first, Input(nodes, weights))
        if i is not None:
            return (i if bool((i != 0).any()) else None), Input(nodes, weights)
    return None, Input((first,), (tidy(1 / gain, []),))


def _numbers(step: Step, rows: Sequence[Sequence[float]]) -> Tensor:
    """The results for rows of the state and the inputs."""
    columns = [along_probes(torch.tensor(c, dtype=torch.float64), step.potential) for c in zip(*rows, strict=True)]
    return step(columns[0], columns[1:])[step.potential]


def _line(step: Step) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """Decay and gains, if the step has no offset and every input counts."""
    count = len(step.inputs)
    rows = [[0.0] * (count + 1), *([float(j == k) for j in range(count + 1)] for k in range(count + 1))]
    values = _numbers(step, rows)
    decay, *gains = values[1:]
    usable = bool((values[0] == 0).all() & (gains[0] != 0).all() & values.isfinite().all())
    return (decay, tuple(gains)) if usable else None


def _is_line(step: Step, decay: Tensor, gains: Sequence[Tensor]) -> bool:
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.01, 1.0, 100.0, 1e4], dtype=torch.float64).repeat(64)
    rows = torch.randn(len(gains) + 1, 256, generator=generator, dtype=torch.float64) * scales
    columns = [along_probes(r, step.potential) for r in rows]
    found = step(columns[0], columns[1:])[step.potential]
    terms = [w * c for w, c in zip((decay, *gains), columns, strict=True)]
    size = sum(t.abs() for t in terms)
    return len(gains) == len(step.inputs) and bool(((found - sum(terms)).abs() <= _EXACT * size).all())


def _scaled(area: Elementwise, read: fx.Node, current: fx.Node) -> tuple[Tensor, Tensor] | None:
    """``p`` and ``q`` where ``read`` is ``p*current + q``."""
    if read is current:
        return torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    program = Program(area, [read], area.ancestors(read, {current}) - {current})
    points = torch.tensor([0.0, 1.0, -3.0, 100.0, -1e4], dtype=torch.float64)
    values = program.run({current: along_probes(points, current)})[read]
    offset, factor = values[0], values[1] - values[0]
    line = offset + factor * along_probes(points, current)
    size = offset.abs() + factor.abs() * along_probes(points, current).abs()
    return (factor, offset) if bool(((values - line).abs() <= _EXACT * size).all() & (factor != 0).all()) else None


def _equal(a: tuple[Tensor, Tensor] | None, b: tuple[Tensor, Tensor] | None) -> bool:
    return a is not None and b is not None and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
