"""Recurrences in an unrolled graph: one value per step, each computed elementwise from the one before.

The potentials of a chain of decisions (:mod:`snngraph.analysis.chains`) are taken where they alone carry what goes on to the next
step. Nothing here is proved to be a neuron: that is for :mod:`snngraph.analysis.identification`, on the step functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, fx

from snngraph.analysis.chains import TWO_VALUES, Chain
from snngraph.analysis.elementwise import Elementwise, Program

__all__ = ["Recurrence", "Step", "resolve", "step_functions"]


@dataclass(frozen=True)
class Step:
    """One potential as a function of the state before and of inputs.

    Args:
        program: the operators.
        before: the state before: the potential of the step before, or what that left.
        potential: the potential of this step.
        inputs: what else is read, none of it dependent on earlier potentials; in the order of its use.
        after: what the step leaves, where that is not the potential itself; ``None`` also after the last step.
    """

    program: Program
    before: fx.Node
    potential: fx.Node
    inputs: tuple[fx.Node, ...]
    after: fx.Node | None = None

    def __call__(self, before: Tensor, inputs: Sequence[Tensor], *, ties: bool = False) -> dict[fx.Node, Tensor]:
        """The values of all nodes for those of the state and the inputs, ``[P, ...]`` each; ``ties`` as :meth:`Program.run`."""
        return self.program.run({**dict(zip(self.inputs, inputs, strict=True)), self.before: before}, ties=ties)


@dataclass(frozen=True)
class Recurrence:
    """A chain whose potential of every step is a function of the state before and of inputs, and of nothing else.

    Args:
        decisions: as in :class:`Chain`.
        potentials: what the decisions are about.
        steps: the step functions of all potentials but the first.
        input_is_first: whether the first potential itself is the input of every step (a constant input to a state of zero).
    """

    decisions: tuple[fx.Node, ...]
    potentials: tuple[fx.Node, ...]
    steps: tuple[Step, ...]
    input_is_first: bool = False

    @property
    def has_state(self) -> bool:
        """Whether what a step leaves is more than a function of its potential."""
        return self.steps[-1].before is not self.potentials[-2]


def resolve(area: Elementwise, chain: Chain) -> Recurrence | str:
    """The chain's potentials, as near to the decisions as they carry all that goes on; or why there are none."""
    if not chain.paths[0]:
        return TWO_VALUES
    first = chain.paths[0][-1]
    touched = area.descendants(first)
    for k in range(len(chain.paths[0])):
        potentials = tuple(path[k] for path in chain.paths)
        found = step_functions(area, potentials, touched, first)
        if found is not None:
            if not all(step.inputs for step in found[0]):
                return "a step has no input"
            return Recurrence(chain.decisions, potentials, *found)
    potentials = tuple(path[-1] for path in chain.paths)
    steps = _with_state(area, potentials, touched)
    if steps is None:
        return "a step depends on more of its past than one membrane potential (an adaptive threshold? a second state?)"
    return Recurrence(chain.decisions, potentials, steps)


def step_functions(
    area: Elementwise, potentials: tuple[fx.Node, ...], touched: set[fx.Node], first: fx.Node
) -> tuple[tuple[Step, ...], bool] | None:
    """Every value but the first as a function of the one before and of inputs.

    Args:
        area: the elementwise operators.
        potentials: the values, in the order of time.
        touched: what depends on the first of them.
        first: where that begins.

    Returns:
        The functions, and whether ``first`` is the input of every step; ``None`` when a step reads more of the past.
    """
    seen = area.ancestors(potentials[0])
    steps, older = [], set()
    for before, potential in pairwise(potentials):
        new = area.ancestors(potential, seen)
        seen |= new
        program = Program(area, [potential], new & touched)
        if before not in program.leaves:
            return None
        inputs = tuple(n for n in program.leaves if n is not before)
        older |= {n for n in inputs if n in touched}
        steps.append(Step(program, before, potential, inputs))
    if older and (older != {first} or first is not potentials[0] or len(steps) < 2):
        return None
    if older:
        whole = steps[1].inputs
        others = tuple(n for n in whole if n is not first)
        if first not in whole or len(others) != len(steps[0].inputs):
            return None
        at = whole.index(first)
        steps[0] = replace(steps[0], inputs=(*steps[0].inputs[:at], first, *steps[0].inputs[at:]))
    return tuple(steps), bool(older)


def _with_state(area: Elementwise, potentials: tuple[fx.Node, ...], touched: set[fx.Node]) -> tuple[Step, ...] | None:
    """The steps by way of another value that alone connects each with what was before: what a step has left."""
    seen = area.ancestors(potentials[0])
    states: list[fx.Node] = []
    for potential in potentials[1:]:
        new = area.ancestors(potential, seen) & touched
        seen |= new
        state = next(
            (n for n in sorted(new - {potential}, key=area.order.__getitem__) if _cuts(area, n, potential, new, touched)), None
        )
        if state is None:
            return None
        states.append(state)
    steps = []
    for k, (before, potential) in enumerate(zip(states, potentials[1:], strict=True)):
        after = states[k + 1] if k + 1 < len(states) else None
        results = [potential] if after is None else [potential, after]
        program = Program(area, results, touched - area.ancestors(before))
        inputs = tuple(n for n in program.leaves if n is not before)
        if not inputs or any(n in touched for n in inputs):
            return None
        steps.append(Step(program, before, potential, inputs, after))
    return tuple(steps)


def _cuts(area: Elementwise, state: fx.Node, potential: fx.Node, new: set[fx.Node], touched: set[fx.Node]) -> bool:
    leaves = Program(area, [potential], new - area.ancestors(state)).leaves
    return state in leaves and not any(n in touched for n in leaves if n is not state)
