"""Batch norms without running statistics: kept as they are, told about, and as right as PyTorch's."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph import neurons
from snngraph.errors import BatchStatisticsWarning


class _Net(nn.Module):
    def __init__(self, *, track: bool = False) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = (nn.BatchNorm2d(8, track_running_stats=track) for _ in range(2))
        self.fc, self.bn3 = nn.Linear(8 * 16 * 16, 32), nn.BatchNorm1d(32, track_running_stats=track)
        self.lif1, self.lif2, self.lif3 = neurons.LIF(), neurons.LIF(), neurons.LIF()
        for bn in (self.bn1, self.bn2, self.bn3):
            nn.init.constant_(bn.bias, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        steps = (x.shape[0], -1)
        y = self.lif1(self.bn1(self.conv1(x.flatten(0, 1))).unflatten(0, steps))
        y = self.lif2(self.bn2(self.conv2(y.flatten(0, 1))).unflatten(0, steps))
        out: Tensor = self.lif3(self.bn3(self.fc(y.flatten(0, 1).flatten(1))).unflatten(0, steps)).mean(0)
        return out


def test_it_is_told_once_and_noted() -> None:
    torch.manual_seed(0)
    with pytest.warns(BatchStatisticsWarning, match="bn1, bn2, bn3") as caught:
        graph = snngraph.trace(_Net().eval(), torch.rand(4, 2, 2, 16, 16))
    assert sum(issubclass(w.category, BatchStatisticsWarning) for w in caught) == 1
    assert any("depend on the batch" in note for note in graph.notes)
    assert any("depend on the batch" in note for note in snngraph.optimize(graph).notes)


def test_running_statistics_and_instance_norms_are_not_told_about() -> None:
    class Instance(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.lif = nn.InstanceNorm2d(2), neurons.LIF()

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.lif(self.norm(x.flatten(0, 1)).unflatten(0, (x.shape[0], -1)))
            return out

    with warnings.catch_warnings():
        warnings.simplefilter("error", BatchStatisticsWarning)
        for model in (_Net(track=True), Instance()):
            snngraph.trace(model.eval(), torch.rand(4, 2, 2, 16, 16))


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
@pytest.mark.filterwarnings("ignore::snngraph.errors.BatchStatisticsWarning")
def test_they_are_as_right_as_float32(target: str) -> None:
    pytest.importorskip(target)
    torch.manual_seed(0)
    graph = snngraph.trace(_Net().eval(), torch.rand(8, 4, 2, 16, 16))
    engine = snngraph.build(snngraph.optimize(graph, target=target), target=target)
    report = snngraph.verify(graph, engine, [torch.rand(8, 4, 2, 16, 16) for _ in range(8)])
    assert report.ok, str(report)
