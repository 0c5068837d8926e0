"""snngraph's own record of a neuron, in the metadata of its NIR node.

NIR's equations leave open how time is discretised; the record has the parameters of the canonical neuron themselves, so that what
:func:`snngraph.to_nir` writes is read back as the same neuron. A record that contradicts its node is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from snngraph import ops
from snngraph.errors import NirDiscretisationError, NirGraphError, NirVersionError
from snngraph.frontends.canonical import Canonical
from snngraph.frontends.nir.neurons import CUBA, DEFAULTS, NEUTRAL, SPIKING, Array, Discretisation, as_array, canonical_of

__all__ = ["KEY", "NUMBERS", "SCHEMA", "canonical_of_record", "check_record", "check_schema", "record_of"]

KEY = "snngraph"
"""The key of snngraph's own records in a node's and in the graph's metadata."""
SCHEMA = 1
NUMBERS = (
    *("decay", "threshold", "input_gain", "bias", "v_reset", "reset_amount", "gain"),
    *("syn_decay", "syn_gain", "floor"),
)
"""The numbers of a canonical neuron that a record has."""
_OPTIONS = {"fire": ops.FIRE, "reset": ops.RESET, "delay": ops.DELAY, "emit": ("spike", "count")}


def record_of(parameters: Mapping[str, Any], v_init: float | Tensor, step: Discretisation) -> dict[str, Any]:
    """What the metadata of a node says of the canonical neuron: numbers, arrays and words, all of which HDF5 keeps."""
    record: dict[str, Any] = {"schema": SCHEMA, "dt": step.dt, "integrator": step.integrator}
    for name, value in {**parameters, "v_init": v_init}.items():
        if name in (*NUMBERS, "v_init") and value is not None:
            record[name] = float(value) if not isinstance(value, Tensor) or value.dim() == 0 else value.double().numpy()
    return {**record, **{name: parameters.get(name, _defaults(name)) for name in _OPTIONS}}


def _defaults(option: str) -> str:
    return {"fire": ">=", "reset": "hard"}.get(option) or DEFAULTS[option]


def check_schema(record: object, where: str) -> Mapping[str, Any]:
    """A record of snngraph's, once its version is known.

    Raises:
        NirVersionError: it was written by a newer snngraph.
        NirGraphError: it is no record.
    """
    schema = record.get("schema") if isinstance(record, Mapping) else None
    if not isinstance(record, Mapping) or not isinstance(schema, int | np.integer):
        raise NirGraphError(f"{where}its metadata {KEY!r} is not what snngraph writes; remove it")
    if schema != SCHEMA:
        raise NirVersionError(f"{where}snngraph's record has schema {schema}, this version knows {SCHEMA}: update snngraph")
    return record


def canonical_of_record(record: Mapping[str, Any], where: str) -> tuple[Canonical, Discretisation]:
    """The neuron that :func:`record_of` described, and how its time is discretised.

    Raises:
        NirGraphError: an entry is missing or is none of ours.
    """
    known = {*NUMBERS, *_OPTIONS, "schema", "dt", "integrator", "v_init"}
    needed = {"decay", "threshold", "v_init", "dt", "integrator", *_OPTIONS}
    if wrong := sorted({*(record.keys() - known), *(needed - record.keys())}):
        raise NirGraphError(f"{where}its metadata {KEY!r} is not what snngraph writes: see {', '.join(wrong)}")
    words = {name: record[name] for name in (*_OPTIONS, "integrator")}
    if not all(isinstance(word, str) for word in words.values()):
        raise NirGraphError(f"{where}its metadata {KEY!r} is not what snngraph writes: {words}")
    numbers = {name: _recorded(record[name], f"{where}{KEY}.{name}") for name in (*NUMBERS, "v_init") if name in record}
    step = Discretisation(dt=float(record["dt"]), **words)
    v_init = numbers.pop("v_init")
    return canonical_of({**numbers, **{name: words[name] for name in _OPTIONS}}, v_init), step


def _recorded(value: object, where: str) -> Array:
    array = np.asarray(value)
    if array.dtype.kind not in "fi" or np.isnan(array).any():
        raise NirGraphError(f"{where} is no number or array of numbers")
    return array.astype(np.float64)


def check_record(
    neuron: Canonical, step: Discretisation, given: Discretisation, kind: str, values: Mapping[str, Array], where: str
) -> None:
    """Holds a record against the node's own NIR parameters, and against what the caller says.

    Raises:
        NirDiscretisationError: they contradict each other.
    """
    recorded = {
        **{name: getattr(step, name) for name in ("dt", "integrator", *_OPTIONS)},
        **dict.fromkeys(("membrane_input", "synapse_input"), "current"),
        "charge": "new",
        "floor": neuron.parameters.get("floor"),
    }
    applies = {"dt", "integrator", "charge", "membrane_input", "synapse_input"} if kind not in SPIKING else set(recorded)
    applies |= {"fire"} if kind == "Threshold" else set()
    for name in sorted(applies):
        wanted = getattr(given, name)
        if wanted is not None and wanted != recorded[name]:
            raise NirDiscretisationError(
                f"{where}{name}={wanted!r} was given, but snngraph wrote this node with {name}={recorded[name]!r}: leave it out"
            )
    for name, want in _of_equations(step, kind, values).items():
        found = neuron.parameters.get(name, NEUTRAL.get(name))
        if found is not None and name == ("syn_gain" if neuron.has_synapse else "input_gain"):
            found = as_array(found) * as_array(neuron.parameters.get("gain", 1.0))
        if found is None or not np.allclose(as_array(found), as_array(want), rtol=1e-5, atol=1e-9, equal_nan=True):
            raise NirDiscretisationError(
                f"{where}its {name} by NIR's equations and by snngraph's record differ: one of them was edited; remove the "
                f"metadata {KEY!r} to read the equations"
            )
    if given.v_init is not None:
        _check_start(neuron, given.v_init, values, where)


def _check_start(neuron: Canonical, wanted: float | str, values: Mapping[str, Array], where: str) -> None:
    if isinstance(wanted, str) and wanted not in values:
        return
    value = values[wanted] if isinstance(wanted, str) else wanted
    if not np.allclose(as_array(neuron.v_rest), value, rtol=1e-9, atol=1e-12):
        raise NirDiscretisationError(f"{where}v_init={wanted!r} was given, but snngraph wrote another one: leave it out")


def _of_equations(step: Discretisation, kind: str, values: Mapping[str, Array]) -> dict[str, Any]:
    """The numbers that NIR's equations and a record both have."""
    found = replace(step, v_init=0.0, reset="hard" if kind in SPIKING else None, delay=None).canonical(kind, values).parameters
    names = ["decay", "input_gain", "bias", "syn_decay", "threshold"]
    names += ["v_reset"] if kind in SPIKING and step.reset == "hard" else []
    numbers = {name: found.get(name, NEUTRAL.get(name)) for name in names}
    if kind in CUBA:
        numbers["syn_gain"] = found.get("syn_gain", 1.0)
    return {name: value for name, value in numbers.items() if value is not None}
