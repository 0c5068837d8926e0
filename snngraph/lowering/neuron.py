"""The canonical neuron as ONNX operators: :func:`snngraph.ops.lif_step_reference` in float32, operation by operation.

What is left out changes no result: a factor of exactly 1; an addend of exactly 0 and the charge of a membrane at exactly 0, which
could only turn a zero's sign (``0 + -0 = 0``; no comparison sees it); arithmetic on constants, done here with PyTorch's own rules
(a 0-d float64 number counts as a Python number). Resets stay selects: a product would make ``0 * inf = NaN``.

ONNX Runtime then gives PyTorch's float32 to the bit. OpenVINO fuses ``decay*v + x`` into one rounding, which is closer to float64
and equal to the bit where the decay is a power of two; and its comparisons hold for NaN, so there a NaN fires.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from snngraph import ops
from snngraph.graph import OUTPUT_NAMES
from snngraph.lowering.builder import Builder, Value

__all__ = ["Steps", "lower_lif", "lower_step", "outputs_used"]

Operand: TypeAlias = "str | Tensor"  # an ONNX tensor, or a constant in the type PyTorch's float32 run would hold it in


@dataclass(frozen=True, slots=True)
class Steps:
    """The tensors of one neuron node: per step what it emits and its potential before the threshold, and the final state."""

    spikes: list[str]
    membrane: list[str]
    v: str | None
    i: str | None


def outputs_used(node: fx.Node) -> set[str]:
    """Which of ``s, v, i, h`` the graph reads."""
    return {OUTPUT_NAMES[int(str(user.args[1]))] for user in node.users}


class _Arithmetic:
    """Float32 operators on tensors and constants; constants are folded, neutral operands dropped."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder

    def emit(self, op: str, *operands: Operand) -> str:
        return self.builder.emit(op, *operands)

    def mul(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a * b
        if _all(a, 1):
            return b
        return a if _all(b, 1) else self.emit("Mul", a, b)

    def add(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a + b
        if _all(a, 0):
            return b
        return a if _all(b, 0) else self.emit("Add", a, b)

    def sub(self, a: Operand, b: Operand) -> Operand:
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a - b
        return a if _all(b, 0) else self.emit("Sub", a, b)

    def where(self, condition: Operand, a: Operand, b: Operand) -> Operand:
        if isinstance(condition, Tensor) and isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.where(condition, a, b)
        return self.emit("Where", condition, _float(a), _float(b))

    def maximum(self, a: Operand, b: Operand) -> Operand:
        return torch.maximum(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else self.emit("Max", _float(a), _float(b))

    def fires(self, h: Operand, threshold: Operand, fire: str) -> Operand:
        if isinstance(h, Tensor) and isinstance(threshold, Tensor):
            return h >= threshold if fire == ">=" else h > threshold
        return self.emit("GreaterOrEqual" if fire == ">=" else "Greater", h, threshold)

    def fires_below(self, h: Operand, threshold: Operand, fire: str) -> Operand:
        """``-h >= threshold``, written ``h <= -threshold``: negation is exact."""
        if isinstance(h, Tensor) and isinstance(threshold, Tensor):
            return -h >= threshold if fire == ">=" else -h > threshold
        negative = -threshold if isinstance(threshold, Tensor) else self.emit("Neg", threshold)
        return self.emit("LessOrEqual" if fire == ">=" else "Less", h, negative)

    def number(self, condition: Operand) -> Operand:
        """A condition as 0 or 1."""
        if isinstance(condition, Tensor):
            return condition.to(torch.float64 if condition.dim() == 0 else torch.float32)
        return self.builder.emit("Cast", condition, to=1)

    def count(self, h: Operand, threshold: Operand) -> Operand:
        if isinstance(h, Tensor) and isinstance(threshold, Tensor):
            return ops.emit_spikes(h, threshold, ">=", "count")
        ratio = self.emit("Div", h, threshold)
        if isinstance(threshold, Tensor) and bool((threshold > 0).all()):
            # Read only where h > 0, so the ratio is not negative and truncating is rounding down.
            whole = self.emit("Floor", ratio)
        else:
            zero = torch.zeros((), dtype=torch.float64)
            whole = self.emit("Where", self.emit("Less", ratio, zero), self.emit("Ceil", ratio), self.emit("Floor", ratio))
        zero = torch.zeros((), dtype=torch.float64)
        return self.emit("Where", self.emit("Greater", h, zero), whole, zero)


def _float(a: Operand) -> Operand:
    return a.to(torch.float64) if isinstance(a, Tensor) else a


def _all(a: Operand, number: float) -> bool:
    # Of whatever shape: every parameter broadcasts to one step of x, whose shape each sum ends up with.
    return isinstance(a, Tensor) and bool((a == number).all())


class _Cell:
    """One neuron's parameters, and its step."""

    def __init__(self, builder: Builder, parameters: dict[str, Any]) -> None:
        self.arithmetic = _Arithmetic(builder)
        self.fire, self.reset = parameters["fire"], parameters["reset"]
        self.delay, self.emit = parameters["delay"], parameters["emit"]
        names = ("decay", "threshold", "input_gain", "bias", "v_reset", "reset_amount", "syn_decay", "syn_gain", "floor", "level")
        self.p: dict[str, Operand | None] = {k: operand(builder, parameters[k]) for k in names}
        self.amount = self._given("threshold") if self.p["reset_amount"] is None else self._given("reset_amount")

    def _given(self, name: str) -> Operand:
        found = self.p[name]
        assert found is not None, f"{name} is missing"
        return found

    def fired(self, h: Operand) -> tuple[Operand, Operand | None]:
        """What a neuron at ``h`` emits (before ``level``), and whether it emits anything where that condition comes for free."""
        a, threshold = self.arithmetic, self._given("threshold")
        if self.emit == "count":
            return a.count(h, threshold), None
        up = a.fires(h, threshold, self.fire)
        if self.emit == "spike":
            return a.number(up), up
        return a.sub(a.number(up), a.number(a.fires_below(h, threshold, self.fire))), None

    def apply_reset(self, v: Operand, decided: tuple[Operand, Operand | None]) -> Operand:
        a, (fired, condition) = self.arithmetic, decided
        if self.reset == "none":
            return v
        if self.reset == "soft":
            return a.sub(v, a.mul(fired, self.amount))
        if condition is None:
            if isinstance(fired, Tensor):
                condition = fired != 0
            else:
                condition = a.emit("Not", a.emit("Equal", fired, torch.zeros((), dtype=torch.float64)))
        return a.where(condition, self._given("v_reset"), v)

    def step(
        self, x: Operand, v: Operand, i: Operand | None, gain: Operand | None, *, last: bool
    ) -> tuple[str, Operand, Operand, Operand]:
        """``s, v, i, h`` of one step; the state of the ``last`` step is left at ``h`` where nobody reads it."""
        a, p = self.arithmetic, self.p
        current = x if gain is None else a.mul(gain, x)
        if p["syn_decay"] is not None:
            current = current if p["syn_gain"] is None else a.mul(p["syn_gain"], current)
            current = current if i is None or _all(i, 0) else a.add(a.mul(p["syn_decay"], i), current)
        if self.delay != "none":
            if isinstance(v, Tensor):  # as the reference: decided, and reset, in float32
                v = v.float().reshape(v.shape or 1)
            decided = self.fired(v)  # the same nodes as the last step's spikes: the builder emits equal nodes once
            if self.delay == "before":
                v = self.apply_reset(v, decided)
        charge = current if p["input_gain"] is None else a.mul(p["input_gain"], current)
        h = charge if _all(v, 0) else a.add(a.mul(self._given("decay"), v), charge)
        if p["bias"] is not None:
            h = a.add(h, p["bias"])
        if self.delay in ("with", "both"):
            h = self.apply_reset(h, decided)
        if p["floor"] is not None and self.delay in ("before", "with"):
            h = a.maximum(h, p["floor"])
        emitted = self.fired(h)
        v = h
        if self.delay in ("none", "both") and not last:
            v = self.apply_reset(h, (a.sub(emitted[0], decided[0]), None) if self.delay == "both" else emitted)
            if p["floor"] is not None:
                v = a.maximum(v, p["floor"])
        s = emitted[0] if p["level"] is None else a.mul(p["level"], emitted[0])
        return _tensor(a, s), v, current, h


def _tensor(a: _Arithmetic, x: Operand) -> str:
    return a.builder.initializer(x) if isinstance(x, Tensor) else x


def operand(builder: Builder, x: Value | None) -> Operand | None:
    """A neuron's parameter: a constant of one or more dimensions is float32 before it meets another, as in a float32 run."""
    if x is None:
        return None
    if x.constant is None:
        return builder.name(x)
    if x.constant.dim() == 0:
        return x.constant.to(torch.float64)
    builder.initializer(x.constant, x.title)  # checks the range
    return x.constant.to(torch.float32)


def _gains(builder: Builder, gain: Value | None, x: Value) -> Sequence[Operand | None]:
    steps = int(str(x.shape[0]))
    if gain is None or len(gain.shape) < len(x.shape):
        return [operand(builder, gain)] * steps
    if gain.shape[0] == 1:
        return [operand(builder, builder.view(gain, gain.shape[1:]))] * steps
    return [operand(builder, g) for g in builder.steps(gain)]


def _run(
    builder: Builder, parameters: dict[str, Any], xs: Sequence[Value], gains: Sequence[Operand | None], used: set[str]
) -> Steps:
    cell = _Cell(builder, parameters)
    v, i = operand(builder, parameters["v"]), operand(builder, parameters["i"])
    assert v is not None
    spikes, membrane = [], []
    for t, (x, gain) in enumerate(zip(xs, gains, strict=True)):
        last = t == len(xs) - 1 and "v" not in used
        s, v, i, h = cell.step(builder.name(x), v, i, gain, last=last)
        spikes.append(s)
        membrane.append(_tensor(cell.arithmetic, h))
    return Steps(spikes, membrane, _tensor(cell.arithmetic, v), _tensor(cell.arithmetic, i) if i is not None else None)


def lower_lif(builder: Builder, parameters: dict[str, Any], used: set[str]) -> tuple[tuple[Value | None, ...], Steps]:
    """``snn::lif``: one ``Split`` of ``[T*N, ...]``, T steps, one ``Concat``."""
    x: Value = parameters["x"]
    xs = builder.steps(x)
    found = _run(builder, parameters, xs, _gains(builder, parameters["gain"], x), used)
    layout = xs[0].layout

    def one(name: str | None) -> Value | None:
        return None if name is None else builder.value(name, x.shape[1:], layout=layout)

    spikes = builder.joined([builder.value(s, x.shape[1:], layout=layout) for s in found.spikes])
    potentials = builder.joined([builder.value(h, x.shape[1:], layout=layout) for h in found.membrane]) if "h" in used else None
    return (spikes, one(found.v), one(found.i), potentials), found


def lower_step(builder: Builder, parameters: dict[str, Any], used: set[str]) -> tuple[tuple[Value | None, ...], Steps]:
    """``snn::lif_step``."""
    x: Value = parameters["x"]
    found = _run(builder, parameters, [x], [operand(builder, parameters["gain"])], used)
    made = (found.spikes[0], found.v, found.i, found.membrane[0])
    return tuple(None if name is None else builder.value(name, x.shape) for name in made), found
