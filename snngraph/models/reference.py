"""Loads what the authors' own training code saved.

Every net of :mod:`snngraph.models` that the authors of its paper published carries ``reference_keys``: where their tensors go. An
entry maps a path of theirs, a module's or a tensor's, to one of ours; what lies under a module keeps the rest of its path. The
longest entry that fits decides. Where only the shapes of a checkpoint tell what is what, ``reference_keys`` is a function that
gets the checkpoint's tensors and returns the entries. Each family's module documents its mapping.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snngraph.errors import CheckpointError

__all__ = ["ReferenceKeys", "ReferenceKeysOf", "Stored", "load_reference_state_dict"]

_WRAPPERS = ("net", "net_parameters", "model", "state_dict")
_IGNORED = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that is not kept as the authors store it.

    Args:
        to: our key.
        convert: makes our tensor of theirs.
    """

    to: str
    convert: Callable[[Tensor], Tensor]


ReferenceKeys: TypeAlias = Mapping[str, "str | Stored"]
"""The authors' module or tensor path -> ours."""
ReferenceKeysOf: TypeAlias = Callable[[Mapping[str, Tensor]], ReferenceKeys]
"""The keys for one checkpoint, given its tensors."""


def load_reference_state_dict(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Loads a checkpoint of the authors' training code into ``model``, whose weights are untouched when it does not fit.

    Args:
        model: a net of :mod:`snngraph.models`.
        state_dict: what the authors saved (read it with ``torch.load(path, weights_only=True)``): the state dict itself, or one
            under one of ``net``, ``net_parameters``, ``model`` and ``state_dict``, whatever stands beside it; with or without
            DataParallel's ``module.`` before every key. ``num_batches_tracked`` is ignored, nothing else. Floating-point tensors
            of another precision are cast to the model's.

    Raises:
        CheckpointError: the model has no published counterpart; it is no state dict of dense tensors; or keys are missing,
            unknown, of another shape, or no floating-point numbers; all are named.
    """
    found: ReferenceKeys | ReferenceKeysOf | None = getattr(model, "reference_keys", None)
    if not found:
        raise CheckpointError(f"{type(model).__name__} has no counterpart in its authors' code: load its own state_dict instead")
    given = _unwrapped(state_dict)
    keys = found(given) if callable(found) else found
    ours = {k: t for k, t in model.state_dict().items() if not k.endswith(_IGNORED)}
    loaded: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, tensor in given.items():
        if key.endswith(_IGNORED):
            continue
        stored = _home_of(key, keys)
        if stored is None or stored.to not in ours:
            problems.append(f"{key}: unknown key{f' (there is no {stored.to} in this model)' if stored else ''}")
        elif stored.to in loaded:
            problems.append(f"{key}: a second tensor for {stored.to}")
        else:
            value, wanted = stored.convert(tensor), ours[stored.to]
            if value.shape != wanted.shape:
                problems.append(f"{key}: shape {list(value.shape)}, where {stored.to} of this model has {list(wanted.shape)}")
            elif tensor.dtype != wanted.dtype and not (tensor.is_floating_point() and wanted.is_floating_point()):
                problems.append(f"{key}: {tensor.dtype}, where {stored.to} of this model has {wanted.dtype}")
            else:
                value = value.to(wanted.device, wanted.dtype)  # here, so that nothing can fail while the model is filled
            loaded[stored.to] = value
    problems += [f"{key}: no tensor in the checkpoint" for key in ours if key not in loaded]
    if problems:
        listed = "\n".join(f"  {p}" for p in problems)
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__} (built with other sizes, classes or options?):\n{listed}"
        )
    model.load_state_dict(loaded, strict=False)


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    found: Any = state_dict
    if not isinstance(found, Mapping):
        raise CheckpointError(f"expected a mapping of names to tensors, got {type(found).__name__}")
    while inside := [found[k] for k in _WRAPPERS if _holds_tensors(found.get(k))]:
        if len(inside) > 1:
            break
        found = inside[0]
    if inside or not _holds_tensors(found):
        names = ", ".join(map(str, found)) or "nothing"
        raise CheckpointError(
            f"expected a state dict, or one under one of {', '.join(map(repr, _WRAPPERS))}; found {names} in the checkpoint"
        )
    if other := [str(k) for k, v in found.items() if not isinstance(v, Tensor)]:
        raise CheckpointError(f"expected tensors, but the checkpoint holds something else under {', '.join(other)}")
    if other := [repr(k) for k in found if not isinstance(k, str)]:
        raise CheckpointError(f"expected names of tensors, but the checkpoint has the keys {', '.join(other)}")
    given: dict[str, Tensor] = dict(found)
    while all(k.startswith("module.") for k in given):
        given = {k.removeprefix("module."): t for k, t in given.items()}
    if other := [f"{k} ({what})" for k, t in given.items() if not k.endswith(_IGNORED) and (what := _no_dense_values(t))]:
        raise CheckpointError(f"expected dense tensors with values, but the checkpoint holds {', '.join(other)}")
    return given


def _holds_tensors(found: object) -> bool:
    """Whether it is a mapping with tensors, or with such a mapping under a wrapper's name."""
    if not isinstance(found, Mapping):
        return False
    return any(isinstance(v, Tensor) for v in found.values()) or any(_holds_tensors(found.get(k)) for k in _WRAPPERS)


def _no_dense_values(tensor: Tensor) -> str | None:
    """What a tensor is whose values can not be read one by one."""
    if is_lazy(tensor):
        return "uninitialized"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    return "meta" if tensor.is_meta else None


def _home_of(key: str, keys: ReferenceKeys) -> Stored | None:
    path = key
    while True:
        if path in keys:
            home = keys[path]
            if isinstance(home, Stored):
                return home if path == key else None
            return Stored(home + key[len(path) :], lambda t: t)
        if "." not in path:
            return None
        path = path.rpartition(".")[0]
