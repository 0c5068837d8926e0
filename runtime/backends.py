"""The table of engine targets: snngraph's own, and those that outside packages offer.

An outside package offers a target through an entry point of the group ``snngraph.targets``: the entry's name is the target's
name, its value a subclass of ``snngraph.runtime.backend.Backend``.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import TYPE_CHECKING, Final

from snngraph.errors import BackendError, NameClashError, TargetError, TargetNotInstalledError, UnknownTargetError

if TYPE_CHECKING:
    from snngraph.runtime.backend import Backend

__all__ = ["TargetInfo", "backend_class", "targets"]

_GROUP: Final = "snngraph.targets"


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """One engine target, as found on this machine.

    Args:
        name: what ``target=`` takes.
        available: whether an engine can be built for it here.
        version: the version of the library behind it, where it is known.
        device: the kinds of device it runs on, for example ``"cpu"``.
        missing: why it is not available, or ``None``.
        install: the command that installs it, or ``None`` where none helps.
    """

    name: str
    available: bool
    version: str | None
    device: str
    missing: str | None
    install: str | None


@dataclass(frozen=True, slots=True)
class _Builtin:
    """A target of snngraph's own.

    Args:
        library: the module it needs.
        distributions: the packages that may hold that module.
        home: the module and the class of the back end; ``None`` where there is none in this version.
    """

    device: str
    library: str
    distributions: tuple[str, ...]
    home: tuple[str, str] | None
    extra: str

    @property
    def install(self) -> str:
        return f'pip install "snngraph[{self.extra}]"'


_BUILTIN: Final = {
    "openvino": _Builtin("cpu", "openvino", ("openvino",), ("snngraph.runtime.openvino_backend", "OpenVINOBackend"), "cpu"),
    "onnxruntime": _Builtin(
        "cpu",
        "onnxruntime",
        ("onnxruntime", "onnxruntime-gpu"),
        ("snngraph.runtime.onnxruntime_backend", "OnnxRuntimeBackend"),
        "cpu",
    ),
    "tensorrt": _Builtin("cuda", "tensorrt", ("tensorrt",), None, "tensorrt"),
}


def targets() -> tuple[TargetInfo, ...]:
    """All targets: snngraph's own first, then those of outside packages by name. No engine library of snngraph's own is imported.

    Raises:
        NameClashError: two packages offer a target of the same name.
    """
    outside = _outside()
    return (*(_builtin_info(name) for name in _BUILTIN), *(_outside_info(outside[name]) for name in sorted(outside)))


def backend_class(name: str) -> type[Backend]:
    """The back end of a target; its library is imported now.

    Raises:
        UnknownTargetError: there is no target of this name.
        TargetNotInstalledError: its library is not installed, or this version of snngraph has no back end for it.
        BackendError: its library is installed but can not be imported.
        NameClashError: two packages offer a target of the same name.
    """
    outside = _outside()
    if name in outside:
        return _load(outside[name])
    if name not in _BUILTIN:
        known = [*_BUILTIN, *sorted(outside)]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownTargetError(f"there is no target {name!r}.{hint} Known targets: {', '.join(known)}")
    builtin, info = _BUILTIN[name], _builtin_info(name)
    if builtin.home is None or not info.available:
        advice = f"; install it with: {info.install}" if info.install else ""
        raise TargetNotInstalledError(f"target {name!r} can not be used: {info.missing}{advice}")
    module, attribute = builtin.home
    try:
        backend: type[Backend] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise BackendError(
            f"target {name!r}: {builtin.library} {info.version} is installed but can not be imported: {error}"
        ) from error
    return backend


def _builtin_info(name: str) -> TargetInfo:
    builtin = _BUILTIN[name]
    if builtin.home is None:
        return TargetInfo(name, False, None, builtin.device, "not available in this version of snngraph", None)
    if not _is_installed(builtin.library):
        return TargetInfo(name, False, None, builtin.device, f"{builtin.library} is not installed", builtin.install)
    return TargetInfo(name, True, _version(builtin.distributions), builtin.device, None, None)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # ValueError: an entry of sys.modules without a spec
        return False


def _version(distributions: tuple[str, ...]) -> str | None:
    for distribution in distributions:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


# -- outside packages ----------------------------------------------------------------------------------------------------------


def _outside() -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=_GROUP):
        other = found.get(entry.name)
        if entry.name in _BUILTIN:
            raise NameClashError(
                f"target {entry.name!r} is offered by snngraph itself and by {_distribution(entry)!r}; "
                "uninstall the latter, or rename its target"
            )
        # The same package may be found twice, where two folders of the path lead to it.
        if other is not None and (_distribution(other), other.value) != (_distribution(entry), entry.value):
            raise NameClashError(
                f"target {entry.name!r} is offered by {_distribution(other)!r} and by {_distribution(entry)!r}; "
                "uninstall one of them"
            )
        found[entry.name] = entry
    return found


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist is not None else entry.value


def _load(entry: EntryPoint) -> type[Backend]:
    from snngraph.runtime.backend import Backend

    try:
        loaded = entry.load()
    except Exception as error:
        raise BackendError(f"target {entry.name!r} of package {_distribution(entry)!r} could not be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Backend)):
        raise TargetError(
            f"target {entry.name!r} of package {_distribution(entry)!r} has to be a subclass of "
            f"snngraph.runtime.backend.Backend, but {entry.value} is {loaded!r}"
        )
    return loaded


def _outside_info(entry: EntryPoint) -> TargetInfo:
    found = entry.dist.version if entry.dist is not None else None
    try:
        backend = _load(entry)
    except TargetError as error:
        return TargetInfo(entry.name, False, found, "", str(error), None)
    return TargetInfo(entry.name, True, found, ",".join(backend.devices), None, None)
