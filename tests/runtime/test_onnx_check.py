"""The protobuf walk against models made by the onnx package, and against bytes made to hurt."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from snngraph.errors import ArtifactCorruptError, ArtifactError, UnsafeArtifactError
from snngraph.runtime.onnx_check import MAX_NESTING, OnnxInterface, check_onnx
from tests.runtime.networks import lif_model, model_of


def external(name: str = "w") -> TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")
    return tensor


def value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])


def graph(*nodes: onnx.NodeProto, initializer: tuple[TensorProto, ...] = (), **fields: object) -> GraphProto:
    return helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")], initializer
    )


def test_a_good_model_and_its_interface() -> None:
    assert check_onnx(lif_model()) == OnnxInterface(("x",), ("y",))
    assert check_onnx(lif_model(None, spikes_output=True)) == OnnxInterface(("x",), ("y", "spikes"))


def test_an_initializer_that_is_listed_as_input_is_none() -> None:
    made = graph(initializer=(numpy_helper.from_array(np.zeros(4, np.float32), "w"),))
    made.input.append(value("w"))
    assert check_onnx(model_of(made).SerializeToString()).inputs == ("x",)


def test_standard_domains_pass() -> None:
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    check_onnx(model_of(graph(node), [("", 20), ("ai.onnx.ml", 3)]).SerializeToString())
    check_onnx(model_of(graph(helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")), [("ai.onnx", 20)]).SerializeToString())


def with_attribute(tensor_or_graph: object) -> ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("value", tensor_or_graph))
    return model_of(graph(node))


def subgraph() -> ModelProto:
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["z"])], "inner", [], [value("z")], [external()])
    branches = {"then_branch": inner, "else_branch": inner}
    return model_of(graph(helper.make_node("If", ["x"], ["y"], **branches)))


def function(node: onnx.NodeProto) -> ModelProto:
    made = helper.make_function("", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 20)])
    return model_of(graph(), functions=[made])


def sparse(part: str) -> ModelProto:
    made = graph()
    inner = onnx.SparseTensorProto(dims=[4])
    getattr(inner, part).CopyFrom(external())
    made.sparse_initializer.append(inner)
    return model_of(made)


def function_attribute() -> ModelProto:
    made = function(helper.make_node("Relu", ["a"], ["b"]))
    made.functions[0].attribute_proto.append(helper.make_attribute("value", external()))
    return made


def location_only(number: int) -> ModelProto:
    """External by ``data_location`` alone; protobuf keeps 32 bits of the number, so 2**32 + 1 is EXTERNAL too."""
    field = bytes([14 << 3]) + bytes((number >> shift) & 0x7F | 0x80 for shift in range(0, 28, 7))
    rest = number >> 28
    while True:
        field += bytes([rest & 0x7F | (0x80 if rest > 0x7F else 0)])
        rest >>= 7
        if not rest:
            break
    made = model_of(graph())
    made.graph.initializer.append(TensorProto.FromString(field))
    tensor = made.graph.initializer[0]
    assert tensor.data_location == TensorProto.EXTERNAL
    return made


EXTERNAL_DATA: dict[str, Callable[[], ModelProto]] = {
    "initializer": lambda: model_of(graph(initializer=(external(),))),
    "attribute": lambda: with_attribute(external()),
    "attributes": lambda: with_attribute([external("a"), external("b")]),
    "subgraph": subgraph,
    "graphs": lambda: with_attribute([subgraph().graph]),
    "function": lambda: function(helper.make_node("Constant", [], ["b"], value=external())),
    "function attribute": function_attribute,
    "sparse values": lambda: sparse("values"),
    "sparse indices": lambda: sparse("indices"),
    "sparse attribute": lambda: with_attribute(sparse("values").graph.sparse_initializer[0]),
    "location alone": lambda: location_only(1),
    "location beyond 32 bits": lambda: location_only(2**32 + 1),
}


@pytest.mark.parametrize("where", EXTERNAL_DATA)
def test_external_data_is_refused_wherever_it_is(where: str) -> None:
    with pytest.raises(UnsafeArtifactError, match="outside the file"):
        check_onnx(EXTERNAL_DATA[where]().SerializeToString())


FOREIGN: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "node": (
        lambda: model_of(graph(helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"))),
        r"an operator 'Gelu' of domain 'com.microsoft'",
    ),
    "node in a function": (
        lambda: function(helper.make_node("Evil", ["a"], ["b"], domain="evil")),
        r"an operator 'Evil' of domain 'evil'",
    ),
    "operator set": (lambda: model_of(graph(), [("", 20), ("pkg.torch", 1)]), r"an operator set of domain 'pkg.torch'"),
    "function": (
        lambda: model_of(graph(), functions=[helper.make_function("my", "f", [], [], [], [])]),
        r"a function of domain 'my'",
    ),
    "case counts": (lambda: model_of(graph(), [("AI.ONNX", 20)]), r"domain 'AI.ONNX'"),
}


@pytest.mark.parametrize("where", FOREIGN)
def test_operators_of_other_domains_are_refused(where: str) -> None:
    make, message = FOREIGN[where]
    with pytest.raises(UnsafeArtifactError, match=message):
        check_onnx(make().SerializeToString())


def test_training_information_is_refused() -> None:
    made = model_of(graph())
    made.training_info.add()
    with pytest.raises(UnsafeArtifactError, match="training"):
        check_onnx(made.SerializeToString())


def field(number: int, content: bytes) -> bytes:
    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)

    return varint(number << 3 | 2) + varint(len(content)) + content


def test_nesting_without_end_is_refused() -> None:
    content = b""
    for _ in range(50_000 // 3):  # graph -> node -> attribute -> graph ...
        content = field(1, field(5, field(6, content)))
        if len(content) > 2**16:
            break
    with pytest.raises(UnsafeArtifactError, match=f"more than {MAX_NESTING} deep"):
        check_onnx(field(7, content))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "one graph, found 0"),
        (field(7, b"") + field(7, b""), "one graph, found 2"),
        (b"\x3a", "ends within a number"),
        (b"\x3a\xff", "ends within a number"),
        (b"\x3a\x05ab", "longer than its message"),
        (b"\x3a" + b"\xff" * 9 + b"\x01", "longer than its message"),
        (b"\xff" * 11, "a number is too long"),
        (b"\x00\x00", "impossible field number 0"),
        (b"\x38\x01", "field 7 of ModelProto has the wrong wire type"),
        (b"\x3b\x3c", "unknown wire type 3"),
        (b"\x09\x00", "longer than its message"),
        (b"MZ\x90\x00 not a model", "damaged"),
        (field(7, field(1, b"\x38\x01")), "field 7 of NodeProto has the wrong wire type"),
    ],
)
def test_what_is_no_model_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ArtifactCorruptError, match=message):
        check_onnx(data)


GOOD = lif_model()


@settings(max_examples=200, deadline=None)
@given(position=st.integers(0, len(GOOD) - 1), content=st.binary(min_size=1, max_size=4))
@example(position=0, content=b"\x08")
def test_damaged_models_never_crash_the_walk(position: int, content: bytes) -> None:
    damaged = GOOD[:position] + content + GOOD[position + len(content) :]
    try:
        interface = check_onnx(damaged)
    except ArtifactError:
        return
    try:
        parsed = onnx.load_from_string(damaged)
    except Exception:
        return  # stricter than the walk, which skips what it need not understand
    assert interface.outputs == tuple(output.name for output in parsed.graph.output)
    assert all(node.domain in ("", "ai.onnx", "ai.onnx.ml") for node in parsed.graph.node)
    assert not any(tensor.data_location or tensor.external_data for tensor in parsed.graph.initializer)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ArtifactError):
        check_onnx(data)
