"""Times engines and their peers in turn, and checks in the same run that they are right.

In every round each contender runs once (a quick one several times), in an order that rotates from round to round, so that a
machine that slows down slows all of them down. A short pause, and an untimed call of the quick ones, keep one contender's
spinning threads and cold caches out of the next one's time. All have the same number of threads.

Engines are built for each target and precision that is wanted. The first is the one that all are measured against.

**Ratios** are taken within a round and their median is reported, which a drifting machine hardly changes. Engines of another
pipeline (``variants``) may differ from the first engine by a few hundredths: these and it run :data:`CLOSER` more times in every
round, side by side.

**Right** means as right as float32. Outputs are compared with the graph in float64, over several inputs. A contender that
computes below float32 is not exact. Neither is one whose outputs are off on average by more than :data:`ERROR_RATIO` times what
PyTorch's float32 is off by, unless that comes of too few spikes to tell from chance (``f + 3 sqrt(f + 1)`` inputs off, at least 8
inputs). Of an engine the spikes are checked too, by :func:`snngraph.verify`. An engine of a precision that approximates is judged
alike, but is not expected to be right.
"""

from __future__ import annotations

import contextlib
import difflib
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from snngraph import api
from snngraph.errors import SnnGraphError
from snngraph.frontends import state
from snngraph.frontends.call import outputs_of
from snngraph.frontends.capture import trace
from snngraph.graph import INTEGER_CONV, INTEGER_LINEAR, SpikingGraph, is_op
from snngraph.passes.base import Pass
from snngraph.peers import PEERS, Contender, Inputs, PlainModel, build_peer, engine_contender, first_line, quiet
from snngraph.report.benchmark import BenchmarkReport, Row, hardware, versions
from snngraph.runtime.backend import usable_cores
from snngraph.runtime.backends import backend_class
from snngraph.runtime.engine import Engine
from snngraph.threads import torch_threads
from snngraph.types import Precision
from snngraph.verification import verify_engines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["PEERS", "BenchmarkError", "BenchmarkReport", "Row", "compare"]

ERROR_RATIO: Final = 4.0
OFF: Final = 1e-4  # of the largest output
ROUNDING: Final = 1e-6  # of the mean output: what float32 may be off by where PyTorch's happens to be exact
CHECKED: Final = 8
TARGETS: Final = ("openvino", "onnxruntime")
AS_EXACT_AS_FLOAT32: Final = ("fp32", "exact")
CLOSER: Final = 3
_OTHER_NAMES: Final = {
    "eager": "PyTorch",
    "compile": "torch.compile",
    "inductor": "torch.compile",
    "openvino": "OpenVINO default",
}
_PAUSE: Final = 0.02  # seconds between two contenders
_QUICK: Final = 0.1  # seconds; what is quicker runs once untimed before it is timed
_TURN: Final = 0.01  # seconds; so long, or _CALLS calls, a quick contender runs in each round
_CALLS: Final = 10

Progress = Callable[[str, int, int], object]


class BenchmarkError(SnnGraphError, ValueError):
    """A benchmark can not be run as asked."""


def compare(
    model: nn.Module,
    example: Tensor | tuple[Tensor, ...],
    *,
    engine: Engine | None = None,
    peers: Sequence[str] | None = None,
    rounds: int = 20,
    threads: int | None = None,
    progress: Progress | None = None,
    graph: SpikingGraph | None = None,
    check: Sequence[Tensor | tuple[Tensor, ...]] | None = None,
    targets: Sequence[str] = TARGETS,
    precisions: Mapping[str, Sequence[str]] | Sequence[str] | None = None,
    variants: Mapping[str, Iterable[str | Pass]] | None = None,
    patience: float | None = None,
) -> BenchmarkReport:
    """Times a model's engines against its peers, all in this process, and checks all their outputs.

    Args:
        model: in evaluation mode, taking whole sequences.
        example: the input to time, or a tuple of them.
        engine: an engine of this model, for this batch size; by default one is built for each of ``targets``.
        peers: names out of :data:`PEERS`, in any spelling; all of them by default.
        rounds: how often each runs in turn.
        threads: CPU threads for each; by default those of ``engine``, or one for every usable core.
        progress: called with what is being done, how many parts are done, and of how many.
        graph: the model's graph, where it was traced already.
        check: inputs, of the shape of ``example``, to check outputs and spikes on; by default it, shifted :data:`CHECKED` times.
        targets: what engines are built for, where none is given.
        precisions: of these engines; by target where they are not the same for all. By default a target's own default, and beside
            ``"exact"`` also ``"fp32"``. An engine that computes nothing in integers is called ``fp32``, and built once.
        variants: pipelines by name (see :func:`snngraph.optimize`); for each, a row of an engine that it makes for the first
            engine's target, of whatever precision the pipeline gives. They are shown and checked, but are not the engine that the
            others are measured against.
        patience: seconds in which ``torch.compile`` has to compile, all its modes together; as long as it takes by default.

    Raises:
        BenchmarkError: no such peer or precision, no rounds, or no engine to compare with.
        CaptureError: the model can not be traced.
        InputError: the example does not fit the engine.
        TargetError: the engine can not be built.
    """
    if rounds < 1:
        raise BenchmarkError(f"rounds={rounds}: expected at least 1")
    if threads is not None and threads < 1:
        raise BenchmarkError(f"threads={threads}: expected at least 1")
    names = _peer_names(peers)
    if threads is None:
        threads = usable_cores() if engine is None else int(engine.properties()["threads"])
    inputs = _as_inputs(example)
    checked = [_as_inputs(x) for x in check] if check is not None else _shifted(inputs, CHECKED)
    if not checked or any([x.shape for x in each] != [x.shape for x in inputs] for each in checked):
        raise BenchmarkError("check: expected at least one input, all of the example's shape")
    wanted = _wanted(targets, precisions) if engine is None else [(engine.target, engine.precision)]
    variants = {} if variants is None else variants
    tell = _Tell(progress, total=2 + 2 * (len(names) + len(wanted) + len(variants)) + 1)
    date, load = datetime.now(UTC).isoformat(timespec="seconds"), _load()
    with torch_threads(threads), state.fresh_state(model), quiet(), contextlib.ExitStack() as stack:
        tell("trace the model; outputs in float64")
        graph = trace(model, inputs) if graph is None else graph
        judge = _Judge(graph, model, checked)
        entries: list[_Entry] = []
        plain = PlainModel(model, inputs, patience)
        for name in names:
            tell(f"build {name}")
            entries.append(_built(name, "peer", lambda name=name: build_peer(name, plain, threads)))  # type: ignore[misc]
        for target, precision in wanted:
            tell(f"build snngraph {target} {precision or ''}".rstrip())
            there = [entry.row.name for entry in entries]
            if engine is not None:
                entries.append(_given_entry(engine, threads, stack))
            elif f"snngraph {target} {precision}" not in there:
                entries.append(_engine_entry(graph, target, precision, threads, stack))
            if len(entries) == len(there) or entries[-1].row.name in there:
                del entries[len(there) :]
                tell(f"snngraph {target}: nothing is in integers, so {precision} is there already")
        for title, passes in variants.items():
            tell(f"build snngraph {wanted[0][0]}, {title}")
            entries.append(_variant_entry(graph, wanted[0][0], title, passes, threads, stack))
        for entry in entries:
            tell(f"check {entry.row.name}")
            _check(entry, judge, checked)
        tell("verify the spikes of the engines")
        _verify(entries, judge, checked)
        running = [entry for entry in entries if entry.contender is not None]
        if all(entry.row.kind != "engine" for entry in running):
            raise BenchmarkError("no engine runs: " + "; ".join(e.row.failure for e in entries if e.row.kind == "engine"))
        others = _Others()
        _time(running, inputs, rounds, tell)
        cores = others.cores()
        rows = tuple(_row(entry, running) for entry in entries)
        for entry in running:
            assert entry.contender is not None
            entry.contender.close()
    tell("done")
    return BenchmarkReport(
        model=graph.name,
        inputs=tuple(tuple(x.shape) for x in inputs),
        checked=len(checked),
        rounds=rounds,
        threads=threads,
        rows=rows,
        peak_rss_mb=_peak_rss_mb(),
        hardware=hardware(),
        versions=versions(),
        date=date,
        load=(load, _load()),
        others=cores,
        firing_rates=judge.firing_rates,
    )


@dataclass
class _Entry:
    """A row in the making."""

    row: Row
    contender: Contender | None = None
    engine: Engine | None = None
    turns: dict[int, list[float]] = field(default_factory=dict)  # seconds of every call, by round

    def fail(self, error: BaseException) -> None:
        self.row, self.contender = replace(self.row, failure=first_line(error), exact=False), None


class _Tell:
    """Counts the parts of a benchmark for whoever watches it."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, -1

    def __call__(self, what: str, *, step: bool = True) -> None:
        self.done += step
        if self.progress is not None:
            self.progress(what, min(self.done, self.total), self.total)


def _peer_names(peers: Sequence[str] | None) -> list[str]:
    known = {_plain(name): name for name in PEERS} | _OTHER_NAMES
    names: list[str] = []
    for given in PEERS if peers is None else peers:
        plain = _plain(given)
        if plain not in known:
            near = difflib.get_close_matches(plain, known, 1)
            hint = f"; did you mean {known[near[0]]!r}?" if near else ""
            raise BenchmarkError(f"no peer is named {given!r}{hint} Known: {', '.join(PEERS)}")
        if known[plain] not in names:
            names.append(known[plain])
    return names


def _plain(name: str) -> str:
    """A peer's name in small letters and digits alone, without the precision that a report adds in brackets."""
    return "".join(c for c in name.partition("(")[0].lower() if c.isalnum())


def _as_inputs(example: Tensor | tuple[Tensor, ...]) -> Inputs:
    values = example if isinstance(example, tuple) else (example,)
    return tuple(torch.as_tensor(x).detach().contiguous() for x in values)


def _shifted(inputs: Inputs, count: int) -> list[Inputs]:
    """The example, and others like it: shifted along its last axis, which in an image leaves its structure as it is."""
    return [tuple(x.roll(k, -1) if x.dim() else x for x in inputs) for k in range(count)]


def _wanted(
    targets: Sequence[str], precisions: Mapping[str, Sequence[str]] | Sequence[str] | None
) -> list[tuple[str, str | None]]:
    """The targets and precisions to build for; no precision where a target can not tell its own."""
    if not targets:
        raise BenchmarkError("targets: expected at least one")
    if isinstance(precisions, str):
        precisions = [precisions]
    if isinstance(precisions, Mapping) and (unknown := sorted(set(precisions) - set(targets))):
        raise BenchmarkError(f"precisions: no engine is built for {', '.join(unknown)}")
    wanted: list[tuple[str, str | None]] = []
    for target in targets:
        given = precisions.get(target) if isinstance(precisions, Mapping) else precisions
        found: list[str | None] = _default_precisions(target) if given is None else list(given)
        if not found:
            raise BenchmarkError(f"precisions of {target}: expected at least one")
        wanted += [(target, precision) for precision in dict.fromkeys(found)]
    known = get_args(Precision)
    if wrong := [p for _, p in wanted if p is not None and p not in known]:
        raise BenchmarkError(f"no precision is named {wrong[0]!r}. Known: {', '.join(known)}")
    return wanted


def _default_precisions(target: str) -> list[str | None]:
    try:
        precision = backend_class(target).default_precision()
    except SnnGraphError:  # building for it says why, in its row
        return [None]
    return [precision, "fp32"] if precision == "exact" else [precision]


def _engine_entry(graph: SpikingGraph, target: str, precision: str | None, threads: int, stack: contextlib.ExitStack) -> _Entry:
    """An engine built for a target and precision; ``stack`` closes it."""
    start = time.perf_counter()
    try:
        optimized = api.optimize(graph, target, precision)
        integers = _integer_layers(optimized)
        # Asked for "exact", and without a layer in integers, it is the fp32 engine.
        used = stack.enter_context(api.build(optimized, target, precision if integers else None, threads=threads))
    except SnnGraphError as error:
        return _Entry(Row(f"snngraph {target} {precision or ''}".rstrip(), "engine", failure=first_line(error)))
    return _entry_of(f"snngraph {target} {used.precision}", "engine", used, time.perf_counter() - start, integers)


def _given_entry(engine: Engine, threads: int, stack: contextlib.ExitStack) -> _Entry:
    """The engine that was given, compiled again where it has another number of threads; ``stack`` closes that one."""
    used, built = engine, None
    if int(engine.properties()["threads"]) != threads:
        start = time.perf_counter()
        used = stack.enter_context(Engine(engine.manifest, engine.model, threads=threads))
        built = time.perf_counter() - start
    return _entry_of(f"snngraph {engine.target} {engine.precision}", "engine", used, built)


def _variant_entry(
    graph: SpikingGraph, target: str, title: str, passes: Iterable[str | Pass], threads: int, stack: contextlib.ExitStack
) -> _Entry:
    """An engine of another pipeline."""
    start = time.perf_counter()
    try:
        optimized = api.optimize(graph, target, passes=passes)
        used = stack.enter_context(api.build(optimized, target, threads=threads))
    except SnnGraphError as error:
        return _Entry(Row(f"snngraph {target}, {title}", "variant", failure=first_line(error)))
    seconds = time.perf_counter() - start
    return _entry_of(f"snngraph {target} {used.precision}, {title}", "variant", used, seconds, _integer_layers(optimized))


def _entry_of(name: str, kind: Literal["engine", "variant"], used: Engine, seconds: float | None, integers: int = 0) -> _Entry:
    contender = replace(engine_contender(name, used), kind=kind)
    if integers:
        contender = replace(contender, settings=f"{contender.settings}, integer layers: {integers}")
    approximate = used.precision not in AS_EXACT_AS_FLOAT32
    return _Entry(Row(name, kind, build_seconds=seconds, approximate=approximate), contender, used)


def _integer_layers(graph: SpikingGraph) -> int:
    return sum(is_op(node, INTEGER_CONV, INTEGER_LINEAR) for node in graph.nodes)


def _built(name: str, kind: Any, build: Callable[[], Contender]) -> _Entry:
    start = time.perf_counter()
    try:
        contender = build()
    except Exception as error:  # any library may raise anything; a peer that can not be built is shown with its reason
        return _Entry(Row(name, kind, failure=first_line(error)))
    row = Row(contender.name, kind, contender.settings, contender.precision, build_seconds=time.perf_counter() - start)
    return _Entry(row, contender)


# -- right or wrong ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Error:
    """How far outputs are off from float64's, over all inputs."""

    largest: float
    mean: float
    inputs_off: int
    predictions_equal: int


class _Judge:
    """Knows float64's outputs, and how far PyTorch's float32 is off."""

    def __init__(self, graph: SpikingGraph, model: nn.Module, checked: Sequence[Inputs]) -> None:
        self.graph = graph
        exact = graph.to(torch.float64)
        with torch.no_grad():
            self.reference = [[y.double().numpy() for y in outputs_of(exact(*(x.double() for x in each)))] for each in checked]
        self.dims = [spec.batch_dim for spec in graph.outputs]
        size = [np.abs(y) for outputs in self.reference for y in outputs if y.size]
        self.largest = max((float(y.max()) for y in size), default=0.0)
        self.magnitude = statistics.fmean(float(y.mean()) for y in size) if size else 0.0
        self.firing_rates: dict[str, float] = {}
        found = []
        for each in checked:
            state.reset_state(model)
            with torch.inference_mode():
                found.append([y.numpy() for y in outputs_of(model(*each))])
        self.float32 = self.error(found)

    def error(self, found: Sequence[Sequence[Array]]) -> _Error:
        largest, total, count, off, equal = 0.0, 0.0, 0, 0, 0
        for outputs, reference in zip(found, self.reference, strict=True):
            far = 0.0
            for y, wanted in zip(outputs, reference, strict=True):
                if y.shape != wanted.shape:
                    raise BenchmarkError(f"an output has shape {y.shape}, expected {wanted.shape}")
                error = np.where(y == wanted, 0.0, np.abs(y.astype(np.float64) - wanted))
                far = float(np.maximum(far, error.max(initial=0.0)))  # keeps NaN
                total, count = total + float(error.sum()), count + error.size
            largest = float(np.maximum(largest, far))
            off += not far <= OFF * self.largest
            equal += self._same_prediction(outputs[0], reference[0])
        return _Error(largest, total / count if count else 0.0, off, equal)

    def _same_prediction(self, y: Array, wanted: Array) -> bool:
        """By the first output: all samples' largest class is one of float64's largest."""
        dim = self.dims[0]
        if dim is None or y.ndim < 2 or y.size == 0:
            return bool((np.abs(y - wanted) <= 1e-3 * self.largest).all())
        time_dim = self.graph.outputs[0].time_dim
        if time_dim is not None and y.ndim > 2:
            y, wanted, dim = y.mean(time_dim), wanted.mean(time_dim), dim - (time_dim < dim)
        y, wanted = np.moveaxis(y, dim, 0), np.moveaxis(wanted, dim, 0)
        chosen = np.take_along_axis(wanted, np.nan_to_num(y, nan=-np.inf).argmax(1, keepdims=True), 1)
        best = wanted.max(1, keepdims=True)
        return bool((chosen >= best - 1e-6 * np.abs(best)).all()) and not bool(np.isnan(y).any())

    def remark(self, precision: str, error: _Error, inputs: int) -> str:
        """Why a contender is not exact; empty where it is."""
        words = (
            f"outputs off by up to {error.largest:.2g} on {error.inputs_off} of {inputs} inputs "
            f"(PyTorch float32: {self.float32.largest:.2g} on {self.float32.inputs_off})"
        )
        if precision not in ("f32", "f64"):
            return f"computes in {precision}; {words}"
        if error.mean <= max(ERROR_RATIO * self.float32.mean, ROUNDING * self.magnitude):
            return ""
        few = self.float32.inputs_off + 3 * math.sqrt(self.float32.inputs_off + 1)
        if inputs >= CHECKED and error.inputs_off <= few and not math.isnan(error.largest):
            return ""
        return words


def _check(entry: _Entry, judge: _Judge, checked: Sequence[Inputs]) -> None:
    """Fills in the errors of its outputs."""
    if (contender := entry.contender) is None:
        return
    try:
        error = judge.error([contender.outputs(each) for each in checked])
    except Exception as reason:  # see _built
        if entry.engine is not None:
            raise
        entry.fail(reason)
        return
    remark = judge.remark(contender.precision, error, len(checked))
    entry.row = replace(
        entry.row,
        settings=contender.settings,
        precision=contender.precision,
        error=error.largest,
        mean_error=error.mean,
        inputs_off=error.inputs_off,
        predictions_equal=error.predictions_equal,
        exact=not remark,
        remark=remark,
    )


def _verify(entries: Sequence[_Entry], judge: _Judge, checked: Sequence[Inputs]) -> None:
    """Fills in the flips of the engines, all of them in one go."""
    judged = [(entry, entry.engine) for entry in entries if entry.engine is not None and entry.contender is not None]
    inputs = [tuple(x.numpy() for x in each) for each in checked]
    for (entry, _), report in zip(judged, verify_engines(judge.graph, [engine for _, engine in judged], inputs), strict=True):
        judge.firing_rates = {layer.name: layer.rate for layer in report.layers}
        problems = report.problems
        if entry.row.approximate:  # what it is judged by elsewhere; nearly every layer would have a problem of its own
            kept = f"{entry.row.predictions_equal} of {len(checked)} inputs keep their prediction"
            problems = (f"{report.flips_engine} flips, float32 has {report.flips_float32}", kept)
        entry.row = replace(
            entry.row,
            flips=report.flips_engine,
            flips_float32=report.flips_float32,
            membrane_error=report.error_engine,
            membrane_error_float32=report.error_float32,
            exact=report.ok and entry.row.exact and not entry.row.approximate,
            remark="; ".join([*([entry.row.remark] if entry.row.remark else []), *problems]),
        )


# -- timing --------------------------------------------------------------------------------------------------------------------


def _time(entries: Sequence[_Entry], inputs: Inputs, rounds: int, tell: _Tell) -> None:
    contenders = [
        (entry, contender, contender.prepare(inputs)) for entry in entries if (contender := entry.contender) is not None
    ]
    calls: dict[str, int] = {}
    warm: dict[str, bool] = {}
    for _, contender, prepared in contenders:
        least = min(_once(contender, prepared) for _ in range(2))
        calls[contender.name] = max(1, min(_CALLS, int(_TURN / least))) if least else _CALLS
        warm[contender.name] = least < _QUICK
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    engine = next(k for k, (entry, _, _) in enumerate(contenders) if entry.row.kind == "engine")
    closer = [contenders[engine], *(each for each in contenders if each[0].row.kind == "variant")]
    counter = 0
    try:
        for k in range(rounds):
            tell(f"time, round {k + 1} of {rounds}", step=k == 0)
            for group in [contenders] + [closer] * (CLOSER if len(closer) > 1 else 0):
                first = (k if group is contenders else counter) % len(group)
                for entry, contender, prepared in group[first:] + group[:first]:
                    time.sleep(_PAUSE)
                    if warm[contender.name]:
                        _once(contender, prepared)
                    entry.turns[counter] = [_once(contender, prepared) for _ in range(calls[contender.name])]
                counter += 1
    finally:
        if collecting:
            gc.enable()


def _once(contender: Contender, prepared: Any) -> float:
    contender.before()
    start = time.perf_counter()
    contender.call(prepared)
    return time.perf_counter() - start


def _row(entry: _Entry, running: Sequence[_Entry]) -> Row:
    if entry.contender is None:
        return entry.row
    engine = next(other for other in running if other.row.kind == "engine")
    seconds = sorted(s for turn in entry.turns.values() for s in turn)
    ratios = [statistics.median(turn) / statistics.median(engine.turns[k]) for k, turn in entry.turns.items()]
    return replace(
        entry.row,
        samples=len(seconds),
        best_ms=1e3 * seconds[0],
        median_ms=1e3 * statistics.median(seconds),
        p99_ms=1e3 * seconds[min(len(seconds) - 1, math.ceil(0.99 * len(seconds)) - 1)],
        ratio=statistics.median(ratios),
    )


# -- the process ---------------------------------------------------------------------------------------------------------------


def _load() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


class _Others:
    """Measures how many cores other processes keep busy, from here on."""

    def __init__(self) -> None:
        self.start = self._now()

    def cores(self) -> float | None:
        """The mean since the start; ``None`` where the system does not tell."""
        then, now = self.start, self._now()
        if then is None or now is None or now[0] <= then[0]:
            return None
        wall, everyone, ours = (b - a for a, b in zip(then, now, strict=True))
        return max(0.0, everyone - ours) / wall

    def _now(self) -> tuple[float, float, float] | None:
        """Seconds on the clock, of all processors at work, and of this process."""
        try:
            words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
            user, nice, system, _, _, irq, softirq = (int(word) for word in words[1:8])
        except (OSError, ValueError):
            return None
        ticks = user + nice + system + irq + softirq
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def _peak_rss_mb() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
