"""Writes a fused operator out as what it stands for: the inverse of :mod:`snngraph.passes.fuse_modules`.

::

    conv_lif(x, ...).s  ==  pool(merge(lif(split(conv(x))).s))         (linear_lif without a pooling)

Names, module paths and source lines come back from the node's ``meta["parts"]``, so that a graph that was fused and expanded is
lowered as if nothing had happened. Every lowering begins with it, for the operators that it has no translation of; so does what
looks into the neurons of a graph.

Exactness: bitwise.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from snngraph.fused import FUSED, MAX_POOLS
from snngraph.graph import (
    INTEGER_CONV,
    INTEGER_LINEAR,
    LEVELS,
    LIF,
    RESHAPE,
    SpikingGraph,
    arguments,
    defaults_of,
    is_op,
    operand,
    origin_of,
)
from snngraph.passes.base import Pass, PassResult, Rewriter
from snngraph.types import Exactness

__all__ = ["ExpandFused", "expanded"]

aten = torch.ops.aten
_POSITIONAL = ("x", "v", "decay", "threshold")


@dataclass(frozen=True)
class ExpandFused(Pass):
    """Replaces fused operators by the operators they stand for.

    Args:
        keep: the fused operators that stay: ``"conv_lif"``, ``"linear_lif"``.
    """

    name: ClassVar[str] = "expand_fused"
    exactness: ClassVar[Exactness] = "bitwise"
    keep: tuple[str, ...] = ()

    def run(self, graph: SpikingGraph) -> PassResult:
        """Replaces every fused operator that is not kept."""
        edit = Rewriter(graph)
        for node in graph.nodes:
            title = _title(node) if is_op(node, *FUSED) else ""
            if title and title not in self.keep:
                edit.did(node, f"{title} written out")
                _Expansion(graph, node).run()
        return edit.result()


def expanded(graph: SpikingGraph, keep: Sequence[str] = ()) -> SpikingGraph:
    """The graph with its fused operators written out but for ``keep``; the very graph where there are none. No history."""
    if not any(is_op(node, *FUSED) and _title(node) not in keep for node in graph.nodes):
        return graph
    return ExpandFused(tuple(keep)).run(graph.copy()).graph


def _title(node: fx.Node) -> str:
    target: Any = node.target
    return str(target._schema.name).partition("::")[2]


class _Expansion:
    """Of one node. Roles are those of ``meta["parts"]``."""

    def __init__(self, graph: SpikingGraph, node: fx.Node) -> None:
        self.graph, self.node = graph.graph, node
        self.given = arguments(node)
        self.sizes = list(node.meta["val"][1].shape[1:])  # of a sample's neurons

    def run(self) -> None:
        """Replaces the node."""
        given, node = self.given, self.node
        with self.graph.inserting_before(node):
            layer = self._layer()
            split = self._made("split", RESHAPE, layer, [given["steps"], -1, *self.sizes])
            neuron = self._neuron(split)
            end = self._made("", operator.getitem, neuron, 0)
            if given["levels"]:
                end = self._made("mark", LEVELS, end, *given["levels"])
            pooled = self._pooled(end) if given.get("pool") else None
        for output in list(node.users):
            if operand(output, 1) != 0:
                output.args = (neuron, operand(output, 1))
            elif pooled is not None:
                output.replace_all_uses_with(pooled)
            else:
                self._hand_on(output, end)

    def _made(self, role: str, target: Any, *args: Any, **keywords: Any) -> fx.Node:
        name, origin = self.node.meta.get("parts", {}).get(role, (None, {}))
        new = self.graph.create_node("call_function", target, args, keywords, name=name)
        new.meta = dict(origin)
        return new

    def _layer(self) -> fx.Node:
        x, weight, scales, bias = (self.given[k] for k in ("x", "weight", "scales", "layer_bias"))
        if "stride" not in self.given:
            if scales is not None:
                return self._made("layer", INTEGER_LINEAR, x, weight, scales, bias)
            return self._made("layer", aten.linear.default, *((x, weight) if bias is None else (x, weight, bias)))
        stride, padding, dilation, groups = (self.given[k] for k in ("stride", "padding", "dilation", "groups"))
        if scales is not None:
            return self._made("layer", INTEGER_CONV, x, weight, scales, bias, stride, padding, dilation, groups)
        plain = (False, [0] * len(stride))
        return self._made("layer", aten.convolution.default, x, weight, bias, stride, padding, dilation, *plain, groups)

    def _neuron(self, split: fx.Node) -> fx.Node:
        known = {a.name for a in LIF._schema.arguments}
        given = {k: a for k, a in self.given.items() if k in known} | {"x": split}
        defaults = defaults_of(LIF)
        keywords = {k: a for k, a in sorted(given.items()) if k not in _POSITIONAL and a != defaults[k]}
        neuron = self._made("neuron", LIF, *(given[k] for k in _POSITIONAL), **keywords)
        neuron.meta = {**neuron.meta, **{k: a for k, a in origin_of(self.node).items() if k != "parts"}}
        return neuron

    def _pooled(self, end: fx.Node) -> fx.Node:
        kernel, stride, padding = (self.given[k] for k in ("pool", "pool_stride", "pool_padding"))
        merged = self._made("merged", RESHAPE, end, [-1, *self.sizes])
        options = [kernel, stride, padding] if padding else [kernel, stride] if stride else [kernel]
        pool = self._made("pool", MAX_POOLS[len(kernel)], merged, *options)
        return self._made("", operator.getitem, pool, 0)

    def _hand_on(self, output: fx.Node, end: fx.Node) -> None:
        """The readers of ``output`` ``[T*N, ...]`` read ``end`` ``[T, N, ...]``."""
        merged: fx.Node | None = None
        for user in list(output.users):
            if is_op(user, RESHAPE) and list(operand(user, 1)) == [self.given["steps"], -1, *self.sizes]:
                user.replace_all_uses_with(end)
            elif is_op(user, RESHAPE):
                user.replace_input_with(output, end)
            else:
                if merged is None:
                    with self.graph.inserting_after(end):
                        merged = self._made("merged", RESHAPE, end, [-1, *self.sizes])
                user.replace_input_with(output, merged)
