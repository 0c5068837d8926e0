"""The distributions hold every module once, with and without the symbolic links to passes/ and runtime/."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
LINKS = {"snngraph/passes": "passes", "snngraph/runtime": "runtime"}
NOT_SOURCES = shutil.ignore_patterns(
    ".*", "build", "dist", "out", "tests", "benchmarks", "docs", "examples", "*.egg-info", "__pycache__"
)

pytest.importorskip("setuptools", minversion="77")


def copy_tree(to: Path, links: str) -> Path:
    """Copy the sources; the links stay ``"kept"``, are ``"lost"``, or become ``"files"`` that hold their target."""
    shutil.copytree(ROOT, to, symlinks=True, ignore=NOT_SOURCES)
    for link, folder in LINKS.items():
        path = to / link
        if links == "kept":
            continue
        path.unlink()
        if links == "files":
            path.write_text(f"../{folder}")
    return to


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a ``"wheel"`` or ``"sdist"`` in a fresh process, offline."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{kind}(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(out)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return out / run.stdout.splitlines()[-1]


def wheel_names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return sorted(name for name in archive.namelist() if ".dist-info/" not in name)


def expected_names() -> list[str]:
    """Every Python file of the tree, under the name it is imported by."""
    names = [path.relative_to(ROOT).as_posix() for path in (ROOT / "snngraph").rglob("*.py") if not under_link(path)]
    for link, folder in LINKS.items():
        names += [f"{link}/{path.relative_to(ROOT / folder).as_posix()}" for path in (ROOT / folder).rglob("*.py")]
    return sorted(names)


def under_link(path: Path) -> bool:
    return any((ROOT / link) in path.parents for link in LINKS)


@pytest.mark.parametrize(("link", "folder"), LINKS.items())
def test_links_are_relative(link: str, folder: str) -> None:
    path = ROOT / link
    assert path.is_symlink()
    assert path.readlink() == Path("..") / folder
    assert path.resolve() == ROOT / folder


def test_every_folder_of_modules_is_a_listed_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {".".join(PurePosixPath(name).parts[:-1]) for name in expected_names()}
    assert folders == set(settings["packages"])


@pytest.mark.parametrize("links", ["kept", "lost", "files"])
def test_wheel_holds_every_module_once(tmp_path: Path, links: str) -> None:
    source = copy_tree(tmp_path / "source", links)
    names = wheel_names(build("wheel", source, tmp_path))
    assert len(names) == len(set(names))
    assert [name for name in names if name.endswith(".py")] == expected_names()
    assert {name.split("/")[0] for name in names} == {"snngraph"}
    assert "snngraph/py.typed" in names


def test_wheel_holds_the_data_files(tmp_path: Path) -> None:
    source = copy_tree(tmp_path / "source", "kept")
    for name in ("net.pt", "net.safetensors"):
        (source / "snngraph" / "demo" / name).write_bytes(b"")
    names = wheel_names(build("wheel", source, tmp_path))
    assert {"snngraph/demo/net.pt", "snngraph/demo/net.safetensors"} <= set(names)


def test_sdist_builds_the_same_wheel(tmp_path: Path) -> None:
    source = copy_tree(tmp_path / "source", "kept")
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    from_sdist = build("wheel", unpacked, tmp_path)
    assert [name for name in wheel_names(from_sdist) if name.endswith(".py")] == expected_names()
