"""Batch norm with fixed statistics is ``y = a*x + b`` per channel, with ``a = weight/sqrt(var + eps)`` and ``b = bias - a*mean``.

* After a convolution or linear layer, also through reshapes and permutations that keep the channel: ``W' = a*W``,
  ``bias' = a*bias + b``, per output channel.
* Before a neuron, where no such layer can take it: ``h = decay*v + input_gain*gain*(a*x + b) + bias`` gives ``gain' = gain*a``
  and ``bias' = bias + input_gain*gain*b``. Not through a synapse, which would filter ``b`` too, unless ``b`` is 0.
* Elsewhere it stays.

Refused: batch statistics (``track_running_stats=False``), a layer whose output others read too, a gain that varies over time.

Exactness: real. The fold is computed in float64; the lowering rounds the folded weight once.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from snngraph.analysis.batch import batch_dims
from snngraph.graph import LIF, LIF_STEP, VIEWS, SpikingGraph, arguments, is_op, operand, shape_of
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["FoldBatchNorm"]

aten = torch.ops.aten
_NORM = aten._native_batch_norm_legit_no_training.default
_BATCH_STATISTICS = (aten._native_batch_norm_legit.no_stats, aten._native_batch_norm_legit.default)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Folds batch norm into the layer before it, or into the neuron after it."""

    name: ClassVar[str] = "fold_batch_norm"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Tries the layer before, then the neuron after, for every batch norm."""
        edit = Rewriter(graph)
        dims = batch_dims(graph)
        for node in graph.nodes:
            if is_op(node, *_BATCH_STATISTICS):
                edit.refuse(node, "it normalises with the statistics of the batch, which are not constants")
            elif is_op(node, _NORM):
                reason = _into_layer(edit, node, dims)
                if reason is not None:
                    second = _into_neuron(edit, node, dims)
                    if second is not None:
                        edit.refuse(node, f"{reason}; {second}")
        return edit.result()


def _affine(graph: SpikingGraph, norm: fx.Node) -> tuple[Tensor, Tensor] | str:
    """``a`` and ``b``, one number per channel each, in float64; or why there are none."""
    given = arguments(norm)
    weight, bias, mean, var = (graph.constant(given[k]) for k in ("weight", "bias", "running_mean", "running_var"))
    computed = (given["weight"] is not None and weight is None) or (given["bias"] is not None and bias is None)
    if computed or mean is None or var is None:
        return "its parameters are not constants"
    a = torch.rsqrt(var.double() + given["eps"])
    if not torch.isfinite(a).all():
        return "a variance is negative or not finite"
    a = a if weight is None else a * weight.double()
    return a, (torch.zeros_like(a) if bias is None else bias.double()) - a * mean.double()


def _outputs(norm: fx.Node) -> fx.Node | None:
    """The node that takes the normalised tensor; ``None`` when the saved statistics are used as well."""
    users = [u for u in norm.users if is_op(u, operator.getitem)]
    return users[0] if len(users) == len(norm.users) == 1 and users[0].args[1] == 0 else None


def _into_layer(edit: Rewriter, norm: fx.Node, dims: dict[fx.Node, int | None]) -> str | None:
    found = _affine(edit.graph, norm)
    if isinstance(found, str):
        return found
    output = _outputs(norm)
    if output is None:
        return "its saved statistics are used"
    source, dim = operand(norm), 1
    while True:
        if len(source.users) > 1:
            return f"{source.name} is read by {len(source.users)} operators"
        if is_op(source, *VIEWS):
            kept = _kept_dim(dim, source, operand(source), dims)
        elif is_op(source, aten.permute.default):
            kept = operand(source, 1)[dim] % len(shape_of(source))
        else:
            break
        if kept is None:
            return f"{source.name} splits or merges the channels"
        source, dim = operand(source), kept
    layer = _layer_with_outputs_in(source, dim)
    if layer is None:
        return f"{source.name} before it is no convolution or linear layer with its channels there"
    given = arguments(layer)
    weight, bias = edit.graph.constant(given["weight"]), edit.graph.constant(given["bias"])
    if weight is None or (bias is None and given["bias"] is not None):
        return f"the weights of {layer.name} are not constants"
    transposed = bool(given.get("transposed"))
    if transposed and given["groups"] != 1:
        return f"{layer.name} is a transposed convolution with groups"
    a, b = found
    along = 1 if transposed else 0
    shape = [-1 if d == along else 1 for d in range(weight.dim())]
    b = b if bias is None else bias.double() * a + b
    name = str(given["weight"].target)
    with edit.graph.graph.inserting_before(layer):
        new_weight = edit.graph.add_tensor(f"{name}_folded", weight.double() * a.view(shape))
        new_bias = edit.graph.add_tensor(f"{name.removesuffix('weight')}bias_folded", b)
    layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])
    layer.kwargs = {k: v for k, v in layer.kwargs.items() if k not in ("weight", "bias")}
    output.replace_all_uses_with(operand(norm))
    edit.did(norm, f"folded into {layer.name}")
    return None


def _layer_with_outputs_in(node: fx.Node, dim: int) -> fx.Node | None:
    if is_op(node, aten.convolution.default) and dim == 1:
        return node
    return node if is_op(node, aten.linear.default) and dim == len(shape_of(node)) - 1 else None


def _kept_dim(dim: int, node: fx.Node, reshaped_node: fx.Node, dims: dict[fx.Node, int | None]) -> int | None:
    """The dimension of a reshape's one side that is the other's ``dim``: of the same size, with as many elements behind it.

    At any batch size: the batch has to stand before it on both sides.
    """
    shape, reshaped = shape_of(node), shape_of(reshaped_node)
    batch, other = dims.get(node), dims.get(reshaped_node)
    if batch is not None and batch >= dim:
        return None
    behind = torch.Size(shape[dim + 1 :]).numel()
    for d, size in enumerate(reshaped):
        if size == shape[dim] and torch.Size(reshaped[d + 1 :]).numel() == behind and (other is None or other < d):
            return d
    return None


def _into_neuron(edit: Rewriter, norm: fx.Node, dims: dict[fx.Node, int | None]) -> str | None:
    found = _affine(edit.graph, norm)
    output = _outputs(norm)
    if isinstance(found, str) or output is None:
        return "nor can a neuron take it"
    node, dim = output, 1
    while True:
        if len(node.users) != 1:
            return f"its output is read by {len(node.users)} operators"
        user = next(iter(node.users))
        if not is_op(user, *VIEWS):
            break
        kept = _kept_dim(dim, node, user, dims)
        if kept is None:
            return "its channels do not reach a neuron unchanged"
        node, dim = user, kept
    if not is_op(user, LIF, LIF_STEP) or [k for k, a in arguments(user).items() if a is node] != ["x"]:
        return "no neuron takes its output as its input alone"
    lead = 1 if is_op(user, LIF) else 0
    if dim < lead + 1:
        return "its channels are not among the neuron's dimensions"
    a, b = (t.view([-1] + [1] * (len(shape_of(node)) - dim - 1)) for t in found)
    options = arguments(user)
    if options["syn_decay"] is not None and bool(b.any()):
        return "the neuron has a synapse, which would filter the offset"
    gain, input_gain, bias = (edit.graph.constant(options[k]) for k in ("gain", "input_gain", "bias"))
    if any(options[k] is not None and value is None for k, value in (("gain", gain), ("input_gain", input_gain), ("bias", bias))):
        return "the neuron's gain is computed, so the offset would vary"
    if gain is not None and lead and gain.dim() == len(shape_of(node)):
        return "the neuron's gain varies over time, so the offset would too"
    offset = b if gain is None else b * gain
    offset = offset if input_gain is None else offset * input_gain
    new = {"gain": a if gain is None else a * gain, "bias": offset if bias is None else offset + bias}
    with edit.graph.graph.inserting_before(user):
        nodes = {k: edit.graph.add_tensor(f"{norm.name}_{k}", t.double()) for k, t in new.items()}
    user.kwargs = dict(sorted({**user.kwargs, **nodes}.items()))
    output.replace_all_uses_with(operand(norm))
    edit.did(norm, f"folded into the gain and bias of {user.name}")
    return None
