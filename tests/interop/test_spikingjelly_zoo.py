"""The networks of SpikingJelly's model zoo, small and made to fire, become graphs in which every neuron is an operator."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.frontends.adapters import found_in
from tests.interop.nets import assert_same_net, firing_rates, made_to_fire

neuron: Any = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
functional = pytest.importorskip("spikingjelly.activation_based.functional")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")

pytestmark = pytest.mark.usefixtures("torchvision_stub")


def zoo(module: str) -> Any:
    return importlib.import_module(f"spikingjelly.activation_based.model.{module}")


def lif(**options: Any) -> dict[str, Any]:
    return {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan(), "detach_reset": True, **options}


def sew(cnf: str, **options: Any) -> nn.Module:
    models = zoo("sew_resnet")
    options = options or {"spiking_neuron": neuron.IFNode}
    net: nn.Module = models.SEWResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=10, cnf=cnf, **options)
    return net


def resnet() -> nn.Module:
    models = zoo("spiking_resnet")
    net: nn.Module = models.SpikingResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=10, **lif())
    return net


def vgg() -> nn.Module:
    models = zoo("spiking_vgg")
    with torch.device("meta"):  # its classifier is made for 25088 features
        whole = models.SpikingVGG([8, "M", 16, "M"], batch_norm=True, norm_layer=None, init_weights=False, **lif())
    small = nn.Linear(16, 20)
    whole.avgpool.output_size = (1, 1)
    whole.classifier[0] = whole.classifier[3] = whole.classifier[6] = nn.Identity()
    whole.to_empty(device="cpu")
    for module in whole.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    whole.classifier[0], whole.classifier[3], whole.classifier[6] = small, nn.Linear(20, 20), nn.Linear(20, 10)
    return whole  # type: ignore[no-any-return]


T, N = 2, 2
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "spiking_resnet": (resnet, (T, N, 3, 32, 32)),
    "sew_resnet ADD": (lambda: sew("ADD"), (T, N, 3, 32, 32)),
    "sew_resnet AND": (lambda: sew("AND", **lif(tau=1.5)), (T, N, 3, 32, 32)),
    "sew_resnet IAND": (
        lambda: sew("IAND", spiking_neuron=neuron.ParametricLIFNode, init_tau=2.5, v_reset=None),
        (T, N, 3, 32, 32),
    ),
    "spiking_vgg": (vgg, (T, N, 3, 16, 16)),
    "parametric_lif_net": (
        lambda: zoo("parametric_lif_net").CIFAR10Net(4, spiking_neuron=neuron.ParametricLIFNode, detach_reset=True),
        (T, N, 3, 32, 32),
    ),
    "spikformer": (
        lambda: zoo("spikformer").Spikformer(T, 3, 32, 32, 4, 10, embed_dims=32, num_heads=4, depths=1),
        (N, 3, 32, 32),
    ),
    "qkformer": (
        lambda: zoo("qkformer").QKFormer(T, 3, 10, embed_dims=32, num_heads=(2, 2, 2), depths=(1, 1, 1)),
        (T, N, 3, 32, 32),
    ),
    "spike_driven_transformer": (
        lambda: zoo("spike_driven_transformer").SpikeDrivenTransformer(T, 3, 10, embed_dims=32, num_heads=4, depths=1),
        (N, 3, 32, 32),
    ),
    "ms_resnet": (lambda: zoo("ms_resnet").MSResNet(T, 3, 10, (1, 1, 1), base_channels=8), (N, 3, 32, 32)),
    "maxformer": (lambda: zoo("maxformer").MaxFormer(T, 3, 10, embed_dims=32, depths=(1, 1, 1)), (T, N, 3, 32, 32)),
    "masnn": (
        lambda: zoo("masnn").MASNN(5, 2, 11, (16, 16), (8, 8), (1, 2), fc_hidden=16, reduction_t=5, reduction_c=4),
        (5, N, 2, 16, 16),
    ),
}


def built(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = NETS[name]
    net, x = build(), torch.rand(shape)
    functional.set_step_mode(net, "m")
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 1.0 / module.in_features, 2.0 / module.in_features**0.5)
    return made_to_fire(net, x, functional.reset_net), x


@pytest.mark.parametrize("name", NETS)
def test_zoo(name: str) -> None:
    net, x = built(name)
    with firing_rates(net, lambda module: isinstance(module, neuron.BaseNode)) as rates, torch.no_grad():
        net(x)
    functional.reset_net(net)
    assert all(0.005 < rate < 0.99 for rate in rates.values()), rates
    graph = snngraph.trace(net, x)
    neurons = [found.path for found in found_in(net) if found.neuron is not None]
    assert all(found.neuron is not None for found in found_in(net) if isinstance(found.module, neuron.BaseNode))
    assert sorted(layer.name for layer in graph.neurons) == sorted(neurons)
    assert {node.target for node in graph.nodes if "snn" in str(node.target)} == {torch.ops.snn.lif.default}
    assert graph.free_batch
    assert_same_net(graph, net, x, functional.reset_net)


@pytest.mark.parametrize("name", ["spikformer", "spiking_vgg"])
def test_engines_of_the_zoo(name: str) -> None:
    pytest.importorskip("onnxruntime")
    net, x = built(name)
    with torch.no_grad():
        expected = net(x)
    functional.reset_net(net)
    engine = snngraph.convert(net, x, target="onnxruntime", precision="fp32")
    found = torch.from_numpy(engine.run(x.numpy()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
