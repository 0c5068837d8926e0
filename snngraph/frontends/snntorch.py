"""The neurons of snnTorch (read from 1.0).

Its potential is the operator's, so what its modules keep in ``mem``, ``syn`` and ``spk``, and what a model passes from step to
step by hand, is the operator's state itself. A recurrent cell adds what its own connection makes of the spikes before:
the connection stays in the graph, the cell is one neuron.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snngraph.frontends.adapters import Adapter
from snngraph.frontends.canonical import Canonical, NotCanonicalError
from snngraph.frontends.foreign import derives_from, known_class, library_class, parameter, state_behind, state_shown

__all__ = ["SnnTorch"]

_STATES = {
    "Leaky": ("mem",),
    "Lapicque": ("mem",),
    "Synaptic": ("syn", "mem"),
    "RLeaky": ("spk", "mem"),
    "RSynaptic": ("spk", "syn", "mem"),
}
_RESETS = {"_base_sub": "subtract", "_base_zero": "zero", "_base_int": "none"}
_AROUND_ZERO = (-1e30, -1.0, -1e-30, 0.0, 1e-30, 0.3, 1.0, 1e30)


class SnnTorch(Adapter):
    """snnTorch's Leaky, Lapicque, Synaptic, RLeaky and RSynaptic; its other neurons stay as operators."""

    name: ClassVar[str] = "snntorch"
    distribution: ClassVar[str] = "snntorch"

    def matches(self, module: nn.Module) -> bool:
        """Every ``SpikingNeuron``."""
        return derives_from(module, "snntorch", "SpikingNeuron")

    def neuron(self, module: Any) -> Canonical:
        """Every class charges as the operator does, but a delayed reset to zero clears what differs by class.

        Leaky and RLeaky: ``h = clamp(beta)*v + x``. Synaptic and RSynaptic: ``i = clamp(alpha)*i + x; h = clamp(beta)*v + i``.
        Lapicque: ``h = (1 - dt/RC)*v + dt/C*x``, whatever beta was given (it only sets C). A delayed reset to zero clears the
        potential before the charge in Leaky, which keeps the step's input; the charged one elsewhere, which drops it.

        With ``reset_delay=False`` and ``zero`` the library doubles or keeps a potential that was above the threshold before
        the step; only a caller can bring one in.
        """
        kind = known_class(module, "snntorch")
        if kind not in _STATES:
            raise NotCanonicalError(f"snnTorch's {kind} has dynamics of its own, which the canonical neuron does not express")
        if module.state_quant or module.inhibition:
            raise NotCanonicalError("state_quant and inhibition are not expressed by the canonical neuron")
        _require_step_function(module.spike_grad)
        parameters: dict[str, Any] = {"threshold": parameter(module.threshold), "fire": ">", **_reset(module, kind)}
        if kind == "Lapicque":
            r, c, dt = parameter(module.R), parameter(module.C), parameter(module.time_step)
            parameters |= {"decay": 1.0 - dt / (r * c), "input_gain": r * (1.0 / (r * c)) * dt}
        else:
            parameters["decay"] = parameter(module.beta).clamp(0, 1)
        if "syn" in _STATES[kind]:
            parameters["syn_decay"] = parameter(module.alpha).clamp(0, 1)
        if bool((module.graded_spikes_factor != 1.0).any()):
            parameters["level"] = parameter(module.graded_spikes_factor)
        return Canonical(parameters)

    def forward(self, module: Any, neuron: Canonical, memory: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """The library's own calls: ``module(x)`` with the state in the module, or ``module(x, mem)`` with it passed in."""
        names = _STATES[library_class(module, "snntorch").__name__]
        given = dict(zip(("input_", *names), args, strict=False)) | kwargs
        x = given.pop("input_")
        for name, value in given.items():
            if value is not None:
                setattr(module, name, value)
        found = {name: value for name in names if (value := getattr(module, name)).shape == x.shape}  # others are zeros
        if "spk" in names:
            x = x + module.recurrent(found.get("spk", _one_sample_of_zeros(x)))
        before = found.get("mem")
        out = neuron.step(x, state_behind(neuron, memory, before, found.get("syn")))
        module.mem, current = state_shown(neuron, out, memory, before)
        if "syn" in names:
            module.syn = current
        if "spk" in names:
            module.spk = out.s
        if module.init_hidden and not module.output:
            return out.s
        return (out.s, *(getattr(module, name) for name in names if name != "spk"))

    def reset(self, module: Any) -> None:
        """The library's own reset keeps the batch size of the last call in zeros; those are forgotten, too."""
        if not callable(forget := getattr(module, "reset_mem", None)):
            return
        forget()
        if type(module).reset_mem.__module__.partition(".")[0] == "snntorch":
            for name in module._non_persistent_buffers_set:
                if isinstance(value := getattr(module, name), Tensor):
                    setattr(module, name, value.new_zeros(0))

    @contextlib.contextmanager
    def isolated(self, modules: Sequence[nn.Module]) -> Iterator[None]:
        """Its classes list every instance ever made, and ``utils.reset``, which a model may call, writes to all of them."""
        lists: dict[Any, Any] = {
            c: c.__dict__["instances"] for m in modules for c in type(m).__mro__ if "instances" in c.__dict__
        }
        for owner, everyone in lists.items():
            owner.instances = [m for m in everyone if any(m is own for own in modules)]
        try:
            yield
        finally:
            for owner, everyone in lists.items():
                owner.instances = everyone


def _reset(module: Any, kind: str) -> dict[str, Any]:
    """What the state function, chosen at construction, does after a spike; and what follows at once without ``reset_delay``."""
    function = module.state_function
    name = getattr(function, "__name__", "")
    mechanism = _RESETS.get(name)
    if mechanism is None or function != getattr(module, name):
        raise NotCanonicalError(f"state_function {function} is not expressed by the canonical neuron")
    if kind == "RSynaptic" or getattr(module, "reset_delay", True):  # RSynaptic's reset at once changes a local variable only
        delays = {"subtract": "with", "zero": "before" if kind == "Leaky" else "with", "none": "none"}
    else:
        delays = {"subtract": "both", "zero": "none", "none": "none"}
        if mechanism != module.reset_mechanism:
            raise NotCanonicalError("reset_mechanism was changed after construction, the library then mixes both")
        if bool((module.graded_spikes_factor == 0).any()):
            raise NotCanonicalError("a graded_spikes_factor of 0, by which a reset at once divides")
        if mechanism == "zero" and bool((module.threshold < 0).any()):
            raise NotCanonicalError("reset to zero at once, with a threshold below zero, fires again from the reset value")
    resets: dict[str, dict[str, Any]] = {"subtract": {"reset": "soft"}, "zero": {"v_reset": 0.0}, "none": {"reset": "none"}}
    return {**resets[mechanism], "delay": delays[mechanism]}


def _require_step_function(spike: Any) -> None:
    """Spikes are 1 above the threshold and 0 elsewhere, whatever stands for the gradient."""
    values = torch.tensor(_AROUND_ZERO)
    try:
        fires = bool((spike(values) == (values > 0)).all())
    except Exception as error:
        raise NotCanonicalError(f"spike_grad {spike} raises {type(error).__name__}: {error}") from error
    if not fires:
        raise NotCanonicalError(f"spike_grad {spike} is no step function: it does not give 1 above 0 and 0 elsewhere")


def _one_sample_of_zeros(x: Tensor) -> Tensor:
    """Spikes before the first step; one sample broadcasts, so the graph holds no batch size."""
    return x.new_zeros((1, *x.shape[1:]) if x.dim() > 1 else x.shape)
