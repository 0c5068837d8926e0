"""The nets to time, with random weights, and inputs for them.

Every layer fires at 5 to 30 %: :func:`calibrated` sees to it. Of every net there is a tiny one (``small``), to try a benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from snngraph.models.calibration import calibrate, firing_rates
from snngraph.models.layers import StepWise
from snngraph.neurons import IF

__all__ = ["HIGH", "LOW", "NETS", "Net", "SEWResNet", "calibrated", "events", "inputs", "load", "sew_resnet18"]

LOW, HIGH = 0.05, 0.30


def _conv_bn(before: int, after: int, kernel: int, stride: int = 1) -> StepWise:
    return StepWise(nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(after))


class _Block(nn.Module):
    """Spikes of two layers joined with those that come in, by ADD (Fang et al. 2021, arXiv 2102.04159, section 4)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_conv_bn(before, after, 3, stride), IF(), _conv_bn(after, after, 3), IF())
        same = before == after and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(_conv_bn(before, after, 1, stride), IF())

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x) + self.shortcut(x)
        return y


class SEWResNet(nn.Module):
    """An image ``[N, 3, H, W]``, shown ``T`` times -> ``[N, classes]``, the mean over time."""

    def __init__(
        self, blocks: Sequence[int], T: int, *, channels: Sequence[int] = (64, 128, 256, 512), classes: int = 1000
    ) -> None:
        super().__init__()
        self.T = T
        self.stem = StepWise(nn.Conv2d(3, channels[0], 7, 2, 3, bias=False), nn.BatchNorm2d(channels[0]))
        self.fire = IF()
        self.pool = StepWise(nn.MaxPool2d(3, 2, 1))
        layers: list[nn.Module] = []
        before = channels[0]
        for stage, (count, after) in enumerate(zip(blocks, channels, strict=True)):
            for k in range(count):
                layers.append(_Block(before, after, 2 if stage and not k else 1))
                before = after
        self.layers = nn.Sequential(*layers)
        self.head = StepWise(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x[None]).expand(self.T, -1, -1, -1, -1)
        z: Tensor = self.head(self.layers(self.pool(self.fire(y))))
        return z.mean(0)


def sew_resnet18(T: int = 4) -> SEWResNet:
    """18 layers, ImageNet."""
    return SEWResNet((2, 2, 2, 2), T)


@dataclass(frozen=True)
class Net:
    """A net to time.

    Args:
        title: its name in tables.
        model: builds it, with random weights; given ``True``, a tiny one.
        example: draws an input, for a tiny net or not, from a seed.
        calibrated: builds a net of the same weights that is quicker to calibrate, if there is one.
    """

    title: str
    model: Callable[[bool], nn.Module]
    example: Callable[[bool, int], Tensor]
    calibrated: Callable[[bool], nn.Module] | None = None


def inputs(net: Net, count: int, *, small: bool = False) -> list[Tensor]:
    """Independent draws; the first is what the net is calibrated on, and timed with."""
    return [net.example(small, 1 + k) for k in range(count)]


def calibrated(net: Net, *, small: bool = False) -> nn.Module:
    """The net, every layer of it firing at 5 to 30 %."""
    torch.manual_seed(0)
    model, x = net.model(small).eval(), net.example(small, 1)
    if net.calibrated is None:
        calibrate(model, x, LOW, HIGH)
    else:
        other = net.calibrated(small).eval()
        calibrate(other, x, LOW, HIGH)
        model.load_state_dict(other.state_dict())
    rates = firing_rates(model, x)
    assert all(LOW <= rate <= HIGH for rate in rates.values()), rates
    return model


def load(name: str, weights: str, small: bool) -> tuple[nn.Module, Tensor]:
    """One of :data:`NETS` with the weights of a file, and the input it is timed with."""
    model = NETS[name].model(small).eval()
    model.load_state_dict(torch.load(weights))
    return model, NETS[name].example(small, 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def events(T: int, size: int, seed: int = 1) -> Tensor:
    """Event counts of which a tenth are not 0."""
    return torch.poisson(torch.full((T, 1, 2, size, size), 0.105), generator=_generator(seed))


def _image(small: bool, seed: int) -> Tensor:
    size = 32 if small else 224
    return torch.rand(1, 3, size, size, generator=_generator(seed))


def _sew_resnet18(small: bool) -> nn.Module:
    return SEWResNet((1, 1), 4, channels=(64, 64), classes=10) if small else sew_resnet18()


def _spikingresformer(small: bool) -> nn.Module:
    from snngraph.models.spikingresformer import SpikingResformer, spikingresformer_ti

    return SpikingResformer(2, 32, 5) if small else spikingresformer_ti(T=4)


def _att_res_snn(T: int, small: bool) -> nn.Module:
    from snngraph.models.ma import att_res_snn18

    return att_res_snn18(T, num_classes=5, img_size=32, channels=(8, 8, 16, 16)) if small else att_res_snn18(T)


def _ma_gesture(small: bool) -> nn.Module:
    from snngraph.models.ma import ma_snn_gesture

    return ma_snn_gesture("TCSA", 5, size=16, channels=(8, 8, 8), hidden=16) if small else ma_snn_gesture("TCSA", 60)


def _tcja(small: bool) -> nn.Module:
    from snngraph.models.tcja import tcja_dvs128gesture, tcja_small

    return tcja_small(T=4) if small else tcja_dvs128gesture(T=20)


def _tcja_cifar10dvs(small: bool) -> nn.Module:
    from snngraph.models.tcja import tcja_cifar10dvs, tcja_small

    return tcja_small(T=4) if small else tcja_cifar10dvs(T=10)


def _pfa(rank: int, by_rank: bool, small: bool) -> nn.Module:
    from snngraph.models.pfa import pfa_vgg

    if small:
        return pfa_vgg("cifar10dvs", T=4, rank=rank, size=16, channels=(8,) * 8, by_rank=by_rank)
    return pfa_vgg("cifar10dvs", T=10, rank=rank, by_rank=by_rank)


def _pfa_vgg(rank: int, *, by_rank: bool) -> Net:
    return Net(
        f"PFA VGG, rank {rank}, " + ("summed rank by rank" if by_rank else "one contraction"),
        lambda small: _pfa(rank, by_rank, small),
        lambda small, seed: events(4, 16, seed) if small else events(10, 128, seed),
        calibrated=(lambda small: _pfa(rank, False, small)) if by_rank else None,
    )


def _pfa_layer(small: bool, *, by_rank: bool = True) -> nn.Module:
    """One attention layer of the VGG, its second, with next to nothing behind it."""
    from snngraph.models.pfa import PFA, PFAByRank
    from snngraph.neurons import LIF

    T, channels, rank = (4, 8, 4) if small else (10, 128, 64)
    attention = (PFAByRank if by_rank else PFA)(T, channels, rank)
    return nn.Sequential(attention, StepWise(nn.Conv2d(channels, 8, 1, bias=False), nn.BatchNorm2d(8)), LIF())


def _pooled_spikes(small: bool, seed: int) -> Tensor:
    T, channels, side = (4, 8, 6) if small else (10, 128, 24)
    return torch.randint(0, 3, (T, 1, channels, side, side), generator=_generator(seed)) / 4


NETS: Final = {
    "sew_resnet18": Net("SEW-ResNet-18, T 4", _sew_resnet18, _image),
    "spikingresformer_ti": Net("SpikingResformer-Ti, T 4", _spikingresformer, _image),
    "att_res_snn18_t1": Net("Att-Res-SNN-18, T 1", lambda small: _att_res_snn(1, small), _image),
    "att_res_snn18_t4": Net("Att-Res-SNN-18, T 4", lambda small: _att_res_snn(4, small), _image),
    "ma_gesture_tcsa": Net(
        "MA-SNN Gesture TCSA, T 60",
        _ma_gesture,
        lambda small, seed: events(5, 16, seed) if small else events(60, 32, seed),
    ),
    "tcja_dvs128": Net(
        "TCJA DVS128 Gesture",
        _tcja,
        lambda small, seed: events(4, 24, seed) if small else events(20, 128, seed),
    ),
    "tcja_cifar10dvs": Net(
        "TCJA CIFAR10-DVS",
        _tcja_cifar10dvs,
        lambda small, seed: events(4, 24, seed) if small else events(10, 128, seed),
    ),
    "pfa_vgg_r8": _pfa_vgg(8, by_rank=False),
    "pfa_vgg_r64": _pfa_vgg(64, by_rank=False),
    "pfa_vgg_loop_r8": _pfa_vgg(8, by_rank=True),
    "pfa_vgg_loop_r64": _pfa_vgg(64, by_rank=True),
    "pfa_layer_loop_r64": Net(
        "PFA layer, rank 64, summed rank by rank",
        _pfa_layer,
        _pooled_spikes,
        calibrated=lambda small: _pfa_layer(small, by_rank=False),
    ),
}
