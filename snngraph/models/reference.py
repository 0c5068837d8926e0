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

from torch import Tensor, nn

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
            under ``net``, ``net_parameters``, ``model`` or ``state_dict``; with or without DataParallel's ``module.`` before
            every key. ``num_batches_tracked`` is ignored, nothing else.

    Raises:
        CheckpointError: the model has no published counterpart, or keys are missing, unknown, or of another shape; all are named.
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
            value = stored.convert(tensor)
            loaded[stored.to] = value
            if value.shape != ours[stored.to].shape:
                problems.append(
                    f"{key}: shape {list(value.shape)}, where {stored.to} of this model has {list(ours[stored.to].shape)}"
                )
    problems += [f"{key}: no tensor in the checkpoint" for key in ours if key not in loaded]
    if problems:
        listed = "\n".join(f"  {p}" for p in problems)
        raise CheckpointError(
            f"the checkpoint does not fit {type(model).__name__} (built with other sizes, classes or options?):\n{listed}"
        )
    model.load_state_dict(loaded, strict=False)


def _unwrapped(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    found: Any = state_dict
    while isinstance(found, Mapping) and not any(isinstance(v, Tensor) for v in found.values()):
        inside = [found[k] for k in _WRAPPERS if isinstance(found.get(k), Mapping)]
        if len(inside) != 1:
            names = ", ".join(map(str, found)) or "nothing"
            raise CheckpointError(
                f"expected a state dict, or one under {', '.join(map(repr, _WRAPPERS))}; found {names} in the checkpoint"
            )
        found = inside[0]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"expected a mapping of names to tensors, got {type(found).__name__}")
    if other := [str(k) for k, v in found.items() if not isinstance(v, Tensor)]:
        raise CheckpointError(f"expected tensors, but the checkpoint holds something else under {', '.join(other)}")
    parallel = all(k.startswith("module.") for k in found)
    return {k.removeprefix("module.") if parallel else k: t for k, t in found.items()}


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
