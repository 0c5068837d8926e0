"""Elementwise arithmetic: which entries come from which, and running a piece of it on numbers of one's own.

An elementwise operator computes every entry of its result from the same entry of its operands. A piece of a graph made of these
alone, cut off at some of its nodes, is a function of one number per cut node; :class:`Program` runs it on as many such numbers at
once as wanted, in float64. Constants keep the extent in which they vary (per channel, per neuron); all else has extent 1.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.analysis.batch import ELEMENTWISE
from snngraph.graph import SpikingGraph, is_op, operand, shape_of

__all__ = ["DISCONTINUOUS", "Elementwise", "Program", "TooLargeError"]

aten = torch.ops.aten
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
COMPARISONS = frozenset(op for name in _COMPARISONS for op in (getattr(aten, name).Tensor, getattr(aten, name).Scalar))
_ROUNDING = (aten.sign.default, aten.floor.default, aten.ceil.default, aten.round.default, aten.trunc.default)
DISCONTINUOUS = COMPARISONS | frozenset((*_ROUNDING, aten.div.Tensor_mode))
"""Operators whose result jumps where their operand crosses a value."""

_FILLED = (aten.full.default, aten.full_like.default)
_ONES, _ZEROS = (aten.ones.default, aten.ones_like.default), (aten.zeros.default, aten.zeros_like.default)
_TIE = 1e-12
_LARGEST_CONSTANT = 1 << 22


class TooLargeError(Exception):
    """A constant that is not written out is too large to be computed."""


class Elementwise:
    """The elementwise part of a graph.

    Args:
        graph: must not change while this is used.
    """

    def __init__(self, graph: SpikingGraph) -> None:
        self.graph = graph
        self.order = {node: k for k, node in enumerate(graph.nodes)}
        self._varies: set[fx.Node] = set()
        self._operands: dict[fx.Node, list[fx.Node]] = {}
        self._constants: dict[fx.Node, Tensor] = {}
        for node in self.order:
            if node.op == "placeholder" or (
                any(n in self._varies for n in node.all_input_nodes) and self._filled_with(node) is None
            ):
                self._varies.add(node)
                if self._is_elementwise(node):
                    self._operands[node] = [n for n in node.all_input_nodes if n in self._varies]

    def __contains__(self, node: fx.Node) -> bool:
        """Whether ``node`` is elementwise in operands that depend on an input."""
        return node in self._operands

    def operands(self, node: fx.Node) -> list[fx.Node]:
        """What an elementwise node computes from, constants left out; nothing for other nodes."""
        return self._operands.get(node, [])

    def _is_elementwise(self, node: fx.Node) -> bool:
        if node.op != "call_function" or node.target not in ELEMENTWISE or not isinstance(node.meta["val"], Tensor):
            return False
        shape = shape_of(node)
        return all(isinstance(n.meta["val"], Tensor) for n in node.all_input_nodes) and all(
            shape_of(n) == shape for n in node.all_input_nodes if n in self._varies
        )

    def _filled_with(self, node: fx.Node) -> float | None:
        """The number that all entries of a node are, whatever its operands: of a fill, or a product with zero."""
        if is_op(node, *_ONES):
            return 1.0
        if is_op(node, *_ZEROS) or (is_op(node, aten.mul.Tensor) and any(self.graph.number(a) == 0.0 for a in node.args)):
            return 0.0
        return float(operand(node, 1)) if is_op(node, *_FILLED) and isinstance(operand(node, 1), bool | int | float) else None

    def ancestors(self, node: fx.Node, known: Collection[fx.Node] = ()) -> set[fx.Node]:
        """Everything ``node`` is computed from by elementwise operators, itself included, without what is ``known``."""
        found, waiting = {node}, [node]
        while waiting:
            new = [n for n in self.operands(waiting.pop()) if n not in found and n not in known]
            found.update(new)
            waiting.extend(new)
        return found

    def descendants(self, node: fx.Node) -> set[fx.Node]:
        """Everything that is computed from ``node`` by elementwise operators, itself included."""
        found, waiting = {node}, [node]
        while waiting:
            new = [u for u in waiting.pop().users if u in self and u not in found]
            found.update(new)
            waiting.extend(new)
        return found

    def constant(self, node: fx.Node) -> Tensor:
        """The value, in float64, of a node that depends on no input (or on its shape alone); 0-d if all its entries are equal.

        Raises:
            TooLargeError: it is too large to be computed here.
        """
        if node not in self._constants:
            self._constants[node] = _compact(self._value(node))
        return self._constants[node]

    def _value(self, node: fx.Node) -> Tensor:
        known = self.graph.constant(node)
        if known is not None:
            return known.double() if known.is_floating_point() else known
        fill = self._filled_with(node)
        if fill is not None:
            return torch.tensor(fill, dtype=torch.float64 if node.meta["val"].is_floating_point() else node.meta["val"].dtype)
        if shape_of(node) and torch.Size(shape_of(node)).numel() > _LARGEST_CONSTANT and node.target not in ELEMENTWISE:
            raise TooLargeError(f"{node} is a large constant that is not written out")
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.constant)
        return _run(node, args, kwargs)


def _compact(value: Tensor) -> Tensor:
    """Without the extent in which it does not vary: leading dimensions of 1, or all of them."""
    if value.numel() > 0 and value.dim() and bool((value == value.flatten()[0]).all()):
        return value.flatten()[0].clone()
    while value.dim() > 1 and value.shape[0] == 1:
        value = value[0]
    return value


class Program:
    """The elementwise operators among the nodes ``inner`` that lead to some results.

    Attributes:
        leaves: what they read that is not among ``inner``; in the order in which the operands of the results lead to it.
        nodes: the operators, every one after its operands.
        constants: the numbers and tensors among their operands.
    """

    def __init__(self, area: Elementwise, results: Sequence[fx.Node], inner: Collection[fx.Node]) -> None:
        self._area = area
        leaves: dict[fx.Node, None] = {}
        found: set[fx.Node] = set()
        waiting = list(reversed(results))
        while waiting:
            node = waiting.pop()
            if node in found or node in leaves:
                continue
            if node not in inner or node not in area:
                leaves[node] = None
                continue
            found.add(node)
            waiting.extend(reversed(area.operands(node)))
        self.leaves = list(leaves)
        self.nodes = sorted(found, key=area.order.__getitem__)
        self._results = set(results)
        self._last: dict[fx.Node, list[fx.Node]] = {}  # node -> what nothing after it reads
        last_reader = {n: reader for reader in self.nodes for n in area.operands(reader)}
        for node in found - self._results:
            self._last.setdefault(last_reader[node], []).append(node)

    def run(self, given: Mapping[fx.Node, Tensor], *, ties: bool = False) -> dict[fx.Node, Tensor]:
        """The values of the results for those of the leaves.

        Args:
            given: ``[P, ...]``, for every leaf.
            ties: whether a comparison takes values that differ by rounding alone as equal.
        """
        values = dict(given)
        for node in self.nodes:
            args, kwargs = fx.node.map_arg(
                (node.args, node.kwargs), lambda n: values[n] if n in values else self._area.constant(n)
            )
            values[node] = _run(node, _tied(node, args) if ties else args, kwargs)
            for done in self._last.get(node, ()):
                del values[done]
        return {node: values[node] for node in self._results}

    @property
    def extent(self) -> torch.Size:
        """The extent in which its constants vary."""
        extent: torch.Size = torch.broadcast_shapes(*(c.shape for c in self.constants))
        return extent

    @property
    def constants(self) -> list[Tensor]:
        """The numbers and tensors among the operators' operands."""
        found: list[Tensor] = []
        for node in self.nodes:
            for a in node.args:
                if isinstance(a, bool | int | float):
                    found.append(torch.tensor(float(a), dtype=torch.float64))
                elif isinstance(a, fx.Node) and a not in self._area and a not in self.leaves:
                    found.append(self._area.constant(a))
        return found


def _run(node: fx.Node, args: Any, kwargs: Any) -> Tensor:
    target: Any = node.target
    if is_op(node, aten._to_copy.default) and node.meta["val"].is_floating_point():
        return args[0].double()  # type: ignore[no-any-return]
    result: Tensor = target(*args, **kwargs)
    return result.double() if result.is_floating_point() else result


def _tied(node: fx.Node, args: Any) -> Any:
    if node.target in COMPARISONS:
        a, b = (x if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64) for x in args[:2])
        return (torch.where(torch.isclose(a, b, rtol=_TIE, atol=_TIE), b, a), args[1]) if a.is_floating_point() else args
    if is_op(node, *_ROUNDING):
        whole = args[0].round()
        return (torch.where((args[0] - whole).abs() < _TIE, whole, args[0]), *args[1:])
    return args
