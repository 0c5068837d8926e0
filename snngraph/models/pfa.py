"""PFA-SNN: projected full attention (Deng et al. 2023, arXiv 2310.14576).

One map ``[T, N, C, H, W]`` weighs every neuron at every step. It is a sum of ``R`` rank-one tensors, whose factors are linear
projections of the layer's input ``x`` (LPST):

- spatial: the mean over C, ``[N, T, H, W]``, passes a convolution 3x3 from T to R maps and a sigmoid: ``S[n,r,h,w]``;
- temporal: the mean over H and W, ``[N, T, C]``, passes a linear layer from C to R and a sigmoid: ``F[n,r,t]``;
- channel: the same, transposed, passes a linear layer from T to R and a sigmoid: ``G[n,r,c]``.

They are contracted (AMC) with a connecting factor ``w``, ``map[t,n,c,h,w] = sum_r w[r] F[n,r,t] G[n,r,c] S[n,r,h,w]``, and the
output is ``relu(map * x)``. For static images the authors add instead, ``relu(map + x)``, without ``w``. The map looks at the
whole window of T, so a net with this attention can not be stepped frame by frame.

**The contraction.** :class:`PFA` computes one matrix product per sample, ``(w F (x) G) [T*C, R] @ S [R, H*W]``;
:class:`PFAByRank` computes the same numbers as the authors' code does: rank by rank, each an outer product of full size, added
up.

**The connecting factor.** The paper learns it (``connect="paper"``). The authors' code (``connect="code"``) overwrites it with
its own softmax in every forward pass, outside of the gradient, and uses the result; whatever it was, it soon is uniform, ``1/R``.
Here, too, it is updated so in training. In ``eval()`` nothing is stored: every call uses the softmax of what is stored, which is
what the authors' code uses in the *first* call after loading a checkpoint (its later calls take the softmax again and again, so
there the same input may give other scores in every call). Where training took more than a few steps both are ``1/R``.

**Their checkpoints.** The authors' nets are a sequence ``conv``, in which convolution with batch norm, neuron, pooling, attention
and the resizing to 48x48 are one entry each, and a sequence ``fc``. ``N`` is the place of an entry:

======================  ==============================  ==========================================================
theirs                  here
======================  ==============================  ==========================================================
``conv.N.{0,1}``        ``features.conv{k}.{conv,bn}``
``conv.N.TS_conv``      ``features.pfa{k}.spatial``     the convolution from T to R
``conv.N.TC_FC``        ``features.pfa{k}.temporal``    from C to R
``conv.N.SC_FC``        ``features.pfa{k}.channel``     from T to R
``conv.N.weight``       ``features.pfa{k}.weight``      the connecting factor
``fc.1.0``              ``classifier.fc``
======================  ==============================  ==========================================================

Of both linear layers the shapes in the checkpoint decide which is which; the table is for ``C == T``, and reads each name as a
pair of which the layer gives one letter: ``TS_conv`` gives S, so ``SC_FC`` gives C and ``TC_FC`` gives T. The net for
Fashion-MNIST keeps its first convolution in ``static_conv.{0,1}`` and its second behind the pooling in one entry,
``conv.1.{1,2}``, its attention in ``conv.2`` (the entry that follows from the order of its layers), its linear layers in
``fc.1.0`` and ``fc.4.0``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from snngraph.models.layers import EventClassifier, StepWise, pair, pooled_size, require_each, require_positive
from snngraph.models.reference import ReferenceKeys, ReferenceKeysOf
from snngraph.neurons import IF, LIF, Neuron

__all__ = ["PFA", "PFAByRank", "StaticClassifier", "pfa_fashion_mnist", "pfa_resnet", "pfa_vgg"]

Combine: TypeAlias = Literal["mul", "add"]
Connect: TypeAlias = Literal["code", "paper"]
Dataset: TypeAlias = Literal["cifar10dvs", "ncaltech101", "dvs128gesture"]


class PFA(nn.Module):
    """Projected full attention: ``[T, N, C, H, W]`` -> the same, weighed by a map of rank R.

    Args:
        T: number of time steps; the map works for no other.
        channels: number of channels.
        rank: number R of rank-one tensors that make the map.
        combine: ``"mul"``: ``relu(map * x)``; ``"add"``: ``relu(map + x)``, without a connecting factor.
        connect: the connecting factor: ``"code"`` as the authors' code treats it, ``"paper"`` a learnable parameter. It begins
            at ``1/R`` either way.

    Raises:
        ValueError: a size is not a positive integer, or an option has no such value.
    """

    weight: Tensor | None

    def __init__(self, T: int, channels: int, rank: int, *, combine: Combine = "mul", connect: Connect = "code") -> None:
        super().__init__()
        require_positive(T=T, channels=channels, rank=rank)
        if combine not in get_args(Combine):
            raise ValueError(f"combine={combine!r}: expected 'mul' or 'add'")
        if connect not in get_args(Connect):
            raise ValueError(f"connect={connect!r}: expected 'code' or 'paper'")
        self.T, self.channels, self.rank = T, channels, rank
        self.combine, self.connect = combine, connect
        self.spatial = nn.Conv2d(T, rank, 3, padding=1)
        self.temporal = nn.Linear(channels, rank)
        self.channel = nn.Linear(T, rank)
        if combine == "add":
            self.weight = None
        elif connect == "paper":
            self.weight = nn.Parameter(torch.full((rank,), 1.0 / rank))
        else:
            self.register_buffer("weight", torch.full((rank,), 1.0 / rank))

    def forward(self, x: Tensor) -> Tensor:
        """The weighed tensor, of the shape of ``x`` ``[T, N, C, H, W]``.

        Raises:
            ValueError: ``x`` has another rank, another T or other channels than the attention was built for.
        """
        if x.dim() != 5:
            raise ValueError(f"{type(self).__name__}: expected [T, N, C, H, W], got {list(x.shape)}")
        if x.shape[0] != self.T or x.shape[2] != self.channels:
            raise ValueError(
                f"{type(self).__name__} was built for T={self.T} and {self.channels} channels, but the input has "
                f"T={x.shape[0]} and {x.shape[2]} channels: {list(x.shape)}"
            )
        S, F, G = self.factors(x)
        weights = self.attention_map(S, F, G, self._connecting_factor())
        return torch.relu(x + weights if self.combine == "add" else x * weights)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The spatial ``[N, R, H, W]``, temporal ``[N, R, T]`` and channel ``[N, R, C]`` factors of ``x`` ``[T, N, C, H, W]``."""
        pooled = x.mean((3, 4))  # [T, N, C]
        S = torch.sigmoid(self.spatial(x.mean(2).transpose(0, 1)))
        F = torch.sigmoid(self.temporal(pooled)).permute(1, 2, 0)
        # contiguous: PyTorch exports a linear layer on a permuted tensor as another product than it computes itself
        G = torch.sigmoid(self.channel(pooled.permute(1, 2, 0).contiguous())).transpose(1, 2)
        return S, F, G

    def attention_map(self, S: Tensor, F: Tensor, G: Tensor, w: Tensor | None) -> Tensor:
        """The map ``[T, N, C, H, W]`` of the spatial, temporal and channel factors (:meth:`factors`) and of ``w`` ``[R]``."""
        if w is not None:
            F = F * w.unsqueeze(-1)
        outer = (F.unsqueeze(3) * G.unsqueeze(2)).flatten(2)  # [N, R, T*C]
        product = torch.bmm(outer.transpose(1, 2), S.flatten(2))  # [N, T*C, H*W]
        return _as_map(product, F, S)

    def _connecting_factor(self) -> Tensor | None:
        if self.weight is None or self.connect == "paper":
            return self.weight
        w = torch.softmax(self.weight, 0)  # of a buffer: no gradients to switch off, which an exporter would have to record
        if self.training:
            self.weight.copy_(w)
        return w

    def extra_repr(self) -> str:  # noqa: D102
        return f"T={self.T}, channels={self.channels}, rank={self.rank}, combine={self.combine!r}, connect={self.connect!r}"


class PFAByRank(PFA):
    """:class:`PFA`, its map summed rank by rank over tensors of full size, as the authors' code does. The same numbers."""

    def attention_map(self, S: Tensor, F: Tensor, G: Tensor, w: Tensor | None) -> Tensor:  # noqa: D102
        total: Tensor | None = None
        for r in range(self.rank):
            outer = torch.bmm(F[:, r].unsqueeze(2), G[:, r].unsqueeze(1))  # [N, T, C]
            full = torch.bmm(outer.flatten(1).unsqueeze(2), S[:, r].flatten(1).unsqueeze(1))  # [N, T*C, H*W]
            if w is not None:
                full = full * w[r]
            total = full if total is None else total + full
        assert total is not None
        return _as_map(total, F, S)


def _as_map(product: Tensor, F: Tensor, S: Tensor) -> Tensor:
    """``[N, T*C, H*W]`` -> ``[T, N, C, H, W]``."""
    rows: Tensor = product.unflatten(1, (F.shape[2], -1))
    full: Tensor = rows.unflatten(3, (S.shape[2], S.shape[3]))
    return full.transpose(0, 1)


# -- nets ----------------------------------------------------------------------------------------------------------------------


class StaticClassifier(nn.Module):
    """An image classifier: a stem that sees the image once, repeated T times, features, a classifier, the mean over time.

    Args:
        static_conv: ``[N, C, H, W]`` -> ``[N, c, h, w]``.
        features: ``[T, N, c, h, w]`` -> ``[T, N, c', h', w']``.
        classifier: ``[T, N, c'*h'*w']`` -> ``[T, N, classes]``.
        T: the number of time steps.
        in_channels: channels ``C`` of the image.
        size: its ``(H, W)``.
        reference_keys: as :class:`snngraph.models.layers.EventClassifier`.

    Raises:
        ValueError: an input of another shape (from ``forward``).
    """

    def __init__(
        self,
        static_conv: nn.Module,
        features: nn.Module,
        classifier: nn.Module,
        *,
        T: int,
        in_channels: int,
        size: tuple[int, int],
        reference_keys: ReferenceKeys | ReferenceKeysOf | None = None,
    ) -> None:
        super().__init__()
        require_positive(T=T, in_channels=in_channels)
        self.T, self.in_channels, self.size = T, in_channels, size
        self.static_conv = static_conv
        self.features = features
        self.classifier = classifier
        self.reference_keys = reference_keys

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of images ``[N, C, H, W]``."""
        if x.dim() != 4 or tuple(x.shape[1:]) != (self.in_channels, *self.size):
            expected = f"[N, {self.in_channels}, {self.size[0]}, {self.size[1]}]"
            raise ValueError(f"expected an input {expected}, got {list(x.shape)}")
        current: Tensor = self.static_conv(x)
        out: Tensor = self.classifier(self.features(current.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)).flatten(2))
        return out.mean(0)


@dataclass(frozen=True)
class _Keys:
    """Where the authors' tensors go; of an attention's two linear layers, the shapes in the checkpoint tell which is which.

    Args:
        fixed: what shapes need not tell.
        attention: of every attention its authors' path, ours, T and its channels.
    """

    fixed: Mapping[str, str]
    attention: Sequence[tuple[str, str, int, int]]

    def __call__(self, given: Mapping[str, Tensor]) -> ReferenceKeys:
        keys = dict(self.fixed)
        for theirs, ours, T, channels in self.attention:
            linear = given.get(f"{theirs}.TC_FC.weight")
            swapped = linear is not None and linear.shape[-1:] == (T,) and channels != T
            temporal, channel = ("SC_FC", "TC_FC") if swapped else ("TC_FC", "SC_FC")
            keys |= {
                f"{theirs}.TS_conv": f"{ours}.spatial",
                f"{theirs}.{temporal}": f"{ours}.temporal",
                f"{theirs}.{channel}": f"{ours}.channel",
                f"{theirs}.weight": f"{ours}.weight",
            }
        return keys


def _lif() -> Neuron:
    """SpikingJelly's LIF as the authors configure it."""
    return LIF(tau=2.0, detach_reset=True)


def _conv(before: int, after: int, stride: int = 1) -> OrderedDict[str, nn.Module]:
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return OrderedDict(conv=conv, bn=nn.BatchNorm2d(after))


def _attention(by_rank: bool, T: int, channels: int, rank: int, combine: Combine, connect: Connect) -> PFA:
    return (PFAByRank if by_rank else PFA)(T, channels, rank, combine=combine, connect=connect)


@dataclass(frozen=True)
class _Published:
    T: int
    rank: int
    outputs: int
    size: int
    resized: bool


_VGG = {
    "cifar10dvs": _Published(T=10, rank=8, outputs=10, size=48, resized=True),
    "ncaltech101": _Published(T=14, rank=8, outputs=101, size=48, resized=True),
    "dvs128gesture": _Published(T=20, rank=32, outputs=110, size=128, resized=False),
}


def pfa_vgg(
    dataset: Dataset = "cifar10dvs",
    *,
    T: int | None = None,
    rank: int | None = None,
    num_classes: int | None = None,
    size: int | tuple[int, int] | None = None,
    in_channels: int = 2,
    channels: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
    last_rank: int | None = None,
    voters: int = 1,
    combine: Combine = "mul",
    connect: Connect = "code",
    attention: bool = True,
    by_rank: bool = False,
) -> EventClassifier:
    """The paper's VGG for events: ``[T, N, 2, H, W]`` -> scores ``[N, classes]``, the output neurons' rates.

    Attention on the input, then eight times conv 3x3 - BN - LIF, average pooling and attention after every second one, FC - LIF
    and the mean over T.

    Args:
        dataset: whose sizes to take. ``"cifar10dvs"`` and ``"ncaltech101"``: any input is first averaged down to ``size`` (48).
            ``"dvs128gesture"``: the input has ``size`` (128) already.
        T: number of time steps; 10, 14 and 20 by default (the authors train CIFAR10-DVS with 10 or 12).
        rank: rank of every map; 8, 8 and 32 by default.
        num_classes: number of classes; 10, 101 and, as the authors' code has it, 110 by default: the labels of DVS128 Gesture
            are the first 11 of them. ``num_classes=11, voters=10`` has the same weights and votes.
        size: height and width that the convolutions work at.
        in_channels: polarities.
        channels: channels of the eight convolutions.
        last_rank: rank of the last map, if another; 64 in the authors' code for DVS128 Gesture.
        voters: output neurons per class, averaged.
        combine: see :class:`PFA`, also for ``connect``.
        attention: ``False`` leaves the attention out.
        by_rank: whether the maps are computed rank by rank (:class:`PFAByRank`).

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    if dataset not in _VGG:
        raise ValueError(f"dataset={dataset!r}: expected {', '.join(map(repr, _VGG))}")
    published = _VGG[dataset]
    T = published.T if T is None else T
    rank = published.rank if rank is None else rank
    last_rank = rank if last_rank is None else last_rank
    num_classes = published.outputs if num_classes is None else num_classes
    size = pair(published.size if size is None else size)
    require_positive(T=T, rank=rank, last_rank=last_rank, num_classes=num_classes, in_channels=in_channels, voters=voters)
    require_each(8, "convolution", channels=channels)
    height, width = pooled_size(size, 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if published.resized:
        layers["resize"] = StepWise(nn.AdaptiveAvgPool2d(size))
    if attention:
        layers["pfa0"] = _attention(by_rank, T, in_channels, rank, combine, connect)
    before = in_channels
    for k, after in enumerate(channels, start=1):
        layers[f"conv{k}"] = StepWise(_conv(before, after))
        layers[f"lif{k}"] = _lif()
        if k % 2 == 0:
            layers[f"pool{k}"] = StepWise(nn.AvgPool2d(2, 2))
            if attention:
                layers[f"pfa{k}"] = _attention(by_rank, T, after, last_rank if k == 8 else rank, combine, connect)
        before = after
    head = nn.Sequential(OrderedDict(fc=nn.Linear(before * height * width, num_classes * voters), lif=_lif()))
    return EventClassifier(
        nn.Sequential(layers),
        head,
        T=T,
        in_channels=in_channels,
        size=None if published.resized else size,
        voters=voters,
        reference_keys=_vgg_keys(layers) if attention else None,
    )


def _vgg_keys(layers: Mapping[str, nn.Module]) -> _Keys:
    fixed = {"fc.1.0": "classifier.fc"}
    attention = []
    for n, (name, layer) in enumerate(layers.items()):
        if name.startswith("conv"):
            fixed |= {f"conv.{n}.0": f"features.{name}.conv", f"conv.{n}.1": f"features.{name}.bn"}
        elif isinstance(layer, PFA):
            attention.append((f"conv.{n}", f"features.{name}", layer.T, layer.channels))
    return _Keys(fixed, attention)


def pfa_fashion_mnist(
    T: int = 4,
    rank: int = 4,
    *,
    num_classes: int = 10,
    size: int | tuple[int, int] = 28,
    in_channels: int = 1,
    channels: int = 128,
    hidden: int = 2048,
    combine: Combine = "add",
    connect: Connect = "code",
    attention: bool = True,
    by_rank: bool = False,
) -> StaticClassifier:
    """The authors' net for Fashion-MNIST: images ``[N, 1, 28, 28]`` -> scores ``[N, 10]``, the output neurons' rates.

    Conv 3x3 - BN on the image once, repeated T times; LIF - max-pool - conv 3x3 - BN - attention - LIF - max-pool, then two times
    FC (without bias) - LIF, and the mean over T.

    Args:
        T: number of time steps.
        rank: rank of the map.
        num_classes: number of classes.
        size: height and width of the image.
        in_channels: channels of the image.
        channels: channels of both convolutions.
        hidden: neurons of the first fully connected layer.
        combine: see :class:`PFA`, also for ``connect``; the authors' code for this data set adds.
        attention: ``False`` is the authors' baseline: no attention, and IF neurons instead of LIF.
        by_rank: whether the map is computed rank by rank (:class:`PFAByRank`).

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    size = pair(size)
    require_positive(T=T, rank=rank, num_classes=num_classes, in_channels=in_channels, channels=channels, hidden=hidden)
    height, width = pooled_size(size, 2)

    def neuron() -> Neuron:
        return _lif() if attention else IF(detach_reset=True)

    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["lif1"] = neuron()
    layers["pool1"] = StepWise(nn.MaxPool2d(2, 2))
    layers["conv2"] = StepWise(_conv(channels, channels))
    if attention:
        layers["pfa2"] = _attention(by_rank, T, channels, rank, combine, connect)
    layers["lif2"] = neuron()
    layers["pool2"] = StepWise(nn.MaxPool2d(2, 2))
    head = OrderedDict[str, nn.Module](
        fc1=nn.Linear(channels * height * width, hidden, bias=False),
        lif1=neuron(),
        fc2=nn.Linear(hidden, num_classes, bias=False),
        lif2=neuron(),
    )
    fixed = {
        "static_conv.0": "static_conv.conv",
        "static_conv.1": "static_conv.bn",
        "conv.1.1": "features.conv2.conv",
        "conv.1.2": "features.conv2.bn",
        "fc.1.0": "classifier.fc1",
        "fc.4.0": "classifier.fc2",
    }
    return StaticClassifier(
        nn.Sequential(_conv(in_channels, channels)),
        nn.Sequential(layers),
        nn.Sequential(head),
        T=T,
        in_channels=in_channels,
        size=size,
        reference_keys=_Keys(fixed, [("conv.2", "features.pfa2", T, channels)] if attention else []),
    )


class _Block(nn.Module):
    """Residual block ``[T, N, before, H, W]`` -> ``[T, N, after, H', W']``: conv - BN - LIF - conv - BN, plus shortcut, LIF."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = StepWise(_conv(before, after, stride))
        self.lif1 = _lif()
        self.conv2 = StepWise(_conv(after, after))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride=stride, bias=False)
            self.shortcut = StepWise(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after)))
        self.lif2 = _lif()

    def forward(self, x: Tensor) -> Tensor:
        shortcut: Tensor = self.shortcut(x)
        spikes: Tensor = self.lif2(self.conv2(self.lif1(self.conv1(x))) + shortcut)
        return spikes


def pfa_resnet(
    depth: Literal[18, 19] = 18,
    *,
    T: int = 4,
    rank: int = 4,
    num_classes: int = 10,
    size: int | tuple[int, int] = 32,
    in_channels: int = 3,
    channels: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    combine: Combine = "mul",
    connect: Connect = "paper",
    attention: bool = True,
    by_rank: bool = False,
) -> StaticClassifier:
    """A spiking ResNet for CIFAR with attention after every residual block: images ``[N, 3, 32, 32]`` -> scores ``[N, 10]``.

    The paper reports this net, but no code of it was published: what it does not say is chosen as is usual for spiking ResNets on
    CIFAR. Conv 3x3 - BN on the image once, repeated T times, LIF; stages of residual blocks (conv - BN - LIF - conv - BN, plus
    shortcut, LIF), each block followed by its attention, the first block of every stage but the first of stride 2; global
    average pooling, FC (18) or FC 256 - LIF - FC (19) and the mean over T. There are no published checkpoints to load.

    Args:
        depth: 18: stages of 64, 128, 256 and 512 channels, two blocks each. 19: 128, 256 and 512 channels with 3, 3 and 2 blocks.
        T: number of time steps.
        rank: rank of every map.
        num_classes: number of classes.
        size: height and width of the image.
        in_channels: channels of the image.
        channels: channels of every stage, instead of the depth's.
        blocks: residual blocks of every stage, instead of the depth's.
        combine: see :class:`PFA`, also for ``connect``, which is the paper's here.
        attention: ``False`` leaves the attention out.
        by_rank: whether the maps are computed rank by rank (:class:`PFAByRank`).

    Raises:
        ValueError: an argument is out of range.
    """
    if depth not in (18, 19):
        raise ValueError(f"depth={depth!r}: expected 18 or 19")
    channels = ((64, 128, 256, 512) if depth == 18 else (128, 256, 512)) if channels is None else channels
    blocks = ((2, 2, 2, 2) if depth == 18 else (3, 3, 2)) if blocks is None else blocks
    if not channels or len(blocks) != len(channels):
        raise ValueError(f"channels={tuple(channels)}, blocks={tuple(blocks)}: expected one number each for every stage")
    size = pair(size)
    require_positive(T=T, rank=rank, num_classes=num_classes, in_channels=in_channels)
    layers: OrderedDict[str, nn.Module] = OrderedDict(lif=_lif())
    before = channels[0]
    for stage, (after, count) in enumerate(zip(channels, blocks, strict=True), start=1):
        require_positive(channels=after, blocks=count)
        for k in range(1, count + 1):
            layers[f"block{stage}_{k}"] = _Block(before, after, 2 if k == 1 and stage > 1 else 1)
            if attention:
                layers[f"pfa{stage}_{k}"] = _attention(by_rank, T, after, rank, combine, connect)
            before = after
    layers["pool"] = StepWise(nn.AdaptiveAvgPool2d(1))
    head: OrderedDict[str, nn.Module] = OrderedDict()
    if depth == 19:
        head["fc1"], head["lif1"] = nn.Linear(before, 256), _lif()
        before = 256
    head["fc"] = nn.Linear(before, num_classes)
    return StaticClassifier(
        nn.Sequential(_conv(in_channels, channels[0])),
        nn.Sequential(layers),
        nn.Sequential(head),
        T=T,
        in_channels=in_channels,
        size=size,
    )
