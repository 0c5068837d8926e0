"""Arrays from files and to files, and random ones."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from snngraph.cli.options import Fill, RandomOptions
from snngraph.cli.output import Output
from snngraph.errors import InputDtypeError, InputError, InputTypeError
from snngraph.runtime import artifact

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

__all__ = ["check_output", "parse_shape", "random_array", "read_array", "write_arrays"]


def read_array(path: Path, out: Output, dtype: str = "float32") -> Array:
    """One array of a ``.npy`` file, or of a ``.npz`` file that holds no other, in the type asked for.

    Raises:
        InputError: there is no such file, it is damaged, holds objects or several arrays, or its type can not be converted.
    """
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}" if not path.exists() else f"{str(path)!r} is no file")
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content:
                content = _only(content, path)
    except (ValueError, EOFError, OSError) as error:
        raise InputTypeError(
            f"{str(path)!r} can not be read as a .npy or .npz file of numbers ({error}); write it with numpy.save(path, x)"
        ) from error
    return _as(content, dtype, path, out)


def _only(archive: np.lib.npyio.NpzFile, path: Path) -> Array:
    if len(archive.files) != 1:
        raise InputTypeError(f"{str(path)!r} holds {len(archive.files)} arrays ({', '.join(archive.files)}): expected one")
    found: Array = archive[archive.files[0]]
    return found


def _as(array: Array, dtype: str, path: Path, out: Output) -> Array:
    if array.dtype == np.dtype(dtype):
        return array
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and np.dtype(dtype).kind != "f"):
        raise InputDtypeError(f"{str(path)!r} holds {array.dtype}: expected numbers that {dtype} can hold")
    out.note(f"{path}: {array.dtype} converted to {dtype}")
    return array.astype(dtype)


def write_arrays(path: Path, arrays: dict[str, Array], force: bool) -> None:
    """Writes one array as ``.npy``, or any number by name as ``.npz``; whole or not at all.

    Raises:
        ArtifactError: the file can not be written.
    """
    buffer = io.BytesIO()
    if path.suffix == ".npz":
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
    else:
        np.save(buffer, next(iter(arrays.values())), allow_pickle=False)
    artifact.write_bytes(path, buffer.getvalue(), force)


def check_output(path: Path | None, force: bool, suffixes: Sequence[str] = ()) -> None:
    """Says, before any work, whether a file can be written.

    Raises:
        ArtifactError: it can not.
        typer.BadParameter: its name ends in none of ``suffixes``.
    """
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise typer.BadParameter(f"{path.name!r}: expected a name that ends in {' or '.join(suffixes)}")
    artifact.check_destination(path, force)


def parse_shape(text: str) -> tuple[int, ...]:
    """``"8,1,2,34,34"`` as a shape.

    Raises:
        typer.BadParameter: it is none.
    """
    sizes = text.replace("x", ",").strip(" ,()[]").split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(
            f"{text!r}: expected positive numbers with commas, for example 8,1,2,34,34", param_hint="'--shape'"
        )
    return tuple(map(int, sizes))


def random_array(shape: Sequence[int], options: RandomOptions, index: int = 0) -> Array:
    """Random events or noise, float32; the same for the same seed and index."""
    generator = np.random.default_rng([options.seed, index])
    if options.fill is Fill.EVENTS:
        return (generator.random(shape, dtype=np.float32) < options.rate).astype(np.float32)
    return generator.standard_normal(shape, dtype=np.float32)


def describe(options: RandomOptions) -> str:
    """Random inputs in words."""
    kind = f"binary events, {options.rate:.0%} ones" if options.fill is Fill.EVENTS else "normal noise"
    return f"random {kind}, seed {options.seed}"
