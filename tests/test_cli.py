"""The command line: what commands print, write and exit with."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import snngraph
from snngraph.cli import bench, convert, demo, inspect, passes, run, targets, verify
from snngraph.cli.app import app
from snngraph.runtime import artifact

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {
    module.__name__.rpartition(".")[2]: module for module in (bench, convert, demo, inspect, passes, run, targets, verify)
}
MAIN = [sys.executable, "-c", "from snngraph.cli import main; main()"]
NET = """
import sys
import torch
from torch import nn
from snngraph.neurons import LIF

class Net(nn.Module):
    def __init__(self, hidden=12):
        super().__init__()
        self.first, self.norm, self.lif = nn.Linear(8, hidden), nn.BatchNorm1d(hidden), LIF(threshold=0.2)
        self.second, self.out = nn.Linear(hidden, 4), LIF(threshold=0.1)

    def forward(self, x):
        x = self.norm(self.first(x.flatten(0, 1))).unflatten(0, x.shape[:2])
        return self.out(self.second(self.lif(x))).mean(0)

def build(hidden=12):
    print("the model prints")
    return Net(hidden)

class Step(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.lif = nn.Linear(8, 4), LIF(threshold=0.2, step_mode="s")

    def forward(self, x):
        return self.lif(self.layer(x))

def slow():
    import time
    print("building", file=sys.stderr, flush=True)
    time.sleep(60)

def fails():
    raise RuntimeError("no data set here")
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two sets of weights, inputs, and the engine that ``convert`` made."""
    folder = tmp_path_factory.mktemp("command_line")
    (folder / "cli_net.py").write_text(NET)
    namespace: dict[str, Any] = {"__name__": "cli_net_of_the_tests"}
    exec(compile(NET, "cli_net.py", "exec"), namespace)
    for seed, name in enumerate(("net.pt", "other.pt")):
        torch.manual_seed(seed)
        torch.save({"state_dict": namespace["Net"]().state_dict()}, folder / name)
    np.save(folder / "x.npy", np.random.default_rng(0).random((5, 33, 8)) < 0.4)
    done = invoke(*convert_arguments(folder), "-o", folder / "net.snn", "--onnx", folder / "net.onnx", "--batch", "4", "--json")
    assert done.exit_code == 0, done.stderr
    (folder / "convert.json").write_text(done.stdout)
    return folder


@pytest.fixture(autouse=True)
def _leave_the_path_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = list(sys.path)
    monkeypatch.delenv("SNNGRAPH_DEBUG", raising=False)
    yield
    sys.path[:] = path


def convert_arguments(folder: Path) -> list[str]:
    return ["convert", f"{folder}/cli_net.py:build", "--weights", f"{folder}/net.pt", "--shape", "5,2,8"]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments: object, code: int = 0) -> Any:
    """The JSON document a command prints; its text for people must be elsewhere."""
    done = invoke(*arguments, "--json")
    assert done.exit_code == code, done.stdout + done.stderr
    return json.loads(done.stdout)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- help ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_with_options_that_exist(name: str) -> None:
    done = invoke(name, "--help")
    assert done.exit_code == 0
    assert "Example" in done.stdout
    for example in COMMANDS[name].EXAMPLES:
        assert example in done.stdout, "the example is printed as it is, to be copied"
        words = shlex.split(example)
        assert words[:2] == ["snngraph", name]
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(^|\s|,){option}\b", done.stdout), option
    assert "--json" in done.stdout
    assert "--debug" in done.stdout


def test_root_help_names_every_command() -> None:
    done = invoke("--help")
    assert done.exit_code == 0
    assert all(re.search(rf"^  {name} ", done.stdout, re.M) for name in COMMANDS)
    assert "snngraph convert net.py:build" in done.stdout


def test_version() -> None:
    assert invoke("--version").stdout == f"snngraph {snngraph.__version__}\n"


def test_help_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\nsys.argv = ['snngraph', 'convert', '--help']\nfrom snngraph.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'numpy', 'onnx', 'openvino', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


# -- convert -------------------------------------------------------------------------------------------------------------------


def test_convert_writes_the_engine_and_the_onnx_model(made: Path) -> None:
    found = json.loads((made / "convert.json").read_text())
    assert found["ok"]
    assert found["bytes"] == (made / "net.snn").stat().st_size
    assert found["engine"]["inputs"][0]["shape"] == [5, 4, 8]
    manifest, model = artifact.read(made / "net.snn")
    assert (made / "net.onnx").read_bytes() == model
    assert [p for p in manifest.passes if p != "canonicalize"] == ["fold_batch_norm", "fold_attention", "flatten_time"]
    assert manifest.verify is None


def test_convert_says_what_it_did(made: Path, tmp_path: Path) -> None:
    done = invoke(*convert_arguments(made), "-o", tmp_path / "net.snn", "--seed", "3", "--rate", "0.25")
    assert done.exit_code == 0
    assert "the model prints" in done.stdout
    assert f"{tmp_path}/net.snn: 0.0" in done.stdout
    assert "random binary events, 25% ones, seed 3, shape [5, 2, 8]" in done.stderr
    assert f"weights from {made}/net.pt; in evaluation mode (eval())" in done.stderr
    for stage in ("load the model", "capture", "optimize", "build"):
        assert re.search(rf"^{stage}: \d", done.stderr, re.M)


def test_convert_verifies_before_it_writes(made: Path, tmp_path: Path) -> None:
    found = document(*convert_arguments(made), "-o", tmp_path / "net.snn", "--verify", made / "x.npy", "--batch", "dynamic")
    assert found["verify"]["ok"]
    assert found["verify"]["inputs"] == 33
    manifest, _ = artifact.read(tmp_path / "net.snn")
    assert manifest.verify is not None
    assert manifest.verify["ok"] is True
    assert manifest.inputs[0].shape == (5, None, 8)


def test_convert_does_not_write_an_engine_that_is_wrong(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from snngraph import api

    monkeypatch.setattr(snngraph, "verify", lambda *a, **k: replace(api.verify(*a, **k), problems=("it is wrong",)))
    arguments = ("-o", tmp_path / "net.snn", "--onnx", tmp_path / "net.onnx", "--verify", made / "x.npy")
    done = invoke(*convert_arguments(made), *arguments, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["ok"] is False
    assert "it is wrong" in done.stderr
    assert "was not written" in done.stderr
    assert files(tmp_path) == set()


def test_convert_a_model_that_takes_one_step(made: Path, tmp_path: Path) -> None:
    arguments = ("--shape", "3,8", "--time-steps", "4", "--time-dim", "none", "--time-reduction", "mean", "--fill", "normal")
    found = document("convert", f"{made}/cli_net.py:Step", "-o", tmp_path / "net.snn", *arguments, "--pass", "canonicalize")
    assert found["engine"]["time_steps"] == 4
    assert found["engine"]["inputs"][0]["shape"] == [3, 8]
    assert found["engine"]["outputs"][0]["shape"] == [3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model-arg", "hiden=3"], "unexpected keyword argument 'hiden'"),
        (["--model-arg", "hidden=3"], "weights in .* are not those of Net"),
        (["--target", "openvin"], "Did you mean 'openvino'"),
        (["--precision", "fp23"], "no precision is named 'fp23'"),
        (["--mode", "both"], "no mode is named 'both'"),
        (["--batch", "many"], "neither a positive number nor 'dynamic'"),
        (["--pass", "fold_batchnorm"], "did you mean 'fold_batch_norm'"),
        (["--input", "missing.npy"], "give --input or --shape, not both"),
        (["--time-dim", "2"], "--time-dim"),
        (["--time-dim", "1"], "time_dim=1"),
        (["--no-eval"], r"in training mode(?s:.*)--eval"),
        (["--threads", "0"], "--threads"),
        (["--onnx", "{folder}/missing/net.onnx"], "folder .* does not exist"),
        (["--verify", "{folder}/missing.npy"], "there is no file"),
    ],
)
def test_convert_refuses(arguments: list[str], message: str, made: Path, tmp_path: Path) -> None:
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    done = invoke(*convert_arguments(made), "-o", tmp_path / "net.snn", *filled)
    assert done.exit_code == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == set()


def test_convert_asks_for_an_example(made: Path, tmp_path: Path) -> None:
    done = invoke("convert", f"{made}/cli_net.py:build", "-o", tmp_path / "net.snn")
    assert done.exit_code == 2
    assert "--shape" in done.stderr


def test_files_that_exist_are_kept_unless_forced(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.snn"
    path.write_text("precious")
    done = invoke(*convert_arguments(made), "-o", path)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert "capture" not in done.stderr, "nothing was computed"
    assert path.read_text() == "precious"
    assert invoke(*convert_arguments(made), "-o", path, "--force").exit_code == 0
    artifact.read(path)


# -- run -----------------------------------------------------------------------------------------------------------------------


def test_run_gives_what_the_engine_gives_batch_by_batch(made: Path, tmp_path: Path) -> None:
    found = document("run", made / "net.snn", "--input", made / "x.npy", "-o", tmp_path / "y.npy")
    x = np.load(made / "x.npy").astype(np.float32)
    with snngraph.load(made / "net.snn") as engine:
        expected = np.concatenate([engine.run(x[:, k : k + 4]) for k in range(0, 32, 4)])
    y = np.load(tmp_path / "y.npy")
    assert y.shape == (33, 4)
    assert np.array_equal(y[:32], expected)
    assert y.any()
    assert found["samples"] == 33
    assert found["batches"] == 9
    assert found["predictions"] == y.argmax(1).tolist()
    assert found["outputs"] == {"output": {"shape": [33, 4], "dtype": "float32"}}
    assert found["milliseconds"]["total"] >= found["milliseconds"]["median_batch"] > 0


def test_run_joins_the_samples_of_what_is_merged_with_time(made: Path, tmp_path: Path) -> None:
    """Spikes ``[T*N, ...]``, and a model's own rows, time or batch first: as if all samples had been one batch."""
    import torch
    from torch import nn

    from snngraph.neurons import LIF

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer, self.lif = nn.Linear(8, 6), LIF(threshold=0.2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            s = self.lif(self.layer(x))
            return s.flatten(0, 1), s.transpose(0, 1).flatten(0, 1), s.mean(0)

    x = np.load(made / "x.npy").astype(np.float32)
    example = torch.from_numpy(x[:, :4])
    engine = snngraph.convert(Flat().eval(), example, target="onnxruntime", path=tmp_path / "fixed.snn", taps=True)
    engine.close()
    with snngraph.convert(Flat().eval(), example, target="onnxruntime", batch_size="dynamic", taps=True) as dynamic:
        expected = dynamic.run(x)
        names = [spec.name for spec in dynamic.outputs]
        dynamic.save(tmp_path / "dynamic.snn")
    for name in ("fixed", "dynamic"):
        found = document("run", tmp_path / f"{name}.snn", "--input", made / "x.npy", "-o", tmp_path / f"{name}.npz")
        assert found["samples"] == 33
        assert len(found["predictions"]) == 33
        with np.load(tmp_path / f"{name}.npz") as archive:
            for title, wanted in zip(names, expected, strict=True):
                assert wanted.any()
                np.testing.assert_array_equal(archive[title], wanted, err_msg=f"{name}: {title}")


def test_run_on_another_target_writes_npz(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    np.savez(tmp_path / "x.npz", x=np.load(made / "x.npy"))
    done = invoke("run", made / "net.snn", "--input", tmp_path / "x.npz", "-o", tmp_path / "y.npz", "--target", "onnxruntime")
    assert done.exit_code == 0, done.stderr
    assert re.search(r"33 samples in .* on onnxruntime", done.stdout)
    assert re.search(r"by class: \d: \d", done.stdout)
    assert "bool converted to float32" in done.stderr
    with np.load(tmp_path / "y.npz") as archive:
        assert archive["output"].shape == (33, 4)


def test_run_needs_no_torch(made: Path, tmp_path: Path) -> None:
    code = "import sys\nsys.modules.update(torch=None, onnx=None, onnxscript=None)\nfrom snngraph.cli import main\nmain()"
    arguments = ["run", str(made / "net.snn"), "--input", str(made / "x.npy"), "-o", str(tmp_path / "y.npy"), "--json"]
    command = [sys.executable, "-c", code]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 33
    for name in ("targets", "inspect"):
        other = [name, *([str(made / "net.snn")] if name == "inspect" else [])]
        done = subprocess.run([*command, *other], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([*command, "passes"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert 'pip install "snngraph[compile]"' in done.stderr


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 2, 8), np.float32), "number of time steps"),
        (np.zeros((5, 8), np.float32), "3 dimensions"),
        (np.zeros((5, 0, 8), np.float32), "0 samples"),
        (np.zeros((5, 2, 9), np.float32), "number of channels"),
        (np.zeros((5, 2, 8), np.complex64), "complex64"),
        (np.array(["text"]), "<U4"),
        (np.array([{"an": "object"}]), "allow_pickle=False"),
    ],
)
def test_run_refuses_inputs_that_do_not_fit(array: Any, message: str, made: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    done = invoke("run", made / "net.snn", "--input", tmp_path / "bad.npy", "-o", tmp_path / "y.npy")
    assert done.exit_code == 2, done.stderr
    assert message in done.stderr
    assert files(tmp_path) == {"bad.npy"}


def test_run_refuses_files_that_are_none(made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("not an array")
    (tmp_path / "broken.snn").write_bytes((made / "net.snn").read_bytes()[:-100])
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    engine, x = made / "net.snn", made / "x.npy"
    for arguments, message in (
        ((engine, "--input", tmp_path / "text.npy"), "can not be read as a .npy"),
        ((engine, "--input", tmp_path / "two.npz"), "holds 2 arrays (a, b)"),
        ((engine, "--input", tmp_path), "is no file"),
        ((engine, "--input", x, "--input", x), "the engine takes 1 input"),
        ((engine, "--input", x, "-o", tmp_path / "y.txt"), ".npy or .npz"),
        ((engine, "--input", x, "--target", "tensorrt"), "tensorrt"),
        ((tmp_path / "broken.snn", "--input", x), "truncated or damaged"),
        ((tmp_path / "none.snn", "--input", x), "there is no file"),
        ((engine,), "--input"),
    ):
        done = invoke("run", *arguments)
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr


# -- verify --------------------------------------------------------------------------------------------------------------------


def test_verify_a_right_engine(made: Path, tmp_path: Path) -> None:
    model = (f"{made}/cli_net.py:build", "--weights", made / "net.pt")
    saved = tmp_path / "report.html"
    found = document("verify", made / "net.snn", *model, "--inputs", made / "x.npy", "--save", saved)
    assert found["ok"]
    assert found["inputs"] == 33
    assert [layer["name"] for layer in found["layers"]] == ["lif", "out"]
    assert "as right as float32" in saved.read_text()


def test_verify_a_wrong_engine(made: Path, tmp_path: Path) -> None:
    model = (f"{made}/cli_net.py:build", "--weights", made / "other.pt")
    done = invoke("verify", made / "net.snn", *model, "--random", "40", "--save", tmp_path / "report.json")
    assert done.exit_code == 1
    assert "NOT right" in done.stdout
    assert "40 inputs: random binary events" in done.stderr
    assert json.loads((tmp_path / "report.json").read_text())["ok"] is False


def test_verify_refuses(made: Path, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("precious")
    for arguments, message in (
        (("--inputs", made / "x.npy", "--random", "3"), "not both"),
        (("--save", tmp_path / "report.txt"), ".html or .json"),
        (("--save", tmp_path / "report.json"), "--force"),
        (("--inputs", made / "missing.npy"), "there is no file"),
    ):
        done = invoke("verify", made / "net.snn", f"{made}/cli_net.py:build", *arguments)
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr


# -- inspect, passes, targets --------------------------------------------------------------------------------------------------


def test_inspect_an_engine(made: Path) -> None:
    found = document("inspect", made / "net.snn")
    assert found["operators"]["MatMul"] + found["operators"].get("Gemm", 0) >= 2
    assert found["manifest"]["hashes"].keys() == {"manifest.json", "model.onnx"}
    text = invoke("inspect", made / "net.snn").stdout
    for part in ("target openvino", "x: float32[T=5, N=4, 8]", "output: float32[N=4, 4]", "fold_batch_norm", "torch 2", "sha256"):
        assert part in text


def test_inspect_a_model_before_and_after(made: Path) -> None:
    found = document("inspect", f"{made}/cli_net.py:build", "--shape", "5,2,8", "--before-after")
    assert "batch_norm" in found["graph"]
    assert "batch_norm" not in found["optimized"]["graph"]
    assert "fold_batch_norm" in found["optimized"]["passes"]
    assert [layer["name"] for layer in found["neurons"]] == ["lif", "out"]


def test_inspect_the_demo_shows_both_graphs() -> None:
    done = invoke("inspect", "demo", "--pass", "eliminate_dead")
    assert done.exit_code == 0, done.stderr
    before, after = done.stdout.split("== after the passes ==")
    assert before.startswith("== before the passes ==\n<SpikingGraph")
    assert "x[T=8, N, 2, 24, 24] ->" in before
    assert "x[T=8, N, 2, 24, 24] ->" in after
    assert "random binary events" in done.stderr


def test_inspect_what_is_neither(tmp_path: Path) -> None:
    done = invoke("inspect", "net", "--shape", "1,1")
    assert done.exit_code == 2
    assert "'net' names no model" in done.stderr


def test_passes_are_listed() -> None:
    found = {info["name"]: info for info in document("passes")["passes"]}
    assert found["fold_batch_norm"]["package"] == "snngraph"
    assert found["fold_batch_norm"]["exactness"] == "real"
    text = invoke("passes").stdout
    assert all(name in text for name in found)


def test_passes_explain(made: Path) -> None:
    done = invoke("passes", "--explain", f"{made}/cli_net.py:build", "--shape", "5,2,8", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["changed"]
    assert {"fold_batch_norm", "flatten_time"} <= {note["by"] for note in found["notes"]}
    assert re.search(r"^\+ fold_batch_norm: .*\(norm\).*cli_net.py:\d+: folded into", done.stderr, re.M)


def test_passes_explain_counts_bookkeeping(made: Path) -> None:
    arguments = ("passes", "--explain", f"{made}/cli_net.py:build", "--shape", "5,2,8")
    notes = json.loads(invoke(*arguments, "--json").stdout)["notes"]
    counts = {by: sum((n["by"], n["kind"]) == (by, "rewrite") for n in notes) for by in passes.BOOKKEEPING}
    assert counts["canonicalize"] > 1
    lines = invoke(*arguments).stdout.splitlines()
    for by, count in counts.items():
        words = f"{by}: {count} rewrite{'' if count == 1 else 's'} (--all shows them)"
        assert lines.count(words) == (count > 0)
        assert not any(line.startswith(f"+ {by}:") for line in lines)
    assert any(line.startswith("+ fold_batch_norm:") for line in lines)
    everything = invoke(*arguments, "--all").stdout.splitlines()
    assert sum(line.startswith(("+ ", "- ")) for line in everything) == len(notes)
    assert sum(line.startswith("+ canonicalize:") for line in everything) == counts["canonicalize"]
    assert everything[-1] == lines[-1]


def test_passes_explain_always_shows_what_was_refused(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph.passes import base, registry

    def refused(graph: Any) -> base.PassResult:
        notes = (base.Note("refused", "here", "not so", "canonicalize"), base.Note("rewrite", "there", "done", "canonicalize"))
        return base.PassResult(graph, True, notes)

    monkeypatch.setattr(registry, "pipeline", lambda _names: refused)
    done = invoke("passes", "--explain", f"{made}/cli_net.py:build", "--shape", "5,2,8", "--pass", "canonicalize")
    assert "\n- canonicalize: here: not so\ncanonicalize: 1 rewrite (--all shows them)\n" in done.stdout


def test_passes_alone_take_no_options() -> None:
    assert invoke("passes", "--pass", "canonicalize").exit_code == 2
    assert invoke("passes", "--all").exit_code == 2


def test_targets() -> None:
    found = {info["name"]: info for info in document("targets")["targets"]}
    assert {"openvino", "onnxruntime", "tensorrt"} <= found.keys()
    assert found["openvino"]["available"]
    text = invoke("targets").stdout
    assert found["openvino"]["version"] in text
    assert "cpu" in text


def test_targets_that_are_missing_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph.runtime import backends

    monkeypatch.setattr(backends, "_is_installed", lambda module: False)
    monkeypatch.setenv("COLUMNS", "200")
    text = invoke("targets").stdout
    assert "onnxruntime is not installed" in text
    assert 'pip install "snngraph[cpu]"' in text


# -- bench and demo ------------------------------------------------------------------------------------------------------------


def test_bench_a_model(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph import benchmark

    calls: list[dict[str, Any]] = []

    class Found:
        ok = True

        def to_dict(self) -> dict[str, Any]:
            return {"ok": True}

    def compare(model: torch.nn.Module, example: tuple[torch.Tensor, ...], **options: Any) -> Found:
        calls.append({"shape": tuple(example[0].shape), "training": model.training, **options})
        options["progress"]("time", 1, 2)
        return Found()

    monkeypatch.setattr(benchmark, "compare", compare)
    model = (f"{made}/cli_net.py:build", "--weights", made / "net.pt", "--shape", "5,2,8")
    options = ("--peer", "PyTorch", "--precision", "exact", "--precision", "int8", "--target", "openvino")
    assert document("bench", *model, *options, "--rounds", "7", "--threads", "1") == {"ok": True}
    (call,) = calls
    assert (call["shape"], call["training"]) == ((5, 2, 8), False)
    assert (call["engine"], call["peers"], call["rounds"], call["threads"]) == (None, ["PyTorch"], 7, 1)
    assert (call["targets"], call["precisions"]) == (["openvino"], ["exact", "int8"])
    assert call["graph"].time.steps == 5


def test_bench_an_engine_with_its_model_finds_that_it_is_wrong(made: Path, tmp_path: Path) -> None:
    model = (f"{made}/cli_net.py:build", "--weights", made / "other.pt")
    options = ("--peer", "PyTorch", "--rounds", "1", "--save", tmp_path / "bench.json")
    found = document("bench", made / "net.snn", *model, *options, code=1)
    assert [row["kind"] for row in found["rows"]] == ["peer", "engine"]
    assert not found["rows"][1]["exact"]
    assert json.loads((tmp_path / "bench.json").read_text()) == found


def test_bench_an_engine_alone(made: Path, tmp_path: Path) -> None:
    found = document("bench", made / "net.snn", "--rounds", "3", "--save", tmp_path / "bench.json")
    assert found["rounds"] == 3
    assert 0 < found["milliseconds"]["median"] <= found["milliseconds"]["p99"]
    assert (tmp_path / "bench.json").exists()


def test_bench_refuses(made: Path) -> None:
    for arguments, message in (
        (("demo", "demo"), "no engine file"),
        (("demo", "--time-steps", "3"), "--time-steps"),
        ((made / "net.snn", "--target", "openvino"), "--target"),
        ((made / "net.snn", "--precision", "exact"), "--precision"),
    ):
        done = invoke("bench", *arguments)
        assert done.exit_code == 2, done.stderr
        assert message in done.stderr


@pytest.mark.parametrize("ok", [True, False])
def test_demo(ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph.demo import run as demo_run

    calls = []

    class Result:
        def __init__(self, ok: bool) -> None:
            self.ok = ok

        def to_dict(self) -> dict[str, Any]:
            return {"ok": self.ok}

    def run_demo(out: Path, *, train: bool, quick: bool, console: Any) -> Result:
        console.print("[1/6] people read this")
        calls.append((out, train, quick))
        return Result(ok)

    monkeypatch.setattr(demo_run, "run_demo", run_demo)
    done = invoke("demo", "--out", tmp_path, "--no-train", "--quick", "--json")
    assert done.exit_code == (0 if ok else 1)
    assert json.loads(done.stdout) == {"ok": ok}
    assert "[1/6] people read this" in done.stderr
    assert calls == [(tmp_path, False, True)]


# -- errors --------------------------------------------------------------------------------------------------------------------


def test_error_is_one_paragraph_and_a_document(made: Path) -> None:
    arguments = ("convert", f"{made}/cli_net.py:fails", "-o", made / "never.snn", "--shape", "5,2,8")
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert re.fullmatch(
        r"error: calling .*:fails failed with RuntimeError: no data set here \(at .*\)", done.stderr.splitlines()[-1]
    )
    found = document(*arguments, code=2)
    assert found["error"]["type"] == "ModelLoadError"
    assert "no data set here" in found["error"]["message"]


@pytest.mark.parametrize("by", ["option", "environment"])
def test_debug_shows_the_traceback(by: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if by == "environment":
        monkeypatch.setenv("SNNGRAPH_DEBUG", "1")
    options = ("--debug",) if by == "option" else ()
    done = invoke("run", made / "none.snn", "--input", made / "x.npy", *options)
    assert done.exit_code == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert "error: there is no file" in done.stderr


def test_bug_is_a_traceback_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    from snngraph.runtime import backends

    def broken() -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(backends, "targets", broken)
    done = invoke("targets")
    assert done.exit_code == 3
    assert "Traceback (most recent call last)" in done.stderr
    assert "ZeroDivisionError: a bug" in done.stderr
    assert "report it" in done.stderr
    assert document("targets", code=3)["error"]["type"] == "ZeroDivisionError"


def test_unknown_command_and_option() -> None:
    for arguments in (["convrt"], ["targets", "--jsn"]):
        done = invoke(*arguments)
        assert done.exit_code == 2
        assert "No such" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(number: signal.Signals, code: int, made: Path, tmp_path: Path) -> None:
    arguments = ["convert", f"{made}/cli_net.py:slow", "-o", str(tmp_path / "net.snn"), "--shape", "5,2,8"]
    process = subprocess.Popen([*MAIN, *arguments], stderr=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ})
    assert process.stderr is not None
    said = ""
    while "building" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    time.sleep(0.1)
    process.send_signal(number)
    try:
        rest = process.communicate(timeout=15)[1]
    except subprocess.TimeoutExpired:  # Python drops an interrupt that arrives in a finalizer: one presses the keys again
        process.send_signal(number)
        rest = process.communicate(timeout=30)[1]
    assert process.returncode == code
    assert "Traceback" not in rest
    assert files(tmp_path) == set()


def test_output_is_not_redirected_for_good(made: Path) -> None:
    before = sys.stdout
    document("inspect", made / "net.snn")
    assert sys.stdout is before


# -- NIR -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def nir_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nir = pytest.importorskip("nir", reason="NIR is not installed")
    one = np.ones(4)
    nodes = (nir.Linear(np.random.default_rng(0).normal(size=(4, 8))), nir.LIF(2 * one, 2 * one, 0 * one, one))
    path = tmp_path_factory.mktemp("nir") / "net.nir"
    nir.write(path, nir.NIRGraph.from_list(nir.Input(np.array([8])), *nodes, nir.Output(np.array([4]))))
    return path


NIR_ARGUMENTS = [f"--model-arg={pair}" for pair in ("dt=1.0", "integrator=euler", "fire=>", "reset=hard")]


def test_a_nir_file_becomes_an_engine(nir_file: Path) -> None:
    np.save(nir_file.parent / "x.npy", np.random.default_rng(0).normal(size=(5, 33, 8)).astype(np.float32) * 2)
    engine, inputs = nir_file.with_suffix(".snn"), nir_file.parent / "x.npy"
    arguments = [nir_file, "--time-steps", "5", *NIR_ARGUMENTS]
    done = invoke("convert", *arguments, "-o", engine, "--verify", inputs, "--batch", "dynamic", "--json")
    assert done.exit_code == 0, done.stderr
    verified = invoke("verify", engine, *arguments, "--inputs", inputs, "--json")
    assert verified.exit_code == 0, verified.stderr
    assert json.loads(verified.stdout)["ok"]
    shown = invoke("inspect", *arguments)
    assert "lif(" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time-steps", "5"], "Give dt"),
        (["--time-steps", "5", "--model-arg", "tau=2"], "no --model-arg tau"),
        (["--time-steps", "5", "--shape", "5,1,8"], "for models"),
        (["--time-steps", "5", "--eval"], "--model-arg alone"),
    ],
)
def test_what_a_nir_file_does_not_take(nir_file: Path, arguments: list[str], message: str, tmp_path: Path) -> None:
    done = invoke("convert", nir_file, "-o", tmp_path / "net.snn", *arguments)
    assert done.exit_code == 2
    assert message in " ".join(re.sub(r"[^\w\s.,:-]", " ", done.stderr).split())
    refused = invoke("bench", nir_file)
    assert refused.exit_code == 2
    assert "no PyTorch model" in " ".join(re.sub(r"[^\w\s]", " ", refused.stderr).split())
