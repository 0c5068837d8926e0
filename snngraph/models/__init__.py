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
    from snngraph.models.ma import att_res_snn18 as att_res_snn18
    from snngraph.models.ma import att_res_snn34 as att_res_snn34
    from snngraph.models.ma import att_res_snn104 as att_res_snn104
    from snngraph.models.ma import ma_snn_cifar10dvs as ma_snn_cifar10dvs
    from snngraph.models.ma import ma_snn_gait as ma_snn_gait
    from snngraph.models.ma import ma_snn_gesture as ma_snn_gesture
    from snngraph.models.pfa import PFA as PFA
    from snngraph.models.pfa import pfa_fashion_mnist as pfa_fashion_mnist
    from snngraph.models.pfa import pfa_resnet as pfa_resnet
    from snngraph.models.pfa import pfa_vgg as pfa_vgg
    from snngraph.models.reference import load_reference_state_dict as load_reference_state_dict
    from snngraph.models.spikingresformer import spikingresformer_cifar as spikingresformer_cifar
    from snngraph.models.spikingresformer import spikingresformer_dvs as spikingresformer_dvs
    from snngraph.models.spikingresformer import spikingresformer_l as spikingresformer_l
    from snngraph.models.spikingresformer import spikingresformer_m as spikingresformer_m
    from snngraph.models.spikingresformer import spikingresformer_s as spikingresformer_s
    from snngraph.models.spikingresformer import spikingresformer_ti as spikingresformer_ti
    from snngraph.models.tcja import tcja_cifar10dvs as tcja_cifar10dvs
    from snngraph.models.tcja import tcja_dvs128gesture as tcja_dvs128gesture
    from snngraph.models.tcja import tcja_ncaltech101 as tcja_ncaltech101
    from snngraph.models.tcja import tcja_small as tcja_small

_HOME = {
    "PFA": "pfa",
    "att_res_snn104": "ma",
    "att_res_snn18": "ma",
    "att_res_snn34": "ma",
    "calibrate": "calibration",
    "firing_rates": "calibration",
    "load_reference_state_dict": "reference",
    "ma_snn_cifar10dvs": "ma",
    "ma_snn_gait": "ma",
    "ma_snn_gesture": "ma",
    "pfa_fashion_mnist": "pfa",
    "pfa_resnet": "pfa",
    "pfa_vgg": "pfa",
    "spikingresformer_cifar": "spikingresformer",
    "spikingresformer_dvs": "spikingresformer",
    "spikingresformer_l": "spikingresformer",
    "spikingresformer_m": "spikingresformer",
    "spikingresformer_s": "spikingresformer",
    "spikingresformer_ti": "spikingresformer",
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
