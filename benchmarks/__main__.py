"""``python -m benchmarks [names...]``: runs benchmarks, writes ``results/NAME.json`` and prints tables in Markdown.

Exit code 1: an engine is not right, or a bar is missed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

NAMES = {
    "demo": "benchmarks.cpu",
    "tcja_dvs128": "benchmarks.cpu",
    "tcja_cifar10dvs": "benchmarks.cpu",
    "conversion": "benchmarks.conversion",
    "imports": "benchmarks.imports",
}


def main() -> int:
    """Each benchmark runs in a process of its own, so that its memory is its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Times engines, conversion and imports.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(NAMES)}  [all]")
    parser.add_argument("--rounds", type=int, help="how often each is timed")
    parser.add_argument("--peer", action="append", help="a peer to time; repeatable  [all]")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the results")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark is named {', '.join(unknown)}; known: {', '.join(NAMES)}")
    if options.rounds is not None and options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    names = options.names or list(NAMES)
    if len(names) > 1:
        shared = [argument for argument in sys.argv[1:] if argument not in options.names]
        codes = [subprocess.run([sys.executable, "-m", "benchmarks", name, *shared], check=False).returncode for name in names]
        return max(codes)
    (name,) = names
    print(f"{name} ...", file=sys.stderr, flush=True)
    outcome = importlib.import_module(NAMES[name]).run(name, options.rounds, options.peer)
    options.out.mkdir(parents=True, exist_ok=True)
    from snngraph.runtime import artifact

    path = options.out / f"{name}.json"
    artifact.write_bytes(path, (json.dumps(outcome.document, indent=2, allow_nan=False) + "\n").encode(), force=True)
    print(f"## {name}\n\n{outcome.markdown}\n\nwritten: {path}\n", flush=True)
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}\n", flush=True)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
