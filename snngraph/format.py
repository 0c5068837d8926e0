"""Graphs as text: :func:`format_graph` prints one, :func:`parse` reads one.

The language is Python's expression syntax. Inputs, an arrow, statements, and what is returned::

    x[4, N, 8] ->
    c = linear(x, w[16, 8])
    s = lif(c, decay=0.5, threshold=1.0, v_reset=0.0).s
    return mean.dim(s, [0])

A name with a shape, ``w[16, 8]`` or ``"conv.0.weight"[16, 8]``, is a constant tensor; parsed, it is filled with seeded random
numbers. ``N`` is the batch. An input whose second axis is ``N`` has its time on the first; ``x[N, T=4, 8]`` writes the time
axis out, and ``x[N, 8], T=4 ->`` gives the number of steps where no input has them. Operators are named as in
``torch.ops.aten``; the short forms of :data:`SHORT` and ``+ - * /`` may be used.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from snngraph.errors import GraphParseError
from snngraph.graph import (
    LIF,
    LIF_STEP,
    OUTPUT_NAMES,
    RESHAPE,
    TRAINING_ONLY,
    Facts,
    SpikingGraph,
    Time,
    arguments,
    defaults_of,
    is_op,
    operand,
    previous_step,
    shape_of,
)
from snngraph.types import TensorSpec

__all__ = ["canonical_format", "format_graph", "parse"]

aten = torch.ops.aten


# -- printing ------------------------------------------------------------------------------------------------------------------


def format_graph(graph: SpikingGraph) -> str:
    """The graph as text. Stable: it depends on the graph alone."""
    return _print(graph, list(graph.nodes), lambda node: node.name, lambda target: f'"{target}"', shapes=True)


def canonical_format(graph: SpikingGraph) -> str:
    """The graph as text with its names and the order of independent operators normalised: equal for equal structure."""
    order: list[fx.Node] = []
    seen: set[fx.Node] = set()

    def visit(root: fx.Node) -> None:
        stack = [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((n, False) for n in reversed(node.all_input_nodes))

    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    for node in placeholders:
        visit(node)
    visit(graph.graph.output_node())
    named = [n for n in order if n.op == "call_function" and n.target is not operator.getitem]
    names = {n: f"x{k}" for k, n in enumerate(placeholders)} | {n: f"v{k}" for k, n in enumerate(named)}
    return _print(graph, order, lambda node: names.get(node, node.name), lambda _: "w", shapes=False)


def _print(
    graph: SpikingGraph, order: list[fx.Node], name: Callable[[fx.Node], str], tensor: Callable[[str], str], *, shapes: bool
) -> str:
    def show(a: Any) -> str:
        if isinstance(a, fx.Node):
            if a.op == "get_attr":
                number = graph.number(a)
                return repr(number) if number is not None else tensor(str(a.target)) + _print_shape(a.meta["val"])
            if is_op(a, operator.getitem):
                source, k = operand(a), operand(a, 1)
                return f"{show(source)}.{OUTPUT_NAMES[k]}" if is_op(source, LIF, LIF_STEP) else f"{show(source)}[{k}]"
            return name(a)
        if isinstance(a, tuple | list):
            return f"[{', '.join(show(b) for b in a)}]"
        if isinstance(a, torch.dtype):
            return f'"{str(a).removeprefix("torch.")}"'
        return repr(a) if isinstance(a, bool | int | float | str) or a is None else f'"{a}"'

    specs = dict(zip((n for n in graph.nodes if n.op == "placeholder"), graph.inputs, strict=True))
    timeless = all(spec.time_dim is None for spec in graph.inputs)
    steps = f", T={graph.time.steps}" if timeless else ""
    lines = [", ".join(_print_input(name(n), spec) for n, spec in specs.items()) + f"{steps} ->"]
    for node in order:
        if node.op == "call_function" and node.target is not operator.getitem:
            shape = _print_shape(node.meta["val"]) if shapes else ""
            lines.append(f"{name(node)} = {_print_call(node, show)}" + (f"  # {shape}" if shape else ""))
    returned = graph.graph.output_node().args[0]
    lines.append("return " + ", ".join(show(a) for a in (returned if isinstance(returned, tuple | list) else [returned])))
    return "\n".join(lines) + "\n"


def _print_input(name: str, spec: TensorSpec) -> str:
    def dimension(d: int, n: int | None) -> str:
        if d == spec.batch_dim:
            return "N"
        return f"T={n}" if d == spec.time_dim else str(n)

    return f"{name}[{', '.join(dimension(d, n) for d, n in enumerate(spec.shape))}]"


def _print_shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"[{', '.join(map(str, value.shape))}]"
    return f"[{', '.join(map(str, value[0].shape))}]" if isinstance(value, tuple | list) and isinstance(value[0], Tensor) else ""


def _print_call(node: fx.Node, show: Callable[[Any], str]) -> str:
    overload: Any = node.target
    title = overload._schema.name.split("::")[1]
    if overload._overloadname != "default":
        title += f".{overload._overloadname}"
    if is_op(node, LIF, LIF_STEP):
        found = arguments(node)
        defaults = defaults_of(overload)
        keywords = {k: v for k, v in found.items() if k not in (*TRAINING_ONLY, "x") and (k not in defaults or v != defaults[k])}
        return f"{title}({show(found['x'])}, {', '.join(f'{k}={show(v)}' for k, v in sorted(keywords.items()))})"
    parts = [show(a) for a in node.args] + [f"{k}={show(v)}" for k, v in sorted(node.kwargs.items())]
    return f"{title}({', '.join(parts)})"


# -- parsing -------------------------------------------------------------------------------------------------------------------


def _conv2d(p: _Parser, x: Any, weight: Any, bias: Any = None, stride: int = 1, padding: int = 0, groups: int = 1) -> fx.Node:
    two = [1, 1]
    convolution = aten.convolution.default
    return p.call(convolution, x, weight, bias, [stride] * 2, [padding] * 2, two, False, [0, 0], groups)


def _batch_norm(p: _Parser, x: Any, weight: Any, bias: Any, mean: Any, var: Any, eps: float = 1e-5) -> fx.Node:
    norm = p.call(aten._native_batch_norm_legit_no_training.default, x, weight, bias, mean, var, 0.1, eps)
    return p.call(operator.getitem, norm, 0)


def _mean(p: _Parser, x: Any, dim: Any, keepdim: bool = False) -> fx.Node:
    return p.call(aten.mean.dim, x, dim if isinstance(dim, list) else [dim], keepdim)


def _lif(p: _Parser, target: Any, x: Any, keywords: dict[str, Any]) -> fx.Node:
    values = {"v": 0.0, "decay": 1.0, "threshold": 1.0, **keywords}
    if values.get("reset", "hard") == "hard":
        values.setdefault("v_reset", 0.0)
    tensors = {a.name for a in target._schema.arguments if "Tensor" in str(a.type)}
    values = {k: p.number(v) if k in tensors and isinstance(v, int | float) else v for k, v in values.items()}
    node = p.call(target, x, values.pop("v"), values.pop("decay"), values.pop("threshold"), **values)
    previous = previous_step(node)
    node.meta["neuron"] = node.name if previous is None else previous.meta["neuron"]
    return node


SHORT: dict[str, Callable[..., fx.Node]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "mean": _mean,
    "flatten_time": lambda p, x: p.call(RESHAPE, x, [-1, *shape_of(x)[2:]]),
    "split_time": lambda p, x: p.call(RESHAPE, x, [p.steps, -1, *shape_of(x)[1:]]),
    "max_pool2d": lambda p, x, k: p.call(operator.getitem, p.call(aten.max_pool2d_with_indices.default, x, [k, k], [k, k]), 0),
    "select": lambda p, x, dim, k: p.call(aten.select.int, x, dim, k),
    "stack": lambda p, xs, dim=0: p.call(aten.stack.default, xs, dim),
}
_INTEGER = ("levels", "integer_conv", "integer_linear")
_OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div"}


def parse(text: str, *, batch: int = 2, seed: int = 0) -> SpikingGraph:
    """Reads a graph from text.

    Args:
        text: see the module's text.
        batch: the size of ``N`` for the recorded shapes.
        seed: of the random constants: weights uniform in +-1/sqrt(fan in), the variances of a batch norm positive.

    Raises:
        GraphParseError: the text is no graph; the message names the line.
    """
    return _Parser(batch, seed).read(text)


class _Parser:
    def __init__(self, batch: int, seed: int) -> None:
        self.batch = batch
        self.generator = torch.Generator().manual_seed(seed)
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.names: dict[str, fx.Node] = {}
        self.reserved: set[str] = set()
        self.steps = 0
        self.mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)

    def read(self, text: str) -> SpikingGraph:
        head, arrow, body = text.partition("->")
        if not arrow:
            raise GraphParseError("no '->' between the inputs and the statements")
        if stated := re.search(r",\s*T=(\d+)\s*$", re.sub(r"\[[^\]]*\]", "", head)):
            self.steps = int(stated[1])
        specs = [self._input(part) for part in re.findall(r"\w+\s*\[[^\]]*\]", head)]
        if not specs:
            raise GraphParseError(f"no input before '->'; expected something like x[4, N, 8], got {head.strip()!r}")
        lines = [line.strip() for line in re.split(r"\n|;", body)]
        statements = [line for line in lines if line and not line.startswith("#")]
        self.reserved = {line.partition("=")[0].strip() for line in statements}
        for k, line in enumerate(statements):
            self._statement(line, last=k == len(statements) - 1)
        dims = tuple(s.time_dim for s in specs)
        facts = Facts(tuple(specs), Time(self.steps, dims), self.batch, example_batch=self.batch, name="parsed")
        result = SpikingGraph(self.graph, self.tensors, facts)
        result.check()
        return result

    def _input(self, part: str) -> TensorSpec:
        name, _, inside = part.partition("[")
        fields = [f.strip() for f in inside.rstrip("]").split(",")]
        batch_dim = fields.index("N") if "N" in fields else None
        marked = [d for d, f in enumerate(fields) if f.startswith("T=")]
        time_dim = marked[0] if marked else (0 if batch_dim == 1 else None)
        try:
            shape = tuple(self.batch if f == "N" else int(f.removeprefix("T=")) for f in fields)
        except ValueError:
            raise GraphParseError(f"input {part!r}: expected integers, one N and at most one T=...") from None
        if time_dim is not None:
            self.steps = shape[time_dim]
        node = self.graph.placeholder(name.strip())
        node.meta["val"] = self.mode.from_tensor(torch.empty(shape, dtype=torch.float64))
        self.names[name.strip()] = node
        return TensorSpec(name.strip(), shape, "float32", time_dim, batch_dim)

    def _statement(self, line: str, *, last: bool) -> None:
        try:
            tree = ast.parse(line.removeprefix("return ") if line.startswith("return ") else line).body[0]
        except (SyntaxError, IndexError) as error:
            raise GraphParseError(f"{line!r}: {error}") from None
        if isinstance(tree, ast.Assign) and isinstance(tree.targets[0], ast.Name) and not last:
            value = self._value(tree.value, line)
            if isinstance(value, fx.Node) and value.op == "call_function" and value.target is not operator.getitem:
                value._rename(tree.targets[0].id)
                if is_op(value, LIF):
                    value.meta["neuron"] = tree.targets[0].id
            self.names[tree.targets[0].id] = value
        elif isinstance(tree, ast.Expr) and last:
            elements = tree.value.elts if isinstance(tree.value, ast.Tuple) else [tree.value]
            values = tuple(self._spikes(self._value(e, line)) for e in elements)
            self.graph.output(values if len(values) > 1 else values[0])
        else:
            raise GraphParseError(f"{line!r}: expected 'name = expression', and one expression at the end")

    def _spikes(self, value: Any) -> Any:
        """A neuron used as a tensor means its spikes."""
        return self.call(operator.getitem, value, 0) if is_op(value, LIF, LIF_STEP) else value

    def _value(self, tree: ast.expr, line: str) -> Any:
        if isinstance(tree, ast.Constant):
            return tree.value
        if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
            return -self._value(tree.operand, line)
        if isinstance(tree, ast.List | ast.Tuple):
            return [self._spikes(self._value(e, line)) for e in tree.elts]
        if isinstance(tree, ast.Name):
            if tree.id in ("inf", "nan"):
                return float(tree.id)
            if tree.id not in self.names:
                hint = f"a constant is written with its shape, {tree.id}[16, 8]"
                raise GraphParseError(f"{line!r}: {tree.id} is not defined; {hint}")
            return self.names[tree.id]
        if isinstance(tree, ast.BinOp) and type(tree.op) in _OPERATORS:
            left, right = (self._spikes(self._value(side, line)) for side in (tree.left, tree.right))
            swap = not isinstance(left, fx.Node)
            if swap and isinstance(tree.op, ast.Sub | ast.Div):
                raise GraphParseError(f"{line!r}: a number on the left of - or / is not supported")
            return self.call(getattr(aten, _OPERATORS[type(tree.op)]).Tensor, *((right, left) if swap else (left, right)))
        if isinstance(tree, ast.Subscript):
            return self._subscript(tree, line)
        if isinstance(tree, ast.Attribute) and tree.attr in OUTPUT_NAMES:
            return self.call(operator.getitem, self._value(tree.value, line), OUTPUT_NAMES.index(tree.attr))
        if isinstance(tree, ast.Call):
            return self._call(tree, line)
        raise GraphParseError(f"{line!r}: {ast.unparse(tree)} is not part of the language")

    def _subscript(self, tree: ast.Subscript, line: str) -> fx.Node:
        index = self._value(tree.slice, line)
        if isinstance(tree.value, ast.Name) and tree.value.id in self.names:
            return self.call(operator.getitem, self.names[tree.value.id], index)
        name = tree.value.id if isinstance(tree.value, ast.Name) else getattr(tree.value, "value", None)
        if not isinstance(name, str):
            return self.call(operator.getitem, self._value(tree.value, line), index)
        shape = index if isinstance(index, list) else [index]
        if name not in self.tensors:
            bound = 1 / math.sqrt(max(1, math.prod(shape[1:]))) if len(shape) > 1 else 1.0
            self.tensors[name] = (torch.rand(shape, generator=self.generator, dtype=torch.float64) * 2 - 1) * bound
        elif list(self.tensors[name].shape) != shape:
            raise GraphParseError(f"{line!r}: {name} has shape {list(self.tensors[name].shape)} above and {shape} here")
        return self._attribute(name)

    def _call(self, tree: ast.Call, line: str) -> Any:
        title = ast.unparse(tree.func)
        values = [self._spikes(self._value(a, line)) for a in tree.args]
        keywords = {str(k.arg): self._spikes(self._value(k.value, line)) for k in tree.keywords}
        if isinstance(keywords.get("dtype"), str):  # as it is printed
            keywords["dtype"] = getattr(torch, keywords["dtype"])
        try:
            if title in ("lif", "lif_step"):
                if len(values) != 1:
                    raise TypeError("takes x alone by position; write the others as v=..., decay=...")
                return _lif(self, LIF if title == "lif" else LIF_STEP, values[0], keywords)
            if title in SHORT:
                return SHORT[title](self, *values, **keywords)
            name, _, overload = title.partition(".")
            packet = getattr(torch.ops.snn if name in _INTEGER else aten, name)
            overload = overload or ("default" if "default" in packet.overloads() else packet.overloads()[0])
            return self.call(getattr(packet, overload), *values, **keywords)
        except (AttributeError, TypeError, IndexError, RuntimeError) as error:
            raise GraphParseError(f"{line!r}: {title}: {error}") from error

    def call(self, target: Any, *args: Any, **keywords: Any) -> fx.Node:
        if "batch_norm_legit_no_training" in str(target):  # a variance is positive
            variance = args[4]
            self.tensors[variance.target] = self.tensors[variance.target].abs() + 0.5
        title = target._schema.name.split("::")[1].lstrip("_") if hasattr(target, "_schema") else "getitem"
        name = f"{title}_unnamed" if title in self.reserved else title  # a statement may yet take the operator's own name
        node = self.graph.create_node("call_function", target, args, keywords, name=name)
        fakes, fake_keywords = fx.node.map_arg((args, keywords), lambda n: n.meta["val"])
        with self.mode:
            node.meta["val"] = target(*fakes, **fake_keywords)
        return node

    def number(self, value: float) -> fx.Node:
        name = f"number_{len(self.tensors)}"
        self.tensors[name] = torch.tensor(float(value), dtype=torch.float64)
        return self._attribute(name)

    def _attribute(self, name: str) -> fx.Node:
        node = self.graph.get_attr(name)
        node.meta["val"] = self.mode.from_tensor(self.tensors[name])
        return node
