"""What a pass is, and the pipeline of passes, which is a pass itself.

A pass is a frozen dataclass; its fields are its options. Calling it checks the graph, asks :meth:`Pass.requires`, runs it on a
private copy, checks the result and asks :meth:`Pass.ensures`. ``changed`` is true exactly when the graph was changed; otherwise
the very graph that went in comes out.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import fx

from snngraph.analysis.batch import batch_dims
from snngraph.errors import NonFiniteConstantError, PassError, SnnGraphError
from snngraph.graph import RESHAPE, SpikingGraph, module_path, source_line
from snngraph.types import Exactness

__all__ = ["Note", "Pass", "PassResult", "Pipeline", "Rewriter", "note_at", "repeat_over_time"]


@dataclass(frozen=True, slots=True)
class Note:
    """One thing a pass did, or refused to do and why; ``snngraph passes --explain`` prints them.

    ``where`` is for people; ``module`` and ``source`` say the same apart: a module path and ``file:line``, where there are any.
    """

    kind: Literal["rewrite", "refused"]
    where: str
    text: str
    by: str = ""
    module: str = ""
    source: str = ""

    def __str__(self) -> str:
        mark = {"rewrite": "+", "refused": "-"}[self.kind]
        return f"{mark} {self.by}: {self.where}: {self.text}" if self.by else f"{mark} {self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class PassResult:
    """What a pass returns: the graph, whether it differs from the one that went in, and notes."""

    graph: SpikingGraph
    changed: bool
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of a graph.

    Class attributes:
        name: its name in pipelines and on the command line.
        exactness: ``"bitwise"`` (the same float operations), ``"real"`` (equal in real arithmetic) or ``"approximate"``.
    """

    name: ClassVar[str]
    exactness: ClassVar[Exactness]

    def requires(self, graph: SpikingGraph) -> None:  # noqa: B027  (most passes take any graph)
        """Raises :class:`PassRefusedError` when the pass as a whole does not apply to ``graph``."""

    @abstractmethod
    def run(self, graph: SpikingGraph) -> PassResult:
        """Rewrites ``graph``, a private copy. Must say truthfully whether it changed."""

    def ensures(self, before: SpikingGraph, result: PassResult) -> None:
        """Raises :class:`PassError` when the result is not what the pass promises; it sees the result, not the input alone."""
        live = before.live_nodes
        wanted = [layer.name for layer in before.neurons if live.intersection(layer.nodes)]
        found = {layer.name for layer in result.graph.neurons}
        if lost := [name for name in wanted if name not in found]:
            raise PassError(f"{self} lost neuron layers that the outputs depend on: {', '.join(lost)}")
        self.ensures_outputs(before, result)

    def ensures_outputs(self, before: SpikingGraph, result: PassResult) -> None:
        """Raises :class:`PassError` unless the outputs have the shapes and types they had, at another batch size too."""

        def signature(graph: SpikingGraph) -> list[tuple[object, ...]]:
            dims = batch_dims(graph)
            return [(n.meta["val"].dtype, tuple(n.meta["val"].shape), dims.get(n)) for n in graph.output_nodes]

        wanted, found = signature(before), signature(result.graph)
        if wanted != found:
            raise PassError(
                f"{self} changed the outputs (type, shape, batch axis) from {wanted} to {found}:\n{result.graph.format()}"
            )

    def __call__(self, graph: SpikingGraph) -> PassResult:
        """Runs the pass; ``graph`` itself is never touched.

        Raises:
            PassRefusedError: the pass does not apply.
            PassError: the result breaks an invariant; the message carries the graph that went in and the passes before.
        """
        self.requires(graph)
        try:
            graph.check()
            batch_dims(graph)  # once, for the copy too
            result = self.run(graph.copy())
            if not result.changed:
                return PassResult(graph, False, tuple(dataclasses.replace(n, by=self.name) for n in result.notes))
            result.graph.check()
            self.ensures(graph, result)
        except (PassError, NonFiniteConstantError):
            raise
        except SnnGraphError as error:
            before = ", ".join(graph.history) or "none"
            given = f"passes before it: {before}\nthe graph it was given:\n{graph.format()}"
            raise PassError(f"pass {self} failed: {error}\n{given}") from error
        notes = tuple(dataclasses.replace(n, by=self.name) for n in result.notes)
        return PassResult(result.graph.with_history(str(self)), True, notes)

    def __str__(self) -> str:
        options = [
            f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if getattr(self, f.name) != _default_of(f)
        ]
        return f"{self.name}({', '.join(options)})" if options else self.name


def _default_of(option: dataclasses.Field[object]) -> object:
    if option.default is not dataclasses.MISSING:
        return option.default
    return option.default_factory() if option.default_factory is not dataclasses.MISSING else dataclasses.MISSING


@dataclass(frozen=True)
class Pipeline(Pass):
    """Runs passes in order. A pipeline is a pass and may stand in another.

    Args:
        passes: the passes.
        title: its name.
        until_stable: repeat until no pass changes anything (at most 20 times).
    """

    name: ClassVar[str] = "pipeline"
    exactness: ClassVar[Exactness] = "real"
    passes: tuple[Pass, ...] = ()
    title: str = field(default="pipeline", compare=False)
    until_stable: bool = False

    def run(self, graph: SpikingGraph) -> PassResult:
        """Runs every pass on what the one before it gave."""
        changed = False
        notes: list[Note] = []
        for _ in range(20 if self.until_stable else 1):
            again = False
            for step in self.passes:
                result = step(graph)
                graph, again = result.graph, again or result.changed
                notes.extend(n for n in result.notes if n not in notes)
            changed = changed or again
            if not again:
                break
        return PassResult(graph, changed, tuple(notes))

    def __call__(self, graph: SpikingGraph) -> PassResult:
        """Runs the passes; each checks for itself, and writes itself into the graph's history."""
        return self.run(graph)

    def __str__(self) -> str:
        return f"{self.title}({', '.join(map(str, self.passes))})"


class Rewriter:
    """Collects what a pass does to a graph, so that ``changed`` follows from it."""

    def __init__(self, graph: SpikingGraph) -> None:
        self.graph = graph
        self.notes: list[Note] = []

    def did(self, node: object, text: str) -> None:
        """Records a rewrite."""
        self.notes.append(note_at("rewrite", node, text))

    def refuse(self, node: object, text: str) -> None:
        """Records a near miss with its reason."""
        self.notes.append(note_at("refused", node, text))

    def result(self) -> PassResult:
        """The pass's result; dead nodes and tensors are removed."""
        changed = any(n.kind == "rewrite" for n in self.notes)
        return PassResult(self.graph.finish() if changed else self.graph, changed, tuple(self.notes))


def repeat_over_time(graph: fx.Graph, value: fx.Node, steps: int, shape: Sequence[int]) -> fx.Node:
    """``value``, ``[N, *shape]``, at every one of T steps: ``[T, N, *shape]``, at the graph's insertion point."""
    one = graph.call_function(RESHAPE, (value, [1, -1, *shape]))
    return graph.call_function(torch.ops.aten.expand.default, (one, [steps, -1, *shape]))


def note_at(kind: Literal["rewrite", "refused"], node: object, text: str) -> Note:
    """A note that names the module and the source line a node comes from."""
    if not isinstance(node, fx.Node):
        return Note(kind, str(node), text)
    path, line = module_path(node), source_line(node)
    where = " ".join(filter(None, (node.name, path and f"({path})", line)))
    return Note(kind, where, text, module=path, source=line)
