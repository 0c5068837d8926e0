"""MA-SNN: a spiking net with attention over time, channels and space, from training to a verified engine.

python -m examples.ma
"""

from __future__ import annotations

import torch
import typer

import snngraph
from examples.common import THREADS, Epochs, Output, Quick, Seed, check, event_digits, samples, train
from snngraph.demo.training import Recipe
from snngraph.models import ma_snn_gesture
from snngraph.models.ma import MAClassifier

T = 8  # event frames of an input


def build() -> MAClassifier:
    """Event counts ``[8, N, 2, 24, 24]`` -> class scores ``[N, 10]``."""
    return ma_snn_gesture("TCSA", T, num_classes=10, size=24, channels=(8, 16, 32), hidden=64, r_c=4, r_t=2)


def main(epochs: Epochs = 6, seed: Seed = 0, quick: Quick = False, output: Output = None) -> None:
    """Train a small MA-SNN on event-camera digits, convert it, and compare the engine with PyTorch."""
    data = event_digits(T, quick)
    model = train(build, data, Recipe(epochs=min(epochs, 2) if quick else epochs, seed=seed, threads=THREADS))
    example = samples(torch.from_numpy(data.test_x), 1)
    with snngraph.convert(model, example, path=output, force=True, batch_size="dynamic", threads=THREADS) as engine:
        check(model, engine, data, quick)


if __name__ == "__main__":
    typer.run(main)
