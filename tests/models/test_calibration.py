"""Calibrated nets fire in every layer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from snngraph import models
from snngraph.models.calibration import calibrate, firing_rates
from snngraph.models.layers import StepWise
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


def test_a_bias_shifts_where_no_scale_is_enough() -> None:
    linear = nn.Linear(4, 6)
    nn.init.constant_(linear.weight, -1.0)
    nn.init.zeros_(linear.bias)
    rates = calibrate(nn.Sequential(linear, LIF()), torch.rand(10, 8, 4, generator=torch.Generator().manual_seed(0)))
    assert 0.05 <= rates["1"] <= 0.30


def test_it_says_what_it_can_not_do() -> None:
    x = _events(4, 2, 3)
    with pytest.raises(ValueError, match="0 < low < high < 1"):
        calibrate(nn.Sequential(nn.Linear(3, 3), LIF()), x, low=0.5, high=0.4)
    with pytest.raises(ValueError, match="no snngraph"):
        calibrate(nn.Linear(3, 3), x)
    stepping = nn.Sequential(nn.Linear(3, 3), LIF())
    set_step_mode(stepping, "s")
    with pytest.raises(ValueError, match="step mode"):
        calibrate(stepping, x)
    with pytest.raises(ValueError, match=r"(?s)still fire outside.*1: 0\.0000  <-"):
        calibrate(nn.Sequential(nn.Identity(), LIF()), torch.zeros(4, 2, 3))
