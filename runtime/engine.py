"""The engine: a compiled network that checks its inputs and runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from snngraph.errors import EngineClosedError, EngineModeError, SnnGraphError, TargetNotInstalledError
from snngraph.runtime import artifact
from snngraph.runtime.backend import Backend, BackendOptions
from snngraph.runtime.backends import backend_class, targets
from snngraph.runtime.inputs import describe, from_numpy, prepare
from snngraph.runtime.manifest import Manifest
from snngraph.types import Mode, NeuronLayer, Precision, TensorSpec

if TYPE_CHECKING:
    from snngraph.runtime.backend import Array

__all__ = ["Engine", "load"]


class Engine:
    """A network compiled for one target, over a whole sequence of T time steps.

    ``run`` may be called from several threads at once; calls wait for each other. Close an engine, or use it in a ``with``
    statement, to give its memory and threads back at a known time.

    Args:
        manifest: what the network is; its target names the engine library.
        model: the serialized ONNX model.
        device: where to run; ``None`` for what the manifest's options say, else ``"cpu"``.
        threads: the number of threads; ``None`` for what the manifest's options say, else one on every usable core.

    Raises:
        EngineModeError: the manifest is of a mode this engine does not run.
        TargetError: the target is unknown or not installed, does not offer the precision or the device, or fails to compile.
    """

    def __init__(self, manifest: Manifest, model: bytes, *, device: str | None = None, threads: int | None = None) -> None:
        if manifest.mode != "sequence":
            raise EngineModeError(f"this engine runs mode 'sequence', and the network was built for mode {manifest.mode!r}")
        options = BackendOptions(
            device=manifest.options.get("device", "cpu") if device is None else device,
            threads=manifest.options.get("threads") if threads is None else threads,
        )
        backend = backend_class(manifest.target)
        backend.check(manifest.precision, options)
        self._model = bytes(model)
        self._backend: Backend | None = backend(self._model, manifest.precision, options)
        self._lock = threading.Lock()
        # The manifest tells what this engine uses; the hashes were those of another file.
        used = {"device": options.device, "threads": options.threads, "settings": dict(self._backend.settings)}
        self._manifest = replace(manifest, options=used, hashes={})

    @property
    def manifest(self) -> Manifest:
        """What this engine is and how it runs."""
        return self._manifest

    @property
    def model(self) -> bytes:
        """The serialized ONNX model."""
        return self._model

    @property
    def target(self) -> str:
        """The engine target, for example ``"openvino"``."""
        return self._manifest.target

    @property
    def precision(self) -> Precision:
        """The precision it computes in."""
        return self._manifest.precision

    @property
    def mode(self) -> Mode:
        """``"sequence"``: a call takes all time steps."""
        return self._manifest.mode

    @property
    def time_steps(self) -> int:
        """T, the number of time steps of one sequence."""
        return self._manifest.time_steps

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` takes."""
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What ``run`` gives."""
        return self._manifest.outputs

    @property
    def layers(self) -> tuple[NeuronLayer, ...]:
        """The layers of neurons, and where they live in the ONNX model."""
        return self._manifest.layers

    def run(self, *inputs: Any) -> Any:
        """Runs one sequence, or one batch of them.

        Args:
            *inputs: an array for each of ``inputs``, of its element type and shape: NumPy arrays, or any tensors on the CPU that
                speak DLPack (PyTorch, JAX, ...). They are not changed.

        Returns:
            The output, in the library of the first input; a tuple where the network has several.

        Raises:
            InputError: an input does not fit; a subclass for each reason.
            EngineClosedError: the engine was closed.
            BackendError: the engine library failed.
        """
        outputs = self._run(prepare(self.inputs, inputs))
        results = tuple(from_numpy(output, inputs[0]) for output in outputs)
        return results[0] if len(results) == 1 else results

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        """``run`` on arrays known to fit: C-contiguous, aligned, of the right types and shapes."""
        with self._lock:
            return self._open_backend().infer(inputs)

    def stream(self, batch_size: int | None = None) -> NoReturn:
        """Refuses: a stream steps frame by frame, and a sequence engine takes whole sequences.

        Raises:
            EngineModeError: always.
        """
        raise EngineModeError(
            f"the engine was built with mode={self.mode!r} and takes {self.time_steps} time steps in one run(); "
            "a stream needs a step engine: build with mode='step'"
        )

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Writes the engine to a ``.snn`` file, whole or not at all. A closed engine can be saved too.

        Args:
            path: the file; its folder has to exist.
            force: replace a file that exists.

        Raises:
            ArtifactExistsError: the file exists and ``force`` is not given.
            ArtifactWriteError: no folder, no permission, no room on the disk.
        """
        artifact.write(path, self._manifest, self._model, force)

    def properties(self) -> dict[str, Any]:
        """What was really compiled: the target and precision, and the library's version, device, threads and settings.

        Raises:
            EngineClosedError: the engine was closed.
        """
        with self._lock:
            return {"target": self.target, "precision": self.precision, **self._open_backend().properties()}

    def close(self) -> None:
        """Gives memory and threads back, after a run that is under way; a second call does nothing."""
        with self._lock:
            if self._backend is not None:
                self._backend.close()
                self._backend = None

    def _open_backend(self) -> Backend:
        if self._backend is None:
            raise EngineClosedError(f"engine {self._manifest.name!r} was closed; build or load it again")
        return self._backend

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(describe, specs)) for specs in (self.inputs, self.outputs))
        closed = ", closed" if self._backend is None else ""
        return (
            f"Engine({self._manifest.name!r}, target={self.target!r}, precision={self.precision!r}, mode={self.mode!r}, "
            f"time_steps={self.time_steps}, inputs=[{inputs}], outputs=[{outputs}]{closed})"
        )


def load(path: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None, target: str | None = None) -> Engine:
    """Reads a ``.snn`` file and compiles it for this machine. Needs no PyTorch; nothing in the file is run as code.

    Args:
        path: the file.
        device: where to run.
        threads: the number of threads; ``None`` for the number the engine was built with, else one on every usable core.
        target: another engine target than the one it was built for; ``None`` for that one, which is never replaced silently. The
            comparison with the reference that the file records was made on its own target, so another one drops it.

    Raises:
        ArtifactError: the file can not be read, is damaged, unsafe, or newer than this snngraph.
        TargetNotInstalledError: the target's library is not installed; the message says what to install, and what would do.
        TargetError: the target is unknown, does not offer the precision or the device, or fails to compile.
    """
    manifest, model = artifact.read(path)
    if target is not None and target != manifest.target:
        manifest = replace(manifest, target=target, verify=None)
    try:
        return Engine(manifest, model, device=device, threads=threads)
    except TargetNotInstalledError as error:
        others = [] if target is not None else _other_targets(manifest, BackendOptions(device, threads))
        if not others:
            raise
        hint = " or ".join(f'target="{name}"' for name in others)
        raise TargetNotInstalledError(f"{error}. Or load it with {hint}, which is installed and works here") from None


def _other_targets(manifest: Manifest, options: BackendOptions) -> list[str]:
    """The installed targets that could run this network on this device."""
    found = []
    for info in targets():
        if info.available and info.name != manifest.target:
            try:
                backend_class(info.name).check(manifest.precision, options)
            except SnnGraphError:
                continue
            found.append(info.name)
    return found
