"""Time and memory in which TCJA for DVS128 Gesture (20 steps of 128x128) is converted and written, in a fresh process."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.outcome import Outcome

__all__ = ["run"]

SECONDS, GIB = 60.0, 4.0  # the bars


def measure() -> dict[str, Any]:
    """Runs in the fresh process."""
    start = time.perf_counter()
    import torch

    import snngraph
    from snngraph.models.tcja import tcja_dvs128gesture

    torch.manual_seed(0)
    model = tcja_dvs128gesture(T=20).eval()
    example = torch.rand(20, 1, 2, 128, 128)
    begun = time.perf_counter()
    before = _peak_gib()
    stages: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.snn")
        snngraph.convert(model, example, path=path, progress=lambda stage: stages.append((stage, time.perf_counter()))).close()
        size = path.stat().st_size
    done = time.perf_counter()
    ends = [*(at for _, at in stages[1:]), done]
    return {
        "seconds": done - begun,
        "stages": {name: end - at for (name, at), end in zip(stages, ends, strict=True)},
        "import_and_model_seconds": begun - start,
        "peak_gib": _peak_gib(),
        "peak_gib_before": before,
        "engine_bytes": size,
    }


def run(name: str, rounds: int | None = None, peers: list[str] | None = None) -> Outcome:
    """Measures in a fresh process."""
    from snngraph.report.benchmark import hardware, versions

    command = [sys.executable, "-c", "import json; from benchmarks.conversion import measure; print(json.dumps(measure()))"]
    document: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load_before": os.getloadavg()[0]}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    found = json.loads(done.stdout)
    document |= {**found, "load_after": os.getloadavg()[0], "hardware": hardware(), "versions": versions()}
    rows = [("seconds", found["seconds"], SECONDS), ("peak memory, GiB", found["peak_gib"], GIB)]
    problems = tuple(f"converting takes {value:.1f} {what}, the bar is {bar:g}" for what, value, bar in rows if value >= bar)
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["stages"].items())
    table = "\n".join(f"| {what} | {value / bar:.2f} | {value:.2f} | < {bar:g} |" for what, value, bar in rows)
    return Outcome(
        {**document, "bars": {"seconds": SECONDS, "peak_gib": GIB}, "ok": not problems},
        "**Converting TCJA DVS128 Gesture**\n\n"
        f"|  | of the bar | found | bar |\n| --- | ---: | ---: | ---: |\n{table}\n\n{stages}",
        problems,
    )


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (30 if sys.platform == "darwin" else 20)
