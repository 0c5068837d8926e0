"""SpikingResformer: a spiking transformer for images, from training to a verified engine.

python -m examples.spikingresformer
"""

from __future__ import annotations

import torch
import typer

import snngraph
from examples.common import THREADS, Epochs, Output, Quick, Seed, check, samples, static_digits, train
from snngraph.demo.training import Recipe
from snngraph.models.spikingresformer import SpikingResformer

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


def main(epochs: Epochs = 10, seed: Seed = 0, quick: Quick = False, output: Output = None) -> None:
    """Train a small SpikingResformer on images of digits, convert it, and compare the engine with PyTorch."""
    data = static_digits(quick)
    recipe = Recipe(
        epochs=min(epochs, 2) if quick else epochs, seed=seed, threads=THREADS, gain=1.0
    )  # its scores are logits already
    model = train(build, data, recipe)
    example = samples(torch.from_numpy(data.test_x), 1)
    with snngraph.convert(model, example, path=output, force=True, threads=THREADS) as engine:
        check(model, engine, data, quick)


if __name__ == "__main__":
    typer.run(main)
