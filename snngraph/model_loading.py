"""Models named in text, ``package.module:factory`` or ``file.py:factory``, and their weights from files.

Importing a model's module runs its code, as any import does. Weights are only read: ``torch.load(weights_only=True)`` always, or
safetensors.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pickle
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from snngraph.errors import ModelLoadError
from snngraph.frontends.spikingjelly import without_gpu_backends

__all__ = ["LoadedModel", "load_model", "load_weights", "parse_arguments", "read_weights"]

DEMO = "demo"
"""The name of the demo's trained net, to be used like any other."""
_DEMO_SPEC = "snngraph.demo.model:trained"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 8
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, and what was done to it, in sentences for people."""

    model: nn.Module
    notes: tuple[str, ...] = ()


def load_model(
    spec: str,
    *,
    arguments: Mapping[str, Any] | None = None,
    weights: Path | None = None,
    evaluation: bool | None = None,
) -> LoadedModel:
    """Imports a model and loads its weights.

    Args:
        spec: ``package.module:name`` or ``path/to/file.py:name``, ``name`` being an ``nn.Module`` or a callable that returns one
            (dots reach inside); or ``"demo"``. Modules are found from the current folder too, and a file's from its own folder.
        arguments: what a callable is called with. It is called under PyTorch's random seed 0, so that an untrained net is the
            same net every time.
        weights: a file for :func:`load_weights`.
        evaluation: whether to call ``model.eval()``; ``None``: for what a callable returned, and not for a module that was found.

    Raises:
        ModelLoadError: says what is wrong with the name, the module, the call or the weights.
    """
    notes = []
    with without_gpu_backends():  # a model's neurons may ask for CuPy in a module or in a factory
        found = _find(_DEMO_SPEC if spec == DEMO else spec)
        if isinstance(found, nn.Module):
            if arguments:
                raise ModelLoadError(f"{spec} is a module, not a factory: it takes no arguments, got {', '.join(arguments)}")
            model, evaluation = found, bool(evaluation)
        else:
            model, evaluation = _call(found, spec, arguments or {}), evaluation is not False
    if weights is not None:
        load_weights(model, weights)
        notes.append(f"weights from {weights}")
    elif spec != DEMO:
        notes.append("no weights file: the weights that the factory gives")
    if evaluation:
        model.eval()
        notes.append("in evaluation mode (eval())")
    return LoadedModel(model, tuple(notes))


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """``["channels=(8, 16)", "name=small"]`` as keyword arguments: Python literals, and text where a value is none.

    Raises:
        ModelLoadError: a pair is not ``key=value``, or a key comes twice.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise ModelLoadError(f"model argument {pair!r}: expected key=value, for example channels=16")
        if key in found:
            raise ModelLoadError(f"model argument {key!r} is given twice")
        try:
            found[key] = _WORDS[text] if text in _WORDS else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[key] = text
    return found


# -- the model -----------------------------------------------------------------------------------------------------------------


def _find(spec: str) -> Any:
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise ModelLoadError(f"{spec!r} names no model: expected package.module:factory or file.py:factory")
    module = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ModelLoadError(f"{place} has no {name!r}; it has: {', '.join(_offers(module)) or 'no callables'}")
        found = getattr(found, part)
    if not callable(found):
        raise ModelLoadError(f"{spec} is a {type(found).__name__}: expected an nn.Module or a callable that returns one")
    return found


def _offers(module: ModuleType) -> list[str]:
    """The callables a module defines itself."""
    own = (
        name for name, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__
    )
    return sorted(name for name in own if not name.startswith("_"))


def _import_module(name: str) -> ModuleType:
    _on_path(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ModelLoadError(f"there is no module {error.name!r}, installed or in {Path.cwd()}") from error
        raise ModelLoadError(_failed(f"importing {name}", error)) from error
    except (Exception, SystemExit) as error:
        raise ModelLoadError(_failed(f"importing {name}", error)) from error


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelLoadError(f"there is no file {str(path)!r}")
    path = path.resolve()
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    name = path.stem if known is None and path.stem.isidentifier() else f"snngraph_model_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _on_path(path.parent)
    sys.modules[name] = module  # before it runs: dataclasses and pickles look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise ModelLoadError(_failed(f"importing {path}", error)) from error
    return module


def _on_path(folder: Path) -> None:
    """Puts a folder first on the path for good, as Python does for a script: a model may import its neighbours late."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _call(factory: Any, spec: str, arguments: Mapping[str, Any]) -> nn.Module:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in callables have none
        signature = None
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise ModelLoadError(
                f"{spec}{signature} can not be called with {_shown(arguments)}: {error}; see --model-arg"
            ) from None
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = factory(**arguments)
    except (Exception, SystemExit) as error:
        raise ModelLoadError(_failed(f"calling {spec}", error)) from error
    if not isinstance(model, nn.Module):
        raise ModelLoadError(f"{spec} returned a {type(model).__name__}: expected an nn.Module")
    return model


def _shown(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "no arguments"


def _failed(what: str, error: BaseException) -> str:
    """The error, and the last line outside the import machinery it comes from."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    frames = [frame for frame in frames if frame.filename != __file__]
    place = f" (at {frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return f"{what} failed with {type(error).__name__}: {error}{place}"


# -- weights -------------------------------------------------------------------------------------------------------------------


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a file's weights into a model: every tensor of the model, and nothing else.

    A state dictionary may lie in another one under ``state_dict``, ``model_state_dict``, ``model`` or ``net``, and all its names
    may begin with ``module.`` (``DataParallel``) or ``_orig_mod.`` (``torch.compile``).

    Raises:
        ModelLoadError: the file can not be read, or its names or shapes are not the model's.
    """
    wanted = model.state_dict()
    state = _without_prefix(read_weights(path), wanted)
    missing, unexpected = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    mismatched = [
        f"{name} {list(state[name].shape)} (model: {list(value.shape)})"
        for name, value in wanted.items()
        if name in state and isinstance(value, Tensor) and state[name].shape != value.shape
    ]
    problems = [
        f"{title}: {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for title, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched))
        if names
    ]
    if problems:
        raise ModelLoadError(f"the weights in {path} are not those of {type(model).__name__}. " + "; ".join(problems))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelLoadError(f"the weights in {path} do not fit {type(model).__name__}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a file of ``torch.save``; nothing in it is run.

    Raises:
        ModelLoadError: there is no such file, it is damaged, or it holds something else than tensors by name.
    """
    if not path.is_file():
        raise ModelLoadError(f"there is no weights file {str(path)!r}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelLoadError(
            f"{path} is no file of weights alone: it holds Python objects, which are never loaded, or it is damaged. Save the "
            "weights with torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # damaged files raise anything
        raise ModelLoadError(f"{path} can not be read as weights: {type(error).__name__}: {error}") from error
    return _tensors(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelLoadError(
            f'{path}: reading it needs safetensors, which is not installed: pip install "snngraph[compile]"'
        ) from error
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelLoadError(f"{path} can not be read as safetensors: {error}") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for _ in range(3):
        inner = (
            next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
            if _is_dict(content)
            else None
        )
        if inner is None:
            break
        content = inner
    if not _is_dict(content):
        raise ModelLoadError(f"{path} holds a {type(content).__name__}: expected a state dictionary, tensors by name")
    others = [f"{key} ({type(value).__name__})" for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not all(isinstance(key, str) for key in content):
        raise ModelLoadError(
            f"{path} holds other things than tensors by name: {', '.join(others[:_SHOWN])}. A state dictionary is looked for at "
            f"the top and under {', '.join(_WRAPPERS)}"
        )
    return dict(content)


def _is_dict(content: Any) -> bool:
    return isinstance(content, Mapping)


def _without_prefix(state: dict[str, Tensor], wanted: Mapping[str, Any]) -> dict[str, Tensor]:
    for _ in _PREFIXES:  # DataParallel may hold a compiled model, or a compiled model DataParallel
        for prefix in _PREFIXES:
            if all(name.startswith(prefix) for name in state) and not all(name in wanted for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
