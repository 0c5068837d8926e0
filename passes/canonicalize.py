"""One spelling per operator: identities go, constants are folded (in float64), equal expressions are computed once.

* ``clone``, ``detach``, ``alias``, dropout in evaluation, casts between floating types, ``x * 1``, ``x / 1``, ``x + 0``, views
  and permutations that change nothing: their input.
* ``view``, ``squeeze``, ``unsqueeze``, ``flatten``: ``reshape``, with ``-1`` in the dimension that carries the batch; a reshape
  of a reshape is one.
* A slice of one entry whose dimension is dropped: ``select``. An entry of a stack: what was stacked.
* A masked assignment of one number (``x[mask] = 0``): ``where``.
* The largest value along a dimension, without its position: ``amax`` (``amin``). Pooling to one value: ``mean`` or ``amax``.
* An operator on constants alone: its value.
* ``snn::`` operators: state, decay and threshold by position, everything else by name, what changes nothing left out, and
  without the surrogate, which matters in training only.
* Two equal constants, two equal expressions: one. Neurons are never merged.

Exactness: real (a folded constant is computed in float64).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from snngraph.analysis.batch import batch_dims, shape_with_free_batch
from snngraph.errors import NonFiniteConstantError
from snngraph.graph import (
    LIF,
    LIF_STEP,
    RESHAPE,
    TRAINING_ONLY,
    VIEWS,
    SpikingGraph,
    arguments,
    defaults_of,
    describe,
    is_neuron,
    is_op,
    operand,
    origin_of,
    shape_of,
)
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["Canonicalize"]

aten = torch.ops.aten
_COPIES = (aten.clone.default, aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default, aten.contiguous.default)
_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
)
_POSITIONAL = ("x", "v", "decay", "threshold")
_LARGEST_FOLDED = 1 << 22  # a constant is not blown up beyond this many elements


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Brings a graph into its normal form; running it twice changes nothing the second time."""

    name: ClassVar[str] = "canonicalize"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Applies the rules in the order of the module's text, once over the graph each."""
        edit = Rewriter(graph)
        dims = batch_dims(graph)
        for rule in (_drop_identities, _spell_reshapes, _select_of_stack, _spell_masks, _spell_reductions):
            for node in graph.nodes:
                if node.op == "call_function":
                    rule(edit, node, dims)
        _join_reshapes(edit, dims)
        _fold_constants(edit)
        for node in graph.nodes:
            if is_op(node, LIF, LIF_STEP):
                _spell_neuron(edit, node)
        _share(edit)
        return edit.result()


def _drop_identities(edit: Rewriter, node: fx.Node, dims: dict[fx.Node, int | None]) -> None:
    source = node.args[0] if node.args else None
    if is_op(node, aten.add.Tensor) and not node.kwargs and isinstance(node.args[1], fx.Node) and _is_zero(edit, source):
        node.args = (node.args[1], source)  # the sum begins with zeros
        source = node.args[0]
    if not isinstance(source, fx.Node) or not isinstance(node.meta["val"], Tensor):
        return
    same = _same_shape(source, node, dims) and source.meta["val"].dtype == node.meta["val"].dtype
    identity = (
        is_op(node, *_COPIES)
        or (is_op(node, aten._to_copy.default) and _both_floating(node, source))
        or (is_op(node, aten.mul.Tensor, aten.div.Tensor) and same and edit.graph.number(node.args[1]) == 1.0)
        or (is_op(node, aten.add.Tensor, aten.sub.Tensor) and same and _is_zero(edit, node.args[1]))
        or (is_op(node, RESHAPE, *_RESHAPES, aten.expand.default) and same)
        or (is_op(node, aten.permute.default) and list(operand(node, 1)) == list(range(len(shape_of(node)))))
        or (is_op(node, aten.slice.Tensor) and same and len(node.args) < 5)
    )
    if identity:
        edit.did(node, f"{node.target} changes nothing")
        node.replace_all_uses_with(source)
        edit.graph.graph.erase_node(node)


def _is_zero(edit: Rewriter, node: object) -> bool:
    """A plain zero, or a tensor of zeros in whatever shape: what a model begins a sum with."""
    while is_op(node, aten.expand_as.default, aten.expand.default, aten.repeat.default, RESHAPE):
        node = operand(node)
    tensor = edit.graph.constant(node)
    return edit.graph.number(node) == 0.0 or (tensor is not None and not bool(tensor.any()))


def _same_shape(a: fx.Node, b: fx.Node, dims: dict[fx.Node, int | None]) -> bool:
    """At any batch size, not only at that of the recorded shapes."""
    return isinstance(a.meta["val"], Tensor) and shape_of(a) == shape_of(b) and dims.get(a) == dims.get(b)


def _both_floating(node: fx.Node, source: fx.Node) -> bool:
    return bool(source.meta["val"].is_floating_point() and node.meta["val"].is_floating_point())


def _spell_reshapes(edit: Rewriter, node: fx.Node, dims: dict[fx.Node, int | None]) -> None:
    if not is_op(node, *_RESHAPES):
        return
    was_view = is_op(node, *VIEWS)
    shape = shape_with_free_batch(shape_of(node), dims.get(node))
    edit.did(node, f"{node.target} is a reshape")
    node.target = RESHAPE
    node.args = (node.args[0], node.args[1] if was_view else shape)
    node.kwargs = {}


def _spell_masks(edit: Rewriter, node: fx.Node, dims: dict[fx.Node, int | None]) -> None:
    """``x[mask] = number``, with a mask of the shape of ``x``."""
    if not is_op(node, aten.index_put.default) or arguments(node)["accumulate"]:
        return
    source, indices, value = node.args[:3]
    mask = indices[0] if isinstance(indices, list | tuple) and len(indices) == 1 else None
    if not isinstance(mask, fx.Node) or not isinstance(source, fx.Node) or not isinstance(value, fx.Node):
        return
    if mask.meta["val"].dtype == torch.bool and _same_shape(mask, source, dims) and not shape_of(value):
        edit.did(node, "a masked assignment is a select")
        node.target, node.args, node.kwargs = aten.where.self, (mask, value, source), {}


_EXTREMES = {aten.max.dim: aten.amax.default, aten.min.dim: aten.amin.default}
_POOLS: dict[Any, tuple[Any, int]] = {
    aten._adaptive_avg_pool2d.default: (aten.mean.dim, 2),
    aten._adaptive_avg_pool3d.default: (aten.mean.dim, 3),
    aten.adaptive_max_pool2d.default: (aten.amax.default, 2),
    aten.adaptive_max_pool3d.default: (aten.amax.default, 3),
}


def _spell_reductions(edit: Rewriter, node: fx.Node, dims: dict[fx.Node, int | None]) -> None:
    """``max.dim`` and adaptive pooling to one value as reductions, where nobody asks for the positions."""
    target: Any = node.target
    if target in _EXTREMES:
        given = arguments(node)
        reduction, over, keepdim = _EXTREMES[target], [given["dim"]], given["keepdim"]
    elif target in _POOLS and all(n == 1 for n in operand(node, 1)):
        reduction, window = _POOLS[target]
        over, keepdim = list(range(-window, 0)), True
    else:
        return
    whole = isinstance(node.meta["val"], Tensor)
    values = [node] if whole else list(node.users)
    if not whole and any(not is_op(u, operator.getitem) or operand(u, 1) != 0 for u in values):
        return
    edit.did(node, f"{target} is {reduction}")
    with edit.graph.graph.inserting_before(node):
        new = edit.graph.graph.call_function(reduction, (operand(node), over, keepdim))
    new.meta = dict(values[0].meta) if values else dict(node.meta)
    for value in values:
        value.replace_all_uses_with(new)
    if values:
        dims[new] = dims.get(values[0])


def _join_reshapes(edit: Rewriter, dims: dict[fx.Node, int | None]) -> None:
    """``reshape(reshape(x))`` is one reshape, and none when the shape is that of ``x``."""
    for node in edit.graph.nodes:
        if not is_op(node, RESHAPE):
            continue
        source = operand(node)
        while is_op(source, RESHAPE):
            source = operand(source)
        if _same_shape(source, node, dims):
            edit.did(node, "a reshape and its inverse")
            node.replace_all_uses_with(source)
        elif source is not node.args[0]:
            edit.did(node, "a reshape of a reshape")
            node.args = (source, node.args[1])
        if is_op(source, aten.slice.Tensor, operator.getitem):
            _spell_select(edit, node, source, dims)


def _spell_select(edit: Rewriter, node: fx.Node, source: fx.Node, dims: dict[fx.Node, int | None]) -> None:
    """``x[t:t+1]`` without its dimension of one entry, as iterating over a tensor gives it, is ``select(x, dim, t)``.

    So is an entry of a tensor that was split into its entries.
    """
    piece = _piece(source)
    if piece is None:
        return
    whole, dim, start = piece
    shape = shape_of(source)
    if dim != dims.get(whole) and shape[dim] == 1 and shape_of(node) == shape[:dim] + shape[dim + 1 :]:
        edit.did(node, "one entry of a dimension is selected")
        node.target, node.args = aten.select.int, (whole, dim, start)


def _piece(node: fx.Node) -> tuple[fx.Node, int, int] | None:
    """What a slice, or a part of a split, is a part of; along which dimension; and where it starts."""
    if is_op(node, aten.slice.Tensor):
        found = arguments(node)
        whole, dim = found["self"], found["dim"] % len(shape_of(node))
        start = slice(found["start"], None).indices(shape_of(whole)[dim])[0]
        return whole, dim, start
    split, k = operand(node), operand(node, 1)
    if not is_op(split, aten.split_with_sizes.default):
        return None
    found = arguments(split)
    return found["self"], found["dim"] % len(shape_of(node)), sum(found["split_sizes"][:k])


def _select_of_stack(edit: Rewriter, node: fx.Node, dims: dict[fx.Node, int | None]) -> None:
    """An entry of a stack, which is exported as ``cat`` of parts with a dimension of one entry, or of whole steps: that part."""
    if not is_op(node, aten.select.int):
        return
    stacked, dim, index = operand(node), operand(node, 1) % len(shape_of(operand(node))), operand(node, 2)
    joined = operand(stacked) if is_op(stacked, RESHAPE) and is_op(operand(stacked), aten.cat.default) and dim == 0 else stacked
    if is_op(stacked, aten.stack.default) and arguments(stacked)["dim"] % len(shape_of(stacked)) == dim:
        part = operand(stacked)[index]
    elif is_op(joined, aten.cat.default) and arguments(joined)["dim"] % len(shape_of(joined)) == dim:
        parts = operand(joined)
        one = [1 if d == dim else n for d, n in enumerate(shape_of(stacked))] if joined is stacked else list(shape_of(node))
        if len(parts) != shape_of(stacked)[dim] or any(list(shape_of(p)) != one for p in parts):
            return
        part = parts[index]
    else:
        return
    if shape_of(part) != shape_of(node):
        with edit.graph.graph.inserting_before(node):
            sizes = shape_with_free_batch(shape_of(node), dims.get(node))
            part = edit.graph.graph.call_function(RESHAPE, (part, sizes))
            part.meta = dict(node.meta)
    edit.did(node, "an entry of a stack is what was stacked")
    node.replace_all_uses_with(part)
    edit.graph.graph.erase_node(node)


def _fold_constants(edit: Rewriter) -> None:
    graph = edit.graph
    values: dict[fx.Node, Any] = {}
    born: dict[fx.Node, fx.Node] = {}  # a constant that is not finite -> where it became so, of finite numbers
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = graph.constant(node)
            continue
        if node.op != "call_function" or not all(n in values for n in node.all_input_nodes):
            continue
        shape = node.meta["val"].shape if isinstance(node.meta["val"], Tensor) else ()
        if torch.Size(shape).numel() > _LARGEST_FOLDED:
            continue
        args, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
        function: Any = node.target
        value = function(*args, **keywords)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim():
            value = value.to(graph.dtype)
        values[node] = value
        if not _finite(value):
            inherited = next((born[n] for n in node.all_input_nodes if n in born), None)
            if inherited is not None or all(map(_finite, tree_leaves((args, keywords)))):
                born[node] = inherited or node
    for node, value in values.items():
        if node.op == "get_attr" or not isinstance(value, Tensor) or all(user in values for user in node.users):
            continue
        if node in born:
            _refuse_non_finite(node, value, born[node], values)
        edit.did(node, f"{node.target} of constants is a constant")
        with graph.graph.inserting_before(node):
            constant = graph.add_tensor(node.name, value.contiguous())
        constant.meta.update(origin_of(node))
        node.replace_all_uses_with(constant)


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


_TAKE_INFINITY = frozenset(
    (
        *(aten.add.Tensor, aten.sub.Tensor, aten.where.self, aten.masked_fill.Scalar, aten.masked_fill.Tensor),
        *(aten.maximum.default, aten.minimum.default, aten.clamp.Tensor, aten.clamp_min.Tensor, aten.clamp_max.Tensor),
        *(getattr(aten, name).Tensor for name in ("eq", "ne", "lt", "le", "gt", "ge")),
    )
)
_REARRANGE = frozenset((RESHAPE, aten.expand.default, aten.permute.default, aten.select.int, aten.slice.Tensor))


def _refuse_non_finite(node: fx.Node, value: Tensor, source: fx.Node, values: dict[fx.Node, Any]) -> None:
    """Refuses a constant that arithmetic on finite numbers made infinite or NaN, unless it is infinite as a mask or a bound is.

    Raises:
        NonFiniteConstantError: it would be multiplied, or worse.
    """
    waiting, users = [node], []
    while waiting:
        for user in waiting.pop().users:
            if user.target in _REARRANGE and user not in values:
                waiting.append(user)
            elif user not in values and user.op != "output" and user.target not in _TAKE_INFINITY:
                users.append(user)
    if not users and not bool(value.isnan().any()):
        return
    result = values[source]
    numbers = result.flatten().tolist() if isinstance(result, Tensor) else [result]
    shown = ", ".join(f"{x:.6g}" for x in numbers[:8]) + (f", ... ({len(numbers)} in all)" if len(numbers) > 8 else "")
    used = f", which {describe(users[0])} uses" if users else ""
    raise NonFiniteConstantError(
        f"a constant of the model is not finite: {describe(source)} = [{shown}]{used}. It is computed from finite parameters and "
        "buffers alone, as 1/sqrt(0) of a firing-rate buffer that is still zero: load a trained checkpoint, train the model, or "
        "calibrate it (snngraph.models.calibrate)"
    )


def _spell_neuron(edit: Rewriter, node: fx.Node) -> None:
    found = arguments(node)
    defaults = defaults_of(node.target)
    neutral = {"input_gain": 1.0, "gain": 1.0, "syn_gain": 1.0, "bias": 0.0, "level": 1.0}
    keywords = {}
    for name, value in found.items():
        if name in (*_POSITIONAL, *TRAINING_ONLY) or value is None or (name in defaults and value == defaults[name]):
            continue
        if name in neutral and edit.graph.number(value) == neutral[name]:
            continue
        if name == "v_reset" and found["reset"] != "hard":
            continue
        keywords[name] = value
    args = tuple(found[name] for name in _POSITIONAL)
    keywords = dict(sorted(keywords.items()))
    if node.args != args or node.kwargs != keywords:
        edit.did(node, "written in its normal form")
        node.args, node.kwargs = args, keywords


def _share(edit: Rewriter) -> None:
    """Equal constants and equal expressions are computed once."""
    graph = edit.graph
    seen: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_function") or is_neuron(node):
            continue
        key = _constant_key(graph, node) if node.op == "get_attr" else _expression_key(node)
        first = seen.setdefault(key, node)
        if first is not node and node.users:
            if node.op == "call_function" and node.target is not operator.getitem:
                edit.did(node, f"computed once, as {first.name}")
            elif node.op == "get_attr" and first.target != node.target:
                edit.did(node, f"the same constant as {first.target}")
            node.replace_all_uses_with(first)


def _constant_key(graph: SpikingGraph, node: fx.Node) -> Any:
    value = graph.constant(node)
    assert value is not None
    if value.numel() > 16:
        return ("get_attr", node.target)
    return ("constant", str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())


def _expression_key(node: fx.Node) -> Any:
    def freeze(a: Any) -> Any:
        if isinstance(a, list | tuple):
            return tuple(map(freeze, a))
        return (type(a).__name__, a)  # 1, 1.0 and True are equal but not the same argument

    return (node.target, freeze(node.args), tuple((k, freeze(v)) for k, v in sorted(node.kwargs.items())))
