"""What a model computes from its parameters alone: infinite or NaN is refused, unless it is a mask or a bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph import neurons
from snngraph.errors import NonFiniteConstantError


class _Scaled(nn.Module):
    rate: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor([0.5, rate, 0.25]))
        self.lif = neurons.LIF()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif(x * (1.0 / (self.rate * 4).sqrt()))
        return out


class _Net(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.scaled = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scaled(x)
        return out


@pytest.mark.parametrize(("rate", "value"), [(0.0, "inf"), (-1.0, "nan")])
def test_a_scale_that_is_not_finite_is_refused_by_name(rate: float, value: str) -> None:
    with pytest.raises(NonFiniteConstantError) as caught:
        snngraph.trace(_Net(_Scaled(rate)).eval(), torch.rand(4, 2, 3), time_dim=0)
    text = str(caught.value)
    assert "module 'scaled'" in text
    assert "test_constants.py:" in text
    assert value in text
    assert "firing-rate" in text
    assert "calibrate" in text


def test_a_finite_scale_is_taken() -> None:
    snngraph.trace(_Net(_Scaled(0.1)).eval(), torch.rand(4, 2, 3), time_dim=0)


def test_a_parameter_that_is_not_finite_is_the_models_own_affair() -> None:
    model = _Net(_Scaled(math.nan)).eval()
    graph = snngraph.trace(model, torch.rand(4, 2, 3), time_dim=0)
    assert any(t.isnan().any() for t in graph.tensors().values())


class _Masked(nn.Module):
    """Attention with a mask, made in one of the usual ways."""

    keep: Tensor

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.register_buffer("keep", torch.ones(6, 6).tril())
        self.lif = neurons.LIF()

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.transpose(-1, -2)
        if self.how == "log":
            scores = scores + self.keep.log()
        elif self.how == "triu":
            scores = scores + torch.full((6, 6), -math.inf).triu(1)
        elif self.how == "fill":
            scores = scores.masked_fill(self.keep.eq(0), -math.inf)
        elif self.how == "clamp":
            scores = scores.clamp(-math.inf, 1.0)
        out: Tensor = self.lif(scores.softmax(-1) @ x)
        return out


@pytest.mark.parametrize("how", ["log", "triu", "fill", "clamp"])
def test_infinity_as_a_mask_or_a_bound_is_taken(how: str) -> None:
    snngraph.trace(_Masked(how).eval(), torch.rand(4, 2, 6, 8), time_dim=0)


class _Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.lif = neurons.LIF()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif(self.pool(x.flatten(0, 1)).unflatten(0, (x.shape[0], -1)))
        return out


def test_the_padding_of_max_pooling_is_taken() -> None:
    snngraph.trace(_Pooled().eval(), torch.rand(4, 2, 3, 8, 8), time_dim=0)
