"""Engines that run a compiled network: no PyTorch, no ONNX, and no engine library until one is used.

``Engine`` runs a network, ``load`` reads one from a ``.snn`` file, ``targets`` lists the engine libraries found, ``Manifest``
says what a file holds. Each name is imported on first use, so importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snngraph.runtime.backends import targets
    from snngraph.runtime.engine import Engine, load
    from snngraph.runtime.manifest import Manifest

__all__ = ["Engine", "Manifest", "load", "targets"]

_HOME = {
    "Engine": "snngraph.runtime.engine",
    "Manifest": "snngraph.runtime.manifest",
    "load": "snngraph.runtime.engine",
    "targets": "snngraph.runtime.backends",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
