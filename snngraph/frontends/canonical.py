"""A foreign neuron in the terms of :mod:`snngraph.ops`, and how its library's own state relates to the operator's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from snngraph import ops
from snngraph.ops import NeuronOutput

__all__ = ["Canonical", "NotCanonicalError", "Number", "wide"]

Number: TypeAlias = float | Tensor


class NotCanonicalError(ValueError):
    """A neuron that the canonical form does not express; the message is the reason, shown to the user. It stays as operators."""


@dataclass(frozen=True)
class Canonical:
    """A neuron as arguments of :func:`snngraph.ops.lif`, equal in real arithmetic, step by step.

    Args:
        parameters: keyword arguments of :func:`snngraph.ops.lif` and :func:`snngraph.ops.lif_step`.
        v_rest: the library's membrane potential before the first step.
        v_scale, v_shift: the library's potential = ``v_scale`` * the operator's + ``v_shift``.
        i_scale: the library's synaptic current = ``i_scale`` * the operator's.
    """

    parameters: dict[str, Any]
    v_rest: Number = 0.0
    v_scale: Number = 1.0
    v_shift: Number = 0.0
    i_scale: Number = 1.0

    def start(self, v: Number | None = None, i: Tensor | None = None) -> dict[str, Any]:
        """The operator's arguments ``v`` and ``i`` for a library in this state; by default before its first step."""
        v = self.v_rest if v is None else v
        state: dict[str, Any] = {"v": (v - self.v_shift) / self.v_scale if self.moves_v else v}
        if i is not None:
            state["i"] = i / self.i_scale if self.moves_i else i
        return state

    def state(self, out: NeuronOutput) -> tuple[Tensor, Tensor]:
        """The library's membrane potential and current (empty without a synapse) after the operator returned ``out``."""
        v = out.v * self.v_scale + self.v_shift if self.moves_v else out.v
        return v, out.i * self.i_scale if self.moves_i else out.i

    def step(self, x: Tensor, memory: dict[str, Any]) -> NeuronOutput:
        """One step on ``x`` ``[N, ...]``; the operator's state is read from and kept in ``memory`` (at rest if empty)."""
        return self._kept(ops.lif_step(x, **self._state_in(memory), **self.to(x.dtype).parameters), memory)

    def sequence(self, x: Tensor, memory: dict[str, Any]) -> NeuronOutput:
        """All steps of ``x`` ``[T, N, ...]``; state as :meth:`step`."""
        return self._kept(ops.lif(x, **self._state_in(memory), **self.to(x.dtype).parameters), memory)

    def _state_in(self, memory: dict[str, Any]) -> dict[str, Any]:
        return {**self.start(), **{name: memory[name] for name in ("v", "i") if name in memory}}

    def _kept(self, out: NeuronOutput, memory: dict[str, Any]) -> NeuronOutput:
        memory["v"] = out.v
        if self.has_synapse:
            memory["i"] = out.i
        return out

    @property
    def has_synapse(self) -> bool:
        """Whether the input is filtered by a synaptic current."""
        return self.parameters.get("syn_decay") is not None

    @property
    def moves_v(self) -> bool:
        """Whether the library's potential differs from the operator's."""
        return not (_is(self.v_scale, 1.0) and _is(self.v_shift, 0.0))

    @property
    def moves_i(self) -> bool:
        """Whether the library's current differs from the operator's."""
        return not _is(self.i_scale, 1.0)

    def to(self, dtype: torch.dtype) -> Canonical:
        """Per-channel tensors in the dtype of the input; numbers keep their digits."""
        return replace(
            self, parameters={k: p.to(dtype) if isinstance(p, Tensor) and p.dim() else p for k, p in self.parameters.items()}
        )

    def __str__(self) -> str:
        shown = {k: _show(v) for k, v in self.parameters.items() if v is not None}
        return f"lif({', '.join(f'{k}={v}' for k, v in shown.items())})"


def wide(number: Any) -> Tensor:
    """A 0-d tensor in float64, so that what is computed from it keeps its digits; a per-channel tensor stays as it is."""
    tensor = ops.scalar(number).detach()
    return tensor.double() if tensor.dim() == 0 else tensor


def _is(number: Number, value: float) -> bool:
    return not isinstance(number, Tensor) and number == value


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{float(value):.6g}" if value.numel() == 1 else f"[{'x'.join(map(str, value.shape))}]"
    return f"{value:.6g}" if isinstance(value, float) else repr(value)
