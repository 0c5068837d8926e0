"""The simulated event camera and the digits."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from snngraph.demo.data import EVENT, EventCamera, frames_from_events, load_digits, load_images, split


@pytest.fixture(scope="module")
def camera() -> EventCamera:
    return EventCamera()


def test_events_and_frames_are_the_same_recording(camera: EventCamera) -> None:
    images, _ = load_images()
    frames = camera.frames(images[:4], 8)
    for k in range(4):
        events = camera.record(images[k])
        assert events.dtype == EVENT
        assert (np.diff(events["t"]) >= 0).all()
        assert 500 < len(events) < 5000
        binned = frames_from_events(events, 8, size=camera.size, duration_us=camera.duration_us)
        assert np.abs(binned - frames[:, k]).sum() <= 2  # a count on the edge may differ between one image and four


def test_recording_is_deterministic_and_seeded(camera: EventCamera) -> None:
    image = load_images()[0][3]
    assert np.array_equal(camera.record(image), EventCamera().record(image))
    assert not np.array_equal(camera.thresholds(), EventCamera(seed=1).thresholds())
    assert (EventCamera(mismatch=0.0).thresholds() == np.float32(0.4)).all()


def test_an_edge_gives_the_events_of_its_contrast() -> None:
    """An even image that moves away: every pixel's OFF minus ON events times the threshold is its change of log intensity."""
    camera = EventCamera(size=16, image=8, amplitude=4, mismatch=0.0, contrast=0.25, micro_steps=8)
    events = camera.record(np.ones((4, 4)))
    first = events[events["t"] < camera.saccade_us]  # down and to the right by (2, 4)
    balance = np.zeros((16, 16))
    np.add.at(balance, (first["y"], first["x"]), np.where(first["p"] == 1, 1.0, -1.0))
    dx, dy = camera.path()[8]
    assert (dx, dy) == (2.0, 4.0)

    def intensity(y: float, x: float) -> float:
        at = np.array([y, x]) * 0.5 + 1.5  # in image pixels, 0 to 3: even inside, falling off linearly within one pixel outside
        outside = np.maximum(0.0, np.maximum(-at, at - 3))
        return float(np.prod(np.maximum(0.0, 1.0 - outside)))

    for y in range(16):
        for x in range(16):
            start, end = (np.log(0.1 + intensity(y - 7.5 + a, x - 7.5 + b)) for a, b in ((0, 0), (dy, dx)))
            assert abs(balance[y, x] * 0.25 - (end - start)) < 0.25 + 1e-3


def test_a_dark_or_still_scene_is_silent(camera: EventCamera) -> None:
    assert len(camera.record(np.zeros((8, 8)))) == 0
    assert camera.frames(np.zeros((2, 8, 8)), 4).sum() == 0


def test_timestamps_lie_inside_the_step_of_their_crossing() -> None:
    """Within a micro-step a pixel that brightens evenly emits evenly spaced events."""
    camera = EventCamera(size=8, image=8, amplitude=3, micro_steps=1, saccade_us=1000, contrast=0.1, mismatch=0.0)
    image = np.zeros((8, 8))
    image[4:] = 1.0
    events = camera.record(image)
    events = events[(events["t"] < 1000) & (events["p"] == 1) & (events["x"] == 3)]
    rows = np.unique(events["y"])
    assert len(rows)
    for y in rows:
        gaps = np.diff(events["t"][events["y"] == y])
        assert len(gaps) >= 10
        assert gaps.max() - gaps.min() <= 1


def test_path_is_a_closed_triangle(camera: EventCamera) -> None:
    path = camera.path()
    assert path.shape == (3 * camera.micro_steps + 1, 2)
    assert (path[0] == 0).all()
    assert (path[-1] == 0).all()
    assert path[camera.micro_steps].tolist() == [2.0, 4.0]


def test_digits_are_split_with_every_class_in_its_share() -> None:
    digits = load_digits(4, camera=EventCamera(micro_steps=4))
    assert digits.train_x.shape == (4, 1437, 2, 24, 24)
    assert digits.test_x.shape == (4, 360, 2, 24, 24)
    assert digits.train_x.dtype == np.float32
    assert (digits.train_x == np.round(digits.train_x)).all()
    assert 0.05 < (digits.train_x > 0).mean() < 0.4
    assert (np.abs(np.bincount(digits.test_y, minlength=10) - 36) <= 1).all()
    labels = load_images()[1]
    (train, test), (_, again), (_, other) = split(labels), split(labels), split(labels, seed=1)
    assert len(np.intersect1d(train, test)) == 0
    assert np.array_equal(test, again)
    assert not np.array_equal(test, other)


def test_clip() -> None:
    images = load_images()[0][:2]
    camera = EventCamera()
    assert camera.frames(images, 2).max() > 3
    assert np.array_equal(camera.frames(images, 2, clip=3), camera.frames(images, 2).clip(max=3))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"contrast": 0.0}, "contrast"), ({"mismatch": 0.5}, "mismatch"), ({"micro_steps": 7}, "multiple"), ({"size": -1}, "size")],
)
def test_camera_checks_its_options(options: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EventCamera(**options)  # type: ignore[arg-type]


def test_bad_arguments(camera: EventCamera) -> None:
    with pytest.raises(ValueError, match="T=7"):
        camera.frames(np.zeros((1, 8, 8)), 7)
    with pytest.raises(ValueError, match=r"\[N, h, w\]"):
        camera.frames(np.zeros((8, 8)))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        camera.record(np.full((8, 8), 16.0))
    with pytest.raises(ValueError, match="held_out"):
        split(np.zeros(5, np.int64), 5)
    event = np.array([(10, 9, 0, 1)], EVENT)
    with pytest.raises(ValueError, match="outside the recording"):
        frames_from_events(event, 2, size=10, duration_us=10)
    with pytest.raises(ValueError, match="outside the sensor"):
        frames_from_events(event, 2, size=9, duration_us=20)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"snngraph\[demo\]"):
        load_images()
