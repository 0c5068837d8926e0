"""The engine: what it checks, what it gives back, how it lives and dies."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

import snngraph.runtime
from snngraph.errors import (
    ArtifactExistsError,
    BackendError,
    EngineClosedError,
    EngineModeError,
    InputBatchError,
    InputChannelError,
    InputCountError,
    InputDeviceError,
    InputDtypeError,
    InputError,
    InputRankError,
    InputShapeError,
    InputTimeError,
    InputTypeError,
    PrecisionNotAvailableError,
    TargetError,
    TargetNotInstalledError,
    UnknownTargetError,
)
from snngraph.runtime.engine import Engine, load
from snngraph.types import TensorSpec
from tests.runtime.networks import (
    CLASSES,
    SAMPLE,
    TARGETS,
    T,
    frames,
    identity,
    identity_manifest,
    lif_model,
    manifest,
    reference,
    serialize,
)


@pytest.fixture(scope="module", params=TARGETS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(manifest(request.param), lif_model()) as made:
        yield made


@pytest.fixture(scope="module", params=TARGETS)
def dynamic(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(manifest(request.param, None), lif_model(None)) as made:
        yield made


# -- running -------------------------------------------------------------------------------------------------------------------


def test_numpy_in_numpy_out(engine: Engine) -> None:
    x = frames(1)
    y = engine.run(x)
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, reference(x)[0])


def test_a_free_batch(dynamic: Engine) -> None:
    for batch in (1, 7, 2, 32, 1):
        x = frames(batch, seed=batch)
        np.testing.assert_array_equal(dynamic.run(x), reference(x)[0])


@pytest.mark.parametrize("target", TARGETS)
def test_several_outputs_come_as_a_tuple(target: str) -> None:
    outputs = (TensorSpec("y", (1, CLASSES), batch_dim=0), TensorSpec("spikes", (T, 24)))
    x = frames(1)
    with Engine(manifest(target, outputs=outputs), lif_model(spikes_output=True)) as made:
        y, spikes = made.run(x)
        assert isinstance(made.run(torch.from_numpy(x)), tuple)
    expected, layers = reference(x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(spikes.reshape(layers[0].shape), layers[0])


class Subclass(np.ndarray[Any, Any]):
    """An array type of somebody's own."""


def strided(x: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The same numbers, laid out in other ways."""
    unaligned = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    unaligned[...] = x
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    return {
        "fortran": np.asfortranarray(x),
        "transposed": np.ascontiguousarray(x.T).T,
        "negative strides": np.ascontiguousarray(x[::-1, :, ::-1, :, ::-1])[::-1, :, ::-1, :, ::-1],
        "every second": wide[..., ::2],
        "unaligned": unaligned,
        "read-only": frozen,
        "broadcast": np.broadcast_to(x, x.shape),
        "subclass": x.view(Subclass),
    }


@pytest.mark.parametrize("layout", list(strided(frames(1))))
def test_any_memory_layout(dynamic: Engine, layout: str) -> None:
    x = frames(3)
    value = strided(x)[layout]
    before = value.copy()
    y = dynamic.run(value)
    assert type(y) is np.ndarray
    np.testing.assert_array_equal(y, reference(x)[0])
    np.testing.assert_array_equal(value, before)


def test_nan_and_infinity_are_inputs_like_any_other(engine: Engine) -> None:
    for value in (np.nan, np.inf, -np.inf):
        assert engine.run(np.full((T, 1, *SAMPLE), value, np.float32)).shape == (1, CLASSES)
    x = frames(1)
    np.testing.assert_array_equal(engine.run(x), reference(x)[0])  # and leave nothing behind


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("dtype", "code"),
    [("bool", TensorProto.BOOL), ("uint8", TensorProto.UINT8), ("int64", TensorProto.INT64), ("float64", TensorProto.DOUBLE)],
)
def test_element_types(target: str, dtype: str, code: int) -> None:
    x = np.arange(6).reshape(2, 3).astype(dtype)
    with Engine(identity_manifest(target, dtype, (None, 3)), identity(code, "x", ["N", 3])) as made:
        y = made.run(x)
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, x)
        assert not np.shares_memory(x, y)
        given = torch.from_numpy(x)
        assert torch.equal(made.run(given), given)


@pytest.mark.parametrize("target", TARGETS)
def test_a_scalar_array(target: str) -> None:
    with Engine(identity_manifest(target, "float64", ()), identity(TensorProto.DOUBLE, "x", [])) as made:
        y = made.run(np.array(1.5))
        assert y.shape == ()
        assert y == 1.5


# -- inputs that do not fit ----------------------------------------------------------------------------------------------------


def zeros(*shape: int, dtype: str = "float32") -> NDArray[Any]:
    return np.zeros(shape, dtype)


WRONG: list[tuple[tuple[Any, ...], type[InputError], str]] = [
    ((), InputCountError, "the engine takes 1 input (x: float32[4, 1, 2, 4, 4]), got 0"),
    ((frames(1), frames(1)), InputCountError, "got 2: pass each input as an argument of its own"),
    (([[1.0]],), InputTypeError, "input 'x' has to be a NumPy array or a tensor with DLPack (PyTorch, JAX, ...), got list: "),
    (([[1.0]],), InputTypeError, "pass numpy.asarray(x, dtype=numpy.float32)"),
    ((1.0,), InputTypeError, "got float"),
    ((None,), InputTypeError, "got NoneType"),
    ((np.float32(1),), InputTypeError, "got numpy.float32"),
    ((np.ma.masked_array(frames(1)),), InputTypeError, "is a masked array"),
    ((frames(1).astype(np.float64),), InputDtypeError, "'x' has to be float32, got float64: pass x.astype(numpy.float32)"),
    ((frames(1).astype(np.float16),), InputDtypeError, "got float16"),
    ((frames(1) > 0,), InputDtypeError, "got bool"),
    ((frames(1).astype(object),), InputDtypeError, "got object"),
    ((frames(1).astype(">f4"),), InputDtypeError, "got float32 in foreign byte order (>f4): pass x.astype(numpy.float32)"),
    ((torch.zeros(4, 1, 2, 4, 4).double(),), InputDtypeError, "got float64: pass a tensor converted to float32"),
    ((torch.zeros(4, 1, 2, 4, 4).bfloat16(),), InputDtypeError, "dtype torch.bfloat16) could not be read as float32"),
    ((torch.zeros(4, 1, 2, 4, 4, requires_grad=True),), InputTypeError, "none flow through an engine: pass x.detach()"),
    ((torch.zeros(4, 1, 2, 4, 4).to_sparse(),), InputTypeError, "could not be read as float32"),
    ((torch.zeros(4, 1, 2, 4, 4, device="meta"),), InputDeviceError, "on device meta, and this engine runs on the CPU"),
    ((zeros(4, 2, 4, 4),), InputRankError, "has to have 5 dimensions (x: float32[4, 1, 2, 4, 4]), got 4 (shape [4, 2, 4, 4])"),
    ((zeros(4, 2, 4, 4),), InputRankError, "if the batch is missing, add it: numpy.expand_dims(x, 1)"),
    ((zeros(4, 1, 1, 2, 4, 4),), InputRankError, "pass the axes that the example had"),
    ((zeros(4, 2, 2, 4, 4),), InputBatchError, "to be 1 on axis 1 (x: float32[4, 1, 2, 4, 4]), got 2 (shape [4, 2, 2, 4, 4])"),
    ((zeros(4, 2, 2, 4, 4),), InputBatchError, "for batch 1: build with batch_size='dynamic', or pass one sample at a time"),
    ((zeros(4, 0, 2, 4, 4),), InputBatchError, "got 0"),
    ((zeros(5, 1, 2, 4, 4),), InputTimeError, "the number of time steps has to be 4 on axis 0"),
    ((zeros(5, 1, 2, 4, 4),), InputTimeError, "one number of time steps: pass 4, or build with another time_steps"),
    ((zeros(4, 1, 3, 4, 4),), InputChannelError, "the number of channels has to be 2 on axis 2"),
    ((zeros(4, 1, 2, 5, 4),), InputShapeError, "the size has to be 4 on axis 3"),
    ((zeros(4, 1, 2, 4, 0),), InputShapeError, "the size has to be 4 on axis 4"),
    # The order of the checks, where several things are wrong.
    ((zeros(5, 9, 9, 9, dtype="int8"),), InputDtypeError, ""),
    ((zeros(5, 9, 9, 9),), InputRankError, ""),
    ((zeros(5, 9, 9, 9, 9),), InputBatchError, ""),
    ((zeros(5, 1, 9, 9, 9),), InputTimeError, ""),
    ((zeros(4, 1, 9, 9, 9),), InputChannelError, ""),
]  # fmt: skip


@pytest.mark.parametrize(("values", "error", "message"), WRONG)
def test_what_does_not_fit(engine: Engine, values: tuple[Any, ...], error: type[InputError], message: str) -> None:
    with pytest.raises(InputError) as caught:
        engine.run(*values)
    assert type(caught.value) is error
    assert message in str(caught.value)


def test_an_empty_batch(dynamic: Engine) -> None:
    with pytest.raises(
        InputBatchError, match=r"has to be at least 1 on axis 1 .* got 0 .*: do not run the engine on an empty batch"
    ):
        dynamic.run(zeros(4, 0, 2, 4, 4))


class OnDevice:
    """A tensor that says it lies on a GPU."""

    def __init__(self, device: int) -> None:
        self.number = device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.number, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("the device comes first")


def test_a_tensor_on_a_gpu(engine: Engine) -> None:
    with pytest.raises(InputDeviceError, match="is on device number 2 of DLPack, and this engine runs on the CPU"):
        engine.run(OnDevice(2))


@pytest.mark.parametrize("target", TARGETS)
def test_two_inputs(target: str) -> None:
    """A sequence and a static input with one free batch."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "c"], ["y"])],
        "g",
        [info("x", TensorProto.FLOAT, [T, "N", 3]), info("c", TensorProto.FLOAT, ["N", 3])],
        [info("y", TensorProto.FLOAT, [T, "N", 3])],
    )
    inputs = (TensorSpec("x", (T, None, 3), time_dim=0, batch_dim=1), TensorSpec("c", (None, 3), batch_dim=0))
    outputs = (TensorSpec("y", (T, None, 3), time_dim=0, batch_dim=1),)
    with Engine(manifest(target, inputs=inputs, outputs=outputs, layers=()), serialize(graph)) as made:
        x, c = np.ones((T, 2, 3), np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(made.run(x, c), x + c)
        assert isinstance(made.run(torch.from_numpy(x), c), torch.Tensor)  # the first input decides
        assert isinstance(made.run(x, torch.from_numpy(c)), np.ndarray)
        with pytest.raises(InputBatchError, match=r"all inputs have to have the same batch size, got \{'x': 2, 'c': 3\}"):
            made.run(x, np.zeros((3, 3), np.float32))
        with pytest.raises(
            InputChannelError, match=r"input 'c': the number of channels has to be 3 on axis 1 \(c: float32\[N, 3\]\)"
        ):
            made.run(x, np.zeros((2, 4), np.float32))
        with pytest.raises(InputCountError, match=r"takes 2 inputs \(x: float32\[4, N, 3\]; c: float32\[N, 3\]\), got 1"):
            made.run(x)


# -- other libraries -----------------------------------------------------------------------------------------------------------


def test_torch_in_torch_out(dynamic: Engine) -> None:
    x = frames(3)
    for given in (
        torch.from_numpy(x),
        torch.from_numpy(x.transpose(1, 0, 2, 3, 4).copy()).transpose(0, 1),
        torch.nn.Buffer(torch.tensor(x)),
    ):
        y = dynamic.run(given)
        assert type(y) is torch.Tensor
        np.testing.assert_array_equal(y.numpy(), reference(x)[0])
        y += 1  # it is the caller's own


class Foreign:
    """A tensor of a library that speaks DLPack and the array API."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __array_namespace__(self) -> Any:
        class Namespace:
            from_dlpack = staticmethod(lambda array: Foreign(np.from_dlpack(array)))

        return Namespace


class Nameless:
    """A tensor of a library that gives DLPack away but takes none in."""

    def __init__(self, array: NDArray[Any]) -> None:
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def test_any_library_that_speaks_dlpack(engine: Engine) -> None:
    x = frames(1)
    y = engine.run(Foreign(x))
    assert type(y) is Foreign
    np.testing.assert_array_equal(y.array, reference(x)[0])
    assert type(engine.run(Nameless(x))) is np.ndarray


# -- life ----------------------------------------------------------------------------------------------------------------------


def test_what_an_engine_says_about_itself(dynamic: Engine) -> None:
    made = manifest(dynamic.target, None)
    assert (dynamic.precision, dynamic.mode, dynamic.time_steps) == ("fp32", "sequence", T)
    assert (dynamic.inputs, dynamic.outputs, dynamic.layers) == (made.inputs, made.outputs, made.layers)
    assert dynamic.model == lif_model(None)
    assert repr(dynamic) == (
        f"Engine('lif', target='{dynamic.target}', precision='fp32', mode='sequence', time_steps=4, "
        "inputs=[x: float32[4, N, 2, 4, 4]], outputs=[y: float32[N, 10]])"
    )
    assert dynamic.properties()["target"] == dynamic.target
    assert dynamic.properties()["threads"] == 1
    assert dynamic.manifest.options["settings"] == dynamic.properties()["settings"]


def test_options_come_from_the_manifest_unless_given() -> None:
    made = manifest("onnxruntime", options={"threads": 1})
    assert Engine(made, lif_model()).manifest.options["threads"] == 1
    assert Engine(made, lif_model(), threads=2).properties()["threads"] == 2
    bare = Engine(manifest("onnxruntime", options={}), lif_model())
    assert bare.manifest.options["threads"] is None  # another machine has other cores
    assert bare.manifest.options["device"] == "cpu"
    with pytest.raises(TargetError, match="threads has to be a positive integer"):
        Engine(manifest(options={"threads": "many"}), lif_model())
    with pytest.raises(TargetError, match="does not run on device 'cuda'"):
        Engine(made, lif_model(), device="cuda")
    with pytest.raises(PrecisionNotAvailableError, match="'fp16' is not available"):
        Engine(manifest(precision="fp16"), lif_model())


def test_a_sequence_engine_has_no_stream(engine: Engine) -> None:
    with pytest.raises(
        EngineModeError, match=r"built with mode='sequence' and takes 4 time steps in one run\(\).*build with mode='step'"
    ):
        engine.stream(batch_size=1)
    with pytest.raises(EngineModeError, match="this engine runs mode 'sequence', and the network was built for mode 'step'"):
        Engine(manifest(mode="step"), lif_model())


@pytest.mark.parametrize("target", TARGETS)
def test_a_closed_engine_does_not_run(target: str, tmp_path: Path) -> None:
    with Engine(manifest(target), lif_model()) as made:
        made.run(frames(1))
    for use in (lambda: made.run(frames(1)), made.properties):
        with pytest.raises(EngineClosedError, match="engine 'lif' was closed; build or load it again"):
            use()
    made.close()
    assert repr(made).endswith(", closed)")
    made.save(tmp_path / "net.snn")
    assert load(tmp_path / "net.snn").run(frames(1)).shape == (1, CLASSES)


def test_threads_may_share_an_engine(dynamic: Engine) -> None:
    xs = [frames(1 + seed % 4, seed) for seed in range(64)]
    start = threading.Barrier(8)

    def work(first: int) -> bool:
        start.wait()
        return all(np.array_equal(dynamic.run(x), reference(x)[0]) for x in xs[first:] + xs[:first])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(0, 64, 8)))


def test_closing_waits_for_the_runs_under_way() -> None:
    for target in TARGETS:
        made = Engine(manifest(target, None), lif_model(None))
        x = frames(4)
        expected = reference(x)[0]

        def work(made: Engine = made, x: Any = x, expected: Any = expected) -> int:
            runs = 0
            try:
                while runs < 10_000:
                    np.testing.assert_array_equal(made.run(x), expected)
                    runs += 1
            except EngineClosedError:
                pass
            return runs

        with ThreadPoolExecutor(3) as pool:
            counts = [pool.submit(work) for _ in range(3)]
            threading.Event().wait(0.05)
            made.close()
            assert all(count.result() < 10_000 for count in counts)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("target", TARGETS)
def test_memory_does_not_grow(target: str) -> None:
    with Engine(manifest(target, None), lif_model(None)) as made:
        xs = [frames(batch) for batch in (1, 2, 3)]
        for i in range(500):
            made.run(xs[i % 3])
        gc.collect()
        before = resident_bytes()
        for i in range(10_000):
            made.run(xs[i % 3])
        gc.collect()
        assert resident_bytes() - before < 2 * 2**20  # 200 bytes a run


# -- files ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_save_and_load(tmp_path: Path, target: str) -> None:
    path = tmp_path / "net.snn"
    x = frames(2)
    with Engine(manifest(target, None), lif_model(None)) as made:
        made.save(path)
        with pytest.raises(ArtifactExistsError):
            made.save(path)
        made.save(path, force=True)
        with load(path) as loaded:
            assert loaded.manifest == made.manifest
            assert loaded.model == made.model
            np.testing.assert_array_equal(loaded.run(x), made.run(x))
        with load(str(path), threads=2) as loaded:
            assert loaded.manifest.options["threads"] == 2
        with pytest.raises(TargetError, match="does not run on device 'cuda'"):
            load(path, device="cuda")


def test_load_for_another_target(tmp_path: Path) -> None:
    path = tmp_path / "net.snn"
    Engine(manifest("openvino"), lif_model()).save(path)
    x = frames(1)
    with load(path, target="onnxruntime") as loaded:
        assert loaded.target == "onnxruntime"
        assert loaded.manifest.verify is None  # it was made on the other target
        np.testing.assert_array_equal(loaded.run(x), reference(x)[0])
    with load(path, target="openvino") as loaded:
        assert loaded.manifest.verify == manifest().verify
    with pytest.raises(UnknownTargetError, match="Did you mean 'openvino'"):
        load(path, target="openvnio")


def test_load_never_switches_the_target_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.snn"
    Engine(manifest("openvino"), lif_model()).save(path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(TargetNotInstalledError) as caught:
        load(path)
    assert str(caught.value) == (
        "target 'openvino' can not be used: openvino is not installed; install it with: pip install \"snngraph[cpu]\". "
        'Or load it with target="onnxruntime", which is installed and works here'
    )
    with load(path, target="onnxruntime") as loaded:
        assert loaded.run(frames(1)).shape == (1, CLASSES)
    with pytest.raises(TargetNotInstalledError, match=r'"snngraph\[cpu\]"$'):
        load(path, target="openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetNotInstalledError, match=r'"snngraph\[cpu\]"$'):
        load(path)


def test_a_manifest_that_lies_about_the_model_ends_in_an_error_of_ours() -> None:
    wrong = replace(manifest().inputs[0], shape=(T, 1, 2, 4, 5))
    made = Engine(manifest(inputs=(wrong,)), lif_model())
    with pytest.raises(BackendError, match="OpenVINO failed to run the network"):
        made.run(np.zeros((T, 1, 2, 4, 5), np.float32))


# -- without PyTorch -----------------------------------------------------------------------------------------------------------


def python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_load_and_run_need_neither_torch_nor_onnx(tmp_path: Path) -> None:
    x = frames(1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", reference(x)[0])
    for target in TARGETS:
        Engine(manifest(target), lif_model()).save(tmp_path / f"{target}.snn")
    code = """
        import sys
        BANNED = {"torch", "onnx", "onnxscript", "torchvision", "scipy"}
        class Ban:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in BANNED:
                    raise ImportError(f"{name} is banned")
        sys.meta_path.insert(0, Ban())
        sys.modules["torch"] = None
        import numpy
        import snngraph.runtime
        folder = sys.argv[1]
        x, y = numpy.load(folder + "/x.npy"), numpy.load(folder + "/y.npy")
        for target in sys.argv[2:]:
            with snngraph.runtime.load(f"{folder}/{target}.snn") as engine:
                assert numpy.array_equal(engine.run(x), y)
                engine.save(f"{folder}/{target}-again.snn")
        assert snngraph.runtime.targets()[0].available
    """
    python(code, tmp_path, *TARGETS)


def test_importing_the_runtime_imports_nothing_heavy() -> None:
    code = """
        import json, sys
        import snngraph.runtime
        bare = sorted(sys.modules)
        snngraph.runtime.Engine, snngraph.runtime.Manifest, snngraph.runtime.load, snngraph.runtime.targets()
        print(json.dumps([bare, sorted(sys.modules)]))
    """
    bare, used = (set(names) for names in json.loads(python(code)))
    heavy = {"torch", "onnx", "onnxscript", "openvino", "onnxruntime", "typer", "rich", "scipy"}
    assert not bare & (heavy | {"numpy"})
    assert not used & heavy


def test_the_lazy_names() -> None:
    assert {"Engine", "Manifest", "load", "targets"} <= set(dir(snngraph.runtime))
    assert snngraph.runtime.Engine is Engine
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        snngraph.runtime.nothing  # noqa: B018
