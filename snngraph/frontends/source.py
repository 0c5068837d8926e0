"""Source lines of the model's own code: in tracebacks, in the running stack, and in the traces that PyTorch keeps with a node."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from types import FrameType

from torch import nn

__all__ = ["called_from", "model_frames", "where_called", "where_raised"]

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_FOREIGN = re.compile(r"/(torch|snngraph)/|<eval_with_key>|<string>")


def model_frames(trace: str) -> list[str]:
    """``file:line`` of every frame of a printed stack that is neither PyTorch's nor ours, outermost first; all, if none is."""
    frames = _FRAME.findall(trace)
    return [f"{file}:{line}" for file, line in frames if not _FOREIGN.search(file)] or [f"{file}:{line}" for file, line in frames]


def where_called() -> str:
    """The line of the model's code that is running."""
    return _shown(traceback.extract_stack())


def called_from() -> tuple[str, ...]:
    """``file:line`` of every frame of the model's code that is running, with its module, outermost first."""
    frame: FrameType | None = sys._getframe(1)
    found = []
    while frame is not None:
        if not _FOREIGN.search(frame.f_code.co_filename):
            first = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
            owner = id(first) if isinstance(first, nn.Module) else 0  # the same line runs for every layer of a class
            found.append(f"{frame.f_code.co_filename}:{frame.f_lineno}:{owner}")
        frame = frame.f_back
    return tuple(reversed(found))


def where_raised(error: BaseException) -> str:
    """The last line of the model's code in a traceback."""
    return _shown(traceback.extract_tb(error.__traceback__))


def _shown(stack: Sequence[traceback.FrameSummary]) -> str:
    frames = [f for f in stack if not _FOREIGN.search(f.filename)]
    return f"at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else "(in PyTorch)"
