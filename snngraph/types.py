"""Plain data shared by the compiler and the runtime. Imports nothing but the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Exactness", "Mode", "NeuronLayer", "Precision", "TensorSpec"]

Precision = Literal["fp32", "exact", "fp16", "int8"]
Mode = Literal["sequence", "step"]
Exactness = Literal["bitwise", "real", "approximate"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a graph or engine.

    Args:
        name: its name in the graph and in the ONNX model.
        shape: its dimensions; ``None`` stands for a batch size that is free.
        dtype: its NumPy type name, for example ``"float32"``.
        time_dim: the axis that is time, or ``None`` (a static input, an output reduced over time).
        batch_dim: the axis that is the batch, or ``None`` (a tensor without a batch).
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    time_dim: int | None = None
    batch_dim: int | None = None


@dataclass(frozen=True, slots=True)
class NeuronLayer:
    """Where one layer of neurons lives in the lowered model; spike taps and verification go by these names.

    Args:
        name: the layer's name: its module path in the model.
        neurons: the number of neurons of one sample.
        shape: the shape of one sample's layer, without time and batch: ``prod(shape) == neurons``.
        spikes: the ONNX tensor that holds the layer's output, time-major ``[T*N, *shape]``.
        membrane: the T ONNX tensors ``[N, *shape]`` that hold the membrane potential just before the threshold.
    """

    name: str
    neurons: int
    shape: tuple[int, ...]
    spikes: str
    membrane: tuple[str, ...]
