"""The table of targets, and both back ends against the reference."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from snngraph.errors import (
    BackendError,
    NameClashError,
    PrecisionNotAvailableError,
    TargetError,
    TargetNotInstalledError,
    UnknownPrecisionError,
    UnknownTargetError,
)
from snngraph.runtime import backend as backend_module
from snngraph.runtime.backend import Backend, BackendOptions, usable_cores
from snngraph.runtime.backends import TargetInfo, backend_class, targets
from tests.runtime.networks import TARGETS, T, frames, lif_model, reference, serialize

MakePackage = Callable[..., None]


def make(target: str, model: bytes, **options: Any) -> Backend:
    return backend_class(target)(model, "fp32", BackendOptions(**{"threads": 1, **options}))


# -- the table -----------------------------------------------------------------------------------------------------------------


def test_the_targets_of_snngraph() -> None:
    found = {info.name: info for info in targets()}
    assert list(found) == ["openvino", "onnxruntime", "tensorrt"]
    for name in TARGETS:
        assert found[name] == TargetInfo(name, True, importlib.metadata.version(name), "cpu", None, None)
    assert found["tensorrt"] == TargetInfo("tensorrt", False, None, "cuda", "not available in this version of snngraph", None)


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    info = targets()[0]
    assert info == TargetInfo("openvino", False, None, "cpu", "openvino is not installed", 'pip install "snngraph[cpu]"')
    with pytest.raises(TargetNotInstalledError) as caught:
        backend_class("openvino")
    assert 'openvino is not installed; install it with: pip install "snngraph[cpu]"' in str(caught.value)


def test_a_library_that_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "snngraph.runtime.openvino_backend", raising=False)
    monkeypatch.delitem(sys.modules, "openvino", raising=False)
    with pytest.raises(BackendError, match=r"is installed but can not be imported: libtbb\.so\.12"):
        backend_class("openvino")


def test_tensorrt_is_not_there_yet() -> None:
    with pytest.raises(TargetNotInstalledError, match=r"'tensorrt' can not be used: not available in this version of snngraph$"):
        backend_class("tensorrt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvnio", "there is no target 'openvnio'. Did you mean 'openvino'? Known targets: openvino, onnxruntime, tensorrt"),
        ("zzz", "there is no target 'zzz'. Known targets: openvino, onnxruntime, tensorrt"),
    ],
)
def test_unknown_targets(name: str, message: str) -> None:
    with pytest.raises(UnknownTargetError) as caught:
        backend_class(name)
    assert str(caught.value) == message


# -- outside packages ----------------------------------------------------------------------------------------------------------

BACKEND = """
from snngraph.runtime.backend import Backend
class Other(Backend):
    name, devices, precisions, settings = "other", ("npu",), ("fp32",), {}
    def __init__(self, model, precision, options): pass
    def infer(self, inputs): return [2 * inputs[0]]
    def properties(self): return {"library": "other"}
    def close(self): pass
thing = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePackage:
    """Installs a package that offers targets."""

    def install(distribution: str, entries: dict[str, str], code: str = BACKEND) -> None:
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.2.dist-info"
        info.mkdir(parents=True)
        (folder / f"{distribution}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = "".join(f"{name} = {distribution}:{attribute}\n" for name, attribute in entries.items())
        (info / "entry_points.txt").write_text(f"[snngraph.targets]\n{lines}")
        monkeypatch.syspath_prepend(folder)

    return install


def test_an_outside_target(package: MakePackage) -> None:
    package("outside_one", {"other": "Other"})
    assert targets()[-1] == TargetInfo("other", True, "1.2", "npu", None, None)
    assert backend_class("other").name == "other"
    with pytest.raises(UnknownTargetError, match=r"Known targets: openvino, onnxruntime, tensorrt, other$"):
        backend_class("nothing")


def test_an_outside_target_named_as_one_of_snngraph(package: MakePackage) -> None:
    package("outside_two", {"openvino": "Other"})
    for call in (targets, lambda: backend_class("onnxruntime")):
        with pytest.raises(NameClashError, match="target 'openvino' is offered by snngraph itself and by 'outside_two'"):
            call()


def test_two_packages_with_one_name(package: MakePackage) -> None:
    package("outside_three", {"other": "Other"})
    package("outside_four", {"other": "Other"})
    with pytest.raises(NameClashError, match="target 'other' is offered by 'outside_four' and by 'outside_three'"):
        targets()


@pytest.mark.parametrize(
    ("attribute", "code", "error", "message"),
    [
        ("thing", BACKEND, TargetError, "has to be a subclass of snngraph.runtime.backend.Backend, but outside_five:thing is 3"),
        ("absent", BACKEND, BackendError, "could not be loaded"),
        ("Other", "1 / 0", BackendError, "target 'bad' of package 'outside_five' could not be loaded: division by zero"),
    ],
)
def test_an_outside_target_that_fails(
    package: MakePackage, monkeypatch: pytest.MonkeyPatch, attribute: str, code: str, error: type[Exception], message: str
) -> None:
    monkeypatch.delitem(sys.modules, "outside_five", raising=False)
    package("outside_five", {"bad": attribute}, code)
    with pytest.raises(error, match=message):
        backend_class("bad")
    info = targets()[-1]
    assert not info.available
    assert info.missing is not None
    assert message in info.missing
    assert backend_class("openvino").name == "openvino"  # the others still work


# -- options -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads has to be a positive integer, or None for every usable core, got 0"),
        ({"threads": 1.0}, "threads has to be a positive integer"),
        ({"threads": True}, "threads has to be a positive integer"),
        ({"device": ""}, "device has to be a text such as 'cpu', got ''"),
        ({"device": 0}, "device has to be a text"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        BackendOptions(**options)


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_target_does_not_offer(target: str) -> None:
    found = backend_class(target)
    found.check("exact", BackendOptions())
    with pytest.raises(UnknownPrecisionError, match="there is no precision 'bf16'; known: fp32, exact, fp16, int8"):
        found.check("bf16", BackendOptions())
    with pytest.raises(
        PrecisionNotAvailableError, match=f"'fp16' is not available on target '{target}'; it offers: fp32, exact, int8"
    ):
        found.check("fp16", BackendOptions())
    with pytest.raises(TargetError, match=f"target '{target}' does not run on device 'cuda'; it runs on: cpu"):
        found.check("fp32", BackendOptions("cuda"))


def test_usable_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(backend_module, "_SYSFS_CPU", tmp_path)
    monkeypatch.setattr(backend_module, "_CGROUP_CPU_MAX", tmp_path / "cpu.max")
    assert usable_cores() == 8  # the machine says nothing: every CPU is a core
    for cpu in range(8):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    assert usable_cores() == 4
    for quota, cores in (("max 100000", 4), ("250000 100000", 3), ("50000 100000", 1), ("9000000 100000", 4)):
        (tmp_path / "cpu.max").write_text(quota + "\n")
        assert usable_cores() == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 6}, raising=False)
    assert usable_cores() == 1


# -- both back ends ------------------------------------------------------------------------------------------------------------


def test_the_reference_network_fires() -> None:
    for spikes in reference(frames(64))[1]:
        assert 0.05 <= spikes.mean() <= 0.3


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch", [1, 3, None])
def test_spikes_equal_the_reference(target: str, batch: int | None) -> None:
    backend = make(target, lif_model(batch, spikes_output=True))
    for size in (batch,) if batch else (1, 5, 2, 5):
        x = frames(size, seed=size)
        y, spikes = backend.infer([x])
        expected, (layer, _) = reference(x)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(spikes.reshape(T, size, -1), layer)


@pytest.mark.parametrize("target", TARGETS)
def test_results_belong_to_the_caller(target: str) -> None:
    backend = make(target, lif_model())
    first = frames(1, seed=1)
    (kept,) = backend.infer([first])
    before, given = kept.copy(), first.copy()
    for seed in range(2, 8):
        backend.infer([frames(1, seed)])
    np.testing.assert_array_equal(kept, before)
    np.testing.assert_array_equal(first, given)
    assert kept.flags.writeable
    kept[:] = -1
    np.testing.assert_array_equal(backend.infer([first])[0], before)


def several() -> bytes:
    """Inputs and outputs in an order that is not that of their use: an unused input, an output twice, an input given back."""
    vectors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in ("unused", "b", "a", "sum", "r", "again")]
    nodes = [
        helper.make_node("Sub", ["a", "b"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["r"]),
        helper.make_node("Identity", ["r"], ["again"]),
    ]
    return serialize(helper.make_graph(nodes, "g", vectors[:3], [vectors[5], vectors[3], vectors[2], vectors[4]]))


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_and_outputs_keep_the_order_of_the_model(target: str) -> None:
    backend = make(target, several())
    unused, b, a = (np.array(value, np.float32) for value in ([9, 9, 9], [1, 2, 3], [3, 2, 1]))
    results = backend.infer([unused, b, a])
    for result, expected in zip(results, ([2, 0, 0], [2, 0, -2], [3, 2, 1], [2, 0, 0]), strict=True):
        np.testing.assert_array_equal(result, np.array(expected, np.float32))
    for i, result in enumerate(results):
        assert not any(np.shares_memory(result, other) for other in [a, b, unused, *results[:i]])


@pytest.mark.parametrize("target", TARGETS)
def test_denormals_are_numbers(target: str) -> None:
    """Two multiplications that pass through a denormal; flushed to zero, the result would be zero."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "small"], ["d"]), helper.make_node("Mul", ["d", "large"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [64])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [64]),
            helper.make_tensor_value_info("d", TensorProto.FLOAT, [64]),
        ],
        [
            numpy_helper.from_array(np.float32(2.0**power) * np.ones((), np.float32), name)
            for name, power in (("small", -100), ("large", 100))
        ],
    )
    x = np.full(64, 2.0**-40, np.float32)
    y, d = make(target, serialize(graph)).infer([x])
    np.testing.assert_array_equal(d, np.full(64, 2.0**-140, np.float32))
    np.testing.assert_array_equal(y, x)


@pytest.mark.parametrize("target", TARGETS)
def test_no_bfloat16(target: str) -> None:
    """Products of numbers with 12 significant bits: exact in float32, and not in bfloat16."""
    generator = np.random.default_rng(0)
    w = generator.integers(2048, 4096, (256, 256)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [16, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [16, 256])],
        [numpy_helper.from_array(w, "w")],
    )
    x = (generator.random((16, 256)) < 0.3).astype(np.float32)
    np.testing.assert_array_equal(make(target, serialize(graph)).infer([x])[0], x @ w)


@pytest.mark.parametrize("target", TARGETS)
def test_properties_are_those_of_the_library(target: str) -> None:
    backend = make(target, lif_model(), threads=2)
    found = backend.properties()
    assert found["library"] == target
    assert found["version"].startswith(importlib.metadata.version(target))
    assert found["inference_precision"] == "f32"
    assert found["threads"] in (1, 2)  # a machine with one CPU gives no more
    assert found["device"]
    assert set(found["settings"]) == set(backend.settings)


def test_openvino_compiles_with_the_settings_it_was_given() -> None:
    backend = make("openvino", lif_model())
    assert backend.properties()["settings"] == dict(backend.settings)
    assert backend.settings["INFERENCE_PRECISION_HINT"] == "f32"
    assert backend.settings["CPU_DENORMALS_OPTIMIZATION"] == "NO"
    assert backend.settings["INFERENCE_NUM_THREADS"] == "1"


def test_openvino_that_does_not_obey_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = backend_class("openvino")
    monkeypatch.setattr(found, "_property", lambda self, key: "bf16")
    with pytest.raises(BackendError, match=r"was asked for INFERENCE_PRECISION_HINT=f32 but compiled with bf16"):
        make("openvino", lif_model())


@pytest.mark.parametrize("variable", ["ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"])
def test_openvino_under_an_environment_that_lowers_precision_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "strict")
    make("openvino", lif_model())
    monkeypatch.setenv(variable, "BF16")
    with pytest.raises(
        BackendError, match=f"environment variable {variable}=BF16 makes OpenVINO compute below float32; unset it"
    ):
        make("openvino", lif_model())


@pytest.mark.parametrize("target", TARGETS)
def test_errors_of_the_library_are_wrapped(target: str) -> None:
    with pytest.raises(BackendError, match="could not compile the model"):
        make(target, b"no model")
    with pytest.raises(BackendError, match="failed to run the network"):
        make(target, lif_model()).infer([np.zeros((1, 2), np.float32)])
