"""The snn:: operators against an oracle in NumPy, plain autograd, and PyTorch's own operator checks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from snngraph import ops

T, N, C = 5, 2, 3
Array = NDArray[np.float64]

# -- cases ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One call of `ops.lif`: tensors and options, with nothing left to chance but the numbers."""

    x: Tensor
    tensors: Mapping[str, Tensor]
    options: dict[str, str]

    @property
    def keywords(self) -> dict[str, Any]:
        return {**self.tensors, **self.options}

    def to(self, dtype: torch.dtype) -> Case:
        tensors = {k: a.to(dtype) if a.dim() else a for k, a in self.tensors.items()}
        return Case(self.x.to(dtype), tensors, self.options)

    def step(self, t: int) -> dict[str, Any]:
        gain = self.tensors.get("gain")
        if gain is None or gain.dim() < self.x.dim():
            return self.keywords
        return {**self.keywords, "gain": gain[t if len(gain) > 1 else 0]}

    def after(self, out: ops.NeuronOutput) -> Case:
        """The same neuron, in the state `out` left it in."""
        state = {"v": out.v, "i": out.i} if out.i.numel() else {"v": out.v}
        return Case(self.x, {**self.tensors, **state}, self.options)

    def part(self, start: int, stop: int) -> Case:
        gain = self.tensors.get("gain")
        varies = gain is not None and gain.dim() == self.x.dim() and len(gain) > 1
        tensors = {**self.tensors, "gain": gain[start:stop]} if gain is not None and varies else self.tensors
        return Case(self.x[start:stop], tensors, self.options)


STEP_SHAPES = [(), (C,), (1, C), (N, 1), (N, C)]
RANGES = {
    "v": (-1.0, 1.0),
    "decay": (0.25, 1.0),
    "threshold": (0.25, 1.0),
    "input_gain": (0.5, 2.0),
    "bias": (-0.25, 0.25),
    "v_reset": (-0.5, 0.25),
    "reset_amount": (0.25, 1.0),
    "gain": (0.25, 1.5),
    "i": (-0.5, 0.5),
    "syn_decay": (0.25, 0.75),
    "syn_gain": (0.5, 1.0),
    "floor": (-1.0, -0.25),
    "level": (0.5, 2.0),
}
RESETS = [(r, d) for r, d in itertools.product(ops.RESET, ops.DELAY) if d != "both" or r == "soft"]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    quantised = draw(st.booleans())

    def number(low: float, high: float, shape: tuple[int, ...]) -> Tensor:
        values = low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)
        return (values * 8).round() / 8 if quantised else values

    reset, delay = draw(st.sampled_from(RESETS))
    names = {"v", "decay", "threshold"} | draw(st.sets(st.sampled_from(sorted(RANGES))))
    if "syn_decay" not in names:
        names -= {"i", "syn_gain"}
    names |= {"v_reset"} if reset == "hard" else set()
    tensors = {}
    for name in sorted(names):
        shapes = [*STEP_SHAPES, (T, 1, 1), (T, N, C), (1, N, C)] if name == "gain" else STEP_SHAPES
        tensors[name] = number(*RANGES[name], draw(st.sampled_from(shapes)))
    options = {
        "fire": draw(st.sampled_from(ops.FIRE)),
        "emit": draw(st.sampled_from(ops.EMIT)),
        "reset": reset,
        "delay": delay,
        "surrogate": draw(st.sampled_from(ops.SURROGATES)),
    }
    return Case(number(-1.5, 2.5, (T, N, C)), tensors, options)


SOME = settings(max_examples=80, deadline=None)
FEW = settings(max_examples=40, deadline=None)


# -- values --------------------------------------------------------------------------------------------------------------------


def oracle(case: Case) -> dict[str, Array]:
    """The canonical neuron as DESIGN.md states it, written a second time."""
    p = {k: a.numpy() for k, a in case.tensors.items()}
    o = case.options
    v, i = np.broadcast_to(p["v"], (N, C)), np.broadcast_to(p.get("i", np.zeros(())), (N, C))
    amount = p.get("reset_amount", p["threshold"])

    def emitted(h: Array) -> Array:
        if o["emit"] == "count":
            return cast(Array, np.trunc(np.maximum(h, 0.0) / p["threshold"]))
        above, below = (
            (h >= p["threshold"], -h >= p["threshold"]) if o["fire"] == ">=" else (h > p["threshold"], -h > p["threshold"])
        )
        return above.astype(np.float64) - (below.astype(np.float64) if o["emit"] == "signed" else 0.0)

    def after_reset(h: Array, fired: Array) -> Array:
        if o["reset"] == "hard":
            return np.where(fired != 0, p["v_reset"], h)
        return h - fired * amount if o["reset"] == "soft" else h

    out: dict[str, list[Array]] = {"s": [], "h": []}
    for t in range(T):
        stored = emitted(v)
        x = case.x[t].numpy()
        if "gain" in p:
            gain = p["gain"]
            x = (gain[t % len(gain)] if gain.ndim == 3 else gain) * x
        if "syn_decay" in p:
            i = p["syn_decay"] * i + p.get("syn_gain", 1.0) * x
            x = i
        if o["delay"] == "before":
            v = after_reset(v, stored)
        h = p["decay"] * v + p.get("input_gain", 1.0) * x + p.get("bias", 0.0)
        if o["delay"] in ("with", "both"):
            h = after_reset(h, stored)
        if "floor" in p and o["delay"] in ("before", "with"):
            h = np.maximum(h, p["floor"])
        s = emitted(h)
        v = h
        if o["delay"] in ("none", "both"):
            v = after_reset(h, s - stored if o["delay"] == "both" else s)
            v = np.maximum(v, p["floor"]) if "floor" in p else v
        out["s"].append(p.get("level", 1.0) * s)
        out["h"].append(h)
    state = {"v": v, "i": i if "syn_decay" in p else np.zeros(0)}
    return {name: np.stack(steps) for name, steps in out.items()} | state


@SOME
@given(cases())
def test_lif_is_what_the_design_says(case: Case) -> None:
    out = ops.lif(case.x, **case.keywords, with_h=True)
    for name, expected in oracle(case).items():
        np.testing.assert_array_equal(getattr(out, name).numpy(), expected, err_msg=name)


@SOME
@given(cases(), st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
def test_lif_is_lif_step_in_a_loop_bit_for_bit(case: Case, dtype: torch.dtype) -> None:
    case = case.to(dtype)
    whole = ops.lif(case.x, **case.keywords, with_h=True)
    current = case
    for t in range(T):
        step = ops.lif_step(case.x[t], **current.step(t))
        assert torch.equal(step.s, whole.s[t])
        assert torch.equal(step.h, whole.h[t])
        current = current.after(step)
    assert torch.equal(step.v, whole.v)
    assert torch.equal(step.i, whole.i)


@FEW
@given(cases(), st.integers(1, T - 1))
def test_state_carries_over_two_calls(case: Case, cut: int) -> None:
    whole = ops.lif(case.x, **case.keywords)
    first = ops.lif(case.part(0, cut).x, **case.part(0, cut).keywords)
    rest = case.part(cut, T).after(first)
    second = ops.lif(rest.x, **rest.keywords)
    assert torch.equal(torch.cat([first.s, second.s]), whole.s)
    assert torch.equal(second.v, whole.v)
    assert torch.equal(second.i, whole.i)


@FEW
@given(cases(), st.booleans())
def test_plain_arithmetic_is_the_same_bit_for_bit(case: Case, with_h: bool) -> None:
    expected = ops.lif(case.x, **case.keywords, with_h=with_h)
    with ops.plain_arithmetic():
        found = ops.lif(case.x, **case.keywords, with_h=with_h)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_numbers_keep_their_digits() -> None:
    """0.1 rounded to float32 and back is another number: float64 runs must not see it, float32 runs must."""
    for dtype in (torch.float64, torch.float32):
        x = torch.ones(3, 1, dtype=dtype)
        out = ops.lif(x, 0.3, decay=0.1, threshold=10.0)
        v = torch.full((1,), 0.3, dtype=dtype)
        for frame in x:
            v = v * 0.1 + frame
        assert torch.equal(out.v, v)
        assert out.v.dtype == dtype


def test_a_number_and_a_per_channel_parameter_decide_in_the_dtype_of_the_input() -> None:
    for delay in ("before", "with"):
        out = ops.lif(torch.ones(2, 3), 0.0, threshold=torch.tensor([0.5, 1.0, 2.0]), delay=delay)
        assert [a.dtype for a in out] == [torch.float32] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_exact_where_the_numbers_are(dtype: torch.dtype) -> None:
    x = torch.randint(-4, 8, (6, 4, 8), generator=torch.Generator().manual_seed(0)).double() / 4
    expected = ops.lif(x, decay=0.5, threshold=0.75, reset="soft", floor=-1.0)
    found = ops.lif(x.to(dtype), decay=0.5, threshold=0.75, reset="soft", floor=-1.0)
    assert found.s.dtype == found.v.dtype == dtype
    assert 0.05 < expected.s.mean() < 0.6
    assert torch.equal(found.s.double()[:3], expected.s[:3])


@pytest.mark.parametrize("emit", ops.EMIT)
@pytest.mark.parametrize(("reset", "delay"), RESETS)
def test_numbers_follow_the_input_to_another_device(reset: str, delay: str, emit: str) -> None:
    numbers = {name: high for name, (_, high) in RANGES.items()}
    with ops.plain_arithmetic():  # the arithmetic itself; the meta device refuses what a GPU would
        out = ops.lif(torch.empty(T, N, C, device="meta"), **numbers, reset=reset, delay=delay, emit=emit)
    assert {a.device.type for a in out} == {"meta"}


def test_tensors_of_any_layout() -> None:
    x = torch.randn(N, C, T).permute(2, 0, 1)
    assert torch.equal(ops.lif(x, threshold=0.5).s, ops.lif(x.contiguous(), threshold=0.5).s)


# -- infinities ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", ["none", "before", "with"])
def test_a_hard_reset_forgets_an_infinite_potential(delay: str) -> None:
    x = torch.tensor([[math.inf, 1.0, -math.inf], [0.25, 0.25, 0.25], [0.25, 0.25, 0.25]])
    out = ops.lif(x, decay=0.5, delay=delay, with_h=True)
    assert not out.h.isnan().any()
    assert out.s[0].tolist() == [1.0, 1.0, 0.0]
    assert torch.equal(out.h[1:, 0], out.h[1:, 1])  # whatever made it fire
    assert (out.h[:, 2] == -math.inf).all()


@pytest.mark.parametrize("reset", ["soft", "none"])
def test_an_infinite_potential_stays_infinite_without_a_hard_reset(reset: str) -> None:
    out = ops.lif(torch.tensor([[math.inf, -math.inf], [0.0, 0.0]]), decay=0.5, reset=reset)
    assert out.v.tolist() == [math.inf, -math.inf]


def test_an_infinite_reset_value_or_threshold_is_only_selected() -> None:
    out = ops.lif(torch.tensor([[0.25, 1.5], [0.5, 0.5]]), v_reset=-math.inf)
    assert out.v.tolist() == [0.75, -math.inf]
    assert not ops.lif(torch.ones(2, 1), threshold=math.inf).s.any()


# -- shapes, dtypes, PyTorch's checks ------------------------------------------------------------------------------------------


@FEW
@given(
    cases(),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.sampled_from(["lif", "lif with h", "lif_step"]),
)
def test_fake_outputs_have_the_real_shapes_and_dtypes(case: Case, dtype: torch.dtype, which: str) -> None:
    case = case.to(dtype)

    def call(case: Case) -> ops.NeuronOutput:
        if which == "lif_step":
            return ops.lif_step(case.x[0], **case.step(0))
        return ops.lif(case.x, **case.keywords, with_h=which == "lif with h")

    real = call(case)
    with FakeTensorMode() as mode:
        tensors = {k: mode.from_tensor(a) for k, a in case.tensors.items()}
        fake = call(Case(mode.from_tensor(case.x), tensors, case.options))
    assert [(a.shape, a.dtype, a.stride()) for a in fake] == [(a.shape, a.dtype, a.stride()) for a in real]
    assert all(a.dtype == dtype for a in real)
    assert len({a.data_ptr() for a in real if a.numel()}) == sum(a.numel() > 0 for a in real)


FULL = {name: high for name, (_, high) in RANGES.items()}
SAMPLE: list[dict[str, Any]] = [
    {},
    {"reset": "none"},
    {"reset": "soft", "reset_amount": 0.5, "emit": "count", "floor": -1.0},
    {"reset": "hard", "delay": "with", "fire": ">", "syn_decay": 0.5, "i": 0.25},
    {"reset": "soft", "delay": "both", "emit": "signed", "syn_decay": 0.5},
    {**FULL, "surrogate": "piecewise", "detach_reset": True},
]


@pytest.mark.parametrize(
    ("which", "options"), [("lif", SAMPLE[0]), ("lif", SAMPLE[2]), ("lif", SAMPLE[4]), *(("lif_step", o) for o in SAMPLE[1::2])]
)
def test_opcheck(which: str, options: dict[str, Any]) -> None:
    options = {k: ops.scalar(a) if isinstance(a, float) else a for k, a in ({"v_reset": 0.0} | options).items()}
    x = torch.randn(*((T, N, C) if which == "lif" else (N, C)), requires_grad=True)
    v = torch.zeros(N, C, requires_grad=True)
    threshold = torch.full((C,), 0.5, requires_grad=True)
    arguments = (x, options.pop("v", v), options.pop("decay", ops.scalar(0.5)), options.pop("threshold", threshold))
    torch.library.opcheck(getattr(torch.ops.snn, which).default, cast(Any, arguments), options)


@pytest.mark.parametrize("plain", [False, True])
def test_export_is_bitwise(plain: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(C, C)
            self.threshold = nn.Parameter(torch.rand(C) + 0.25)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            out = ops.lif(self.linear(x), decay=0.5, threshold=self.threshold, syn_decay=0.25, delay="with", reset="soft")
            step = ops.lif_step(out.s[-1], out.v, threshold=self.threshold, floor=-1.0)
            return out.s, step.v

    net, x = Net().eval(), torch.randn(T, N, C)
    batch = torch.export.Dim("batch", min=1, max=64)
    if plain:
        with ops.plain_arithmetic():
            program = torch.export.export(net, (x,), dynamic_shapes=({1: batch},), strict=False)
    else:
        program = torch.export.export(net, (x,), dynamic_shapes=({1: batch},), strict=False)
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {target for target in called if "snn" in target} == (set() if plain else {"snn.lif.default", "snn.lif_step.default"})
    for example in (x, torch.randn(T, 7, C)):
        for found, expected in zip(program.module()(example), net(example), strict=True):
            assert torch.equal(found, expected)


def test_plain_arithmetic_ends_with_its_block() -> None:
    def with_an_error() -> None:
        with ops.plain_arithmetic():
            raise KeyError

    with pytest.raises(KeyError):
        with_an_error()
    x = torch.ones(1, 1, requires_grad=True)
    assert "GeneratedBackwardFor_snn_lif" in type(ops.lif(x).s.grad_fn).__name__
    with ops.plain_arithmetic():
        assert "snn" not in type(ops.lif(x).s.grad_fn).__name__


# -- gradients -----------------------------------------------------------------------------------------------------------------


def gradients(case: Case, step: bool, **options: Any) -> dict[str, Tensor]:
    """Of a random combination of every output, by the input and by every tensor parameter."""
    leaves = {k: a.clone().requires_grad_() for k, a in case.tensors.items()}
    x = (case.x[0] if step else case.x).clone().requires_grad_()
    leafy = Case(case.x, leaves, case.options)
    out = ops.lif_step(x, **leafy.step(0), **options) if step else ops.lif(x, **leafy.keywords, with_h=True, **options)
    random = torch.Generator().manual_seed(0)
    loss = sum((a * torch.randn(a.shape, generator=random, dtype=a.dtype)).sum() for a in out)
    leaves["x"] = x
    found = torch.autograd.grad(cast(Tensor, loss), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@SOME
@given(cases(), st.booleans(), st.booleans())
def test_gradients_are_those_of_plain_arithmetic(case: Case, step: bool, detach_reset: bool) -> None:
    found = gradients(case, step, detach_reset=detach_reset, alpha=1.5)
    with ops.plain_arithmetic():
        expected = gradients(case, step, detach_reset=detach_reset, alpha=1.5)
    for name, gradient in expected.items():
        assert found[name].shape == gradient.shape, name
        assert torch.allclose(found[name], gradient, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("emit", ["spike", "signed"])
@pytest.mark.parametrize(("reset", "delay"), RESETS)
def test_gradients_away_from_the_threshold_are_numerically_right(reset: str, delay: str, emit: str) -> None:
    """A triangle narrower than the distance to the threshold has no slope: what is left can be differentiated numerically."""
    random = torch.Generator().manual_seed(0)
    shapes = {"v": (N, C), "decay": (C,), "gain": (T, 1, C), "i": (N, 1)}
    tensors = {
        k: (low + (high - low) * torch.rand(shapes.get(k, ()), generator=random, dtype=torch.float64)).requires_grad_()
        for k, (low, high) in RANGES.items()
    }
    options: dict[str, Any] = {"reset": reset, "delay": delay, "emit": emit, "surrogate": "piecewise", "alpha": 1e4}

    def run(x: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        out = ops.lif(x, **dict(zip(tensors, values, strict=True)), **options, with_h=True)
        return out.v, out.h

    def distance(x: Tensor) -> float:
        """Between any potential and the next place where the neuron's decision, or its floor, changes."""
        v, h = run(x, *tensors.values())
        stored = torch.cat([tensors["v"][None], h, v[None]])
        return min(
            (stored - limit).abs().min().item() for limit in (tensors["threshold"], -tensors["threshold"], tensors["floor"])
        )

    candidates = (torch.randn(T, N, C, generator=random, dtype=torch.float64) for _ in range(200))
    x = next(x for x in candidates if distance(x) > 1e-3)
    assert run(x, *tensors.values())[1].ge(tensors["threshold"]).any()
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), *tensors.values()), eps=1e-7, atol=1e-5)


def primitive(kind: str, u: Tensor, alpha: float) -> Tensor:
    """The smooth step whose derivative stands for the spike's."""
    if kind == "atan":
        return torch.atan(torch.pi / 2 * alpha * u) / torch.pi + 0.5
    if kind == "sigmoid":
        return torch.sigmoid(alpha * u)
    inside = -(alpha**2) / 2 * u.abs() * u + alpha * u + 0.5
    return torch.where(u.abs() > 1 / alpha, (u > 0).to(u.dtype), inside)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 4.0])
@pytest.mark.parametrize("surrogate", ops.SURROGATES)
def test_the_surrogate_is_the_derivative_of_its_primitive(surrogate: str, alpha: float) -> None:
    """Checked by central differences, in float64."""
    u = torch.linspace(-3, 3, 602, dtype=torch.float64)
    eps = 1e-6
    expected = (primitive(surrogate, u + eps, alpha) - primitive(surrogate, u - eps, alpha)) / (2 * eps)
    x, threshold = (u + 0.75).requires_grad_(), torch.full_like(u, 0.75).requires_grad_()
    s = ops.lif_step(x, threshold=threshold, surrogate=surrogate, alpha=alpha).s
    to_x, to_threshold = torch.autograd.grad(s.sum(), (x, threshold))
    torch.testing.assert_close(to_x, expected, rtol=0, atol=1e-5)
    assert torch.equal(to_threshold, -to_x)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("reset", ["hard", "soft"])
def test_two_steps_by_hand(reset: str, detach_reset: bool) -> None:
    """ds1/dx0 through the membrane and, unless it is detached, through the reset."""
    x = torch.tensor([[0.4, 1.2], [0.3, 0.6]], dtype=torch.float64, requires_grad=True)
    decay, v_reset, alpha = 0.5, -0.25, 1.5
    s = ops.lif(x, decay=decay, reset=reset, v_reset=v_reset, surrogate="sigmoid", alpha=alpha, detach_reset=detach_reset).s
    (found,) = torch.autograd.grad(s[1].sum(), x)

    def slope(h: Tensor) -> Tensor:
        sigmoid = torch.sigmoid(alpha * (h - 1))
        return alpha * sigmoid * (1 - sigmoid)

    x0, x1 = x.detach()
    fired = (x0 >= 1).double()
    v = torch.where(fired > 0, v_reset, x0) if reset == "hard" else x0 - fired
    kept = (1 - fired) if reset == "hard" else torch.ones_like(x0)
    if not detach_reset:
        kept = kept + slope(x0) * (v_reset - x0 if reset == "hard" else -1)
    to_h1 = slope(decay * v + x1)
    torch.testing.assert_close(found, torch.stack([to_h1 * decay * kept, to_h1]), rtol=1e-12, atol=0)


def test_counts_and_signed_spikes_have_a_slope() -> None:
    h = torch.tensor([-1.5, -0.5, 0.5, 3.5], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    count = ops.lif_step(h, threshold=threshold, emit="count", reset="none").s
    assert count.tolist() == [0.0, 0.0, 1.0, 7.0]
    to_h, to_threshold = torch.autograd.grad(count.sum(), (h, threshold))
    assert to_h.tolist() == [0.0, 0.0, 2.0, 2.0]
    assert to_threshold.item() == -(0.5 + 3.5) / 0.25

    signed = ops.lif_step(h, threshold=threshold, emit="signed", reset="none", surrogate="piecewise", alpha=1.0).s
    assert signed.tolist() == [-1.0, -1.0, 1.0, 1.0]
    to_h, to_threshold = torch.autograd.grad(signed.sum(), (h, threshold))
    above, below = ((1 - (h.detach() + sign * 0.5).abs()).clamp(min=0) for sign in (-1, 1))
    assert torch.equal(to_h, above + below)
    assert to_threshold.item() == (below - above).sum().item()


def test_no_gradient_flows_into_what_does_not_ask_for_it() -> None:
    x = torch.randn(T, N, C)
    weight = torch.ones((), requires_grad=True)
    out = ops.lif(x, decay=weight, threshold=0.5)
    (gradient,) = torch.autograd.grad(out.s.sum(), weight)
    assert gradient.shape == ()
    assert not ops.lif(x).s.requires_grad
    ops.lif(x, decay=weight).v.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("options", [{"reset": "hard"}, {"reset": "soft", "syn_decay": 0.5}])
def test_training_reduces_the_loss(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 2))
    decay = nn.Parameter(torch.tensor(0.5))
    x = (torch.rand(8, 32, 8) < 0.5).float()
    label = (x[:, :, :4].sum((0, 2)) > x[:, :, 4:].sum((0, 2))).long()
    optimiser = torch.optim.Adam([*layers.parameters(), decay], lr=0.02)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        hidden = ops.lif(layers[0](x), decay=decay, threshold=0.5, **options).s
        loss = nn.functional.cross_entropy(layers[1](hidden).mean(0), label)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert decay.item() != 0.5


# -- what is refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [ops.lif, ops.lif_step])
@pytest.mark.parametrize("option", ["fire", "reset", "delay", "emit", "surrogate"])
def test_an_unknown_option_is_refused(call: Any, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}='sometimes': expected one of"):
        call(torch.ones(2, 2), **{option: "sometimes"})


@pytest.mark.parametrize("reset", ["hard", "none"])
def test_both_is_for_soft_resets(reset: str) -> None:
    with pytest.raises(ValueError, match="soft reset"):
        ops.lif(torch.ones(2, 2), delay="both", reset=reset)


@pytest.mark.parametrize(
    ("x", "keywords", "message"),
    [
        (torch.ones(T, N, C), {"threshold": torch.ones(C, dtype=torch.float64)}, "threshold has dtype"),
        (torch.ones(T, N, C), {"v": torch.ones(N, C).half()}, "v has dtype"),
        (torch.ones(T, N, C), {"decay": torch.ones(C + 1)}, "decay has shape"),
        (torch.ones(T, N, 1), {"decay": torch.ones(C)}, "decay has shape"),
        (torch.ones(T, N, C), {"bias": torch.ones(T, N, C)}, "bias has shape"),
        (torch.ones(T, N, C), {"gain": torch.ones(T - 1, N, C)}, "gain has shape"),
        (torch.ones(T, N, C), {"gain": torch.ones(1, T, N, C)}, "gain has shape"),
        (torch.ones(T, N, C, dtype=torch.int64), {}, "floating-point"),
        (torch.ones(T), {}, "expected a floating-point tensor"),
        (torch.ones(0, N, C), {}, "no time step"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(x: Tensor, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.lif(x, **keywords)
    if "no time step" not in message:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(ValueError, match=message):
            ops.lif(mode.from_tensor(x), **keywords)


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(RuntimeError, match="tau"):
        ops.lif(torch.ones(2, 2), tau=2.0)
