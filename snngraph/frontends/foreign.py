"""What the adapters of foreign libraries have in common.

No adapter imports its library: classes are known by their names and modules. What a library's neuron computes is decided by the
library's own class; as soon as somebody's subclass, or the instance, replaces a part of it, nothing is known of it any more.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from snngraph import ops
from snngraph.frontends.canonical import Canonical, NotCanonicalError, Number, wide
from snngraph.ops import NeuronOutput

__all__ = ["derives_from", "is_per_channel", "known_class", "library_class", "parameter", "state_behind", "state_shown"]

_DYNAMIC = frozenset(("__call__", "__getattr__", "__getattribute__", "__setattr__"))


def derives_from(module: nn.Module, package: str, *names: str) -> bool:
    """Whether ``module`` is an instance of one of these classes of ``package``."""
    return any(c.__name__ in names for c in type(module).__mro__ if _is_of(c, package))


def library_class(module: nn.Module, package: str) -> type:
    """The class of ``package`` that ``module`` is an instance of, the most derived one."""
    return next(c for c in type(module).__mro__ if _is_of(c, package))


def known_class(module: nn.Module, package: str) -> str:
    """The name of :func:`library_class`, which says what ``module`` computes.

    Raises:
        NotCanonicalError: a class derived from it, the instance, or somebody's patch replaces something of it.
    """
    own = library_class(module, package)
    derived = type(module).__mro__[: type(module).__mro__.index(own)]
    names = {name for c in derived for name in vars(c) if not _is_plumbing(name) and hasattr(own, name)}
    names |= {name for name in vars(module) if callable(getattr(own, name, None))}
    functions = [(name, f) for c in own.__mro__ if _is_of(c, package) for name, f in vars(c).items()]
    names |= {name for name, f in functions if isinstance(f, FunctionType) and not _is_of(f, package)}
    if names:
        raise NotCanonicalError(f"{type(module).__name__} replaces {', '.join(sorted(names))} of {own.__name__}")
    return own.__name__


def _is_of(thing: type | FunctionType, package: str) -> bool:
    return thing.__module__.partition(".")[0] == package


def _is_plumbing(name: str) -> bool:
    return (name.startswith("__") and name not in _DYNAMIC) or name in ("extra_repr", "_abc_impl")


def parameter(value: Number) -> Tensor:
    """A neuron's parameter as a constant: whole numbers become floating, 0-d tensors float64 (see :func:`wide`)."""
    tensor = wide(value)
    return tensor if tensor.is_floating_point() else tensor.float()


def is_per_channel(neuron: Canonical) -> bool:
    """Whether a parameter is no single number.

    Tensors of numbers have the type of the input, so what is computed of them is rounded, unless the graph itself computes it:
    then it follows the graph to float64.
    """
    return any(isinstance(p, Tensor) and p.dim() > 0 for p in neuron.parameters.values())


def state_behind(neuron: Canonical, memory: dict[Any, Any], v: Any = None, i: Any = None) -> dict[str, Any]:
    """The operator's state for a library's ``v`` and ``i``: the very one that :func:`state_shown` made them of, if it did."""
    state = neuron.start(v, i)
    for name, shown in (("v", v), ("i", i)):
        if isinstance(shown, Tensor) and _identity(shown) in memory:
            _, state[name] = memory[_identity(shown)]
    return state


def state_shown(neuron: Canonical, out: NeuronOutput, memory: dict[Any, Any], before: Any = None) -> tuple[Tensor, Tensor]:
    """The library's potential and current (empty without a synapse) after the operator returned ``out``.

    The potential after one step is made anew from ``out.h``. A model may record it, and still the operator's own state goes on
    to the next step alone: a state that others read keeps the steps of a neuron apart.

    Args:
        neuron: what the operator computed.
        out: its outputs, of one step or of a sequence.
        memory: where :func:`state_behind` finds the operator's state again.
        before: the library's potential before the step.
    """
    v, i = neuron.state(out._replace(v=_potential(neuron, out, before)) if out.h.dim() == out.v.dim() else out)
    for shown, state in ((v, out.v), (i, out.i)):
        memory[_identity(shown)] = (shown, state)  # kept alive, so its storage stays its own
    return v, i


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    """The same for the tensor after ``detach()``, another one once it has been written to.

    Tensors of inference mode do not count how often they are written to; the proof of the graph has to see that.
    """
    version = -1 if tensor.is_inference() else tensor._version
    storage = tensor.untyped_storage()._cdata
    return (storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, version)


def _potential(neuron: Canonical, out: NeuronOutput, before: Any) -> Tensor:
    """``out.v`` of one step, made of ``out.h``: the end of :func:`snngraph.ops.lif_step_reference`."""
    p: dict[str, Any] = {k: ops.scalar(v) if isinstance(v, float) else v for k, v in neuron.to(out.h.dtype).parameters.items()}
    reset, delay = p.get("reset", "hard"), p.get("delay", "none")
    if delay in ("before", "with"):
        return out.h
    v = out.h
    if reset != "none":
        options = {"threshold": p["threshold"], "fire": p["fire"], "emit": p.get("emit", "spike")}
        fired = ops.emit_spikes(v, **options)
        if delay == "both" and before is not None:
            fired = fired - ops.emit_spikes(before, **options)
        if reset == "soft":
            v = v - fired * p.get("reset_amount", p["threshold"])
        else:
            v = torch.where(fired != 0, p["v_reset"], v)
    return torch.maximum(v, p["floor"]) if "floor" in p else v
