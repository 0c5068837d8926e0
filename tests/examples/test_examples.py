"""The examples run, learn, and find that engine and model agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("*.py") if path.stem != "common")


def test_there_is_one_for_every_family() -> None:
    assert EXAMPLES == ["ma", "pfa", "spikingresformer", "tcja"]


def _run(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=ROOT,
        env=dict(os.environ, OMP_NUM_THREADS="1", COLUMNS="200"),
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], str]:
    """What every example prints, and what one prints when it runs again and saves its engine; two run at a time."""
    path = tmp_path_factory.mktemp("engine") / "net.snn"
    commands = [f"examples.{name} --quick" for name in EXAMPLES]
    again = f"examples.tcja --quick --seed 0 --output {path}"
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(_run, [*commands, again]))
    for each in done:
        assert each.returncode == 0, f"{each.args}\n{each.stdout}{each.stderr}"
    assert path.exists()
    return {name: each.stdout for name, each in zip(EXAMPLES, done, strict=False)}, done[-1].stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_learns_and_its_engine_is_right(name: str, runs: tuple[dict[str, str], str]) -> None:
    text = runs[0][name]
    assert "72 of 72 predictions equal" in text
    assert "verify: ok" in text


def test_the_same_seed_trains_the_same_net(runs: tuple[dict[str, str], str]) -> None:
    first, again = runs
    assert _numbers(again) == _numbers(first["tcja"])


def _numbers(text: str) -> list[str]:
    """The losses and accuracies, without the seconds."""
    found = re.findall(r"loss ([\d.]+), held-out accuracy ([\d.]+%)", text)
    accuracies = re.findall(r"^accuracy: .*$", text, re.MULTILINE)
    assert found
    assert accuracies
    return [*map(str, found), *accuracies]
