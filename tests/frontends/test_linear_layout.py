"""A product with a permuted tensor picks another kernel when its weight asks for gradients: the capture runs the same one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph import neurons


class _Permuted(nn.Module):
    """A linear layer on a permuted tensor, neurons after it; both outputs, so that the last bit shows."""

    def __init__(self, features: int, perm: tuple[int, int, int], *, bias: bool) -> None:
        super().__init__()
        self.perm = perm
        self.linear = nn.Linear(features, 32, bias=bias)
        self.lif = neurons.LIF()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.linear(x.permute(*self.perm))
        return self.lif(y), y


class _Product(_Permuted):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.permute(*self.perm) @ self.linear.weight.t()
        return self.lif(y), y


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("perm", "shape"), [((0, 2, 1), (5, 48, 1)), ((1, 0, 2), (1, 5, 24)), ((1, 0, 2), (3, 5, 40))])
def test_linear_on_a_permuted_tensor_is_captured_bit_for_bit(
    perm: tuple[int, int, int], shape: tuple[int, int, int], bias: bool
) -> None:
    for seed in range(4):
        torch.manual_seed(seed)
        model = _Permuted(shape[perm[2]], perm, bias=bias).eval().requires_grad_(seed != 3)
        graph = snngraph.trace(model, torch.randn(shape), time_dim=perm[0])
        assert any(n.target is torch.ops.aten.linear.default for n in graph.nodes)
        assert not any(t.requires_grad for t in graph.tensors().values())
        assert all(p.requires_grad == (seed != 3) for p in model.parameters())


@pytest.mark.parametrize(("perm", "shape"), [((0, 2, 1), (5, 48, 1)), ((1, 0, 2), (1, 5, 24))])
def test_a_product_with_a_trained_weight_is_captured_bit_for_bit(perm: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        model = _Product(shape[perm[2]], perm, bias=False).eval()
        snngraph.trace(model, torch.randn(shape), time_dim=perm[0])
