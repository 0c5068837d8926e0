"""Handwritten digits seen by a simulated event camera, in NumPy.

scikit-learn carries 1797 digits of 8x8 pixels (the test set of Alpaydin and Kaynak's "Optical Recognition of Handwritten
Digits", UCI). Each is shown to a simulated event camera that moves as the one that recorded N-MNIST did: three straight
saccades along the sides of an isosceles triangle, back to the start (Orchard et al. 2015, arXiv 1507.07629).

The camera: a pixel sees the log intensity ``L(t) = log(floor + I(t))`` and remembers a reference level ``R``. Whenever ``L``
has risen above ``R`` by the pixel's own ON threshold, it emits an ON event and raises ``R`` by the threshold; likewise OFF
events as ``L`` falls. Between two micro-steps ``L`` is a straight line, so a fast change emits several events, each at the time
of its own crossing (Rebecq et al. 2018, ESIM). Thresholds differ a little from pixel to pixel, as they do in real sensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["EVENT", "Digits", "EventCamera", "frames_from_events", "load_digits", "load_images", "split"]

Floats: TypeAlias = npt.NDArray[np.float32]

EVENT = np.dtype([("t", np.int64), ("x", np.uint16), ("y", np.uint16), ("p", np.uint8)])
"""One event: time in microseconds, column, row, polarity (1 brighter, 0 darker)."""


@dataclass(frozen=True)
class EventCamera:
    """A simulated event camera that looks at a still image and moves along a triangle.

    Args:
        size: height and width of the sensor, in pixels.
        image: height and width of the image on the sensor, in pixels; its centre meets the sensor's at the start.
        amplitude: how far the view moves sideways and downwards, in pixels.
        saccade_us: duration of one of the three saccades, in microseconds.
        micro_steps: simulated steps of one saccade.
        contrast: mean threshold, a difference of log intensities.
        mismatch: standard deviation of the thresholds over pixels, relative to ``contrast``.
        floor: the dark level that is added to intensities in [0, 1].
        seed: draws the sensor's thresholds.

    Raises:
        ValueError: an argument is out of range.
    """

    size: int = 24
    image: float = 20.0
    amplitude: float = 4.0
    saccade_us: int = 96_000
    micro_steps: int = 16
    contrast: float = 0.4
    mismatch: float = 0.05
    floor: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "image", "amplitude", "saccade_us", "micro_steps", "contrast", "floor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value}: expected a positive number")
        if not 0 <= self.mismatch < 0.3:
            raise ValueError(f"mismatch={self.mismatch}: expected a number in [0, 0.3)")
        if self.saccade_us % self.micro_steps:
            raise ValueError(f"saccade_us={self.saccade_us} is no multiple of micro_steps={self.micro_steps}")

    @property
    def duration_us(self) -> int:
        """Duration of a recording, in microseconds."""
        return 3 * self.saccade_us

    @property
    def step_us(self) -> int:
        """Duration of one micro-step, in microseconds."""
        return self.saccade_us // self.micro_steps

    def path(self) -> npt.NDArray[np.float64]:
        """Where the view is after every micro-step: displacements (x, y) in pixels, ``[3*micro_steps + 1, 2]``."""
        corners = np.array([(0.0, 0.0), (0.5, 1.0), (-0.5, 1.0), (0.0, 0.0)]) * self.amplitude
        along = np.linspace(0.0, 3.0, 3 * self.micro_steps + 1)
        return np.stack([np.interp(along, np.arange(4), corners[:, axis]) for axis in (0, 1)], axis=1)

    def thresholds(self) -> Floats:
        """The thresholds of this sensor, ``[2, size, size]``: OFF, ON. The same for every image."""
        noise = np.random.default_rng(self.seed).standard_normal((2, self.size, self.size))
        return (self.contrast * (1.0 + self.mismatch * noise.clip(-3.0, 3.0))).astype(np.float32)

    def record(self, image: npt.ArrayLike) -> npt.NDArray[Any]:
        """The events of one image ``[h, w]`` with intensities in [0, 1], in order of time, as an array of :data:`EVENT`.

        Raises:
            ValueError: the image has another shape or range.
        """
        thresholds = self.thresholds()
        parts = []
        for step, level, rising, counts in self._crossings(self._images(np.asarray(image)[None]), thresholds):
            for polarity in (0, 1):
                y, x = np.nonzero(counts[polarity, 0])
                repeats = counts[polarity, 0, y, x].astype(np.int64)
                events = np.empty(int(repeats.sum()), EVENT)
                events["y"], events["x"] = np.repeat(y, repeats), np.repeat(x, repeats)
                events["p"] = polarity
                nth = np.arange(len(events)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
                threshold = thresholds[polarity, events["y"], events["x"]]
                before, change = level[0, events["y"], events["x"]], rising[0, events["y"], events["x"]]
                sign = 1.0 if polarity else -1.0
                part = (nth * threshold - sign * before) / (sign * change)  # in (0, 1]: where in the step the crossing lies
                inside = (part.astype(np.float64) * self.step_us).astype(np.int64).clip(0, self.step_us - 1)
                events["t"] = (step * self.step_us) + inside
                parts.append(events)
        everything = np.concatenate(parts)
        return everything[np.argsort(everything["t"], kind="stable")]

    def frames(self, images: npt.ArrayLike, T: int = 8, *, clip: int | None = None, batch: int = 32) -> Floats:
        """Event counts in ``T`` bins of equal duration: float32 ``[T, N, 2, size, size]``, channels OFF and ON.

        Equal to :func:`frames_from_events` of :meth:`record`, but for all images at once.

        Args:
            images: intensities in [0, 1].
            T: number of bins; divides the number of micro-steps.
            clip: largest count, or ``None``.
            batch: images simulated together.

        Raises:
            ValueError: an argument is out of range.
        """
        steps = 3 * self.micro_steps
        if T < 1 or steps % T:
            raise ValueError(f"T={T}: the {steps} micro-steps of a recording do not divide into as many bins")
        stack, thresholds = self._images(np.asarray(images)), self.thresholds()
        out = np.zeros((T, len(stack), 2, self.size, self.size), np.float32)
        for start in range(0, len(stack), batch):
            part = out[:, start : start + batch]
            for step, _, _, counts in self._crossings(stack[start : start + batch], thresholds):
                part[step * T // steps] += counts.swapaxes(0, 1)
        return out if clip is None else np.minimum(out, np.float32(clip), out=out)

    def _images(self, images: npt.NDArray[Any]) -> Floats:
        if images.ndim != 3:
            raise ValueError(f"expected images of shape [N, h, w], got {list(images.shape)}")
        if images.size and not (images.min() >= 0 and images.max() <= 1):
            raise ValueError(f"expected intensities in [0, 1], got {images.min()} to {images.max()}")
        return images.astype(np.float32)

    def _view(self, pixels: int, shift: float) -> Floats:
        """Bilinear interpolation along one axis, ``[size, pixels]``: sensor pixel <- image pixels, dark around the image."""
        centre = (np.arange(self.size) - (self.size - 1) / 2 + shift) * (pixels / self.image) + (pixels - 1) / 2
        weights: Floats = np.maximum(0.0, 1.0 - np.abs(centre[:, None] - np.arange(pixels)[None])).astype(np.float32)
        return weights

    def _level(self, images: Floats, displacement: npt.NDArray[np.float64]) -> Floats:
        """The log intensity at every sensor pixel, ``[N, size, size]``."""
        dx, dy = displacement
        intensity = self._view(images.shape[1], dy) @ images @ self._view(images.shape[2], dx).T
        return np.log(np.float32(self.floor) + intensity)

    def _crossings(self, images: Floats, thresholds: Floats) -> Iterator[tuple[int, Floats, Floats, Floats]]:
        """Per micro-step: its number, ``L - R`` at its start, the change of L in it, and event counts ``[2, N, size, size]``."""
        path = self.path()
        level = self._level(images, path[0])
        reference = level.copy()
        for step, displacement in enumerate(path[1:]):
            previous, level = level, self._level(images, displacement)
            before, change = previous - reference, level - previous
            difference = level - reference
            counts = np.stack([-difference, difference])
            counts /= thresholds[:, None]
            np.floor(np.maximum(counts, 0.0, out=counts), out=counts)
            reference += counts[1] * thresholds[1] - counts[0] * thresholds[0]
            yield step, before, change, counts


def frames_from_events(events: npt.NDArray[Any], T: int, *, size: int, duration_us: int, clip: int | None = None) -> Floats:
    """Event counts in ``T`` bins of equal duration: :data:`EVENT` array -> float32 ``[T, 2, size, size]``, channels OFF and ON.

    Raises:
        ValueError: an event lies outside the recording.
    """
    if len(events) and not (events["t"].min() >= 0 and events["t"].max() < duration_us):
        raise ValueError(f"an event lies outside the recording of {duration_us} us")
    if len(events) and max(int(events["x"].max()), int(events["y"].max())) >= size:
        raise ValueError(f"an event lies outside the sensor of {size}x{size} pixels")
    frames = np.zeros((T, 2, size, size), np.float32)
    np.add.at(frames, (events["t"] * T // duration_us, events["p"], events["y"], events["x"]), 1.0)
    return frames if clip is None else np.minimum(frames, np.float32(clip), out=frames)


# -- the dataset ---------------------------------------------------------------------------------------------------------------


class Digits(NamedTuple):
    """Event frames ``[T, N, 2, H, W]`` (float32 counts; channels OFF, ON) and labels ``[N]`` (int64), split."""

    train_x: Floats
    train_y: npt.NDArray[np.int64]
    test_x: Floats
    test_y: npt.NDArray[np.int64]


def load_images() -> tuple[Floats, npt.NDArray[np.int64]]:
    """scikit-learn's digits: images ``[1797, 8, 8]`` with intensities in [0, 1], and labels ``[1797]``.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError('the demo\'s digits come from scikit-learn, which is missing: pip install "snngraph[demo]"') from error
    digits = datasets.load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target.astype(np.int64)


def split(
    labels: npt.NDArray[np.int64], held_out: int = 360, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of a training and a test part, in which each class has its share.

    Raises:
        ValueError: ``held_out`` is not between 1 and the number of labels.
        ImportError: scikit-learn is missing.
    """
    if not 0 < held_out < len(labels):
        raise ValueError(f"held_out={held_out}: expected a number between 1 and {len(labels) - 1}")
    try:
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError('the demo\'s split comes from scikit-learn, which is missing: pip install "snngraph[demo]"') from error
    train, test = train_test_split(np.arange(len(labels)), test_size=held_out, stratify=labels, random_state=seed)
    return np.sort(train), np.sort(test)


def load_digits(
    T: int = 8, *, camera: EventCamera | None = None, clip: int | None = None, held_out: int = 360, seed: int = 0
) -> Digits:
    """The digits as event frames, split into a training and a test part that are the same for the same ``seed``.

    Args:
        T: number of time bins.
        camera: the simulated camera; by default :class:`EventCamera` as it comes.
        clip: largest event count per pixel and bin, or ``None``.
        held_out: images of the test part.
        seed: of the split.

    Raises:
        ValueError: an argument is out of range.
        ImportError: scikit-learn is missing.
    """
    images, labels = load_images()
    train, test = split(labels, held_out, seed)
    frames = (camera or EventCamera()).frames(images, T, clip=clip)
    return Digits(frames[:, train], labels[train], frames[:, test], labels[test])
