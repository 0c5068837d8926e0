"""What it takes for a library's neuron and its canonical form to be the same neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from snngraph import ops
from snngraph.frontends.canonical import Canonical

STEPS, BATCH, CHANNELS = 16, 6, 32
Kind = Literal["random", "quantised"]


class Trace(NamedTuple):
    """What a library's neuron did: output, membrane potential and current after every step, each `[T, N, C]`."""

    s: Tensor
    v: Tensor
    i: Tensor | None = None


Drive = Callable[[Tensor], Trace]


def inputs(kind: Kind, dtype: torch.dtype = torch.float64, scale: float = 1.0, seed: int = 0) -> Tensor:
    """`[T, N, C]`: normal, or multiples of scale/8 (so that thresholds are met exactly); a few are several times as large."""
    random = torch.Generator().manual_seed(seed)
    shape = (STEPS, BATCH, CHANNELS)
    if kind == "random":
        x = torch.randn(shape, generator=random, dtype=torch.float64) * 0.7 + 0.15
    else:
        x = torch.randint(-6, 9, shape, generator=random).double() / 8
    large = torch.rand(shape, generator=random) < 0.03
    return (torch.where(large, x * 6, x) * scale).to(dtype)


def calibrated(canonical: Canonical, kind: Kind, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs, scaled by a power of two, at which the neuron fires in 5 to 40 % of its steps."""
    for power in range(-4, 5):
        x = inputs(kind, dtype, 2.0**power)
        rate = (ops.lif(x, **canonical.start(), **canonical.parameters).s != 0).double().mean().item()
        if 0.05 <= rate <= 0.40:
            return x
    raise AssertionError("no scale makes this neuron fire in 5 to 40 % of its steps")


def assert_same_neuron(
    canonical: Canonical, drive: Drive, x: Tensor, *, tolerance: float = 1e-12, ties: bool = False, state: bool = True
) -> None:
    """The operator under `canonical` does what `drive` does to `x`: spikes equal, state within `tolerance` after every step."""
    expected = drive(x)
    canonical = canonical.to(x.dtype)
    parameters = canonical.parameters
    whole = ops.lif(x, **canonical.start(), with_h=True, **parameters)
    _assert_spikes(whole.s, expected.s)
    if ties:
        assert (whole.h == parameters["threshold"]).any(), "no potential met the threshold exactly"

    start = canonical.start()
    for t in range(len(x)):  # one step at a time: bit for bit the sequence, and the library's state after every step
        step = ops.lif_step(x[t], **start, **parameters)
        assert torch.equal(step.s, whole.s[t])
        assert torch.equal(step.h, whole.h[t])
        v, i = canonical.state(step)
        _assert_close(v, expected.v[t], tolerance)
        if expected.i is not None:
            _assert_close(i, expected.i[t], tolerance)
        start = _carried(step)
    assert torch.equal(step.v, whole.v)
    assert torch.equal(step.i, whole.i)

    half = len(x) // 2
    first = ops.lif(x[:half], **canonical.start(), **parameters)
    second = ops.lif(x[half:], **_carried(first), **parameters)
    assert torch.equal(torch.cat([first.s, second.s]), whole.s)
    assert torch.equal(second.v, whole.v)
    assert torch.equal(second.i, whole.i)

    if state:  # taken over from the library half way
        start = canonical.start(expected.v[half - 1], None if expected.i is None else expected.i[half - 1])
        _assert_spikes(ops.lif(x[half:], **start, **parameters).s, expected.s[half:])


def _carried(out: ops.NeuronOutput) -> dict[str, Any]:
    return {"v": out.v, "i": out.i} if out.i.numel() else {"v": out.v}


def _assert_spikes(found: Tensor, expected: Tensor) -> None:
    wrong = int((found != expected.to(found.dtype)).sum())
    assert wrong == 0, f"{wrong} of {found.numel()} spikes differ"


def _assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected.expand(found.shape), rtol=0.0, atol=tolerance, check_dtype=True)


def stack(steps: Sequence[tuple[Tensor, ...]]) -> Trace:
    """Per-step `(s, v)` or `(s, v, i)` as a trace."""
    return Trace(*(torch.stack(column).detach() for column in zip(*steps, strict=True)))
