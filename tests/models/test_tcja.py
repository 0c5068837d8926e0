"""TCJA-SNN's attention against its formula in plain loops, and its nets' sizes, shapes and errors."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from snngraph import models
from snngraph.models.layers import EventClassifier, SequenceDropout, StepWise, Vote
from snngraph.models.tcja import CLA, TCJA, TLA
from snngraph.neurons import LIF, Neuron

Array = npt.NDArray[np.float64]


def _along_time(m: Array, A: Array) -> Array:
    """TLA in loops: ``m [T, N, C]``, ``A [C, C, K]``."""
    T, N, C = m.shape
    K, out = A.shape[2], np.zeros_like(m)
    left = (K - 1) // 2
    for t in range(T):
        for n in range(N):
            for c in range(C):
                for k in range(K):
                    if 0 <= t + k - left < T:
                        out[t, n, c] += sum(A[c, d, k] * m[t + k - left, n, d] for d in range(C))
    return out


def _along_channels(m: Array, B: Array) -> Array:
    """CLA in loops: ``m [T, N, C]``, ``B [T, T, K]``."""
    T, N, C = m.shape
    K, out = B.shape[2], np.zeros_like(m)
    left = (K - 1) // 2
    for t in range(T):
        for n in range(N):
            for c in range(C):
                for k in range(K):
                    if 0 <= c + k - left < C:
                        out[t, n, c] += sum(B[t, u, k] * m[u, n, c + k - left] for u in range(T))
    return out


def _gated(x: Array, scores: Array) -> Array:
    return np.asarray(x * (1 / (1 + np.exp(-scores)))[..., None, None])


def _weights(layer: nn.Module) -> Array:
    (weight,) = layer.parameters()
    return weight.detach().numpy()


@pytest.fixture
def spikes() -> torch.Tensor:
    return (torch.rand(5, 3, 6, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) < 0.3).double()


@pytest.mark.parametrize("kernel_time", [1, 2, 3, 4])
@pytest.mark.parametrize("kernel_channels", [2, 3, 4])
def test_attention_equals_its_formula(spikes: torch.Tensor, kernel_time: int, kernel_channels: int) -> None:
    torch.manual_seed(kernel_time * 10 + kernel_channels)
    gate = TCJA(5, 6, kernel_time=kernel_time, kernel_channels=kernel_channels).double()
    x = spikes.numpy()
    m = x.mean((3, 4))
    A, B = _weights(gate.tla.along_time), _weights(gate.cla.along_channels)
    assert A.shape == (6, 6, kernel_time)
    assert B.shape == (5, 5, kernel_channels)
    expected = _gated(x, _along_time(m, A) * _along_channels(m, B))
    np.testing.assert_allclose(gate(spikes).detach().numpy(), expected, atol=1e-14)


def test_halves_alone(spikes: torch.Tensor) -> None:
    torch.manual_seed(0)
    x = spikes.numpy()
    tla, cla = TLA(5, 6, kernel_time=4).double(), CLA(5, 6, kernel_channels=2).double()
    m = x.mean((3, 4))
    np.testing.assert_allclose(tla(spikes).detach().numpy(), _gated(x, _along_time(m, _weights(tla))), atol=1e-14)
    np.testing.assert_allclose(cla(spikes).detach().numpy(), _gated(x, _along_channels(m, _weights(cla))), atol=1e-14)


def test_padding_is_that_of_torch() -> None:
    """Even kernels pad one more on the right, as ``padding="same"`` does in PyTorch (which warns about it)."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 9)
    tla = TLA(9, 6, kernel_time=4)
    torch_same = nn.Conv1d(6, 6, 4, padding=0, bias=False)
    (weight,) = tla.parameters()
    torch_same.weight = nn.Parameter(weight.detach())
    torch.testing.assert_close(tla.along_time(x), torch_same(nn.functional.pad(x, (1, 2))))


def test_the_gate_sees_the_future(spikes: torch.Tensor) -> None:
    gate = TLA(5, 6, kernel_time=4).double()
    later = spikes.clone()
    later[2] = 1 - later[2]
    assert not torch.equal(gate(later)[0], gate(spikes)[0])


@pytest.mark.parametrize(
    ("shape", "words"),
    [((4, 2, 6, 3, 3), ["T=5", "T=4"]), ((5, 2, 7, 3, 3), ["6 channels", "7 channels"]), ((5, 2, 6, 3), ["[T, N, C, H, W]"])],
)
def test_gate_refuses_another_shape(shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(ValueError, match="TCJA") as caught:
        TCJA(5, 6)(torch.zeros(shape))
    assert all(word in str(caught.value) for word in words)


# -- nets ----------------------------------------------------------------------------------------------------------------------


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _linear(model: EventClassifier) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def _kinds(model: EventClassifier) -> list[str]:
    return [name for name, _ in model.features.named_children()]


def test_dvs128_gesture_is_the_papers() -> None:
    with torch.device("meta"):
        model = models.tcja_dvs128gesture()
    assert round(_parameters(model) / 1e6, 2) == 1.83
    assert _linear(model) == [(2048, 512), (512, 110)]
    assert "tcja4 pool4 conv5 lif5 tcja5 pool5" in " ".join(_kinds(model))
    assert sum(isinstance(m, TCJA) for m in model.modules()) == 2
    assert isinstance(model.vote, Vote)


def test_ncaltech101_is_the_papers() -> None:
    with torch.device("meta"):
        model = models.tcja_ncaltech101()
    assert _linear(model) == [(17920, 1024), (1024, 101)]
    gates = [m for m in model.modules() if isinstance(m, TCJA)]
    # the authors' TCJA(2, 4): conv.weight [14, 14, 2] along the channels, conv_c.weight [512, 512, 4] along time
    assert [(p.shape[0], p.shape[2]) for p in gates[1].parameters()] == [(512, 4), (14, 2)]
    assert isinstance(model.vote, nn.Identity)


def test_cifar10dvs_is_the_papers() -> None:
    with torch.device("meta"):
        model, tet = models.tcja_cifar10dvs(), models.tcja_cifar10dvs(neuron="tet")
    assert _linear(model) == _linear(tet) == [(4608, 10)]
    assert [k for k in _kinds(model) if k.startswith(("tcja", "pool", "resize"))] == [
        *["resize", "pool2", "pool4"],
        *["tcja6", "pool6", "tcja8", "pool8"],
    ]
    assert [k for k in _kinds(tet) if k.startswith(("tcja", "pool", "resize"))] == ["tcja2", "pool2", "pool4", "pool6", "pool8"]
    assert all(m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d))
    neurons = [m for m in tet.modules() if isinstance(m, Neuron)]
    assert len(neurons) == 8
    assert all((n.decay, n.input_gain, n.threshold, n.fire, n.v_reset) == (0.5, 1.0, 1.0, ">", 0.0) for n in neurons)


def test_neurons_are_spikingjellys_lif() -> None:
    neurons = [m for m in models.tcja_small().modules() if isinstance(m, Neuron)]
    assert all(isinstance(n, LIF) and (n.decay, n.input_gain, n.threshold, n.fire) == (0.5, 0.5, 1.0, ">=") for n in neurons)


SMALL: list[tuple[str, Callable[[], EventClassifier], tuple[int, ...], int]] = [
    ("gesture", lambda: models.tcja_dvs128gesture(3, size=(32, 40), channels=8, hidden=16), (3, 2, 2, 32, 40), 11),
    ("ncaltech", lambda: models.tcja_ncaltech101(3, size=32, channels=(4, 4, 8, 8, 8), hidden=16), (3, 2, 2, 32, 32), 101),
    ("cifar", lambda: models.tcja_cifar10dvs(3, size=16, channels=(4,) * 8), (3, 2, 2, 40, 50), 10),
    ("tet", lambda: models.tcja_cifar10dvs(3, "tet", size=16, channels=(4,) * 8), (3, 2, 2, 16, 16), 10),
    ("small", lambda: models.tcja_small(4, size=16), (4, 3, 2, 16, 16), 10),
    ("tla", lambda: models.tcja_small(4, size=16, attention="tla"), (4, 3, 2, 16, 16), 10),
    ("cla", lambda: models.tcja_small(4, size=16, attention="cla"), (4, 3, 2, 16, 16), 10),
    ("none", lambda: models.tcja_small(4, size=16, attention="none"), (4, 3, 2, 16, 16), 10),
]


@pytest.mark.parametrize(("make", "shape", "classes"), [pytest.param(*case[1:], id=case[0]) for case in SMALL])
def test_nets_give_scores_and_gradients(make: Callable[[], EventClassifier], shape: tuple[int, ...], classes: int) -> None:
    torch.manual_seed(0)
    model = make()
    x = torch.poisson(torch.full(shape, 0.5))
    models.calibrate(model, x)
    scores = model.train()(x)
    assert scores.shape == (shape[1], classes)
    scores.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_exports_with_any_batch() -> None:
    torch.manual_seed(0)
    model = models.tcja_small(4, size=16).eval()
    x = torch.poisson(torch.full((4, 3, 2, 16, 16), 0.5))
    models.calibrate(model, x)
    exported = torch.export.export(model, (x,), dynamic_shapes=({1: torch.export.Dim("n", min=1)},), strict=False).module()
    for part in (x, x[:, :1], torch.cat([x, x], 1)):
        assert torch.equal(exported(part), model(part))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.tcja_dvs128gesture(size=31), "5 poolings"),
        (lambda: models.tcja_dvs128gesture(T=0), "T=0"),
        (lambda: models.tcja_dvs128gesture(kernels=((4, 4),)), "expected 2 pairs"),
        (lambda: models.tcja_dvs128gesture(dropout=1.0), "dropout probability"),
        (lambda: models.tcja_dvs128gesture(size=(128, 128, 3)), "size="),  # type: ignore[arg-type]
        (lambda: models.tcja_dvs128gesture(voters=0), "voters=0"),
        (lambda: models.tcja_ncaltech101(channels=(1, 2)), "expected 5 numbers"),
        (lambda: models.tcja_cifar10dvs(size=15), "4 poolings"),
        (lambda: models.tcja_cifar10dvs(neuron="plif"), "'lif' or 'tet'"),  # type: ignore[arg-type]
        (lambda: models.tcja_small(attention="se"), "'tcja', 'tla', 'cla' or 'none'"),  # type: ignore[arg-type]
        (lambda: models.tcja_small(channels=()), "depth=0"),
        (lambda: models.tcja_small(channels=(4,)), "2 attention layers"),
        (lambda: TCJA(4, 8, kernel_time=0), "kernel_time=0"),
    ],
)
def test_constructors_check_their_arguments(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((5, 1, 2, 16, 16), "T=4.*T=5"),
        ((4, 1, 1, 16, 16), r"\[T=4, N, 2, 16, 16\]"),
        ((4, 1, 2, 16, 17), r"\[T=4, N, 2, 16, 16\]"),
        ((4, 2, 16, 16), "4 dimensions"),
    ],
)
def test_nets_refuse_other_shapes(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        models.tcja_small(4, size=16)(torch.zeros(shape))


# -- shared layers -------------------------------------------------------------------------------------------------------------


def test_stepwise_is_a_loop_over_steps() -> None:
    torch.manual_seed(0)
    layers = StepWise(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2))
    x = torch.randn(4, 2, 2, 8, 8)
    torch.testing.assert_close(layers(x), torch.stack([nn.Sequential(*layers)(step) for step in x]))


def test_vote_averages_groups() -> None:
    x = torch.arange(12.0).reshape(2, 6)
    assert torch.equal(Vote(3)(x), torch.tensor([[1.0, 4.0], [7.0, 10.0]]))


def test_sequence_dropout_shares_its_mask_over_time() -> None:
    torch.manual_seed(0)
    drop, x = SequenceDropout(0.4), torch.ones(5, 20, 100)
    y = drop(x)
    assert bool((y == y[:1]).all())
    assert math.isclose(float(y.mean()), 1.0, abs_tol=0.1)
    assert torch.equal(drop.eval()(x), x)


def test_importing_models_does_not_import_torch() -> None:
    code = "import sys, snngraph.models, snngraph.demo.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_model() -> None:
    with pytest.raises(AttributeError, match="tcja_large"):
        models.tcja_large  # noqa: B018
