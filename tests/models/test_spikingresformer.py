"""SpikingResformer's modules against their formulas in plain loops, and its nets' sizes, shapes, checkpoints and errors."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from snngraph import models
from snngraph.errors import CheckpointError
from snngraph.models.reference import Stored
from snngraph.models.spikingresformer import DSSA, GWFFN, SpikingResformer
from snngraph.neurons import LIF, PLIF, Neuron
from tests.models.flops import gflops

Array = npt.NDArray[np.float64]


def _small(**options: object) -> SpikingResformer:
    sizes: dict[str, object] = {
        "planes": (8, 16),
        "heads": (2, 4),
        "patches": (2, 1),
        "depths": (1, 2),
        "group_width": 16,
        "stem": "small",
    }
    return SpikingResformer(3, 8, 5, **{**sizes, **options})  # type: ignore[arg-type]


def _images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _ready(model: SpikingResformer) -> SpikingResformer:
    """With firing rates and statistics that are not those of a new net."""
    draw = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, DSSA):
            module.firing_rate_x.uniform_(0.1, 0.4, generator=draw)
            module.firing_rate_attn.uniform_(0.1, 0.4, generator=draw)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=draw)
    return model


# -- in loops ------------------------------------------------------------------------------------------------------------------


def _norm(layer: nn.Module) -> nn.BatchNorm2d:
    (found,) = [m for m in layer.children() if isinstance(m, nn.BatchNorm2d)]
    return found


def _lif(x: Array) -> Array:
    v, out = np.zeros_like(x[0]), np.zeros_like(x)
    for t, now in enumerate(x):
        v = v + (now - v) / 2
        out[t] = v >= 1
        v = np.where(out[t] == 1, 0.0, v)
    return out


def _conv_bn(x: Array, layer: nn.Module) -> Array:
    conv, bn = layer.get_submodule("conv"), _norm(layer)
    assert isinstance(conv, nn.Conv2d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    w = conv.weight.detach().numpy()
    p, stride, k = int(conv.padding[0]), conv.stride[0], conv.kernel_size[0]
    x = np.pad(x, [(0, 0)] * 3 + [(p, p)] * 2)
    T, N, _, H, W = x.shape
    out = np.zeros((T, N, len(w), (H - k) // stride + 1, (W - k) // stride + 1))
    per_group = len(w) // conv.groups
    for o in range(len(w)):
        first = o // per_group * w.shape[1]
        for i in range(out.shape[3]):
            for j in range(out.shape[4]):
                window = x[:, :, first : first + w.shape[1], i * stride : i * stride + k, j * stride : j * stride + k]
                out[:, :, o, i, j] = (window * w[o]).sum((2, 3, 4))
    mean, var, gain, bias = (t.detach().numpy().reshape(-1, 1, 1) for t in (bn.running_mean, bn.running_var, bn.weight, bn.bias))
    return np.asarray((out - mean) / np.sqrt(var + bn.eps) * gain + bias)


def _dssa(x: Array, m: DSSA) -> Array:
    T, N, C, H, W = x.shape
    h, d, p = m.heads, C // m.heads, m.patch
    L = (H // p) * (W // p)
    s = _lif(x)
    y = _conv_bn(s, m.project_in)
    f_x, f_a = m.firing_rate_x.numpy().ravel(), m.firing_rate_attn.numpy().ravel()
    drive = np.zeros((T, N, h, L, H * W))
    for k in range(h):
        y1 = y[:, :, 2 * d * k : 2 * d * k + d].reshape(T, N, d, L)
        tokens = s[:, :, d * k : d * k + d].reshape(T, N, d, H * W)
        for c in range(d):
            drive[:, :, k] += y1[:, :, c, :, None] * tokens[:, :, c, None, :]
        drive[:, :, k] /= np.sqrt(f_x[k] * d)
    attn = _lif(drive)
    out = np.zeros((T, N, C, H * W))
    for k in range(h):
        y2 = y[:, :, 2 * d * k + d : 2 * d * k + 2 * d].reshape(T, N, d, L)
        for c in range(d):
            for one in range(L):
                out[:, :, k * d + c] += y2[:, :, c, one, None] * attn[:, :, k, one]
        out[:, :, k * d : k * d + d] /= np.sqrt(f_a[k] * L)
    return x + _conv_bn(_lif(out.reshape(x.shape)), m.project_out)


@pytest.mark.parametrize(("heads", "patch", "size"), [(1, 1, 3), (2, 2, 4), (4, 2, (4, 6)), (2, 1, (2, 3))])
def test_dssa_equals_its_formula(heads: int, patch: int, size: int | tuple[int, int]) -> None:
    torch.manual_seed(heads)
    module = DSSA(8, heads, size, patch=patch).double().eval()
    x = 2 * torch.randn(4, 2, 8, *module.size, dtype=torch.float64)
    models.calibrate(module, x, high=0.4)
    nn.init.uniform_(_norm(module.project_out).bias)
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), _dssa(x.numpy(), module), atol=1e-12)


@pytest.mark.parametrize("group_width", [4, 8, 16])
def test_gwffn_equals_its_formula(group_width: int) -> None:
    torch.manual_seed(group_width)
    module = GWFFN(4, group_width=group_width).double().eval()
    for layer in (module.up, module.grouped, module.down):
        nn.init.constant_(_norm(layer).weight, 6.0)
    x = 2 * torch.randn(4, 2, 4, 3, 5, dtype=torch.float64)
    u = _conv_bn(_lif(x.numpy()), module.up)
    u = u + _conv_bn(_lif(u), module.grouped)
    expected = x.numpy() + _conv_bn(_lif(u), module.down)
    with torch.no_grad():
        np.testing.assert_allclose(module(x).numpy(), expected, atol=1e-12)
    assert 0.02 < _lif(u).mean() < 0.6


# -- firing rates --------------------------------------------------------------------------------------------------------------


def test_training_follows_the_firing_rates() -> None:
    torch.manual_seed(0)
    module = DSSA(8, 2, 4, patch=2)
    nn.init.constant_(_norm(module.project_in).weight, 4.0)
    seen: dict[Neuron, Tensor] = {}
    for neuron in (module.lif_in, module.lif_attn):
        neuron.register_forward_hook(lambda m, _a, s: seen.__setitem__(m, s.detach()))
    expected = [torch.zeros(2), torch.zeros(2)]
    for step in range(3):
        module(2 * torch.randn(3, 2, 8, 4, 4))
        found = [seen[module.lif_in].unflatten(2, (2, 4)).mean((0, 1, 3, 4, 5)), seen[module.lif_attn].mean((0, 1, 3, 4))]
        expected = [0.999 * e + 0.001 * f if step else f for e, f in zip(expected, found, strict=True)]
        assert module.firing_rate_x.shape == module.firing_rate_attn.shape == (1, 1, 2, 1, 1)
        torch.testing.assert_close(module.firing_rate_x.flatten(), expected[0])
        torch.testing.assert_close(module.firing_rate_attn.flatten(), expected[1])
    before = module.firing_rate_x.clone()
    module.eval()(torch.randn(3, 2, 8, 4, 4))
    assert torch.equal(module.firing_rate_x, before)


def test_a_silent_head_trains_without_nan() -> None:
    module = DSSA(8, 2, 4)
    x = torch.ones(3, 2, 8, 4, 4) * 3
    x[:, :, 4:] = -1.0  # the second head never fires
    y = module(x.requires_grad_())
    y.sum().backward()
    assert module.firing_rate_x.flatten()[0] > 0
    assert module.firing_rate_x.flatten()[1] == 0
    assert bool(y.isfinite().all())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize("name", ["firing_rate_x", "firing_rate_attn"])
@pytest.mark.parametrize("value", [0.0, -0.1, float("nan"), float("inf")])
def test_a_rate_that_is_no_positive_number_is_refused(name: str, value: float) -> None:
    model = _ready(_small()).eval()
    getattr(model.get_submodule("stages.1.dssa2"), name)[0, 0, 1] = value
    with pytest.raises(ValueError, match=rf"stages\.1\.dssa2: {name} = \[[^]]*{re.escape(f'{value:g}')}.*calibrate") as caught:
        model(_images(1, 3, 8, 8))
    assert all(word in str(caught.value) for word in ("checkpoint", "train()"))


def test_a_new_net_names_its_first_attention() -> None:
    with pytest.raises(ValueError, match=r"stages\.0\.dssa1: firing_rate_x = \[0, 0\]"):
        _small().eval()(_images(1, 3, 8, 8))
    with pytest.raises(ValueError, match="DSSA: firing_rate_x"):
        DSSA(4, 1, 2).eval()(torch.zeros(1, 1, 4, 2, 2))


# -- nets ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "operations"),
    [("ti", 11_180_992, 31.5), ("s", 17_813_824, 46.2), ("m", 35_601_472, 84.8), ("l", 60_375_680, 145.5)],
)
def test_imagenet_nets_have_the_papers_size(name: str, parameters: int, operations: float) -> None:
    with torch.device("meta"):
        model = getattr(models, f"spikingresformer_{name}")()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert gflops(model, (1, 3, 224, 224)) == pytest.approx(operations, rel=0.02)
    attention = [m for m in model.modules() if isinstance(m, DSSA)]
    assert [(m.size, m.patch, m.tokens, m.channels // m.heads) for m in attention] == [
        ((56, 56), 4, 196, 64),
        *[((28, 28), 2, 196, 64)] * 2,
        *[((14, 14), 1, 196, 64)] * 3,
    ]


def test_small_nets_are_the_papers() -> None:
    with torch.device("meta"):
        cifar, dvs = models.spikingresformer_cifar(), models.spikingresformer_dvs()
    kinds = [{type(m) for m in net.modules() if isinstance(m, Neuron)} for net in (cifar, dvs)]
    assert kinds == [{LIF}, {PLIF}]
    for net, tokens in ((cifar, 64), (dvs, 256)):
        assert {m.tokens for m in net.modules() if isinstance(m, DSSA)} == {tokens}
        assert [m.heads for m in net.modules() if isinstance(m, DSSA)] == [1, 3, 3, 6, 6, 6]
        (stem,) = [m for m in net.stem if isinstance(m, nn.Conv2d)]
        assert (stem.kernel_size, stem.stride) == ((3, 3), (1, 1))
    groups = [m for m in dvs.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(m.in_channels // m.groups == 32 for m in groups)
    assert dvs(torch.empty(16, 2, 3, 64, 64, device="meta")).shape == (2, 11)


def test_neurons_are_spikingjellys() -> None:
    for neuron in [m for kind in ("lif", "plif") for m in _small(neuron=kind).modules() if isinstance(m, Neuron)]:
        with torch.no_grad():
            numbers = neuron.parameters_of_neuron()
        assert float(numbers["decay"]) == float(numbers["input_gain"]) == 0.5
        assert (numbers["threshold"], numbers["v_reset"], numbers["fire"]) == (1.0, 0.0, ">=")


@pytest.mark.parametrize("neuron", ["lif", "plif"])
@pytest.mark.parametrize("events", [False, True])
def test_nets_give_scores_and_gradients(neuron: str, events: bool) -> None:
    torch.manual_seed(0)
    model = _small(neuron=neuron, events=events, in_channels=2)
    x = _images(*([3] if events else []), 2, 2, 8, 8)
    models.calibrate(model, x)
    scores = model.train()(x)
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_a_static_image_is_repeated() -> None:
    torch.manual_seed(0)
    static = _small()
    x = _images(2, 3, 8, 8)
    models.calibrate(static, x)
    events = _small(events=True)
    events.load_state_dict(static.state_dict())
    torch.testing.assert_close(events.eval()(x.expand(3, -1, -1, -1, -1)), static.eval()(x))


@pytest.mark.parametrize("options", [{}, {"stem": "imagenet", "patches": (1, 1)}, {"events": True, "neuron": "plif"}])
def test_exports_with_any_batch(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = _small(**options).eval()
    x = _images(*([3] if model.events else []), 2, 3, 8, 8)
    models.calibrate(model, x)
    along = x.dim() - 4
    shapes = ({along: torch.export.Dim("n", min=1)},)
    exported = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False).module()
    for part in (x, x.narrow(along, 0, 1), torch.cat([x, x], along)):
        torch.testing.assert_close(exported(part), model(part))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DSSA(8, 3, 4), "channels=8 do not divide into heads=3"),
        (lambda: DSSA(8, 2, (4, 6), patch=4), r"size=\(4, 6\): patches of 4x4"),
        (lambda: DSSA(8, 2, 4, neuron="if"), "'lif' or 'plif'"),  # type: ignore[arg-type]
        (lambda: DSSA(8, 0, 4), "heads=0"),
        (lambda: GWFFN(8, group_width=64), "8 channels times ratio=4 .* group_width=64"),
        (lambda: models.spikingresformer_ti(img_size=200), r"size=\(50, 50\): patches of 4x4"),
        (lambda: models.spikingresformer_cifar(T=0), "T=0"),
        (lambda: models.spikingresformer_dvs(in_channels=0), "in_channels=0"),
        (lambda: _small(heads=(2,)), "one number of each for every stage"),
        (lambda: _small(planes=()), "one number of each for every stage"),
        (lambda: _small(depths=(1, 0)), "0"),
        (lambda: _small(stem="vit"), "'imagenet' or 'small'"),
    ],
)
def test_constructors_check_their_arguments(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("events", "shape", "words"),
    [
        (False, (1, 3, 8, 9), r"\[N, 3, 8, 8\]"),
        (False, (1, 2, 8, 8), r"\[N, 3, 8, 8\]"),
        (False, (3, 1, 3, 8, 8), "5 dimensions.*repeats its image itself"),
        (True, (1, 3, 8, 8), "4 dimensions"),
        (True, (4, 1, 3, 8, 8), r"\[T=3, N, 3, 8, 8\], got T=4"),
    ],
)
def test_nets_refuse_other_shapes(events: bool, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _small(events=events)(torch.zeros(shape))


def test_modules_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"DSSA: expected \[T, N, 4, 2, 2\], got \[1, 1, 4, 2, 3\]"):
        DSSA(4, 1, 2)(torch.zeros(1, 1, 4, 2, 3))
    with pytest.raises(ValueError, match=r"GWFFN: expected \[T, N, 4, H, W\], got \[1, 4, 2, 2\]"):
        GWFFN(4, group_width=4)(torch.zeros(1, 4, 2, 2))


# -- the authors' checkpoints --------------------------------------------------------------------------------------------------


def _as_the_authors(model: SpikingResformer) -> dict[str, Tensor]:
    """The mapping turned round."""
    places = {(home.to if isinstance(home, Stored) else home): theirs for theirs, home in model.reference_keys.items()}
    found: dict[str, Tensor] = {}
    for key, tensor in model.state_dict().items():
        (ours,) = [place for place in places if key == place or key.startswith(f"{place}.")]
        found[places[ours] + key[len(ours) :]] = tensor
    return found


@pytest.mark.parametrize("neuron", ["lif", "plif"])
def test_checkpoints_of_the_authors_load(neuron: str) -> None:
    torch.manual_seed(0)
    model = _ready(_small(neuron=neuron)).eval()
    if neuron == "plif":
        for module in model.modules():
            if isinstance(module, PLIF):
                nn.init.uniform_(module.w)
    saved = _as_the_authors(model)
    assert saved["layers.0.0.firing_rate_x"].shape == (1, 1, 2, 1, 1)
    saved["layers.0.0.firing_rate_x"] = saved["layers.0.0.firing_rate_x"].flatten()
    fresh = _small(neuron=neuron).eval()
    models.load_reference_state_dict(fresh, {"model": saved})
    x = _images(2, 3, 8, 8)
    assert torch.equal(fresh(x), model(x))


def test_the_authors_names() -> None:
    names = set(_as_the_authors(_small(neuron="plif")))
    statistics = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    norms = ["prologue.1.bn", "layers.1.0.norm.bn"]
    expected = {"prologue.0.weight", "classifier.weight", "layers.1.0.conv.weight", "layers.1.0.activation.w"}
    for place in ("0.0", "1.1", "1.3"):
        norms += [f"layers.{place}.norm.bn", f"layers.{place}.norm_proj.bn"]
        expected |= {f"layers.{place}.{n}" for n in ("W.weight", "Wproj.weight", "firing_rate_x", "firing_rate_attn")}
        expected |= {f"layers.{place}.activation_{n}.w" for n in ("in", "attn", "out")}
    for place in ("0.1", "1.2", "1.4"):
        for part in ("up", "conv.0", "down"):
            norms.append(f"layers.{place}.{part}.2.bn")
            expected |= {f"layers.{place}.{part}.1.weight", f"layers.{place}.{part}.0.w"}
    assert names == expected | {f"{norm}.{s}" for norm in norms for s in statistics}


def test_checkpoints_that_do_not_fit_are_refused() -> None:
    model = _small()
    before = copy.deepcopy(model.state_dict())
    saved = _as_the_authors(_ready(_small()))
    saved["layers.0.0.firing_rate_x"] = torch.ones(1, 1, 1, 1, 2, 1)[..., :1, :]
    saved["layers.0.0.firing_rate_attn"] = torch.ones(3)
    saved["layers.1.1.activation_in.w"] = torch.zeros(())
    del saved["classifier.weight"]
    with pytest.raises(CheckpointError) as caught:
        models.load_reference_state_dict(model, saved)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 4
    for words in (
        "layers.0.0.firing_rate_x: shape [1, 1, 1, 1, 1, 1]",
        "layers.0.0.firing_rate_attn: shape [3]",
        "layers.1.1.activation_in.w: unknown key",
        "classifier.weight: no tensor",
    ):
        assert any(words in line for line in lines), words
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
