"""Makes a net with random weights fire, so that a comparison of spikes means something.

A random net is silent after a few layers: its batch norms carry statistics of nothing, and a LIF with ``decay_input`` halves
what it gets. :func:`calibrate` walks through the layers in the order they run, once per sweep. Every batch norm takes the mean
and variance of what it sees. Before every neuron layer its *knobs* are turned: the output channels of batch norms (of
convolutions and linear layers where no batch norm follows) that reach it through no other neurons, and reached no neuron layer
before it. So the halves of a batch norm that two neuron layers share are turned one after the other, and behind a residual
connection only what is new in the sum.

With ``c`` the input of the neurons, the knobs are multiplied by ``a`` and shifted by ``b`` such that ::

    c' = c + (a - 1) B + b D

makes them fire at the rate aimed at; ``B`` and ``D`` are the derivatives of ``c`` along the outputs of the knobs and along
ones. What stands between (pooling, a residual connection, a product with other spikes) is often linear in them, or piecewise;
where it is not (a gate computed from the same tensor), the next sweeps correct. Layers that still do not fire as wanted are
brought there one by one, with runs of the net up to them in place of derivatives.

A module whose buffers follow the spikes of its neurons offers ``firing_statistics()``: for each of these neuron layers, what
sets the buffer to the statistics of its spikes. They are set as the net runs, before they are used.

No random numbers are drawn: the same net and input give the same result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from snngraph.neurons import Neuron

__all__ = ["FollowsFiring", "calibrate", "firing_rates"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS)
_NO_KNOB = "no knob: weights of no batch norm, Linear or Conv1d, 2d, 3d reach it before they reach other neurons"
_SAMPLE = 1 << 18  # neuron-steps that a search looks at
_REACH = 1024.0  # how far a scale may lie from the one that makes the knobs' part of the input 1 on average


@runtime_checkable
class FollowsFiring(Protocol):
    """A module with buffers that follow the spikes of its neurons."""

    def firing_statistics(self) -> Mapping[Neuron, Callable[[Tensor], None]]:
        """For each of these neuron layers, what sets its buffers to the statistics of the spikes it is called with."""


def firing_rates(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Spikes per neuron and step of every neuron layer when ``model`` runs on ``x``, by module name, in the order they run.

    The model runs in ``eval()`` and is put back as it was. A layer that is called several times gives its mean.
    """
    spikes: dict[str, list[float]] = {}
    names = _neurons(model)

    def count(module: nn.Module, _args: Any, out: Tensor) -> None:
        spikes.setdefault(names[module], []).append(int(out.count_nonzero()) / out.numel())

    with ExitStack() as stack, torch.no_grad():
        for module in names:
            _hook(stack, module.register_forward_hook(count))
        stack.enter_context(_evaluating(model))
        model(x)
    return {name: sum(found) / len(found) for name, found in spikes.items()}


def calibrate(model: nn.Module, x: Tensor, low: float = 0.05, high: float = 0.30, *, sweeps: int = 4) -> dict[str, float]:
    """Rescales ``model`` in place, so that every neuron layer fires at a rate between ``low`` and ``high`` on ``x``.

    Batch norms with running statistics take those of ``x``, and buffers that follow spikes (:class:`FollowsFiring`) their rates.
    What else changes are weights and biases of batch norms, and of linear layers and convolutions that none follows.

    Args:
        model: a net of :class:`snngraph.neurons.Neuron` layers in step mode ``"m"``; its training mode is left as it was.
        x: a typical input.
        low: least rate, spikes per neuron and step.
        high: largest rate.
        sweeps: how often at most to walk through the net before single layers are searched for; 0 is not at all.

    Returns:
        The rates, as :func:`firing_rates`.

    Raises:
        ValueError: the bounds are no rates, the model has no neurons or is in step mode ``"s"``, or at the end a layer does
            not fire as wanted: it has no knobs, or no setting of them was found that makes it so. Further, the input has
            infinities or NaN, ``sweeps`` is no count, or the model was built under ``torch.inference_mode()``. The weights and
            buffers of the model are then as they were, and so they are when its ``forward`` raises.
    """
    _check_sweeps(sweeps)
    if not 0.0 < low < high < 1.0:
        raise ValueError(f"low={low}, high={high}: expected 0 < low < high < 1")
    neurons = _neurons(model)
    if not neurons:
        raise ValueError("the model has no snngraph.neurons.Neuron layer")
    stepping = [name for module, name in neurons.items() if module.step_mode != "m"]
    if stepping:
        raise ValueError(
            f'neurons in step mode "s": {", ".join(stepping)}; call snngraph.neurons.set_step_mode(model, "m") first'
        )
    if not bool(torch.isfinite(x).all()):
        nan = int(torch.isnan(x).sum())
        raise ValueError(f"the input is not finite: {nan} NaN and {int(torch.isinf(x).sum())} infinite of {x.numel()} numbers")
    if any(tensor.is_inference() for tensor in _tensors(model)):
        raise ValueError("the model was built under torch.inference_mode(), so its weights can not be set: build it outside")
    with torch.inference_mode(False), _as_it_was_on_failure(model):  # the knobs are found by derivatives
        return _calibrated(model, x.clone() if x.is_inference() else x, low, high, sweeps)


def _calibrated(model: nn.Module, x: Tensor, low: float, high: float, sweeps: int) -> dict[str, float]:
    target = math.sqrt(low * high)
    inside = (math.sqrt(low * target), math.sqrt(high * target))  # while a layer fires well inside the bounds, leave it alone
    originals: _Originals = {}
    rates = _settled_rates(model, x) if sweeps < 1 else {}
    for sweep in range(sweeps):
        # what stands between knobs and neurons may amplify a correction: half of it, once the first has brought them near
        _sweep(model, x, originals, target, inside, share=0.5 if sweep else 1.0)
        rates = _settled_rates(model, x)
        if _outside(rates, low, high) is None:
            return rates
    by_name = {name: module for module, name in _neurons(model).items()}
    tried: set[str] = set()
    while (name := _outside(rates, low, high)) is not None and name not in tried:
        tried.add(name)
        _bring_there(model, x, by_name[name], originals, target, (low, high))
        rates = _settled_rates(model, x)
    if _outside(rates, low, high) is None:
        return rates
    knobs = _all_knobs(model, x)
    table = []
    for name, rate in rates.items():
        mark = "" if low <= rate <= high else "  <-" if knobs.get(by_name[name]) else f"  <- {_NO_KNOB}"
        table.append(f"\n  {name}: {rate:.4f}{mark}")
    raise ValueError(f"some neuron layers still fire outside {low} to {high} on this input:{''.join(table)}")


def _check_sweeps(sweeps: object) -> None:
    if not isinstance(sweeps, int) or isinstance(sweeps, bool) or sweeps < 0:
        raise ValueError(f"sweeps={sweeps!r}: expected an integer, 0 or more")


def _outside(rates: Mapping[str, float], low: float, high: float) -> str | None:
    """The first layer that does not fire as wanted."""
    return next((name for name, rate in rates.items() if not low <= rate <= high), None)


def _neurons(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules() if isinstance(module, Neuron)}


def _hook(stack: ExitStack, handle: Any) -> None:
    stack.callback(handle.remove)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """``eval()``, and no gradients of the parameters."""
    modes = {module: module.training for module in model.modules()}
    trained = [p for p in model.parameters() if p.requires_grad]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in trained:
            parameter.requires_grad_()


def _tensors(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]


@contextmanager
def _as_it_was_on_failure(model: nn.Module) -> Iterator[None]:
    kept = [(tensor, tensor.detach().clone()) for tensor in _tensors(model)]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, values in kept:
                _overwrite(tensor, values)
        raise


@contextmanager
def _following(model: nn.Module) -> Iterator[None]:
    """Sets the buffers that follow spikes as the model runs."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, FollowsFiring):
                for neuron, measure in module.firing_statistics().items():
                    _hook(stack, neuron.register_forward_hook(lambda _module, _args, out, measure=measure: measure(out)))
        yield


# -- knobs ---------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Layer:
    """A layer that ran, its output as the leaf of a graph of what follows, and which channels no neurons have used yet."""

    layer: Any
    output: Tensor
    free: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.free = torch.ones(self.output.shape[self.dim], dtype=torch.bool, device=self.output.device)

    @property
    def dim(self) -> int:
        """The dimension of the channels."""
        if isinstance(self.layer, nn.Linear):
            return self.output.dim() - 1
        unbatched = isinstance(self.layer, _CONVOLUTIONS) and self.output.dim() == self.layer.weight.dim() - 1
        return 0 if unbatched else 1

    def per_channel(self, mask: Tensor) -> Tensor:
        """A mask of channels, to broadcast with the output."""
        return mask.reshape([-1 if d == self.dim else 1 for d in range(self.output.dim())])

    def channels(self, gradient: Tensor) -> Tensor:
        """The channels along which a gradient is not zero."""
        return (gradient != 0).movedim(self.dim, 0).flatten(1).any(1)


_Knobs: TypeAlias = list[tuple[_Layer, Tensor]]
"""Layers, with the mask of their channels to be turned."""


_Originals: TypeAlias = dict[nn.Module, list[Tensor]]
"""The parameters of layers, as they were before they were turned."""


@dataclass(frozen=True)
class _Effect:
    """What knobs do to an input of neurons: ``c + (a - 1) B + b D``; ``D`` is ``None`` where a knob has no bias."""

    c: Tensor
    B: Tensor
    D: Tensor | None

    def at(self, a: float, b: float) -> Tensor:
        moved = self.c + (a - 1.0) * self.B
        return moved if self.D is None or b == 0.0 else moved + b * self.D

    def sampled(self) -> _Effect:
        """The same for a part of the neurons ``[T, N, ...]`` that is large enough to tell their rate, over all steps."""
        return _Effect(_sampled(self.c), _sampled(self.B), None if self.D is None else _sampled(self.D))


def _sampled(x: Tensor) -> Tensor:
    if x.dim() < 2 or x.numel() <= _SAMPLE:
        return x
    return x.flatten(1)[:, :: math.ceil(x.numel() / _SAMPLE) | 1]  # odd: not a column of the feature map


def _reached(current: Tensor, layers: Mapping[Tensor, _Layer]) -> list[_Layer]:
    """The layers that ``current`` was computed from, as far as there is a graph."""
    found: list[_Layer] = []
    seen: set[Any] = {None}
    pending: list[Any] = [current.grad_fn]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        pending += [before for before, _ in node.next_functions]
        if (leaf := getattr(node, "variable", None)) is not None and leaf in layers:
            found.append(layers[leaf])
    return found


def _knobs_of(current: Tensor, layers: dict[Tensor, _Layer]) -> tuple[_Knobs, _Effect] | None:
    """The channels that reach ``current`` and no neurons before, and what they do to it."""
    reached = _reached(current, layers)
    if not reached:
        return None
    along = torch.ones_like(current, requires_grad=True)
    gradients = torch.autograd.grad(current, [k.output for k in reached], along, create_graph=True)
    normed = any(isinstance(k.layer, _NORMS) for k in reached)  # then the other layers belong to gates
    knobs: _Knobs = []
    used: list[Tensor] = []
    for layer, gradient in zip(reached, gradients, strict=True):
        touched = layer.channels(gradient)
        if isinstance(layer.layer, _NORMS) == normed and bool((mine := touched & layer.free).any()):
            knobs.append((layer, mine))
            used.append(gradient)
        layer.free &= ~touched
        if not bool(layer.free.any()):
            del layers[layer.output]
    if not knobs:  # nothing comes through now, as behind a gate that is closed; all that may come is theirs
        for layer, gradient in zip(reached, gradients, strict=True):
            if isinstance(layer.layer, _NORMS) == normed and not bool(layer.channels(gradient).any()):
                knobs.append((layer, layer.free.clone()))
                used.append(gradient)
                layer.free[:] = False
                layers.pop(layer.output, None)
    if not knobs:
        return None

    def derivative(directions: list[Tensor]) -> Tensor:
        # the gradients are linear in `along`; the gradient of that is the derivative of `current`
        dependent = [(g, v) for g, v in zip(used, directions, strict=True) if g.requires_grad]
        if not dependent:
            return torch.zeros_like(current)
        (out,) = torch.autograd.grad([g for g, _ in dependent], along, [v for _, v in dependent], retain_graph=True)
        return out

    shiftable = all(isinstance(k.layer.bias, Tensor) for k, _ in knobs)
    B = derivative([k.output.detach() * k.per_channel(mine) for k, mine in knobs])
    D = derivative([torch.zeros_like(k.output) + k.per_channel(mine) for k, mine in knobs]) if shiftable else None
    return knobs, _Effect(current.detach(), B, D)


_Look: TypeAlias = Callable[[nn.Module, Tensor, dict[Tensor, _Layer]], None]
"""Is shown the input of a layer of neurons, which it may change in place, and the layers that have run."""


def _run(model: nn.Module, x: Tensor, look: _Look | None = None) -> None:
    """A run that sets norms' statistics and buffers that follow spikes; ``look`` is called before every layer of neurons.

    A layer that is called several times counts when it is called first.
    """
    layers: dict[Tensor, _Layer] = {}
    seen: set[nn.Module] = set()

    def before_norm(module: Any, args: tuple[Tensor, ...]) -> None:
        if module in seen:
            return
        seen.add(module)
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is not None and variance is not None:
            over = [d for d in range(args[0].dim()) if d != 1]
            found_variance, found_mean = torch.var_mean(args[0].detach(), over, correction=0)
            mean.copy_(found_mean)
            variance.copy_(found_variance.clamp(min=1e-6))

    def after_layer(module: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        if isinstance(module, _NORMS):  # takes what it finds to mean 0 and variance 1: there are no knobs before it
            for layer in _reached(args[0], layers):
                del layers[layer.output]
        if module.weight is None:
            return out.detach()
        leaf = out.detach().requires_grad_()
        layers[leaf] = _Layer(module, leaf)
        return leaf.clone()  # which may be changed in place

    def before_neuron(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (current,) = args
        if look is not None and module not in seen:
            seen.add(module)
            look(module, current, layers)
        return (current.detach(),)

    neurons = _neurons(model)
    with ExitStack() as stack:
        for module in model.modules():
            if module in neurons:
                _hook(stack, module.register_forward_pre_hook(before_neuron))
            elif isinstance(module, _NORMS + _WEIGHTED):
                if look is not None:
                    _hook(stack, module.register_forward_hook(after_layer))
                if isinstance(module, _NORMS):
                    _hook(stack, module.register_forward_pre_hook(before_norm))
        stack.enter_context(_following(model))
        stack.enter_context(_evaluating(model))
        stack.enter_context(torch.set_grad_enabled(look is not None))
        model(x)


def _settled_rates(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The rates, once all statistics are those of the model as it is."""
    _run(model, x)
    return firing_rates(model, x)


def _sweep(model: nn.Module, x: Tensor, originals: _Originals, target: float, inside: tuple[float, float], share: float) -> None:
    """One run of the model in which every layer is adjusted before it is used, so that the next layer sees it adjusted.

    ``share`` of the correction that would bring a layer of neurons to ``target`` is applied.
    """

    def adjust(module: nn.Module, current: Tensor, layers: dict[Tensor, _Layer]) -> None:
        found = _knobs_of(current, layers)
        if found is None:
            return
        knobs, effect = found
        if inside[0] <= _rate(module, _sampled(effect.c)) <= inside[1]:
            return
        a, b = _search(module, effect.sampled(), target, inside[1])
        a, b = a**share, b * share
        for layer, mine in knobs:
            originals.setdefault(layer.layer, _parameters(layer.layer))
            _turn(layer.layer, mine, a, b)
        _overwrite(current.data, effect.at(a, b))  # in place: a residual connection around the neurons sees it as well

    _run(model, x, adjust)


class _Arrived(Exception):  # noqa: N818 - not an error
    """The run has come to the neurons it was for."""


def _all_knobs(model: nn.Module, x: Tensor) -> dict[nn.Module, _Knobs]:
    """The knobs of every layer of neurons."""
    of: dict[nn.Module, _Knobs] = {}

    def find(module: nn.Module, current: Tensor, layers: dict[Tensor, _Layer]) -> None:
        found = _knobs_of(current, layers)
        of[module] = found[0] if found else []

    _run(model, x, find)
    return of


def _knobs_by_themselves(model: nn.Module, x: Tensor, neuron: nn.Module) -> _Knobs:
    """The knobs of ``neuron``, with those of their channels that nothing comes through now and that reach no other neurons."""
    of = _all_knobs(model, x)
    knobs = of.pop(neuron, [])
    taken = [(layer, mask) for others in of.values() for layer, mask in others]
    return [(k, ~sum((mask for layer, mask in taken if layer is k), torch.zeros_like(mine))) for k, mine in knobs]


def _bring_there(
    model: nn.Module, x: Tensor, neuron: nn.Module, originals: _Originals, target: float, bounds: tuple[float, float]
) -> None:
    """Turns the knobs of ``neuron``, from where they were at first, to the best setting that a search by runs finds."""
    knobs: _Knobs = []

    def measure(module: nn.Module, current: Tensor, _layers: dict[Tensor, _Layer]) -> None:
        if module is neuron:
            rates.append(_rate(neuron, _sampled(current.detach())))
            raise _Arrived

    def turned(a: float, b: float) -> None:
        for layer, mine in knobs:
            _restore(layer.layer, mine, originals[layer.layer])
            _turn(layer.layer, mine, a, b)

    def rate(a: float, b: float) -> float:
        turned(a, b)
        with suppress(_Arrived):
            _run(model, x, measure)
        settings.append((abs(math.log(max(rates[-1], 1e-9) / target)), a, b))
        return rates[-1]

    rates: list[float] = []
    settings: list[tuple[float, float, float]] = []
    knobs += _knobs_by_themselves(model, x, neuron)
    if not knobs:
        return
    for layer, mine in knobs:
        _restore(layer.layer, mine, originals.setdefault(layer.layer, _parameters(layer.layer)))
    knobs[:] = _knobs_by_themselves(model, x, neuron)
    size = sum(float(k.output.detach().abs().mean()) for k, _ in knobs) / len(knobs)
    unit = 1.0 / size if size > 0.0 else 1.0
    # the rate need not grow with the scale: a gate may close. So no bisection, but steps first of 2, then of their roots
    for a in sorted((unit * 2.0**k for k in range(-6, 7)), key=lambda a: abs(math.log(a / unit))):
        rate(a, 0.0)
    enough = math.log(bounds[1] / bounds[0]) / 4
    if min(settings)[0] > enough and all(isinstance(k.layer.bias, Tensor) for k, _ in knobs):
        for b in (0.25, 0.5, 1.0, 2.0, 4.0, -0.25, -0.5, -1.0, -2.0, -4.0):
            for a in (unit, unit / 2, unit / 4, unit / 8):
                rate(a, b)
    for step in (2.0**0.5, 2.0**0.25, 2.0**0.125):
        off, a, b = min(settings)
        if off > enough:
            for at in ((a * step, b), (a / step, b), (a, b * step), (a, b / step)):
                rate(*at)
    _, a, b = min(settings)
    turned(a, b)


def _overwrite(x: Tensor, values: Tensor) -> None:
    for d, stride in enumerate(x.stride()):
        if stride == 0:  # repeated without a copy
            x, values = x.narrow(d, 0, 1), values.narrow(d, 0, 1)
    x.copy_(values)


def _parameters(layer: Any) -> list[Tensor]:
    """A copy of what :func:`_turn` changes."""
    return [p.detach().clone() for p in (layer.weight, layer.bias) if isinstance(p, Tensor)]


def _restore(layer: Any, channels: Tensor, parameters: list[Tensor]) -> None:
    for ours, kept in zip((layer.weight, layer.bias), parameters, strict=False):
        ours.data[channels] = kept[channels]


def _turn(layer: Any, channels: Tensor, a: float, b: float) -> None:
    layer.weight.data[channels] *= a
    if isinstance(layer.bias, Tensor):
        layer.bias.data[channels] = layer.bias.data[channels] * a + b


# -- the search ----------------------------------------------------------------------------------------------------------------


def _rate(neuron: nn.Module, current: Tensor) -> float:
    with torch.no_grad():
        spikes: Tensor = neuron.forward(current)
    return int(spikes.count_nonzero()) / spikes.numel()


def _search(neuron: nn.Module, effect: _Effect, target: float, most: float) -> tuple[float, float]:
    """A scale, and a shift where no scale is enough, that bring ``neuron`` to ``target``.

    Where the knobs' part is added to something that fires at a rate of ``target`` by itself, as in a deep residual net, the
    sum may fire a little more: an eighth of what is left up to ``most``, so that no summand vanishes and all have room.
    """

    def rate(a: float, b: float = 0.0) -> float:
        return _rate(neuron, effect.at(a, b))

    scale = float(effect.B.abs().double().mean())
    aim, a = target, 1.0
    if scale > 0.0:
        unit = 1.0 / scale
        summand = float((effect.c - effect.B).abs().double().mean()) > 1e-3 * scale
        if summand:
            alone = rate(0.0)
            aim = max(target, alone + (most - alone) / 8)
        a = _bisect(rate, aim, unit / _REACH, unit * _REACH)
        found = rate(a)
        if aim / 2 <= found <= most:
            return a, 0.0
        if found < aim:
            a = unit
        elif summand:
            if int((effect.B < 0).count_nonzero()) < effect.B.numel() / 20:
                return a, 0.0  # a rectified summand: it can be made small, but no shift makes it negative
            a = max(a, unit / 8)
    by = 0.0 if effect.D is None else float(effect.D.abs().double().mean())
    if by == 0.0:
        return a, 0.0
    sign = 1.0 if rate(a) < target else -1.0
    b = _bisect(lambda b: sign * rate(a, sign * b), sign * target, 1.0 / _REACH / by, _REACH / by)
    return a, sign * b


def _bisect(rate: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The number between ``low`` and ``high``, on a logarithmic scale, at which ``rate``, which grows, reaches ``target``."""
    if rate(high) < target:
        return high
    for _ in range(16):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rate(middle) < target else (low, middle)
    return math.sqrt(low * high)
