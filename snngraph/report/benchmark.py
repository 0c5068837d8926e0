"""The report of a benchmark: what :func:`snngraph.benchmark.compare` found, as numbers, as text, as Markdown and as JSON."""

from __future__ import annotations

import io
import json
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from snngraph.runtime import artifact
from snngraph.runtime.backend import usable_cores
from snngraph.runtime.cpu import integer_features

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["BenchmarkReport", "Row", "hardware", "versions"]

#: The instructions that decide how fast a CPU multiplies.
_FLAGS: Final = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "asimddp", "sve", "bf16", "i8mm"),
)
#: Cores used by others, above which a report says that it is not to be trusted.
BUSY: Final = 0.2
_LIBRARIES: Final = ("snngraph", "torch", "openvino", "onnxruntime", "onnx", "onnxscript", "numpy")


@dataclass(frozen=True, slots=True)
class Row:
    """One engine, or one peer. Errors are of the outputs, against the graph in float64, over all inputs that were checked.

    Args:
        name: what it is.
        kind: ``"engine"`` is ours, of one target and precision; ``"variant"`` ours of another pipeline; ``"peer"`` what we are
            measured against.
        settings: how it was built and is run.
        precision: what it computes in, read from the compiled model where the library tells.
        build_seconds: from the model to the first call.
        samples: timed calls.
        best_ms: the quickest timed call, in milliseconds: what a busy machine distorts least.
        median_ms: of all timed calls.
        p99_ms: the 99th percentile; with fewer than 100 samples the slowest call.
        ratio: its time divided by the first engine's in the same round, the median over rounds; above 1 the engine is faster.
        error: the largest absolute error.
        mean_error: the mean absolute error.
        inputs_off: inputs of which an output is off by more than 1e-4 of the largest output.
        predictions_equal: inputs whose largest output is the one it is in float64.
        flips: wrong spikes of the engine, each layer fed with float64's spikes; ``None`` for a peer, whose spikes are not seen.
        flips_float32: the same of PyTorch's float32.
        membrane_error: the mean error of the engine's membrane potentials just before the threshold, likewise.
        membrane_error_float32: the same of PyTorch's float32.
        approximate: its precision promises less than float32 (``"int8"``): that it is not exact is no failure.
        exact: whether it is as right as float32; what is not is shown, but is not the one to beat.
        remark: why it is not exact.
        failure: why there are no numbers: it could not be built, or failed when run.
    """

    name: str
    kind: Literal["engine", "variant", "peer"]
    settings: str = ""
    precision: str = ""
    build_seconds: float | None = None
    samples: int = 0
    best_ms: float | None = None
    median_ms: float | None = None
    p99_ms: float | None = None
    ratio: float | None = None
    error: float | None = None
    mean_error: float | None = None
    inputs_off: int | None = None
    predictions_equal: int | None = None
    flips: int | None = None
    flips_float32: int | None = None
    membrane_error: float | None = None
    membrane_error_float32: float | None = None
    approximate: bool = False
    exact: bool = False
    remark: str = ""
    failure: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is as right as its precision promises: as float32, or merely numbers where it approximates."""
        return self.exact or (self.approximate and not self.failure and self.error is not None and not math.isnan(self.error))

    @property
    def membrane_ratio(self) -> float | None:
        """The error of its membrane potentials, divided by float32's; ``None`` where either is not known, or float32 has none."""
        if self.membrane_error is None or not self.membrane_error_float32:
            return None
        return self.membrane_error / self.membrane_error_float32


@dataclass(frozen=True, slots=True)
class BenchmarkReport:
    """What :func:`snngraph.benchmark.compare` found. Print it, or :meth:`save` it.

    Args:
        model: the model's name.
        inputs: the shapes of the example's inputs.
        checked: how many inputs were checked against float64.
        rounds: how often each was timed in turn.
        threads: CPU threads of each of them.
        rows: peers, then engines, then engines of other pipelines, in the order asked for.
        peak_rss_mb: the most memory the process ever held, with everything built, in MiB.
        hardware: see :func:`hardware`.
        versions: of the libraries.
        date: when it began, ISO 8601, UTC.
        load: the machine's load average over a minute, before and after, ourselves included.
        others: cores that other processes kept busy while it was timed; ``None`` where the system does not tell.
        firing_rates: the rate of each neuron layer on the inputs checked, where an engine was verified.
    """

    model: str
    inputs: tuple[tuple[int, ...], ...]
    checked: int
    rounds: int
    threads: int
    rows: tuple[Row, ...]
    peak_rss_mb: float
    hardware: dict[str, Any]
    versions: dict[str, str]
    date: str
    load: tuple[float, float]
    others: float | None
    firing_rates: dict[str, float] = field(default_factory=dict)

    @property
    def engine(self) -> Row:
        """The engine that the ratios refer to: the first that runs."""
        return next(row for row in self.rows if row.kind == "engine" and row.median_ms is not None)

    @property
    def to_beat(self) -> Row | None:
        """The fastest peer that is as right as float32."""
        timed = [row for row in self.rows if row.kind == "peer" and row.exact and row.ratio is not None]
        return min(timed, key=lambda row: row.ratio or math.inf, default=None)

    @property
    def ok(self) -> bool:
        """Whether every engine, of whatever pipeline, ran and is as right as its precision promises."""
        return all(row.ok for row in self.rows if row.kind != "peer")

    @property
    def busy(self) -> bool:
        """Whether others used the machine while it was timed."""
        return self.others is not None and self.others > BUSY

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; a number that is not finite becomes ``None``."""
        to_beat = self.to_beat
        found: dict[str, Any] = _plain(
            {"ok": self.ok, "busy": self.busy, "to_beat": None if to_beat is None else to_beat.name, **asdict(self)}
        )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the report as JSON, whole or not at all; what stood there is replaced.

        Raises:
            ArtifactWriteError: the file can not be written.
        """
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        artifact.write_bytes(path, text.encode(), force=True)

    def markdown(self) -> str:
        """The table in Markdown, ratios first."""
        cells = [_COLUMNS, ("---", *("---:" for _ in _COLUMNS[1:])), *map(_cells, self._by_time())]
        table = "\n".join("| " + " | ".join(row) + " |" for row in cells)
        return "\n\n".join([f"**{self._title()}**", table, *self._lines()])

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self._title(), style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for k, column in enumerate(_COLUMNS):
            table.add_column(column, justify="right" if k else "left", overflow="fold", no_wrap=k > 0)
        for row in self._by_time():
            style = "bold green" if row.kind == "engine" and row.exact else "" if row.exact else "dim"
            table.add_row(*(Text(cell, style=style) for cell in _cells(row)))
        return Group(table, *(Text(line) for line in self._lines()))

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(file=io.StringIO(), width=132, color_system=None, force_terminal=False, legacy_windows=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    def _title(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.inputs)
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.model}, input {shapes}, {threads}, {self.rounds} rounds in turn"

    def _by_time(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: math.inf if row.ratio is None else -row.ratio)

    def _lines(self) -> Iterator[str]:
        """What stands below the table."""
        yield (
            f"ratio: time / time of {self.engine.name}, median over rounds. error: largest difference of an output to float64's, "
            f"and equal predictions, over {self.checked} inputs. flips: wrong spikes, float32's own in brackets. "
            "membrane: mean error before the threshold / float32's."
        )
        for row in self.rows:
            if not row.exact:
                what = "approximate, as asked" if row.approximate else "not exact: not the one to beat"
                yield f"{row.name}: {row.failure or f'{what}; {row.remark}'}"
        if (best := self.to_beat) is not None and best.ratio is not None:
            yield f"the fastest exact peer is {best.name}: {best.ratio:.2f} times the engine's time"
        yield from (f"{row.name}: {row.settings}" for row in self.rows if row.settings and row.median_ms is not None)
        found = self.hardware
        yield (
            f"{found.get('cpu', '')} ({' '.join(found.get('flags', ()))}; integer products: "
            f"{' '.join(found.get('integer_features', ())) or 'none'}), {found.get('usable_cores')} usable cores, "
            f"others kept {'an unknown number' if self.others is None else f'{self.others:.2f}'} of them busy; {self.date}"
        )
        if self.busy:
            yield "the machine was busy with something else: trust the ratios more than the milliseconds, and neither much"


_COLUMNS: Final = ("", "ratio", "best ms", "median ms", "p99 ms", "build s", "error", "equal", "flips", "membrane")


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    return (
        row.name + ("" if row.exact else " (failed)" if row.failure else " (not exact)"),
        number(row.ratio, ".2f"),
        number(row.best_ms, ".4g"),
        number(row.median_ms, ".4g"),
        number(row.p99_ms, ".4g"),
        number(row.build_seconds, ".1f"),
        number(row.error, ".1e"),
        "" if row.predictions_equal is None else str(row.predictions_equal),
        "" if row.flips is None else f"{row.flips} ({row.flips_float32})",
        number(row.membrane_ratio, ".3g"),
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# -- the machine ---------------------------------------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """The CPU's model and instruction sets, those that add products of 8 bits, cores and memory, and the operating system."""
    lines: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, colon, value = line.partition(":")
            if colon:
                lines.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        lines["model name"] = platform.processor()
    known = set((lines.get("flags") or lines.get("Features") or "").split())
    cpu = lines.get("model name") or platform.machine()
    if family := lines.get("cpu family"):
        cpu += f" (family {family} model {lines.get('model')} stepping {lines.get('stepping')})"
    return {
        "cpu": cpu,
        "flags": [flag for flag in _FLAGS if flag in known],
        "integer_features": list(integer_features()),
        "usable_cores": usable_cores(),
        "logical_cpus": os.cpu_count() or 1,
        "memory_gb": round(_memory() / 2**30, 1),
        "platform": platform.platform(),
    }


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def versions() -> dict[str, str]:
    """Versions of Python and of every library that is measured."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
