"""What the lowered families still compute at full size, against what the table of folds calls unavoidable.

Of an attention's input ``[T, N, C, H, W]``, "full size" is every tensor with as many elements. A convolution or pooling before it
and the neuron after it make one each; what the attention itself may add is listed here, by family and variant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import onnx
import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.lowering.onnx import lower
from snngraph.models.layers import StepWise
from snngraph.models.ma import MA, Attention, AttResSNN, ma_lif
from snngraph.models.pfa import PFA, PFAByRank
from snngraph.models.spikingresformer import SpikingResformer
from snngraph.models.tcja import CLA, TCJA, TLA
from snngraph.neurons import LIF

FREE = {"Reshape", "Concat", "Split", "Conv", "AveragePool", "MaxPool", "Identity"}
"""Views, layers, pooling, and how a neuron's steps are taken apart and put together."""


def _wake(model: nn.Module) -> nn.Module:
    for name, buffer in model.named_buffers():
        if "firing_rate" in name:
            buffer.fill_(0.2)
    return model.eval()


def _full_size(model: nn.Module, x: Tensor, shape: Sequence[int]) -> Counter[str]:
    """The operators with a result of the size of ``shape``, apart from :data:`FREE`."""
    torch.manual_seed(0)
    graph = snngraph.optimize(snngraph.trace(_wake(model), x))
    lowered = onnx.shape_inference.infer_shapes(lower(graph, batch=1).model, data_prop=True).graph
    sizes = {v.name: torch.Size([d.dim_value for d in v.type.tensor_type.shape.dim]).numel() for v in lowered.value_info}
    wanted = torch.Size(shape).numel()
    assert wanted in sizes.values(), "nothing has the size that is looked for"
    found = Counter(node.op_type for node in lowered.node if any(sizes.get(name) == wanted for name in node.output))
    return Counter({op: n for op, n in found.items() if op not in FREE})


ALLOWED: dict[str, dict[str, int]] = {
    "none": {},
    "TA": {},  # the gate is the neuron's gain, its statistics come from pooled tensors
    "CA": {},  # the gate divides the threshold
    "SA": {},
    "TCA": {},  # gain and threshold
    "CSA": {},
    "TSA": {},  # its maximum is taken over the channels first, over which the gate is constant
    "TCSA": {"Mul": 1},  # the maximum over time and channels of what is scaled over both: made once
}


@pytest.mark.parametrize("attention", sorted(ALLOWED))
def test_ma_snn(attention: Attention) -> None:
    model = nn.Sequential(StepWise(nn.Conv2d(2, 7, 3, padding=1)), _attention(attention), ma_lif())
    assert _full_size(model, torch.rand(5, 1, 2, 12, 12), (5, 7, 12, 12)) == ALLOWED[attention]


def _attention(attention: Attention) -> nn.Module:
    return nn.Identity() if attention == "none" else MA(5, 7, attention, r_t=2, r_c=2)


@pytest.mark.parametrize("T", [1, 3])
def test_att_res_snn(T: int) -> None:
    """The gated tensor is added to a residual: two products and what they belong to stay."""
    options = {"attention": "CSA", "r_c": 2, "r_t": 1, "sa_kernel": 3, "track_running_stats": True}
    model = AttResSNN((1,), T, num_classes=5, img_size=20, in_channels=3, channels=(7,), **options)  # type: ignore[arg-type]
    found = _full_size(model, torch.rand(1, 3, 20, 20), (T, 7, 5, 5))
    assert found["Mul"] <= 2
    assert found["Relu"] <= 1
    assert found["Add"] <= 1 + (T == 1) * 2  # over one step the neurons' own sums have that size too


@pytest.mark.parametrize("gate", [TCJA, TLA, CLA])
def test_tcja_snn(gate: type[nn.Module]) -> None:
    """The gate is applied after the pooling."""
    layers = (StepWise(nn.Conv2d(2, 6, 3, padding=1)), LIF(), gate(5, 6), StepWise(nn.MaxPool2d(2), nn.Conv2d(6, 3, 3)), LIF())
    x = torch.poisson(torch.full((5, 1, 2, 16, 16), 0.5))
    assert _full_size(nn.Sequential(*layers), x, (5, 6, 16, 16)) == {}
    assert _full_size(nn.Sequential(*layers), x, (5, 6, 8, 8)) == {"Mul": 1}


@pytest.mark.parametrize("kind", [PFA, PFAByRank])
def test_pfa_snn(kind: type[PFA]) -> None:
    """One contraction, one product, however many ranks; the relu of what is never negative goes."""
    pooled = StepWise(nn.AvgPool2d(2))
    layers = (StepWise(nn.Conv2d(2, 7, 3, padding=1)), LIF(), pooled, kind(5, 7, 4), StepWise(nn.Conv2d(7, 3, 3)), LIF())
    x = torch.poisson(torch.full((5, 1, 2, 16, 16), 0.5))
    assert _full_size(nn.Sequential(*layers), x, (5, 7, 8, 8)) == {"MatMul": 1, "Mul": 1}


def test_spikingresformer() -> None:
    """Neither constant scale of DSSA leaves a product of the size of an attention map, or of its result."""
    sizes = {"planes": (8, 12), "heads": (2, 3), "patches": (2, 1), "depths": (1, 1), "group_width": 4}
    model = SpikingResformer(3, 8, 5, stem="small", **sizes)  # type: ignore[arg-type]
    graph = snngraph.optimize(snngraph.trace(_wake(model), torch.rand(1, 3, 8, 8)))
    lowered = lower(graph, batch=1).model.graph
    products = {name for node in lowered.node if node.op_type == "MatMul" for name in node.output}
    views = {name for node in lowered.node if products.intersection(node.input) and node.op_type in FREE for name in node.output}
    scaled = [n.name for n in lowered.node if n.op_type in ("Mul", "Div") and (products | views).intersection(n.input)]
    assert len(products) == 4
    assert not [name for name in scaled if not name.startswith("lif")]  # the neurons' own decay is a product too
