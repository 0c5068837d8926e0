"""From the options of a command to a model, its example and its graph."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import typer
from torch import Tensor, nn

import snngraph
from snngraph.cli.arrays import describe, parse_shape, random_array, read_array
from snngraph.cli.options import ExampleOptions, ModelOptions, RandomOptions, TraceOptions
from snngraph.cli.output import Output
from snngraph.model_loading import DEMO, load_model, parse_arguments

if TYPE_CHECKING:
    from snngraph.graph import SpikingGraph

__all__ = ["Captured", "capture", "example_inputs", "is_nir", "named_model", "nir_graph"]


@dataclass(frozen=True, slots=True)
class Captured:
    """A model, the inputs it was captured on (none for a NIR file), and its graph."""

    model: nn.Module
    example: tuple[Tensor, ...]
    graph: SpikingGraph


def named_model(out: Output, name: str, options: ModelOptions) -> nn.Module:
    """Loads the model a command names, and says what was done to it."""
    with out.stage("load the model"):
        loaded = load_model(
            name, arguments=parse_arguments(options.model_arg), weights=options.weights, evaluation=options.evaluation
        )
    out.note(f"{name}: {'; '.join(loaded.notes)}")
    return loaded.model


def is_nir(name: str) -> bool:
    """Whether a model's name is that of a NIR file."""
    return name.endswith(".nir")


def nir_graph(out: Output, name: str, options: ModelOptions, trace: TraceOptions) -> SpikingGraph:
    """Reads a NIR file; ``--model-arg`` has what :func:`snngraph.from_nir` takes.

    Raises:
        typer.BadParameter: an option that a NIR file has no use for.
    """
    if options.weights is not None or options.evaluation is not None or trace != TraceOptions(time_steps=trace.time_steps):
        raise typer.BadParameter("a NIR file is a network with its weights: it takes --time-steps and --model-arg alone")
    arguments = parse_arguments(options.model_arg)
    if unknown := sorted(arguments.keys() - (inspect.signature(snngraph.from_nir).parameters.keys() - {"source", "time_steps"})):
        raise typer.BadParameter(f"a NIR file takes no --model-arg {unknown[0]}; see snngraph.from_nir")
    with out.stage("read the NIR file"):
        return snngraph.from_nir(name, time_steps=trace.time_steps, **arguments)


def example_inputs(out: Output, name: str, example: ExampleOptions, random: RandomOptions) -> tuple[Tensor, ...]:
    """The example inputs: from files, or random ones of the shapes given.

    Raises:
        typer.BadParameter: neither is given, or both.
    """
    if example.input and example.shape:
        raise typer.BadParameter("give --input or --shape, not both")
    shapes = [parse_shape(text) for text in example.shape]
    if name == DEMO and not example.input and not shapes:
        from snngraph.demo.model import SIZE, T

        shapes = [(T, 1, 2, SIZE, SIZE)]
    if not example.input and not shapes:
        raise typer.BadParameter("the model is captured on an example: give --input FILE, or --shape SIZES for a random one")
    if shapes:
        out.note(f"example: {describe(random)}, shape {' and '.join(str(list(shape)) for shape in shapes)}")
    arrays = [read_array(path, out) for path in example.input] or [random_array(s, random, k) for k, s in enumerate(shapes)]
    return tuple(map(torch.from_numpy, arrays))


def capture(
    out: Output, name: str, source: ModelOptions, example: ExampleOptions, random: RandomOptions, trace: TraceOptions
) -> Captured:
    """Loads a model and captures it on its example; or reads a NIR file, which needs none."""
    if is_nir(name):
        if example.input or example.shape:
            raise typer.BadParameter("a NIR file says the shape of its input: --input and --shape are for models")
        graph = nir_graph(out, name, source, trace)
        for text in graph.notes:
            out.note(f"note: {text}")
        return Captured(graph.module, (), graph)
    inputs = example_inputs(out, name, example, random)
    model = named_model(out, name, source)
    with out.stage("capture"):
        graph = snngraph.trace(model, inputs, **trace.keywords())
    for text in graph.notes:
        out.note(f"note: {text}")
    kept = [found for found in graph.recognitions if not found.form]
    if kept:
        out.note(f"neurons: {len(graph.recognitions) - len(kept)} recognised, {len(kept)} kept as ordinary operators:")
        for found in kept:
            out.note(f"  {found}")
    return Captured(model, inputs, graph)
