"""The neuron against its definition in float32: to the bit in ONNX Runtime, and in OpenVINO but for its fused multiply-add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snngraph.lowering import lower
from snngraph.testing import parse, random_inputs
from tests.lowering.engines import ENGINES, count, outputs, run

PER_CHANNEL = "[3, 1, 1]"


def one_of(*choices: float | str | None) -> st.SearchStrategy[Any]:
    return st.sampled_from(choices)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    """Every option of the neuron; a parameter is absent, a number that may be left out, another number, or a tensor."""
    found: dict[str, Any] = {
        "fire": draw(one_of(">=", ">")),
        "reset": draw(one_of("hard", "soft", "none")),
        "delay": draw(one_of("none", "before", "with", "both")),
        "emit": draw(one_of("spike", "count", "signed")),
        "v": draw(one_of(0.0, 0.3, "v0" + PER_CHANNEL)),
        "decay": draw(one_of(0.0, 0.5, 0.9, 1.0, "decay" + PER_CHANNEL)),
        "threshold": draw(one_of(0.3, 1.0, "threshold" + PER_CHANNEL)),
        "input_gain": draw(one_of(None, 0.3, 1.0, "input_gain" + PER_CHANNEL)),
        "bias": draw(one_of(None, 0.0, 0.1, "bias" + PER_CHANNEL)),
        "gain": draw(one_of(None, 0.3, "gain" + PER_CHANNEL, "gain[4, 1, 3, 1, 1]", "gain[1, 1, 3, 1, 1]")),
        "floor": draw(one_of(None, -0.2, "floor" + PER_CHANNEL)),
        "level": draw(one_of(None, 0.3, 1.0, "level" + PER_CHANNEL)),
    }
    if found["reset"] == "hard":
        found["v_reset"] = draw(one_of(0.0, -0.1, "v_reset" + PER_CHANNEL))
    if found["reset"] == "soft":
        found["reset_amount"] = draw(one_of(None, 0.7, "amount" + PER_CHANNEL))
    if draw(st.booleans()):
        found["syn_decay"] = draw(one_of(0.9, 1.0, "syn_decay" + PER_CHANNEL))
        found["syn_gain"] = draw(one_of(None, 0.3))
        found["i"] = draw(one_of(None, 0.0, 0.2, "i0" + PER_CHANNEL))
    return found


def arguments(found: dict[str, Any]) -> str:
    words = ("fire", "reset", "delay", "emit")
    return ", ".join(f'{k}="{v}"' if k in words else f"{k}={v}" for k, v in found.items() if v is not None)


def sequence(found: dict[str, Any], steps: int = 4) -> str:
    current = ", s.i" if "syn_decay" in found else ""
    return f"x[{steps}, N, 3, 2, 5] ->\ns = lif(x, {arguments(found)}, with_h=True)\nreturn s.s, s.v, s.h{current}"


def chain(found: dict[str, Any]) -> str:
    """The same neuron, step by step, its spikes joined."""
    current = ", i=s{0}.i" if "syn_decay" in found else ""
    later = {k: v for k, v in found.items() if k not in ("v", "i", "gain")}
    first = {k: v for k, v in found.items() if k != "gain"}
    lines = [f"s0 = lif_step(select(x, 0, 0), {arguments(first)})"]
    for t in range(1, 4):
        lines.append(f"s{t} = lif_step(select(x, 0, {t}), v=s{t - 1}.v{current.format(t - 1)}, {arguments(later)})")
    return "x[4, N, 3, 2, 5] ->\n" + "\n".join(lines) + "\nreturn stack([s0.s, s1.s, s2.s, s3.s]), s3.v, s3.h"


def float32_run(text: str, seed: int) -> tuple[Any, list[torch.Tensor], list[np.ndarray[Any, Any]]]:
    graph = parse(text, seed=seed)
    inputs = random_inputs(graph, 2, seed)
    return lower(graph, batch=2), inputs, [y.numpy() for y in outputs(graph.to(torch.float32), inputs)]


@settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(options(), st.integers(0, 1000), st.booleans())
def test_onnxruntime_is_bitwise(found: dict[str, Any], seed: int, stepped: bool) -> None:
    text = chain(found) if stepped else sequence(found)
    lowered, inputs, wanted = float32_run(text, seed)
    for name, a, b in zip("svhi", run(lowered, inputs, "onnxruntime"), wanted, strict=False):
        np.testing.assert_array_equal(a, b, err_msg=f"{name} of {text}")


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(options(), st.integers(0, 1000))
def test_openvino_is_as_close_as_float32_can_be(found: dict[str, Any], seed: int) -> None:
    lowered, inputs, wanted = float32_run(sequence(found), seed)
    for name, a, b in zip("svhi", run(lowered, inputs, "openvino"), wanted, strict=False):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "text",
    [
        "decay=0.5, threshold=1.0",
        "decay=1.0, threshold=0.3",
        'decay=0.5, threshold=0.3, reset="soft"',
        "decay=0.5, input_gain=0.5, threshold=1.0, v_reset=-0.1",
        'decay=0.5, threshold=0.3, emit="count"',
        'decay=0.5, threshold=0.3, emit="signed", reset="soft"',
        'decay=0.25, threshold=0.5, fire=">", delay="before"',
        "decay=0.5, threshold=1.0, bias=0.1, floor=-0.2, level=0.3",
    ],
)
def test_openvino_is_bitwise_where_the_decay_is_a_power_of_two(text: str) -> None:
    """It fuses ``decay*v + x`` into one rounding, which is visible only where the product alone would have been rounded."""
    lowered, inputs, wanted = float32_run(f"x[4, N, 3, 20, 21] ->\ns = lif(x, {text}, with_h=True)\nreturn s.s, s.v, s.h", 0)
    for a, b in zip(run(lowered, inputs, "openvino"), wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert 0.05 < (wanted[0] != 0).mean() < 0.9


def test_openvino_rounds_a_decay_once() -> None:
    lowered, inputs, wanted = float32_run("x[4, N, 300] ->\ns = lif(x, decay=0.9, with_h=True)\nreturn s.s, s.h", 0)
    found = run(lowered, inputs, "openvino")
    decay, v, charged = np.float64(np.float32(0.9)), np.zeros((2, 300)), []
    for x in inputs[0].float().numpy():
        h = (decay * v + x).astype(np.float32)  # exact in float64, then one rounding
        charged.append(h)
        v = np.where(h >= 1, 0.0, h)
    assert (np.stack(charged) != wanted[1]).any()
    np.testing.assert_array_equal(found[1], np.stack(charged))


@pytest.mark.parametrize("engine", ENGINES)
def test_infinite_and_nan_potentials_reset(engine: str) -> None:
    """A reset by multiplication would keep infinity: 0 * inf is NaN. OpenVINO's comparison holds for NaN, so there NaN fires."""
    graph = parse("x[3, N, 4] ->\ns = lif(x, decay=0.5)\nreturn s.s, s.v", batch=1)
    x = torch.zeros(3, 1, 4)
    x[0] = torch.tensor([torch.inf, -torch.inf, torch.nan, 2.0])
    spikes, v = run(lower(graph, batch=1), [x], engine)
    np.testing.assert_array_equal(spikes[0, 0, [0, 1, 3]], [1, 0, 1])
    assert v[0, 0] == 0.0
    assert v[0, 1] == -np.inf
    assert np.isnan(v[0, 2]) == (engine == "onnxruntime")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("gain", ["[4, N, 3, 1, 1]", "[4, N, 1, 1, 1]"])
def test_a_gain_that_the_graph_computes(engine: str, gain: str) -> None:
    graph = parse(f"x[4, N, 3, 2, 2], g{gain} ->\nreturn lif(x, decay=0.5, gain=sigmoid(g), threshold=0.2)")
    lowered, inputs = lower(graph, batch=2), random_inputs(graph, 2)
    assert count(lowered, "Split") == 2
    np.testing.assert_array_equal(run(lowered, inputs, engine)[0], outputs(graph, inputs)[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_that_the_graph_computes(engine: str) -> None:
    text = "x[4, N, 3, 2, 2], a[N, 3, 1, 1] ->\nb = abs(a)\nreturn lif(x, decay=sigmoid(a), threshold=b, v=tanh(a))"
    graph = parse(text)
    lowered, inputs = lower(graph, batch="dynamic"), random_inputs(graph, 3)
    np.testing.assert_array_equal(run(lowered, inputs, engine)[0], outputs(graph, inputs)[0])


def test_a_neuron_that_is_nothing_but_a_comparison() -> None:
    lowered = lower(parse("x[1, N, 8] ->\nreturn lif(x, decay=0.5)"), batch=1)
    assert [n.op_type for n in lowered.model.graph.node if n.op_type not in ("Reshape", "Identity")] == ["GreaterOrEqual", "Cast"]
