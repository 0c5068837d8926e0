"""Which axis of the input is time and which the batch, found by running the model and watching its neurons.

A neuron over a sequence sees ``[T, N, ...]``: its first axis is the number of steps. The batch is the input axis whose doubling
doubles the neurons' second axis and leaves their first alone. The other of the first two axes is time if it has ``T`` entries
and if the first neuron's input at step 0 does not depend on the last of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from snngraph.errors import ForwardFailedError, TimeAxisError
from snngraph.frontends import adapters, state
from snngraph.frontends.recording import exportable
from snngraph.frontends.runner import Runner
from snngraph.frontends.source import called_from
from snngraph.graph import LIF, LIF_STEP

__all__ = ["Axes", "infer_axes", "runs_longer"]

_AUTO = "auto"
_COMPARISONS = frozenset(
    getattr(getattr(torch.ops.aten, name), kind) for name in ("gt", "ge", "lt", "le") for kind in ("Tensor", "Scalar")
) | {torch.ops.aten.heaviside.default, torch.ops.aten.sign.default}


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of the inputs: number of steps, time axis and batch axis (one for all inputs), batch size of the example."""

    steps: int
    time_dim: int | None
    batch_dim: int | None
    batch: int | None

    def resized(self, inputs: Sequence[Tensor], batch: int) -> list[Tensor]:
        """The inputs at another batch size: samples left out, or repeated in turn."""
        if self.batch_dim is None:
            return list(inputs)
        return [x.index_select(self.batch_dim, torch.arange(batch) % x.shape[self.batch_dim]) for x in inputs]


class _Watcher(TorchDispatchMode):
    """Records the inputs of all neuron operators."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sequences: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.chains = 0
        # By the id of the membrane potential that a step left (kept alive, so its id stays its own): its steps so far, its chain.
        self.chain: dict[int, tuple[Tensor | None, int, int]] = {}
        self.first_chain: list[Tensor] = []
        self.operators = 0
        self.comparisons: Counter[tuple[str, ...]] = Counter()  # by where in the model's code they stand
        self.result: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators += 1
        if func in _COMPARISONS:
            self.comparisons[called_from()] += 1
        if func is LIF:
            self.sequences.append(args[0])
        elif func is LIF_STEP:
            _, before, chain = self.chain.pop(id(args[1]), (None, 0, self.chains))
            self.chains += before == 0
            self.chain[id(result[1])] = (result[1], before + 1, chain)
            self.steps.append(args[0])
            if chain == 0:
                self.first_chain.append(args[0])
        return result

    @property
    def repeated_comparisons(self) -> int | None:
        """How often most comparisons of the model's code run, if more than once: the steps that it makes of a static input."""
        often = Counter(count for count in self.comparisons.values() if count > 1)
        return often.most_common(1)[0][0] if often else None

    @property
    def first(self) -> Tensor | None:
        """What the first neuron sees over time, ``[T, N, ...]``."""
        if self.sequences:
            return self.sequences[0]
        return torch.stack(self.first_chain) if self.first_chain else None


def _watch(runner: Runner, inputs: Sequence[Tensor]) -> _Watcher | None:
    """What the neurons see on ``inputs``; ``None`` when the model does not take them."""
    watcher = _Watcher()
    try:
        with adapters.adapted(runner.model), watcher:  # foreign neurons are seen as their adapter's operators
            watcher.result = runner(inputs)
    except ForwardFailedError:
        return None
    return watcher


class _Shapes:
    """Watches the shapes alone, without computing, where the model allows it; a network can take seconds for one real run."""

    def __init__(self, runner: Runner, inputs: Sequence[Tensor]) -> None:
        self.runner = runner
        self.fake = True
        watcher = self.watch(inputs)
        if watcher is None:
            self.fake = False  # it branches on data, or calls something that knows no fake tensors
            watcher = _watch(runner, inputs)
        assert watcher is not None
        self.example = watcher

    def watch(self, inputs: Sequence[Tensor]) -> _Watcher | None:
        if not self.fake:
            return _watch(self.runner, inputs)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        # as under torch.export: a model that looks at its numbers in eager mode may leave that out where there are none
        exporting = mock.patch.object(torch.compiler, "_is_compiling_flag", True, create=True)
        with state.unchanged(self.runner.model), exporting, exportable(), mode:  # no fake tensor gets into the model's own
            return _watch(self.runner, [mode.from_tensor(x) for x in inputs])


def infer_axes(
    runner: Runner,
    inputs: Sequence[Tensor],
    *,
    time_dim: int | str | None,
    batch_dim: int | None,
    time_steps: int | None,
) -> Axes:
    """Finds the axes; what is given is checked, not inferred.

    Args:
        runner: runs the model from its reset state.
        inputs: the example.
        time_dim: the time axis, ``None`` for a static input, ``"auto"`` to infer it.
        batch_dim: the batch axis, ``None`` to infer it.
        time_steps: the number of steps of a model that is called step by step.

    Raises:
        TimeAxisError: no neuron was seen, neurons disagree on the number of steps, or the axes can not be told apart.
    """
    shapes = _Shapes(runner, inputs)
    watcher = shapes.example
    if watcher.first is None:
        return _by_counting(shapes, inputs, time_dim, batch_dim, time_steps)
    steps = _steps(watcher, inputs, time_dim, time_steps)
    for k, x in enumerate(inputs):
        if isinstance(time_dim, int) and (x.dim() <= time_dim or x.shape[time_dim] != steps):
            shape = list(x.shape)
            raise TimeAxisError(
                f"time_dim={time_dim}, but the neurons run over {steps} steps and example input {k} has shape {shape}"
            )
    if batch_dim is None:
        candidates = [a for a in (0, 1) if a != time_dim and all(x.dim() > a for x in inputs)]
        batch_dim = next((a for a in candidates if _is_batch(shapes, inputs, a)), None)
        if batch_dim is None and isinstance(time_dim, int):
            batch_dim = _by_size(watcher, inputs, candidates)
    if time_dim == _AUTO:
        time_dim = _time_dim(runner, inputs, steps, batch_dim)
    assert not isinstance(time_dim, str)
    batch = None if batch_dim is None else inputs[0].shape[batch_dim]
    return Axes(steps, time_dim, batch_dim, batch)


def _steps(watcher: _Watcher, inputs: Sequence[Tensor], time_dim: int | str | None, time_steps: int | None) -> int:
    if time_steps is not None:
        return time_steps
    lengths = {x.shape[0] for x in watcher.sequences} or {length for _, length, _ in watcher.chain.values()}
    if lengths == {1} and not watcher.sequences and time_dim == _AUTO:
        raise TimeAxisError(
            "the neurons are in step mode and ran for one step: the model takes one step at a time; give time_steps="
        )
    if len(lengths) > 1:
        raise TimeAxisError(f"the model's neurons run over different numbers of steps: {sorted(lengths)}")
    return lengths.pop()


def _by_counting(
    shapes: _Shapes, inputs: Sequence[Tensor], time_dim: int | str | None, batch_dim: int | None, time_steps: int | None
) -> Axes:
    """The axes of a model without a known neuron, by how many operators it runs.

    Twice as many steps make more of them, a loop being written out; twice the batch makes as many, and a larger result.
    """
    axes = range(min(x.dim() for x in inputs))
    # Twice and four times as large: a model may treat the size of its last use, the example's, otherwise than others.
    runs = {a: pair for a in axes if a not in (time_dim, batch_dim) and (pair := _larger(shapes, inputs, a)) is not None}
    longer = [a for a, (few, many) in runs.items() if many.operators > few.operators]
    repeated = shapes.example.repeated_comparisons
    if time_dim == _AUTO:
        if len(longer) > 1 or not (longer or repeated):
            shown = ", ".join(str(list(x.shape)) for x in inputs)
            none = "no axis makes the model run more operators when it is longer"
            found = f"axes {longer} each look like it" if longer else none
            raise TimeAxisError(
                f"no spiking neuron that snngraph knows was seen, and {found}: which axis of the example {shown} is time can not "
                "be told; give time_dim=, or, if one call is one step, time_steps="
            )
        time_dim = longer[0] if longer else None
    assert not isinstance(time_dim, str)
    steps = time_steps or (repeated or 1 if time_dim is None else inputs[0].shape[time_dim])
    if batch_dim is None:
        candidates = [a for a, pair in runs.items() if a != time_dim and _grows(*pair)]
        batch_dim = min(candidates, default=None)
    return Axes(steps, time_dim, batch_dim, None if batch_dim is None else inputs[0].shape[batch_dim])


def runs_longer(runner: Runner, inputs: Sequence[Tensor], axis: int) -> bool:
    """Whether the model runs more operators when ``axis`` of its input has two more entries."""
    shapes = _Shapes(runner, inputs)
    last = [x.narrow(axis, x.shape[axis] - 1, 1) for x in inputs]
    after = shapes.watch([torch.cat([x, y, y], axis) for x, y in zip(inputs, last, strict=True)])
    return after is not None and after.operators > shapes.example.operators


def _larger(shapes: _Shapes, inputs: Sequence[Tensor], axis: int) -> tuple[_Watcher, _Watcher] | None:
    """What is seen when the example is twice and four times as large; ``None`` if the model does not take it."""
    few, many = (shapes.watch([torch.cat([x] * times, axis) for x in inputs]) for times in (2, 4))
    return None if few is None or many is None else (few, many)


def _grows(few: _Watcher, many: _Watcher) -> bool:
    """Whether as many operators gave results that are twice as large in one dimension each."""

    def twice(a: Tensor, b: Tensor) -> bool:
        differing = [(m, n) for m, n in zip(a.shape, b.shape, strict=True) if m != n] if a.dim() == b.dim() else []
        return len(differing) == 1 and differing[0][1] == 2 * differing[0][0]

    return many.operators == few.operators and all(map(twice, few.result, many.result))


def _neuron_batch(watcher: _Watcher) -> tuple[int, int, int]:
    """Number of neuron calls, steps and batch size of the first neuron."""
    calls = len(watcher.sequences) + len(watcher.steps)
    if watcher.sequences:
        first = watcher.sequences[0]
        return calls, first.shape[0], first.shape[1] if first.dim() > 1 else 0
    first = watcher.steps[0] if watcher.steps else torch.empty(0)
    return calls, 0, first.shape[0] if first.dim() else 0


def _is_batch(shapes: _Shapes, inputs: Sequence[Tensor], axis: int) -> bool:
    after = shapes.watch([torch.cat([x, x], axis) for x in inputs])
    if after is None:
        return False
    calls, steps, batch = _neuron_batch(shapes.example)
    return _neuron_batch(after) == (calls, steps, 2 * batch)


def _by_size(watcher: _Watcher, inputs: Sequence[Tensor], candidates: Sequence[int]) -> int | None:
    batch = _neuron_batch(watcher)[2]
    return next((a for a in candidates if inputs[0].shape[a] == batch), None)


def _time_dim(runner: Runner, inputs: Sequence[Tensor], steps: int, batch_dim: int | None) -> int | None:
    fitting = [a for a in _axes(inputs) if a != batch_dim and all(x.shape[a] == steps for x in inputs)]
    rest = [a for a in fitting if a < 2]
    if not fitting:
        return None
    if batch_dim == 1 and rest:
        return rest[0]
    watcher = _watch(runner, inputs)
    if watcher is None or watcher.first is None:
        return rest[0] if rest else None
    dependence = {a: _dependence(runner, inputs, a, steps, watcher) for a in fitting}
    if steps > 1 and "follows" in dependence.values():
        return next(a for a, d in dependence.items() if d == "follows")
    dependence = {a: dependence[a] for a in rest}  # the last axis is more often the width of an image
    if not rest:
        return None
    if steps > 1 and set(dependence.values()) == {"static"}:
        return None
    shapes = ", ".join(str(list(x.shape)) for x in inputs)
    raise TimeAxisError(
        f"the neurons run over {steps} steps; which axis of the example {shapes} is time can not be told: "
        "give time_dim=0, 1 or None"
    )


def _axes(inputs: Sequence[Tensor]) -> list[int]:
    """The axes that may be time: the first two, and the last where the inputs have one number of axes."""
    ranks = {x.dim() for x in inputs}
    return [*range(min(2, *ranks, 2)), *({max(ranks) - 1} - {0, 1} if len(ranks) == 1 else ())]


def _dependence(runner: Runner, inputs: Sequence[Tensor], axis: int, steps: int, before: _Watcher) -> str:
    """How the first neuron's input depends on the last entry along ``axis``.

    ``"follows"``: it changes at the last step and not at step 0. ``"static"``: it changes alike at all steps, as when a channel
    of a repeated image changes. ``"mixed"``: neither.
    """
    changed = []
    for x in inputs:
        y = x.clone()
        y.select(axis, steps - 1).add_(1.0)
        changed.append(y)
    after = _watch(runner, changed)
    if after is None or after.first is None or before.first is None:
        return "mixed"
    difference = after.first - before.first
    if not difference[0].any() and difference[-1].any():
        return "follows"
    return "static" if all(torch.equal(d, difference[0]) for d in difference) else "mixed"
