"""Which rows of an output belong to which sample.

Usually an output has as many rows along its batch axis as there are samples. A model that returns ``s.flatten(0, 1)``, or an
engine that also returns spikes, has a multiple of that: time, or something else, is merged with the batch. Such rows are no
samples, so they can neither be cut nor joined as they are; :class:`Rows` takes the axis apart and puts it together again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from snngraph.errors import OutputRowsError
from snngraph.types import TensorSpec

if TYPE_CHECKING:
    from snngraph.runtime.backend import Array

__all__ = ["Rows", "find_rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """The batch axis of an output, ``[outer * N * inner]``.

    Args:
        outer: what varies more slowly than the sample, the number of time steps in ``[T*N]``.
        inner: what varies faster, the number of time steps in ``[N*T]``.
    """

    outer: int = 1
    inner: int = 1

    def split(self, value: Any, axis: int) -> Any:
        """An array or tensor with the axis taken apart: ``[outer, N, inner]``, without those that are 1."""
        shape = tuple(value.shape)
        apart = (*self._ones(self.outer), shape[axis] // (self.outer * self.inner), *self._ones(self.inner))
        return value.reshape(shape[:axis] + apart + shape[axis + 1 :])

    def merge(self, value: Any, axis: int) -> Any:
        """The inverse of :meth:`split`; ``axis`` is that of the whole."""
        shape = tuple(value.shape)
        parts = 1 + (self.outer > 1) + (self.inner > 1)
        return value.reshape((*shape[:axis], -1, *shape[axis + parts :]))

    def spec(self, spec: TensorSpec, steps: int) -> TensorSpec:
        """The description of what :meth:`split` gives; an axis of T entries is taken for time if there is none yet."""
        axis = spec.batch_dim
        if axis is None or self.outer * self.inner == 1:
            return spec
        size = spec.shape[axis]
        samples = None if size is None else size // (self.outer * self.inner)
        batch_dim = axis + (self.outer > 1)
        time_dim = spec.time_dim
        if time_dim is None:
            time_dim = axis if self.outer == steps > 1 else batch_dim + 1 if self.inner == steps > 1 else None
        elif time_dim > axis:
            time_dim += (self.outer > 1) + (self.inner > 1)
        shape = (*spec.shape[:axis], *self._ones(self.outer), samples, *self._ones(self.inner), *spec.shape[axis + 1 :])
        return replace(spec, shape=shape, time_dim=time_dim, batch_dim=batch_dim)

    @staticmethod
    def _ones(size: int) -> tuple[int, ...]:
        return (size,) if size > 1 else ()


def find_rows(
    run: Callable[[list[Array]], Sequence[Array]],
    inputs: Sequence[TensorSpec],
    arrays: Sequence[Array],
    outputs: Sequence[TensorSpec],
    results: Sequence[Array],
    steps: int,
    *,
    time_first: Collection[str] = (),
) -> list[Rows]:
    """How the rows of each output are ordered.

    A number of rows does not tell the order, so where there are several rows to a sample the network is asked: it runs once more
    with the samples moved on by one, and the rows that move along tell. Where the orders can not be told apart (one sample, or
    outputs that are all equal), time comes first, unless the inputs have it behind the batch.

    Args:
        run: the network, from arrays to arrays.
        inputs: its inputs.
        arrays: a batch of them.
        outputs: its outputs.
        results: what ``run(arrays)`` gave.
        steps: T.
        time_first: the names of outputs known to be time-major, ``[T*N, ...]``.

    Raises:
        OutputRowsError: the rows of an output are no multiple of the samples.
    """
    samples = next((a.shape[s.batch_dim] for a, s in zip(arrays, inputs, strict=True) if s.batch_dim is not None), 1)
    times = [_times(spec, value, samples) for spec, value in zip(outputs, results, strict=True)]
    if all(k == 1 for k in times):
        return [Rows()] * len(times)
    moved: Sequence[Array] | None = None
    if samples > 1:
        moved = run([a if s.batch_dim is None else np.roll(a, 1, s.batch_dim) for a, s in zip(arrays, inputs, strict=True)])
    batch_first = any(s.batch_dim is not None and s.time_dim is not None and s.batch_dim < s.time_dim for s in inputs)
    found = []
    for k, (spec, value, n) in enumerate(zip(outputs, results, times, strict=True)):
        orders = [Rows(n)] if spec.name in time_first else _orders(n, steps, batch_first)
        if moved is not None and len(orders) > 1:
            misfits = [_misfit(rows, value, moved[k], spec.batch_dim or 0) for rows in orders]
            orders = [orders[misfits.index(min(misfits))]]
        found.append(orders[0])
    return found


def _times(spec: TensorSpec, value: Array, samples: int) -> int:
    if spec.batch_dim is None:
        return 1
    rows: int = value.shape[spec.batch_dim]
    if not rows or rows % samples:
        raise OutputRowsError(
            f"output {spec.name!r} has {rows} rows on axis {spec.batch_dim} for {samples} samples: expected a multiple, so which "
            "rows belong to which sample can not be told; let the model return the samples on an axis of their own"
        )
    return rows // samples


def _orders(times: int, steps: int, batch_first: bool) -> list[Rows]:
    """All there are, the likely ones first."""
    outers = [k for k in range(1, times + 1) if times % k == 0]
    likely = [1, steps] if batch_first else [steps, 1]
    outers.sort(key=lambda k: likely.index(k) if k in likely else len(likely))
    return [Rows(k, times // k) for k in outers]


def _misfit(rows: Rows, value: Array, moved: Array, axis: int) -> float:
    """The share of elements that do not move along with the samples; engines may round them in another way."""
    expected, found = np.roll(rows.split(value, axis), 1, axis + (rows.outer > 1)), rows.split(moved, axis)
    scale = np.abs(value[np.isfinite(value)]).max(initial=0)
    return 1.0 - float(np.mean(np.isclose(found, expected, rtol=0.0, atol=1e-4 * scale, equal_nan=True)))
