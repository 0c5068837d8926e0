"""NIR's nodes with time in them, as steps of the canonical neuron, and back.

NIR writes neurons as differential equations, ``tau*dv/dt = (v_leak - v) + R*I``, with a spike above ``v_threshold`` and a reset
to ``v_reset``. Neither the step, nor the integrator, nor what happens at the threshold exactly, nor the first potential is in a
file, and its writers disagree. All of it is said by a :class:`Discretisation`. With ``a = dt/tau`` for explicit Euler steps, or
``a = 1 - exp(-dt/tau)``, which is exact for an input that is constant over a step:

    v' = (1 - a)*v + a*R*I + a*v_leak          (``membrane_input="current"``; R*I instead of a*R*I for "impulse")
    I' = (1 - a_syn)*I + a_syn*w_in*S          (``synapse_input`` likewise)
    v' = v + dt*R*I                            IF and I

A file of :func:`snngraph.to_nir` also has the parameters of the canonical neuron (:mod:`snngraph.frontends.nir.record`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snngraph import ops
from snngraph.errors import NirDiscretisationError, NirGraphError
from snngraph.frontends.canonical import Canonical

__all__ = [
    "CUBA",
    "DEFAULTS",
    "LEAKY",
    "NEURONS",
    "NEUTRAL",
    "SILENT",
    "SPIKING",
    "Array",
    "Discretisation",
    "InexpressibleError",
    "as_array",
    "canonical_of",
    "equations",
]

Array = NDArray[np.float64]

SPIKING = ("IF", "LIF", "CubaLIF")
LEAKY = ("LI", "LIF", "CubaLI", "CubaLIF")
SILENT = ("I", "LI", "CubaLI")  # their output is the potential
NEURONS = (*SPIKING, *SILENT, "Threshold")
CUBA = ("CubaLI", "CubaLIF")

_INPUTS = ("current", "impulse")
_CHOICES: dict[str, tuple[str, ...]] = {
    "integrator": ("euler", "exponential"),
    "fire": ops.FIRE,
    "reset": ops.RESET,
    "delay": ops.DELAY,
    "emit": ("spike", "count"),
    "charge": ("new", "previous"),
    "membrane_input": _INPUTS,
    "synapse_input": _INPUTS,
}
DEFAULTS: dict[str, str] = {
    "delay": "none",
    "emit": "spike",
    "charge": "new",
    "membrane_input": "current",
    "synapse_input": "current",
}
NEUTRAL = {"input_gain": 1.0, "bias": 0.0, "v_reset": 0.0, "syn_gain": 1.0, "gain": 1.0}


class InexpressibleError(ValueError):
    """Why NIR's equations do not express a neuron."""


@dataclass(frozen=True)
class Discretisation:
    """What a NIR file leaves open; ``None``: not said. The fields are described in :func:`snngraph.from_nir`.

    Raises:
        NirDiscretisationError: a field has no such value.
    """

    dt: float | None = None
    integrator: str | None = None
    fire: str | None = None
    reset: str | None = None
    delay: str | None = None
    emit: str | None = None
    v_init: float | str | None = None
    charge: str | None = None
    membrane_input: str | None = None
    synapse_input: str | None = None
    floor: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise NirDiscretisationError(f"{name}={value!r}: expected one of {', '.join(map(repr, allowed))}")
        if self.dt is not None and not (_is_number(self.dt) and self.dt > 0):
            raise NirDiscretisationError(f"dt={self.dt!r}: expected a positive number, in the unit of the file's time constants")
        if self.v_init is not None and self.v_init not in ("v_reset", "v_leak") and not _is_number(self.v_init):
            raise NirDiscretisationError(f"v_init={self.v_init!r}: expected a number, 'v_reset' or 'v_leak'")
        if self.floor is not None and not _is_number(self.floor):
            raise NirDiscretisationError(f"floor={self.floor!r}: expected a number")
        if self.delay not in (None, "none") and self.reset == "none":
            raise NirDiscretisationError(f"delay={self.delay!r} belongs to a reset, and reset is 'none'")
        if self.delay == "both" and self.reset != "soft":
            raise NirDiscretisationError("delay='both' belongs to a soft reset: give reset='soft'")

    @property
    def step(self) -> float:
        """``dt``, where it is known to be given."""
        assert self.dt is not None
        return self.dt

    def given(self, name: str) -> Any:
        """A field, or its default."""
        value = getattr(self, name)
        return DEFAULTS.get(name) if value is None else value

    def missing(self, kind: str, values: Mapping[str, Array]) -> set[str]:
        """The fields that a node needs and that are not given."""
        needed = {"dt"} if kind != "Threshold" else set()
        needed |= {"integrator"} if kind in LEAKY else set()
        needed |= {"fire", "reset"} if kind in SPIKING else {"fire"} if kind == "Threshold" else set()
        rests = ["v_leak"] if kind in LEAKY else []
        rests += ["v_reset"] if kind in SPIKING and self.reset in (None, "hard") else []
        if any(values[name].any() for name in rests):
            needed.add("v_init")  # otherwise every tool starts at 0
        return {name for name in needed if getattr(self, name) is None}

    def canonical(self, kind: str, values: Mapping[str, Array], where: str = "") -> Canonical:
        """A node as the canonical neuron.

        Args:
            kind: the name of its class in NIR.
            values: its arrays by name, in float64, 0-d or of a shape that broadcasts to one sample's.
            where: the node, for messages.

        Raises:
            NirDiscretisationError: a field is missing or does not fit the node.
        """
        if missing := self.missing(kind, values):
            raise NirDiscretisationError(f"{where}needs {', '.join(sorted(missing))}")
        if kind == "Threshold":
            return canonical_of({"decay": 0.0, "threshold": values["threshold"], "fire": self.fire, "reset": "none"}, 0.0)
        parameters: dict[str, Any] = {**self._membrane(kind, values, where)}
        if kind in CUBA:
            rate = self._rate(values["tau_syn"], "tau_syn", where)
            gain = values["w_in"] * (rate if self.given("synapse_input") == "current" else 1.0)
            parameters |= {"syn_decay": self._decay(values["tau_syn"], rate), "syn_gain": gain}
        start = self._start(values, where)
        if kind in SILENT:
            return canonical_of({**parameters, "threshold": math.inf, "fire": ">", "reset": "none"}, start)
        emit, delay = self.given("emit"), self.given("delay")
        parameters |= {"threshold": values["v_threshold"], "fire": self.fire, "reset": self.reset}
        parameters |= {"delay": delay} if delay != "none" else {}
        parameters |= {"emit": emit} if emit != "spike" else {}
        parameters |= {"floor": self.floor} if self.floor is not None else {}
        if self.reset == "hard":
            parameters["v_reset"] = values["v_reset"]
        elif self.reset == "soft" and values["v_reset"].any():
            raise NirDiscretisationError(
                f"{where}reset='soft' subtracts the threshold, but v_reset is not 0: NIR's reset is to v_reset, reset='hard'"
            )
        return canonical_of(parameters, start)

    def _membrane(self, kind: str, values: Mapping[str, Array], where: str) -> dict[str, Any]:
        impulse, r = self.membrane_input == "impulse", values["r"]
        if kind not in LEAKY:
            return {"decay": 1.0, "input_gain": r if impulse else r * self.step}
        name = "tau_mem" if kind in CUBA else "tau"
        rate = self._rate(values[name], name, where)
        gain = r if impulse else rate * r
        return {"decay": self._decay(values[name], rate), "input_gain": gain, "bias": rate * values["v_leak"]}

    def _rate(self, tau: Array, name: str, where: str) -> Array:
        if not (tau > 0).all():
            raise NirGraphError(f"{where}{name} is not positive everywhere")
        if self.integrator == "exponential":
            return -np.expm1(-self.step / tau)
        if (self.step > tau * (1 + 1e-6)).any():  # a writer's float32 may put tau = dt just below dt
            raise NirDiscretisationError(
                f"{where}dt={self.dt} is longer than {name}={float(tau.min()):.6g}: Euler's decay would be negative. "
                "Is dt in the file's unit of time?"
            )
        return self.step / tau

    def _decay(self, tau: Array, rate: Array) -> Array:
        return np.exp(-self.step / tau) if self.integrator == "exponential" else 1 - rate

    def _start(self, values: Mapping[str, Array], where: str) -> Any:
        if not isinstance(self.v_init, str):
            return self.v_init or 0.0
        if self.v_init not in values:
            raise NirDiscretisationError(f"{where}v_init={self.v_init!r}, but this node has no {self.v_init}: give a number")
        return values[self.v_init]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(value)


def canonical_of(parameters: Mapping[str, Any], v_init: Any) -> Canonical:
    """The canonical neuron with these parameters.

    Arrays become tensors or, where all entries are equal, numbers; what changes nothing is left out.
    """
    found = {k: _number(v) if isinstance(v, np.ndarray) else v for k, v in parameters.items() if v is not None}
    kept = {k: v for k, v in found.items() if k not in NEUTRAL or isinstance(v, Tensor) or v != NEUTRAL[k]}
    if kept.get("reset", "hard") == "hard":
        kept.setdefault("v_reset", 0.0)
    return Canonical(kept, v_rest=_number(v_init) if isinstance(v_init, np.ndarray) else v_init)


def _number(array: Array) -> float | Tensor:
    if array.size and (array == array.flat[0]).all():
        return float(array.flat[0])
    return torch.from_numpy(np.array(array, dtype=np.float64))


def as_array(value: float | Tensor) -> Array:
    """A number or tensor as an array."""
    return np.asarray(value.detach().numpy() if isinstance(value, Tensor) else value, dtype=np.float64)


# -- from the canonical neuron to NIR's equations ------------------------------------------------------------------------------


def equations(
    parameters: Mapping[str, Any], shape: Iterable[int], step: Discretisation, *, spiking: bool
) -> tuple[str, dict[str, Array]]:
    """The NIR node that a neuron is under ``step``: the name of its class and its arrays, each of ``shape``.

    Args:
        parameters: of the canonical neuron; arrays broadcast to ``shape``.
        shape: one sample's.
        step: ``dt`` and ``integrator``.
        spiking: whether spikes are read; otherwise the potential is.

    Raises:
        InexpressibleError: the message says why.
    """
    p = {name: as_array(value) for name, value in parameters.items() if value is not None and not isinstance(value, str)}
    sizes = tuple(shape)
    decay, synapse = p["decay"], "syn_decay" in p
    gain = p.get("input_gain", np.ones(())) * (1.0 if synapse else p.get("gain", 1.0))
    values: dict[str, Array]
    if (
        spiking
        and parameters["reset"] == "none"
        and (decay == 0).all()
        and (gain == 1).all()
        and not p.get("bias", gain * 0).any()
    ):
        return "Threshold", {"threshold": _full(p["threshold"], sizes)}
    if (decay == 1).all():
        if synapse:
            raise InexpressibleError("it has a synapse but its membrane does not leak; CubaLIF has a finite tau_mem")
        if "bias" in p and p["bias"].any():
            raise InexpressibleError("it does not leak and has a bias; IF has none")
        kind, values = "I", {"r": gain / step.step}
    else:
        tau, rate = _time_constant(decay, "decay", step)
        kind, values = "LI", {"tau": tau, "r": gain / rate, "v_leak": p.get("bias", np.zeros(())) / rate}
    if synapse:
        tau_syn, rate = _time_constant(p["syn_decay"], "syn_decay", step)
        w_in = p.get("syn_gain", np.ones(())) * p.get("gain", 1.0) / rate
        kind, values = "CubaLI", {"tau_syn": tau_syn, "tau_mem": values.pop("tau"), **values, "w_in": w_in}
    if spiking:
        if parameters["reset"] == "none":
            raise InexpressibleError("it has no reset; NIR's spiking neurons all reset")
        kind += "F"
        values["v_threshold"] = p["threshold"]
        values["v_reset"] = p["v_reset"] if parameters["reset"] == "hard" else np.zeros(())
    if not all(np.isfinite(array).all() for array in values.values()):
        raise InexpressibleError("one of its parameters is not finite")
    return kind, {name: _full(array, sizes) for name, array in values.items()}


def _time_constant(decay: Array, name: str, step: Discretisation) -> tuple[Array, Array]:
    """``tau``, and the rate that goes with it."""
    euler = step.integrator == "euler"
    if not ((decay < 1) & ((decay >= 0) if euler else (decay > 0))).all():
        bounds = "[0, 1)" if euler else "(0, 1)"
        raise InexpressibleError(f"its {name} is not in {bounds} everywhere; integrator={step.integrator!r} has no such tau")
    rate = 1 - decay
    return step.step / rate if euler else -step.step / np.log(decay), rate


def _full(array: Array, shape: tuple[int, ...]) -> Array:
    return np.broadcast_to(array, shape).copy()
