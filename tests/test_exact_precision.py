"""Engines of precision ``exact`` and ``int8``: built, verified, saved, and what a graph's own precision is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import snngraph
from snngraph import neurons, pipelines
from snngraph.errors import PrecisionNotAvailableError, VerificationError
from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, SpikingGraph, is_op
from snngraph.models.layers import StepWise
from snngraph.passes.base import Pass
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.runtime import cpu, openvino_backend
from snngraph.verification import verify_engines

T, N = 4, 2
TARGETS = ("openvino", "onnxruntime")


class Net(nn.Module):
    """A convolution on the input, two on spikes, average pooling, a residual addition, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(StepWise(nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16)), neurons.LIF(threshold=0.2))
        self.a = nn.Sequential(StepWise(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)), neurons.LIF(threshold=0.1))
        self.b = nn.Sequential(StepWise(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)), neurons.LIF(threshold=0.05))
        self.pool = StepWise(nn.AvgPool2d(2))
        self.c = nn.Sequential(StepWise(nn.Conv2d(16, 16, 3, padding=1)), neurons.LIF(threshold=0.03))
        self.fc = nn.Sequential(StepWise(nn.Flatten(), nn.Linear(16 * 16, 32)), neurons.LIF(threshold=0.02))
        self.head = StepWise(nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = self.pool(self.b(self.a(x)) + x)
        y: torch.Tensor = self.head(self.fc(self.c(x))).mean(0)
        return y


def small(precision: str) -> tuple[Pass, ...]:
    """The default pipeline, that takes small layers too."""
    digits = pipelines.DIGITS[precision]
    passes = pipelines.default("openvino", precision).passes
    return tuple(IntegerSynapses(digits, everywhere=True) if isinstance(p, IntegerSynapses) else p for p in passes)


def integer_layers(graph: SpikingGraph) -> int:
    return sum(is_op(node, INTEGER_CONV, INTEGER_LINEAR) for node in graph.nodes)


@pytest.fixture(scope="module")
def graph() -> SpikingGraph:
    return snngraph.trace(Net().eval(), torch.rand(T, N, 2, 8, 8))


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return 3 * torch.rand(T, 32, 2, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("target", TARGETS)
def test_exact_is_as_right_as_float32(graph: SpikingGraph, inputs: torch.Tensor, target: str) -> None:
    optimized = snngraph.optimize(graph, target, passes=small("exact"))
    assert integer_layers(optimized) == 5
    with snngraph.build(optimized, target, threads=1) as engine:
        assert engine.precision == "exact"
        report = snngraph.verify(graph, engine, inputs)
    assert report.ok, report
    assert all(layer.rate > 0.01 for layer in report.layers)
    assert report.predictions_equal


def test_several_engines_are_verified_as_each_alone(graph: SpikingGraph, inputs: torch.Tensor) -> None:
    few = inputs[:, :3]
    with (
        snngraph.build(snngraph.optimize(graph, passes=small("exact")), threads=1) as exact,
        snngraph.build(snngraph.optimize(graph, precision="fp32"), threads=1) as fp32,
    ):
        together = verify_engines(graph, [exact, fp32], few)
        assert together == [snngraph.verify(graph, engine, few) for engine in (exact, fp32)]
        assert together[0].precision == "exact"
    with (
        snngraph.build(snngraph.optimize(graph, precision="fp32"), threads=1, batch_size=1) as other,
        pytest.raises(VerificationError, match="the engines take different inputs"),
    ):
        verify_engines(graph, [fp32, other], few)


def test_int8_is_judged_by_its_predictions(graph: SpikingGraph, inputs: torch.Tensor) -> None:
    with snngraph.build(snngraph.optimize(graph, passes=small("int8")), threads=1) as engine:
        assert engine.precision == "int8"
        report = snngraph.verify(graph, engine, inputs)
    assert report.flips_engine > report.flips_float32 + 20, "one digit is no float32"
    assert report.ok == report.predictions_equal
    if not report.ok:
        changed = report.inputs - report.predictions_agreeing
        assert f"{changed} of 32 predictions are not float64's" in report.problems[0]
    assert "approximates" in str(report.notes)


def test_a_loaded_engine_computes_the_same(graph: SpikingGraph, inputs: torch.Tensor, tmp_path: Path) -> None:
    with snngraph.build(snngraph.optimize(graph, passes=small("exact")), threads=1) as engine:
        engine.save(tmp_path / "net.snn")
        x = inputs[:, :N].numpy()
        with snngraph.load(tmp_path / "net.snn") as loaded:
            assert loaded.precision == "exact"
            np.testing.assert_array_equal(loaded.run(x), engine.run(x))


def test_a_graph_is_built_in_the_precision_it_was_optimized_for(graph: SpikingGraph) -> None:
    optimized = snngraph.optimize(graph, passes=small("exact"))
    with pytest.raises(PrecisionNotAvailableError, match="the graph holds 5 integer layers"):
        snngraph.build(optimized, precision="fp32")
    with snngraph.build(snngraph.optimize(graph, precision="fp32")) as engine:
        assert engine.precision == "fp32"


@pytest.mark.parametrize(("given", "asked"), [("exact", "int8"), ("int8", "exact")])
def test_a_graph_is_not_built_under_another_name(graph: SpikingGraph, given: str, asked: str) -> None:
    optimized = snngraph.optimize(graph, passes=small(given))
    with pytest.raises(PrecisionNotAvailableError, match=f"5 integer layers of precision '{given}'.*precision='{asked}'"):
        snngraph.build(optimized, precision=asked)


def test_quantized_weights_need_one_digit_and_stay_exact() -> None:
    """The verdict on them is that of ``exact``, not the weaker one of ``int8``."""
    net = Net().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.copy_((module.weight / module.weight.abs().max() * 127).round() / 1024)
    graph = snngraph.trace(net, torch.rand(T, N, 2, 8, 8))
    with snngraph.build(snngraph.optimize(graph, passes=small("exact"))) as engine:
        assert engine.precision == "exact"
    with snngraph.build(snngraph.optimize(graph, passes=small("int8"))) as engine:
        assert engine.precision == "int8"


@pytest.mark.parametrize(("features", "precision"), [((), "fp32"), (("avx512_vnni",), "exact"), (("avx_vnni",), "exact")])
def test_the_default_is_what_the_cpu_is_fastest_at(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], precision: str
) -> None:
    monkeypatch.setattr(openvino_backend, "integer_features", lambda: features)
    assert openvino_backend.OpenVINOBackend.default_precision() == precision


def test_features_are_read_from_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu, "_CPUINFO", info)
    for text, found in (
        ("processor: 0\nflags\t\t: fpu avx512_vnni amx_int8\n", ("amx_int8", "avx512_vnni")),
        ("flags : fpu avx2\n", ()),
        ("Features : asimddp i8mm\n", ("i8mm", "asimddp")),
    ):
        info.write_text(text)
        cpu.integer_features.cache_clear()
        assert cpu.integer_features() == found
    info.unlink()
    cpu.integer_features.cache_clear()
    assert cpu.integer_features() == ()
    monkeypatch.undo()
    cpu.integer_features.cache_clear()
