"""Scales move from a large tensor to a smaller one: ``f(a*x) == a*f(x)``, with ``f(x)`` smaller than ``x``.

======================================  ==============================  =====================================================
``f``                                   condition                       rewrite
======================================  ==============================  =====================================================
``sum``, ``mean`` over some dimensions  --                              first over those along which ``a`` is constant, then
                                                                        ``* a``, then over the others
``amax``                                ``a >= 0``                      the same
average pooling                         ``a`` constant in the window    ``a * f(x)``
max pooling                             and ``a >= 0``                  ``a * f(x)``
``relu``, reshape, permutation          ``a >= 0`` for ``relu``         moved along when one of the above follows
convolution, linear layer               ``a`` constant over channels    ``a * f(x)`` without its bias, which a neuron behind it
                                        and window                      takes; only when it ends there
``c * (W x + b)``, ``c`` a constant     --                              ``(c W) x + c b``
``relu(x)``                             ``x >= 0``                      ``x``
======================================  ==============================  =====================================================

So the statistics of a gate that is computed from a scaled tensor (MA-SNN's channel attention after its temporal attention, arXiv
2209.13929) never need the full-size product, and a gate on spikes (TCJA-SNN, arXiv 2206.10177) is applied after the pooling.
Reductions of one tensor then share what they have in common: ``mean over C, H, W == mean over C of mean over H, W``.

Refused, with a note: a maximum over a scale of unknown sign; a scale per input channel before a convolution (it stays before it).

Exactness: real (sums in another order; a product rounded at another place).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from snngraph.analysis.batch import batch_dims, shape_with_free_batch
from snngraph.analysis.bounds import bounds
from snngraph.graph import LIF, RESHAPE, SpikingGraph, arguments, is_op, operand, origin_of, shape_of
from snngraph.passes.base import Note, Pass, PassResult, Rewriter
from snngraph.passes.scales import Scale, Scales, numel
from snngraph.types import Exactness

__all__ = ["SinkScales"]

aten = torch.ops.aten
_LINEAR_REDUCTIONS = (aten.mean.dim, aten.sum.dim_IntList)
_REDUCTIONS = (*_LINEAR_REDUCTIONS, aten.amax.default)
_AVERAGE = {
    aten.avg_pool1d.default: 1,
    aten.avg_pool2d.default: 2,
    aten.avg_pool3d.default: 3,
    aten._adaptive_avg_pool2d.default: 2,
}
_MAX: dict[Any, int] = {aten.max_pool2d_with_indices.default: 2, aten.max_pool3d_with_indices.default: 3}


@dataclass(frozen=True)
class SinkScales(Pass):
    """Moves scales to where they are smallest."""

    name: ClassVar[str] = "sink_scales"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Sweeps over the graph until nothing moves; every move takes a scale nearer to the outputs."""
        changed, notes = False, dict[Note, None]()
        for _ in list(graph.nodes):  # a bound, never reached: every walk takes a scale past one operator at least
            sweep = _Sweep(graph)
            sweep.run()
            result = sweep.edit.result()
            if not result.changed:
                notes.update(dict.fromkeys(result.notes))  # near misses count where nothing moves any more
                break
            notes.update(dict.fromkeys(n for n in result.notes if n.kind == "rewrite"))
            graph, changed = result.graph, True
        return PassResult(graph.finish() if changed else graph, changed, tuple(notes))  # the last walk left what it tried


@dataclass(frozen=True, slots=True)
class _Path:
    """A scale ``a``, the tensor ``x`` it multiplies, and the operators between ``a * x`` and where it was looked for."""

    scale: Scale
    x: fx.Node
    between: list[fx.Node]


class _Sweep:
    """One walk over the graph. Nodes made on the way have no shapes yet, so what they feed waits for the next walk."""

    def __init__(self, graph: SpikingGraph) -> None:
        self.edit = Rewriter(graph)
        self.graph = graph.graph
        self.dims = batch_dims(graph)
        self.scales = Scales(graph, self.dims, bounds(graph))
        self.waiting: set[fx.Node] = set()
        self.rules: dict[Any, Callable[[fx.Node], fx.Node | None]] = {
            aten.relu.default: self._relu,
            aten.mul.Tensor: self._constant_into_weights,
            aten.convolution.default: self._weighted,
            aten.linear.default: self._weighted,
            **dict.fromkeys(_REDUCTIONS, self._reduction),
            **dict.fromkeys((*_AVERAGE, *_MAX), self._pooling),
        }

    def run(self) -> None:
        nodes = [n for n in self.edit.graph.nodes if n.op == "call_function"]
        for node in nodes:
            rule = self.rules.get(node.target)
            if rule is None or not node.users or self._unsettled(node):
                continue
            self.graph.inserting_before(node)
            new = rule(node)
            if new is not None:
                self._replace(node, new)
        if not any(n.kind == "rewrite" for n in self.edit.notes):
            self._share_reductions(nodes)

    def _unsettled(self, node: fx.Node) -> bool:
        """Whether something the rules would look at was made in this walk."""
        return any(n in self.waiting or any(m in self.waiting for m in n.all_input_nodes) for n in node.all_input_nodes)

    def _replace(self, node: fx.Node, new: fx.Node) -> None:
        self.waiting.update((node, new))
        for user in list(node.users):
            if user is not new:
                user.replace_input_with(node, new)
        self.waiting.update(new.users)

    def _emit(self, target: Any, *args: Any, of: fx.Node | None = None) -> fx.Node:
        node = self.graph.call_function(target, args)
        if of is not None:
            node.meta = origin_of(of)
        self.waiting.add(node)
        return node

    # -- what a value is before the operators that are moved along -----------------------------------------------------------

    def _find(self, node: fx.Node) -> _Path | None:
        """The nearest scale of ``node``: its own, or one before views and relus that only lead here."""
        between: list[fx.Node] = []
        split = self.scales.split(node)
        while split is None and self._movable(node):
            between.insert(0, node)
            node = operand(node)
            split = self.scales.split(node)
        return None if split is None else _Path(*split, between)

    def _movable(self, node: fx.Node) -> bool:
        """Whether a scale may pass this operator on its way; a relu that others read would be computed twice."""
        if "val" not in node.meta:
            return False
        return is_op(node, RESHAPE, aten.permute.default) or (is_op(node, aten.relu.default) and len(node.users) == 1)

    def _taken_out(self, path: _Path) -> tuple[Scale, fx.Node] | None:
        """``a`` and a new node ``x`` with ``node == a * x`` for the node at the end of ``path``."""
        scale, x = path.scale, path.x
        for op in path.between:
            moved = scale if is_op(op, aten.relu.default) else self.scales.through(scale, op)
            if moved is None or (is_op(op, aten.relu.default) and not scale.nonnegative):
                return None
            scale = moved
        for op in path.between:
            x = self._emit(op.target, x, *op.args[1:], of=op)
        return scale, x

    # -- rules -------------------------------------------------------------------------------------------------------------

    def _relu(self, node: fx.Node) -> fx.Node | None:
        x: fx.Node = operand(node)
        if self.scales.bounds.get(x, (-1.0, 0.0))[0] < 0.0:
            return None
        self.edit.did(node, f"{x} is never negative: its relu is itself")
        return x

    def _reduction(self, node: fx.Node) -> fx.Node | None:
        x, given = operand(node), arguments(node)
        rank = len(shape_of(x))
        over = sorted({d % rank for d in given["dim"] or range(rank)})
        path = self._find(x)
        if path is None or given.get("dtype") is not None:
            return None
        if not self._allowed(node, path.scale, linear=is_op(node, *_LINEAR_REDUCTIONS)):
            return None
        found = self._taken_out(path)
        if found is None:
            return None
        scale, inner = found
        first = [d for d in over if scale.constant_along(d)]
        if numel([shape_of(x)[d] for d in first]) <= 1:
            return None
        rest = [d for d in over if d not in first]
        reduced = self._emit(node.target, inner, first, True, of=node)
        product = self._emit(aten.mul.Tensor, reduced, self._value(scale))
        shape = [1 if d in first else n for d, n in enumerate(shape_of(x))]
        if rest:
            product = self._emit(node.target, product, rest, True, of=node)
            shape = [1 if d in rest else n for d, n in enumerate(shape)]
        self.edit.did(node, f"scale {path.scale} is applied after the reduction over {first}")
        return self._without(product, shape, over, self.dims.get(x)) if not given["keepdim"] else product

    def _pooling(self, node: fx.Node) -> fx.Node | None:
        target: Any = node.target
        largest = target in _MAX
        window = _MAX[target] if largest else _AVERAGE[target]
        x = operand(node)
        path = self._find(x)
        if path is None or numel(shape_of(node) if not largest else node.meta["val"][0].shape) >= numel(shape_of(x)):
            return None
        indices_used = largest and any(operand(u, 1) != 0 for u in node.users)
        if indices_used or not self._allowed(node, path.scale, linear=not largest):
            return None
        found = self._taken_out(path)
        if found is None:
            return None
        scale, inner = found
        rank = len(scale.shape)
        if not all(scale.constant_along(d) for d in range(rank - window, rank)):
            self.edit.refuse(node, f"scale {path.scale} varies in the pooling's window")
            return None
        pooled = self._emit(target, inner, *node.args[1:], of=node)
        self.edit.did(node, f"scale {path.scale} is applied after the pooling")
        if not largest:
            return self._emit(aten.mul.Tensor, pooled, self._value(scale))
        values = self._emit(operator.getitem, pooled, 0)
        product = self._emit(aten.mul.Tensor, values, self._value(scale))
        for output in list(node.users):
            self._replace(output, product)
        return None

    def _weighted(self, node: fx.Node) -> fx.Node | None:
        """``W(a*x) + b`` where a neuron takes the result: ``a * Wx`` is its input and ``b`` goes to its bias."""
        x, given = operand(node), arguments(node)
        path = self._find(x)
        if path is None or given["weight"] in (x, None):
            return None
        if path.scale.constant:
            return None  # into the weights, if anywhere
        found = self._taken_out(path)
        inner_dims = range(1, len(shape_of(x))) if is_op(node, aten.convolution.default) else [len(shape_of(x)) - 1]
        if found is None or not all(found[0].constant_along(d) for d in inner_dims):
            self.edit.refuse(node, f"scale {path.scale} varies over the layer's inputs: it stays before the layer")
            return None
        scale, inner = found
        neuron, views = self._neuron_behind(node)
        if neuron is None:
            self.edit.refuse(node, f"scale {path.scale} could follow the layer, but no neuron takes its output alone")
            return None
        options = arguments(neuron)
        bias = given["bias"]
        over_time = options["gain"] is not None and len(shape_of(options["gain"])) == len(shape_of(options["x"]))
        if bias is not None and (self.edit.graph.constant(bias) is None or options["syn_decay"] is not None or over_time):
            self.edit.refuse(
                node, "its bias can not go to the neuron: it is computed, or a synapse or a gain would change it over time"
            )
            return None
        if bias is not None:
            moved = self._bias_of(bias, node, views)
            if moved is None or not moved.constant_along(0):
                self.edit.refuse(node, "its bias does not reach the neuron as one number per channel")
                return None
            self._bias_into(neuron, moved)
        rest = list(node.args[3:])
        bare = self._emit(node.target, inner, given["weight"], *([None, *rest] if rest else []), of=node)
        if is_op(node, aten.convolution.default):
            bare.args = (inner, given["weight"], None, *(given[k] for k in _CONVOLUTION))
        self.edit.did(node, f"scale {path.scale} is applied after the layer, whose neuron {neuron.name} takes it")
        return self._emit(aten.mul.Tensor, bare, self._value(scale))

    def _neuron_behind(self, node: fx.Node) -> tuple[fx.Node | None, list[fx.Node]]:
        views: list[fx.Node] = []
        while len(node.users) == 1:
            (user,) = node.users
            if is_op(user, LIF) and [k for k, a in arguments(user).items() if a is node] == ["x"]:
                return user, views
            if not is_op(user, RESHAPE):
                break
            views.append(user)
            node = user
        return None, views

    def _bias_of(self, bias: fx.Node, layer: fx.Node, views: Sequence[fx.Node]) -> Scale | None:
        """A layer's bias as it adds to what ``views`` make of its result."""
        channel = 1 if is_op(layer, aten.convolution.default) else len(shape_of(layer)) - 1
        shape = [shape_of(layer)[channel] if d == channel else 1 for d in range(len(shape_of(layer)))]
        moved: Scale | None = Scale(self.graph.call_function(RESHAPE, (bias, shape)), tuple(shape))
        for view in views:
            moved = None if moved is None else self.scales.through(moved, view)
        return moved

    def _bias_into(self, neuron: fx.Node, bias: Scale) -> None:
        """Adds ``input_gain * gain * b`` to the neuron's bias."""
        options = arguments(neuron)
        with self.graph.inserting_before(neuron):
            value = self.scales.reshaped(bias, list(range(1, len(bias.shape))))
            for name in ("gain", "input_gain"):
                if options[name] is not None:
                    value = self.graph.call_function(aten.mul.Tensor, (value, options[name]))
            if options["bias"] is not None:
                value = self.graph.call_function(aten.add.Tensor, (value, options["bias"]))
        neuron.kwargs = dict(sorted({**neuron.kwargs, "bias": value}.items()))

    def _constant_into_weights(self, node: fx.Node) -> fx.Node | None:
        """``c * (Wx + b)`` with a constant number ``c``: into the weights, unless a neuron will take it for nothing."""
        split = self.scales.split(node)
        if split is None or split[0].elements != 1:
            return None
        scale, x = split
        value = (
            self.edit.graph.constant(scale.node)
            if isinstance(scale.node, fx.Node)
            else torch.tensor(scale.node, dtype=torch.float64)
        )
        if value is None or not is_op(x, aten.convolution.default, aten.linear.default) or len(x.users) > 1:
            return None
        given = arguments(x)
        weight, bias = self.edit.graph.constant(given["weight"]), self.edit.graph.constant(given["bias"])
        if weight is None or (bias is None and given["bias"] is not None) or self._neuron_behind(node)[0] is not None:
            return None
        number = value.double().reshape(())
        name = str(given["weight"].target)
        new_weight = self.edit.graph.add_tensor(f"{name}_scaled", weight.double() * number)
        new_bias = None if bias is None else self.edit.graph.add_tensor(f"{name}_bias_scaled", bias.double() * number)
        layer = self._emit(x.target, operand(x), new_weight, new_bias, of=x)
        if is_op(x, aten.convolution.default):
            layer.args = (*layer.args, *(given[k] for k in _CONVOLUTION))
        self.edit.did(node, f"the constant {float(number):.6g} goes into the weights of {x.name}")
        return layer

    # -- parts -------------------------------------------------------------------------------------------------------------

    def _allowed(self, node: fx.Node, scale: Scale, *, linear: bool) -> bool:
        if linear or scale.nonnegative:
            return True
        self.edit.refuse(node, f"scale {scale} may be negative, so it can not leave a maximum")
        return False

    def _value(self, scale: Scale) -> fx.Node:
        node = self.scales.ranked(scale)
        self.waiting.add(node)
        return node

    def _without(self, node: fx.Node, shape: Sequence[int], dims: Sequence[int], batch: int | None) -> fx.Node:
        """``node`` without dimensions of size 1."""
        kept = [d for d in range(len(shape)) if d not in dims]
        at = kept.index(batch) if batch in kept else None
        return self._emit(RESHAPE, node, shape_with_free_batch(tuple(shape[d] for d in kept), at))

    def _share_reductions(self, nodes: Sequence[fx.Node]) -> None:
        """A reduction over more dimensions starts from one of the same tensor over fewer of them."""
        done: dict[tuple[Any, fx.Node], list[tuple[list[int], fx.Node]]] = {}
        for node in nodes:
            if node.target in _REDUCTIONS and node.users and arguments(node).get("dtype") is None:
                x = operand(node)
                over = sorted({d % len(shape_of(x)) for d in arguments(node)["dim"] or range(len(shape_of(x)))})
                done.setdefault((node.target, x), []).append((over, node))
        for found in done.values():
            for over, node in found:
                x = operand(node)
                parts = [p for p in found if set(p[0]) < set(over) and numel([shape_of(x)[d] for d in p[0]]) > 1]
                if parts:
                    self._share(node, over, *max(parts, key=lambda p: len(p[0])))

    def _share(self, node: fx.Node, over: Sequence[int], part: Sequence[int], smaller: fx.Node) -> None:
        x = operand(node)
        self.graph.inserting_before(node)
        batch = self.dims.get(x)
        start = smaller
        if not arguments(smaller)["keepdim"]:
            shape = tuple(1 if d in part else n for d, n in enumerate(shape_of(x)))
            start = self._emit(RESHAPE, smaller, shape_with_free_batch(shape, None if batch in part else batch))
        whole = self._emit(node.target, start, [d for d in over if d not in part], True, of=node)
        shape = tuple(1 if d in over else n for d, n in enumerate(shape_of(x)))
        self._replace(node, whole if arguments(node)["keepdim"] else self._without(whole, shape, over, batch))
        self.edit.did(node, f"starts from {smaller.name}, the same reduction over {list(part)}")


_CONVOLUTION = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
