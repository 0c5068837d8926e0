"""What every engine library looks like to an engine."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from snngraph.errors import PrecisionNotAvailableError, TargetError, UnknownPrecisionError
from snngraph.types import Precision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

__all__ = ["Backend", "BackendOptions", "usable_cores"]

_SYSFS_CPU = Path("/sys/devices/system/cpu")
_CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True)
class BackendOptions:
    """How a network is run, apart from what it computes.

    Args:
        device: where it runs: ``"cpu"``.
        threads: the number of threads; ``None`` for one on every usable core (see ``usable_cores``).

    Raises:
        TargetError: a value is not of the type, or not in the range, that it has to be.
    """

    device: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        device: object = self.device
        threads: object = self.threads
        if not isinstance(device, str) or not device:
            raise TargetError(f"device has to be a text such as 'cpu', got {device!r}")
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise TargetError(f"threads has to be a positive integer, or None for every usable core, got {threads!r}")


class Backend(ABC):
    """One compiled network in one engine library. It validates no inputs and is not thread-safe: ``Engine`` does both.

    Args:
        model: the serialized ONNX model, known to be safe.
        precision: one of ``precisions``.
        options: the run-time options, their device one of ``devices``.

    Raises:
        BackendError: the library can not compile the model.
    """

    #: The target's name, as in ``target="openvino"``.
    name: ClassVar[str]
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    precisions: ClassVar[tuple[Precision, ...]]

    #: The library's own settings, as they were given to it: everything that could change a number is among them.
    settings: Mapping[str, str]

    @abstractmethod
    def __init__(self, model: bytes, precision: Precision, options: BackendOptions) -> None: ...

    @abstractmethod
    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        """Runs the network once.

        Args:
            inputs: one C-contiguous, aligned array for each input, in the order of the ONNX model.

        Returns:
            One array for each output, in the order of the ONNX model; they belong to the caller and share no memory with an
            input, with each other or with a later result.

        Raises:
            BackendError: the library failed.
        """

    @abstractmethod
    def properties(self) -> dict[str, Any]:
        """What was really compiled, asked from the library: its version, the device, threads, inference precision, settings."""

    @abstractmethod
    def close(self) -> None:
        """Gives the library's memory and threads back; the back end can not run afterwards."""

    @classmethod
    def default_precision(cls) -> Precision:
        """The precision that is fastest here among those as exact as float32."""
        return "fp32"

    @classmethod
    def check(cls, precision: str, options: BackendOptions) -> None:
        """Says, before any work is done, whether this target offers a precision and a device.

        Raises:
            UnknownPrecisionError: no such precision exists.
            PrecisionNotAvailableError: it exists, but not on this target.
            TargetError: the target does not run on the device.
        """
        if precision not in get_args(Precision):
            raise UnknownPrecisionError(f"there is no precision {precision!r}; known: {', '.join(get_args(Precision))}")
        if precision not in cls.precisions:
            raise PrecisionNotAvailableError(
                f"precision {precision!r} is not available on target {cls.name!r}; it offers: {', '.join(cls.precisions)}"
            )
        if options.device not in cls.devices:
            raise TargetError(
                f"target {cls.name!r} does not run on device {options.device!r}; it runs on: {', '.join(cls.devices)}"
            )


def usable_cores() -> int:
    """The number of physical cores this process may use: its affinity, counted without hyperthreads, within its cgroup's quota.

    Two threads on one core share its vector units, so a second one gains nothing in dense arithmetic.
    """
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = len({_siblings(cpu) for cpu in cpus})
    return max(1, min(cores, _quota()))


def _siblings(cpu: int) -> str:
    try:
        return (_SYSFS_CPU / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """The CPU quota of a container, rounded up; many container systems limit time instead of affinity."""
    try:
        quota, period = _CGROUP_CPU_MAX.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no cgroup, or "max": no limit
        return 1 << 30
