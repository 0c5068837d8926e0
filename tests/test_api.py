"""The public functions, from a model to an engine; what each refuses."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import snngraph
from snngraph import neurons
from snngraph.errors import (
    ArtifactExistsError,
    ArtifactWriteError,
    EngineModeError,
    InputBatchError,
    PrecisionNotAvailableError,
    TargetNotInstalledError,
    UnknownPassError,
    UnknownPrecisionError,
    UnknownTargetError,
)
from snngraph.models.layers import StepWise

TARGETS = ["openvino", "onnxruntime"]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    stem = StepWise(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
    head = StepWise(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(96, 5))
    return nn.Sequential(stem, neurons.LIF(threshold=0.3), head, neurons.LIF(threshold=0.2)).eval()


@pytest.fixture(scope="module")
def graph(model: nn.Module) -> snngraph.SpikingGraph:
    return snngraph.optimize(snngraph.trace(model, torch.randn(4, 1, 2, 8, 8)))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch_size", [None, 3, "dynamic"])
def test_convert_save_load_run(model: nn.Module, tmp_path: Path, target: str, batch_size: Any) -> None:
    stages: list[str] = []
    path = tmp_path / "net.snn"
    example = torch.randn(4, 1, 2, 8, 8)
    engine = snngraph.convert(model, example, target=target, batch_size=batch_size, path=path, progress=stages.append)
    assert stages == ["capture", "optimize", "build", "save"]
    for n in {None: (1,), 3: (3,), "dynamic": (1, 2, 5)}[batch_size]:
        x = torch.randn(4, n, 2, 8, 8)
        with torch.no_grad():
            expected = model(x)
        assert torch.equal(engine.run(x), expected)
        assert np.array_equal(snngraph.load(path).run(x.numpy()), expected.numpy())
    assert "fold_batch_norm" in engine.manifest.passes
    assert [layer.name for layer in engine.layers] == ["1", "3"]


@pytest.mark.parametrize("target", TARGETS)
def test_taps_return_the_spikes_of_every_layer(graph: snngraph.SpikingGraph, model: nn.Sequential, target: str) -> None:
    engine = snngraph.build(graph, target, taps=True, batch_size=2)
    x = torch.randn(4, 2, 2, 8, 8)
    _, first, second = engine.run(x)
    with torch.no_grad():
        assert torch.equal(first, model[:2](x).flatten(0, 1))
        assert torch.equal(second, model(x).flatten(0, 1))
    assert [spec.name for spec in engine.outputs[1:]] == [layer.spikes for layer in engine.layers]


def test_the_engine_runs_where_there_is_no_torch(graph: snngraph.SpikingGraph, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 1, 2, 8, 8)).astype(np.float32)
    expected = snngraph.build(graph).run(x)
    for target in TARGETS:
        snngraph.build(graph, target).save(tmp_path / f"{target}.snn")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", expected)
    code = """
import sys
for name in ("torch", "onnx", "onnxscript", "safetensors"):
    sys.modules[name] = None
import numpy as np, snngraph
for target in ("openvino", "onnxruntime"):
    with snngraph.load(f"{target}.snn") as engine:
        assert np.array_equal(engine.run(np.load("x.npy")), np.load("y.npy")), target
assert not [m for m in sys.modules if m.split(".")[0] == "torch" and sys.modules[m] is not None]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_export_onnx(graph: snngraph.SpikingGraph, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    snngraph.export_onnx(graph, path)
    exported = onnx.load(path)
    onnx.checker.check_model(exported, full_check=True)
    assert [(o.domain, o.version) for o in exported.opset_import] == [("", 20)]
    with pytest.raises(ArtifactExistsError, match="exists"):
        snngraph.export_onnx(graph, path)
    snngraph.export_onnx(graph, path, force=True, batch_size="dynamic")
    with pytest.raises(ArtifactWriteError, match="does not exist"):
        snngraph.export_onnx(graph, tmp_path / "no" / "net.onnx")


def test_a_pipeline_of_your_own(graph: snngraph.SpikingGraph, model: nn.Module) -> None:
    captured = snngraph.trace(model, torch.randn(4, 1, 2, 8, 8))
    own = snngraph.optimize(captured, passes=["fold_batch_norm"])
    assert own.history[-1] == "fold_batch_norm"
    with pytest.raises(UnknownPassError, match="did you mean 'fold_batch_norm'"):
        snngraph.optimize(captured, passes=["fold_batchnorm"])


def never(*_: object) -> None:
    raise AssertionError("work began before the request was checked")


class Untouched(nn.Module):
    forward = never


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"target": "openvinoo"}, UnknownTargetError, "Did you mean 'openvino'"),
        ({"target": "tensorrt"}, TargetNotInstalledError, "tensorrt"),
        ({"precision": "fp16"}, PrecisionNotAvailableError, "it offers: fp32, exact, int8"),
        ({"precision": "fp64"}, UnknownPrecisionError, "no precision is named 'fp64'"),
        ({"mode": "step"}, EngineModeError, "not available yet"),
        ({"mode": "steps"}, EngineModeError, "expected 'sequence' or 'step'"),
    ],
)
def test_what_can_be_known_is_checked_before_any_work(keywords: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        snngraph.convert(Untouched().eval(), torch.randn(4, 1, 2), **keywords)


@pytest.mark.parametrize("batch_size", [0, -1, True, 1.5, "foo"])
def test_a_batch_size_is_a_positive_number_or_dynamic(graph: snngraph.SpikingGraph, batch_size: Any) -> None:
    with pytest.raises(InputBatchError, match="expected a positive integer, 'dynamic'"):
        snngraph.build(graph, batch_size=batch_size)


def test_an_existing_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "net.snn"
    path.write_bytes(b"mine")
    with pytest.raises(ArtifactExistsError, match=r"net\.snn"):
        snngraph.convert(Untouched().eval(), torch.randn(4, 1, 2), path=path)
    assert path.read_bytes() == b"mine"


def test_a_target_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph.runtime import backends

    monkeypatch.setattr(backends, "_is_installed", lambda module: False)
    with pytest.raises(TargetNotInstalledError, match=r"snngraph\[cpu\]"):
        snngraph.convert(Untouched().eval(), torch.randn(4, 1, 2), target="onnxruntime")


def test_public_names_resolve_and_no_module_bears_the_name_of_a_function() -> None:
    for name in snngraph.__all__:
        assert getattr(snngraph, name) is not None
    assert callable(snngraph.verify)
    importlib.import_module("snngraph.verification")
    assert callable(snngraph.verify)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        snngraph.nothing  # noqa: B018
