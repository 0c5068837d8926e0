"""The neurons of Norse (read from 1.1).

Norse's modules keep no state: a step takes and returns a named tuple, which the model hands from step to step. What a step
returns is remembered with the operator's state it was made of, so that the steps of a loop are one chain.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from snngraph.frontends.adapters import Adapter
from snngraph.frontends.canonical import Canonical, NotCanonicalError
from snngraph.frontends.foreign import derives_from, is_per_channel, known_class, parameter, state_behind, state_shown

__all__ = ["Norse"]

_ACTIVATIONS = {
    "IAFCell": "iaf_feed_forward_step",
    "IAF": "iaf_feed_forward_step",
    "LIFBoxCell": "lif_box_feed_forward_step",
    "LIFCell": "lif_feed_forward_step",
    "LIF": "lif_feed_forward_step",
    "LIFRecurrentCell": "lif_step",
    "LIFRecurrent": "lif_step",
}


class Norse(Adapter):
    """Norse's IAF, LIF, LIFBox and the recurrent LIF, each as a cell or over a sequence; its other neurons stay as operators."""

    name: ClassVar[str] = "norse"
    distribution: ClassVar[str] = "norse"

    def matches(self, module: nn.Module) -> bool:
        """Every neuron with Norse's own state handling."""
        return derives_from(module, "norse", "SNN", "SNNCell", "SNNRecurrent", "SNNRecurrentCell")

    def neuron(self, module: Any) -> Canonical:
        """All fire strictly above the threshold.

        IAF: ``h = v + x``, starts at v_reset. LIFBox: ``h = v + dt/tau_mem*(x + v_leak - v)``; hard reset, or soft with
        ``reset_subtract``; starts at v_leak. LIF: ``j = i + x; h = v + dt/tau_mem*(v_leak - v + j); i' = (1 - dt/tau_syn)*j``,
        starts at v_leak: the operator's current is j, not i'.
        """
        kind, p = known_class(module, "norse"), module.p
        if kind not in _ACTIVATIONS:
            raise NotCanonicalError(f"Norse's {kind} has dynamics of its own, which the canonical neuron does not express")
        _require_own(module.activation, _ACTIVATIONS[kind])
        if getattr(module.state_fallback, "__func__", None) is not type(module).initial_state:
            raise NotCanonicalError(f"state_fallback {module.state_fallback} is not the module's own initial state")
        if p.method == "adjoint":
            raise NotCanonicalError("method 'adjoint' is not expressed by the canonical neuron")
        if kind == "LIFBoxCell":
            _require_own(p.reset_method, "reset_subtract" if _subtracts(p) else "reset_value")
        neuron = _canonical(module)
        if neuron.has_synapse and not bool((torch.as_tensor(neuron.i_scale) != 0).all()):
            raise NotCanonicalError("a synapse that forgets within one step: leave it out, LIFBox is the same neuron")
        return neuron

    def forward(self, module: Any, neuron: Canonical, memory: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """A cell's ``module(x, state)``, or over a sequence ``[T, N, ...]``; returns spikes and the new state."""
        call = dict(zip(("input_tensor", "state"), args, strict=False)) | kwargs
        x, state = call["input_tensor"], call.get("state")
        step = _Step(module, _canonical(module) if is_per_channel(neuron) else neuron, memory)
        if not derives_from(module, "norse", "SNN", "SNNRecurrent"):
            return step(x, state)
        if not step.recurrent and not module.record_states:
            return step.whole(x, state)
        spikes, states = [], []
        for frame in x.unbind(0):
            s, state = step(frame, state)
            spikes.append(s)
            states.append(state)
        return torch.stack(spikes), _stacked(states) if module.record_states else state

    def prepare(self, module: Any) -> None:
        """Its initial states ask for gradients; where one is a parameter itself, as in IAF, that one does, then, too."""
        initial_state = module.state_fallback

        def without_gradients(x: Tensor) -> Any:
            return pytree.tree_map(lambda part: part.requires_grad_(False), initial_state(x))

        module.state_fallback = without_gradients


def _canonical(module: Any) -> Canonical:
    p = module.p
    levels: dict[str, Any] = {"threshold": parameter(p.v_th), "fire": ">"}
    levels |= {"reset": "soft"} if _subtracts(p) else {"v_reset": parameter(p.v_reset)}
    if not hasattr(p, "tau_mem_inv"):
        return Canonical(levels, v_rest=parameter(p.v_reset))
    rate, leak = parameter(module.dt) * parameter(p.tau_mem_inv), parameter(p.v_leak)
    charge = {**levels, "decay": 1.0 - rate, "input_gain": rate, "bias": rate * leak}
    if not hasattr(p, "tau_syn_inv"):
        return Canonical(charge, v_rest=leak)
    syn_decay = 1.0 - parameter(module.dt) * parameter(p.tau_syn_inv)
    return Canonical({**charge, "syn_decay": syn_decay}, v_rest=leak, i_scale=syn_decay)


def _subtracts(p: Any) -> bool:
    return getattr(getattr(p, "reset_method", None), "__name__", "") == "reset_subtract"


class _Step:
    """A module's step, from a named tuple of state to the next."""

    def __init__(self, module: Any, neuron: Canonical, memory: dict[Any, Any]) -> None:
        self.module, self.neuron, self.memory = module, neuron, memory
        self.recurrent = hasattr(module, "recurrent_weights")
        self.state_class = module.initial_state.__annotations__["return"]

    def __call__(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if self.recurrent:
            x = F.linear(x, self.module.input_weights)
            if state is not None:  # without, there were no spikes before
                x = x + F.linear(state.z, self.module.recurrent_weights)
        return self._after(self.neuron.step(x, self._before(state)))

    def whole(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """All steps at once, without recurrence."""
        return self._after(self.neuron.sequence(x, self._before(state)))

    def _before(self, state: Any) -> dict[str, Any]:
        return state_behind(self.neuron, self.memory, getattr(state, "v", None), getattr(state, "i", None))

    def _after(self, out: Any) -> tuple[Tensor, Any]:
        v, i = state_shown(self.neuron, out, self.memory)
        found = {"z": out.s, "v": v, "i": i}
        return out.s, self.state_class(**{name: found[name] for name in self.state_class._fields})


def _require_own(function: Any, name: str) -> None:
    where = getattr(function, "__module__", "") or ""
    if getattr(function, "__name__", "") != name or where.partition(".")[0] != "norse":
        raise NotCanonicalError(f"{function} is not expressed by the canonical neuron: expected Norse's {name}")


def _stacked(states: list[Any]) -> Any:
    return type(states[0])(*(torch.stack(column) for column in zip(*states, strict=True)))
