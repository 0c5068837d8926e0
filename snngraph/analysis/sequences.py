"""A recurrence as a neuron over its whole sequence: where it starts, what it is fed with, and the proof of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snngraph import ops
from snngraph.analysis.decisions import along_probes, tidy
from snngraph.analysis.elementwise import Elementwise, Program
from snngraph.analysis.families import Families
from snngraph.analysis.identification import Neuron, unit_of
from snngraph.analysis.recurrences import Recurrence

__all__ = ["Input", "Start", "is_neuron_over_time", "start_of"]

_EXACT = 1e-9
_PROBES = 64


@dataclass(frozen=True)
class Input:
    """A neuron's input at one step: ``sum_k weights[k]*nodes[k] + offset``."""

    nodes: tuple[fx.Node, ...]
    weights: tuple[Tensor, ...]
    offset: Tensor

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The input for these values of the nodes."""
        return sum((w * x for w, x in zip(self.weights, values, strict=True)), self.offset)


@dataclass(frozen=True)
class Start:
    """How a recurrence begins.

    Args:
        v: the membrane potential before the first step.
        input: of the first step.
    """

    v: Tensor
    input: Input


def start_of(area: Elementwise, recurrence: Recurrence, neuron: Neuron, families: Families) -> Start:
    """The first step, which an export folds: fed with what the later steps are fed with, if that is what it is computed from.

    Otherwise its potential is its input: a neuron at rest with the input ``(h_0 - bias)/input_gain`` has the potential ``h_0``.
    """
    first = recurrence.potentials[0]
    zero = torch.zeros((), dtype=torch.float64)
    upstream = sorted(area.ancestors(first), key=area.order.__getitem__, reverse=True)
    nodes = [families.counterpart(n, 0, upstream) for n in recurrence.steps[-1].inputs]
    if recurrence.input_is_first:
        nodes = [first]
    known = tuple(n for n in nodes if n is not None)
    if len(known) == len(nodes):
        program = Program(area, [first], set(upstream) - set(known))
        if set(program.leaves) <= set(known):
            v = _rest(neuron, program, first, known)
            if v is not None:
                return Start(v, Input(known, neuron.weights, zero))
    gain, bias = (neuron.parameters.get(name, torch.tensor(value)) for name, value in (("input_gain", 1.0), ("bias", 0.0)))
    return Start(zero, Input((first,), (tidy(1 / gain, []),), tidy(-bias / gain, [])))


def _rest(neuron: Neuron, program: Program, first: fx.Node, nodes: tuple[fx.Node, ...]) -> Tensor | None:
    """The potential before the first step that makes it ``first``, if there is one."""
    given = neuron.parameters
    decay, gain, bias = given["decay"], given.get("input_gain", 1.0), given.get("bias", 0.0)
    generator = torch.Generator().manual_seed(1)
    unit = float(unit_of(given["threshold"]).max())
    numbers = [along_probes(torch.randn(_PROBES, generator=generator, dtype=torch.float64) * 3 * unit, first) for _ in nodes]
    found = program.run(dict(zip(nodes, numbers, strict=True)))[first]
    x = Input(nodes, neuron.weights, torch.zeros((), dtype=torch.float64)).value(numbers)
    left = found - gain * x - bias
    if "floor" in given and given.get("delay", "none") != "none":
        left = torch.where(found > given["floor"], left, torch.full_like(left, torch.nan)).nanmedian(0, keepdim=True).values
    left = left[:1].expand(1, *found.shape[1:])[0]
    left = torch.where(left.abs() <= 1e-13 * unit, torch.zeros_like(left), left)
    if bool(((decay == 0) & (left != 0)).any()):
        return None
    v = tidy(torch.where(left == 0, left, left / decay), program.constants, unit)
    x = x.expand(torch.broadcast_shapes(x.shape, found.shape))
    others = {k: a for k, a in given.items() if k not in ("decay", "threshold")}
    h = ops.lif_step_reference(x, v, decay, given["threshold"], **others).h
    return v if bool(((h - found).abs() <= 1e-10 * (unit + x.abs() * gain + v.abs())).all()) else None


def is_neuron_over_time(area: Elementwise, recurrence: Recurrence, neuron: Neuron, inputs: Sequence[Input], start: Start) -> bool:
    """Whether all potentials are those of ``neuron``, on random sequences that make it fire at 5 to 60 % of its steps.

    Where a potential comes so near to the threshold that rounding decides, the two may go apart; such neurons are left out.
    """
    inner = set().union(*(step.program.nodes for step in recurrence.steps))
    first = recurrence.potentials[0]
    if first not in start.input.nodes:
        inner |= area.ancestors(first) - set(start.input.nodes)
    program = Program(area, recurrence.potentials, inner)
    given = neuron.parameters
    threshold, unit = given["threshold"], unit_of(given["threshold"])
    gain = torch.as_tensor(given.get("input_gain", 1.0)).abs()
    base = float((unit / gain).median())
    proved = 0
    for power in range(-4, 8):
        generator = torch.Generator().manual_seed(power + 4)
        values = {
            leaf: along_probes((torch.randn(_PROBES, generator=generator, dtype=torch.float64) + 0.3) * base * 2.0**power, first)
            for leaf in program.leaves
        }
        found = program.run(values)
        found |= values
        rate, agrees = _compare(recurrence, neuron, inputs, start, found, threshold, unit)
        if not agrees:
            return False
        proved += 0.05 <= rate <= 0.6
        if proved == 2:
            break
    return proved > 0


def _compare(
    recurrence: Recurrence,
    neuron: Neuron,
    inputs: Sequence[Input],
    start: Start,
    values: dict[fx.Node, Tensor],
    threshold: Tensor,
    unit: Tensor,
) -> tuple[float, bool]:
    others = {k: a for k, a in neuron.parameters.items() if k not in ("decay", "threshold")}
    v, fired, steps = start.v, 0.0, len(recurrence.potentials)
    apart = torch.zeros((), dtype=torch.bool)
    size: Tensor = unit
    for potential, given in zip(recurrence.potentials, inputs, strict=True):
        wanted = values[potential]
        x = given.value([values[n] for n in given.nodes])
        x = x.expand(torch.broadcast_shapes(x.shape, wanted.shape, threshold.shape))
        s, v, _, h = ops.lif_step_reference(x, v, neuron.parameters["decay"], threshold, **others)
        size = torch.maximum(torch.maximum(size, h.abs()), x.abs())
        if not bool((apart | ((h - wanted).abs() <= _EXACT * size)).all()):
            return 0.0, False
        apart = apart | ((h - threshold).abs() <= 10 * _EXACT * size)
        fired += float(s.mean()) / steps
    return fired, True
