"""Weights as int8 digits, and the operators that compute with them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from snngraph.integer import BASE, INTEGER_CONV, INTEGER_LINEAR, LARGEST, LEVELS, split_weight


def relative_residual(weight: Tensor, count: int) -> float:
    found = split_weight(weight, count).weight()
    largest = weight.double().abs().flatten(1).amax(1)
    residual = (weight.double() - found).abs().flatten(1).amax(1)
    return float((residual / largest).max())


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_what_digits_leave_of_a_weight(count: int) -> None:
    weight = torch.randn(16, 64, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = 0.5 / LARGEST / BASE ** (count - 1)
    assert bound / 4 < relative_residual(weight, count) <= bound * (1 + 1e-6)
    split = split_weight(weight, count)
    assert split.digits.dtype == torch.int8
    assert tuple(split.digits.shape) == (count, 16, 64, 3, 3)
    assert int(split.digits.abs().max()) <= LARGEST
    assert torch.equal(split.scales, split.scales.float().double()), "scales are float32 numbers"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.floats(-30, 30), st.floats(0, 20))
def test_any_weight(seed: int, count: int, size: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponents = size + spread * (torch.rand(3, 5, 2, generator=generator, dtype=torch.float64) - 0.5)
    weight = torch.randn(3, 5, 2, generator=generator, dtype=torch.float64) * 10 ** exponents.clamp(-36, 36)
    weight[1] = 0
    split = split_weight(weight, count)
    assert not split.digits[:, 1].any()
    assert ((split.scales > 0) & split.scales.isfinite()).all()
    largest = weight.abs().flatten(1).amax(1)
    residual = (weight - split.weight()).abs().flatten(1).amax(1)
    tiny = float(torch.finfo(torch.float32).tiny)  # digits whose scale float32 does not hold are left out
    bound = (0.51 / LARGEST / BASE ** (split.digits.shape[0] - 1)) * largest
    exact = 2.0**-24 * largest if split.digits.shape[0] < count else torch.zeros(3)
    assert (residual <= torch.stack([bound, exact, torch.full((3,), LARGEST * tiny)]).amax(0)).all()


@pytest.mark.parametrize("most", [1, 7, 100, 127])
def test_weights_that_were_quantized_before_have_one_digit(most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randint(-most, most + 1, (4, 60), generator=generator).double()
    whole[:, 0], whole[3] = most, 0
    weight = (
        whole * torch.tensor([0.013, 1 / 64, 3.7e-5, 1.0], dtype=torch.float64)[:, None]
    )  # a batch norm's factor is any number
    split = split_weight(weight, 3)
    assert split.digits.shape[0] == 1
    assert ((split.weight() - weight).abs() <= 2.0**-24 * weight.abs()).all()
    weight[1, 1] += 1e-4
    assert split_weight(weight, 3).digits.shape[0] == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e39])
def test_a_weight_that_float32_does_not_hold(bad: float) -> None:
    weight = torch.ones(2, 3, dtype=torch.float64)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="weight"):
        split_weight(weight, 3)


def test_an_empty_channel() -> None:
    assert split_weight(torch.zeros(3, 0), 2).digits.shape == (1, 3, 0)


def spikes(*shape: int, high: int = 1) -> Tensor:
    return torch.randint(0, high + 1, shape, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("shape", "kernel", "options", "groups"),
    [
        ((2, 6, 9), (3,), ([2], [1], [1]), 1),
        ((2, 6, 9, 8), (3, 2), ([1, 2], [1, 0], [2, 1]), 1),
        ((2, 6, 9, 8), (3, 3), ([1, 1], [1, 1], [1, 1]), 3),
        ((2, 6, 5, 6, 7), (2, 3, 3), ([1, 2, 1], [0, 1, 1], [1, 1, 1]), 2),
    ],
)
def test_the_convolution_is_that_of_the_weight(
    dtype: torch.dtype, shape: tuple[int, ...], kernel: tuple[int, ...], options: tuple[list[int], ...], groups: int
) -> None:
    weight = torch.randn(12, 6 // groups, *kernel, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.randn(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    split, x = split_weight(weight, 4), spikes(*shape, high=3)
    found = INTEGER_CONV(x.to(dtype), split.digits, split.scales, bias, *options, groups)
    convolution = torch.ops.aten.convolution.default
    wanted = convolution(x, split.weight(), bias, *options, False, [0] * len(kernel), groups)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


def test_the_linear_layer_is_that_of_the_weight() -> None:
    weight = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bias = torch.randn(5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    split, x = split_weight(weight, 3), spikes(4, 3, 7)
    wanted = torch.nn.functional.linear(x, split.weight(), bias)
    torch.testing.assert_close(INTEGER_LINEAR(x, split.digits, split.scales, bias), wanted, rtol=0, atol=1e-12)
    without = torch.nn.functional.linear(x, split.weight())
    torch.testing.assert_close(INTEGER_LINEAR(x, split.digits, split.scales), without, rtol=0, atol=1e-12)


def test_marked_levels_are_the_tensor_itself() -> None:
    x = spikes(2, 3)
    assert torch.equal(LEVELS(x, 0, 1), x)
