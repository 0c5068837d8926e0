"""Importing snngraph, or its runtime alone, stays light: what was imported counts, not the clock."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "torch",
    "onnx",
    "onnxscript",
    "openvino",
    "onnxruntime",
    "tensorrt",
    "tensorrt_rtx",
    "typer",
    "rich",
    "scipy",
    "sklearn",
}


def imported_by(module: str) -> set[str]:
    """The top-level names that a fresh interpreter holds after importing the module and nothing else."""
    code = f"import json, sys; import {module}; print(json.dumps(sorted({{name.partition('.')[0] for name in sys.modules}})))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return set(json.loads(run.stdout))


def test_package_imports_nothing_heavy() -> None:
    assert imported_by("snngraph") & (HEAVY | {"numpy"}) == set()


@pytest.mark.parametrize("module", ["snngraph.errors", "snngraph.types"])
def test_plain_modules_import_only_the_standard_library(module: str) -> None:
    assert imported_by(module) & (HEAVY | {"numpy"}) == set()


def test_runtime_imports_no_engine_and_no_compiler() -> None:
    assert imported_by("snngraph.runtime") & HEAVY == set()
