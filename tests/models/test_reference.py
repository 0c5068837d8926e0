"""Checkpoints as the authors' code writes them: how they are found, what does not fit, and where their tensors go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from snngraph import models
from snngraph.errors import CheckpointError
from snngraph.models.layers import EventClassifier
from snngraph.models.pfa import StaticClassifier
from snngraph.models.reference import Stored

State = dict[str, Tensor]
Net = EventClassifier | StaticClassifier


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3)
        self.norm = nn.BatchNorm1d(3)
        self.scale = nn.Parameter(torch.ones(4))
        self.reference_keys: Any = {
            "fc": "first",
            "bn.0": "norm",
            "fc.extra": "nowhere",
            "k": Stored("scale", lambda t: t.flatten() / 2),
        }


def _theirs() -> State:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "fc.weight": (3, 2),
        "fc.bias": (3,),
        "bn.0.weight": (3,),
        "bn.0.bias": (3,),
        "bn.0.running_mean": (3,),
        "bn.0.running_var": (3,),
        "k": (2, 2),
    }
    return {key: torch.rand(shape, generator=generator) for key, shape in shapes.items()}


def _assert_loaded(net: _Net, theirs: State) -> None:
    expected = {
        "first.weight": theirs["fc.weight"],
        "first.bias": theirs["fc.bias"],
        "norm.weight": theirs["bn.0.weight"],
        "norm.bias": theirs["bn.0.bias"],
        "norm.running_mean": theirs["bn.0.running_mean"],
        "norm.running_var": theirs["bn.0.running_var"],
        "scale": theirs["k"].flatten() / 2,
    }
    found = net.state_dict()
    assert set(found) == {*expected, "norm.num_batches_tracked"}
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"net": state, "epoch": 3},
        lambda state: {"net_parameters": state, "max_test_acc": 0.5},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"state_dict": state},
        lambda state: {"model": {"state_dict": state}, "epoch": 3},
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {"net": {f"module.{key}": tensor for key, tensor in state.items()}},
        lambda state: {**state, "bn.0.num_batches_tracked": torch.tensor(7)},
        lambda state: {"net": state, "acc": torch.tensor(0.3), 3: "three"},
        lambda state: {"net": state, "model": {"name": "net"}, "state_dict": {}},
        lambda state: {"model": {"state_dict": state, "loss": torch.zeros(2)}, "net": None},
        lambda state: {f"module.module.{key}": tensor for key, tensor in state.items()},
    ],
    ids=[
        "bare",
        "net",
        "net_parameters",
        "model",
        "state_dict",
        "nested",
        "parallel",
        "nested-parallel",
        "batches",
        "beside-a-tensor",
        "beside-a-configuration",
        "nested-beside-a-tensor",
        "parallel-twice",
    ],
)
def test_checkpoints_are_unwrapped(wrap: Callable[[State], Mapping[str, Any]]) -> None:
    net, theirs = _Net(), _theirs()
    models.load_reference_state_dict(net, wrap(theirs))
    _assert_loaded(net, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast(dtype: torch.dtype) -> None:
    net, theirs = _Net(), {key: tensor.to(dtype) for key, tensor in _theirs().items()}
    models.load_reference_state_dict(net, theirs)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    _assert_loaded(net, {key: tensor.float() for key, tensor in theirs.items()})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "found nothing in the checkpoint"),
        ({"epoch": 3, "weights": {}}, "found epoch, weights in the checkpoint"),
        ({"net": _theirs(), "model": _theirs()}, "found net, model in the checkpoint"),
        ({"net": _theirs(), "model": _theirs(), "acc": torch.tensor(0.3)}, "found net, model, acc in the checkpoint"),
        ({"net": {}, "epoch": 3}, "found net, epoch in the checkpoint"),
        (dict([*_theirs().items(), (3, torch.zeros(1)), ((), torch.zeros(1))]), r"has the keys 3, \(\)"),
        ({**_theirs(), "fc.weight": _theirs()["fc.weight"].to_sparse()}, r"holds fc\.weight \(sparse_coo\)$"),
        ({k: torch.empty_like(t, device="meta") for k, t in _theirs().items()}, r"fc\.weight \(meta\), fc\.bias \(meta\)"),
        ({**_theirs(), "k": torch.nested.nested_tensor([torch.zeros(1), torch.zeros(3)], layout=torch.jagged)}, r"k \(nested\)"),
        ({**_theirs(), "k": nn.parameter.UninitializedParameter()}, r"k \(uninitialized\)"),
        ({**_theirs(), "epoch": 3}, "something else under epoch"),
        ([1], "got list"),
    ],
)
def test_what_is_no_checkpoint(found: Any, words: str) -> None:
    net = _Net()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=words):
        models.load_reference_state_dict(net, found)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def _changed(**changes: Tensor | None) -> State:
    given = {**_theirs(), **{key.replace("__", "."): t for key, t in changes.items() if t is not None}}
    return {key: tensor for key, tensor in given.items() if changes.get(key.replace(".", "__"), tensor) is not None}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (_changed(fc__bias=None), ["first.bias: no tensor in the checkpoint"]),
        (_changed(head=torch.zeros(1)), ["head: unknown key"]),
        (_changed(fc__extra=torch.zeros(1)), ["fc.extra: unknown key (there is no nowhere in this model)"]),
        (_changed(fc__gain=torch.zeros(1)), ["fc.gain: unknown key (there is no first.gain in this model)"]),
        (_changed(k__more=torch.zeros(4)), ["k.more: unknown key"]),
        (_changed(fc__weight=torch.zeros(5, 2)), ["fc.weight: shape [5, 2], where first.weight of this model has [3, 2]"]),
        (_changed(k=torch.zeros(3)), ["k: shape [3], where scale of this model has [4]"]),
        (
            _changed(fc__bias=torch.zeros(3, dtype=torch.int64)),
            ["fc.bias: torch.int64, where first.bias of this model has torch.flo"],
        ),
        (_changed(k=torch.ones(2, 2, dtype=torch.int32)), ["k: torch.int32, where scale of this model has torch.float32"]),
        (
            _changed(fc__bias=torch.zeros(3, dtype=torch.bool), fc__weight=torch.zeros(3, 2, dtype=torch.complex64)),
            ["fc.bias: torch.bool", "fc.weight: torch.complex64"],
        ),
        (_changed(k=None, fc__bias=torch.zeros(1), a=torch.zeros(1)), ["scale: no tensor", "fc.bias: shape [1]", "a: unknown"]),
    ],
)
def test_everything_that_does_not_fit_is_named(given: State, words: list[str]) -> None:
    net = _Net()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="does not fit _Net") as caught:
        models.load_reference_state_dict(net, given)
    assert all(f"\n  {word}" in str(caught.value) for word in words)
    assert str(caught.value).count("\n") == len(words)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_two_tensors_for_one() -> None:
    net = _Net()
    net.reference_keys = {**net.reference_keys, "other": "first"}
    with pytest.raises(CheckpointError, match=r"other\.bias: a second tensor for first\.bias"):
        models.load_reference_state_dict(net, {**_theirs(), "other.bias": torch.zeros(3)})


def test_keys_may_depend_on_the_checkpoint() -> None:
    net, theirs = _Net(), _theirs()
    keys, seen = net.reference_keys, []

    def choose(given: Mapping[str, Tensor]) -> Any:
        seen.append(sorted(given))
        return keys

    net.reference_keys = choose
    models.load_reference_state_dict(net, {"net": {f"module.{key}": tensor for key, tensor in theirs.items()}})
    assert seen == [sorted(theirs)]
    _assert_loaded(net, theirs)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(2, 2),
        lambda: models.tcja_small(4, size=16),
        lambda: models.tcja_dvs128gesture(3, size=32, channels=4, hidden=8, attention="tla"),
        lambda: models.pfa_resnet(T=2, size=8, channels=(4,), blocks=(1,)),
        lambda: models.pfa_vgg(T=2, size=16, channels=(4,) * 8, attention=False),
    ],
)
def test_nets_that_nobody_published(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(CheckpointError, match="no counterpart in its authors' code"):
        models.load_reference_state_dict(make(), _theirs())


# -- families ------------------------------------------------------------------------------------------------------------------
# The authors' paths, in the order of their code, and ours.

NORM = ("weight", "bias", "running_mean", "running_var")


def _layers(paths: list[tuple[str, int]], convolution: str, norm: str, ours: str, bias: bool) -> dict[str, str]:
    """Convolutions with batch norm: the authors' place and our number of each, and how both write them."""
    keys = {}
    for theirs, k in paths:
        for name in ("weight", "bias") if bias else ("weight",):
            keys[f"{theirs}.{convolution}.{name}"] = f"{ours}{k}.conv.{name}"
        keys |= {f"{theirs}.{norm}.{name}": f"{ours}{k}.bn.{name}" for name in NORM}
    return keys


def _in_sequence(places: list[int], *, bias: bool = False) -> dict[str, str]:
    return _layers([(f"conv.{n}", k) for k, n in enumerate(places, start=1)], "0", "1", "features.conv", bias)


def _tcja(theirs: str, k: int) -> dict[str, str]:
    return {
        f"{theirs}.conv.weight": f"features.tcja{k}.cla.along_channels.conv.weight",
        f"{theirs}.conv_c.weight": f"features.tcja{k}.tla.along_time.conv.weight",
    }


def _pfa(theirs: str, k: int, *, connected: bool = True) -> dict[str, str]:
    parts = {"TS_conv": "spatial", "TC_FC": "temporal", "SC_FC": "channel"}
    keys = {f"{theirs}.{a}.{name}": f"features.pfa{k}.{b}.{name}" for a, b in parts.items() for name in ("weight", "bias")}
    return {**keys, f"{theirs}.weight": f"features.pfa{k}.weight"} if connected else keys


def _fc(**paths: str) -> dict[str, str]:
    return {key.replace("_", "."): f"classifier.{name}" for key, name in paths.items()}


SPIKING_HEAD = _fc(fc_2_0_weight="fc1.weight", fc_5_0_weight="fc2.weight")
TET = [("features.0.fwd.module", 1), ("features.1.fwd.module", 2), ("features.4.fwd.module", 3), ("features.5.fwd.module", 4)]
TET += [("features.7.fwd.module", 5), ("features.8.fwd.module", 6), ("features.10.fwd.module", 7), ("features.11.fwd.module", 8)]
VGG = {
    **_in_sequence([2, 4, 8, 10, 14, 16, 20, 22]),
    **{key: name for n, k in ((1, 0), (7, 2), (13, 4), (19, 6), (25, 8)) for key, name in _pfa(f"conv.{n}", k).items()},
    **_fc(fc_1_0_weight="fc.weight", fc_1_0_bias="fc.bias"),
}
GESTURE_VGG = {
    **_in_sequence([1, 3, 7, 9, 13, 15, 19, 21]),
    **{key: name for n, k in ((0, 0), (6, 2), (12, 4), (18, 6), (24, 8)) for key, name in _pfa(f"conv.{n}", k).items()},
    **_fc(fc_1_0_weight="fc.weight", fc_1_0_bias="fc.bias"),
}
FASHION = {
    "static_conv.0.weight": "static_conv.conv.weight",
    **{f"static_conv.1.{name}": f"static_conv.bn.{name}" for name in NORM},
    **_layers([("conv.1", 2)], "1", "2", "features.conv", bias=False),
    **_fc(fc_1_0_weight="fc1.weight", fc_4_0_weight="fc2.weight"),
}

FAMILIES: list[tuple[str, Callable[[], Net], tuple[int, ...], dict[str, str]]] = [
    (
        "tcja-gesture",
        lambda: models.tcja_dvs128gesture(3, size=32, channels=4, hidden=6),
        (3, 2, 2, 32, 32),
        {**_in_sequence([0, 3, 6, 9, 13]), **_tcja("conv.11", 4), **_tcja("conv.15", 5), **SPIKING_HEAD},
    ),
    (
        "tcja-ncaltech",
        lambda: models.tcja_ncaltech101(3, size=32, channels=(2, 3, 4, 4, 5), hidden=6, num_classes=5),
        (3, 2, 2, 32, 32),
        {**_in_sequence([0, 3, 6, 9, 13]), **_tcja("conv.11", 4), **_tcja("conv.15", 5), **SPIKING_HEAD},
    ),
    (
        "tcja-cifar",
        lambda: models.tcja_cifar10dvs(3, size=16, channels=(4,) * 8),
        (3, 2, 2, 20, 20),
        {
            **_in_sequence([1, 3, 6, 8, 11, 13, 17, 19], bias=True),
            **_tcja("conv.15", 6),
            **_tcja("conv.21", 8),
            **_fc(fc_1_0_weight="fc.weight", fc_1_0_bias="fc.bias"),
        },
    ),
    (
        "tcja-tet",
        lambda: models.tcja_cifar10dvs(3, "tet", size=16, channels=(4,) * 8),
        (3, 2, 2, 16, 16),
        {
            **_layers(TET, "0", "1", "features.conv", bias=True),
            **_tcja("features.2", 2),
            **_fc(classifier_module_weight="fc.weight", classifier_module_bias="fc.bias"),
        },
    ),
    ("pfa-cifar", lambda: models.pfa_vgg(T=3, rank=2, size=16, channels=(4,) * 8), (3, 2, 2, 20, 20), VGG),
    (
        "pfa-ncaltech",
        lambda: models.pfa_vgg("ncaltech101", T=3, rank=2, size=16, channels=(4,) * 8, connect="paper", by_rank=True),
        (3, 2, 2, 20, 20),
        VGG,
    ),
    (
        "pfa-gesture",
        lambda: models.pfa_vgg("dvs128gesture", T=3, rank=2, last_rank=3, size=16, channels=(4,) * 8, voters=2),
        (3, 2, 2, 16, 16),
        GESTURE_VGG,
    ),
    (
        "pfa-fashion",
        lambda: models.pfa_fashion_mnist(3, 2, size=8, channels=4, hidden=6),
        (2, 1, 8, 8),
        {**FASHION, **_pfa("conv.2", 2, connected=False)},
    ),
    (
        "fashion-plain",
        lambda: models.pfa_fashion_mnist(3, size=8, channels=4, hidden=6, attention=False),
        (2, 1, 8, 8),
        FASHION,
    ),
]
EACH = pytest.mark.parametrize(("make", "shape", "keys"), [pytest.param(*case[1:], id=case[0]) for case in FAMILIES])


def _trained(make: Callable[[], Net], shape: tuple[int, ...]) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    model, x = make(), torch.rand(shape, generator=torch.Generator().manual_seed(1))
    models.calibrate(model, x)
    return model.eval(), x


@EACH
def test_a_checkpoint_of_the_authors_gives_the_same_net(
    make: Callable[[], Net], shape: tuple[int, ...], keys: dict[str, str]
) -> None:
    model, x = _trained(make, shape)
    ours = model.state_dict()
    assert sorted(keys.values()) == sorted(key for key in ours if not key.endswith("num_batches_tracked"))
    theirs = {key: ours[name].clone() for key, name in keys.items()}
    torch.manual_seed(1)
    fresh = make().eval()
    assert not torch.equal(fresh(x), model(x))
    models.load_reference_state_dict(fresh, {"net": theirs})
    assert torch.equal(fresh(x), model(x))


def test_tcjas_kernels_are_not_confused() -> None:
    """``conv`` slides along the channels and has T feature maps, in spite of its argument's name."""
    model = models.tcja_ncaltech101(3, size=32, channels=(2, 3, 4, 4, 5), hidden=6)
    keys: Any = model.reference_keys
    ours = model.state_dict()
    assert ours[f"{keys['conv.15.conv']}.weight"].shape == (3, 3, 2)
    assert ours[f"{keys['conv.15.conv_c']}.weight"].shape == (5, 5, 4)


def test_shapes_tell_pfas_linear_layers_apart() -> None:
    model, x = _trained(lambda: models.pfa_vgg(T=3, rank=2, size=16, channels=(4,) * 8), (3, 2, 2, 20, 20))
    swapped = {
        key.replace("TC_FC", "-").replace("SC_FC", "TC_FC").replace("-", "SC_FC"): model.state_dict()[name]
        for key, name in VGG.items()
    }
    fresh = models.pfa_vgg(T=3, rank=2, size=16, channels=(4,) * 8).eval()
    models.load_reference_state_dict(fresh, swapped)
    assert torch.equal(fresh(x), model(x))


def test_names_tell_them_apart_where_shapes_do_not() -> None:
    def make() -> EventClassifier:
        return models.pfa_vgg(T=4, rank=2, size=16, channels=(4,) * 8)

    torch.manual_seed(0)
    model, fresh = make(), make()
    models.load_reference_state_dict(fresh, {key: model.state_dict()[name] for key, name in VGG.items()})
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


def test_a_checkpoint_of_another_size_is_refused() -> None:
    model = models.pfa_vgg(T=3, rank=2, size=16, channels=(4,) * 8)
    other = models.pfa_vgg(T=3, rank=3, size=16, channels=(4,) * 8)
    with pytest.raises(CheckpointError, match=r"conv\.1\.TS_conv\.weight: shape \[2, 3, 3, 3\], where features\.pfa0\.spatial"):
        models.load_reference_state_dict(other, {key: model.state_dict()[name] for key, name in VGG.items()})
