"""What holds for every pass, on random networks: equivalence in float64, a truthful ``changed``, and a fixed point."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from snngraph import pipelines
from snngraph.format import canonical_format
from snngraph.graph import SpikingGraph
from snngraph.passes.base import Pass, Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.compose_low_rank import ComposeLowRank
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.passes.flatten_time import FlattenTime
from snngraph.passes.fold_attention import FoldAttention
from snngraph.passes.fold_average_pool import FoldAveragePool
from snngraph.passes.fold_batch_norm import FoldBatchNorm
from snngraph.passes.fuse_modules import FuseModules
from snngraph.passes.hoist_static import HoistStatic
from snngraph.passes.lift_neurons import LiftNeurons
from snngraph.passes.merge_time import MergeTime
from snngraph.passes.sink_scales import SinkScales
from snngraph.passes.unroll_time import UnrollTime
from snngraph.testing import assert_equivalent
from tests.passes.random_graphs import graphs

PASSES: list[Pass] = [
    Canonicalize(),
    ComposeLowRank(),
    EliminateDead(),
    FlattenTime(),
    FuseModules(),
    FoldAttention(),
    FoldAveragePool(),
    FoldBatchNorm(),
    HoistStatic(),
    LiftNeurons(),
    MergeTime(),
    SinkScales(),
    UnrollTime(),
    pipelines.capture(),
    pipelines.default(),
]
relaxed = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.parametrize("step", PASSES, ids=str)
@relaxed
@given(before=graphs())
def test_a_pass_keeps_what_the_network_computes(step: Pass, before: SpikingGraph) -> None:
    text = before.format()
    result = step(before)
    assert before.format() == text, "the input was touched"
    assert_equivalent(before, result.graph)
    if not result.changed:
        assert result.graph is before
        assert result.graph.history == before.history
    elif not isinstance(step, Canonicalize | EliminateDead | Pipeline):  # those may change names, sharing or dead code alone
        assert canonical_format(result.graph) != canonical_format(before)
    assert result.graph.outputs == before.outputs
    live = before.live_nodes
    wanted = {n.name: n.shape for n in before.neurons if live.intersection(n.nodes)}
    assert wanted.items() <= {n.name: n.shape for n in result.graph.neurons}.items()


@pytest.mark.parametrize("step", PASSES, ids=str)
@relaxed
@given(before=graphs())
def test_a_second_run_changes_nothing(step: Pass, before: SpikingGraph) -> None:
    once = step(before).graph
    if isinstance(step, FlattenTime | MergeTime):  # they leave reshapes behind, which canonicalize joins
        once = step(Canonicalize()(once).graph).graph
        once = Canonicalize()(once).graph
    again = step(once)
    assert canonical_format(again.graph) == canonical_format(once)


@relaxed
@given(before=graphs())
def test_merging_undoes_unrolling(before: SpikingGraph) -> None:
    canonical = pipelines.capture()(before).graph
    unrolled = UnrollTime()(canonical).graph
    assert "lif(" not in unrolled.format()
    merged = pipelines.capture()(unrolled).graph
    assert canonical_format(merged) == canonical_format(canonical)


@relaxed
@given(before=graphs())
def test_merging_undoes_unrolling_at_a_fixed_batch(before: SpikingGraph) -> None:
    unrolled = UnrollTime()(before).graph.copy()
    unrolled.facts = replace(unrolled.facts, free_batch=False)
    merged = pipelines.capture()(unrolled).graph
    assert "lif_step(" not in merged.format()
    assert_equivalent(unrolled, merged)
