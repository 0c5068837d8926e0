"""Layers fed by spikes compute with int8 digits of their weights: exact sums, on integer dot-product hardware.

``conv(c*k, W) + b = sum_j scale_j * conv(k, D_j) + b`` where the input is a constant ``c`` times integers ``k`` and ``c*W`` is,
per output channel, ``sum_j scale_j * D_j`` (:mod:`snngraph.integer`). The sums ``conv(k, D_j)`` are integers: they come out the
same on every machine, on any number of threads, at any batch size. What the digits leave of a weight is at most 6e-8 of the
channel's largest after three, 2.4e-10 after four: about the error of float32, and a hundredth of it.

That residual is fixed per channel, while float32's error shrinks with the weights: of a sum with ``m`` terms of magnitude ``w``
it is about ``2.4e-8 w sqrt(m + m^2 / 2)``, and that of three digits ``3.5e-8 max|W| sqrt(m)``. So a layer whose largest weights
stand far above the ordinary ones (all but the largest eighth of a channel, zeros left out) gets a digit more if by these three
are more than :data:`MOST_ERROR` times as far off as float32, unless it is by about the last bit of the sum (:data:`NO_TAIL`);
it stays in floating point if even four are. A layer whose weights need fewer digits (they were quantized before) gets no more
than it needs, which changes nothing.

Average pooling on the way to a layer becomes a sum, its divisor part of the weights. What the layers read is marked by
:mod:`snngraph.passes.mark_levels`.

Refused: a weight that the graph computes, a transposed convolution, an input that is real or beyond 127 levels, sums that int32
might not hold, and layers so small that their digits cost more than they save.

Exactness: real with 3 or 4 digits up to the residual above, ``approximate`` with fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, fx

from snngraph.analysis.levels import Levels, infer_spike_levels, why_real
from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, SpikingGraph, arguments, is_op, origin_of, shape_of
from snngraph.integer import BASE, LARGEST, MOST_LEVELS, Digits, split_weight
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.passes.integers import Integers
from snngraph.types import Exactness

__all__ = ["IntegerSynapses"]

aten = torch.ops.aten

MOST_DIGITS: Final = 4
MOST_ERROR: Final = 1.7
"""Error of digits over float32's, as estimated, from which on a digit more is taken; measured it is three quarters of that."""
NO_TAIL: Final = 4.5
"""Largest weight over the ordinary ones up to which three digits are as good as the last bit: measured on normal weights."""
RATE: Final = 0.1
"""Share of inputs that are taken to spike where errors are estimated."""
SMALLEST: Final = 1 << 21
"""Multiplications of a layer in a call from which on digits pay: measured, convolutions and linear layers alike."""
SHORTEST: Final = 40
"""Products in a sum, for each digit, from which on digits pay: measured, with convolutions of 1x1 and 3x3."""

_OF_THREE: Final = (3**-0.5 / (2 * LARGEST * BASE**2)) / (0.41 * 2.0**-24)
"""Rounding of a channel's largest weight to three digits over that of a sum to float32, in root mean squares."""


@dataclass(frozen=True)
class IntegerSynapses(Pass):
    """Replaces convolutions and linear layers on spikes by integer ones.

    Args:
        digits: 1 to 4: how many digits a weight gets.
        everywhere: replace layers too small for it to pay, too.
    """

    name: ClassVar[str] = "integer_synapses"
    exactness: ClassVar[Exactness] = "approximate"
    digits: int = 3
    everywhere: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= MOST_DIGITS:
            raise ValueError(f"digits={self.digits}: expected 1 to {MOST_DIGITS}")

    def run(self, graph: SpikingGraph) -> PassResult:
        """Looks at every layer with weights."""
        edit = Rewriter(graph)
        levels, reasons = infer_spike_levels(graph), why_real(graph)
        integers = Integers(edit, levels)
        for layer in [layer for node in graph.nodes if (layer := _Layer.of(graph, node)) is not None]:
            known = levels.get(layer.x)
            if known is None:
                edit.refuse(layer.node, f"its input is real: {reasons.get(layer.x, layer.x.name)}")
                continue
            found = self._reason(layer, known) or self._digits(layer, known)
            if isinstance(found, Digits):
                _replace(edit, layer, integers.of(layer.x), known, found)
            else:
                edit.refuse(layer.node, found)
        return edit.result()

    def _reason(self, layer: _Layer, known: Levels) -> str | None:
        """Why a layer fed with levels stays as it is, if it does."""
        if layer.weight is None:
            return "its weight is no constant"
        if layer.transposed:
            return "it is a transposed convolution"
        if known.largest > MOST_LEVELS:
            return f"its input has levels up to {known.largest}, at most {MOST_LEVELS} fit"
        if known.largest * LARGEST * layer.fan_in >= 2**31:
            return f"int32 might not hold sums of {layer.fan_in} products"
        if not self.everywhere and layer.multiplications < SMALLEST:
            return f"it is small ({layer.multiplications} multiplications a call)"
        return None

    def _digits(self, layer: _Layer, known: Levels) -> Digits | str:
        assert layer.weight is not None
        weight = layer.weight.double() * known.scale
        count = self.digits
        if not bool(weight.isfinite().all()):
            return "its weight holds NaN or infinity"
        if count >= 3:  # asked to be as exact as float32
            count = max(count, _digits_needed(weight))
            if count > MOST_DIGITS:
                return "its largest weights are so far above the others that four digits would lose those"
        try:
            digits = split_weight(weight, count)
        except ValueError as error:
            return str(error)
        if not self.everywhere and layer.fan_in < SHORTEST * digits.digits.shape[0]:
            return f"its sums are short ({layer.fan_in} products): results cost more to write, once per digit, than products"
        return digits


def _replace(edit: Rewriter, layer: _Layer, x: fx.Node, known: Levels, digits: Digits) -> None:
    graph, node = edit.graph, layer.node
    with graph.graph.inserting_before(node):
        d = graph.add_tensor(f"{layer.title}_digits", digits.digits)
        s = graph.add_tensor(f"{layer.title}_scales", digits.scales)
        if layer.conv is None:
            new = graph.graph.call_function(INTEGER_LINEAR, (x, d, s, layer.bias))
        else:
            options = (layer.conv[k] for k in ("stride", "padding", "dilation", "groups"))
            new = graph.graph.call_function(INTEGER_CONV, (x, d, s, layer.bias, *options))
    new.meta = origin_of(node)
    node.replace_all_uses_with(new)
    edit.did(node, f"{digits.digits.shape[0]} digits; its input is {known}")


@dataclass(frozen=True)
class _Layer:
    """A convolution or a linear layer."""

    graph: SpikingGraph
    node: fx.Node
    x: fx.Node
    weight: Tensor | None  # [O, I, ...]
    title: str
    bias: fx.Node | None
    conv: dict[str, Any] | None

    @classmethod
    def of(cls, graph: SpikingGraph, node: fx.Node) -> _Layer | None:
        if not is_op(node, aten.convolution.default, aten.linear.default, aten.mm.default, aten.addmm.default):
            return None
        given = arguments(node)
        if is_op(node, aten.convolution.default, aten.linear.default):
            x, w, bias = given["input"], given["weight"], given["bias"]
            conv = given if is_op(node, aten.convolution.default) else None
            return cls(graph, node, x, graph.constant(w), str(w.target), bias, conv)
        x, w, bias = (
            (given["self"], given["mat2"], None) if "mat1" not in given else (given["mat1"], given["mat2"], given["self"])
        )
        if bias is not None and (len(shape_of(bias)) != 1 or (given["alpha"], given["beta"]) != (1, 1)):
            return None
        weight = graph.constant(w)  # stored as x @ w wants it
        return cls(graph, node, x, None if weight is None else weight.mT, str(w.target), bias, None)

    @property
    def transposed(self) -> bool:
        return self.conv is not None and bool(self.conv["transposed"])

    @property
    def fan_in(self) -> int:
        assert self.weight is not None
        return math.prod(self.weight.shape[1:])

    @property
    def multiplications(self) -> int:
        """Of all steps, at the example's batch size."""
        size = self.graph.facts.example_batch / self.graph.batch if self.graph.free_batch else 1
        return int(math.prod(shape_of(self.node)) * size) * self.fan_in


def _digits_needed(weight: Tensor) -> int:
    """The digits that are about as near as float32 is: 3, 4, or 5 where even four are too few."""
    sizes = weight.flatten(1).abs().sort(1, descending=True)[0]
    count = (sizes > 0).sum(1, keepdim=True)
    sizes, count = sizes[count[:, 0] > 0], count[count[:, 0] > 0]
    if not len(sizes):
        return 3
    at = torch.arange(sizes.shape[1], device=sizes.device)
    ordinary = (at >= ((count + 7) // 8).clamp(max=count - 1)) & (at < count)
    relative = sizes / sizes[:, :1]  # a square of the weights themselves might not be held
    typical = ((relative.square() * ordinary).sum(1) / ordinary.sum(1)).sqrt()
    allowed = (MOST_ERROR / _OF_THREE * (1 + RATE * count[:, 0] / 2).sqrt()).clamp(min=NO_TAIL)
    excess = float((typical.clamp(min=1e-60) * allowed).reciprocal().square().mean().sqrt())
    return 3 if excess <= 1 else 4 if excess <= BASE else 5
