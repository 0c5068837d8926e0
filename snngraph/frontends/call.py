"""How a model is called during capture: once with the whole sequence, or once per time step; its results become a flat list."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snngraph.errors import CaptureError, TimeAxisError

__all__ = ["Call", "outputs_of"]

REDUCTIONS = (None, "mean", "sum", "last")
# The argument in which a one-step model takes the state that it returned, and None at the first step: Norse's convention.
_STATE = "state"


class Call(nn.Module):
    """Calls ``inner`` and returns a tuple of tensors, whatever structure the model returns.

    Args:
        model: the model.
        inputs: the example.
        steps: the model takes one step: it is called so often, from the reset state. ``None``: it takes everything at once.
        time_dim: with ``steps``, the example's time axis, or ``None``: every step takes the whole example. Unused without.
        reduction: with ``steps``, what becomes of the T results: ``None`` stacks them, ``"mean"``, ``"sum"``, ``"last"``.

    A one-step model with an optional argument ``state`` that returns ``(output, state)`` is given the state that it returned at
    the step before (Norse's ``SequentialState`` and cells); the state itself is no output.

    Raises:
        TimeAxisError: the example does not have ``steps`` steps.
        CaptureError: no such reduction.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        *,
        steps: int | None = None,
        time_dim: int | str | None = None,
        reduction: str | None = None,
    ) -> None:
        super().__init__()
        if isinstance(time_dim, str):
            time_dim = None  # "auto": only a model that takes the whole sequence leaves it open
        if steps is not None:
            _check_steps(inputs, steps, time_dim)
        elif reduction is not None:
            raise CaptureError("time_reduction belongs to a model that is called step by step: give time_steps too")
        if reduction not in REDUCTIONS:
            raise CaptureError(f"time_reduction={reduction!r}: expected None, 'mean', 'sum' or 'last'")
        self.inner = model
        self.steps, self.time_dim, self.reduction = steps, time_dim, reduction
        self.names: tuple[str, ...] = ()
        self.carries = steps is not None and _takes_state(model, len(inputs))
        self.training = False

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The model's results as a flat tuple; :attr:`names` are then what its structure calls them."""
        if self.steps is None:
            return self._flat(self.inner(*inputs))
        state, results = None, []
        for t in range(self.steps):
            frames = [x if self.time_dim is None else x.select(self.time_dim, t) for x in inputs]
            if self.carries:
                result, state = self._with_state(self.inner(*frames) if t == 0 else self.inner(*frames, **{_STATE: state}))
            else:
                result = self.inner(*frames)
            results.append(self._flat(result))
        return tuple(self._over_time(list(column)) for column in zip(*results, strict=True))

    def _with_state(self, result: Any) -> tuple[Any, Any]:
        if isinstance(result, tuple) and len(result) == 2:
            return result
        self.carries = False
        return result, None

    def _over_time(self, values: list[Tensor]) -> Tensor:
        if self.reduction == "last":
            return values[-1]
        stacked = torch.stack(values)
        if self.reduction == "mean":
            return stacked.mean(0)
        return stacked.sum(0) if self.reduction == "sum" else stacked

    def _flat(self, result: Any) -> tuple[Tensor, ...]:
        paths, _ = pytree.tree_flatten_with_path(result)
        kept = [(path, value) for path, value in paths if value is not None]
        for path, value in kept:
            if not isinstance(value, Tensor):
                where = f"output{pytree.keystr(path)}"
                what = f"{where} of the model is a {type(value).__name__}"
                raise CaptureError(f"{what}: expected tensors, wrap the model to return tensors only")
        if not kept:
            raise CaptureError("the model returns no tensor")
        self.names = tuple(_name(pytree.keystr(path)) for path, _ in kept)
        return tuple(value for _, value in kept)


def _check_steps(inputs: Sequence[Tensor], steps: int, time_dim: int | None) -> None:
    if steps < 1:
        raise TimeAxisError(f"time_steps={steps}: expected at least 1")
    for k, x in enumerate(inputs):
        if time_dim is not None and (x.dim() <= time_dim or x.shape[time_dim] != steps):
            raise TimeAxisError(
                f"time_steps={steps}, but axis {time_dim} of example input {k} with shape {list(x.shape)} does not have "
                f"{steps} entries; for an input without time axis give time_dim=None"
            )


def _takes_state(model: nn.Module, inputs: int) -> bool:
    """Whether ``forward`` has an optional argument for the state beside those that the example fills."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if len(parameters) == 1 and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL:
        return False
    return any(p.name == _STATE and p.default is None for p in parameters[inputs:])


def _name(path: str) -> str:
    """``['logits']`` and ``.spikes[0]`` as ``logits`` and ``spikes_0``; empty for a position alone, which gets a default name."""
    words = re.findall(r"\w+", path)
    return "_".join(words) if any(not word.isdigit() for word in words) else ""


def outputs_of(result: Any) -> list[Tensor]:
    """The tensors of a model's or graph's result, in order, out of tuples, lists and dictionaries.

    Raises:
        CaptureError: something else is among them.
    """
    values = [value for value in pytree.tree_leaves(result) if value is not None]
    for k, value in enumerate(values):
        if not isinstance(value, Tensor):
            hint = "expected tensors; wrap the model to return tensors only"
            raise CaptureError(f"output {k} of the model is a {type(value).__name__}: {hint}")
    return values
