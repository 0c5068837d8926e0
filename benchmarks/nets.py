"""Nets to time that are no family of :mod:`snngraph.models`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from snngraph.models.layers import StepWise
from snngraph.neurons import IF

__all__ = ["SEWResNet", "sew_resnet18"]


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
        y = self.head(self.layers(self.pool(self.fire(y))))
        return y.mean(0)


def sew_resnet18(T: int = 4) -> SEWResNet:
    """18 layers, ImageNet."""
    return SEWResNet((2, 2, 2, 2), T)
