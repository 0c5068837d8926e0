"""What would make a capture silently wrong: each is refused, or told, with an error or a warning of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import snngraph
from snngraph import neurons
from snngraph.errors import (
    CaptureError,
    DataDependentError,
    KeptStateWarning,
    ParameterChangedWarning,
    RandomnessError,
    TimeAxisError,
    TrainingModeError,
    WarmStateError,
)

T, N = 5, 3


class Loop(nn.Module):
    """A linear layer and a hand-written leaky neuron over ``[T, N, 8]``; ``body(self, x, v)`` gives spikes and the new state."""

    def __init__(self, body: Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 10)
        self.body = body or Loop.leaky
        self.eval()

    def leaky(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = 0.5 * v + self.fc(x)
        s = (v > 0.2).to(x.dtype)
        return s, v * (1 - s)

    def forward(self, x: Tensor) -> Any:
        v, spikes = x.new_zeros(x.shape[1], 10), []
        for frame in x:
            s, v = self.body(self, frame, v)
            spikes.append(s)
        return torch.stack(spikes)


class Remembering(nn.Module):
    """One step of a neuron that nobody knows; its membrane potential stands in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 10)
        self.mem: Any = None
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        charged = self.fc(x) if self.mem is None else 0.5 * self.mem + self.fc(x)
        s: Tensor = (charged > 0.2).to(x.dtype)
        self.mem = charged - 0.2 * s
        return s


def sequence(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([torch.as_tensor(model(frame)) for frame in x])


def example(*shape: int) -> Tensor:
    return torch.rand(shape or (T, N, 8), generator=torch.Generator().manual_seed(1)) * 2


# -- state ---------------------------------------------------------------------------------------------------------------------


def test_state_that_nobody_knows_goes_from_step_to_step() -> None:
    model, x = Remembering(), example()
    graph = snngraph.trace(model, x, time_steps=T)
    assert model.mem is None, "the capture leaves the model as it was"
    expected = sequence(model, x)
    assert 0.05 < expected.mean() < 0.95
    assert torch.equal(graph(x).float(), expected)


def test_a_warm_state_that_nobody_knows_is_refused() -> None:
    model, x = Remembering(), example()
    sequence(model, x)
    left = model.mem.clone()
    with pytest.raises(WarmStateError, match=r"carries state from an earlier call in mem.*reset=callable"):
        snngraph.trace(model, x, time_steps=T)
    assert torch.equal(model.mem, left)


def test_a_warm_state_is_reset_by_the_callable() -> None:
    model, x = Remembering(), example()
    sequence(model, x)
    graph = snngraph.trace(model, x, time_steps=T, reset=lambda: setattr(model, "mem", None))
    model.mem = None
    assert torch.equal(graph(x).float(), sequence(model, x))


def test_one_call_of_a_model_that_remembers_is_told() -> None:
    with pytest.warns(KeptStateWarning, match=r"keeps state from call to call in mem.*time_steps="):
        graph = snngraph.trace(Remembering(), example(T, N, 8), time_dim=0)
    assert any("keeps state" in note for note in graph.notes)


def test_what_is_kept_for_looking_at_only_is_no_state() -> None:
    class Watched(Loop):
        def forward(self, x: Tensor) -> Any:
            self.last = super().forward(x)
            self.seen = getattr(self, "seen", 0) + 1
            return self.last.mean(0)

    model, x = Watched(), example()
    with torch.no_grad():
        model(x)  # warm, were it a state
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = snngraph.trace(model, x)
    assert model.seen == 1
    assert torch.allclose(graph(x).float(), model(x))


@pytest.mark.parametrize("container", ["list", "dictionary", "buffer in place"])
def test_state_in_containers_and_buffers(container: str) -> None:
    class Kept(nn.Module):
        v: Tensor

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(8, 10)
            self.states: Any = [0.0] if container == "list" else {"v": 0.0}
            self.register_buffer("v", torch.zeros(N, 10))
            self.eval()

        def forward(self, x: Tensor) -> Tensor:
            key: Any = 0 if container == "list" else "v"
            before = self.v if container == "buffer in place" else self.states[key]
            charged = 0.5 * before + self.fc(x)
            s: Tensor = (charged > 0.2).to(x.dtype)
            if container == "buffer in place":
                self.v.copy_(charged * (1 - s))
            else:
                self.states[key] = charged * (1 - s)
            return s

    model, x = Kept(), example()
    graph = snngraph.trace(model, x, time_steps=T, time_dim=0)
    assert torch.equal(graph(x).float(), sequence(model, x))


# -- parameters, numbers, randomness -------------------------------------------------------------------------------------------


def test_a_parameter_rewritten_in_forward_is_told() -> None:
    class Clamped(Loop):
        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                self.fc.weight.mul_(0.5)
            return super().forward(x)

    model, x = Clamped(), example()
    before = model.fc.weight.clone()
    with pytest.warns(ParameterChangedWarning, match="forward rewrites fc.weight: the graph is that of the first call"):
        graph = snngraph.trace(model, x)
    assert torch.equal(model.fc.weight, before)
    with torch.no_grad():
        expected = model(x)
    assert torch.equal(graph(x).float(), expected)


def test_a_branch_on_data_is_refused_with_its_line() -> None:
    def body(model: Loop, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        s, v = Loop.leaky(model, x, v)
        return (s, v) if s.sum() > 2 else (s, v * 0)

    with pytest.raises(DataDependentError, match=r"test_never_wrong\.py:\d+.*s\.sum\(\) > 2"):
        snngraph.trace(Loop(body), example())


def test_a_number_read_from_a_parameter_is_a_constant() -> None:
    class Tau(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.tau = nn.Parameter(torch.tensor(0.3))

        def leaky(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            v = v + (self.fc(x) - v) * float(self.tau.sigmoid())
            s = (v > 0.1).to(x.dtype)
            return s, torch.where(s > 0, 0.0, v)

        def forward(self, x: Tensor) -> Any:
            self.body = Tau.leaky
            return super().forward(x)

    model, x = Tau(), example()
    graph = snngraph.trace(model, x)
    assert any("recorded run" in note for note in graph.notes)
    with torch.no_grad():
        assert torch.equal(graph(x).float(), model(x))


@pytest.mark.parametrize(
    "draw", [torch.rand_like, lambda x: torch.bernoulli(x * 0.5), lambda x: F.dropout(x, 0.5, training=True)]
)
def test_random_numbers_are_refused(draw: Callable[[Tensor], Tensor]) -> None:
    def body(model: Loop, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return Loop.leaky(model, x + draw(x.clamp(0, 1)) * 1e-9, v)  # too little to be seen in the result

    with pytest.raises(RandomnessError, match=r"draws random numbers.*test_never_wrong\.py"):
        snngraph.trace(Loop(body), example())


def test_dropout_left_on_is_refused() -> None:
    model = nn.Sequential(Loop(), nn.Dropout()).eval()
    model[1].train()
    with pytest.raises(TrainingModeError, match="in training mode: 1"):
        snngraph.trace(model, example())


# -- sizes ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
def test_a_number_of_steps_fixed_in_the_code_is_refused(known: bool) -> None:
    class Fixed(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.n = neurons.LIF(step_mode="s", threshold=0.1)

        def forward(self, x: Tensor) -> Any:
            v = x.new_zeros(x.shape[1], 10)
            spikes = []
            for t in range(T - 1):
                s, v = (self.n(self.fc(x[t])), v) if known else self.leaky(x[t], v)
                spikes.append(s)
            return torch.stack(spikes)

    with pytest.raises(TimeAxisError, match=r"reads 4 of the 5 entries of axis 0 .* Give an example of 4 steps"):
        snngraph.trace(Fixed().eval(), example(), time_dim="auto" if known else 0)


def test_a_batch_baked_in_is_told() -> None:
    class Baked(Loop):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x.reshape(T, N, 8))

    graph = snngraph.trace(Baked(), example(), time_dim=0)
    assert not graph.free_batch
    assert any("the batch size is fixed" in note for note in graph.notes)
    with pytest.raises(snngraph.SnnGraphError, match="batch"):
        snngraph.build(graph, batch_size="dynamic")


# -- what goes in and comes out ------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    spikes: Tensor
    potential: Tensor


STRUCTURES: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "tuple": (lambda s, v: (s, v), ["output", "output_1"]),
    "list": (lambda s, v: [s, v], ["output", "output_1"]),
    "dictionary": (lambda s, v: {"spikes": s, "v": v}, ["spikes", "v"]),
    "named tuple": (Result, ["spikes", "potential"]),
    "nested": (lambda s, v: {"out": (s, [v])}, ["out_0", "out_1_0"]),
    "with nothing": (lambda s, v: (s, None, v), ["output", "output_1"]),
}


@pytest.mark.parametrize("structure", STRUCTURES)
def test_results_of_any_structure(structure: str) -> None:
    """The membrane potential is among them."""
    wrap, names = STRUCTURES[structure]

    class Both(Loop):
        def forward(self, x: Tensor) -> Any:
            v, spikes, potentials = x.new_zeros(x.shape[1], 10), [], []
            for frame in x:
                s, v = self.leaky(frame, v)
                spikes.append(s)
                potentials.append(v)
            return wrap(torch.stack(spikes), torch.stack(potentials))

    model, x = Both(), example()
    graph = snngraph.trace(model, x)
    assert [spec.name for spec in graph.outputs] == names
    assert all((spec.time_dim, spec.batch_dim) == (0, 1) for spec in graph.outputs)
    with torch.no_grad():
        expected = [y for y in torch.utils._pytree.tree_leaves(model(x)) if y is not None]
    for a, b in zip(graph(x), expected, strict=True):
        assert torch.allclose(a.float(), b, atol=1e-6)
    found = snngraph.build(snngraph.optimize(graph), "onnxruntime").run(x.numpy())
    for y, b in zip(found, expected, strict=True):
        assert torch.allclose(torch.from_numpy(y), b, atol=1e-5)


def test_one_step_that_returns_spikes_and_potential() -> None:
    class Step(Remembering):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), self.mem

    model, x = Step(), example()
    graph = snngraph.trace(model, x, time_steps=T)
    assert [tuple(spec.shape) for spec in graph.outputs] == [(T, N, 10), (T, N, 10)]
    reduced = snngraph.trace(model, x, time_steps=T, time_reduction="last")
    assert torch.equal(reduced(x)[1], graph(x)[1][-1])


def test_state_as_an_argument_goes_from_step_to_step() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(8, 10)
            self.eval()

        def forward(self, x: Tensor, state: Any = None) -> Any:
            v = self.fc(x) if state is None else 0.5 * state.potential + self.fc(x)
            s = (v > 0.2).to(x.dtype)
            return s, Result(s, v * (1 - s))

    model, x = Cell(), example()
    graph = snngraph.trace(model, x, time_steps=T)
    state, expected = None, []
    for frame in x:
        s, state = model(frame, state)
        expected.append(s)
    assert len(graph.outputs) == 1
    assert torch.equal(graph(x).float(), torch.stack(expected))


def test_weights_shared_between_layers_and_steps() -> None:
    class Shared(Loop):
        def __init__(self) -> None:
            super().__init__()
            self.square = nn.Linear(10, 10)
            self.again = self.square

        def forward(self, x: Tensor) -> Any:
            s = super().forward(x)
            return self.again(self.square(s)).mean(0)

    model, x = Shared().eval(), example()
    graph = snngraph.trace(model, x)
    assert sorted(graph.tensors()) == sorted(set(graph.tensors()))
    assert sum(t.numel() == 100 for t in graph.tensors().values()) == 1, "one copy of the shared weight"
    with torch.no_grad():
        assert torch.allclose(graph(x).float(), model(x), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_of_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(CaptureError, match=f"parameter fc.weight has type {dtype}: .* call model.float"):
        snngraph.trace(Loop().to(dtype), example())
    with pytest.raises(CaptureError, match=f"example input 0 has type {dtype}: .* give x.float"):
        snngraph.trace(Loop(), example().to(dtype))


def test_another_device_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"parameter fc\.weight is on meta: move the model to the CPU"):
        snngraph.trace(Loop().to("meta"), example())
    with pytest.raises(CaptureError, match="example input 0 is on meta: move model and example to the CPU"):
        snngraph.trace(Loop(), example().to("meta"))


def test_memory_layout_of_the_example_is_no_matter() -> None:
    class Conv(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.n = nn.Conv2d(3, 4, 3), neurons.LIF(threshold=0.1)
            self.eval()

        def forward(self, x: Tensor) -> Any:
            return self.n(self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])).mean(0)

    model, x = Conv(), example(T, N, 3, 6, 6)
    expected = snngraph.trace(model, x)(x)
    last = torch.stack([frame.to(memory_format=torch.channels_last) for frame in x])
    strided = example(T, N, 3, 6, 12)[..., ::2]
    strided.copy_(x)
    for other in (last, strided):
        assert torch.equal(snngraph.trace(model, other)(x), expected)


def test_weight_norm_is_proved_in_float64() -> None:
    """It is exported as operators that add in another order than its own kernel."""
    model, x = Loop(), example()
    nn.utils.parametrizations.weight_norm(model.fc)
    graph = snngraph.trace(model.eval(), x)
    with torch.no_grad():
        assert torch.equal(graph(x).float(), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_refused() -> None:
    model = nn.Sequential(Loop(), torch.jit.trace(nn.Linear(10, 10), torch.rand(2, 10))).eval()
    with pytest.raises(CaptureError, match="TorchScript modules can not be captured: 1"):
        snngraph.trace(model, example())


@pytest.mark.parametrize("size", [lambda x: (x > 1).nonzero().shape[0], lambda x: len(x[x > 1])])
def test_a_size_that_depends_on_data_is_refused(size: Callable[[Tensor], int]) -> None:
    def body(model: Loop, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return Loop.leaky(model, x / (1 + size(x)), v)

    with pytest.raises(DataDependentError, match=r"depends on the data.*test_never_wrong\.py"):
        snngraph.trace(Loop(body), example())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_cast_to_half_in_forward_is_refused(dtype: torch.dtype) -> None:
    def body(model: Loop, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return Loop.leaky(model, x.to(dtype).float(), v)

    with pytest.raises(CaptureError, match=rf"computes in {dtype} in forward"):
        snngraph.trace(Loop(body), example())
