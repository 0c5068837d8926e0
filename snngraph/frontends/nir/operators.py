"""Which NIR node an operator is."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from snngraph.frontends.nir.reader import Handler, Reader, RefusalError, Value
from snngraph.graph import LIF, LIF_STEP, OUTPUT_NAMES, VIEWS, arguments, is_op, operand, shape_of

__all__ = ["HANDLERS"]

aten = torch.ops.aten


def _array(value: Tensor) -> np.ndarray[Any, Any]:
    """In float32 where that loses nothing."""
    single = value.float()
    return (single if torch.equal(single.double(), value) else value).numpy().copy()


def _key(*values: Any) -> tuple[Any, ...]:
    """What tells one layer's arguments from another's; equal tensors are one, whatever their names."""
    return tuple(
        (tuple(v.shape), hashlib.sha256(v.contiguous().numpy().tobytes()).digest()) if isinstance(v, Tensor) else repr(v)
        for v in values
    )


def _samples(x: Value, node: fx.Node) -> tuple[int, ...]:
    """One sample's shape of a layer's result."""
    if x.dropped:
        raise RefusalError("it runs on a part of the steps")
    return shape_of(node)[x.leading :]


def _linear(reader: Reader, node: fx.Node) -> Value:
    x = reader.value(operand(node))
    p = arguments(node)
    weight = reader.constant(p["weight"], "weight")
    bias = None if p["bias"] is None else reader.constant(p["bias"], "bias")
    if len(x.shape) != 1:
        raise RefusalError(f"a linear layer of NIR takes vectors, not {list(x.shape)}")
    nir = reader.nir

    def make() -> Any:
        return nir.Linear(_array(weight)) if bias is None else nir.Affine(_array(weight), _array(bias))

    return reader.layer(node, "linear", x, _key(weight, bias), _samples(x, node), make)


def _convolution(reader: Reader, node: fx.Node) -> Value:
    x = reader.value(operand(node))
    p = arguments(node)
    weight = reader.constant(p["weight"], "weight")
    bias = torch.zeros(weight.shape[0]).double() if p["bias"] is None else reader.constant(p["bias"], "bias")
    rank = weight.dim() - 2
    if p["transposed"] or rank not in (1, 2) or len(x.shape) != rank + 1 or x.leading != 1:
        raise RefusalError("NIR has convolutions in one and two dimensions, none transposed")
    windows = {name: _sizes(p[name], rank) for name in ("stride", "padding", "dilation")}

    def make() -> Any:
        if rank == 1:
            first = {name: sizes[0] for name, sizes in windows.items()}
            return reader.nir.Conv1d(x.shape[1], _array(weight), groups=p["groups"], bias=_array(bias), **first)
        return reader.nir.Conv2d(tuple(x.shape[1:]), _array(weight), groups=p["groups"], bias=_array(bias), **windows)

    return reader.layer(node, "conv", x, _key(weight, bias, windows, p["groups"]), _samples(x, node), make)


def _sizes(values: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(values) * (rank if len(values) == 1 else 1)


def _avg_pool(reader: Reader, node: fx.Node) -> Value:
    x = reader.value(operand(node))
    p = arguments(node)
    kernel, padding = _sizes(p["kernel_size"], 2), _sizes(p["padding"], 2)
    stride = _sizes(p["stride"], 2) if p["stride"] else kernel
    if p["ceil_mode"] or (any(padding) and not p["count_include_pad"]) or p["divisor_override"] not in (None, 1):
        raise RefusalError("NIR's pooling rounds down, counts its padding, and divides by the kernel or not at all")
    return _pool(reader, node, x, kernel, stride, padding, summed=p["divisor_override"] == 1)


def _pool(
    reader: Reader,
    node: fx.Node,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    summed: bool,
) -> Value:
    if len(x.shape) != 3 or x.leading != 1:
        raise RefusalError(f"NIR pools images [C, H, W], not {list(x.shape)}")
    sizes = [np.array(s) for s in (kernel, stride, padding)]
    shape = (x.shape[0], *((n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[1:], kernel, stride, padding, strict=True)))
    kind = reader.nir.SumPool2d if summed else reader.nir.AvgPool2d
    return reader.layer(node, "sumpool" if summed else "avgpool", x, _key(kernel, stride, padding), shape, lambda: kind(*sizes))


def _mean(reader: Reader, node: fx.Node) -> Value:
    x = reader.value(operand(node))
    rank = len(x.shape) + x.leading
    over = {d % rank for d in arguments(node)["dim"] or range(rank)}
    if min(over) < x.leading:
        raise RefusalError("it sums over time or over the batch; NIR's outputs are signals over time: return those of every step")
    if len(x.shape) != 3 or over != {rank - 1, rank - 2}:
        raise RefusalError("NIR averages images over height and width alone")
    pooled = _pool(reader, node, x, x.shape[1:], x.shape[1:], (0, 0), summed=False)
    return pooled if arguments(node)["keepdim"] else _flattened(reader, node, pooled, pooled.shape[:1])


def _reshape(reader: Reader, node: fx.Node) -> Value:
    x = reader.value(operand(node))
    batch, shape = reader.graph.batch, shape_of(node)
    if x.step is not None and shape[:1] == (batch,):
        return _flattened(reader, node, x, shape[1:])
    if x.step is None and not x.dropped and x.layout != "NT":
        if shape[:2] == (reader.steps, batch):
            return _flattened(reader, node, replace(x, layout="TN"), shape[2:])
        if shape[:1] == (reader.steps * batch,):
            return _flattened(reader, node, replace(x, layout="flat"), shape[1:])
    raise RefusalError("it mixes steps, samples and neurons")


def _flattened(reader: Reader, node: fx.Node, x: Value, shape: tuple[int, ...]) -> Value:
    if shape == x.shape:
        return x
    rank = len(x.shape)
    for start in range(rank):
        for end in range(start, rank):
            if (*x.shape[:start], math.prod(x.shape[start : end + 1]), *x.shape[end + 1 :]) == shape:
                given = {"input": np.array(x.shape)}
                return reader.layer(node, "flatten", x, (start, end), shape, lambda: reader.nir.Flatten(given, start, end))  # noqa: B023
    raise RefusalError(f"NIR flattens neighbouring dimensions; it does not make {list(shape)} of {list(x.shape)}")


def _permute(reader: Reader, node: fx.Node) -> Value:
    x, order = reader.value(operand(node)), list(operand(node, 1))
    rank = len(order)
    if x.layout not in ("TN", "NT") or [d % rank for d in order] != [1, 0, *range(2, rank)]:
        raise RefusalError("NIR has no permutation")
    return replace(x, layout="NT" if x.layout == "TN" else "TN")


def _select(reader: Reader, node: fx.Node) -> Value:
    x, p = reader.value(operand(node)), arguments(node)
    if x.dropped or x.step is not None or p["dim"] != {"TN": 0, "NT": 1}.get(x.layout):
        raise RefusalError("NIR does not select a part of a signal")
    return replace(x, step=p["index"] % reader.steps, layout="N")


def _stack(reader: Reader, node: fx.Node) -> Value:
    """The steps side by side, or (``cat``) merged with the samples."""
    frames, dim = operand(node), arguments(node)["dim"]
    layout = {0: "flat"} if is_op(node, aten.cat.default) else {0: "TN", 1: "NT"}
    if len(frames) != reader.steps or dim not in layout:
        raise RefusalError("it stacks other things than the steps")
    last = reader.value(frames[-1])
    if last.step is None:
        raise RefusalError("it stacks other things than the steps")
    last = last.at(reader.steps - 1)
    if reader.settled:
        for t, frame in enumerate(frames):
            found = reader.values.get(frame)
            reader.agree(node, t, None if found is None else found.at(t), last.terms)
    return replace(last, step=None, layout=layout[dim])


def _slice(reader: Reader, node: fx.Node) -> Value:
    x, p = reader.value(operand(node)), arguments(node)
    end = min(p["end"], reader.steps) if p["end"] is not None else reader.steps
    if x.layout != "TN" or x.dropped or (p["dim"], p["start"] or 0, p["step"]) != (0, 0, 1) or end <= 0:
        raise RefusalError("NIR does not cut a signal")
    return replace(x, dropped=reader.steps - end)


def _pad(reader: Reader, node: fx.Node) -> Value:
    x, p = reader.value(operand(node)), arguments(node)
    late = x.dropped
    if x.layout != "TN" or not late or p["value"] != 0 or list(p["pad"]) != [0, 0] * (len(x.shape) + 1) + [late, 0]:
        raise RefusalError("NIR pads within convolutions and pooling alone")
    return replace(x, terms=frozenset((name, d + late) for name, d in x.terms), dropped=0)


def _aligned(a: Value, b: Value) -> tuple[Value, Value]:
    if a.step is not None and b.step is not None:
        later = max(a.step, b.step)
        a, b = a.at(later), b.at(later)
    if (a.step, a.layout, a.dropped, a.shape) != (b.step, b.layout, b.dropped, b.shape):
        raise RefusalError("its operands are signals of different shapes or steps")
    return a, b


def _sum(reader: Reader, node: fx.Node) -> Value:
    p = arguments(node)
    sides = [p["self"], p["other"]]
    if not all(isinstance(n, fx.Node) and reader.graph.constant(n) is None for n in sides):
        raise RefusalError("NIR adds constants within Affine and convolutions alone")
    a, b = _aligned(*(reader.value(n) for n in sides))
    factor = p["alpha"] * (-1 if is_op(node, aten.sub.Tensor) else 1)
    if factor != 1:
        b = reader.scaled(node, b, factor)
    for twice in a.terms & b.terms:  # NIR has no two edges between two nodes
        doubled = reader.scaled(node, replace(a, terms=frozenset([twice])), 2.0)
        a = replace(a, terms=(a.terms - {twice}) | doubled.terms)
        b = replace(b, terms=b.terms - {twice})
    return replace(a, terms=a.terms | b.terms)


def _product(reader: Reader, node: fx.Node) -> Value:
    p = arguments(node)
    a, b = p["self"], p["other"]
    if is_op(node, aten.mul.Tensor) and (not isinstance(a, fx.Node) or reader.graph.constant(a) is not None):
        a, b = b, a
    x = reader.value(a)
    if isinstance(b, fx.Node) and reader.graph.constant(b) is None:
        raise RefusalError("a product of two signals (an attention gate); NIR scales by constants alone")
    factor = reader.per_sample(reader.constant(b, "factor"), x.shape, "factor")
    return reader.scaled(node, x, (1 / factor if is_op(node, aten.div.Tensor) else factor).numpy())


def _lif(reader: Reader, node: fx.Node) -> Value:
    x = reader.value(operand(node))
    uses = {OUTPUT_NAMES[operand(user, 1)] for user in node.users}
    if uses & {"v", "i"}:
        raise RefusalError("its state after the last step is read")
    if x.layout != "TN" or x.dropped:
        raise RefusalError("it does not run over [T, N, ...]")
    name = reader.neuron(node, node, uses, x.shape)
    reader.feeds.setdefault(name, x.terms)
    return _levelled(reader, node, replace(x, terms=frozenset([(name, 0)])))


def _levelled(reader: Reader, node: fx.Node, x: Value) -> Value:
    level = arguments(node)["level"]
    if level is None:
        return x
    return reader.scaled(node, x, reader.per_sample(reader.constant(level, "level"), x.shape, "level").numpy())


def _lif_step(reader: Reader, node: fx.Node) -> Value:
    first, k = reader.step_of(node)
    shape = shape_of(operand(node))[1:]
    name = reader.neuron(node, first, reader.uses(first), shape)
    if reader.settled:
        found = reader.values.get(operand(node))
        reader.same_parameters(node, first, shape)
        reader.agree(node, k, None if found is None else found.at(k), reader.feeds[name])
    elif reader.is_last(node):
        x = reader.value(operand(node))
        if x.step is None:
            raise RefusalError("it reads other things than a step")
        reader.feeds[name] = x.at(k).terms
    return _levelled(reader, node, Value(frozenset([(name, 0)]), shape, k, "N"))


def _item(reader: Reader, node: fx.Node) -> Value:
    if not is_op(operand(node), LIF, LIF_STEP):
        raise RefusalError("no NIR node does this")
    return reader.value(operand(node))


HANDLERS: dict[Any, Handler] = {
    operator.getitem: _item,
    LIF: _lif,
    LIF_STEP: _lif_step,
    aten.linear.default: _linear,
    aten.convolution.default: _convolution,
    aten.avg_pool2d.default: _avg_pool,
    aten.mean.dim: _mean,
    aten.permute.default: _permute,
    aten.select.int: _select,
    aten.cat.default: _stack,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.constant_pad_nd.default: _pad,
    aten.add.Tensor: _sum,
    aten.sub.Tensor: _sum,
    aten.mul.Tensor: _product,
    aten.div.Tensor: _product,
    **dict.fromkeys(VIEWS, _reshape),
}
