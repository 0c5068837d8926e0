"""Nets of SpikingJelly's neurons and layers become graphs that compute what the nets compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph.errors import WarmStateWarning
from snngraph.frontends.adapters import found_in
from snngraph.frontends.canonical import NotCanonicalError
from snngraph.frontends.spikingjelly import SpikingJelly
from tests.interop.nets import assert_same_net, run

neuron: Any = pytest.importorskip("spikingjelly.activation_based.neuron", reason="SpikingJelly is not installed")
functional = pytest.importorskip("spikingjelly.activation_based.functional")
layer = pytest.importorskip("spikingjelly.activation_based.layer")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")

T, N = 3, 2
V_RESETS = {"zero": 0.0, "soft": None, "negative": -0.25}
Node = Callable[[], nn.Module]


class Dense(nn.Module):
    """``[T, N, 8]`` (or ``[N, 8]``, one step) to ``[T, N, 6]`` (or ``[N, 6]``)."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        self.fc1, self.n1, self.fc2, self.n2 = nn.Linear(8, 12), node(), nn.Linear(12, 6), node()
        with torch.no_grad():
            for fc in (self.fc1, self.fc2):
                fc.weight.mul_(4.0)
                fc.bias.add_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.n2(self.fc2(self.n1(self.fc1(x))))  # type: ignore[no-any-return]


class Loop(nn.Module):
    """Calls a net of one step at every step."""

    def __init__(self, inner: nn.Module, *, resets: bool) -> None:
        super().__init__()
        self.inner, self.resets = inner, resets

    def forward(self, x: Tensor) -> Tensor:
        if self.resets:
            functional.reset_net(self)
        return torch.stack([self.inner(frame) for frame in x])


def image_net(*modules: Any, step_mode: str = "m") -> nn.Sequential:
    net = nn.Sequential(*modules).eval()
    functional.set_step_mode(net, step_mode)
    return net


NODES: dict[str, Node] = {
    "IF": neuron.IFNode,
    "IF soft": lambda: neuron.IFNode(v_reset=None, v_threshold=0.75),
    "LIF": lambda: neuron.LIFNode(tau=1.7),
    "LIF soft, no decay_input": lambda: neuron.LIFNode(tau=3.0, v_reset=None, decay_input=False),
    "LIF, negative reset": lambda: neuron.LIFNode(tau=2.5, v_reset=-0.25),
    "LIF, positive reset, no decay_input": lambda: neuron.LIFNode(tau=2.5, v_reset=0.5, decay_input=False),
    "PLIF": lambda: neuron.ParametricLIFNode(init_tau=3.1),
    "PLIF soft, no decay_input": lambda: neuron.ParametricLIFNode(init_tau=1.5, decay_input=False, v_reset=None),
    "CUBALIF": neuron.CUBALIFNode,
    "half threshold": neuron.HalfThresholdIFNode,
    "ternary IF": neuron.TernaryIFNode,
    "ternary LIF soft": lambda: neuron.TernaryLIFNode(tau=1.7, v_reset=None),
    "simple LIF": lambda: neuron.SimpleLIFNode(tau=1.7, decay_input=True, v_reset=-0.25),
    "strict": lambda: neuron.LIFNode(surrogate_function=lambda u: (u > 0).to(u)),
    "stored": lambda: neuron.LIFNode(store_v_seq=True),
}


class Parallel(nn.Module):
    """``x`` to the outputs of many small nets, in the last axis."""

    def __init__(self, nets: Mapping[str, nn.Module], step_mode: str) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(dict(nets))
        functional.set_step_mode(self, step_mode)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([net(x) for net in self.nets.values()], dim=-1)


@pytest.mark.parametrize("how", ["m", "s in a loop", "s in a loop that resets", "s"])
def test_neurons(how: str) -> None:
    names = (
        list(NODES) if how == "m" else ["LIF, positive reset, no decay_input", "PLIF soft, no decay_input", "CUBALIF", "stored"]
    )
    net: nn.Module = Parallel({name: Dense(NODES[name]) for name in names}, how[0]).eval()
    x, prefix = torch.randn(T, N, 8), ""
    if how == "s":
        graph = snngraph.trace(net, x, time_steps=T)
        net = Loop(net, resets=False)
    else:
        if how != "m":
            net, prefix = Loop(net, resets=how.endswith("resets")).eval(), "inner."
        graph = snngraph.trace(net, x)
    layers = [f"{prefix}nets.{name}.{n}" for name in names for n in ("n1", "n2")]
    assert_same_net(graph, net, x, functional.reset_net, neurons=layers)
    assert {node.target for node in graph.nodes if "snn" in str(node.target)} == {torch.ops.snn.lif.default}
    assert graph.free_batch
    assert not any("own arithmetic" in note for note in graph.notes)


def test_strict_surrogate_functions_are_kept() -> None:
    assert SpikingJelly().neuron(NODES["strict"]()).parameters["fire"] == ">"
    assert SpikingJelly().neuron(NODES["LIF"]()).parameters["fire"] == ">="


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: surrogate.Sigmoid(spiking=False), "Sigmoid is no step from 0 to 1"),
        (lambda: torch.sign, "sign is no step from 0 to 1"),
        (lambda: lambda u: u.view(3, 7), "does not take a plain tensor"),
    ],
)
def test_surrogate_functions_that_are_no_step(function: Callable[[], Any], reason: str) -> None:
    with pytest.raises(NotCanonicalError, match=reason):
        SpikingJelly().neuron(neuron.LIFNode(surrogate_function=function()))


class ReadsPotential(nn.Module):
    def __init__(self, what: str, v_reset: float | None) -> None:
        super().__init__()
        self.what, self.fc = what, nn.Linear(8, 6)
        self.node: Any = neuron.LIFNode(tau=1.7, v_reset=v_reset, store_v_seq="v_seq" in what)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x) * 4
        result: Tensor
        if self.what == "v at every step":
            steps = []
            for frame in x:
                self.node(frame)
                steps.append(self.node.v)
            result = torch.stack(steps)
        elif "loop" in self.what:
            for frame in x:
                self.node(frame)
            result = self.node.v_seq if "v_seq" in self.what else self.node.v
        else:
            spikes = self.node(x)
            result = self.node.v_seq if "v_seq" in self.what else torch.cat([spikes[-1], self.node.v])
        return result


@pytest.mark.parametrize(
    "what", ["v at every step", "v after a loop", "v_seq of a loop", "v after a sequence", "v_seq of a sequence"]
)
def test_potentials_are_what_the_library_leaves(what: str) -> None:
    nets = {name: ReadsPotential(what, v_reset) for name, v_reset in V_RESETS.items()}
    net = Parallel(nets, "m" if "sequence" in what else "s").eval()
    x = torch.randn(T, N, 8)
    graph = snngraph.trace(net, x)
    assert_same_net(graph, net, x, functional.reset_net, neurons=[f"nets.{name}.node" for name in V_RESETS])
    if what != "v at every step":
        assert [n.target for n in graph.nodes if "snn" in str(n.target)] == 3 * [torch.ops.snn.lif.default]


def test_a_model_may_write_the_potential_between_steps() -> None:
    class Leaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = neuron.LIFNode(tau=1.7, v_reset=None)

        def forward(self, x: Tensor) -> Tensor:
            spikes: Tensor = self.node(x * 4)
            self.node.v = self.node.v * 0.5 + 0.125
            return spikes

    net, x = Leaks().eval(), torch.randn(T, N, 8)
    graph = snngraph.trace(net, x, time_steps=T)
    assert_same_net(graph, Loop(net, resets=False), x, functional.reset_net)


def test_current_of_cubalif() -> None:
    class ReadsCurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = neuron.CUBALIFNode()
            self.node.step_mode = "m"

        def forward(self, x: Tensor) -> Tensor:
            self.node(x)
            return torch.cat([self.node.c, self.node.v])

    net, x = ReadsCurrent().eval(), torch.randn(T, N, 8)
    assert_same_net(snngraph.trace(net, x), net, x, functional.reset_net, neurons=["node"])


def test_state_of_an_earlier_call_is_kept_and_not_captured() -> None:
    net = Parallel({name: Dense(NODES[name]) for name in ("LIF", "CUBALIF", "half threshold", "stored")}, "m").eval()
    x = torch.randn(T, N, 8)
    fresh = snngraph.trace(net, x)
    with torch.no_grad():
        net(x)
    before = _memories(net)
    assert all(isinstance(v, Tensor) for v in before.values())
    copies = {key: v.clone() for key, v in before.items()}
    with pytest.warns(WarmStateWarning):
        graph = snngraph.trace(net, x)
    after = _memories(net)
    assert after.keys() == before.keys()
    assert all(after[key] is before[key] and torch.equal(after[key], copies[key]) for key in before)
    assert graph.format() == fresh.format()


def _memories(net: nn.Module) -> dict[tuple[str, str], Any]:
    return {(p, k): v for p, m in net.named_modules() for k, v in getattr(m, "_memories", {}).items()}


def test_a_state_of_another_shape_starts_anew() -> None:
    """As in the library: one neuron, two populations."""

    class TwoSizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = neuron.LIFNode(tau=1.7, v_reset=-0.25, step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            large = self.node(x * 3)
            small = self.node(x[..., :4] * 3)
            return torch.cat([large, small, self.node(x[..., :4] * 4)], dim=-1)

    net, x = TwoSizes().eval(), torch.randn(T, N, 8)
    assert_same_net(snngraph.trace(net, x), net, x, functional.reset_net)


def test_one_neuron_called_twice_goes_on() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node = neuron.LIFNode(tau=1.7, step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.node(x * 3), self.node(x * 2)])

    net, x = Twice().eval(), torch.randn(T, N, 8)
    assert_same_net(snngraph.trace(net, x), net, x, functional.reset_net)


# -- layers and containers -----------------------------------------------------------------------------------------------------


def conv_bn(**options: Any) -> list[nn.Module]:
    bn = layer.BatchNorm2d(4, **options)
    nn.init.constant_(bn.weight, 2.0)
    nn.init.constant_(bn.bias, 0.5)
    bn.running_mean.uniform_(-0.1, 0.1)
    return [layer.Conv2d(2, 4, 3, padding=1, bias=False, **options), bn]


def plain_conv_bn() -> list[nn.Module]:
    bn = nn.BatchNorm2d(4)
    nn.init.constant_(bn.weight, 2.0)
    nn.init.constant_(bn.bias, 0.5)
    return [nn.Conv2d(2, 4, 3, padding=1, bias=False), bn]


class ByFunctions(nn.Module):
    def __init__(self, *, stepwise: bool) -> None:
        super().__init__()
        self.conv, self.stepwise = nn.Sequential(*plain_conv_bn()), stepwise
        self.node = neuron.LIFNode(step_mode="s" if stepwise else "m")
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        if self.stepwise:
            return functional.multi_step_forward(x, (self.conv, self.node, self.pool))  # type: ignore[no-any-return]
        x = self.node(functional.seq_to_ann_forward(x, self.conv))
        return functional.seq_to_ann_forward(x, [self.pool])  # type: ignore[no-any-return]


NETS: dict[str, Callable[[], nn.Module]] = {
    "step modes": lambda: image_net(*conv_bn(), neuron.LIFNode(), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(64, 5)),
    "wrappers": lambda: image_net(
        *conv_bn(), neuron.IFNode(), layer.AvgPool2d(2), layer.ConvTranspose2d(4, 3, 2), neuron.LIFNode(v_threshold=0.1)
    ),
    "seq to ann": lambda: nn.Sequential(
        layer.SeqToANNContainer(*plain_conv_bn()), neuron.LIFNode(step_mode="m"), layer.SeqToANNContainer(nn.AvgPool2d(2))
    ),
    "multi step": lambda: nn.Sequential(layer.MultiStepContainer(*plain_conv_bn(), neuron.LIFNode(), nn.Flatten())),
    "step mode container": lambda: nn.Sequential(
        layer.StepModeContainer(False, "m", *plain_conv_bn()), layer.StepModeContainer(True, "m", neuron.LIFNode())
    ),
    "functions, seq to ann": lambda: ByFunctions(stepwise=False),
    "functions, multi step": lambda: ByFunctions(stepwise=True),
    "dropout": lambda: image_net(*conv_bn(), neuron.LIFNode(), layer.Dropout(0.5), layer.Flatten()),
    "threshold-dependent": lambda: image_net(
        layer.Conv2d(2, 4, 3), layer.ThresholdDependentBatchNorm2d(1.0, 4.0, 4), neuron.LIFNode(), layer.AdaptiveAvgPool2d(1)
    ),
    "t last": lambda: nn.Sequential(layer.SeqToANNContainer(*plain_conv_bn()), neuron.LIFNode(step_mode="m")),
}


@pytest.mark.parametrize("name", NETS)
def test_layers(name: str) -> None:
    net = NETS[name]().eval()
    x = torch.randn(T, N, 2, 8, 8)
    graph = snngraph.trace(net, x)
    assert_same_net(graph, net, x, functional.reset_net)
    assert len(graph.neurons) == sum(isinstance(m, neuron.BaseNode) for m in net.modules())
    assert graph.free_batch


def test_one_step_of_layers() -> None:
    net = image_net(*conv_bn(), neuron.LIFNode(), layer.MaxPool2d(2), layer.Flatten(), step_mode="s")
    x = torch.randn(T, N, 2, 8, 8)
    graph = snngraph.trace(net, x, time_steps=T)
    assert_same_net(graph, Loop(net, resets=False), x, functional.reset_net, neurons=["2"])


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", ["elementwise", "linear"])
def test_recurrent_containers(kind: str, step_mode: str) -> None:
    node = neuron.LIFNode(tau=1.7, v_threshold=0.5)
    recurrent = (
        layer.ElementWiseRecurrentContainer(node, lambda y, x: y * 0.5 + x, step_mode=step_mode)
        if kind == "elementwise"
        else layer.LinearRecurrentContainer(node, 8, 8, step_mode=step_mode)
    )
    net = nn.Sequential(nn.Linear(8, 8), recurrent).eval()
    x = torch.randn(T, N, 8) * 3
    graph = snngraph.trace(net, x, time_steps=T if step_mode == "s" else None)
    assert_same_net(
        graph, Loop(net, resets=False) if step_mode == "s" else net, x, functional.reset_net, neurons=["1.sub_module"]
    )


def test_other_states_of_the_library_are_reset() -> None:
    net = nn.Sequential(nn.Linear(8, 8), neuron.LIFNode(), layer.SynapseFilter(tau=4.0)).eval()
    x = torch.randn(T, N, 8) * 4
    graph = snngraph.trace(net, x, time_steps=T)
    assert_same_net(graph, Loop(net, resets=False), x, functional.reset_net, neurons=["1"])
    with pytest.raises(NotCanonicalError, match="SynapseFilter keeps a state, but is none of SpikingJelly's neurons"):
        SpikingJelly().neuron(net[2])


# -- what is not canonical -----------------------------------------------------------------------------------------------------


class OwnCharge(neuron.SimpleLIFNode):  # type: ignore[misc]
    v: Any

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = 0.9 * self.v + x


class OwnReset(neuron.SimpleIFNode):  # type: ignore[misc]
    v: Any

    def neuronal_reset(self, spike: Tensor) -> None:
        self.v = self.v * (1 - 0.5 * spike)


class OwnFire(neuron.SimpleIFNode):  # type: ignore[misc]
    def neuronal_fire(self) -> Tensor:
        return 2 * self.surrogate_function(self.v - 0.5)  # type: ignore[no-any-return]


class OwnStep(neuron.LIFNode):  # type: ignore[misc]
    def single_step_functional_forward(self, inputs: Any, states: Any, **kwargs: Any) -> Any:
        (spike,), states = super().single_step_functional_forward((inputs[0] * 2,), states, **kwargs)
        return (spike,), states


class OwnForward(neuron.LIFNode):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5  # type: ignore[no-any-return]


class Mixin:
    def single_step_forward(self, x: Tensor) -> Tensor:
        return super().single_step_forward(x + 1)  # type: ignore[misc,no-any-return]


class Mixed(Mixin, neuron.LIFNode):  # type: ignore[misc]
    pass


class OnlyNamed(neuron.LIFNode):  # type: ignore[misc]
    """Other defaults, another text: the same neuron."""

    def __init__(self, **options: Any) -> None:
        super().__init__(tau=1.5, v_threshold=0.5, **options)
        self.note = "mine"

    def extra_repr(self) -> str:
        return "only named"

    def describe(self) -> str:
        return self.note


def patched() -> nn.Module:
    node = neuron.LIFNode()
    node.multi_step_forward = lambda x: x.relu()
    return node  # type: ignore[no-any-return]


OWN: dict[str, tuple[Node, str]] = {
    "charge": (lambda: OwnCharge(2.0, True), "OwnCharge changes neuronal_charge of SpikingJelly's SimpleLIFNode"),
    "reset": (OwnReset, "OwnReset changes neuronal_reset of SpikingJelly's SimpleIFNode"),
    "fire": (OwnFire, "OwnFire changes neuronal_fire of SpikingJelly's SimpleIFNode"),
    "step": (OwnStep, "OwnStep changes single_step_functional_forward of SpikingJelly's LIFNode"),
    "forward": (OwnForward, "OwnForward changes forward of SpikingJelly's LIFNode"),
    "mixin": (Mixed, "Mixed changes single_step_forward of SpikingJelly's LIFNode"),
    "patched": (patched, "LIFNode changes multi_step_forward of SpikingJelly's LIFNode"),
}


def test_changed_neurons_stay_as_they_are() -> None:
    net = Parallel({f"own {name}": Dense(node) for name, (node, _) in OWN.items()}, "m").eval()
    assert [found.reason for found in found_in(net)] == [reason for _, reason in OWN.values() for _ in range(2)]
    x = torch.randn(T, N, 8)
    graph = snngraph.trace(net, x, time_dim=0, batch_dim=1)
    assert_same_net(graph, net, x, functional.reset_net)
    assert bool((run(net, x, functional.reset_net).unflatten(-1, (len(OWN), -1)) != 0).any(-1).any(0).any(0).all())


def test_a_subclass_that_changes_nothing_is_its_parent() -> None:
    net = Parallel({"mine": Dense(OnlyNamed)}, "m").eval()
    x = torch.randn(T, N, 8)
    assert_same_net(snngraph.trace(net, x), net, x, functional.reset_net, neurons=["nets.mine.n1", "nets.mine.n2"])


def test_a_patched_library_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def single_step_functional_forward(self: Any, inputs: Any, states: Any, **kwargs: Any) -> Any:
        return inputs, states

    monkeypatch.setattr(neuron.LIFNode, "single_step_functional_forward", single_step_functional_forward)
    with pytest.raises(NotCanonicalError, match="changes single_step_functional_forward"):
        SpikingJelly().neuron(neuron.LIFNode())


OTHERS: dict[str, tuple[Node, str]] = {
    "QIFNode": (neuron.QIFNode, "quadratic"),
    "EIFNode": (neuron.EIFNode, "exponential"),
    "IzhikevichNode": (lambda: neuron.IzhikevichNode(a=0.1, b=0.2), "adaptation"),
    "ILIFNode": (neuron.ILIFNode, "rounded to the nearest integer"),
    "KLIFNode": (neuron.KLIFNode, "rectified"),
    "LIAFNode": (lambda: neuron.LIAFNode(torch.relu, True), "a function of its membrane potential"),
    "ComplementaryLIFNode": (neuron.ComplementaryLIFNode, "second potential"),
    "RAFNode": (neuron.RAFNode, "resonates"),
    "ActivationAwareIFNode": (lambda: neuron.ActivationAwareIFNode(torch.rand(16) + 0.5), "axis of the input"),
    "STBIFNode": (lambda: neuron.STBIFNode(0.5, 8), "emitted so far"),
    "MPBNLIFNode": (lambda: neuron.MPBNLIFNode(out_features=16), "batch norm"),
    "SlidingPSN": (lambda: neuron.SlidingPSN(3), "weighted sum over time steps"),
    "PSN": (lambda: neuron.PSN(T), "weighted sum over time steps"),
    "MaskedPSN": (lambda: neuron.MaskedPSN(3, T, lambda_init=1.0), "weighted sum over time steps"),
    "MaskedPSN, blended": (lambda: neuron.MaskedPSN(3, T, lambda_init=0.3), "weighted sum over time steps"),
    "DSRIFNode": (lambda: neuron.DSRIFNode(T, 1.0), "forgets"),
    "GatedLIFNode": (lambda: neuron.GatedLIFNode(T), "last spike"),
    "ILCLIFNode": (lambda: neuron.ILCLIFNode(4, 4), "connected with one another"),
    "NoisyCUBALIFNode": (lambda: neuron.NoisyCUBALIFNode(16, is_training=False, T=T), "noise"),
    "NonSpikingLIFNode": (lambda: neuron.NonSpikingLIFNode(decode="max-mem"), "emits its membrane potential"),
    "FewSpikeNode": (
        lambda: neuron.FewSpikeNode(neuron.FewSpikeTable([1.0] * T, [0.5] * T, [0.25] * T)),
        "a code of one number over time",
    ),
    "FlexSN": (
        lambda: neuron.FlexSN(lambda x, v: ((0.5 * v + x > 1).to(x), (0.5 * v + x) * (0.5 * v + x <= 1).to(x)), 1),
        "a function of the user's",
    ),
}


class Other(nn.Module):
    def __init__(self, node: nn.Module) -> None:
        super().__init__()
        self.fc, self.node = nn.Linear(8, 16), node

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(x) * 4
        if type(self.node).__name__ == "GatedLIFNode":  # takes images
            x = x[..., None, None]
        y: Tensor = self.node(x)
        return y.reshape(*x.shape) if y.dim() == x.dim() else y.expand(len(x), *y.shape)


@pytest.mark.parametrize("name", OTHERS)
def test_other_neurons_say_why_they_are_not_canonical(name: str) -> None:
    build, reason = OTHERS[name]
    with pytest.raises(NotCanonicalError, match=reason):
        SpikingJelly().neuron(build())


@pytest.mark.parametrize(
    ("name", "step_mode"),
    [*((name, "m") for name in OTHERS), *((name, "s") for name in ("QIFNode", "STBIFNode", "ComplementaryLIFNode", "MaskedPSN"))],
)
def test_other_neurons_stay_as_ordinary_operators(name: str, step_mode: str) -> None:
    net: nn.Module = Other(OTHERS[name][0]()).eval()
    functional.set_step_mode(net, step_mode)
    if step_mode == "s":
        net = Loop(net, resets=True).eval()
    x = torch.randn(T, N, 8)
    assert bool((run(net, x, functional.reset_net) != 0).any())
    assert_same_net(snngraph.trace(net, x, time_dim=0, batch_dim=1), net, x, functional.reset_net)
