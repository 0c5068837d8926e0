"""PFA-SNN's attention against its formula in plain loops, and its nets: sizes, shapes, errors, capture and engines."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

import snngraph
from snngraph import models
from snngraph.models.layers import EventClassifier, Vote
from snngraph.models.pfa import PFA, PFAByRank, StaticClassifier
from snngraph.neurons import IF, LIF, Neuron
from tests.models.flops import gflops

Array = npt.NDArray[np.float64]
Net = EventClassifier | StaticClassifier


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _numpy(tensor: torch.Tensor) -> Array:
    return tensor.detach().numpy()


def _factors(layer: PFA, x: Array) -> tuple[Array, Array, Array]:
    """``S [N, R, H, W]``, ``F [N, R, T]`` and ``G [N, R, C]`` in loops, of ``x [T, N, C, H, W]``."""
    T, N, C, H, W = x.shape
    R = layer.rank
    kernel, bias = _numpy(layer.spatial.weight), _numpy(layer.spatial.bias)  # type: ignore[arg-type]
    S, F, G = np.zeros((N, R, H, W)), np.zeros((N, R, T)), np.zeros((N, R, C))
    squeezed, pooled = x.mean(2), x.mean((3, 4))
    for n, r, h, w in np.ndindex(N, R, H, W):
        S[n, r, h, w] = bias[r]
        for t, i, j in itertools.product(range(T), range(3), range(3)):
            if 0 <= h + i - 1 < H and 0 <= w + j - 1 < W:
                S[n, r, h, w] += kernel[r, t, i, j] * squeezed[t, n, h + i - 1, w + j - 1]
    A, a = _numpy(layer.temporal.weight), _numpy(layer.temporal.bias)
    B, b = _numpy(layer.channel.weight), _numpy(layer.channel.bias)
    for n, r in np.ndindex(N, R):
        for t in range(T):
            F[n, r, t] = a[r] + sum(A[r, c] * pooled[t, n, c] for c in range(C))
        for c in range(C):
            G[n, r, c] = b[r] + sum(B[r, t] * pooled[t, n, c] for t in range(T))
    return _sigmoid(S), _sigmoid(F), _sigmoid(G)


def _map(S: Array, F: Array, G: Array, w: Array) -> Array:
    """The map in loops: a sum over ranks of products of one number from each factor."""
    N, R, H, W = S.shape
    out = np.zeros((F.shape[2], N, G.shape[2], H, W))
    for t, n, c, y, z in np.ndindex(*out.shape):
        out[t, n, c, y, z] = sum(w[r] * S[n, r, y, z] * F[n, r, t] * G[n, r, c] for r in range(R))
    return out


def _stored(layer: PFA) -> torch.Tensor:
    assert layer.weight is not None
    return layer.weight


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(3, 2, 4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _layer(kind: type[PFA] = PFA, **options: Any) -> PFA:
    torch.manual_seed(0)
    return kind(3, 4, 2, **options).double()


@pytest.mark.parametrize("kind", [PFA, PFAByRank])
def test_attention_equals_its_formula(x: torch.Tensor, kind: type[PFA]) -> None:
    layer = _layer(kind, connect="paper")
    w = torch.tensor([0.7, -0.4], dtype=torch.float64)
    _stored(layer).data.copy_(w)
    expected = np.maximum(_map(*_factors(layer, x.numpy()), w.numpy()) * x.numpy(), 0)
    np.testing.assert_allclose(_numpy(layer(x)), expected, atol=1e-14)


@pytest.mark.parametrize("kind", [PFA, PFAByRank])
def test_adding_has_no_connecting_factor(x: torch.Tensor, kind: type[PFA]) -> None:
    layer = _layer(kind, combine="add")
    assert layer.weight is None
    assert "weight" not in layer.state_dict()
    expected = np.maximum(_map(*_factors(layer, x.numpy()), np.ones(2)) + x.numpy(), 0)
    np.testing.assert_allclose(_numpy(layer(x)), expected, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"connect": "paper"}, {"combine": "add"}])
def test_by_rank_computes_the_same(x: torch.Tensor, options: dict[str, Any]) -> None:
    layer, by_rank = _layer(**options), _layer(PFAByRank, **options)
    by_rank.load_state_dict(layer.state_dict())
    for mode in (True, False):
        torch.testing.assert_close(by_rank.train(mode)(x), layer.train(mode)(x), atol=1e-14, rtol=0)
    calls = [str(n.target) for n in torch.export.export(by_rank, (x,)).graph.nodes]
    assert calls.count("aten.bmm.default") == 2 * layer.rank
    assert [str(n.target) for n in torch.export.export(layer, (x,)).graph.nodes].count("aten.bmm.default") == 1


def test_the_map_sees_the_whole_window(x: torch.Tensor) -> None:
    layer = _layer()
    later = x.clone()
    later[2] += 1
    assert not torch.equal(layer(later)[0], layer(x)[0])


def test_the_authors_connecting_factor_is_its_own_softmax(x: torch.Tensor) -> None:
    layer = _layer()
    start = torch.tensor([2.0, -1.0], dtype=torch.float64)
    _stored(layer).copy_(start)
    once = start.softmax(0)
    expected = np.maximum(_map(*_factors(layer, x.numpy()), once.numpy()) * x.numpy(), 0)
    for _ in range(2):  # eval() stores nothing: every call is the authors' first
        np.testing.assert_allclose(_numpy(layer.eval()(x)), expected, atol=1e-14)
        assert torch.equal(_stored(layer), start)
    np.testing.assert_allclose(_numpy(layer.train()(x)), expected, atol=1e-14)
    assert torch.equal(_stored(layer), once)
    layer(x)
    assert torch.equal(_stored(layer), once.softmax(0))
    for _ in range(40):
        layer(x)
    torch.testing.assert_close(_stored(layer), torch.full((2,), 0.5, dtype=torch.float64))


def test_who_learns_the_connecting_factor(x: torch.Tensor) -> None:
    code, paper = _layer(), _layer(connect="paper")
    assert "weight" in code.state_dict()
    assert "weight" not in dict(code.named_parameters())
    for layer in (code, paper):
        (layer(x).sum() + layer(x).square().sum()).backward()  # two calls before the gradient: the update in place harms neither
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layer.parameters())
    assert "weight" in dict(paper.named_parameters())


@pytest.mark.parametrize(
    ("shape", "words"),
    [((4, 2, 4, 3, 3), ["T=3", "T=4"]), ((3, 2, 7, 3, 3), ["4 channels", "7 channels"]), ((3, 2, 4, 3), ["[T, N, C, H, W]"])],
)
@pytest.mark.parametrize("kind", [PFA, PFAByRank])
def test_attention_refuses_another_shape(kind: type[PFA], shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(ValueError, match=kind.__name__) as caught:
        _layer(kind)(torch.zeros(shape, dtype=torch.float64))
    assert all(word in str(caught.value) for word in words)


# -- nets ----------------------------------------------------------------------------------------------------------------------


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _names(model: Net) -> list[str]:
    assert isinstance(model.features, nn.Sequential)
    return [name for name, _ in model.features.named_children()]


def _linear(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]


def _ranks(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.channels, m.rank) for m in model.modules() if isinstance(m, PFA)]


def _attention_parameters(T: int, rank: int, channels: tuple[int, ...]) -> int:
    return sum(rank * (9 * T + 1) + rank * (C + 1) + rank * (T + 1) for C in channels)


def _vgg_parameters(outputs: int, pixels: int) -> int:
    channels = [2, 64, 128, 256, 256, 512, 512, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(channels))
    return convolutions + (512 * pixels + 1) * outputs


GATED = (2, 128, 256, 512, 512)


@pytest.mark.parametrize(
    ("dataset", "T", "rank", "outputs", "pixels"),
    [("cifar10dvs", 10, 8, 10, 9), ("ncaltech101", 14, 8, 101, 9), ("dvs128gesture", 20, 32, 110, 64)],
)
def test_vggs_are_the_papers(dataset: Any, T: int, rank: int, outputs: int, pixels: int) -> None:
    with torch.device("meta"):
        model, plain = models.pfa_vgg(dataset), models.pfa_vgg(dataset, attention=False)
    resize = ["resize"] if dataset != "dvs128gesture" else []
    pairs = [[f"conv{k}", f"lif{k}", f"conv{k + 1}", f"lif{k + 1}", f"pool{k + 1}", f"pfa{k + 1}"] for k in (1, 3, 5, 7)]
    assert _names(model) == [*resize, "pfa0", *itertools.chain.from_iterable(pairs)]
    assert _names(plain) == [name for name in _names(model) if not name.startswith("pfa")]
    assert _ranks(model) == [(C, rank) for C in GATED]
    assert _linear(model.classifier) == [(512 * pixels, outputs)]
    assert _parameters(plain) == _vgg_parameters(outputs, pixels)
    assert _parameters(model) == _parameters(plain) + _attention_parameters(T, rank, GATED)
    assert model.T == T
    assert all(m.bias is None for m in plain.modules() if isinstance(m, nn.Conv2d))


def test_gestures_last_rank_and_vote() -> None:
    with torch.device("meta"):
        model = models.pfa_vgg("dvs128gesture", last_rank=64, num_classes=11, voters=10)
    assert [rank for _, rank in _ranks(model)] == [32, 32, 32, 32, 64]
    assert _linear(model.classifier) == [(32768, 110)]
    assert isinstance(model.vote, Vote)


def test_fashion_mnist_is_the_authors() -> None:
    with torch.device("meta"):
        model, plain = models.pfa_fashion_mnist(), models.pfa_fashion_mnist(attention=False)
    assert _names(model) == ["lif1", "pool1", "conv2", "pfa2", "lif2", "pool2"]
    assert _linear(model.classifier) == [(6272, 2048), (2048, 10)]
    assert _parameters(plain) == 9 * 128 * 129 + 4 * 128 + 6272 * 2048 + 2048 * 10
    assert _parameters(model) == _parameters(plain) + _attention_parameters(4, 4, (128,))
    assert [m.combine for m in model.modules() if isinstance(m, PFA)] == ["add"]
    assert all(isinstance(m, IF) for m in plain.modules() if isinstance(m, Neuron))


def test_resnets_are_of_the_usual_size() -> None:
    with torch.device("meta"):
        resnets = {depth: models.pfa_resnet(depth, attention=False) for depth in (18, 19)}
        model = models.pfa_resnet(18)
    assert round(_parameters(resnets[18]) / 1e6, 2) == 11.17  # ResNet-18 for CIFAR-10: 11.17 M
    assert round(_parameters(resnets[19]) / 1e6, 2) == 12.70
    assert [C for C, _ in _ranks(model)] == [64, 64, 128, 128, 256, 256, 512, 512]
    assert {m.connect for m in model.modules() if isinstance(m, PFA)} == {"paper"}
    assert model.reference_keys is None


def test_neurons_are_spikingjellys_lif() -> None:
    with torch.device("meta"):
        nets = (models.pfa_vgg(), models.pfa_fashion_mnist(), models.pfa_resnet())
    neurons = [m for net in nets for m in net.modules() if isinstance(m, Neuron)]
    assert all(isinstance(n, LIF) and (n.decay, n.input_gain, n.threshold, n.fire) == (0.5, 0.5, 1.0, ">=") for n in neurons)


def test_operations() -> None:
    with torch.device("meta"):
        ncaltech, gesture = models.pfa_vgg("ncaltech101"), models.tcja_dvs128gesture()
    assert gflops(ncaltech, (14, 1, 2, 180, 240)) == pytest.approx(38.2, rel=0.02)
    assert gflops(gesture, (20, 1, 2, 128, 128)) == pytest.approx(33.7, rel=0.02)


def _small_vgg(**options: Any) -> EventClassifier:
    return models.pfa_vgg(T=3, rank=2, num_classes=4, size=16, channels=(4,) * 8, **options)


def _small_gesture(**options: Any) -> EventClassifier:
    return models.pfa_vgg("dvs128gesture", T=3, rank=2, last_rank=3, num_classes=4, size=16, channels=(4,) * 8, **options)


def _small_fashion(**options: Any) -> StaticClassifier:
    return models.pfa_fashion_mnist(3, 2, size=(12, 8), channels=5, hidden=16, **options)


def _small_resnet(depth: Any = 18, **options: Any) -> StaticClassifier:
    return models.pfa_resnet(depth, T=3, rank=2, size=8, channels=(4, 6), blocks=(1, 1), **options)


SMALL: list[tuple[str, Callable[[], Net], tuple[int, ...], int]] = [
    ("vgg", _small_vgg, (3, 2, 2, 20, 24), 4),
    ("vgg-plain", lambda: _small_vgg(attention=False), (3, 2, 2, 20, 24), 4),
    ("vgg-by-rank", lambda: _small_vgg(by_rank=True), (3, 2, 2, 20, 24), 4),
    ("gesture", lambda: _small_gesture(voters=2, connect="paper"), (3, 2, 2, 16, 16), 4),
    ("fashion", _small_fashion, (2, 1, 12, 8), 10),
    ("fashion-mul", lambda: _small_fashion(combine="mul"), (2, 1, 12, 8), 10),
    ("fashion-plain", lambda: _small_fashion(attention=False), (2, 1, 12, 8), 10),
    ("resnet18", _small_resnet, (2, 3, 8, 8), 10),
    ("resnet19", lambda: _small_resnet(19, by_rank=True), (2, 3, 8, 8), 10),
]
EACH = pytest.mark.parametrize(("make", "shape", "classes"), [pytest.param(*case[1:], id=case[0]) for case in SMALL])


def _input(shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.poisson(torch.full(shape, 0.5), generator) if len(shape) == 5 else torch.rand(shape, generator=generator)


def _calibrated(make: Callable[[], Net], shape: tuple[int, ...]) -> tuple[Net, torch.Tensor]:
    torch.manual_seed(0)
    model, x = make(), _input(shape)
    models.calibrate(model, x)
    return model, x


@EACH
def test_nets_fire_and_learn(make: Callable[[], Net], shape: tuple[int, ...], classes: int) -> None:
    model, x = _calibrated(make, shape)
    rates = models.firing_rates(model, x)
    assert all(0.05 <= rate <= 0.30 for rate in rates.values())
    scores = model.train()(x)
    assert scores.shape == (2, classes)
    scores.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@EACH
def test_exports_with_any_batch(make: Callable[[], Net], shape: tuple[int, ...], classes: int) -> None:
    model, x = _calibrated(make, shape)
    model.eval()
    at = 1 if x.dim() == 5 else 0
    exported = torch.export.export(model, (x,), dynamic_shapes=({at: torch.export.Dim("n", min=1)},), strict=False).module()
    for part in (x, x.narrow(at, 0, 1), torch.cat([x, x, x], at)):
        torch.testing.assert_close(exported(part), model(part))


@pytest.mark.parametrize("name", ["vgg", "fashion", "resnet18"])
def test_becomes_an_engine(name: str) -> None:
    pytest.importorskip("openvino")
    make, shape = next((case[1], case[2]) for case in SMALL if case[0] == name)
    model, x = _calibrated(make, shape)
    model.eval()
    graph = snngraph.trace(model, x)
    assert graph.time.steps == 3
    assert graph.time.dims == ((0,) if x.dim() == 5 else (None,))
    assert graph.free_batch
    engine = snngraph.build(snngraph.optimize(graph))
    assert snngraph.verify(graph, engine, x).ok
    np.testing.assert_allclose(engine.run(x.numpy()), _numpy(model(x)), atol=1e-5)


def test_by_rank_is_captured() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(PFAByRank(3, 4, 2), LIF(threshold=0.04)).eval().requires_grad_(False)
    x = torch.rand(3, 2, 4, 5, 5)
    graph = snngraph.trace(net, x)
    assert graph.free_batch
    assert 0.05 < float(net(x).mean()) < 0.95
    torch.testing.assert_close(graph.to(torch.float64)(x.double()), net.double()(x.double()))


def test_a_net_is_copied_and_saved_whole(tmp_path: Any) -> None:
    model = _small_vgg().eval()
    x = _input((3, 2, 2, 20, 24))
    torch.save(model, tmp_path / "net.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "net.pt", weights_only=False)):
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PFA(0, 4, 2), "T=0"),
        (lambda: PFA(3, 4, 0), "rank=0"),
        (lambda: PFA(3, 4, 2, combine="sum"), "'mul' or 'add'"),  # type: ignore[arg-type]
        (lambda: PFA(3, 4, 2, connect="softmax"), "'code' or 'paper'"),  # type: ignore[arg-type]
        (lambda: models.pfa_vgg("cifar100"), "'cifar10dvs', 'ncaltech101', 'dvs128gesture'"),  # type: ignore[arg-type]
        (lambda: models.pfa_vgg(size=15), "4 poolings"),
        (lambda: models.pfa_vgg(channels=(4,) * 7), "expected 8 numbers"),
        (lambda: models.pfa_vgg(T=0), "T=0"),
        (lambda: models.pfa_vgg(last_rank=0), "last_rank=0"),
        (lambda: models.pfa_vgg(voters=0), "voters=0"),
        (lambda: models.pfa_fashion_mnist(0), "T=0"),
        (lambda: models.pfa_fashion_mnist(size=3), "2 poolings"),
        (lambda: models.pfa_resnet(20), "18 or 19"),  # type: ignore[arg-type]
        (lambda: models.pfa_resnet(channels=(4, 8)), "one number each"),
        (lambda: models.pfa_resnet(channels=(4,), blocks=(0,)), "blocks=0"),
    ],
)
def test_constructors_check_their_arguments(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("shape", [(3, 1, 12, 9), (3, 2, 12, 8), (3, 3, 1, 12, 8)])
def test_image_nets_refuse_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[N, 1, 12, 8\]"):
        _small_fashion()(torch.zeros(shape))
