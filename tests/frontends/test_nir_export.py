"""Networks as NIR: what is written, that it is read back as the same network, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snngraph
from snngraph import neurons, ops
from snngraph.errors import (
    ArtifactExistsError,
    ArtifactWriteError,
    NirDiscretisationError,
    NirExportError,
    NirGraphError,
    NirVersionError,
)
from snngraph.graph import SpikingGraph
from snngraph.models.layers import StepWise
from snngraph.testing import parse, random_inputs, run_with_spikes

nir = pytest.importorskip("nir", reason="NIR is not installed")

T = 6


def assert_same(before: SpikingGraph, after: SpikingGraph, *, tolerance: float = 0.0) -> None:
    """Equal spikes and outputs in float64."""
    inputs = random_inputs(before, 3)
    (wanted, spikes), (found, others) = run_with_spikes(before, inputs), run_with_spikes(after, inputs)
    for name, layer in spikes.items():
        assert torch.equal(layer != 0, others[name][: len(layer)] != 0), name
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=tolerance)


def through_a_file(graph: SpikingGraph, folder: Path, **options: Any) -> SpikingGraph:
    snngraph.to_nir(graph, folder / "net.nir", **{"dt": 1e-3, **options})
    return snngraph.from_nir(folder / "net.nir")


# -- what is written -----------------------------------------------------------------------------------------------------------


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    norm.running_mean, norm.running_var = torch.randn(4) * 0.1, torch.rand(4) + 0.5
    return nn.Sequential(
        StepWise(nn.Conv2d(2, 4, (3, 5), padding=(1, 2), bias=False), norm),
        neurons.LIF(tau=3.0, threshold=0.5),
        StepWise(nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 5, bias=False)),
        neurons.IF(threshold=0.25, fire=">", v_init=0.1),
    ).eval()


def test_a_convolutional_network(tmp_path: Path) -> None:
    """A model, captured on the way; its nodes are named as its modules."""
    example = torch.rand(T, 1, 2, 8, 8)
    path = tmp_path / "net.nir"
    written = snngraph.to_nir(convolutional(), path, dt=1e-4, example=example)
    kinds = {name: type(node).__name__ for name, node in written.nodes.items()}
    assert kinds == {
        "input": "Input",
        "0.0": "Conv2d",
        "1": "LIF",
        "2.0": "AvgPool2d",
        "2.1": "Conv2d",
        "2.2": "Flatten",
        "2.3": "Linear",
        "3": "IF",
        "output": "Output",
    }
    lif = written.nodes["1"]
    assert lif.tau.shape == (4, 8, 8)
    np.testing.assert_allclose([lif.tau.flat[0], lif.r.flat[0], lif.v_threshold.flat[0]], [3e-4, 1.0, 0.5])
    np.testing.assert_allclose(written.nodes["3"].r, 1e4)
    assert written.nodes["2.3"].weight.dtype == np.float32  # nothing is lost
    assert_same(snngraph.trace(convolutional(), example), snngraph.from_nir(path), tolerance=1e-12)


def test_other_tools_can_read_it(tmp_path: Path) -> None:
    """nir's own type check included, for kernels that are square."""
    graph = parse("x[6, N, 2, 6, 6] -> a = lif(split_time(conv2d(flatten_time(x), w[3, 2, 3, 3])), decay=0.5)\n a.s")
    snngraph.to_nir(graph, tmp_path / "net.nir", dt=1e-4)
    found = nir.read(tmp_path / "net.nir")
    assert found.nodes["conv"].output_type["output"].tolist() == [3, 4, 4]


NEURONS = {
    "lif": "decay=0.75, input_gain=0.3, bias=0.05, v_reset=-0.25, v=0.125, threshold=0.3",
    "greater": "decay=0.75, fire='>'",
    "if": "decay=1.0, input_gain=0.7",
    "its own parameters": "decay=d[5], threshold=0.5, input_gain=g[5], v_reset=r[5], v=v0[5]",
    "synapse": "decay=0.75, syn_decay=0.5, syn_gain=0.8, input_gain=0.9",
    "gain": "decay=0.75, gain=g[5], input_gain=0.9, syn_decay=0.25",
    "soft": "decay=0.75, reset='soft'",
    "soft, another amount": "decay=0.75, reset='soft', reset_amount=0.7",
    "delayed": "decay=0.75, reset='soft', delay='with', fire='>'",
    "delayed, hard": "decay=0.75, delay='before', v_reset=-0.1",
    "both": "decay=0.75, reset='soft', delay='both'",
    "counts": "decay=0.75, reset='soft', emit='count', threshold=0.5",
    "floor": "decay=0.75, floor=-0.5",
    "level": "decay=0.75, level=0.5",
    "threshold": "decay=0.0, reset='none', threshold=0.25",
}
SAFE = ("lif", "greater", "if", "its own parameters", "synapse", "gain", "level", "threshold")


def neuron_graph(name: str) -> SpikingGraph:
    graph = parse(f"x[6, N, 5] -> a = lif(linear(x, w[5, 5]), {NEURONS[name]})\n return linear(a.s, u[5, 5])")
    with torch.no_grad():
        for key, tensor in graph.tensors().items():
            if key == "d":
                tensor.abs_()
            elif key in ("w", "u"):
                tensor.mul_(4)
    return graph


@pytest.mark.parametrize("integrator", ["euler", "exponential"])
@pytest.mark.parametrize("name", NEURONS)
def test_a_neuron_is_the_same_again(name: str, integrator: str, tmp_path: Path) -> None:
    """Bit for bit, from a file; without the record, NIR's equations give the same neuron within rounding."""
    graph = neuron_graph(name)
    allow = () if name in SAFE else ("soft reset", "delayed reset", "counts", "floor")
    again = through_a_file(graph, tmp_path, allow=allow, integrator=integrator)
    assert_same(graph, again)
    if name in SAFE:
        bare = nir.read(tmp_path / "net.nir", type_check=False)
        bare.metadata = {}
        for node in bare.nodes.values():
            node.metadata = {}
        (layer,) = graph.neurons
        fire = str(layer.nodes[0].kwargs.get("fire", ">="))
        start = graph.constant(layer.nodes[0].args[1])
        assert start is not None
        if start.dim() == 0:
            read = snngraph.from_nir(
                bare, time_steps=6, dt=1e-3, integrator=integrator, fire=fire, reset="hard", v_init=float(start)
            )
            assert_same(graph, read, tolerance=1e-9)


def test_the_potential_of_a_neuron_that_never_resets() -> None:
    for text, kind in (("decay=0.75, input_gain=0.5", "LI"), ("decay=1.0", "I"), ("decay=0.75, syn_decay=0.5", "CubaLI")):
        graph = parse(f"x[6, N, 5] -> a = lif(x, {text}, reset='none', with_h=True)\n a.h")
        written = snngraph.to_nir(graph, dt=1.0)
        assert type(written.nodes["a"]).__name__ == kind
        assert_same_outputs(graph, snngraph.from_nir(written))


def assert_same_outputs(before: SpikingGraph, after: SpikingGraph) -> None:
    inputs = random_inputs(before, 3)
    for a, b in zip(run_with_spikes(before, inputs)[0], run_with_spikes(after, inputs)[0], strict=True):
        assert torch.equal(a, b)


STRUCTURES = {
    "residual": "y = linear(x, a[4, 4]); s = lif(y + x, decay=0.5); return linear(s.s, b[4, 4]) + s.s + x",
    "twice": "s = lif(x, decay=0.5); return s.s + s.s",
    "difference": "s = lif(x - linear(x, a[4, 4]), decay=0.5); s.s",
    "scales": "s = lif(x * 0.5, decay=0.5); return s.s * g[4] / 3.0",
    "outputs": "s = lif(x, decay=0.5); u = lif(linear(s.s, a[3, 4]), decay=0.5); return (u.s, s.s, x)",
    "late": "z = constant_pad_nd(slice(x, 0, 0, 4), [0, 0, 0, 0, 2, 0], 0.0); s = lif(z + x, decay=0.5); s.s",
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(name: str, tmp_path: Path) -> None:
    graph = parse(f"x[6, N, 4] -> {STRUCTURES[name]}")
    assert_same(graph, through_a_file(graph, tmp_path), tolerance=1e-12)


def test_batch_first_is_read_back_time_first() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.lif = nn.Linear(5, 4), neurons.LIF(threshold=0.1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.lif(self.fc(x.transpose(0, 1))).transpose(0, 1)
            return y

    torch.manual_seed(0)
    graph = snngraph.trace(Net().eval(), torch.rand(3, T, 5), time_dim=1)
    again = snngraph.from_nir(snngraph.to_nir(graph, dt=1.0))
    x = torch.randn(3, T, 5)
    assert torch.equal(again(x.transpose(0, 1)), graph(x).transpose(0, 1))
    assert again.inputs[0].time_dim == 0


def test_an_average_over_the_image_is_a_pool() -> None:
    graph = parse("x[6, N, 3, 4, 4] -> s = lif(split_time(mean(flatten_time(x), [2, 3])), decay=0.5); s.s")
    written = snngraph.to_nir(graph, dt=1.0)
    assert sorted(type(n).__name__ for n in written.nodes.values()) == ["AvgPool2d", "Flatten", "Input", "LIF", "Output"]
    assert_same(graph, snngraph.from_nir(written))


# -- recurrence ----------------------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Two layers; the second feeds the first, and itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.ab, self.ba = nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 4)
        self.a, self.b = neurons.LIF(threshold=0.1, step_mode="s"), neurons.IF(threshold=0.3, step_mode="s")
        self.self_gain = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def forward(self, x: Tensor) -> Tensor:
        s, out = x[0, :, :3] * 0.0, []
        for frame in x:
            a = self.a(self.up(frame) + self.ba(s))
            s = self.b(self.ab(a) + s * self.self_gain)
            out.append(s)
        neurons.reset(self)
        return torch.stack(out)


def test_a_recurrent_network(tmp_path: Path) -> None:
    """T copies of a step are one; the connections that go back are marked, and run another number of steps as well."""
    graph = snngraph.trace(Recurrent().eval(), torch.rand(4, 2, 5))
    written = snngraph.to_nir(graph, tmp_path / "net.nir", dt=1e-3)
    assert len(written.nodes) == 8
    assert {edge for edge in written.edges if edge[0] in ("ba", "scale")} == {("ba", "a"), ("scale", "b")}
    again = snngraph.from_nir(tmp_path / "net.nir")
    assert_same(graph, again, tolerance=1e-12)
    longer = snngraph.trace(Recurrent().eval(), torch.rand(5, 2, 5))
    assert_same(longer, snngraph.from_nir(tmp_path / "net.nir", time_steps=5), tolerance=1e-12)
    twice = snngraph.to_nir(again, dt=1e-3)
    assert set(twice.nodes) == set(written.nodes)
    assert sorted(twice.edges) == sorted(written.edges)


def test_steps_that_differ_are_refused() -> None:
    text = """x[4, N, 3] ->
    a = lif_step(linear(select(x, 0, 0), w[3, 3]), decay=0.5)
    b = lif_step(linear(select(x, 0, 1), w[3, 3]), decay=0.5, v=a.v)
    c = lif_step(linear(select(x, 0, 2), {0}[3, 3]), decay={1}, v=b.v)
    d = lif_step(linear(select(x, 0, 3), w[3, 3]), decay=0.5, v=c.v)
    stack([a.s, b.s, c.s, d.s])"""
    snngraph.to_nir(parse(text.format("w", 0.5)), dt=1.0)
    with pytest.raises(NirExportError, match="step 2 of"):
        snngraph.to_nir(parse(text.format("u", 0.5)), dt=1.0)
    with pytest.raises(NirExportError, match="unlike the first"):
        snngraph.to_nir(parse(text.format("w", 0.25)), dt=1.0)


# -- what is refused -----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, str]] = {
    "gate": ("x[4, N, 3] -> s = lif(x, decay=0.5); return s.s * sigmoid(linear(x, w[3, 3]))", "no NIR node does this"),
    "product": ("x[4, N, 3] -> s = lif(x, decay=0.5); return s.s * x", "attention gate"),
    "gain over time": ("x[4, N, 3] -> s = lif(x, decay=0.5, gain=g[4, 1, 3]); s.s", "differs between steps"),
    "computed threshold": ("x[4, N, 3] -> s = lif(x, decay=0.5, threshold=select(x, 0, 0)); s.s", "threshold is computed"),
    "max pooling": ("x[4, N, 3, 4, 4] -> max_pool2d(flatten_time(x), 2)", "no NIR node does this"),
    "mean over time": ("x[4, N, 3] -> s = lif(x, decay=0.5); mean(s.s, 0)", "over time"),
    "constant added": ("x[4, N, 3] -> s = lif(x + c[3], decay=0.5); s.s", "constants within Affine"),
    "soft reset": ("x[4, N, 3] -> s = lif(x, decay=0.5, reset='soft'); s.s", "allow=\\('soft reset',\\)"),
    "delayed reset": ("x[4, N, 3] -> s = lif(x, decay=0.5, delay='before'); s.s", "delayed reset"),
    "counts": ("x[4, N, 3] -> s = lif(x, decay=0.5, emit='count'); s.s", "counts"),
    "signed": ("x[4, N, 3] -> s = lif(x, decay=0.5, emit='signed'); s.s", "signed"),
    "floor": ("x[4, N, 3] -> s = lif(x, decay=0.5, floor=-1.0); s.s", "floor"),
    "growing": ("x[4, N, 3] -> s = lif(x, decay=1.5); s.s", "decay is not in"),
    "bias without a leak": ("x[4, N, 3] -> s = lif(x, decay=1.0, bias=0.1); s.s", "IF has none"),
    "synapse without a leak": ("x[4, N, 3] -> s = lif(x, decay=1.0, syn_decay=0.5); s.s", "does not leak"),
    "no reset": ("x[4, N, 3] -> s = lif(x, decay=0.5, reset='none'); s.s", "no reset"),
    "potential of a spiking neuron": (
        "x[4, N, 3] -> s = lif(x, decay=0.5, with_h=True); return (s.s, s.h)",
        "besides its spikes",
    ),
    "potential that resets": ("x[4, N, 3] -> s = lif(x, decay=0.5, with_h=True); s.h", "it resets"),
    "last state": ("x[4, N, 3] -> s = lif(x, decay=0.5); return (s.s, s.v)", "after the last step"),
    "static input": ("x[N, 3], T=4 -> linear(x, w[2, 3])", "static"),
    "matrix": ("x[4, N, 3, 5] -> linear(x, w[2, 5])", "takes vectors"),
    "reshape": ("x[4, N, 6] -> reshape(x, [4, -1, 2, 3])", "does not make"),
    "flat output": ("x[4, N, 6] -> flatten_time(x)", "not \\[T, N, ...\\]"),
    "one step": ("x[4, N, 6] -> select(x, 0, 3)", "not \\[T, N, ...\\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    text, message = REFUSED[name]
    with pytest.raises(NirExportError, match=message):
        snngraph.to_nir(parse(text), dt=1.0)


def test_a_refusal_names_module_and_line() -> None:
    class Gate(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    net = nn.Sequential(neurons.LIF(), Gate()).eval()
    with pytest.raises(NirExportError, match=r"in module '1' .*test_nir_export\.py:\d+"):
        snngraph.to_nir(net, dt=1.0, example=torch.rand(T, 2, 3))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dt": 0.0}, NirDiscretisationError, "positive number"),
        ({"dt": 1.0, "integrator": "midpoint"}, NirDiscretisationError, "'euler'"),
        ({"dt": 1.0, "allow": ["magic"]}, NirExportError, "'soft reset'"),
        ({"dt": 1.0, "example": torch.rand(2)}, NirExportError, "belong to a model"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        snngraph.to_nir(parse("x[4, N, 3] -> s = lif(x, decay=0.5); s.s"), **options)


def test_a_model_needs_an_example() -> None:
    with pytest.raises(NirExportError, match="give example"):
        snngraph.to_nir(nn.Identity(), dt=1.0)


def test_a_fixed_batch_is_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ops.lif(x.reshape(T, 2, 3)).s

    graph = snngraph.trace(Net().eval(), torch.rand(T, 2, 3))
    with pytest.raises(NirExportError, match=r"batch \d only"):
        snngraph.to_nir(graph, dt=1.0)


# -- files and records ---------------------------------------------------------------------------------------------------------

SIMPLE = "x[6, N, 4] -> a = lif(linear(x, w[4, 4]), decay=0.75)\n a.s"


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.nir"
    graph = parse(SIMPLE)
    snngraph.to_nir(graph, path, dt=1.0)
    before = path.read_bytes()
    with pytest.raises(ArtifactExistsError):
        snngraph.to_nir(graph, path, dt=0.5)
    with pytest.raises(NirExportError):
        snngraph.to_nir(parse("x[4, N, 3] -> relu(x)"), path, dt=1.0, force=True)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ArtifactWriteError):
            snngraph.to_nir(graph, path, dt=0.5, force=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    snngraph.to_nir(graph, path, dt=0.5, force=True)
    assert path.read_bytes() != before
    with pytest.raises(ArtifactWriteError):
        snngraph.to_nir(graph, tmp_path / "none" / "net.nir", dt=1.0)


def test_equal_networks_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.nir", "b.nir"):
        snngraph.to_nir(parse(SIMPLE), tmp_path / name, dt=1.0)
    assert (tmp_path / "a.nir").read_bytes() == (tmp_path / "b.nir").read_bytes()


CONTRADICTIONS: list[dict[str, Any]] = [
    {"dt": 0.5},
    {"integrator": "exponential"},
    {"fire": ">"},
    {"reset": "soft"},
    {"delay": "with"},
    {"emit": "count"},
    {"v_init": 0.5},
    {"charge": "previous"},
    {"membrane_input": "impulse"},
    {"floor": -1.0},
]


@pytest.mark.parametrize("arguments", CONTRADICTIONS, ids=str)
def test_arguments_that_contradict_the_file(arguments: dict[str, Any]) -> None:
    written = snngraph.to_nir(parse(SIMPLE), dt=1.0)
    with pytest.raises(NirDiscretisationError, match="leave it out"):
        snngraph.from_nir(written, **arguments)
    agreeing: dict[str, Any] = {
        "dt": 1.0,
        "integrator": "euler",
        "fire": ">=",
        "reset": "hard",
        "delay": "none",
        "emit": "spike",
        "v_init": 0.0,
    }
    assert_same(parse(SIMPLE), snngraph.from_nir(written, **{k: agreeing[k] for k in arguments if k in agreeing}))


def edited(change: Callable[[Any], None]) -> Any:
    written = snngraph.to_nir(parse(SIMPLE), dt=1.0)
    change(written)
    return written


def other_tau(graph: Any) -> None:
    graph.nodes["a"].tau = graph.nodes["a"].tau * 1.01


def other_threshold(graph: Any) -> None:
    graph.nodes["a"].v_threshold[0] = 0.5


def other_decay(graph: Any) -> None:
    graph.nodes["a"].metadata["snngraph"]["decay"] = 0.7


@pytest.mark.parametrize("change", [other_tau, other_threshold, other_decay])
def test_a_node_that_was_edited_contradicts_its_record(change: Callable[[Any], None]) -> None:
    with pytest.raises(NirDiscretisationError, match="was edited"):
        snngraph.from_nir(edited(change))


def newer(graph: Any) -> None:
    graph.nodes["a"].metadata["snngraph"]["schema"] = 2


def newer_graph(graph: Any) -> None:
    graph.metadata["snngraph"]["schema"] = 2


@pytest.mark.parametrize("change", [newer, newer_graph])
def test_records_of_a_newer_version(change: Callable[[Any], None]) -> None:
    with pytest.raises(NirVersionError, match="schema 2"):
        snngraph.from_nir(edited(change))


def record(**entries: Any) -> Callable[[Any], None]:
    return lambda graph: graph.nodes["a"].metadata["snngraph"].update(entries)


def graph_record(**entries: Any) -> Callable[[Any], None]:
    return lambda graph: graph.metadata["snngraph"].update(entries)


def no_record(graph: Any) -> None:
    graph.nodes["a"].metadata["snngraph"] = "hello"


@pytest.mark.parametrize(
    "change",
    [
        record(surprise=1.0),
        record(decay="fast"),
        record(threshold=np.array([np.nan])),
        record(fire=1.0),
        graph_record(inputs="not json"),
        graph_record(outputs='["elsewhere"]'),
        graph_record(time_steps="many"),
        no_record,
    ],
)
def test_records_that_are_none_of_ours(change: Callable[[Any], None]) -> None:
    with pytest.raises(NirGraphError, match="snngraph"):
        snngraph.from_nir(edited(change))


# -- any network ---------------------------------------------------------------------------------------------------------------


def made(kind: str, generator: np.random.Generator) -> Any:
    one = np.ones(3)
    if kind == "lif":
        return nir.LIF(generator.uniform(1, 4, 3), 2 * one, 0.1 * one, 0.5 * one, -0.1 * one)
    if kind == "if":
        return nir.IF(one, generator.uniform(0.5, 1, 3))
    if kind == "cuba":
        return nir.CubaLIF(2 * one, 3 * one, 4 * one, 0 * one, 0.5 * one, w_in=2.0)
    if kind == "affine":
        return nir.Affine(generator.normal(size=(3, 3)), generator.normal(size=3))
    if kind == "linear":
        return nir.Linear(generator.normal(size=(3, 3)))
    if kind == "scale":
        return nir.Scale(generator.normal(size=3))
    return nir.Delay(2.0 * one) if kind == "delay" else nir.LI(2 * one, one, 0.25 * one)


@st.composite
def networks(draw: st.DrawFn) -> Any:
    """A NIR graph of up to six nodes on vectors of 3, with branches and connections back."""
    seed = draw(st.integers(0, 2**16))
    generator = np.random.default_rng(seed)
    count = draw(st.integers(1, 6))
    nodes: dict[str, Any] = {"input": nir.Input(np.array([3]))}
    edges: list[tuple[str, str]] = []
    neurons_so_far: list[str] = []
    for k in range(count):
        name, kind = f"n{k}", draw(st.sampled_from(("lif", "if", "cuba", "affine", "linear", "scale", "delay", "li")))
        nodes[name] = made(kind, generator)
        before = ["input", *(f"n{j}" for j in range(k))]
        sources = draw(st.lists(st.sampled_from(before), min_size=1, max_size=2, unique=True))
        edges += [(source, name) for source in sources]
        if kind in ("lif", "if", "cuba"):
            neurons_so_far.append(name)
    nodes["output"] = nir.Output(np.array([3]))
    edges.append((f"n{count - 1}", "output"))
    chosen = draw(st.lists(st.sampled_from(neurons_so_far), max_size=2, unique=True)) if neurons_so_far else []
    late = []
    for target in chosen:
        source = draw(st.sampled_from([f"n{j}" for j in range(int(target[1:]), count)]))
        if (source, target) not in edges:
            edges.append((source, target))
            late.append((source, target))
    return nir.NIRGraph(nodes, edges, type_check=False), late


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks())
def test_any_network_comes_back(drawn: tuple[Any, list[tuple[str, str]]]) -> None:
    """What is read, written and read again is the same, whatever is recurrent."""
    source, late = drawn
    graph = snngraph.from_nir(
        source, time_steps=5, dt=1.0, integrator="euler", fire=">", reset="hard", v_init=0.0, late_edges=late
    )
    written = snngraph.to_nir(graph, dt=0.5)
    assert_same_outputs_within(graph, snngraph.from_nir(written))


def assert_same_outputs_within(before: SpikingGraph, after: SpikingGraph) -> None:
    inputs = random_inputs(before, 3, seed=5)
    for a, b in zip(run_with_spikes(before, inputs)[0], run_with_spikes(after, inputs)[0], strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)
