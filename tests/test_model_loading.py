"""Models by name and weights from files."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from snngraph.errors import ModelLoadError
from snngraph.model_loading import load_model, load_weights, parse_arguments

NET = """
from neighbour import WIDTH
import torch
from torch import nn

def build(width=WIDTH, *, name="net"):
    model = nn.Linear(width, 2)
    model.label = name
    return model

def number():
    return 3

def broken():
    raise RuntimeError("no data set here")

class Holder:
    @staticmethod
    def build():
        return nn.Linear(1, 1)

ready = nn.Dropout()
constant = 7
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with a model; what its import leaves behind goes afterwards."""
    (tmp_path / "a_net.py").write_text(NET)
    (tmp_path / "neighbour.py").write_text("WIDTH = 5\n")
    modules, path = set(sys.modules), list(sys.path)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


# -- names ---------------------------------------------------------------------------------------------------------------------


def test_factory_in_a_file_with_a_neighbour(folder: Path) -> None:
    loaded = load_model(f"{folder}/a_net.py:build")
    assert isinstance(loaded.model, nn.Linear)
    assert loaded.model.in_features == 5
    assert not loaded.model.training
    assert any("eval()" in note for note in loaded.notes)
    assert any("no weights" in note for note in loaded.notes)


def test_factory_in_a_module_of_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert isinstance(load_model("a_net:Holder.build").model, nn.Linear)


def test_factory_takes_arguments_and_stays_in_training_when_told(folder: Path) -> None:
    model = load_model(f"{folder}/a_net.py:build", arguments={"width": 3, "name": "small"}, evaluation=False).model
    assert model.in_features == 3
    assert model.label == "small"
    assert model.training


def test_module_is_left_in_its_mode_unless_told(folder: Path) -> None:
    assert load_model(f"{folder}/a_net.py:ready").model.training
    assert not load_model(f"{folder}/a_net.py:ready", evaluation=True).model.training


def test_untrained_nets_are_the_same_every_time_and_the_generator_is_left_alone(folder: Path) -> None:
    state = torch.get_rng_state()
    first, second = (load_model(f"{folder}/a_net.py:build").model.state_dict()["weight"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(state, torch.get_rng_state())


def test_two_files_of_one_name_are_two_modules(folder: Path) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "a_net.py").write_text("from torch import nn\ndef build():\n    return nn.Identity()\n")
    assert isinstance(load_model(f"{folder}/a_net.py:build").model, nn.Linear)
    assert isinstance(load_model(f"{other}/a_net.py:build").model, nn.Identity)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("net.snn", "package.module:factory or file.py:factory"),
        (":build", "package.module:factory"),
        ("a_net:", "package.module:factory"),
        ("a_net:build()", "package.module:factory"),
        ("no_such_package.models:build", "no module 'no_such_package'"),
        ("{folder}/missing.py:build", "there is no file"),
        ("{folder}/a_net.py:built", "it has: Holder, broken, build, number"),
        ("{folder}/a_net.py:constant", "int: expected an nn.Module"),
        ("{folder}/a_net.py:number", "returned a int"),
        ("{folder}/a_net.py:broken", r"RuntimeError: no data set here \(at .*a_net.py:15\)"),
        ("{folder}/exits.py:build", r"SystemExit: 4 \(at .*exits.py:2\)"),
        ("{folder}/imports.py:build", "ModuleNotFoundError: No module named 'missing_library'"),
    ],
)
def test_what_is_wrong_with_a_name(spec: str, message: str, folder: Path) -> None:
    (folder / "exits.py").write_text("import sys\nsys.exit(4)\n")
    (folder / "imports.py").write_text("import missing_library\n")
    with pytest.raises(ModelLoadError, match=message):
        load_model(spec.format(folder=folder))


def test_arguments_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="unexpected keyword argument 'wdith'"):
        load_model(f"{folder}/a_net.py:build", arguments={"wdith": 3})
    with pytest.raises(ModelLoadError, match="takes no arguments"):
        load_model(f"{folder}/a_net.py:ready", arguments={"p": 0.1})


def test_argument_texts() -> None:
    pairs = ["a=3", "b=(1, 2)", "c=small", "d=true", "e=None", "f=x=y", "g="]
    assert parse_arguments(pairs) == {"a": 3, "b": (1, 2), "c": "small", "d": True, "e": None, "f": "x=y", "g": ""}


@pytest.mark.parametrize("pairs", [["a"], ["=3"], ["a b=3"], ["a=1", "a=2"]])
def test_argument_texts_that_are_wrong(pairs: list[str]) -> None:
    with pytest.raises(ModelLoadError, match="model argument"):
        parse_arguments(pairs)


# -- weights -------------------------------------------------------------------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return net().state_dict()


WRAPPINGS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 0.1}},
    "net": lambda state: {"net": state, "acc": 0.9},
    "nested": lambda state: {"model": {"state_dict": state}},
    "data parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state: {"state_dict": {f"_orig_mod.module.{name}": value for name, value in state.items()}},
}


def assert_loaded(model: nn.Module) -> None:
    for name, value in trained().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_weights_of_torch_save(wrapping: str, tmp_path: Path) -> None:
    torch.save(WRAPPINGS[wrapping](trained()), tmp_path / "net.pt")
    model = net()
    load_weights(model, tmp_path / "net.pt")
    assert_loaded(model)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_of_safetensors(prefix: str, tmp_path: Path) -> None:
    save_file({prefix + name: value for name, value in trained().items()}, tmp_path / "net.safetensors")
    model = net()
    load_weights(model, tmp_path / "net.safetensors")
    assert_loaded(model)


def test_prefix_that_belongs_to_the_model_is_kept(tmp_path: Path) -> None:
    outer = nn.Module()
    outer.module = nn.Linear(2, 2)
    torch.save(outer.state_dict(), tmp_path / "net.pt")
    load_weights(outer, tmp_path / "net.pt")


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "0.weight"), r"missing: 0\.weight$"),
        (lambda s: {**s, "3.weight": torch.zeros(1)}, r"unexpected: 3\.weight$"),
        (lambda s: {**s, "2.bias": torch.zeros(7)}, r"of another shape: 2\.bias \[7\] \(model: \[2\]\)$"),
        (lambda s: {}, r"missing: 0\.bias, .* and 1 more"),
    ],
)
def test_weights_of_another_model(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    torch.save(change(trained()), tmp_path / "net.pt")
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelLoadError, match=message):
        load_weights(model, tmp_path / "net.pt")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing was loaded"


class Harmful:
    def __reduce__(self) -> Any:
        return (Path("harm").write_text, ("done",))


@pytest.mark.parametrize("content", [Harmful(), net(), {"state_dict": {"0.weight": Harmful()}}])
def test_python_objects_are_never_loaded(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ModelLoadError, match="never loaded"):
        load_weights(net(), tmp_path / "net.pt")
    assert not Path("harm").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("net.pt", b"", "read as weights|weights alone"),
        ("net.pt", b"not a checkpoint at all", "read as weights|weights alone"),
        ("net.safetensors", b"not a checkpoint at all", "safetensors"),
    ],
)
def test_damaged_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=message):
        load_weights(net(), tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"), [([1, 2], "holds a list"), ({"epoch": 3}, r"epoch \(int\)"), (torch.zeros(3), "holds a Tensor")]
)
def test_files_of_something_else(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ModelLoadError, match=message):
        load_weights(net(), tmp_path / "net.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="no weights file"):
        load_weights(net(), tmp_path / "net.pt")
