"""Hand-written neurons, as people spell them, are recognised; what is no canonical neuron is left alone, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor, nn

import snngraph
from snngraph import pipelines
from snngraph.frontends import adapters
from snngraph.graph import LIF_STEP, SpikingGraph, is_op
from snngraph.passes.base import PassResult
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.lift_neurons import LiftNeurons
from snngraph.testing import assert_equivalent, assert_graph, parse
from tests.passes.random_neurons import Spelling, spellings

State = tuple[Tensor, Tensor]  # membrane potential, spikes of the step before
Body = Callable[[Any, Tensor, Tensor, Tensor], State]


# -- as people write them ------------------------------------------------------------------------------------------------------


class Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + x.abs()) ** 2


fire: Callable[[Tensor], Tensor] = Surrogate.apply


class Cell(nn.Module):
    """One layer of neurons; its state is given and returned."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body, self.tau = body, 2.0
        self.w = nn.Parameter(torch.linspace(-1.0, 2.0, 4))
        self.threshold = nn.Parameter(torch.linspace(0.25, 1.0, 4))

    def forward(self, x: Tensor, mem: Tensor, spk: Tensor) -> State:
        return self.body(self, x, mem, spk)


class Zoo(nn.Module):
    """Cells beside each other, each with a layer of its own, stepped in one loop: `[T, N, 3]` to `[T, N, 4]` each."""

    def __init__(self, bodies: dict[str, Body]) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({name: Cell(body) for name, body in bodies.items()})
        self.layers = nn.ModuleDict({name: nn.Linear(3, 4) for name in bodies})

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        states: dict[str, State] = {}
        out: dict[str, list[Tensor]] = {name: [] for name in self.cells}
        for t in range(x.shape[0]):
            for name, cell in self.cells.items():
                c = 2 * self.layers[name](x[t])
                spk, mem = cell(c, *states.get(name, (torch.zeros_like(c), torch.zeros_like(c))))
                states[name] = mem, spk
                out[name].append(spk)
        return tuple(torch.stack(steps) for steps in out.values())


def subtract(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.9 * mem + x
    spk = fire(mem - 1.0)
    return spk, mem - spk * 1.0


def times_one_minus_spike(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem + (x - mem) / m.tau
    spk = (mem >= 0.5).float()
    return spk, mem * (1 - spk)


def reset_at_the_next_step(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem * torch.sigmoid(m.w) * (1 - spk) + x
    return torch.where(mem > m.threshold, 1.0, 0.0), mem


def masked_assignment(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = torch.exp(-torch.tensor(0.5)) * mem + x
    spk = mem.ge(0.5).to(x)
    mem = mem.clone()
    mem[spk.bool()] = 0.125
    return spk, mem


def masked_fill(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.75 * mem + x
    spk = torch.heaviside(mem - 0.5, torch.tensor(1.0))
    return spk, mem.masked_fill(spk.bool(), 0.0)


def reset_with_the_charge(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x - spk * 0.75
    return (mem > 0.75).type(torch.float32), mem


def drops_the_input_too(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = (0.5 * mem + x) * (1 - spk)
    return (mem > 0.75).float(), mem


def one_minus_below(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem - (mem - 0.25) / m.tau + x
    spk = 1 - (mem / m.threshold - 1 < 0).float()
    return spk, torch.where(spk > 0, torch.full_like(mem, 0.25), mem)


def sign_and_floor(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem + x
    spk = torch.floor((torch.sign(mem - 0.5) + 1) / 2)
    return spk, torch.clamp(mem - spk * 0.25, min=-0.5)


def floor_under_the_potential(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = torch.relu(0.5 * mem + x)
    spk = (mem > 0.5) * 1.0
    return spk, mem - mem * spk


def feeds_itself(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x + 0.25 * spk
    spk = (mem >= 0.5).float()
    return spk, mem * (1 - spk)


def one_level(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    spk = torch.where(mem >= 0.5, 0.25, 0.0)
    return spk, mem - 2 * spk


def signed(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    spk = (mem >= 0.5).float() - (mem <= -0.5).float()
    return spk, mem - 0.5 * spk


def counts(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    spk = torch.floor(torch.relu(mem) / 0.5)
    return spk, mem - 0.5 * spk


def straight_through(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    soft = torch.sigmoid(5 * (mem - 0.5))
    spk = ((mem > 0.5).float() - soft).detach() + soft
    return spk, mem - 0.5 * spk


def never_resets(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    return (~(mem <= 0.5)).float(), mem


SPELLINGS: dict[str, tuple[Body, str]] = {
    "subtract": (subtract, "threshold=1, fire='>', decay=0.9, reset='soft'"),
    "times_one_minus_spike": (
        times_one_minus_spike,
        "threshold=0.5, fire='>=', decay=0.5, input_gain=0.5, reset='hard', v_reset=0",
    ),
    "reset_at_the_next_step": (reset_at_the_next_step, "threshold=[4], fire='>', decay=[4], reset='hard', v_reset=0"),
    "masked_assignment": (masked_assignment, "threshold=0.5, fire='>=', decay=0.606531, reset='hard', v_reset=0.125"),
    "masked_fill": (masked_fill, "threshold=0.5, fire='>=', decay=0.75, reset='hard', v_reset=0"),
    "reset_with_the_charge": (reset_with_the_charge, "threshold=0.75, fire='>', decay=0.5, reset='soft', delay='with'"),
    "drops_the_input_too": (drops_the_input_too, "threshold=0.75, fire='>', decay=0.5, reset='hard', v_reset=0, delay='with'"),
    "one_minus_below": (one_minus_below, "threshold=[4], fire='>=', decay=0.5, bias=0.125, reset='hard', v_reset=0.25"),
    "sign_and_floor": (sign_and_floor, "threshold=0.5, fire='>', decay=1, reset='soft', reset_amount=0.25, floor=-0.5"),
    "floor_under_the_potential": (
        floor_under_the_potential,
        "threshold=0.5, fire='>', decay=0.5, reset='hard', v_reset=0, floor=0, delay='before'",
    ),
    "feeds_itself": (feeds_itself, "threshold=0.5, fire='>=', decay=0.5, reset='hard', v_reset=0.5"),
    "one_level": (one_level, "threshold=0.5, fire='>=', decay=0.5, reset='soft'"),
    "signed": (signed, "threshold=0.5, fire='>=', emit='signed', decay=0.5, reset='soft'"),
    "counts": (counts, "threshold=0.5, fire='>=', emit='count', decay=0.5, reset='soft'"),
    "straight_through": (straight_through, "threshold=0.5, fire='>', decay=0.5, reset='soft'"),
    "never_resets": (never_resets, "threshold=0.5, fire='>', decay=0.5, reset='none'"),
}


def adaptive_threshold(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    return (mem > 0.5 + 0.25 * spk).float(), mem


def quadratic(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = mem + 0.125 * mem * mem + x
    spk = (mem > 0.5).float()
    return spk, mem * (1 - spk)


def saturating(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = torch.tanh(0.5 * mem + x)
    spk = (mem > 0.5).float()
    return spk, mem - spk * 0.5


def refractory(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    """The negative potential counts the steps."""
    rests = mem < -1
    mem = torch.where(rests, mem + 1, 0.5 * mem + x)
    spk = ((mem > 0.5) & ~rests).float()
    return spk, torch.where(spk > 0, torch.full_like(mem, -3.0), mem)


def half_a_spike_on_the_threshold(m: Any, x: Tensor, mem: Tensor, spk: Tensor) -> State:
    mem = 0.5 * mem + x
    spk = (torch.sign(mem - 0.5) + 1) / 2
    return spk, mem - 0.5 * spk


OTHERS: dict[str, tuple[Body, str]] = {
    "adaptive_threshold": (adaptive_threshold, "it compares two values that both change over time"),
    "quadratic": (quadratic, "it is not linear below its threshold"),
    "saturating": (saturating, "it is not linear"),
    "refractory": (refractory, "it is not"),
    "half_a_spike_on_the_threshold": (half_a_spike_on_the_threshold, "its decision to fire is not a threshold"),
}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make().eval()


@pytest.fixture(scope="module")
def zoo() -> tuple[SpikingGraph, PassResult]:
    """The trace compares the graph with the model, in float32 before and in float64 after the passes, on every output."""
    model = seeded(lambda: Zoo({name: body for name, (body, _) in (SPELLINGS | OTHERS).items()}))
    seen: list[PassResult] = []
    run = LiftNeurons.run

    def kept(self: LiftNeurons, graph: SpikingGraph) -> PassResult:
        seen.append(run(self, graph))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiftNeurons, "run", kept)
        graph = snngraph.trace(model, torch.randn(3, 4, 3), time_dim=0)
    return graph, seen[0]


def note_of(result: PassResult, name: str) -> str:
    notes = [n.text for n in result.notes if f"(cells.{name})" in n.where]
    assert len(notes) == 1, notes
    return notes[0]


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(zoo: tuple[SpikingGraph, PassResult], name: str) -> None:
    graph, result = zoo
    assert note_of(result, name) == f"recognised as lif({SPELLINGS[name][1]})"
    (layer,) = (n for n in graph.neurons if n.name == f"cells.{name}")
    assert len(layer.nodes) == 1, "its steps were not merged"


@pytest.mark.parametrize("name", OTHERS)
def test_other_neurons_stay_as_operators(zoo: tuple[SpikingGraph, PassResult], name: str) -> None:
    graph, result = zoo
    assert OTHERS[name][1] in note_of(result, name)
    assert f"cells.{name}" not in {n.name for n in graph.neurons}


# -- networks ------------------------------------------------------------------------------------------------------------------


def lif(x: Tensor, mem: Any, decay: float = 0.75, threshold: float = 1.0) -> tuple[Tensor, Tensor]:
    """A neuron as a function: all its uses stand on the same lines."""
    mem = mem * decay + x
    spk = (mem > threshold).float()
    return spk, mem - spk * threshold


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(3.0)


class StepByStep(Network):
    """Neurons that read one another, a residual connection, three uses of one function."""

    def forward(self, x: Tensor) -> Tensor:
        m1: Any = 0.0
        m2 = m3 = m1
        out = []
        for frame in x:
            c = self.a(frame)
            s1, m1 = lif(c, m1)
            s2, m2 = lif(s1 + c, m2, 0.5)
            s3, m3 = lif(self.c(self.b(s2) + s1), m3)
            out.append(s3)
        return torch.stack(out)


class LayerByLayer(Network):
    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.a, self.b, self.c):
            mem: Any = 0.0
            out = []
            for frame in x:
                spk, mem = lif(layer(frame), mem)
                out.append(spk)
            x = torch.stack(out)
        return x


class Recurrent(Network):
    """What the neurons emit comes back through a layer; the readout is a leaky sum, not a neuron."""

    def forward(self, x: Tensor) -> Tensor:
        spk = mem = torch.zeros_like(self.a(x[0]))
        out = torch.zeros_like(self.c(spk))
        for frame in x:
            spk, mem = lif(self.a(frame) + self.b(spk), mem)
            out = 0.5 * out + self.c(spk)
        return out


class Recording(Network):
    """Time last; membrane potentials are recorded, and the last one returned."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        mem = torch.zeros_like(self.a(x[..., 0]))
        spikes, potentials = [], []
        for t in range(x.shape[-1]):
            spk, mem = lif(self.a(x[..., t]), mem)
            spikes.append(spk)
            potentials.append(mem)
        return torch.stack(spikes, -1), torch.stack(potentials), mem


@pytest.mark.parametrize(
    ("model", "shape", "layers", "steps"),
    [(StepByStep, (4, 2, 5), 3, 0), (LayerByLayer, (3, 2, 5), 3, 0), (Recurrent, (3, 2, 5), 0, 3), (Recording, (2, 5, 4), 1, 0)],
)
def test_networks(model: type[nn.Module], shape: tuple[int, ...], layers: int, steps: int) -> None:
    net = seeded(model)
    graph = snngraph.trace(net, torch.randn(shape) * 2, time_dim=2 if model is Recording else 0)
    text = graph.format()
    assert (text.count("= lif("), text.count("= lif_step("), " gt" in text) == (layers, steps, False)
    names = [layer.name for layer in graph.neurons]
    assert len(names) == len(set(names)) == max(layers, 1)
    assert all(name.startswith("test_lift_neurons:") for name in names), "named after the source line without a module"


def test_neurons_of_libraries_as_plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without their adapters: snnTorch's delayed resets, Norse's and SpikingJelly's own orders of operations."""
    snntorch = pytest.importorskip("snntorch")
    norse = pytest.importorskip("norse.torch")
    jelly = pytest.importorskip("spikingjelly.activation_based.neuron")
    monkeypatch.setattr(adapters, "_builtin", lambda: (adapters.SnnGraphNeurons(),))

    class Libraries(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(5, 4)
            self.leaky = snntorch.Leaky(beta=0.5)
            self.made_up_for = snntorch.Leaky(beta=0.5, reset_delay=False)
            self.synaptic = snntorch.Synaptic(alpha=0.25, beta=0.5, reset_mechanism="zero")
            self.norse = norse.LIFCell()
            self.jelly = jelly.LIFNode(tau=2.0, v_reset=-0.25)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            self.jelly.reset()
            mem, other, (syn, third), state = (
                self.leaky.reset_mem(),
                self.made_up_for.reset_mem(),
                self.synaptic.reset_mem(),
                None,
            )
            out: list[list[Tensor]] = [[], [], [], [], []]
            for frame in x:
                c = 2 * self.layer(frame)
                s0, mem = self.leaky(c, mem)
                s1, other = self.made_up_for(2 * c, other)
                s2, syn, third = self.synaptic(3 * c, syn, third)
                s3, state = self.norse(c * 8, state)
                for spikes, s in zip(out, (s0, s1, s2, s3, self.jelly(c)), strict=True):
                    spikes.append(s)
            return tuple(map(torch.stack, out))

    graph = snngraph.trace(seeded(Libraries), torch.randn(3, 2, 5), time_dim=0)
    lines = [
        line.partition("lif(")[2].partition(")")[0].partition(", ")[2] for line in graph.format().splitlines() if "= lif(" in line
    ]
    assert sorted(lines) == [
        "bias=-0.125, decay=0.5, input_gain=0.5, threshold=1.0, v=-0.25, v_reset=-0.25",
        "decay=0.5, delay='both', fire='>', reset='soft', threshold=1.0, v=0.0",
        "decay=0.5, delay='with', fire='>', reset='soft', threshold=1.0, v=0.0",
        "decay=0.5, delay='with', fire='>', syn_decay=0.25, threshold=1.0, v=0.0, v_reset=0.0",
        "decay=0.9, fire='>', input_gain=0.1, syn_decay=0.8, threshold=1.0, v=0.0, v_reset=0.0",
    ]


# -- graphs --------------------------------------------------------------------------------------------------------------------


def loop(
    steps: int, *body: str, start: str = "v = zeros_like(x0)", returns: str = "stack([{s}])", time: str = "time"
) -> SpikingGraph:
    """A loop as text: `{t}` is the step, `v` what it hands on. The inputs `x0`, `x1` ... are those of `x[T, N, 4]`."""
    static = time != "time"
    lines = [f"x[N, 4], T={steps} ->" if static else f"x[{steps}, N, 4] ->"]
    lines += ["weight = w[4, 4]"] + (["c = linear(x, weight) * 3.0"] if static else [])
    lines += [f"x{t} = " + ("c * 1.0" if static else f"linear(select(x, 0, {t}), weight) * 3.0") for t in range(steps)]
    lines += [start, *(line.replace("{t}", str(t)) for t in range(steps) for line in body)]
    lines.append(returns.replace("{s}", ", ".join(f"s{t}" for t in range(steps))))
    return Canonicalize()(parse("\n".join(lines))).graph


def spike(of: str = "h{t}", threshold: float = 0.5) -> str:
    return f"s{{t}} = _to_copy(ge.Scalar({of}, {threshold}), dtype='float64')"


CHARGE = "h{t} = v * 0.75 + x{t}"
HARD = "v = h{t} * sub.Tensor(1, s{t})"
MERGED = "x[3, N, 4] -> c = linear(flatten_time(x), w[4, 4]) * 3.0;"


def lifted(graph: SpikingGraph) -> SpikingGraph:
    result = LiftNeurons()(graph)
    assert result.changed
    assert_equivalent(graph, result.graph)
    assert not LiftNeurons()(result.graph).changed
    return result.graph


def test_each_step_is_a_step_of_the_operator() -> None:
    after = lifted(loop(2, CHARGE, spike(), HARD))
    step = "s{t} = lif_step(linear(select(x, 0, {t}), w[4, 4]) * 3.0, decay=0.75, threshold=0.5, reset='hard'{v})"
    steps = [step.replace("{t}", str(t)).replace("{v}", ", v=s0.v" if t else "") for t in range(2)]
    assert_graph(Canonicalize()(after).graph, "x[2, N, 4] -> " + "\n".join([*steps, "stack([s0.s, s1.s])"]))


def test_the_steps_merge() -> None:
    after = pipelines.capture()(loop(3, CHARGE, spike(), HARD)).graph
    assert_graph(after, MERGED + "lif(split_time(c), decay=0.75, threshold=0.5).s")


@pytest.mark.parametrize(
    ("start", "v0"), [("v = full_like(x0, 0.25)", "0.25"), ("v = zeros_like(x0) - 0.5", "-0.5"), ("v = ones_like(x0)", "1.0")]
)
def test_the_potential_before_the_first_step(start: str, v0: str) -> None:
    after = pipelines.capture()(loop(3, CHARGE, spike(), HARD, start=start)).graph
    assert_graph(after, MERGED + f"lif(split_time(c), decay=0.75, threshold=0.5, v={v0}).s")


def test_a_first_step_of_its_own() -> None:
    """It starts with the input itself where the other steps halve theirs: its input is made to fit, so nothing merges."""
    body = ("h{t} = v + ({x} - v) / 2.0", spike(), HARD)
    lines = [line.replace("{t}", str(t)).replace("{x}", f"select(x, 0, {t})") for t in range(3) for line in body]
    lines[0] = "h0 = select(x, 0, 0)"
    graph = lifted(parse("\n".join(["x[3, N, 4] ->", *lines, "stack([s0, s1, s2])"])))
    assert graph.format().count("lif_step(mul") == 1
    assert graph.format().count("lif_step(") == 3


def test_a_static_input() -> None:
    after = pipelines.capture()(loop(3, CHARGE, spike(), HARD, time="static")).graph
    assert_graph(
        after,
        "x[N, 4], T=3 -> c = linear(x, w[4, 4]) * 3.0;"
        "lif(expand(reshape(c, [1, -1, 4]), [3, -1, 4]), decay=0.75, threshold=0.5).s",
    )
    assert after.format().count("lif(") == 1


def test_a_static_input_that_is_the_first_potential() -> None:
    body = ("h{t} = v * 0.75 + c", spike(), HARD)
    first = [line.replace("{t}", "0") for line in ("h{t} = c * 1.0", *body[1:])]
    rest = [line.replace("{t}", str(t)) for t in (1, 2, 3) for line in body]
    text = "\n".join(["x[N, 4], T=4 ->", "c = linear(x, w[4, 4]) * 3.0", *first, *rest, "stack([s0, s1, s2, s3])"])
    after = pipelines.capture()(Canonicalize()(parse(text)).graph).graph
    assert "lif(" in after.format()
    assert_equivalent(parse(text), after)


def test_what_is_recorded_reads_the_operator() -> None:
    graph = loop(3, CHARGE, spike(), "v = h{t} - s{t} * 0.5", "r{t} = v * 2.0", returns="stack([{s}]), stack([r0, r1, r2]), v")
    after = pipelines.capture()(lifted(graph)).graph
    assert_equivalent(graph, after)
    text = after.format()
    assert "with_h=True" in text
    assert " ge" not in text


def test_several_inputs_with_weights() -> None:
    y = "\n".join(["other = u[4, 4]", *(f"y{t} = linear(select(x, 0, {t}), other)" for t in range(3))])
    graph = loop(3, "h{t} = (v - x{t}) * 0.75 + y{t}", spike(), HARD, start="v = zeros_like(x0)\n" + y)
    after = pipelines.capture()(graph).graph
    assert "lif_step" not in after.format()
    assert_equivalent(graph, after)


def test_a_synapse() -> None:
    body = ("i = i * 0.5 + x{t} * 2.0", "h{t} = v * 0.75 + (i - 0.25) * 0.5", spike(), HARD)
    graph = loop(3, *body, start="v = zeros_like(x0)\ni = full_like(x0, 0.25)")
    after = pipelines.capture()(graph).graph
    (note,) = (n.text for n in LiftNeurons()(graph).notes)
    assert note == (
        "recognised as lif(threshold=0.5, fire='>=', decay=0.75, reset='hard', v_reset=0, "
        "input_gain=0.5, bias=-0.125, syn_decay=0.5)"
    )
    assert "lif_step" not in after.format()
    assert "i=0.25" in after.format()
    assert_equivalent(graph, after)


def test_a_recurrent_connection_stays_stepped() -> None:
    graph = loop(3, "h{t} = v * 0.75 + x{t} + r", spike(), HARD, "r = linear(s{t}, u[4, 4])", start="v = zeros_like(x0)\nr = v")
    text = pipelines.capture()(lifted(graph)).graph.format()
    assert (text.count("lif_step("), " ge" in text) == (3, False)


def test_two_neurons_that_are_alike_at_the_first_step() -> None:
    body = ("h{t} = v * 0.75 + x{t}", spike(), HARD, "k{t} = u * 0.5 + x{t}", spike("k{t}").replace("s{t}", "r{t}", 1))
    graph = loop(
        3, *body, "u = k{t} - r{t} * 0.5", start="v = zeros_like(x0)\nu = v", returns="stack([{s}]), stack([r0, r1, r2])"
    )
    text = lifted(graph).format()
    assert (text.count("lif_step("), " ge" in text) == (6, False)


def test_a_mask_that_somebody_reads() -> None:
    read = "stack([{s}]), where.self(ge.Scalar(h2, 0.5), x2, x1)"
    after = lifted(loop(3, CHARGE, spike(), HARD, returns=read))
    assert "gt.Scalar" in after.format(), "a mask of the spikes"
    assert " ge" not in after.format()


def test_many_steps_and_many_neurons() -> None:
    """Thresholds of 600 neurons: more than are tried on every number."""
    lines = ["x[40, N, 600] ->", "v = zeros_like(select(x, 0, 0))", "th = abs(m[600]) + 0.25"]
    for t in range(40):
        lines += [f"h{t} = v * d[600] + select(x, 0, {t})", f"s{t} = _to_copy(gt.Tensor(h{t}, th), dtype='float64')"]
        lines += [f"v = h{t} - s{t} * th"]
    graph = Canonicalize()(parse("\n".join([*lines, f"stack([{', '.join(f's{t}' for t in range(40))}])"]))).graph
    after = pipelines.capture()(graph).graph
    assert_equivalent(graph, after, batches=(1,))
    assert after.format().count("lif(") == 1


@pytest.mark.parametrize(("compare", "fires"), [("ge", True), ("gt", False)])
@pytest.mark.parametrize("form", ["{c}.Scalar({h}, 0.3)", "{c}.Scalar({h} - 0.3, 0)", "{c}.Scalar({h} / 0.3 - 1.0, 0)"])
def test_exactly_at_the_threshold(compare: str, fires: bool, form: str) -> None:
    form = form.replace("{c}", compare).replace("{h}", "h{t}")
    text = "x[2, N, 4] ->\nx0 = select(x, 0, 0)\nx1 = select(x, 0, 1)\nv = zeros_like(x0)\n"
    for t in range(2):
        body = ("h{t} = v * 0.75 + x{t}", f"s{{t}} = _to_copy({form}, dtype='float64')", HARD)
        text += "\n".join(body).replace("{t}", str(t)) + "\n"
    before = Canonicalize()(parse(text + "stack([s0, s1])")).graph
    after = pipelines.capture()(before).graph
    assert "lif(" in after.format()
    x = torch.tensor([0.3, 0.0, 1.0, -1.0], dtype=torch.float64).expand(2, 1, 4)
    assert float(after(x)[0, 0, 0]) == float(fires)
    assert torch.equal(before(x)[0], after(x)[0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (("h{t} = v * 0.75 + x{t}", spike(), "v = h{t} - s{t} * h{t} * h{t}"), "its reset is neither"),
        (("h{t} = v * 0.75 + x{t} - b * 0.25", spike(), HARD, "b = b * 0.5 + s{t}"), "more of its past"),
        (("h{t} = v * 0.75 + x{t} * x{t}", "q{t} = h{t} + x{t} * v", spike("q{t}"), HARD), "not added to its membrane"),
        (("h{t} = v * 0.75 + x{t}", "s{t} = _to_copy(ge.Tensor(h{t}, b), dtype='float64')", HARD, "b = b + s{t}"), "two values"),
        (("h{t} = v * 0.75 + x{t}", "s{t} = _to_copy(ge.Scalar(h{t} * h{t}, 0.5), dtype='float64')", HARD), "decision to fire"),
        (("h{t} = v * 0.{t}5 + x{t}", spike(), HARD), "it is not lif("),
        (("h{t} = exp(v) * 0.25 + x{t}", spike(), HARD), "it is not linear below its threshold"),
    ],
)
def test_refusals_say_why(body: tuple[str, ...], reason: str) -> None:
    graph = loop(4, *body, start="v = zeros_like(x0)\nb = ones_like(x0)")
    result = LiftNeurons()(graph)
    assert not result.changed
    assert [reason in n.text for n in result.notes] == [True], [n.text for n in result.notes]


@pytest.mark.parametrize(
    ("charge", "threshold"),
    [
        ("clamp(v * 0.75 + x{t}, -50.0, 50.0)", 0.0009765625),  # far beyond the threshold
        ("where.self(bitwise_and(gt.Scalar(v, 0.25), lt.Scalar(v, 0.2501)), zeros_like(v), v) * 0.75 + x{t}", 0.5),  # in between
    ],
)
def test_what_bends_far_from_the_threshold_is_seen(charge: str, threshold: float) -> None:
    graph = loop(4, f"h{{t}} = {charge}", spike(threshold=threshold), HARD)
    result = LiftNeurons()(graph)
    assert not result.changed
    assert ["it is not lif(" in n.text for n in result.notes] == [True], [n.text for n in result.notes]


class ClampedAtFirst(nn.Module):
    """Its first step alone clamps what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """`[T, N, C]` to the potentials after every step."""
        v, kept = torch.zeros_like(x[0]), []
        for t in range(len(x)):
            v = v * 0.75 + (x[t].clamp(-20.0, 20.0) if t == 0 else x[t])
            v = v - (v >= 1.0).float()
            kept.append(v)
        return torch.stack(kept)


def test_a_first_step_that_clamps() -> None:
    model, x = ClampedAtFirst().eval(), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    graph = snngraph.trace(model, x)
    assert "lif_step(" in graph.format()
    assert torch.allclose(graph(100 * x), model(100 * x).to(graph(x).dtype), atol=1e-3)


def test_nothing_to_lift() -> None:
    one = parse("x[1, N, 4] -> s = _to_copy(ge.Scalar(select(x, 0, 0), 0.5), dtype='float64'); stack([s])")
    none = parse("x[3, N, 4] -> lif(relu(x), decay=0.5).s")
    for graph in (one, none):
        result = LiftNeurons()(graph)
        assert (result.changed, result.notes) == (False, ())


relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@relaxed
@given(spelling=spellings())
def test_random_spellings(spelling: Spelling) -> None:
    graph = Canonicalize()(parse(spelling.text)).graph
    result = LiftNeurons()(graph)
    assert sum(is_op(n, LIF_STEP) for n in result.graph.nodes) == spelling.steps, [n.text for n in result.notes]
    assert_equivalent(graph, result.graph)


@relaxed
@given(spelling=spellings(broken=True))
def test_random_imitations_are_left_alone(spelling: Spelling) -> None:
    result = LiftNeurons()(Canonicalize()(parse(spelling.text)).graph)
    assert not result.changed
    assert result.notes
