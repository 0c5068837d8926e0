"""Random small spiking networks, captured from PyTorch, run as engines on both CPU back ends against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snngraph
from snngraph import neurons
from snngraph.models.calibration import calibrate
from snngraph.models.layers import StepWise
from snngraph.models.tcja import TCJA


@dataclass(frozen=True)
class Layer:
    channels: int
    norm: bool
    neuron: str
    gate: bool
    pool: str
    residual: bool


NEURONS: dict[str, Callable[[], neurons.Neuron]] = {
    "lif": neurons.LIF,
    "tet": lambda: neurons.LIF(decay_input=False, fire=">"),
    "soft": lambda: neurons.LIF(tau=3.0, v_reset=None),
    "if": lambda: neurons.IF(threshold=0.75, v_reset=-0.25),
    "plif": lambda: neurons.PLIF(init_tau=1.7),
    "ma": lambda: neurons.Neuron(decay=0.3, threshold=0.3, v_reset=0.3, v_init=0.0),
}
layers = st.builds(
    Layer,
    channels=st.sampled_from([3, 4, 8]),
    norm=st.just(True),
    neuron=st.sampled_from(sorted(NEURONS)),
    gate=st.booleans(),
    pool=st.sampled_from(["", "max", "avg"]),
    residual=st.booleans(),
)


@st.composite
def designs(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "T": draw(st.integers(1, 5)),
        "layers": draw(st.lists(layers, min_size=1, max_size=3)),
        "batch_first": draw(st.booleans()),
        "spiking_head": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


class Net(nn.Module):
    """``[T, N, 2, 8, 8]`` or ``[N, T, 2, 8, 8]`` to ``[N, 6]``."""

    def __init__(self, design: dict[str, Any]) -> None:
        super().__init__()
        self.batch_first, self.design = design["batch_first"], design["layers"]
        self.stems, self.neurons, self.gates, self.pools = (nn.ModuleList() for _ in range(4))
        channels, size = 2, 8
        for layer in self.design:
            stem = [nn.Conv2d(channels, layer.channels, 3, padding=1, bias=not layer.norm), nn.BatchNorm2d(layer.channels)]
            self.stems.append(StepWise(*stem))
            self.neurons.append(NEURONS[layer.neuron]())
            self.gates.append(TCJA(design["T"], layer.channels) if layer.gate else nn.Identity())
            pool: dict[str, nn.Module] = {"max": nn.MaxPool2d(2), "avg": nn.AvgPool2d(2), "": nn.Identity()}
            self.pools.append(StepWise(pool[layer.pool]))
            channels, size = layer.channels, size // 2 if layer.pool else size
        self.fc = StepWise(nn.Flatten(), nn.Linear(channels * size * size, 6))
        self.head = neurons.LIF() if design["spiking_head"] else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        x = x.transpose(0, 1) if self.batch_first else x
        for layer, stem, neuron, gate, pool in zip(self.design, self.stems, self.neurons, self.gates, self.pools, strict=True):
            y = gate(neuron(stem(x)))
            x = pool(y + x if layer.residual and y.shape == x.shape else y)
        return self.head(self.fc(x)).mean(0)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(design=designs())
def test_engines_spike_as_float64_says(design: dict[str, Any]) -> None:
    torch.manual_seed(design["seed"])
    model = Net(design).eval()
    leading = (32, design["T"]) if design["batch_first"] else (design["T"], 32)
    inputs = (torch.rand(*leading, 2, 8, 8) < 0.3).float()
    calibrate(model, inputs)
    example = inputs[:2] if design["batch_first"] else inputs[:, :2]
    graph = snngraph.trace(model, example, time_dim=int(design["batch_first"]))
    for target in ("openvino", "onnxruntime"):
        with snngraph.build(snngraph.optimize(graph, target=target), target, batch_size="dynamic") as engine:
            report = snngraph.verify(graph, engine, inputs)
        assert report.ok, f"{target}: {report}"
        assert all(layer.rate > 0.02 for layer in report.layers), f"{target}: {report}"
