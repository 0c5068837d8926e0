"""Neurons that no library holds as the canonical one, equal in real arithmetic, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snngraph.frontends.canonical import Canonical, Number

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


# -- NIR 1.0 -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Euler:
    """Explicit Euler steps of `dt` for a NIR node. A NIR file says nothing of steps, nor of the initial potential."""

    dt: float = 1.0
    fire: str = ">"
    v_rest: Number = 0.0

    def nir_if(self, node: Any) -> Canonical:
        """IF: `dv/dt = R*I`."""
        return self._canonical(node, input_gain=torch.as_tensor(node.r) * self.dt)

    def nir_lif(self, node: Any) -> Canonical:
        """LIF: `tau*dv/dt = v_leak - v + R*I`."""
        return self._canonical(node, **self._membrane(node, node.tau))

    def nir_cubalif(self, node: Any) -> Canonical:
        """CubaLIF: `tau_syn*dI/dt = -I + w_in*S`, then the membrane as LIF with the current just computed.

        Where a simulator charges with the current of the step before, give the operator the input one step late.
        """
        rate = self.dt / torch.as_tensor(node.tau_syn)
        synapse = {"syn_decay": 1 - rate, "syn_gain": rate * torch.as_tensor(node.w_in)}
        return self._canonical(node, **self._membrane(node, node.tau_mem), **synapse)

    def _membrane(self, node: Any, tau: Any) -> dict[str, Tensor]:
        rate = self.dt / torch.as_tensor(tau)
        return {"decay": 1 - rate, "input_gain": rate * torch.as_tensor(node.r), "bias": rate * torch.as_tensor(node.v_leak)}

    def _canonical(self, node: Any, **charge: Tensor) -> Canonical:
        levels = {"threshold": torch.as_tensor(node.v_threshold), "v_reset": torch.as_tensor(node.v_reset)}
        return Canonical({**levels, **charge, "fire": self.fire}, v_rest=self.v_rest)
