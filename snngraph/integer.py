"""Integer synapses: weights as int8 digits, and the ``snn::`` operators that compute with them.

Per output channel ``W = sum_k scale_k * D_k`` with digits ``D_k`` in -127..127 and ``scale_{k+1} = scale_k / 254``, rounded to
float32 so that every engine multiplies by the same number; each digit is taken of what the ones before it leave. It is fixed
point per channel: after K digits the residual of a weight is at most ``scale_K / 2``, that is 6e-8 of the channel's largest
weight after three, and 2.4e-10 after four. The sum of spikes times a digit is an integer, exact in whatever order it is added up.

* ``snn::levels(x, low, high)``: ``x``, whose elements are integers in ``low..high``. An engine may hold them in 8 bits.
* ``snn::integer_conv(x, digits, scales, bias, stride, padding, dilation, groups)``: ``digits`` int8 ``[K, O, I/groups,
  *kernel]``, ``scales`` ``[K, O]``, ``x`` integers ``[N, I, *size]``.
* ``snn::integer_linear(x, digits, scales, bias)``: ``digits`` int8 ``[K, O, I]``, ``x`` integers ``[..., I]``.

Each digit's sum is scaled on its own and they are added smallest first, the bias with the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BASE", "INTEGER_CONV", "INTEGER_LINEAR", "LARGEST", "LEVELS", "MOST_LEVELS", "Digits", "split_weight"]

LARGEST = 127
"""The largest digit."""
BASE = 2 * LARGEST
"""By how much the scale of a digit is smaller than that of the one before."""
MOST_LEVELS = 127
"""The largest input: CPUs without VNNI add pairs of products of 8 bits in 16 bits, which hold ``2 * 127 * 127`` and no more."""
_TINY = float(torch.finfo(torch.float32).tiny)
_HALF = 2.0**-24
"""How far a number may be from its float32 number, relatively."""
_SAMPLE = 64
"""Weights of a channel by which its steps are counted first."""

_library = torch.library.Library("snn", "FRAGMENT")
_library.define("levels(Tensor x, int low, int high) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(
    "integer_conv(Tensor x, Tensor digits, Tensor scales, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "integer_linear(Tensor x, Tensor digits, Tensor scales, Tensor? bias=None) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)


@dataclass(frozen=True)
class Digits:
    """A weight in digits.

    Args:
        digits: int8 ``[K, O, ...]``.
        scales: float64 ``[K, O]``, each a float32 number.
    """

    digits: Tensor
    scales: Tensor

    def weight(self) -> Tensor:
        """The weight they stand for, ``[O, ...]``, in float64."""
        scales = self.scales.reshape(*self.scales.shape, *[1] * (self.digits.dim() - 2))
        return (self.digits.double() * scales).sum(0)


def split_weight(weight: Tensor, digits: int) -> Digits:
    """The digits of a weight ``[O, ...]``, in float64.

    No more than are needed to be as near to every single weight as its own float32 number may be: weights that are up to 127
    steps of one size per channel, because they were quantized before, have one digit. A channel of zeros has zeros for digits.
    So has a digit whose scale float32 does not hold with all its bits (below 1.2e-38).

    Raises:
        ValueError: ``weight`` is not finite, or float32 does not hold it.
    """
    weight = weight.detach().double()
    if not bool(weight.isfinite().all()):
        raise ValueError("the weight holds NaN or infinity")
    flat = weight.reshape(weight.shape[0], -1)
    largest = flat.abs().amax(1) if flat.numel() else weight.new_zeros(weight.shape[0])
    if bool((largest > torch.finfo(torch.float32).max).any()):
        raise ValueError("the weight is too large for float32")
    found, scales = [], []
    rest, scale = flat, largest / _steps(flat, largest)
    for _ in range(digits):
        scale = scale.float().double()
        used = scale >= _TINY
        scale = torch.where(used, scale, 1.0)
        digit = (rest / scale[:, None]).round().clamp(-LARGEST, LARGEST) * used[:, None]
        rest = rest - digit * scale[:, None]
        found.append(digit.to(torch.int8).reshape(weight.shape))
        scales.append(scale)
        if bool((rest.abs() <= _HALF * flat.abs()).all()):
            break
        scale = torch.where(used, scale / BASE, 0.0)
    return Digits(torch.stack(found), torch.stack(scales))


def _steps(flat: Tensor, largest: Tensor) -> Tensor:
    """How many steps the largest weight of each channel is: 127, or as many as make steps of all its weights."""
    steps = torch.full_like(largest, LARGEST)
    if not flat.numel():
        return steps
    sample = flat[:, torch.linspace(0, flat.shape[1] - 1, min(_SAMPLE, flat.shape[1])).long()] / largest.clamp(min=_TINY)[:, None]
    for count in range(LARGEST, 0, -1):
        steps = torch.where(_whole(sample * count).all(1), float(count), steps)
    return torch.where(_whole(flat / largest.clamp(min=_TINY)[:, None] * steps[:, None]).all(1), steps, float(LARGEST))


def _whole(x: Tensor) -> Tensor:
    return (x - x.round()).abs() <= _HALF * x.abs()


# -- the references ------------------------------------------------------------------------------------------------------------


def _summed(
    x: Tensor, digits: Tensor, scales: Tensor, bias: Tensor | None, product: Callable[[Tensor], Tensor], channel: int
) -> Tensor:
    """The digits' sums, each scaled per channel, smallest first."""
    total: Tensor | None = None
    for k in reversed(range(digits.shape[0])):
        sums = product(digits[k].to(x.dtype))
        aligned = [1] * sums.dim()
        aligned[channel] = -1
        part = sums * scales[k].to(x.dtype).reshape(aligned)
        if k == 0 and bias is not None:
            part = part + bias.to(x.dtype).reshape(aligned)
        total = part if total is None else part + total
    assert total is not None
    return total


def integer_conv_reference(
    x: Tensor,
    digits: Tensor,
    scales: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """``snn::integer_conv`` in plain PyTorch."""
    options = (list(stride), list(padding), list(dilation), False, [0] * len(stride), groups)
    return _summed(x, digits, scales, bias, lambda d: torch.ops.aten.convolution.default(x, d, None, *options), 1)


def integer_linear_reference(x: Tensor, digits: Tensor, scales: Tensor, bias: Tensor | None = None) -> Tensor:
    """``snn::integer_linear`` in plain PyTorch."""
    return _summed(x, digits, scales, bias, lambda d: torch.nn.functional.linear(x, d), x.dim() - 1)


def levels_reference(x: Tensor, low: int, high: int) -> Tensor:
    """``snn::levels`` in plain PyTorch: a copy."""
    return x.clone()


for _name, _reference in (
    ("levels", levels_reference),
    ("integer_conv", integer_conv_reference),
    ("integer_linear", integer_linear_reference),
):
    _library.impl(_name, _reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"snn::{_name}", _reference, lib=_library)

LEVELS = torch.ops.snn.levels.default
INTEGER_CONV = torch.ops.snn.integer_conv.default
INTEGER_LINEAR = torch.ops.snn.integer_linear.default
