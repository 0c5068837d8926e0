"""What integer arithmetic this CPU has: asked of the operating system, never assumed."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Final

__all__ = ["integer_features"]

_CPUINFO: Final = Path("/proc/cpuinfo")
_KNOWN: Final = ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp")
"""Instructions that add products of 8 bits in 32: Intel's AMX and VNNI, Arm's matrix and dot products."""


@functools.cache
def integer_features() -> tuple[str, ...]:
    """The instructions of this CPU that add products of 8 bits in 32, as Linux names them, the fastest first.

    Empty where there are none, and where the system does not tell (other systems than Linux).
    """
    try:
        lines = _CPUINFO.read_text().splitlines()
    except OSError:
        return ()
    flags = {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.partition(":")[2].split()}
    return tuple(name for name in _KNOWN if name in flags)
