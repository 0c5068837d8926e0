"""Neurons that no library holds as the canonical one, equal in real arithmetic, step by step."""

from __future__ import annotations

from typing import Any

from snngraph.frontends.canonical import Canonical

# -- the four families' own neurons (MODELS.md) --------------------------------------------------------------------------------


def ma_lif(alpha: float = 0.3, beta: float = 0.0, threshold: float = 0.3) -> Canonical:
    """MA-LIF: `h = u + x; u' = alpha*(s*Vth + (1 - s)*h) + beta`, u = 0 at first. Its state is u, the operator's the bracket."""
    parameters: dict[str, Any] = {"decay": alpha, "threshold": threshold, "v_reset": threshold, "fire": ">="}
    if beta:
        parameters["bias"] = beta
    return Canonical(parameters, v_scale=alpha, v_shift=beta)


def res_lif(decay: float = 0.25, threshold: float = 0.5) -> Canonical:
    """RES-LIF: `h = decay*v*(1 - s_previous) + x`: a hard reset, made at the next step; the state here is `v*(1 - s)`."""
    return Canonical({"decay": decay, "threshold": threshold, "v_reset": 0.0, "fire": ">"})


def res_lif_delayed(decay: float = 0.25, threshold: float = 0.5) -> Canonical:
    """RES-LIF with the state the authors' code keeps: v itself."""
    return Canonical({"decay": decay, "threshold": threshold, "v_reset": 0.0, "fire": ">", "delay": "before"})


def tet_lif(decay: float = 0.5, threshold: float = 1.0) -> Canonical:
    """TET-LIF: `h = decay*v + x`, fires strictly above the threshold, hard reset to 0."""
    return Canonical({"decay": decay, "threshold": threshold, "v_reset": 0.0, "fire": ">"})
