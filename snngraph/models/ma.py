"""MA-SNN: multi-dimensional attention (Yao et al. 2022, arXiv 2209.13929), on what enters a membrane, ``x [T, N, C, H, W]``.

- TA (time): the mean and the maximum over C, H and W, ``[N, T]`` each, pass one shared MLP ``T -> T/r_t -> T`` (ReLU between, no
  biases); ``gate [T, N, 1, 1, 1] = sigmoid(mlp(mean) + mlp(max))``.
- CA (channels): the same over T, H and W, with an MLP ``C -> C/r_c -> C``; ``gate [1, N, C, 1, 1]``.
- SA (space): the mean and the maximum over T and C, two planes, pass a convolution ``2 -> 1`` without bias;
  ``gate [1, N, 1, H, W] = sigmoid(conv(mean, max))``. Its kernel is 3 in the authors' code and 7 in the paper.

Whatever of them a variant has is applied in this order, ``y = TA(x)*x; y = CA(y)*y; y = SA(y)*y``, each gate computed from what
the one before it has scaled already; then ``relu(y)``, and the neurons. The variant ``"none"`` has no relu either. Every gate
looks at the whole window of T, so a net with this attention can not be stepped frame by frame.

Where the authors' tensors go (``reference_keys``), ``k`` a layer, ``s`` a stage and ``b`` a block from 0:

====================================================================  ========================================================
the authors' CNNs                                                     here
====================================================================  ========================================================
``convAttLIF{k}.conv2d``, ``.BNLayer``                                ``features.conv{k+1}.conv``, ``.bn``
``convAttLIF{k}.attention.{ta,ca}.sharedMLP.{0,2}.weight``            ``features.attention{k+1}.{ta,ca}.mlp.{0,2}.weight``
``convAttLIF{k}.attention.sa.conv``                                   ``features.attention{k+1}.sa.conv``
``FC{k}.linear``, ``.BNLayer``                                        ``classifier.fc{k+1}.linear``, ``.bn``
``FC{k}.attention.ta.sharedMLP.{0,2}.weight``                         ``classifier.attention{k+1}.ta.mlp.{0,2}.weight``
====================================================================  ========================================================

====================================================================  ========================================================
the authors' Att-Res-SNN                                              here
====================================================================  ========================================================
``conv1.0``, ``conv1.1.bn``                                           ``stem.conv``, ``stem.bn``
``conv{s+2}_x.{b}.residual_function.1``, ``.2.bn``                    ``stages.{s}.{b}.residual.conv1.conv``, ``.conv1.bn``
``conv{s+2}_x.{b}.residual_function.4``, ``.5.bn``                    ``stages.{s}.{b}.residual.conv2.conv``, ``.conv2.bn``
``conv{s+2}_x.{b}.residual_function.6.attention.{ca.sharedMLP,sa}``   ``stages.{s}.{b}.residual.attention.{ca.mlp,sa}``
``conv{s+2}_x.{b}.shortcut.1``, ``.2.bn``                             ``stages.{s}.{b}.shortcut.conv``, ``.bn``
``fc``                                                                ``fc``
====================================================================  ========================================================

Their MLPs are convolutions with a kernel of one point, ``[out, in, 1, 1, 1]``; here they are linear layers, ``[out, in]``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from snngraph.models.layers import EventClassifier, StepWise, pair, require_each, require_positive
from snngraph.models.reference import ReferenceKeys, Stored
from snngraph.neurons import Neuron, Piecewise

__all__ = [
    "CA",
    "MA",
    "SA",
    "TA",
    "AttResSNN",
    "MAClassifier",
    "att_res_snn18",
    "att_res_snn34",
    "att_res_snn104",
    "ma_lif",
    "ma_snn_cifar10dvs",
    "ma_snn_gait",
    "ma_snn_gesture",
    "res_lif",
]

Attention: TypeAlias = Literal["TA", "CA", "SA", "TCA", "TSA", "CSA", "TCSA", "none"]
"""Which of time, channels and space are attended to."""

ResetTo: TypeAlias = Literal["threshold", "zero"]
"""What a spike sets the membrane potential of :func:`ma_lif` to: the authors' code or the paper."""


# -- attention -----------------------------------------------------------------------------------------------------------------


class _SharedMLP(nn.Module):
    """``mlp(a) + mlp(b)`` for ``a, b [N, features]``: one MLP without biases, ``features -> features/reduction -> features``."""

    def __init__(self, name: str, features: int, reduction: int) -> None:
        super().__init__()
        hidden = features // reduction
        if hidden < 1:
            raise ValueError(f"a reduction of {features} {name} by {reduction} leaves none: expected at most {features}")
        self.mlp = nn.Sequential(nn.Linear(features, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, features, bias=False))

    def _sum(self, a: Tensor, b: Tensor) -> Tensor:
        y: Tensor = self.mlp(a) + self.mlp(b)
        return y


class TA(_SharedMLP):
    """The gate over time: ``[T, N, ...]`` -> ``[T, N, 1, ...]``.

    Args:
        T: number of time steps; the gate works for no other.
        r_t: the MLP has ``T // r_t`` hidden features.

    Raises:
        ValueError: a size is not a positive integer, or there would be no hidden feature; from ``forward``, another T.
    """

    def __init__(self, T: int, *, r_t: int = 5) -> None:
        require_positive(T=T, r_t=r_t)
        super().__init__("time steps", T, r_t)
        self.T = T

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if x.dim() < 3:
            raise ValueError(f"TA: expected [T, N, C, H, W] or [T, N, features], got {list(x.shape)}")
        if x.shape[0] != self.T:
            raise ValueError(f"TA was built for T={self.T}, but the input has T={x.shape[0]}: {list(x.shape)}")
        rest = tuple(range(2, x.dim()))
        scores = self._sum(x.mean(rest).t(), x.amax(rest).t()).t()  # [T, N]
        return _unsqueezed(torch.sigmoid(scores), len(rest))


class CA(_SharedMLP):
    """The gate over channels: ``[T, N, C, H, W]`` -> ``[1, N, C, 1, 1]``.

    Args:
        channels: number of channels.
        r_c: the MLP has ``channels // r_c`` hidden features.

    Raises:
        ValueError: a size is not a positive integer, or there would be no hidden feature; from ``forward``, other channels.
    """

    def __init__(self, channels: int, *, r_c: int = 8) -> None:
        require_positive(channels=channels, r_c=r_c)
        super().__init__("channels", channels, r_c)
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        _require_maps("CA", x)
        if x.shape[2] != self.channels:
            raise ValueError(f"CA was built for {self.channels} channels, but the input has {x.shape[2]}: {list(x.shape)}")
        over = (0, 3, 4)
        return _unsqueezed(torch.sigmoid(self._sum(x.mean(over), x.amax(over))).unsqueeze(0), 2)


class SA(nn.Module):
    """The gate over space: ``[T, N, C, H, W]`` -> ``[1, N, 1, H, W]``.

    Args:
        sa_kernel: height and width of the convolution: 3 (the authors' code) or 7 (the paper), or another odd number.

    Raises:
        ValueError: the kernel is not a positive odd integer.
    """

    def __init__(self, *, sa_kernel: int = 3) -> None:
        super().__init__()
        require_positive(sa_kernel=sa_kernel)
        if sa_kernel % 2 == 0:
            raise ValueError(f"sa_kernel={sa_kernel}: expected an odd number, which keeps the height and width")
        self.conv = nn.Conv2d(2, 1, sa_kernel, padding=sa_kernel // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        _require_maps("SA", x)
        over = (0, 2)
        planes = torch.stack([x.mean(over), x.amax(over)], 1)  # [N, 2, H, W]
        return torch.sigmoid(self.conv(planes)).unsqueeze(0)


class MA(nn.Module):
    """Multi-dimensional attention: ``[T, N, C, H, W]`` -> the same, scaled by the gates of ``attention``, then relu.

    Args:
        T: number of time steps; a variant with time attention works for no other.
        channels: number of channels; a variant with channel attention works for no other.
        attention: which gates there are; ``"none"`` returns its input.
        r_t: reduction of the time attention.
        r_c: reduction of the channel attention.
        sa_kernel: kernel of the spatial attention, 3 (the authors' code) or 7 (the paper).

    Raises:
        ValueError: there is no such variant, or a size of a gate it has is out of range.
    """

    def __init__(
        self, T: int, channels: int, attention: Attention = "TCSA", *, r_t: int = 5, r_c: int = 8, sa_kernel: int = 3
    ) -> None:
        super().__init__()
        _check_attention(attention)
        require_positive(T=T, channels=channels)
        self.attention = attention
        self.ta = TA(T, r_t=r_t) if "T" in attention else None
        self.ca = CA(channels, r_c=r_c) if "C" in attention else None
        self.sa = SA(sa_kernel=sa_kernel) if "S" in attention else None

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        _require_maps("MA", x)
        if self.attention == "none":
            return x
        for gate in (self.ta, self.ca, self.sa):
            if gate is not None:
                x = gate(x) * x
        return torch.relu(x)

    def extra_repr(self) -> str:  # noqa: D102
        return f"attention={self.attention!r}"


class _TimeAttention(nn.Module):
    """``relu(TA(x) * x)``, what stands before the neurons of a fully connected layer: ``[T, N, features]`` -> the same."""

    def __init__(self, T: int, *, r_t: int) -> None:
        super().__init__()
        self.ta = TA(T, r_t=r_t)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.ta(x) * x)


def _check_attention(attention: str) -> None:
    if attention not in get_args(Attention):
        raise ValueError(f"attention={attention!r}: expected one of {', '.join(map(repr, get_args(Attention)))}")


def _require_maps(name: str, x: Tensor) -> None:
    if x.dim() != 5:
        raise ValueError(f"{name}: expected [T, N, C, H, W], got {list(x.shape)}")


def _unsqueezed(x: Tensor, dims: int) -> Tensor:
    """``x`` with ``dims`` dimensions of size 1 behind."""
    for _ in range(dims):
        x = x.unsqueeze(-1)
    return x


# -- neurons -------------------------------------------------------------------------------------------------------------------


def ma_lif(reset_to: ResetTo = "threshold") -> Neuron:
    """The neuron of the CNNs: ``h = 0.3 v + x`` fires at 0.3; the first step starts from 0.

    Args:
        reset_to: a spike sets ``v`` to the threshold (the authors' code) or to zero (the paper).

    Raises:
        ValueError: neither.
    """
    if reset_to not in get_args(ResetTo):
        raise ValueError(f"reset_to={reset_to!r}: expected 'threshold' or 'zero'")
    threshold = 0.3
    v_reset = threshold if reset_to == "threshold" else 0.0
    return Neuron(decay=0.3, threshold=threshold, v_reset=v_reset, v_init=0.0, surrogate=Piecewise(1.0))


def res_lif() -> Neuron:
    """The neuron of Att-Res-SNN: ``h = 0.25 v + x`` fires strictly above 0.5; a spike sets ``v`` to 0.

    The authors write ``h = 0.25 v (1 - s) + x`` with the ``v`` and ``s`` of the step before, which is the same.
    """
    return Neuron(decay=0.25, threshold=0.5, v_reset=0.0, fire=">", detach_reset=True, surrogate=Piecewise(1.0))


# -- CNNs ----------------------------------------------------------------------------------------------------------------------


class MAClassifier(EventClassifier):
    """The paper's CNN for event frames: ``[T, N, C, H, W]`` -> scores ``[N, classes]``, the output neurons' rates.

    Every layer is conv 3x3 (with bias) - BN [- average pool] - attention - LIF; two layers FC - BN - time attention (in a variant
    that has it) - LIF follow. The arguments are those of :func:`ma_snn_gesture`.

    Args:
        pools: what each layer's pooling divides height and width by, 1 where there is none.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """

    def __init__(
        self,
        attention: Attention,
        T: int,
        *,
        num_classes: int,
        size: int | tuple[int, int],
        in_channels: int,
        channels: Sequence[int],
        pools: Sequence[int],
        hidden: int,
        r_c: int,
        r_t: int,
        sa_kernel: int,
        reset_to: ResetTo,
        track_running_stats: bool,
    ) -> None:
        _check_attention(attention)
        require_positive(T=T, num_classes=num_classes, in_channels=in_channels, hidden=hidden)
        require_each(len(pools), "convolution", channels=channels)
        height, width = size = pair(size)
        features: OrderedDict[str, nn.Module] = OrderedDict()
        before = in_channels
        for k, (after, pool) in enumerate(zip(channels, pools, strict=True), start=1):
            layers: OrderedDict[str, nn.Module] = OrderedDict(
                conv=nn.Conv2d(before, after, 3, padding=1),
                bn=nn.BatchNorm2d(after, track_running_stats=track_running_stats),
            )
            if pool > 1:
                layers["pool"] = nn.AvgPool2d(pool, pool)
                height, width = height // pool, width // pool
            features[f"conv{k}"] = StepWise(layers)
            if attention != "none":
                features[f"attention{k}"] = MA(T, after, attention, r_t=r_t, r_c=r_c, sa_kernel=sa_kernel)
            features[f"lif{k}"] = ma_lif(reset_to)
            before = after
        if not height or not width:
            raise ValueError(f"size={size}: poolings by {', '.join(str(p) for p in pools if p > 1)} leave nothing")
        classifier: OrderedDict[str, nn.Module] = OrderedDict()
        before *= height * width
        for k, after in enumerate((hidden, num_classes), start=1):
            bn = nn.BatchNorm1d(after, track_running_stats=track_running_stats)
            classifier[f"fc{k}"] = StepWise(OrderedDict(linear=nn.Linear(before, after), bn=bn))
            if "T" in attention:
                classifier[f"attention{k}"] = _TimeAttention(T, r_t=r_t)
            classifier[f"lif{k}"] = ma_lif(reset_to)
            before = after
        super().__init__(
            nn.Sequential(features),
            nn.Sequential(classifier),
            T=T,
            in_channels=in_channels,
            size=size,
            reference_keys=_cnn_keys(attention, len(channels)),
        )


def ma_snn_gesture(
    attention: Attention = "TCSA",
    T: int = 60,
    *,
    num_classes: int = 11,
    size: int | tuple[int, int] = 32,
    in_channels: int = 2,
    channels: Sequence[int] = (64, 128, 128),
    hidden: int = 256,
    r_c: int = 8,
    r_t: int = 5,
    sa_kernel: int = 3,
    reset_to: ResetTo = "threshold",
    track_running_stats: bool = True,
) -> MAClassifier:
    """The paper's 3-layer net for DVS128 Gesture (2.34 M parameters, 106 763 neurons): ``[T, N, 2, 32, 32]`` -> ``[N, 11]``.

    Args:
        attention: which of time, channels and space are attended to, or ``"none"``.
        T: number of time steps.
        num_classes: number of classes.
        size: height and width of the input.
        in_channels: polarities.
        channels: channels of every convolution.
        hidden: neurons of the first fully connected layer.
        r_c: reduction of the channel attention: ``channels // r_c`` hidden features.
        r_t: reduction of the time attention: ``T // r_t`` hidden features.
        sa_kernel: kernel of the spatial attention, 3 (the authors' code) or 7 (the paper).
        reset_to: what a spike sets the membrane potential to: the threshold (the authors' code) or zero (the paper).
        track_running_stats: whether the batch norms keep running statistics for inference. Without, they use the statistics of
            the batch at hand, so that one sample's scores depend on the others.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    return MAClassifier(
        attention,
        T,
        num_classes=num_classes,
        size=size,
        in_channels=in_channels,
        channels=channels,
        pools=(1, 2, 2),
        hidden=hidden,
        r_c=r_c,
        r_t=r_t,
        sa_kernel=sa_kernel,
        reset_to=reset_to,
        track_running_stats=track_running_stats,
    )


def ma_snn_gait(
    attention: Attention = "TCSA",
    T: int = 8,
    *,
    num_classes: int = 21,
    size: int | tuple[int, int] = 128,
    in_channels: int = 2,
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    hidden: int = 256,
    r_c: int = 8,
    r_t: int = 2,
    sa_kernel: int = 3,
    reset_to: ResetTo = "threshold",
    track_running_stats: bool = True,
) -> MAClassifier:
    """The paper's 5-layer net for DVS128 Gait: ``[T, N, 2, 128, 128]`` -> scores ``[N, 21]``.

    Arguments as :func:`ma_snn_gesture`.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    return MAClassifier(
        attention,
        T,
        num_classes=num_classes,
        size=size,
        in_channels=in_channels,
        channels=channels,
        pools=(2, 2, 2, 2, 4),
        hidden=hidden,
        r_c=r_c,
        r_t=r_t,
        sa_kernel=sa_kernel,
        reset_to=reset_to,
        track_running_stats=track_running_stats,
    )


def ma_snn_cifar10dvs(
    attention: Attention = "TCSA",
    T: int = 20,
    *,
    num_classes: int = 10,
    size: int | tuple[int, int] = 128,
    in_channels: int = 2,
    channels: Sequence[int] = (32, 64, 128, 256, 512),
    hidden: int = 256,
    r_c: int = 8,
    r_t: int = 2,
    sa_kernel: int = 3,
    reset_to: ResetTo = "threshold",
    track_running_stats: bool = True,
) -> MAClassifier:
    """The paper's 5-layer net for CIFAR10-DVS: ``[T, N, 2, 128, 128]`` -> scores ``[N, 10]``.

    Arguments as :func:`ma_snn_gesture`.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    return MAClassifier(
        attention,
        T,
        num_classes=num_classes,
        size=size,
        in_channels=in_channels,
        channels=channels,
        pools=(2, 2, 2, 2, 4),
        hidden=hidden,
        r_c=r_c,
        r_t=r_t,
        sa_kernel=sa_kernel,
        reset_to=reset_to,
        track_running_stats=track_running_stats,
    )


# -- residual nets -------------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    """``residual(x) + shortcut(x)``, both without a neuron behind: membrane inputs ``[T, N, C, H, W]`` -> ``[T, N, D, h, w]``."""

    def __init__(self, before: int, after: int, stride: int, attention: Callable[[int], nn.Module | None], track: bool) -> None:
        super().__init__()
        gate = attention(after)
        residual: OrderedDict[str, nn.Module] = OrderedDict(
            lif1=res_lif(),
            conv1=_conv_bn(before, after, 3, stride, track),
            lif2=res_lif(),
            conv2=_conv_bn(after, after, 3, 1, track),
        )
        if gate is not None:
            residual["attention"] = gate
        self.residual = nn.Sequential(residual)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            layers = _conv_bn(before, after, 1, 1, track)
            self.shortcut = StepWise(OrderedDict(pool=nn.AvgPool2d(stride, stride), **dict(layers.named_children())))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.residual(x) + self.shortcut(x)
        return y


def _conv_bn(before: int, after: int, kernel: int, stride: int, track: bool) -> StepWise:
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
    return StepWise(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after, track_running_stats=track)))


class AttResSNN(nn.Module):
    """The paper's residual net for images: static ``[N, C, H, W]`` -> scores ``[N, classes]``.

    Conv 7x7 of stride 2 - BN, once for all steps; stages whose first block halves height and width; LIF, the mean over T, H and
    W, FC. A block adds LIF - conv 3x3 - BN - LIF - conv 3x3 - BN - attention to its shortcut. The arguments are those of
    :func:`att_res_snn18`.

    Args:
        blocks: blocks of every stage.

    Raises:
        ValueError: an argument is out of range; from ``forward``, an input of another shape.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        T: int,
        *,
        num_classes: int,
        img_size: int | tuple[int, int],
        in_channels: int,
        channels: Sequence[int],
        attention: Attention,
        r_c: int,
        r_t: int,
        sa_kernel: int,
        track_running_stats: bool,
    ) -> None:
        super().__init__()
        _check_attention(attention)
        require_positive(T=T, num_classes=num_classes, in_channels=in_channels)
        require_each(len(blocks), "stage", channels=channels)
        self.T, self.in_channels, self.img_size = T, in_channels, pair(img_size)
        unit = 2 << len(blocks)
        if any(side % unit for side in self.img_size):
            raise ValueError(f"img_size={img_size!r}: expected multiples of {unit}, which the stages halve without a rest")

        def gate(features: int) -> MA | None:
            return None if attention == "none" else MA(T, features, attention, r_t=r_t, r_c=r_c, sa_kernel=sa_kernel)

        before = channels[0]
        conv = nn.Conv2d(in_channels, before, 7, stride=2, padding=3, bias=False)
        bn = nn.BatchNorm2d(before, track_running_stats=track_running_stats)
        self.stem = nn.Sequential(OrderedDict(conv=conv, bn=bn))
        stages = []
        for after, count in zip(channels, blocks, strict=True):
            stage = [_Block(before, after, 2, gate, track_running_stats)]
            stage += [_Block(after, after, 1, gate, track_running_stats) for _ in range(count - 1)]
            stages.append(nn.Sequential(*stage))
            before = after
        self.stages = nn.Sequential(*stages)
        self.lif = res_lif()
        self.fc = nn.Linear(before, num_classes)
        self.reference_keys = _residual_keys(blocks, attention)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of images ``[N, C, H, W]``, each shown for T steps."""
        if x.dim() != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.img_size):
            height, width = self.img_size
            raise ValueError(f"expected images [N, {self.in_channels}, {height}, {width}], got {list(x.shape)}")
        shown = self.stem(x).unsqueeze(0).expand(self.T, -1, -1, -1, -1)
        spikes: Tensor = self.lif(self.stages(shown))
        scores: Tensor = self.fc(spikes.mean((0, 3, 4)))
        return scores


def att_res_snn18(
    T: int = 1,
    *,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    channels: Sequence[int] = (64, 128, 256, 512),
    attention: Attention = "CSA",
    r_c: int = 8,
    r_t: int = 1,
    sa_kernel: int = 3,
    track_running_stats: bool = True,
) -> AttResSNN:
    """The paper's residual net of 18 layers for ImageNet: static ``[N, 3, 224, 224]`` -> scores ``[N, 1000]``.

    Args:
        T: number of time steps an image is shown for.
        num_classes: number of classes.
        img_size: height and width of the images, multiples of 32.
        in_channels: colours.
        channels: channels of the four stages.
        attention: which of time, channels and space are attended to, or ``"none"``; the paper's nets have ``"CSA"``.
        r_c: reduction of the channel attention: ``channels // r_c`` hidden features.
        r_t: reduction of the time attention, where the variant has it: ``T // r_t`` hidden features.
        sa_kernel: kernel of the spatial attention, 3 (the authors' code) or 7 (the paper).
        track_running_stats: whether the batch norms keep running statistics for inference. Without, they use the statistics of
            the batch at hand, so that one sample's scores depend on the others.

    Raises:
        ValueError: an argument is out of range.
    """
    return AttResSNN(
        (2, 2, 2, 2),
        T,
        num_classes=num_classes,
        img_size=img_size,
        in_channels=in_channels,
        channels=channels,
        attention=attention,
        r_c=r_c,
        r_t=r_t,
        sa_kernel=sa_kernel,
        track_running_stats=track_running_stats,
    )


def att_res_snn34(
    T: int = 1,
    *,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    channels: Sequence[int] = (64, 128, 256, 512),
    attention: Attention = "CSA",
    r_c: int = 8,
    r_t: int = 1,
    sa_kernel: int = 3,
    track_running_stats: bool = True,
) -> AttResSNN:
    """The paper's residual net of 34 layers for ImageNet: static ``[N, 3, 224, 224]`` -> scores ``[N, 1000]``.

    Arguments as :func:`att_res_snn18`.

    Raises:
        ValueError: an argument is out of range.
    """
    return AttResSNN(
        (3, 4, 6, 3),
        T,
        num_classes=num_classes,
        img_size=img_size,
        in_channels=in_channels,
        channels=channels,
        attention=attention,
        r_c=r_c,
        r_t=r_t,
        sa_kernel=sa_kernel,
        track_running_stats=track_running_stats,
    )


def att_res_snn104(
    T: int = 1,
    *,
    num_classes: int = 1000,
    img_size: int | tuple[int, int] = 224,
    in_channels: int = 3,
    channels: Sequence[int] = (64, 128, 256, 512),
    attention: Attention = "CSA",
    r_c: int = 8,
    r_t: int = 1,
    sa_kernel: int = 3,
    track_running_stats: bool = True,
) -> AttResSNN:
    """The paper's residual net of 104 layers for ImageNet: static ``[N, 3, 224, 224]`` -> scores ``[N, 1000]``.

    Arguments as :func:`att_res_snn18`.

    Raises:
        ValueError: an argument is out of range.
    """
    return AttResSNN(
        (3, 8, 32, 8),
        T,
        num_classes=num_classes,
        img_size=img_size,
        in_channels=in_channels,
        channels=channels,
        attention=attention,
        r_c=r_c,
        r_t=r_t,
        sa_kernel=sa_kernel,
        track_running_stats=track_running_stats,
    )


# -- the authors' names --------------------------------------------------------------------------------------------------------


def _cnn_keys(attention: Attention, layers: int) -> ReferenceKeys:
    keys: dict[str, str | Stored] = {}
    for k in range(layers):
        theirs, ours = f"convAttLIF{k}", f"features.conv{k + 1}"
        keys |= {f"{theirs}.conv2d": f"{ours}.conv", f"{theirs}.BNLayer": f"{ours}.bn"}
        keys |= _attention_keys(attention, f"{theirs}.attention", f"features.attention{k + 1}")
    for k in range(2):
        theirs, ours = f"FC{k}", f"classifier.fc{k + 1}"
        keys |= {f"{theirs}.linear": f"{ours}.linear", f"{theirs}.BNLayer": f"{ours}.bn"}
        if "T" in attention:
            keys |= _attention_keys("TA", f"{theirs}.attention", f"classifier.attention{k + 1}")
    return keys


def _residual_keys(blocks: Sequence[int], attention: Attention) -> ReferenceKeys:
    keys: dict[str, str | Stored] = {"conv1.0": "stem.conv", "conv1.1.bn": "stem.bn", "fc": "fc"}
    for s, count in enumerate(blocks):
        for b in range(count):
            theirs, ours = f"conv{s + 2}_x.{b}.residual_function", f"stages.{s}.{b}.residual"
            keys |= {f"{theirs}.1": f"{ours}.conv1.conv", f"{theirs}.2.bn": f"{ours}.conv1.bn"}
            keys |= {f"{theirs}.4": f"{ours}.conv2.conv", f"{theirs}.5.bn": f"{ours}.conv2.bn"}
            keys |= _attention_keys(attention, f"{theirs}.6.attention", f"{ours}.attention")
        theirs, ours = f"conv{s + 2}_x.0.shortcut", f"stages.{s}.0.shortcut"
        keys |= {f"{theirs}.1": f"{ours}.conv", f"{theirs}.2.bn": f"{ours}.bn"}
    return keys


def _attention_keys(attention: Attention, theirs: str, ours: str) -> ReferenceKeys:
    keys: dict[str, str | Stored] = {}
    for gate in ("ta", "ca"):
        if gate[0].upper() in attention:
            for layer in (0, 2):
                keys[f"{theirs}.{gate}.sharedMLP.{layer}.weight"] = Stored(f"{ours}.{gate}.mlp.{layer}.weight", _as_linear)
    if "S" in attention:
        keys[f"{theirs}.sa.conv"] = f"{ours}.sa.conv"
    return keys


def _as_linear(weight: Tensor) -> Tensor:
    """``[out, in, 1, 1, 1]`` -> ``[out, in]``; sizes other than 1 stay, for the loader to refuse."""
    while weight.dim() > 2 and weight.shape[-1] == 1:
        weight = weight.squeeze(-1)
    return weight
