"""The demo's net, to name on a command line: ``snngraph.demo.model:build``, or ``:trained`` with its weights."""

from __future__ import annotations

from snngraph.models.layers import EventClassifier
from snngraph.models.tcja import tcja_small

__all__ = ["SIZE", "T", "build", "trained"]

T = 8
"""Time steps of the demo's inputs."""
SIZE = 24
"""Height and width of the demo's inputs, in pixels."""


def build() -> EventClassifier:
    """The net with fresh weights, in ``eval()``: ``[8, N, 2, 24, 24]`` event counts -> class scores ``[N, 10]``."""
    model = tcja_small(T, num_classes=10, size=SIZE, channels=(12, 24, 48), hidden=64, voters=5, dropout=0.1)
    return model.eval()


def trained() -> EventClassifier:
    """The net with the weights that come with the package, as :func:`snngraph.demo.training.load_demo_model`."""
    from snngraph.demo.training import load_demo_model

    return load_demo_model()
