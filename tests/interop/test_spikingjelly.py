"""SpikingJelly's neurons, run by SpikingJelly, against the canonical neuron."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from snngraph import neurons
from snngraph.frontends.canonical import NotCanonicalError
from snngraph.frontends.spikingjelly import SpikingJelly
from tests.interop.proof import Kind, Trace, assert_same_neuron, calibrated, stack

spikingjelly = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")

ADAPTER = SpikingJelly()
V_RESETS = [0.0, None, -0.25]


def drive(module: Any, x: Tensor) -> Trace:
    node = copy.deepcopy(module)
    steps = []
    with torch.no_grad():
        for frame in x:
            s = node(frame)
            steps.append((s, node.v, node.c) if hasattr(node, "c") else (s, node.v))
    trace = stack(steps)
    multi = copy.deepcopy(module)
    multi.step_mode = "m"
    with torch.no_grad():
        assert torch.equal(multi(x), trace.s)  # SpikingJelly's own two modes agree
    return trace


def check(module: Any, kind: Kind, dtype: torch.dtype, **options: Any) -> None:
    canonical = ADAPTER.neuron(module.to(dtype).eval())
    assert_same_neuron(canonical, lambda x: drive(module, x), calibrated(canonical, kind, dtype), **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["random", "quantised"])
@pytest.mark.parametrize("v_reset", V_RESETS)
def test_if(v_reset: float | None, kind: Kind, dtype: torch.dtype) -> None:
    module = spikingjelly.IFNode(v_reset=v_reset)
    check(module, kind, dtype, tolerance=0.0, ties=kind == "quantised")


@pytest.mark.parametrize(("tau", "kind"), [(2.0, "random"), (1.7, "random"), (2.0, "quantised")])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", V_RESETS)
def test_lif(tau: float, v_reset: float | None, decay_input: bool, kind: Kind) -> None:
    module = spikingjelly.LIFNode(tau=tau, decay_input=decay_input, v_reset=v_reset, v_threshold=0.75)
    check(module, kind, torch.float64, ties=kind == "quantised")


@pytest.mark.parametrize("kind", ["random", "quantised"])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("v_reset", V_RESETS)
def test_plif(v_reset: float | None, decay_input: bool, kind: Kind) -> None:
    module = spikingjelly.ParametricLIFNode(
        init_tau=2.0 if kind == "quantised" else 3.1, decay_input=decay_input, v_reset=v_reset
    )
    check(module, kind, torch.float64, ties=kind == "quantised")


def test_plif_of_a_float32_model_keeps_all_digits() -> None:
    module = spikingjelly.ParametricLIFNode(init_tau=3.1)
    found, expected = ADAPTER.neuron(module).parameters, ADAPTER.neuron(copy.deepcopy(module).double()).parameters
    assert found["decay"].dtype == torch.float64
    assert found["decay"] == expected["decay"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["random", "quantised"])
@pytest.mark.parametrize("v_reset", V_RESETS)
def test_cubalif(v_reset: float | None, kind: Kind, dtype: torch.dtype) -> None:
    module = spikingjelly.CUBALIFNode(c_decay=0.5, v_decay=0.75 if kind == "random" else 0.5, v_reset=v_reset)
    check(module, kind, dtype, tolerance=0.0, ties=kind == "quantised")


@pytest.mark.parametrize("kind", ["random", "quantised"])
def test_half_threshold_if(kind: Kind) -> None:
    module = spikingjelly.HalfThresholdIFNode()
    check(module, kind, torch.float32, tolerance=0.0, ties=kind == "quantised")


@pytest.mark.parametrize("kind", ["random", "quantised"])
@pytest.mark.parametrize("v_reset", V_RESETS)
def test_ternary_if(v_reset: float | None, kind: Kind) -> None:
    module = spikingjelly.TernaryIFNode(v_reset=v_reset)
    check(module, kind, torch.float32, tolerance=0.0, ties=kind == "quantised")


@pytest.mark.parametrize("kind", ["random", "quantised"])
@pytest.mark.parametrize("v_reset", V_RESETS)
def test_ternary_lif(v_reset: float | None, kind: Kind) -> None:
    module = spikingjelly.TernaryLIFNode(tau=2.0, v_reset=v_reset)
    check(module, kind, torch.float64, ties=kind == "quantised")


@pytest.mark.parametrize("v_reset", [0.0, None])
def test_simple_neurons(v_reset: float | None) -> None:
    check(spikingjelly.SimpleIFNode(v_reset=v_reset), "random", torch.float64, tolerance=0.0)
    check(spikingjelly.SimpleLIFNode(tau=1.7, decay_input=False, v_reset=-0.25), "random", torch.float64)


@pytest.mark.parametrize("name", ["OTTTLIFNode", "SLTTLIFNode"])
def test_neurons_that_are_trained_online(name: str) -> None:
    node = getattr(spikingjelly, name)(tau=1.7).double()
    canonical = ADAPTER.neuron(node.eval())

    def one_mode(x: Tensor) -> Trace:
        module = copy.deepcopy(node)
        return stack([(module(frame), module.v) for frame in x])

    assert_same_neuron(canonical, one_mode, calibrated(canonical, "random"))
    if name == "OTTTLIFNode":
        with pytest.raises(NotCanonicalError, match=r"trace, too: call eval\(\)"):
            ADAPTER.neuron(node.train())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (neurons.ATan(1.5), lambda: surrogate.ATan(alpha=1.5)),
        (neurons.Sigmoid(3.0), lambda: surrogate.Sigmoid(alpha=3.0)),
        (neurons.Piecewise(0.75), lambda: surrogate.PiecewiseQuadratic(alpha=0.75)),
    ],
    ids=["atan", "sigmoid", "piecewise"],
)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", V_RESETS)
@pytest.mark.parametrize("kind", ["IF", "LIF", "PLIF"])
def test_our_neurons_and_their_gradients(kind: str, v_reset: float | None, detach_reset: bool, ours: Any, theirs: Any) -> None:
    """snngraph.neurons trains as SpikingJelly's do: same spikes, same gradients, float64."""
    options: dict[str, Any] = {"v_reset": v_reset, "detach_reset": detach_reset}
    module: neurons.Neuron
    if kind == "IF":
        module, node = neurons.IF(surrogate=ours, **options), spikingjelly.IFNode(surrogate_function=theirs(), **options)
    elif kind == "LIF":
        module = neurons.LIF(tau=3.0, surrogate=ours, **options)
        node = spikingjelly.LIFNode(tau=3.0, surrogate_function=theirs(), **options)
    else:
        module = neurons.PLIF(init_tau=2.5, surrogate=ours, **options)
        node = spikingjelly.ParametricLIFNode(init_tau=2.5, surrogate_function=theirs(), **options)
    module, node = module.double(), node.double()
    node.step_mode = "m"
    x = torch.randn(12, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    weight = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    s, s_expected = module(found), node(expected)
    assert torch.equal(s, s_expected)
    (s * weight).sum().backward()
    (s_expected * weight).sum().backward()
    torch.testing.assert_close(found.grad, expected.grad, rtol=0, atol=1e-12)
    if isinstance(module, neurons.PLIF):
        torch.testing.assert_close(module.w.grad, node.w.grad, rtol=1e-12, atol=1e-12)
