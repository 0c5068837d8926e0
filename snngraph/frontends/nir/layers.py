"""NIR's nodes without state, as ATen operators on ``[M, *shape]``: M samples, or steps times samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from snngraph.errors import NirGraphError
from snngraph.graph import RESHAPE

__all__ = ["LAYERS", "Calculator", "Machine", "array_of", "emit", "fitting", "read_layer"]

aten = torch.ops.aten

LAYERS = ("Affine", "Linear", "Conv1d", "Conv2d", "Flatten", "SumPool2d", "AvgPool2d", "Scale", "Identity")


class Machine(Protocol):
    """What carries operators out: it writes them into a graph, or computes."""

    def call(self, target: Any, *args: Any) -> Any:
        """One operator."""

    def constant(self, name: str, value: Tensor) -> Any:
        """A constant, under a name of its own."""

    def shape(self, x: Any) -> tuple[int, ...]:
        """The shape of a value."""


class Calculator:
    """Computes with tensors; on the device ``meta`` it computes shapes alone."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def call(self, target: Any, *args: Any) -> Any:
        """One operator."""
        return target(*args)

    def constant(self, name: str, value: Tensor) -> Tensor:
        """The tensor itself."""
        return value.to(self.device)

    def shape(self, x: Any) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(x.shape)


def array_of(value: Any, where: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A node's array in float64; writers leave PyTorch tensors and plain numbers in their nodes.

    Raises:
        NirGraphError: it is no array of finite numbers.
    """
    array = np.asarray(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
    if array.dtype.kind not in "fiub" or not np.isfinite(array).all():
        raise NirGraphError(f"{where} is no array of finite numbers")
    return array.astype(np.float64)


def read_layer(kind: str, node: Any, where: str) -> dict[str, Any]:
    """The arguments of :func:`emit` from a NIR node.

    Raises:
        NirGraphError: an argument has no such value.
    """
    if kind == "Identity":
        return {}
    if kind == "Flatten":
        return {name: _integers(getattr(node, name), 1, f"{where}{name}")[0] for name in ("start_dim", "end_dim")}
    if kind in ("SumPool2d", "AvgPool2d"):
        return {name: _integers(getattr(node, name), 2, f"{where}{name}") for name in ("kernel_size", "stride", "padding")}
    name = "scale" if kind == "Scale" else "weight"
    found: dict[str, Any] = {name: torch.from_numpy(array_of(getattr(node, name), f"{where}{name}"))}
    if kind == "Scale":
        return found
    rank = {"Conv1d": 3, "Conv2d": 4}.get(kind, 2)
    if found["weight"].dim() != rank:
        raise NirGraphError(f"{where}weight has {found['weight'].dim()} dimensions: expected {rank}")
    if kind != "Linear":
        found["bias"] = _bias(torch.from_numpy(array_of(node.bias, f"{where}bias")), found["weight"], where)
    if rank > 2:
        found |= _windows(node, rank - 2, found["weight"].shape[2:], where)
    return found


def _bias(bias: Tensor, weight: Tensor, where: str) -> Tensor | None:
    if bias.shape != weight.shape[:1]:
        raise NirGraphError(f"{where}bias has shape {list(bias.shape)}: expected [{weight.shape[0]}], the weight's rows")
    return bias if bias.any() else None  # writers put zeros where there is none


def _windows(node: Any, rank: int, kernel: torch.Size, where: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: _integers(getattr(node, name), rank, f"{where}{name}") for name in ("stride", "dilation")}
    found["groups"] = _integers(node.groups, 1, f"{where}groups")[0]
    padding = node.padding.decode() if isinstance(node.padding, bytes) else node.padding
    if isinstance(padding, str) and padding not in ("valid", "same"):
        raise NirGraphError(f"{where}padding={padding!r}: expected 'valid', 'same' or integers")
    if isinstance(padding, str) and padding == "same":
        if set(found["stride"]) != {1}:
            raise NirGraphError(f"{where}padding 'same' has no meaning with a stride of {found['stride']}")
        total = [d * (k - 1) for d, k in zip(found["dilation"], kernel, strict=True)]
        return {**found, "padding": [n // 2 for n in total], "more": [n % 2 for n in total]}
    padding = 0 if isinstance(padding, str) else padding
    return {**found, "padding": _integers(padding, rank, f"{where}padding"), "more": [0] * rank}


def _integers(value: Any, count: int, where: str) -> list[int]:
    try:
        array = array_of(value, where).reshape(-1)
    except (TypeError, ValueError):
        raise NirGraphError(f"{where}={value!r}: expected integers") from None
    if array.size not in (1, count) or (array != array.round()).any():
        raise NirGraphError(f"{where}={value!r}: expected {count} integers" if count > 1 else f"{where}={value!r}: expected one")
    return [int(n) for n in (array if array.size == count else array.repeat(count))]


def emit(machine: Machine, kind: str, name: str, given: Mapping[str, Any], x: Any) -> Any:
    """The operators of one node.

    Args:
        machine: carries them out.
        kind: the node's kind, one of :data:`LAYERS`.
        name: the node's name, for its constants.
        given: of :func:`read_layer`.
        x: ``[M, *shape]``.
    """
    if kind == "Identity":
        return x
    if kind == "Flatten":
        return machine.call(RESHAPE, x, [-1, *_flattened(machine.shape(x)[1:], given["start_dim"], given["end_dim"])])
    if kind in ("SumPool2d", "AvgPool2d"):
        divisor = 1 if kind == "SumPool2d" else None
        windows = (given["kernel_size"], given["stride"], given["padding"])
        return machine.call(aten.avg_pool2d.default, x, *windows, False, True, divisor)
    if kind == "Scale":
        scale = fitting(given["scale"], machine.shape(x)[1:], "scale")
        return machine.call(aten.mul.Tensor, x, machine.constant(f"{name}.scale", scale))
    weight = machine.constant(f"{name}.weight", given["weight"])
    bias = None if given.get("bias") is None else machine.constant(f"{name}.bias", given["bias"])
    if kind in ("Affine", "Linear"):
        return machine.call(aten.linear.default, x, weight, bias)
    rank, more = given["weight"].dim() - 2, given["more"]
    if any(more):  # an even kernel: the odd cell of padding stands at the end, as in PyTorch
        x = machine.call(aten.constant_pad_nd.default, x, [n for end in reversed(more) for n in (0, end)], 0.0)
    stride, padding, dilation = given["stride"], given["padding"], given["dilation"]
    options = (stride, padding, dilation, False, [0] * rank, given["groups"])
    return machine.call(aten.convolution.default, x, weight, bias, *options)


def fitting(value: Tensor, shape: Sequence[int], name: str) -> Tensor:
    """A parameter of a sample of ``shape``: 0-d if it has one entry, else of the sample's rank. NIR's have the sample's shape.

    Raises:
        NirGraphError: it does not fit. A lower rank would line up with the last dimension, which is not the channel.
    """
    if value.numel() == 1:
        return value.reshape(())
    if value.dim() != len(shape) or any(a not in (1, b) for a, b in zip(value.shape, shape, strict=True)):
        raise NirGraphError(f"{name} has shape {list(value.shape)}, its input {list(shape)}")
    return value


def _flattened(shape: tuple[int, ...], start: int, end: int) -> list[int]:
    rank = len(shape)
    first, last = (d + rank if d < 0 else d for d in (start, end))
    if not 0 <= first <= last < rank:
        raise ValueError(f"dimensions {start} to {end} of a sample of shape {list(shape)}")
    return [*shape[:first], int(np.prod(shape[first : last + 1])), *shape[last + 1 :]]
