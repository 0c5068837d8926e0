"""Nets with hand-written neurons, in the styles that people write them in."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.compatibility.case import FEATURES, Built, Case, N, T


class _Surrogate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u > 0).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (u,) = ctx.saved_tensors
        return grads[0] / (1 + u.abs()) ** 2


def surrogate(u: Tensor) -> Tensor:
    return _Surrogate.apply(u)  # type: ignore[no-any-return, no-untyped-call]


def built(model: nn.Module, *shape: int) -> Built:
    return model.eval(), torch.rand(shape or (T, N, FEATURES), generator=torch.Generator().manual_seed(1)) * 2


class Lists(nn.Module):
    """Two layers, states in local variables, lists stacked at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(FEATURES, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        first, second = torch.zeros(x.shape[1], 16), torch.zeros(x.shape[1], 5)
        spikes, potentials = [], []
        for t in range(x.shape[0]):
            first = 0.9 * first + self.a(x[t])
            s = surrogate(first - 0.4)
            first = first * (1 - s)
            second = 0.8 * second + self.b(s)
            out = surrogate(second - 0.2)
            second = second - out * 0.2
            spikes.append(out)
            potentials.append(second)
        return torch.stack(spikes), torch.stack(potentials)


class Body(nn.Module):
    """One layer: `step(self, current, v, s)` gives spikes and the new state; `layout` says where time stands."""

    def __init__(self, step: Callable[[Any, Tensor, Any, Any], tuple[Tensor, Tensor]], layout: str = "time first") -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(FEATURES, 16), nn.GroupNorm(2, 16)
        self.beta = nn.Parameter(torch.linspace(0.5, 0.9, 16))
        self.tau: Tensor
        self.register_buffer("tau", torch.tensor(2.0))
        self.step, self.layout = step, layout

    def forward(self, x: Tensor) -> Tensor:
        axis = {"time first": 0, "batch first": 1, "time last": 2}[self.layout]
        v: Any = torch.zeros(x.shape[1 if axis == 0 else 0], 16).to(x.device)
        s: Any = torch.zeros_like(v)
        out = []
        for t in range(x.shape[axis]):
            s, v = self.step(self, self.fc(x.select(axis, t)), v, s)
            out.append(s)
        return torch.stack(out, axis)


def hard(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = v * 0.5 + i
    s = (v >= 0.3).float()
    return s, torch.where(s > 0, torch.zeros_like(v), v)


def hard_by_product(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = v * 0.25 * (1.0 - s) + i
    return (v > 0.3).to(i.dtype), v


def hard_by_mask(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (i - v) / m.tau
    s = torch.gt(v, 0.2).float()
    v[s.bool()] = 0.0
    return s, v


def soft(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = math.exp(-1 / 3) * v + i
    s = surrogate(v - 0.3)
    return s, v - 0.3 * s


def per_neuron(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = m.beta.clamp(0, 1) * v + (1 - m.beta.clamp(0, 1)) * i
    s = surrogate(v - 0.1)
    return s, v - s * 0.1


def delayed(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    reset = (v > 0.3).float().detach()
    v = 0.8 * v + i - reset * 0.3
    return (v > 0.3).float(), v


def by_data(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = v.data * 0.5 + i
    s = (v > 0.3).type(i.dtype)
    v.data = v.data * (1 - s)
    return s, v


def normalised(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    return hard(m, m.norm(i), v, s)


def by_number(m: Body, i: Tensor, v: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    v = v + (i - v) / float(m.tau)
    s = (v > 0.2).float()
    return s, v * (1 - s)


class Preallocated(nn.Module):
    """Spikes are written into a tensor made before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, 16)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], x.shape[1], 16, device=x.device)
        v = torch.zeros(x.shape[1], 16, device=x.device)
        for t in range(x.shape[0]):
            out[t], v = hard(self, self.fc(x[t]), v, v)  # type: ignore[arg-type]
        return out


class Neuron(nn.Module):
    """State in an attribute, or in a buffer."""

    mem: Any

    def __init__(self, buffer: bool = False) -> None:
        super().__init__()
        if buffer:
            self.register_buffer("mem", torch.zeros(1))
        else:
            self.mem = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mem is None:
            self.mem = torch.zeros_like(x)
        self.mem = self.mem * 0.5 + x
        s = surrogate(self.mem - 0.3)
        self.mem = self.mem - s * 0.3
        return s


def one_step(neuron: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 9), neuron)


class Residual(nn.Module):
    """Convolutions, batch norm, a residual sum of spikes, one step at a time; summed over time by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.n1, self.n2 = nn.BatchNorm2d(4), Neuron(), Neuron()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        for neuron in (self.n1, self.n2):
            neuron.mem = None
        total: Any = 0
        for frame in x:
            s = self.n1(self.stem(frame))
            s = s + self.n2(self.bn(self.conv(s)))
            total += self.head(F.avg_pool2d(s, 4).flatten(1))
        return total / len(x)  # type: ignore[no-any-return]


class Recurrent(nn.Module):
    """Spikes come back through a linear layer one step later."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.back = nn.Linear(FEATURES, 16), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        v, s, out = torch.zeros(x.shape[1], 16), torch.zeros(x.shape[1], 16), []
        for frame in x:
            v = 0.5 * v * (1 - s) + self.fc(frame) + self.back(s)
            s = (v > 0.3).float()
            out.append(s)
        return torch.stack(out)


class Adaptive(nn.Module):
    """ALIF: the threshold grows with the neuron's own spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, 16)

    def forward(self, x: Tensor) -> Tensor:
        v, a, out = torch.zeros(x.shape[1], 16), torch.zeros(x.shape[1], 16), []
        for frame in x:
            v = 0.9 * v + self.fc(frame)
            s = (v > 0.3 + 0.5 * a).float()
            a, v = 0.8 * a + s, v * (1 - s)
            out.append(s)
        return torch.stack(out)


class Izhikevich(nn.Module):
    """Two coupled quadratic equations."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, 16)

    def forward(self, x: Tensor) -> Tensor:
        v = torch.full((x.shape[1], 16), -65.0)
        u, out = 0.2 * v, []
        for frame in x:
            current = 30 * self.fc(frame).relu()
            v = v + 0.04 * v * v + 5 * v + 140 - u + current
            u = u + 0.02 * (0.2 * v - u)
            s = (v >= 30).float()
            v, u = v * (1 - s) - 65 * s, u + 8 * s
            out.append(s)
        return torch.stack(out)


def _body(neuron: str, style: str, step: Any, *shape: int, layout: str = "time first", **options: Any) -> Case:
    return Case("", neuron, style, lambda: built(Body(step, layout), *shape), **options)


CASES = [
    Case("", "LIF, hard and soft", "lists stacked at the end, potential returned", lambda: built(Lists())),
    _body("LIF, hard, >=", "torch.where", hard),
    _body("LIF, hard", "times (1 - spike) of the step before", hard_by_product),
    _body("LIF, hard", "masked assignment, tau in a buffer", hard_by_mask),
    _body("LIF, soft", "autograd.Function", soft),
    _body("LIF, soft", "decay per neuron, a parameter", per_neuron),
    _body("LIF, soft, delayed", "reset from the stored potential", delayed),
    _body("LIF, hard", ".data read and written", by_data),
    _body("LIF, hard", "tau read as a Python number", by_number),
    _body("LIF, hard", "group norm before it", normalised),
    _body("LIF, hard", "batch first", hard, N, T, FEATURES, layout="batch first"),
    _body("LIF, hard", "time last", hard, N, FEATURES, T, layout="time last"),
    Case("", "LIF, hard", "written into a tensor made before", lambda: built(Preallocated())),
    Case(
        "",
        "LIF, soft",
        "state in an attribute, stepped",
        lambda: built(one_step(Neuron())),
        {"time_steps": T},
    ),
    Case(
        "",
        "LIF, soft",
        "state in a buffer, stepped",
        lambda: built(one_step(Neuron(True))),
        {"time_steps": T},
    ),
    Case("", "LIF, soft", "convolutions, residual sum", lambda: built(Residual(), T, N, 2, 8, 8)),
    Case("", "LIF, hard", "recurrent", lambda: built(Recurrent()), stepped=True),
    Case("", "ALIF", "adaptive threshold", lambda: built(Adaptive()), kept="threshold"),
    Case("", "Izhikevich", "two equations", lambda: built(Izhikevich()), kept=""),
]
