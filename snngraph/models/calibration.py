"""Makes a net with random weights fire, so that a comparison of spikes means something.

A random net is silent after a few layers: its batch norms carry statistics of nothing, and a LIF with ``decay_input`` halves
what it gets. :func:`calibrate` walks through the layers in the order they run, once per sweep. Every batch norm takes the mean
and variance of what it sees; before every neuron layer, the last weighted layer since the previous neurons (its *knob*) is
scaled until the neurons fire at the rate aimed at. It draws no random numbers: the same net and input give the same result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from snngraph.neurons import Neuron

__all__ = ["calibrate", "firing_rates"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SAMPLE = 1 << 20  # neuron-steps that a search looks at


def firing_rates(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Spikes per neuron and step of every neuron layer when ``model`` runs on ``x``, by module name, in the order they run.

    The model runs in ``eval()`` and is put back as it was. A layer that is called several times gives its mean.
    """
    spikes: dict[str, list[float]] = {}
    names = _neurons(model)

    def count(module: nn.Module, _args: Any, out: Tensor) -> None:
        spikes.setdefault(names[module], []).append(int(out.count_nonzero()) / out.numel())

    handles = [module.register_forward_hook(count) for module in names]
    try:
        with _evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()
    return {name: sum(found) / len(found) for name, found in spikes.items()}


def calibrate(model: nn.Module, x: Tensor, low: float = 0.05, high: float = 0.30, *, sweeps: int = 8) -> dict[str, float]:
    """Rescales ``model`` in place, so that every neuron layer fires at a rate between ``low`` and ``high`` on ``x``.

    Batch norms with running statistics take those of ``x``. The knob of a neuron layer is the last batch norm with a weight, or
    else linear layer or convolution, that ran since the neurons before it; its weight and bias are multiplied by one number
    (and, where no scale is enough, the bias is shifted). Layers between the knob and the neurons (pooling, gates) are allowed:
    the sweeps converge.

    Args:
        model: a net of :class:`snngraph.neurons.Neuron` layers in step mode ``"m"``; its training mode is left as it was.
        x: a typical input.
        low: least rate, spikes per neuron and step.
        high: largest rate.
        sweeps: how often at most to walk through the net.

    Returns:
        The rates, as :func:`firing_rates`.

    Raises:
        ValueError: the bounds are no rates, the model has no neurons or is in step mode ``"s"``, a layer has no knob of its own
            and does not fire as wanted, or no scale makes it so.
    """
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
    target = math.sqrt(low * high)
    inside = (math.sqrt(low * target), math.sqrt(high * target))  # while a layer fires well inside the bounds, leave it alone
    rates: dict[str, float] = {}
    for sweep in range(sweeps):
        # what stands between a knob and its neurons may amplify a correction: half of it, once the first has brought them near
        _sweep(model, x, neurons, target, inside, share=0.5 if sweep else 1.0)
        rates = firing_rates(model, x)
        if all(low <= rate <= high for rate in rates.values()):
            return rates
    table = "\n".join(f"  {name}: {rate:.4f}{'' if low <= rate <= high else '  <-'}" for name, rate in rates.items())
    raise ValueError(f"after {sweeps} sweeps some neuron layers still fire outside {low} to {high} on this input:\n{table}")


def _neurons(model: nn.Module) -> dict[nn.Module, str]:
    return {module: name for name, module in model.named_modules() if isinstance(module, Neuron)}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _sweep(
    model: nn.Module, x: Tensor, neurons: dict[nn.Module, str], target: float, inside: tuple[float, float], share: float
) -> None:
    """One run of the model in which every layer is adjusted before it is used, so that the next layer sees it adjusted.

    ``share`` of the correction that would bring neurons right behind their knob to ``target`` is applied.
    """
    knob: list[Any] = []  # the knob since the last neurons, if any
    seen: set[nn.Module] = set()

    def before_norm(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if module in seen:
            return
        seen.add(module)
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if mean is not None and variance is not None:
            over = [d for d in range(args[0].dim()) if d != 1]
            found_variance, found_mean = torch.var_mean(args[0], over, correction=0)
            mean.copy_(found_mean)
            variance.copy_(found_variance.clamp(min=1e-6))

    def after_layer(module: nn.Module, _args: Any, _out: Any) -> None:
        norm_stays = bool(knob) and isinstance(knob[0], _NORMS) and not isinstance(module, _NORMS)
        if getattr(module, "weight", None) is not None and not norm_stays:
            knob[:] = [module]

    def before_neuron(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if module in seen:
            knob.clear()
            return None
        seen.add(module)
        chosen = knob.pop() if knob else None
        (current,) = args
        if chosen is None or inside[0] <= _rate(module, current) <= inside[1]:
            return None
        factor, shift = _search(module, _sampled(current), target, shiftable=getattr(chosen, "bias", None) is not None)
        factor, shift = factor**share, shift * share
        for parameter in (chosen.weight, chosen.bias):
            if isinstance(parameter, Tensor):
                parameter.mul_(factor)
        if isinstance(chosen.bias, Tensor):
            chosen.bias.add_(shift)
        return (current * factor + shift,)

    handles = []
    for module in model.modules():
        if module in neurons:
            handles.append(module.register_forward_pre_hook(before_neuron))
        elif isinstance(module, _NORMS + _WEIGHTED):
            handles.append(module.register_forward_hook(after_layer))
            if isinstance(module, _NORMS):
                handles.append(module.register_forward_pre_hook(before_norm))
    try:
        with _evaluating(model):
            model(x)
    finally:
        for handle in handles:
            handle.remove()


def _sampled(current: Tensor) -> Tensor:
    """A part of the neurons ``[T, N, ...]`` that is large enough to tell their rate, over all steps."""
    if current.dim() < 2 or current.numel() <= _SAMPLE:
        return current
    flat = current.flatten(1)
    return flat[:, :: math.ceil(current.numel() / _SAMPLE)]


def _rate(neuron: nn.Module, current: Tensor) -> float:
    spikes: Tensor = neuron.forward(_sampled(current))
    return int(spikes.count_nonzero()) / spikes.numel()


def _search(neuron: nn.Module, current: Tensor, target: float, *, shiftable: bool) -> tuple[float, float]:
    """A scale, and a shift where no scale is enough, that bring ``neuron`` to ``target`` (the rate grows with both)."""
    scale = float(current.abs().double().mean())
    if scale == 0.0:
        return 1.0, _bisect(lambda shift: _rate(neuron, current + shift), target) if shiftable else 0.0
    factor = _bisect(lambda a: _rate(neuron, current * a), target, unit=1.0 / scale)
    if not shiftable or _rate(neuron, current * factor) >= target / 2:
        return factor, 0.0
    factor = 1.0 / scale
    return factor, _bisect(lambda shift: _rate(neuron, current * factor + shift), target)


def _bisect(rate: Any, target: float, unit: float = 1.0) -> float:
    """The number, found on a logarithmic scale around ``unit``, at which ``rate`` reaches ``target``."""
    low, high = unit / 64, unit * 64
    if rate(high) < target:
        return high
    for _ in range(14):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if rate(middle) < target else (low, middle)
    return math.sqrt(low * high)
