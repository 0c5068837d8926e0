"""What a ``.snn`` file says about itself: the manifest, its JSON form, and its hash.

The JSON form is strict. An unknown key is an error, at every level: within one schema there is nothing to ignore, and a key that
a reader does not understand could be the one that changes a result. A field that is added raises ``SCHEMA``; an older snngraph
then refuses the file by its schema number and says so, instead of half-reading it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from snngraph.errors import ArtifactCorruptError, ArtifactError, ArtifactVersionError
from snngraph.types import Mode, NeuronLayer, Precision, TensorSpec

__all__ = ["DTYPES", "SCHEMA", "Manifest", "check_schema", "manifest_hash", "parse_json"]

SCHEMA = 1

#: NumPy names of the element types an engine can take and give.
DTYPES = (
    "bool",
    *("int8", "int16", "int32", "int64"),
    *("uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)  # fmt: skip

_MANIFEST_HASH = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """One compiled network, described. Checked on construction, so that what is written can be read.

    Args:
        snngraph_version: the version of snngraph that compiled the network.
        name: the network's name, for people.
        target: the engine target it was built for, for example ``"openvino"``.
        precision: one of ``snngraph.types.Precision``.
        mode: one of ``snngraph.types.Mode``.
        time_steps: T, the number of time steps of one sequence.
        inputs: the inputs, in the order of the ONNX model.
        outputs: the outputs, in the order of the ONNX model.
        layers: where each layer of neurons lives in the ONNX model.
        passes: the passes applied, in order, each with its options as text.
        options: run-time options: ``device``, ``threads`` (``None``: every usable core) and ``settings``, the engine library's
            own settings. ``Engine`` fills it, so it tells what was used.
        versions: the libraries at build time and their versions.
        verify: a summary of the comparison with the reference, or ``None`` where none was made.
        hashes: SHA-256 of the file's members, in hexadecimal; filled when the file is written.
        schema: the version of this format.

    Raises:
        ArtifactError: a field is not what it has to be.
    """

    snngraph_version: str
    name: str
    target: str
    precision: Precision
    mode: Mode
    time_steps: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: tuple[NeuronLayer, ...] = ()
    passes: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    verify: dict[str, Any] | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        _integer(self.schema, "schema", SCHEMA)
        for name in ("snngraph_version", "name", "target"):
            _text(getattr(self, name), name)
        _choice(self.precision, "precision", get_args(Precision))
        _choice(self.mode, "mode", get_args(Mode))
        _integer(self.time_steps, "time_steps", 1)
        for name in ("inputs", "outputs"):
            specs = _tuple_of(getattr(self, name), name, _check_spec)
            if not specs:
                raise ArtifactError(f"manifest: {name} is empty, expected at least one tensor")
            if len({spec.name for spec in specs}) < len(specs):
                raise ArtifactError(f"manifest: {name} holds a tensor name twice: {[spec.name for spec in specs]}")
            for spec in specs:
                if spec.time_dim is not None and spec.shape[spec.time_dim] != self.time_steps:
                    raise ArtifactError(
                        f"manifest: {name} {spec.name!r} has {spec.shape[spec.time_dim]} time steps, not {self.time_steps}"
                    )
        _tuple_of(self.layers, "layers", _check_layer)
        _tuple_of(self.passes, "passes", _text)
        _text_dict(self.versions, "versions")
        _text_dict(self.hashes, "hashes")
        # A copy through JSON: nobody can change the manifest from outside, and what JSON can not hold is noticed now.
        for name in ("options", "verify"):
            object.__setattr__(self, name, _json_copy(getattr(self, name), name))
        for name in ("versions", "hashes"):
            object.__setattr__(self, name, dict(getattr(self, name)))

    def to_json(self) -> dict[str, Any]:
        """The manifest as a tree of JSON values; ``from_json`` gives an equal manifest back."""
        return {
            "schema": self.schema,
            "snngraph_version": self.snngraph_version,
            "name": self.name,
            "target": self.target,
            "precision": self.precision,
            "mode": self.mode,
            "time_steps": self.time_steps,
            "inputs": [_spec_to_json(spec) for spec in self.inputs],
            "outputs": [_spec_to_json(spec) for spec in self.outputs],
            "layers": [_layer_to_json(layer) for layer in self.layers],
            "passes": list(self.passes),
            "options": _json_copy(self.options, "options"),
            "versions": dict(self.versions),
            "verify": _json_copy(self.verify, "verify"),
            "hashes": dict(self.hashes),
        }

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """The manifest from its JSON tree.

        Raises:
            ArtifactVersionError: the schema is newer than this snngraph.
            ArtifactCorruptError: a key is missing or unknown, or a value is of the wrong type.
        """
        check_schema(data)
        values = _keys(data, "manifest", [item.name for item in fields(cls)])
        try:
            for name, read in (
                ("inputs", _spec_from_json),
                ("outputs", _spec_from_json),
                ("layers", _layer_from_json),
                ("passes", _same),
            ):
                values[name] = tuple(read(item, f"{name}[{i}]") for i, item in enumerate(_list(values[name], name)))
            return cls(**values)
        except ArtifactCorruptError:
            raise
        except ArtifactError as error:
            raise ArtifactCorruptError(str(error)) from None


def check_schema(data: object) -> None:
    """Refuses a manifest whose schema this version does not know, before anything else is read from it.

    Raises:
        ArtifactVersionError: the schema is newer.
        ArtifactCorruptError: there is no schema, or no such schema ever existed.
    """
    schema = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise ArtifactCorruptError(
            f"manifest: expected a JSON object with an integer 'schema' of at least 1, got schema {_short(schema)}"
        )
    if schema > SCHEMA:
        written_by = data.get("snngraph_version") if isinstance(data, dict) else None
        raise ArtifactVersionError(
            f"the file has manifest schema {_short(schema)}, written by snngraph {_short(written_by)}; this snngraph knows "
            f"schemas up to {SCHEMA}: pip install --upgrade snngraph"
        )


def manifest_hash(data: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of a manifest's JSON tree without its own hash; white space and the order of keys do not count."""
    hashes = data.get("hashes")
    rest = {key: value for key, value in hashes.items() if key != _MANIFEST_HASH} if isinstance(hashes, dict) else hashes
    text = json.dumps({**data, "hashes": rest}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def parse_json(text: bytes) -> Any:
    """JSON, strictly: UTF-8, no key twice, no NaN or infinity.

    Raises:
        ArtifactCorruptError: it is not.
    """
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise ArtifactCorruptError(f"manifest.json is no valid JSON: {error}") from None


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("an object holds a key twice")
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is no finite number")
    return value


# -- fields --------------------------------------------------------------------------------------------------------------------


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 256 else "a huge integer"
    return text if len(text) <= 80 else text[:77] + "..."


def _wrong(where: str, expected: str, value: object) -> ArtifactError:
    return ArtifactError(f"manifest: {where} has to be {expected}, got {_short(value)}")


def _same(value: Any, where: str) -> Any:
    return value


def _text(value: object, where: str) -> None:
    if not isinstance(value, str) or not value:
        raise _wrong(where, "a non-empty text", value)


def _integer(value: object, where: str, least: int, most: int = 2**63 - 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(
            where, f"an integer of at least {least}" if most == 2**63 - 1 else f"an integer from {least} to {most}", value
        )


def _choice(value: object, where: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise _wrong(where, "one of " + ", ".join(choices), value)


def _tuple_of(value: object, where: str, check: Callable[[Any, str], object]) -> tuple[Any, ...]:
    if not isinstance(value, tuple):
        raise _wrong(where, "a tuple", value)
    for i, item in enumerate(value):
        check(item, f"{where}[{i}]")
    return value


def _text_dict(value: object, where: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise _wrong(where, "a dict from text to text", value)


def _json_copy(value: Any, where: str) -> Any:
    if value is None and where == "verify":
        return None
    if not isinstance(value, dict):
        raise _wrong(where, "a dict", value)
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"manifest: {where} has to hold plain JSON values (text, finite numbers, lists, dicts): {error}"
        ) from None


def _check_spec(spec: object, where: str) -> None:
    if not isinstance(spec, TensorSpec):
        raise _wrong(where, "a TensorSpec", spec)
    _text(spec.name, f"{where}.name")
    _choice(spec.dtype, f"{where}.dtype", DTYPES)
    if not isinstance(spec.shape, tuple):
        raise _wrong(f"{where}.shape", "a tuple", spec.shape)
    for axis, size in enumerate(spec.shape):
        if size is not None:
            _integer(size, f"{where}.shape[{axis}]", 0)
        elif axis != spec.batch_dim:
            raise ArtifactError(f"manifest: {where}.shape[{axis}] is free, but only the batch (axis {spec.batch_dim}) may be")
    for name, dim in (("time_dim", spec.time_dim), ("batch_dim", spec.batch_dim)):
        if dim is not None:
            _integer(dim, f"{where}.{name}", 0, len(spec.shape) - 1)
    if spec.time_dim is not None and spec.time_dim == spec.batch_dim:
        raise ArtifactError(f"manifest: {where}: time and batch are the same axis {spec.time_dim}")


def _check_layer(layer: object, where: str) -> None:
    if not isinstance(layer, NeuronLayer):
        raise _wrong(where, "a NeuronLayer", layer)
    _text(layer.name, f"{where}.name")
    _text(layer.spikes, f"{where}.spikes")
    _integer(layer.neurons, f"{where}.neurons", 0)
    _tuple_of(layer.shape, f"{where}.shape", lambda size, place: _integer(size, place, 0))
    _tuple_of(layer.membrane, f"{where}.membrane", _text)


# -- JSON trees ----------------------------------------------------------------------------------------------------------------


def _keys(data: object, where: str, expected: list[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ArtifactCorruptError(f"manifest: {where} has to be a JSON object, got {_short(data)}")
    missing, unknown = sorted(set(expected) - set(data)), sorted(set(data) - set(expected))
    if missing or unknown:
        problems = [f"missing {missing}"] * bool(missing) + [f"unknown {_short(unknown)}"] * bool(unknown)
        raise ArtifactCorruptError(f"manifest: wrong keys in {where}: " + ", ".join(problems))
    return dict(data)


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ArtifactCorruptError(f"manifest: {where} has to be a JSON list, got {_short(value)}")
    return value


def _spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "time_dim": spec.time_dim,
        "batch_dim": spec.batch_dim,
    }


def _spec_from_json(data: object, where: str) -> TensorSpec:
    values = _keys(data, where, ["name", "shape", "dtype", "time_dim", "batch_dim"])
    return TensorSpec(**{**values, "shape": tuple(_list(values["shape"], f"{where}.shape"))})


def _layer_to_json(layer: NeuronLayer) -> dict[str, Any]:
    return {
        "name": layer.name,
        "neurons": layer.neurons,
        "shape": list(layer.shape),
        "spikes": layer.spikes,
        "membrane": list(layer.membrane),
    }


def _layer_from_json(data: object, where: str) -> NeuronLayer:
    values = _keys(data, where, ["name", "neurons", "shape", "spikes", "membrane"])
    return NeuronLayer(**{**values, **{name: tuple(_list(values[name], f"{where}.{name}")) for name in ("shape", "membrane")}})
