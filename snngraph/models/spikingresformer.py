"""SpikingResformer: a spiking transformer of convolutional stages (Shi, Hao, Yu 2024, arXiv 2403.14302).

Everything is time-first, ``x [T, N, C, H, W]``; no convolution has a bias, each is followed by a batch norm, and a LIF (tau 2,
threshold 1, hard reset to 0) stands before it.

DSSA (dual spike self-attention) with ``h`` heads of ``d = C/h`` channels, patch size ``p``, ``L = (H/p)(W/p)`` tokens:

- ``s = LIF(x)``, per head ``[d, HW]``;
- ``y = BN(conv pxp of stride p, C -> 2C)(s)``, per head ``[2d, L]``; its first ``d`` channels are ``y1``, the others ``y2``;
- ``attn = LIF(y1^T s / sqrt(f_x d))``, ``[L, HW]``, and ``out = LIF(y2 attn / sqrt(f_a L))``, ``[d, HW]``;
- the result is ``x + BN(conv 1x1)(out)``.

``f_x`` and ``f_a``, the buffers ``firing_rate_x`` and ``firing_rate_attn`` ``[1, 1, h, 1, 1]``, are the rates of ``s`` and
``attn`` per head. In training they are moving averages with momentum 0.999 (a head that never fired yet takes the batch's rate as
it is), in ``eval()`` constants: both scales then fold into what surrounds them. A new net has zeros there and can not run in
``eval()`` before it is trained, loaded or calibrated. The attention has a LIF between its two products, so they can not be
re-associated; no step depends on a later one, so the net can be stepped.

GWFFN: ``u = BN(conv 1x1, C -> 4C)(LIF(x))``; ``u' = u + BN(grouped conv 3x3)(LIF(u))``; the result is
``x + BN(conv 1x1, 4C -> C)(LIF(u'))``.

A net is a stem (conv 7x7 of stride 2 - BN - max-pool for images of 224 pixels, conv 3x3 - BN otherwise), three stages of 1, 2 and
3 times [DSSA, GWFFN] with patch sizes 4, 2, 1, between stages LIF - conv 3x3 of stride 2 - BN, then the average over H and W, a
linear layer without bias and the mean over T. Image models run the stem once on the static image and repeat its result. (The
authors repeat the image; mean and variance are the same, but in training their ``running_var`` has the factor
``TNHW/(TNHW - 1)`` where ours has ``NHW/(NHW - 1)``.)

The authors' checkpoints (:func:`snngraph.models.load_reference_state_dict`; ``S`` counts stages, ``B`` a stage's modules from 0,
its downsampling, where it has one, first):

===================================================  ==================================================================
theirs                                               ours
===================================================  ==================================================================
``prologue.0``, ``prologue.1.bn``                    ``stem.conv``, ``stem.bn``
``layers.S.0.{conv,norm.bn}`` (S > 0)                ``stages.S.down.project.{conv,bn}``
``layers.S.B.{W,norm.bn}``                           ``stages.S.dssaK.project_in.{conv,bn}``
``layers.S.B.{Wproj,norm_proj.bn}``                  ``stages.S.dssaK.project_out.{conv,bn}``
``layers.S.B.firing_rate_{x,attn}``                  ``stages.S.dssaK.firing_rate_{x,attn}``
``layers.S.B.{up,conv.0,down}.{1,2.bn}``             ``stages.S.gwffnK.{up,grouped,down}.{conv,bn}``
``classifier``                                       ``classifier``
PLIF only: ``layers.S.0.activation.w``               ``stages.S.down.lif.w``
PLIF only: ``layers.S.B.activation_{in,attn,out}.w`` ``stages.S.dssaK.lif_{in,attn,out}.w``
PLIF only: ``layers.S.B.{up,conv.0,down}.0.w``       ``stages.S.gwffnK.lif_{up,grouped,down}.w``
===================================================  ==================================================================
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from snngraph.models.layers import StepWise, pair, require_positive
from snngraph.models.reference import ReferenceKeys, Stored
from snngraph.neurons import LIF, PLIF, Neuron

__all__ = [
    "DSSA",
    "GWFFN",
    "SpikingResformer",
    "spikingresformer_cifar",
    "spikingresformer_dvs",
    "spikingresformer_l",
    "spikingresformer_m",
    "spikingresformer_s",
    "spikingresformer_ti",
]

NeuronKind: TypeAlias = Literal["lif", "plif"]
Size: TypeAlias = tuple[int, int]

_MOMENTUM = 0.999


def _neuron(kind: NeuronKind) -> Neuron:
    if kind == "lif":
        return LIF(tau=2.0, detach_reset=True)
    if kind == "plif":
        return PLIF(init_tau=2.0, detach_reset=True)
    raise ValueError(f"neuron={kind!r}: expected 'lif' or 'plif'")


def _conv_bn(before: int, after: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1) -> StepWise:
    conv = nn.Conv2d(before, after, kernel, stride=stride, padding=padding, groups=groups, bias=False)
    return StepWise(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after)))


def _check_sequence(module: nn.Module, x: Tensor, channels: int, size: Size | None = None) -> None:
    fits = x.dim() == 5 and x.shape[2] == channels and (size is None or tuple(x.shape[3:]) == size)
    if not fits:
        where = "H, W" if size is None else f"{size[0]}, {size[1]}"
        raise ValueError(f"{type(module).__name__}: expected [T, N, {channels}, {where}], got {list(x.shape)}")


class DSSA(nn.Module):
    """Dual spike self-attention, ``[T, N, C, H, W]`` -> the same; the formulas stand above.

    Args:
        channels: ``C``.
        heads: number of heads.
        size: ``(H, W)`` of its input, or one number for both.
        patch: the patch size ``p``.
        neuron: ``"lif"``, or ``"plif"`` with a learnable time constant.

    Raises:
        ValueError: the heads do not divide the channels, or the patches the feature map; or, from ``forward``, an input of
            another shape, or in ``eval()`` a firing rate that is not a positive number.
    """

    firing_rate_x: Tensor
    firing_rate_attn: Tensor

    def __init__(
        self, channels: int, heads: int, size: int | tuple[int, int], *, patch: int = 1, neuron: NeuronKind = "lif"
    ) -> None:
        super().__init__()
        require_positive(channels=channels, heads=heads, patch=patch)
        size = pair(size)
        if channels % heads:
            raise ValueError(f"channels={channels} do not divide into heads={heads}")
        if size[0] % patch or size[1] % patch:
            raise ValueError(f"size={size}: patches of {patch}x{patch} do not cover this feature map without a rest")
        self.channels, self.heads, self.size, self.patch = channels, heads, size, patch
        self.tokens = (size[0] // patch) * (size[1] // patch)
        self.lif_in = _neuron(neuron)
        self.project_in = _conv_bn(channels, 2 * channels, patch, stride=patch)
        self.lif_attn = _neuron(neuron)
        self.lif_out = _neuron(neuron)
        self.project_out = _conv_bn(channels, channels, 1)
        self.register_buffer("firing_rate_x", torch.zeros(1, 1, heads, 1, 1))
        self.register_buffer("firing_rate_attn", torch.zeros(1, 1, heads, 1, 1))
        self.path = ""  # where it stands in its net, for error messages

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        _check_sequence(self, x, self.channels, self.size)
        width = self.channels // self.heads
        spikes = self.lif_in(x)
        s = self._per_head(spikes)
        y1, y2 = self._per_head(self.project_in(spikes)).split(width, 3)
        attn = self.lif_attn(y1.transpose(3, 4) @ s * self._scale("firing_rate_x", s, width))
        mixed = y2 @ attn * self._scale("firing_rate_attn", attn, self.tokens)
        out = self.lif_out(mixed.flatten(2, 3).unflatten(3, self.size))
        y: Tensor = x + self.project_out(out)
        return y

    def firing_statistics(self) -> Mapping[Neuron, Callable[[Tensor], None]]:
        """For each of its neurons with a firing-rate buffer, what sets the buffer to the rates of the neuron's spikes.

        A head that is silent counts as having fired once, so that the rates can be used.
        """

        def set_x(spikes: Tensor) -> None:
            self._set("firing_rate_x", self._per_head(spikes))

        return {self.lif_in: set_x, self.lif_attn: partial(self._set, "firing_rate_attn")}

    def extra_repr(self) -> str:  # noqa: D102
        return f"channels={self.channels}, heads={self.heads}, size={self.size}, patch={self.patch}"

    def _per_head(self, x: Tensor) -> Tensor:
        """``[T, N, c, h, w]`` -> ``[T, N, heads, c/heads, h*w]``."""
        y: Tensor = x.flatten(3).unflatten(2, (self.heads, -1))
        return y

    def _scale(self, name: str, spikes: Tensor, terms: int) -> Tensor:
        """``1/sqrt(rate * terms)``, after following the rates of ``spikes`` ``[T, N, heads, ...]`` in training."""
        rate: Tensor = getattr(self, name)
        if self.training:
            found = _rates(spikes).to(rate.dtype)
            rate.copy_(torch.where(rate > 0, _MOMENTUM * rate + (1 - _MOMENTUM) * found, found))
            rate = torch.where(rate > 0, rate, 1.0)  # a head that has never fired: what is scaled is zero
        else:
            self._check(name, rate)
        return 1.0 / (rate * terms).sqrt()

    def _set(self, name: str, spikes: Tensor) -> None:
        getattr(self, name).copy_(_rates(spikes).clamp(min=self.heads / spikes.numel()))

    def _check(self, name: str, rate: Tensor) -> None:
        # a tracer has no numbers to look at, and a stream that is captured must not be waited for
        if torch.compiler.is_compiling() or rate.is_meta or (rate.is_cuda and torch.cuda.is_current_stream_capturing()):
            return
        if bool((rate.isfinite() & (rate > 0)).all()):
            return
        numbers = ", ".join(f"{r:.6g}" for r in rate.flatten().tolist())
        raise ValueError(
            f"{self.path or type(self).__name__}: {name} = [{numbers}], but the attention divides by the square root of every "
            "head's firing rate, which must be a positive number: load a trained checkpoint, train the model (it follows the "
            "rates in train()), or call snngraph.models.calibrate(model, x)"
        )


def _rates(spikes: Tensor) -> Tensor:
    """Spikes per neuron and step of every head: ``[T, N, heads, ...]`` -> ``[1, 1, heads, 1, 1]``."""
    return spikes.detach().mean((0, 1, 3, 4), keepdim=True)


class GWFFN(nn.Module):
    """Group-wise feed-forward network, ``[T, N, C, H, W]`` -> the same; the formulas stand above.

    Args:
        channels: ``C``.
        ratio: how many times more channels it has inside.
        group_width: channels of one group of its convolution 3x3.
        neuron: ``"lif"``, or ``"plif"`` with a learnable time constant.

    Raises:
        ValueError: the groups do not divide the channels inside; or, from ``forward``, an input of another shape.
    """

    def __init__(self, channels: int, *, ratio: int = 4, group_width: int = 64, neuron: NeuronKind = "lif") -> None:
        super().__init__()
        require_positive(channels=channels, ratio=ratio, group_width=group_width)
        inner = channels * ratio
        if inner % group_width:
            raise ValueError(f"{channels} channels times ratio={ratio} do not divide into groups of group_width={group_width}")
        self.channels = channels
        self.lif_up = _neuron(neuron)
        self.up = _conv_bn(channels, inner, 1)
        self.lif_grouped = _neuron(neuron)
        self.grouped = _conv_bn(inner, inner, 3, padding=1, groups=inner // group_width)
        self.lif_down = _neuron(neuron)
        self.down = _conv_bn(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        _check_sequence(self, x, self.channels)
        u = self.up(self.lif_up(x))
        u = u + self.grouped(self.lif_grouped(u))
        y: Tensor = x + self.down(self.lif_down(u))
        return y


class _Downsample(nn.Module):
    """LIF - conv 3x3 of stride 2 - BN."""

    def __init__(self, before: int, after: int, neuron: NeuronKind) -> None:
        super().__init__()
        self.lif = _neuron(neuron)
        self.project = _conv_bn(before, after, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.lif(x))
        return y


class SpikingResformer(nn.Module):
    """The net. The functions below build the published ones.

    Args:
        T: number of time steps.
        size: ``(H, W)`` of the input, or one number for both.
        num_classes: number of classes.
        in_channels: channels of the input.
        planes: channels of each stage.
        heads: heads of each stage's attention.
        patches: patch size of each stage's attention.
        depths: how often [DSSA, GWFFN] stands in each stage.
        stem: ``"imagenet"``, conv 7x7 of stride 2 - BN - max-pool 3x3 of stride 2, or ``"small"``, conv 3x3 - BN.
        events: whether the input is a sequence ``[T, N, C, H, W]`` instead of a static image ``[N, C, H, W]``.
        ratio: GWFFN's channels inside, per channel of its stage.
        group_width: channels of one group of GWFFN's convolution.
        neuron: ``"lif"``, or ``"plif"`` with a learnable time constant.

    Raises:
        ValueError: an argument is out of range, heads, patches or groups do not divide, or ``forward`` gets another shape.
    """

    def __init__(
        self,
        T: int,
        size: int | tuple[int, int],
        num_classes: int,
        *,
        in_channels: int = 3,
        planes: Sequence[int] = (64, 192, 384),
        heads: Sequence[int] = (1, 3, 6),
        patches: Sequence[int] = (4, 2, 1),
        depths: Sequence[int] = (1, 2, 3),
        stem: Literal["imagenet", "small"] = "imagenet",
        events: bool = False,
        ratio: int = 4,
        group_width: int = 64,
        neuron: NeuronKind = "lif",
    ) -> None:
        super().__init__()
        size = pair(size)
        require_positive(T=T, num_classes=num_classes, in_channels=in_channels)
        if stem not in ("imagenet", "small"):
            raise ValueError(f"stem={stem!r}: expected 'imagenet' or 'small'")
        if not planes or not len(planes) == len(heads) == len(patches) == len(depths):
            raise ValueError(
                f"planes={tuple(planes)}, heads={tuple(heads)}, patches={tuple(patches)}, depths={tuple(depths)}: expected one "
                "number of each for every stage"
            )
        for count in (*planes, *depths):
            require_positive(planes_and_depths=count)
        self.T, self.in_channels, self.size, self.events = T, in_channels, size, events
        if stem == "imagenet":
            layers = OrderedDict[str, nn.Module](
                conv=nn.Conv2d(in_channels, planes[0], 7, stride=2, padding=3, bias=False),
                bn=nn.BatchNorm2d(planes[0]),
                pool=nn.MaxPool2d(3, stride=2, padding=1),
            )
            size = _halved(_halved(size))
        else:
            layers = OrderedDict(conv=nn.Conv2d(in_channels, planes[0], 3, padding=1, bias=False), bn=nn.BatchNorm2d(planes[0]))
        self.stem = StepWise(layers) if events else nn.Sequential(layers)
        stages: list[nn.Module] = []
        keys: dict[str, str | Stored] = {"prologue.0": "stem.conv", "prologue.1.bn": "stem.bn", "classifier": "classifier"}
        for k, (width, depth) in enumerate(zip(planes, depths, strict=True)):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            if k:
                size = _halved(size)
                stage["down"] = _Downsample(planes[k - 1], width, neuron)
            for j in range(1, depth + 1):
                stage[f"dssa{j}"] = DSSA(width, heads[k], size, patch=patches[k], neuron=neuron)
                stage[f"gwffn{j}"] = GWFFN(width, ratio=ratio, group_width=group_width, neuron=neuron)
            for index, (name, module) in enumerate(stage.items()):
                path = f"stages.{k}.{name}"
                keys |= _reference_keys(module, f"layers.{k}.{index}", path)
                if isinstance(module, DSSA):
                    module.path = path
            stages.append(nn.Sequential(stage))
        self.stages = nn.Sequential(*stages)
        self.classifier = nn.Linear(planes[-1], num_classes, bias=False)
        self.reference_keys: ReferenceKeys = keys

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of images ``[N, C, H, W]``, or of sequences ``[T, N, C, H, W]`` with ``events``."""
        self._check(x)
        y = self.stem(x)
        if not self.events:
            y = y.unsqueeze(0).expand(self.T, -1, -1, -1, -1)
        scores: Tensor = self.classifier(self.stages(y).mean((3, 4))).mean(0)
        return scores

    def _check(self, x: Tensor) -> None:
        frame = f"{self.in_channels}, {self.size[0]}, {self.size[1]}"
        expected = f"[T={self.T}, N, {frame}]" if self.events else f"[N, {frame}]"
        if x.dim() != (5 if self.events else 4):
            hint = "" if self.events else "; an image model repeats its image itself"
            raise ValueError(f"expected an input {expected}, got {x.dim()} dimensions: {list(x.shape)}{hint}")
        if self.events and x.shape[0] != self.T:
            raise ValueError(f"expected an input {expected}, got T={x.shape[0]}: {list(x.shape)}")
        if tuple(x.shape[-3:]) != (self.in_channels, *self.size):
            raise ValueError(f"expected an input {expected}, got {list(x.shape)}")


def _halved(size: Size) -> Size:
    """``(H, W)`` after a convolution or pooling 3x3 of stride 2, padding 1 (or 7x7, padding 3)."""
    return (size[0] + 1) // 2, (size[1] + 1) // 2


def _reference_keys(module: nn.Module, theirs: str, ours: str) -> dict[str, str | Stored]:
    if isinstance(module, DSSA):
        names: dict[str, str] = {
            "activation_in": "lif_in",
            "activation_attn": "lif_attn",
            "activation_out": "lif_out",
            "W": "project_in.conv",
            "norm.bn": "project_in.bn",
            "Wproj": "project_out.conv",
            "norm_proj.bn": "project_out.bn",
        }
    elif isinstance(module, GWFFN):
        parts = {"up": "up", "conv.0": "grouped", "down": "down"}
        places = {"0": "lif_{}", "1": "{}.conv", "2.bn": "{}.bn"}
        names = {f"{a}.{i}": place.format(b) for a, b in parts.items() for i, place in places.items()}
    else:
        names = {"activation": "lif", "conv": "project.conv", "norm.bn": "project.bn"}
    keys: dict[str, str | Stored] = {f"{theirs}.{a}": f"{ours}.{b}" for a, b in names.items()}
    if isinstance(module, DSSA):
        convert = partial(_per_head_buffer, heads=module.heads)
        keys |= {f"{theirs}.{name}": Stored(f"{ours}.{name}", convert) for name in ("firing_rate_x", "firing_rate_attn")}
    return keys


def _per_head_buffer(rate: Tensor, heads: int) -> Tensor:
    """One number per head, along whichever dimension, as ``[1, 1, heads, 1, 1]``; any other tensor as it is, to be refused."""
    fits = [n for n in rate.shape if n != 1] == ([heads] if heads > 1 else [])
    return rate.reshape(1, 1, heads, 1, 1) if fits else rate


# -- nets ----------------------------------------------------------------------------------------------------------------------


def spikingresformer_ti(
    T: int = 4,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    neuron: NeuronKind = "lif",
) -> SpikingResformer:
    """SpikingResformer-Ti (11.18 M parameters): images ``[N, 3, 224, 224]`` -> scores ``[N, 1000]``.

    Args:
        T: number of time steps.
        img_size: height and width of the image.
        num_classes: number of classes.
        in_channels: channels of the image.
        neuron: ``"lif"``, or ``"plif"`` with a learnable time constant.

    Raises:
        ValueError: an argument is out of range, or the patches do not cover a feature map.
    """
    return SpikingResformer(T, img_size, num_classes, in_channels=in_channels, neuron=neuron)


def spikingresformer_s(
    T: int = 4,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    neuron: NeuronKind = "lif",
) -> SpikingResformer:
    """SpikingResformer-S (17.81 M parameters). Arguments as :func:`spikingresformer_ti`."""
    planes, heads = (64, 256, 512), (1, 4, 8)
    return SpikingResformer(T, img_size, num_classes, in_channels=in_channels, planes=planes, heads=heads, neuron=neuron)


def spikingresformer_m(
    T: int = 4,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    neuron: NeuronKind = "lif",
) -> SpikingResformer:
    """SpikingResformer-M (35.60 M parameters). Arguments as :func:`spikingresformer_ti`."""
    planes, heads = (64, 384, 768), (1, 6, 12)
    return SpikingResformer(T, img_size, num_classes, in_channels=in_channels, planes=planes, heads=heads, neuron=neuron)


def spikingresformer_l(
    T: int = 4,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    *,
    in_channels: int = 3,
    neuron: NeuronKind = "lif",
) -> SpikingResformer:
    """SpikingResformer-L (60.38 M parameters). Arguments as :func:`spikingresformer_ti`."""
    planes, heads = (128, 512, 1024), (2, 8, 16)
    return SpikingResformer(T, img_size, num_classes, in_channels=in_channels, planes=planes, heads=heads, neuron=neuron)


def spikingresformer_cifar(
    T: int = 4,
    img_size: int | tuple[int, int] = 32,
    num_classes: int = 10,
    *,
    in_channels: int = 3,
    neuron: NeuronKind = "lif",
) -> SpikingResformer:
    """Ti's stages behind a stem conv 3x3 - BN: images ``[N, 3, 32, 32]`` -> scores. Arguments as :func:`spikingresformer_ti`."""
    return SpikingResformer(T, img_size, num_classes, in_channels=in_channels, stem="small", neuron=neuron)


def spikingresformer_dvs(
    T: int = 16,
    img_size: int | tuple[int, int] = 64,
    num_classes: int = 11,
    *,
    in_channels: int = 3,
    neuron: NeuronKind = "plif",
) -> SpikingResformer:
    """The net for event data, with PLIF: sequences ``[T, N, 3, 64, 64]`` -> scores ``[N, 11]``.

    The authors' first convolution takes three channels, although events have two polarities: pass ``in_channels=2`` for those.
    Other arguments as :func:`spikingresformer_ti`.
    """
    return SpikingResformer(
        T,
        img_size,
        num_classes,
        in_channels=in_channels,
        planes=(32, 96, 192),
        stem="small",
        events=True,
        group_width=32,
        neuron=neuron,
    )
