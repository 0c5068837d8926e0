"""Is an engine right? Its spikes against the graph run in float64, measured beside PyTorch's float32.

**Two measures.** *Teacher-forced*: every layer is fed float64's spikes, so each layer answers for itself and one wrong spike
can not cascade; this decides. *Free-running*: the engine as a user runs it, where one flip in an early layer changes many later
ones. Both are taken of the engine (compiled again by the same back end with the same options, its spikes made visible by
:mod:`snngraph.lowering.taps`) and of PyTorch's float32. Inputs are rounded to float32 first, so all see the same numbers.

**PyTorch's float32** is no single number: its kernels add in different orders, and in the channels-last layout one running sum of
thousands of products has two to three times the error of the blocked sums of the usual layout. Both are PyTorch's float32 (and
OpenVINO's convolution is the former kernel, to the bit), so teacher-forced both are run, and in every layer the worse one counts.

**Flips** are the neuron-steps whose emitted value is not float64's: off by more than :data:`SPIKE_TOLERANCE` of it, or NaN (so a
level that was rounded is no flip, and a count of 2 for 3 is one).

**Error** is the mean of ``|h - h64|``, ``h`` being the membrane potential just before the threshold, over the neuron-steps up to
and including the neuron's own first flip in that sequence: after it the neuron was reset where float64's was not, and its
trajectory says nothing of its arithmetic. Where the engine keeps a layer in other units (a scale folded into its threshold), its
``h`` is first multiplied by the ratio of the two thresholds.

**The verdict.** With ``f`` flips of float32, an engine may have ``f + 3 sqrt(f + 1)`` over all layers together, and
``f + 6 sqrt(f + 1)`` in any one of them: were both counts drawn from one Poisson distribution, the first fails a right engine
about once in a hundred times, and the second, asked of 50 layers, about as often. Its error may be :data:`ERROR_RATIO` times
float32's over all layers (weighted by neuron-steps) and :data:`LAYER_ERROR_RATIO` times in any one, or one unit in the last
place of float32 at the layer's mean ``|h64|``, whichever is more: a layer fed with small integers has no error in float32. What
follows the last neurons answers by the outputs that follow from float64's spikes. NaN anywhere is a failure.

**Approximate precisions** (``int8``) are asked for something else: an engine is right if it predicts on every input what float64
predicts. Its flips and error are shown.

**The model.** All of that compares the engine with the graph, and says nothing of the graph. Given the model itself, it also runs
as its user runs it, in float32 and reset before every chunk, and its outputs are compared with the graph's in float32. Most often
they are the same bits; where they are not, a flip may change what follows, as it may between float32 and float64. So an input is
off if any of its outputs differs by more than :data:`MODEL_TOLERANCE` of the largest, and as many inputs may be off as are for
float32 against float64, within chance (``f + 3 sqrt(f + 1)``), but never more than half. An error of the capture is no matter of
single spikes, so that it puts most inputs off.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, fx

from snngraph.errors import InputCountError, InputRankError, InputTypeError, VerificationError
from snngraph.graph import LIF, LIF_STEP, SpikingGraph, is_op
from snngraph.lowering.taps import add_outputs, cut_at_spikes, forced_name, membrane_name, tap, threshold_name
from snngraph.passes.expand_fused import expanded
from snngraph.report.verification import LayerReport, Report, layer_mean
from snngraph.runtime.backend import Backend, BackendOptions
from snngraph.runtime.backends import backend_class
from snngraph.runtime.engine import Engine
from snngraph.runtime.outputs import Rows, find_rows
from snngraph.threads import torch_threads
from snngraph.types import NeuronLayer, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["LayerReport", "Report", "verify_engine", "verify_engines"]

aten = torch.ops.aten

SPIKE_TOLERANCE: Final = 1e-3
ERROR_RATIO: Final = 1.25
LAYER_ERROR_RATIO: Final = 2.0
OUTPUT_ERROR_RATIO: Final = 4.0
OUTPUT_TOLERANCE: Final = 1e-4
MODEL_TOLERANCE: Final = 1e-3
FLIP_SIGMAS: Final = 3.0
LAYER_FLIP_SIGMAS: Final = 6.0
ULP: Final = 2.0**-23
TIE: Final = 1e-9
ENOUGH_INPUTS: Final = 32
USUAL_RATES: Final = (0.005, 0.6)
_CHUNK: Final = 8  # the batch of a chunk where the engine leaves it free


def verify_engine(
    model_or_graph: torch.nn.Module | SpikingGraph,
    engine: Engine,
    inputs: Any,
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> Report:
    """Compares an engine with the graph it came from, neuron by neuron. The module's text says how.

    Args:
        model_or_graph: the graph the engine was built from, before or after its passes, or the model itself, which is then traced
            on the first inputs (trace it yourself where ``trace`` needs more than that) and run too, so that an error of the
            capture is found as well.
        engine: the engine.
        inputs: an array or tensor in the model's layout with any number of samples along its batch axis; a tuple of them for
            several inputs; or an iterable of such batches. They run in chunks of the engine's batch size; the last one is filled
            up by repetition, and what was filled up is dropped.
        progress: called after every chunk with the number of inputs done and, where it is known, of all inputs.

    Raises:
        VerificationError: model and engine do not belong together (other layers, other inputs), or there are no inputs.
        InputError: an input does not fit.
    """
    (report,) = verify_engines(model_or_graph, [engine], inputs, progress=progress)
    return report


def verify_engines(
    model_or_graph: torch.nn.Module | SpikingGraph,
    engines: Sequence[Engine],
    inputs: Any,
    *,
    progress: Callable[[int, int | None], None] | None = None,
) -> list[Report]:
    """:func:`verify_engine` of several engines of one model, for one batch size: what PyTorch runs, runs once for all of them.

    Raises:
        VerificationError: as :func:`verify_engine`; or the engines take inputs of different shapes.
    """
    for engine in engines:
        if engine.mode != "sequence":
            raise VerificationError(f"the engine was built with mode={engine.mode!r}: verify it in mode='sequence'")
        if engine.inputs != engines[0].inputs:
            raise VerificationError(f"the engines take different inputs: {_specs(engines[0].inputs)} and {_specs(engine.inputs)}")
    batches = _Batches(inputs, engines[0].inputs)
    chunks = iter(batches)
    try:
        first = next(chunks)
    except StopIteration:
        raise VerificationError("there are no inputs to verify on") from None
    model = None if isinstance(model_or_graph, SpikingGraph) else model_or_graph
    graph = expanded(model_or_graph) if isinstance(model_or_graph, SpikingGraph) else _trace(model_or_graph, first)
    for engine in engines:
        _check_belong(graph, engine)
    runs = _Runs(graph, keep=len(engines) > 1)
    with contextlib.ExitStack() as stack, _float32_as_yardstick(engines[0]):
        comparisons = [stack.enter_context(_Comparison(runs, engine, model)) for engine in engines]
        chunk: _Chunk | None = first
        while chunk is not None:
            for comparison in comparisons:
                comparison.add(chunk)
            runs.forget()
            if progress is not None:
                progress(comparisons[0].inputs, batches.total)
            chunk = next(chunks, None)
        return [comparison.report() for comparison in comparisons]


def _trace(model: torch.nn.Module, chunk: _Chunk) -> SpikingGraph:
    from snngraph.frontends.capture import trace

    example = tuple(torch.from_numpy(array) for array in chunk.arrays)
    return trace(model, example[0] if len(example) == 1 else example)


def _check_belong(graph: SpikingGraph, engine: Engine) -> None:
    ours, theirs = {info.name: info.neurons for info in graph.neurons}, {layer.name: layer.neurons for layer in engine.layers}
    if ours != theirs:
        raise VerificationError(
            "model and engine have different layers of neurons (name: neurons of a sample), so they can not be compared. "
            f"Model: {_listed(ours)}. Engine: {_listed(theirs)}"
        )
    outputs = engine.outputs[: len(graph.outputs)]  # spikes may follow, in an engine built with taps
    for kind, mine, other in (("inputs", graph.inputs, engine.inputs), ("outputs", graph.outputs, outputs)):
        if [_layout(spec) for spec in mine] != [_layout(spec) for spec in other]:
            raise VerificationError(f"model and engine have different {kind}: {_specs(mine)} and {_specs(other)}")
    steps = [len(layer.membrane) for layer in engine.layers if len(layer.membrane) != graph.time.steps]
    if steps:
        raise VerificationError(f"the model has {graph.time.steps} time steps, the engine {steps[0]}")
    batch = next((spec.shape[spec.batch_dim] for spec in engine.inputs if spec.batch_dim is not None), None)
    if not graph.free_batch and batch != graph.batch:
        raise VerificationError(
            f"the model runs at batch {graph.batch} only and the engine at {'any' if batch is None else batch}; "
            f"trace it on an example of that batch size"
        )


def _layout(spec: TensorSpec) -> tuple[int | None, ...]:
    return tuple(None if d == spec.batch_dim else n for d, n in enumerate(spec.shape))


def _specs(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}[{', '.join('N' if n is None else str(n) for n in _layout(spec))}]" for spec in specs)


def _listed(layers: dict[str, int]) -> str:
    return ", ".join(f"{name}: {neurons}" for name, neurons in layers.items()) or "none"


@contextlib.contextmanager
def _float32_as_yardstick(engine: Engine) -> Iterator[None]:
    """PyTorch's float32, on as many threads as the engine, for sums are split among threads and rounded so.

    Not the bfloat16 or TF32 that a user may have allowed for speed.
    """
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch_threads(int(engine.properties().get("threads") or torch.get_num_threads())):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


# -- inputs --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Inputs at the engine's batch size, of which the first ``count`` samples count."""

    arrays: tuple[Array, ...]
    count: int


class _Batches:
    """The caller's inputs in chunks of the engine's batch size; holds no more than a chunk and one of the caller's batches."""

    def __init__(self, inputs: Any, specs: Sequence[TensorSpec]) -> None:
        self.specs = specs
        self.size = next((spec.shape[spec.batch_dim] for spec in specs if spec.batch_dim is not None), None)
        single = _is_array(inputs) or (isinstance(inputs, tuple) and len(inputs) == len(specs) and all(map(_is_array, inputs)))
        self.batches: Iterable[Any] = [inputs] if single else inputs
        if not isinstance(self.batches, Iterable):
            raise InputTypeError(f"expected an array, a tuple of arrays or an iterable of them, got {type(inputs).__name__}")
        known = isinstance(self.batches, list | tuple)
        self.total = sum(self._count(self._arrays(batch)) for batch in self.batches) if known else None

    def __iter__(self) -> Iterator[_Chunk]:
        size = self.size or _CHUNK
        held: tuple[Array, ...] | None = None
        for batch in self.batches:
            arrays = self._arrays(batch)
            held = arrays if held is None else self._join(held, arrays)
            while self._count(held) >= size:
                yield _Chunk(self._part(held, 0, size), size)
                held = self._part(held, size, None)
            if any(spec.batch_dim is None for spec in self.specs):  # this input belongs to its own batch
                yield from self._rest(held)
                held = None
        if held is not None:
            yield from self._rest(held)

    def _rest(self, held: tuple[Array, ...]) -> Iterator[_Chunk]:
        count = self._count(held)
        if count and self.size is not None:
            index = np.arange(self.size) % count
            held = tuple(a if s.batch_dim is None else a.take(index, s.batch_dim) for a, s in zip(held, self.specs, strict=True))
        if count:
            yield _Chunk(held, count)

    def _arrays(self, batch: Any) -> tuple[Array, ...]:
        values = (batch,) if _is_array(batch) else tuple(batch) if isinstance(batch, tuple | list) else None
        if values is None or not all(map(_is_array, values)):
            raise InputTypeError(f"expected arrays or tensors, got {type(batch).__name__}")
        if len(values) != len(self.specs):
            hint = "; of (input, label) pairs pass the inputs alone" if len(values) == len(self.specs) + 1 else ""
            raise InputCountError(f"the model takes {len(self.specs)} inputs, got {len(values)}{hint}")
        arrays = tuple(_array(value, spec) for value, spec in zip(values, self.specs, strict=True))
        counts = {a.shape[s.batch_dim] for a, s in zip(arrays, self.specs, strict=True) if s.batch_dim is not None}
        if len(counts) > 1:
            raise VerificationError(f"the inputs have different numbers of samples: {sorted(counts)}")
        return arrays

    def _count(self, arrays: tuple[Array, ...]) -> int:
        return next((a.shape[s.batch_dim] for a, s in zip(arrays, self.specs, strict=True) if s.batch_dim is not None), 1)

    def _join(self, a: tuple[Array, ...], b: tuple[Array, ...]) -> tuple[Array, ...]:
        joined = []
        for first, second, spec in zip(a, b, self.specs, strict=True):
            try:
                joined.append(np.concatenate([first, second], spec.batch_dim or 0))
            except ValueError as error:
                raise VerificationError(
                    f"input {spec.name!r}: batches of different shapes: {first.shape}, {second.shape}"
                ) from error
        return tuple(joined)

    def _part(self, arrays: tuple[Array, ...], start: int, stop: int | None) -> tuple[Array, ...]:
        window = slice(start, stop)
        return tuple(
            a if s.batch_dim is None else np.ascontiguousarray(a[(slice(None),) * s.batch_dim + (window,)])
            for a, s in zip(arrays, self.specs, strict=True)
        )


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _array(value: Any, spec: TensorSpec) -> Array:
    array: Array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    if array.ndim != len(spec.shape):
        raise InputRankError(f"input {spec.name!r} has {array.ndim} dimensions, expected {len(spec.shape)}: {_specs([spec])}")
    return np.ascontiguousarray(array, dtype=np.dtype(spec.dtype))


# -- running -------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Trace:
    """One layer's spikes (float32) and membrane potential (float64) ``[T, N, neurons]``, and its threshold, broadcast alike."""

    s: Tensor
    h: Tensor
    threshold: Tensor | None = None


class _Recorder(fx.Interpreter):
    """Runs a graph, keeps what every layer of neurons does, and hands ``forced`` spikes on instead, where given."""

    def __init__(self, graph: SpikingGraph, forced: dict[str, Tensor] | None = None) -> None:
        super().__init__(graph.module)
        self.dtype = graph.dtype
        self.forced = forced
        self.steps: dict[str, list[_Trace]] = {}

    def run_node(self, n: fx.Node) -> Any:
        if not is_op(n, LIF, LIF_STEP):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        whole = is_op(n, LIF)
        operator: Any = n.target
        s, v, i, h = operator(*args, **(kwargs | {"with_h": True} if whole else kwargs))
        threshold = args[3] if len(args) > 3 else kwargs["threshold"]
        name = n.meta.get("neuron", n.name)
        steps = self.steps.setdefault(name, [])
        found = _Trace(s, h, threshold.expand_as(h)) if whole else _Trace(s[None], h[None], threshold.expand_as(h)[None])
        steps.append(found)
        if self.forced is not None:
            spikes = self.forced[name].to(s.dtype)
            s = spikes.reshape(s.shape) if whole else spikes[len(steps) - 1].reshape(s.shape)
        return s, v, i, h

    def __call__(self, arrays: Sequence[Array]) -> list[Tensor]:
        tensors = [torch.from_numpy(a) for a in arrays]
        with torch.no_grad():
            result = self.run(*[x.to(self.dtype) if x.is_floating_point() else x for x in tensors])
        return [y.double() for y in (result if isinstance(result, tuple | list) else [result])]

    def pop(self, name: str) -> _Trace:
        """One layer, and forgets it."""
        steps = self.steps.pop(name)
        joined = (_join(parts) for parts in zip(*((p.s, p.h, p.threshold) for p in steps), strict=True))
        s, h, threshold = (x.flatten(2) if x.dim() > 2 else x.unsqueeze(2) for x in joined)
        return _Trace(s.float(), h.double(), threshold)


def _join(steps: Sequence[Any]) -> Tensor:
    return steps[0] if len(steps) == 1 else torch.cat(list(steps))


class _ChannelsLast(_Recorder):
    """Runs convolutions and linear layers in the channels-last layout, where oneDNN keeps one running sum."""

    def run_node(self, n: fx.Node) -> Any:
        if not is_op(n, aten.convolution.default, aten.linear.default, aten.addmm.default, aten.mm.default):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        operator: Any = n.target
        if is_op(n, aten.convolution.default):
            layouts = [_channels_last(a) if isinstance(a, Tensor) and a.dim() == 4 else a for a in args]
            return operator(*layouts, **kwargs).contiguous()
        if is_op(n, aten.linear.default):
            return _as_convolution(*args, **kwargs)
        if kwargs:
            return operator(*args, **kwargs)
        bias, (x, weight) = (None, args) if is_op(n, aten.mm.default) else (args[0], args[1:])
        y = _as_convolution(x, weight.t())
        return y if bias is None else y + bias


def _channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def _as_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer as a 1x1 convolution of one pixel, of 16 rows or more: for fewer, kernels with other sums are taken."""
    rows = x.reshape(-1, x.shape[-1], 1, 1)
    count = rows.shape[0]
    rows = torch.cat([rows, rows.new_zeros(max(0, 16 - count), *rows.shape[1:])])
    y = torch.nn.functional.conv2d(_channels_last(rows), _channels_last(weight[:, :, None, None]), bias)
    return y[:count].reshape(*x.shape[:-1], weight.shape[0])


class _Runs:
    """What PyTorch makes of a chunk: in float64, and in float32, teacher-forced in both layouts and free.

    Args:
        graph: the graph.
        keep: each run is kept until :meth:`forget`, for the engines that follow.
    """

    def __init__(self, graph: SpikingGraph, *, keep: bool) -> None:
        self.exact, self.float32 = graph.to(torch.float64), graph.to(torch.float32)
        self._keep = keep
        self._kept: dict[str, tuple[list[Tensor], dict[str, _Trace]]] = {}

    def forget(self) -> None:
        """Before the next chunk."""
        self._kept.clear()

    def __call__(
        self, kind: str, arrays: Sequence[Array], forced: dict[str, Tensor] | None = None
    ) -> tuple[list[Tensor], dict[str, _Trace]]:
        """Outputs, and layers by name; ``kind`` is ``float64``, ``float32``, ``channels last`` or ``free``."""
        if kind in self._kept:
            return self._kept[kind]
        recorder = (_ChannelsLast if kind == "channels last" else _Recorder)(
            self.exact if kind == "float64" else self.float32, forced
        )
        outputs = recorder(arrays)
        found = outputs, {name: recorder.pop(name) for name in list(recorder.steps)}
        if self._keep:
            self._kept[kind] = found
        return found


class _TappedEngine:
    """An engine's model, tapped or cut, compiled as the engine is."""

    def __init__(self, engine: Engine, model: onnx.ModelProto) -> None:
        options = engine.manifest.options
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self.backend: Backend = backend_class(engine.target)(
            model.SerializeToString(), engine.precision, BackendOptions(options.get("device", "cpu"), options.get("threads"))
        )

    def __call__(self, arrays: Sequence[Array], forced: dict[str, Array]) -> tuple[list[Array], dict[str, Array]]:
        """All outputs, the engine's own first; and the same by name."""
        results = self.backend.infer([*arrays, *(forced[name] for name in self.inputs[len(arrays) :])])
        return results, dict(zip(self.outputs, results, strict=True))


def _trace_of(layer: NeuronLayer, found: dict[str, Array]) -> _Trace:
    s, h = (torch.from_numpy(found[name]) for name in (layer.spikes, membrane_name(layer)))
    shape = (len(layer.membrane), -1, layer.neurons)
    return _Trace(s.reshape(shape), h.reshape(shape).double())


# -- comparing -----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Difference:
    """Flips and error of one layer against float64, summed over chunks."""

    flips: int = 0
    error: float = 0.0
    compared: int = 0
    nan: bool = False

    def add(self, found: _Trace, reference: _Trace) -> None:
        """Both traces hold the samples that count, and no others."""
        flipped = _flipped(found.s, reference.s)
        flips = int(flipped.sum())
        error = (found.h - reference.h).abs()
        if error.isnan().any():  # infinite in both is no difference
            error = torch.where(found.h == reference.h, 0.0, error)
        self.compared += error.numel()
        if flips:
            after_first = (flipped.cumsum(0) > flipped).nonzero(as_tuple=True)
            error[after_first] = 0.0
            self.compared -= len(after_first[0])
        self.flips += flips
        self.error += float(error.sum())
        self.nan = self.nan or bool(found.s.isnan().any()) or bool(found.h.isnan().any())

    @property
    def mean(self) -> float:
        return self.error / self.compared if self.compared else 0.0


def _flipped(s: Tensor, reference: Tensor) -> Tensor:
    differs = s != reference
    if differs.any():
        differs &= ~((s - reference).abs() <= SPIKE_TOLERANCE * reference.abs())
    return differs


@dataclass(slots=True)
class _Tally:
    """What is known of one layer so far."""

    steps: int = 0
    fired: int = 0
    ties: int = 0
    magnitude: float = 0.0
    nan: bool = False
    rescaled: bool = False
    engine: _Difference = field(default_factory=_Difference)
    float32: _Difference = field(default_factory=_Difference)
    channels_last: _Difference = field(default_factory=_Difference)
    free_flips_engine: int = 0
    free_flips_float32: int = 0
    first_divergence: tuple[int, int] | None = None

    def add_reference(self, reference: _Trace) -> None:
        assert reference.threshold is not None
        self.steps += reference.s.numel()
        self.fired += int((reference.s != 0).sum())
        self.ties += int(((reference.h - reference.threshold).abs() < TIE).sum())
        self.magnitude += float(reference.h.abs().sum())
        self.nan = self.nan or bool(reference.s.isnan().any()) or bool(reference.h.isnan().any())

    def add_free(self, found: _Trace, reference: _Trace, before: int) -> None:
        """The free-running engine on inputs of which ``before`` came earlier."""
        flipped = _flipped(found.s, reference.s).flatten(1)
        self.free_flips_engine += int(flipped.sum())
        steps = flipped.any(1).nonzero()
        if len(steps):
            step = int(steps[0])
            place = (step, int(flipped[step].nonzero()[0]) + before * reference.s.shape[2])
            self.first_divergence = place if self.first_divergence is None else min(place, self.first_divergence)


@dataclass(slots=True)
class _Outputs:
    """Differences of outputs to float64's, summed over chunks."""

    tolerance: float = OUTPUT_TOLERANCE
    largest: float = 0.0
    total: float = 0.0
    count: int = 0
    inputs_off: int = 0

    def add(self, found: Sequence[Tensor], reference: Sequence[Tensor], dims: Sequence[int | None]) -> None:
        off: Tensor | None = None
        for y, wanted, dim in zip(found, reference, dims, strict=True):
            error = torch.where(y == wanted, 0.0, (y - wanted).abs())
            if not error.numel():
                continue
            self.largest = float(torch.maximum(torch.tensor(self.largest), error.max()))  # keeps NaN
            self.total += float(error.sum())
            self.count += error.numel()
            near = error <= self.tolerance * wanted.abs().max()
            far = ~(near.all()[None] if dim is None else near.movedim(dim, 0).flatten(1).all(1))
            off = far if off is None else off | far
        self.inputs_off += 0 if off is None else int(off.sum())

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else 0.0


class _Comparison:
    """Engine, float32 and float64 side by side, chunk by chunk; nothing of a chunk is kept but sums."""

    def __init__(self, runs: _Runs, engine: Engine, model: torch.nn.Module | None = None) -> None:
        self.runs, self.engine, self.model = runs, engine, model
        self.exact = runs.exact
        by_name = {layer.name: layer for layer in engine.layers}
        self.layers = [by_name[info.name] for info in self.exact.neurons]
        self.tallies = {layer.name: _Tally() for layer in self.layers}
        self.inputs = 0
        self.predictions_agreeing = 0
        self.run, self.free, self.free_float32 = _Outputs(), _Outputs(), _Outputs()
        self.forced, self.forced_float32, self.forced_channels_last = _Outputs(), _Outputs(), _Outputs()
        self.of_model = _Outputs(MODEL_TOLERANCE)  # of the model's outputs, to the graph's in float32
        self.model_shapes = ""
        self.rows: list[Rows] = []
        self.size = _Outputs()  # of float64's outputs themselves: their difference to zero
        self.tapping_changes, self.tapping_error = 0, 0.0
        self.nan_reference = False
        model = onnx.load_from_string(engine.model)
        cut = cut_at_spikes(model, self.layers)
        self.thresholds = {layer.name: name for layer in self.layers if (name := threshold_name(model, layer)) is not None}
        constants = {value.name: value for value in model.graph.initializer}
        self.constants = {
            name: onnx.numpy_helper.to_array(constants[name]) for name in self.thresholds.values() if name in constants
        }
        add_outputs(cut, [name for name in self.thresholds.values() if name not in constants])
        self.cut_engine, self.tapped_engine = _TappedEngine(engine, cut), _TappedEngine(engine, tap(model, self.layers))

    def __enter__(self) -> _Comparison:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_engine.backend.close()
        self.tapped_engine.backend.close()

    def add(self, chunk: _Chunk) -> None:
        arrays, n = chunk.arrays, chunk.count
        results = self.engine.run(*arrays)  # checks the inputs, so it comes first
        outputs, whole = self.runs("float64", arrays)
        if not self.rows:
            self.rows = self._find_rows(arrays, outputs)
        run = self._kept(results if isinstance(results, tuple) else (results,), n)
        reference = self._kept(outputs, n)
        spikes = {name: trace.s for name, trace in whole.items()}
        exact = {name: _first(trace, n) for name, trace in whole.items()}
        for name, trace in exact.items():
            self.tallies[name].add_reference(trace)
        self.nan_reference = self.nan_reference or any(bool(y.isnan().any()) for y in reference)
        self.size.add(reference, [torch.zeros_like(y) for y in reference], self._dims)
        self.run.add(run, reference, self._dims)
        self._float32(arrays, n, spikes, exact, reference)
        self._forced_engine(arrays, n, spikes, exact, reference)
        self._free_engine(arrays, n, exact, reference, run)
        self.predictions_agreeing += _equal_predictions(run[0], reference[0], self._outputs[0], n)
        self.inputs += n

    def _find_rows(self, arrays: Sequence[Array], outputs: Sequence[Tensor]) -> list[Rows]:
        def run(given: list[Array]) -> list[Array]:
            return [y.numpy() for y in _Recorder(self.exact)(given)]

        results = [y.numpy() for y in outputs]
        return find_rows(run, self.engine.inputs, arrays, self.exact.outputs, results, self.exact.time.steps)

    @property
    def _outputs(self) -> list[TensorSpec]:
        """The graph's outputs, the samples on an axis of their own."""
        steps = self.exact.time.steps
        return [rows.spec(spec, steps) for rows, spec in zip(self.rows, self.exact.outputs, strict=True)]

    @property
    def _dims(self) -> list[int | None]:
        return [spec.batch_dim for spec in self._outputs]

    def _kept(self, outputs: Sequence[Any], n: int) -> list[Tensor]:
        """The graph's outputs in float64, without those that follow, and without the samples that only filled up the chunk."""
        kept = []
        for y, rows, spec, dim in zip(outputs, self.rows, self.exact.outputs, self._dims, strict=False):
            tensor = torch.from_numpy(y) if isinstance(y, np.ndarray) else y
            if spec.batch_dim is not None and dim is not None:
                tensor = rows.split(tensor, spec.batch_dim).narrow(dim, 0, n)
            kept.append(tensor.double())
        return kept

    def _compare_model(self, arrays: Sequence[Array], n: int, graph_outputs: Sequence[Tensor]) -> None:
        """The model as its user runs it, against the graph's outputs in float32."""
        if self.model is None:
            return
        from snngraph.frontends import state
        from snngraph.frontends.call import outputs_of

        try:
            with state.fresh_state(self.model), torch.no_grad():
                found = outputs_of(self.model(*(torch.from_numpy(a.copy()) for a in arrays)))
        except Exception as error:
            shapes = ", ".join(str(list(a.shape)) for a in arrays)
            raise VerificationError(f"the model itself fails on inputs of shape {shapes}: {error}") from error
        theirs, ours = ([list(y.shape) for y in ys] for ys in (found, graph_outputs))
        if theirs != ours:
            self.model_shapes = f"it gives outputs of shape {theirs}, the graph {ours}"
            return
        self.of_model.add(self._kept(found, n), self._kept(graph_outputs, n), self._dims)

    def _float32(
        self, arrays: Sequence[Array], n: int, spikes: dict[str, Tensor], exact: dict[str, _Trace], reference: Sequence[Tensor]
    ) -> None:
        for kind, outputs in (("float32", self.forced_float32), ("channels last", self.forced_channels_last)):
            found, traces = self.runs(kind, arrays, spikes)
            outputs.add(self._kept(found, n), reference, self._dims)
            for name, tally in self.tallies.items():
                (tally.float32 if kind == "float32" else tally.channels_last).add(_first(traces[name], n), exact[name])
            del traces
        outputs_float32, traces = self.runs("free", arrays)
        self.free_float32.add(self._kept(outputs_float32, n), reference, self._dims)
        self._compare_model(arrays, n, outputs_float32)
        for name, tally in self.tallies.items():
            tally.free_flips_float32 += int(_flipped(_first(traces[name], n).s, exact[name].s).sum())

    def _forced_engine(
        self, arrays: Sequence[Array], n: int, spikes: dict[str, Tensor], exact: dict[str, _Trace], reference: Sequence[Tensor]
    ) -> None:
        forced = {
            forced_name(layer): np.ascontiguousarray(spikes[layer.name].reshape(-1, *layer.shape).numpy())
            for layer in self.layers
        }
        outputs, found = self.cut_engine(arrays, forced)
        self.forced.add(self._kept(outputs, n), reference, self._dims)
        for layer in self.layers:
            tally, trace = self.tallies[layer.name], _first(_trace_of(layer, found), n)
            units = self._units(layer, exact[layer.name], found)
            if units is not None:
                trace.h = trace.h * units
                tally.rescaled = True
            tally.engine.add(trace, exact[layer.name])

    def _free_engine(
        self, arrays: Sequence[Array], n: int, exact: dict[str, _Trace], reference: Sequence[Tensor], run: Sequence[Tensor]
    ) -> None:
        outputs, found = self.tapped_engine(arrays, {})
        tapped = self._kept(outputs, n)
        self.free.add(tapped, reference, self._dims)
        for y, other in zip(run, tapped, strict=True):
            if not torch.equal(y.nan_to_num(math.inf), other.nan_to_num(math.inf)):
                self.tapping_changes += n
                self.tapping_error = max(self.tapping_error, float((y - other).abs().nan_to_num(math.inf).max()))
                break
        for layer in self.layers:
            self.tallies[layer.name].add_free(_first(_trace_of(layer, found), n), exact[layer.name], self.inputs)

    def _units(self, layer: NeuronLayer, exact: _Trace, found: dict[str, Array]) -> Tensor | None:
        """float64's threshold over the engine's ``[N, neurons]``, or ``None`` where they are the same but for rounding."""
        name = self.thresholds.get(layer.name)
        if name is None or exact.threshold is None:
            return None
        ours = exact.threshold[0].double()
        given = torch.from_numpy(np.array(self.constants[name] if name in self.constants else found[name])).double()
        samples = found[layer.spikes].shape[0] // len(layer.membrane)
        theirs = given.broadcast_to((samples, *layer.shape)).reshape(samples, layer.neurons)[: ours.shape[0]]
        ratio = ours / theirs
        usable = ratio.isfinite() & (ratio > 0) & ((ratio - 1).abs() > 1e-5)
        return torch.where(usable, ratio, 1.0) if bool(usable.any()) else None

    # -- the verdict -------------------------------------------------------------------------------------------------------

    def report(self) -> Report:
        layers = tuple(self._layer(layer) for layer in self.layers)
        engine = self.engine
        report = Report(
            name=self.exact.name,
            target=engine.target,
            precision=engine.precision,
            time_steps=self.exact.time.steps,
            inputs=self.inputs,
            layers=layers,
            output_error_engine=self.run.largest,
            output_error_float32=self.free_float32.largest,
            forced_output_error_engine=self.forced.mean,
            forced_output_error_float32=max(self.forced_float32.mean, self.forced_channels_last.mean),
            predictions_agreeing=self.predictions_agreeing,
        )
        return replace(report, problems=tuple(self._problems(report)), notes=tuple(self._notes(report)))

    def _layer(self, layer: NeuronLayer) -> LayerReport:
        tally = self.tallies[layer.name]
        steps = max(tally.steps, 1)
        return LayerReport(
            name=layer.name,
            neurons=layer.neurons,
            rate=tally.fired / steps,
            flips_engine=tally.engine.flips,
            flips_float32=max(tally.float32.flips, tally.channels_last.flips),
            error_engine=tally.engine.mean,
            error_float32=max(tally.float32.mean, tally.channels_last.mean),
            free_flips_engine=tally.free_flips_engine,
            free_flips_float32=tally.free_flips_float32,
            first_divergence=tally.first_divergence,
            magnitude=tally.magnitude / steps,
            ties=tally.ties,
        )

    def _problems(self, report: Report) -> Iterator[str]:
        if report.approximate:
            yield from self._prediction_problems(report)
        else:
            yield from self._rounding_problems(report)
        yield from self._capture_problems()

    def _prediction_problems(self, report: Report) -> Iterator[str]:
        if nan := [name for name, tally in self.tallies.items() if tally.engine.nan]:
            yield f"the engine computes NaN in {', '.join(nan)}"
        if changed := report.inputs - report.predictions_agreeing:
            yield (
                f"{changed} of {report.inputs} predictions are not float64's: {report.precision} is too coarse for this model; "
                "use precision='exact'"
            )

    def _rounding_problems(self, report: Report) -> Iterator[str]:
        for layer in report.layers:
            tally, title = self.tallies[layer.name], f"layer {layer.name!r}"
            if tally.engine.nan or tally.nan:
                yield f"{title}: the {'reference' if tally.nan else 'engine'} computes NaN"
                continue
            if layer.flips_engine > (most := _flips_allowed(layer.flips_float32, LAYER_FLIP_SIGMAS)):
                yield f"{title}: {layer.flips_engine} flips, float32 has {layer.flips_float32} (at most {most:.0f} are chance)"
            if not layer.error_engine <= (limit := _error_allowed(layer.error_float32, layer.magnitude, LAYER_ERROR_RATIO)):
                yield (
                    f"{title}: error {layer.error_engine:.3g} before the threshold, float32 has {layer.error_float32:.3g} "
                    f"(at most {limit:.3g})"
                )
        if report.flips_engine > (most := _flips_allowed(report.flips_float32, FLIP_SIGMAS)):
            worst = max(report.layers, key=lambda layer: layer.flips_engine - layer.flips_float32)
            yield (
                f"all layers: {report.flips_engine} flips, float32 has {report.flips_float32} (at most {most:.0f} are chance); "
                f"most of them in layer {worst.name!r}"
            )
        magnitude = layer_mean(report.layers, lambda layer: layer.magnitude)
        if report.error_engine > (limit := _error_allowed(report.error_float32, magnitude, ERROR_RATIO)):
            worst = max(report.layers, key=lambda layer: (layer.error_engine - layer.error_float32) * layer.neurons)
            yield (
                f"all layers: error {report.error_engine:.3g} before the threshold, float32 has {report.error_float32:.3g} "
                f"(at most {limit:.3g}); most of it in layer {worst.name!r}"
            )
        yield from self._output_problems(report)

    def _output_problems(self, report: Report) -> Iterator[str]:
        if self.nan_reference or math.isnan(self.run.largest) or math.isnan(self.forced.mean):
            yield f"outputs: the {'reference' if self.nan_reference else 'engine'} computes NaN"
            return
        found = report.forced_output_error_engine
        limit = _error_allowed(report.forced_output_error_float32, self.size.mean, OUTPUT_ERROR_RATIO)
        if not found <= limit:
            yield (
                f"outputs: off by {found:.3g} on average when fed with float64's spikes, float32 by "
                f"{report.forced_output_error_float32:.3g} (at most {limit:.3g}): what follows the last neurons is wrong"
            )
        if self.run.inputs_off > _flips_allowed(self.free.inputs_off, FLIP_SIGMAS):
            yield (
                f"outputs: off for {self.run.inputs_off} of {self.inputs} inputs, and for {self.free.inputs_off} when the spikes "
                "are looked at: the engine library computes something else when they are not"
            )

    @property
    def _model_inputs_allowed(self) -> float:
        return min(_flips_allowed(self.free_float32.inputs_off, FLIP_SIGMAS), self.inputs / 2)

    def _capture_problems(self) -> Iterator[str]:
        title = "the captured graph is not the model"
        if self.model_shapes:
            yield f"{title}: {self.model_shapes}"
        elif self.of_model.inputs_off > self._model_inputs_allowed:
            yield (
                f"{title}: run as it is, its outputs are others for {self.of_model.inputs_off} of {self.inputs} inputs, by up to "
                f"{self.of_model.largest:.3g} (for at most {self._model_inputs_allowed:.0f} it is chance)"
            )

    def _notes(self, report: Report) -> Iterator[str]:
        if 0 < self.of_model.inputs_off <= self._model_inputs_allowed:
            yield (
                f"the model's own outputs differ from the captured graph's for {self.of_model.inputs_off} of {self.inputs} "
                "inputs, which rounding may do"
            )
        if report.inputs < ENOUGH_INPUTS:
            yield f"the verdict is weak: {report.inputs} inputs, at least {ENOUGH_INPUTS} are needed"
        if report.approximate:
            yield f"precision {report.precision!r} approximates: it is judged by its predictions, not by its flips and error"
        low, high = USUAL_RATES
        if unusual := [layer for layer in report.layers if not low <= layer.rate <= high]:
            yield "layers that hardly fire, or fire nearly always, prove little: " + ", ".join(
                f"{layer.name} {layer.rate:.2%}" for layer in unusual
            )
        if ties := [layer for layer in report.layers if layer.ties]:
            yield "float64 itself is within 1e-9 of the threshold (ties, decided by rounding elsewhere): " + ", ".join(
                f"{layer.name} {layer.ties} times" for layer in ties
            )
        if rescaled := [name for name, tally in self.tallies.items() if tally.rescaled]:
            yield f"the engine keeps the membrane in other units, compared by the ratio of the thresholds: {', '.join(rescaled)}"
        if floats := [name for name, tally in self.tallies.items() if tally.float32.nan]:
            yield f"PyTorch's float32 computes NaN: {', '.join(floats)}"
        if self.tapping_changes:
            yield (
                f"looking at the spikes changes the engine's outputs by up to {self.tapping_error:.3g} (in chunks of "
                f"{self.tapping_changes} of {self.inputs} inputs): {report.target} then fuses the network in another way"
            )


def _first(trace: _Trace, n: int) -> _Trace:
    threshold = None if trace.threshold is None else trace.threshold[:, :n]
    return _Trace(trace.s[:, :n], trace.h[:, :n], threshold)


def _flips_allowed(flips: int, sigmas: float) -> float:
    return flips + sigmas * math.sqrt(flips + 1)


def _error_allowed(error: float, magnitude: float, ratio: float) -> float:
    return max(ratio * error, ULP * magnitude)


def _equal_predictions(found: Tensor, reference: Tensor, spec: TensorSpec, n: int) -> int:
    """Of how many inputs the predictions agree; :class:`Report` says what a prediction is."""
    if spec.batch_dim is None:
        return n if bool(((found - reference).abs() <= 1e-3 * reference.abs().max()).all()) else 0
    y, wanted = (_without_time(a, spec) for a in (found, reference))
    if y.dim() == 1 or y.shape[1] == 1:
        agree = (y - wanted).abs() <= 1e-3 * wanted.abs().max()
    else:
        chosen = wanted.gather(1, y.nan_to_num(-math.inf).argmax(1, keepdim=True))
        best = wanted.amax(1, keepdim=True)
        agree = (chosen >= best - 1e-6 * best.abs()) & ~y.isnan().any(1, keepdim=True)
    return int(agree.reshape(n, -1).all(1).sum())


def _without_time(y: Tensor, spec: TensorSpec) -> Tensor:
    assert spec.batch_dim is not None
    if spec.time_dim is None:
        return y.movedim(spec.batch_dim, 0)
    return y.mean(spec.time_dim).movedim(spec.batch_dim - (spec.time_dim < spec.batch_dim), 0)
