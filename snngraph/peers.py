"""What a benchmark times: engines, and their peers on the plain model.

A peer gets what makes it fast. The neurons are ordinary operators (:func:`snngraph.ops.plain_arithmetic`), which every compiler
can fuse; ``torch.compile`` gets one graph without breaks, frozen weights, and its autotuner; inputs lie in memory as each library
wants them, and handing them over costs no copy.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch import Tensor, nn

from snngraph import ops
from snngraph.frontends import adapters, state
from snngraph.frontends.call import outputs_of
from snngraph.runtime.engine import Engine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["PEERS", "Contender", "PlainModel", "build_peer", "engine_contender", "first_line", "quiet"]

PYTORCH: Final = "PyTorch"
TORCH_COMPILE: Final = "torch.compile"
ONNX_RUNTIME: Final = "ONNX Runtime"
OPENVINO_F32: Final = "OpenVINO f32"
OPENVINO_DEFAULT: Final = "OpenVINO default"

Inputs = tuple[Tensor, ...]
_Variants = dict[str, Callable[[Any], Any]]
_QUICK_ROUNDS: Final = 7


def _nothing() -> None:
    """The default of a hook."""


@dataclass(frozen=True)
class Contender:
    """Something that can be timed.

    Args:
        name: what it is called in the report.
        kind: ``"engine"``, ``"variant"`` or ``"peer"``, as of a :class:`~snngraph.report.benchmark.Row`.
        call: runs once on prepared inputs; this alone is timed.
        prepare: brings inputs into the form that ``call`` takes.
        precision: what it computes in.
        settings: how it was built, in words.
        before: runs before every call, untimed.
        close: gives memory back.
    """

    name: str
    kind: Literal["engine", "variant", "peer"]
    call: Callable[[Any], Any]
    prepare: Callable[[Inputs], Any]
    precision: str
    settings: str
    before: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing

    def outputs(self, inputs: Inputs) -> list[Array]:
        """The outputs on some inputs, as arrays of their own."""
        self.before()
        found = self.call(self.prepare(inputs))
        if isinstance(found, Tensor):
            found = [found]
        values = [found] if isinstance(found, np.ndarray) else list(found)
        return [np.array(v.detach() if isinstance(v, Tensor) else v) for v in values]


class PlainModel:
    """A model as the peers see it; what they share is made once, when first needed.

    Args:
        model: in evaluation mode, taking whole sequences.
        inputs: an example.
        patience: seconds in which a compiler has to be done; ``None`` for as long as it takes.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, patience: float | None = None) -> None:
        self.model, self.inputs, self.patience = model, inputs, patience

    @functools.cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The model as one graph of ordinary operators, every call starting from the reset state."""
        with state.fresh_state(self.model), adapters.adapted(self.model), ops.plain_arithmetic(), torch.no_grad():
            return torch.export.export(self.model, tuple(x.clone() for x in self.inputs), strict=False)

    @functools.cached_property
    def onnx(self) -> bytes:
        """What ``torch.onnx.export(dynamo=True)`` makes of it, optimized as it does by default."""
        with torch.no_grad():
            exported = torch.onnx.export(self.program, self.inputs, dynamo=True, optimize=True, verbose=False)
        assert exported is not None
        content: bytes = exported.model_proto.SerializeToString()
        return content


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drops the warnings and log lines that exporters and compilers write about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._inductor", "torch._dynamo", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def engine_contender(name: str, engine: Engine) -> Contender:
    """An engine, called as its user calls it: with its checks of the inputs."""
    found = engine.properties()
    return Contender(
        name,
        "engine",
        lambda arrays: engine.run(*arrays),
        _as_arrays,
        str(found["inference_precision"]),
        f"{found['library']} {str(found['version']).partition('-')[0]}",
    )


def build_peer(name: str, plain: PlainModel, threads: int) -> Contender:
    """Builds one of :data:`PEERS`; whatever its library raises comes through."""
    return PEERS[name](plain, threads)


def _as_arrays(inputs: Inputs) -> list[Array]:
    return [np.ascontiguousarray(x.detach().numpy()) for x in inputs]


def _same(inputs: Inputs) -> Inputs:
    return inputs


# -- PyTorch -------------------------------------------------------------------------------------------------------------------


def _fastest(variants: _Variants, inputs: Inputs, before: Callable[[], None] = _nothing) -> tuple[str, str]:
    """The fastest of several ways to run, and the words for the report; timed in turn, by the quickest call of each."""
    if len(variants) == 1:
        (name,) = variants
        return name, name
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for k in range(_QUICK_ROUNDS):
        for name, call in variants.items():
            before()
            start = time.perf_counter()
            call(inputs)
            if k:
                seconds[name].append(time.perf_counter() - start)
    least = {name: min(found) for name, found in seconds.items()}
    best = min(least, key=least.__getitem__)
    others = ", ".join(f"{name} ({least[name] / least[best]:.2f} times as long)" for name in least if name != best)
    return best, f"{best}; slower, so left out: {others}"


def _eager(plain: PlainModel, threads: int) -> Contender:
    def as_written(inputs: Inputs) -> list[Tensor]:
        with torch.inference_mode():
            return outputs_of(plain.model(*inputs))

    def ordinary(inputs: Inputs) -> list[Tensor]:
        with ops.plain_arithmetic():
            return as_written(inputs)

    def before() -> None:
        state.reset_state(plain.model)

    variants: _Variants = {"neurons as ordinary operators": ordinary, "neurons as snn:: operators": as_written}
    best, words = _fastest(variants, plain.inputs, before)
    return Contender(PYTORCH, "peer", variants[best], _same, "f32", f"eager, inference_mode, {words}", before)


def _compiled(plain: PlainModel, threads: int) -> Contender:
    autotuned = {**torch._inductor.list_mode_options("max-autotune-no-cudagraphs"), "freezing": True}
    modes: dict[str, dict[str, Any]] = {"default": {}, "max-autotune with frozen weights": autotuned}
    variants: _Variants = {}
    failures = {}
    # Without its caches on disk, so that the time it takes to build is the one that a user waits for the first time.
    no_caches: Any = torch.compiler.config
    end = None if plain.patience is None else time.monotonic() + plain.patience
    with no_caches.patch(force_disable_caches=True), torch.inference_mode():
        for mode, options in modes.items():
            compiled = torch.compile(plain.program.module(), fullgraph=True, dynamic=False, options=options or None)
            try:
                with _patience(plain.patience, end):
                    compiled(*plain.inputs)
            except Exception as error:
                failures[mode] = error
                continue
            variants[mode] = functools.partial(_call_compiled, compiled)
    if not variants:
        raise failures["default"]
    best, words = _fastest(variants, plain.inputs)
    failed = "".join(f"; {mode} failed: {first_line(error)}" for mode, error in failures.items())
    return Contender(TORCH_COMPILE, "peer", variants[best], _same, "f32", f"inductor, one graph, static shapes, {words}{failed}")


class _OutOfPatienceError(BaseException):
    """No :class:`Exception`, so that a compiler that tries several ways does not take it for one of them failing."""


@contextlib.contextmanager
def _patience(seconds: float | None, end: float | None) -> Iterator[None]:
    """Ends what runs inside with a :class:`TimeoutError` at the time ``end``, ``seconds`` after the start.

    Only the main thread of a system with interval timers can be interrupted: elsewhere it takes as long as it takes.
    """
    if end is None or not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    reason = f"not compiled within {seconds:g} s"
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError(reason)

    def stop(signum: int, frame: Any) -> None:
        raise _OutOfPatienceError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    except _OutOfPatienceError:
        from torch._inductor.async_compile import shutdown_compile_workers

        shutdown_compile_workers()  # what they had still to do would take time from those who run next
        raise TimeoutError(reason) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _call_compiled(compiled: Any, inputs: Inputs) -> list[Tensor]:
    with torch.inference_mode():
        return outputs_of(compiled(*inputs))


# -- ONNX Runtime and OpenVINO on the plain export -----------------------------------------------------------------------------


def _onnxruntime(plain: PlainModel, threads: int) -> Contender:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(plain.onnx, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def prepare(inputs: Inputs) -> dict[str, Array]:
        return dict(zip(names, _as_arrays(inputs), strict=True))

    settings = f"onnxruntime {onnxruntime.__version__}, torch.onnx.export(dynamo=True), all graph optimizations"
    return Contender(ONNX_RUNTIME, "peer", lambda feeds: session.run(None, feeds), prepare, "f32", settings)


def _openvino(precision: str | None, plain: PlainModel, threads: int) -> Contender:
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",  # as in the engine: the machine's cores are shared in turn
    }
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(plain.onnx, b""), "CPU", settings)
    request = compiled.create_infer_request()
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()

    def call(arrays: Sequence[Array]) -> Any:
        for k, array in enumerate(arrays):
            request.set_input_tensor(k, openvino.Tensor(array, shared_memory=True))
        return request.infer(share_outputs=False).to_tuple()

    name = OPENVINO_F32 if precision == "f32" else f"{OPENVINO_DEFAULT} ({found})"
    hint = f"precision {found} asked for" if precision else f"no precision asked for: it chose {found}"
    words = f"openvino {openvino.__version__.partition('-')[0]}, torch.onnx.export(dynamo=True), latency hint, {hint}"
    return Contender(name, "peer", call, _as_arrays, found, words)


def first_line(error: BaseException) -> str:
    """An error in a line: its type and the first line of its message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


PEERS: Final[dict[str, Callable[[PlainModel, int], Contender]]] = {
    PYTORCH: _eager,
    TORCH_COMPILE: _compiled,
    ONNX_RUNTIME: _onnxruntime,
    OPENVINO_F32: functools.partial(_openvino, "f32"),
    OPENVINO_DEFAULT: functools.partial(_openvino, None),
}
"""The peers by name, in the order of the report."""
