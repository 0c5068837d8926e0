from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn

import snngraph
from snngraph import neurons, ops, verification
from snngraph.api import build, optimize
from snngraph.errors import (
    ArtifactWriteError,
    InputCountError,
    InputRankError,
    InputShapeError,
    InputTypeError,
    VerificationError,
    WarmStateWarning,
)
from snngraph.graph import SpikingGraph
from snngraph.models.layers import StepWise
from snngraph.runtime.engine import Engine
from snngraph.testing import parse, run_with_spikes
from snngraph.types import TensorSpec
from snngraph.verification import Report, verify_engine

Array = NDArray[Any]
TARGETS = ("openvino", "onnxruntime")

CONV = """x[5, N, 2, 6, 6] ->
c = conv2d(flatten_time(x), w1[8, 2, 3, 3], b1[8], padding=1)
first = lif(split_time(c), decay=0.6, input_gain=0.4, threshold=1.0, v_reset=0.0)
d = conv2d(flatten_time(first.s), w2[8, 8, 3, 3], b2[8], padding=1)
second = lif(split_time(d), decay=0.5, threshold=0.9, reset="soft")
return linear(mean.dim(second.s, [0, 3, 4]), w3[4, 8])
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks here are tiny, and PyTorch's threads and the engines' would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compiled(graph: SpikingGraph, target: str, batch_size: int | Literal["dynamic"], *, taps: bool = False) -> Engine:
    return build(graph, target, batch_size=batch_size, threads=1, taps=taps)


def normal(graph: SpikingGraph, scale: float = 1.0, seed: int = 0) -> SpikingGraph:
    """Random weights of the size that keeps the neurons firing."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in graph.tensors().values():
        if tensor.dim():
            fan = tensor[0].numel() if tensor.dim() > 1 else 10
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / fan**0.5)
            tensor.copy_(tensor.float())
    return graph


def conv_graph() -> SpikingGraph:
    return normal(parse(CONV, batch=4), 2.0)


def frames(*shape: int, seed: int = 0) -> Array:
    return (np.random.default_rng(seed).random(shape) * (np.random.default_rng(seed + 1).random(shape) < 0.6)).astype(np.float32)


def broken(engine: Engine, change: Callable[[ModelProto], None]) -> Engine:
    """The engine, as it would be had the compiler made a mistake."""
    model = onnx.load_from_string(engine.model)
    change(model)
    return Engine(engine.manifest, model.SerializeToString())


def change_constant(name: str, change: Callable[[Array], Array]) -> Callable[[ModelProto], None]:
    def apply(model: ModelProto) -> None:
        (found,) = (value for value in model.graph.initializer if value.name == name)
        found.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(found).copy()).astype(np.float32), name))

    return apply


def change_input(model: ModelProto, make: Callable[[str, str], onnx.NodeProto], *constants: onnx.TensorProto) -> None:
    """Puts a node between the first input and all who read it."""
    name = model.graph.input[0].name
    for node in model.graph.node:
        for k, operand in enumerate(node.input):
            if operand == name:
                node.input[k] = "changed"
    model.graph.node.insert(0, make(name, "changed"))
    model.graph.initializer.extend(constants)


# -- right engines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimized", [False, True])
def test_a_right_engine_is_ok(target: str, optimized: bool) -> None:
    graph = conv_graph()
    engine = compiled(optimize(graph, target) if optimized else graph, target, 4)
    seen: list[tuple[int, int | None]] = []
    report = verify_engine(graph, engine, frames(5, 34, 2, 6, 6), progress=lambda done, total: seen.append((done, total)))
    assert report.ok, str(report)
    assert seen[0] == (4, 34)
    assert seen[-1] == (34, 34)
    assert len(seen) == 9
    assert report.inputs == report.predictions_agreeing == 34
    assert report.predictions_equal is True
    assert report.neuron_steps == 5 * 34 * 2 * 8 * 36
    assert [layer.name for layer in report.layers] == ["first", "second"]
    for layer in report.layers:
        assert 0.05 < layer.rate < 0.6
        assert 0 < layer.error_float32 < 1e-6
        assert 0 < layer.error_engine <= 2 * layer.error_float32
    assert not [n for n in report.notes if "in other units" not in n]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("batch_size", "count"), [(1, 2), (3, 4), (3, 3), (3, 1), ("dynamic", 11), ("dynamic", 1)])
@pytest.mark.parametrize("T", [1, 3])
def test_batches(target: str, batch_size: Any, count: int, T: int) -> None:
    text = f"x[{T}, N, 6] ->\ns = lif(linear(x, w[5, 6]), decay=0.5, threshold=0.5, v_reset=0.0).s\nreturn s"
    graph = normal(parse(text, batch=2), 2.0)
    x = frames(T, count, 6)
    report = verify_engine(graph, compiled(graph, target, batch_size), x)
    assert report.ok, str(report)
    assert report.inputs == count
    _, spikes = run_with_spikes(graph, [torch.from_numpy(x)])
    (layer,) = report.layers
    assert layer.rate == float((spikes["lif"] != 0).double().mean())  # samples that fill a chunk up do not count
    assert any("weak" in note for note in report.notes)


def test_the_order_of_chunks_does_not_matter() -> None:
    graph = conv_graph()
    engine = broken(compiled(graph, "onnxruntime", 4), change_constant("w1", lambda w: w * 1.05))
    x = frames(5, 10, 2, 6, 6)
    whole = verify_engine(graph, engine, x)
    parts = [x[:, :3], x[:, 3:9], x[:, 9:]]
    assert whole.layers[0].free_flips_engine > 0
    for other in (parts, (part for part in parts), [(part,) for part in parts], [torch.from_numpy(part) for part in parts]):
        assert verify_engine(graph, engine, other) == whole


def test_two_inputs_and_static_ones() -> None:
    graph = parse("x[4, N, 6], y[N, 6] ->\ns = lif(x + y, decay=0.5, threshold=0.7, v_reset=0.0).s\nreturn s", batch=2)
    x, y = frames(4, 5, 6), frames(5, 6, seed=5)
    engine = compiled(graph, "onnxruntime", 2)
    report = verify_engine(graph, engine, (x, y))
    assert report.ok, str(report)
    assert report.inputs == 5
    assert verify_engine(graph, engine, [(x[:, :1], y[:1]), (x[:, 1:], y[1:])]) == report
    with pytest.raises(VerificationError, match="different numbers of samples"):
        verify_engine(graph, engine, (x, y[:4]))


@pytest.mark.parametrize("target", TARGETS)
def test_integer_inputs_leave_no_room_for_error(target: str) -> None:
    graph = parse("x[4, N, 6] ->\ns = lif(x, decay=0.5, threshold=1.5, v_reset=0.0).s\nreturn s", batch=2)
    x = np.random.default_rng(0).integers(0, 3, (4, 32, 6))
    report = verify_engine(graph, compiled(graph, target, 2), x)
    assert report.ok, str(report)
    assert report.error_engine == report.error_float32 == report.output_error_engine == 0
    assert any("ties" in note for note in report.notes)


NEURONS = (
    'decay=0.7, threshold=0.8, reset="none"',
    'decay=0.7, threshold=0.8, reset="soft", delay="with"',
    "decay=0.7, threshold=0.6, v_reset=0.1, level=0.7",
    'decay=0.9, threshold=0.4, reset="soft", emit="count"',
    'decay=0.9, threshold=0.7, reset="soft", emit="signed"',
    'decay=0.8, threshold=0.8, v_reset=0.0, syn_decay=0.6, fire=">"',
)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("neuron", NEURONS)
def test_every_kind_of_neuron(target: str, neuron: str) -> None:
    text = f"x[4, N, 6] ->\na = lif(linear(x, w1[5, 6]), {neuron})\nb = lif(linear(a.s, w2[4, 5]), {neuron})\nreturn b.s, b.v"
    graph = normal(parse(text, batch=8), 2.0)
    report = verify_engine(graph, compiled(graph, target, 8), frames(4, 32, 6))
    assert report.ok, str(report)
    assert report.flips_engine == 0
    assert all(layer.rate > 0.01 for layer in report.layers)


@pytest.mark.parametrize("target", TARGETS)
def test_recurrent_steps(target: str) -> None:
    text = """x[3, N, 4] ->
n0 = lif_step(select(x, 0, 0), decay=0.6, threshold=0.5, reset="soft")
n1 = lif_step(select(x, 0, 1) + linear(n0.s, u[4, 4]), v=n0.v, decay=0.6, threshold=0.5, reset="soft")
n2 = lif_step(select(x, 0, 2) + linear(n1.s, u[4, 4]), v=n1.v, decay=0.6, threshold=0.5, reset="soft")
return n2.s
"""
    graph = normal(parse(text, batch=4))
    for node in graph.nodes:
        if node.target is torch.ops.snn.lif_step.default:
            node.meta["neuron"] = "cell"
    engine = compiled(graph, target, 4)
    x = frames(3, 32, 4)
    report = verify_engine(graph, engine, x)
    assert report.ok, str(report)
    assert [layer.name for layer in report.layers] == ["cell"]
    wrong = verify_engine(graph, broken(engine, change_constant("u", lambda u: -u)), x)
    assert "'cell'" in wrong.problems[0]


@pytest.mark.parametrize("target", TARGETS)
def test_long_sums_in_another_order_are_float32_too(target: str) -> None:
    """OpenVINO keeps one running sum, as PyTorch does channels-last: twice the error of PyTorch's usual blocked sums."""
    text = "x[3, N, 1024] ->\ns = lif(linear(x, w[32, 1024], b[32]), decay=0.5, threshold=0.7, v_reset=0.0).s\nreturn s"
    graph = normal(parse(text, batch=8), 2.0)
    report = verify_engine(graph, compiled(graph, target, 8), (frames(3, 32, 1024) > 0.7).astype(np.float32))
    assert report.ok, str(report)
    conv = "x[3, N, 64, 6, 6] ->\nc = conv2d(flatten_time(x), w[64, 64, 3, 3], padding=1)\n"
    graph = normal(parse(conv + "s = lif(split_time(c), decay=0.5, threshold=0.7, v_reset=0.0).s\nreturn s", batch=8), 2.0)
    report = verify_engine(graph, compiled(graph, target, 8), (frames(3, 32, 64, 6, 6) > 0.7).astype(np.float32))
    assert report.ok, str(report)


def test_other_units_are_told_apart_from_errors() -> None:
    """A scale folded into the threshold: the membrane of the engine is 1/0.3 of the model's."""
    before = normal(
        parse("x[4, N, 6] ->\ns = lif(linear(x, w[5, 6]) * 0.3, decay=0.5, threshold=0.2, v_reset=0.0).s\nreturn s", batch=8), 2
    )
    after = parse(
        "x[4, N, 6] ->\ns = lif(linear(x, w[5, 6]), decay=0.5, threshold=0.6666666666666667, v_reset=0.0).s\nreturn s", batch=8
    )
    weight = next(t for t in before.tensors().values() if t.dim() == 2)
    next(t for t in after.tensors().values() if t.dim() == 2).copy_(weight)
    report = verify_engine(before, compiled(after, "onnxruntime", 8), frames(4, 32, 6))
    assert report.ok, str(report)
    assert any("other units" in note for note in report.notes)


def test_an_engine_with_taps_and_one_with_a_computed_threshold() -> None:
    text = "x[4, N, 6], a[N, 1] ->\ns = lif(x, decay=0.5, threshold=sigmoid(a), v_reset=0.0).s\nreturn s"
    graph = parse(text, batch=4)
    report = verify_engine(graph, compiled(graph, "onnxruntime", 4, taps=True), (frames(4, 32, 6), frames(32, 1)))
    assert report.ok, str(report)
    assert not any("units" in note for note in report.notes)


# -- wrong engines -------------------------------------------------------------------------------------------------------------


def to_bfloat16(a: Array) -> Array:
    return torch.from_numpy(a).bfloat16().float().numpy()


def nudge_one(a: Array) -> Array:
    a.flat[0] += 1e-3
    return a


def reverse_time(model: ModelProto) -> None:
    index = numpy_helper.from_array(np.array([4, 3, 2, 1, 0]), "backwards")
    change_input(model, lambda old, new: helper.make_node("Gather", [old, "backwards"], [new], name="mixup", axis=0), index)


def raise_threshold(model: ModelProto) -> None:
    """Of the second layer alone."""
    layer = [node for node in model.graph.node if node.op_type == "GreaterOrEqual" and node.input[0].startswith("second")]
    assert len(layer) == 5
    for node in layer:
        node.input[1] = "higher"
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.91) * np.ones((), np.float32), "higher"))


WRONG = {
    "a threshold": (raise_threshold, "'second'"),
    "weights in bfloat16": (change_constant("w2", to_bfloat16), "'second'"),
    "one weight": (change_constant("w1", nudge_one), "'first'"),
    "time runs backwards": (reverse_time, "'first'"),
    "the readout": (change_constant("w3", nudge_one), "outputs"),
    "NaN": (change_constant("b2", lambda b: b * np.nan), "'second'"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_engine_is_found_and_the_layer_named(target: str, mistake: str) -> None:
    change, place = WRONG[mistake]
    graph = conv_graph()
    engine = broken(compiled(graph, target, 8), change)
    report = verify_engine(graph, engine, frames(5, 32, 2, 6, 6))
    assert not report.ok
    assert all(place in text or text.startswith("all layers") or mistake == "NaN" for text in report.problems), report.problems
    assert place in report.problems[0]
    assert "NOT" in str(report)
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("target", TARGETS)
def test_ties_decided_the_other_way_are_found(target: str) -> None:
    def strictly(model: ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "GreaterOrEqual":
                node.op_type = "Greater"

    graph = parse("x[4, N, 6] ->\ns = lif(x, decay=0.5, threshold=1.5, v_reset=0.0).s\nreturn s", batch=8)
    x = np.random.default_rng(0).integers(0, 7, (4, 32, 6)) / 4
    report = verify_engine(graph, broken(compiled(graph, target, 8), strictly), x)
    assert not report.ok
    assert "'lif'" in report.problems[0]
    assert report.flips_float32 == 0
    assert report.layers[0].ties >= 50


def test_nan_in_the_model_is_no_success() -> None:
    graph = parse("x[4, N, 6] ->\ns = lif(x, decay=0.5, threshold=1.5, v_reset=0.0).s\nreturn s", batch=8)
    x = frames(4, 32, 6)
    x[2, 3, 1] = np.nan
    report = verify_engine(graph, compiled(graph, "onnxruntime", 8), x)
    assert not report.ok
    assert "reference computes NaN" in report.problems[0]


# -- by hand -------------------------------------------------------------------------------------------------------------------

TOY = """x[4, N, 3] ->
a = lif(x, decay=1.0, threshold=1.0, v_reset=0.0)
b = lif(a.s, decay=0.0, threshold=0.5, v_reset=0.0)
return b.s
"""


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("batch_size", [1, 2])
def test_one_wrong_spike_counted_by_hand(target: str, batch_size: int) -> None:
    """x is 0.625 everywhere: float64 charges 0.625, 1.25 (fires), 0.625, 1.25 (fires). The engine sees 1.125 in the first step of
    neuron 2 of the second sample of a chunk, so there it fires at 0 and, reset, at 2: all of its four steps are flips.
    """
    extra = np.zeros((4, batch_size, 3), np.float32)
    extra[0, -1, 2] = 0.5

    def add(model: ModelProto) -> None:
        change_input(
            model,
            lambda old, new: helper.make_node("Add", [old, "extra"], [new], name="mixup"),
            numpy_helper.from_array(extra, "extra"),
        )

    graph = parse(TOY, batch=2)
    engine = broken(compiled(graph, target, batch_size), add)
    report = verify_engine(graph, engine, np.full((4, 2, 3), 0.625, np.float32))
    first, second = report.layers
    wrong = 2 // batch_size  # one in each chunk
    sample = batch_size - 1
    assert (first.neurons, first.rate) == (3, 0.5)
    assert (first.flips_engine, first.flips_float32) == (4 * wrong, 0)
    assert first.error_engine == pytest.approx(0.5 * wrong / (24 - 3 * wrong))  # of such a neuron the first step alone counts
    assert first.error_float32 == 0
    assert (first.free_flips_engine, first.free_flips_float32) == (4 * wrong, 0)
    assert first.first_divergence == (0, sample * 3 + 2)
    assert (second.flips_engine, second.error_engine) == (0, 0)  # teacher-forced it does what it should
    assert second.free_flips_engine == 4 * wrong
    assert second.first_divergence == (0, sample * 3 + 2)
    assert report.output_error_engine == 1
    assert report.output_error_float32 == 0
    assert report.flips_engine == 4 * wrong
    assert not report.ok


def test_the_first_divergence_is_the_earliest_step_of_all_inputs() -> None:
    extra = np.zeros((4, 2, 3), np.float32)
    extra[3, 0, 1] = extra[2, 1, 0] = -1

    def add(model: ModelProto) -> None:
        change_input(
            model,
            lambda old, new: helper.make_node("Add", [old, "extra"], [new], name="mixup"),
            numpy_helper.from_array(extra, "extra"),
        )

    graph = parse(TOY.replace("decay=1.0", "decay=0.0"), batch=2)
    engine = broken(compiled(graph, "onnxruntime", 2), add)
    report = verify_engine(graph, engine, np.full((4, 4, 3), 1.5, np.float32))
    first = report.layers[0]
    assert first.flips_engine == first.free_flips_engine == 4
    assert first.first_divergence == (2, 3)
    assert first.error_engine == pytest.approx(4 / (48 - 2))  # two neurons flip one step before the end


@pytest.mark.parametrize(
    ("shape", "time", "found", "wanted", "equal"),
    [
        ("[2, N, 3]", 0, [[[1, 0, 0]], [[0, 1, 1]]], [[[0, 2, 0]], [[0, 0, 1]]], 0),
        ("[2, N, 3]", 0, [[[1, 0, 0]], [[0, 2, 1]]], [[[0, 2, 0]], [[0, 0, 1]]], 1),
        ("[N, 3]", None, [[0, 1, 0], [1, 0, 0]], [[0, 1, 1], [0, 0, 1]], 1),  # a tie in the reference: either is right
        ("[N, 3]", None, [[0, np.nan, 0], [1, 0, 0]], [[0, 1, 1], [2, 0, 1]], 1),
        ("[N, 1]", None, [[1.0], [2.0]], [[1.0005], [2.5]], 1),
        ("[N]", None, [1.0, 2.0], [1.0005, 2.5], 1),
        ("[N, 2, 2]", None, [[[1, 0], [0, 1]], [[1, 0], [0, 0]]], [[[1, 0], [0, 1]], [[1, 0], [0, 1]]], 1),
    ],
)
def test_predictions(shape: str, time: int | None, found: Any, wanted: Any, equal: int) -> None:
    batch = shape.strip("[]").split(", ").index("N")
    spec = TensorSpec("y", tuple(np.shape(wanted)), "float32", time, batch)
    y, reference = torch.tensor(found).double(), torch.tensor(wanted).double()
    assert verification._equal_predictions(y, reference, spec, y.shape[batch]) == equal


# -- a model -------------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.norm.running_mean, self.norm.running_var = torch.randn(6) * 0.1, torch.rand(6) + 0.2
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps, batch = x.shape[:2]
        y = self.norm(self.conv(x.flatten(0, 1)))
        s = ops.lif(y.reshape(steps, batch, *y.shape[1:]), decay=0.5, threshold=0.5, v_reset=0.0).s
        out: Tensor = self.head(s.mean((0, 3, 4)))
        return out


def test_a_model_is_traced() -> None:
    from snngraph.api import convert

    model, x = Net().eval(), frames(4, 33, 2, 5, 5)
    engine = convert(model, torch.from_numpy(x[:, :4]), target="openvino", threads=1)
    report = verify_engine(model, engine, torch.from_numpy(x))
    assert report.ok, str(report)
    assert report.name == "Net"
    assert len(report.layers) == 1
    with torch.no_grad():
        model.norm.bias.add_(0.01)
    wrong = verify_engine(model, engine, x)
    assert not wrong.ok
    assert repr(wrong.layers[0].name) in wrong.problems[0]


def test_a_graph_that_is_not_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph.api import convert
    from snngraph.frontends.capture import trace

    model, x = Net().eval(), frames(4, 33, 2, 5, 5)
    example = torch.from_numpy(x[:, :4])
    engine, graph = convert(model, example, target="onnxruntime", threads=1), trace(model, example)
    monkeypatch.setattr(verification, "_trace", lambda *_: graph)  # as an error of the capture would have it
    assert verify_engine(model, engine, x).ok
    with torch.no_grad():
        model.head.weight.mul_(1.01)
    assert verify_engine(graph, engine, x).ok
    report = verify_engine(model, engine, x)
    assert [text.partition(":")[0] for text in report.problems] == ["the captured graph is not the model"]
    assert "for 33 of 33 inputs" in report.problems[0]
    model.head = nn.Linear(6, 2)
    assert "outputs of shape [[4, 2]], the graph [[4, 3]]" in verify_engine(model, engine, x).problems[0]
    model.head = nn.Linear(5, 3)
    with pytest.raises(VerificationError, match=r"the model itself fails on inputs of shape \[4, 4, 2, 5, 5\]"):
        verify_engine(model, engine, x)


def test_a_model_that_was_stepped_is_verified_from_the_reset_state() -> None:
    from snngraph.api import convert
    from snngraph.neurons import LIF

    class Stepping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.lif = nn.Linear(6, 5), LIF(threshold=0.3, step_mode="s")

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.lif(self.layer(step)) for step in x]).mean(0)

    model, x = Stepping().eval(), frames(4, 33, 6)
    engine = convert(model, torch.from_numpy(x[:, :4]), target="onnxruntime", threads=1)
    with torch.no_grad():
        model(torch.from_numpy(x[:, :3]))
    before = model.lif.v
    with pytest.warns(WarmStateWarning):
        report = verify_engine(model, engine, x)
    assert report.ok, str(report)
    assert model.lif.v is before


@pytest.mark.parametrize("order", ["time first", "batch first"])
def test_samples_whose_rows_are_merged_with_time(order: str) -> None:
    """One row of one sample is wrong: found if that sample counts, ignored if it only fills the last chunk up."""
    text = "x[5, N, 6] ->\ns = lif(linear(x, w[3, 6]), decay=0.5, threshold=0.5, v_reset=0.0).s\n"
    last = "s" if order == "time first" else "transpose.int(s, 0, 1)"
    graph = normal(parse(f"{text}return reshape(linear({last}, u[4, 3]), [-1, 4])", batch=4), 2.0)
    engine = compiled(graph, "onnxruntime", 4)
    assert engine.outputs[0].shape == (20, 4)

    def wrong_at(step: int, sample: int) -> Callable[[ModelProto], None]:
        def change(model: ModelProto) -> None:
            error = np.zeros((20, 4), np.float32)
            error[step * 4 + sample if order == "time first" else sample * 5 + step] = 10
            name = model.graph.output[0].name
            for node in model.graph.node:
                node.output[:] = ["right" if output == name else output for output in node.output]
            model.graph.node.append(helper.make_node("Add", ["right", "error"], [name]))
            model.graph.initializer.append(numpy_helper.from_array(error, "error"))

        return change

    x = frames(5, 3, 6)
    assert verify_engine(graph, engine, x).predictions_agreeing == 3
    assert verify_engine(graph, broken(engine, wrong_at(4, 3)), x).output_error_engine < 1e-3
    report = verify_engine(graph, broken(engine, wrong_at(4, 1)), x)
    assert report.output_error_engine == pytest.approx(10, abs=1e-3)
    assert not report.ok


# -- what does not fit ---------------------------------------------------------------------------------------------------------


def test_layers_that_do_not_match() -> None:
    engine = compiled(conv_graph(), "onnxruntime", 4)
    other = parse(CONV.replace("second", "third"), batch=4)
    with pytest.raises(VerificationError, match=r"Model: first: 288, third: 288\. Engine: first: 288, second: 288"):
        verify_engine(other, engine, frames(5, 4, 2, 6, 6))
    other = parse(CONV.replace("w3[4, 8]", "w3[5, 8]"), batch=4)
    with pytest.raises(VerificationError, match="different outputs"):
        verify_engine(other, engine, frames(5, 4, 2, 6, 6))


@pytest.mark.parametrize(
    ("inputs", "error", "text"),
    [
        ([], VerificationError, "no inputs"),
        (np.zeros((5, 0, 2, 6, 6), np.float32), VerificationError, "no inputs"),
        (3.0, InputTypeError, "expected an array"),
        ([3.0], InputTypeError, "got float"),
        (np.zeros((5, 2, 6, 6), np.float32), InputRankError, "expected 5"),
        (np.zeros((5, 4, 2, 6, 7), np.float32), InputShapeError, "7"),
        ([(np.zeros((5, 4, 2, 6, 6), np.float32), np.zeros(4))], InputCountError, "pass the inputs alone"),
    ],
)
def test_inputs_that_do_not_fit(inputs: Any, error: type[Exception], text: str) -> None:
    graph = conv_graph()
    with pytest.raises(error, match=text):
        verify_engine(graph, compiled(graph, "onnxruntime", 4), inputs)


# -- the report ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    graph = conv_graph()
    engine = broken(compiled(graph, "onnxruntime", 4), change_constant("w1", lambda w: w * 1.05))
    return verify_engine(graph, engine, frames(5, 6, 2, 6, 6))


def test_a_report_as_text(report: Report) -> None:
    lines = str(report).splitlines()
    assert lines[0] == "parsed: onnxruntime fp32 is NOT right"
    assert max(map(len, lines)) <= 132
    assert any("first" in line and str(report.layers[0].flips_engine) in line for line in lines)
    assert any(line.startswith("problem: layer 'first'") for line in lines)
    assert any(line.startswith("note: the verdict is weak: 6 inputs") for line in lines)


def test_a_report_is_saved(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == json.loads(json.dumps(report.to_dict()))
    assert found["ok"] is False
    assert found["layers"][0]["flips_engine"] == report.layers[0].flips_engine
    assert found["flips_engine"] == report.flips_engine
    report.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "layer &#x27;first&#x27;" in page
    assert str(report.layers[0].free_flips_engine) in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    before = os.umask(0o027)
    try:
        report.save(tmp_path / "report.json")
    finally:
        os.umask(before)
    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o640
    with pytest.raises(VerificationError, match=r"\.json or \.html"):
        report.save(tmp_path / "report.txt")


def test_a_failed_save_leaves_what_was_there(report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.json").write_text("old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(ArtifactWriteError, match="disk full"):
        report.save(tmp_path / "report.json")
    with pytest.raises(ArtifactWriteError, match="does not exist"):
        report.save(tmp_path / "missing" / "report.json")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_summary_fits_a_manifest(report: Report) -> None:
    summary = report.summary()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["inputs"] == 6
    assert summary["flips_engine"] == sum(layer.flips_engine for layer in report.layers)


@pytest.mark.parametrize(("flips", "sigmas", "most"), [(0, 3, 3), (8, 3, 17), (0, 6, 6)])
def test_flips_allowed(flips: int, sigmas: float, most: float) -> None:
    assert verification._flips_allowed(flips, sigmas) == most


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_a_wide_linear_layer_of_few_rows_is_right(target: str) -> None:
    """PyTorch adds few rows in another order than many: its float32 is the worse of them, and engines may be as that."""
    torch.manual_seed(0)
    neuron = neurons.Neuron(decay=0.3, threshold=0.3, v_reset=0.3, v_init=0.0)
    model = torch.nn.Sequential(StepWise(torch.nn.Linear(1152, 64)), neuron).eval()
    x = (torch.rand(8, 32, 1152) < 0.15).float()
    engine = snngraph.convert(model, x[:, :1].contiguous(), target=target, threads=1)
    report = snngraph.verify(model, engine, x)
    assert report.ok, report.problems
