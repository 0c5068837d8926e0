"""Looks into an ONNX model without the ``onnx`` package and refuses what an artifact never needs.

A walk over the protobuf wire format, guided by a table of the messages of ``onnx.proto`` that can hold something dangerous. Every
field is (field number << 3 | wire type) as a varint, then a varint (wire type 0), 8 bytes (1), a length and that many bytes (2),
or 4 bytes (5). The walk never copies weights, never recurses, and runs before any engine library sees the bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from snngraph.errors import ArtifactCorruptError, UnsafeArtifactError

__all__ = ["ALLOWED_DOMAINS", "MAX_NESTING", "OnnxInterface", "check_onnx"]

#: Messages inside messages; protobuf's own default limit, so nothing that other readers accept is refused.
MAX_NESTING: Final = 100
ALLOWED_DOMAINS: Final = frozenset({b"", b"ai.onnx", b"ai.onnx.ml"})

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

#: Message -> field number -> the message it holds.
_MESSAGES: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {7: "GraphProto", 8: "OperatorSetIdProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 9: "OperatorSetIdProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
    "OperatorSetIdProto": {},
}
#: Message -> the field that holds an operator domain.
_DOMAIN: Final = {"NodeProto": 7, "OperatorSetIdProto": 1, "FunctionProto": 10}
_TRAINING_INFO, _EXTERNAL_DATA, _DATA_LOCATION, _OP_TYPE = 20, 13, 14, 4


@dataclass(frozen=True, slots=True)
class OnnxInterface:
    """The names of the inputs (those without an initial value) and the outputs of an ONNX model, in its order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def check_onnx(model: bytes) -> OnnxInterface:
    """Checks a serialized ``ModelProto`` and gives its interface.

    Raises:
        ArtifactCorruptError: it is no well-formed protobuf, or holds no graph.
        UnsafeArtifactError: data outside the file, an operator outside ONNX's own domains, training code, or nesting without end.
    """
    stack: list[tuple[str, memoryview, int]] = [("ModelProto", memoryview(model), 1)]
    while stack:
        message, view, depth = stack.pop()
        if depth > MAX_NESTING:
            raise UnsafeArtifactError(f"model.onnx nests messages more than {MAX_NESTING} deep")
        children = _MESSAGES[message]
        for number, value in _fields(view):
            if number in children:
                stack.append((children[number], _as_bytes(value, message, number), depth + 1))
            elif number == _DOMAIN.get(message):
                _check_domain(message, view, bytes(_as_bytes(value, message, number)))
            elif message == "TensorProto" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value != 0)):
                raise UnsafeArtifactError(
                    "model.onnx keeps a tensor outside the file (external data); an artifact has to hold all its weights itself"
                )
            elif message == "ModelProto" and number == _TRAINING_INFO:
                raise UnsafeArtifactError("model.onnx holds training information; an artifact is for inference only")
    return _interface(memoryview(model))


def _check_domain(message: str, view: memoryview, domain: bytes) -> None:
    if domain in ALLOWED_DOMAINS:
        return
    kind = {"NodeProto": "an operator", "FunctionProto": "a function"}.get(message, "an operator set")
    names = [bytes(value) for number, value in _fields(view) if number == _OP_TYPE and isinstance(value, memoryview)]
    named = f" {_decode(names[-1])!r}" if message == "NodeProto" and names else ""
    raise UnsafeArtifactError(
        f"model.onnx uses {kind}{named} of domain {_decode(domain)!r}; an artifact holds standard ONNX only (ai.onnx, ai.onnx.ml)"
    )


def _interface(model: memoryview) -> OnnxInterface:
    graphs = [value for number, value in _fields(model) if number == 7 and isinstance(value, memoryview)]
    if len(graphs) != 1:
        raise ArtifactCorruptError(f"model.onnx has to hold one graph, found {len(graphs)}: it is no ONNX model")
    names: dict[int, list[str]] = {5: [], 11: [], 12: []}  # initializer, input, output
    for number, value in _fields(graphs[0]):
        if number in names and isinstance(value, memoryview):
            name_field = 8 if number == 5 else 1
            found = [bytes(inner) for field, inner in _fields(value) if field == name_field and isinstance(inner, memoryview)]
            names[number].append(_decode(found[-1]) if found else "")
    initialized = set(names[5])
    return OnnxInterface(tuple(name for name in names[11] if name not in initialized), tuple(names[12]))


def _decode(text: bytes) -> str:
    return text.decode("utf-8", errors="backslashreplace")[:200]


def _as_bytes(value: int | memoryview, message: str, number: int) -> memoryview:
    if not isinstance(value, memoryview):
        raise ArtifactCorruptError(f"model.onnx is damaged: field {number} of {message} has the wrong wire type")
    return value


def _fields(view: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of one message: its number, and an integer (varint) or the bytes (anything else)."""
    position, end = 0, len(view)
    while position < end:
        tag, position = _varint(view, position)
        number, wire = tag >> 3, tag & 7
        if number == 0 or tag >= 1 << 32:
            raise ArtifactCorruptError(f"model.onnx is damaged: impossible field number {number}")
        if wire == _VARINT:
            value, position = _varint(view, position)
            yield number, value
            continue
        if wire == _BYTES:
            size, position = _varint(view, position)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ArtifactCorruptError(f"model.onnx is damaged: unknown wire type {wire}")
        if size > end - position:
            raise ArtifactCorruptError("model.onnx is damaged: a field is longer than its message")
        yield number, view[position : position + size]
        position += size


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            raise ArtifactCorruptError("model.onnx is damaged: it ends within a number")
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ArtifactCorruptError("model.onnx is damaged: a number is too long")
