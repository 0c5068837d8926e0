"""Chains of decisions in an unrolled graph: what may be one neuron at its steps.

A neuron shows as a *decision* per step (a comparison, a sign, a rounding) on a *potential*, and the potential of a step is
computed elementwise from that of the step before. Decisions are grouped into chains by that, helped by the module and the source
line they come from and by the step of the sequence they read. What a chain is, is for :mod:`snngraph.analysis.recurrences` and
:mod:`snngraph.analysis.identification` to find out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from snngraph.analysis.elementwise import DISCONTINUOUS, Elementwise
from snngraph.graph import arguments, is_op, module_path, shape_of, source_line

__all__ = ["TWO_VALUES", "Chain", "find_chains"]

aten = torch.ops.aten
TWO_VALUES = "it compares two values that both change over time, as an adaptive threshold does"


@dataclass(frozen=True)
class Chain:
    """The decisions of one candidate, in the order of time.

    Args:
        decisions: one operator of :data:`DISCONTINUOUS` per step.
        paths: for each, what it decides on: its operand, and on through operators of one varying operand, up to the first
            that joins several. As long as the shortest of them; empty where a decision joins two varying values itself.
    """

    decisions: tuple[fx.Node, ...]
    paths: tuple[tuple[fx.Node, ...], ...]


def find_chains(area: Elementwise, steps: int) -> tuple[list[Chain], dict[fx.Node, str]]:
    """The chains of ``steps`` decisions; and why others are none, by their first decision. One step shows no recurrence."""
    left = [d for node in area.order if node in area and (d := _decision(area, node)) is not None] if steps > 1 else []
    found: list[list[_Decision]] = []
    label = _labels(area, steps)
    for key in _KEYS:
        rest: list[_Decision] = []
        for members in _grouped(left, key):
            for connected in _connected(area, members):
                whole, others = _split(area, connected, steps, label)
                found.extend(whole)
                rest.extend(others)
        left = sorted(rest, key=lambda d: area.order[d.node])
    known = set().union(*(_reached(area, members[0]) for members in found))
    refused, firsts = {}, [members[0] for members in found]
    for members in _grouped(left, _KEYS[0]):
        for part in _connected(area, members):
            if len(part) == steps - 1:  # two neurons with one input, alike at the first step, have one decision there
                joined = [[first, *part] for first in firsts]
                found.extend(whole for whole in joined if _in_order(area, whole))
            if len(part) > 1 and not any(n in known for n in _ends(area, part[0])):
                refused[part[0].node] = f"it decides {len(part)} times in {steps} steps" if part[0].path else TWO_VALUES
    return [_chain(members) for members in found], refused


@dataclass(frozen=True)
class _Decision:
    node: fx.Node
    path: tuple[fx.Node, ...]


def _decision(area: Elementwise, node: fx.Node) -> _Decision | None:
    if node.target not in DISCONTINUOUS or not area.operands(node):
        return None
    if not all(n.meta["val"].is_floating_point() for n in area.operands(node)):
        return None
    if len(area.operands(node)) > 1:
        return _Decision(node, ())
    path = [area.operands(node)[0]]
    while len(operands := area.operands(path[-1])) == 1:
        if path[-1].target in DISCONTINUOUS or not operands[0].meta["val"].is_floating_point():
            return None  # it decides on what another decision made
        path.append(operands[0])
    return None if path[-1].target in DISCONTINUOUS else _Decision(node, tuple(path))


def _signature(node: fx.Node) -> Any:
    return node.target, tuple(a for a in node.args if not isinstance(a, fx.Node) or a.op == "get_attr")


_KEYS: tuple[Callable[[_Decision], Any], ...] = (
    lambda d: (module_path(d.node), source_line(d.node), _signature(d.node)),
    lambda d: (module_path(d.node), _signature(d.node)),
    lambda d: _signature(d.node),
    lambda d: None,
)


def _grouped(decisions: list[_Decision], key: Callable[[_Decision], Any]) -> list[list[_Decision]]:
    groups: dict[Any, list[_Decision]] = defaultdict(list)
    for decision in decisions:
        groups[key(decision), not decision.path].append(decision)
    for members in groups.values():
        length = min(len(m.path) for m in members)
        members[:] = [_Decision(m.node, m.path[:length]) for m in members]
    return list(groups.values())


def _ends(area: Elementwise, decision: _Decision) -> list[fx.Node]:
    return [decision.path[-1]] if decision.path else area.operands(decision.node)


def _reached(area: Elementwise, decision: _Decision) -> set[fx.Node]:
    return set().union(*(area.descendants(n) for n in _ends(area, decision)))


def _connected(area: Elementwise, members: list[_Decision]) -> list[list[_Decision]]:
    """The members in parts: the first that is left, and all that depend on it."""
    parts = []
    while members:
        reached = _reached(area, members[0])
        part = [members[0], *(m for m in members[1:] if any(n in reached for n in _ends(area, m)))]
        parts.append(part)
        members = [m for m in members if m not in part]
    return parts


def _in_order(area: Elementwise, members: list[_Decision]) -> bool:
    """Whether each depends on the one before."""
    seen: set[fx.Node] = set()
    before: list[fx.Node] = []
    for member in members:
        new = set[fx.Node]()
        for end in _ends(area, member):
            new |= area.ancestors(end, seen | new)
        read = {n for node in new for n in area.operands(node)}
        if before and not any(n in read for n in before):
            return False
        seen |= new
        before = _ends(area, member)
    return True


def _split(
    area: Elementwise, members: list[_Decision], steps: int, label: dict[fx.Node, int]
) -> tuple[list[list[_Decision]], list[_Decision]]:
    """Chains of ``steps`` members each, and the rest.

    Several chains are told apart by the step of the sequence their members read; else they take turns, or follow one another.
    """
    by_step: dict[int, list[_Decision]] = defaultdict(list)
    for member in members:
        by_step[label[member.node]].append(member)
    count, odd = divmod(len(members), steps)
    ways = []
    if len(by_step) == steps:
        ways.append([list(chain) for chain in zip(*(by_step[t] for t in sorted(by_step)), strict=False)])
    if not odd and steps > 1:
        ways.append([members[k::count] for k in range(count)])
        ways.append([members[k * steps : (k + 1) * steps] for k in range(count)])
    for way in ways:
        if way and all(_in_order(area, chain) for chain in way):
            used = {member.node for chain in way for member in chain}
            return way, [m for m in members if m.node not in used]
    return [], members


def _labels(area: Elementwise, steps: int) -> dict[fx.Node, int]:
    """The latest step of the sequence that every node reads, -1 where it reads none."""
    found: dict[fx.Node, int] = {}
    for node in area.order:
        found[node] = max((found[n] for n in node.all_input_nodes), default=-1)
        if is_op(node, aten.select.int):
            given = arguments(node)
            if shape_of(given["self"])[given["dim"]] == steps:
                found[node] = max(found[node], given["index"] % steps)
    return found


def _chain(members: list[_Decision]) -> Chain:
    length = min(len(m.path) for m in members)
    return Chain(tuple(m.node for m in members), tuple(m.path[:length] for m in members))
