"""The ONNX graph under construction: tensors, initializers, views that cost nothing, and one layout for time-major tensors.

A graph's ``[T, N, C, H, W]`` tensor usually is a view of a 4-D tensor ``[T*N, C, H, W]``, which is what convolutions and neurons
compute on. So a :class:`Value` keeps the ONNX tensor that exists (with its own shape, the layout) apart from the shape the graph
gives it; a ``Reshape`` is emitted only for an operator that really needs the other shape, and two views in a row are one or none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, fx

from snngraph.errors import LoweringError

__all__ = ["Batch", "Builder", "Refusal", "Shape", "Value", "merged", "numel"]


@dataclass(frozen=True, slots=True)
class Batch:
    """A dimension of a model with a free batch: ``times`` times the batch size."""

    times: int


Dim: TypeAlias = "int | Batch"
Shape: TypeAlias = "tuple[Dim, ...]"

_ONNX_TYPES = {
    torch.float32: onnx.TensorProto.FLOAT,
    torch.int64: onnx.TensorProto.INT64,
    torch.int32: onnx.TensorProto.INT32,
    torch.int16: onnx.TensorProto.INT16,
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.bool: onnx.TensorProto.BOOL,
}


_PER_STEP = ("Conv", "MaxPool", "AveragePool", "Relu")
"""Operators that treat the samples of ``[T*N, ...]`` apart."""
_LARGE = 1 << 21
"""Elements of a layer's result over all steps from which on it runs step by step: 8 MB, which no core's cache holds."""


class Refusal(Exception):  # noqa: N818 - no error yet: it becomes one line of an UnsupportedOperatorError
    """A translation can not express this call; the text says why."""


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the graph.

    Args:
        tensor: the ONNX tensor that holds its elements, empty for a constant or an expansion that nothing needed yet.
        layout: the shape of ``tensor``.
        shape: the shape in the graph, with the same elements in the same order.
        dtype: its element type; every floating type is float32.
        constant: its value, when it is known; floating constants in float64, rounded where they become initializers.
        title: a name for the constant.
        source: this value is ``source`` broadcast to ``shape``.
    """

    tensor: str
    layout: Shape
    shape: Shape
    dtype: torch.dtype
    constant: Tensor | None = None
    title: str = ""
    source: Value | None = None


def onnx_type(dtype: torch.dtype) -> int:
    """The ONNX element type; refuses types that no engine has."""
    if dtype not in _ONNX_TYPES:
        raise Refusal(f"elements of type {str(dtype).removeprefix('torch.')} have no place in the model")
    return int(_ONNX_TYPES[dtype])


def normal(dtype: torch.dtype) -> torch.dtype:
    """The element type in the model: every floating type becomes float32."""
    return torch.float32 if dtype.is_floating_point else dtype


def numel(shape: Shape) -> Dim:
    """The number of elements; refuses the square of a free batch."""
    sizes = [d for d in shape if isinstance(d, int)]
    free = [d.times for d in shape if isinstance(d, Batch)]
    if len(free) > 1:
        raise Refusal("two dimensions carry the free batch; build with a fixed batch size")
    return Batch(math.prod(sizes) * free[0]) if free else math.prod(sizes)


def merged(shape: Shape) -> Shape:
    """``[T, N, ...]`` as ``[T*N, ...]``."""
    return (numel(shape[:2]), *shape[2:])


class Builder:
    """Collects nodes and initializers. Equal nodes and equal initializers exist once."""

    def __init__(self, shapes: dict[fx.Node, Any], reserved: Sequence[str]) -> None:
        self.shapes = shapes
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.context = ""  # the name of the graph node that is being lowered: where tensor names come from
        self.batch_input: tuple[str, int] | None = None  # an input and its axis that is the batch, when that is free
        self._taken = set(reserved)
        self._names: dict[str, str] = {}  # final names asked for, by tensor
        self._produced: set[str] = set()  # by nodes
        self._constants: dict[tuple[Any, ...], str] = {}
        self._emitted: dict[tuple[Any, ...], list[str]] = {}
        self._expanded: dict[tuple[Any, ...], str] = {}
        self._makers: dict[str, onnx.NodeProto] = {}
        self._joined: set[str] = set()  # tensors that are their T steps, one after the other
        self._elements: dict[str, Dim] = {}
        self.private: set[str] = set()  # tensors that one operator alone will read

    # -- values ------------------------------------------------------------------------------------------------------------

    def shape(self, node: fx.Node) -> Shape:
        """The shape of a graph node's single output."""
        shape: Shape = self.shapes[node]
        return shape

    def dtype(self, node: fx.Node, k: int | None = None) -> torch.dtype:
        """The element type of a graph node's output in the model."""
        value = node.meta["val"]
        return normal((value if k is None else value[k]).dtype)

    def value(self, tensor: str, shape: Shape, dtype: torch.dtype = torch.float32, *, layout: Shape | None = None) -> Value:
        """The value that an ONNX tensor holds."""
        self._elements[tensor] = numel(shape)
        return Value(tensor, shape if layout is None else layout, shape, dtype)

    def constant(self, tensor: Tensor, title: str = "") -> Value:
        """A constant; it becomes an initializer where it is used, and is kept in float64 until then."""
        shape, tensor = tuple(tensor.shape), tensor.detach()
        tensor = tensor.double() if tensor.is_floating_point() else tensor
        return Value("", shape, shape, normal(tensor.dtype), tensor, title)

    def view(self, value: Value, shape: Shape) -> Value:
        """``value`` with another shape."""
        if value.constant is not None:
            return replace(
                value, constant=value.constant.reshape([int(d) for d in shape if isinstance(d, int)]), shape=shape, layout=shape
            )
        if value.source is not None and shape != value.shape:
            return self.value(self.name(value), shape, value.dtype, layout=value.shape)
        return replace(value, shape=shape)

    def name(self, value: Value) -> str:
        """The ONNX tensor of ``value`` in its own shape; emits what is missing."""
        if value.constant is not None:
            return self.initializer(value.constant, value.title)
        if value.source is not None:
            return self._expand(value)
        if value.layout == value.shape:
            return value.tensor
        return self.emit("Reshape", value.tensor, self._target(value), **self._allow_zero(value.shape))

    def made_by(self, value: Value) -> str:
        """The ONNX operator that made the tensor of ``value``, if one did."""
        maker = self._makers.get(value.tensor)
        return "" if maker is None else str(maker.op_type)

    def cast(self, value: Value, dtype: torch.dtype) -> Value:
        """``value`` with another element type."""
        if value.dtype == dtype:
            return value
        if value.constant is not None:
            return replace(value, constant=value.constant.to(torch.float64 if dtype.is_floating_point else dtype), dtype=dtype)
        if value.source is not None:
            return replace(value, source=self.cast(value.source, dtype), dtype=dtype)
        return replace(value, tensor=self.emit("Cast", value.tensor, to=onnx_type(dtype)), dtype=dtype)

    def _target(self, value: Value) -> Tensor:
        """The shape operand of a Reshape: at most one dimension is inferred (-1), an equal one may be copied (0)."""
        free = [k for k, d in enumerate(value.shape) if isinstance(d, Batch)]
        copied = [k for k in free if k < len(value.layout) and value.layout[k] == value.shape[k]] if len(free) > 1 else []
        if len(free) - len(copied) > 1:
            raise Refusal("two dimensions carry the free batch; build with a fixed batch size")
        return torch.tensor(
            [(0 if k in copied else -1) if isinstance(d, Batch) else d for k, d in enumerate(value.shape)], dtype=torch.int64
        )

    def _allow_zero(self, shape: Shape) -> dict[str, int]:
        if 0 not in shape:
            return {}
        if any(isinstance(d, Batch) for d in shape):
            raise Refusal("an empty tensor at a free batch size; build with a fixed batch size")
        return {"allowzero": 1}  # otherwise a 0 would copy the input's dimension

    def _expand(self, value: Value) -> str:
        source = value.source
        assert source is not None
        aligned = self.view(source, (1,) * (len(value.shape) - len(source.shape)) + source.shape)
        target = [1 if a == d else d for a, d in zip(aligned.shape, value.shape, strict=True)]  # 1 keeps the source's size
        return self.emit("Expand", self.name(aligned), self.sizes(target))

    def sizes(self, shape: Sequence[Dim]) -> str:
        """An int64 vector with these sizes: a constant, or computed from an input where a dimension is the free batch."""
        if not any(isinstance(d, Batch) for d in shape):
            return self.initializer(torch.tensor(list(shape), dtype=torch.int64))
        if self.batch_input is None:
            raise Refusal("no input carries the batch")
        tensor, axis = self.batch_input
        batch = self.emit("Shape", tensor, start=axis, end=axis + 1)
        parts = []
        for d in shape:
            times = self.initializer(torch.tensor([d.times if isinstance(d, Batch) else d], dtype=torch.int64))
            parts.append(self.emit("Mul", batch, times) if isinstance(d, Batch) else times)
        return self.emit("Concat", *parts, axis=0)

    # -- emission ----------------------------------------------------------------------------------------------------------

    def initializer(self, tensor: Tensor, title: str = "", *, shared: bool = True) -> str:
        """The initializer that holds ``tensor``, rounded to float32 if it is floating: one that exists, unless not ``shared``.

        Raises:
            LoweringError: a number is too large for float32.
        """
        array = tensor.detach().cpu().numpy()
        if tensor.is_floating_point():
            with np.errstate(over="ignore"):
                rounded = array.astype(np.float32)
            if bool((np.isinf(rounded) & ~np.isinf(array)).any()):
                largest = float(np.abs(array[np.isfinite(array)]).max())
                raise LoweringError(f"{title or self.context}: {largest:.6g} is too large for float32 (the largest is 3.4e38)")
            array = rounded
        array = np.ascontiguousarray(array).reshape(tuple(tensor.shape))
        key = (array.dtype.str, array.shape, array.tobytes())
        if shared and key in self._constants:
            return self._constants[key]
        onnx_type(normal(tensor.dtype))
        name = self.fresh(title or ("scalar" if array.size == 1 else "constant"))
        self.initializers[name] = numpy_helper.from_array(array, name)
        if shared:
            self._constants[key] = name
        return name

    def fresh(self, title: str = "") -> str:
        """A tensor name nobody has."""
        base = title or self.context or "value"
        name, k = base, 0
        while name in self._taken:
            k += 1
            name = f"{base}.{k}"
        self._taken.add(name)
        return name

    def emit(self, op: str, *inputs: str | Value | Tensor | None, **attributes: Any) -> str:
        """One node with one output, whose name it returns."""
        return self.emit_many(op, inputs, 1, **attributes)[0]

    def emit_many(self, op: str, inputs: Sequence[str | Value | Tensor | None], outputs: int, **attributes: Any) -> list[str]:
        """One node; an equal one that exists is used instead."""
        names = [self._operand(x) for x in inputs]
        key = (op, tuple(names), outputs, tuple(sorted((k, str(v)) for k, v in attributes.items())))
        if key not in self._emitted:
            made = [self.fresh(f"{self.context}.{k}" if outputs > 1 else "") for k in range(outputs)]
            self.nodes.append(helper.make_node(op, names, made, name=made[0], **attributes))
            self._emitted[key] = made
            self._produced.update(made)
            self._makers.update(dict.fromkeys(made, self.nodes[-1]))
        return self._emitted[key]

    def _operand(self, x: str | Value | Tensor | None) -> str:
        if x is None:
            return ""
        if isinstance(x, Value):
            return self.name(x)
        return self.initializer(x) if isinstance(x, Tensor) else x

    # -- time --------------------------------------------------------------------------------------------------------------

    def steps(self, value: Value) -> list[Value]:
        """The ``T`` steps of a ``[T, N, ...]`` value: one ``Split`` of the tensor ``[T*N, ...]``, however many users."""
        steps, shape = int(str(value.shape[0])), value.shape[1:]
        if value.constant is not None:
            return [self.constant(value.constant[t], value.title) for t in range(steps)]
        if value.source is not None:  # the same at every step, if the expansion made the time axis
            source = value.source
            aligned = self.view(source, (1,) * (len(value.shape) - len(source.shape)) + source.shape)
            if aligned.shape[0] == 1:
                step = self.view(aligned, aligned.shape[1:])
                return [step if step.shape == shape else Value("", shape, shape, value.dtype, source=step)] * steps
        layout = merged(value.shape)
        tensor = self.name(self.view(value, layout))
        step_layout = merged((1, *shape)) if len(layout) != len(shape) else shape
        names = self._unstacked(tensor, steps, numel(layout))
        return [self.value(name, shape, value.dtype, layout=step_layout) for name in names]

    def _unstacked(self, tensor: str, steps: int, elements: Dim) -> list[str]:
        """The ``steps`` parts of a time-major tensor: of a ``Concat`` its inputs, of a layer the layer on the parts of its input.

        A split copies. So a large result of a layer that nothing else reads is never made whole: the layer runs step by step, its
        result stays in the cache, and the neuron's first operation is fused into it.
        """
        if steps == 1:
            return [tensor]
        if tensor in self._joined:
            return list(self._makers[tensor].input)
        maker = self._makers.get(tensor)
        if maker is None or not self._runs_per_step(maker, elements):
            return self.emit_many("Split", [tensor], steps, axis=0, num_outputs=steps)
        attributes = {a.name: helper.get_attribute_value(a) for a in maker.attribute}
        before = self._unstacked(maker.input[0], steps, self._elements.get(maker.input[0], 0))
        return [self.emit(maker.op_type, part, *maker.input[1:], **attributes) for part in before]

    def _runs_per_step(self, maker: onnx.NodeProto, elements: Dim) -> bool:
        """Whether an operator that makes a time-major tensor had better run step by step."""
        constants = all(name in self.initializers for name in maker.input[1:])
        if maker.output[0] not in self.private or maker.op_type not in _PER_STEP or not constants:
            return False
        return maker.op_type == "Relu" or (isinstance(elements, int) and elements >= _LARGE)

    def joined(self, steps: Sequence[Value]) -> Value:
        """The inverse of :meth:`steps`: one ``Concat`` to ``[T*N, ...]``, seen as ``[T, N, ...]``."""
        shape = (len(steps), *steps[0].shape)
        names = [self.name(self.view(s, merged((1, *s.shape)))) for s in steps]
        tensor = self.emit("Concat", *names, axis=0) if len(names) > 1 else names[0]
        if len(names) > 1:
            self._joined.add(tensor)
        return self.value(tensor, shape, steps[0].dtype, layout=merged(shape))

    # -- names -------------------------------------------------------------------------------------------------------------

    def rename(self, tensor: str, wanted: str) -> None:
        """Makes a tensor called ``wanted`` with the elements of ``tensor``.

        The tensor itself gets the name, unless it has one that must stay (inputs, constants, a name asked for before): then an
        ``Identity`` beside the computation bears it, which engines drop unless someone reads it.
        """
        if tensor in self._names or tensor not in self._produced:
            self.nodes.append(helper.make_node("Identity", [tensor], [wanted], name=wanted))
            self._names[wanted] = wanted
        else:
            self._names[tensor] = wanted

    def finished_nodes(self) -> list[onnx.NodeProto]:
        """The nodes with all names as asked for, without those that nobody reads any more."""
        self._drop_unread()
        for node in self.nodes:
            for names in (node.input, node.output):
                for k, name in enumerate(names):
                    names[k] = self._names.get(name, name)
        return self.nodes

    def _drop_unread(self) -> None:
        """Drops what nobody reads: steps took its place, or only its size was asked for. What was given a name stays."""
        readers = Counter(name for node in self.nodes for name in node.input)
        for k in reversed(range(len(self.nodes))):
            node = self.nodes[k]
            if not any(readers[name] or name in self._names for name in node.output):
                readers.subtract(node.input)
                del self.nodes[k]
