"""Adapters: how the neuron modules of a library are seen during capture.

An adapter replaces the ``forward`` of every module it knows for the time of a capture. What it puts there computes with ``snn::``
operators and keeps the membrane state in a dictionary that the capture owns, so that no state is baked into the graph, none
leaks out of it, and the module is found afterwards as it was. Adapters of outside packages are found by the entry point group
``snngraph.adapters``; each entry names an :class:`Adapter` instance.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from snngraph import neurons, ops
from snngraph.errors import CaptureError, NameClashError

__all__ = ["Adapter", "SnnGraphNeurons", "adapted", "adapters"]

GROUP = "snngraph.adapters"


@runtime_checkable
class Adapter(Protocol):
    """What the capture asks of an adapter."""

    name: str

    def matches(self, module: nn.Module) -> bool:
        """Whether this adapter knows ``module``."""

    def forward(self, module: nn.Module, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """What ``module(*args, **kwargs)`` computes, with ``snn::`` operators; state between calls lives in ``memory``."""

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The module's state from earlier calls, empty when fresh."""

    def set_state(self, module: nn.Module, state: dict[str, Any]) -> None:
        """Puts a state back; an empty one resets the module."""


class SnnGraphNeurons:
    """The adapter of :mod:`snngraph.neurons`. A sequence module is stateless; a step module keeps its membrane potential."""

    name = "snngraph"

    def matches(self, module: nn.Module) -> bool:
        """Every :class:`snngraph.neurons.Neuron`."""
        return isinstance(module, neurons.Neuron)

    def forward(self, module: nn.Module, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The module's own arithmetic, its membrane potential in ``memory``."""
        assert isinstance(module, neurons.Neuron)
        if module.step_mode == "m":
            return type(module).forward(module, *args, **kwargs)
        x = args[0]
        s, memory["v"], _, _ = ops.lif_step(x, memory.get("v", module.v_init), **module.parameters_of_neuron())
        return s

    def state(self, module: nn.Module) -> dict[str, Any]:
        """The membrane potential, if the module has been stepped."""
        assert isinstance(module, neurons.Neuron)
        return {} if module.v is None else {"v": module.v}

    def set_state(self, module: nn.Module, state: dict[str, Any]) -> None:
        """Puts the membrane potential back, or forgets it."""
        assert isinstance(module, neurons.Neuron)
        module.v = state.get("v")


def adapters() -> tuple[Adapter, ...]:
    """All adapters: those of outside packages first, then our own.

    Raises:
        NameClashError: two adapters have one name.
        CaptureError: an entry point is no adapter.
    """
    found: dict[str, Adapter] = {}
    for entry in entry_points(group=GROUP):
        adapter = entry.load()
        adapter = adapter() if isinstance(adapter, type) else adapter
        if not isinstance(adapter, Adapter):
            title = f"entry point {entry.name!r} of {GROUP} ({entry.value})"
            raise CaptureError(f"{title} is no Adapter: see snngraph.frontends.adapters")
        if adapter.name in found or adapter.name == SnnGraphNeurons.name:
            raise NameClashError(f"two adapters are named {adapter.name!r}; one of them comes from {entry.value}")
        found[adapter.name] = adapter
    return (*found.values(), SnnGraphNeurons())


def matching(model: nn.Module) -> list[tuple[nn.Module, Adapter]]:
    """The modules of ``model`` that an adapter knows, with that adapter."""
    known = adapters()
    pairs = ((module, next((a for a in known if a.matches(module)), None)) for module in model.modules())
    return [(module, adapter) for module, adapter in pairs if adapter is not None]


@contextlib.contextmanager
def adapted(model: nn.Module) -> Iterator[None]:
    """Within it, every known neuron module computes as its adapter says, starting from the reset state."""
    replaced: list[tuple[nn.Module, str]] = []

    def put(module: nn.Module, name: str, function: Any) -> None:
        module.__dict__[name] = function
        replaced.append((module, name))

    try:
        for module, adapter in matching(model):
            memory: dict[str, Any] = {}
            put(module, "forward", functools.partial(adapter.forward, module, memory))
            if callable(getattr(module, "reset", None)):
                put(module, "reset", memory.clear)  # a model may reset its neurons in its own forward
        yield
    finally:
        for module, name in replaced:
            del module.__dict__[name]


@contextlib.contextmanager
def fresh_state(model: nn.Module) -> Iterator[bool]:
    """Within it the known neurons are reset; afterwards they have their state again. Yields whether any had one."""
    kept = [(module, adapter, adapter.state(module)) for module, adapter in matching(model)]
    try:
        reset_state(model)
        yield any(state for _, _, state in kept)
    finally:
        for module, adapter, state in kept:
            adapter.set_state(module, state)


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts the modules' attributes and buffers back afterwards: what runs on fake tensors must not leave any behind."""
    kept = [(m, dict(m.__dict__), dict(m._buffers)) for m in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._buffers.clear()
            module._buffers.update(buffers)


def reset_state(model: nn.Module) -> None:
    """Resets every known neuron."""
    for module, adapter in matching(model):
        adapter.set_state(module, {})
