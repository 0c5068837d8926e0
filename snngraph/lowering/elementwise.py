"""Operators that work element by element."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from snngraph.lowering.builder import Builder, Refusal, Shape, Value, onnx_type
from snngraph.lowering.table import Table, number, pointwise, promoted

__all__ = ["TABLE"]

aten = torch.ops.aten
TABLE = Table()

# fmt: off
_UNARY = [  # each has the name of its ATen operator, in ONNX's spelling
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Log", "Neg",
    "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Sqrt", "Tan", "Tanh",
]
# fmt: on


def _unary(builder: Builder, node: fx.Node, self: Value, op: str, **attributes: Any) -> Value:
    dtype = builder.dtype(node)
    return pointwise(builder, builder.shape(node), op, [builder.cast(self, dtype)], dtype, **attributes)


def _register_unary(op: str) -> None:
    @TABLE.on(getattr(aten, op.lower()).default)
    def translate(builder: Builder, node: fx.Node, self: Value, **_: Any) -> Value:
        if not self.dtype.is_floating_point and op in ("Ceil", "Floor", "Round"):
            return self
        return _unary(builder, node, self, op)


for _op in _UNARY:
    _register_unary(_op)


def _binary(builder: Builder, node: fx.Node, op: str, a: Any, b: Any, *, computed: torch.dtype | None = None) -> Value:
    result = builder.dtype(node)
    dtype = result if computed is None else computed
    return pointwise(builder, builder.shape(node), op, [number(builder, a, dtype), number(builder, b, dtype)], result)


def _times(builder: Builder, node: fx.Node, x: Any, alpha: float) -> Any:
    if alpha == 1:
        return x
    if not isinstance(x, Value):
        return x * alpha
    dtype = builder.dtype(node)
    return pointwise(builder, x.shape, "Mul", [number(builder, x, dtype), number(builder, alpha, dtype)], dtype)


@TABLE.on(aten.add.Tensor, aten.add.Scalar)
def _add(builder: Builder, node: fx.Node, self: Value, other: Any, alpha: float = 1) -> Value:
    return _binary(builder, node, "Or" if builder.dtype(node) == torch.bool else "Add", self, _times(builder, node, other, alpha))


@TABLE.on(aten.sub.Tensor, aten.sub.Scalar)
def _sub(builder: Builder, node: fx.Node, self: Value, other: Any, alpha: float = 1) -> Value:
    return _binary(builder, node, "Sub", self, _times(builder, node, other, alpha))


@TABLE.on(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(builder: Builder, node: fx.Node, self: Value, other: Any, alpha: float = 1) -> Value:
    return _binary(builder, node, "Sub", other, _times(builder, node, self, alpha))


@TABLE.on(aten.mul.Tensor, aten.mul.Scalar)
def _mul(builder: Builder, node: fx.Node, self: Value, other: Any) -> Value:
    return _binary(builder, node, "And" if builder.dtype(node) == torch.bool else "Mul", self, other)


@TABLE.on(aten.div.Tensor, aten.div.Scalar, aten.div.Tensor_mode, aten.div.Scalar_mode)
def _div(builder: Builder, node: fx.Node, self: Value, other: Any, rounding_mode: str | None = None) -> Value:
    shape, dtype = builder.shape(node), builder.dtype(node)
    if rounding_mode is None:
        return _binary(builder, node, "Div", self, other, computed=torch.float32)
    if not dtype.is_floating_point:
        a, b = _whole(builder, node, self, other)
        quotient, rest = _divided(builder, shape, a, b)
        if rounding_mode == "trunc":
            up = pointwise(builder, shape, "Add", [quotient, number(builder, 1, a.dtype)], a.dtype)
            quotient = pointwise(builder, shape, "Where", [_opposite(builder, shape, rest, a), up, quotient], a.dtype)
        return builder.cast(quotient, dtype)
    a, b = number(builder, self), number(builder, other)
    ratio = pointwise(builder, shape, "Div", [a, b], dtype)
    return _truncated(builder, ratio) if rounding_mode == "trunc" else _floor_divided(builder, shape, a, b, ratio)


def _truncated(builder: Builder, x: Value) -> Value:
    """Rounded towards zero; ONNX has no Trunc."""
    down, up = (pointwise(builder, x.shape, op, [x], x.dtype) for op in ("Floor", "Ceil"))
    negative = pointwise(builder, x.shape, "Less", [x, number(builder, 0.0)], torch.bool)
    return pointwise(builder, x.shape, "Where", [negative, up, down], x.dtype)


def _floor_divided(builder: Builder, shape: Shape, a: Value, b: Value, ratio: Value) -> Value:
    """The quotient, rounded down as PyTorch does it.

    Not the floor of ``ratio``, which may have been rounded up to a whole number: 1 / 0.1 is 10 in float32, but float32's 0.1, a
    little more than a tenth, is contained in 1 only 9 times. OpenVINO's Mod makes that mistake itself.
    """
    rest = _modulo(builder, shape, a, b)
    multiple = pointwise(builder, shape, "Sub", [a, rest], a.dtype)
    quotient = pointwise(builder, shape, "Div", [multiple, b], a.dtype)  # whole, but for rounding
    whole = pointwise(builder, shape, "Round", [quotient], a.dtype)
    if b.constant is not None and bool((b.constant != 0).all()):
        return whole
    zero = pointwise(builder, b.shape, "Equal", [b, number(builder, 0.0)], torch.bool)
    return pointwise(builder, shape, "Where", [zero, ratio, whole], a.dtype)  # infinite


def _modulo(builder: Builder, shape: Shape, a: Value, b: Value) -> Value:
    """The remainder with the divisor's sign, from the exact one with the dividend's."""
    rest = pointwise(builder, shape, "Mod", [a, b], a.dtype, fmod=1)
    more = pointwise(builder, shape, "Add", [rest, b], a.dtype)
    return pointwise(builder, shape, "Where", [_opposite(builder, shape, rest, b), more, rest], a.dtype)


def _opposite(builder: Builder, shape: Shape, a: Value, b: Value) -> Value:
    """Whether one number is positive and the other negative."""
    signs = [pointwise(builder, x.shape, "Sign", [x], x.dtype) for x in (a, b)]
    product = pointwise(builder, shape, "Mul", signs, a.dtype)
    return pointwise(builder, shape, "Less", [product, number(builder, 0, a.dtype)], torch.bool)


def _whole(builder: Builder, node: fx.Node, *operands: Any) -> list[Value]:
    """Integers, in a type that engines divide."""
    dtype = torch.int64 if builder.dtype(node) == torch.int64 else torch.int32
    return [number(builder, x, dtype) for x in operands]


def _divided(builder: Builder, shape: Shape, a: Value, b: Value) -> tuple[Value, Value]:
    """The quotient of integers, rounded down, and the remainder.

    OpenVINO divides integers in float32, so that a quotient above 2^24 is off; multiplied and subtracted they are exact. What is
    left tells how far off it is, and when it has been divided twice more, the quotient is wrong by its sign at most.
    """

    def apply(op: str, *operands: Value) -> Value:
        return pointwise(builder, shape, op, operands, a.dtype)

    quotient = apply("Div", a, b)
    rest = apply("Sub", a, apply("Mul", quotient, b))
    for _ in range(2):
        more = apply("Div", rest, b)
        quotient, rest = apply("Add", quotient, more), apply("Sub", rest, apply("Mul", more, b))
    above = _opposite(builder, shape, rest, b)
    less = apply("Sub", quotient, number(builder, 1, a.dtype))
    return apply("Where", above, less, quotient), apply("Where", above, apply("Add", rest, b), rest)


@TABLE.on(aten.trunc.default)
def _trunc(builder: Builder, node: fx.Node, self: Value) -> Value:
    return _truncated(builder, self) if self.dtype.is_floating_point else self


@TABLE.on(aten.remainder.Scalar, aten.remainder.Tensor)
def _remainder(builder: Builder, node: fx.Node, self: Value, other: Any) -> Value:
    shape, dtype = builder.shape(node), builder.dtype(node)
    if dtype.is_floating_point:
        return _modulo(builder, shape, number(builder, self), number(builder, other))
    return builder.cast(_divided(builder, shape, *_whole(builder, node, self, other))[1], dtype)


@TABLE.on(aten.pow.Tensor_Scalar, aten.pow.Tensor_Tensor, aten.pow.Scalar)
def _pow(builder: Builder, node: fx.Node, self: Any, exponent: Any) -> Value:
    if exponent == 2:
        return _binary(builder, node, "Mul", self, self)
    special = {0.5: "Sqrt", -1: "Reciprocal"}.get(exponent) if isinstance(exponent, int | float) else None
    if special and builder.dtype(node).is_floating_point:
        return _unary(builder, node, self, special)
    return _binary(builder, node, "Pow", self, exponent)


@TABLE.on(aten.rsqrt.default)
def _rsqrt(builder: Builder, node: fx.Node, self: Value) -> Value:
    root = _unary(builder, node, self, "Sqrt")
    return pointwise(builder, root.shape, "Reciprocal", [root], root.dtype)


_LOGARITHM: dict[Any, float] = {aten.log2.default: math.log(2), aten.log10.default: math.log(10)}


@TABLE.on(*_LOGARITHM)
def _log(builder: Builder, node: fx.Node, self: Value) -> Value:
    natural = _unary(builder, node, self, "Log")
    return pointwise(builder, natural.shape, "Mul", [natural, number(builder, 1 / _LOGARITHM[node.target])], natural.dtype)


@TABLE.on(aten.log1p.default)
def _log1p(builder: Builder, node: fx.Node, self: Value) -> Value:
    more = pointwise(builder, self.shape, "Add", [builder.cast(self, torch.float32), number(builder, 1.0)], torch.float32)
    return _unary(builder, node, more, "Log")


@TABLE.on(aten.expm1.default)
def _expm1(builder: Builder, node: fx.Node, self: Value) -> Value:
    power = _unary(builder, node, self, "Exp")
    return pointwise(builder, power.shape, "Sub", [power, number(builder, 1.0)], power.dtype)


@TABLE.on(aten.fmod.Scalar, aten.fmod.Tensor)
def _fmod(builder: Builder, node: fx.Node, self: Value, other: Any) -> Value:
    shape, dtype = builder.shape(node), builder.dtype(node)
    if dtype.is_floating_point:
        return pointwise(builder, shape, "Mod", [number(builder, self), number(builder, other)], dtype, fmod=1)
    a, b = _whole(builder, node, self, other)
    rest = _divided(builder, shape, a, b)[1]
    less = pointwise(builder, shape, "Sub", [rest, b], a.dtype)
    return builder.cast(pointwise(builder, shape, "Where", [_opposite(builder, shape, rest, a), less, rest], a.dtype), dtype)


@TABLE.on(aten.maximum.default)
def _maximum(builder: Builder, node: fx.Node, self: Value, other: Value) -> Value:
    return _binary(builder, node, "Max", self, other)


@TABLE.on(aten.minimum.default)
def _minimum(builder: Builder, node: fx.Node, self: Value, other: Value) -> Value:
    return _binary(builder, node, "Min", self, other)


@TABLE.on(aten.clamp.default, aten.clamp.Tensor, aten.hardtanh.default, aten.clamp_min.default, aten.clamp_max.default)
def _clamp(builder: Builder, node: fx.Node, self: Value, min: Any = None, max: Any = None, **limits: Any) -> Value:
    low, high, dtype = limits.get("min_val", min), limits.get("max_val", max), builder.dtype(node)
    result = builder.cast(self, dtype)
    for op, limit in (("Max", low), ("Min", high)):
        if isinstance(limit, Value):
            result = pointwise(builder, builder.shape(node), op, [result, builder.cast(limit, dtype)], dtype)
    plain = [None if limit is None or isinstance(limit, Value) else number(builder, limit, dtype) for limit in (low, high)]
    return pointwise(builder, result.shape, "Clip", [result, *plain], dtype) if any(p is not None for p in plain) else result


# -- activations ---------------------------------------------------------------------------------------------------------------


@TABLE.on(aten.gelu.default)
def _gelu(builder: Builder, node: fx.Node, self: Value, approximate: str = "none") -> Value:
    return _unary(builder, node, self, "Gelu", approximate=approximate)


@TABLE.on(aten.leaky_relu.default)
def _leaky_relu(builder: Builder, node: fx.Node, self: Value, negative_slope: float = 0.01) -> Value:
    return _unary(builder, node, self, "LeakyRelu", alpha=float(negative_slope))


@TABLE.on(aten.elu.default)
def _elu(builder: Builder, node: fx.Node, self: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale != 1:
        raise Refusal("an input scale")
    result = _unary(builder, node, self, "Elu", alpha=float(alpha))
    return result if scale == 1 else _times(builder, node, result, scale)


@TABLE.on(aten.prelu.default, aten._prelu_kernel.default)
def _prelu(builder: Builder, node: fx.Node, self: Value, weight: Value) -> Value:
    shape = (weight.shape[0], *[1] * (len(self.shape) - 2)) if len(weight.shape) == 1 and len(self.shape) > 2 else weight.shape
    return pointwise(builder, self.shape, "PRelu", [self, builder.view(weight, shape)], self.dtype)


@TABLE.on(aten.hardsigmoid.default)
def _hardsigmoid(builder: Builder, node: fx.Node, self: Value) -> Value:
    return _unary(builder, node, self, "HardSigmoid", alpha=1 / 6, beta=0.5)


@TABLE.on(aten.hardswish.default)
def _hardswish(builder: Builder, node: fx.Node, self: Value) -> Value:
    return _unary(builder, node, self, "HardSwish")


@TABLE.on(aten.silu.default)
def _silu(builder: Builder, node: fx.Node, self: Value) -> Value:
    gate = _unary(builder, node, self, "Sigmoid")
    return pointwise(builder, gate.shape, "Mul", [self, gate], gate.dtype)


@TABLE.on(aten.softplus.default)
def _softplus(builder: Builder, node: fx.Node, self: Value, beta: float = 1, threshold: float = 20) -> Value:
    x = builder.cast(self, builder.dtype(node))
    scaled = _times(builder, node, x, beta)
    result = pointwise(builder, x.shape, "Softplus", [scaled], x.dtype)
    if beta != 1:
        result = pointwise(builder, x.shape, "Div", [result, number(builder, float(beta))], x.dtype)
    if threshold >= 20:  # there the two are one in float32
        return result
    linear = pointwise(builder, x.shape, "Greater", [scaled, number(builder, float(threshold))], torch.bool)
    return pointwise(builder, x.shape, "Where", [linear, x, result], x.dtype)


# -- comparisons and logic -----------------------------------------------------------------------------------------------------

_COMPARE = {"eq": "Equal", "ne": "Equal", "ge": "GreaterOrEqual", "gt": "Greater", "le": "LessOrEqual", "lt": "Less"}


def _register_comparison(title: str, op: str) -> None:
    packet = getattr(aten, title)

    @TABLE.on(packet.Tensor, packet.Scalar)
    def translate(builder: Builder, node: fx.Node, self: Value, other: Any) -> Value:
        dtype = promoted(node, node.args)
        if dtype == torch.bool and op != "Equal":
            dtype = torch.int32
        result = _binary(builder, node, op, self, other, computed=dtype)
        return pointwise(builder, result.shape, "Not", [result], torch.bool) if title == "ne" else result


for _title, _op in _COMPARE.items():
    _register_comparison(_title, _op)

_LOGIC: dict[Any, str] = {
    aten.logical_and.default: "And",
    aten.logical_or.default: "Or",
    aten.logical_xor.default: "Xor",
    aten.logical_not.default: "Not",
    aten.bitwise_and.Tensor: "And",
    aten.bitwise_or.Tensor: "Or",
    aten.bitwise_xor.Tensor: "Xor",
    aten.bitwise_not.default: "Not",
}


@TABLE.on(*_LOGIC)
def _logic(builder: Builder, node: fx.Node, self: Value, other: Any = None) -> Value:
    if builder.dtype(node) != torch.bool:
        raise Refusal("bits of integers; only truth values are supported")
    operands = [truth(builder, x) for x in (self, other) if x is not None]
    return pointwise(builder, builder.shape(node), _LOGIC[node.target], operands, torch.bool)


def truth(builder: Builder, x: Value) -> Value:
    """Whether elements are not zero."""
    if x.dtype == torch.bool:
        return x
    zero = pointwise(builder, x.shape, "Equal", [x, number(builder, 0, x.dtype)], torch.bool)
    return pointwise(builder, x.shape, "Not", [zero], torch.bool)


@TABLE.on(aten.isnan.default)
def _isnan(builder: Builder, node: fx.Node, self: Value) -> Value:
    return pointwise(builder, self.shape, "IsNaN", [self], torch.bool)


@TABLE.on(aten.isinf.default)
def _isinf(builder: Builder, node: fx.Node, self: Value) -> Value:
    return pointwise(builder, self.shape, "IsInf", [self], torch.bool)


@TABLE.on(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
def _where(builder: Builder, node: fx.Node, condition: Value, self: Any, other: Any) -> Value:
    dtype = builder.dtype(node)
    operands = [truth(builder, condition), number(builder, self, dtype), number(builder, other, dtype)]
    return pointwise(builder, builder.shape(node), "Where", operands, dtype)


@TABLE.on(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(builder: Builder, node: fx.Node, self: Value, mask: Value, value: Any) -> Value:
    return _where(builder, node, mask, value, self)


@TABLE.on(aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_async.default, aten._assert_scalar.default)
def _assertion(builder: Builder, node: fx.Node, **_: Any) -> None:
    """What the model asserts of its tensors held when it was captured; an engine has nobody to tell."""


# -- types ---------------------------------------------------------------------------------------------------------------------


@TABLE.on(aten._to_copy.default)
def _to_copy(builder: Builder, node: fx.Node, self: Value, **_: Any) -> Value:
    dtype = builder.dtype(node)
    onnx_type(dtype)
    return truth(builder, self) if dtype == torch.bool else builder.cast(self, dtype)
