"""Adapters: how the neuron modules of a library are seen during capture.

An adapter says which modules are neurons of its library, what each is in canonical terms, and how the library calls it. For the
time of a capture the ``forward`` of every such module computes with ``snn::`` operators, starting from the reset state. A neuron
that the canonical form does not express keeps its own ``forward`` and is captured as ordinary operators, with the reason in the
graph's report. Whatever a run leaves in the modules is put back by :mod:`snngraph.frontends.state`.

Adapters of outside packages are found by the entry point group ``snngraph.adapters``; each entry names an :class:`Adapter`, a
class or an instance.
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any, ClassVar

from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from snngraph import neurons
from snngraph.errors import CaptureError, NameClashError
from snngraph.frontends.canonical import Canonical, NotCanonicalError

__all__ = ["Adapter", "Found", "SnnGraphNeurons", "adapted", "adapters", "found_in", "reset_neurons"]

GROUP = "snngraph.adapters"


class Adapter(ABC):
    """What the capture has to know of a library's neurons. One instance serves all modules; it keeps no state of its own.

    Class attributes:
        name: the library, as users call it.
        distribution: its package's name, whose version is recorded with the graph.
        bitwise: whether the canonical form computes the very float operations of the library's own.
    """

    name: ClassVar[str]
    distribution: ClassVar[str] = ""
    bitwise: ClassVar[bool] = False

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether ``module`` is a neuron of this library."""

    @abstractmethod
    def neuron(self, module: nn.Module) -> Canonical:
        """What ``module`` is, read from its attributes.

        Raises:
            NotCanonicalError: the canonical form does not express it; the message is the reason.
        """

    @abstractmethod
    def forward(self, module: nn.Module, neuron: Canonical, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """What ``module(*args, **kwargs)`` returns, computed with ``neuron``.

        Args:
            module: the library's module. Its attributes may be written, as its own forward does: they are put back afterwards.
            neuron: of :meth:`neuron`.
            memory: this module's own, empty at the start of a capture and after ``module.reset()``. See :meth:`Canonical.step`.
        """

    def prepare(self, module: nn.Module) -> None:  # noqa: B027  (most libraries need nothing)
        """Makes the module's own forward runnable here (say, on a CPU) for the time of a capture."""

    def reset(self, module: nn.Module) -> None:
        """Brings the module's own state to what it is before the first step."""
        if callable(forget := getattr(module, "reset", None)):
            forget()

    def isolated(self, modules: Sequence[nn.Module]) -> contextlib.AbstractContextManager[None]:
        """Within it, what ``modules``, one model's, do to one another reaches no other model."""
        return contextlib.nullcontext()

    def library(self) -> str:
        """The library and its version."""
        try:
            return f"{self.name} {version(self.distribution)}" if self.distribution else self.name
        except PackageNotFoundError:
            return self.name


class SnnGraphNeurons(Adapter):
    """The adapter of :mod:`snngraph.neurons`. A sequence module is stateless; a step module keeps its membrane potential."""

    name = "snngraph"
    bitwise = True

    def matches(self, module: nn.Module) -> bool:
        """Every :class:`snngraph.neurons.Neuron`."""
        return isinstance(module, neurons.Neuron)

    def neuron(self, module: nn.Module) -> Canonical:
        """Its own parameters."""
        assert isinstance(module, neurons.Neuron)
        return Canonical(module.parameters_of_neuron(), v_rest=module.v_init)

    def forward(self, module: nn.Module, neuron: Canonical, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The module's own arithmetic, its membrane potential in ``memory``; parameters are read while it is captured."""
        assert isinstance(module, neurons.Neuron)
        if module.step_mode == "m":
            return type(module).forward(module, *args, **kwargs)
        return self.neuron(module).step(args[0], memory).s


@dataclass(frozen=True)
class Found:
    """A neuron module of a model: its path, its adapter, and what it is, or why the canonical form does not express it.

    ``known`` is false where the adapter can not reset it: a version of the library that it does not know.
    """

    path: str
    module: nn.Module
    adapter: Adapter
    neuron: Canonical | None
    reason: str = ""
    known: bool = True


@functools.cache
def _builtin() -> tuple[Adapter, ...]:
    from snngraph.frontends.norse import Norse
    from snngraph.frontends.sinabs import Sinabs
    from snngraph.frontends.snntorch import SnnTorch
    from snngraph.frontends.spikingjelly import SpikingJelly

    return SnnGraphNeurons(), SpikingJelly(), SnnTorch(), Norse(), Sinabs()


def adapters() -> tuple[Adapter, ...]:
    """All adapters: those of outside packages first, then our own.

    Raises:
        NameClashError: two adapters have one name.
        CaptureError: an entry point is no adapter.
    """
    found: dict[str, Adapter] = {}
    ours = _builtin()
    for entry in entry_points(group=GROUP):
        adapter = entry.load()
        adapter = adapter() if isinstance(adapter, type) else adapter
        if not isinstance(adapter, Adapter):
            title = f"entry point {entry.name!r} of {GROUP} ({entry.value})"
            raise CaptureError(f"{title} is no Adapter: see snngraph.frontends.adapters")
        if adapter.name in found or adapter.name in {a.name for a in ours}:
            raise NameClashError(f"two adapters are named {adapter.name!r}; one of them comes from {entry.value}")
        found[adapter.name] = adapter
    return (*found.values(), *ours)


def found_in(model: nn.Module) -> list[Found]:
    """The neuron modules of ``model`` that an adapter knows."""
    known, result = adapters(), []
    for path, module in model.named_modules():
        adapter = next((a for a in known if a.matches(module)), None)
        if adapter is None:
            continue
        try:
            with unset_fake_temporarily():  # the axes of a model are found on fake tensors, which have no values to read
                result.append(Found(path, module, adapter, adapter.neuron(module)))
        except NotCanonicalError as refusal:
            result.append(Found(path, module, adapter, None, str(refusal)))
        except Exception as error:  # another version of the library, whose module has other attributes
            reason = f"the adapter does not know this version of {adapter.name} ({type(error).__name__}: {error})"
            result.append(Found(path, module, adapter, None, reason))
    return result


@contextlib.contextmanager
def adapted(model: nn.Module, *, bitwise_only: bool = False) -> Iterator[None]:
    """Within it, every known neuron computes as its adapter says, from the reset state.

    Args:
        model: the model; its modules' ``forward`` and ``reset`` are replaced, and put back afterwards.
        bitwise_only: leaves the neurons alone whose own arithmetic the canonical form computes in another order.
    """
    replaced: list[tuple[nn.Module, str, Any]] = []
    neurons_found = found_in(model)

    def put(module: nn.Module, name: str, function: Any) -> None:
        replaced.append((module, name, module.__dict__.get(name)))
        module.__dict__[name] = function

    try:
        with contextlib.ExitStack() as stack:
            for adapter in dict.fromkeys(f.adapter for f in neurons_found):
                stack.enter_context(adapter.isolated([f.module for f in neurons_found if f.adapter is adapter]))
            for found in neurons_found:
                with unset_fake_temporarily():
                    found.adapter.prepare(found.module)
                if found.neuron is None or (bitwise_only and not found.adapter.bitwise):
                    continue
                memory: dict[str, Any] = {}
                put(found.module, "forward", functools.partial(found.adapter.forward, found.module, found.neuron, memory))
                if callable(own := getattr(found.module, "reset", None)):
                    put(found.module, "reset", functools.partial(_forget, memory, own))  # a model may reset in its own forward
            yield
    finally:
        for module, name, own in replaced:
            module.__dict__.pop(name, None)
            if own is not None:
                module.__dict__[name] = own


def _forget(memory: dict[str, Any], reset: Any, *args: Any, **kwargs: Any) -> None:
    memory.clear()
    reset(*args, **kwargs)


def reset_neurons(model: nn.Module) -> set[str]:
    """Resets every known neuron; returns the paths of those that their adapter can not reset."""
    failed = set()
    for found in found_in(model):
        try:
            found.adapter.reset(found.module)
        except Exception:  # another version of the library
            failed.add(found.path)
    return failed
