"""A scale on a neuron's input goes into the neuron: into its threshold where it is constant over time, else into its gain.

``LIF(a*x; threshold, v_reset, ...)`` with ``a > 0`` constant over T has the spikes of ``LIF(x; threshold/a, v_reset/a, ...)``:
dividing the charge ``h = decay*v + input_gain*a*x + bias`` by ``a`` gives ``h/a = decay*(v/a) + input_gain*x + bias/a``, and
``h >= threshold`` is ``h/a >= threshold/a``. So everything that adds to the membrane or is compared with it is divided:
threshold, ``v_reset``, the amount of a soft reset, ``bias``, ``floor`` and the initial state. Per inference this costs one
division of something of one step's size instead of T multiplications of it.

* A scale that varies over T becomes the ``gain`` operand, which the neuron multiplies as it loads ``x``: always, for any sign.
* Of several factors, those constant over T go to the threshold and the others to the gain.
* The neuron's own ``input_gain`` (1/tau) and a constant gain are such scales too.
* Between the scale and the neuron may stand reshapes, permutations and, for scales that are not negative, ``relu``.
* A scale that is never negative but may be zero (``sigmoid`` is, far enough out) is clamped at 2^-100, all factors together: then
  ``threshold/a`` is finite, and a gate of zero never spikes. A scale of unknown sign becomes gain.

Refused: a scale that others read in its product, one that is added to a residual before the neuron, a threshold that can be zero,
a membrane that is an output (then the scale becomes gain), a gain that would be as large as ``x`` itself.

Exactness: real; bitwise where the scale is a constant power of two.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from snngraph.analysis.batch import batch_dims
from snngraph.analysis.bounds import bounds
from snngraph.graph import LIF, LIF_STEP, RESHAPE, SpikingGraph, arguments, defaults_of, is_op, operand, shape_of
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.passes.scales import Scale, Scales, joint, numel
from snngraph.types import Exactness

__all__ = ["LEAST_SCALE", "FoldAttention"]

aten = torch.ops.aten
LEAST_SCALE = 2.0**-100
"""The smallest scale a threshold is divided by: the quotient stays far from float32's largest number."""
_ADDITIVE = ("threshold", "v_reset", "reset_amount", "bias", "floor", "v")


@dataclass(frozen=True)
class FoldAttention(Pass):
    """Folds scales of a neuron's input into its threshold or its gain."""

    name: ClassVar[str] = "fold_attention"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Looks at the input of every neuron."""
        edit = Rewriter(graph)
        scales = Scales(graph, batch_dims(graph), bounds(graph))
        for node in graph.nodes:
            if is_op(node, LIF, LIF_STEP):
                _Fold(edit, scales, node).run()
        return edit.result()


@dataclass(slots=True)
class _Chain:
    """How a neuron's input is made: ``ops`` applied, innermost first, to ``base``, with ``factors`` in the neuron's shape."""

    base: fx.Node
    ops: list[fx.Node]
    factors: list[Scale]


class _Fold:
    def __init__(self, edit: Rewriter, scales: Scales, node: fx.Node) -> None:
        self.edit, self.scales, self.node = edit, scales, node
        self.given = arguments(node)
        self.x: fx.Node = self.given["x"]
        self.rank = len(shape_of(self.x))
        self.over_time = is_op(node, LIF)
        self.steps = shape_of(self.x)[0] if self.over_time else 1

    def run(self) -> None:
        chain = self._chain()
        gains, thresholds = list[Scale](), list[Scale]()
        reason = self._why_no_threshold()
        for factor in chain.factors:
            (gains if reason or not self._fits_threshold(factor) else thresholds).append(factor)
        own = [] if reason else self._own_gains()
        gain = self._joined_gain(gains, own)
        if gains and gain is None:
            self.edit.refuse(self.node, "its input's scales varying over time would make a gain as large as the input itself")
            return
        if not thresholds and not gains and not own:
            return
        self._rebuild_input(chain)
        self._set_gain(gain, gains, own)
        divisors = [*thresholds, *own]
        if divisors:
            self._divide(divisors)
        self._say(chain, gains, thresholds, own, reason)

    # -- what there is -----------------------------------------------------------------------------------------------------

    def _chain(self) -> _Chain:
        """Walks from the neuron's input back through scales, views and relus that nothing else reads."""
        node, ops, factors = self.x, list[fx.Node](), list[Scale]()
        found = _Chain(node, [], [])
        while True:
            split = self.scales.split(node)
            if len(node.users) > 1:
                if split is not None:
                    self.edit.refuse(self.node, f"scale {split[0]} stays a product, which {len(node.users)} operators read")
                break
            if split is not None:
                scale, inner = split
                relus = [op for op in ops if is_op(op, aten.relu.default)]
                if relus and not scale.nonnegative:
                    self.edit.refuse(self.node, f"scale {scale} may be negative, so it can not pass {relus[0].name}")
                    break
                moved = self._moved(scale, ops)
                if moved is None:
                    self.edit.refuse(self.node, f"scale {scale} is spread out by a reshape before the neuron")
                    break
                factors.append(moved)
                node = inner
                found = _Chain(node, list(ops), list(factors))
            elif is_op(node, aten.relu.default, RESHAPE, aten.permute.default):
                ops.insert(0, node)
                node = operand(node)
            else:
                self._near_miss(node)
                break
        return found

    def _near_miss(self, node: fx.Node) -> None:
        if is_op(node, aten.add.Tensor):
            scaled = [
                a for a in node.args if self.scales.split(a) or (is_op(a, aten.relu.default) and self.scales.split(operand(a)))
            ]
            if scaled:
                self.edit.refuse(self.node, f"{scaled[0]} = scale * input is added to a residual: it stays a multiplication")
        elif is_op(node, operator.getitem) and is_op(operand(node), aten._native_batch_norm_legit_no_training.default):
            norm = operand(node)
            source = operand(norm)
            while is_op(source, RESHAPE, aten.relu.default):
                source = operand(source)
            if self.scales.split(source):
                self.edit.refuse(self.node, f"batch norm {norm.name} stands between the scale and the neuron")

    def _moved(self, scale: Scale, ops: Sequence[fx.Node]) -> Scale | None:
        """The scale behind the operators between it and the neuron; they are innermost first."""
        views = [op for op in ops if not is_op(op, aten.relu.default)]
        if views and all(is_op(op, RESHAPE) for op in views) and self.scales.same_shape(operand(views[0]), views[-1]):
            return scale  # merged and split again: what does not depend on time stays so
        for view in views:
            moved = self.scales.through(scale, view)
            if moved is None:
                return None
            scale = moved
        return scale

    def _own_gains(self) -> list[Scale]:
        """The neuron's ``input_gain`` and ``gain`` where they are constants that may go to the threshold."""
        found = []
        for name in ("input_gain", "gain"):
            value = self.given[name]
            if value is None or self.edit.graph.constant(value) is None or (name == "gain" and len(shape_of(value)) == self.rank):
                continue
            if self.given["syn_decay"] is not None and name == "input_gain":
                continue  # behind the synapse: the two states would have different units
            scale = self.scales.of(value, self.rank)
            if scale is not None and scale.least >= LEAST_SCALE:
                found.append(scale)
        return found

    def _why_no_threshold(self) -> str | None:
        """Why nothing may go to this neuron's threshold."""
        used = {int(operand(u, 1)) for u in self.node.users if is_op(u, operator.getitem)}
        if not self.over_time:
            return "it is stepped: its state goes from step to step in its own units"
        if used - {0}:
            return "its membrane potential or current is read"
        low, high = self.scales.bounds.get(self.given["threshold"], (-math.inf, math.inf))
        if low <= 0.0 or not math.isfinite(high):
            return "its threshold is not proved to be positive"
        if self.given["i"] is not None and self.edit.graph.number(self.given["i"]) != 0.0:
            return "its synapse starts from a given current"
        return None

    def _fits_threshold(self, scale: Scale) -> bool:
        if not (scale.constant_along(0) and scale.nonnegative):
            return False
        if scale.constant:
            return scale.least >= LEAST_SCALE
        return self.steps > 1  # over one step the division would cost what the multiplication does

    # -- rewriting ---------------------------------------------------------------------------------------------------------

    def _rebuild_input(self, chain: _Chain) -> None:
        if not chain.factors:
            return
        node = chain.base
        with self.edit.graph.graph.inserting_before(self.node):
            for op in chain.ops:
                node = self.edit.graph.graph.call_function(op.target, (node, *op.args[1:]), dict(op.kwargs))  # type: ignore[arg-type]
                node.meta = dict(op.meta)
        self.node.args = (node, *self.node.args[1:])
        self.node.kwargs = {k: v for k, v in self.node.kwargs.items() if k != "x"}

    def _joined_gain(self, gains: Sequence[Scale], moved: Sequence[Scale]) -> Scale | None:
        """The product of the neuron's gain, unless that has ``moved``, and more; ``None`` if it is as large as the input."""
        parts = list(gains)
        if parts and self.given["gain"] is not None and not any(m.node is self.given["gain"] for m in moved):
            own = self.scales.of(self.given["gain"], self.rank)
            assert own is not None
            parts.append(own)
        if not parts:
            return None
        with self.edit.graph.graph.inserting_before(self.node):
            gain = joint(self._product(parts), parts)
        return None if gain.elements >= numel(shape_of(self.x)) and len(parts) > 1 else gain

    def _product(self, parts: Sequence[Scale]) -> fx.Node:
        """Small factors first: the product grows as late as possible."""
        nodes = [self.scales.ranked(p) for p in sorted(parts, key=lambda p: p.elements)]
        product = nodes[0]
        for node in nodes[1:]:
            product = self.edit.graph.graph.call_function(aten.mul.Tensor, (product, node))
        return product

    def _set_gain(self, gain: Scale | None, gains: Sequence[Scale], own: Sequence[Scale]) -> None:
        keywords = dict(self.node.kwargs)
        moved = [s.node for s in own]
        for name in ("input_gain", "gain"):
            if any(keywords.get(name) is m for m in moved):
                del keywords[name]
        if gains and gain is not None:
            keep = range(self.rank)
            if self.over_time and gain.constant_along(0):
                keep = range(1, self.rank)
            with self.edit.graph.graph.inserting_before(self.node):
                value = self.scales.reshaped(gain, list(keep))
            keywords["gain"] = value
        self.node.kwargs = dict(sorted(keywords.items()))

    def _divide(self, parts: Sequence[Scale]) -> None:
        """Divides what adds to the membrane or is compared with it by the product of the scales."""
        graph = self.edit.graph
        with graph.graph.inserting_before(self.node):
            product = joint(self._product(parts), parts)
            if any(p.least < LEAST_SCALE for p in parts):
                product = replace(product, node=graph.graph.call_function(aten.clamp.default, (product.node, LEAST_SCALE)))
            by: fx.Node | float
            if all(map(product.constant_along, range(self.rank))):
                by = graph.graph.call_function(RESHAPE, (product.node, []))
            else:
                by = self.scales.reshaped(product, list(range(1, self.rank)))
            defaults = defaults_of(self.node.target)
            for name in _ADDITIVE:
                value = self.given[name]
                if value is None or value == defaults.get(name) or graph.number(value) == 0.0:
                    continue
                quotient = graph.graph.call_function(aten.div.Tensor, (value, by))
                if name in ("threshold", "v"):
                    k = {"v": 1, "threshold": 3}[name]
                    self.node.args = (*self.node.args[:k], quotient, *self.node.args[k + 1 :])
                else:
                    self.node.kwargs = dict(sorted({**self.node.kwargs, name: quotient}.items()))

    def _say(
        self, chain: _Chain, gains: Sequence[Scale], thresholds: Sequence[Scale], own: Sequence[Scale], reason: str | None
    ) -> None:
        def show(parts: Sequence[Scale]) -> str:
            return ", ".join(map(str, parts))

        if thresholds:
            self.edit.did(self.node, f"scale {show(thresholds)} of its input divides its threshold")
        if own:
            self.edit.did(self.node, f"its constant gain {show(own)} divides its threshold")
        if gains:
            self.edit.did(self.node, f"scale {show(gains)} of its input is its gain: {reason or self._why_gain(gains)}")

    def _why_gain(self, gains: Sequence[Scale]) -> str:
        reasons = []
        if not all(g.constant_along(0) for g in gains) and self.steps > 1:
            reasons.append("it varies over time")
        if not all(g.nonnegative for g in gains):
            reasons.append("it may be negative")
        return " and ".join(reasons) or "over one step a division would cost as much"
