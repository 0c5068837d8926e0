"""A target of its own: ONNX Runtime under another name."""

from __future__ import annotations

from typing import ClassVar

from snngraph.runtime.onnxruntime_backend import OnnxRuntimeBackend

__all__ = ["ExampleRuntime"]


class ExampleRuntime(OnnxRuntimeBackend):
    name: ClassVar[str] = "example-runtime"
