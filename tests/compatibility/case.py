"""One case: a small net in somebody's library and style, converted and compared with the net itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import snngraph
from snngraph.frontends.call import Call

T, N, FEATURES = 6, 2, 12

Built = tuple[nn.Module, Tensor]


@dataclass(frozen=True)
class Case:
    """A net to convert.

    Args:
        library: the library whose neurons it has; empty for hand-written ones.
        neuron: the neuron, with the options that matter.
        style: how the net is written.
        build: makes it, with an example; in evaluation mode, fresh.
        options: keyword arguments of `snngraph.trace`.
        kept: why it is expected to stay ordinary operators: a part of the reason; `None`: recognised.
        stepped: whether its steps stay apart (a recurrent connection between layers).
    """

    library: str
    neuron: str
    style: str
    build: Callable[[], Built]
    options: dict[str, Any] = field(default_factory=dict)
    kept: str | None = None
    stepped: bool = False

    @property
    def name(self) -> str:
        return "-".join(filter(None, (self.library, self.neuron, self.style)))


@dataclass(frozen=True)
class Row:
    """What became of a case.

    Args:
        found: the canonical form of the first neuron, or `operators`.
        reason: why it is kept as operators.
        merged: whether the steps of every neuron layer became one operator over time.
        differing, outputs: how many numbers of the engine's outputs differ from the model's own by more than 1e-4, of how many.
        active: share of outputs that are not zero.
    """

    found: str
    reason: str
    merged: bool
    differing: int
    outputs: int
    active: float


def examine(case: Case) -> Row:
    """Converts the net, and compares the engine (ONNX Runtime) with the net itself, on another input of another batch size."""
    torch.manual_seed(0)
    model, example = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = snngraph.trace(model, example, **case.options)
        optimized = snngraph.optimize(graph, "onnxruntime")
        engine = snngraph.build(optimized, "onnxruntime", batch_size="dynamic" if graph.free_batch else None)
    spec = graph.inputs[0]
    size = 3 if graph.free_batch and spec.batch_dim is not None else example.shape[spec.batch_dim or 0]
    shape = [size if d == spec.batch_dim else n for d, n in enumerate(example.shape)]
    x = torch.rand(shape, generator=torch.Generator().manual_seed(7)) * 2
    torch.manual_seed(0)
    own, _ = case.build()  # fresh, never traced
    call = Call(own, (x,), steps=case.options.get("time_steps"), time_dim=spec.time_dim)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = call(x)
    outputs = engine.run(x.numpy())
    found = [torch.from_numpy(y) for y in (outputs if isinstance(outputs, list | tuple) else [outputs])]
    pairs = list(zip(found, expected, strict=True))
    assert all(a.shape == b.shape for a, b in pairs)
    forms = [r for r in graph.recognitions if r.form]
    kept = [r for r in graph.recognitions if not r.form]
    return Row(
        found=forms[0].form if forms and not kept else "operators",
        reason=kept[0].reason if kept else "",
        merged=bool(graph.neurons)
        and all(len(layer.nodes) == 1 and layer.nodes[0].target is torch.ops.snn.lif.default for layer in graph.neurons),
        differing=sum(int(((a - b).abs() > 1e-4).sum()) for a, b in pairs),
        outputs=sum(b.numel() for b in expected),
        active=sum(int((b != 0).sum()) for b in expected) / sum(b.numel() for b in expected),
    )
