"""``to_nir``: a graph as NIR (Neuromorphic Intermediate Representation, https://neuroir.org).

The graph is read operator by operator (:mod:`snngraph.frontends.nir.reader`); what has no NIR node is refused with the module and
the source line. The result is read back, and has to compute the same before it is given out.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from snngraph.analysis.spikes import run_with_spikes
from snngraph.errors import NirExportError
from snngraph.frontends.nir.file import load_nir, write
from snngraph.frontends.nir.importing import from_nir
from snngraph.frontends.nir.neurons import Discretisation
from snngraph.frontends.nir.operators import HANDLERS
from snngraph.frontends.nir.reader import Reader
from snngraph.graph import SpikingGraph
from snngraph.passes.base import Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.passes.expand_fused import ExpandFused
from snngraph.passes.fold_batch_norm import FoldBatchNorm
from snngraph.runtime import artifact

__all__ = ["ALLOWED", "to_nir"]

_TIES = 1e-6  # the share of neuron-steps that may sit on the threshold to the last bit

ALLOWED = ("soft reset", "delayed reset", "counts", "floor")
"""What NIR has no word for, and only snngraph's record in the metadata can say."""


def to_nir(
    source: SpikingGraph | nn.Module,
    path: str | os.PathLike[str] | None = None,
    *,
    dt: float,
    integrator: str = "euler",
    allow: Collection[str] = (),
    example: Any = None,
    force: bool = False,
    **trace_options: Any,
) -> Any:
    """Writes a network as NIR.

    Batch norms are folded into the layers around them. Every neuron's parameters are NIR's, such that steps of ``dt`` give the
    same neuron; its very parameters, comparison, reset and first potential stand in the node's metadata, from which
    :func:`snngraph.from_nir` makes the same neuron again.

    Args:
        source: a graph, or a model that :func:`snngraph.trace` takes, with ``example``.
        path: a file to write, if any: whole, or not at all.
        dt: the length of a step, in the unit that the time constants shall have. Most tools expect 1e-4.
        integrator: ``"euler"`` or ``"exponential"``: what turns the neurons' decays into time constants.
        allow: which of ``"soft reset"``, ``"delayed reset"``, ``"counts"`` and ``"floor"`` may be written though NIR has no word
            for them: other tools will read a neuron with a hard reset, at once, that emits single spikes.
        example: an example input, for a model.
        force: replace a file that exists.
        **trace_options: for :func:`snngraph.trace`, with a model.

    Returns:
        The ``nir.NIRGraph``.

    Raises:
        NirExportError: NIR can not say a part of the network; the message names it.
        NirDiscretisationError: ``dt`` or ``integrator`` has no such value.
        ArtifactExistsError, ArtifactWriteError: the file can not be written; what stood there is untouched.
        NirNotInstalledError: the package ``nir`` is missing.
    """
    nir = load_nir()
    step = Discretisation(dt=dt, integrator=integrator)
    if unknown := sorted(set(allow) - set(ALLOWED)):
        raise NirExportError(f"allow has {unknown[0]!r}: expected some of {', '.join(map(repr, ALLOWED))}")
    if path is not None:
        artifact.check_destination(path, force)
    graph = _traced(source, example, trace_options)
    graph = Pipeline((ExpandFused(), Canonicalize(), FoldBatchNorm(), Canonicalize(), EliminateDead()), title="to_nir")(
        graph
    ).graph
    reader = Reader(graph, step, frozenset(allow), nir, HANDLERS)
    result = reader.read()
    _compare(graph, result, reader.neurons, reader.layouts())
    if path is not None:
        write(path, result, force)
    return result


def _traced(source: SpikingGraph | nn.Module, example: Any, options: Mapping[str, Any]) -> SpikingGraph:
    if isinstance(source, SpikingGraph):
        if example is not None or options:
            raise NirExportError("example and the options of trace belong to a model; a graph was given")
        return source
    if example is None:
        raise NirExportError(f"a {type(source).__name__} is captured first: give example, an input for snngraph.trace")
    from snngraph.frontends.capture import trace

    return trace(source, example, **options)


def _compare(graph: SpikingGraph, result: Any, neurons: Mapping[str, str], layouts: Mapping[str, str]) -> None:
    """Reads ``result`` back and runs both on random inputs in float64.

    Raises:
        NirExportError: they differ.
    """
    again = from_nir(result)
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in graph.example_inputs()]
    for x, spec in zip(inputs, graph.inputs, strict=True):
        x.select(spec.batch_dim or 0, 0).mul_(4.0)  # one sample that drives the net hard
    turned = [x.transpose(0, 1) if s.time_dim == 1 else x for x, s in zip(inputs, graph.inputs, strict=True)]
    (wanted, spikes), (found, others) = run_with_spikes(graph, inputs), run_with_spikes(again, turned)
    wanted = [y.transpose(0, 1) if layouts[n.name] == "NT" else y for y, n in zip(wanted, graph.output_nodes, strict=True)]
    differ = "the network that NIR's nodes make differs from this one"
    flips = 0
    for layer, name in neurons.items():
        a, b = spikes[layer], others[name][: len(spikes[layer])]  # steps that nothing reads are not in the graph
        flips += int(((a != 0) != (b != 0)).sum()) if a.shape == b.shape else a.numel()
    if flips > sum(s.numel() for s in spikes.values()) * _TIES:
        raise NirExportError(f"{differ}: {flips} spikes on a random input; a step of it is unlike the others")
    for k, (a, b) in enumerate(zip(wanted, found, strict=True)):
        if a.shape != b.shape or (not flips and not torch.allclose(a, b, rtol=1e-9, atol=1e-9)):
            raise NirExportError(f"{differ} in output {k} on a random input; a step of it is unlike the others")
