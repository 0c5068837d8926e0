"""What every benchmark gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Outcome"]


@dataclass(frozen=True)
class Outcome:
    """Numbers for a JSON file, a Markdown text, and why it is not as it has to be (empty where it is)."""

    document: dict[str, Any]
    markdown: str
    problems: tuple[str, ...] = ()
