"""snngraph compiles trained PyTorch spiking neural networks into fast, spike-exact engines.

Names are resolved on first use, so that ``import snngraph`` costs nothing and the runtime never imports PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snngraph.api import build as build
    from snngraph.api import convert as convert
    from snngraph.api import export_onnx as export_onnx
    from snngraph.api import optimize as optimize
    from snngraph.api import verify as verify
    from snngraph.errors import SnnGraphError as SnnGraphError
    from snngraph.frontends.capture import trace as trace
    from snngraph.frontends.nir.exporting import to_nir as to_nir
    from snngraph.frontends.nir.importing import from_nir as from_nir
    from snngraph.graph import SpikingGraph as SpikingGraph
    from snngraph.runtime.backends import targets as targets
    from snngraph.runtime.engine import Engine as Engine
    from snngraph.runtime.engine import load as load
    from snngraph.verification import Report as Report

__version__ = "0.1.0"

_HOME = {
    "Engine": "snngraph.runtime.engine",
    "Report": "snngraph.verification",
    "SnnGraphError": "snngraph.errors",
    "SpikingGraph": "snngraph.graph",
    "build": "snngraph.api",
    "convert": "snngraph.api",
    "export_onnx": "snngraph.api",
    "from_nir": "snngraph.frontends.nir.importing",
    "load": "snngraph.runtime.engine",
    "optimize": "snngraph.api",
    "targets": "snngraph.runtime.backends",
    "to_nir": "snngraph.frontends.nir.exporting",
    "trace": "snngraph.frontends.capture",
    "verify": "snngraph.api",
}

__all__ = ["__version__", *sorted(_HOME)]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'snngraph' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
