"""The table of all translations from ATen to ONNX."""

from __future__ import annotations

from typing import Any

from snngraph.lowering import elementwise, indexing, integer, layers, pooling, reductions, shapes
from snngraph.lowering.table import Translation

__all__ = ["TRANSLATIONS"]

TRANSLATIONS: dict[Any, Translation] = {
    **elementwise.TABLE, **shapes.TABLE, **indexing.TABLE, **reductions.TABLE, **layers.TABLE, **pooling.TABLE,
    **integer.TABLE,
}  # fmt: skip
