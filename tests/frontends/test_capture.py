from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snngraph
from snngraph import neurons, ops
from snngraph.errors import (
    CaptureError,
    CaptureMismatchError,
    ForwardFailedError,
    KeptStateWarning,
    TimeAxisError,
    TrainingModeError,
    WarmStateError,
    WarmStateWarning,
)
from snngraph.frontends.capture import _as_tensors
from snngraph.models.layers import StepWise

M = TypeVar("M", bound=nn.Module)


def seeded(build: Callable[[], M], seed: int = 0) -> M:
    torch.manual_seed(seed)
    return build().eval()


class Sequence(nn.Module):
    """``[T, N, 2, 8, 8]`` (or batch first, or a static image) to ``[N, 5]``."""

    def __init__(self, layout: str = "time", T: int = 4) -> None:
        super().__init__()
        self.layout, self.T = layout, T
        self.stem = StepWise(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.n1 = neurons.LIF(threshold=0.3)
        self.pool = StepWise(nn.MaxPool2d(2), nn.Flatten())
        self.fc = StepWise(nn.Linear(96, 5))
        self.n2 = neurons.PLIF(threshold=0.2, v_reset=None)

    def forward(self, x: Tensor) -> Any:
        if self.layout == "batch":
            x = x.transpose(0, 1)
        elif self.layout == "static":
            x = x.unsqueeze(0).repeat(self.T, 1, 1, 1, 1)
        return self.n2(self.fc(self.pool(self.n1(self.stem(x))))).mean(0)


class Step(nn.Module):
    """One step: ``[N, 2, 8, 8]`` to ``[N, 5]``."""

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"step_mode": "s"}
        self.conv = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.n1 = neurons.LIF(threshold=0.3, **options)
        self.fc = nn.Linear(6 * 64, 5)
        self.n2 = neurons.IF(threshold=0.4, **options)

    def forward(self, x: Tensor) -> Any:
        return self.n2(self.fc(self.n1(self.conv(x)).flatten(1)))


def run(model: nn.Module, *inputs: Tensor) -> Tensor:
    neurons.reset(model)
    with torch.no_grad():
        result: Tensor = model(*inputs)
    neurons.reset(model)
    return result


def assert_captures(graph: snngraph.SpikingGraph, model: nn.Module, x: Tensor, *, batches: tuple[int, ...] = (1, 3, 4)) -> None:
    """The graph gives, in float64, what the model gives in float64, at any batch size."""
    (spec,) = graph.inputs
    model = model.double()
    for n in batches:
        values = torch.randn([n if d == spec.batch_dim else size for d, size in enumerate(x.shape)], dtype=torch.float64)
        # a truth value times a number is float32 in any model, float64 in the graph
        torch.testing.assert_close(graph(values), run(model, values), rtol=1e-10, atol=1e-10, check_dtype=False)
    model.float()


@pytest.mark.parametrize(
    ("layout", "shape", "time_dim", "batch_dim"),
    [
        ("time", (4, 3, 2, 8, 8), 0, 1),
        ("time", (4, 4, 2, 8, 8), 0, 1),  # as many samples as steps
        ("time", (4, 1, 2, 8, 8), 0, 1),
        ("time", (1, 1, 2, 8, 8), 0, 1),
        ("batch", (3, 4, 2, 8, 8), 1, 0),
        ("batch", (4, 4, 2, 8, 8), 1, 0),
        ("static", (3, 2, 8, 8), None, 0),
    ],
)
def test_sequence_models(layout: str, shape: tuple[int, ...], time_dim: int | None, batch_dim: int) -> None:
    model = seeded(lambda: Sequence(layout))
    x = torch.randn(shape)
    graph = snngraph.trace(model, x)
    (spec,) = graph.inputs
    assert (spec.time_dim, spec.batch_dim, spec.shape[batch_dim]) == (time_dim, batch_dim, max(2, shape[batch_dim]))
    assert graph.time.steps == (4 if time_dim is None else shape[time_dim])
    assert graph.free_batch
    assert [layer.name for layer in graph.neurons] == ["n1", "n2"]
    assert graph.outputs[0].batch_dim == 0
    assert_captures(graph, model, x)


def test_a_static_input_with_as_many_channels_as_steps() -> None:
    model = seeded(lambda: Sequence("static", T=2))
    graph = snngraph.trace(model, torch.randn(3, 2, 8, 8))
    assert graph.inputs[0].time_dim is None
    assert graph.time.steps == 2


@pytest.mark.parametrize(
    ("shape", "keywords"),
    [
        ((4, 3, 2, 8, 8), {}),
        ((3, 4, 2, 8, 8), {"time_dim": 1}),
        ((3, 2, 8, 8), {"time_dim": None}),
        ((4, 3, 2, 8, 8), {"time_reduction": "mean"}),
        ((4, 3, 2, 8, 8), {"time_reduction": "sum"}),
        ((4, 3, 2, 8, 8), {"time_reduction": "last"}),
    ],
)
def test_step_models(shape: tuple[int, ...], keywords: dict[str, Any]) -> None:
    model = seeded(Step)
    x = torch.randn(shape)
    graph = snngraph.trace(model, x, time_steps=4, **keywords)
    time_dim = keywords.get("time_dim", 0)
    frames = [x if time_dim is None else x.select(time_dim, t) for t in range(4)]
    neurons.reset(model)
    with torch.no_grad():
        outputs = torch.stack([model.double()(frame.double()) for frame in frames])
    neurons.reset(model)
    reduction = keywords.get("time_reduction")
    expected = {"mean": outputs.mean(0), "sum": outputs.sum(0), "last": outputs[-1], None: outputs}[reduction]
    torch.testing.assert_close(graph(x), expected, rtol=1e-10, atol=1e-10)
    assert [layer.name for layer in graph.neurons] == ["n1", "n2"]
    assert "lif_step" not in graph.format(), "time was not merged"
    assert graph.format().count("convolution(") == 1
    if reduction is None:
        assert (graph.outputs[0].time_dim, graph.outputs[0].batch_dim) == (0, 1)


@pytest.mark.parametrize("style", ["index", "iterate", "batch first"])
def test_a_model_that_loops_over_time_itself(style: str) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = Step()

        def forward(self, x: Tensor) -> Any:
            if style == "iterate":
                return torch.stack([self.step(frame) for frame in x]).mean(0)
            total: Any = 0.0
            steps = x.shape[int(style == "batch first")]
            for t in range(steps):
                total = total + self.step(x[:, t] if style == "batch first" else x[t])
            return total / steps

    model = seeded(Loop)
    x = torch.randn(2, 5, 2, 8, 8) if style == "batch first" else torch.randn(5, 2, 2, 8, 8)
    graph = snngraph.trace(model, x)
    assert graph.time.steps == 5
    assert "lif_step" not in graph.format()
    assert_captures(graph, model, x)


def test_several_inputs_and_outputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.n = nn.Linear(6, 4), nn.Linear(3, 4), neurons.IF()

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            s = self.n(self.a(x) + self.b(y))
            return s.mean(0), s

    model = seeded(Two)
    x, y = torch.randn(4, 2, 6), torch.randn(4, 2, 3)
    graph = snngraph.trace(model, (x, y))
    assert [spec.shape for spec in graph.inputs] == [(4, 2, 6), (4, 2, 3)]
    assert [(spec.time_dim, spec.batch_dim) for spec in graph.outputs] == [(None, 0), (0, 1)]
    for found, wanted in zip(graph(x, y), model.double()(x.double(), y.double()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_numpy_examples_and_the_graph_in_float32_equals_the_model() -> None:
    model = seeded(Sequence)
    x = np.random.default_rng(0).normal(size=(4, 2, 2, 8, 8)).astype(np.float32)
    graph = snngraph.trace(model, x).to(torch.float32)
    torch.testing.assert_close(graph(torch.from_numpy(x)), run(model, torch.from_numpy(x)), rtol=1e-6, atol=1e-6)


def test_the_memory_layout_of_an_example_does_not_matter() -> None:
    """Images of one channel may have the strides of channels-last and be contiguous as well; convolutions follow the strides."""
    x = torch.rand(2, 8, 8, 1).permute(0, 3, 1, 2)
    assert x.is_contiguous()
    assert x.stride() == (64, 1, 8, 1)
    assert [t.stride() for t in _as_tensors(x)] == [(64, 64, 8, 1)]


def test_shared_modules_get_names_of_their_own() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.n = nn.Linear(6, 6), neurons.IF()

        def forward(self, x: Tensor) -> Any:
            return self.n(self.fc(self.n(self.fc(x)))).mean(0)

    graph = snngraph.trace(seeded(Shared), torch.randn(4, 2, 6))
    assert [layer.name for layer in graph.neurons] == ["n", "n#2"]


# -- never silently wrong ------------------------------------------------------------------------------------------------------


def test_training_mode_is_refused_by_name() -> None:
    model = seeded(Sequence)
    model.n1.train()
    with pytest.raises(TrainingModeError, match=r"in training mode: n1\..*call model.eval\(\)"):
        snngraph.trace(model, torch.randn(4, 2, 2, 8, 8))


def test_a_failing_forward_names_the_line() -> None:
    with pytest.raises(ForwardFailedError, match=r"forward raised RuntimeError on an input of shape \[4, 2, 3, 8, 8\]"):
        snngraph.trace(seeded(Sequence), torch.randn(4, 2, 3, 8, 8))

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("what")

    with pytest.raises(ForwardFailedError, match=re.escape(f"{Path(__file__).name}:")):
        snngraph.trace(Broken().eval(), torch.randn(4, 2))


def test_warm_state_is_set_aside_and_kept() -> None:
    model = seeded(Step)
    x = torch.randn(4, 2, 2, 8, 8)
    cold = snngraph.trace(model, x, time_steps=4)
    with torch.no_grad():
        model(x[0])
    assert model.n1.v is not None
    warm = model.n1.v.clone()
    with pytest.warns(WarmStateWarning, match="membrane state from an earlier call"):
        graph = snngraph.trace(model, x, time_steps=4)
    assert torch.equal(graph(x), cold(x))
    assert torch.equal(model.n1.v, warm)
    assert "forward" not in model.n1.__dict__


class Foreign(nn.Module):
    """A neuron nobody knows, that keeps its state from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.v: Any = 0.0

    def forward(self, x: Tensor) -> Any:
        self.v = self.v * 0.5 + x
        return (self.v > 0.3).to(x.dtype)

    def forget(self) -> None:
        self.v = 0.0


def test_foreign_state_needs_a_reset() -> None:
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), Foreign()))
    x = torch.rand(4, 2, 6)
    with torch.no_grad():
        model(x[0])
    with pytest.raises(WarmStateError, match=r"carries state from an earlier call in 1\.v"):
        snngraph.trace(model, x, time_steps=4)
    foreign = Foreign()
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 4), foreign))
    graph = snngraph.trace(model, x, time_steps=4, reset=foreign.forget)
    foreign.forget()
    with torch.no_grad():
        expected = torch.stack([model(frame) for frame in x])
    assert torch.equal(graph(x).float(), expected)


def test_randomness_is_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = neurons.IF()

        def forward(self, x: Tensor) -> Any:
            return self.n(x + torch.rand_like(x))

    with pytest.raises(CaptureError, match="random"):
        snngraph.trace(Noisy().eval(), torch.rand(4, 2, 6))


def test_control_flow_on_data_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = neurons.IF()

        def forward(self, x: Tensor) -> Any:
            return self.n(x * 2 if float(x.sum()) > 1e9 else x)

    with pytest.raises(CaptureError):
        snngraph.trace(Branch().eval(), torch.rand(4, 2, 6))


class Counter(nn.Module):
    calls: Tensor

    def __init__(self, matters: bool) -> None:
        super().__init__()
        self.n, self.matters = neurons.IF(), matters
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.n(x * self.calls if self.matters else x)


def test_a_buffer_that_is_only_written_is_no_matter() -> None:
    model, x = Counter(False).eval(), torch.rand(4, 2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = snngraph.trace(model, x)
    assert torch.equal(graph(x).float(), model(x))
    assert float(model.calls) == 1.0, "the capture puts it back"


def test_a_buffer_that_changes_from_call_to_call_is_told() -> None:
    model, x = Counter(True).eval(), torch.rand(4, 2, 6)
    with pytest.warns(KeptStateWarning, match="keeps state from call to call in calls"):
        graph = snngraph.trace(model, x)
    first = model(x)
    assert torch.equal(graph(x).float(), first)
    assert torch.equal(graph(x).float(), first), "every run starts anew"


def test_a_fixed_batch_is_told_not_hidden() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = neurons.IF()

        def forward(self, x: Tensor) -> Any:
            return self.n(x.reshape(4, 3, 6)).mean(0)

    graph = snngraph.trace(Fixed().eval(), torch.rand(4, 3, 6), time_dim=0)
    assert not graph.free_batch
    assert "batch size is fixed" in graph.notes[0]
    with pytest.raises(snngraph.SnnGraphError, match="batch"):
        snngraph.build(graph, batch_size="dynamic")
    assert snngraph.build(graph).run(torch.rand(4, 3, 6)).shape == (3, 6)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ((), "no example input"),
        ([1.0, 2.0], "is a float"),
        (torch.zeros(4, 2, 6, dtype=torch.int64), "expected float32"),
        (torch.zeros(4, 2, 6, dtype=torch.float64), "expected float32|captured in float32"),
        (torch.zeros(4, 2, 6, device="meta"), "move model and example to the CPU"),
    ],
)
def test_bad_examples(example: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        snngraph.trace(neurons.IF().eval(), example)


def test_half_precision_models_are_refused() -> None:
    model = seeded(Sequence)
    model.fc.half()
    with pytest.raises(CaptureError, match=r"parameter fc\.0\.weight has type torch\.float16"):
        snngraph.trace(model, torch.randn(4, 2, 2, 8, 8))


def test_no_module_no_neuron_no_time() -> None:
    with pytest.raises(CaptureError, match=r"expected a torch.nn.Module, got a function"):
        snngraph.trace(cast("nn.Module", lambda x: x), torch.rand(4, 2))
    with pytest.raises(TimeAxisError, match="no spiking neuron that snngraph knows was seen"):
        snngraph.trace(nn.Linear(6, 4).eval(), torch.rand(4, 2, 6))
    with pytest.raises(TimeAxisError, match="give time_steps="):
        snngraph.trace(seeded(Step), torch.rand(4, 2, 8, 8))
    with pytest.raises(TimeAxisError, match="does not have 5 entries"):
        snngraph.trace(seeded(Step), torch.rand(4, 2, 2, 8, 8), time_steps=5, time_dim=0)
    with pytest.raises(TimeAxisError, match="run over 4 steps"):
        snngraph.trace(seeded(Sequence), torch.rand(4, 2, 2, 8, 8), time_dim=1)
    with pytest.raises(CaptureError, match="give time_steps too"):
        snngraph.trace(seeded(Sequence), torch.rand(4, 2, 2, 8, 8), time_reduction="mean")


def test_an_output_that_is_no_tensor() -> None:
    class Dict(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"y": ops.lif(x).s, "n": 3}

    with pytest.raises(CaptureError, match=r"output\['n'\] of the model is a int: expected tensors"):
        snngraph.trace(Dict().eval(), torch.rand(4, 2, 6))


def test_nothing_is_left_behind_on_the_model() -> None:
    model = seeded(Step)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snngraph.trace(model, torch.rand(4, 2, 2, 8, 8), time_steps=4)
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert module.__dict__.get("v") is None


def test_a_mismatch_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an adapter wrong, the comparison with the module would find it."""
    from snngraph.frontends.adapters import SnnGraphNeurons

    def wrong(self: SnnGraphNeurons, module: nn.Module, neuron: Any, memory: dict[str, Any], x: Tensor) -> Tensor:
        return ops.lif(x, decay=0.4, threshold=0.3).s

    monkeypatch.setattr(SnnGraphNeurons, "forward", wrong)
    with pytest.raises(CaptureMismatchError, match="on the example, output 0 of the captured graph differs"):
        snngraph.trace(seeded(Sequence), torch.randn(4, 2, 2, 8, 8))


# -- found by trying to break it -----------------------------------------------------------------------------------------------


class Steps(nn.Module):
    """A linear layer and a neuron, stepped by ``body``; ``[4, N, 5]`` in."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], features: int = 4) -> None:
        super().__init__()
        self.fc, self.n, self.body = nn.Linear(5, features), neurons.LIF(threshold=0.2, step_mode="s"), body

    def step(self, x: Tensor) -> Tensor:
        return self.n(self.fc(x))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def twice(m: Steps, x: Tensor) -> Tensor:
    first = torch.stack([m.step(f) for f in x])
    neurons.reset(m)
    return first + torch.stack([m.step(f) for f in x])


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "stack 0": lambda m, x: torch.stack([m.step(f) for f in x]),
    "stack 1": lambda m, x: torch.stack([m.step(f) for f in x], 1),
    "stack 2": lambda m, x: torch.stack([m.step(f) for f in x], 2),
    "stack -1": lambda m, x: torch.stack([m.step(f) for f in x], dim=-1).flatten(1),
    "cat 0": lambda m, x: torch.cat([m.step(f) for f in x]),
    "cat 1": lambda m, x: torch.cat([m.step(f) for f in x], 1),
    "cat -1": lambda m, x: torch.cat([m.step(f) for f in x], -1),
    "unbind": lambda m, x: sum(m.step(f) for f in x.unbind(0)) / 4,
    "reset in forward": twice,
    "inferred sizes": lambda m, x: torch.stack([m.step(f) for f in x]).view(4, x.size(1), -1).mean(0),
    "casts": lambda m, x: torch.stack([m.step(f.to(x.device).to(x)) for f in x]).mean(0),
    "comparison times one": lambda m, x: torch.stack([(m.step(f) > 0.5) * 1.0 for f in x]).sum(0),
    "constants": lambda m, x: torch.stack([m.step(f + torch.arange(5.0)) for f in x]).mean(0),
    "last": lambda m, x: [m.step(f) for f in x][-1],
}


@pytest.mark.parametrize("features", [1, 4])
@pytest.mark.parametrize("name", list(BODIES))
def test_loops_in_every_style(name: str, features: int) -> None:
    model = seeded(lambda: Steps(BODIES[name], features))
    x = torch.randn(4, 3, 5)
    graph = snngraph.trace(model, x)
    assert graph.time.steps == 4
    assert "lif_step" not in graph.format(), "time was not merged"
    assert_captures(graph, model, x)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.stack([m.step(f) for f in x]) * (x.shape[1] // 2),
        lambda m, x: torch.stack([m.step(f) for f in x]) * (1 / max(x.shape[1], 5)),
        lambda m, x: torch.stack([m.step(f) for f in x])[:, : x.shape[1] // 2],
    ],
)
def test_what_depends_on_the_batch_size_fixes_it(body: Callable[[Any, Tensor], Tensor]) -> None:
    model = seeded(lambda: Steps(body))
    graph = snngraph.trace(model, torch.randn(4, 2, 5), time_dim=0)
    assert not graph.free_batch
    assert "batch size is fixed" in graph.notes[0]
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    torch.testing.assert_close(graph(x), run(model.double(), x), rtol=1e-10, atol=1e-10)


def test_a_static_batch_as_large_as_the_number_of_steps_is_asked_about() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(2, 3, 3), neurons.LIF(step_mode="s")))
    with pytest.raises(TimeAxisError, match="give time_dim=0 if it is time, time_dim=None if"):
        snngraph.trace(model, torch.randn(4, 2, 5, 5), time_steps=4)
    graph = snngraph.trace(model, torch.randn(4, 2, 5, 5), time_steps=4, time_dim=None)
    assert graph.inputs[0].batch_dim == 0


def test_a_static_image_with_as_many_channels_as_steps_in_a_loop() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.n = nn.Conv2d(3, 4, 3), neurons.LIF(threshold=0.2, step_mode="s")

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([self.n(self.conv(x)) for _ in range(3)]).mean(0)

    graph = snngraph.trace(seeded(Loop), torch.randn(2, 3, 8, 8))
    assert (graph.inputs[0].time_dim, graph.inputs[0].batch_dim, graph.time.steps) == (None, 0, 3)
    assert graph.format().count("convolution(") == 1


def test_an_output_as_large_as_the_number_of_steps_is_not_time() -> None:
    model = seeded(lambda: nn.Sequential(StepWise(nn.Conv2d(2, 4, 3)), neurons.IF()))

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner_net = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner_net(x).mean(0)  # type: ignore[no-any-return]

    graph = snngraph.trace(Mean().eval(), torch.randn(4, 2, 2, 6, 6))
    assert (graph.outputs[0].time_dim, graph.outputs[0].batch_dim) == (None, 0)


def test_an_input_named_output() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = neurons.IF()

        def forward(self, output: Tensor) -> Tensor:
            return self.n(output).mean(0)  # type: ignore[no-any-return]

    engine = snngraph.convert(Named().eval(), torch.rand(4, 2, 6))
    assert [s.name for s in (*engine.inputs, *engine.outputs)] == ["output", "output_"]
