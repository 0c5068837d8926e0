"""Old versions of SpikingJelly, each in a folder of its own: one process runs all cases of a version."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop import legacy_spikingjelly

ROOT = Path(__file__).parents[2]


@functools.cache
def results(version: str) -> dict[str, str]:
    folder = ROOT / ".venv" / "legacy" / f"spikingjelly-{version}"
    if not folder.is_dir():
        pytest.skip(f"SpikingJelly {version} is not installed in {folder.relative_to(ROOT)}")
    process = subprocess.run(
        [sys.executable, "-m", legacy_spikingjelly.__name__, version],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found: dict[str, str] = json.loads(process.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("version", "case"), [(v, case.__name__) for v, cases in legacy_spikingjelly.CASES.items() for case in cases]
)
def test_old_versions(version: str, case: str) -> None:
    error = results(version)[case]
    assert not error, error
