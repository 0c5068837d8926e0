"""Where a neuron decides to fire: functions of its membrane potential that jump from one value to another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from snngraph.analysis.elementwise import Elementwise, Program
from snngraph.graph import shape_of

__all__ = ["Decision", "along_probes", "decisions_on", "tidy"]


@dataclass(frozen=True)
class Decision:
    """A function of a potential alone that takes two values: ``low`` below the threshold, ``high`` above it.

    Args:
        node: the operator.
        threshold: where it jumps; 0-d, or as it varies over the neurons of a step.
        at_threshold: whether it is ``high`` exactly there.
    """

    node: fx.Node
    threshold: Tensor
    at_threshold: bool
    low: float
    high: float


def decisions_on(area: Elementwise, potential: fx.Node) -> list[Decision]:
    """All functions of ``potential`` alone that jump once, in the order of the graph."""
    functions = _functions_of(area, potential)
    program = Program(area, functions, set(functions))
    powers = 2.0 ** torch.arange(-20, 21, dtype=torch.float64)
    grid = torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers])
    values = program.run({potential: along_probes(grid, potential)})
    result = []
    for node in functions:
        value = values[node].double()
        jumps = (value[1:] != value[:-1]).sum(0)
        low, high = float(value[0].flatten()[0]), float(value[-1].flatten()[0])
        if bool((jumps == 1).all() & (value[0] == low).all() & (value[-1] == high).all()) and low != high:
            threshold = _bisected(program, potential, node, grid, value)
            at = program.run({potential: threshold.expand_as(value[0]).unsqueeze(0)}, ties=True)[node].double()
            if bool((at == at.flatten()[0]).all()) and float(at.flatten()[0]) in (low, high):
                result.append(Decision(node, threshold, float(at.flatten()[0]) == high, low, high))
    return result


def along_probes(values: Tensor, like: fx.Node) -> Tensor:
    """Numbers ``[P]`` as values of a node: ``[P, 1, ...]``."""
    return values.reshape(-1, *[1] * len(shape_of(like)))


def _functions_of(area: Elementwise, potential: fx.Node) -> list[fx.Node]:
    found = {potential}
    for node in sorted(area.descendants(potential) - found, key=area.order.__getitem__):
        if all(n in found for n in area.operands(node)):
            found.add(node)
    return sorted(found - {potential}, key=area.order.__getitem__)


def _bisected(program: Program, potential: fx.Node, node: fx.Node, grid: Tensor, value: Tensor) -> Tensor:
    """Where ``node``, which is ``value`` on ``grid``, jumps: to the last bit, then moved to the constant that is meant."""
    low = value[0]
    last_low = (value == low).long().sum(0) - 1
    a, b = grid[last_low], grid[last_low + 1]
    while bool((((middle := (a + b) / 2) != a) & (middle != b)).any()):
        is_low = program.run({potential: middle.unsqueeze(0)})[node][0].double() == low
        a, b = torch.where(is_low, middle, a), torch.where(is_low, b, middle)
    return tidy(b, program.constants)


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
