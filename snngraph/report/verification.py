"""The report of a verification: what :func:`snngraph.verify` found, as numbers, as text, as JSON and as one HTML page."""

from __future__ import annotations

import html
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from snngraph.errors import VerificationError
from snngraph.runtime import artifact

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["LayerReport", "Report", "layer_mean"]


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer of neurons. The text of :mod:`snngraph.verification` defines flips and error.

    Args:
        name: the layer's name.
        neurons: the number of neurons of one sample.
        rate: the share of neuron-steps in which float64 emits something.
        flips_engine: neuron-steps in which the engine, teacher-forced, emits something else than float64.
        flips_float32: the same of PyTorch's float32.
        error_engine: mean absolute error of the engine's membrane potential before the threshold, teacher-forced.
        error_float32: the same of PyTorch's float32.
        free_flips_engine: flips of the free-running engine.
        free_flips_float32: flips of free-running float32.
        first_divergence: the first flip of the free-running engine as ``(step, index)``: the earliest time step in which any
            input has one, and the least ``index = input * neurons + neuron`` in it, where ``input`` counts all inputs from 0 and
            ``neuron`` is the flat index in the layer's shape; ``None`` where there is none.
        magnitude: the mean of float64's ``|h|``, which the errors are to be read against.
        ties: neuron-steps in which float64's ``h`` is within 1e-9 of the threshold.
    """

    name: str
    neurons: int
    rate: float
    flips_engine: int
    flips_float32: int
    error_engine: float
    error_float32: float
    free_flips_engine: int
    free_flips_float32: int
    first_divergence: tuple[int, int] | None
    magnitude: float
    ties: int


@dataclass(frozen=True, slots=True)
class Report:
    """What :func:`snngraph.verify` found. Print it, or :meth:`save` it.

    Args:
        name: the model's name.
        target: the engine's target.
        precision: the engine's precision.
        time_steps: T.
        inputs: how many inputs were run.
        layers: every layer of neurons, in the order of the graph.
        output_error_engine: the largest absolute difference of ``engine.run``'s outputs to float64's.
        output_error_float32: the same of free-running float32.
        forced_output_error_engine: the mean absolute difference of the outputs that follow from float64's spikes.
        forced_output_error_float32: the same of PyTorch's float32.
        predictions_agreeing: of how many inputs ``engine.run`` predicts what float64 predicts, by the first output: its mean over
            time where it has a time axis, then the largest along the first axis after the batch (a class that ties with
            float64's best counts; with more axes, as in segmentation, all places have to agree). With one class there is
            nothing to choose, and the number itself has to agree within 1e-3 of the largest.
        problems: why the engine is not right, each naming its layer; empty where it is.
        notes: what weakens the verdict or is worth a look.
    """

    name: str
    target: str
    precision: str
    time_steps: int
    inputs: int
    layers: tuple[LayerReport, ...]
    output_error_engine: float
    output_error_float32: float
    forced_output_error_engine: float
    forced_output_error_float32: float
    predictions_agreeing: int
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the engine is as right as PyTorch's float32; in an approximate precision, whether it predicts as float64."""
        return not self.problems

    @property
    def approximate(self) -> bool:
        """Whether the engine's precision is below float32's by intent."""
        return self.precision not in ("fp32", "exact")

    @property
    def predictions_equal(self) -> bool:
        """Whether ``engine.run`` predicts on every input what float64 predicts."""
        return self.predictions_agreeing == self.inputs

    @property
    def neuron_steps(self) -> int:
        """Neurons times steps times inputs: what the flips are counted among."""
        return sum(layer.neurons for layer in self.layers) * self.time_steps * self.inputs

    @property
    def flips_engine(self) -> int:
        """Teacher-forced flips of the engine in all layers."""
        return sum(layer.flips_engine for layer in self.layers)

    @property
    def flips_float32(self) -> int:
        """Teacher-forced flips of PyTorch's float32 in all layers."""
        return sum(layer.flips_float32 for layer in self.layers)

    @property
    def error_engine(self) -> float:
        """The engine's error over all layers, weighted by neuron-steps."""
        return layer_mean(self.layers, lambda layer: layer.error_engine)

    @property
    def error_float32(self) -> float:
        """PyTorch float32's error over all layers, weighted by neuron-steps."""
        return layer_mean(self.layers, lambda layer: layer.error_float32)

    def summary(self) -> dict[str, Any]:
        """The totals as plain JSON values, for an engine's manifest; a number that is not finite becomes ``None``."""
        totals = ("ok", "inputs", "neuron_steps", "flips_engine", "flips_float32", "error_engine", "error_float32")
        outputs = ("output_error_engine", "output_error_float32", "predictions_agreeing", "predictions_equal")
        found: dict[str, Any] = _finite({key: getattr(self, key) for key in (*totals, *outputs)})
        return found

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; a number that is not finite becomes ``None``."""
        found: dict[str, Any] = _finite({**self.summary(), **asdict(self)})
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report, whole or not at all; what stood there is replaced.

        ``.json`` holds :meth:`to_dict`; ``.html`` is one page that needs no other file.

        Raises:
            VerificationError: the name ends in something else.
            ArtifactWriteError: the file can not be written.
        """
        target = Path(path)
        if target.suffix == ".json":
            text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        elif target.suffix == ".html":
            text = _html(self)
        else:
            raise VerificationError(f"{target.name!r}: a report is saved as .json or .html; give the file one of these endings")
        artifact.write_bytes(target, text.encode(), force=True)

    def __rich__(self) -> RenderableType:
        return _table(self)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=132, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def layer_mean(layers: Sequence[LayerReport], value: Callable[[LayerReport], float]) -> float:
    """The mean of a number of each layer, weighted by neurons."""
    neurons = sum(layer.neurons for layer in layers)
    return sum(value(layer) * layer.neurons for layer in layers) / neurons if neurons else 0.0


# -- printing ------------------------------------------------------------------------------------------------------------------

_COLUMNS: Final = (
    "layer",
    "neurons",
    "rate",
    "flips",
    "float32",
    "error",
    "float32",
    "free flips",
    "float32",
    "first divergence",
)


def _rows(report: Report) -> Iterator[tuple[str, ...]]:
    for layer in report.layers:
        yield (
            layer.name,
            str(layer.neurons),
            f"{layer.rate:.2%}",
            str(layer.flips_engine),
            str(layer.flips_float32),
            f"{layer.error_engine:.2e}",
            f"{layer.error_float32:.2e}",
            str(layer.free_flips_engine),
            str(layer.free_flips_float32),
            "" if layer.first_divergence is None else "t={} #{}".format(*layer.first_divergence),
        )
    yield (
        "all layers",
        str(sum(layer.neurons for layer in report.layers)),
        f"{layer_mean(report.layers, lambda layer: layer.rate):.2%}",
        str(report.flips_engine),
        str(report.flips_float32),
        f"{report.error_engine:.2e}",
        f"{report.error_float32:.2e}",
        str(sum(layer.free_flips_engine for layer in report.layers)),
        str(sum(layer.free_flips_float32 for layer in report.layers)),
        "",
    )


def _title(report: Report) -> str:
    right = "approximate, with the predictions of float64" if report.approximate else "as right as float32"
    verdict = right if report.ok else "NOT right"
    return f"{report.name}: {report.target} {report.precision} is {verdict}"


def _lines(report: Report) -> Iterator[str]:
    """What stands below the table."""
    yield (
        f"{report.inputs} inputs, {report.time_steps} steps, {report.neuron_steps} neuron-steps; flips and error are "
        "teacher-forced, against float64"
    )
    yield (
        f"outputs: off by at most {report.output_error_engine:.3g} (float32: {report.output_error_float32:.3g}); "
        f"{report.predictions_agreeing} of {report.inputs} predictions equal"
    )
    yield from (f"problem: {text}" for text in report.problems)
    yield from (f"note: {text}" for text in report.notes)


def _table(report: Report) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_title(report), style="bold green" if report.ok else "bold red"), title_justify="left")
    for k, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if k == 0 else "right", overflow="fold" if k == 0 else "ellipsis")
    rows = list(_rows(report))
    for k, row in enumerate(rows):
        table.add_row(*map(Text, row), end_section=k == len(rows) - 2)
    return Group(table, *(Text(line) for line in _lines(report)))


_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:75rem;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}"
    "tr:last-child{font-weight:600}.ok{color:#17692f}.wrong{color:#b3261e}"
)


def _html(report: Report) -> str:
    def row(cells: Iterable[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    title, state = html.escape(_title(report)), "ok" if report.ok else "wrong"
    return "\n".join(
        [
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>',
            f'<h1 class="{state}">{title}</h1>',
            f"<table><thead>{row(_COLUMNS, 'th')}</thead><tbody>",
            *(row(cells, "td") for cells in _rows(report)),
            "</tbody></table>",
            *(f"<p>{html.escape(line)}</p>" for line in _lines(report)),
            "</html>\n",
        ]
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
