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


def _terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
