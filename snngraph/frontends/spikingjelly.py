"""The neurons of SpikingJelly: ``activation_based`` (2.0.0 and 0.0.0.0.14) and ``clock_driven`` (0.0.0.0.14 and 0.0.0.0.12).

Nothing here imports SpikingJelly for its own sake: a neuron is known by the name and the module of its class. A class that
changes a neuron's dynamics is never taken for the neuron it derives from, whether the library wrote it or the user.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from snngraph.frontends.adapters import Adapter
from snngraph.frontends.canonical import Canonical, NotCanonicalError, Number, wide
from snngraph.ops import NeuronOutput, scalar

__all__ = ["SpikingJelly", "without_gpu_backends"]

_GPU_BACKENDS = ("cupy", "triton")
_CALLED = frozenset(("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__", "__setattr__"))
_HARMLESS = frozenset(
    ("extra_repr", "reset", "detach", "memories", "named_memories", "supported_step_mode", "supported_backends")
)


class SpikingJelly(Adapter):
    """The adapter of SpikingJelly: IF, LIF, ParametricLIF, CUBALIF, ternary and half-threshold neurons are canonical."""

    name = "spikingjelly"
    distribution = "spikingjelly"

    def matches(self, module: nn.Module) -> bool:
        """The neurons of the library and every other module whose state it keeps, and what derives from them."""
        return any(_is_neuron(c) or (_of_library(c) and c.__name__ == "MemoryModule") for c in type(module).__mro__)

    def neuron(self, module: nn.Module) -> Canonical:
        """By the class; its parameters are the module's attributes."""
        shown, kind = type(module).__name__, _kind(module)
        if kind is None:
            raise NotCanonicalError(f"{shown} keeps a state, but is none of SpikingJelly's neurons")
        if changed := _changed(module, kind):
            raise NotCanonicalError(f"{shown} changes {', '.join(changed)} of SpikingJelly's {kind.__name__}")
        if kind.__name__ not in _CANONICAL:
            raise NotCanonicalError(f"{kind.__name__}: {_reason(kind.__name__)}")
        if getattr(module, "backend", "torch") == "lava":
            raise NotCanonicalError(f"{shown}: its backend, Lava, computes in fixed point")
        if (precision := getattr(module, "_neuron_precision", None)) is not None:
            raise NotCanonicalError(f"{shown} computes in a precision of its own, {precision}")
        return _CANONICAL[kind.__name__](module)

    def forward(self, module: nn.Module, neuron: Canonical, memory: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Spikes of the shape of the input; ``module.v``, ``c`` and ``v_seq`` are left as the library leaves them.

        The state is the module's own: a model may write it between two calls.
        """
        (x,) = (*args, *kwargs.values())
        if not _takes_sequences(module):
            spikes = _step(module, neuron, memory, x)
            if _keeps_v_seq(module) and _starts_anew(module):
                module._append_v_seq(module.v)  # type: ignore[operator]
            return spikes
        if not _keeps_v_seq(module):
            _read_state(module, neuron, memory, x[0])
            out = neuron.sequence(x, memory)
            _write_state(module, neuron, memory, out, out.v)
            return out.s
        steps = [(_step(module, neuron, memory, frame), module.v) for frame in x]
        spikes, module.v_seq = (torch.stack(column) for column in zip(*steps, strict=True))
        return spikes

    def prepare(self, module: nn.Module) -> None:
        """PyTorch in place of CuPy and Triton, and ordinary operators in place of the library's compiled ones."""
        if getattr(module, "backend", "torch") in _GPU_BACKENDS:
            setattr(module, "backend", "torch")  # noqa: B010
        kind = _kind(module)
        if kind is not None and kind.__name__ in _PLAIN:
            _PLAIN[kind.__name__](module, kind)


# -- classes -------------------------------------------------------------------------------------------------------------------


def _of_library(kind: type) -> bool:
    return kind.__module__.startswith("spikingjelly.")


def _is_neuron(kind: type) -> bool:
    return _of_library(kind) and ".neuron" in kind.__module__ and issubclass(kind, nn.Module)


def _kind(module: nn.Module) -> type | None:
    """The library's neuron that ``module`` is, or derives from."""
    return next((c for c in type(module).__mro__ if _is_neuron(c)), None)


def _changed(module: nn.Module, kind: type) -> list[str]:
    """What of the neuron ``kind`` computes others than the library have written: a subclass, the module, a patch of ``kind``."""
    own = [c for c in kind.__mro__ if _of_library(c)]
    dynamics = {name for c in own for name in vars(c) if not name.startswith("__")} | _CALLED
    derived = type(module).__mro__[: type(module).__mro__.index(kind)]
    others = {name for c in derived for name in vars(c)} | set(vars(module))
    functions = [f for c in own for f in vars(c).values() if isinstance(f, FunctionType)]
    patched = {f.__name__ for f in functions if not f.__module__.startswith("spikingjelly.")}
    return sorted((dynamics & others | patched) - _HARMLESS)


def _starts_anew(module: nn.Module) -> bool:
    """Whether a state of another shape than the input's is replaced by the initial one: the neurons of 2.0.0."""
    return hasattr(module, "_append_v_seq")


def _takes_sequences(module: nn.Module) -> bool:
    mode = getattr(module, "step_mode", None)
    if mode is not None:
        return bool(mode == "m")
    kind = _kind(module)
    return kind is not None and kind.__name__.startswith("MultiStep")  # clock_driven


def _keeps_v_seq(module: Any) -> bool:
    return bool(getattr(module, "store_v_seq", hasattr(module, "v_seq")))  # clock_driven's MultiStep neurons: always


# -- state ---------------------------------------------------------------------------------------------------------------------


def _step(module: Any, neuron: Canonical, memory: dict[str, Any], x: Tensor) -> Tensor:
    _read_state(module, neuron, memory, x)
    out = neuron.step(x, memory)
    _write_state(module, neuron, memory, out, _after_reset(neuron.to(x.dtype), out) if _keeps_v_seq(module) else out.v)
    return out.s


def _read_state(module: Any, neuron: Canonical, memory: dict[str, Any], frame: Tensor) -> None:
    """The operator's state: what the operator left, unless the module's own has been written since."""
    v = memory["v"] if "v" in memory and module.v is memory.get("shown") else module.v
    memory["v"] = _fitting(module, v, frame, neuron.v_rest)
    if neuron.has_synapse:
        memory["i"] = _fitting(module, module.c, frame, 0.0)
        if not isinstance(memory["i"], Tensor) and memory["i"] == 0.0:
            del memory["i"]


def _fitting(module: Any, value: Any, frame: Tensor, initial: Number) -> Number:
    if not isinstance(value, Tensor):
        return float(value)
    return initial if value.shape != frame.shape and _starts_anew(module) else value


def _write_state(module: Any, neuron: Canonical, memory: dict[str, Any], out: NeuronOutput, v: Tensor) -> None:
    module.v = memory["shown"] = v
    if neuron.has_synapse:
        module.c = out.i


def _after_reset(neuron: Canonical, out: NeuronOutput) -> Tensor:
    """``out.v``, computed again for who keeps it at every step: steps whose state nothing else reads can be merged."""
    if neuron.parameters.get("reset") == "soft":
        return out.h - out.s * scalar(neuron.parameters["threshold"])
    return torch.where(out.s != 0, scalar(neuron.parameters["v_reset"]), out.h)


# -- what is canonical ---------------------------------------------------------------------------------------------------------


def _neuron(module: Any, **charge: Any) -> Canonical:
    reset = {"reset": "soft"} if module.v_reset is None else {"v_reset": _number(module.v_reset)}
    rest = 0.0 if module.v_reset is None else _number(module.v_reset)
    return Canonical({"threshold": _number(module.v_threshold), "fire": _fire(module), **reset, **charge}, v_rest=rest)


def _if(module: Any) -> Canonical:
    """IFNode: ``h = v + x``."""
    return _neuron(module)


def _lif(module: Any) -> Canonical:
    """LIFNode: ``h = v + (x - (v - rest))/tau``, or ``h = v - (v - rest)/tau + x`` without decay_input; rest is v_reset, or 0."""
    return _leaky(module, 1.0 / _number(module.tau))


def _plif(module: Any) -> Canonical:
    """ParametricLIFNode: LIFNode with ``1/tau = sigmoid(w)``."""
    return _leaky(module, wide(module.w).sigmoid())


def _leaky(module: Any, rate: Number) -> Canonical:
    charge: dict[str, Any] = {"decay": 1.0 - rate}
    if getattr(module, "decay_input", True):  # before 0.0.0.0.10 always
        charge["input_gain"] = rate
    if module.v_reset:
        charge["bias"] = _number(module.v_reset) * rate
    return _neuron(module, **charge)


def _cubalif(module: Any) -> Canonical:
    """CUBALIFNode: ``i = c_decay*i + x; h = v_decay*v + i``."""
    return _neuron(module, decay=_number(module.v_decay), syn_decay=_number(module.c_decay))


def _half_threshold(module: Any) -> Canonical:
    """HalfThresholdIFNode: IF with a soft reset that starts at half the threshold."""
    return replace(_neuron(module), v_rest=_number(module.v_threshold) / 2.0)


def _ternary(module: Any) -> Canonical:
    """TernaryIFNode and TernaryLIFNode fire +1 at the threshold and -1 at its negative."""
    charged = _lif(module) if hasattr(module, "tau") else _if(module)
    return replace(charged, parameters={**charged.parameters, "emit": "signed"})


def _simple(module: Any) -> Canonical:
    """SimpleIFNode and SimpleLIFNode start at 0 whatever the reset potential."""
    return replace(_lif(module) if hasattr(module, "tau") else _if(module), v_rest=0.0)


def _online(module: Any) -> Canonical:
    """OTTTLIFNode and SLTTLIFNode: LIFNode trained online."""
    if module.training:
        raise NotCanonicalError(f"{type(module).__name__} in training mode returns its trace, too: call eval()")
    return _lif(module)


_CANONICAL: dict[str, Callable[[Any], Canonical]] = {
    "IFNode": _if,
    "MultiStepIFNode": _if,
    "LIFNode": _lif,
    "MultiStepLIFNode": _lif,
    "ParametricLIFNode": _plif,
    "MultiStepParametricLIFNode": _plif,
    "CUBALIFNode": _cubalif,
    "HalfThresholdIFNode": _half_threshold,
    "TernaryIFNode": _ternary,
    "TernaryLIFNode": _ternary,
    "SimpleIFNode": _simple,
    "SimpleLIFNode": _simple,
    "OTTTLIFNode": _online,
    "SLTTLIFNode": _online,
}


def _number(value: Any) -> Any:
    """A plain number as it is; a tensor, of one element with all its digits."""
    return wide(value) if isinstance(value, Tensor) else value


_PROBES = (0.0, 1e-30, 1e-6, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0)


def _fire(module: Any) -> str:
    """How the neuron compares with its threshold; a surrogate function may be any function of ``h - threshold``."""
    evaluated = any(name.startswith("jit_eval_single_step") for name in dir(type(module)))  # 0.0.0.0.14's IF and LIF
    if not module.training and (evaluated or type(module).__name__ in ("OTTTLIFNode", "SLTTLIFNode")):
        return ">="
    u = torch.tensor([-p for p in _PROBES] + list(_PROBES))
    function = module.surrogate_function
    shown = getattr(function, "__name__", type(function).__name__)
    try:
        with torch.no_grad():
            spikes = function(u.clone())
    except Exception as error:
        raise NotCanonicalError(f"its surrogate function {shown} does not take a plain tensor: {error}") from error
    for fire, expected in ((">=", u >= 0), (">", u > 0)):
        if torch.equal(spikes, expected.to(spikes.dtype)):
            return fire
    raise NotCanonicalError(f"its surrogate function {shown} is no step from 0 to 1 at the threshold")


_REASONS = {
    "PSN": "its potential is a weighted sum over time steps",
    "QIF": "its charge is quadratic in the membrane potential",
    "EIF": "its charge is exponential in the membrane potential",
    "Izhikevich": "it has an adaptation current beside its membrane potential",
    "Adapt": "it has an adaptation current beside its membrane potential",
    "ILIF": "it emits h/threshold rounded to the nearest integer, up to a limit; a canonical count is rounded down, and has none",
    "KLIF": "its potential is rectified between charge and threshold",
    "LIAF": "it emits a function of its membrane potential",
    "GatedLIF": "its charge depends on the last spike and on the time step",
    "ComplementaryLIF": "its reset depends on a second potential",
    "RAF": "it resonates: its state is a complex number",
    "NonSpiking": "it emits its membrane potential",
    "STBIF": "whether it fires depends on what it has emitted so far",
    "ActivationAware": "its threshold stands on an axis of the input that is known only when it is called",
    "FewSpike": "it emits a code of one number over time",
    "MPBN": "a batch norm stands between its charge and its threshold",
    "DSR": "it forgets its membrane potential after every call",
    "FlexSN": "its step is a function of the user's",
    "Noisy": "it adds noise",
    "ILC": "its neurons are connected with one another",
}


def _reason(kind: str) -> str:
    """Why the library's neuron ``kind`` is not canonical."""
    found = next((reason for name, reason in sorted(_REASONS.items(), key=_longest_first) if name in kind), None)
    return found or "a neuron that the canonical form is not known to express"


def _longest_first(entry: tuple[str, str]) -> int:
    return -len(entry[0])


# -- ordinary operators --------------------------------------------------------------------------------------------------------
# The exporter sees through the compiled operators of most neurons; these are the others.


def _plain_stbif(module: Any, kind: Any) -> None:
    step = importlib.import_module("spikingjelly._ops.stbif.reference").step

    def single(inputs: Sequence[Tensor], states: Sequence[Tensor], **_: object) -> tuple[tuple[Tensor], tuple[Tensor, ...]]:
        out, *left = step(inputs[0], *states[:2], module.q_threshold, module.pos_max, module.neg_min)
        return (out,), tuple(left)

    module.single_step_functional_forward = single
    module.multi_step_functional_forward = partial(kind.__base__.multi_step_functional_forward, module)


def _plain_activation_aware(module: Any, kind: type) -> None:
    module._can_use_registered_multi_step = lambda *_: False


def _plain_masked_psn(module: Any, kind: type) -> None:
    """Its mask is blended by a number in a buffer, which it compares with 1."""
    if isinstance(module._lambda_, Tensor):
        weight, blend = module.masked_weight().detach(), float(module._lambda_)
        module.masked_weight = lambda: weight
        del module._lambda_
        module._lambda_ = blend


_PLAIN: dict[str, Callable[[Any, Any], None]] = {
    "STBIFNode": _plain_stbif,
    "ActivationAwareIFNode": _plain_activation_aware,
    "MaskedPSN": _plain_masked_psn,
}


# -- building without CuPy -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def without_gpu_backends() -> Iterator[None]:
    """Within it, models whose neurons ask for CuPy or Triton can be built on a machine without: these neurons run on PyTorch.

    SpikingJelly before 2.0.0 raises in ``LIFNode(step_mode="m", backend="cupy")`` or ``MultiStepLIFNode(backend="cupy")`` where
    CuPy is not installed. A backend that is installed stays as asked for. SpikingJelly may be imported before or within.
    """
    with contextlib.ExitStack() as undo:
        finder = _AfterImport({name: partial(patch, undo) for name, patch in _PATCHES.items()})
        for name, patch in finder.actions.items():
            if name in sys.modules:
                patch(sys.modules[name])
        sys.meta_path.insert(0, finder)
        undo.callback(sys.meta_path.remove, finder)
        yield


def _patch_activation_based(undo: contextlib.ExitStack, base: ModuleType) -> None:
    backend = vars(base.MemoryModule).get("backend")
    if backend is None:
        return  # 2.0.0 chooses by the device

    def set_backend(module: Any, value: str) -> None:
        try:
            backend.fset(module, value)
        except ImportError:
            if value not in _GPU_BACKENDS:
                raise
            backend.fset(module, "torch")

    undo.enter_context(mock.patch.object(base.MemoryModule, "backend", property(backend.fget, set_backend)))


def _patch_clock_driven(undo: contextlib.ExitStack, neuron: ModuleType) -> None:
    if getattr(neuron, "neuron_kernel", neuron) is not None:
        return  # CuPy is there, or a version that knows no backends
    check, setattr_of_base = getattr(neuron, "check_backend", None), neuron.BaseNode.__setattr__

    def check_backend(backend: str) -> None:
        if backend != "cupy" and check is not None:
            check(backend)

    def set_attribute(module: Any, name: str, value: Any) -> None:
        setattr_of_base(module, name, "torch" if (name, value) == ("backend", "cupy") else value)

    undo.enter_context(mock.patch.object(neuron, "check_backend", check_backend, create=True))
    undo.enter_context(mock.patch.object(neuron, "neuron_kernel", neuron))  # 0.0.0.0.10 and before look whether there is one
    undo.enter_context(mock.patch.object(neuron.BaseNode, "__setattr__", set_attribute))


_PATCHES = {
    "spikingjelly.activation_based.base": _patch_activation_based,
    "spikingjelly.clock_driven.neuron": _patch_clock_driven,
}


class _AfterImport(MetaPathFinder):
    """Runs an action on a module when it has been imported."""

    def __init__(self, actions: dict[str, Callable[[ModuleType], None]]) -> None:
        self.actions = actions

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                self.actions[name](module)

            vars(spec.loader)["exec_module"] = exec_module
        return spec
