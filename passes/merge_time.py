"""T copies of a step become one operator over time.

An unrolled network runs every layer once per step. Copies are recognised by structure: ``select(x, time, t)`` belongs to step
``t``, an operator belongs to the step of its inputs, the ``t``-th ``snn::lif_step`` of a chain (each takes the state the one
before it left) belongs to step ``t``; operators with the same target, the same constants and inputs of the same family form a
family. Then

* a family of operators that treat their leading dimension as independent samples runs once, on ``[T*N, ...]``;
* a chain of T ``lif_step`` is one ``lif``;
* ``stack([y_0, ..., y_{T-1}])`` is a reshape, and ``y_0 + ... + y_{T-1}`` a sum over time.

Where the batch size is fixed, the leading dimension of a step need not be the batch: whatever it is, steps come one after the
other in it.

What mixes steps (a recurrent connection: step ``t`` reads another layer's step ``t - 1``) has no family and stays as it is.

Exactness: real. A layer computes the same numbers on ``[T*N, ...]``, possibly summed in another order; so does the sum over time.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from snngraph.analysis.batch import ELEMENTWISE, acts_per_sample, batch_dims
from snngraph.graph import (
    LIF,
    LIF_STEP,
    OUTPUT_NAMES,
    RESHAPE,
    VIEWS,
    SpikingGraph,
    arguments,
    defaults_of,
    is_op,
    operand,
    origin_of,
    previous_step,
    shape_of,
)
from snngraph.passes.base import Pass, PassResult, Rewriter, repeat_over_time
from snngraph.types import Exactness

__all__ = ["MergeTime"]

aten = torch.ops.aten
_STATIC, _MIXED = -1, -2
_STATES = {"v": 1, "i": 2}


@dataclass(frozen=True)
class MergeTime(Pass):
    """Re-rolls an unrolled loop over time."""

    name: ClassVar[str] = "merge_time"
    exactness: ClassVar[Exactness] = "real"

    def run(self, graph: SpikingGraph) -> PassResult:
        """Finds the families, then merges them in the order of the graph."""
        edit = Rewriter(graph)
        _Merger(edit).run()
        return edit.result()


def chains_of_steps(graph: SpikingGraph) -> list[list[fx.Node]]:
    """The chains of ``lif_step`` nodes: each takes the membrane potential that the one before it left."""
    follower: dict[fx.Node, fx.Node] = {}
    heads = []
    for node in graph.nodes:
        if is_op(node, LIF_STEP):
            previous = previous_step(node)
            if previous is None:
                heads.append(node)
            else:
                follower[previous] = node
    chains = []
    for head in heads:
        chain = [head]
        while chain[-1] in follower:
            chain.append(follower[chain[-1]])
        chains.append(chain)
    return chains


class _Merger:
    def __init__(self, edit: Rewriter) -> None:
        self.edit = edit
        self.graph = edit.graph
        self.fx = edit.graph.graph
        self.steps = edit.graph.time.steps
        self.batch_dims = batch_dims(edit.graph)
        self.step_of: dict[fx.Node, int] = {}
        self.key_of: dict[fx.Node, Any] = {}
        self.families: dict[Any, dict[int, fx.Node]] = defaultdict(dict)
        self.merged: dict[Any, fx.Node] = {}  # family -> its value on [T*N, ...]
        self.position: dict[fx.Node, tuple[int, int]] = {}
        for number, chain in enumerate(chains_of_steps(edit.graph)):
            for t, node in enumerate(chain):
                self.position[node] = (number, t if len(chain) == self.steps else _MIXED)

    def run(self) -> None:
        for node in self.graph.nodes:
            self._classify(node)
        whole = {key: f for key, f in self.families.items() if len(f) == self.steps}
        order = {node: k for k, node in enumerate(self.graph.nodes)}
        for key in sorted(whole, key=lambda k: max(order[n] for n in whole[k].values())):
            members = [whole[key][t] for t in range(self.steps)]
            last = max(members, key=order.__getitem__)
            with self.fx.inserting_before(last.next):
                value = self._merge(members)
            if value is not None:
                self.merged[key] = value
        for key, value in self.merged.items():
            self._replace_uses([whole[key][t] for t in range(self.steps)], value)

    # -- families ----------------------------------------------------------------------------------------------------------

    def _classify(self, node: fx.Node) -> None:
        step, key = self._step_and_key(node)
        self.step_of[node] = step
        if step >= 0:
            if step in self.families[key]:
                self.step_of[node] = _MIXED
                return
            self.key_of[node] = key
            self.families[key][step] = node

    def _step_and_key(self, node: fx.Node) -> tuple[int, Any]:
        if node.op != "call_function":
            return _STATIC, None
        if is_op(node, aten.select.int) and self.step_of[operand(node)] == _STATIC:
            source, dim, index = (operand(node, k) for k in range(3))
            dim %= len(shape_of(source))
            if shape_of(source)[dim] == self.steps and self._is_time(source, dim):
                return index % self.steps, ("select", source, dim)
        if is_op(node, aten.slice.Tensor) and not self.graph.free_batch and self.step_of[operand(node)] == _STATIC:
            source, found = operand(node), arguments(node)
            dim = found["dim"] % len(shape_of(node))
            if shape_of(source)[dim] == self.steps and shape_of(node)[dim] == 1 and self._is_time(source, dim):
                return slice(found["start"], found["end"]).indices(self.steps)[0], ("slice", source, dim)
        if is_op(node, LIF_STEP):
            number, step = self.position[node]
            others = {self.step_of[n] for n in self._inputs_without_state(node)} - {_STATIC}
            return (step, ("lif", number)) if step >= 0 and others <= {step} else (_MIXED, None)
        steps = {self.step_of[n] for n in node.all_input_nodes} - {_STATIC}
        if not steps:
            return _STATIC, None
        if is_op(node, aten.stack.default, aten.cat.default) and self._is_whole_stack(operand(node)):
            return _STATIC, None
        if _MIXED in steps or len(steps) > 1:
            return _MIXED, None
        return steps.pop(), self._structure(node)

    def _is_whole_stack(self, parts: list[fx.Node]) -> bool:
        """Whether these are the T steps of one value, in order: what stacks them does not belong to a step."""
        return [self.step_of[p] for p in parts] == list(range(self.steps)) and len({self.key_of[p] for p in parts}) == 1

    def _is_time(self, source: fx.Node, dim: int) -> bool:
        """An input's time axis, or the leading axis of what an operator made of ``[T, N, ...]``."""
        if source.op == "placeholder":
            placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
            return self.graph.time.dims[placeholders.index(source)] == dim
        if not self.graph.free_batch:
            return source.op != "get_attr" and dim in (0, 1)  # of T entries: taken apart, it has to come together again
        return self.batch_dims.get(source) in (0, 1) and dim in (0, 1) and dim != self.batch_dims[source]

    def _inputs_without_state(self, node: fx.Node) -> list[fx.Node]:
        return [a for name, a in arguments(node).items() if isinstance(a, fx.Node) and name not in _STATES]

    def _structure(self, node: fx.Node) -> Any:
        def freeze(a: Any) -> Any:
            if isinstance(a, list | tuple):
                return tuple(map(freeze, a))
            if isinstance(a, fx.Node):
                return self.key_of[a] if self.step_of[a] >= 0 else a
            return (type(a).__name__, a)

        return (node.target, freeze(node.args), tuple((k, freeze(v)) for k, v in sorted(node.kwargs.items())))

    # -- merging -----------------------------------------------------------------------------------------------------------

    def _merge(self, members: list[fx.Node]) -> fx.Node | None:
        first = members[0]
        if is_op(first, LIF_STEP):
            return self._merge_neuron(members)
        if is_op(first, aten.select.int, aten.slice.Tensor) and self.step_of[operand(first)] == _STATIC:
            if not self._leads(first):
                return None  # steps and samples share the leading dimension, so the samples have to be there
            value, rank = operand(first), len(shape_of(operand(first)))
            dim = arguments(first)["dim"] % rank
            if dim != 0:
                value = self._call(aten.permute.default, value, [dim, *(d for d in range(rank) if d != dim)])
            return self._call(RESHAPE, value, [-1, *shape_of(first)[1:]])
        if is_op(first, operator.getitem) and is_op(first.args[0], LIF_STEP):
            return self._neuron_output(first)
        if not self._acts_per_sample(first):
            if any(self.key_of.get(n) in self.merged for n in first.all_input_nodes):
                self.edit.refuse(first, f"{first.target} may mix samples, so its steps stay apart")
            return None
        if any(self.step_of[n] >= 0 and self.key_of[n] not in self.merged for n in first.all_input_nodes):
            return None
        args = (operand(first), [-1, *shape_of(first)[1:]]) if is_op(first, *VIEWS) else first.args
        value = self._call(first.target, *args, like=first, **first.kwargs)
        self.edit.did(first, f"{self.steps} steps run at once")
        return value

    def _leads(self, node: fx.Node) -> bool:
        """Whether the leading dimension of a step may hold all steps: that of the samples, or any when their number is fixed."""
        return bool(shape_of(node)) and (not self.graph.free_batch or self.batch_dims.get(node) == 0)

    def _acts_per_sample(self, node: fx.Node) -> bool:
        """Whether ``node`` computes every entry along its leading dimension from the same entry of its operands.

        With a free batch that dimension is the batch. With a fixed one it is whatever leads in a step: as many entries in the
        result as in every operand that is one of the step's.
        """
        if is_op(node, *VIEWS):  # the steps stay one after the other, whatever becomes of the dimensions
            return self._leads(operand(node)) and self._leads(node)
        if not self.graph.free_batch:
            stepped = [n for n in node.all_input_nodes if self.step_of[n] >= 0]
            if None in (leading := {_leading(n) for n in (node, *stepped)}) or len(leading) > 1:
                return False
            if is_op(node, aten.convolution.default) and len(shape_of(operand(node))) != len(shape_of(operand(node, 1))):
                return False  # a single sample, whose channels lead
        return acts_per_sample(node, self._dims_at(node))

    def _dims_at(self, node: fx.Node) -> dict[fx.Node, int | None]:
        """The dimension that carries the samples, of ``node`` and its operands: with a fixed batch the leading one of a step's.

        An operand of all steps carries them if it is combined with each step's samples one by one.
        """
        if self.graph.free_batch:
            return self.batch_dims
        dims: dict[fx.Node, int | None] = {node: 0}
        for n in node.all_input_nodes:
            one_by_one = is_op(node, aten.cat.default, aten.bmm.default) or (
                node.target in ELEMENTWISE and len(shape_of(n)) == len(shape_of(node)) and shape_of(n)[0] == shape_of(node)[0] > 1
            )
            dims[n] = 0 if self.step_of[n] >= 0 or one_by_one else None
        return dims

    def _call(self, target: Any, *args: Any, like: fx.Node | None = None, **keywords: Any) -> fx.Node:
        """A call on merged operands; ``like`` is the copy it stands for."""

        def merged_operand(n: fx.Node) -> fx.Node:
            if like is None or self.step_of.get(n, _STATIC) == _STATIC:
                return self._spread(n) if like is not None and self._per_sample_operand(n, like) else n
            return self.merged[self.key_of[n]]

        args, keywords = fx.node.map_arg((args, keywords), merged_operand)
        node = self.fx.call_function(target, args, keywords)
        if like is not None:
            node.meta = origin_of(like)
        return node

    def _per_sample_operand(self, node: fx.Node, like: fx.Node) -> bool:
        return self._dims_at(like).get(node) == 0 and len(shape_of(node)) == len(shape_of(like))

    def _spread(self, node: fx.Node) -> fx.Node:
        """A value without time, ``[N, ...]``, for all steps: ``[T*N, ...]``."""
        shape = shape_of(node)
        return self._call(RESHAPE, repeat_over_time(self.fx, node, self.steps, shape[1:]), [-1, *shape[1:]])

    def _merge_neuron(self, members: list[fx.Node]) -> fx.Node | None:
        first, found = members[0], [arguments(m) for m in members]
        for name in found[0]:
            if name in _STATES or name in ("x", "gain"):
                continue
            if any(f[name] != found[0][name] for f in found):
                self.edit.refuse(first, f"its {name} differs from step to step")
                return None
        if reason := _broken_chain(members, found):
            self.edit.refuse(first, reason)
            return None
        operands = {}
        for name in ("x", "gain"):
            values = [f[name] for f in found]
            if values[0] is None:
                continue
            whole = self._over_time(values, shape_of(operand(first)) if name == "x" else None)
            varies = whole is not None and whole is not values[0]
            if whole is None or (varies and len(shape_of(values[0])) != len(shape_of(operand(first)))):
                self.edit.refuse(first, f"its {name} is not one value at {self.steps} steps, samples first")
                return None
            operands[name] = whole
        defaults = defaults_of(first.target)
        keywords = {k: v for k, v in {**found[0], **operands}.items() if k in defaults and v != defaults[k]}
        if any(output.args[1] == 3 and output.users for m in members for output in m.users):
            keywords["with_h"] = True
        positional = (operands["x"], *(found[0][name] for name in ("v", "decay", "threshold")))
        node = self.fx.call_function(LIF, positional, dict(sorted(keywords.items())))
        node.meta = origin_of(first)
        self.edit.did(first, f"{self.steps} steps are one neuron over time")
        return node

    def _over_time(self, values: list[fx.Node], shape: tuple[int, ...] | None) -> fx.Node | None:
        """The operands of T steps as one, ``[T, N, ...]``; an operand of all steps stays as it is where it may broadcast."""
        keys = {self.key_of.get(v) for v in values}
        if len(set(values)) == 1 and self.step_of[values[0]] == _STATIC:
            if shape is None:
                return values[0]
            if not self._leads(values[0]):
                return None
            return repeat_over_time(self.fx, values[0], self.steps, shape[1:])
        if len(keys) != 1 or None in keys or next(iter(keys)) not in self.merged:
            return None
        value = self.merged[next(iter(keys))]
        return self._call(RESHAPE, value, [self.steps, -1, *shape_of(values[0])[1:]])

    def _neuron_output(self, first: fx.Node) -> fx.Node | None:
        key = self.key_of[operand(first)]
        if key not in self.merged:
            return None
        value = self._call(operator.getitem, self.merged[key], operand(first, 1))
        return value if _is_state(first) else self._call(RESHAPE, value, [-1, *shape_of(first)[1:]])

    # -- uses --------------------------------------------------------------------------------------------------------------

    def _replace_uses(self, members: list[fx.Node], value: fx.Node) -> None:
        """Users outside the merged families get their step, a whole stack, or a sum."""
        if is_op(members[0], LIF_STEP):
            self._replace_single_outputs(members, value)
            return
        if isinstance(members[0].meta["val"], tuple | list):
            return  # its outputs are families of their own
        with self.fx.inserting_before(value.next):
            if is_op(members[0], operator.getitem) and is_op(operand(members[0]), LIF_STEP) and _is_state(members[0]):
                members[-1].replace_all_uses_with(value)  # the state after the last step
                return
            self._replace_stacks(members, value)
            self._replace_sum(members, value)
            rest = [(t, m, u) for t, m in enumerate(members) for u in list(m.users) if self._stays(u)]
            if rest:
                apart = self._call(RESHAPE, value, [self.steps, -1, *shape_of(members[0])[1:]])
                for t, member, user in rest:
                    user.replace_input_with(member, self._call(aten.select.int, apart, 0, t))

    def _replace_single_outputs(self, members: list[fx.Node], value: fx.Node) -> None:
        """Outputs that are read at some steps only make no family; each gets its step."""
        with self.fx.inserting_before(value.next):
            for t, member in enumerate(members):
                for output in member.users:
                    if self.key_of.get(output) in self.merged or (_is_state(output) and t < self.steps - 1):
                        continue
                    whole = self._call(operator.getitem, value, operand(output, 1))
                    output.replace_all_uses_with(whole if _is_state(output) else self._call(aten.select.int, whole, 0, t))

    def _stays(self, user: fx.Node) -> bool:
        return user.op == "output" or (user in self.step_of and self.key_of.get(user) not in self.merged)

    def _replace_stacks(self, members: list[fx.Node], value: fx.Node) -> None:
        """``stack`` in any dimension; as it is exported, too: ``cat`` of the steps, with or without a dimension of 1 put in."""
        shape = shape_of(members[0])
        for user in list(members[0].users):
            if is_op(user, RESHAPE):
                for cat in [u for u in user.users if is_op(u, aten.cat.default)]:
                    dim = arguments(cat)["dim"] % len(shape_of(cat))
                    widened = (*shape[:dim], 1, *shape[dim:])
                    parts = [operand(p) if is_op(p, RESHAPE) and shape_of(p) == widened else p for p in operand(cat)]
                    if parts == members:
                        cat.replace_all_uses_with(self._with_time_at(dim, shape, value))
            elif is_op(user, aten.stack.default) and list(operand(user)) == members:
                user.replace_all_uses_with(self._with_time_at(arguments(user)["dim"] % (len(shape) + 1), shape, value))
            elif is_op(user, aten.cat.default) and list(operand(user)) == members:
                dim = arguments(user)["dim"] % len(shape)
                joined = [-1, *shape[1:dim], self.steps * shape[dim], *shape[dim + 1 :]] if dim else [-1, *shape[1:]]
                user.replace_all_uses_with(self._call(RESHAPE, self._with_time_at(dim, shape, value), joined))

    def _with_time_at(self, dim: int, shape: tuple[int, ...], value: fx.Node) -> fx.Node:
        """``value``, ``[T*N, ...]``, with time as a dimension of its own between those of one step."""
        apart = self._call(RESHAPE, value, [self.steps, -1, *shape[1:]])
        order = [*range(1, dim + 1), 0, *range(dim + 1, len(shape) + 1)]
        return self._call(aten.permute.default, apart, order) if dim else apart

    def _replace_sum(self, members: list[fx.Node], value: fx.Node) -> None:
        """``((y_0 + y_1) + y_2) + ...``, with or without a leading ``0 +``, a number or zeros."""
        first, *others = members
        with_zero = [u for u in first.users if is_op(u, aten.add.Tensor) and self._adds_zero(u, first)]
        for start in (first, *with_zero):
            total = _running_sum(start, others)
            if total is not None and total is not start:
                apart = self._call(RESHAPE, value, [self.steps, -1, *shape_of(first)[1:]])
                total.replace_all_uses_with(self._call(aten.sum.dim_IntList, apart, [0]))

    def _adds_zero(self, node: fx.Node, value: fx.Node) -> bool:
        other = node.args[0] if node.args[1] is value else node.args[1]
        zeros = self.graph.constant(other)
        is_zero = self.graph.number(other) == 0.0 or (zeros is not None and not bool(zeros.any()))
        return is_zero and not node.kwargs and shape_of(node) == shape_of(value)


def _leading(node: fx.Node) -> int | None:
    """The size of the leading dimension of a node's first output."""
    shape = tree_leaves(node.meta["val"])[0].shape
    return shape[0] if shape else None


def _broken_chain(members: list[fx.Node], found: list[dict[str, Any]]) -> str | None:
    """Why the steps are not one neuron: a state that is read elsewhere, or a synapse that does not go on from step to step."""
    for t, member in enumerate(members[:-1]):
        for output in member.users:
            name = OUTPUT_NAMES[operand(output, 1)]
            if not _is_state(output):
                continue
            for user in output.users:
                slots = [k for k, a in found[t + 1].items() if a is output] if user is members[t + 1] else []
                if slots != [name]:
                    return f"its state {name} after a step is read by {user.name}"
        current = found[t + 1]["i"]
        if found[0]["syn_decay"] is not None and not (
            is_op(current, operator.getitem) and current.args == (member, _STATES["i"])
        ):
            return "its synaptic current does not go on from step to step"
    return None


def _is_state(output: fx.Node) -> bool:
    """Whether this output of a neuron is a state that its next step takes."""
    return operand(output, 1) in _STATES.values()


def _running_sum(total: fx.Node, others: list[fx.Node]) -> fx.Node | None:
    """The node that has added all of ``others`` to ``total``, one after another."""
    for other in others:
        adders = [u for u in total.users if is_op(u, aten.add.Tensor) and set(u.args[:2]) == {total, other} and not u.kwargs]
        if not adders:
            return None
        total = adders[0]
    return total
