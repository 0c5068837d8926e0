"""A recurrence as a neuron over its whole sequence: where it starts, what it is fed with, and the proof of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from snngraph import ops
from snngraph.analysis.elementwise import Elementwise, Program
from snngraph.analysis.families import Families
from snngraph.analysis.firing import along_probes, bends, tidy, unit_of
from snngraph.analysis.identification import Neuron
from snngraph.analysis.recurrences import Recurrence

__all__ = ["Fed", "Input", "counterparts", "is_neuron_over_time", "over_time", "rest_before"]

_EXACT = 1e-9
_PROBES = 64
_NUMBERS = 1 << 21  # over time
_ZERO = torch.zeros((), dtype=torch.float64)


@dataclass(frozen=True)
class Input:
    """A neuron's input at one step: ``sum_k weights[k]*nodes[k] + offset``."""

    nodes: tuple[fx.Node, ...]
    weights: tuple[Tensor, ...]
    offset: Tensor = field(default=_ZERO)

    def value(self, values: Sequence[Tensor]) -> Tensor:
        """The input for these values of the nodes."""
        return sum((w * x for w, x in zip(self.weights, values, strict=True)), self.offset)


@dataclass(frozen=True)
class Fed:
    """A neuron with all it computes from.

    Args:
        neuron: what it is.
        v: its membrane potential before the first step.
        i: its synaptic current before the first step, ``None`` where it has no synapse, or none flows.
        inputs: of every step.
    """

    neuron: Neuron
    v: Tensor
    i: Tensor | None
    inputs: tuple[Input, ...]


def over_time(area: Elementwise, recurrence: Recurrence, neuron: Neuron, families: Families) -> Fed:
    """The neuron from its first step on.

    The first step, which an export folds, is fed with what the others are fed with, if that is what it is computed from.
    Otherwise its potential is its input: a neuron at rest with the input ``(h_0 - bias)/input_gain`` has the potential ``h_0``.
    """
    first = recurrence.potentials[0]
    later = tuple(Input(step.inputs, neuron.weights) for step in recurrence.steps)
    inputs = recurrence.steps[-1].inputs
    nodes = (first,) if recurrence.input_is_first and len(inputs) == 1 else counterparts(area, families, first, inputs)
    if nodes is not None:
        start = Input(nodes, neuron.weights)
        v = rest_before(area, neuron, first, start)
        if v is not None:
            return Fed(neuron, v, None, (start, *later))
    gain, bias = (neuron.parameters.get(name, torch.tensor(value)) for name, value in (("input_gain", 1.0), ("bias", 0.0)))
    return Fed(neuron, _ZERO, None, (Input((first,), (tidy(1 / gain, []),), tidy(-bias / gain, [])), *later))


def counterparts(area: Elementwise, families: Families, first: fx.Node, inputs: Sequence[fx.Node]) -> tuple[fx.Node, ...] | None:
    """What is at the first step what ``inputs`` are at theirs, among all that ``first`` is computed from."""
    upstream = sorted(area.ancestors(first), key=area.order.__getitem__, reverse=True)
    found = [families.counterpart(n, 0, upstream) for n in inputs]
    known = tuple(n for n in found if n is not None)
    return known if len(known) == len(found) else None


def rest_before(area: Elementwise, neuron: Neuron, first: fx.Node, start: Input) -> Tensor | None:
    """The potential before the first step that makes its potential ``first``, if there is one."""
    program = Program(area, [first], area.ancestors(first) - set(start.nodes))
    if not set(program.leaves) <= set(start.nodes):
        return None
    given = neuron.parameters
    decay, gain, bias = given["decay"], given.get("input_gain", 1.0), given.get("bias", 0.0)
    generator = torch.Generator().manual_seed(1)
    unit = float(unit_of(given["threshold"]).max())
    normal = (torch.randn(_PROBES, generator=generator, dtype=torch.float64) * 3 * unit for _ in start.nodes)
    apart = bends(program.constants, torch.zeros(()))  # the first step alone may clamp what it is given
    wide = (torch.cat([x, 1e2 * x, 1e4 * x, apart[torch.randperm(len(apart), generator=generator)]]) for x in normal)
    numbers = [along_probes(x, first) for x in wide]
    found = program.run(dict(zip(start.nodes, numbers, strict=True)))[first]
    x = start.value(numbers)
    near = found[:_PROBES]
    left = (found - gain * x - bias)[:_PROBES]
    if "floor" in given and given.get("delay", "none") != "none":
        left = torch.where(near > given["floor"], left, torch.full_like(left, torch.nan)).nanmedian(0, keepdim=True).values
    left = left[0]
    left = torch.where(left.abs() <= 1e-13 * unit, torch.zeros_like(left), left)
    if bool(((decay == 0) & (left != 0)).any()):
        return None
    v = tidy(torch.where(left == 0, left, left / decay), program.constants, unit)
    x = x.expand(torch.broadcast_shapes(x.shape, found.shape))
    others = {k: a for k, a in given.items() if k not in ("decay", "threshold")}
    h = ops.lif_step_reference(x, v, decay, given["threshold"], **others).h
    return v if bool(((h - found).abs() <= _EXACT * (unit + (x * gain).abs() + v.abs())).all()) else None


def is_neuron_over_time(area: Elementwise, recurrence: Recurrence, fed: Fed) -> bool:
    """Whether all potentials are those of the neuron, on random sequences that make it fire at 5 to 60 % of its steps.

    Where a potential comes so near to the threshold that rounding decides, the two may go apart; such neurons are left out.
    """
    inner: set[fx.Node] = set()
    for potential in recurrence.potentials:
        inner |= area.ancestors(potential, inner)
    read = {n for given in fed.inputs for n in given.nodes}
    program = Program(area, recurrence.potentials, inner - read)
    if not set(program.leaves) <= read:
        return False
    given, first = fed.neuron.parameters, recurrence.potentials[0]
    gain = torch.as_tensor(given.get("input_gain", 1.0) * given.get("syn_gain", 1.0))
    base = float((unit_of(given["threshold"]) / gain.abs()).median())
    proved = 0
    count = max(2, min(_PROBES, _NUMBERS // (program.extent.numel() * len(recurrence.potentials))))
    for power in range(-4, 8):
        generator = torch.Generator().manual_seed(power + 4)
        numbers = (torch.randn(count, generator=generator, dtype=torch.float64) + 0.3 for _ in program.leaves)
        values = {n: along_probes(x * base * 2.0**power, first) for n, x in zip(program.leaves, numbers, strict=True)}
        rate = _rate_of_proof(recurrence, fed, values | program.run(values))
        if rate is None:
            return False
        proved += 0.05 <= rate <= 0.6
        if proved == 2:
            break
    return proved > 0


def _rate_of_proof(recurrence: Recurrence, fed: Fed, values: dict[fx.Node, Tensor]) -> float | None:
    """The firing rate of a sequence in which all potentials agree; ``None`` when they do not."""
    given = dict(fed.neuron.parameters)
    decay, threshold = given.pop("decay"), given.pop("threshold")
    v, i, fired = fed.v, fed.i, 0.0
    apart = torch.zeros((), dtype=torch.bool)
    size = unit_of(threshold)
    for potential, step in zip(recurrence.potentials, fed.inputs, strict=True):
        wanted = values[potential]
        x = step.value([values[n] for n in step.nodes])
        x = x.expand(torch.broadcast_shapes(x.shape, wanted.shape, threshold.shape))
        s, v, current, h = ops.lif_step_reference(x, v, decay, threshold, i=i, **given)
        i = current if current.numel() else None
        size = torch.maximum(torch.maximum(size, h.abs()), x.abs())
        if not bool((apart | ((h - wanted).abs() <= _EXACT * size)).all()):
            return None
        apart = apart | ((h.abs() - threshold).abs() <= 10 * _EXACT * size)
        fired += float((s != 0).double().mean()) / len(fed.inputs)
    return fired
