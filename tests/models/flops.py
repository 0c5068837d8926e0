"""Counts the dense operations of a net, without computing any of them."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["gflops"]


def gflops(model: nn.Module, shape: tuple[int, ...]) -> float:
    """10^9 operations of convolutions, linear layers and matrix products on an input of ``shape``: two per multiply-add."""
    on_meta = copy.deepcopy(model).to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        on_meta(torch.empty(shape, device="meta"))
    return float(counter.get_total_flops()) / 1e9
