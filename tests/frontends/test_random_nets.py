"""Small networks in random writing styles: the graph equals the module, at any batch size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.frontends.handwritten import FEATURES, Net, captured, count

LAYOUTS = {"time first": (1, 0), "batch first": (0, 1), "time last": (0, 2)}
"""The batch and the time axis of the input."""


@dataclass(frozen=True)
class Style:
    """How a network is written."""

    steps: int
    batch: int
    layout: str
    start: str  # of the membrane potential, and of what comes back
    neuron: str
    recurrent: bool
    normalised: bool
    outputs: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = {0: (self.batch, self.steps), 1: (self.steps, self.batch)}[LAYOUTS[self.layout][0]]
        return (self.batch, FEATURES, self.steps) if self.layout == "time last" else (*sizes, FEATURES)

    def first(self, net: Net, frame: Tensor) -> Tensor:
        N = frame.shape[0]
        return {
            "zeros": lambda: torch.zeros(N, FEATURES),
            "new_zeros": lambda: frame.new_zeros(N, FEATURES),
            "zeros_like": lambda: torch.zeros_like(frame),
            "full": lambda: torch.full((N, FEATURES), 0.125),
            "learned": lambda: net.start.expand(N, -1),
            "repeated": lambda: net.start.repeat(N, 1),
        }[self.start]()

    def fire(self, net: Net, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.neuron == "module":
            return net.n(x), v
        v = 0.75 * v + x
        spikes = (v > 0.25).to(v.dtype)
        if self.neuron == "product":
            return spikes, v * (1 - spikes)
        if self.neuron == "subtract":
            return spikes, v - 0.25 * spikes
        if self.neuron == "where":
            return spikes, torch.where(spikes > 0, torch.zeros_like(v), v)
        if self.neuron == "mask":
            v[spikes > 0] = 0.0
        else:
            v[v > 0.25] -= 0.25
        return spikes, v

    def __call__(self, net: Net, x: Tensor) -> Any:
        time = LAYOUTS[self.layout][1]
        frames = [x.select(time, t) for t in range(x.shape[time])]
        T, N = len(frames), frames[0].shape[0]
        v = self.first(net, frames[0])
        s = self.first(net, frames[0])
        record, leading, middle, last = [], torch.zeros(T, N, FEATURES), torch.empty(N, T, FEATURES), x.new_zeros(N, FEATURES, T)
        total, grown = torch.zeros(N, FEATURES), torch.empty(0, N, FEATURES)
        for t, frame in enumerate(frames):
            c = net.fc(frame) + (net.rec(s) if self.recurrent else 0.0)
            s, v = self.fire(net, v, net.norm(c) if self.normalised else c)
            record.append(s)
            leading[t], middle[:, t], last[..., t] = s, s, s
            total += s
            grown = torch.cat([grown, s[None]])
        found = {
            "stack 0": torch.stack(record),
            "stack 1": torch.stack(record, 1),
            "stack -1": torch.stack(record, -1),
            "leading": leading,
            "middle": middle,
            "last": last,
            "total": total / T,
            "grown": grown,
            "state": v,
            "start": torch.stack([self.first(net, frames[0]), s]),
        }
        return tuple(found[name] for name in self.outputs)


NAMES = ("stack 0", "stack 1", "stack -1", "leading", "middle", "last", "total", "grown", "state", "start")
styles = st.builds(
    Style,
    steps=st.integers(2, 4),
    batch=st.integers(1, 4),
    layout=st.sampled_from(list(LAYOUTS)),
    start=st.sampled_from(["zeros", "new_zeros", "zeros_like", "full", "learned", "repeated"]),
    neuron=st.sampled_from(["module", "product", "subtract", "where", "mask", "mask subtract"]),
    recurrent=st.booleans(),
    normalised=st.booleans(),
    outputs=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True).map(tuple),
)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(style=styles)
def test_a_network_in_any_style(style: Style) -> None:
    graph = captured(style, style.shape, time_dim=LAYOUTS[style.layout][1])
    assert graph.time.steps == style.steps
    if not style.recurrent:
        assert count(graph, "linear") == 1, "the layer runs once over all steps"
