"""A package of somebody else, installed by pip into a folder of its own: its pass, adapter and target are found and used."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snngraph.errors import NameClashError

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NET = "snngraph_example.neuron:build"

pytest.importorskip("setuptools", minversion="77")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pip installed the package into."""
    source = shutil.copytree(HERE / "outside_package", tmp_path_factory.mktemp("outside") / "source")
    target = source.parent / "site"
    options = [
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        str(target),
    ]
    run([sys.executable, "-m", "pip", "install", *options, str(source)], {})
    return target


def run(
    command: list[str], environment: dict[str, str], code: int = 0, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **environment})
    assert done.returncode == code, done.stdout + done.stderr
    return done


def environment(installed: Path) -> dict[str, str]:
    return {"PYTHONPATH": f"{installed}{os.pathsep}{ROOT}"}


EXAMPLE = (NET, "--shape", "4,2,6", "--time-dim", "0")
COMMANDS = {
    "passes": ["passes"],
    "targets": ["targets"],
    "explain": ["passes", "--explain", *EXAMPLE, "--model-arg", "second=0.3", "--pass", "join_scales"],
    "convert": [
        "convert",
        *EXAMPLE,
        "-o",
        "net.snn",
        "--target",
        "example-runtime",
        "--pass",
        "join_scales",
        "--pass",
        "default",
    ],
}
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from snngraph.cli.app import app

for name, arguments in json.loads(sys.argv[1]).items():
    done = CliRunner().invoke(app, [*arguments, "--json"])
    print(json.dumps([name, done.exit_code, done.stdout, done.stderr]))
"""


@pytest.fixture(scope="module")
def said(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each command said, all in one process: importing PyTorch is what takes time."""
    folder = tmp_path_factory.mktemp("commands")
    done = run([sys.executable, "-c", SCRIPT, json.dumps(COMMANDS)], environment(installed), folder=folder)
    found = {}
    for line in done.stdout.splitlines():
        name, code, stdout, stderr = json.loads(line)
        assert code == 0, stdout + stderr
        found[name] = json.loads(stdout)
    return found


API = """
import json
import torch
import snngraph
from snngraph.errors import PassError
from snngraph.testing import assert_equivalent
from snngraph_example.neuron import build

def factors(graph):
    return [node.args[1] for node in graph.nodes if "mul" in str(node.target)]

torch.manual_seed(0)
x = (torch.rand(4, 2, 6) < 0.4).float()
model = build()
graph = snngraph.trace(model, x, time_dim=0)
joined = snngraph.optimize(graph, passes=["join_scales"])
assert_equivalent(graph, joined)
odd = snngraph.trace(build(second=0.3), x, time_dim=0)
kept = snngraph.optimize(odd, passes=["join_scales"])
all_joined = snngraph.optimize(odd, passes=["join_scales(powers_of_two_only=False)"])
assert_equivalent(odd, all_joined)
y = snngraph.build(joined, "example-runtime").run(x.numpy())
model.cell.membrane = None
try:
    snngraph.optimize(graph, passes=["join_scales(powers=2)"])
    refusal = ""
except PassError as error:
    refusal = str(error)
print(json.dumps({
    "layers": [(layer.name, len(layer.nodes), str(layer.nodes[0].target)) for layer in graph.neurons],
    "factors": [factors(g) for g in (graph, joined, odd, kept, all_joined)],
    "history": all_joined.history,
    "equal": bool(torch.equal(torch.from_numpy(y), model(x))),
    "spikes": float(y.sum()),
    "refusal": refusal,
}))
"""


def test_pass_adapter_and_target_from_python(installed: Path) -> None:
    found = json.loads(run([sys.executable, "-c", API], environment(installed)).stdout)
    assert found["layers"] == [["cell", 1, "snn.lif.default"]], "the adapter's steps are one neuron"
    assert found["factors"] == [[4.0, 0.5], [2.0], [4.0, 0.3], [4.0, 0.3], [1.2]]
    assert found["history"][-1] == "join_scales(powers_of_two_only=False)"
    assert found["equal"]
    assert found["spikes"] > 0
    assert "powers_of_two_only" in found["refusal"], "an unknown option is refused with the ones there are"


def test_command_line_lists_the_pass(said: dict[str, Any]) -> None:
    (found,) = [info for info in said["passes"]["passes"] if info["name"] == "join_scales"]
    assert found["package"] == "snngraph-example"
    assert found["exactness"] == "real"
    assert found["options"] == {"powers_of_two_only": True}
    assert found["summary"] == "Joins two constant factors in a row into one."


def test_command_line_lists_the_target(said: dict[str, Any]) -> None:
    (found,) = [info for info in said["targets"]["targets"] if info["name"] == "example-runtime"]
    assert found["available"]
    assert found["version"] == "0.3.1"


def test_command_line_converts_with_the_pass_and_the_target(said: dict[str, Any]) -> None:
    found = said["convert"]
    assert found["engine"]["target"] == "example-runtime"
    assert "join_scales" in found["engine"]["passes"]
    assert [layer["name"] for layer in found["engine"]["layers"]] == ["cell"]


def test_command_line_explains_what_the_pass_refused(said: dict[str, Any]) -> None:
    found = said["explain"]
    assert not found["changed"]
    (note,) = found["notes"]
    assert note["kind"] == "refused"
    assert note["by"] == "join_scales"
    assert note["text"] == "4 and 0.3 are not both powers of two"


# -- names that clash ----------------------------------------------------------------------------------------------------------


def distribution(folder: Path, name: str, group: str, entry: str, value: str) -> None:
    """What pip leaves of an installed package: its metadata."""
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{entry} = {value}\n")


CLASHES = [
    ("snngraph.passes", "canonicalize", "join_scales", "snngraph_example.join_scales:JoinScales"),
    ("snngraph.targets", "openvino", "example-runtime", "other.runtime:Other"),
    ("snngraph.adapters", "other", "example", "snngraph_example.neuron:CellAdapter"),
]


def look_up(group: str) -> object:
    if group == "snngraph.passes":
        from snngraph.passes import registry

        return registry.available()
    if group == "snngraph.targets":
        from snngraph.runtime.backends import targets

        return targets()
    from snngraph.frontends.adapters import adapters

    return adapters()


@pytest.mark.parametrize(("group", "builtin"), [(group, builtin) for group, builtin, *_ in CLASHES[:2]])
def test_name_of_our_own_clashes(group: str, builtin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "intruder", group, builtin, "intruder.module:Thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NameClashError, match=rf"(?s)intruder.*{builtin}|{builtin}.*intruder"):
        look_up(group)


def test_adapter_named_as_our_own_clashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "intruding_adapter.py").write_text(
        "from snngraph.frontends.adapters import SnnGraphNeurons\nclass Other(SnnGraphNeurons): pass\n"
    )
    distribution(tmp_path, "intruder", "snngraph.adapters", "other", "intruding_adapter:Other")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NameClashError, match="snngraph"):
        look_up("snngraph.adapters")


@pytest.mark.parametrize(("group", "name", "value"), [(group, name, value) for group, _, name, value in CLASHES])
def test_names_of_two_packages_clash(
    group: str, name: str, value: str, installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The second package's entry leads elsewhere, as it would.
    (tmp_path / "second_package.py").write_text(
        f"from {value.partition(':')[0]} import *\n" if "other" not in value else "Other = None\n"
    )
    distribution(tmp_path, "second", group, name, f"second_package:{value.partition(':')[2]}")
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(NameClashError, match=name):
        look_up(group)


def test_command_line_reports_a_clash(installed: Path, tmp_path: Path) -> None:
    distribution(tmp_path, "intruder", "snngraph.targets", "openvino", "intruder:Thing")
    both = {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path, installed, ROOT)))}
    done = run([sys.executable, "-c", "from snngraph.cli import main; main()", "targets"], both, code=2)
    assert "intruder" in done.stderr
    assert "Traceback" not in done.stderr
