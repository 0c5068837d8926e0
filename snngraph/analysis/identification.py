"""Which canonical neuron a step function is: parameters read off from a few points, then proved on many, in float64.

A step function gives the potential ``h_t`` from ``h_{t-1}`` and the inputs. For the canonical neuron (:mod:`snngraph.ops`) it is

    h_t = decay*v + sum_k g_k*x_k + bias        with v what the reset makes of h_{t-1}

so below the threshold it is a line in ``h_{t-1}`` (its slope the decay); above the threshold it is a constant (hard reset), the
same line lower by a jump (soft reset) or the same line (no reset); and it is a line in every input. What a few points say is
compared with :func:`snngraph.ops.lif_step_reference` on many: near the threshold on both sides and exactly on it, several
thresholds above it, far above and far below, inputs of several scales. What does not agree everywhere is not this neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from snngraph import ops
from snngraph.analysis.decisions import Decision, along_probes, tidy
from snngraph.analysis.recurrences import Step

__all__ = ["Neuron", "StepFunction", "identify"]

_CLOSE = 1e-9  # relative: to tell readings apart
_EXACT = 1e-10  # relative: of the proof
_NUMBERS = 1 << 17  # per operator of the proof
_FAR = 1e4


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

    def charged(self, h: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The potential after ``h`` for these inputs, ``[P, ...]``, by the definition of the operator."""
        x = sum((w * u for w, u in zip(self.weights, inputs, strict=True)), torch.zeros_like(h))
        zero = torch.zeros((), dtype=torch.float64)
        given = dict(self.parameters)
        v = h
        if given.get("delay", "none") == "none":
            still = {k: a for k, a in given.items() if k not in ("decay", "input_gain", "bias")}
            v = ops.lif_step_reference(h, zero, zero, still.pop("threshold"), **still).v
        return ops.lif_step_reference(x, v, given.pop("decay"), given.pop("threshold"), **given).h


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):.6g}" if value.numel() == 1 else f"[{'x'.join(map(str, value.shape))}]"
    return repr(value)


class StepFunction:
    """A step function on numbers.

    Args:
        step: its operators.
        before: the potential of the step before.
        potential: the potential of this step.
    """

    def __init__(self, step: Step, before: fx.Node, potential: fx.Node) -> None:
        self.before, self.potential, self.inputs = before, potential, step.inputs
        self.program = step.program

    def __call__(self, h: Tensor, inputs: Sequence[Tensor], *, ties: bool = False) -> Tensor:
        """The potentials after ``h`` for these inputs, all ``[P, ...]``."""
        given = {**dict(zip(self.inputs, inputs, strict=True)), self.before: h}
        return self.program.run(given, ties=ties)[self.potential]


def identify(function: StepFunction, decision: Decision) -> Neuron | str:
    """The neuron whose step function this is, with the threshold of ``decision``; or why it is none."""
    reading = _Reading(function, decision.threshold)
    parameters = reading.parameters()
    if isinstance(parameters, str):
        return parameters
    constants = function.program.constants
    gain = reading.gains[0]
    if bool((gain == 0).any()):
        return "an input does not reach every neuron"
    if not bool((gain == 1).all()):
        parameters["input_gain"] = gain
    tidied = {k: tidy(a, constants) if isinstance(a, Tensor) else a for k, a in parameters.items()}
    shared = {"threshold": decision.threshold, "fire": ">=" if decision.at_threshold else ">"}
    return Neuron({"decay": tidied.pop("decay"), **shared, **tidied}, tuple(tidy(g / gain, constants) for g in reading.gains))


class _Reading:
    """What a step function says at a few points; ``[*dims]`` per neuron."""

    def __init__(self, function: StepFunction, threshold: Tensor) -> None:
        self._function, self._threshold = function, threshold
        self._unit = unit_of(threshold)
        below, further = self._at(-0.25), self._at(-0.5)
        self.decay = (below - further) / (0.25 * self._unit)
        self.bias = _rounded(below - self.decay * self._potential(-0.25), self._unit)
        self.gains = [self._at(-0.25, {k: 1.0}) - below for k in range(len(function.inputs))]

    def _potential(self, distance: float) -> Tensor:
        return self._threshold + distance * self._unit

    def _at(self, distance: float, inputs: dict[int, float] | None = None) -> Tensor:
        """The next potential, from ``distance`` units above the threshold."""
        like = self._function.potential
        h = along_probes(torch.zeros(1, dtype=torch.float64), like) + self._potential(distance)
        values = [
            along_probes(torch.full((1,), (inputs or {}).get(k, 0.0), dtype=torch.float64), like) for k in range(self._count)
        ]
        return self._function(h, values)[0]

    @property
    def _count(self) -> int:
        return len(self._function.inputs)

    def _near(self, a: Tensor, b: Tensor | float, scale: float = 1.0) -> bool:
        size = self._unit * (1 + self.decay.abs()) * scale
        return bool(((a - b).abs() <= _CLOSE * size).all())

    def parameters(self) -> dict[str, Any] | str:
        """Arguments of the operator, without the threshold; or why there are none."""
        if not all(bool(a.isfinite().all()) for a in (self.decay, self.bias, *self.gains)):
            return "its membrane potential is not finite"
        reset = self._reset()
        if isinstance(reset, str):
            return reset
        floor = self._floor(reset)
        if isinstance(floor, str):
            return floor
        bias = {} if bool((self.bias == 0).all()) else {"bias": self.bias}
        return {"decay": self.decay, **bias, **reset, **floor}

    def _reset(self) -> dict[str, Any] | str:
        above, further = self._at(0.25), self._at(0.5)
        slope = (further - above) / (0.25 * self._unit)
        gains = [self._at(0.25, {k: 1.0}) - above for k in range(self._count)]
        keeps_inputs = all(self._near(a, b) for a, b in zip(gains, self.gains, strict=True))
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


def unit_of(threshold: Tensor) -> Tensor:
    """The scale of a neuron's numbers: its threshold, or 1."""
    return torch.where(threshold == 0, torch.ones_like(threshold), threshold.abs())


def _rounded(value: Tensor, unit: Tensor) -> Tensor:
    """Zero where ``value`` is what rounding left of it."""
    return torch.where(value.abs() <= 1e-13 * unit, torch.zeros_like(value), value)


def is_step_of(neuron: Neuron, function: StepFunction, seed: int = 0) -> bool:
    """Whether ``function`` is a step of ``neuron``, on many numbers."""
    if len(function.inputs) != len(neuron.weights):
        return False
    threshold, like = neuron.parameters["threshold"], function.potential
    count = max(64, min(4096, _NUMBERS // max(1, _extent(neuron, function))))
    generator = torch.Generator().manual_seed(seed)
    unit = unit_of(threshold)

    def normal(scales: Sequence[float]) -> Tensor:
        spread = torch.tensor(scales, dtype=torch.float64).repeat(-(-count // len(scales)))[:count]
        return along_probes(torch.randn(count, generator=generator, dtype=torch.float64) * spread, like)

    near = torch.tensor([s * 10.0**-k for k in range(1, 9) for s in (1, -1)], dtype=torch.float64)
    whole = torch.tensor([-3.0, -2.0, -1.0, 0.5, 1.0, 1.5, 2.0, 5.0], dtype=torch.float64)
    offsets = torch.cat([normal([0.1, 1.0, 3.0, 30.0, _FAR]).flatten(), near, whole])
    h = threshold + unit * along_probes(offsets, like)
    scales = ([0.0, 1.0, 0.3, 3.0, 100.0], [1.0, 0.0, 3.0], [0.1, 10.0, 0.0, 1.0])
    inputs = [
        along_probes(torch.cat([normal(scales[k % 3]).flatten(), normal([1.0]).flatten()[: len(near) + len(whole)]]), like)
        * float(unit.max())
        for k in range(len(function.inputs))
    ]
    if function.before in function.inputs:
        inputs = [h if node is function.before else x for node, x in zip(function.inputs, inputs, strict=True)]
    at = (threshold + 0 * h[:3]).expand(3, *h.shape[1:])
    return _agree(neuron, function, h, inputs, ties=False) and (
        function.before in function.inputs or _agree(neuron, function, at, [x[:3] for x in inputs], ties=True)
    )


def _extent(neuron: Neuron, function: StepFunction) -> int:
    tensors = [*function.program.constants, *(a for a in neuron.parameters.values() if isinstance(a, Tensor))]
    return max((t.numel() for t in tensors), default=1)


def _agree(neuron: Neuron, function: StepFunction, h: Tensor, inputs: Sequence[Tensor], *, ties: bool) -> bool:
    found = function(h, inputs, ties=ties)
    wanted = neuron.charged(h.expand(torch.broadcast_shapes(h.shape, found.shape)), inputs)
    given = neuron.parameters
    size = (given["decay"] * h).abs() + unit_of(given["threshold"])
    for w, u in zip(neuron.weights, inputs, strict=True):
        size = size + (given.get("input_gain", 1.0) * w * u).abs()
    return bool(((found - wanted).abs() <= _EXACT * size).all())
