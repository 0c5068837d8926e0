"""Calibrated nets fire in every layer."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from snngraph import models
from snngraph.models.calibration import calibrate, firing_rates
from snngraph.models.layers import StepWise
from snngraph.models.spikingresformer import DSSA, SpikingResformer
from snngraph.neurons import IF, LIF, set_step_mode


def _events(*shape: int) -> Tensor:
    return torch.poisson(torch.full(shape, 0.3), generator=torch.Generator().manual_seed(3))


def test_a_random_net_is_silent_and_then_fires() -> None:
    torch.manual_seed(0)
    model, x = models.tcja_small(4, size=16), _events(4, 4, 2, 16, 16)
    before = firing_rates(model, x)
    assert min(before.values()) < 0.01
    rates = calibrate(model, x)
    assert list(rates) == ["features.lif1", "features.lif2", "features.lif3", "classifier.lif1", "classifier.lif2"]
    assert all(0.05 <= rate <= 0.30 for rate in rates.values())
    assert firing_rates(model, x) == rates


def test_it_is_deterministic_and_keeps_modes() -> None:
    torch.manual_seed(0)
    model, x = models.tcja_small(4, size=16), _events(4, 2, 2, 16, 16)
    model.features.eval()
    twin = copy.deepcopy(model)
    calibrate(model, x)
    calibrate(twin, x)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert model.training
    assert not model.features.training
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_layers_between_knob_and_neuron() -> None:
    """Where a gate or a pooling stands between, one sweep need not be enough."""

    class Squash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.mean((-1, -2), keepdim=True).sigmoid() - 0.2

    torch.manual_seed(0)
    convolution = StepWise(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2))
    model = nn.Sequential(convolution, Squash(), IF(), StepWise(nn.Flatten()), nn.Linear(36, 9), LIF())
    rates = calibrate(model, _events(5, 3, 2, 8, 8), low=0.1, high=0.2)
    assert all(0.1 <= rate <= 0.2 for rate in rates.values())


class _Block(nn.Module):
    """LIF - conv - BN - LIF - conv - BN [- gate with a relu], plus the input or a convolution of it: no neuron behind."""

    def __init__(self, before: int, after: int, *, gated: bool) -> None:
        super().__init__()
        self.lif1, self.lif2 = LIF(), LIF()
        self.conv1 = StepWise(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        self.conv2 = StepWise(nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after))
        self.squeeze = nn.Linear(after, after, bias=False) if gated else None
        self.shortcut: nn.Module = nn.Identity()
        if before != after:
            self.shortcut = StepWise(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.lif2(self.conv1(self.lif1(x))))
        if self.squeeze is not None:
            y = (y * self.squeeze(y.mean((0, 3, 4))).sigmoid()[:, :, None, None]).relu()
        out: Tensor = y + self.shortcut(x)
        return out


@pytest.mark.parametrize("gated", [False, True])
def test_deep_residual_nets(gated: bool) -> None:
    """The sums grow from block to block; the last neurons still fire as wanted, and no block is switched off."""
    torch.manual_seed(0)
    blocks = [_Block(8 if k < 6 else 16, 8 if k < 5 else 16, gated=gated) for k in range(12)]
    model = nn.Sequential(StepWise(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)), *blocks, LIF())
    gates = [b.squeeze.weight.clone() for b in blocks if b.squeeze is not None]
    x = _events(4, 2, 2, 8, 8)
    rates = calibrate(model, x)
    assert len(rates) == 25
    assert all(0.05 <= rate <= 0.30 for rate in rates.values())
    assert firing_rates(model, x) == rates
    assert all(torch.equal(a, b.squeeze.weight) for a, b in zip(gates, blocks, strict=False) if b.squeeze is not None)
    model.eval()
    with torch.no_grad():
        y = model[:-1](x)
        for block in blocks:
            norm = block.conv2[1]
            assert isinstance(norm, nn.BatchNorm2d)
            kept = norm.weight.clone()
            norm.weight.zero_()
            assert not torch.equal(model[:-1](x), y)
            norm.weight.copy_(kept)


@pytest.mark.parametrize("sweeps", [0, 4])
def test_gates_in_time(sweeps: int) -> None:
    """Their rate neither grows with the scale nor is near what derivatives say: runs of the net alone do as well."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(6, 6, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.mix(x.amax((2, 3, 4)).T).T
            return x * (3 * scores).sigmoid()[:, :, None, None, None]

    torch.manual_seed(1)
    layers: list[nn.Module] = []
    for before in (2, 8, 8):
        layers += [StepWise(nn.Conv2d(before, 8, 3, padding=1), nn.BatchNorm2d(8)), Gate(), LIF()]
    model, x = nn.Sequential(*layers), _events(6, 2, 2, 8, 8)
    rates = calibrate(model, x, sweeps=sweeps)
    assert firing_rates(model, x) == rates
    assert all(0.05 <= rate <= 0.30 for rate in rates.values())


@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_attention_follows_its_firing_rates(neuron: Literal["lif", "plif"]) -> None:
    """Two layers of neurons share one batch norm, and the buffers are the rates of the net as it is in the end."""
    torch.manual_seed(0)
    model = SpikingResformer(
        3, 8, 5, planes=(8, 16), heads=(2, 4), patches=(2, 1), depths=(1, 2), group_width=16, stem="small", neuron=neuron
    )
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(model)
    assert all(0.05 <= rate <= 0.30 for rate in calibrate(copy.deepcopy(model), x, sweeps=0).values())
    rates = calibrate(model, x)
    assert all(0.05 <= rate <= 0.30 for rate in rates.values())
    calibrate(twin, x)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert all(p.requires_grad for p in model.parameters())
    attention = {name: m for name, m in model.named_modules() if isinstance(m, DSSA)}
    assert len(attention) == 3
    for name, module in attention.items():
        assert float(module.firing_rate_x.mean()) == pytest.approx(rates[f"{name}.lif_in"], rel=1e-5)
        assert float(module.firing_rate_attn.mean()) == pytest.approx(rates[f"{name}.lif_attn"], rel=1e-5)
    assert firing_rates(model, x) == rates


def test_what_does_not_train_stays_so() -> None:
    model = nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 3), LIF())
    model[0].requires_grad_(False)
    calibrate(model, torch.rand(10, 8, 4, generator=torch.Generator().manual_seed(0)))
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


def test_a_bias_shifts_where_no_scale_is_enough() -> None:
    linear = nn.Linear(4, 6)
    nn.init.constant_(linear.weight, -1.0)
    nn.init.zeros_(linear.bias)
    rates = calibrate(nn.Sequential(linear, LIF()), torch.rand(10, 8, 4, generator=torch.Generator().manual_seed(0)))
    assert 0.05 <= rates["1"] <= 0.30


@pytest.mark.parametrize("where", ["call", "input"])
def test_inference_mode_changes_nothing(where: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), LIF(), nn.Linear(6, 3), LIF())
    twin, x = copy.deepcopy(model), torch.rand(10, 8, 4, generator=torch.Generator().manual_seed(0))
    expected = calibrate(twin, x)
    with torch.inference_mode():
        rates = calibrate(model, x) if where == "call" else None
        made = x.clone()
    assert (rates or calibrate(model, made)) == expected
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert all(p.requires_grad and not p.is_inference() for p in model.parameters())


class _Upsampled(nn.Module):
    """Its last neurons have no knob."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.lif1, self.lif2 = StepWise(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), LIF(), LIF()
        self.down = StepWise(nn.ConvTranspose2d(4, 2, 3, bias=False))
        nn.init.zeros_(self.down[0].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif2(self.down(self.lif1(self.up(x))))
        return out


class _Failing(nn.Module):
    """Fails once a few runs have turned knobs."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs > 2:
            raise RuntimeError("enough")
        return x


def test_a_failure_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    x = _events(3, 2, 2, 6, 6)
    attention = SpikingResformer(3, 8, 5, planes=(8,), heads=(2,), patches=(2,), depths=(1,), group_width=8, stem="small")
    failing: list[tuple[nn.Module, Tensor, str]] = [
        (_Upsampled(), x, r"lif1: 0\.\d+\n  lif2: 0\.0000  <- no knob: "),
        (nn.Sequential(StepWise(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), LIF(), _Failing()), x, "^enough$"),
        (nn.Sequential(attention, nn.Unflatten(0, (1, -1)), LIF()), torch.rand(3, 3, 8, 8), r"lif.*: \d"),
    ]
    for model, given, words in failing:
        for tensor in model.buffers():  # statistics that calibrating would set
            if tensor.is_floating_point():
                nn.init.constant_(tensor, 0.375)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises((ValueError, RuntimeError), match=words):
            calibrate(model, given, low=0.2, high=0.2001) if "lif.*" in words else calibrate(model, given)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert all(p.requires_grad for p in model.parameters())
        assert model.training


def test_it_says_what_it_can_not_do() -> None:
    x = _events(4, 2, 3)
    with pytest.raises(ValueError, match="0 < low < high < 1"):
        calibrate(nn.Sequential(nn.Linear(3, 3), LIF()), x, low=0.5, high=0.4)
    with pytest.raises(ValueError, match="no snngraph"):
        calibrate(nn.Linear(3, 3), x)
    for sweeps in (-1, 1.5, None, True):
        with pytest.raises(ValueError, match=f"sweeps={sweeps}: expected"):
            calibrate(nn.Sequential(nn.Linear(3, 3), LIF()), x, sweeps=sweeps)  # type: ignore[arg-type]
    x[0, 0, 0], x[1, 1] = float("-inf"), float("nan")
    with pytest.raises(ValueError, match="the input is not finite: 3 NaN and 1 infinite of 24 numbers"):
        calibrate(nn.Sequential(nn.Linear(3, 3), LIF()), x)
    with torch.inference_mode():
        unchangeable = nn.Sequential(nn.Linear(3, 3), LIF())
    with pytest.raises(ValueError, match=r"built under torch\.inference_mode"):
        calibrate(unchangeable, x.nan_to_num(0.0, 0.0, 0.0))
    stepping = nn.Sequential(nn.Linear(3, 3), LIF())
    set_step_mode(stepping, "s")
    with pytest.raises(ValueError, match="step mode"):
        calibrate(stepping, x)
    with pytest.raises(ValueError, match=r"(?s)still fire outside.*1: 0\.0000  <-"):
        calibrate(nn.Sequential(nn.Identity(), LIF()), torch.zeros(4, 2, 3))
