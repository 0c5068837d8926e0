"""Average pooling after a convolution is a convolution with a larger kernel and stride: fewer multiplications, no pooling.

Per dimension, for a kernel ``w`` of J taps with stride c, dilation d and padding p, and pooling windows of k with stride s::

    pool(conv(x))[i] = 1/k sum_m sum_j w[j] x[c(s*i + m) + d*j - p] = sum_n W[n] x[c*s*i + n - p]

where ``W`` has ``d(J-1) + c(k-1) + 1`` taps: ``w`` added up at every shift within the window and divided by k. The bias stays. A
3x3 convolution and a 2x2 pooling become one 4x4 convolution of stride 2, which multiplies 16 times per result instead of 36.

A longer sum rounds more: an engine adds a kernel's products one after the other, and the pooling would have averaged the errors
of several such sums. So a long sum is made of two, over half of the input channels each (a convolution in two groups, and an
addition), which brings the error back to that of convolution and pooling. Sums of integers do not round: with ``integers=True``
a convolution on spikes, which :mod:`snngraph.passes.integer_synapses` will compute in integers, is left whole.

Refused: a pooling with padding or with a ceiling, another divisor, a convolution that others read too or that is transposed, a
long sum that can not be halved, and where the larger kernel would multiply more often than before.

Exactness: real (the kernel is added up in float64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx

from snngraph.analysis.levels import infer_spike_levels
from snngraph.graph import SpikingGraph, arguments, is_op, operand, origin_of
from snngraph.integer import MOST_LEVELS
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["FoldAveragePool"]

aten = torch.ops.aten
_LONG = 64
"""Products in a sum from which on it is made of two."""
_POOLS: dict[Any, int] = {aten.avg_pool1d.default: 1, aten.avg_pool2d.default: 2, aten.avg_pool3d.default: 3}


@dataclass(frozen=True)
class FoldAveragePool(Pass):
    """Folds average pooling into the convolution before it.

    Args:
        integers: convolutions on spikes are to become integer ones.
    """

    name: ClassVar[str] = "fold_average_pool"
    exactness: ClassVar[Exactness] = "real"
    integers: bool = False

    def run(self, graph: SpikingGraph) -> PassResult:
        """Looks at every average pooling whose input a convolution computes."""
        edit = Rewriter(graph)
        levels = infer_spike_levels(graph) if self.integers else {}
        for node in graph.nodes:
            if node.target in _POOLS and is_op(operand(node), aten.convolution.default):
                known = levels.get(operand(operand(node)))
                reason = _fold(edit, node, operand(node), rounds=known is None or known.largest > MOST_LEVELS)
                if reason is not None:
                    edit.refuse(node, reason)
        return edit.result()


def _fold(edit: Rewriter, pool: fx.Node, conv: fx.Node, *, rounds: bool) -> str | None:
    rank = _POOLS[pool.target]
    window, given = arguments(pool), arguments(conv)
    size = _per_dim(window["kernel_size"], rank)
    step = _per_dim(window["stride"] or window["kernel_size"], rank)
    weight = edit.graph.constant(given["weight"])
    if len(conv.users) > 1:
        return f"{conv.name} is read by {len(conv.users)} operators"
    if any(_per_dim(window["padding"], rank)) or window["ceil_mode"] or window.get("divisor_override") is not None:
        return "it pads, rounds its size up, or divides by another number"
    if given["transposed"] or weight is None or weight.dim() != rank + 2:
        return f"{conv.name} is transposed, or its weights are not constants"
    stride, dilation = _per_dim(given["stride"], rank), _per_dim(given["dilation"], rank)
    taps = [d * (j - 1) + c * (k - 1) + 1 for d, j, c, k in zip(dilation, weight.shape[2:], stride, size, strict=True)]
    if math.prod(taps) > math.prod(weight.shape[2:]) * math.prod(step):
        return f"a kernel of {taps} would multiply more often than {list(weight.shape[2:])} at every pixel"
    kernel = _pooled(weight.double(), taps, stride, dilation, size)
    long = rounds and kernel[0].numel() > _LONG
    if long and (given["groups"] != 1 or kernel.shape[1] % 2):
        return f"a sum of {kernel[0].numel()} products rounds more than the pooling allows, and does not divide into two"
    strides = [c * s for c, s in zip(stride, step, strict=True)]
    with edit.graph.graph.inserting_before(pool):
        new = _convolution(edit, conv, kernel, strides, halves=long)
    pool.replace_all_uses_with(new)
    edit.did(pool, f"folded into {conv.name}: a kernel of {taps} with stride {strides}")
    return None


def _convolution(edit: Rewriter, conv: fx.Node, kernel: Tensor, stride: Sequence[int], *, halves: bool) -> fx.Node:
    """``conv`` with another kernel and stride, as the sum of two halves of its input channels if asked for."""
    graph, given = edit.graph.graph, arguments(conv)
    bias, name = given["bias"], str(given["weight"].target)
    rank = kernel.dim() - 2

    def call(weight: Tensor, bias: fx.Node | None, groups: int) -> fx.Node:
        constant = edit.graph.add_tensor(f"{name}_pooled", weight)
        options = (list(stride), given["padding"], [1] * rank, False, [0] * rank, groups)
        new = graph.call_function(aten.convolution.default, (operand(conv), constant, bias, *options))
        new.meta = origin_of(conv)
        return new

    if not halves:
        return call(kernel, bias, given["groups"])
    outputs = kernel.shape[0]
    if bias is not None:
        zeros = edit.graph.add_tensor(f"{name}_no_bias", torch.zeros(outputs, dtype=torch.float64))
        bias = graph.call_function(aten.cat.default, ([bias, zeros], 0))
    both = call(torch.cat(kernel.chunk(2, 1)), bias, 2)
    parts = [graph.call_function(aten.slice.Tensor, (both, 1, k * outputs, (k + 1) * outputs)) for k in range(2)]
    return graph.call_function(aten.add.Tensor, tuple(parts))


def _pooled(weight: Tensor, taps: Sequence[int], stride: Sequence[int], dilation: Sequence[int], size: Sequence[int]) -> Tensor:
    """``weight`` added up at every shift within the window, and divided by the window's size."""
    for k, (n, c, d, shifts) in enumerate(zip(taps, stride, dilation, size, strict=True)):
        dim = k + 2
        wide = weight.new_zeros([n if e == dim else m for e, m in enumerate(weight.shape)])
        for shift in range(shifts):
            wide.narrow(dim, c * shift, d * (weight.shape[dim] - 1) + 1)[_every(dim, d)] += weight
        weight = wide / shifts
    return weight


def _every(dim: int, step: int) -> tuple[slice, ...]:
    return (slice(None),) * dim + (slice(None, None, step),)


def _per_dim(sizes: Sequence[int], rank: int) -> list[int]:
    return list(sizes) * (rank if len(sizes) == 1 else 1)
