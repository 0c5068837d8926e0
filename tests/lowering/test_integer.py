"""Integer layers in both CPU engines: equal to the graph, and in OpenVINO really computed in 8 bits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import torch

from snngraph import pipelines
from snngraph.graph import SpikingGraph
from snngraph.lowering import lower
from snngraph.passes.base import Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.passes.mark_levels import MarkLevels
from snngraph.runtime.cpu import integer_features
from snngraph.runtime.openvino_backend import INTEGER_KERNELS
from snngraph.testing import parse, random_inputs
from tests.lowering.engines import ENGINES, run

FIRE = "x[T=3, N, {shape}] ->\ns = lif(x, decay=0.5, threshold=1.0{more})\n"
TWO = "x[T=3, N, 6, 9, 8] ->\ns = lif(x, decay=0.5, threshold=1.0)\nz = lif(x, decay=0.75, threshold=0.5)\n"


def exact(graph: SpikingGraph) -> SpikingGraph:
    """As ``precision="exact"`` does, small layers too."""
    passes = (
        IntegerSynapses(everywhere=True) if isinstance(p, IntegerSynapses) else p
        for p in pipelines.default("openvino", "exact").passes
    )
    return Pipeline(tuple(passes))(graph).graph


def integer(graph: SpikingGraph, digits: int = 3) -> SpikingGraph:
    passes = (Canonicalize(), IntegerSynapses(digits, everywhere=True), MarkLevels(), Canonicalize())
    return Pipeline(passes)(graph).graph


def one_conv(shape: str, weight: str, options: str, more: str = "") -> str:
    return FIRE.format(shape=shape, more=more) + f"return convolution(flatten_time(s.s), w[{weight}], b[8], {options})"


CASES = {
    "1-D": one_conv("6, 9", "8, 6, 3", "[2], [1], [1], False, [0], 1"),
    "2-D": one_conv("6, 9, 8", "8, 6, 3, 3", "[1, 1], [1, 1], [1, 1], False, [0, 0], 1"),
    "strided, dilated": one_conv("6, 9, 8", "8, 6, 3, 2", "[2, 1], [1, 0], [1, 2], False, [0, 0], 1"),
    "grouped": one_conv("6, 9, 8", "8, 3, 3, 3", "[1, 1], [1, 1], [1, 1], False, [0, 0], 2"),
    "depthwise": one_conv("8, 9, 8", "8, 1, 3, 3", "[1, 1], [1, 1], [1, 1], False, [0, 0], 8"),
    "1x1": one_conv("6, 9, 8", "8, 6, 1, 1", "[1, 1], [0, 0], [1, 1], False, [0, 0], 1"),
    "3-D": one_conv("6, 5, 6, 4", "8, 6, 3, 3, 3", "[1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1"),
    "signed": one_conv("6, 9, 8", "8, 6, 3, 3", "[1, 1], [1, 1], [1, 1], False, [0, 0], 1", ', emit="signed"'),
    "max-pooled": FIRE.format(shape="6, 9, 8", more="") + "return conv2d(max_pool2d(flatten_time(s.s), 2), w[8, 6, 3, 3], b[8])",
    "residual": TWO + "return conv2d(flatten_time(s.s + z.s), w[8, 6, 3, 3], b[8])",
    "difference": TWO + "return conv2d(flatten_time(s.s - z.s), w[8, 6, 3, 3], b[8])",
    "product": TWO + "return conv2d(flatten_time(s.s * z.s), w[8, 6, 3, 3], b[8])",
    "concatenated": TWO + "return conv2d(flatten_time(cat([s.s, z.s], 2)), w[8, 12, 3, 3], b[8])",
    "transposed": FIRE.format(shape="6, 9, 8", more="")
    + "return conv2d(permute(flatten_time(s.s), [0, 1, 3, 2]), w[8, 6, 3, 3], b[8])",
    "tokens": FIRE.format(shape="24, 5", more="") + "return linear(permute(flatten_time(s.s), [0, 2, 1]), w[8, 24], b[8])",
    "split": FIRE.format(shape="8, 9, 8", more="")
    + "p = split_with_sizes(flatten_time(s.s), [4, 4], 1)\n"
    + "return conv2d(p[0], w[8, 4, 3, 3], b[8]) + conv2d(p[1], v[8, 4, 3, 3], c[8])",
    "linear": FIRE.format(shape="24", more="") + "return linear(flatten_time(s.s), w[8, 24], b[8])",
    "linear on rows": FIRE.format(shape="5, 24", more="") + "return linear(flatten_time(s.s), w[8, 24], b[8])",
    "linear without bias": FIRE.format(shape="24", more="") + "return linear(s.s, w[8, 24])",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [2, "dynamic"])
@pytest.mark.parametrize("text", CASES.values(), ids=CASES)
def test_engines_compute_what_the_graph_does(text: str, batch: Any, engine: str) -> None:
    graph = integer(parse(text))
    assert "integer_" in graph.format()
    inputs = [3 * x for x in random_inputs(graph, batch=2, seed=1)]
    (found,) = run(lower(graph, batch=batch), inputs, engine)
    wanted = graph.to(torch.float32)(*(x.float() for x in inputs))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=2e-7 * float(wanted.abs().max()))


SEW = """x[T=4, N, 16, 12, 12] ->
s = lif(x, decay=0.5, threshold=0.5)
y = conv2d(flatten_time(s.s), w[32, 16, 3, 3], b[32], padding=1)
a = lif(split_time(y), decay=0.5, threshold=0.2)
u = conv2d(flatten_time(a.s), v[32, 32, 3, 3], c[32], padding=1)
z = lif(split_time(u), decay=0.5, threshold=0.2)
r = z.s + a.s
o = conv2d(max_pool2d(flatten_time(r), 2), k[32, 32, 3, 3], d[32], padding=1)
q = lif(split_time(o), decay=0.5, threshold=0.2)
return q.s"""


@pytest.mark.skipif(not INTEGER_KERNELS.intersection(integer_features()), reason="this CPU has no products of 8 bits in 32")
def test_openvino_computes_in_8_bits_and_fuses_each_layer_of_neurons() -> None:
    graph = exact(parse(SEW, batch=1))
    model = openvino.Core().read_model(lower(graph, batch=1).model.SerializeToString())
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {k: node.get_rt_info()[k].astype(str) for k in ("layerType", "primitiveType", "outputPrecisions")}
        found.append((info["layerType"], info["primitiveType"], info["outputPrecisions"]))
    convolutions = [f for f in found if f[0] == "Convolution"]
    assert len(convolutions) == 9, "three digits for each of three layers"
    assert all(kind.endswith(("_I8", "_i8")) and out == "f32" for _, kind, out in convolutions), convolutions
    assert sum(kind == "Subgraph" for kind, _, _ in found) <= 3 + 4 + 1, "sums of digits, layers of neurons, the addition"
    assert {out for kind, _, out in found if kind in ("Pooling", "Concatenation")} <= {"u8", "f32"}
    assert [out for kind, _, out in found if kind == "Pooling"] == ["u8"]
    assert len([f for f in found if f[0] == "Reorder" and f[2] == "u8"]) <= 1, "8 bits change their layout at the input alone"


@pytest.mark.skipif(not INTEGER_KERNELS.intersection(integer_features()), reason="this CPU has no products of 8 bits in 32")
@pytest.mark.parametrize("batch", [2, "dynamic"])
@pytest.mark.parametrize("case", ["2-D", "transposed", "tokens", "split", "linear on rows", "max-pooled", "concatenated"])
def test_openvino_computes_in_8_bits_whatever_moves_the_spikes(case: str, batch: Any) -> None:
    model = openvino.Core().read_model(lower(integer(parse(CASES[case])), batch=batch).model.SerializeToString())
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = [{k: v.astype(str) for k, v in node.get_rt_info().items()} for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [f["primitiveType"] for f in found if f["layerType"] in ("Convolution", "FullyConnected", "MatMul")]
    assert len(kinds) >= 3
    assert all(kind.endswith(("_I8", "_i8")) for kind in kinds), kinds


@pytest.mark.parametrize("engine", ENGINES)
def test_layers_with_the_same_weights(engine: str) -> None:
    """Shared by layers, or equal by chance: as many constants as layers, because ONNX Runtime fails otherwise."""
    text = FIRE.format(shape="6, 9, 8", more="") + "y = conv2d(flatten_time(s.s), w[6, 6, 3, 3], padding=1)\n"
    text += "z = lif(split_time(y), decay=0.5, threshold=0.1)\nreturn conv2d(flatten_time(z.s), w[6, 6, 3, 3], padding=1)"
    graph = integer(parse(text))
    inputs = [3 * x for x in random_inputs(graph, batch=2, seed=1)]
    (found,) = run(lower(graph, batch=2), inputs, engine)
    wanted = graph.to(torch.float32)(*(x.float() for x in inputs))
    assert wanted.any()
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=2e-7 * float(wanted.abs().max()))


@pytest.mark.parametrize("batch", [1, 3])
def test_integer_layers_are_equal_to_the_bit_on_any_number_of_threads_and_batch(batch: int) -> None:
    graph = exact(parse(SEW, batch=1))
    (x,) = random_inputs(graph, batch=3, seed=1)
    data = lower(graph, batch=batch).model.SerializeToString()
    core = openvino.Core()
    results = []
    for threads in (1, 2):
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
        compiled = core.compile_model(core.read_model(data), "CPU", options)
        parts = [np.array(compiled([x[:, k : k + batch].float().numpy()])[0]) for k in range(0, 3, batch)]
        results.append(np.concatenate(parts, axis=1))
    whole = run(lower(graph, batch=3), [x], "openvino")[0]
    assert whole.any()
    assert all(np.array_equal(r, whole) for r in results)
    assert np.array_equal(run(lower(graph, batch=3), [x], "onnxruntime")[0], whole)


IN_A_PROCESS = """
import sys
import numpy as np
import openvino
core = openvino.Core()
compiled = core.compile_model(core.read_model(sys.argv[1]), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
np.save(sys.argv[3], compiled([np.load(sys.argv[2])])[0])
kinds = {node.get_rt_info()["primitiveType"].astype(str) for node in compiled.get_runtime_model().get_ordered_ops()}
print(*sorted(kind for kind in kinds if "conv" in kind or kind.endswith("_I8")))
"""


@pytest.mark.skipif(not INTEGER_KERNELS.intersection(integer_features()), reason="this CPU has no products of 8 bits in 32")
def test_integer_layers_are_equal_to_the_bit_with_other_instructions(tmp_path: Path) -> None:
    """With AMX or VNNI as this CPU has them, and without either."""
    graph = exact(parse(SEW, batch=1))
    (x,) = random_inputs(graph, batch=1, seed=1)
    (tmp_path / "net.onnx").write_bytes(lower(graph, batch=1).model.SerializeToString())
    np.save(tmp_path / "x.npy", x.float().numpy())
    results, kinds = [], []
    for isa in ("DEFAULT", "AVX2"):
        files = [str(tmp_path / name) for name in ("net.onnx", "x.npy", f"{isa}.npy")]
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", IN_A_PROCESS, *files], env=environment, capture_output=True, text=True, check=True
        )
        results.append(np.load(files[2]))
        kinds.append(done.stdout)
    assert kinds[0] != kinds[1], "the second process has other kernels"
    assert results[0].any()
    assert np.array_equal(*results)
