"""Counts the dense operations of a net without running it."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def gflops(model: nn.Module, shape: tuple[int, ...]) -> float:
    """GFLOP of one input of ``shape``: two for every multiply-accumulate of convolutions and matrix products.

    ``model`` is built under ``torch.device("meta")``.
    """
    with torch.no_grad(), torch.device("meta"), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(shape))
    return float(counter.get_total_flops()) / 1e9
