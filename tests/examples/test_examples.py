"""The examples run, learn, and find that engine and model agree."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "common")


def test_there_is_one_for_every_family() -> None:
    assert EXAMPLES == ["ma", "pfa", "spikingresformer", "tcja"]


def _run(name: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{name}", "--quick", *options],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", COLUMNS="200"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@functools.cache
def _first_run(name: str) -> str:
    return _run(name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_learns_and_its_engine_is_right(name: str) -> None:
    text = _first_run(name)
    assert "96 of 96 predictions equal" in text
    assert "verify: ok" in text


def test_the_same_seed_trains_the_same_net(tmp_path: Path) -> None:
    again = _run("spikingresformer", "--seed", "0", "--output", str(tmp_path / "net.snn"))
    assert _numbers(again) == _numbers(_first_run("spikingresformer"))
    assert (tmp_path / "net.snn").exists()


def _numbers(text: str) -> list[str]:
    """The losses and accuracies, without the seconds."""
    found = re.findall(r"loss ([\d.]+), held-out accuracy ([\d.]+%)", text)
    accuracies = re.findall(r"^accuracy: .*$", text, re.MULTILINE)
    assert found
    assert accuracies
    return [*map(str, found), *accuracies]
