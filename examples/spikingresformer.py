"""SpikingResformer: a spiking transformer for images, from training to a verified engine.

python -m examples.spikingresformer

Its attention divides by the square root of firing rates, which are buffers. They start as calibration measures them and follow
the spikes in training with momentum 0.999, slowly for a training of 600 updates: at its end they still lie near the start. That
does no harm, as a net is trained with the very numbers it is used with, so they stay as they are; but they are not the rates of
the trained net, and the example prints both.
"""

from __future__ import annotations

import torch
import typer
from torch import Tensor

import snngraph
from examples.common import THREADS, Epochs, Output, Quick, Seed, check, console, samples, static_digits, train
from snngraph.demo.training import Recipe
from snngraph.models import firing_rates
from snngraph.models.spikingresformer import DSSA, SpikingResformer

T = 4  # steps an image is shown for


def build() -> SpikingResformer:
    """Images ``[N, 1, 8, 8]`` -> class scores ``[N, 10]``."""
    return SpikingResformer(
        T,
        8,
        10,
        in_channels=1,
        planes=(16, 32),
        heads=(1, 2),
        patches=(2, 1),
        depths=(1, 1),
        stem="small",
        group_width=16,
    )


def show_rates(model: SpikingResformer, x: Tensor) -> None:
    """What the attention takes the firing rates for, and what they are."""
    rates = firing_rates(model, x)
    for name, module in model.named_modules():
        if isinstance(module, DSSA):
            for neuron, buffer in (("lif_in", module.firing_rate_x), ("lif_attn", module.firing_rate_attn)):
                fires = rates[f"{name}.{neuron}"]
                console.print(f"{name}.{neuron}: scaled for a rate of {float(buffer.mean()):.1%}, fires at {fires:.1%}")


def main(epochs: Epochs = 10, seed: Seed = 0, quick: Quick = False, output: Output = None) -> None:
    """Train a small SpikingResformer on images of digits, convert it, and compare the engine with PyTorch."""
    data = static_digits(quick)
    recipe = Recipe(
        epochs=min(epochs, 2) if quick else epochs, seed=seed, threads=THREADS, gain=1.0
    )  # its scores are logits already
    model = train(build, data, recipe)
    x = torch.from_numpy(data.test_x)
    show_rates(model, x)
    with snngraph.convert(model, samples(x, 1), path=output, force=True, batch_size="dynamic", threads=THREADS) as engine:
        check(model, engine, data, quick)


if __name__ == "__main__":
    typer.run(main)
