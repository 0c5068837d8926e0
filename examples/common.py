"""What the examples share: their data, a progress bar, and the checks of a trained net and its engine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import snngraph
from snngraph.demo.data import Digits, EventCamera, load_images, split
from snngraph.demo.training import Epoch, Recipe, batch_dim, fit
from snngraph.runtime.engine import Engine
from snngraph.threads import torch_threads

__all__ = [
    "THREADS",
    "Epochs",
    "Output",
    "Quick",
    "Seed",
    "check",
    "console",
    "event_digits",
    "samples",
    "static_digits",
    "train",
]

Epochs = Annotated[int, typer.Option(min=1, help="Passes over the training part.")]
Seed = Annotated[int, typer.Option(help="Of weights, order, shifts and dropout.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="A quarter of the digits, two epochs: to see that everything works, not how well.")
]
Output = Annotated[Path | None, typer.Option(help="Save the engine here (.snn).")]

THREADS = 1  # of training, PyTorch and engine: small nets run no faster on two that wait for each other
ACCURACY = 0.85
QUICK_ACCURACY = 0.25  # chance is 0.1
QUICK_TRAIN = 360
QUICK_TEST = 72
VERIFIED = 64
QUICK_VERIFIED = 32

_Model = TypeVar("_Model", bound=nn.Module)

console = Console(highlight=False, soft_wrap=True)


def event_digits(T: int, quick: bool = False) -> Digits:
    """Handwritten digits seen by a simulated event camera: frames ``[T, N, 2, 24, 24]`` and labels, 360 of 1797 held out."""
    train_x, train_y, test_x, test_y = static_digits(quick)
    camera = EventCamera()
    return Digits(camera.frames(train_x[:, 0], T), train_y, camera.frames(test_x[:, 0], T), test_y)


def static_digits(quick: bool = False) -> Digits:
    """The same digits as images ``[N, 1, 8, 8]``."""
    images, labels = load_images()
    train, test = split(labels)
    if quick:
        train, test = train[:QUICK_TRAIN], test[:QUICK_TEST]
    return Digits(images[train, None], labels[train], images[test, None], labels[test])


def samples(x: Tensor, count: int) -> Tensor:
    """The first ``count`` samples of event frames or images."""
    return x.narrow(batch_dim(x), 0, min(count, x.shape[batch_dim(x)])).contiguous()


def train(build: Callable[[], _Model], data: Digits, recipe: Recipe) -> _Model:
    """Trains a net and says how it goes."""
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("training", total=recipe.epochs)

        def after(epoch: Epoch) -> None:
            progress.advance(bar)
            console.print(
                f"epoch {epoch.number} of {epoch.epochs}: loss {epoch.loss:.3f}, held-out accuracy {epoch.accuracy:.1%}, "
                f"{epoch.seconds:.0f} s"
            )

        return fit(build, data, recipe, after)


def check(model: nn.Module, engine: Engine, data: Digits, quick: bool = False) -> None:
    """Compares the engine with the model on all held-out inputs, and its spikes with the model in float64 on some.

    Raises:
        typer.Exit: with code 1, when the model has not learned, the predictions differ, or the spikes are not right.
    """
    x = torch.from_numpy(data.test_x)
    scores: dict[str, list[Tensor]] = {"PyTorch": [], "engine": []}
    seconds: dict[str, list[float]] = {"PyTorch": [], "engine": []}
    with torch.no_grad(), torch_threads(THREADS):
        for one in x.split(1, batch_dim(x)):
            one = one.contiguous()
            for name, run in (("PyTorch", model), ("engine", engine.run)):
                start = time.perf_counter()
                found = run(one)
                seconds[name].append(time.perf_counter() - start)
                scores[name].append(found)
    labels = torch.from_numpy(data.test_y)
    reference, found = torch.cat(scores["PyTorch"]), torch.cat(scores["engine"])
    right = {"PyTorch": reference.argmax(1) == labels, "engine": found.argmax(1) == labels}
    # where two classes have the same score, either is right
    chosen = reference.gather(1, found.argmax(1, keepdim=True)).squeeze(1)
    equal = int((chosen >= reference.amax(1) - 1e-6).sum())
    accuracies = {name: float(each.double().mean()) for name, each in right.items()}
    console.print("accuracy: " + ", ".join(f"{name} {share:.2%}" for name, share in accuracies.items()))
    console.print(f"{equal} of {len(labels)} predictions equal")
    medians = {name: f"{1e3 * float(np.median(times)):.2f} ms" for name, times in seconds.items()}
    console.print("latency of one input, on one thread: " + ", ".join(f"{name} {median}" for name, median in medians.items()))

    report = snngraph.verify(model, engine, samples(x, QUICK_VERIFIED if quick else VERIFIED))
    console.print(
        f"verify: {'ok' if report.ok else 'NOT RIGHT'}, {report.flips_engine} wrong spikes (PyTorch's float32: "
        f"{report.flips_float32}) among {report.neuron_steps} neuron-steps of {report.inputs} inputs"
    )
    problems = [*report.problems]
    if equal != len(labels):
        problems.append(f"the engine predicts something else for {len(labels) - equal} inputs")
    if min(accuracies.values()) < (needed := QUICK_ACCURACY if quick else ACCURACY):
        problems.append(f"an accuracy of at least {needed:.0%} was expected")
    for note in report.notes:
        console.print(f"note: {note}")
    for problem in problems:
        console.print(f"problem: {problem}", style="red")
    if problems:
        raise typer.Exit(1)
