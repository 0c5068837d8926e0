"""``from_nir``: a network from a NIR file (Neuromorphic Intermediate Representation, https://neuroir.org).

NIR describes neurons by differential equations and says nothing of time steps; :mod:`snngraph.frontends.nir.neurons` has what is
missing and how it is given. Feed-forward parts run over the whole sequence, ``[T, N, ...]``; what lies on a cycle is stepped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from snngraph.errors import NirDiscretisationError, NirGraphError
from snngraph.frontends.nir.build import Part, build
from snngraph.frontends.nir.file import as_graph
from snngraph.frontends.nir.graph import Edge, Network, Node, edges_read_late, network_of
from snngraph.frontends.nir.layers import LAYERS, array_of, read_layer
from snngraph.frontends.nir.neurons import LEAKY, NEURONS, SPIKING, Array, Discretisation
from snngraph.frontends.nir.record import KEY, canonical_of_record, check_record, check_schema
from snngraph.graph import SpikingGraph

__all__ = ["from_nir"]

_CLOSE = 1e-4  # how far, in steps, a delay may be from a whole number of them: writers have float32
_MEANING = {
    "dt": "the length of a step, in the file's unit of time",
    "integrator": "'euler' or 'exponential'",
    "fire": "'>' or '>='",
    "reset": "'hard' (to v_reset, as NIR says), 'soft' (the threshold is subtracted) or 'none'",
    "v_init": "the first potential: a number, 'v_reset' or 'v_leak', which are not 0 here",
}


def from_nir(
    source: Any,
    *,
    time_steps: int | None = None,
    batch_size: int = 1,
    dt: float | None = None,
    integrator: str | None = None,
    fire: str | None = None,
    reset: str | None = None,
    delay: str | None = None,
    emit: str | None = None,
    v_init: float | str | None = None,
    charge: str | None = None,
    membrane_input: str | None = None,
    synapse_input: str | None = None,
    floor: float | None = None,
    late_edges: Iterable[tuple[str, str]] | None = None,
    extra_dims: int = 0,
) -> SpikingGraph:
    """Reads a NIR file as a graph over ``time_steps`` steps. Its inputs are ``[T, N, *shape]``, time first.

    What NIR leaves open is given by arguments; docs/nir.md lists them for the libraries that write NIR. Where their readings of a
    file differ there is no default. A file of :func:`snngraph.to_nir` says everything itself: then an argument may be left out,
    and one that contradicts the file is an error; only ``time_steps`` may be another.

    Args:
        source: a path, or a ``nir.NIRGraph``. Reading a file runs no code.
        time_steps: the number of steps T.
        batch_size: the batch size that engines are built for by default; the graph runs at any.
        dt: the length of a step, in the unit of the file's time constants.
        integrator: ``"euler"`` (decay ``1 - dt/tau``) or ``"exponential"`` (``exp(-dt/tau)``); for leaky neurons.
        fire: ``">"`` or ``">="`` the threshold.
        reset: ``"hard"``: to ``v_reset``, as NIR says; ``"soft"``: the threshold is subtracted; ``"none"``.
        delay: when the reset happens: ``"none"`` (the default: at once), ``"before"``, ``"with"`` or ``"both"``; see
            :mod:`snngraph.ops`.
        emit: ``"spike"`` (the default) or ``"count"``, how often the threshold fits in.
        v_init: the potential before the first step: a number, ``"v_reset"`` or ``"v_leak"``. Needed where one of these is not 0.
        charge: ``"new"`` (the default): the membrane is charged with the synaptic current of the same step; ``"previous"``.
        membrane_input: ``"current"`` (the default): the input is a current over the step, ``dt/tau*R*I``; ``"impulse"``: ``R*I``.
        synapse_input: the same of the input of a synapse, ``dt/tau_syn*w_in*S`` or ``w_in*S``.
        floor: a lower bound of the potential of spiking neurons; NIR has none.
        late_edges: the edges ``(source, target)`` that are read one step late, where a cycle can be entered at several places.
            Otherwise it is the edge that closes a loop. Before the first step every neuron is silent.
        extra_dims: how many leading dimensions of the file's input and output shapes are no part of a sample. Writers that trace
            a net with an example leave its batch or time there.

    Returns:
        The graph, in float64, canonical. Neurons are named as the file's nodes, ``outer.inner`` in nested graphs.

    Raises:
        NirReadError, NirCorruptError, NirVersionError: the file can not be read.
        NirGraphError: the graph is no network that can be run.
        NirDiscretisationError: an argument is missing, has no such value, or contradicts the file.
        NirNotInstalledError: the package ``nir`` is missing.
    """
    given = Discretisation(dt, integrator, fire, reset, delay, emit, v_init, charge, membrane_input, synapse_input, floor)
    graph, title = as_graph(source)
    network = network_of(graph, title)
    notes = _Notes.of(graph.metadata or {}, title)
    steps = notes.time_steps if time_steps is None else time_steps
    if steps is None:
        raise NirDiscretisationError(f"{title} does not say how many steps to run: give time_steps")
    for name, value in (("time_steps", steps), ("batch_size", batch_size)):
        if not _is_count(value):
            raise NirDiscretisationError(f"{name}={value!r}: expected a positive integer")
    network = notes.in_order(network, title)
    parts = _parts(network, given, notes, title, extra_dims)
    stated = notes.late if late_edges is None else tuple((str(a), str(b)) for a, b in late_edges)
    late = edges_read_late(network, lambda node: parts[node.name].breaks, stated, title)
    path = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    return build(network, parts, late, steps, batch_size, title, str(path))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class _Notes:
    """What :func:`snngraph.to_nir` recorded of the whole graph."""

    dt: float | None = None
    time_steps: int | None = None
    inputs: tuple[str, ...] | None = None
    outputs: tuple[str, ...] | None = None
    late: tuple[Edge, ...] | None = None

    @staticmethod
    def of(metadata: Mapping[str, Any], title: str) -> _Notes:
        """Read from the graph's metadata; nothing is known of a file that others wrote."""
        if KEY not in metadata:
            return _Notes()
        record = check_schema(metadata[KEY], f"{title}: ")
        try:
            inputs, outputs = (tuple(map(str, json.loads(record[name]))) for name in ("inputs", "outputs"))
            late = tuple((str(a), str(b)) for a, b in json.loads(record["late_edges"]))
            return _Notes(float(record["dt"]), int(record["time_steps"]), inputs, outputs, late)
        except (KeyError, TypeError, ValueError) as error:
            raise NirGraphError(f"{title}: its metadata {KEY!r} is not what snngraph writes: {error!r}") from error

    def in_order(self, network: Network, title: str) -> Network:
        """The network with its inputs and outputs in the order they had."""
        if self.inputs is None or self.outputs is None:
            return network
        if sorted(self.inputs) != list(network.inputs) or sorted(self.outputs) != list(network.outputs):
            raise NirGraphError(
                f"{title}: its inputs and outputs are not those that snngraph recorded; remove the metadata {KEY!r}"
            )
        return replace(network, inputs=self.inputs, outputs=self.outputs)


def _parts(network: Network, given: Discretisation, notes: _Notes, title: str, extra_dims: int) -> dict[str, Part]:
    """Every node, read and discretised.

    Raises:
        NirDiscretisationError: all that is missing, at once.
    """
    if notes.dt is not None:
        if given.dt not in (None, notes.dt):
            raise NirDiscretisationError(
                f"{title}: dt={given.dt} was given, but snngraph wrote it with dt={notes.dt}: leave it out"
            )
        given = replace(given, dt=notes.dt) if _delays(network) else given
    values = {name: _values(node, f"{title}: {name!r}: ") for name, node in network.nodes.items()}
    missing: dict[str, str] = {}
    for name, node in network.nodes.items():
        if node.kind in NEURONS and KEY not in node.node.metadata:
            missing |= dict.fromkeys(given.missing(node.kind, values[name]), name)
    if _delays(network) and given.dt is None:
        missing["dt"] = _delays(network)[0]
    if missing:
        wanted = "; ".join(f"{name}: {text} (for {missing[name]!r})" for name, text in _MEANING.items() if name in missing)
        raise NirDiscretisationError(f"{title} leaves open how time is discretised. Give {wanted}. See docs/nir.md")
    parts = {name: _part(node, values[name], given, f"{title}: {name!r}: ") for name, node in network.nodes.items()}
    for name in (*network.inputs, *network.outputs) if extra_dims else ():
        shape = parts[name].shape or ()
        if not 0 <= extra_dims <= len(shape):
            raise NirGraphError(f"{title}: extra_dims={extra_dims}, but {name!r} has the shape {list(shape)}")
        parts[name] = replace(parts[name], shape=shape[extra_dims:])
    return parts


def _delays(network: Network) -> list[str]:
    return [name for name, node in network.nodes.items() if node.kind == "Delay"]


def _values(node: Node, where: str) -> dict[str, Array]:
    """The arrays of a node with time in it."""
    names = {
        **dict.fromkeys(SPIKING, ("r", "v_threshold", "v_reset")),
        "I": ("r",),
        "LI": ("r", "v_leak"),
        "CubaLI": ("r", "v_leak"),
        "Threshold": ("threshold",),
        "Delay": ("delay",),
    }.get(node.kind, ())
    names += ("v_leak",) if node.kind in SPIKING and node.kind in LEAKY else ()
    if node.kind in LEAKY:
        names += ("tau_mem", "tau_syn", "w_in") if "Cuba" in node.kind else ("tau",)
    return {name: array_of(getattr(node.node, name), f"{where}{name}") for name in names}


def _part(node: Node, values: Mapping[str, Array], given: Discretisation, where: str) -> Part:
    if node.kind in LAYERS:
        return Part(node.kind, layer=read_layer(node.kind, node.node, where))
    if node.kind in ("Input", "Output"):
        return Part(node.kind, shape=_port(node, where))
    if node.kind == "Delay":
        return Part(node.kind, delays=_whole_steps(values["delay"], given.step, where))
    sizes = tuple(array.shape for array in values.values())
    if KEY not in node.node.metadata:
        late = "Cuba" in node.kind and given.given("charge") == "previous"
        return Part(node.kind, neuron=given.canonical(node.kind, values, where), late_input=late, sizes=sizes)
    neuron, step = canonical_of_record(check_schema(node.node.metadata[KEY], where), where)
    check_record(neuron, step, given, node.kind, values, where)
    return Part(node.kind, neuron=neuron, sizes=sizes)


def _port(node: Node, where: str) -> tuple[int, ...] | None:
    found = (node.node.input_type or {}).get("input") if node.kind == "Input" else (node.node.output_type or {}).get("output")
    if found is None:
        return None
    sizes = array_of(found, f"{where}shape")
    if sizes.ndim != 1 or (sizes < 1).any() or (sizes != sizes.round()).any():
        raise NirGraphError(f"{where}its shape is {found}: expected positive integers")
    return tuple(int(n) for n in sizes)


def _whole_steps(delay: Array, dt: float, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    steps = delay / dt
    if (abs(steps - steps.round()) > _CLOSE).any() or (steps < -_CLOSE).any():
        raise NirDiscretisationError(f"{where}a delay of {float(delay.flat[0]):.6g} is no whole number of steps of dt={dt}")
    return steps.round().astype(np.int64)
