"""Spiking networks as trainable PyTorch modules, to convert, to train and to test with.

Event models take a time-first input ``[T, N, C, H, W]``, image models a static ``[N, C, H, W]`` that they repeat; all return
class scores ``[N, classes]``. Names are resolved on first use, so that importing this package does not import PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from snngraph.models.calibration import calibrate as calibrate
    from snngraph.models.calibration import firing_rates as firing_rates
    from snngraph.models.tcja import tcja_cifar10dvs as tcja_cifar10dvs
    from snngraph.models.tcja import tcja_dvs128gesture as tcja_dvs128gesture
    from snngraph.models.tcja import tcja_ncaltech101 as tcja_ncaltech101
    from snngraph.models.tcja import tcja_small as tcja_small

_HOME = {
    "calibrate": "calibration",
    "firing_rates": "calibration",
    "tcja_cifar10dvs": "tcja",
    "tcja_dvs128gesture": "tcja",
    "tcja_ncaltech101": "tcja",
    "tcja_small": "tcja",
}

__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'snngraph.models' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"snngraph.models.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
