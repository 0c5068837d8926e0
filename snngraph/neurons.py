"""Trainable spiking neurons, built on the operators the compiler works with.

A neuron module takes a whole sequence ``[T, N, ...]`` (``step_mode="m"``, the default: every call starts from the reset state) or
one step ``[N, ...]`` (``step_mode="s"``: the membrane potential is kept from call to call until :func:`reset`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from snngraph import ops

__all__ = ["IF", "LIF", "PLIF", "ATan", "Neuron", "Piecewise", "Sigmoid", "Surrogate", "reset", "set_step_mode"]


@dataclass(frozen=True)
class Surrogate:
    """A surrogate for the derivative of the spike; ``alpha`` is its slope. The formulas stand in :mod:`snngraph.ops`."""

    kind: str
    alpha: float


def ATan(alpha: float = 2.0) -> Surrogate:
    """``alpha/2 / (1 + (pi/2 alpha u)^2)`` (Fang et al. 2021, arXiv 2007.05785)."""
    return Surrogate("atan", alpha)


def Sigmoid(alpha: float = 4.0) -> Surrogate:
    """``alpha s(alpha u)(1 - s(alpha u))``, ``s`` the logistic function."""
    return Surrogate("sigmoid", alpha)


def Piecewise(alpha: float = 1.0) -> Surrogate:
    """The triangle ``max(0, alpha - alpha^2 |u|)`` (Esser et al. 2016)."""
    return Surrogate("piecewise", alpha)


class Neuron(nn.Module):
    """The canonical neuron with constant parameters: ``h = decay*v + input_gain*x + bias``, fire, reset.

    Args:
        decay: factor on the membrane potential at every step.
        input_gain: factor on the input.
        bias: constant added to every charge.
        threshold: firing threshold.
        v_reset: the value a hard reset sets; ``None`` is a soft reset, which subtracts the threshold.
        v_init: the membrane potential before the first step; ``None`` is ``v_reset``, or 0 with a soft reset.
        fire: ``">="`` or ``">"``, which decides exact ties.
        surrogate: the spike's derivative in training.
        detach_reset: whether the reset is left out of the gradient.
        step_mode: ``"m"`` takes ``[T, N, ...]``, ``"s"`` takes ``[N, ...]`` and keeps its state.

    Raises:
        ValueError: an option has no such value, or a number is not finite.
    """

    def __init__(
        self,
        *,
        decay: float = 1.0,
        input_gain: float = 1.0,
        bias: float = 0.0,
        threshold: float = 1.0,
        v_reset: float | None = 0.0,
        v_init: float | None = None,
        fire: str = ">=",
        surrogate: Surrogate | None = None,
        detach_reset: bool = False,
        step_mode: str = "m",
    ) -> None:
        super().__init__()
        numbers = {
            "decay": decay,
            "input_gain": input_gain,
            "bias": bias,
            "threshold": threshold,
            "v_reset": v_reset,
            "v_init": v_init,
        }
        for name, number in numbers.items():
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{name}={number}: expected a finite number")
        if fire not in ops.FIRE:
            raise ValueError(f"fire={fire!r}: expected one of {ops.FIRE}")
        _check_step_mode(step_mode)
        self.decay, self.input_gain, self.bias = decay, input_gain, bias
        self.threshold, self.v_reset, self.fire = threshold, v_reset, fire
        self.v_init = (v_reset or 0.0) if v_init is None else v_init
        self.surrogate = surrogate or ATan()
        self.detach_reset = detach_reset
        self.step_mode = step_mode
        self.v: Tensor | None = None

    def parameters_of_neuron(self) -> dict[str, Any]:
        """The keyword arguments of :func:`snngraph.ops.lif` that make this neuron; numbers that change nothing are left out."""
        keywords: dict[str, Any] = {
            "decay": self.decay,
            "threshold": self.threshold,
            "fire": self.fire,
            "surrogate": self.surrogate.kind,
            "alpha": self.surrogate.alpha,
            "detach_reset": self.detach_reset,
        }
        if self.input_gain != 1.0:
            keywords["input_gain"] = self.input_gain
        if self.bias != 0.0:
            keywords["bias"] = self.bias
        if self.v_reset is None:
            keywords["reset"] = "soft"
        else:
            keywords["v_reset"] = self.v_reset
        return keywords

    def forward(self, x: Tensor) -> Tensor:
        """Spikes of the shape of ``x``: ``[T, N, ...]`` or, in step mode ``"s"``, ``[N, ...]``."""
        if self.step_mode == "m":
            return ops.lif(x, self.v_init, **self.parameters_of_neuron()).s
        if self.v is not None and self.v.shape != x.shape:
            raise ValueError(
                f"the membrane potential has shape {tuple(self.v.shape)} and the input {tuple(x.shape)}: "
                "call snngraph.neurons.reset(model) before a sequence of another batch size"
            )
        s, self.v, _, _ = ops.lif_step(x, self.v_init if self.v is None else self.v, **self.parameters_of_neuron())
        return s

    def reset(self) -> None:
        """Forgets the membrane potential."""
        self.v = None

    def extra_repr(self) -> str:
        """The options that differ from one neuron to another."""
        return (
            f"decay={self.decay:.6g}, input_gain={self.input_gain:.6g}, threshold={self.threshold:.6g}, v_reset={self.v_reset}, "
            f"fire={self.fire!r}, step_mode={self.step_mode!r}"
        )


class IF(Neuron):
    """Integrate and fire: ``h = v + x``. Options as :class:`Neuron`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)


class LIF(Neuron):
    """Leaky integrate and fire with time constant ``tau`` (in steps).

    ``h = v + (x - (v - v_rest))/tau`` with ``decay_input``, else ``h = v - (v - v_rest)/tau + x``; ``v_rest`` is ``v_reset``, or
    0 with a soft reset (Fang et al. 2023, SpikingJelly, arXiv 2310.16620). Computed in its canonical form,
    ``decay*v + gain*x + bias``.

    Raises:
        ValueError: ``tau`` is not above 1.
    """

    def __init__(self, tau: float = 2.0, *, decay_input: bool = True, v_reset: float | None = 0.0, **options: Any) -> None:
        if not tau > 1.0:
            raise ValueError(f"tau={tau}: a leaky neuron needs a time constant above one step")
        options["bias"] = options.get("bias", 0.0) + (v_reset or 0.0) / tau
        super().__init__(decay=1.0 - 1.0 / tau, input_gain=1.0 / tau if decay_input else 1.0, v_reset=v_reset, **options)
        self.tau, self.decay_input = tau, decay_input


class PLIF(Neuron):
    """LIF with a learnable time constant: ``1/tau = sigmoid(w)``, one ``w`` for the layer (Fang et al. 2021, arXiv 2007.05785).

    Raises:
        ValueError: ``init_tau`` is not above 1.
    """

    def __init__(self, init_tau: float = 2.0, *, decay_input: bool = True, **options: Any) -> None:
        if not init_tau > 1.0:
            raise ValueError(f"init_tau={init_tau}: a leaky neuron needs a time constant above one step")
        rate = 1.0 / init_tau
        super().__init__(decay=1.0 - rate, input_gain=rate if decay_input else 1.0, **options)
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.tensor(-math.log(init_tau - 1.0)))

    def parameters_of_neuron(self) -> dict[str, Any]:
        """As :meth:`Neuron.parameters_of_neuron`, with the decay computed from the parameter."""
        keywords = super().parameters_of_neuron()
        rate = self.w.sigmoid()
        keywords["decay"] = 1.0 - rate
        if self.decay_input:
            keywords["input_gain"] = rate
        if self.v_reset:
            keywords["bias"] = self.bias + self.v_reset * rate
        return keywords

    def extra_repr(self) -> str:
        """The options that differ from one neuron to another."""
        return f"threshold={self.threshold:.6g}, v_reset={self.v_reset}, fire={self.fire!r}, step_mode={self.step_mode!r}"


def _check_step_mode(step_mode: str) -> None:
    if step_mode not in ("m", "s"):
        raise ValueError(f"step_mode={step_mode!r}: expected 'm' (a whole sequence) or 's' (one step)")


def reset(model: nn.Module) -> None:
    """Forgets the membrane potential of every neuron in ``model``."""
    for module in model.modules():
        if isinstance(module, Neuron):
            module.reset()


def set_step_mode(model: nn.Module, step_mode: str) -> None:
    """Switches every neuron in ``model`` to ``"m"`` (a whole sequence) or ``"s"`` (one step).

    Raises:
        ValueError: no such mode.
    """
    _check_step_mode(step_mode)
    for module in model.modules():
        if isinstance(module, Neuron):
            module.step_mode = step_mode
            module.reset()
