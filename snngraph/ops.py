"""The ``snn::`` operators: one spiking neuron, over a whole sequence (``lif``) or for one step (``lif_step``).

The canonical neuron, for every time step (``x`` is that step's input, ``v`` and ``i`` the state it finds):

    i  = syn_decay*i + syn_gain*gain*x        with a synapse; otherwise i = gain*x
    h  = decay*v + input_gain*i + bias        charge
    s  = h >= threshold   or   h > threshold  fire; emitted as s, level*s, a count or a signed spike
    v' = where(s, v_reset, h)                 hard reset
         h - s*reset_amount                   soft reset
         h                                    no reset
    v' = max(v', floor)

With a delayed reset the neuron stores ``h`` itself; whether to reset is decided at the next step from the stored value, either
``before`` that step's charge (the stored value is reset, then charged: snnTorch's Leaky with ``zero``) or ``with`` it (the
charged value is reset: snnTorch's Leaky with ``subtract``). ``both`` is a soft reset ``with`` the charge, made up at once to what
the step's own spike asks for, ``v' = h - (s - s_stored)*reset_amount`` (snnTorch's ``reset_delay=False``): an immediate reset as
long as no stored potential is above the threshold, and another thing after an input of more than two thresholds.

Resets are selects, never products, because ``0 * inf`` is NaN. The gradient of a hard reset is still that of
``(1 - s)*h + s*v_reset``; none flows through the decision of a delayed reset, or of a hard one after counts or signed spikes.

Parameters are tensors that broadcast to one step of ``x``. A plain number becomes a 0-d float64 tensor: PyTorch computes with it
as it does with a Python number (it never promotes a float32 input), and it keeps all its digits when a graph is run in float64.
Other tensors have the dtype of ``x``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

__all__ = ["NeuronOutput", "emit_spikes", "lif", "lif_reference", "lif_step", "lif_step_reference", "plain_arithmetic", "scalar"]

FIRE = (">=", ">")
RESET = ("hard", "soft", "none")
DELAY = ("none", "before", "with", "both")
EMIT = ("spike", "count", "signed")
SURROGATES = ("atan", "sigmoid", "piecewise")


class NeuronOutput(NamedTuple):
    """What a neuron operator returns.

    ``lif``: ``s`` ``[T, N, ...]``; ``v`` and ``i``, the state after the last step, ``[N, ...]``; ``h``, the membrane potential
    just before the threshold, ``[T, N, ...]``, or ``[0, N, ...]`` unless ``with_h=True``. ``lif_step``: all ``[N, ...]``.
    Without a synapse ``i`` is empty (``[0]``).
    """

    s: Tensor
    v: Tensor
    i: Tensor
    h: Tensor


NEURON_SCHEMA = (
    "Tensor x, Tensor v, Tensor decay, Tensor threshold, Tensor? input_gain=None, Tensor? bias=None, Tensor? v_reset=None, "
    "Tensor? reset_amount=None, Tensor? gain=None, Tensor? i=None, Tensor? syn_decay=None, Tensor? syn_gain=None, "
    'Tensor? floor=None, Tensor? level=None, *, str fire=">=", str reset="hard", str delay="none", str emit="spike", '
)
TRAINING_SCHEMA = 'str surrogate="atan", float alpha=2.0, bool detach_reset=False) -> (Tensor s, Tensor v, Tensor i, Tensor h)'

_library = torch.library.Library("snn", "DEF")
_library.define(f"lif({NEURON_SCHEMA}bool with_h=False, {TRAINING_SCHEMA}", tags=(torch.Tag.pt2_compliant_tag,))
_library.define(f"lif_step({NEURON_SCHEMA}{TRAINING_SCHEMA}", tags=(torch.Tag.pt2_compliant_tag,))


# -- surrogate gradients -------------------------------------------------------------------------------------------------------


def _surrogate_gradient(u: Tensor, kind: str, alpha: float) -> Tensor:
    """d(spike)/du at ``u = h - threshold``.

    ``atan``: Fang et al. 2021 (arXiv 2007.05785), ``a/2 / (1 + (pi/2 a u)^2)``. ``sigmoid``: ``a s(au)(1 - s(au))``.
    ``piecewise``: the triangle ``max(0, a - a^2 |u|)`` (Esser et al. 2016; SpikingJelly's piecewise quadratic).
    """
    if kind == "atan":
        return alpha / 2 / (1 + (torch.pi / 2 * alpha * u) ** 2)
    if kind == "sigmoid":
        s = torch.sigmoid(alpha * u)
        return alpha * s * (1 - s)
    return torch.clamp(alpha - alpha * alpha * u.abs(), min=0.0)


class _Emit(torch.autograd.Function):
    """What a neuron at ``h`` emits, with a surrogate for the derivative that is zero almost everywhere."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, fire: str, emit: str, surrogate: str, alpha: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.options = (emit, surrogate, alpha)
        return emit_spikes(h, threshold, fire, emit)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        h, threshold = ctx.saved_tensors
        emit, surrogate, alpha = ctx.options
        to_h, to_threshold = (grad * slope for slope in _emit_slopes(h, threshold, emit, surrogate, alpha))
        if not ctx.needs_input_grad[1]:
            return to_h.to(h.dtype), None, None, None, None, None
        return to_h.to(h.dtype), to_threshold.sum_to_size(threshold.shape).to(threshold.dtype), None, None, None, None


class _HardReset(torch.autograd.Function):
    """``where(fired, v_reset, v)`` with the gradient of ``(1 - fired)*v + fired*v_reset``, for ``fired`` 0 or 1."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, fired: Tensor, v_reset: Tensor) -> Tensor:
        ctx.save_for_backward(v, fired, v_reset)
        return torch.where(fired != 0, v_reset, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        v, fired, v_reset = ctx.saved_tensors
        nothing = torch.zeros_like(grad)
        to_fired = grad * (v_reset - v) if ctx.needs_input_grad[1] else None
        to_v_reset = torch.where(fired != 0, grad, nothing).sum_to_size(v_reset.shape) if ctx.needs_input_grad[2] else None
        return torch.where(fired != 0, nothing, grad), to_fired, None if to_v_reset is None else to_v_reset.to(v_reset.dtype)


def _emit_slopes(h: Tensor, threshold: Tensor, emit: str, surrogate: str, alpha: float) -> tuple[Tensor, Tensor]:
    """What stands for the derivative of the emitted value by ``h`` and by ``threshold``."""
    if emit == "count":  # a staircase whose trend is h/threshold, where the neuron is active at all
        nothing = torch.zeros_like(h)
        return torch.where(h > 0, 1 / threshold, nothing), torch.where(h > 0, -h / (threshold * threshold), nothing)
    above = _surrogate_gradient(h - threshold, surrogate, alpha)
    if emit == "spike":
        return above, -above
    below = _surrogate_gradient(h + threshold, surrogate, alpha)
    return above + below, below - above


def _fires(h: Tensor, threshold: Tensor, fire: str) -> Tensor:
    return h >= threshold if fire == ">=" else h > threshold


def emit_spikes(h: Tensor, threshold: Tensor, fire: str, emit: str) -> Tensor:
    """What a neuron at ``h`` emits, before its level; in the type of ``h``."""
    if emit == "spike":
        return _fires(h, threshold, fire).to(h.dtype)
    if emit == "count":  # sinabs' multi-spike: how often the threshold fits in, never negative
        return torch.where(h > 0, torch.div(h, threshold, rounding_mode="trunc"), torch.zeros_like(h))
    return _fires(h, threshold, fire).to(h.dtype) - _fires(-h, threshold, fire).to(h.dtype)


# -- the reference -------------------------------------------------------------------------------------------------------------


def _apply_reset(
    v: Tensor, fired: Tensor, threshold: Tensor, v_reset: Tensor | None, reset_amount: Tensor | None, reset: str
) -> Tensor:
    if reset == "hard":
        assert v_reset is not None
        selected: Tensor = _HardReset.apply(v, fired, v_reset)  # type: ignore[no-untyped-call]
        return selected
    if reset == "soft":
        return v - fired * (threshold if reset_amount is None else reset_amount)
    return v


def lif_step_reference(
    x: Tensor,
    v: Tensor,
    decay: Tensor,
    threshold: Tensor,
    *,
    input_gain: Tensor | None = None,
    bias: Tensor | None = None,
    v_reset: Tensor | None = None,
    reset_amount: Tensor | None = None,
    gain: Tensor | None = None,
    i: Tensor | None = None,
    syn_decay: Tensor | None = None,
    syn_gain: Tensor | None = None,
    floor: Tensor | None = None,
    level: Tensor | None = None,
    fire: str = ">=",
    reset: str = "hard",
    delay: str = "none",
    emit: str = "spike",
    surrogate: str = "atan",
    alpha: float = 2.0,
    detach_reset: bool = False,
) -> NeuronOutput:
    """One step of the canonical neuron in plain PyTorch: the definition of ``snn::lif_step``. Shapes as :class:`NeuronOutput`."""
    current = x if gain is None else gain * x
    if syn_decay is not None:
        current = current if syn_gain is None else syn_gain * current
        current = current if i is None else syn_decay * i + current
    if delay != "none":
        v = v.to(x).expand(x.shape)  # a number would let per-channel parameters decide in float64
        fired = emit_spikes(v, threshold, fire, emit).detach()
        if delay == "before":
            v = _apply_reset(v, fired, threshold, v_reset, reset_amount, reset)
    h = decay * v + (current if input_gain is None else input_gain * current)
    if bias is not None:
        h = h + bias
    if delay in ("with", "both"):
        h = _apply_reset(h, fired, threshold, v_reset, reset_amount, reset)
    if floor is not None and delay in ("before", "with"):  # the stored potential is h itself
        h = torch.maximum(h, floor)
    s = _Emit.apply(h, threshold, fire, emit, surrogate, alpha)  # type: ignore[no-untyped-call]
    v = h
    if delay in ("none", "both"):
        due = s.detach() if detach_reset or (reset == "hard" and emit != "spike") else s
        due = due - fired if delay == "both" else due
        v = _apply_reset(h, due, threshold, v_reset, reset_amount, reset)
        if floor is not None:
            v = torch.maximum(v, floor)
    return NeuronOutput(s if level is None else level * s, v, current if syn_decay is not None else x.new_empty(0), h)


def lif_reference(
    x: Tensor, v: Tensor, decay: Tensor, threshold: Tensor, *, gain: Tensor | None = None, with_h: bool = False, **parameters: Any
) -> NeuronOutput:
    """The canonical neuron over a sequence ``x`` ``[T, N, ...]`` in plain PyTorch: the definition of ``snn::lif``."""
    if x.shape[0] == 0:
        raise ValueError("x has no time step: expected [T, N, ...] with T of 1 or more")
    state_i = parameters.pop("i", None)
    outputs: list[Tensor] = []
    potentials: list[Tensor] = []
    current = x.new_empty(0)
    for t, x_t in enumerate(x.unbind(0)):  # one view of all steps: its gradient is one stack, not T padded copies
        gain_t = gain
        if gain is not None and gain.dim() == x.dim():
            gain_t = gain[t if gain.shape[0] > 1 else 0]
        s, v, current, h = lif_step_reference(x_t, v, decay, threshold, gain=gain_t, i=state_i, **parameters)
        state_i = current if current.numel() else None
        outputs.append(s)
        if with_h:
            potentials.append(h)
    return NeuronOutput(torch.stack(outputs), v, current, torch.stack(potentials) if with_h else x.new_empty((0, *x.shape[1:])))


_TENSOR_KEYWORDS = ("input_gain", "bias", "v_reset", "reset_amount", "gain", "i", "syn_decay", "syn_gain", "floor", "level")

# -- registration --------------------------------------------------------------------------------------------------------------


_Out: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]


def _own(out: NeuronOutput) -> _Out:
    """Operator outputs may alias neither an input nor one another; the reference may return one tensor under two names."""
    v = out.v.clone() if out.v.data_ptr() == out.h.data_ptr() else out.v
    return out.s, v, out.i.clone() if out.i.numel() else out.i, out.h


def _bind(x: Tensor, step: tuple[int, ...], positional: tuple[Tensor | None, ...], options: dict[str, Any]) -> dict[str, Any]:
    """The operator's arguments by name, once they are known to give outputs of the shape and dtype of ``x``.

    Raises:
        ValueError: a parameter would widen the dtype or the shape of the outputs.
    """
    if not step or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} and dtype {x.dtype}: expected a floating-point tensor [T, N, ...] or [N, ...]"
        )
    keywords = {**dict(zip(("v", "decay", "threshold", *_TENSOR_KEYWORDS), positional, strict=False)), **options}
    for name, value in keywords.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            continue
        if value.dtype != x.dtype:
            raise ValueError(f"{name} has dtype {value.dtype} and x {x.dtype}: a tensor that is not 0-d must have the dtype of x")
        shape = tuple(value.shape)
        if name == "gain" and value.dim() == x.dim() > len(step):
            fits = shape[0] in (1, x.shape[0]) and all(a in (1, b) for a, b in zip(shape[1:], step, strict=True))
        else:
            aligned = step[len(step) - len(shape) :]
            fits = len(shape) <= len(step) and all(a in (1, b) for a, b in zip(shape, aligned, strict=True))
        if not fits:
            raise ValueError(f"{name} has shape {shape}, which does not broadcast to one step of x, {tuple(step)}")
    return keywords


@torch.library.impl(_library, "lif", "CompositeExplicitAutograd")
def _lif_kernel(x: Tensor, *positional: Tensor | None, **options: Any) -> _Out:
    return _own(lif_reference(x, **_bind(x, x.shape[1:], positional, options)))


@torch.library.impl(_library, "lif_step", "CompositeExplicitAutograd")
def _lif_step_kernel(x: Tensor, *positional: Tensor | None, **options: Any) -> _Out:
    return _own(lif_step_reference(x, **_bind(x, x.shape, positional, options)))


@torch.library.register_fake("snn::lif", lib=_library)
def _lif_fake(x: Tensor, *positional: Tensor | None, **options: Any) -> _Out:
    step = x.shape[1:]
    keywords = _bind(x, step, positional, options)
    i = x.new_empty(step if keywords.get("syn_decay") is not None else 0)
    h = x.new_empty((x.shape[0] if keywords.get("with_h", False) else 0, *step))
    return x.new_empty(x.shape), x.new_empty(step), i, h


@torch.library.register_fake("snn::lif_step", lib=_library)
def _lif_step_fake(x: Tensor, *positional: Tensor | None, **options: Any) -> _Out:
    keywords = _bind(x, x.shape, positional, options)
    i = x.new_empty(x.shape if keywords.get("syn_decay") is not None else 0)
    return x.new_empty(x.shape), x.new_empty(x.shape), i, x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.save_for_backward(*inputs)
    ctx.options = keyword_only_inputs


def _backward_of(reference: Any) -> Any:
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        """Runs the reference again, this time recorded: a training step's memory does not grow with the neuron's internals."""
        with torch.enable_grad():
            leaves = [None if a is None else a.detach().requires_grad_(a.is_floating_point()) for a in ctx.saved_tensors]
            outputs = reference(*leaves[:4], **dict(zip(_TENSOR_KEYWORDS, leaves[4:], strict=True)), **ctx.options)
        pairs = [(out, g) for out, g in zip(outputs, grads, strict=True) if g is not None and out.requires_grad and out.numel()]
        wanted = [k for k, needed in enumerate(ctx.needs_input_grad) if needed]
        result: list[Tensor | None] = [None] * len(leaves)
        if pairs and wanted:
            roots, cotangents = zip(*pairs, strict=True)
            inputs = [leaf for k in wanted if (leaf := leaves[k]) is not None]
            found = torch.autograd.grad(roots, inputs, cotangents, allow_unused=True)
            for k, g in zip(wanted, found, strict=True):
                result[k] = g
        return tuple(result)

    return backward


# -- the functions people call -------------------------------------------------------------------------------------------------

_plain = False  # a plain global: torch.compile traces (and guards) that, a context variable it can not read


@contextlib.contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Within it :func:`lif` and :func:`lif_step` run as ordinary PyTorch operators instead of one ``snn::`` operator.

    Other compilers (``torch.compile``, ``torch.onnx.export``) then see, and can fuse, what a hand-written neuron would show them.
    It holds for the whole process, not for one thread.
    """
    global _plain  # noqa: PLW0603
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def scalar(value: float | Tensor) -> Tensor:
    """A neuron parameter as a tensor; a number becomes a 0-d float64 tensor (see the module's text)."""
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)


def _prepare(keywords: dict[str, Any]) -> dict[str, Any]:
    for option, allowed in (("fire", FIRE), ("reset", RESET), ("delay", DELAY), ("emit", EMIT), ("surrogate", SURROGATES)):
        if option in keywords and keywords[option] not in allowed:
            raise ValueError(f"{option}={keywords[option]!r}: expected one of {', '.join(map(repr, allowed))}")
    if keywords.get("delay") == "both" and keywords.get("reset", "hard") != "soft":
        raise ValueError("delay='both' belongs to a soft reset: pass reset='soft'")
    if keywords.get("reset", "hard") == "hard" and keywords.get("v_reset") is None:
        keywords["v_reset"] = 0.0
    return {k: scalar(a) if k in _TENSOR_KEYWORDS and a is not None else a for k, a in keywords.items()}


def lif(
    x: Tensor, v: float | Tensor = 0.0, *, decay: float | Tensor = 1.0, threshold: float | Tensor = 1.0, **options: Any
) -> NeuronOutput:
    """The canonical neuron over a sequence.

    Args:
        x: input ``[T, N, ...]``, time first.
        v: initial membrane potential, a number or a tensor that broadcasts to ``[N, ...]``.
        decay: factor on the membrane potential at every step.
        threshold: firing threshold.
        **options: ``input_gain, bias, v_reset (0), reset_amount (the threshold), gain, i, syn_decay, syn_gain, floor, level`` as
            numbers or tensors that broadcast to ``[N, ...]`` (``gain`` also ``[T, N, ...]``); ``fire`` ``">="`` or ``">"``;
            ``reset`` ``"hard"``, ``"soft"`` or ``"none"``; ``delay`` ``"none"``, ``"before"``, ``"with"`` or ``"both"``;
            ``emit`` ``"spike"``, ``"count"`` or ``"signed"``; ``with_h``; ``surrogate`` ``"atan"``, ``"sigmoid"`` or
            ``"piecewise"`` with its slope ``alpha``; ``detach_reset``.

    Raises:
        ValueError: an option has no such value, or a parameter does not fit ``x``.
    """
    options = _prepare(options)
    operator = lif_reference if _plain else torch.ops.snn.lif.default
    return NeuronOutput(*operator(x, scalar(v), scalar(decay), scalar(threshold), **options))


def lif_step(
    x: Tensor, v: float | Tensor = 0.0, *, decay: float | Tensor = 1.0, threshold: float | Tensor = 1.0, **options: Any
) -> NeuronOutput:
    """The canonical neuron for one step: ``x`` ``[N, ...]``; otherwise as :func:`lif`, without ``with_h``."""
    options = _prepare(options)
    operator = lif_step_reference if _plain else torch.ops.snn.lif_step.default
    return NeuronOutput(*operator(x, scalar(v), scalar(decay), scalar(threshold), **options))


torch.library.register_autograd("snn::lif", _backward_of(lif_reference), setup_context=_setup_context, lib=_library)
torch.library.register_autograd("snn::lif_step", _backward_of(lif_step_reference), setup_context=_setup_context, lib=_library)
