"""Norse's neurons, run by Norse, against the canonical neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from snngraph.frontends.canonical import NotCanonicalError
from snngraph.frontends.norse import Norse
from tests.interop.calls import assert_same_calls
from tests.interop.proof import BATCH, CHANNELS, Kind, Trace, assert_same_neuron, calibrated, inputs, stack

norse = pytest.importorskip("norse.torch", reason="Norse is not installed")
reset_functions = pytest.importorskip("norse.torch.functional.reset")

ADAPTER = Norse()
KINDS = pytest.mark.parametrize("kind", ["random", "quantised"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


def parameter(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype)  # never Norse's own defaults: its cells mark them as requiring a gradient


def drive(cell: Any, x: Tensor) -> Trace:
    steps, state = [], None
    with torch.no_grad():
        for frame in x:
            s, state = cell(frame, state)
            steps.append((s, state.v, state.i) if hasattr(state, "i") else (s, state.v))
    return stack(steps)


@DTYPES
@KINDS
@pytest.mark.parametrize("v_reset", [0.0, -0.25])
def test_iaf(v_reset: float, kind: Kind, dtype: torch.dtype) -> None:
    cell = norse.IAFCell(norse.IAFParameters(v_th=parameter(0.75, dtype), v_reset=parameter(v_reset, dtype)))
    canonical = ADAPTER.neuron(cell)
    x = calibrated(canonical, kind, dtype)
    assert_same_neuron(canonical, lambda x: drive(cell, x), x, tolerance=0.0, ties=kind == "quantised")


@KINDS
@pytest.mark.parametrize("v_leak", [0.0, 0.125])
@pytest.mark.parametrize("v_reset", [0.0, -0.25, None])
def test_lif_box(v_reset: float | None, v_leak: float, kind: Kind) -> None:
    method = {"reset_method": reset_functions.reset_subtract} if v_reset is None else {"v_reset": parameter(v_reset)}
    rate = 500.0 if kind == "quantised" else 310.0
    p = norse.LIFBoxParameters(tau_mem_inv=parameter(rate), v_leak=parameter(v_leak), v_th=parameter(0.75), **method)
    cell = norse.LIFBoxCell(p, dt=0.001)
    canonical = ADAPTER.neuron(cell)
    assert_same_neuron(canonical, lambda x: drive(cell, x), calibrated(canonical, kind), ties=kind == "quantised")


@KINDS
@pytest.mark.parametrize("v_leak", [0.0, 0.125])
@pytest.mark.parametrize("v_reset", [0.0, -0.25])
def test_lif(v_reset: float, v_leak: float, kind: Kind) -> None:
    mem, syn = (500.0, 500.0) if kind == "quantised" else (310.0, 170.0)
    p = norse.LIFParameters(parameter(syn), parameter(mem), parameter(v_leak), parameter(0.75), parameter(v_reset))
    cell = norse.LIFCell(p, dt=0.001)
    canonical = ADAPTER.neuron(cell)
    assert_same_neuron(canonical, lambda x: drive(cell, x), calibrated(canonical, kind), ties=kind == "quantised")


def test_parameters_of_a_float32_model_are_combined_in_float64() -> None:
    """As in a captured graph that runs in float64: 1 - dt/tau of the float32 values, rounded once, at the very end."""
    values = [parameter(value, torch.float32) for value in (200.0, 310.0, 0.1, 0.7, 0.05)]
    canonical = ADAPTER.neuron(norse.LIFCell(norse.LIFParameters(*values), dt=0.001))
    cell = norse.LIFCell(norse.LIFParameters(*(value.double() for value in values)), dt=0.001)
    assert_same_neuron(canonical, lambda x: drive(cell, x), calibrated(canonical, "random"))


def test_what_is_not_expressed_is_refused() -> None:
    forgets = norse.LIFCell(norse.LIFParameters(tau_syn_inv=parameter(1000.0)), dt=0.001)
    with pytest.raises(ValueError, match="forgets"):
        ADAPTER.neuron(forgets)

    def reset_by_half(z: Tensor, v: Tensor, reset: Tensor, th: Tensor) -> Tensor:
        return v - 0.5 * z * th

    with pytest.raises(ValueError, match="not expressed"):
        ADAPTER.neuron(norse.LIFBoxCell(norse.LIFBoxParameters(reset_method=reset_by_half)))


# -- as a model calls them -----------------------------------------------------------------------------------------------------


def lif_parameters(leak: float = 0.1) -> Any:
    """Most modules begin with a float32 state, whatever the input: their leak is a number that float32 holds."""
    return norse.LIFParameters(parameter(200.0), parameter(310.0), parameter(leak), parameter(0.7), parameter(0.05))


CELLS = {
    "IAF": lambda: norse.IAFCell(norse.IAFParameters(v_th=parameter(0.7), v_reset=parameter(0.05))),
    "LIF": lambda: norse.LIFCell(lif_parameters()),
    "LIFBox": lambda: norse.LIFBoxCell(norse.LIFBoxParameters(parameter(310.0), parameter(0.1), parameter(0.7), parameter(0.05))),
    "LIFRecurrent": lambda: norse.LIFRecurrentCell(CHANNELS, CHANNELS, lif_parameters(0.125)).double(),
}
SEQUENCES = {
    "IAF": lambda **options: norse.IAF(norse.IAFParameters(v_th=parameter(0.7), v_reset=parameter(0.05)), **options),
    "LIF": lambda **options: norse.LIF(lif_parameters(0.125), **options),
    "LIFRecurrent": lambda **options: norse.LIFRecurrent(CHANNELS, CHANNELS, lif_parameters(0.125), **options).double(),
}


@pytest.mark.parametrize("kind", CELLS)
def test_state_passed_by_hand(kind: str) -> None:
    """Spikes and every member of the state, in every step."""
    torch.manual_seed(0)
    cell = CELLS[kind]()

    def run(x: Tensor) -> Any:
        state, recorded = None, []
        for frame in x:
            spikes, state = cell(frame, state)
            recorded.append((spikes, tuple(state)))
        return recorded

    expected = assert_same_calls(cell, 4 * inputs("random"), run)
    assert 0 < expected[0].mean() < 1


@pytest.mark.parametrize("kind", CELLS)
def test_state_that_the_caller_made(kind: str) -> None:
    torch.manual_seed(0)
    cell, x = CELLS[kind](), inputs("random")
    members = cell.initial_state(x[0])._fields
    state = type(cell.initial_state(x[0]))(**{name: torch.rand(BATCH, CHANNELS, dtype=torch.float64) for name in members})
    assert_same_calls(cell, x, lambda x: [tuple(part) for part in (cell(x[0], state)[1], cell(x[1], state=state)[1])])


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequences(kind: str) -> None:
    """In one call, in two with the state handed on, and with the states of all steps."""
    torch.manual_seed(0)
    layer, x = SEQUENCES[kind](), 4 * inputs("random")

    def in_two(x: Tensor) -> Any:
        first, state = layer(x[:5])
        second, state = layer(x[5:], state)
        return torch.cat([first, second]), tuple(state)

    whole = assert_same_calls(layer, x)
    assert torch.equal(assert_same_calls(layer, x, in_two)[0], whole[0])
    if kind != "IAF":  # it takes no such option
        recorded = SEQUENCES[kind](record_states=True)
        recorded.load_state_dict(layer.state_dict())
        assert_same_calls(recorded, x)


def test_per_neuron() -> None:
    random = torch.Generator().manual_seed(0)
    rates = [torch.rand(CHANNELS, generator=random, dtype=torch.float64) * 300 + 100 for _ in range(2)]
    p = norse.LIFParameters(*rates, parameter(0.125), torch.rand(CHANNELS, generator=random, dtype=torch.float64) + 0.5)
    layer = norse.LIF(p)
    assert_same_calls(layer, 4 * inputs("random"))


def test_networks_with_state() -> None:
    """SequentialState over a sequence and step by step, and Lift."""
    torch.manual_seed(0)
    x = 6 * inputs("random")
    over_time = norse.SequentialState(torch.nn.Linear(CHANNELS, 8), SEQUENCES["LIF"](), torch.nn.Linear(8, 4), SEQUENCES["LIF"]())
    assert_same_calls(over_time.double(), x)
    lifted = norse.SequentialState(norse.Lift(torch.nn.Linear(CHANNELS, 8)), norse.Lift(CELLS["LIF"]()))
    assert_same_calls(lifted.double(), x)
    stepped = norse.SequentialState(torch.nn.Linear(CHANNELS, 8), CELLS["LIF"](), torch.nn.Linear(8, 4), CELLS["LIFBox"]())

    def by_hand(x: Tensor) -> Any:
        state: Any = None
        recorded = []
        for frame in x:
            spikes, state = stepped(frame, state)
            recorded.append(spikes)
        return recorded, tuple(state[3])

    assert_same_calls(stepped.double(), x, by_hand)


# -- what is not taken for the library's neuron --------------------------------------------------------------------------------


def test_changed_dynamics_are_refused() -> None:
    class Louder(norse.LIFCell):  # type: ignore[misc, name-defined]
        def forward(self, input_tensor: Tensor, state: Any = None) -> Any:
            return super().forward(2 * input_tensor, state)

    class Elsewhere(norse.LIFCell):  # type: ignore[misc, name-defined]
        def initial_state(self, input_tensor: Tensor) -> Any:
            return super().initial_state(input_tensor)

    for kind, name in ((Louder, "forward"), (Elsewhere, "initial_state")):
        with pytest.raises(NotCanonicalError, match=f"{kind.__name__} replaces {name} of LIFCell"):
            ADAPTER.neuron(kind())
    cell = norse.LIFCell()
    cell.activation = lambda x, state, p, dt: (x, state)
    with pytest.raises(NotCanonicalError, match="expected Norse's lif_feed_forward_step"):
        ADAPTER.neuron(cell)
    cell = norse.LIFCell()
    cell.state_fallback = lambda x: None
    with pytest.raises(NotCanonicalError, match="state_fallback"):
        ADAPTER.neuron(cell)


@pytest.mark.parametrize("name", ["LIFRefracCell", "LSNNCell", "LIFAdExCell", "LIFExCell", "LICell", "LI", "LSNN", "LIFEx"])
def test_others_have_dynamics_of_their_own(name: str) -> None:
    module = getattr(norse, name)()
    assert ADAPTER.matches(module)
    with pytest.raises(NotCanonicalError, match=f"{name} has dynamics of its own"):
        ADAPTER.neuron(module)
