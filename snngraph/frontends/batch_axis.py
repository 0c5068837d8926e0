"""The batch axis of an exported model: found by exporting it at two batch sizes.

Both graphs have the same operators; the sizes in which they differ carry the batch, and are written as ``-1``. So nothing in a
graph is symbolic, and yet it runs at any batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from snngraph.graph import LIF_STEP, VIEWS, arguments, is_op, module_path, operand, shape_of, source_line

__all__ = ["FixedBatchError", "Raw", "equal_tensors", "free_the_batch"]

aten = torch.ops.aten
_ARITHMETIC = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)
_BROADCASTING = (*_ARITHMETIC, aten.where.self, aten.maximum.default, aten.minimum.default)
_CREATION = (aten.full.default, aten.zeros.default, aten.ones.default)

Raw: TypeAlias = tuple[fx.Graph, dict[str, Tensor], list[str]]
"""An exported model: its graph, its constant tensors by name, and the names of its inputs."""


class FixedBatchError(Exception):
    """Why a graph does not run at another batch size."""


def free_the_batch(raw: Raw, other: Raw) -> None:
    """Writes ``-1`` wherever the two graphs differ.

    Raises:
        FixedBatchError: they differ in something else.
    """
    nodes, others = list(raw[0].nodes), list(other[0].nodes)
    if [n.target for n in nodes if n.op != "get_attr"] != [n.target for n in others if n.op != "get_attr"]:
        raise FixedBatchError("the model runs other operators at another batch size")
    for a, b in zip(nodes, others, strict=True):
        if a.op == "get_attr" and not equal_tensors(raw[1][str(a.target)], other[1][str(b.target)]):
            raise FixedBatchError(f"the constant {a.target} depends on the batch size")
        if is_op(a, aten.squeeze.default):
            raise FixedBatchError(
                f"squeeze() without a dimension drops the batch of a single sample too; name the dimension{_at(a)}"
            )
        if is_op(a, *VIEWS):  # the sizes, where the model left one to be inferred
            a.args, b.args = (a.args[0], list(shape_of(a))), (b.args[0], list(shape_of(b)))
        if a.op == "call_function":
            a.args = tuple(_merge(a, k, x, y) for k, (x, y) in enumerate(zip(a.args, b.args, strict=True)))
            if any(not isinstance(x, fx.Node) and x != b.kwargs[k] for k, x in a.kwargs.items()):
                raise FixedBatchError(f"{a.target} has an argument that depends on the batch size{_at(a)}")


def equal_tensors(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape, one type and the same values, NaN where the other is NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _merge(node: fx.Node, position: int, a: Any, b: Any) -> Any:
    if isinstance(a, fx.Node) or a == b or (a != a and b != b):
        return a
    if isinstance(a, tuple | list) and len(a) == len(b) and any(isinstance(x, fx.Node) for x in a):
        return a
    if position == 1 and is_op(node, *VIEWS):
        return _minus_one(node, a, b)
    if position == 1 and is_op(node, aten.expand.default):
        shape = shape_of(operand(node))
        lead = len(a) - len(shape)
        differing = [d for d, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if all(d >= lead and shape[d - lead] == a[d] for d in differing):
            return [-1 if d in differing else x for d, x in enumerate(a)]
    if position == 0 and is_op(node, *_CREATION) and all(_broadcasts_in(node, user) for user in node.users):
        return [1 if x != y else x for x, y in zip(a, b, strict=True)]  # a constant state per sample: it broadcasts
    if position in (2, 3) and is_op(node, aten.slice.Tensor):
        size = shape_of(operand(node))[arguments(node)["dim"]]
        if position == 3 and a == size:
            return torch.iinfo(torch.int64).max
    raise FixedBatchError(f"{node.target} has an argument that depends on the batch size, {a} and {b}{_at(node)}")


def _broadcasts_in(node: fx.Node, user: fx.Node) -> bool:
    """Whether one sample of a constant does in ``user``: as a neuron's state, or beside an operand of the same shape."""
    if is_op(user, LIF_STEP):
        return all(name in ("v", "i") for name, a in arguments(user).items() if a is node)
    others = [n for n in user.all_input_nodes if n is not node]
    return is_op(user, *_BROADCASTING) and any(shape_of(n) == shape_of(node) for n in others)


def _minus_one(node: fx.Node, a: Sequence[int], b: Sequence[int]) -> list[int]:
    differing = [d for d, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if len(differing) > 1:
        raise FixedBatchError(f"a reshape puts the batch into several dimensions, {list(a)}{_at(node)}")
    return [-1 if d in differing else x for d, x in enumerate(a)]


def _at(node: fx.Node) -> str:
    path, source = module_path(node), source_line(node)
    return (f", in module {path!r}" if path else "") + (f", {source}" if source else "")
