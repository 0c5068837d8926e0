"""A layer with weights, the neurons it feeds and the max pooling of their spikes become one ``snn::`` node.

::

    pool(merge(lif(split(layer(x))).s))  ==  conv_lif(x, ...).s        (linear_lif without a pooling)

``split`` makes ``[T*N, ...]`` into ``[T, N, ...]``, ``merge`` undoes it, ``layer`` is a convolution or a linear layer, in
floating point or in digits, whose batch norm was folded before. A back end with a kernel for the whole (a convolution that
charges and fires in its epilogue) looks for one node; the others get what :mod:`snngraph.passes.expand_fused` makes of it, which
is the graph as it was. The spikes' mark ``snn::levels`` becomes part of the node where nobody reads the spikes without it.

The node bears the neuron's name. What the pass took away (names, module paths, source lines) it keeps in ``meta["parts"]``.

Refused: a layer whose result something else reads too or whose weights the graph computes, a transposed convolution, anything
between layer and neuron (a scale, a residual addition), a neuron for one step, a layer that does not run on ``[T*N, ...]``. A
pooling stays where the spikes are read before it too, or where it is dilated or rounds its size up.

Exactness: bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from snngraph.fused import CONV_LIF, LINEAR_LIF, MAX_POOLS
from snngraph.graph import (
    INTEGER_CONV,
    INTEGER_LINEAR,
    LEVELS,
    LIF,
    LIF_STEP,
    RESHAPE,
    SpikingGraph,
    arguments,
    defaults_of,
    is_op,
    operand,
    origin_of,
    shape_of,
)
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["FuseModules"]

aten = torch.ops.aten
_CONVS = (aten.convolution.default, INTEGER_CONV)
_LAYERS = (*_CONVS, aten.linear.default, INTEGER_LINEAR)


@dataclass(frozen=True)
class FuseModules(Pass):
    """Makes one node of a layer, its neurons and the pooling of their spikes.

    Args:
        operators: the fused operators to make: ``"conv_lif"``, ``"linear_lif"``.
    """

    name: ClassVar[str] = "fuse_modules"
    exactness: ClassVar[Exactness] = "bitwise"
    operators: tuple[str, ...] = ("conv_lif", "linear_lif")

    def __post_init__(self) -> None:
        if unknown := set(self.operators) - {"conv_lif", "linear_lif"}:
            raise ValueError(f"operators={self.operators!r}: {', '.join(sorted(unknown))}: expected conv_lif or linear_lif")

    def run(self, graph: SpikingGraph) -> PassResult:
        """Looks at every neuron."""
        edit = Rewriter(graph)
        for node in graph.nodes:
            if not is_op(node, LIF, LIF_STEP):
                continue
            found = _match(graph, node)
            if isinstance(found, str):
                edit.refuse(node, found)
            elif found.operator in self.operators:
                _fuse(edit, found)
        return edit.result()


@dataclass(frozen=True)
class _Module:
    """The nodes of a layer and its neurons."""

    layer: fx.Node
    split: fx.Node
    neuron: fx.Node

    @property
    def operator(self) -> str:
        return "conv_lif" if is_op(self.layer, *_CONVS) else "linear_lif"


@dataclass(frozen=True)
class _Spikes:
    """What follows the neuron's spikes as far as it is fused: ``end`` is read by others."""

    end: fx.Node | None
    mark: fx.Node | None = None
    merged: fx.Node | None = None
    pool: fx.Node | None = None


def _match(graph: SpikingGraph, neuron: fx.Node) -> _Module | str:
    """The module, or why there is none."""
    if is_op(neuron, LIF_STEP):
        return "it is one step; merge_time joins the steps of a neuron"
    x = arguments(neuron)["x"]
    layer = operand(x) if is_op(x, RESHAPE) else x
    if not is_op(layer, *_LAYERS):
        return f"its input is {layer.name}, no layer with weights"
    given = arguments(layer)
    if layer is x:
        return f"{layer.name} does not run on [T*N, ...]; flatten_time does that"
    if not _has_sizes(graph, x, [graph.time.steps, -1, *shape_of(layer)[1:]]):
        return f"{x.name} reshapes more than time"
    for node in (layer, x):
        if len(node.users) > 1:
            return f"{node.name} is read by {len(node.users)} operators"
    if [k for k, a in arguments(neuron).items() if a is x] != ["x"]:
        return f"it reads {x.name} as another parameter too"
    if given.get("transposed", False):
        return f"{layer.name} is transposed"
    weights = [given.get(k) for k in ("weight", "digits", "scales", "bias")]
    if any(a is not None and graph.constant(a) is None for a in weights):
        return f"the weights of {layer.name} are no constants"
    return _Module(layer, x, neuron)


def _has_sizes(graph: SpikingGraph, node: fx.Node, sizes: list[int]) -> bool:
    """Whether a reshape gives ``sizes`` at every batch size, with the batch at the ``-1``."""
    if list(operand(node, 1)) == sizes:
        return True
    shape = shape_of(node)
    fixed = len(shape) == len(sizes) and all(m in (n, -1) for m, n in zip(sizes, shape, strict=True))
    return fixed and not graph.free_batch


def _fuse(edit: Rewriter, m: _Module) -> None:
    graph, layer, neuron = edit.graph, m.layer, m.neuron
    spikes = _spikes(edit, m)
    given, of_neuron = arguments(layer), arguments(neuron)
    options: dict[str, Any] = {
        "weight": given["digits"] if "digits" in given else given["weight"],
        "steps": graph.time.steps,
    }
    options |= {k: a for k, a in (("scales", given.get("scales")), ("layer_bias", given["bias"])) if a is not None}
    if is_op(layer, *_CONVS):
        options |= {k: given[k] for k in ("stride", "padding", "dilation", "groups")}
    if spikes.mark is not None:
        options["levels"] = list(spikes.mark.args[1:])
    if spikes.pool is not None:
        window = arguments(spikes.pool)
        options |= {"pool": window["kernel_size"], "pool_stride": window["stride"]}
        options |= {"pool_padding": window["padding"]} if any(window["padding"]) else {}
    defaults = defaults_of(neuron.target)
    options |= {k: a for k, a in of_neuron.items() if k != "x" and (k not in defaults or a != defaults[k])}
    parts = {
        "layer": layer,
        "split": m.split,
        "neuron": neuron,
        "mark": spikes.mark,
        "merged": spikes.merged,
        "pool": spikes.pool,
    }
    target = CONV_LIF if m.operator == "conv_lif" else LINEAR_LIF
    with graph.graph.inserting_before(neuron):
        new = graph.graph.call_function(target, (operand(layer),), options)
        s = graph.graph.call_function(operator.getitem, (new, 0))
    new.meta = {**origin_of(neuron), "neuron": neuron.meta.get("neuron", neuron.name)}
    new.meta["parts"] = {role: (n.name, origin_of(n)) for role, n in parts.items() if n is not None}
    for output in list(neuron.users):
        if operand(output, 1) != 0:
            output.args = (new, operand(output, 1))
    if spikes.pool is not None:
        for pooled in list(spikes.pool.users):
            pooled.replace_all_uses_with(s)
    elif spikes.end is not None:
        _hand_on(graph, spikes.end, s, shape_of(layer)[1:])
    names = [n.name for role, n in parts.items() if n is not None and role in ("layer", "neuron", "pool")]
    edit.did(neuron, f"{' + '.join(names)} is {m.operator}")


def _spikes(edit: Rewriter, m: _Module) -> _Spikes:
    """How far the neuron's spikes are fused."""
    outputs = [user for user in m.neuron.users if operand(user, 1) == 0]
    if not outputs:
        return _Spikes(None)
    for other in outputs[1:]:
        other.replace_all_uses_with(outputs[0])
    end = outputs[0]
    mark = next((user for user in end.users if is_op(user, LEVELS) and len(end.users) == 1), None)
    end = mark or end
    merges = [user for user in end.users if is_op(user, RESHAPE) and _has_sizes(edit.graph, user, [-1, *shape_of(m.layer)[1:]])]
    pools = [(merged, user) for merged in merges for user in merged.users if user.target in MAX_POOLS.values()]
    whole = _Spikes(end, mark, merges[0] if merges else None)
    if not pools or not is_op(m.layer, *_CONVS):
        return whole
    merged, pool = pools[0]
    reason = _pool_stays(m, end, merged, pool)
    if reason is not None:
        edit.refuse(pool, reason)
        return whole
    return _Spikes(end, mark, merged, pool)


def _pool_stays(m: _Module, end: fx.Node, merged: fx.Node, pool: fx.Node) -> str | None:
    window = arguments(pool)
    rank = len(shape_of(m.layer)) - 2
    if len(end.users) > 1 or len(merged.users) > 1:
        return "the spikes are read before pooling too"
    if pool.target != MAX_POOLS.get(rank) or len(window["kernel_size"]) != rank:
        return "it does not pool over the dimensions of the convolution"
    if any(d != 1 for d in window["dilation"]) or window["ceil_mode"]:
        return "it is dilated or rounds its size up"
    if any(operand(user, 1) != 0 for user in pool.users):
        return "the positions of the maxima are read"
    return None


def _hand_on(graph: SpikingGraph, end: fx.Node, s: fx.Node, sizes: Sequence[int]) -> None:
    """The readers of ``end`` ``[T, N, *sizes]`` read ``s`` ``[T*N, *sizes]``: reshapes as they are, others through a reshape."""
    split: fx.Node | None = None
    for user in list(end.users):
        if is_op(user, RESHAPE) and _has_sizes(graph, user, [-1, *sizes]):
            user.replace_all_uses_with(s)
        elif is_op(user, RESHAPE):
            user.replace_input_with(end, s)
        else:
            if split is None:
                with graph.graph.inserting_after(s):
                    split = graph.graph.call_function(RESHAPE, (s, [graph.time.steps, -1, *sizes]))
            user.replace_input_with(end, split)
