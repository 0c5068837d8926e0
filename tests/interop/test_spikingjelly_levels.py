"""What the layers of SpikingJelly's residual networks and transformers take: sums of spikes, proved."""

from __future__ import annotations

import pytest
import torch

import snngraph
from snngraph.graph import is_op, operand
from snngraph.testing import random_inputs
from tests.analysis.level_graphs import assert_levels

pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
from tests.interop.test_spikingjelly_zoo import built

pytestmark = pytest.mark.usefixtures("torchvision_stub")
aten = torch.ops.aten

TAKEN = {
    "sew_resnet ADD": ["real", *["0..1"] * 2, *["0..2", "0..1", "0..2"] * 3, "0..2"],
    "sew_resnet IAND": ["real", *["0..1"] * 12],
    "sew_resnet AND": ["real", *["0..1"] * 12],
    "spikformer": ["real", *["0..1"] * 4, "0..2", "0..1", "0..3", "0..1", "0..256 * 1/64"],
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_layers_take(name: str) -> None:
    net, x = built(name)
    graph = snngraph.optimize(snngraph.trace(net, x), precision="fp32")
    found = assert_levels(graph, random_inputs(graph))
    layers = [n for n in graph.nodes if is_op(n, aten.convolution.default, aten.linear.default)]
    assert [str(found.get(operand(n), "real")) for n in layers] == TAKEN[name]
    if name == "spikformer":
        products = [n for n in graph.nodes if is_op(n, aten.bmm.default)]
        assert [str(found[n]) for n in products] == ["0..64", "0..512"]
