"""Checks of old versions of SpikingJelly, to be run where one of them is what ``import spikingjelly`` finds.

``python -m tests.interop.legacy_spikingjelly VERSION`` prints, as JSON, the error of every case of that version, or "".
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import textwrap
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.errors import WarmStateWarning
from snngraph.frontends.adapters import found_in
from snngraph.frontends.canonical import NotCanonicalError
from snngraph.frontends.spikingjelly import SpikingJelly, without_gpu_backends
from snngraph.model_loading import load_model
from tests.interop.nets import Dense, Loop, Parallel, assert_same_net, made_to_fire

T, N = 3, 2
CHARGES: dict[str, dict[str, Any]] = {
    "zero": {"v_reset": 0.0},
    "zero, no decay_input": {"v_reset": 0.0, "decay_input": False},
    "soft": {"v_reset": None},
    "soft, no decay_input": {"v_reset": None, "decay_input": False},
    "negative": {"v_reset": -0.25},
    "negative, no decay_input": {"v_reset": -0.25, "decay_input": False},
}


def library(name: str) -> Any:
    return importlib.import_module(f"spikingjelly.{name}")


def nodes(neuron: Any, prefix: str = "", **options: Any) -> dict[str, Callable[[], nn.Module]]:
    """IF, LIF and ParametricLIF with every reset and charge."""
    found: dict[str, Callable[[], nn.Module]] = {}
    options["v_threshold"] = 0.5
    for name, charge in CHARGES.items():
        if "decay_input" not in charge:
            found[f"IF {name}"] = partial(getattr(neuron, f"{prefix}IFNode"), **charge, **options)
        found[f"LIF {name}"] = partial(getattr(neuron, f"{prefix}LIFNode"), tau=1.7, **charge, **options)
        found[f"PLIF {name}"] = partial(getattr(neuron, f"{prefix}ParametricLIFNode"), init_tau=2.3, **charge, **options)
    return found


class Single(nn.Module):
    """``[..., 8]`` to ``[..., 12]`` through one layer of neurons that fire: all that one kind of them needs to show itself."""

    def __init__(self, node: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.fc, self.n = nn.Linear(8, 12), node()
        with torch.no_grad():
            self.fc.weight.mul_(4.0)
            self.fc.bias.add_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.n(self.fc(x))  # type: ignore[no-any-return]


def check_neurons(neuron: Any, forget: Any, found: dict[str, Callable[[], nn.Module]], how: str) -> None:
    net: nn.Module = Parallel({name: Single(node) for name, node in found.items()}).eval()
    x, prefix = torch.randn(T, N, 8), ""
    if how == "steps":
        graph = snngraph.trace(net, x, time_steps=T)
        net = Loop(net)
    else:
        if how == "loop":
            net, prefix = Loop(net, forget).eval(), "inner."
        graph = snngraph.trace(net, x)
    layers = [f"{prefix}nets.{name}.n" for name in found]
    assert_same_net(graph, net, x, forget, neurons=layers)
    assert {node.target for node in graph.nodes if "snn" in str(node.target)} == {torch.ops.snn.lif.default}
    assert graph.free_batch
    assert not any("own arithmetic" in note for note in graph.notes)


def check_reasons(forget: Any, net: nn.Module, x: Tensor, reasons: list[str]) -> None:
    """Neurons that stay ordinary operators, with these reasons."""
    found = [f.reason for f in found_in(net)]
    assert len(found) == len(reasons), found
    assert all(reason in text for reason, text in zip(reasons, found, strict=True)), found
    with torch.no_grad():
        assert bool((net(x) != 0).any())
    forget(net)
    assert_same_net(snngraph.trace(net, x, time_dim=0, batch_dim=1), net, x, forget)


def check_warm(forget: Any, net: nn.Module, x: Tensor) -> None:
    fresh = snngraph.trace(net, x)
    with torch.no_grad():
        net(x)
    before: list[tuple[Any, dict[str, Any]]] = [(m, dict(vars(m)["_memories"])) for m in net.modules() if "_memories" in vars(m)]
    with pytest.warns(WarmStateWarning):
        graph = snngraph.trace(net, x)
    assert graph.format() == fresh.format()
    assert all(m._memories[k] is v for m, kept in before for k, v in kept.items())


def check_zoo(net: nn.Module, x: Tensor, forget: Any) -> None:
    net = made_to_fire(net, x, forget)
    graph = snngraph.trace(net, x)
    assert sorted(layer.name for layer in graph.neurons) == sorted(f.path for f in found_in(net) if f.neuron is not None)
    assert all(f.neuron is not None for f in found_in(net) if "neuron" in type(f.module).__module__)
    assert_same_net(graph, net, x, forget)


def stub_torchvision() -> None:
    for name in ("torchvision", "torchvision.models", "torchvision.models.utils"):
        sys.modules[name] = type(sys)(name)
    sys.modules["torchvision.models.utils"].load_state_dict_from_url = None  # type: ignore[attr-defined]


# -- clock_driven --------------------------------------------------------------------------------------------------------------


def clock_driven() -> tuple[Any, Any, Any]:
    return library("clock_driven.neuron"), library("clock_driven.layer"), library("clock_driven.functional")


def cd_steps() -> None:
    neuron, _, functional = clock_driven()
    check_neurons(neuron, functional.reset_net, nodes(neuron), "steps")


def cd_loop() -> None:
    neuron, _, functional = clock_driven()
    check_neurons(neuron, functional.reset_net, dict(list(nodes(neuron).items())[:4]), "loop")


def cd_multi_step() -> None:
    neuron, _, functional = clock_driven()
    check_neurons(neuron, functional.reset_net, nodes(neuron, "MultiStep"), "sequence")


def _cd_conv_bn(layer: Any) -> list[nn.Module]:
    bn = nn.BatchNorm2d(4)
    nn.init.constant_(bn.weight, 2.0)
    nn.init.constant_(bn.bias, 0.75)
    return [nn.Conv2d(2, 4, 3, padding=1, bias=False), bn]


def cd_containers() -> None:
    neuron, layer, functional = clock_driven()
    x = torch.randn(T, N, 2, 8, 8)
    nets = [
        nn.Sequential(layer.SeqToANNContainer(*_cd_conv_bn(layer)), neuron.MultiStepLIFNode(), layer.MultiStepDropout()),
        nn.Sequential(layer.MultiStepContainer(*_cd_conv_bn(layer), neuron.LIFNode(), layer.Dropout(), nn.Flatten())),
    ]
    for net, name in zip(nets, ("1", "0.2"), strict=True):
        graph = snngraph.trace(net.eval(), x)
        assert_same_net(graph, net, x, functional.reset_net, neurons=[name])
        assert graph.free_batch

    class ByFunctions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.n1, self.n2 = nn.Sequential(*_cd_conv_bn(layer)), neuron.MultiStepIFNode(), neuron.LIFNode(tau=1.2)

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            x = self.n1(functional.seq_to_ann_forward(x, self.conv))
            result: Tensor = functional.multi_step_forward(x * 2, [self.n2, nn.Flatten()])
            return result

    by_functions = ByFunctions().eval()
    assert_same_net(snngraph.trace(by_functions, x), by_functions, x, functional.reset_net, neurons=["n1", "n2"])


def cd_potentials() -> None:
    neuron, _, functional = clock_driven()

    class Reads(nn.Module):
        def __init__(self, v_reset: float | None, what: str) -> None:
            super().__init__()
            self.node, self.what = neuron.MultiStepLIFNode(tau=1.7, v_reset=v_reset), what

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.node(x * 4)
            result: Tensor = self.node.v_seq if self.what == "v_seq" else torch.cat([spikes[-1], self.node.v])
            return result

    for what in ("v_seq", "v"):
        net = Parallel({str(k): Reads(v, what) for k, v in enumerate((0.0, None, -0.25))}).eval()
        x = torch.randn(T, N, 8)
        graph = snngraph.trace(net, x)
        assert_same_net(graph, net, x, functional.reset_net, neurons=["nets.0.node", "nets.1.node", "nets.2.node"])
        assert [n.target for n in graph.nodes if "snn" in str(n.target)] == 3 * [torch.ops.snn.lif.default]


def cd_warm() -> None:
    neuron, _, functional = clock_driven()
    check_warm(functional.reset_net, Dense(neuron.MultiStepLIFNode).eval(), torch.randn(T, N, 8))


def cd_changed() -> None:
    neuron, _, functional = clock_driven()

    class OwnCharge(neuron.LIFNode):  # type: ignore[misc,name-defined]
        v: Any

        def neuronal_charge(self, x: Tensor) -> None:
            self.v = 0.9 * self.v + x

    class OwnReset(neuron.IFNode):  # type: ignore[misc,name-defined]
        v: Any

        def neuronal_reset(self, spike: Tensor) -> None:
            self.v = self.v * (1 - 0.5 * spike)

    class OwnFire(neuron.MultiStepIFNode):  # type: ignore[misc,name-defined]
        def neuronal_fire(self) -> Tensor:
            return 2 * self.surrogate_function(self.v - 0.5)  # type: ignore[no-any-return]

    net = Parallel({"a": Loop(Dense(OwnCharge)), "b": Loop(Dense(OwnReset)), "c": Dense(OwnFire)}).eval()
    reasons = 2 * ["OwnCharge changes neuronal_charge of"] + 2 * ["OwnReset changes neuronal_reset of"]
    check_reasons(functional.reset_net, net, torch.randn(T, N, 8), reasons + 2 * ["OwnFire changes neuronal_fire of"])


def cd_others() -> None:
    neuron, _, functional = clock_driven()
    found = {
        "QIF": Loop(Dense(neuron.QIFNode)),
        "EIF": Dense(neuron.MultiStepEIFNode),
        "LIAF": Loop(Dense(lambda: neuron.LIAFNode(torch.relu, True))),
    }
    reasons = 2 * ["quadratic"] + 2 * ["exponential"] + 2 * ["a function of its membrane potential"]
    check_reasons(functional.reset_net, Parallel(found).eval(), torch.randn(T, N, 8), reasons)


def cd_cupy() -> None:
    with without_gpu_backends():
        neuron, _, _ = clock_driven()
        built = [
            neuron.MultiStepIFNode(backend="cupy"),
            neuron.MultiStepLIFNode(backend="cupy"),
            neuron.MultiStepParametricLIFNode(backend="cupy"),
            neuron.MultiStepEIFNode(backend="cupy"),
        ]
        assert [node.backend for node in built] == 4 * ["torch"]
        assert neuron.LIFNode(cupy_fp32_inference=True).eval()(torch.ones(2, 3)).shape == (2, 3)
        with pytest.raises(AssertionError, match="Lava"):
            neuron.MultiStepLIFNode(backend="lava")
    with pytest.raises(AssertionError, match="CuPy"):
        neuron.MultiStepLIFNode(backend="cupy")
    node = neuron.MultiStepLIFNode()
    node.backend = "cupy"  # as it comes from where CuPy is installed
    SpikingJelly().prepare(node)
    assert node.backend == "torch"
    node.backend = "lava"
    SpikingJelly().prepare(node)
    assert node.backend == "lava"
    with pytest.raises(NotCanonicalError, match="fixed point"):
        SpikingJelly().neuron(node)


def cd_loaded_by_name() -> None:
    """A module of a file, and what a factory makes, with neurons that ask for CuPy."""
    text = """
        from torch import nn
        from spikingjelly.clock_driven import neuron

        def net():
            return nn.Sequential(nn.Linear(8, 6), neuron.MultiStepLIFNode(backend="cupy"))

        whole = net()
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file_with_cupy.py"
        file.write_text(textwrap.dedent(text))
        for name in ("net", "whole"):
            model = load_model(f"{file}:{name}", evaluation=True).model
            assert not found_in(model)[0].reason
            snngraph.trace(model, torch.randn(T, N, 8))


def cd_zoo() -> None:
    stub_torchvision()
    neuron, _, functional = clock_driven()
    models = library("clock_driven.model.sew_resnet")
    for cnf in ("ADD", "IAND"):
        net = models.MultiStepSEWResNet(
            models.MultiStepBasicBlock, [1, 1, 1, 1], num_classes=10, T=T, cnf=cnf, multi_step_neuron=neuron.MultiStepIFNode
        )
        check_zoo(net, torch.rand(N, 3, 32, 32) if cnf == "ADD" else torch.rand(T, N, 3, 32, 32), functional.reset_net)


# -- activation_based, 0.0.0.0.14 ----------------------------------------------------------------------------------------------


def activation_based() -> tuple[Any, Any, Any]:
    return library("activation_based.neuron"), library("activation_based.layer"), library("activation_based.functional")


def ab_steps() -> None:
    neuron, _, functional = activation_based()
    check_neurons(neuron, functional.reset_net, nodes(neuron), "steps")


def ab_loop() -> None:
    neuron, _, functional = activation_based()
    check_neurons(neuron, functional.reset_net, dict(list(nodes(neuron).items())[:4]), "loop")


def ab_multi_step() -> None:
    neuron, _, functional = activation_based()
    found = nodes(neuron, step_mode="m")
    stored = {f"stored {k}": v for k, v in list(nodes(neuron, step_mode="m", store_v_seq=True).items())[:3]}
    check_neurons(neuron, functional.reset_net, {**found, **stored}, "sequence")


def ab_layers() -> None:
    neuron, layer, functional = activation_based()
    bn = layer.BatchNorm2d(4)
    nn.init.constant_(bn.weight, 2.0)
    nn.init.constant_(bn.bias, 0.75)
    conv = layer.Conv2d(2, 4, 3, padding=1, bias=False)
    fc, node = layer.Linear(64, 5), neuron.LIFNode()
    net = nn.Sequential(conv, bn, node, layer.MaxPool2d(2, 2), layer.Flatten(), fc, neuron.IFNode())
    functional.set_step_mode(net.eval(), "m")
    nn.init.normal_(fc.weight, 0.02, 0.5)
    x = torch.randn(T, N, 2, 8, 8)
    graph = snngraph.trace(net, x)
    assert_same_net(graph, net, x, functional.reset_net, neurons=["2", "6"])
    assert graph.free_batch
    functional.set_step_mode(net, "s")
    assert_same_net(snngraph.trace(net, x, time_steps=T), Loop(net), x, functional.reset_net, neurons=["2", "6"])
    stateless, stateful = layer.SeqToANNContainer(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), layer.StepModeContainer(True, node)
    stateful.step_mode = "m"
    contained = made_to_fire(nn.Sequential(stateless, stateful), x, functional.reset_net)
    assert_same_net(snngraph.trace(contained, x), contained, x, functional.reset_net, neurons=["1.0"])


def ab_potentials() -> None:
    neuron, _, functional = activation_based()

    class Reads(nn.Module):
        def __init__(self, v_reset: float | None, what: str) -> None:
            super().__init__()
            self.what = what
            self.node = neuron.LIFNode(tau=1.7, v_reset=v_reset, step_mode="m", store_v_seq=what == "v_seq")

        def forward(self, x: Tensor) -> Tensor:
            spikes = self.node(x * 4)
            result: Tensor = self.node.v_seq if self.what == "v_seq" else torch.cat([spikes[-1], self.node.v])
            return result

    for what in ("v_seq", "v"):
        net = Parallel({str(k): Reads(v, what) for k, v in enumerate((0.0, None, -0.25))}).eval()
        x = torch.randn(T, N, 8)
        graph = snngraph.trace(net, x)
        assert_same_net(graph, net, x, functional.reset_net, neurons=["nets.0.node", "nets.1.node", "nets.2.node"])


def ab_warm() -> None:
    neuron, _, functional = activation_based()
    check_warm(functional.reset_net, Dense(lambda: neuron.LIFNode(step_mode="m")).eval(), torch.randn(T, N, 8))


def ab_changed() -> None:
    neuron, _, functional = activation_based()

    class OwnCharge(neuron.ParametricLIFNode):  # type: ignore[misc,name-defined]
        v: Any

        def neuronal_charge(self, x: Tensor) -> None:
            self.v = 0.9 * self.v + x

    class OwnStep(neuron.LIFNode):  # type: ignore[misc,name-defined]
        def single_step_forward(self, x: Tensor) -> Tensor:
            return super().single_step_forward(x * 2)  # type: ignore[no-any-return]

    net = Parallel({"a": Loop(Dense(OwnCharge)), "b": Loop(Dense(OwnStep))}).eval()
    reasons = 2 * ["OwnCharge changes neuronal_charge of"] + 2 * ["OwnStep changes single_step_forward of"]
    check_reasons(functional.reset_net, net, torch.randn(T, N, 8), reasons)


def ab_others() -> None:
    neuron, _, functional = activation_based()
    found = {
        "QIF": Dense(lambda: neuron.QIFNode(step_mode="m")),
        "EIF": Dense(lambda: neuron.EIFNode(step_mode="m")),
        "Izhikevich": Loop(Dense(lambda: neuron.IzhikevichNode(a=0.1, b=0.2))),
        "KLIF": Loop(Dense(neuron.KLIFNode)),
    }
    reasons = 2 * ["quadratic"] + 2 * ["exponential"] + 2 * ["adaptation"] + 2 * ["rectified"]
    check_reasons(functional.reset_net, Parallel(found).eval(), torch.randn(T, N, 8), reasons)


def ab_cupy() -> None:
    with without_gpu_backends():
        neuron, _, functional = activation_based()
        node = neuron.ParametricLIFNode(step_mode="m", backend="cupy")
        assert node.backend == "torch"
        functional.set_backend(node, "cupy")
        assert node.backend == "torch"
        with pytest.raises(NotImplementedError, match="not a supported backend"):
            neuron.LIFNode(step_mode="s", backend="cupy")
    with pytest.raises(ImportError, match="CuPy"):
        neuron.LIFNode(step_mode="m", backend="cupy")
    node._backend = "cupy"  # as it comes from where CuPy is installed
    SpikingJelly().prepare(node)
    assert node.backend == "torch"


def ab_zoo() -> None:
    stub_torchvision()
    neuron, _, functional = activation_based()
    models = library("activation_based.model.sew_resnet")
    net = models.SEWResNet(models.BasicBlock, [1, 1, 1, 1], num_classes=10, cnf="ADD", spiking_neuron=neuron.LIFNode)
    functional.set_step_mode(net, "m")
    check_zoo(net, torch.rand(T, N, 3, 32, 32), functional.reset_net)
    small = library("activation_based.model.parametric_lif_net").CIFAR10Net(4, spiking_neuron=neuron.ParametricLIFNode)
    functional.set_step_mode(small, "m")
    for module in small.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 1.0 / module.in_features, 2.0 / module.in_features**0.5)
    check_zoo(small, torch.rand(T, N, 3, 32, 32), functional.reset_net)


def version() -> None:
    """Recorded with the graph."""
    assert SpikingJelly().library() == f"spikingjelly {sys.argv[1]}"


_CASES = {name: case for name, case in vars().items() if name.startswith(("cd_", "ab_"))}
_CLOCK_DRIVEN = (*(case for name, case in _CASES.items() if name.startswith("cd_")), version)
CASES: dict[str, tuple[Callable[[], None], ...]] = {"0.0.0.0.12": _CLOCK_DRIVEN, "0.0.0.0.14": (*_CASES.values(), version)}


def main() -> None:
    results = {}
    for case in CASES[sys.argv[1]]:
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case()
            results[case.__name__] = ""
        except Exception:
            results[case.__name__] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
