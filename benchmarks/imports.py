"""How long ``import snngraph`` and ``import snngraph.runtime`` take, in fresh interpreters: the median."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.outcome import Outcome

__all__ = ["run"]

BARS = {"snngraph": 0.2, "snngraph.runtime": 0.3, "snngraph.runtime.engine": 0.3}  # seconds
_CODE = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def run(name: str, rounds: int | None = None, peers: list[str] | None = None) -> Outcome:
    """Measures each in turn, ``rounds`` times."""
    from snngraph.report.benchmark import hardware, versions

    before = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {module: [] for module in BARS}
    for k in range((rounds or 20) + 1):
        for module, found in seconds.items():
            command = [sys.executable, "-c", _CODE.format(module)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
            if k:  # the first time may compile byte code and read the disk
                found.append(float(done.stdout))
    medians = {module: statistics.median(found) for module, found in seconds.items()}
    problems = tuple(f"import {m} takes {medians[m]:.3f} s, the bar is {bar:g} s" for m, bar in BARS.items() if medians[m] >= bar)
    table = "\n".join(f"| `import {m}` | {medians[m] / bar:.2f} | {medians[m]:.3f} | < {bar:g} |" for m, bar in BARS.items())
    return Outcome(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "load": [before, os.getloadavg()[0]],
            "seconds": medians,
            "best": {module: min(found) for module, found in seconds.items()},
            "bars": BARS,
            "ok": not problems,
            "hardware": hardware(),
            "versions": versions(),
        },
        f"**Imports**\n\n|  | of the bar | median s | bar |\n| --- | ---: | ---: | ---: |\n{table}",
        problems,
    )
