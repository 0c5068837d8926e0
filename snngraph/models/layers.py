"""Layers that the model families share. Everything between them is time-first: ``[T, N, ...]``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from snngraph.models.reference import ReferenceKeys, ReferenceKeysOf

__all__ = ["EventClassifier", "SequenceDropout", "StepWise", "Vote", "pair", "pooled_size", "require_each", "require_positive"]


class StepWise(nn.Sequential):
    """Applies stateless layers to every step: ``[T, N, ...]`` -> ``[T, N, ...]``, with time merged into the batch.

    A batch norm inside sees all ``T*N`` frames at once, as in SpikingJelly's multi-step containers.
    """

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = x.flatten(0, 1)
        for layer in self:
            y = layer(y)
        return _unflatten(y, 0, x.shape[:2])


class SequenceDropout(nn.Module):
    """Dropout whose mask is drawn once for a sequence ``[T, N, ...]`` and shared by its steps; the identity in ``eval()``.

    Raises:
        ValueError: ``p`` is not in ``[0, 1)``.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p={p}: a dropout probability lies in [0, 1)")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self.training or self.p == 0.0:
            return x
        return x * nn.functional.dropout(torch.ones_like(x[:1]), self.p)

    def extra_repr(self) -> str:  # noqa: D102
        return f"p={self.p}"


class Vote(nn.Module):
    """Averages groups of ``voters`` neighbouring outputs: ``[N, classes*voters]`` -> ``[N, classes]``.

    Raises:
        ValueError: ``voters`` is not positive.
    """

    def __init__(self, voters: int = 10) -> None:
        super().__init__()
        require_positive(voters=voters)
        self.voters = voters

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        return _unflatten(x, -1, (-1, self.voters)).mean(-1)

    def extra_repr(self) -> str:  # noqa: D102
        return f"voters={self.voters}"


class EventClassifier(nn.Module):
    """An event classifier: features, a classifier on the flattened features, the mean over time, perhaps a vote.

    Args:
        features: ``[T, N, C, H, W]`` -> ``[T, N, c, h, w]``.
        classifier: ``[T, N, c*h*w]`` -> ``[T, N, outputs]``.
        T: the number of time steps of an input.
        in_channels: its channels ``C``, usually the two polarities.
        size: its ``(H, W)``, or ``None`` where the features resize it.
        voters: outputs per class; 1 is no vote.
        reference_keys: where the tensors of its authors' code go, see :mod:`snngraph.models.reference`; ``None`` where there is
            no such code.

    Raises:
        ValueError: an input of another shape (from ``forward``).
    """

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module,
        *,
        T: int,
        in_channels: int = 2,
        size: tuple[int, int] | None = None,
        voters: int = 1,
        reference_keys: ReferenceKeys | ReferenceKeysOf | None = None,
    ) -> None:
        super().__init__()
        require_positive(T=T, in_channels=in_channels, voters=voters)
        self.reference_keys = reference_keys
        self.T, self.in_channels, self.size = T, in_channels, size
        self.features = features
        self.classifier = classifier
        self.vote = Vote(voters) if voters > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores ``[N, classes]`` of a sequence ``[T, N, C, H, W]``."""
        self._check(x)
        out: Tensor = self.classifier(self.features(x).flatten(2))
        scores: Tensor = self.vote(out.mean(0))
        return scores

    def _check(self, x: Tensor) -> None:
        height_width = "H, W" if self.size is None else f"{self.size[0]}, {self.size[1]}"
        expected = f"[T={self.T}, N, {self.in_channels}, {height_width}]"
        if x.dim() != 5:
            raise ValueError(f"expected an input {expected}, got {x.dim()} dimensions: {list(x.shape)}")
        if x.shape[0] != self.T:
            raise ValueError(
                f"expected an input {expected}, got T={x.shape[0]}: {list(x.shape)}; the attention is built for one number of "
                f"steps, so build the model with T={x.shape[0]} or bin the events into {self.T} frames"
            )
        if x.shape[2] != self.in_channels or (self.size is not None and tuple(x.shape[3:]) != self.size):
            raise ValueError(f"expected an input {expected}, got {list(x.shape)}")


def _unflatten(x: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    y: Tensor = x.unflatten(dim, sizes)
    return y


def require_positive(**sizes: object) -> None:
    """Checks sizes by name.

    Raises:
        ValueError: one of them is not a positive integer.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"{name}={size!r}: expected a positive integer")


def require_each(count: int, each: str, **sizes: object) -> None:
    """Checks sequences of sizes by name.

    Raises:
        ValueError: one of them does not have ``count`` positive integers, one for each ``each``.
    """
    for name, found in sizes.items():
        if not isinstance(found, Sequence) or len(found) != count:
            shown = tuple(found) if isinstance(found, Sequence) else found
            raise ValueError(f"{name}={shown!r}: expected {count} numbers, one for each {each}")
        for size in found:
            require_positive(**{name: size})


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """``(H, W)`` from one number or two.

    Raises:
        ValueError: neither, or not positive.
    """
    both = (size, size) if isinstance(size, int) else tuple(size)
    if len(both) != 2:
        raise ValueError(f"size={size!r}: expected one number, or height and width")
    height, width = both
    require_positive(height=height, width=width)
    return height, width


def pooled_size(size: tuple[int, int], pools: int) -> tuple[int, int]:
    """``(H, W)`` after ``pools`` poolings 2x2 of stride 2.

    Raises:
        ValueError: nothing would be left.
    """
    height, width = size[0] >> pools, size[1] >> pools
    if not height or not width:
        raise ValueError(f"size={size}: {pools} poolings 2x2 leave nothing; expected at least {1 << pools} pixels a side")
    return height, width
