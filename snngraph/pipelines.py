"""The only place where the order of passes is written."""

from __future__ import annotations

from typing import Final

from snngraph.passes.base import Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.compose_low_rank import ComposeLowRank
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.passes.flatten_time import FlattenTime
from snngraph.passes.fold_attention import FoldAttention
from snngraph.passes.fold_average_pool import FoldAveragePool
from snngraph.passes.fold_batch_norm import FoldBatchNorm
from snngraph.passes.hoist_static import HoistStatic
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.passes.lift_neurons import LiftNeurons
from snngraph.passes.mark_levels import MarkLevels
from snngraph.passes.merge_time import MergeTime
from snngraph.passes.sink_scales import SinkScales

__all__ = ["capture", "default"]


def capture(*, lift: bool = True) -> Pipeline:
    """What every captured graph goes through: one spelling, neurons recognised (unless ``lift=False``), time merged."""
    recognise = (LiftNeurons(),) if lift else ()
    return Pipeline((Canonicalize(), *recognise, MergeTime(), Canonicalize(), EliminateDead()), title="capture")


DIGITS: Final = {"exact": 3, "int8": 1}
"""Digits of a weight, by precision."""


def default(target: str = "openvino", precision: str = "fp32") -> Pipeline:
    """What ``snngraph.optimize`` runs for a target and precision."""
    integers = (IntegerSynapses(DIGITS[precision]), MarkLevels()) if precision in DIGITS else ()
    return Pipeline(
        (
            Canonicalize(),
            MergeTime(),  # a no-op on a captured graph; graphs also come from text and from outside passes
            Canonicalize(),
            ComposeLowRank(),
            Canonicalize(),
            HoistStatic(),
            FoldBatchNorm(),
            FoldAveragePool(integers=precision in DIGITS),
            SinkScales(),  # before time is flattened: whether a scale varies over time is seen from its shape
            FoldAttention(),
            FlattenTime(),
            Canonicalize(),
            HoistStatic(),  # what FlattenTime brought into the form that it moves
            Canonicalize(),
            *integers,
            EliminateDead(),
        ),
        title=f"default({target}, {precision})",
    )
