"""Integers times one constant: the arithmetic of :class:`Levels`, by intervals of the integers and an exact fraction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

__all__ = ["Levels", "RealError"]

_LARGEST = 2**24  # float32 holds every integer up to here
_WIDE = (torch.float32, torch.float64, torch.int32, torch.int64)
_NARROW = {torch.bool: 1, torch.float16: 2**11, torch.bfloat16: 2**8, torch.uint8: 255, torch.int8: 127, torch.int16: 2**15 - 1}


class RealError(Exception):
    """Why a tensor has no levels."""


@dataclass(frozen=True, slots=True)
class Levels:
    """What the elements of a tensor are: ``scale * k``, ``k`` an integer in ``low..high``.

    Args:
        low: the smallest ``k``.
        high: the largest.
        unit: the scale as an exact fraction, positive.
        exact: whether floating point, float32 included, gives exactly these numbers; otherwise they are rounded.
    """

    low: int
    high: int
    unit: Fraction = Fraction(1)
    exact: bool = True

    @property
    def scale(self) -> float:
        """The scale, rounded to float64."""
        return float(self.unit)

    @property
    def largest(self) -> int:
        """The largest magnitude of ``k``."""
        return max(abs(self.low), abs(self.high))

    @property
    def constant(self) -> Fraction | None:
        """The number that every element is, if they are all the same."""
        return self.low * self.unit if self.low == self.high else None

    def __str__(self) -> str:
        shown = self.unit if self.unit.denominator < _LARGEST else f"{self.scale:.6g}"
        return f"{self.low}..{self.high}" + ("" if self.unit == 1 else f" * {shown}")

    @classmethod
    def of_number(cls, a: float) -> Levels:
        """One integer, or one times the number's magnitude."""
        if not math.isfinite(a):
            raise RealError(f"{a} is not finite")
        if a == int(a):
            return cls(int(a), int(a))
        sign = 1 if a > 0 else -1
        return cls(sign, sign, abs(Fraction(a)), exact=torch.tensor(a, dtype=torch.float32).item() == a)

    @classmethod
    def of_tensor(cls, value: Tensor) -> Levels:
        """Integers; or multiples of the smallest magnitude."""
        value = value.detach().flatten()
        sample = value[:1024]
        whole = bool((sample == sample.round()).all())
        if not whole and (value.numel() > 2**18 or sample.unique().numel() > 256):  # weights, without a look at all of them
            raise RealError("a constant of too many values")
        if not value.numel() or value.is_complex() or not bool(value.isfinite().all()):
            raise RealError("a constant that is empty or not finite")
        if whole and bool((value == value.round()).all()):
            return cls(int(value.min()), int(value.max()))
        if value.numel() > 2**18 or len(values := value.double().unique().tolist()) > 2**12:
            raise RealError("a constant of too many values")
        unit = min(abs(Fraction(x)) for x in values if x)
        multiples = [Fraction(x) / unit for x in values]
        if any(k.denominator != 1 for k in multiples):
            raise RealError("a constant whose values are no multiples of the smallest")
        exact = torch.equal(value.float().double(), value.double())
        return cls(int(min(multiples)), int(max(multiples)), unit, exact)

    def held_as(self, dtype: torch.dtype) -> Levels:
        """The same in a tensor of type ``dtype``; of integers that were rounded before, a cast to integers makes others."""
        if self.low == self.high == 0:
            return Levels(0, 0)
        if self.largest > _LARGEST or not 2**-64 <= self.unit <= 2**64:
            raise RealError(f"its levels, up to {self.largest} * {self.scale:.3g}, are too many for float32")
        dyadic = _is_power_of_two(self.unit.denominator) and self.unit.numerator * self.largest <= _LARGEST
        held = replace(self, exact=self.exact and dyadic)
        if dtype not in _WIDE and not (held.exact and self.unit == 1 and self.largest <= _NARROW.get(dtype, 0)):
            raise RealError(f"{dtype} may not hold its levels")
        if dtype.is_floating_point or (held.exact and self.unit.denominator == 1 and (dtype.is_signed or self.low >= 0)):
            return held
        raise RealError(f"a cast to {dtype} may cut its levels off")

    # -- arithmetic ------------------------------------------------------------------------------------------------------------

    def times(self, n: int) -> Levels:
        """A sum of ``n`` such elements."""
        return replace(self, low=self.low * n, high=self.high * n)

    def scaled(self, c: Fraction) -> Levels:
        """``c * x``; the factor goes to the unit."""
        if c == 0:
            return Levels(0, 0)
        return replace(self if c > 0 else -self, unit=self.unit * abs(c))

    def over(self, c: Fraction | int) -> Levels:
        """``x / c``. Exact for powers of two alone: an engine may multiply by the rounded inverse."""
        if c == 0:
            raise RealError("it is divided by zero")
        inverse = 1 / Fraction(c)
        power = _is_power_of_two(abs(inverse.numerator)) and _is_power_of_two(inverse.denominator)
        return replace(self.scaled(inverse), exact=self.exact and power)

    def __neg__(self) -> Levels:
        return replace(self, low=-self.high, high=-self.low)

    def __abs__(self) -> Levels:
        return replace(self, low=max(self.low, -self.high, 0), high=self.largest)

    def __mul__(self, other: Levels) -> Levels:
        exact = self.exact and other.exact
        for x, y in ((self, other), (other, self)):
            if y.constant is not None:
                return replace(x.scaled(y.constant), exact=exact)
        ends = [p * q for p in (self.low, self.high) for q in (other.low, other.high)]
        return Levels(min(ends), max(ends), self.unit * other.unit, exact)

    def __add__(self, other: Levels) -> Levels:
        a, b = aligned((self, other))
        return Levels(a.low + b.low, a.high + b.high, a.unit, a.exact and b.exact)

    def __sub__(self, other: Levels) -> Levels:
        return self + -other

    def at_least(self, limit: Levels) -> Levels:
        """The larger of each two."""
        a, b = aligned((self, limit))
        return Levels(max(a.low, b.low), max(a.high, b.high), a.unit, a.exact and b.exact)

    def at_most(self, limit: Levels) -> Levels:
        """The smaller of each two."""
        return -((-self).at_least(-limit))


def aligned(parts: Sequence[Levels]) -> list[Levels]:
    """The same levels in one unit, the greatest of which all their units are multiples."""
    units = [p.unit for p in parts if p.low or p.high] or [Fraction(1)]
    common = math.lcm(*(u.denominator for u in units))
    unit = Fraction(math.gcd(*(int(u * common) for u in units)), common)
    same = [replace(p.times(int(p.unit / unit)) if p.low or p.high else p, unit=unit) for p in parts]
    if any(p.largest > _LARGEST for p in same):
        raise RealError("its parts are multiples of one scale only by numbers that float32 does not hold")
    return same


def hull(*parts: Levels) -> Levels:
    """What holds for an element of any of them."""
    same = aligned(parts)
    return Levels(min(p.low for p in same), max(p.high for p in same), same[0].unit, all(p.exact for p in same))


def _is_power_of_two(n: int) -> bool:
    return n.bit_count() == 1
