"""The batch axis of an exported model: found by exporting it at two batch sizes.

Both graphs have the same operators; the sizes in which they differ carry the batch, and are written as ``-1``. So nothing in a
graph is symbolic, and yet it runs at any batch size.

A tensor that has the same numbers for every sample, ``torch.zeros(N, C)`` above all, is made for one sample and broadcasts:
it is *thin*. Operators that work element by element take it as it is, and give something thin if nothing else carries the batch.
Before any other operator it is expanded to the batch of the input, ``expand_as(thin, like)``, where ``like`` is made of zeros
that have the input's batch size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from snngraph.frontends.operators import Constants, is_pointwise, squeezed_dims
from snngraph.graph import LIF, LIF_STEP, RESHAPE, VIEWS, arguments, is_op, module_path, operand, origin_of, shape_of, source_line

__all__ = ["FixedBatchError", "OtherOperatorsError", "Raw", "equal_tensors", "free_the_batch", "spell_out"]

aten = torch.ops.aten

Raw: TypeAlias = tuple[fx.Graph, dict[str, Tensor], list[str]]
"""An exported model: its graph, its constant tensors by name, and the names of its inputs."""

_CREATION = (aten.full.default, aten.zeros.default, aten.ones.default, aten.empty.memory_format)
_CREATION_LIKE = (aten.full_like.default, aten.zeros_like.default, aten.ones_like.default)
_NUMBERING = (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default, aten.eye.m)
_RANDOM = (aten.rand.default, aten.randn.default, aten.randint.default, aten.randint.low, aten.randperm.default)
_RESHAPES = (*VIEWS, aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims)
_COPIES = (aten._to_copy.default, aten.clone.default, aten.alias.default, aten.detach.default, aten.contiguous.default)
_TO_THE_END = torch.iinfo(torch.int64).max


class FixedBatchError(Exception):
    """Why a graph does not run at another batch size."""


class OtherOperatorsError(FixedBatchError):
    """At another batch size the model runs other operators."""


def equal_tensors(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape, one type and the same values, NaN where the other is NaN."""
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def spell_out(graph: fx.Graph) -> None:
    """Spells operators so that nothing they depend on is in the way.

    ``native_group_norm``, which is told the batch size, becomes ``group_norm``, which is not; and what fills a tensor is told its
    type, so as not to depend on PyTorch's default.
    """
    for node in list(graph.nodes):
        if is_op(node, *_CREATION):
            node.kwargs = {**node.kwargs, "dtype": node.meta["val"].dtype}
        elif is_op(node, aten.native_group_norm.default):
            _spell_group_norm(graph, node)


def _spell_group_norm(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias, n, c, _, groups, eps = node.args
    if shape_of(x)[:2] != (n, c) or any(operand(user, 1) != 0 for user in node.users):
        return
    with graph.inserting_before(node):
        norm = graph.call_function(aten.group_norm.default, (x, groups, weight, bias, eps))
    norm.meta = origin_of(node) | {"val": node.meta["val"][0]}
    for user in list(node.users):
        user.replace_all_uses_with(norm)
        graph.erase_node(user)
    graph.erase_node(node)


def free_the_batch(raw: Raw, other: Raw) -> None:
    """Writes ``-1`` wherever the two graphs differ, and makes what is the same for every sample only once; in ``raw``.

    Raises:
        FixedBatchError: they differ in something else.
    """
    _Freeing(raw, other).run()


_Sizes: TypeAlias = "tuple[tuple[int, int], ...]"  # of one tensor, at both batch sizes


class _Freeing:
    def __init__(self, raw: Raw, other: Raw) -> None:
        self.graph, self.tensors = raw[:2]
        self.others = other[1]
        nodes, twins = list(raw[0].nodes), list(other[0].nodes)
        if [(n.op, _target(n)) for n in nodes] != [(n.op, _target(n)) for n in twins]:
            raise OtherOperatorsError("the model runs other operators at another batch size")
        self.twin = dict(zip(nodes, twins, strict=True))
        self.sizes: dict[fx.Node, _Sizes] = {}
        for a, b in self.twin.items():
            x, y = a.meta.get("val"), b.meta.get("val")
            if isinstance(x, Tensor) and isinstance(y, Tensor):
                self.sizes[a] = tuple(zip(x.shape, y.shape, strict=True))
        self.thin: dict[
            fx.Node, int
        ] = {}  # what is made for one sample -> the dimension that has 1 where the model has the batch
        self.first = next(n for n in nodes if n.op in ("call_function", "output"))
        self.carrier: tuple[fx.Node, int] | None = None  # an input, and its batch axis
        self.batch = (1, 1)  # its size, in both graphs
        self.done: set[fx.Node] = set()  # what was rewritten before its turn
        self.like: dict[tuple[_Sizes, int], fx.Node] = {}
        self.constants = Constants(self.tensors)  # for one sample: each is asked for after it was made thin

    def run(self) -> None:
        for node, twin in self.twin.items():
            if node.op == "placeholder" and self.carrier is None and len(self._varying(node)) == 1:
                self.carrier = node, self._varying(node)[0]
                self.batch = self.sizes[node][self.carrier[1]]
            elif node.op == "get_attr" and not equal_tensors(self.tensors[str(node.target)], self.others[str(twin.target)]):
                raise FixedBatchError(f"the constant {node.target} depends on the batch size")
            elif node.op == "output":
                self._widen_operands(node)
            elif node.op == "call_function" and node not in self.done:
                self._free(node, twin)

    def _varying(self, node: fx.Node) -> list[int]:
        """The dimensions of a tensor that change with the batch size in the model."""
        return [d for d, (a, b) in enumerate(self.sizes.get(node, ())) if a != b]

    def _free(self, node: fx.Node, twin: fx.Node) -> None:
        for targets, rule in self._rules():
            if is_op(node, *targets) and rule(node):
                return
        dim = self._thin_result(node)
        if dim is None:
            self._widen_operands(node)
        elif dim >= 0:
            self.thin[node] = dim
        self._require_equal(node, twin)

    def _rules(self) -> tuple[tuple[tuple[Any, ...], Callable[[fx.Node], bool]], ...]:
        """Operators whose arguments may depend on the batch size; each rule tells whether it has dealt with the node."""
        return (
            (_CREATION, self._creation),
            (_CREATION_LIKE, self._creation_like),
            ((aten.expand.default,), self._expand),
            ((aten.repeat.default,), self._repeat),
            (_RESHAPES, self._reshape),
            ((aten.slice.Tensor,), self._slice),
            ((aten.split_with_sizes.default, aten.split.Tensor), self._split),
        )

    def _require_equal(self, node: fx.Node, twin: fx.Node) -> None:
        differing = _differing((*node.args, *node.kwargs.values()), (*twin.args, *twin.kwargs.values()))
        if differing is None:
            return
        if is_op(node, *_NUMBERING):
            raise FixedBatchError(f"{node.target} numbers the samples of a batch{_at(node)}")
        if is_op(node, *_RANDOM):
            raise FixedBatchError(f"{node.target} draws random numbers for every sample{_at(node)}")
        raise FixedBatchError(
            f"{node.target} has an argument that depends on the batch size, {differing[0]} and {differing[1]}{_at(node)}"
        )

    # -- operators that are told the batch size ----------------------------------------------------------------------------

    def _creation(self, node: fx.Node) -> bool:
        varying = self._varying(node)
        if len(varying) != 1 or _differing(node.args[1:], self.twin[node].args[1:]) is not None:
            return False
        node.args = ([1 if d in varying else n for d, n in enumerate(shape_of(node))], *node.args[1:])
        self.thin[node] = varying[0]
        return True

    def _creation_like(self, node: fx.Node) -> bool:
        """``full_like(x)``: the numbers of ``x`` do not matter, and its batch only where it is needed."""
        varying = self._varying(node)
        if len(varying) != 1 or _differing(node.args[1:], self.twin[node].args[1:]) is not None:
            return False
        default = 1.0 if is_op(node, aten.ones_like.default) else 0.0
        shape = [1 if d in varying else n for d, n in enumerate(shape_of(node))]
        node.target, node.args = aten.full.default, (shape, node.args[1] if len(node.args) > 1 else default)
        node.kwargs = {"dtype": node.meta["val"].dtype}
        self.thin[node] = varying[0]
        return True

    def _expand(self, node: fx.Node) -> bool:
        source: fx.Node = operand(node)
        lead = len(shape_of(node)) - len(shape_of(source))
        carried = [d + lead for d in self._varying(source) if source not in self.thin]
        made = [d for d in self._varying(node) if d not in carried]
        if len(made) > 1 or (made and carried):
            raise FixedBatchError(f"an expansion puts the batch into several dimensions{_at(node)}")
        node.args = (source, [-1 if d in carried else 1 if d in made else n for d, n in enumerate(shape_of(node))])
        if made:
            self.thin[node] = made[0]
        return True

    def _repeat(self, node: fx.Node) -> bool:
        """Repeated as often as there are samples, one entry is thin; several are first set apart from the repetitions."""
        source: fx.Node = operand(node)
        times, others = list(operand(node, 1)), list(operand(self.twin[node], 1))
        differing = [d for d, (a, b) in enumerate(zip(times, others, strict=True)) if a != b]
        if len(differing) != 1 or source in self.thin or self._varying(source):
            return False
        dim, lead = differing[0], len(times) - len(shape_of(source))
        size = shape_of(source)[dim - lead] if dim >= lead else 1
        once = [1 if d == dim else n for d, n in enumerate(times)]
        if size == 1:
            node.args = (source, once)
            self.thin[node] = dim
            return True
        shape, pairs = list(shape_of(node)), list(self.sizes[node])
        apart = [*shape[:dim], 1, size, *shape[dim + 1 :]]
        pairs[dim : dim + 1] = [(times[dim], others[dim]), (size, size)]
        with self.graph.inserting_before(node):
            whole = self.graph.call_function(aten.repeat.default, (source, once))
            whole = self.graph.call_function(RESHAPE, (whole, apart))
            whole = self.graph.call_function(aten.expand_as.default, (whole, self._like(node, tuple(pairs), dim)))
        node.target, node.args = RESHAPE, (whole, [-1 if d == dim else n for d, n in enumerate(shape)])
        return True

    def _reshape(self, node: fx.Node) -> bool:
        """The sizes as they are where the model left one to be inferred."""
        source: fx.Node = operand(node)
        varying, shape = self._varying(node), shape_of(node)
        if set(squeezed_dims(node)) & set(self._varying(source)):
            raise FixedBatchError(
                f"squeeze() without a dimension drops the batch of a single sample too; name the dimension{_at(node)}"
            )
        if source in self.thin:
            if self._stays_thin(source, node):
                node.target, node.args = RESHAPE, (source, [1 if d in varying else n for d, n in enumerate(shape)])
                self.thin[node] = varying[0]
                return True
            self._widen_operands(node)
        if not is_op(node, *VIEWS):
            return False
        if len(varying) > 1:
            raise FixedBatchError(f"a reshape puts the batch into several dimensions, {list(shape)}{_at(node)}")
        node.args = (node.args[0], [-1 if d in varying else n for d, n in enumerate(shape)])
        return True

    def _stays_thin(self, source: fx.Node, node: fx.Node) -> bool:
        """Whether a reshape leaves the dimension that is thin as it is, with as many entries before it."""
        before, after, varying, dim = self.sizes[source], self.sizes[node], self._varying(node), self.thin[source]
        if len(varying) != 1 or before[dim] != after[varying[0]]:
            return False
        return math.prod(a for a, _ in before[:dim]) == math.prod(a for a, _ in after[: varying[0]])

    def _slice(self, node: fx.Node) -> bool:
        """``x[:, :N]``, when there are ``N``; ``x[t*N:(t+1)*N]``, when steps and samples share a dimension."""
        found, other = arguments(node), arguments(self.twin[node])
        source: fx.Node = found["self"]
        dim, pairs = found["dim"] % len(shape_of(node)), self.sizes[source]
        size = pairs[dim]
        limits = [slice(x["start"], x["end"], x["step"]).indices(n) for x, n in zip((found, other), size, strict=True)]
        if size[0] == size[1] or _differing(node.args, self.twin[node].args) is None:
            return False
        (start, stop, step), (far_start, far_stop, _) = limits
        if (start, stop) == (far_start, size[0]) and far_stop == size[1]:
            self._widen_operands(node)
            node.args = (node.args[0], dim, start, _TO_THE_END, step)
            return True
        times = self._times(size)
        if not times or step != 1 or (start * times) % size[0] or (stop * times) % size[0]:
            return False
        first, last = start * times // size[0], stop * times // size[0]
        if (first * size[1], last * size[1]) != (far_start * times, far_stop * times):
            return False
        with self.graph.inserting_before(node):
            apart = self._apart(node, source, dim, times)
            part = self.graph.call_function(aten.slice.Tensor, (apart, dim, first, last))
        node.target, node.kwargs = RESHAPE, {}
        node.args = (part, [-1 if d == dim else n for d, n in enumerate(shape_of(node))])
        return True

    def _split(self, node: fx.Node) -> bool:
        """``x.split(N)``, when steps and samples share a dimension."""
        found, other = arguments(node), arguments(self.twin[node])
        source: fx.Node = found["self"]
        dim = found["dim"] % len(shape_of(source))
        times = self._times(self.sizes[source][dim])
        lengths = [
            {v.shape[dim] for v in n.meta["val"]} == {size // max(times, 1)}
            for n, size in zip((node, self.twin[node]), self.sizes[source][dim], strict=True)
        ]
        if _differing(list(found.values()), list(other.values())) is None or times < 2 or not all(lengths):
            return False
        with self.graph.inserting_before(node):
            apart = self._apart(node, source, dim, times)
        for user in list(node.users):
            user.target, user.args = aten.select.int, (apart, dim, operand(user, 1))
            self.done.add(user)
        self.graph.erase_node(node)
        return True

    def _times(self, size: tuple[int, int]) -> int:
        """How many batches a dimension of this size holds; 0 if it is no whole number of them."""
        a, b = self.batch
        times = size[0] // a
        return times if size == (times * a, times * b) else 0

    def _apart(self, node: fx.Node, source: fx.Node, dim: int, times: int) -> fx.Node:
        """``source`` with so many batches in a dimension of their own before the samples."""
        self._widen_operands(node)
        shape = shape_of(source)
        return self.graph.call_function(RESHAPE, (operand(node), [*shape[:dim], times, -1, *shape[dim + 1 :]]))

    # -- what is the same for every sample ---------------------------------------------------------------------------------

    def _thin_result(self, node: fx.Node) -> int | None:
        """The dimension in which the result is thin if the thin operands stay as they are; -1 if it is not thin then.

        ``None`` if they have to be expanded.
        """
        thin = [n for n in node.all_input_nodes if n in self.thin]
        if not thin:
            return -1
        if is_op(node, LIF, LIF_STEP):
            return self._state_of_neuron(node)
        varying = self._varying(node)
        if len(varying) != 1:
            return None
        (dim,) = varying
        rank = len(shape_of(node))
        if is_pointwise(node):
            if any(self.thin[n] + rank - len(shape_of(n)) != dim for n in thin):
                return None
            return -1 if any(self._varying(n) for n in node.all_input_nodes if n not in self.thin) else dim
        return dim if self._moves_alone(node, thin) or self._of_zeros(node, thin) else None

    def _state_of_neuron(self, node: fx.Node) -> int | None:
        """State and parameters broadcast to a step of the input; the input itself is what carries the batch."""
        found = arguments(node)
        x: fx.Node = found["x"]
        varying, rank = self._varying(x), len(shape_of(x))
        others = [n for n in node.all_input_nodes if n in self.thin and n is not x]
        if len(varying) != 1 or any(self.thin[n] + rank - len(shape_of(n)) != varying[0] for n in others):
            return None
        if x in self.thin:
            node.replace_input_with(x, self._widened(x))
        return -1

    def _moves_alone(self, node: fx.Node, thin: list[fx.Node]) -> bool:
        """Whether the operator moves other dimensions than the thin one of its operands."""
        (source, *rest), dim = thin, self.thin[thin[0]]
        if is_op(node, *_COPIES, aten.permute.default):
            return True
        if is_op(node, aten.select.int, aten.slice.Tensor):
            return bool(arguments(node)["dim"] % len(shape_of(source)) != dim)
        if not is_op(node, aten.cat.default, aten.stack.default):
            return False
        alike = set(operand(node)) == set(thin) and all(self.thin[n] == dim for n in rest)
        return alike and (is_op(node, aten.stack.default) or arguments(node)["dim"] % len(shape_of(source)) != dim)

    def _of_zeros(self, node: fx.Node, thin: list[fx.Node]) -> bool:
        """Whether it is a layer applied to zeros: exact for one sample as for many, in whatever order a kernel sums."""
        source = operand(node) if node.args else None
        if thin != [source] or any(self._varying(n) for n in node.all_input_nodes if n is not source):
            return False
        dim, rank = self.thin[thin[0]], len(shape_of(source))
        layer = (
            (is_op(node, aten.linear.default) and dim < rank - 1)
            or (is_op(node, aten.mm.default) and dim == 0)
            or (is_op(node, aten.convolution.default) and dim == 0 and rank == len(shape_of(operand(node, 1))))
        )
        value = self.constants.value(thin[0]) if layer else None
        return value is not None and not bool(value.any())

    # -- expanding it to the batch -----------------------------------------------------------------------------------------

    def _widen_operands(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            if source in self.thin:
                node.replace_input_with(source, self._widened(source))

    def _widened(self, node: fx.Node) -> fx.Node:
        like = self._like(node, self.sizes[node], self.thin[node])
        with self.graph.inserting_after(node):
            wide = self.graph.call_function(aten.expand_as.default, (node, like))
        wide.meta = origin_of(node)
        return wide

    def _like(self, node: fx.Node, sizes: _Sizes, dim: int) -> fx.Node:
        """Zeros of the given sizes, whose dimension ``dim`` has the batch size of the input, or a multiple of it."""
        if (sizes, dim) not in self.like:
            with self.graph.inserting_before(self.first):
                self.like[sizes, dim] = self._new_like(node, sizes, dim)
        return self.like[sizes, dim]

    def _new_like(self, node: fx.Node, sizes: _Sizes, dim: int) -> fx.Node:
        if self.carrier is None:
            raise FixedBatchError(f"no input carries the batch that {node.target} has{_at(node)}")
        source, axis = self.carrier
        batch, (a, b) = self.sizes[source][axis], sizes[dim]
        times = a // batch[0]
        if (a, b) != (times * batch[0], times * batch[1]):
            raise FixedBatchError(f"{node.target} has a dimension of {a} at batch {batch[0]}, of {b} at {batch[1]}{_at(node)}")
        call = self.graph.call_function
        for d in range(len(shape_of(self.carrier[0]))):
            if d != axis:
                source = call(aten.slice.Tensor, (source, d, 0, 1))
        zeros = call(aten.full_like.default, (source, 0.0))
        if times > 1:
            zeros = call(aten.expand.default, (call(RESHAPE, (zeros, [1, -1])), [times, -1]))
        zeros = call(RESHAPE, (zeros, [-1 if d == dim else 1 for d in range(len(sizes))]))
        return call(aten.expand.default, (zeros, [-1 if d == dim else n for d, (n, _) in enumerate(sizes)]))


def _target(node: fx.Node) -> Any:
    return None if node.op == "get_attr" else node.target


def _differing(a: Any, b: Any) -> tuple[Any, Any] | None:
    """The first two arguments that differ and are no nodes, if there are any."""
    if isinstance(a, fx.Node) or a == b or (a != a and b != b):
        return None
    nested = isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b)
    if nested and any(isinstance(x, fx.Node | tuple | list) for x in a):
        return next((found for x, y in zip(a, b, strict=True) if (found := _differing(x, y)) is not None), None)
    return (a, b)


def _at(node: fx.Node) -> str:
    path, source = module_path(node), source_line(node)
    return (f", in module {path!r}" if path else "") + (f", {source}" if source else "")
