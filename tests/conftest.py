"""Every test draws the same random numbers in every run, in whatever order the tests run; files that take long run first."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported: workers that each take all cores slow one another down
    os.environ.setdefault("OMP_NUM_THREADS", "1")

#: The files that take longest, so that no worker is left alone with one of them in the end.
LONGEST = (
    "examples/test_examples.py",
    "interop/test_spikingjelly_legacy.py",
    "test_benchmark.py",
    "interop/test_spikingjelly_zoo.py",
    "demo/test_run.py",
    "compatibility/test_compatibility.py",
    "property/test_engines.py",
    "passes/test_every_pass.py",
    "passes/test_lift_neurons.py",
    "passes/test_fuse_modules.py",
    "analysis/test_levels.py",
    "interop/test_spikingjelly_capture.py",
    "test_outside_package.py",
    "test_cli.py",
    "test_docs.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
