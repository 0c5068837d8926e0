"""The command line, ``snngraph``. Its modules import neither PyTorch nor NumPy until a command needs them."""

from __future__ import annotations

import signal
import sys
from types import FrameType

__all__ = ["main"]


def main() -> None:
    """What the ``snngraph`` script runs."""
    # A process that is told to end cleans up as on Ctrl-C: a file half-written goes.
    signal.signal(signal.SIGTERM, _terminate)
    try:
        from snngraph.cli.app import app

        app(prog_name="snngraph")
    except KeyboardInterrupt:
        sys.exit(130)
    except _Terminated:
        sys.exit(128 + signal.SIGTERM)


class _Terminated(BaseException):
    """Like ``KeyboardInterrupt``: nothing in between takes it for an error. A ``SystemExit`` may be a model's own."""


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated
