"""The neurons of sinabs (read from 3.1).

Its layers take ``[N, T, ...]``, or ``[N*T, ...]`` in the ``Squeeze`` forms, and keep their state in buffers. ``MembraneReset(r)``
computes ``v' = where(s, 0, h) + r``: r is added to every neuron at every step, so the operator's state is the potential less r.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from snngraph.frontends.adapters import Adapter
from snngraph.frontends.canonical import Canonical, NotCanonicalError
from snngraph.frontends.foreign import derives_from, is_per_channel, known_class, parameter, state_behind, state_shown
from snngraph.ops import NeuronOutput

__all__ = ["Sinabs"]

_NEURONS = ("IAF", "IAFSqueeze", "IAFRecurrent", "LIF", "LIFSqueeze", "LIFRecurrent")


class Sinabs(Adapter):
    """The IAF and LIF of sinabs, plain, squeezed or recurrent; its other layers with state stay as operators."""

    name: ClassVar[str] = "sinabs"
    distribution: ClassVar[str] = "sinabs"

    def matches(self, module: nn.Module) -> bool:
        """Every ``StatefulLayer``."""
        return derives_from(module, "sinabs", "StatefulLayer")

    def neuron(self, module: Any) -> Canonical:
        """``i = alpha_syn*(i + x); h = alpha_mem*v + i``, ``(1 - alpha_mem)*i`` with norm_input; counts or single spikes."""
        kind = known_class(module, "sinabs")
        if kind not in _NEURONS:
            raise NotCanonicalError(f"sinabs' {kind} has dynamics of its own, which the canonical neuron does not express")
        emit = getattr(module.spike_fn, "__name__", None)
        if emit not in ("MultiSpike", "SingleSpike") or not _is_own(module.spike_fn):
            raise NotCanonicalError(f"spike_fn {module.spike_fn} is not expressed by the canonical neuron")
        reset = type(module.reset_fn)
        if reset.__name__ not in ("MembraneReset", "MembraneSubtract") or not _is_own(reset):
            raise NotCanonicalError(f"reset_fn {module.reset_fn} is not expressed by the canonical neuron")
        return _canonical(module)

    def forward(self, module: Any, neuron: Canonical, memory: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        """All steps of ``[N, T, ...]``, or of ``[N*T, ...]`` in a squeezed form; the state goes on from the module's buffers."""
        (x,) = (*args, *kwargs.values())
        squeezed = derives_from(module, "sinabs", "SqueezeMixin")
        if squeezed:
            x = x.reshape(module.batch_size, module.num_timesteps, *x.shape[1:])
        if is_per_channel(neuron):
            neuron = _canonical(module)
        shape = (x.shape[0], *x.shape[2:])
        found = [b if (b := getattr(module, n, None)) is not None and b.shape == shape else None for n in ("v_mem", "i_syn")]
        out, s = _run(module, neuron, x, state_behind(neuron, memory, *found))
        module.v_mem, current = state_shown(neuron, out, memory)
        if neuron.has_synapse:
            module.i_syn = current
        return s.flatten(0, 1) if squeezed else s

    def reset(self, module: Any) -> None:
        """The library's own reset keeps the batch size of the last call in zeros; those are forgotten, too."""
        module.reset_states()
        if _is_own(type(module).reset_states):
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.new_zeros(0))


def _run(module: Any, neuron: Canonical, x: Tensor, state: dict[str, Any]) -> tuple[NeuronOutput, Tensor]:
    """The operator's last outputs and all spikes ``[N, T, ...]``; a recurrent connection adds what it makes of those before."""
    connection: Any = getattr(module, "rec_connect", None)
    if connection is None and x.shape[1] > 1:
        out = neuron.sequence(x.transpose(0, 1), state)
        return out, out.s.transpose(0, 1)
    spikes: list[Tensor] = []
    for frame in x.unbind(1):
        if spikes:
            frame = frame + connection(spikes[-1]).reshape(frame.shape)
        out = neuron.step(frame, state)
        spikes.append(out.s)
    return out, torch.stack(spikes, 1) if len(spikes) > 1 else spikes[0].unsqueeze(1)


def _canonical(module: Any) -> Canonical:
    alpha, alpha_syn = _decay(module, "mem"), _decay(module, "syn")
    parameters: dict[str, Any] = {
        "decay": 1.0 if alpha is None else alpha,  # IAF
        "threshold": parameter(module.spike_threshold),
        "fire": ">=",
        "emit": "count" if module.spike_fn.__name__ == "MultiSpike" else "spike",
    }
    if alpha_syn is not None:
        parameters["syn_decay"] = parameters["syn_gain"] = alpha_syn
    if module.norm_input:
        parameters["input_gain"] = 1.0 - parameters["decay"]
    if module.min_v_mem is not None:
        parameters["floor"] = parameter(module.min_v_mem)
    if type(module.reset_fn).__name__ == "MembraneSubtract":
        amount = module.reset_fn.subtract_value
        return Canonical({**parameters, "reset": "soft", **({} if amount is None else {"reset_amount": parameter(amount)})})
    parameters["v_reset"] = 0.0
    shift = module.reset_fn.reset_value
    if not shift:
        return Canonical(parameters)
    parameters["bias"] = parameters["decay"] * shift
    if "floor" in parameters:
        parameters["floor"] = parameters["floor"] - shift
    return Canonical(parameters, v_shift=shift)


def _decay(module: Any, name: str) -> Tensor | None:
    """The factor of ``name`` per step: trained itself, or ``exp(-1/tau)``."""
    if module.train_alphas:
        alpha = getattr(module, f"alpha_{name}")
        return None if alpha is None else parameter(alpha)
    tau = getattr(module, f"tau_{name}")
    return None if tau is None else torch.exp(-1.0 / parameter(tau))


def _is_own(thing: Any) -> bool:
    return bool(thing.__module__.partition(".")[0] == "sinabs")
