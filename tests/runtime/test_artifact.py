"""The ``.snn`` file: whole or not at all when written, trusted in nothing when read."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from snngraph.errors import (
    ArtifactCorruptError,
    ArtifactError,
    ArtifactExistsError,
    ArtifactHashError,
    ArtifactReadError,
    ArtifactVersionError,
    ArtifactWriteError,
    UnsafeArtifactError,
)
from snngraph.runtime import artifact
from snngraph.runtime.manifest import manifest_hash
from snngraph.types import TensorSpec
from tests.runtime.networks import lif_model, manifest, model_of

MODEL = lif_model()


def good_file() -> bytes:
    """A good artifact, as bytes."""
    tree = manifest(hashes={"model.onnx": hashlib.sha256(MODEL).hexdigest()}).to_json()
    return pack(tree, MODEL)


def pack(tree: dict[str, Any], model: bytes, rehash: bool = True) -> bytes:
    """What somebody who knows the format could make of a manifest and a model."""
    if rehash:
        tree["hashes"] = {"model.onnx": hashlib.sha256(model).hexdigest()}
        tree["hashes"]["manifest.json"] = manifest_hash(tree)
    return zipped({"manifest.json": json.dumps(tree).encode(), "model.onnx": model})


def zipped(members: dict[str, bytes], **fields: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return buffer.getvalue()


def members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good_file())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


# -- writing -------------------------------------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    written = artifact.write(tmp_path / "net.snn", manifest(), MODEL)
    assert artifact.read(tmp_path / "net.snn") == (written, MODEL)
    assert written.hashes["model.onnx"] == hashlib.sha256(MODEL).hexdigest()
    assert set(written.hashes) == {"model.onnx", "manifest.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.snn"]


def test_equal_networks_make_equal_files(tmp_path: Path) -> None:
    artifact.write(tmp_path / "a.snn", manifest(), MODEL)
    written, model = artifact.read(tmp_path / "a.snn")
    artifact.write(tmp_path / "b.snn", written, model)
    assert (tmp_path / "a.snn").read_bytes() == (tmp_path / "b.snn").read_bytes()


def test_any_zip_tool_can_open_it(tmp_path: Path) -> None:
    artifact.write(tmp_path / "net.snn", manifest(), MODEL)
    with zipfile.ZipFile(tmp_path / "net.snn") as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["manifest.json", "model.onnx"]
        assert archive.read("model.onnx") == MODEL
        assert json.loads(archive.read("manifest.json"))["name"] == "lif"


def test_an_existing_file_stays_without_force(tmp_path: Path) -> None:
    path = tmp_path / "net.snn"
    path.write_bytes(b"old")
    with pytest.raises(ArtifactExistsError, match="force=True"):
        artifact.write(path, manifest(), b"not even a model: the file is looked at first")
    assert path.read_bytes() == b"old"
    artifact.write(path, manifest(), MODEL, force=True)
    assert artifact.read(path)[1] == MODEL


def test_the_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        artifact.write(tmp_path / "net.snn", manifest(), MODEL)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "net.snn").stat().st_mode) == 0o644


def test_a_symbolic_link_is_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "net.snn").symlink_to(tmp_path / "real" / "net.snn")
    artifact.write(tmp_path / "net.snn", manifest(), MODEL)
    assert (tmp_path / "net.snn").is_symlink()
    assert artifact.read(tmp_path / "real" / "net.snn")[1] == MODEL


def test_a_missing_folder_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactWriteError, match=r"the folder '.*/no/such' does not exist"):
        artifact.write(tmp_path / "no" / "such" / "net.snn", manifest(), MODEL)
    with pytest.raises(ArtifactWriteError, match=r"is a folder; give the name of a file"):
        artifact.write(tmp_path, manifest(), MODEL, force=True)


def test_what_read_refuses_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactCorruptError, match=r"the manifest names the outputs \['z'\], but model.onnx has \['y'\]"):
        artifact.write(tmp_path / "net.snn", manifest(outputs=(TensorSpec("z", (1, 10)),)), MODEL)
    with pytest.raises(ArtifactCorruptError):
        artifact.write(tmp_path / "net.snn", manifest(), b"no model")
    assert not list(tmp_path.iterdir())


def fail_with(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any) -> None:
        raise error

    return fail


@pytest.mark.parametrize("step", ["fsync", "replace", "write"])
def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "net.snn"
    path.write_bytes(b"old")
    full = fail_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(zipfile.ZipFile, "writestr", full)
        else:
            patch.setattr(os, step, full)
        with pytest.raises(ArtifactWriteError, match=r"No space left on device; nothing was changed there"):
            artifact.write(path, manifest(), MODEL, force=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.snn", b"old")]


def test_any_other_file_is_written_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.onnx"
    artifact.write_bytes(path, b"one")
    with pytest.raises(ArtifactExistsError):
        artifact.write_bytes(path, b"two")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        with pytest.raises(ArtifactWriteError, match="No space left on device"):
            artifact.write_bytes(path, b"two", force=True)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.onnx", b"one")]
    artifact.write_bytes(path, b"two", force=True)
    assert path.read_bytes() == b"two"


def run(code: str, *arguments: object) -> subprocess.Popen[str]:
    source = "import sys\nfrom tests.runtime.networks import lif_model, manifest\nfrom snngraph.runtime import artifact\n"
    command = [sys.executable, "-c", source + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_file_size_limit_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "net.snn").write_bytes(b"old")
    code = """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            artifact.write(sys.argv[1], manifest(), lif_model(), force=True)
        except artifact.ArtifactWriteError as error:
            print(error)
    """
    process = run(code, tmp_path / "net.snn")
    out, errors = process.communicate(timeout=60)
    assert "File too large" in out, errors
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("net.snn", b"old")]


def test_killed_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "net.snn"
    artifact.write(path, manifest(), MODEL)
    before = path.read_bytes()
    code = """
        import os, time
        os.fsync = lambda descriptor: (print("writing", flush=True), time.sleep(60))
        artifact.write(sys.argv[1], manifest(name="new"), lif_model(), force=True)
    """
    process = run(code, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == before
    assert artifact.read(path)[0].name == "lif"
    artifact.write(path, manifest(name="new"), MODEL, force=True)  # what was left behind is not in the way
    assert artifact.read(path)[0].name == "new"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_with(error))
        with pytest.raises(type(error)):
            artifact.write(tmp_path / "net.snn", manifest(), MODEL)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not by chmod: the administrator may write everywhere.
    monkeypatch.setattr(os, "open", fail_with(PermissionError(errno.EACCES, os.strerror(errno.EACCES))))
    with pytest.raises(ArtifactWriteError, match="Permission denied"):
        artifact.write(tmp_path / "net.snn", manifest(), MODEL)


# -- reading -------------------------------------------------------------------------------------------------------------------


def read_bytes(folder: Path, content: bytes) -> Any:
    path = folder / "hostile.snn"
    path.write_bytes(content)
    return artifact.read(path)


def test_the_helper_makes_good_files(tmp_path: Path) -> None:
    assert read_bytes(tmp_path, good_file())[1] == MODEL


def test_no_file_a_folder_and_a_pipe(tmp_path: Path) -> None:
    with pytest.raises(ArtifactReadError, match=r"there is no file '.*none\.snn'"):
        artifact.read(tmp_path / "none.snn")
    with pytest.raises(ArtifactReadError, match="is a folder or a device"):
        artifact.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.snn")
    with pytest.raises(ArtifactReadError, match="is a folder or a device"):
        artifact.read(tmp_path / "pipe.snn")
    with pytest.raises(ArtifactReadError):
        artifact.read("net\0.snn")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK",
        b"\x80\x04K*.",
        b"not a zip file at all",
        MODEL,
        good_file()[:-1],
        good_file()[:1000],
        b"#!/bin/sh\n" + good_file(),
    ],
)
def test_no_artifact_at_all(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ArtifactCorruptError):
        read_bytes(tmp_path, content)


@pytest.mark.parametrize("missing", ["manifest.json", "model.onnx"])
def test_a_missing_member(tmp_path: Path, missing: str) -> None:
    rest = {name: content for name, content in members().items() if name != missing}
    with pytest.raises(ArtifactCorruptError, match=f"lacks {missing}"):
        read_bytes(tmp_path, zipped(rest))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("extra.txt", "an unexpected member, 'extra.txt'"),
        ("Model.onnx", "an unexpected member"),
        ("folder/", "an unexpected member"),
        ("a/model.onnx", "an unexpected member"),
        ("./model.onnx", "an unexpected member"),
        ("/etc/passwd", "a member with an absolute path"),
        ("C:\\model.onnx", "a member with an absolute path"),
        ("../model.onnx", "a member that leaves the archive"),
        ("a\\..\\..\\model.onnx", "a member that leaves the archive"),
    ],
)
def test_other_member_names(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(UnsafeArtifactError) as caught:
        read_bytes(tmp_path, zipped({**members(), name: b""}))
    assert message in str(caught.value)


def test_a_name_cut_by_a_zero_byte(tmp_path: Path) -> None:
    content = zipped({**members(), "model.onnxXexe": b""}).replace(b"model.onnxXexe", b"model.onnx\0exe")
    with pytest.raises(ArtifactError):
        read_bytes(tmp_path, content)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(tmp_path: Path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in [*members().items(), ("model.onnx", b"other")]:
            archive.writestr(name, data)
    with pytest.raises(UnsafeArtifactError, match="holds a member twice"):
        read_bytes(tmp_path, content.getvalue())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFCHR, stat.S_IFIFO])
def test_a_link_or_a_device(tmp_path: Path, kind: int) -> None:
    with pytest.raises(UnsafeArtifactError, match="is no plain file"):
        read_bytes(tmp_path, zipped(members(), external_attr=(kind | 0o777) << 16))


def test_a_compression_bomb(tmp_path: Path) -> None:
    bomb = zipped({**members(), "model.onnx": bytes(50_000_000)}, compress_type=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    with pytest.raises(UnsafeArtifactError, match="is compressed"):
        read_bytes(tmp_path, bomb)


def patched_directory(content: bytes, offset: int, value: bytes) -> bytes:
    """A zip whose directory says something else about its last member."""
    start = content.rindex(b"PK\x01\x02") + offset
    return content[:start] + value + content[start + len(value) :]


def test_an_encrypted_member(tmp_path: Path) -> None:
    with pytest.raises(UnsafeArtifactError, match=r"model\.onnx is encrypted"):
        read_bytes(tmp_path, patched_directory(good_file(), 8, b"\x01\x00"))


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    huge = (2**31).to_bytes(4, "little")
    with pytest.raises(UnsafeArtifactError, match=r"model\.onnx claims 2147483648 bytes"):
        read_bytes(tmp_path, patched_directory(good_file(), 20, huge * 2))
    with pytest.raises(UnsafeArtifactError, match=r"model\.onnx is compressed"):
        read_bytes(tmp_path, patched_directory(good_file(), 24, huge))


def test_a_manifest_beyond_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(artifact._LIMITS, "manifest.json", 100)
    with pytest.raises(UnsafeArtifactError, match=r"manifest\.json claims \d+ bytes"):
        read_bytes(tmp_path, good_file())


def test_a_file_beyond_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "sparse.snn"
    with path.open("wb") as file:
        file.truncate(2**32)  # takes no room on the disk
    with pytest.raises(UnsafeArtifactError, match="no artifact is that large"):
        artifact.read(path)


def test_an_edited_manifest_is_noticed(tmp_path: Path) -> None:
    content = good_file()
    edited = content.replace(b'"time_steps": 4', b'"time_steps": 8')
    with pytest.raises(ArtifactCorruptError, match="CRC"):
        read_bytes(tmp_path, edited)
    parts = members()
    parts["manifest.json"] = parts["manifest.json"].replace(b'"precision": "fp32"', b'"precision": "int8"')
    with pytest.raises(ArtifactHashError, match=r"manifest\.json does not match its SHA-256"):
        read_bytes(tmp_path, zipped(parts))


def test_an_exchanged_model_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactHashError, match=r"model\.onnx does not match its SHA-256"):
        read_bytes(tmp_path, zipped({**members(), "model.onnx": lif_model(None)}))


@pytest.mark.parametrize("hashes", [None, {}, {"model.onnx": "0"}, {"model.onnx": 1, "manifest.json": 2, "more": 3}])
def test_missing_hashes(tmp_path: Path, hashes: Any) -> None:
    with pytest.raises(ArtifactCorruptError, match="has to hold the hashes"):
        read_bytes(tmp_path, pack({**manifest().to_json(), "hashes": hashes}, MODEL, rehash=False))


def test_a_newer_schema_comes_before_everything_it_may_have_changed(tmp_path: Path) -> None:
    tree = {"schema": 2, "snngraph_version": "3.0", "hashes": "kept elsewhere"}
    with pytest.raises(ArtifactVersionError, match=r"pip install --upgrade snngraph"):
        read_bytes(tmp_path, pack(tree, b"", rehash=False))


def test_hostile_content_with_right_hashes(tmp_path: Path) -> None:
    node = helper.make_node("Evil", ["x"], ["y"], domain="evil")
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", 1, [1])], [helper.make_tensor_value_info("y", 1, [1])]
    )
    with pytest.raises(UnsafeArtifactError, match="domain 'evil'"):
        read_bytes(tmp_path, pack(manifest().to_json(), model_of(graph).SerializeToString()))
    with pytest.raises(ArtifactCorruptError, match=r"wrong keys in manifest: unknown \['run'\]"):
        read_bytes(tmp_path, pack({**manifest().to_json(), "run": "rm -rf /"}, MODEL))
    with pytest.raises(ArtifactCorruptError, match="no valid JSON"):
        read_bytes(tmp_path, zipped({"manifest.json": b"[" * 100_000, "model.onnx": MODEL}))
    with pytest.raises(ArtifactCorruptError, match="integer 'schema'"):
        read_bytes(tmp_path, zipped({"manifest.json": b"[]", "model.onnx": MODEL}))


GOOD = good_file()
EXPECTED_TREE = manifest(hashes={}).to_json()


def check_never_different(folder: Path, content: bytes) -> None:
    try:
        read, model = read_bytes(folder, content)
    except ArtifactError:
        return
    assert model == MODEL
    assert {**read.to_json(), "hashes": {}} == EXPECTED_TREE


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_flipped_bytes_never_load_differently(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(GOOD)
    # Half of the flips in the zip's own structures, which are few among the weights.
    tail = st.integers(GOOD.index(b"PK\x01\x02"), len(GOOD) - 1) | st.integers(0, 60)
    for position in data.draw(st.lists(tail | st.integers(0, len(GOOD) - 1), min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    check_never_different(tmp_path, bytes(content))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(end=st.integers(0, len(GOOD) - 1), more=st.binary(max_size=30))
def test_truncated_and_extended_files_never_load_differently(tmp_path: Path, end: int, more: bytes) -> None:
    check_never_different(tmp_path, GOOD[:end] + more)
    check_never_different(tmp_path, GOOD + more)


def test_special_files_are_never_replaced(tmp_path: Path) -> None:
    pipe, loop = tmp_path / "pipe", tmp_path / "loop"
    os.mkfifo(pipe)
    loop.symlink_to(loop)
    for path in (pipe, loop):
        with pytest.raises(ArtifactWriteError, match="no regular file"):
            artifact.check_destination(path, force=True)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert loop.is_symlink()
