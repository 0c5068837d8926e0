"""Writes docs/compatibility.md: `python -m tests.compatibility`, or `--check` that it is what the cases give."""

from __future__ import annotations

import sys

from tests.compatibility.page import PAGE, render

if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text() != text)
    PAGE.write_text(text)
