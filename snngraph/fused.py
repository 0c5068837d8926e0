"""Fused operators: a layer with weights, the neurons it feeds and the pooling of their spikes as one ``snn::`` operator.

A back end that has a kernel for the whole matches one node instead of a pattern; for all others
:mod:`snngraph.passes.expand_fused` writes out the operators it stands for. Time is merged into the batch on both sides, so that
one such operator feeds the next:

* ``snn::conv_lif``: ``x`` ``[T*N, I, *size]``, time-major, ``weight`` ``[O, I/groups, *kernel]`` or, where ``scales`` ``[K, O]``
  are given, int8 digits ``[K, O, I/groups, *kernel]`` (:mod:`snngraph.integer`); ``layer_bias`` ``[O]``; ``steps`` is T. Gives
  ``s`` ``[T*N, O, *size']``, and ``v``, ``i`` and ``h`` as ``snn::lif`` does (``[N, O, *size']``, ``h`` ``[T, N, O, *size']``).
  With a ``pool`` (its kernel; ``pool_stride`` and ``pool_padding`` as in PyTorch) ``s`` is what max pooling makes of the spikes.
* ``snn::linear_lif``: ``x`` ``[T*N, ..., I]``, ``weight`` ``[O, I]`` or digits ``[K, O, I]``; no pooling.

The neuron's arguments are those of ``snn::lif``. ``levels`` ``[low, high]`` says that the spikes, before they are pooled, pass
``snn::levels``: they are integers in that range, and an engine may hold them in 8 bits. All three are exact: the same operators
run in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snngraph import integer, ops

__all__ = ["CONV_LIF", "FUSED", "LINEAR_LIF", "MAX_POOLS", "conv_lif_reference", "linear_lif_reference"]

aten = torch.ops.aten

_Out: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
MAX_POOLS = {2: aten.max_pool2d_with_indices.default, 3: aten.max_pool3d_with_indices.default}
"""The pooling operator by the number of dimensions of its windows."""

_LAYER = "Tensor x, Tensor weight"
_CONV = "int[] stride, int[] padding, int[] dilation, int groups"
_NEURON = ops.NEURON_SCHEMA.removeprefix("Tensor x, ").replace("*, ", "*, Tensor? scales=None, Tensor? layer_bias=None, ")
_SPIKES = "bool with_h=False, int[] levels=[]"
_POOL = "int[] pool=[], int[] pool_stride=[], int[] pool_padding=[]"

_library = torch.library.Library("snn", "FRAGMENT")
_library.define(
    f"conv_lif({_LAYER}, {_CONV}, int steps, {_NEURON}{_SPIKES}, {_POOL}, {ops.TRAINING_SCHEMA}",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(f"linear_lif({_LAYER}, int steps, {_NEURON}{_SPIKES}, {ops.TRAINING_SCHEMA}", tags=(torch.Tag.pt2_compliant_tag,))


def conv_lif_reference(
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    steps: int,
    *neuron: Tensor | None,
    scales: Tensor | None = None,
    layer_bias: Tensor | None = None,
    pool: Sequence[int] = (),
    pool_stride: Sequence[int] = (),
    pool_padding: Sequence[int] = (),
    **options: Any,
) -> _Out:
    """``snn::conv_lif`` as the operators it stands for."""
    if scales is None:
        y = aten.convolution.default(x, weight, layer_bias, stride, padding, dilation, False, [0] * len(stride), groups)
    else:
        y = integer.INTEGER_CONV(x, weight, scales, layer_bias, stride, padding, dilation, groups)
    s, v, i, h = _fire(y, steps, neuron, options)
    if pool:
        s = MAX_POOLS[len(pool)](s, pool, pool_stride, pool_padding or [0] * len(pool))[0]
    return s, v, i, h


def linear_lif_reference(
    x: Tensor,
    weight: Tensor,
    steps: int,
    *neuron: Tensor | None,
    scales: Tensor | None = None,
    layer_bias: Tensor | None = None,
    **options: Any,
) -> _Out:
    """``snn::linear_lif`` as the operators it stands for."""
    y = aten.linear.default(x, weight, layer_bias) if scales is None else integer.INTEGER_LINEAR(x, weight, scales, layer_bias)
    return _fire(y, steps, neuron, options)


def _fire(y: Tensor, steps: int, neuron: Sequence[Tensor | None], options: dict[str, Any]) -> _Out:
    """The neurons fed with ``y`` ``[T*N, ...]``; their spikes ``[T*N, ...]``."""
    levels = options.pop("levels", ())
    s, v, i, h = torch.ops.snn.lif.default(y.reshape(steps, -1, *y.shape[1:]), *neuron, **options)
    s = integer.LEVELS(s, *levels) if levels else s
    return s.reshape(y.shape), v, i, h


for _name, _reference in (("conv_lif", conv_lif_reference), ("linear_lif", linear_lif_reference)):
    _library.impl(_name, _reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"snn::{_name}", _reference, lib=_library)

CONV_LIF = torch.ops.snn.conv_lif.default
LINEAR_LIF = torch.ops.snn.linear_lif.default
FUSED = (CONV_LIF, LINEAR_LIF)
