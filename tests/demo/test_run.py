"""The demo end to end, on a part of the digits: what it writes, what it says, and that it says when something is wrong."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import snngraph
from snngraph.demo import run
from snngraph.demo.run import DemoError, DemoResult, run_demo
from snngraph.demo.training import CHECKPOINT, Recipe
from snngraph.errors import ArtifactWriteError

PEERS = ("PyTorch", "OpenVINO f32", "OpenVINO default")
VERIFIED = 8


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, Path, str]:
    """The trained net of the package on the quick part of the digits: the result, the folder and what was printed."""
    folder, text = tmp_path_factory.mktemp("demo") / "new" / "folder", io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "QUICK_VERIFIED", VERIFIED)
        result = run_demo(folder, train=False, quick=True, console=Console(file=text, width=140), peers=PEERS)
    return result, folder, text.getvalue()


def test_all_is_well(demo: tuple[DemoResult, Path, str]) -> None:
    result, _, _ = demo
    assert result.ok, result.problems
    assert not result.trained
    assert result.test_images == 96
    assert result.accuracy_model >= 0.95
    assert result.accuracy_engine >= 0.95
    assert result.predictions_equal == 96
    assert result.report.ok
    assert result.report.inputs == VERIFIED
    assert all(0.03 <= layer.rate <= 0.40 for layer in result.report.layers)
    assert [row.kind for row in result.benchmark.rows] == ["peer"] * 3 + ["engine"]


def test_its_files(demo: tuple[DemoResult, Path, str]) -> None:
    result, folder, _ = demo
    assert {p.name for p in folder.iterdir()} == {
        "digits.snn",
        "digits.safetensors",
        "digits.npy",
        "report.json",
        "report.html",
        "benchmark.json",
        "demo.json",
    }
    assert result.engine == str(folder / "digits.snn")
    assert (folder / "digits.safetensors").read_bytes() == CHECKPOINT.read_bytes()
    found = json.loads((folder / "demo.json").read_text())
    assert found == json.loads(json.dumps(result.to_dict()))
    assert json.loads((folder / "benchmark.json").read_text()) == found["benchmark"]
    x = np.load(folder / "digits.npy")
    with snngraph.load(folder / "digits.snn") as engine:
        assert engine.manifest.verify is not None
        assert engine.manifest.verify["ok"] is True
        assert engine.run(np.ascontiguousarray(x[:, :1])).shape == (1, 10)


def test_what_it_prints(demo: tuple[DemoResult, Path, str]) -> None:
    _, folder, text = demo
    for step in range(1, 7):
        assert f"[{step}/6]" in text
    assert "96 of 96 predictions equal" in text
    assert "OpenVINO default" in text
    assert "without torch.compile" in text
    assert f"snngraph inspect {folder}/digits.snn" in text.replace("\n", "")
    assert "All is well" in text


def test_a_net_trained_too_little_is_not_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_QUICK_TRAIN", 48)
    monkeypatch.setattr(run, "_QUICK_TEST", 32)
    monkeypatch.setattr(run, "QUICK_VERIFIED", 8)
    (tmp_path / "digits.snn").write_text("of an earlier run")
    text = io.StringIO()
    recipe = Recipe(epochs=1, learning_rate=1e-5)
    result = run_demo(tmp_path, quick=True, console=Console(file=text, width=140), recipe=recipe, peers=())
    assert result.trained
    assert not result.ok
    assert any("the model's accuracy is" in problem for problem in result.problems)
    assert not any("verification" in problem for problem in result.problems), result.problems  # the engine is right
    assert "Not all is well" in text.getvalue()
    assert "epoch 1 of 1" in text.getvalue()


def test_each_thing_that_may_be_wrong_is_a_problem(demo: tuple[DemoResult, Path, str]) -> None:
    result, _, _ = demo
    worse = [
        (replace(result, accuracy_engine=0.9), "the engine's accuracy is 90.00%"),
        (replace(result, predictions_equal=95), "on 95 of 96 digits only"),
        (replace(result, rates={"lif": 0.01}), "layer lif fires at 1.0%"),
        (replace(result, report=replace(result.report, problems=("layer 'lif': 7 flips",))), "verification: layer 'lif'"),
    ]
    assert list(run._problems(result, run.ACCURACY)) == []
    for wrong, words in worse:
        (problem,) = run._problems(wrong, run.ACCURACY)
        assert words in problem


def test_a_folder_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactWriteError, match="give another folder"):
        run_demo(tmp_path / "file", console=Console(file=io.StringIO()))


def test_without_scikit_learn_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(T: int) -> None:
        raise ImportError('pip install "snngraph[demo]"')

    monkeypatch.setattr(run, "load_digits", missing)
    with pytest.raises(DemoError, match="pip install"):
        run_demo(tmp_path, console=Console(file=io.StringIO()))


def test_a_net_that_does_not_fire_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def train(*args: object, **options: object) -> None:
        raise RuntimeError("after training, layers fire at rates outside 0.03 to 0.4")

    monkeypatch.setattr(run, "train_demo_model", train)
    with pytest.raises(DemoError, match="could not be trained: after training, layers fire"):
        run_demo(tmp_path, quick=True, console=Console(file=io.StringIO()))
