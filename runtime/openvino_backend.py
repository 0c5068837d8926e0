"""OpenVINO on a CPU, held to float32.

OpenVINO may trade accuracy for speed by default: bfloat16 where the CPU has it, int8 activations in weight-compressed layers,
8-bit attention caches. A spike is right or wrong, so each such choice is set here and read back from the compiled model.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import openvino

from snngraph.errors import BackendError
from snngraph.runtime.backend import Backend, BackendOptions, usable_cores
from snngraph.runtime.cpu import integer_features
from snngraph.runtime.onnx_check import check_onnx
from snngraph.types import Precision

if TYPE_CHECKING:
    from snngraph.runtime.backend import Array

__all__ = ["OpenVINOBackend"]

#: What could change a number, and may be read back.
_NUMERICS: Final = {
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "CPU_DENORMALS_OPTIMIZATION": "NO",
    "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": "1.0",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "KV_CACHE_PRECISION": "f32",
}
#: Instructions for which OpenVINO has int8 convolutions that are several times as fast as float32's.
INTEGER_KERNELS: Final = frozenset(("amx_int8", "avx512_vnni", "avx_vnni"))
#: oneDNN inside OpenVINO obeys these whatever precision it is asked for.
_FPMATH_VARIABLES: Final = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


class OpenVINOBackend(Backend):
    """One network compiled by OpenVINO's CPU plugin, with one inference request used again and again."""

    name: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "exact", "int8")

    def __init__(self, model: bytes, precision: Precision, options: BackendOptions) -> None:
        for variable in _FPMATH_VARIABLES:
            mode = os.environ.get(variable, "STRICT")
            if mode.upper() not in ("", "STRICT"):
                raise BackendError(f"the environment variable {variable}={mode} makes OpenVINO compute below float32; unset it")
        cores = usable_cores()
        threads = options.threads or cores
        wanted = {
            **_NUMERICS,
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            # A request for more threads than cores is meant; without this OpenVINO would quietly use the cores alone.
            "ENABLE_HYPER_THREADING": "YES" if threads > cores else "NO",
            # Two engines, or two processes, with fewer threads than cores would all be pinned to the same first cores.
            "ENABLE_CPU_PINNING": "NO",
        }
        core = openvino.Core()
        try:
            known = set(core.get_property("CPU", "SUPPORTED_PROPERTIES"))
            # Some exist on x86 alone; the precision is asked for in any case, so that a plugin without it fails.
            self.settings = {key: value for key, value in wanted.items() if key in known or key == "INFERENCE_PRECISION_HINT"}
            self._compiled = core.compile_model(core.read_model(model, b""), "CPU", dict(self.settings))
            self._request = self._compiled.create_infer_request()
        except Exception as error:
            raise BackendError(f"OpenVINO {openvino.__version__} could not compile the model: {error}") from error
        self._device = str(core.get_property("CPU", "FULL_DEVICE_NAME"))
        # By name: OpenVINO drops an input that nothing uses, and then counts the others anew.
        interface = check_onnx(model)
        inputs, outputs = _ports(self._compiled.inputs), _ports(self._compiled.outputs)
        self._inputs = [inputs.get(name) for name in interface.inputs]
        self._outputs = [outputs[name] for name in interface.outputs]
        for key, value in _NUMERICS.items():
            if key in self.settings and (found := self._property(key)) != value:
                raise BackendError(f"OpenVINO {openvino.__version__} was asked for {key}={value} but compiled with {found}")

    @classmethod
    def default_precision(cls) -> Precision:
        """``exact`` where the CPU adds products of 8 bits in 32: three digits are faster there than one float32 layer."""
        return "exact" if INTEGER_KERNELS.intersection(integer_features()) else "fp32"

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        """Binds the arrays as they lie in memory (a read-only one is copied) and copies the results out of the request."""
        try:
            # Bound one by one: ``infer(inputs)`` does the same, but takes five times as long as a small network.
            for port, array in zip(self._inputs, inputs, strict=True):
                if port is not None:
                    self._request.set_input_tensor(port, openvino.Tensor(array, shared_memory=array.flags.writeable))
            results = self._request.infer(share_outputs=False).to_tuple()
        except Exception as error:
            raise BackendError(f"OpenVINO failed to run the network: {error}") from error
        return [results[port] for port in self._outputs]

    def properties(self) -> dict[str, Any]:
        """What the compiled model says about itself."""
        return {
            "library": "openvino",
            "version": openvino.__version__,
            "device": self._device,
            "threads": int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            "inference_precision": self._property("INFERENCE_PRECISION_HINT"),
            "settings": {key: self._property(key) for key in self.settings},
        }

    def close(self) -> None:
        """Drops the request and the compiled model."""
        del self._request, self._compiled

    def _property(self, key: str) -> str:
        """A property of the compiled model, spelled as it is when set."""
        value = self._compiled.get_property(key)
        if isinstance(value, bool):
            return "YES" if value else "NO"
        return value.to_string() if isinstance(value, openvino.Type) else str(value).rpartition("Mode.")[2]


def _ports(ports: Sequence[Any]) -> dict[str, int]:
    """Tensor name -> the number of its port."""
    return {name: i for i, port in enumerate(ports) for name in port.get_names()}
