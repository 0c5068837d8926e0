"""TCJA-SNN: temporal-channel joint attention (Zhu et al. 2022, arXiv 2206.10177).

The squeezed spikes ``m[t, n, c]``, the mean over H and W of ``x [T, N, C, H, W]``, pass two small convolutions:

- TLA (temporal-wise local attention) slides along time; channels are its feature maps: ``a[t,n,c] = sum_{c',k} A[c,c',k]
  m[t+k-p,n,c']``;
- CLA (channel-wise local attention) slides along the channels; time steps are its feature maps:
  ``b[t,n,c] = sum_{t',k} B[t,t',k] m[t',n,c+k-p]``.

Cross-convolutional fusion multiplies them: ``y = x * sigmoid(a * b)``. Zero padding keeps the lengths: ``p = (K-1)//2`` on the
left and the rest on the right (1 and 2 for K = 4). Neither convolution has a bias. Both look at the whole window of T, so a net
with this attention can not be stepped frame by frame.

The authors' code writes ``TCJA(kernel_size_t, kernel_size_c)``, but gives ``kernel_size_t`` to the convolution that slides
along the channels (CLA) and ``kernel_size_c`` to the one that slides along time (TLA). Here the names say along what the kernel
slides: the authors' ``TCJA(2, 4)`` is ``kernel_channels=2, kernel_time=4``.

**Their checkpoints.** The authors' nets are one sequence ``conv`` of convolution with batch norm, neuron, attention and pooling,
each an entry (the resizing of CIFAR10-DVS is entry 0), and a sequence ``fc``; the TET path has one entry of ``features`` for
convolution, batch norm and neuron together. ``N`` is the place of an entry, ``k`` the number of the layer:

========================  ===================================  ============================================================
theirs                    theirs, TET path                     here
========================  ===================================  ============================================================
``conv.N.0``              ``features.N.fwd.module.0``          ``features.conv{k}.conv``
``conv.N.1``              ``features.N.fwd.module.1``          ``features.conv{k}.bn``
``conv.N.conv``           ``features.N.conv``                  ``features.tcja{k}.cla.along_channels.conv`` (along channels)
``conv.N.conv_c``         ``features.N.conv_c``                ``features.tcja{k}.tla.along_time.conv`` (along time)
``fc.2.0``, ``fc.5.0``                                         ``classifier.fc1``, ``classifier.fc2`` (spiking head)
``fc.1.0``                ``classifier.module``                ``classifier.fc`` (CIFAR10-DVS)
========================  ===================================  ============================================================

The ablations (``attention`` other than ``"tcja"``) and :func:`tcja_small` have no published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from snngraph.models.layers import EventClassifier, SequenceDropout, StepWise, pair, pooled_size, require_each, require_positive
from snngraph.neurons import LIF, Neuron, Piecewise

__all__ = ["CLA", "TCJA", "TLA", "tcja_cifar10dvs", "tcja_dvs128gesture", "tcja_ncaltech101", "tcja_small"]

Attention: TypeAlias = Literal["tcja", "tla", "cla", "none"]
Kernels: TypeAlias = tuple[int, int]
"""``(kernel_time, kernel_channels)`` of one attention layer: along time (TLA), along the channels (CLA)."""


class _SameConv1d(nn.Module):
    """Conv1d without bias that keeps the length: ``[N, features, L]`` -> the same, zeros ``(K-1)//2`` left and ``K//2`` right."""

    def __init__(self, features: int, kernel_size: int) -> None:
        super().__init__()
        self.padding = ((kernel_size - 1) // 2, kernel_size // 2)
        symmetric = self.padding[0] == self.padding[1]
        self.conv = nn.Conv1d(features, features, kernel_size, padding=self.padding[0] if symmetric else 0, bias=False)
        self.pad = nn.Identity() if symmetric else nn.ConstantPad1d(self.padding, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.pad(x))
        return y


class _Gate(nn.Module):
    """``x * sigmoid(scores(mean of x over H and W))`` for ``x [T, N, C, H, W]``."""

    def __init__(self, T: int, channels: int) -> None:
        super().__init__()
        require_positive(T=T, channels=channels)
        self.T, self.channels = T, channels

    def scores(self, m: Tensor) -> Tensor:
        """The gate before its sigmoid: ``[T, N, C]`` -> ``[T, N, C]``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The gated tensor, of the shape of ``x`` ``[T, N, C, H, W]``.

        Raises:
            ValueError: ``x`` has another rank, another T or other channels than the gate was built for.
        """
        if x.dim() != 5:
            raise ValueError(f"{type(self).__name__}: expected [T, N, C, H, W], got {list(x.shape)}")
        if x.shape[0] != self.T or x.shape[2] != self.channels:
            raise ValueError(
                f"{type(self).__name__} was built for T={self.T} and {self.channels} channels, but the input has "
                f"T={x.shape[0]} and {x.shape[2]} channels: {list(x.shape)}"
            )
        gate = torch.sigmoid(self.scores(x.mean((3, 4))))
        return x * gate.unsqueeze(-1).unsqueeze(-1)


class TLA(_Gate):
    """Temporal-wise local attention alone: the gate is the convolution along time. Shapes as :class:`TCJA`.

    Args:
        T: number of time steps.
        channels: number of channels.
        kernel_time: its kernel, along time.

    Raises:
        ValueError: a size is not a positive integer.
    """

    def __init__(self, T: int, channels: int, *, kernel_time: int = 4) -> None:
        super().__init__(T, channels)
        require_positive(kernel_time=kernel_time)
        self.along_time = _SameConv1d(channels, kernel_time)

    def scores(self, m: Tensor) -> Tensor:  # noqa: D102
        a: Tensor = self.along_time(m.permute(1, 2, 0))  # [N, C, T]
        return a.permute(2, 0, 1)


class CLA(_Gate):
    """Channel-wise local attention alone: the gate is the convolution along the channels. Shapes as :class:`TCJA`.

    Args:
        T: number of time steps.
        channels: number of channels.
        kernel_channels: its kernel, along the channels.

    Raises:
        ValueError: a size is not a positive integer.
    """

    def __init__(self, T: int, channels: int, *, kernel_channels: int = 4) -> None:
        super().__init__(T, channels)
        require_positive(kernel_channels=kernel_channels)
        self.along_channels = _SameConv1d(T, kernel_channels)

    def scores(self, m: Tensor) -> Tensor:  # noqa: D102
        b: Tensor = self.along_channels(m.permute(1, 0, 2))  # [N, T, C]
        return b.permute(1, 0, 2)


class TCJA(_Gate):
    """Temporal-channel joint attention: ``[T, N, C, H, W]`` -> the same, gated by ``[T, N, C]``.

    Args:
        T: number of time steps; the gate works for no other.
        channels: number of channels.
        kernel_time: kernel of TLA, along time: the authors' *second* argument.
        kernel_channels: kernel of CLA, along the channels: the authors' *first* argument.

    Raises:
        ValueError: a size is not a positive integer.
    """

    def __init__(self, T: int, channels: int, *, kernel_time: int = 4, kernel_channels: int = 4) -> None:
        super().__init__(T, channels)
        self.tla = TLA(T, channels, kernel_time=kernel_time)
        self.cla = CLA(T, channels, kernel_channels=kernel_channels)

    def scores(self, m: Tensor) -> Tensor:  # noqa: D102
        return self.tla.scores(m) * self.cla.scores(m)


# -- nets ----------------------------------------------------------------------------------------------------------------------


def _lif() -> Neuron:
    """SpikingJelly's LIF as the authors configure it."""
    return LIF(tau=2.0, detach_reset=True)


def _lif_piecewise() -> Neuron:
    return LIF(tau=2.0, detach_reset=True, surrogate=Piecewise(1.0))


def _lif_tet() -> Neuron:
    """The LIF of the authors' TET path: ``h = v/2 + x``, fires strictly above 1."""
    return LIF(tau=2.0, decay_input=False, fire=">", surrogate=Piecewise(1.0))


def _gate(attention: Attention, T: int, channels: int, kernels: Kernels) -> nn.Module:
    kernel_time, kernel_channels = kernels
    if attention == "tcja":
        return TCJA(T, channels, kernel_time=kernel_time, kernel_channels=kernel_channels)
    if attention == "tla":
        return TLA(T, channels, kernel_time=kernel_time)
    if attention == "cla":
        return CLA(T, channels, kernel_channels=kernel_channels)
    raise ValueError(f"attention={attention!r}: expected 'tcja', 'tla', 'cla' or 'none'")


def _features(
    T: int,
    in_channels: int,
    channels: Sequence[int],
    *,
    pool: Callable[[], nn.Module],
    pool_after: Sequence[int],
    gates: Mapping[int, Kernels],
    attention: Attention,
    neuron: Callable[[], Neuron] = _lif,
    bias: bool = False,
) -> nn.Sequential:
    """Conv 3x3 - BN - neuron [- attention] [- pool], one for each of ``channels``; layers are counted from 1."""
    if attention not in ("tcja", "tla", "cla", "none"):
        raise ValueError(f"attention={attention!r}: expected 'tcja', 'tla', 'cla' or 'none'")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = in_channels
    for k, after in enumerate(channels, start=1):
        conv = nn.Conv2d(before, after, 3, padding=1, bias=bias)
        layers[f"conv{k}"] = StepWise(OrderedDict(conv=conv, bn=nn.BatchNorm2d(after)))
        layers[f"lif{k}"] = neuron()
        if k in gates and attention != "none":
            layers[f"{attention}{k}"] = _gate(attention, T, after, gates[k])
        if k in pool_after:
            layers[f"pool{k}"] = StepWise(pool())
        before = after
    return nn.Sequential(layers)


def _reference_keys(features: nn.Sequential, attention: Attention, head: Mapping[str, str]) -> dict[str, str] | None:
    """Where the authors' tensors go; ``head`` for those of the classifier. The module's text has the table."""
    if attention != "tcja":
        return None
    keys = dict(head)
    for n, (name, _) in enumerate(features.named_children()):
        if name.startswith("conv"):
            keys |= {f"conv.{n}.0": f"features.{name}.conv", f"conv.{n}.1": f"features.{name}.bn"}
        elif name.startswith("tcja"):
            keys |= _attention_keys(f"conv.{n}", f"features.{name}")
    return keys


def _reference_keys_tet(features: nn.Sequential, attention: Attention) -> dict[str, str] | None:
    """As :func:`_reference_keys`, for the TET path, where a neuron is no entry of its own."""
    if attention != "tcja":
        return None
    keys = {"classifier.module": "classifier.fc"}
    for n, name in enumerate(name for name, _ in features.named_children() if not name.startswith("lif")):
        if name.startswith("conv"):
            theirs = f"features.{n}.fwd.module"
            keys |= {f"{theirs}.0": f"features.{name}.conv", f"{theirs}.1": f"features.{name}.bn"}
        elif name.startswith("tcja"):
            keys |= _attention_keys(f"features.{n}", f"features.{name}")
    return keys


def _attention_keys(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.conv": f"{ours}.cla.along_channels.conv", f"{theirs}.conv_c": f"{ours}.tla.along_time.conv"}


def _spiking_head(inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    """Dropout - FC - LIF - dropout - FC - LIF, without biases: ``[T, N, inputs]`` -> spikes ``[T, N, outputs]``."""
    return nn.Sequential(
        OrderedDict(
            drop1=SequenceDropout(dropout),
            fc1=nn.Linear(inputs, hidden, bias=False),
            lif1=_lif(),
            drop2=SequenceDropout(dropout),
            fc2=nn.Linear(hidden, outputs, bias=False),
            lif2=_lif(),
        )
    )


_SPIKING_HEAD_KEYS = {"fc.2.0": "classifier.fc1", "fc.5.0": "classifier.fc2"}


def _max_pool() -> nn.Module:
    return nn.MaxPool2d(2, 2)


def _avg_pool() -> nn.Module:
    return nn.AvgPool2d(2, 2)


def _check_kernels(kernels: Sequence[Kernels], expected: int) -> None:
    if len(kernels) != expected or any(len(k) != 2 for k in kernels):
        raise ValueError(
            f"kernels={kernels!r}: expected {expected} pairs (kernel_time, kernel_channels), one for each attention layer"
        )


def tcja_dvs128gesture(
    T: int = 20,
    *,
    num_classes: int = 11,
    size: int | tuple[int, int] = 128,
    in_channels: int = 2,
    channels: int = 128,
    hidden: int = 512,
    voters: int = 10,
    dropout: float = 0.5,
    kernels: Sequence[Kernels] = ((4, 4), (4, 4)),
    attention: Attention = "tcja",
) -> EventClassifier:
    """The paper's net for DVS128 Gesture (1.83 M parameters): ``[T, N, 2, 128, 128]`` -> scores ``[N, 11]``.

    Five times conv 3x3 - BN - LIF - max-pool with attention in the 4th and 5th, then FC - LIF - FC - LIF, the mean over T and a
    vote.

    Args:
        T: number of time steps.
        num_classes: number of classes.
        size: height and width of the input.
        in_channels: polarities.
        channels: channels of every convolution.
        hidden: neurons of the first fully connected layer.
        voters: output neurons per class.
        dropout: probability before both fully connected layers.
        kernels: ``(kernel_time, kernel_channels)`` of both attention layers.
        attention: ``"tcja"``, its halves ``"tla"`` or ``"cla"`` alone, or ``"none"``.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    size = pair(size)
    require_positive(T=T, num_classes=num_classes, in_channels=in_channels, channels=channels, hidden=hidden, voters=voters)
    _check_kernels(kernels, 2)
    height, width = pooled_size(size, 5)
    features = _features(
        T,
        in_channels,
        [channels] * 5,
        pool=_max_pool,
        pool_after=range(1, 6),
        gates={4: kernels[0], 5: kernels[1]},
        attention=attention,
    )
    head = _spiking_head(channels * height * width, hidden, num_classes * voters, dropout)
    keys = _reference_keys(features, attention, _SPIKING_HEAD_KEYS)
    return EventClassifier(features, head, T=T, in_channels=in_channels, size=size, voters=voters, reference_keys=keys)


def tcja_ncaltech101(
    T: int = 14,
    *,
    num_classes: int = 101,
    size: int | tuple[int, int] = (180, 240),
    in_channels: int = 2,
    channels: Sequence[int] = (64, 128, 256, 256, 512),
    hidden: int = 1024,
    dropout: float = 0.5,
    kernels: Sequence[Kernels] = ((4, 4), (4, 2)),
    attention: Attention = "tcja",
) -> EventClassifier:
    """The paper's net for N-Caltech101: ``[T, N, 2, 180, 240]`` -> scores ``[N, 101]``, the output neurons' rates.

    Five times conv 3x3 - BN - LIF - max-pool with attention in the 4th and 5th, then FC - LIF - FC - LIF and the mean over T.
    The authors' ``TCJA(2, 4)`` in the 5th is kernel 4 along time and 2 along the channels. Arguments as
    :func:`tcja_dvs128gesture`, ``channels`` one number for each convolution.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    size = pair(size)
    require_positive(T=T, num_classes=num_classes, in_channels=in_channels, hidden=hidden)
    require_each(5, "convolution", channels=channels)
    _check_kernels(kernels, 2)
    height, width = pooled_size(size, 5)
    features = _features(
        T,
        in_channels,
        channels,
        pool=_max_pool,
        pool_after=range(1, 6),
        gates={4: kernels[0], 5: kernels[1]},
        attention=attention,
    )
    head = _spiking_head(channels[-1] * height * width, hidden, num_classes, dropout)
    keys = _reference_keys(features, attention, _SPIKING_HEAD_KEYS)
    return EventClassifier(features, head, T=T, in_channels=in_channels, size=size, reference_keys=keys)


def tcja_cifar10dvs(
    T: int = 10,
    neuron: Literal["lif", "tet"] = "lif",
    *,
    num_classes: int = 10,
    size: int | tuple[int, int] = 48,
    in_channels: int = 2,
    channels: Sequence[int] = (64, 128, 256, 256, 512, 512, 512, 512),
    kernels: Sequence[Kernels] | None = None,
    attention: Attention = "tcja",
) -> EventClassifier:
    """The paper's net for CIFAR10-DVS: ``[T, N, 2, H, W]`` -> scores ``[N, 10]``, the mean over T of a layer that does not spike.

    Eight times conv 3x3 (with bias) - BN - LIF, average pooling after every second one, FC.

    Args:
        T: number of time steps.
        neuron: ``"lif"``: any input is first averaged down to ``size``; attention after the 6th and 8th layer. ``"tet"``, the
            authors' second code path: ``h = v/2 + x`` fires strictly above 1, the input has ``size`` already, and the one
            attention layer stands after the 2nd.
        num_classes: number of classes.
        size: height and width the convolutions work at.
        in_channels: polarities.
        channels: channels of the eight convolutions.
        kernels: ``(kernel_time, kernel_channels)`` of each attention layer; 4 (``"lif"``) or 2 (``"tet"``) by default.
        attention: ``"tcja"``, its halves ``"tla"`` or ``"cla"`` alone, or ``"none"``.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    if neuron not in ("lif", "tet"):
        raise ValueError(f"neuron={neuron!r}: expected 'lif' or 'tet'")
    tet = neuron == "tet"
    size = pair(size)
    require_positive(T=T, num_classes=num_classes, in_channels=in_channels)
    require_each(8, "convolution", channels=channels)
    if kernels is None:
        kernels = ((2, 2),) if tet else ((4, 4), (4, 4))
    _check_kernels(kernels, 1 if tet else 2)
    height, width = pooled_size(size, 4)
    features = _features(
        T,
        in_channels,
        channels,
        pool=_avg_pool,
        pool_after=(2, 4, 6, 8),
        gates={2: kernels[0]} if tet else {6: kernels[0], 8: kernels[1]},
        attention=attention,
        neuron=_lif_tet if tet else _lif_piecewise,
        bias=True,
    )
    if tet:
        for module in features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        features = nn.Sequential(OrderedDict(resize=StepWise(nn.AdaptiveAvgPool2d(size)), **dict(features.named_children())))
    head = nn.Sequential(OrderedDict(fc=nn.Linear(channels[-1] * height * width, num_classes)))
    keys = _reference_keys_tet(features, attention) if tet else _reference_keys(features, attention, {"fc.1.0": "classifier.fc"})
    return EventClassifier(features, head, T=T, in_channels=in_channels, size=size if tet else None, reference_keys=keys)


def tcja_small(
    T: int = 8,
    *,
    num_classes: int = 10,
    size: int | tuple[int, int] = 24,
    in_channels: int = 2,
    channels: Sequence[int] = (16, 32, 32),
    hidden: int = 64,
    voters: int = 5,
    dropout: float = 0.2,
    kernels: Sequence[Kernels] = ((3, 3), (3, 3)),
    attention: Attention = "tcja",
) -> EventClassifier:
    """A small net of the paper's kind, quick to train on a CPU: ``[T, N, 2, 24, 24]`` -> scores ``[N, 10]``.

    Two or more times conv 3x3 - BN - LIF - max-pool, attention in the last ``len(kernels)`` of them, then FC - LIF - FC - LIF,
    the mean over T and a vote. Arguments as :func:`tcja_dvs128gesture`, ``channels`` one number for each convolution.

    Raises:
        ValueError: an argument is out of range, or the size pools to nothing.
    """
    size = pair(size)
    require_positive(T=T, num_classes=num_classes, in_channels=in_channels, hidden=hidden, voters=voters)
    depth = len(channels)
    require_positive(depth=depth)
    require_each(depth, "convolution", channels=channels)
    _check_kernels(kernels, len(kernels))
    if len(kernels) > depth:
        raise ValueError(f"{len(kernels)} attention layers (kernels={kernels!r}) for {depth} convolutions")
    height, width = pooled_size(size, depth)
    features = _features(
        T,
        in_channels,
        channels,
        pool=_max_pool,
        pool_after=range(1, depth + 1),
        gates={depth - len(kernels) + 1 + k: kernel for k, kernel in enumerate(kernels)},
        attention=attention,
    )
    head = _spiking_head(channels[-1] * height * width, hidden, num_classes * voters, dropout)
    return EventClassifier(features, head, T=T, in_channels=in_channels, size=size, voters=voters)
