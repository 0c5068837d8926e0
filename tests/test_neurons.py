"""The trainable neurons: their step modes, state, resets and surrogates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snngraph import neurons, ops
from snngraph.neurons import IF, LIF, PLIF, ATan, Neuron, Piecewise, Sigmoid

T, N, C = 12, 3, 16
KINDS = [IF, LIF, PLIF]
V_RESETS = pytest.mark.parametrize("v_reset", [0.0, None, -0.25, 0.125])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def sequence(dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(T, N, C, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.4


def by_hand(x: Tensor, rate: float | None, decay_input: bool, v_reset: float | None, threshold: float) -> tuple[Tensor, Tensor]:
    """SpikingJelly's own order of operations (Fang et al. 2023): spikes, and the last membrane potential. IF has no rate."""
    rest = 0.0 if v_reset is None else v_reset
    v, spikes = torch.full_like(x[0], rest), []
    for frame in x:
        if rate is None:
            h = v + frame
        else:
            h = v + (frame - (v - rest)) * rate if decay_input else v - (v - rest) * rate + frame
        s = (h - threshold >= 0).to(x.dtype)
        v = h - s * threshold if v_reset is None else (1 - s) * h + s * rest
        spikes.append(s)
    return torch.stack(spikes), v


def make(kind: type[Neuron], decay_input: bool, **options: Any) -> tuple[Neuron, float | None]:
    """A neuron in float64, and its 1/tau."""
    if kind is LIF:
        return LIF(2.5, decay_input=decay_input, **options), 1 / 2.5
    if kind is IF:
        return IF(**options), None
    neuron = PLIF(2.5, decay_input=decay_input, **options).double()
    rate = neuron.w.sigmoid().item()
    assert rate == pytest.approx(1 / 2.5, rel=1e-6)
    return neuron, rate


@V_RESETS
@pytest.mark.parametrize("decay_input", [True, False])
@EVERY_KIND
def test_spikes_are_those_of_the_formula(kind: type[Neuron], decay_input: bool, v_reset: float | None) -> None:
    x = sequence()
    neuron, rate = make(kind, decay_input, v_reset=v_reset, threshold=0.625)
    expected, v = by_hand(x, rate, decay_input, v_reset, 0.625)
    assert 0.05 < expected.mean() < 0.6
    assert torch.equal(neuron(x), expected)
    neurons.set_step_mode(neuron, "s")
    assert torch.equal(torch.stack([neuron(frame) for frame in x]), expected)
    assert neuron.v is not None
    torch.testing.assert_close(neuron.v, v, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@V_RESETS
@EVERY_KIND
def test_step_modes_agree_bit_for_bit(kind: type[Neuron], v_reset: float | None, dtype: torch.dtype) -> None:
    x = sequence(dtype)
    neuron = kind(v_reset=v_reset, fire=">").to(dtype)
    expected = neuron(x)
    assert neuron.v is None  # a whole sequence leaves no state behind
    assert torch.equal(neuron(x), expected)
    neurons.set_step_mode(neuron, "s")
    assert torch.equal(torch.stack([neuron(frame) for frame in x]), expected)
    neuron.reset()
    assert torch.equal(torch.stack([neuron(frame) for frame in x]), expected)


def test_quantised_inputs_meet_the_threshold_exactly() -> None:
    x = torch.randint(-8, 20, (T, N, C), generator=torch.Generator().manual_seed(0)).double() / 8
    for fire in ops.FIRE:
        neuron = LIF(tau=2.0, fire=fire)
        out = ops.lif(x, **neuron.parameters_of_neuron(), with_h=True)
        assert (out.h == 1.0).any()
        assert torch.equal(neuron(x), (out.h >= 1.0 if fire == ">=" else out.h > 1.0).double())


def test_reset_and_step_mode_reach_every_neuron() -> None:
    model = nn.Sequential(nn.Linear(C, C), LIF(), nn.Sequential(nn.Linear(C, C), IF(), PLIF()))
    neurons.set_step_mode(model, "s")
    found = [m for m in model.modules() if isinstance(m, Neuron)]
    model(torch.randn(N, C))
    assert all(m.step_mode == "s" and m.v is not None for m in found)
    neurons.reset(model)
    assert all(m.v is None for m in found)
    model(torch.randn(N + 1, C))  # another batch size
    neurons.set_step_mode(model, "m")
    assert all(m.step_mode == "m" and m.v is None for m in found)


def test_state_of_another_shape_is_refused() -> None:
    neuron = LIF(step_mode="s")
    neuron(torch.ones(4, C))
    with pytest.raises(ValueError, match=r"shape \(4, 16\) and the input \(3, 16\): call snngraph.neurons.reset"):
        neuron(torch.ones(3, C))
    neuron.reset()
    assert neuron(torch.ones(3, C)).shape == (3, C)


def test_initial_potential() -> None:
    x = torch.zeros(1, 1, 1)
    assert IF(v_init=1.0)(x).item() == 1.0
    assert IF(v_reset=-0.5).v_init == -0.5
    assert IF(v_reset=None).v_init == 0.0


def test_a_bias_adds_to_the_resting_potential() -> None:
    x = sequence()
    for kind in (LIF, PLIF):
        plain, biased = kind(v_reset=-0.25).double(), kind(v_reset=-0.25, bias=0.125).double()
        rate = 0.5
        assert torch.equal(biased(x), plain(x + 0.125 / rate))
    assert torch.equal(IF(bias=0.125)(x), IF()(x + 0.125))


@pytest.mark.parametrize(
    ("surrogate", "closed_form"),
    [
        (ATan(), lambda u: 1 / (1 + (math.pi * u) ** 2)),
        (ATan(3.0), lambda u: 1.5 / (1 + (1.5 * math.pi * u) ** 2)),
        (Sigmoid(), lambda u: 1 / math.cosh(2 * u) ** 2),
        (Sigmoid(2.0), lambda u: 0.5 / math.cosh(u) ** 2),
        (Piecewise(), lambda u: max(0.0, 1 - abs(u))),
        (Piecewise(2.0), lambda u: max(0.0, 2 - 4 * abs(u))),
    ],
)
def test_surrogates_have_their_closed_form(surrogate: neurons.Surrogate, closed_form: Any) -> None:
    u = torch.linspace(-2, 2, 41, dtype=torch.float64)
    x = (u + 0.75)[None].requires_grad_()
    (slope,) = torch.autograd.grad(IF(threshold=0.75, surrogate=surrogate)(x[None]).sum(), x)
    torch.testing.assert_close(
        slope[0], torch.tensor([closed_form(a) for a in u.tolist()], dtype=torch.float64), rtol=0, atol=1e-12
    )


@V_RESETS
def test_detach_reset_leaves_the_reset_out_of_the_gradient(v_reset: float | None) -> None:
    x = sequence().requires_grad_()
    flowing, detached = (torch.autograd.grad(IF(v_reset=v_reset, detach_reset=detach)(x).sum(), x)[0] for detach in (False, True))
    assert torch.equal(flowing[-1], detached[-1])
    assert not torch.equal(flowing, detached)


def test_state_carries_gradients_in_step_mode() -> None:
    x = sequence()
    together = PLIF().double()
    (whole,) = torch.autograd.grad(together(x).sum(), together.w)
    neurons.set_step_mode(together, "s")
    (stepped,) = torch.autograd.grad(torch.stack([together(frame) for frame in x]).sum(), together.w)
    torch.testing.assert_close(stepped, whole, rtol=1e-10, atol=0)


def test_plif_learns_its_time_constant() -> None:
    torch.manual_seed(0)
    x = (torch.rand(20, 64, 1) < 0.4).double() * 1.5
    target = LIF(tau=4.0, threshold=0.5)(x).mean(0)
    neuron = PLIF(init_tau=1.5, threshold=0.5).double()
    optimiser = torch.optim.Adam(neuron.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (neuron(x).mean(0) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert min(losses) < 0.2 * losses[0]
    assert neuron.w.sigmoid().item() < 0.5


@EVERY_KIND
def test_state_dict_and_export(kind: type[Neuron]) -> None:
    neuron = kind()
    assert set(neuron.state_dict()) == ({"w"} if kind is PLIF else set())
    x = sequence(torch.float32)
    program = torch.export.export(neuron, (x,), strict=False)
    assert torch.equal(program.module()(x), neuron(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LIF(tau=1.0), "tau=1.0"),
        (lambda: PLIF(init_tau=math.nan), "init_tau=nan"),
        (lambda: IF(fire="="), "fire='='"),
        (lambda: IF(step_mode="t"), "step_mode='t'"),
        (lambda: IF(threshold=math.nan), "threshold=nan"),
        (lambda: IF(v_reset=math.inf), "v_reset=inf"),
        (lambda: Neuron(decay=math.inf), "decay=inf"),
        (lambda: neurons.set_step_mode(IF(), "t"), "step_mode='t'"),
        (lambda: IF(surrogate=neurons.Surrogate("none", 1.0))(torch.ones(1, 1)), "surrogate='none'"),
    ],
)
def test_bad_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_repr_names_the_options() -> None:
    assert "decay=0.5, input_gain=0.5, threshold=1, v_reset=0.0, fire='>=', step_mode='m'" in repr(LIF())
    assert "threshold=0.5" in repr(PLIF(threshold=0.5))
