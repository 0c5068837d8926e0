"""snnTorch's neurons, run by snnTorch, against the canonical neuron."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snngraph import ops
from snngraph.frontends import adapters
from snngraph.frontends.canonical import NotCanonicalError
from snngraph.frontends.snntorch import SnnTorch
from tests.interop.calls import assert_same_calls
from tests.interop.proof import BATCH, CHANNELS, Kind, Trace, assert_same_neuron, calibrated, inputs, stack

snntorch = pytest.importorskip("snntorch", reason="snnTorch is not installed")
utils = pytest.importorskip("snntorch.utils")

ADAPTER = SnnTorch()
RESETS = ["subtract", "zero", "none"]
KINDS = pytest.mark.parametrize("kind", ["random", "quantised"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def drive(module: Any, x: Tensor) -> Trace:
    steps, state = [], module.reset_mem()
    with torch.no_grad():
        for frame in x:
            s, *state = module(frame, *(state if isinstance(state, (tuple, list)) else (state,)))
            steps.append((s, state[-1].clone(), *(syn.clone() for syn in state[:-1])))
    return stack(steps)


@DTYPES
@KINDS
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_leaky(reset: str, reset_delay: bool, kind: Kind, dtype: torch.dtype) -> None:
    module = snntorch.Leaky(beta=0.5, reset_mechanism=reset, reset_delay=reset_delay).to(dtype)
    canonical = ADAPTER.neuron(module)
    assert_same_neuron(
        canonical, lambda x: drive(module, x), calibrated(canonical, kind, dtype), tolerance=0.0, ties=kind == "quantised"
    )


def test_leaky_with_reset_at_once_is_not_a_plain_soft_reset() -> None:
    """After an input of over two thresholds the stored potential is still above it, and the library fires on h - threshold."""
    module = snntorch.Leaky(beta=0.5, reset_delay=False).double()
    x = torch.tensor([[3.5], [0.25], [0.0]], dtype=torch.float64)
    expected = drive(module, x).s
    canonical = ADAPTER.neuron(module)
    assert torch.equal(ops.lif(x, **canonical.parameters).s, expected)
    assert not torch.equal(ops.lif(x, **{**canonical.parameters, "delay": "none"}).s, expected)


@DTYPES
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_leaky_per_neuron_and_graded(reset: str, reset_delay: bool, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(3)
    module = snntorch.Leaky(
        beta=torch.rand(CHANNELS, generator=random) * 1.4 - 0.2,  # clamped to [0, 1] in the forward pass
        threshold=torch.rand(CHANNELS, generator=random) + 0.5,
        graded_spikes_factor=0.7,
        reset_mechanism=reset,
        reset_delay=reset_delay,
        learn_beta=True,
        learn_threshold=True,
    ).to(dtype)
    canonical = ADAPTER.neuron(module)
    assert_same_neuron(canonical, lambda x: drive(module, x), calibrated(canonical, "random", dtype), tolerance=0.0)


def test_leaky_zero_keeps_the_input_of_the_step() -> None:
    x = torch.full((6, 1), 2.0)
    module = snntorch.Leaky(beta=0.5, reset_mechanism="zero")
    out = ops.lif(x, **ADAPTER.neuron(module).parameters)
    assert torch.equal(out.s, torch.ones_like(x))
    assert torch.equal(out.s, drive(module, x).s)


@KINDS
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(
    "circuit", [{"R": 1, "C": 2}, {"R": 2.0, "C": 1.5, "time_step": 0.5}, {"beta": 0.7}, {"beta": 0.6, "R": 3.0}]
)
def test_lapicque(circuit: dict[str, float], reset: str, kind: Kind) -> None:
    module = snntorch.Lapicque(**circuit, reset_mechanism=reset).double()
    canonical = ADAPTER.neuron(module)
    ties = kind == "quantised" and "beta" not in circuit and "time_step" not in circuit
    if kind == "random" or ties:
        assert_same_neuron(canonical, lambda x: drive(module, x), calibrated(canonical, kind), ties=ties)


@DTYPES
@KINDS
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_synaptic(reset: str, reset_delay: bool, kind: Kind, dtype: torch.dtype) -> None:
    beta = 0.75 if kind == "random" else 0.5
    module = snntorch.Synaptic(alpha=0.5, beta=beta, reset_mechanism=reset, reset_delay=reset_delay).to(dtype)
    canonical = ADAPTER.neuron(module)
    assert_same_neuron(
        canonical, lambda x: drive(module, x), calibrated(canonical, kind, dtype), tolerance=0.0, ties=kind == "quantised"
    )


@KINDS
@pytest.mark.parametrize("reset_delay", [True, False])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("all_to_all", [True, False])
def test_rleaky_cell(all_to_all: bool, reset: str, reset_delay: bool, kind: Kind) -> None:
    """The recurrence is the graph's; the cell is the canonical neuron, one step at a time."""
    recurrence = {"linear_features": CHANNELS} if all_to_all else {"V": -0.5, "all_to_all": False}
    options = {"reset_mechanism": reset, "reset_delay": reset_delay, "spike_grad": lambda u: (u > 0).to(u.dtype)}
    module = snntorch.RLeaky(beta=0.5, **options, **recurrence).double()  # its own surrogates return float32 spikes, always
    weights = torch.randint(-3, 3, (CHANNELS, CHANNELS), generator=torch.Generator().manual_seed(0)) / 16
    if all_to_all:  # quantised, too
        module.recurrent = nn.Linear(CHANNELS, CHANNELS, dtype=torch.float64).requires_grad_(False)
        module.recurrent.weight.copy_(weights)
        module.recurrent.bias.fill_(-0.125)
    canonical = ADAPTER.neuron(module)
    rates, ties = [], []
    for scale in (0.5, 1.0, 2.0):
        x = inputs(kind, scale=scale)
        s = spikes = mem = v = torch.zeros(BATCH, CHANNELS, dtype=torch.float64)
        fired = []
        with torch.no_grad():
            for frame in x:
                spikes, mem = module(frame, spikes, mem)
                out = ops.lif_step(frame + module.recurrent(s), v, **canonical.parameters)
                s, v = out.s, out.v
                assert torch.equal(s, spikes)
                torch.testing.assert_close(v, mem, rtol=0, atol=1e-12)
                fired.append(s)
                ties.append(out.h == module.threshold)
        rates.append(torch.stack(fired).mean().item())
    assert any(0.05 <= rate <= 0.4 for rate in rates)
    assert kind == "random" or bool(torch.stack(ties).any())


def test_what_is_not_expressed_is_refused() -> None:
    with pytest.warns(UserWarning, match="Inhibition"):
        inhibited = snntorch.Leaky(beta=0.5, inhibition=True)
    for module in (inhibited, snntorch.Leaky(beta=0.5, state_quant=torch.round)):
        with pytest.raises(ValueError, match="not expressed"):
            ADAPTER.neuron(module)
    with pytest.raises(ValueError, match="below zero"):
        ADAPTER.neuron(snntorch.Leaky(beta=0.5, threshold=-1.0, reset_mechanism="zero", reset_delay=False))


# -- as a model calls them -----------------------------------------------------------------------------------------------------

CELLS: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.7},
    "Lapicque": {"beta": 0.7},
    "Synaptic": {"alpha": 0.5, "beta": 0.7},
    "RLeaky": {"beta": 0.7, "linear_features": CHANNELS},
    "RSynaptic": {"alpha": 0.5, "beta": 0.7, "linear_features": CHANNELS},
}
DELAYS = [(kind, True) for kind in CELLS] + [(kind, False) for kind in ("Leaky", "Synaptic", "RLeaky")]


def step(u: Tensor) -> Tensor:
    return (u > 0).to(u.dtype)  # the library's own surrogates return float32 spikes, always


def cell(kind: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return getattr(snntorch, kind)(**CELLS[kind], spike_grad=step, **options).double()


def passed(module: Any, x: Tensor) -> Any:
    """State handed from step to step; a recurrent neuron takes its spikes back, too."""
    state = module.reset_mem()
    state, recorded = state if isinstance(state, tuple) else (state,), []
    for frame in x:
        spikes, *left = module(frame, *state)
        state = (spikes, *left) if module.__class__.__name__.startswith("R") else tuple(left)
        recorded.append((spikes, *left))
    return recorded


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize(("kind", "delay"), DELAYS)
def test_state_passed_by_hand(kind: str, delay: bool, reset: str) -> None:
    module = cell(kind, reset_mechanism=reset, **({} if delay else {"reset_delay": False}))
    spikes = assert_same_calls(module, inputs("random"), lambda x: passed(module, x))[0]
    assert 0 < spikes.mean() < 1


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_state_in_the_module(kind: str, output: bool) -> None:
    module = cell(kind, init_hidden=True, output=output)

    def run(x: Tensor) -> Any:
        first = [module(frame) for frame in x]
        module.reset_mem()
        return first, [module(frame) for frame in x[:3]], module.mem

    assert_same_calls(module, inputs("random"), run)


@pytest.mark.parametrize(("kind", "states"), [("Leaky", 1), ("Synaptic", 2), ("RLeaky", 2), ("RSynaptic", 3)])
def test_state_that_the_caller_made(kind: str, states: int) -> None:
    """Any tensor is a state; one of another shape than the input is none, and the library begins with zeros."""
    module = cell(kind)
    random = torch.Generator().manual_seed(1)
    state = [torch.rand(BATCH, CHANNELS, generator=random, dtype=torch.float64) * 2 for _ in range(states)]
    assert_same_calls(module, inputs("random"), lambda x: [module(x[0], *state), module(x[1], *state)])
    assert_same_calls(module, inputs("random"), lambda x: module(x[0], *(part[:1] for part in state)))
    assert_same_calls(module, inputs("random"), lambda x: module(x[0], mem=state[0]))


def test_state_written_in_place() -> None:
    """The operator's own state must not be mistaken for one that was changed meanwhile."""

    def run(x: Tensor) -> Any:
        recorded = []
        for t, frame in enumerate(x):
            recorded.append([part.clone() for part in module(frame)])
            if t == 3:
                module.mem.mul_(0.25)
            if t == 6:
                module.mem[:, ::2] = 0.5
        return recorded

    for kind in ("Leaky", "Synaptic"):
        module = cell(kind, init_hidden=True, output=True)
        assert_same_calls(module, inputs("random"), run)


def test_one_module_for_two_streams() -> None:
    module = cell("Leaky", reset_delay=False)

    def run(x: Tensor) -> Any:
        a = b = torch.zeros(BATCH, CHANNELS, dtype=torch.float64)
        recorded = []
        for frame in x:
            left, a = module(frame, a)
            right, b = module(-2 * frame, b)
            recorded.append((left, a, right, b))
        return recorded

    assert_same_calls(module, inputs("random"), run)


def test_recurrence_of_a_convolution_and_one_to_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 2, 3, 5, 5, dtype=torch.float64)
    for options in ({"conv2d_channels": 3, "kernel_size": 3}, {"all_to_all": False, "V": 0.5}):
        module = snntorch.RLeaky(beta=0.7, spike_grad=step, **options).double()
        assert_same_calls(module, x, functools.partial(passed, module))


def test_reset_of_a_model_reaches_no_other() -> None:
    """utils.reset resets every neuron that was ever made."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = cell("Leaky", init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            utils.reset(self)
            return torch.stack([self.lif(frame) for frame in x])

    other, net, x = cell("Leaky", init_hidden=True), Net(), inputs("random")
    other(x[0])
    kept, everyone = other.mem.clone(), list(snntorch.SpikingNeuron.instances)
    with adapters.adapted(net):
        first = net(x)
        assert torch.equal(net(x), first)
    assert torch.equal(other.mem, kept)
    assert [id(module) for module in snntorch.SpikingNeuron.instances] == [id(module) for module in everyone]


@pytest.mark.parametrize("kind", [*CELLS, "Alpha"])
def test_reset(kind: str) -> None:
    module = snntorch.Alpha(alpha=0.8, beta=0.6, init_hidden=True) if kind == "Alpha" else cell(kind, init_hidden=True)
    x = inputs("random", torch.float32 if kind == "Alpha" else torch.float64)
    first = module(x[0])
    assert any(buffer.numel() for name, buffer in module.named_buffers() if name.endswith("mem"))
    ADAPTER.reset(module)
    assert module.mem.shape == (0,)
    assert torch.equal(module(x[0]), first)


def test_a_reset_of_the_users_own_is_kept() -> None:
    class Warm(snntorch.Leaky):  # type: ignore[misc, name-defined]
        def reset_mem(self) -> Tensor:
            self.mem = torch.full((BATCH, CHANNELS), 0.5)
            return self.mem

    module = Warm(beta=0.5)
    ADAPTER.reset(module)
    assert torch.equal(module.mem, torch.full((BATCH, CHANNELS), 0.5))
    with pytest.raises(NotCanonicalError, match="Warm replaces reset_mem of Leaky"):
        ADAPTER.neuron(module)


# -- what is not taken for the library's neuron --------------------------------------------------------------------------------


def test_a_subclass_of_the_same_dynamics_is_its_parent() -> None:
    class Named(snntorch.Leaky):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__(beta=0.5)

        def extra_repr(self) -> str:
            return "mine"

        def rate(self) -> float:
            return 0.0

    assert ADAPTER.neuron(Named()) == ADAPTER.neuron(snntorch.Leaky(beta=0.5))
    assert ADAPTER.neuron(copy.deepcopy(Named())) == ADAPTER.neuron(Named())


def test_changed_dynamics_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(snntorch.Leaky):  # type: ignore[misc, name-defined]
        def fire(self, mem: Tensor) -> Any:
            return super().fire(mem * 2)

    with pytest.raises(NotCanonicalError, match="Doubled replaces fire of Leaky"):
        ADAPTER.neuron(Doubled(beta=0.5))
    module = snntorch.Leaky(beta=0.5)
    module.fire = lambda mem: mem
    with pytest.raises(NotCanonicalError, match="Leaky replaces fire"):
        ADAPTER.neuron(module)
    module = snntorch.Leaky(beta=0.5)
    module.state_function = lambda x: x
    with pytest.raises(NotCanonicalError, match="state_function"):
        ADAPTER.neuron(module)
    with pytest.raises(NotCanonicalError, match="Alpha has dynamics of its own"):
        ADAPTER.neuron(snntorch.Alpha(alpha=0.8, beta=0.6))
    monkeypatch.setattr(snntorch.SpikingNeuron, "fire", lambda self, mem: mem)
    with pytest.raises(NotCanonicalError, match="Leaky replaces fire"):
        ADAPTER.neuron(snntorch.Leaky(beta=0.5))


def test_surrogates() -> None:
    for name in ("atan", "fast_sigmoid", "sigmoid", "straight_through_estimator", "triangular", "SSO", "SFS"):
        ADAPTER.neuron(snntorch.Leaky(beta=0.5, spike_grad=getattr(snntorch.surrogate, name)()))
    for function in (torch.sigmoid, lambda u: (u >= 0).float(), lambda u: u / 0):
        with pytest.raises(NotCanonicalError, match="spike_grad"):
            ADAPTER.neuron(snntorch.Leaky(beta=0.5, spike_grad=function))


def test_settings_that_contradict_each_other() -> None:
    module = snntorch.Leaky(beta=0.5, reset_delay=False)
    module.reset_mechanism = "none"
    with pytest.raises(NotCanonicalError, match="after construction"):
        ADAPTER.neuron(module)
    with pytest.raises(NotCanonicalError, match="graded_spikes_factor of 0"):
        ADAPTER.neuron(snntorch.Leaky(beta=0.5, reset_delay=False, graded_spikes_factor=0.0))


def test_whole_numbers() -> None:
    module = snntorch.Leaky(beta=1, threshold=2, spike_grad=step).double()
    assert_same_calls(module, inputs("quantised"), lambda x: passed(module, x), tolerance=0.0)
