"""When a neuron fires, and what it emits: functions of its membrane potential that jump."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from snngraph.analysis.elementwise import Elementwise, Program
from snngraph.graph import shape_of
from snngraph.ops import emit_spikes

__all__ = ["Emitted", "Firing", "along_probes", "bends", "emitted", "firings", "sampled", "tidy", "unit_of"]

_STEPS = 41
_NUMBERS = 1 << 18  # at a time


@dataclass(frozen=True)
class Firing:
    """A neuron's decision, as :func:`snngraph.ops.emit_spikes` takes it.

    Args:
        threshold: 0-d, or as it varies over the neurons of a step.
        fire: ``">="`` or ``">"``.
        emit: ``"spike"``, ``"count"`` or ``"signed"``.
    """

    threshold: Tensor
    fire: str
    emit: str = "spike"


@dataclass(frozen=True)
class Emitted:
    """An operator that computes what a neuron emits.

    Args:
        node: the operator.
        kind: ``factor`` times what it emits, or where that is positive, negative, or not zero.
        factor: a number.
    """

    node: fx.Node
    kind: Literal["spikes", "positive", "negative", "nonzero"]
    factor: float = 1.0


class _Functions:
    """All functions of one potential alone, on numbers; not those by way of another one."""

    def __init__(self, area: Elementwise, potential: fx.Node, potentials: Collection[fx.Node]) -> None:
        found = {potential}
        for node in sorted(area.descendants(potential) - found, key=area.order.__getitem__):
            if node not in potentials and all(n in found for n in area.operands(node)):
                found.add(node)
        self.potential = potential
        self.nodes = sorted(found - {potential}, key=area.order.__getitem__)
        self.program = Program(area, self.nodes, set(self.nodes))

    def __call__(self, h: Tensor, *, ties: bool = False) -> dict[fx.Node, Tensor]:
        values = self.program.run({self.potential: h}, ties=ties)
        return {node: values[node].double() for node in self.nodes}


def firings(area: Elementwise, potential: fx.Node, potentials: Collection[fx.Node]) -> list[Firing]:
    """What the functions of ``potential`` alone that jump can mean; ``potentials`` are those of all neurons."""
    functions = _Functions(area, potential, potentials)
    values = functions(along_probes(_grid(), potential))
    spikes, counts = list[Firing](), list[Firing]()
    for node, value in values.items():
        jumps = (value[1:] != value[:-1]).sum(0)
        if bool((jumps == 1).all()):
            spikes.extend(_jump(functions, node, value, "spike"))
        elif bool((value[: _STEPS + 1] == 0).all() & (jumps > 1).all() & (value == value.round()).all()):
            counts.extend(_jump(functions, node, value, "count"))
    mirrored = [_signed(a, b) for a in spikes for b in spikes if bool((a.threshold > 0).all())]
    signed = [f for f in mirrored if f is not None]
    return _distinct([*([] if signed else spikes), *signed, *counts])


def _grid() -> Tensor:
    powers = 2.0 ** torch.linspace(-20, 20, _STEPS, dtype=torch.float64)
    return torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers])


def along_probes(values: Tensor, like: fx.Node) -> Tensor:
    """Numbers ``[P]`` as values of a node: ``[P, 1, ...]``."""
    return values.reshape(-1, *[1] * len(shape_of(like)))


def bends(constants: Sequence[Tensor], threshold: Tensor) -> Tensor:
    """Where a function may bend that computes with these numbers, as a clamp or a second comparison does.

    Close to them on both sides and far beyond; ``[P]``, in units above the threshold (the first neuron's).
    """
    numbers = [c for c in sorted({abs(float(c)) for c in constants if not c.dim()}) if 0 < c < torch.inf]
    near = [1 + side * 10.0**-k for k in range(1, 9) for side in (1, -1)]
    factors = torch.tensor([*near, *(2.0**k for k in range(-12, 13, 2))], dtype=torch.float64)
    meant = torch.tensor([side * c for c in numbers for side in (1, -1)], dtype=torch.float64)
    unit = unit_of(threshold).flatten()[0]
    return (torch.outer(meant, factors).flatten() - threshold.flatten()[0]) / unit


def sampled(pool: Tensor, extent: torch.Size, like: fx.Node) -> Tensor:
    """Numbers ``[P]`` for every neuron, as values of a node: all of them, or some at random where there are many neurons."""
    neurons = extent.numel()
    if len(pool) * neurons <= _NUMBERS:
        return along_probes(pool, like)
    chosen = torch.randint(len(pool), (max(4, _NUMBERS // neurons), neurons), generator=torch.Generator().manual_seed(2))
    return pool[chosen].reshape(-1, *[1] * (len(shape_of(like)) - len(extent)), *extent)


def _jump(functions: _Functions, node: fx.Node, value: Tensor, emit: str) -> list[Firing]:
    """Where ``node`` first stops being what it is far below: to the last bit, then moved to the constant that is meant."""
    grid, low = _grid(), value[0]
    above = (value != low).long().argmax(0)
    a, b = grid[above - 1], grid[above]
    while bool((((middle := (a + b) / 2) != a) & (middle != b)).any()):
        is_low = functions(middle.unsqueeze(0))[node][0] == low
        a, b = torch.where(is_low, middle, a), torch.where(is_low, b, middle)
    threshold = tidy(b, functions.program.constants)
    at = functions(threshold.expand_as(low).unsqueeze(0), ties=True)[node][0]
    just_above = functions((b + 1e-6 * unit_of(b)).unsqueeze(0))[node][0]
    if not bool((at == low).all() | (at == just_above).all()):
        return []
    rises = bool((just_above > low).all())
    fires_at = bool((at == just_above).all())
    return [Firing(threshold, ">=" if fires_at else ">", emit if rises or emit == "count" else f"not {emit}")]


def _signed(a: Firing, b: Firing) -> Firing | None:
    """Both signs, where ``a`` fires above a threshold and ``b`` below its negative."""
    if a.emit != "spike" or b.emit != "not spike" or not torch.equal(a.threshold, -b.threshold):
        return None
    return Firing(a.threshold, a.fire, "signed") if (a.fire == ">=") == (b.fire == ">") else None


def _distinct(found: list[Firing]) -> list[Firing]:
    result: list[Firing] = []
    for a in (Firing(f.threshold, f.fire, f.emit.removeprefix("not ")) for f in found):
        if not any(a.fire == b.fire and a.emit == b.emit and torch.equal(a.threshold, b.threshold) for b in result):
            result.append(a)
    return result


def emitted(area: Elementwise, potential: fx.Node, potentials: Collection[fx.Node], firing: Firing) -> list[Emitted]:
    """The functions of ``potential`` that are what the neuron emits, or a mask of it; in the order of the graph."""
    functions = _Functions(area, potential, potentials)
    unit = unit_of(firing.threshold)
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(1024, generator=generator, dtype=torch.float64) * torch.tensor([0.01, 1.0, 4.0, 100.0]).repeat(256)
    near = torch.tensor([s * 10.0**-k for k in range(1, 9) for s in (1, -1)], dtype=torch.float64)
    sides = (1.0, -1.0) if firing.emit == "signed" else (1.0,)
    pool = torch.cat([near, _grid(), spread, bends(functions.program.constants, firing.threshold)])
    offsets = sampled(pool, firing.threshold.shape, potential)
    h = torch.cat([side * firing.threshold + unit * offsets for side in sides])
    ties = torch.cat([along_probes(torch.tensor([side], dtype=torch.float64), potential) * firing.threshold for side in sides])
    values, at = functions(h), functions(ties, ties=True)
    s = torch.cat([emit_spikes(x, firing.threshold, firing.fire, firing.emit) for x in (h, ties)])
    result = []
    for node in functions.nodes:
        kind = _kind(node, torch.cat([values[node], at[node]]), s)
        result.extend([] if kind is None else [kind])
    return result


def _kind(node: fx.Node, value: Tensor, s: Tensor) -> Emitted | None:
    if node.meta["val"].is_floating_point():
        value, s = torch.broadcast_tensors(value, s)
        factor = float(value[s == 1][0])
        same = (value - factor * s).abs() <= 1e-12 * abs(factor)  # (spike - soft) + soft is one but for rounding
        return Emitted(node, "spikes", round(factor, 12)) if factor and bool(same.all()) else None
    if bool((value == (s > 0)).all()):
        return Emitted(node, "positive")
    if bool((value == (s < 0)).all()):
        return Emitted(node, "negative")
    return Emitted(node, "nonzero") if bool((value == (s != 0)).all()) else None


def unit_of(threshold: Tensor) -> Tensor:
    """The scale of a neuron's numbers: its threshold, or 1."""
    return torch.where(threshold == 0, torch.ones_like(threshold), threshold.abs())


def tidy(value: Tensor, constants: Sequence[Tensor], scale: float = 1.0) -> Tensor:
    """The number or tensor that is meant by one known up to rounding.

    Args:
        value: for every neuron of a step.
        constants: what the model computes with: where one of them fits, it is meant.
        scale: of the arithmetic that gave ``value``: a far smaller one is zero.

    Returns:
        0-d if all neurons have the same.
    """
    value = torch.where(value.abs() < 1e-13 * scale, torch.zeros_like(value), value)
    if bool((value - value.flatten()[0]).abs().max() <= 1e-13 * value.abs().max()):
        return _tidy_number(float(value.flatten()[0]), constants)
    while value.dim() > 1 and value.shape[0] == 1:
        value = value[0]
    for constant in constants:
        for meant in (constant, 1 - constant) if constant.is_floating_point() else ():
            if meant.shape == value.shape and bool(((value - meant).abs() <= 1e-14 * (meant.abs() + scale)).all()):
                return meant
    return value


def _tidy_number(number: float, constants: Sequence[Tensor]) -> Tensor:
    numbers = [float(c) for c in constants if c.dim() == 0 and c.is_floating_point()]
    shorter = [float(f"{number:.{digits}g}") for digits in range(1, 13)]
    fitting = (c for c in (*numbers, *(1 - c for c in numbers), *shorter) if abs(c - number) <= 4e-15 * abs(number))
    return torch.tensor(next(fitting, number), dtype=torch.float64)
