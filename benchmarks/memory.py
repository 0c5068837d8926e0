"""What a model and its calls take of memory, beyond the libraries. Linux alone tells.

A process that only measures an engine imports nothing but this and the runtime.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["fresh", "loaded", "measurable", "plain", "resident_mib", "taken"]

ROOT: Final = Path(__file__).parents[1]

_STATUS: Final = Path("/proc/self/status")
_CLEAR: Final = Path("/proc/self/clear_refs")
CALLS: Final = 3


def measurable() -> bool:
    """Whether this system can measure it."""
    return _STATUS.exists() and _CLEAR.exists()


def fresh(code: str) -> dict[str, Any]:
    """Runs code in a fresh interpreter; gives ``found`` back."""
    command = [sys.executable, "-c", f"import json; {code}; print(json.dumps(found))"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


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


def _load_openvino() -> None:
    """Compiles and calls a convolution, so that the library itself is in memory."""
    import numpy as np
    import openvino
    from openvino import opset13

    x = opset13.parameter([1, 2, 8, 8], np.float32)
    y = opset13.convolution(x, np.ones((8, 2, 3, 3), np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    openvino.Core().compile_model(openvino.Model([y], [x]), "CPU")({0: np.zeros((1, 2, 8, 8), np.float32)})


def loaded(path: str) -> dict[str, float]:
    """Of an engine file, called with zeros."""
    import numpy as np

    from snngraph.runtime.engine import load

    _load_openvino()
    before = resident_mib()
    with load(path) as engine:
        inputs = [np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in engine.inputs]
        return taken(before, lambda: engine.run(*inputs))


def plain(path: str) -> dict[str, float]:
    """Of an ONNX file in OpenVINO held to float32, called with zeros."""
    import numpy as np
    import openvino

    from snngraph.runtime.backend import usable_cores

    _load_openvino()
    before = resident_mib()
    threads = str(usable_cores())
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    inputs = [np.zeros(tuple(port.shape), np.float32) for port in compiled.inputs]
    request = compiled.create_infer_request()
    return taken(before, lambda: request.infer(inputs))
