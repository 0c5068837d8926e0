"""Every test draws the same random numbers in every run, in whatever order the tests run."""

from __future__ import annotations

import os
import sys

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch is imported: workers that each take all cores slow one another down
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
