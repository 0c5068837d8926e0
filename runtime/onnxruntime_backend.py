"""ONNX Runtime on a CPU, with every choice that could change a number written out."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import onnxruntime

from snngraph.errors import BackendError
from snngraph.runtime.backend import Backend, BackendOptions, usable_cores
from snngraph.types import Precision

if TYPE_CHECKING:
    from snngraph.runtime.backend import Array

__all__ = ["OnnxRuntimeBackend"]

_PROVIDERS: Final = ["CPUExecutionProvider"]
_SETTINGS: Final = {
    "session.load_model_format": "ONNX",  # never ONNX Runtime's own format, which the bytes could pretend to be
    "session.set_denormal_as_zero": "0",
    # Without VNNI the fast int8 kernels add pairs in saturating 16 bits; the precise ones do not.
    "session.x64quantprecision": "1",
    # Level 1 is float32: by default a layer with packed weights would quantize its activations to int8.
    "session.qdq_matmulnbits_accuracy_level": "1",
    "session.enable_dq_matmulnbits_fusion": "0",
    "optimization.enable_gelu_approximation": "0",
    "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",
    "mlas.use_lut_gemm": "0",
    "session.intra_op.allow_spinning": "1",
}
_ERRORS_ONLY: Final = 3


class OnnxRuntimeBackend(Backend):
    """One ONNX Runtime session."""

    name: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "exact", "int8")

    def __init__(self, model: bytes, precision: Precision, options: BackendOptions) -> None:
        session_options = onnxruntime.SessionOptions()
        session_options.intra_op_num_threads = options.threads or usable_cores()
        session_options.inter_op_num_threads = 1
        session_options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        session_options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session_options.use_deterministic_compute = True
        session_options.log_severity_level = _ERRORS_ONLY
        for key, value in _SETTINGS.items():
            session_options.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(model, session_options, providers=_PROVIDERS)
        except Exception as error:
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} could not compile the model: {error}") from error
        self._session.disable_fallback()  # a failing run raises; it does not build another session
        if (found := self._session.get_providers()) != _PROVIDERS:
            raise BackendError(f"ONNX Runtime {onnxruntime.__version__} was asked for {_PROVIDERS} but uses {found}")
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]
        self.settings = {
            **_SETTINGS,
            "providers": ",".join(_PROVIDERS),
            "graph_optimization_level": "ORT_ENABLE_ALL",
            "execution_mode": "ORT_SEQUENTIAL",
            "use_deterministic_compute": "1",
            "intra_op_num_threads": str(session_options.intra_op_num_threads),
            "inter_op_num_threads": "1",
        }

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        """Runs the session on the arrays as they lie in memory; it allocates its results anew."""
        try:
            results: list[Array] = self._session.run(self._outputs, dict(zip(self._inputs, inputs, strict=True)))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed to run the network: {error}") from error
        return results

    def properties(self) -> dict[str, Any]:
        """What the session says about itself."""
        return {
            "library": "onnxruntime",
            "version": onnxruntime.__version__,
            "device": platform.processor() or platform.machine(),
            "threads": self._session.get_session_options().intra_op_num_threads,
            "inference_precision": "f32",
            "settings": dict(self.settings),
        }

    def close(self) -> None:
        """Drops the session."""
        del self._session
