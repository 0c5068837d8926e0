"""Small networks for the tests of the runtime, with a reference in NumPy.

All weights and inputs are multiples of 1/8 and the decay is 1/2, so every sum is exact in float32 whatever its order: engine and
reference agree to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from snngraph.runtime.manifest import Manifest
from snngraph.types import NeuronLayer, TensorSpec

T = 4
SAMPLE = (2, 4, 4)
HIDDEN, CLASSES = 24, 10
TARGETS = ("openvino", "onnxruntime")

Floats = NDArray[np.float32]


def weights() -> tuple[Floats, Floats]:
    generator = np.random.default_rng(7)
    first = generator.integers(-6, 7, (int(np.prod(SAMPLE)), HIDDEN)) / 8
    second = generator.integers(-6, 8, (HIDDEN, CLASSES)) / 8
    return first.astype(np.float32), second.astype(np.float32)


def frames(batch: int, seed: int = 0) -> Floats:
    """[T, N, 2, 4, 4], three in ten of them ones."""
    return (np.random.default_rng(seed).random((T, batch, *SAMPLE)) < 0.3).astype(np.float32)


def reference(x: Floats) -> tuple[Floats, list[Floats]]:
    """The mean spike count [N, 10] and the spikes of both layers [T, N, ...], in float64."""
    current = x.reshape(T, x.shape[1], -1).astype(np.float64)
    layers = []
    for weight in weights():
        current = current @ weight
        v = np.zeros_like(current[0])
        spikes = []
        for t in range(T):
            h = v + (current[t] - v) * 0.5
            s = h >= 1.0
            v = np.where(s, 0.0, h)
            spikes.append(s)
        current = np.stack(spikes).astype(np.float64)
        layers.append(current.astype(np.float32))
    return current.mean(axis=0).astype(np.float32), layers


def lif_model(batch: int | None = 1, spikes_output: bool = False) -> bytes:
    """Two layers of LIF neurons unrolled over T steps; ``batch`` None is free. The spikes of layer 1 may be an output too."""
    nodes: list[NodeProto] = []
    constants: dict[str, NDArray[Any]] = {
        "flat": np.array([-1, int(np.prod(SAMPLE))]),
        "by_time": np.array([T, -1, CLASSES]),
        "time": np.array([0]),
        **{name: np.float32(value) * np.ones((), np.float32) for name, value in (("zero", 0), ("half", 0.5), ("one", 1))},
        **dict(zip(("w1", "w2"), weights(), strict=True)),
    }

    def op(kind: str, inputs: Sequence[str], *outputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=f"{kind}_{len(nodes)}", **attributes))
        return outputs[0]

    current = op("Reshape", ["x", "flat"], "x_flat")
    for layer in (1, 2):
        op("MatMul", [current, f"w{layer}"], f"i{layer}")
        op("Split", [f"i{layer}"], *(f"i{layer}_{t}" for t in range(T)), axis=0, num_outputs=T)
        v, spikes = "", []
        for t in range(T):
            name = f"{layer}_{t}"
            if v:
                h = op("Add", [v, op("Mul", [op("Sub", [f"i{name}", v], f"d{name}"), "half"], f"m{name}")], f"h{name}")
            else:
                h = op("Mul", [f"i{name}", "half"], f"h{name}")
            fired = op("GreaterOrEqual", [h, "one"], f"b{name}")
            spikes.append(op("Cast", [fired], f"s{name}", to=TensorProto.FLOAT))
            v = op("Where", [fired, "zero", h], f"v{name}")
        current = op("Concat", spikes, f"s{layer}", axis=0)
    op("ReduceMean", [op("Reshape", [current, "by_time"], "s_by_time"), "time"], "y", keepdims=0)
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch or "N", CLASSES])]
    if spikes_output:
        op("Identity", ["s1"], "spikes")
        outputs.append(helper.make_tensor_value_info("spikes", TensorProto.FLOAT, [None, HIDDEN]))
    graph = helper.make_graph(
        nodes,
        "lif",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [T, batch or "N", *SAMPLE])],
        outputs,
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return serialize(graph)


def model_of(graph: Any, domains: Sequence[tuple[str, int]] = (("", 20),), **fields: Any) -> ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*domain) for domain in domains], ir_version=10, **fields)


def serialize(graph: Any, **fields: Any) -> bytes:
    data: bytes = model_of(graph, **fields).SerializeToString()
    return data


def manifest(target: str = "openvino", batch: int | None = 1, **changes: Any) -> Manifest:
    """The manifest of ``lif_model(batch)``."""
    made = Manifest(
        snngraph_version="0.1.0",
        name="lif",
        target=target,
        precision="fp32",
        mode="sequence",
        time_steps=T,
        inputs=(TensorSpec("x", (T, batch, *SAMPLE), time_dim=0, batch_dim=1),),
        outputs=(TensorSpec("y", (batch, CLASSES), batch_dim=0),),
        layers=tuple(
            NeuronLayer(f"lif{layer}", neurons, (neurons,), f"s{layer}", tuple(f"h{layer}_{t}" for t in range(T)))
            for layer, neurons in ((1, HIDDEN), (2, CLASSES))
        ),
        passes=("merge_time", "fold_batch_norm(strict=True)"),
        options={"device": "cpu", "threads": 1},
        versions={"torch": "2.13.0", "onnx": "1.19.0"},
        verify={"inputs": 32, "flips": 0, "error": 1.5e-7},
    )
    return replace(made, **changes)


def identity(dtype: int, name: str, shape: Sequence[int | str | None]) -> bytes:
    """y = x, of any element type."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", dtype, list(shape))],
        [helper.make_tensor_value_info("y", dtype, list(shape))],
    )
    return serialize(graph)


def identity_manifest(target: str, dtype: str, shape: tuple[int | None, ...]) -> Manifest:
    spec = TensorSpec("x", shape, dtype, batch_dim=0 if shape else None)
    return manifest(target, inputs=(spec,), outputs=(replace(spec, name="y"),), layers=(), time_steps=1)
