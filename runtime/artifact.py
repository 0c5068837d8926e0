"""The ``.snn`` file: a zip of ``manifest.json`` and ``model.onnx``.

Members are stored, not compressed: weights hardly shrink, the bytes do not depend on a zlib version (the same network gives the
same file), and a file can not unpack to more than its size. Reading runs no code from the file. The hashes tell damage and
careless edits; they are no signature, so they do not tell who made the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

from snngraph.errors import (
    ArtifactCorruptError,
    ArtifactExistsError,
    ArtifactHashError,
    ArtifactReadError,
    ArtifactWriteError,
    UnsafeArtifactError,
)
from snngraph.runtime.manifest import Manifest, check_schema, manifest_hash, parse_json
from snngraph.runtime.onnx_check import check_onnx

__all__ = ["MAX_MANIFEST_BYTES", "MAX_MODEL_BYTES", "check_destination", "read", "write", "write_bytes"]

MANIFEST: Final = "manifest.json"
MODEL: Final = "model.onnx"

#: A manifest is a few kilobytes; a thousand layers of a thousand steps still fit.
MAX_MANIFEST_BYTES: Final = 64 * 2**20
#: Protobuf can not hold more in one message.
MAX_MODEL_BYTES: Final = 2**31 - 1
#: Zip headers of two members take a few hundred bytes; a comment at most 64 KiB.
_MAX_OVERHEAD_BYTES: Final = 2**17
_LIMITS: Final = {MANIFEST: MAX_MANIFEST_BYTES, MODEL: MAX_MODEL_BYTES}

_ZIP_START: Final = b"PK\x03\x04"
_ZIP_DATE: Final = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold: equal contents make equal files
_ENCRYPTED: Final = 0x1
#: What ``zipfile`` raises on a damaged file, none of it documented as one class.
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    OSError,
    struct.error,
)


# -- writing -------------------------------------------------------------------------------------------------------------------


def check_destination(path: str | os.PathLike[str], force: bool = False) -> Path:
    """Says, before any work is done, whether a file could be written to ``path``; gives the path with links resolved.

    Raises:
        ArtifactExistsError: something stands there and ``force`` is not given.
        ArtifactWriteError: its folder does not exist, or the path is a folder itself.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise ArtifactWriteError(
            f"{os.fspath(path)!r} is a folder; give the name of a file, for example {str(target / 'net.snn')!r}"
        )
    if target.is_symlink() or (target.exists() and not target.is_file()):
        raise ArtifactWriteError(
            f"{os.fspath(path)!r} is no regular file (a device, a pipe, a link to itself); choose another path"
        )
    if not target.parent.is_dir():
        raise ArtifactWriteError(f"the folder {str(target.parent)!r} does not exist; make it first, or choose another path")
    if target.exists() and not force:
        raise ArtifactExistsError(f"{os.fspath(path)!r} exists already; pass force=True to replace it, or choose another path")
    return target


def write(path: str | os.PathLike[str], manifest: Manifest, model: bytes, force: bool = False) -> Manifest:
    """Writes a ``.snn`` file whole or not at all; what stood at ``path`` stays until the new file is complete and on the disk.

    A process killed while it writes leaves at most a hidden ``.<name>.<random>.tmp`` beside the old file.

    Args:
        path: the file to write; its folder has to exist. A symbolic link is kept, and what it points to is replaced.
        manifest: the description; its ``hashes`` are filled here.
        model: the serialized ONNX model.
        force: replace a file that exists.

    Returns:
        The manifest as written, with its hashes.

    Raises:
        ArtifactExistsError: the file exists and ``force`` is not given.
        ArtifactWriteError: no folder, no permission, no room on the disk.
        ArtifactCorruptError, UnsafeArtifactError: ``read`` would refuse the model, so it is not written.
    """
    target = check_destination(path, force)
    _check_model(manifest, model)
    manifest = replace(manifest, hashes={MODEL: hashlib.sha256(model).hexdigest()})
    tree = manifest.to_json()
    tree["hashes"][MANIFEST] = manifest_hash(tree)
    text = json.dumps(tree, indent=1, sort_keys=True, allow_nan=False).encode()
    if len(text) > MAX_MANIFEST_BYTES or len(model) > MAX_MODEL_BYTES:
        raise ArtifactWriteError(
            f"the network is too large: manifest {len(text)} bytes, model {len(model)} bytes; limits {_LIMITS}"
        )
    with _write_errors(path), _replacing(target) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, content in ((MANIFEST, text), (MODEL, model)):
            info = zipfile.ZipInfo(name, _ZIP_DATE)
            info.create_system = 3  # Unix, whatever the machine is
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return replace(manifest, hashes=tree["hashes"])


def write_bytes(path: str | os.PathLike[str], content: bytes, force: bool = False) -> None:
    """Writes any file the way ``write`` writes a ``.snn`` file: whole or not at all.

    Raises:
        ArtifactExistsError: the file exists and ``force`` is not given.
        ArtifactWriteError: no folder, no permission, no room on the disk.
    """
    with _write_errors(path), _replacing(check_destination(path, force)) as file:
        file.write(content)


@contextlib.contextmanager
def _write_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactWriteError(
            f"could not write {os.fspath(path)!r}: {error.strerror or error}; nothing was changed there. "
            "Check the free space and the permissions of the folder"
        ) from error


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of ``target`` when the block ends well, and vanishes when it does not."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    # Not tempfile: its files are readable by their owner alone, and a network is usually shared.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the new name survive a power cut, where the system can; the file itself is complete in any case."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- reading -------------------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> tuple[Manifest, bytes]:
    """Reads and checks a ``.snn`` file; nothing in it is run.

    Returns:
        The manifest and the serialized ONNX model.

    Raises:
        ArtifactReadError: there is no such file, or it can not be opened.
        ArtifactCorruptError: it is truncated, or no ``.snn`` file.
        ArtifactVersionError: a newer snngraph wrote it.
        ArtifactHashError: its content does not match its hashes.
        UnsafeArtifactError: it tries something an artifact never needs.
    """
    name = os.fspath(path)
    try:
        # Before it is opened: to open a named pipe would wait for ever.
        if not Path(path).is_file():
            raise ArtifactReadError(f"{name!r} is a folder or a device" if Path(path).exists() else f"there is no file {name!r}")
        with Path(path).open("rb") as file:
            members = _members(file, name)
    except (OSError, ValueError) as error:
        raise ArtifactReadError(f"could not read {name!r}: {getattr(error, 'strerror', None) or error}") from error
    tree = parse_json(members[MANIFEST])
    check_schema(tree)
    _check_hashes(tree, members[MODEL], name)
    manifest = Manifest.from_json(tree)
    _check_model(manifest, members[MODEL])
    return manifest, members[MODEL]


def _members(file: BinaryIO, name: str) -> dict[str, bytes]:
    """The bytes of the members, after the zip's directory was found to hold exactly them."""
    try:
        size = os.fstat(file.fileno()).st_size
        if size > sum(_LIMITS.values()) + _MAX_OVERHEAD_BYTES:
            raise UnsafeArtifactError(f"{name!r} has {size} bytes; no artifact is that large")
        if file.read(len(_ZIP_START)) != _ZIP_START:
            raise ArtifactCorruptError(f"{name!r} is no .snn file: it does not start as a zip archive does")
        with zipfile.ZipFile(file) as archive:
            _check_directory(archive.infolist(), size, name)
            return {member: archive.read(member) for member in _LIMITS}
    except _ZIP_ERRORS as error:
        raise ArtifactCorruptError(f"{name!r} is truncated or damaged: {error}") from error


def _check_directory(infos: list[zipfile.ZipInfo], size: int, name: str) -> None:
    names = [info.orig_filename for info in infos]
    for info in infos:
        member = info.orig_filename
        if member not in _LIMITS or info.filename != member:
            kind = "an unexpected member"
            if member.startswith(("/", "\\")) or ":" in member:
                kind = "a member with an absolute path"
            elif ".." in member.replace("\\", "/").split("/"):
                kind = "a member that leaves the archive"
            raise UnsafeArtifactError(f"{name!r} holds {kind}, {member[:200]!r}; expected only {MANIFEST} and {MODEL}")
        file_type = stat.S_IFMT(info.external_attr >> 16)
        if file_type not in (0, stat.S_IFREG):
            raise UnsafeArtifactError(f"{name!r}: {member} is no plain file (a link or a device)")
        if info.flag_bits & _ENCRYPTED:
            raise UnsafeArtifactError(f"{name!r}: {member} is encrypted; an artifact never is")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise UnsafeArtifactError(f"{name!r}: {member} is compressed; an artifact stores its members plain")
        if info.file_size > min(_LIMITS[member], size):
            raise UnsafeArtifactError(
                f"{name!r}: {member} claims {info.file_size} bytes, in a file of {size} (limit {_LIMITS[member]})"
            )
    if len(set(names)) < len(names):
        raise UnsafeArtifactError(f"{name!r} holds a member twice: {sorted(names)}")
    missing = sorted(set(_LIMITS) - set(names))
    if missing:
        raise ArtifactCorruptError(f"{name!r} is no .snn file: it lacks {' and '.join(missing)}")


def _check_hashes(tree: dict[str, Any], model: bytes, name: str) -> None:
    hashes = tree.get("hashes")
    if not isinstance(hashes, dict) or set(hashes) != set(_LIMITS):
        raise ArtifactCorruptError(f"{name!r}: the manifest has to hold the hashes of {MANIFEST} and {MODEL}")
    for member, found in ((MANIFEST, manifest_hash(tree)), (MODEL, hashlib.sha256(model).hexdigest())):
        if hashes[member] != found:
            raise ArtifactHashError(
                f"{name!r}: {member} does not match its SHA-256 in the manifest: the file was edited or damaged; "
                "build it or copy it again"
            )


def _check_model(manifest: Manifest, model: bytes) -> None:
    interface = check_onnx(model)
    for kind, specs, found in (("inputs", manifest.inputs, interface.inputs), ("outputs", manifest.outputs, interface.outputs)):
        expected = tuple(spec.name for spec in specs)
        if expected != found:
            raise ArtifactCorruptError(f"the manifest names the {kind} {list(expected)}, but model.onnx has {list(found)}")
