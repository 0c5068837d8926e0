"""From the options of a command to a model, its example and its graph."""

from __future__ import annotations

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

__all__ = ["Captured", "capture", "example_inputs", "named_model"]


@dataclass(frozen=True, slots=True)
class Captured:
    """A model, the inputs it was captured on, and its graph."""

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
    """Loads a model and captures it on its example."""
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
