"""The options that several commands share, in groups."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = [
    "BuildOptions",
    "ExampleOptions",
    "Fill",
    "Force",
    "Model",
    "ModelOptions",
    "RandomOptions",
    "Target",
    "Threads",
    "TraceOptions",
]

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="package.module:factory or file.py:factory, a callable or an nn.Module; a NIR file; or 'demo'."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that exist.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Number of threads.  [default: every usable core]")]
Target = Annotated[str, typer.Option(help="Engine target; `snngraph targets` lists them.")]


class Fill(StrEnum):
    """What random inputs are made of."""

    EVENTS = "events"
    NORMAL = "normal"


@dataclass(frozen=True)
class ModelOptions:
    """How a model is made from its name."""

    weights: Annotated[
        Path | None, typer.Option(help="Weights: a file of torch.save (read with weights_only=True) or .safetensors.")
    ] = None
    model_arg: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE",
            help="An argument of the factory (for a NIR file, of from_nir), a Python literal or text; repeatable.",
        ),
    ] = field(default_factory=list)
    evaluation: Annotated[
        bool | None, typer.Option("--eval/--no-eval", help="Call model.eval().  [default: for what a factory returns]")
    ] = None


@dataclass(frozen=True)
class RandomOptions:
    """What random inputs are like."""

    fill: Annotated[Fill, typer.Option(help="Random inputs: binary events, or normal noise.")] = Fill.EVENTS
    rate: Annotated[float, typer.Option(min=0.0, max=1.0, help="The share of ones in random events.")] = 0.2
    seed: Annotated[int, typer.Option(min=0, help="Seed of random inputs.")] = 0


@dataclass(frozen=True)
class ExampleOptions:
    """The example a model is captured on."""

    input: Annotated[
        list[Path], typer.Option(metavar="FILE", help="An example input, .npy or .npz; once for each input of the model.")
    ] = field(default_factory=list)
    shape: Annotated[
        list[str], typer.Option(metavar="SIZES", help="Instead of --input: the shape of a random one, as 8,1,2,34,34.")
    ] = field(default_factory=list)


class Axis(StrEnum):
    """An axis of the example."""

    AUTO = "auto"
    FIRST = "0"
    SECOND = "1"
    NONE = "none"


@dataclass(frozen=True)
class TraceOptions:
    """What :func:`snngraph.trace` is told."""

    time_steps: Annotated[
        int | None, typer.Option(min=1, help="The model takes one step; call it so often.  [default: it takes the sequence]")
    ] = None
    time_dim: Annotated[Axis, typer.Option(help="The example's time axis; none: a static input.")] = Axis.AUTO
    batch_dim: Annotated[int | None, typer.Option(min=0, help="The example's batch axis.  [default: inferred]")] = None
    time_reduction: Annotated[
        str | None, typer.Option(help="With --time-steps: mean, sum or last of the outputs.  [default: all of them]")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of :func:`snngraph.trace`."""
        dims: dict[Axis, int | str | None] = {Axis.AUTO: "auto", Axis.FIRST: 0, Axis.SECOND: 1, Axis.NONE: None}
        return {
            "time_steps": self.time_steps,
            "time_dim": dims[self.time_dim],
            "batch_dim": self.batch_dim,
            "time_reduction": self.time_reduction,
        }


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is built."""

    target: Target = "openvino"
    precision: Annotated[
        str | None,
        typer.Option(help="fp32; exact (integer synapses, as exact as fp32); int8.  [exact where it is faster, else fp32]"),
    ] = None
    mode: Annotated[str, typer.Option(help="sequence: a call takes all time steps; step: one.")] = "sequence"
    batch: Annotated[
        str | None, typer.Option(metavar="N|dynamic", help="Batch size of the engine.  [default: the example's]")
    ] = None
    passes: Annotated[
        list[str],
        typer.Option(
            "--pass", metavar="NAME", help="A pass of your own pipeline, in order, as name or 'name(option=1)'; repeatable."
        ),
    ] = field(default_factory=list)
    threads: Threads = None

    def batch_size(self) -> int | Literal["dynamic"] | None:
        """The batch size that :func:`snngraph.build` takes.

        Raises:
            typer.BadParameter: neither a number nor ``dynamic``.
        """
        if self.batch is None:
            return None
        if self.batch == "dynamic":
            return "dynamic"
        if not self.batch.isdecimal() or int(self.batch) < 1:
            raise typer.BadParameter(f"{self.batch!r} is neither a positive number nor 'dynamic'", param_hint="'--batch'")
        return int(self.batch)
