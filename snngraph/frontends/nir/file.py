"""NIR files: read with care, written whole or not at all.

A NIR file is an HDF5 file. Reading one runs no code; but HDF5 can link to other files, name filters that are loaded as plug-ins,
and declare arrays far larger than itself. A file that does is refused before the library ``nir`` reads it.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

from snngraph.errors import (
    NirCorruptError,
    NirError,
    NirExportError,
    NirGraphError,
    NirNotInstalledError,
    NirReadError,
    NirVersionError,
)
from snngraph.runtime import artifact

__all__ = ["as_graph", "load_nir", "read", "write"]

_VERSIONS = ("0", "1")  # whose files nir 1 reads
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}  # deflate, shuffle, fletcher32, szip, nbit, scaleoffset, lzf: all built in
_EXPANSION = 1032  # what deflate packs at most
_SLACK = 2**20  # uncompressed arrays of small files are not worth refusing
_DEPTH = 64


def load_nir() -> ModuleType:
    """The package ``nir``.

    Raises:
        NirNotInstalledError: it is missing.
    """
    try:
        import nir
    except ImportError as error:
        raise NirNotInstalledError('NIR needs the package nir: pip install "snngraph[nir]"') from error
    found: ModuleType = nir
    return found


def as_graph(source: Any) -> tuple[Any, str]:
    """A ``nir.NIRGraph`` from a path or from itself, and what to call it in messages.

    Raises:
        NirError: see :func:`read`; or it is something else.
    """
    nir = load_nir()
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        graph, name = read(path), path.name
    else:
        graph, name = source, "the NIR graph"
    if not isinstance(graph, nir.NIRGraph):
        raise NirGraphError(f"{name} is a {type(graph).__name__}: expected a path or a nir.NIRGraph")
    return graph, name


def read(path: Path) -> Any:
    """Reads a file.

    Raises:
        NirReadError: there is no such file, or it can not be opened.
        NirVersionError: it was written by a version that is not known.
        NirCorruptError: it is damaged, or no NIR file.
    """
    nir = load_nir()
    import h5py

    if not path.is_file():
        raise NirReadError(f"there is no file {str(path)!r}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise NirReadError(f"{path} can not be opened: {error}") from error
    try:
        with h5py.File(path, "r") as file:
            _check(file, path)
        return nir.read(path, type_check=False)  # its shapes are wrong for kernels that are not square
    except NirError:
        raise
    except Exception as error:  # a damaged file raises anything
        raise NirCorruptError(f"{path} can not be read as a NIR file: {type(error).__name__}: {error}") from error


def _check(file: Any, path: Path) -> None:
    if "version" not in file or "node" not in file:
        raise NirCorruptError(f"{path} is an HDF5 file, but no NIR file: it has no version and node")
    _Walk(path).group(file)
    version = file["version"][()]
    text = version.decode("utf8", "replace") if isinstance(version, bytes) else str(version)
    if not re.match(rf"({'|'.join(_VERSIONS)})\.\d", text):
        raise NirVersionError(f"{path} was written by nir {text!r}: this version reads nir {' and '.join(_VERSIONS)}")


class _Walk:
    """Looks at every group and array of a file without reading one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.left = path.stat().st_size * _EXPANSION + _SLACK

    def group(self, group: Any, depth: int = 0) -> None:
        import h5py

        if depth > _DEPTH:
            raise NirCorruptError(f"{self.path}: groups lie more than {_DEPTH} deep in one another")
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise NirCorruptError(f"{self.path}: {group.name}/{name} is a link; a NIR file needs none")
            item = group[name]
            if isinstance(item, h5py.Group):
                self.group(item, depth + 1)
            else:
                self.array(item)

    def array(self, item: Any) -> None:
        created = item.id.get_create_plist()
        filters = {created.get_filter(k)[0] for k in range(created.get_nfilters())}
        if item.is_virtual or created.get_external_count() or not filters <= _FILTERS:
            raise NirCorruptError(f"{self.path}: {item.name} lies outside the file, or needs a filter that is none of HDF5's own")
        if item.name.endswith("/type") and "/metadata/" not in item.name and item.shape == ():
            self.kind(item[()], item.name)
        self.left -= item.nbytes
        if self.left < 0:
            raise NirCorruptError(f"{self.path}: {item.name} would unpack to far more than the file can hold")

    def kind(self, value: object, name: str) -> None:
        kind = value.decode("utf8", "replace") if isinstance(value, bytes) else str(value)
        if kind not in load_nir().ir.__all__:
            raise NirGraphError(f"{self.path}: {name.removesuffix('/type')} is of the unknown kind {kind!r}")


def write(path: str | os.PathLike[str], graph: Any, force: bool) -> None:
    """Writes a graph to a file.

    Raises:
        ArtifactExistsError: it exists and ``force`` is not given.
        ArtifactWriteError: writing failed; what stood there before is untouched.
        NirExportError: the library can not store the graph.
    """
    nir = load_nir()
    artifact.check_destination(path, force)
    content = io.BytesIO()
    try:
        nir.write(content, graph)
    except (TypeError, ValueError, OSError) as error:
        raise NirExportError(f"nir can not store the graph: {error}") from error
    artifact.write_bytes(path, content.getvalue(), force)
