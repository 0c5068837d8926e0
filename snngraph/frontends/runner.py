"""Runs a model as its user would, again and again from one state, and sees what a run leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from snngraph.errors import CaptureError, ForwardFailedError, KeptStateWarning, ParameterChangedWarning, WarmStateError
from snngraph.frontends import adapters, state
from snngraph.frontends.batch_axis import equal_tensors
from snngraph.frontends.call import Call
from snngraph.frontends.source import where_raised

__all__ = ["Runner", "few", "what_it_leaves"]


class Runner:
    """Runs the model as its user would, every time from the state in which it was given."""

    def __init__(self, model: Call, reset: Callable[[], object] | None) -> None:
        self.model, self.user_reset = model, reset
        self.output_names: tuple[str, ...] = ()
        if reset is not None:
            reset()
        self.ready = state.Snapshot(model)

    def reset(self) -> None:
        """Puts the state back in which the model was given, and resets what the user resets."""
        self.ready.restore()
        if self.user_reset is not None:
            with _disable_current_modes():  # nobody watches it, and its state may be of other classes than plain tensors
                self.user_reset()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs, from the reset state and back to it."""
        try:
            return self.run(inputs)
        finally:
            self.reset()

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs from the reset state; what the run leaves in the model stays."""
        self.reset()
        return self.run_on(inputs)

    def run_on(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs from whatever state the model is in."""
        try:
            outputs = list(self.model(*(x.clone() for x in inputs)))
            self.output_names = self.model.names
            return outputs
        except Exception as error:
            if isinstance(error, CaptureError):
                raise
            shapes = ", ".join(str(list(x.shape)) for x in inputs)
            what = f"raised {type(error).__name__} on an input of shape {shapes}: {error}"
            raise ForwardFailedError(f"the model's forward {what}\n  {where_raised(error)}") from error


def what_it_leaves(
    runner: Runner, inputs: Sequence[Tensor], expected: Sequence[Tensor], neurons: Sequence[adapters.Found]
) -> list[tuple[type[Warning], str]]:
    """What a run has just left in the model, that the next one would find: notes, as warnings. The model is reset then.

    Raises:
        WarmStateError: it begins with what an earlier call left.
    """
    notes: list[tuple[type[Warning], str]] = []
    left = runner.ready.changed()
    parameters = {name for name, _ in runner.model.named_parameters()}
    if changed := [_own_name(name) for name in left if name in parameters]:
        text = f"forward rewrites {few(changed)}: the graph is that of the first call, with the parameters as they are now"
        notes.append((ParameterChangedWarning, text))
    known = tuple(f"inner.{f.path}." if f.path else "inner." for f in neurons if f.known)
    unknown = {
        name: value
        for name, value in left.items()
        if name.startswith("inner.") and name not in parameters and not name.startswith(known)
    }
    again = expected
    if unknown:  # what it keeps may be for looking at only: does it matter?
        state.reset_state(runner.model)
        _disturb(runner, unknown)
        again = runner.run_on(inputs)
    if not all(equal_tensors(a, b) for a, b in zip(expected, again, strict=True)):
        if warm := [_own_name(name) for name, value in unknown.items() if runner.user_reset is None and not _looks_fresh(value)]:
            raise WarmStateError(
                f"the model carries state from an earlier call in {few(warm)}: the graph would begin with it. Reset the model "
                "first, or pass trace(..., reset=callable)"
            )
        if runner.model.steps is None:
            text = (
                f"the model keeps state from call to call in {few([_own_name(name) for name in unknown])}; every run of the "
                "graph starts from the reset state. If one call is one time step, give time_steps="
            )
            notes.append((KeptStateWarning, text))
    runner.reset()
    return notes


def _disturb(runner: Runner, names: Iterable[str]) -> None:
    """Adds noise to the tensors that stand under these names now."""
    generator = torch.Generator().manual_seed(0)
    for name in names:
        path, _, attribute = name.rpartition(".")
        for tensor in state.tensors_in(getattr(runner.model.get_submodule(path), attribute, None)):
            if tensor.is_floating_point():
                tensor.data = tensor + 10 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)


def _own_name(name: str) -> str:
    return name.removeprefix("inner.")


def _looks_fresh(value: Any) -> bool:
    """Whether a state may be what a model starts with: nothing, a number, or a tensor of one number."""
    if isinstance(value, Tensor):
        return value.numel() < 2 or bool((value == value.flatten()[0]).all())
    if isinstance(value, dict):
        return all(_looks_fresh(v) for v in value.values())
    return all(_looks_fresh(v) for v in value) if isinstance(value, list | tuple) else True


def few(names: Sequence[str]) -> str:
    """The first five of many names, for a message."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
