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

ATTENTION = "benchmarks.attention"
INTEGER = "benchmarks.integer"
NAMES = {
    "demo": "benchmarks.cpu",
    "tcja_cifar10dvs": "benchmarks.cpu",
    "conversion": "benchmarks.conversion",
    "imports": "benchmarks.imports",
    "att_res_snn18_t1": ATTENTION,
    "att_res_snn18_t4": ATTENTION,
    "spikingresformer_ti": ATTENTION,
    "ma_gesture_tcsa": ATTENTION,
    "tcja_dvs128": ATTENTION,
    "pfa_vgg_r8": ATTENTION,
    "pfa_vgg_r64": ATTENTION,
    "pfa_vgg_loop_r8": ATTENTION,
    "pfa_vgg_loop_r64": ATTENTION,
    "pfa_layer_loop_r64": ATTENTION,
    "sew_resnet18": INTEGER,
    "digits_sew_resnet18": INTEGER,
    "exact_spikingresformer_ti": INTEGER,
    "exact_att_res_snn18_t4": INTEGER,
    "exact_ma_gesture_tcsa": INTEGER,
    "exact_tcja_dvs128": INTEGER,
    "exact_pfa_vgg": INTEGER,
}
GROUPS = {
    group: [name for name, module in NAMES.items() if module == f"benchmarks.{group}"] for group in ("attention", "integer")
}
#: Modules without an engine whose outputs are checked.
UNCHECKED = ("benchmarks.conversion", "benchmarks.imports")


def main() -> int:
    """Each benchmark runs in a process of its own, so that its memory is its own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Times engines, conversion and imports.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join([*NAMES, *GROUPS])}  [all]")
    parser.add_argument("--rounds", type=int, help="how often each is timed")
    parser.add_argument("--peer", action="append", help="a peer to time; repeatable  [all]")
    parser.add_argument("--check", type=int, help="how many inputs are checked  [integer cases, demo: 32; others: 8]")
    parser.add_argument("--small", action="store_true", help=f"tiny nets, to try {' and '.join(GROUPS)}; writes to --out alone")
    parser.add_argument("--out", type=Path, help="folder of the results  [benchmarks/results]")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in NAMES and name not in GROUPS]
    if unknown:
        parser.error(f"no benchmark is named {', '.join(unknown)}; known: {', '.join([*NAMES, *GROUPS])}")
    for option in ("rounds", "check"):
        if (number := getattr(options, option)) is not None and number < 1:
            parser.error(f"--{option}: expected at least 1")
    names = [name for given in options.names or NAMES for name in GROUPS.get(given, [given])]
    if options.small and any(NAMES[name] not in (ATTENTION, INTEGER) for name in names):
        parser.error(f"--small is for {' and '.join(GROUPS)}")
    if len(names) > 1:
        shared = [argument for argument in sys.argv[1:] if argument not in options.names]
        codes = [subprocess.run([sys.executable, "-m", "benchmarks", name, *shared], check=False).returncode for name in names]
        return max(codes)
    (name,) = names
    print(f"{name} ...", file=sys.stderr, flush=True)
    keywords = {"small": True} if options.small else {}
    if options.check is not None and NAMES[name] not in UNCHECKED:
        keywords["check"] = options.check
    outcome = importlib.import_module(NAMES[name]).run(name, options.rounds, options.peer, **keywords)
    print(f"## {name}\n\n{outcome.markdown}\n", flush=True)
    folder = options.out or (None if options.small else Path(__file__).parent / "results")
    if folder is not None:
        from snngraph.runtime import artifact

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.json"
        artifact.write_bytes(path, (json.dumps(outcome.document, indent=2, allow_nan=False) + "\n").encode(), force=True)
        print(f"written: {path}\n", flush=True)
    for problem in outcome.problems:
        print(f"PROBLEM: {problem}\n", flush=True)
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
