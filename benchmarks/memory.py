"""What a model and its calls take of memory, beyond the libraries. Linux alone tells.

A process that only measures an engine imports nothing but this and the runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = ["loaded", "measurable", "resident_mib", "taken"]

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
CALLS: Final = 3


def measurable() -> bool:
    """Whether this system can measure it."""
    return _STATUS.exists() and _CLEAR.exists()


def resident_mib(*, peak: bool = False) -> float:
    """Resident memory of this process, now or at the peak since :func:`taken` has set it back."""
    name = "VmHWM" if peak else "VmRSS"
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10


def taken(before: float, call: Callable[[], object]) -> dict[str, float]:
    """What was taken since ``before``, and what the calls take at their peak, in MiB.

    Returns:
        ``model_mib``: since ``before``; ``call_mib``: more, at the peak of the calls; ``peak_mib``: both.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what loading has left behind would hide what a call takes
    model = resident_mib() - before
    _CLEAR.write_text("5")  # sets the peak back to what is resident now
    for _ in range(CALLS):
        call()
    peak = resident_mib(peak=True) - before
    return {"model_mib": model, "call_mib": peak - model, "peak_mib": peak}


def loaded(path: str) -> dict[str, float]:
    """Of an engine file, called with zeros."""
    import numpy as np
    import openvino
    from openvino import opset13

    from snngraph.runtime.engine import load

    x = opset13.parameter([1, 2, 8, 8], np.float32)
    y = opset13.convolution(x, np.ones((8, 2, 3, 3), np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    openvino.Core().compile_model(openvino.Model([y], [x]), "CPU")({0: np.zeros((1, 2, 8, 8), np.float32)})  # loads the library
    before = resident_mib()
    with load(path) as engine:
        inputs = [np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in engine.inputs]
        return taken(before, lambda: engine.run(*inputs))
