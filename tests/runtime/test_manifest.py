"""The manifest: strict in, strict out."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snngraph.errors import ArtifactCorruptError, ArtifactError, ArtifactVersionError
from snngraph.runtime.manifest import SCHEMA, Manifest, manifest_hash, parse_json
from snngraph.types import NeuronLayer, TensorSpec
from tests.runtime.networks import manifest


def test_json_round_trip() -> None:
    original = manifest(batch=None)
    assert Manifest.from_json(json.loads(json.dumps(original.to_json()))) == original
    assert original.to_json()["inputs"][0] == {
        "name": "x",
        "shape": [4, None, 2, 4, 4],
        "dtype": "float32",
        "time_dim": 0,
        "batch_dim": 1,
    }


def test_it_is_frozen_and_keeps_its_own_copies() -> None:
    options = {"threads": 1}
    made = manifest(options=options)
    options["threads"] = 8
    made.to_json()["options"]["threads"] = 9
    assert made.options == {"threads": 1}
    with pytest.raises(FrozenInstanceError):
        made.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name has to be a non-empty text, got ''"),
        ({"target": 3}, "target has to be a non-empty text, got 3"),
        ({"precision": "bf16"}, "precision has to be one of fp32, exact, fp16, int8, got 'bf16'"),
        ({"mode": "stream"}, "mode has to be one of sequence, step, got 'stream'"),
        ({"time_steps": 0}, "time_steps has to be an integer of at least 1, got 0"),
        ({"time_steps": True}, "time_steps has to be an integer of at least 1, got True"),
        ({"time_steps": 5}, "inputs 'x' has 4 time steps, not 5"),
        ({"inputs": ()}, "inputs is empty"),
        ({"inputs": [TensorSpec("x", (1,))]}, "inputs has to be a tuple"),
        ({"inputs": ("x",)}, "inputs[0] has to be a TensorSpec"),
        ({"inputs": (TensorSpec("x", (1,)), TensorSpec("x", (2,)))}, "inputs holds a tensor name twice"),
        ({"outputs": (TensorSpec("y", (1,), "bfloat16"),)}, "outputs[0].dtype has to be one of bool"),
        ({"outputs": (TensorSpec("y", (-1,)),)}, "outputs[0].shape[0] has to be an integer of at least 0, got -1"),
        ({"outputs": (TensorSpec("y", (None,)),)}, "outputs[0].shape[0] is free, but only the batch (axis None) may be"),
        ({"outputs": (TensorSpec("y", (1,), batch_dim=1),)}, "outputs[0].batch_dim has to be an integer from 0 to 0, got 1"),
        ({"outputs": (TensorSpec("y", (4,), time_dim=0, batch_dim=0),)}, "time and batch are the same axis 0"),
        ({"layers": ({},)}, "layers[0] has to be a NeuronLayer"),
        ({"layers": (NeuronLayer("a", 1, (1,), "s", ("",)),)}, "layers[0].membrane[0] has to be a non-empty text"),
        ({"layers": (NeuronLayer("a", 1, (1.5,), "s", ()),)}, "layers[0].shape[0] has to be an integer"),  # type: ignore[arg-type]
        ({"passes": (1,)}, "passes[0] has to be a non-empty text"),
        ({"versions": {"torch": 2}}, "versions has to be a dict from text to text"),
        ({"options": None}, "options has to be a dict"),
        ({"options": {"set": {1}}}, "options has to hold plain JSON values"),
        ({"verify": {"error": float("inf")}}, "verify has to hold plain JSON values"),
        ({"schema": 0}, "schema has to be an integer of at least 1"),
    ],
)
def test_wrong_values_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match="manifest: ") as caught:
        manifest(**changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("passes",), "merge_time", "passes has to be a JSON list, got 'merge_time'"),
        (("inputs", 0, "shape"), 4, "inputs[0].shape has to be a JSON list, got 4"),
        (("inputs", 0), 4, "inputs[0] has to be a JSON object, got 4"),
        (("inputs", 0, "layout"), "NCHW", "wrong keys in inputs[0]: unknown ['layout']"),
        (("extra",), 1, "wrong keys in manifest: unknown ['extra']"),
        (("layers", 1, "neurons"), "ten", "layers[1].neurons has to be an integer"),
        (("schema",), None, "expected a JSON object with an integer 'schema'"),
        (("schema",), True, "expected a JSON object with an integer 'schema'"),
    ],
)
def test_wrong_json_is_refused(place: tuple[Any, ...], value: Any, message: str) -> None:
    tree = manifest().to_json()
    inner: Any = tree
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ArtifactCorruptError) as caught:
        Manifest.from_json(tree)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", sorted(manifest().to_json()))
def test_no_key_may_be_missing(key: str) -> None:
    tree = manifest().to_json()
    del tree[key]
    with pytest.raises(ArtifactCorruptError, match="schema" if key == "schema" else f"missing \\['{key}'\\]"):
        Manifest.from_json(tree)


def test_a_newer_schema_is_named_with_the_upgrade() -> None:
    tree = {**manifest().to_json(), "schema": SCHEMA + 1, "snngraph_version": "9.0", "something": "new"}
    with pytest.raises(ArtifactVersionError, match=r"schema 2, written by snngraph '9.0'.*pip install --upgrade snngraph"):
        Manifest.from_json(tree)


@pytest.mark.parametrize("data", [None, [], "text", 1.5])
def test_other_json_is_no_manifest(data: object) -> None:
    with pytest.raises(ArtifactCorruptError):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b"9" * 10_000,
    ],
)
def test_only_strict_json_is_read(text: bytes) -> None:
    with pytest.raises(ArtifactCorruptError, match=r"manifest\.json is no valid JSON"):
        parse_json(text)


def test_the_hash_leaves_out_itself_and_nothing_else() -> None:
    tree = manifest(hashes={"model.onnx": "abc"}).to_json()
    digest = manifest_hash(tree)
    assert manifest_hash({**tree, "hashes": {"model.onnx": "abc", "manifest.json": "anything"}}) == digest
    assert manifest_hash({**tree, "hashes": {"model.onnx": "abd"}}) != digest
    assert manifest_hash(dict(reversed(tree.items()))) == digest


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(key=st.sampled_from(sorted(manifest().to_json())), value=_JSON)
def test_any_value_anywhere_is_read_or_refused(key: str, value: Any) -> None:
    tree = {**manifest().to_json(), key: value}
    try:
        read = Manifest.from_json(tree)
    except ArtifactError:
        return
    assert read.to_json() == tree
