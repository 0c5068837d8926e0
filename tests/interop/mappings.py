"""Each library's neuron as the canonical one: `module -> Canonical`, equal in real arithmetic, step by step.

Nothing here imports a library: a mapping reads the attributes of the module it is given. It raises ValueError for what the
canonical neuron does not express.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from snngraph.frontends.canonical import Canonical, Number, wide

# -- snnTorch 1.0 --------------------------------------------------------------------------------------------------------------


def _snntorch(module: Any, zero: str, **charge: Any) -> Canonical:
    """`zero`: what a delayed reset to zero clears, the potential `before` the charge or the charged one (`with`)."""
    if module.state_quant or module.inhibition:
        raise ValueError("state_quant and inhibition are not expressed by the canonical neuron")
    delayed = getattr(module, "reset_delay", True)
    mechanism = module.reset_mechanism
    if mechanism == "zero" and not delayed and bool((module.threshold < 0).any()):
        raise ValueError("reset to zero at once, with a threshold below zero, fires again from the reset value")
    resets: dict[str, dict[str, Any]] = {
        "subtract": {"reset": "soft", "delay": "with" if delayed else "both"},
        "zero": {"reset": "hard", "v_reset": 0.0, "delay": zero if delayed else "none"},
        "none": {"reset": "none"},
    }
    parameters = {"threshold": module.threshold.detach(), "fire": ">", **resets[mechanism], **charge}
    if bool((module.graded_spikes_factor != 1.0).any()):
        parameters["level"] = module.graded_spikes_factor.detach()
    return Canonical(parameters)


def snntorch_leaky(module: Any) -> Canonical:
    """Leaky: `h = clamp(beta, 0, 1)*v + x`; a delayed reset to zero clears v and keeps the step's input.

    With `reset_delay=False` and "zero" the library doubles or keeps a potential that was above the threshold before the step;
    only a caller can bring one in.
    """
    return _snntorch(module, "before", decay=module.beta.detach().clamp(0, 1))


def snntorch_rleaky(module: Any) -> Canonical:
    """RLeaky's cell, for `x` = input + recurrent(previous spikes); a delayed reset to zero clears the step's input too."""
    return _snntorch(module, "with", decay=module.beta.detach().clamp(0, 1))


def snntorch_lapicque(module: Any) -> Canonical:
    """Lapicque: `h = (1 - dt/RC)*v + dt/C*x`, whatever beta was given (it only sets C); no reset_delay; zero as RLeaky."""
    r, c, dt = wide(module.R), wide(module.C), wide(module.time_step)
    return _snntorch(module, "with", decay=1.0 - dt / (r * c), input_gain=r * (1.0 / (r * c)) * dt)


def snntorch_synaptic(module: Any) -> Canonical:
    """Synaptic: `i = clamp(alpha)*i + x; h = clamp(beta)*v + i`; a delayed reset to zero clears h and keeps i."""
    return _snntorch(module, "with", decay=module.beta.detach().clamp(0, 1), syn_decay=module.alpha.detach().clamp(0, 1))


# -- Norse 1.1 -----------------------------------------------------------------------------------------------------------------


def norse_iaf(module: Any) -> Canonical:
    """IAF: `h = v + x`; starts at v_reset."""
    p = module.p
    return Canonical({"threshold": p.v_th, "fire": ">", "v_reset": p.v_reset.detach()}, v_rest=p.v_reset.detach())


def norse_lif_box(module: Any) -> Canonical:
    """LIFBox: `h = v + dt/tau_mem*(x + v_leak - v)`; hard reset, or soft with `reset_subtract`; starts at v_leak."""
    method = module.p.reset_method.__name__
    if method not in ("reset_value", "reset_subtract"):
        raise ValueError(f"reset_method {method} is not expressed by the canonical neuron")
    charge = _norse_membrane(module)
    if method == "reset_subtract":
        charge["reset"] = "soft"
    else:
        charge["v_reset"] = module.p.v_reset
    return Canonical(charge, v_rest=module.p.v_leak.detach())


def norse_lif(module: Any) -> Canonical:
    """LIF: `j = i + x; h = v + dt/tau_mem*(v_leak - v + j); i' = (1 - dt/tau_syn)*j`: the operator's current is j, not i'."""
    syn_decay = 1.0 - wide(module.dt * module.p.tau_syn_inv)
    if not bool((syn_decay != 0).all()):
        raise ValueError("a synapse that forgets within one step: leave it out, LIFBox is the same neuron")
    charge = {**_norse_membrane(module), "v_reset": module.p.v_reset, "syn_decay": syn_decay}
    return Canonical(charge, v_rest=module.p.v_leak.detach(), i_scale=syn_decay)


def _norse_membrane(module: Any) -> dict[str, Any]:
    rate = wide(module.dt * module.p.tau_mem_inv)
    return {
        "decay": 1.0 - rate,
        "input_gain": rate,
        "bias": rate * wide(module.p.v_leak),
        "threshold": module.p.v_th,
        "fire": ">",
    }


# -- sinabs 3.1 ----------------------------------------------------------------------------------------------------------------


def sinabs_lif(module: Any) -> Canonical:
    """LIF and IAF: `i = alpha_syn*(i + x); h = alpha_mem*v + i`, `(1 - alpha_mem)*i` with norm_input; counts or single spikes.

    `MembraneReset(r)` computes `v' = where(s, 0, h) + r`, so r is added to every neuron at every step: the operator's state is
    the potential less r.
    """
    alpha = module.alpha_mem_calculated.detach()
    parameters: dict[str, Any] = {"decay": alpha, "threshold": module.spike_threshold.detach(), "fire": ">="}
    if module.alpha_syn_calculated is not None:
        parameters["syn_decay"] = parameters["syn_gain"] = module.alpha_syn_calculated.detach()
    if module.norm_input:
        parameters["input_gain"] = 1 - alpha
    emit = getattr(module.spike_fn, "__name__", None)
    if emit not in ("MultiSpike", "SingleSpike"):
        raise ValueError(f"spike_fn {module.spike_fn} is not expressed by the canonical neuron")
    if emit == "MultiSpike":
        parameters["emit"] = "count"
    if module.min_v_mem is not None:
        parameters["floor"] = module.min_v_mem.detach()
    reset = type(module.reset_fn).__name__
    if reset == "MembraneSubtract":
        parameters["reset"] = "soft"
        if module.reset_fn.subtract_value is not None:
            parameters["reset_amount"] = module.reset_fn.subtract_value
        return Canonical(parameters)
    if reset != "MembraneReset":
        raise ValueError(f"reset_fn {module.reset_fn} is not expressed by the canonical neuron")
    shift = module.reset_fn.reset_value
    parameters["v_reset"] = 0.0
    if not shift:
        return Canonical(parameters)
    parameters["bias"] = alpha * shift
    if "floor" in parameters:
        parameters["floor"] = parameters["floor"] - shift
    return Canonical(parameters, v_shift=shift)


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
