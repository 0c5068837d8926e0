from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from snngraph.errors import PassError, PassRefusedError, UnknownPassError
from snngraph.graph import SpikingGraph, is_op
from snngraph.passes import registry
from snngraph.passes.base import Pass, PassResult, Pipeline, Rewriter
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.testing import parse
from snngraph.types import Exactness

aten = torch.ops.aten


@dataclass(frozen=True)
class Scale(Pass):
    """Doubles what relu gives, wrongly if asked."""

    name: ClassVar[str] = "scale"
    exactness: ClassVar[Exactness] = "approximate"
    how: str = "well"

    def requires(self, graph: SpikingGraph) -> None:
        if not any(is_op(n, aten.relu.default) for n in graph.nodes):
            raise PassRefusedError("scale: there is no relu to scale")

    def run(self, graph: SpikingGraph) -> PassResult:
        edit = Rewriter(graph)
        for node in graph.nodes:
            if is_op(node, aten.relu.default):
                users = list(node.users)
                with graph.graph.inserting_after(node):
                    target = aten.mul_.Tensor if self.how == "in place" else aten.mul.Tensor
                    new = graph.graph.call_function(target, (node, 2.0))
                for user in users:
                    user.replace_input_with(node, new)
                if self.how == "badly shaped":
                    new.target, new.args = aten.reshape.default, (node, [7, 7])
                edit.did(node, "scaled")
        return edit.result()


GRAPH = "x[3, N, 4] -> c = relu(x) * 1.0; lif(c).s"


def test_a_pass_leaves_its_input_alone_and_writes_history() -> None:
    graph = parse(GRAPH)
    text = graph.format()
    result = Scale()(graph)
    assert graph.format() == text
    assert result.graph.history == ("scale",)
    assert Scale(how="better")(graph).graph.history == ("scale(how='better')",)


@pytest.mark.parametrize(("how", "what"), [("badly shaped", "does not accept"), ("in place", "in place")])
def test_a_broken_result_is_an_error_with_the_graph_and_the_passes_before(how: str, what: str) -> None:
    graph = Canonicalize()(parse(GRAPH)).graph
    with pytest.raises(PassError) as error:
        Scale(how=how)(graph)
    message = str(error.value)
    assert what in message
    assert "passes before it: canonicalize" in message
    assert graph.format() in message


def test_a_refusal_passes_through() -> None:
    with pytest.raises(PassRefusedError, match="no relu"):
        Scale()(parse("x[3, N, 4] -> lif(x).s"))


def test_pipelines_nest_and_say_whether_anything_changed() -> None:
    inner = Pipeline((Canonicalize(),), title="inner")
    outer = Pipeline((inner, EliminateDead()), title="outer")
    graph = parse(GRAPH)
    result = outer(graph)
    assert result.changed
    assert result.graph.history == ("canonicalize",)
    again = outer(result.graph)
    assert not again.changed
    assert again.graph is result.graph
    assert str(outer) == "outer(inner(canonicalize), eliminate_dead)"


def test_passes_by_name_with_options() -> None:
    pipeline = registry.pipeline(["canonicalize", "eliminate_dead()", Scale()])
    assert pipeline.passes == (Canonicalize(), EliminateDead(), Scale())


def test_unknown_names_and_options_are_explained() -> None:
    with pytest.raises(UnknownPassError, match="did you mean 'merge_time'"):
        registry.pipeline(["merge_tim"])
    with pytest.raises(PassError, match="the options of merge_time are: none"):
        registry.pipeline(["merge_time(limit=3)"])
    with pytest.raises(PassError, match="is no pass: expected a name"):
        registry.pipeline(["__import__('os').system('true')"])


def test_every_builtin_is_listed_with_its_exactness() -> None:
    infos = {info.name: info for info in registry.available()}
    assert {"canonicalize", "eliminate_dead", "fold_batch_norm", "merge_time", "unroll_time", "hoist_static"} <= set(infos)
    assert all(info.summary for info in infos.values())
    assert infos["unroll_time"].exactness == "bitwise"
