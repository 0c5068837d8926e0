"""What is known of single operators of an exported graph."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.graph import is_op, operand, shape_of

__all__ = ["Constants", "is_pointwise", "is_static", "squeezed_dims"]

aten = torch.ops.aten
_LARGEST_CONSTANT = 1 << 22  # elements


def is_static(node: fx.Node) -> bool:
    """Whether it is one tensor whose sizes do not depend on data."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and all(isinstance(n, int) for n in value.shape)


def is_pointwise(node: fx.Node) -> bool:
    """Whether the operator works element by element, always alike; operands broadcast."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def squeezed_dims(node: fx.Node) -> list[int]:
    """The dimensions that a squeeze drops where they have one entry; ``squeeze()`` is exported with all of them."""
    if not is_op(node, aten.squeeze.dim, aten.squeeze.dims):
        return []
    dims = operand(node, 1)
    return [d % len(shape_of(operand(node))) for d in (dims if isinstance(dims, list | tuple) else [dims])]


class Constants:
    """The values of what a graph computes from its constants alone."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self._known: dict[fx.Node, Tensor | None] = {}

    def value(self, node: fx.Node) -> Tensor | None:
        """``None`` where an input has a part in it, or randomness, or where it is large."""
        if node not in self._known:
            self._known[node] = self._computed(node)
        return self._known[node]

    def _computed(self, node: fx.Node) -> Tensor | None:
        if node.op == "get_attr":
            return self.tensors[str(node.target)]
        function: Any = node.target
        if node.op != "call_function" or torch.Tag.nondeterministic_seeded in getattr(function, "tags", ()):
            return None
        if not is_static(node) or math.prod(shape_of(node)) > _LARGEST_CONSTANT:
            return None
        values = {n: self.value(n) for n in node.all_input_nodes}
        if any(value is None for value in values.values()):
            return None
        args, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            result = function(*args, **keywords)
        return result if isinstance(result, Tensor) else None
