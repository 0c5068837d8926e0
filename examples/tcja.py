"""TCJA-SNN: a spiking net with temporal-channel joint attention, from training to a verified engine.

python -m examples.tcja
"""

from __future__ import annotations

import torch
import typer

import snngraph
from examples.common import THREADS, Epochs, Output, Quick, Seed, check, event_digits, samples, train
from snngraph.demo.training import Recipe
from snngraph.models import tcja_small
from snngraph.models.layers import EventClassifier

T = 8  # event frames of an input


def build() -> EventClassifier:
    """Event counts ``[8, N, 2, 24, 24]`` -> class scores ``[N, 10]``."""
    return tcja_small(T, num_classes=10, size=24, channels=(12, 24, 24), hidden=48, voters=5, dropout=0.1)


def main(epochs: Epochs = 6, seed: Seed = 0, quick: Quick = False, output: Output = None) -> None:
    """Train a small TCJA-SNN on event-camera digits, convert it, and compare the engine with PyTorch."""
    data = event_digits(T, quick)
    model = train(build, data, Recipe(epochs=min(epochs, 2) if quick else epochs, seed=seed, threads=THREADS))
    example = samples(torch.from_numpy(data.test_x), 1)
    with snngraph.convert(model, example, path=output, force=True, batch_size="dynamic", threads=THREADS) as engine:
        check(model, engine, data, quick)


if __name__ == "__main__":
    typer.run(main)
