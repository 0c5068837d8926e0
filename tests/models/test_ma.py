"""MA-SNN's attention and neurons against their formulas in plain loops, and its nets' sizes, shapes, names and errors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from snngraph import models
from snngraph.errors import CheckpointError
from snngraph.models.ma import CA, MA, SA, TA, Attention, AttResSNN, MAClassifier, ma_lif, res_lif
from snngraph.models.reference import Stored
from snngraph.neurons import Neuron
from tests.models.flops import gflops

Array = npt.NDArray[np.float64]
VARIANTS: tuple[Attention, ...] = get_args(Attention)


# -- attention -----------------------------------------------------------------------------------------------------------------


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _mlp(x: Array, first: Array, second: Array) -> Array:
    hidden = [max(0.0, sum(first[j, i] * x[i] for i in range(len(x)))) for j in range(len(first))]
    return np.array([sum(second[o, j] * hidden[j] for j in range(len(hidden))) for o in range(len(second))])


def _mlp_weights(gate: TA | CA) -> tuple[Array, Array]:
    first, second = (p.detach().numpy() for p in gate.parameters())
    return first, second


def _over_time(x: Array, gate: TA) -> Array:
    """TA in loops: ``x [T, N, ...]``."""
    weights, out = _mlp_weights(gate), np.empty_like(x)
    for n in range(x.shape[1]):
        mean, largest = np.array([x[t, n].mean() for t in range(len(x))]), np.array([x[t, n].max() for t in range(len(x))])
        scale = _sigmoid(_mlp(mean, *weights) + _mlp(largest, *weights))
        for t in range(len(x)):
            out[t, n] = scale[t] * x[t, n]
    return out


def _over_channels(x: Array, gate: CA) -> Array:
    """CA in loops: ``x [T, N, C, H, W]``."""
    weights, out = _mlp_weights(gate), np.empty_like(x)
    channels = range(x.shape[2])
    for n in range(x.shape[1]):
        mean, largest = np.array([x[:, n, c].mean() for c in channels]), np.array([x[:, n, c].max() for c in channels])
        scale = _sigmoid(_mlp(mean, *weights) + _mlp(largest, *weights))
        for c in channels:
            out[:, n, c] = scale[c] * x[:, n, c]
    return out


def _over_space(x: Array, gate: SA) -> Array:
    """SA in loops: ``x [T, N, C, H, W]``."""
    (kernel,) = (p.detach().numpy()[0] for p in gate.parameters())
    K, (H, W), out = kernel.shape[-1], x.shape[3:], np.empty_like(x)
    for n in range(x.shape[1]):
        planes = (x[:, n].mean((0, 1)), x[:, n].max((0, 1)))
        for h in range(H):
            for w in range(W):
                score = 0.0
                for plane, weights in zip(planes, kernel, strict=True):
                    for i in range(K):
                        for j in range(K):
                            row, column = h + i - K // 2, w + j - K // 2
                            if 0 <= row < H and 0 <= column < W:
                                score += weights[i, j] * plane[row, column]
                out[:, n, :, h, w] = _sigmoid(np.array(score)) * x[:, n, :, h, w]
    return out


def _expected(x: Array, attention: MA) -> Array:
    y = x
    if attention.ta is not None:
        y = _over_time(y, attention.ta)
    if attention.ca is not None:
        y = _over_channels(y, attention.ca)
    if attention.sa is not None:
        y = _over_space(y, attention.sa)
    return y if attention.attention == "none" else np.maximum(y, 0.0)


@pytest.fixture
def currents() -> Tensor:
    return torch.randn(5, 3, 6, 4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", VARIANTS)
@pytest.mark.parametrize(("r_t", "r_c", "sa_kernel"), [(2, 3, 3), (1, 1, 7)])
def test_attention_equals_its_formula(currents: Tensor, attention: Attention, r_t: int, r_c: int, sa_kernel: int) -> None:
    torch.manual_seed(r_t)
    module = MA(5, 6, attention, r_t=r_t, r_c=r_c, sa_kernel=sa_kernel).double()
    expected = _expected(currents.numpy(), module)
    np.testing.assert_allclose(module(currents).detach().numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("attention", VARIANTS)
def test_a_variant_has_the_gates_in_its_name(attention: Attention) -> None:
    module = MA(5, 6, attention, r_t=2, r_c=3)
    gates: dict[str, nn.Module | None] = {"T": module.ta, "C": module.ca, "S": module.sa}
    named = attention.removesuffix("A") if attention != "none" else ""
    assert [letter for letter, gate in gates.items() if gate is not None] == list(named)
    shapes: dict[str, list[tuple[int, ...]]] = {"T": [(2, 5), (5, 2)], "C": [(2, 6), (6, 2)], "S": [(1, 2, 3, 3)]}
    assert [tuple(p.shape) for p in module.parameters()] == [shape for letter in named for shape in shapes[letter]]


def test_each_gate_sees_what_the_one_before_scaled(currents: Tensor) -> None:
    torch.manual_seed(0)
    module = MA(5, 6, "TCSA", r_t=2, r_c=3).double()
    assert module.ta is not None
    assert module.ca is not None
    assert module.sa is not None
    ta, ca, sa = module.ta(currents), module.ca(currents), module.sa(currents)
    from_the_input = torch.relu(sa * (ca * (ta * currents)))
    assert not torch.allclose(module(currents), from_the_input, atol=1e-4)


def test_time_attention_of_features() -> None:
    """Before the neurons of a fully connected layer: ``[T, N, F]``, with relu."""
    torch.manual_seed(0)
    model = models.ma_snn_gesture("TA", 4, size=8, channels=(4, 4, 4), hidden=8, r_t=2).double()
    x = torch.randn(4, 3, 8, dtype=torch.float64)
    layer = model.classifier.get_submodule("attention1")
    assert isinstance(layer.ta, TA)
    expected = np.maximum(_over_time(x.numpy(), layer.ta), 0.0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-14)


@pytest.mark.parametrize(
    ("gate", "shape", "words"),
    [
        (TA(5), (4, 2, 6, 3, 3), "TA was built for T=5, but the input has T=4"),
        (TA(5), (5, 2), "TA: expected"),
        (CA(8), (5, 2, 7, 3, 3), "CA was built for 8 channels, but the input has 7"),
        (CA(8), (5, 2, 8), "CA: expected"),
        (SA(), (2, 6, 3, 3), "SA: expected"),
        (MA(5, 8), (4, 2, 8, 3, 3), "T=5.*T=4"),
        (MA(5, 8), (5, 2, 7, 3, 3), "8 channels.* 7"),
        (MA(5, 8, "none"), (5, 8, 3, 3), r"MA: expected \[T, N, C, H, W\]"),
    ],
)
def test_gates_refuse_another_shape(gate: nn.Module, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gate(torch.zeros(shape))


# -- neurons -------------------------------------------------------------------------------------------------------------------


def _membrane_inputs() -> Tensor:
    x = torch.randn(12, 400, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[0, :40] = 0.3  # exact ties
    x[0, 40:80] = 0.5
    return x


@pytest.mark.parametrize("reset_to", ["threshold", "zero"])
def test_ma_lif_is_a_loop(reset_to: str) -> None:
    x = _membrane_inputs()
    threshold, alpha = 0.3, 0.3
    v_reset = {"threshold": threshold, "zero": 0.0}[reset_to]
    u, expected = torch.zeros(400, dtype=torch.float64), []
    for step in x:
        h = u + step
        s = (h >= threshold).double()
        u = alpha * (s * v_reset + (1 - s) * h)
        expected.append(s)
    spikes = ma_lif(reset_to)(x)  # type: ignore[arg-type]
    assert torch.equal(spikes, torch.stack(expected))
    assert bool(spikes[0, :40].all())
    assert 0.1 < float(spikes.mean()) < 0.9


def test_ma_lif_resets_differ() -> None:
    x = _membrane_inputs()
    assert not torch.equal(ma_lif("threshold")(x), ma_lif("zero")(x))


def test_res_lif_is_a_loop_that_resets_at_the_next_step() -> None:
    """The authors apply the reset when the next step reads the membrane; for the spikes that is an immediate hard reset to 0."""
    x = _membrane_inputs()
    v, s, expected = torch.zeros(400, dtype=torch.float64), torch.zeros(400, dtype=torch.float64), []
    for step in x:
        v = 0.25 * v * (1 - s) + step
        s = (v > 0.5).double()
        expected.append(s)
    spikes = res_lif()(x)
    assert torch.equal(spikes, torch.stack(expected))
    assert not bool(spikes[0, 40:80].any())
    assert 0.1 < float(spikes.mean()) < 0.9


def test_reset_to_something_else() -> None:
    with pytest.raises(ValueError, match="'threshold' or 'zero'"):
        ma_lif("rest")  # type: ignore[arg-type]


# -- nets ----------------------------------------------------------------------------------------------------------------------


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _neurons(model: nn.Module, x: Tensor) -> int:
    """Neurons per sample: what every LIF gives out at one step."""
    counts: list[int] = []
    handles = [
        module.register_forward_hook(lambda _m, _args, out: counts.append(out[0, 0].numel()))
        for module in model.modules()
        if isinstance(module, Neuron)
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return sum(counts)


def _attention_parameters(T: int | None, channels: int | None, *, r_t: int = 5, r_c: int = 8, sa: bool = False) -> int:
    of_time = 2 * T * (T // r_t) if T else 0
    of_channels = 2 * channels * (channels // r_c) if channels else 0
    return of_time + of_channels + (18 if sa else 0)


def test_gesture_is_the_papers() -> None:
    """106,763 neurons: those of a convolution are counted where the LIF stands, behind the pooling."""
    with torch.device("meta"):
        model = models.ma_snn_gesture()
        x = torch.empty(60, 1, 2, 32, 32)
        plain = models.ma_snn_gesture("none")
    assert _parameters(model) == 2_340_535
    assert _neurons(model, x) == 64 * 32 * 32 + 128 * 16 * 16 + 128 * 8 * 8 + 256 + 11 == 106_763
    gates = sum(_attention_parameters(60, c, sa=True) for c in (64, 128, 128)) + 2 * _attention_parameters(60, None)
    assert _parameters(plain) == 2_340_535 - gates
    assert not any(isinstance(m, TA | CA | SA) for m in plain.modules())
    assert all(
        m.bias is not None for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.out_channels > 1
    )
    assert gflops(model, (60, 1, 2, 32, 32)) == pytest.approx(14.0, rel=0.02)


@pytest.mark.parametrize(
    ("make", "T", "classes"), [(models.ma_snn_gait, 8, 21), (models.ma_snn_cifar10dvs, 20, 10)], ids=["gait", "cifar10dvs"]
)
def test_five_layer_nets_are_the_papers(make: Callable[[], MAClassifier], T: int, classes: int) -> None:
    with torch.device("meta"):
        model = make()
    assert model.T == T
    assert [(m.in_features, m.out_features) for k, m in model.classifier.named_modules() if k.endswith("linear")] == [
        (2048, 256),
        (256, classes),
    ]
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d) and m.out_channels > 1] == [32, 64, 128, 256, 512]
    assert [m.kernel_size for m in model.modules() if isinstance(m, nn.AvgPool2d)] == [2, 2, 2, 2, 4]
    assert [m.mlp[0].out_features for m in model.modules() if isinstance(m, TA)] == [T // 2] * 7


@pytest.mark.parametrize(
    ("make", "blocks"),
    [(models.att_res_snn18, [2, 2, 2, 2]), (models.att_res_snn34, [3, 4, 6, 3]), (models.att_res_snn104, [3, 8, 32, 8])],
    ids=["18", "34", "104"],
)
def test_residual_nets_are_resnets_with_attention(make: Callable[[], AttResSNN], blocks: list[int]) -> None:
    with torch.device("meta"):
        model = make()
    expected = 3 * 64 * 49 + 2 * 64 + 512 * 1000 + 1000  # stem with its batch norm, classifier
    before = 64
    for channels, count in zip((64, 128, 256, 512), blocks, strict=True):
        expected += before * channels + 2 * channels  # the shortcut of the first block
        for block in range(count):
            first = before if block == 0 else channels
            expected += 9 * channels * (first + channels) + 4 * channels
            expected += _attention_parameters(None, channels, sa=True)
        before = channels
    assert _parameters(model) == expected
    assert sum(isinstance(m, Neuron) for m in model.modules()) == 2 * sum(blocks) + 1


def test_att_res_18_has_11_87_million_parameters() -> None:
    with torch.device("meta"):
        model = models.att_res_snn18()
    assert _parameters(model) == 11_867_960


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: models.att_res_snn18(1), 3.7),
        (lambda: models.att_res_snn18(4), 13.9),
        (lambda: models.att_res_snn104(4), 93.4),
    ],
    ids=["18, T 1", "18, T 4", "104, T 4"],
)
def test_residual_nets_need_as_many_operations_as_the_papers(make: Callable[[], AttResSNN], expected: float) -> None:
    with torch.device("meta"):
        model = make()
    assert gflops(model, (1, 3, 224, 224)) == pytest.approx(expected, rel=0.02)


def test_the_stem_runs_once() -> None:
    with torch.device("meta"):
        one, four = models.att_res_snn18(1), models.att_res_snn18(4)
    shape = (1, 3, 224, 224)
    stem, head = 2 * 3 * 64 * 49 * 112 * 112 / 1e9, 2 * 512 * 1000 / 1e9
    # channel attention has two matrix products and spatial attention one convolution per block, whatever T is
    gates = 2 * sum(4 * 2 * c * (c // 8) + 18 * s * s for c, s in ((64, 56), (128, 28), (256, 14), (512, 7))) * 2 / 1e9
    once = stem + head + gates
    assert gflops(four, shape) - once == pytest.approx(4 * (gflops(one, shape) - once), rel=1e-3)


Make = Callable[..., nn.Module]
SMALL_CNN: dict[str, Any] = {"size": 8, "channels": (8, 8, 16), "hidden": 16}
SMALL_FIVE: dict[str, Any] = {"size": 64, "channels": (8, 8, 8, 8, 16), "hidden": 16}
SMALL_RESIDUAL: dict[str, Any] = {"num_classes": 10, "img_size": 64, "channels": (8, 8, 16, 16)}


def _events(*shape: int) -> Tensor:
    return torch.poisson(torch.full(shape, 0.3), generator=torch.Generator().manual_seed(3))


def _images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


SMALL: list[tuple[str, Make, Tensor, int]] = [
    *[(f"gesture {a}", partial(models.ma_snn_gesture, a, 5, **SMALL_CNN), _events(5, 3, 2, 8, 8), 11) for a in VARIANTS],
    ("gait", partial(models.ma_snn_gait, T=3, **SMALL_FIVE), _events(3, 3, 2, 64, 64), 21),
    ("cifar10dvs", partial(models.ma_snn_cifar10dvs, "TSA", 3, **SMALL_FIVE), _events(3, 3, 2, 64, 64), 10),
    ("res18 T1", partial(models.att_res_snn18, 1, **SMALL_RESIDUAL), _images(3, 3, 64, 64), 10),
    ("res18 T3", partial(models.att_res_snn18, 3, **SMALL_RESIDUAL), _images(3, 3, 64, 64), 10),
    ("res18 TCSA", partial(models.att_res_snn18, 3, **SMALL_RESIDUAL, attention="TCSA"), _images(3, 3, 64, 64), 10),
    ("res18 none", partial(models.att_res_snn18, 3, **SMALL_RESIDUAL, attention="none"), _images(3, 3, 64, 64), 10),
]
FAMILY = [case for case in SMALL if case[0] in ("gesture TCSA", "gesture none", "gait", "res18 T3")]


def _wake(model: nn.Module, x: Tensor) -> None:
    """Makes the neurons fire: batch norms get the statistics of ``x`` and a large weight."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 3.0)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(x)
    model.eval()


def _cases(cases: list[tuple[str, Make, Tensor, int]]) -> list[object]:
    return [pytest.param(*case[1:], id=case[0]) for case in cases]


@pytest.mark.parametrize(("make", "x", "classes"), _cases(SMALL))
def test_nets_can_be_calibrated(make: Make, x: Tensor, classes: int) -> None:
    torch.manual_seed(1)
    model = make()
    rates = models.calibrate(model, x)
    assert all(0.05 <= rate <= 0.30 for rate in rates.values())


@pytest.mark.parametrize(("make", "x", "classes"), _cases(SMALL))
def test_nets_give_scores_and_gradients(make: Make, x: Tensor, classes: int) -> None:
    torch.manual_seed(0)
    model = make()
    _wake(model, x)
    scores = model.train()(x)
    assert scores.shape == (3, classes)
    scores.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_scores_are_the_spikes_over_t() -> None:
    torch.manual_seed(0)
    make, x = FAMILY[0][1:3]
    model = make()
    _wake(model, x)
    spikes: list[Tensor] = []
    model.get_submodule("classifier").register_forward_hook(lambda _m, _args, out: spikes.append(out))
    scores = model.eval()(x)
    assert set(spikes[0].unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(scores, spikes[0].sum(0) / 5)


def test_a_static_image_is_shown_t_times() -> None:
    """The stem before the repetition gives what repeated images would."""
    torch.manual_seed(0)
    make, x = FAMILY[-1][1:3]
    model = make()
    assert isinstance(model, AttResSNN)
    _wake(model, x)
    y = torch.stack([model.stem(x) for _ in range(model.T)])
    torch.testing.assert_close(model.eval()(x), model.fc(model.lif(model.stages(y)).mean((3, 4)).mean(0)))


@pytest.mark.parametrize(("make", "x", "classes"), _cases(FAMILY))
def test_batch_statistics_at_inference(make: Make, x: Tensor, classes: int) -> None:
    torch.manual_seed(0)
    model = make(track_running_stats=False)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    assert all(m.running_mean is None and m.running_var is None for m in norms)
    _wake(model, x)
    model.eval()
    assert not torch.equal(model(x)[:2], model(x[:, :2] if x.dim() == 5 else x[:2]))  # one sample depends on the others


@pytest.mark.parametrize("track_running_stats", [True, False])
@pytest.mark.parametrize(("make", "x", "classes"), _cases(FAMILY))
def test_exports_with_any_batch(make: Make, x: Tensor, classes: int, track_running_stats: bool) -> None:
    torch.manual_seed(0)
    model = make(track_running_stats=track_running_stats).eval()
    _wake(model, x)
    axis = 1 if x.dim() == 5 else 0
    exported = torch.export.export(model, (x,), dynamic_shapes=({axis: torch.export.Dim("n", min=1)},), strict=False).module()
    for part in (x, x.narrow(axis, 0, 1), torch.cat([x, x], axis)):
        assert torch.equal(exported(part), model(part))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: models.ma_snn_gesture("STA"), "attention='STA': expected one of 'TA', 'CA'"),  # type: ignore[arg-type]
        (lambda: models.att_res_snn18(attention="csa"), "attention='csa'"),  # type: ignore[arg-type]
        (lambda: MA(5, 8, "all"), "attention='all'"),  # type: ignore[arg-type]
        (lambda: models.ma_snn_gesture(T=0), "T=0"),
        (lambda: models.ma_snn_gesture(T=4), "reduction of 4 time steps by 5 leaves none"),
        (lambda: models.ma_snn_gesture(r_c=65), "reduction of 64 channels by 65 leaves none"),
        (lambda: models.ma_snn_gesture(r_c=0), "r_c=0"),
        (lambda: models.ma_snn_gesture(r_t=0), "r_t=0"),
        (lambda: models.ma_snn_gesture(sa_kernel=4), "sa_kernel=4: expected an odd number"),
        (lambda: models.ma_snn_gesture(sa_kernel=0), "sa_kernel=0"),
        (lambda: models.ma_snn_gesture(size=3), "poolings by 2, 2 leave nothing"),
        (lambda: models.ma_snn_gait(size=63), "poolings by 2, 2, 2, 2, 4 leave nothing"),
        (lambda: models.ma_snn_gesture(size=(8, 8, 8)), "size="),  # type: ignore[arg-type]
        (lambda: models.ma_snn_gesture(channels=(8, 8)), "expected 3 numbers"),
        (lambda: models.ma_snn_gesture(channels=(8, 8, 0)), "channels=0"),
        (lambda: models.ma_snn_gesture(channels=8), "channels=8: expected 3 numbers"),  # type: ignore[arg-type]
        (lambda: models.att_res_snn18(channels=None), "channels=None: expected 4 numbers"),  # type: ignore[arg-type]
        (lambda: models.ma_snn_cifar10dvs(channels=(8, 8, 8)), "expected 5 numbers"),
        (lambda: models.ma_snn_gesture(reset_to="none"), "'threshold' or 'zero'"),  # type: ignore[arg-type]
        (lambda: models.att_res_snn18(img_size=200), "multiples of 32"),
        (lambda: models.att_res_snn18(T=0), "T=0"),
        (lambda: models.att_res_snn34(channels=(64, 64)), "expected 4 numbers"),
        (lambda: models.att_res_snn104(channels=(64, 64, 64, 0)), "channels=0"),
        (lambda: models.att_res_snn18(4, attention="TCSA", r_t=5), "reduction of 4 time steps by 5"),
    ],
)
def test_constructors_check_their_arguments(make: Callable[[], object], words: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=words):
        make()


def test_nets_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"T=5.*T=4"):
        models.ma_snn_gesture(T=5, **SMALL_CNN)(torch.zeros(4, 1, 2, 8, 8))
    with torch.device("meta"):
        model = models.att_res_snn18()
        for shape in ((1, 3, 256, 256), (1, 1, 224, 224), (1, 1, 3, 224, 224)):
            with pytest.raises(ValueError, match=r"expected images \[N, 3, 224, 224\]"):
                model(torch.zeros(shape))


# -- the authors' names --------------------------------------------------------------------------------------------------------


def _as_the_authors_store(model: nn.Module, *, points: bool) -> dict[str, Tensor]:
    """The state dict under the authors' keys; ``points``: their MLPs as convolutions with a kernel of one point."""
    theirs_of = {}
    for theirs, ours in model.reference_keys.items():  # type: ignore[operator, union-attr]
        theirs_of[ours.to if isinstance(ours, Stored) else ours] = theirs
    stored = {}
    for key, tensor in model.state_dict().items():
        path, rest = key, ""
        while path not in theirs_of:
            path, _, last = path.rpartition(".")
            rest = f".{last}{rest}"
        stored[theirs_of[path] + rest] = tensor[..., None, None, None] if points and ".mlp." in key else tensor
    return stored


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize(("make", "x", "classes"), _cases(SMALL))
def test_loads_what_the_authors_store(make: Make, x: Tensor, classes: int, points: bool) -> None:
    torch.manual_seed(0)
    model, fresh = make(), make()
    _wake(model, x)
    models.load_reference_state_dict(fresh, _as_the_authors_store(model, points=points))
    assert torch.equal(fresh.eval()(x), model.eval()(x))


def test_the_authors_names() -> None:
    """Keys with shapes, as their nets have them."""
    with torch.device("meta"):
        gesture = _as_the_authors_store(models.ma_snn_gesture(), points=True)
        gait = _as_the_authors_store(models.ma_snn_gait(), points=True)
        residual = _as_the_authors_store(models.att_res_snn18(), points=True)
    shapes = {
        "convAttLIF0.conv2d.weight": (64, 2, 3, 3),
        "convAttLIF0.conv2d.bias": (64,),
        "convAttLIF2.BNLayer.running_var": (128,),
        "convAttLIF1.attention.ta.sharedMLP.0.weight": (12, 60, 1, 1, 1),
        "convAttLIF1.attention.ca.sharedMLP.2.weight": (128, 16, 1, 1, 1),
        "convAttLIF0.attention.sa.conv.weight": (1, 2, 3, 3),
        "FC0.linear.weight": (256, 8192),
        "FC1.linear.bias": (11,),
        "FC1.BNLayer.weight": (11,),
        "FC0.attention.ta.sharedMLP.2.weight": (60, 12, 1, 1, 1),
    }
    assert {key: tuple(gesture[key].shape) for key in shapes} == shapes
    assert gait["convAttLIF4.attention.ca.sharedMLP.0.weight"].shape[:2] == (64, 512)
    shapes = {
        "conv1.0.weight": (64, 3, 7, 7),
        "conv1.1.bn.bias": (64,),
        "conv2_x.0.residual_function.1.weight": (64, 64, 3, 3),
        "conv3_x.0.residual_function.2.bn.weight": (128,),
        "conv4_x.1.residual_function.4.weight": (256, 256, 3, 3),
        "conv5_x.1.residual_function.5.bn.running_mean": (512,),
        "conv5_x.1.residual_function.6.attention.ca.sharedMLP.0.weight": (64, 512, 1, 1, 1),
        "conv5_x.0.residual_function.6.attention.sa.conv.weight": (1, 2, 3, 3),
        "conv2_x.0.shortcut.1.weight": (64, 64, 1, 1),
        "conv5_x.0.shortcut.2.bn.weight": (512,),
        "fc.weight": (1000, 512),
        "fc.bias": (1000,),
    }
    assert {key: tuple(residual[key].shape) for key in shapes} == shapes
    assert "conv2_x.1.shortcut.1.weight" not in residual


@pytest.mark.parametrize("shape", [(2, 5, 1, 3, 1), (5, 2, 1, 1, 1), (1, 5), (5,)])
def test_an_mlp_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    def make() -> MAClassifier:
        return models.ma_snn_gesture("TA", 5, **SMALL_CNN, r_t=2)

    stored = _as_the_authors_store(make(), points=True)
    key = "convAttLIF1.attention.ta.sharedMLP.0.weight"
    stored[key] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=key) as caught:
        models.load_reference_state_dict(make(), stored)
    assert "has [2, 5]" in str(caught.value)


def test_a_checkpoint_of_another_variant_is_refused() -> None:
    def make(attention: Attention) -> MAClassifier:
        return models.ma_snn_gesture(attention, 5, **SMALL_CNN)

    stored = _as_the_authors_store(make("CSA"), points=True)
    with pytest.raises(CheckpointError, match=r"classifier.attention1.ta.mlp.0.weight: no tensor in the checkpoint"):
        models.load_reference_state_dict(make("TCSA"), stored)
    with pytest.raises(CheckpointError, match=r"convAttLIF0.attention.ca.sharedMLP.0.weight: unknown key"):
        models.load_reference_state_dict(make("SA"), stored)
