"""fuse_modules and its inverse: the graph it makes, equality to the bit, what stays apart and why, engines that do not change."""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import nn

import snngraph
from snngraph import neurons, ops, pipelines
from snngraph.analysis.levels import infer_spike_levels
from snngraph.errors import GraphCheckError, PassError, UnsupportedOperatorError
from snngraph.format import canonical_format
from snngraph.fused import CONV_LIF, FUSED, LINEAR_LIF
from snngraph.graph import SpikingGraph, is_op, operand
from snngraph.integer import split_weight
from snngraph.lowering import lower
from snngraph.models.layers import StepWise
from snngraph.passes import registry
from snngraph.passes.base import PassResult, Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.expand_fused import ExpandFused, expanded
from snngraph.passes.flatten_time import FlattenTime
from snngraph.passes.fuse_modules import FuseModules
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.passes.mark_levels import MarkLevels
from snngraph.runtime.openvino_backend import OpenVINOBackend
from snngraph.testing import assert_equivalent, assert_graph, parse, random_inputs
from tests.passes.random_graphs import graphs

EXACT = (IntegerSynapses(everywhere=True), MarkLevels())


def _run(before: SpikingGraph, *, inverse: bool = True) -> PassResult:
    """Fuses; every output is equal to the bit, and expanding gives the graph that was."""
    result = FuseModules()(before)
    assert result.changed == any(is_op(n, *FUSED) for n in result.graph.nodes)
    if not result.changed:
        assert result.graph is before
        return result
    assert_bitwise(before, result.graph)
    assert_equivalent(before, result.graph, tolerance=0.0)
    assert [(n.name, n.shape) for n in result.graph.neurons] == [(n.name, n.shape) for n in before.neurons]
    assert result.graph.outputs == before.outputs
    assert not FuseModules()(result.graph).changed
    back = ExpandFused()(result.graph)
    assert back.changed
    assert not ExpandFused()(back.graph).changed
    if inverse:
        assert canonical_format(back.graph) == canonical_format(before)
    return result


def assert_bitwise(before: SpikingGraph, after: SpikingGraph) -> None:
    for dtype in (torch.float64, torch.float32):
        for batch in (1, 3) if before.free_batch else (before.batch,):
            inputs = random_inputs(before, batch)
            wanted, found = before.to(dtype)(*inputs), after.to(dtype)(*inputs)
            for a, b in zip(_all(wanted), _all(found), strict=True):
                assert torch.equal(a, b)


def _all(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, tuple | list) else [result]


def _fused(graph: SpikingGraph) -> list[str]:
    return [str(n.target).split(".")[1] for n in graph.nodes if is_op(n, *FUSED)]


# -- the graph it makes ----------------------------------------------------------------------------------------------------------


def test_convolution_neurons_and_pooling_and_a_linear_layer() -> None:
    before = parse("""x[4, N, 2, 8, 8] ->
        c = conv2d(flatten_time(x), w[6, 2, 3, 3], b[6], padding=1)
        s = lif(split_time(c), decay=0.5, threshold=0.3)
        p = max_pool2d(flatten_time(s), 2)
        z = linear(reshape(p, [-1, 96]), u[5, 96])
        o = lif(split_time(z), decay=0.5, threshold=0.2)
        return mean(o, 0)""")
    result = _run(before)
    assert_graph(
        result.graph,
        """x[4, N, 2, 8, 8] ->
        c = conv_lif(flatten_time(x), weight=w[6, 2, 3, 3], layer_bias=b[6], stride=[1, 1], padding=[1, 1], dilation=[1, 1],
                     groups=1, pool=[2, 2], pool_stride=[2, 2], decay=0.5, threshold=0.3)
        o = linear_lif(reshape(c.s, [-1, 96]), weight=u[5, 96], decay=0.5, threshold=0.2)
        return mean(reshape(o.s, [4, -1, 5]), 0)""".replace("\n                     ", " "),
    )
    assert [n.name for n in result.graph.neurons] == ["s", "o"]
    assert [n.shape for n in result.graph.neurons] == [(6, 8, 8), (5,)]
    assert [note.text for note in result.notes] == ["c + s + max_pool2d_with_indices is conv_lif", "z + o is linear_lif"]


def test_one_feeds_the_next() -> None:
    before = parse("""x[2, N, 2, 6, 6] ->
        s = lif(split_time(conv2d(flatten_time(x), w[4, 2, 3, 3], b[4], padding=1)), threshold=0.3)
        t = lif(split_time(conv2d(flatten_time(s), u[4, 4, 3, 3], d[4], padding=1)), threshold=0.3)
        return flatten_time(s) + flatten_time(t)""")
    result = _run(Canonicalize()(before).graph)
    first, second = (n for n in result.graph.nodes if is_op(n, *FUSED))
    assert operand(operand(second)) is first


def test_only_what_is_asked_for() -> None:
    before = parse("""x[2, N, 2, 6, 6] ->
        s = lif(split_time(conv2d(flatten_time(x), w[4, 2, 3, 3])), threshold=0.3)
        return lif(split_time(linear(reshape(s, [-1, 64]), u[5, 64])), threshold=0.3)""")
    assert _fused(FuseModules(("linear_lif",))(before).graph) == ["linear_lif"]
    fused = FuseModules()(before).graph
    assert _fused(expanded(fused, ["conv_lif"])) == ["conv_lif"]
    assert _fused(expanded(fused)) == []
    assert expanded(before) is before
    assert expanded(fused, ["conv_lif", "linear_lif"]) is fused
    with pytest.raises(ValueError, match="pool_lif"):
        FuseModules(("pool_lif",))
    assert str(registry.pipeline(["fuse_modules(operators=('conv_lif',))", "expand_fused"]).passes[0]) == (
        "fuse_modules(operators=('conv_lif',))"
    )


NEURONS = [
    "decay=0.5, input_gain=0.5, threshold=t[6, 1, 1], v_reset=r[6, 1, 1]",
    "decay=d[6, 1, 1], bias=e[6, 1, 1], threshold=0.5, reset='soft'",
    "syn_decay=0.5, syn_gain=0.75, threshold=0.4, with_h=True",
    "decay=0.9, threshold=0.4, reset='soft', delay='with', floor=-0.25",
    "threshold=0.3, emit='count', reset='soft', level=0.5",
    "threshold=0.3, emit='signed', v=v[6, 4, 4], fire='>'",
    "threshold=0.3, gain=sigmoid(mean(y, [3, 4], True))",
    "threshold=0.3, gain=k[2, 1, 6, 1, 1]",
]


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("pool", [False, True])
def test_every_neuron(neuron: str, pool: bool) -> None:
    end = "max_pool2d(flatten_time(s), 2)" if pool else "flatten_time(s)"
    before = parse(f"""x[2, N, 4, 6, 6], y[2, N, 6, 4, 4] ->
        c = convolution(flatten_time(x), w[6, 2, 3, 3], b[6], [1, 1], [0, 0], [1, 1], False, [0, 0], 2)
        s = lif(split_time(c), {neuron})
        return {end}, s.v, {"s.i" if "syn_decay" in neuron else "s.v"}, {"s.h" if "with_h" in neuron else "s.v"}, mean(y, [1])""")
    assert _fused(_run(before).graph) == ["conv_lif"]


@pytest.mark.parametrize(
    "end", ["s.v", "s", "mean(s, 0)", "reshape(s, [-1, 24])", "s * 0.5, flatten_time(s), reshape(s, [-1, 24])"]
)
@pytest.mark.parametrize("steps", [1, 3])
def test_every_reader(end: str, steps: int) -> None:
    before = parse(f"""x[{steps}, N, 2, 4, 4] ->
        s = lif(split_time(conv2d(flatten_time(x), w[6, 2, 3, 3])), threshold=0.3)
        return {end}""")
    assert _fused(_run(before).graph) == ["conv_lif"]


@pytest.mark.parametrize(
    ("options", "size"),
    list(itertools.product(["[2, 2], [2, 2]", "[3, 3], [2, 2], [1, 1]", "[2, 2]", "[3, 1], [1, 1], [1, 0]"], [6, 7])),
)
def test_every_pooling(options: str, size: int) -> None:
    before = parse(f"""x[2, N, 2, {size}, {size}] ->
        s = lif(split_time(conv2d(flatten_time(x), w[6, 2, 3, 3])), threshold=0.3)
        return max_pool2d_with_indices(flatten_time(s), {options})[0] * 0.5""")
    result = _run(before)
    assert "pool=" in result.graph.format()
    assert result.graph.outputs[0].time_dim is None


def test_other_dimensions_and_tokens() -> None:
    layer = "convolution(flatten_time(x), w[6, 2, 3{}], b[6], [1{}], [1{}], [1{}], False, [0{}], 1)"
    one = layer.format(*[""] * 5)
    result = _run(parse(f"x[2, N, 2, 8] -> return lif(split_time({one}), threshold=0.3)"))
    assert _fused(result.graph) == ["conv_lif"]
    three = layer.format(", 3, 3", *[", 1, 1"] * 3, ", 0, 0")
    pool = "max_pool3d_with_indices(flatten_time(s), [2, 2, 2], [2, 2, 2])[0]"
    result = _run(parse(f"x[2, N, 2, 4, 4, 4] ->\ns = lif(split_time({three}), threshold=0.3)\nreturn {pool}"))
    assert "pool=[2, 2, 2]" in result.graph.format()
    result = _run(parse("x[2, N, 5, 8] -> return lif(split_time(linear(flatten_time(x), w[6, 8])), threshold=0.3)"))
    assert result.graph.neurons[0].shape == (5, 6)


def test_pooled_spikes_that_are_read_before_too_are_pooled_outside() -> None:
    before = parse("""x[2, N, 2, 6, 6] ->
        s = lif(split_time(conv2d(flatten_time(x), w[6, 2, 3, 3])), threshold=0.3)
        return max_pool2d(flatten_time(s), 2), mean(s, [0])""")
    result = _run(before)
    assert "pool=" not in result.graph.format()
    assert [str(n) for n in result.notes if n.kind == "refused"] == [
        "- fuse_modules: max_pool2d_with_indices: the spikes are read before pooling too"
    ]


@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        ("max_pool2d_with_indices({}, [2, 2], [2, 2], [0, 0], [1, 1], True)[0]", "rounds its size up"),
        ("max_pool2d_with_indices({}, [2, 2], [1, 1], [0, 0], [2, 2])[0]", "dilated"),
        ("max_pool2d_with_indices({}, [2, 2], [2, 2])[1]", "the positions of the maxima"),
        ("max_pool2d({}, 2), reshape(s, [-1, 96])", "are read before pooling too"),
    ],
)
def test_poolings_that_stay(pool: str, reason: str) -> None:
    before = parse(f"""x[2, N, 2, 6, 6] ->
        s = lif(split_time(conv2d(flatten_time(x), w[6, 2, 3, 3])), threshold=0.3)
        return {pool.format("flatten_time(s)")}""")
    result = _run(before)
    assert _fused(result.graph) == ["conv_lif"]
    assert "pool=" not in result.graph.format()
    assert any(reason in note.text for note in result.notes)


# -- what stays apart ------------------------------------------------------------------------------------------------------------

CONV = "c = conv2d(flatten_time(x), w[6, 2, 3, 3])\n"
TRANSPOSED = "c = convolution(flatten_time(x), w[2, 6, 3, 3], None, [1, 1], [0, 0], [1, 1], True, [0, 0], 1)\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"{CONV}return lif(split_time(c), threshold=0.3), c", "c is read by 2 operators"),
        (f"{CONV}y = split_time(c)\nreturn lif(y, threshold=0.3), y", "y is read by 2 operators"),
        (f"{CONV}y = split_time(c)\nreturn lif(y, threshold=0.3, gain=y)", "as another parameter too"),
        (f"{CONV}y = split_time(c)\nreturn lif(y, threshold=0.3, gain=sigmoid(y))", "is read by 2 operators"),
        (f"{CONV}return lif(split_time(c) * 0.5, threshold=0.3)", "its input is mul, no layer with weights"),
        (f"{CONV}return lif(split_time(relu(c)), threshold=0.3)", "its input is relu, no layer"),
        (f"{CONV}return lif(split_time(c + c), threshold=0.3)", "its input is add, no layer"),
        (f"{CONV}return lif(split_time(avg_pool2d(c, [2, 2])), threshold=0.3)", "its input is avg_pool2d, no layer"),
        (f"{CONV}return lif(reshape(c, [3, -1, 96]), threshold=0.3)", "reshapes more than time"),
        (f"{CONV}y = split_time(c)\nreturn lif_step(select(y, 0, 0), threshold=0.3)", "it is one step"),
        ("return lif(split_time(conv2d(flatten_time(x), relu(w[6, 2, 3, 3]))), threshold=0.3)", "are no constants"),
        ("return lif(split_time(linear(flatten_time(x), w[5, 6], relu(b[5]))), threshold=0.3)", "are no constants"),
        ("return lif(linear(x, w[5, 6]), threshold=0.3)", "does not run on [T*N, ...]"),
        (
            f"{TRANSPOSED}return lif(split_time(c))",
            "is transposed",
        ),
    ],
)
def test_refused(body: str, reason: str) -> None:
    result = _run(parse(f"x[3, N, 2, 6, 6] ->\n{body}"))
    assert not result.changed
    assert reason in result.notes[0].text


def test_a_chain_of_steps_with_a_recurrent_connection_stays() -> None:
    before = parse(
        """x[2, N, 6], T=2 ->
        a = lif_step(linear(select(x, 0, 0), w[6, 6]), threshold=0.2)
        b = lif_step(linear(select(x, 0, 1) + a.s, w[6, 6]), v=a.v, threshold=0.2)
        return stack([a.s, b.s])""".replace(", T=2", "")
    )
    result = _run(before)
    assert not result.changed
    assert ["it is one step" in note.text for note in result.notes] == [True, True]


# -- integer layers --------------------------------------------------------------------------------------------------------------


def test_integer_layers_and_the_mark_of_the_spikes() -> None:
    before = parse("""x[2, N, 2, 8, 8] ->
        s = lif(split_time(conv2d(flatten_time(x), w[6, 2, 3, 3], b[6], padding=1)), threshold=0.3)
        t = lif(split_time(conv2d(max_pool2d(flatten_time(s), 2), u[4, 6, 3, 3], d[4], padding=1)), threshold=0.3)
        o = lif(split_time(linear(reshape(t, [-1, 64]), y[5, 64])), threshold=0.2)
        return mean(o, 0)""")
    exact = Pipeline(EXACT)(before).graph
    assert exact.format().count("levels(") == 2
    result = _run(exact)
    assert _fused(result.graph) == ["conv_lif", "conv_lif", "linear_lif"]
    first, second, third = (n for n in result.graph.nodes if is_op(n, *FUSED))
    assert [n.kwargs.get("levels") for n in (first, second, third)] == [[0, 1], [0, 1], None]
    assert ["scales" in n.kwargs for n in (first, second, third)] == [False, True, True]
    assert "levels(" not in result.graph.format()
    found = infer_spike_levels(result.graph)
    assert all(found[operand(n)].high == 1 for n in (second, third))
    assert not MarkLevels()(result.graph).changed
    engines = [snngraph.build(g, precision="exact") for g in (exact, result.graph)]
    assert engines[0].model == engines[1].model
    assert snngraph.build(result.graph).precision == "exact"


def test_spikes_that_are_read_without_their_mark_keep_it_outside() -> None:
    before = parse("""x[2, N, 2, 6, 6] ->
        s = lif(split_time(conv2d(flatten_time(x), w[6, 2, 3, 3], b[6], padding=1)), threshold=0.3)
        t = lif(split_time(conv2d(flatten_time(s), u[4, 6, 3, 3], d[4])), threshold=0.3)
        return t, s""")
    exact = Pipeline(EXACT)(before).graph
    result = _run(exact)
    assert "= levels(" in result.graph.format()
    assert "levels=" not in result.graph.format()


# -- any graph -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_any_graph(before: SpikingGraph) -> None:
    for graph in (Canonicalize()(before).graph, pipelines.default()(before).graph):
        _run(graph)
    fixed = before.copy()
    fixed.facts = replace(fixed.facts, free_batch=False)
    _run(pipelines.default()(fixed).graph)
    exact = Pipeline((pipelines.default(), *EXACT))(before).graph
    fused = _run(exact).graph
    assert _onnx(exact) == _onnx(fused)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(graphs())
def test_the_text_of_a_fused_graph_reads_back(before: SpikingGraph) -> None:
    graph = FuseModules()(pipelines.default()(before).graph).graph
    assert canonical_format(parse(graph.format())) == canonical_format(graph)
    assert Canonicalize()(graph).graph.format().count("_lif(") == graph.format().count("_lif(")
    wide = graph.at_batch(5)
    assert wide.neurons[0].shape == graph.neurons[0].shape


def _onnx(graph: SpikingGraph) -> bytes:
    data: bytes = lower(graph, batch="dynamic").model.SerializeToString(deterministic=True)
    return data


# -- networks --------------------------------------------------------------------------------------------------------------------


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = StepWise(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.lif = neurons.LIF(threshold=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes: torch.Tensor = self.lif(self.layer(x))
        return x + spikes


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A stem with pooling, spike-element-wise blocks, a head with two linear layers."""
    torch.manual_seed(0)
    stem = StepWise(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
    head = StepWise(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 12))
    last = StepWise(nn.Linear(12, 5))
    net = nn.Sequential(
        *(stem, neurons.LIF(threshold=0.3), StepWise(nn.MaxPool2d(2)), _Block(6), _Block(6)),
        *(head, neurons.LIF(threshold=0.1), last, neurons.LIF(threshold=0.1)),
    )
    return net.eval()


@pytest.fixture(scope="module")
def traced(model: nn.Module) -> SpikingGraph:
    return snngraph.trace(model, torch.randn(4, 2, 2, 8, 8))


@pytest.mark.parametrize("precision", ["fp32", "exact"])
def test_engines_do_not_change(model: nn.Module, traced: SpikingGraph, precision: str) -> None:
    plain = pipelines.default("openvino", "fp32")(traced).graph
    plain = Pipeline(EXACT)(plain).graph if precision == "exact" else plain
    fused = snngraph.optimize(plain, passes=["fuse_modules"])
    assert _fused(fused) == ["conv_lif"] * 3 + ["linear_lif"] * 2
    x = torch.randn(4, 32, 2, 8, 8)
    for target in ("openvino", "onnxruntime"):
        engines = [snngraph.build(graph, target, precision, batch_size="dynamic", taps=True) for graph in (plain, fused)]
        assert engines[0].model == engines[1].model
        assert engines[0].layers == engines[1].layers
        for a, b in zip(_all(engines[0].run(x)), _all(engines[1].run(x)), strict=True):
            assert torch.equal(a, b)
    engine = snngraph.build(fused, "onnxruntime", precision, batch_size=8)
    assert engine.manifest.passes[-1] == "fuse_modules"
    for graph in (traced, fused, model):
        report = snngraph.verify(graph, engine, x)
        assert [layer.name for layer in report.layers] == [info.name for info in traced.neurons]
        assert report.ok, report.problems
        assert any(layer.rate > 0.01 for layer in report.layers)


def test_module_paths_and_source_lines_come_back(traced: SpikingGraph) -> None:
    graph = pipelines.default()(traced).graph
    back = ExpandFused()(FuseModules()(graph).graph).graph
    assert back.format() == graph.format()
    found = {node.name: node for node in back.nodes}
    kept = [n for n in graph.nodes if n.op == "call_function" and n.target is not operator.getitem and "module_path" in n.meta]
    assert len(kept) > 10
    for node in kept:
        keys = ("module_path", "source", "neuron")
        assert [node.meta.get(k) for k in keys] == [found[node.name].meta.get(k) for k in keys]


def test_a_back_end_that_takes_fused_nodes_gets_them(traced: SpikingGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(is_op(n, *FUSED) for n in snngraph.optimize(traced).nodes)
    monkeypatch.setattr(OpenVINOBackend, "fused", ("linear_lif",))
    graph = snngraph.optimize(traced)
    assert _fused(graph) == ["linear_lif"] * 2
    both = FuseModules()(graph).graph
    assert _fused(both) == ["conv_lif"] * 3 + ["linear_lif"] * 2
    with pytest.raises(UnsupportedOperatorError, match="linear_lif") as refused:  # it takes them and has no translation: said so
        snngraph.build(both)
    assert "conv_lif" not in str(refused.value)


# -- the operators ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_opcheck(digits: bool, pool: bool) -> None:
    x, weight, one = torch.randn(6, 2, 6, 6).round(), torch.randn(4, 2, 3, 3), ops.scalar(1.0)
    options: dict[str, Any] = {"v_reset": ops.scalar(0.0), "layer_bias": torch.randn(4), "levels": [0, 1], "with_h": True}
    options |= {"pool": [2, 2], "pool_stride": [1, 1], "pool_padding": [1, 1]} if pool else {}
    layers: tuple[torch.Tensor, ...] = (weight, torch.randn(5, 6))
    if digits:
        split = [split_weight(w, 3) for w in layers]
        layers, scales = tuple(w.digits for w in split), [w.scales.float() for w in split]
    sizes = ([1, 1], [0, 0], [1, 1], 1)
    for_conv = {**options, "scales": scales[0]} if digits else options
    torch.library.opcheck(CONV_LIF, (x, layers[0], *sizes, 3, one, one, one), for_conv)
    linear = {"v_reset": ops.scalar(0.0), "syn_decay": ops.scalar(0.5), **({"scales": scales[1]} if digits else {})}
    torch.library.opcheck(LINEAR_LIF, (x, layers[1], 3, one, one, one), linear)


def test_what_is_wrong_with_a_fused_node() -> None:
    layer = "weight=w[6, 8], decay=0.5, threshold=0.3"
    for option, text in (("steps=2", "it runs over 2 steps, the graph has 4"), ("v_reset=None", "a hard reset without v_reset")):
        with pytest.raises(GraphCheckError, match=text):
            parse(f"x[4, N, 8] -> return linear_lif(flatten_time(x), {layer}, {option})")


def test_flattened_layers_are_fused() -> None:
    before = parse("x[3, N, 8] -> return lif(linear(x, w[6, 8]), threshold=0.3)")
    assert not FuseModules()(before).changed
    assert _fused(Pipeline((FlattenTime(), Canonicalize(), FuseModules()))(before).graph) == ["linear_lif"]


def test_the_names_of_the_operators_are_checked_on_the_command_line() -> None:
    with pytest.raises(PassError, match="pool_lif"):
        registry.pipeline(["fuse_modules(operators=('pool_lif',))"])
