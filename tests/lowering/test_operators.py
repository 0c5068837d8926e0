"""Every operator of ``operators.txt`` against the graph in float64: both engines, fixed and free batch."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from snngraph.lowering import lower
from snngraph.lowering.operators import TRANSLATIONS
from snngraph.testing import parse, random_inputs
from tests.lowering.engines import ENGINES, assert_close, outputs, run

TOLERANCE = 2e-6  # of the largest number
ASSERTIONS = {"_assert_async.default", "_assert_async.msg", "_assert_scalar.default", "_assert_tensor_metadata.default"}


def cases() -> dict[str, str]:
    """By name the text of a graph that returns every expression of the case."""
    found = {}
    for block in re.split(r"\n\s*\n", Path(__file__).with_name("operators.txt").read_text()):
        head, *body = [line.strip() for line in block.strip().splitlines() if not line.startswith("#")] or [""]
        if head:
            name, _, inputs = head.partition(": ")
            statements = [line for line in body if re.match(r"\w+ = ", line)]
            values = ", ".join(line for line in body if not re.match(r"\w+ = ", line))
            found[name] = "\n".join([f"{inputs} ->", *statements, f"return {values}"])
    return found


CASES = cases()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
def test_operator(name: str, engine: str) -> None:
    graph = parse(CASES[name])
    inputs = [x.float().double() for x in random_inputs(graph)]
    assert_close(run(lower(graph, batch=2), inputs, engine), outputs(graph, inputs), TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_dynamic_batch(name: str) -> None:
    graph = parse(CASES[name])
    lowered = lower(graph, batch="dynamic")
    for batch in (1, 3):
        inputs = [x.float().double() for x in random_inputs(graph, batch)]
        assert_close(run(lowered, inputs, "onnxruntime"), outputs(graph, inputs), TOLERANCE)


def test_every_translation_is_tested() -> None:
    used = {str(n.target) for text in CASES.values() for n in parse(text).nodes}
    assert {str(t) for t in TRANSLATIONS} - used == {f"aten.{name}" for name in ASSERTIONS}
