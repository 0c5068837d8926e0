"""The inputs of an engine: what fits, what does not and why, and the way from a caller's tensors to NumPy and back.

NumPy arrays are taken as they are. Any other tensor comes in through DLPack, the exchange protocol that PyTorch, JAX, CuPy and
others share, so nothing here imports one of those libraries; results go back to the library the first input came from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from snngraph.errors import (
    InputBatchError,
    InputChannelError,
    InputCountError,
    InputDeviceError,
    InputDtypeError,
    InputError,
    InputRankError,
    InputShapeError,
    InputTimeError,
    InputTypeError,
)
from snngraph.types import TensorSpec

if TYPE_CHECKING:
    from snngraph.runtime.backend import Array

__all__ = ["describe", "from_numpy", "prepare"]

#: DLPack's numbers of the devices whose memory the CPU can read: its own, and what CUDA and ROCm pinned there.
_HOST_DEVICES: Final = (1, 3, 11)


def describe(spec: TensorSpec) -> str:
    """A tensor in a line, ``x: float32[4, N, 2, 32, 32]``; N is a batch size that is free."""
    return f"{spec.name}: {spec.dtype}[{', '.join('N' if size is None else str(size) for size in spec.shape)}]"


def prepare(specs: Sequence[TensorSpec], values: Sequence[object]) -> list[Array]:
    """Checks a caller's inputs against an engine's and gives them as C-contiguous NumPy arrays, copied only where they must be.

    The checks go in this order: count, type, element type, rank, batch, time, channel, other dimensions. Values are not looked
    at: NaN and infinity are inputs like any other.

    Raises:
        InputError: a subclass for each kind of misfit; the message names the input and says what to do.
    """
    if len(values) != len(specs):
        expected = f"{len(specs)} input{'s' * (len(specs) != 1)} ({'; '.join(map(describe, specs))})"
        raise InputCountError(f"the engine takes {expected}, got {len(values)}: pass each input as an argument of its own")
    arrays = [_to_numpy(spec, value) for spec, value in zip(specs, values, strict=True)]
    for spec, array in zip(specs, arrays, strict=True):
        _check_shape(spec, array.shape)
    _check_batches(specs, arrays)
    return [np.require(array, requirements=["C", "A", "E"]) for array in arrays]


def from_numpy(array: Array, like: object) -> object:
    """The array in the library that ``like`` comes from, without a copy; in NumPy where that library takes nothing in.

    Args:
        array: a result that nobody else holds.
        like: a NumPy array, or a DLPack tensor on the CPU.
    """
    if isinstance(like, np.ndarray):
        return array
    from_dlpack = _importer(like)
    return array if from_dlpack is None else from_dlpack(array)


def _importer(like: object) -> Callable[[object], object] | None:
    """The ``from_dlpack`` of a tensor's library: the array API's, or that of the module which holds the class or a base of it."""
    if callable(namespace := getattr(like, "__array_namespace__", None)):
        return cast("Callable[[object], object]", namespace().from_dlpack)
    for base in type(like).__mro__:
        library = sys.modules.get(base.__module__.partition(".")[0])
        if callable(found := getattr(library, "from_dlpack", None)):
            return cast("Callable[[object], object]", found)
    return None


# -- type and element type -----------------------------------------------------------------------------------------------------


def _to_numpy(spec: TensorSpec, value: Any) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise InputTypeError(f"input {spec.name!r} is a masked array, and an engine knows no masks: pass x.filled(...)")
    if isinstance(value, np.ndarray):
        array: Array = value
    elif isinstance(value, np.generic) or not (hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__")):
        raise InputTypeError(
            f"input {spec.name!r} has to be a NumPy array or a tensor with DLPack (PyTorch, JAX, ...), got {_type_name(value)}: "
            f"pass numpy.asarray(x, dtype=numpy.{spec.dtype})"
        )
    else:
        array = _from_dlpack(spec, value)
    if array.dtype != np.dtype(spec.dtype):
        fix = f"x.astype(numpy.{spec.dtype})" if isinstance(value, np.ndarray) else f"a tensor converted to {spec.dtype}"
        raise InputDtypeError(f"input {spec.name!r} has to be {spec.dtype}, got {_dtype_name(array.dtype)}: pass {fix}")
    return array


def _from_dlpack(spec: TensorSpec, value: Any) -> Array:
    if getattr(value, "requires_grad", False):
        raise InputTypeError(f"input {spec.name!r} requires gradients, and none flow through an engine: pass x.detach()")
    device = _device(value)
    if device not in _HOST_DEVICES:
        where = getattr(value, "device", f"number {device} of DLPack")
        raise InputDeviceError(f"input {spec.name!r} is on device {where}, and this engine runs on the CPU: pass x.cpu()")
    try:
        return np.from_dlpack(value)
    except Exception as error:  # each library raises its own
        # Element types that NumPy does not have, such as bfloat16, are the usual reason.
        found = getattr(value, "dtype", None)
        kind = InputDtypeError if found is not None and str(found).rpartition(".")[2] != spec.dtype else InputTypeError
        raise kind(
            f"input {spec.name!r} ({_type_name(value)}, dtype {found}) could not be read as {spec.dtype}: {error}: "
            f"pass a plain dense tensor of {spec.dtype}"
        ) from error


def _device(value: Any) -> int | None:
    """DLPack's number of the device the tensor is on; ``None`` where it has no such number."""
    try:
        return int(value.__dlpack_device__()[0])
    except Exception:  # each library raises its own
        return None


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _dtype_name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.isnative else f"{dtype.name} in foreign byte order ({dtype.str})"


# -- shape ---------------------------------------------------------------------------------------------------------------------


def _check_shape(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    if len(shape) != len(spec.shape):
        expected = f"{len(spec.shape)} dimensions ({describe(spec)})"
        advice = _rank_advice(spec, len(shape))
        raise InputRankError(f"input {spec.name!r} has to have {expected}, got {len(shape)} (shape {list(shape)}): {advice}")
    others = [axis for axis in range(len(shape)) if axis not in (spec.batch_dim, spec.time_dim)]
    for axis in (spec.batch_dim, spec.time_dim, *others):
        if axis is None or (shape[axis] >= 1 if spec.shape[axis] is None else shape[axis] == spec.shape[axis]):
            continue
        kind, what, advice = _misfit(spec, axis, is_channel=others[:1] == [axis])
        expected = f"{'at least 1' if spec.shape[axis] is None else spec.shape[axis]} on axis {axis} ({describe(spec)})"
        raise kind(f"input {spec.name!r}: {what} has to be {expected}, got {shape[axis]} (shape {list(shape)}): {advice}")


def _misfit(spec: TensorSpec, axis: int, is_channel: bool) -> tuple[type[InputError], str, str]:
    """The class, the name of the dimension and the advice for an axis that does not fit."""
    size = spec.shape[axis]
    if axis == spec.batch_dim and size is None:
        return InputBatchError, "the batch size", "do not run the engine on an empty batch"
    if axis == spec.batch_dim:
        advice = f"the engine was built for batch {size}: build with batch_size='dynamic', or pass {_samples(size)} at a time"
        return InputBatchError, "the batch size", advice
    if axis == spec.time_dim:
        advice = f"an engine is built for one number of time steps: pass {size}, or build with another time_steps"
        return InputTimeError, "the number of time steps", advice
    if is_channel:
        return InputChannelError, "the number of channels", "check the order of the axes, and which data the model takes"
    return InputShapeError, "the size", "resize the data to what the model takes, or build with an example of this size"


def _samples(count: int | None) -> str:
    return "one sample" if count == 1 else f"{count} samples"


def _rank_advice(spec: TensorSpec, rank: int) -> str:
    if rank < len(spec.shape) and spec.batch_dim is not None:
        return f"if the batch is missing, add it: numpy.expand_dims(x, {spec.batch_dim})"
    return "pass the axes that the example had which the engine was built with"


def _check_batches(specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
    """Inputs whose batch is free have to have the same one."""
    free = {
        spec.name: array.shape[spec.batch_dim]
        for spec, array in zip(specs, arrays, strict=True)
        if spec.batch_dim is not None and spec.shape[spec.batch_dim] is None
    }
    if len(set(free.values())) > 1:
        raise InputBatchError(f"all inputs have to have the same batch size, got {free}: pass as many samples in each")
