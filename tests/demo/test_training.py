"""The demo's net learns, and the one that comes with the package is as good as its metadata say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from snngraph import models
from snngraph.demo import training
from snngraph.demo.data import Digits, load_digits
from snngraph.demo.model import SIZE, T, build, trained
from snngraph.demo.training import CHECKPOINT, Epoch, Recipe


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_digits(T)


@pytest.fixture(scope="module")
def test_part(digits: Digits) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(digits.test_x), torch.from_numpy(digits.test_y)


def test_the_checkpoint_recognises_the_held_out_digits(test_part: tuple[Tensor, Tensor]) -> None:
    x, y = test_part
    assert len(y) == 360
    model = training.load_demo_model()
    assert not model.training
    right = training.accuracy(model, x, y)
    metadata = training.demo_metadata()
    assert right >= 0.95
    assert right == pytest.approx(float(metadata["accuracy"]), abs=0.006)  # two images may fall otherwise on another machine
    assert (metadata["T"], metadata["size"]) == (str(T), str(SIZE))
    rates = models.firing_rates(model, x)
    training.check_rates(rates)
    assert rates == pytest.approx(json.loads(metadata["firing_rates"]), abs=0.002)
    assert CHECKPOINT.stat().st_size < 1_000_000


def test_an_epoch_on_a_few_digits_lowers_the_loss_and_reaches_every_parameter(digits: Digits) -> None:
    x, y = torch.from_numpy(digits.train_x[:, :192]), torch.from_numpy(digits.train_y[:192])

    def learn() -> tuple[dict[str, Tensor], list[float]]:
        torch.manual_seed(0)
        model = build()
        models.calibrate(model, x[:, :32])
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        losses = training.train(model, x, y, Recipe(epochs=2, batch=24, threads=1))
        assert not model.training
        for name, p in model.named_parameters():
            assert p.grad is not None, name
            assert bool(p.grad.abs().max() > 0), name
            assert not torch.equal(p, before[name]), name
        return model.state_dict(), losses

    threads = torch.get_num_threads()
    torch.manual_seed(7)
    state, losses = learn()
    assert losses[-1] < losses[0]
    again, same = learn()
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(state.values(), again.values(), strict=True))
    assert torch.get_num_threads() == threads


def test_progress_and_rates(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    few = Digits(digits.train_x[:, :48], digits.train_y[:48], digits.test_x[:, :24], digits.test_y[:24])
    seen: list[Epoch] = []
    generator = torch.get_rng_state()
    model = training.train_demo_model(seen.append, recipe=Recipe(epochs=2, threads=1), digits=few)
    assert [epoch.number for epoch in seen] == [1, 2]
    assert all(epoch.epochs == 2 and 0 <= epoch.accuracy <= 1 and epoch.seconds > 0 for epoch in seen)
    assert not model.training
    assert torch.equal(generator, torch.get_rng_state())
    monkeypatch.setattr(training, "RATES", (0.9, 0.95))
    with pytest.raises(RuntimeError, match=r"features\.lif1"):
        training.check_rates(models.firing_rates(model, torch.from_numpy(few.test_x)))


def test_save_and_load(tmp_path: Path) -> None:
    model = build()
    path = tmp_path / "net.safetensors"
    training.save_demo_model(model, path, Recipe(seed=5), 0.5, {"features.lif1": 0.1})
    loaded = training.load_demo_model(path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert training.demo_metadata(path)["seed"] == "5"
    with pytest.raises(FileNotFoundError, match="train_demo_model"):
        training.load_demo_model(tmp_path / "missing.safetensors")


def test_models_for_the_command_line() -> None:
    assert not build().training
    assert [*build().state_dict()] == [*trained().state_dict()]
