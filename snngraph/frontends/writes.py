"""Writes into tensors, on an exported graph: they become the stack or the concatenation of what was written.

A model that fills a buffer, ``out[t] = s`` for every step, is exported as a chain of scatters, and each makes a copy of the whole
buffer with one entry replaced. Here

* a buffer that was written is the ``stack`` (or ``cat``) of what stands in it: the values written, and what is left of the
  buffer as it was made;
* a read of written entries is the value that was written there;
* a write where a condition holds, ``v[s > 0] = 0`` or ``v[s > 0] -= threshold``, is a ``where``;
* ``copy`` is a cast or an expansion of what is copied;
* a list that grows by ``cat`` at every step is one ``cat``;
* what is never written of a tensor that ``torch.empty`` made is NaN: a model that reads it is found out when it is compared.

Exactness: bitwise.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.frontends.operators import Constants, is_pointwise, is_static, squeezed_dims
from snngraph.graph import VIEWS, arguments, is_op, operand, origin_of, shape_of

__all__ = ["KEPT_WHOLE", "rewrite_writes"]

aten = torch.ops.aten

KEPT_WHOLE = (aten.select_scatter.default,)
"""Operators that the exporter is not to decompose before :func:`rewrite_writes` sees them."""

_EMPTY = aten.empty.memory_format
_RESHAPES = (*VIEWS, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims)
_UNDERSTOOD = (
    *(aten.copy.default, aten.select_scatter.default, aten.slice_scatter.default, aten.index_put.default),
    *(aten.select.int, aten.slice.Tensor, aten.index.Tensor),
)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What the entries ``[start, stop)`` of a buffer are.

    Args:
        start: the first entry.
        stop: the one behind the last.
        value: the tensor that holds them.
        offset: where they begin in ``value``; ``None`` for the one entry that ``value`` is, without the buffer's dimension.
    """

    start: int
    stop: int
    value: fx.Node
    offset: int | None = 0

    def between(self, start: int, stop: int) -> _Piece | None:
        """The part of it in ``[start, stop)``."""
        first, last = max(start, self.start), min(stop, self.stop)
        if first >= last:
            return None
        return replace(self, start=first, stop=last, offset=None if self.offset is None else self.offset + first - self.start)


@dataclass(frozen=True, slots=True)
class _Buffer:
    """A tensor as the pieces along one dimension, in order, without gaps."""

    dim: int
    pieces: tuple[_Piece, ...]

    def between(self, start: int, stop: int) -> tuple[_Piece, ...]:
        """The pieces of the entries ``[start, stop)``."""
        return tuple(part for piece in self.pieces if (part := piece.between(start, stop)) is not None)

    def written(self, piece: _Piece) -> _Buffer:
        """The buffer after a write."""
        end = self.pieces[-1].stop
        return replace(self, pieces=(*self.between(0, piece.start), piece, *self.between(piece.stop, end)))


def rewrite_writes(graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
    """Rewrites all writes of an exported graph, in place; what is not understood stays as it is.

    Args:
        graph: functional operators, with fake tensors as ``node.meta["val"]``.
        tensors: its constants by name.
    """
    _Writes(graph, tensors).run()


class _Writes:
    def __init__(self, graph: fx.Graph, tensors: dict[str, Tensor]) -> None:
        self.graph, self.constants = graph, Constants(tensors)
        self.buffers: dict[fx.Node, _Buffer] = {}
        self.written: set[fx.Node] = set()  # the buffers that are not put together yet: writes, and views of them
        self.like: fx.Node  # the node that is being rewritten: where new ones come from

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_function":
                self.like = node
                with self.graph.inserting_before(node):
                    value = self._rewritten(node)
                if value is not None:
                    node.replace_all_uses_with(value)
        self._settle()
        for node in reversed(list(self.graph.nodes)):
            if not node.users and node.op in ("call_function", "get_attr") and not _is_mutation(node):
                self.graph.erase_node(node)

    def _settle(self) -> None:
        """Puts every buffer that is still read as a whole together; from the output backwards, so that no other one is."""
        settled: dict[fx.Node, fx.Node] = {}
        seen: set[fx.Node] = set()
        waiting: list[fx.Node] = [self.graph.output_node()]
        while waiting:
            node = waiting.pop()
            if node in seen:
                continue
            seen.add(node)
            for source in node.all_input_nodes:
                if source not in settled:
                    settled[source] = self._settled(source)
                if settled[source] is not source:
                    node.replace_input_with(source, settled[source])
                waiting.append(settled[source])

    def _settled(self, node: fx.Node) -> fx.Node:
        self.like = node
        with self.graph.inserting_before(node):
            while node in self.written:  # what a buffer is may be another one
                node = self._assembled(self.buffers[node])
            if is_op(node, _EMPTY) and node.meta["val"].is_floating_point() and node.meta["val"].numel():
                keywords = {k: v for k, v in node.kwargs.items() if k != "memory_format"}
                return self._call(aten.full.default, operand(node), math.nan, **keywords)
        return node

    def _call(self, target: Any, *args: Any, **keywords: Any) -> fx.Node:
        node = self.graph.call_function(target, args, keywords)
        node.meta = origin_of(self.like)
        with torch.no_grad(), self.like.meta["val"].fake_mode:
            fakes, fake_keywords = fx.node.map_arg((args, keywords), lambda n: n.meta["val"])
            node.meta["val"] = target(*fakes, **fake_keywords)
        return node

    # -- one node ----------------------------------------------------------------------------------------------------------

    def _rewritten(self, node: fx.Node) -> fx.Node | None:
        """What takes the place of ``node``, if anything; a write is noted as a buffer and stays until all reads are known."""
        if not is_static(node):
            return None
        found = _arguments(node) if node.target in _UNDERSTOOD else {}
        if is_op(node, aten.copy.default):
            return self._as(found["src"], found["self_"])
        if is_op(node, aten.cat.default):
            return self._flat(node)
        if is_op(node, aten.permute.default, *_RESHAPES):
            undone = _undone(node)
            if undone is None and is_op(node, aten.permute.default):
                self._permute(node)
            return undone
        if is_op(node, aten.select_scatter.default):
            index = found["index"] % shape_of(node)[found["dim"]]
            self._write(node, found["self_"], found["dim"], [(_Piece(index, index + 1, found["src"], None))])
        elif is_op(node, aten.slice_scatter.default):
            self._slice_scatter(node, **found)
        elif is_op(node, aten.index_put.default):
            return self._index_put(node, **found)
        elif is_op(node, aten.select.int):
            source, dim = found["self_"], found["dim"]
            return self._entry(source, dim % len(shape_of(source)), found["index"] % shape_of(source)[dim])
        elif is_op(node, aten.slice.Tensor):
            return self._slice(**found)
        elif is_op(node, aten.index.Tensor):
            return self._indexed(**found)
        return None

    def _as(self, value: fx.Node, like: fx.Node) -> fx.Node:
        """``value`` in the type and shape of ``like``."""
        wanted = like.meta["val"]
        if value.meta["val"].dtype != wanted.dtype:
            value = self._call(aten._to_copy.default, value, dtype=wanted.dtype)
        return value if shape_of(value) == shape_of(like) else self._call(aten.expand.default, value, list(wanted.shape))

    def _flat(self, node: fx.Node) -> fx.Node | None:
        """A ``cat`` of what went into the ``cat``s it joins, without the empty tensors that lists begin with."""
        dim = arguments(node)["dim"] % len(shape_of(node))
        parts: list[fx.Node] = []
        for part in operand(node):
            inner = is_op(part, aten.cat.default) and arguments(part)["dim"] % len(shape_of(part)) == dim
            parts += operand(part) if inner else [part]
        full = [part for part in parts if 0 not in shape_of(part)]
        if full == list(operand(node)) or not full or len({part.meta["val"].dtype for part in parts}) > 1:
            return None
        return full[0] if len(full) == 1 else self._call(aten.cat.default, full, dim)

    # -- writes ------------------------------------------------------------------------------------------------------------

    def _write(self, node: fx.Node, base: fx.Node, dim: int, pieces: Iterable[_Piece]) -> None:
        """Notes that ``node`` is ``base`` with other pieces along ``dim``."""
        dim %= len(shape_of(node))
        buffer = self.buffers.get(base)
        if buffer is None or buffer.dim != dim:
            buffer = _Buffer(dim, (_Piece(0, shape_of(base)[dim], base),))
        for piece in pieces:
            buffer = buffer.written(replace(piece, value=self._cast(piece.value, base)))
        self.buffers[node] = buffer
        self.written.add(node)

    def _slice_scatter(
        self, node: fx.Node, self_: fx.Node, src: fx.Node, dim: int, start: int | None, end: int | None, step: int
    ) -> None:
        first, last, step = slice(start, end, step).indices(shape_of(node)[dim])
        if step == 1:
            self._write(node, self_, dim, [_Piece(first, last, src)] if first < last else [])
        else:
            self._write(node, self_, dim, [_Piece(k, k + 1, src, offset) for offset, k in enumerate(range(first, last, step))])

    def _cast(self, value: fx.Node, like: fx.Node) -> fx.Node:
        dtype = like.meta["val"].dtype
        return value if value.meta["val"].dtype == dtype else self._call(aten._to_copy.default, value, dtype=dtype)

    def _index_put(
        self, node: fx.Node, self_: fx.Node, indices: Sequence[fx.Node | None], values: fx.Node, accumulate: bool
    ) -> fx.Node | None:
        given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if len(given) != 1:
            return None
        dim, index = given[0]
        if index.meta["val"].dtype == torch.bool:
            return self._write_where(self_, values, dim, index, accumulate)
        positions = None if accumulate else self.constants.value(index)
        if positions is not None:
            self._write_at(node, self_, values, dim, positions)
        return None

    def _write_at(self, node: fx.Node, base: fx.Node, value: fx.Node, dim: int, positions: Tensor) -> None:
        """``base[..., positions] = value``, with ``positions`` known numbers."""
        shape = shape_of(base)
        entries = [int(k) % shape[dim] for k in positions.flatten()]
        if positions.dim() > 1 or len(set(entries)) < len(entries):
            return  # which of two values for one entry remains is not defined
        wanted = [*shape[:dim], *positions.shape, *shape[dim + 1 :]]
        value = value if list(shape_of(value)) == wanted else self._call(aten.expand.default, value, wanted)
        single = not positions.dim()
        self._write(node, base, dim, [_Piece(k, k + 1, value, None if single else j) for j, k in enumerate(entries)])

    def _write_where(self, base: fx.Node, values: Any, dim: int, mask: fx.Node, accumulate: bool) -> fx.Node | None:
        """``base[..., mask] = values``: ``where(mask, values, base)``, with ``values`` computed for all entries."""
        behind = len(shape_of(base)) - dim - len(shape_of(mask))  # dimensions behind those of the mask
        values = self._unmasked(values, base, dim, mask, behind)
        if values is None:
            return None
        if accumulate:
            values = self._call(aten.add.Tensor, base, values)
        condition = mask
        for _ in range(behind):
            condition = self._call(aten.unsqueeze.default, condition, -1)
        return self._call(aten.where.self, condition, values, base)

    def _unmasked(self, value: Any, base: fx.Node, dim: int, mask: fx.Node, behind: int) -> Any:
        """What was computed for the entries of a mask alone, ``[number of them, ...]``, computed for all entries of ``base``."""
        if not isinstance(value, fx.Node):
            return value
        if is_op(value, aten.index.Tensor):
            whole, masks = operand(value), operand(value, 1)
            same = len(masks) == dim + 1 and set(masks[:dim]) <= {None} and shape_of(whole) == shape_of(base)
            return whole if same and _equal(masks[dim], mask) else None
        if is_static(value):
            shape = shape_of(value)
            return value if len(shape) <= behind or (len(shape) == behind + 1 and shape[0] == 1) else None
        if value.op != "call_function" or not (is_pointwise(value) or is_op(value, aten._to_copy.default, aten.clone.default)):
            return None
        parts = {n: self._unmasked(n, base, dim, mask, behind) for n in value.all_input_nodes}
        if any(part is None for part in parts.values()):
            return None
        args, keywords = fx.node.map_arg((value.args, value.kwargs), parts.__getitem__)
        return self._call(value.target, *args, **keywords)

    # -- reads -------------------------------------------------------------------------------------------------------------

    def _permute(self, node: fx.Node) -> None:
        """A buffer whose dimensions are exchanged is one along another dimension; so is what was written to such a view."""
        buffer, order = self.buffers.get(operand(node)), [d % len(shape_of(node)) for d in operand(node, 1)]
        if buffer is None:
            return
        inner = [d - (d > buffer.dim) for d in order if d != buffer.dim]  # of a value without the buffer's dimension
        pieces = []
        for piece in buffer.pieces:
            new = order if piece.offset is not None else inner
            value = piece.value if new == sorted(new) else self._permuted(piece.value, new)
            pieces.append(replace(piece, value=value))
        self.buffers[node] = _Buffer(order.index(buffer.dim), tuple(pieces))
        self.written.add(node)

    def _permuted(self, value: fx.Node, order: list[int]) -> fx.Node:
        node = self._call(aten.permute.default, value, order)
        return _undone(node) or node

    def _slice(self, self_: fx.Node, dim: int, start: int | None, end: int | None, step: int) -> fx.Node | None:
        dim %= len(shape_of(self_))
        first, last, step = slice(start, end, step).indices(shape_of(self_)[dim])
        return self._part(self_, dim, first, last) if step == 1 else None

    def _indexed(self, self_: fx.Node, indices: Sequence[fx.Node | None]) -> fx.Node | None:
        """``buffer[k]``, with ``k`` a tensor that holds one known number."""
        given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if self_ not in self.buffers or len(given) != 1 or shape_of(given[0][1]):
            return None
        dim, index = given[0]
        position = self.constants.value(index)
        kept = position is None or position.dtype == torch.bool
        return None if kept else self._entry(self_, dim, int(position or 0) % shape_of(self_)[dim])

    def _entry(self, source: fx.Node, dim: int, index: int) -> fx.Node | None:
        """Entry ``index`` of a buffer along ``dim``; ``None`` where ``source`` is no buffer along it."""
        buffer = self.buffers.get(source)
        if buffer is None or buffer.dim != dim:
            return None
        (piece,) = buffer.between(index, index + 1)
        if piece.offset is None:
            return piece.value
        inner = self._entry(piece.value, dim, piece.offset)
        return self._call(aten.select.int, piece.value, dim, piece.offset) if inner is None else inner

    def _part(self, source: fx.Node, dim: int, start: int, stop: int) -> fx.Node | None:
        """Entries ``[start, stop)`` of a buffer along ``dim``; ``None`` where ``source`` had better be sliced itself."""
        if (start, stop) == (0, shape_of(source)[dim]):
            return source
        buffer = self.buffers.get(source)
        if buffer is None or start >= stop:
            return None
        if buffer.dim == dim:
            pieces = buffer.between(start, stop)
            return self._noted(
                replace(buffer, pieces=tuple(replace(p, start=p.start - start, stop=p.stop - start) for p in pieces))
            )
        if not self._has_empty(source):
            return None
        first, last = self._filled(source, dim)
        if not first <= start < stop <= last or last - first == shape_of(source)[dim]:
            first, last = start, stop  # what was never written may be cut away by another read
        pieces = tuple(self._narrowed(piece, buffer.dim, dim, first, last) for piece in buffer.pieces)
        return self._cut(self._noted(replace(buffer, pieces=pieces)), dim, start - first, stop - first)

    def _narrowed(self, piece: _Piece, along: int, dim: int, start: int, stop: int) -> _Piece:
        """Of a piece along one dimension, the entries ``[start, stop)`` along another."""
        if piece.offset is None:
            return replace(piece, value=self._cut(piece.value, dim - (dim > along), start, stop))
        whole = self._cut(piece.value, along, piece.offset, piece.offset + piece.stop - piece.start)
        return replace(piece, value=self._cut(whole, dim, start, stop), offset=0)

    def _filled(self, node: fx.Node, dim: int) -> tuple[int, int]:
        """Entries ``[start, stop)`` of a tensor along ``dim`` that were written, but for what was not along another dimension."""
        buffer = self.buffers.get(node)
        if buffer is None:
            return 0, shape_of(node)[dim]
        written = [piece for piece in buffer.pieces if not _is_empty(piece.value)]
        if not written:
            return 0, 0
        if buffer.dim == dim:
            return written[0].start, written[-1].stop
        each = [self._filled(p.value, dim - (p.offset is None and dim > buffer.dim)) for p in written]
        return max(first for first, _ in each), min(last for _, last in each)

    def _has_empty(self, node: fx.Node) -> bool:
        """Whether a part of it was never written, so that a read of the rest had better not touch it."""
        buffer = self.buffers.get(node)
        return _is_empty(node) if buffer is None else any(self._has_empty(piece.value) for piece in buffer.pieces)

    def _cut(self, value: fx.Node, dim: int, start: int, stop: int) -> fx.Node:
        part = self._part(value, dim, start, stop)
        return self._call(aten.slice.Tensor, value, dim, start, stop) if part is None else part

    def _noted(self, buffer: _Buffer) -> fx.Node:
        """The node of a buffer that was read, itself a buffer."""
        node = self._assembled(buffer)
        if len(buffer.pieces) > 1:
            self.buffers[node] = buffer
        return node

    def _assembled(self, buffer: _Buffer) -> fx.Node:
        """The tensor that a buffer is: one of its pieces, their stack, or their concatenation."""
        dim, pieces = buffer.dim, buffer.pieces
        if all(piece.offset is None for piece in pieces):
            return self._stacked(pieces, dim)
        runs = itertools.groupby(pieces, key=lambda piece: piece.offset is None)
        parts: list[fx.Node] = []
        for single, run in runs:
            parts += [self._stacked(list(run), dim)] if single else self._cuts(list(run), dim)
        return parts[0] if len(parts) == 1 else self._call(aten.cat.default, parts, dim)

    def _stacked(self, pieces: Sequence[_Piece], dim: int) -> fx.Node:
        if len(pieces) == 1:
            return self._call(aten.unsqueeze.default, pieces[0].value, dim)
        return self._call(aten.stack.default, [piece.value for piece in pieces], dim)

    def _cuts(self, pieces: Iterable[_Piece], dim: int) -> list[fx.Node]:
        return [self._cut(p.value, dim, p.offset, p.offset + p.stop - p.start) for p in pieces if p.offset is not None]


def _arguments(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator call by name, to be passed to a method: ``self`` is ``self_``."""
    return {"self_" if name == "self" else name: value for name, value in arguments(node).items()}


def _equal(a: Any, b: Any) -> bool:
    """Whether two arguments have the same value for being computed alike, as a condition that is written twice is."""
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if not (isinstance(a, fx.Node) and isinstance(b, fx.Node)) or a is b:
        return a is b or (type(a) is type(b) and bool(a == b))
    if not (a.op == b.op == "call_function") or a.target != b.target or a.kwargs != b.kwargs:
        return False
    return torch.Tag.nondeterministic_seeded not in getattr(a.target, "tags", ()) and _equal(a.args, b.args)


def _is_mutation(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_empty(node: fx.Node) -> bool:
    """Whether it is what ``torch.empty`` made, or a part of it."""
    while is_op(node, aten.slice.Tensor, aten.select.int, aten.permute.default, *_RESHAPES):
        node = operand(node)
    return is_op(node, _EMPTY)


def _undone(node: fx.Node) -> fx.Node | None:
    """What was permuted, or reshaped, and then brought back by ``node``."""
    before = operand(node)
    if is_op(node, aten.permute.default):
        if not is_op(before, aten.permute.default):
            return None
        first, second = ([d % len(shape_of(node)) for d in operand(n, 1)] for n in (before, node))
        return operand(before) if [first[d] for d in second] == sorted(first) else None
    if not is_op(before, *_RESHAPES) or shape_of(operand(before)) != shape_of(node):
        return None
    kept = [d for n in (before, node) for d in squeezed_dims(n) if shape_of(operand(n))[d] != 1]  # a batch, which may be 1
    return None if kept else operand(before)
