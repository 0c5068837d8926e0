"""Every operator of ``operators.txt`` against the graph in float64: both engines, fixed and free batch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from snngraph.lowering import integer, lower
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


def test_division_of_what_is_almost_a_multiple() -> None:
    """float32's 0.1 is a little more than a tenth: 1 holds it 9 times, though 1 / 0.1 is rounded to 10."""
    dividends = [1.0, -1.0, 0.3, 0.7, 1e6, 5.5, -5.5, 0.0, -0.1, 3.0, float("inf"), 2.0]
    divisors = [0.1, 0.1, 0.1, -0.1, 0.1, 2.0, -2.0, 0.7, 0.1, 0.0, 2.0, float("inf")]
    text = """x[N, 2] ->
    a = select(x, 1, 0)
    b = select(x, 1, 1)
    y = div.Tensor_mode(a, b, rounding_mode="floor")
    z = div.Tensor_mode(a, 0.1, rounding_mode="floor")
    return y, remainder.Tensor(a, b), fmod.Tensor(a, b), z, remainder.Scalar(a, 0.1)"""
    graph = parse(text).to(torch.float32)
    x = torch.tensor([dividends, divisors]).T.contiguous()
    for found, wanted in zip(run(lower(graph, batch=len(x)), [x], "onnxruntime"), outputs(graph, [x]), strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())
    # OpenVINO's Mod rounds the ratio; where it is no whole number there is nothing to get wrong.
    x = torch.tensor([[5.5, -5.5, 5.5, -5.5, 0.1, -0.1, 7.25], [2.0, 2.0, -2.0, -2.0, 7.0, 7.0, 0.0]]).T.contiguous()
    for found, wanted in zip(run(lower(graph, batch=len(x)), [x], "openvino")[:3], outputs(graph, [x])[:3], strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize("engine", ENGINES)
def test_division_of_integers_beyond_float32(engine: str) -> None:
    dividends = [7, -7, 2**24 + 1, 2**30 + 1, -(2**24) - 1, 2**31 - 1, 100_000_007, 2**31 - 2, -(2**31) + 1, 2**30 + 3, 0]
    divisors = [-2, 2, 1, 3, 2, 7, 10, 2**31 - 1, 2**24 + 3, -(2**30) - 1, -5]
    text = """x[N, 2] ->
    n = _to_copy(x, dtype="int32")
    a = select(n, 1, 0)
    b = select(n, 1, 1)
    y = div.Tensor_mode(a, b, rounding_mode="floor")
    z = div.Tensor_mode(a, b, rounding_mode="trunc")
    return y, z, remainder.Tensor(a, b), fmod.Tensor(a, b)"""
    graph = parse(text)
    lowered = lower(graph, batch=len(dividends)).model
    ints = torch.tensor([dividends, divisors], dtype=torch.int32).T.contiguous()
    lowered.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32  # float32 does not hold these numbers
    for found, wanted in zip(run(lowered, [ints], engine), outputs(graph, [ints]), strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())


def test_every_translation_is_tested() -> None:
    used = {str(n.target) for text in CASES.values() for n in parse(text).nodes}
    assert {str(t) for t in TRANSLATIONS if t not in integer.TABLE} - used == {f"aten.{name}" for name in ASSERTIONS}
