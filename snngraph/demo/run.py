"""The demo: real digits, an event camera, a spiking net trained on them, and its engine: converted, verified and timed.

Nothing in it is made up for the occasion: the steps are those of a user with a trained net, and whatever fails is said and makes
:attr:`DemoResult.ok` false.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import torch

import snngraph
from snngraph.benchmark import PEERS, BenchmarkReport, compare
from snngraph.demo.data import Digits, load_digits
from snngraph.demo.model import SIZE, T
from snngraph.demo.training import (
    CHECKPOINT,
    RATES,
    Epoch,
    Recipe,
    accuracy,
    demo_metadata,
    load_demo_model,
    save_demo_model,
    train_demo_model,
)
from snngraph.errors import ArtifactWriteError, SnnGraphError
from snngraph.models.calibration import firing_rates
from snngraph.models.layers import EventClassifier
from snngraph.report.verification import Report
from snngraph.runtime import artifact
from snngraph.runtime.engine import Engine

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console

__all__ = ["DemoError", "DemoResult", "run_demo"]

ACCURACY: Final = 0.95
QUICK_ACCURACY: Final = 0.5  # of a net that saw a third of the digits three times; chance is 0.1
VERIFIED: Final = 64
QUICK_VERIFIED: Final = 32
ROUNDS: Final = 30
QUICK_ROUNDS: Final = 3
_QUICK_TRAIN: Final = 480
_QUICK_TEST: Final = 96
_STEPS: Final = 6
_WIDTH: Final = 132  # of tables where the output goes to a file
BUILD: Final = "snngraph.demo.model:build"

_Advance: TypeAlias = Callable[[int, int | None], None]


class DemoError(SnnGraphError):
    """The demo could not go on."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo found.

    Args:
        engine: the engine's file.
        weights: the weights' file.
        trained: whether they were trained just now, or came with the package.
        test_images: held-out images.
        accuracy_model: the share of them that the model in PyTorch gets right.
        accuracy_engine: the same of the engine, loaded from its file.
        predictions_equal: of how many of them both say the same.
        rates: the firing rate of each neuron layer, in spikes per neuron and step.
        report: the verification.
        benchmark: the timing.
        seconds: how long each step took.
        problems: what is not as it has to be; empty where all is well.
    """

    engine: str
    weights: str
    trained: bool
    test_images: int
    accuracy_model: float
    accuracy_engine: float
    predictions_equal: int
    rates: dict[str, float]
    report: Report
    benchmark: BenchmarkReport
    seconds: dict[str, float] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the net is accurate, and the engine says what it says and spikes as it spikes."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "engine": self.engine,
            "weights": self.weights,
            "trained": self.trained,
            "test_images": self.test_images,
            "accuracy_model": self.accuracy_model,
            "accuracy_engine": self.accuracy_engine,
            "predictions_equal": self.predictions_equal,
            "rates": dict(self.rates),
            "seconds": {name: round(seconds, 2) for name, seconds in self.seconds.items()},
            "report": self.report.to_dict(),
            "benchmark": self.benchmark.to_dict(),
        }


def run_demo(
    out: Path,
    *,
    train: bool = True,
    quick: bool = False,
    console: Console | None = None,
    recipe: Recipe | None = None,
    peers: tuple[str, ...] | None = None,
) -> DemoResult:
    """Runs the demo and writes its results; files of an earlier run in the same folder are replaced.

    Args:
        out: the folder for the results; made if need be.
        train: train the net; otherwise take the weights that come with the package.
        quick: a third of the digits, three epochs, few rounds, no ``torch.compile``: to see that everything works, not how well.
        console: where to print.
        recipe: how to train.
        peers: what to time the engine against, out of :data:`snngraph.benchmark.PEERS`.

    Raises:
        DemoError: the trained net does not fire as it should, or scikit-learn or the checkpoint is missing.
        SnnGraphError: the net could not be converted, or the results not written.
    """
    tell = _Teller(console)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactWriteError(
            f"the results can not go to {str(out)!r}: {error.strerror or error}; give another folder"
        ) from error
    recipe = recipe or (Recipe(epochs=3) if quick else Recipe())
    if peers is None:
        peers = tuple(name for name in PEERS if not (quick and name == "torch.compile"))
    paths = {name: out / name for name in ("digits.snn", "digits.safetensors", "digits.npy", "report.json", "report.html")}

    with tell.step("data", "Handwritten digits, seen by a simulated event camera that moves in three saccades"):
        digits = _digits(quick)
        events = digits.test_x.sum() / len(digits.test_y)
        tell(
            f"{len(digits.train_y)} digits to train on, {len(digits.test_y)} held out; each is {T} frames of {SIZE}x{SIZE} "
            f"pixels and 2 polarities, {events:.0f} events on average"
        )

    with tell.step(
        "model", "Training a spiking net with attention (TCJA)" if train else "Loading the trained net of the package"
    ):
        model = _trained(recipe, digits, tell) if train else _loaded(tell)
        test_x, test_y = torch.from_numpy(digits.test_x), torch.from_numpy(digits.test_y)
        accuracy_model, rates = accuracy(model, test_x, test_y), firing_rates(model, test_x)
        if train:
            save_demo_model(model, paths["digits.safetensors"], recipe, accuracy_model, rates)
        else:
            artifact.write_bytes(paths["digits.safetensors"], CHECKPOINT.read_bytes(), force=True)
        tell(f"firing rates: {', '.join(f'{name} {rate:.1%}' for name, rate in rates.items())}")

    with tell.step("convert", "Converting it: snngraph.convert(model, example), then snngraph.load"):
        example = test_x[:, :1].contiguous()
        converted = snngraph.convert(
            model, example, path=paths["digits.snn"], force=True, progress=lambda stage: tell(f"  {stage}")
        )
        converted.close()
        engine = snngraph.load(paths["digits.snn"])
        size = paths["digits.snn"].stat().st_size
        tell(f"{paths['digits.snn']}: {size / 1e3:.0f} kB, passes: {', '.join(engine.manifest.passes)}")

    with engine:
        with tell.step("accuracy", "Model and engine on the held-out digits"):
            ours, theirs = _scores(engine, digits.test_x), _model_scores(model, test_x)
            accuracy_engine = float((ours.argmax(1) == digits.test_y).mean())
            equal = _equal(ours, theirs)
            tell(
                f"accuracy: model {accuracy_model:.2%}, engine {accuracy_engine:.2%}; {equal} of {len(test_y)} predictions equal"
            )

        with tell.step("verify", "Comparing every spike with the net in float64"):
            shown = digits.test_x[:, : QUICK_VERIFIED if quick else VERIFIED]
            graph = snngraph.trace(model, example)
            with tell.bar("digits verified") as advance:
                report = snngraph.verify(graph, engine, shown, progress=advance)
            tell.show(report)
            report.save(paths["report.json"])
            report.save(paths["report.html"])
            artifact.write(paths["digits.snn"], replace(engine.manifest, verify=report.summary()), engine.model, force=True)
            np.save(paths["digits.npy"], shown)

        with tell.step("benchmark", "Timing one digit at a time, against other ways to run the net"):
            if "torch.compile" not in peers:
                tell("without torch.compile, which takes a while to build")
            with tell.bar("parts") as advance:
                benchmark = compare(
                    model,
                    example,
                    engine=engine,
                    graph=graph,
                    peers=peers,
                    rounds=QUICK_ROUNDS if quick else ROUNDS,
                    check=[test_x[:, k : k + 1].contiguous() for k in range(8)],
                    progress=lambda what, done, total: advance(done, total),
                )
            tell.show(benchmark)
            benchmark.save(out / "benchmark.json")

    result = DemoResult(
        engine=str(paths["digits.snn"]),
        weights=str(paths["digits.safetensors"]),
        trained=train,
        test_images=len(test_y),
        accuracy_model=accuracy_model,
        accuracy_engine=accuracy_engine,
        predictions_equal=equal,
        rates=rates,
        report=report,
        benchmark=benchmark,
        seconds=tell.seconds,
    )
    result = replace(result, problems=tuple(_problems(result, QUICK_ACCURACY if quick and train else ACCURACY)))
    artifact.write_bytes(out / "demo.json", (json.dumps(result.to_dict(), indent=2) + "\n").encode(), force=True)
    _conclude(result, out, tell)
    return result


# -- the steps -----------------------------------------------------------------------------------------------------------------


def _digits(quick: bool) -> Digits:
    try:
        digits = load_digits(T)
    except ImportError as error:
        raise DemoError(str(error)) from error
    if not quick:
        return digits
    train_x, train_y, test_x, test_y = digits
    train_part, test_part = slice(None, _QUICK_TRAIN), slice(None, _QUICK_TEST)
    return Digits(
        np.ascontiguousarray(train_x[:, train_part]),
        train_y[train_part],
        np.ascontiguousarray(test_x[:, test_part]),
        test_y[test_part],
    )


def _trained(recipe: Recipe, digits: Digits, tell: _Teller) -> EventClassifier:
    with tell.bar("epochs", total=recipe.epochs) as advance:

        def after_epoch(epoch: Epoch) -> None:
            advance(epoch.number, epoch.epochs)
            tell(
                f"  epoch {epoch.number} of {epoch.epochs}: loss {epoch.loss:.3f}, held-out accuracy {epoch.accuracy:.1%}, "
                f"{epoch.seconds:.0f} s"
            )

        try:
            return train_demo_model(after_epoch, recipe=recipe, digits=digits)
        except RuntimeError as error:
            raise DemoError(f"the net could not be trained: {error}") from error


def _loaded(tell: _Teller) -> EventClassifier:
    try:
        model, made = load_demo_model(), demo_metadata()
    except FileNotFoundError as error:
        raise DemoError(str(error)) from error
    tell(f"its accuracy on the 360 held-out digits was {float(made['accuracy']):.2%} when it was trained")
    return model


def _scores(engine: Engine, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The engine's class scores, one sequence at a time."""
    return np.concatenate([engine.run(np.ascontiguousarray(x[:, k : k + 1])) for k in range(x.shape[1])])


def _model_scores(model: EventClassifier, x: torch.Tensor) -> NDArray[np.float32]:
    with torch.no_grad():
        return np.concatenate([model(part).numpy() for part in x.split(64, 1)])


def _equal(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> int:
    """Of how many sequences the engine's class is one that the model rates highest; equal votes for two classes are a tie."""
    chosen = np.take_along_axis(theirs, ours.argmax(1)[:, None], 1)[:, 0]
    return int((chosen >= theirs.max(1) - 1e-6).sum())


def _problems(result: DemoResult, needed: float) -> Iterator[str]:
    for who, found in (("model", result.accuracy_model), ("engine", result.accuracy_engine)):
        if found < needed:
            yield f"the {who}'s accuracy is {found:.2%}, at least {needed:.0%} was expected"
    if result.predictions_equal != result.test_images:
        yield f"engine and model say the same on {result.predictions_equal} of {result.test_images} digits only"
    low, high = RATES
    for name, rate in result.rates.items():
        if not low <= rate <= high:
            yield f"layer {name} fires at {rate:.1%}, outside {low:.0%} to {high:.0%}: equal spikes would prove little"
    yield from (f"verification: {problem}" for problem in result.report.problems)
    for row in result.benchmark.rows:
        if row.kind == "engine" and not row.exact:
            yield f"benchmark: {row.name}: {row.failure or row.remark}"


def _conclude(result: DemoResult, out: Path, tell: _Teller) -> None:
    tell("")
    if result.ok:
        tell(f"All is well, in {sum(result.seconds.values()):.0f} s. The engine is {result.engine}", style="bold green")
    else:
        tell("Not all is well:", style="bold red")
        for problem in result.problems:
            tell(f"  {problem}", style="red")
    folder = shlex.quote(str(out))
    tell(
        f"Also in {folder}: weights, {result.report.inputs} digits, report.html, report.json, benchmark.json, demo.json. Now try:"
    )
    for command in (
        f"snngraph inspect {folder}/digits.snn",
        f"snngraph run {folder}/digits.snn --input {folder}/digits.npy",
        f"snngraph verify {folder}/digits.snn {BUILD} --weights {folder}/digits.safetensors --inputs {folder}/digits.npy",
        "snngraph inspect demo",
    ):
        tell(f"  {command}")


# -- what is printed -----------------------------------------------------------------------------------------------------------


class _Teller:
    """Prints headings, lines and tables, and progress bars where there is a terminal."""

    def __init__(self, console: Console | None) -> None:
        from rich.console import Console as RichConsole

        self.console = console or RichConsole(markup=False, highlight=False)
        if not self.console.is_terminal and self.console.width < _WIDTH:
            self.console.width = _WIDTH
        self.seconds: dict[str, float] = {}

    def __call__(self, text: str, *, style: str | None = None) -> None:
        self.console.print(text, style=style, soft_wrap=True, markup=False, highlight=False)

    def show(self, report: Report | BenchmarkReport) -> None:
        self.console.print(report)

    @contextlib.contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        self(f"\n[{len(self.seconds) + 1}/{_STEPS}] {title}", style="bold")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self(f"({self.seconds[name]:.1f} s)", style="dim")

    @contextlib.contextmanager
    def bar(self, unit: str, total: int | None = None) -> Iterator[_Advance]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(unit, total=total)
            yield lambda done, count: progress.update(task, completed=done, total=count)
