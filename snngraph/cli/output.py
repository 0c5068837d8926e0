"""What a command prints: results for people or as one JSON document, and progress, which goes to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

from snngraph.errors import ArtifactExistsError, SnnGraphError, TrainingModeError, WarmStateWarning

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Output"]

_WIDTH = 132  # of tables where stdout is no terminal
_HINTS: dict[type[SnnGraphError], str] = {
    ArtifactExistsError: "--force",
    TrainingModeError: "--eval",
}


class Output:
    """Where a command's words go.

    People's results go to stdout and progress to stderr. With ``as_json``, the one document of :meth:`result` goes to stdout when
    the command ends, and everything else to stderr, what a model prints included.
    """

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self._document: dict[str, Any] | None = None
        self._stdout: TextIO = sys.stdout

    def __enter__(self) -> Output:
        self._stack = contextlib.ExitStack()
        if self.as_json:
            self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._stack.enter_context(warnings.catch_warnings())
        show = warnings.showwarning

        def showwarning(message: Warning | str, category: type[Warning], *place: Any, **keywords: Any) -> None:
            if issubclass(category, WarmStateWarning):
                self.err.print(f"warning: {message}", style="yellow", soft_wrap=True)
            else:
                show(message, category, *place, **keywords)

        warnings.showwarning = showwarning
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        if self._document is not None:
            self._stdout.write(json.dumps(_plain(self._document), indent=2, allow_nan=False) + "\n")
            self._stdout.flush()

    @cached_property
    def err(self) -> Console:
        """The console of progress and errors, on stderr."""
        return _console(stderr=True)

    @cached_property
    def console(self) -> Console:
        """The console of results: stdout, or stderr beside a JSON document."""
        return self.err if self.as_json else _console(stderr=False)

    def print(self, *lines: RenderableType, style: str | None = None) -> None:
        """A result for people; text keeps its lines, tables fit the terminal."""
        for line in lines:
            self.console.print(line, style=style, soft_wrap=isinstance(line, str))

    def note(self, text: str) -> None:
        """Something worth knowing, on stderr."""
        self.err.print(text, style="dim", soft_wrap=True)

    def result(self, document: dict[str, Any]) -> None:
        """The command's result as JSON values; printed with ``--json`` alone. Numbers that are not finite become ``null``."""
        if self.as_json:
            self._document = document

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stretch of work: a spinner on a terminal, then a line with the time it took."""
        start = time.perf_counter()
        with self.err.status(name):
            yield
        self.note(f"{name}: {time.perf_counter() - start:.1f} s")

    @contextlib.contextmanager
    def progress(self, name: str) -> Iterator[Callable[[int, int | None], None]]:
        """A progress bar on a terminal, nothing elsewhere; gives what is to be told the work done and, if known, in all."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.err, transient=True, disable=not self.err.is_terminal) as bar:
            task = bar.add_task(name, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)

    def fail(self, error: BaseException, *, expected: bool, debug: bool) -> None:
        """An error: one red paragraph for what is ``expected``, else a traceback and a hint."""
        if debug or not expected:
            self.err.print("".join(traceback.format_exception(error)), soft_wrap=True, end="")
        hint = next((f" (on the command line: {text})" for kind, text in _HINTS.items() if isinstance(error, kind)), "")
        if expected:
            self.err.print(f"error: {error}{hint}", style="bold red", soft_wrap=True)
        else:
            self.err.print(
                "This is a bug in snngraph, or in a package it calls. Please report it with the traceback above and "
                "the output of `snngraph targets --json`.",
                style="bold red",
                soft_wrap=True,
            )
        self.result({"error": {"type": type(error).__name__, "message": str(error)}})


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def _plain(value: Any) -> Any:
    """JSON values alone: tuples become lists, numbers that are not finite ``None``, anything else its text."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
