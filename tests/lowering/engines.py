"""Running a lowered model in both CPU engines, and comparing it with the graph it came from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
from numpy.typing import NDArray
from torch import Tensor

from snngraph.graph import SpikingGraph
from snngraph.lowering import Lowered

Array = NDArray[Any]
ENGINES = ("onnxruntime", "openvino")

_core = openvino.Core()


def run(lowered: Lowered | onnx.ModelProto, inputs: Sequence[Tensor], engine: str) -> list[Array]:
    """The outputs of the model, in order; floating inputs are rounded to float32."""
    model = lowered.model if isinstance(lowered, Lowered) else lowered
    feeds = [(x.float() if x.is_floating_point() else x).numpy() for x in inputs]
    data = model.SerializeToString()
    if engine == "onnxruntime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [i.name for i in session.get_inputs()]
        return list(session.run(None, dict(zip(names, feeds, strict=True))))
    compiled = _core.compile_model(_core.read_model(data), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    result = compiled(feeds)
    return [np.array(result[k]) for k in range(len(compiled.outputs))]


def outputs(graph: SpikingGraph, inputs: Sequence[Tensor]) -> list[Tensor]:
    """What the graph itself gives."""
    result = graph(*inputs)
    return list(result) if isinstance(result, tuple | list) else [result]


def assert_close(found: Sequence[Array], wanted: Sequence[Tensor], tolerance: float) -> None:
    """Equal shapes and kinds, and values within ``tolerance`` of the largest."""
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert tuple(a.shape) == tuple(b.shape), f"output {k}"
        if not b.is_floating_point():
            assert a.dtype == np.dtype(str(b.dtype).removeprefix("torch.")), f"output {k}"
            np.testing.assert_array_equal(a, b.numpy(), err_msg=f"output {k}")
            continue
        assert a.dtype == np.float32, f"output {k}"
        scale = float(b.abs().max()) if b.numel() else 0.0
        np.testing.assert_allclose(a, b.double().numpy(), rtol=0, atol=tolerance * (scale + 1e-3), err_msg=f"output {k}")


def count(lowered: Lowered, op: str) -> int:
    """The number of nodes of one operator."""
    return sum(node.op_type == op for node in lowered.model.graph.node)
