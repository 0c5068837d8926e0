"""Random graphs of operators on spikes, and the check that what is said of their levels holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx

from snngraph.analysis.levels import Levels, infer_spike_levels
from snngraph.graph import SpikingGraph
from snngraph.testing import parse

NEURONS = (
    "decay=0.5, threshold=0.5",
    "threshold=0.7, reset='soft', emit='signed'",
    "threshold=0.4, level=0.5",
    "threshold=0.4, level=0.1",
    "threshold=0.4, level=-3.0",
    "threshold=0.3, emit='count', reset='soft'",
)

# Each of [-1, 4, 6, 6], and gives that shape.
OPERATORS = (
    "{a} + {b}",
    "add.Tensor({a}, {b}, alpha=-2)",
    "{a} - {b}",
    "{a} * {b}",
    "{a} * rsub.Scalar({b}, 1.0)",
    "rsub.Scalar({a}, 0.5)",
    "{a} * 0.25",
    "{a} * 3.0",
    "{a} * 0.1",
    "{a} * -2.0",
    "{a} / 4.0",
    "{a} / -3.0",
    "{a} + 0.5",
    "neg({a})",
    "abs({a})",
    "relu({a})",
    "sign({a})",
    "floor({a})",
    "pow.Tensor_Scalar({a}, 2.0)",
    "clamp({a}, 0.0, 1.0)",
    "clamp({a}, -0.5, 0.75)",
    "clamp_min({a}, 0.001)",
    "maximum({a}, {b})",
    "minimum({a}, {b} * 0.5)",
    "where.self(gt.Scalar({a}, 0.5), {b}, {a})",
    "masked_fill.Scalar({a}, le.Tensor({a}, {b}), 2.0)",
    "_to_copy(ge.Tensor({a}, {b}) * 0.5, dtype='float64')",
    "ge.Tensor({a}, {b}) * {a}",
    "_to_copy(logical_and(ne.Scalar({a}, 0), gt.Tensor({a}, {b})), dtype='int64') * {a}",
    "max_pool2d_with_indices({a}, [3, 3], [1, 1], [1, 1])[0]",
    "avg_pool2d({a}, [3, 3], [1, 1], [1, 1])",
    "avg_pool2d({a}, [3, 3], [1, 1], [1, 1], False, False)",
    "avg_pool2d({a}, [3, 3], [1, 1], [1, 1], False, True, 4)",
    "upsample_nearest2d.vec(avg_pool2d({a}, [2, 2]), [6, 6], None)",
    "expand(_adaptive_avg_pool2d({a}, [1, 1]), [-1, 4, 6, 6])",
    "upsample_nearest2d.vec(_adaptive_avg_pool2d({a}, [3, 2]), [6, 6], None)",
    "{a} + mean({b}, [2, 3], True)",
    "{a} * sum.dim_IntList({b}, [1], True)",
    "{a} + mean({b}, [0], True)",  # over the batch
    "{a} - amax({b}, [0, 1], True)",
    "cumsum({a}, 3)",
    "slice.Tensor(cat([{a}, {b}], 1), 1, 2, 6)",
    "split_with_sizes(cat([{b}, {a}], 1), [3, 4, 1], 1)[1]",
    "select(stack([{a}, {b}], 1), 1, -1)",
    "max.dim(stack([{a}, {b}], 0), 0)[0]",
    "reshape(permute({a}, [0, 2, 3, 1]), [-1, 4, 6, 6])",
    "flip(roll({a}, [1], [2]), [3])",
    "slice.Tensor(constant_pad_nd({a}, [2, 1], 0.5), 3, 1, 7)",
    "reshape(bmm(reshape({a}, [-1, 6, 6]), permute(reshape({b}, [-1, 6, 6]), [0, 2, 1])), [-1, 4, 6, 6])",
    "{a} * ones_like({b}) - full_like({a}, 0.5)",
    "{a} * whole[1, 4, 1, 1] + tenths[1, 4, 1, 1]",
    "{a} * w[1, 4, 1, 1]",
    "{a} * sigmoid(mean({b}, [2, 3], True))",
    "flatten_time(lif(split_time(conv2d({a}, w3[4, 4, 3, 3], padding=1)), {neuron}).s)",
)
CONSTANTS = {"whole": [[[[0.0]], [[-2.0]], [[1.0]], [[3.0]]]], "tenths": [[[[0.1]], [[-0.2]], [[0.4]], [[0.0]]]]}


@st.composite
def level_graphs(draw: st.DrawFn) -> SpikingGraph:
    """Over ``[3, N, 4, 6, 6]``: two layers of neurons, and operators on what there is so far."""
    neuron = st.sampled_from(NEURONS)
    lines = ["x[3, N, 4, 6, 6], y[3, N, 4, 6, 6] ->"]
    lines += [f"{v} = flatten_time(lif({of}, {draw(neuron)}).s)" for v, of in (("v0", "x"), ("v1", "y"))]
    count = draw(st.integers(3, 9))
    for k in range(2, count):
        a, b = (f"v{draw(st.integers(max(0, k - 4), k - 1))}" for _ in range(2))
        lines.append(f"v{k} = {draw(st.sampled_from(OPERATORS)).format(a=a, b=b, neuron=draw(neuron))}")
    return with_constants(parse("\n".join([*lines, f"return {', '.join(f'v{k}' for k in range(count))}"])))


def with_constants(graph: SpikingGraph) -> SpikingGraph:
    """``graph``, its tensors of :data:`CONSTANTS` holding these."""
    for name, tensor in graph.tensors().items():
        if name in CONSTANTS:
            tensor.copy_(torch.tensor(CONSTANTS[name], dtype=tensor.dtype))
    return graph


class _Values(fx.Interpreter):
    def __init__(self, graph: SpikingGraph) -> None:
        super().__init__(graph.module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.values[n.name] = value
        return value


def values_of(graph: SpikingGraph, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """What every node computes, by its name."""
    interpreter = _Values(graph)
    with torch.no_grad():
        interpreter.run(*(x.to(graph.dtype) if x.is_floating_point() else x for x in inputs))
    return interpreter.values


def multiples(name: str, value: Tensor, levels: Levels, rounding: float) -> Tensor:
    """``value`` in units of the levels' scale, as integers; asserts that it is no more than ``rounding`` away from these."""
    ratio = value.double() / levels.scale
    whole = ratio.round()
    error = float((ratio - whole).abs().max())
    assert error <= (0.0 if levels.exact else rounding), f"{name}: {error:.3g} from an integer in {levels}"
    assert float(whole.min()) >= levels.low, f"{name}: {float(whole.min())} is below {levels}"
    assert float(whole.max()) <= levels.high, f"{name}: {float(whole.max())} is above {levels}"
    return whole


def assert_levels(graph: SpikingGraph, inputs: Sequence[Tensor]) -> dict[fx.Node, Levels]:
    """Asserts that every node of a float64 graph is what is said of it, in float64 and in float32, where rounding lets tell."""
    found = infer_spike_levels(graph)
    peaks = peaks_of(graph, found)
    for dtype in (torch.float64, torch.float32):
        values = values_of(graph.to(dtype), inputs)
        for node, levels in found.items():
            rounding = torch.finfo(dtype).eps * 32 * peaks[node] / levels.scale
            if levels.exact or rounding < 0.4:
                multiples(f"{node.format_node()} in {dtype}", values[node.name], levels, rounding)
    return found


def peaks_of(graph: SpikingGraph, found: Mapping[fx.Node, Levels]) -> dict[fx.Node, float]:
    """The largest magnitude that a node is computed from: what rounding is relative to."""
    peaks: dict[fx.Node, float] = {}
    for node in graph.nodes:
        own = found[node].largest * found[node].scale if node in found else 0.0
        peaks[node] = max([own, *(peaks[n] for n in node.all_input_nodes)])
    return peaks
