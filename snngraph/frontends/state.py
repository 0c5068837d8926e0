"""The state of a model between calls: kept, compared, and put back.

A foreign neuron may keep its membrane potential in an attribute, a buffer, a list or a dictionary of its module, and so may any
other part of a model. A snapshot holds all of these, so that every run of a capture starts from the same state and the model is
found afterwards as it was, whoever wrote its neurons.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from snngraph.frontends import adapters

__all__ = ["Snapshot", "fresh_state", "reset_state", "tensors_in", "unchanged"]

# What PyTorch keeps for itself, and the functions that a capture puts there: not the model's state.
_PLUMBING = frozenset(("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"))
_REPLACED = frozenset(("forward", "reset"))  # as functions: a library may keep a tensor by such a name


class Snapshot:
    """Attributes, buffers and parameters of all modules of a model, at one moment."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = [(path, module, _copy(_attributes(module))) for path, module in model.named_modules()]
        # Values, too: a state may be written in place.
        self._values = {id(t): (t, t.detach().clone()) for _, _, kept in self._kept for t in tensors_in(kept)}

    def restore(self) -> None:
        """Puts everything back, in place where a tensor was written in place."""
        with torch.no_grad(), _disable_current_modes():  # on real numbers, in the middle of a run on fake ones too
            for tensor, value in self._values.values():
                if not _same_tensor(tensor, value):
                    if tensor.shape == value.shape:
                        tensor.copy_(value)  # in place: a captured graph shares the model's tensors
                    else:
                        tensor.data = value.clone()
        for _, module, kept in self._kept:
            plumbing = {k: v for k, v in module.__dict__.items() if _is_plumbing(k, v)}
            module.__dict__.clear()
            module.__dict__.update(_copy(kept["attributes"]) | plumbing)
            for store, before in ((module._parameters, kept["parameters"]), (module._buffers, kept["buffers"])):
                store.clear()
                store.update(before)

    def changed(self) -> dict[str, Any]:
        """What differs now: ``path.attribute`` and the value it had (``None`` for what was not there)."""
        found: dict[str, Any] = {}
        for path, module, kept in self._kept:
            before = _flat(kept)
            for name, value in _flat(_attributes(module)).items():
                if not self._same(before.get(name), value):
                    found[f"{path}.{name}" if path else name] = self._before(before.get(name))
        return found

    def _before(self, value: Any) -> Any:
        return self._values[id(value)][1] if isinstance(value, Tensor) and id(value) in self._values else value

    def _same(self, before: Any, now: Any) -> bool:
        if isinstance(now, Tensor):
            return isinstance(before, Tensor) and _same_tensor(self._before(before), now)
        if isinstance(now, list | tuple):
            pairs = isinstance(before, list | tuple) and len(before) == len(now)
            return pairs and all(self._same(a, b) for a, b in zip(before, now, strict=True))
        if isinstance(now, dict):
            pairs = isinstance(before, dict) and before.keys() == now.keys()
            return pairs and all(self._same(before[k], v) for k, v in now.items())
        if isinstance(now, int | float | str | bool | None):
            return type(before) is type(now) and before == now
        return True  # functions, modules, configuration objects: no state that a graph could carry


def _attributes(module: nn.Module) -> dict[str, dict[str, Any]]:
    own = {k: v for k, v in module.__dict__.items() if not _is_plumbing(k, v)}
    return {"attributes": own, "parameters": dict(module._parameters), "buffers": dict(module._buffers)}


def _is_plumbing(name: str, value: Any) -> bool:
    return name in _PLUMBING or (name in _REPLACED and callable(value))


def _flat(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {k: v for store in kept.values() for k, v in store.items()}


def _copy(value: Any) -> Any:
    """Containers anew, so that appending to one does not reach the snapshot; tensors and everything else as they are."""
    if type(value) is list:
        return [_copy(v) for v in value]
    if type(value) is dict:
        return {k: _copy(v) for k, v in value.items()}
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in a value, or in the lists, tuples and dictionaries that it is made of."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_in(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from tensors_in(v)


def _same_tensor(a: Tensor, b: Tensor) -> bool:
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        return False
    return a.device.type == "meta" or torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[Snapshot]:
    """Puts the model back afterwards, whatever ran within: what runs on fake tensors must not leave any behind."""
    snapshot = Snapshot(model)
    try:
        yield snapshot
    finally:
        snapshot.restore()


def reset_state(model: nn.Module) -> None:
    """Resets every neuron that an adapter knows."""
    adapters.reset_neurons(model)


@contextlib.contextmanager
def fresh_state(model: nn.Module) -> Iterator[bool]:
    """Within it the known neurons are reset; afterwards the model has its state again. Yields whether they had one."""
    with unchanged(model) as before:
        reset_state(model)
        yield any(_holds_something(v) for v in before.changed().values())


def _holds_something(value: Any) -> bool:
    """Zeros are what a library's own reset leaves, of the shape of the last call."""
    return any(bool(tensor.any()) for tensor in tensors_in(value))
