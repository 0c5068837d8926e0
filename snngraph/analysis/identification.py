"""Which canonical neuron a step function is: parameters read off from a few points, then proved on many, in float64.

A step function gives the potential ``h_t`` from ``h_{t-1}`` and the inputs. For the canonical neuron (:mod:`snngraph.ops`) it is

    h_t = decay*v + sum_k g_k*x_k + bias        with v what the reset makes of h_{t-1}

so below the threshold it is a line in ``h_{t-1}`` (its slope the decay); above the threshold it is a constant (hard reset), the
same line lower by a jump (soft reset) or the same line (no reset); and it is a line in every input. What a few points say is
compared with :func:`snngraph.ops.lif_step_reference` on many: near the threshold on both sides and exactly on it, several
thresholds above it, far above and far below, on both sides of every number it computes with, inputs of several scales.
What does not agree everywhere is not this neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snngraph import ops
from snngraph.analysis.firing import Firing, along_probes, bends, sampled, tidy, unit_of
from snngraph.analysis.recurrences import Step

__all__ = ["Neuron", "identify", "is_step_of"]

_CLOSE = 1e-9  # relative: to tell readings apart
_EXACT = 1e-10  # relative: of the proof
_PROBES = 4096
_FAR = 1e4
_NEUTRAL = {"input_gain": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Neuron:
    """A canonical neuron.

    Args:
        parameters: keyword arguments of :func:`snngraph.ops.lif_step` other than its state; tensors in float64.
        weights: of the inputs of a step; the neuron's input is their weighted sum.
    """

    parameters: dict[str, Any]
    weights: tuple[Tensor, ...]

    def __str__(self) -> str:
        return f"lif({', '.join(f'{k}={_show(v)}' for k, v in self.parameters.items())})"

    def stepped(self, before: Tensor, inputs: Sequence[Tensor]) -> ops.NeuronOutput:
        """A step from the potential ``before`` (with a delayed reset: what that left), ``[P, ...]``, as the operator does."""
        x = sum((w * u for w, u in zip(self.weights, inputs, strict=True)), torch.zeros_like(before))
        zero = torch.zeros((), dtype=torch.float64)
        given = dict(self.parameters)
        if given.get("delay", "none") == "none":
            still = {k: a for k, a in given.items() if k not in ("decay", "threshold", "input_gain", "bias")}
            before = ops.lif_step_reference(before, zero, zero, given["threshold"], **still).v
        return ops.lif_step_reference(x, before, given.pop("decay"), given.pop("threshold"), **given)


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):.6g}" if value.numel() == 1 else f"[{'x'.join(map(str, value.shape))}]"
    return repr(value)


def identify(step: Step, firing: Firing, *, has_state: bool = False) -> Neuron | str:
    """The neuron whose step this is, if it fires so; or why it is none. What it says is still to be proved.

    Args:
        step: one of its steps; not one whose state is its input too.
        firing: when it fires.
        has_state: whether the step starts from more than the potential before.
    """
    reading = _Reading(step, firing, has_state)
    parameters = reading.parameters()
    if isinstance(parameters, str):
        return parameters
    if bool((reading.gains[0] == 0).any()):
        return "an input does not reach every neuron"
    constants = step.program.constants
    charge = {"decay": parameters.pop("decay"), "input_gain": reading.gains[0], "bias": parameters.pop("bias")}
    tidied = {k: tidy(a, constants) if isinstance(a, Tensor) else a for k, a in (charge | parameters).items()}
    kept = {k: a for k, a in tidied.items() if k not in _NEUTRAL or not bool((torch.as_tensor(a) == _NEUTRAL[k]).all())}
    fires = {"threshold": firing.threshold, "fire": firing.fire, **({} if firing.emit == "spike" else {"emit": firing.emit})}
    return Neuron(fires | kept, tuple(tidy(g / reading.gains[0], constants) for g in reading.gains))


class _Reading:
    """What a step function says at a few points; ``[*dims]`` per neuron."""

    def __init__(self, step: Step, firing: Firing, has_state: bool) -> None:
        self._step, self._has_state = step, has_state
        self._threshold, self._signed = firing.threshold, firing.emit == "signed"
        self._unit = unit_of(firing.threshold)
        below, further = self._at(-0.25), self._at(-0.5)
        self.decay = (below - further) / (0.25 * self._unit)
        self.bias = _rounded(below - self.decay * self._potential(-0.25), self._unit)
        self.gains = [self._at(-0.25, {k: 1.0}) - below for k in range(self._count)]

    def _potential(self, distance: float) -> Tensor:
        return self._threshold + distance * self._unit

    def _at(self, distance: float, inputs: dict[int, float] | None = None) -> Tensor:
        """The next potential, from ``distance`` units above the threshold."""
        like = self._step.potential
        h = along_probes(torch.zeros(1, dtype=torch.float64), like) + self._potential(distance)
        numbers = [(inputs or {}).get(k, 0.0) for k in range(self._count)]
        values = [along_probes(torch.tensor([x], dtype=torch.float64), like) for x in numbers]
        return self._step(h, values)[like][0]

    @property
    def _count(self) -> int:
        return len(self._step.inputs)

    def _near(self, a: Tensor, b: Tensor | float, scale: float = 1.0) -> bool:
        size = self._unit * (1 + self.decay.abs()) * scale
        return bool(((a - b).abs() <= _CLOSE * size).all())

    def parameters(self) -> dict[str, Any] | str:
        """Arguments of the operator, without the threshold and the gain; or why there are none."""
        if not all(bool(a.isfinite().all()) for a in (self.decay, self.bias, *self.gains)):
            return "its membrane potential is not finite"
        if not self._near(self._at(-0.1), self.decay * self._potential(-0.1) + self.bias):
            return "it is not linear below its threshold"
        if not all(self._near(self._at(-0.5, {k: 1.0}) - self._at(-0.5), g) for k, g in enumerate(self.gains)):
            return "its input is not added to its membrane potential"
        reset = self._reset()
        if isinstance(reset, str):
            return reset
        floor = self._floor(reset)
        if isinstance(floor, str):
            return floor
        return {"decay": self.decay, "bias": self.bias, **reset, **floor}

    def _reset(self) -> dict[str, Any] | str:
        above, further = self._at(0.25), self._at(0.5)
        slope = (further - above) / (0.25 * self._unit)
        gains = [self._at(0.25, {k: 1.0}) - above for k in range(self._count)]
        keeps_inputs = all(self._near(a, b) for a, b in zip(gains, self.gains, strict=True))
        if self._has_state and not (keeps_inputs and self._near(slope, self.decay)):
            return "what a step leaves is not a function of its membrane potential"
        if keeps_inputs and self._near(slope, self.decay):
            return self._soft(self.decay * self._potential(0.25) + self.bias - above)
        if keeps_inputs and self._near(slope, 0.0):
            value = (above - self.bias) / self.decay
            return {"reset": "hard", "v_reset": _rounded(torch.where(self.decay == 0, 0.0, value), self._unit)}
        if self._near(slope, 0.0) and all(self._near(a, 0.0) for a in gains):
            return {"reset": "hard", "v_reset": _rounded(above, self._unit), "delay": "with"}
        return "its reset is neither to a value, nor by a value, nor none"

    def _soft(self, drop: Tensor) -> dict[str, Any]:
        """A soft reset that lowers the next potential by ``drop``."""
        if self._has_state:
            return {"reset": "soft", "delay": "both", **({} if self._near(drop, self._threshold) else {"reset_amount": drop})}
        if self._near(drop, 0.0):
            return {"reset": "none"}
        if self._near(drop, self.decay * self._threshold):
            return {"reset": "soft"}
        if self._near(drop, self._threshold):
            return {"reset": "soft", "delay": "with"}
        if bool((self.decay != 0).all()):
            return {"reset": "soft", "reset_amount": drop / self.decay}
        return {"reset": "soft", "reset_amount": drop, "delay": "with"}

    def _floor(self, reset: dict[str, Any]) -> dict[str, Any] | str:
        """A bound from below, on what the reset leaves or on the potential itself."""
        if self._signed:
            return {}
        found: dict[str, Any] = {}
        deep, deeper = self._at(-_FAR), self._at(-2 * _FAR)
        if not self._near(deep, self.decay * self._potential(-_FAR) + self.bias, _FAR):
            if not self._near(deep, deeper) or bool((self.decay == 0).any()):
                return "it is not linear below its threshold"
            found = {"floor": _rounded((deep - self.bias) / self.decay, self._unit)}
        far = _FAR * float(self._unit.max())
        low = [self._at(-0.25, {0: -far}), self._at(-0.25, {0: far})]
        expected = [self.decay * self._potential(-0.25) + self.bias + self.gains[0] * x for x in (-far, far)]
        bent = [k for k in range(2) if not self._near(low[k], expected[k], _FAR)]
        if not bent:
            return found
        if len(bent) > 1:
            return "it is not linear in its input"
        return {"floor": low[bent[0]], "delay": reset.get("delay", "before")}


def _rounded(value: Tensor, unit: Tensor) -> Tensor:
    """Zero where ``value`` is what rounding left of it."""
    return torch.where(value.abs() <= 1e-13 * unit, torch.zeros_like(value), value)


def is_step_of(neuron: Neuron, step: Step) -> bool:
    """Whether this is a step of ``neuron``, on many numbers."""
    if len(step.inputs) != len(neuron.weights):
        return False
    threshold, like = neuron.parameters["threshold"], step.potential
    unit = unit_of(threshold)
    generator = torch.Generator().manual_seed(0)

    def normal(scales: Sequence[float], count: int) -> Tensor:
        spread = torch.tensor(scales, dtype=torch.float64).repeat(-(-count // len(scales)))[:count]
        return torch.randn(count, generator=generator, dtype=torch.float64) * spread

    near = torch.tensor([s * 10.0**-k for k in range(1, 9) for s in (1, -1)], dtype=torch.float64)
    whole = torch.tensor([-3.3, -2.2, -1.1, 0.5, 0.9, 1.1, 2.2, 5.5], dtype=torch.float64)
    pool = torch.cat([near, whole, normal([0.1, 1.0, 3.0, 30.0, _FAR], _PROBES), bends(step.program.constants, threshold)])
    before = threshold + unit * sampled(pool, step.program.extent, like)
    scales = ([0.0, 1.0, 0.3, 3.0, 100.0], [1.0, 0.0, 3.0], [0.1, 10.0, 0.0, 1.0])
    inputs = [along_probes(normal(scales[k % 3], len(before)), like) * float(unit.max()) for k in range(len(step.inputs))]
    inputs = [before if node is step.before else x for node, x in zip(step.inputs, inputs, strict=True)]
    if not _agree(neuron, step, before, inputs, ties=False):
        return False
    return all(_agree(neuron, step, *_at(side * threshold, before, inputs, step), ties=True) for side in (1, -1))


def _at(value: Tensor, before: Tensor, inputs: Sequence[Tensor], step: Step) -> tuple[Tensor, list[Tensor]]:
    """The same ``value`` for all states, with the first few inputs."""
    fixed = value + 0 * before[:4]
    return fixed, [fixed if node is step.before else x[:4] for node, x in zip(step.inputs, inputs, strict=True)]


def _agree(neuron: Neuron, step: Step, before: Tensor, inputs: Sequence[Tensor], *, ties: bool) -> bool:
    values = step(before, inputs, ties=ties)
    found = values[step.potential]
    wanted = neuron.stepped(before.expand(torch.broadcast_shapes(before.shape, found.shape)), inputs)
    given = neuron.parameters
    size = (given["decay"] * before).abs() + unit_of(given["threshold"])
    for w, u in zip(neuron.weights, inputs, strict=True):
        size = size + (given.get("input_gain", 1.0) * w * u).abs()
    agrees = bool(((found - wanted.h).abs() <= _EXACT * size).all())
    return agrees and (step.after is None or bool(((values[step.after] - wanted.v).abs() <= _EXACT * size).all()))
