from __future__ import annotations

from typing import Any

import pytest
import torch

from snngraph.errors import GraphCheckError, GraphError, GraphParseError
from snngraph.format import canonical_format, parse
from snngraph.graph import LIF, SpikingGraph, is_op
from snngraph.testing import assert_equivalent, assert_graph, random_inputs

TEXT = """x[T=3, N, 2, 6, 6] ->
view = reshape(x, [-1, 2, 6, 6])  # [6, 2, 6, 6]
convolution = convolution(view, "net.0.weight"[4, 2, 3, 3], None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)  # [6, 4, 6, 6]
reshape = reshape(convolution, [3, -1, 4, 6, 6])  # [3, 2, 4, 6, 6]
lif = lif(reshape, bias="b"[4, 1, 1], decay=0.5, fire='>', threshold=1.0, v=0.0, v_reset=0.0)  # [3, 2, 4, 6, 6]
mean = mean.dim(lif.s, [0])  # [2, 4, 6, 6]
return mean, lif.v
"""


def test_text_is_stable_and_reads_back() -> None:
    graph = parse(TEXT)
    assert graph.format() == TEXT
    assert parse(graph.format()).format() == TEXT
    graph.check()


def test_text_of_a_static_graph_reads_back() -> None:
    text = parse("x[N, 2], T=4 -> lif(expand(reshape(x, [1, -1, 2]), [4, -1, 2])).s").format()
    assert text.startswith("x[N, 2], T=4 ->")
    assert parse(text).format() == text


def test_what_a_graph_knows() -> None:
    graph = parse(TEXT)
    assert (graph.time.steps, graph.time.dims, graph.batch, graph.free_batch) == (3, (0,), 2, True)
    assert [(s.name, s.shape, s.time_dim, s.batch_dim) for s in graph.inputs] == [("x", (3, 2, 2, 6, 6), 0, 1)]
    assert [(s.shape, s.time_dim, s.batch_dim) for s in graph.outputs] == [((2, 4, 6, 6), None, 0), ((2, 4, 6, 6), None, 0)]
    (layer,) = graph.neurons
    assert (layer.name, layer.shape, layer.neurons) == ("lif", (4, 6, 6), 144)
    assert repr(graph) == "<SpikingGraph parsed: 5 operators, 1 neuron layers, 3 steps>"


def test_it_runs_at_any_batch_size_and_in_other_types() -> None:
    graph = parse(TEXT)
    for batch in (1, 2, 5):
        (x,) = random_inputs(graph, batch)
        y, v = graph(x)
        assert y.shape == v.shape == (batch, 4, 6, 6)
        assert y.dtype == torch.float64
    assert graph.to(torch.float32)(x)[0].dtype == torch.float32
    assert graph(x.float())[0].dtype == torch.float64
    assert graph.module.float()(x)[0].dtype == torch.float32


def test_shapes_at_another_batch_size() -> None:
    wide = parse(TEXT).at_batch(7)
    assert wide.inputs[0].shape == (3, 7, 2, 6, 6)
    assert wide.outputs[0].shape == (7, 4, 6, 6)
    wide.check()


def test_canonical_text_forgets_names_and_order() -> None:
    a = parse("x[3, N, 4] -> p = x * 2.0; q = relu(x); p + q")
    b = parse("y[3, N, 4] -> second = relu(y); first = y * 2.0; first + second")
    assert canonical_format(a) == canonical_format(b)
    assert_graph(a, "z[3, N, 4] -> z * 2.0 + relu(z)")
    with pytest.raises(AssertionError, match=r"\+v0 = mul"):
        assert_graph(a, "z[3, N, 4] -> z * 3.0 + relu(z)")


def test_equivalence_finds_a_flip_and_an_error() -> None:
    a = parse("x[3, N, 40] -> s = lif(x, decay=0.5); s")
    b = parse("x[3, N, 40] -> s = lif(x, decay=0.4); s")
    with pytest.raises(AssertionError, match="spikes of s differ"):
        assert_equivalent(a, b)
    with pytest.raises(AssertionError, match="output 0 differs by"):
        assert_equivalent(parse("x[3, N, 4] -> x * 2.0"), parse("x[3, N, 4] -> x * 2.000001"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x * 2", "no '->'"),
        ("x -> x * 2", "no input before"),
        ("x[a, N] -> x", "expected integers"),
        ("x[3, N, 4] -> y * 2", "y is not defined"),
        ("x[3, N, 4] -> nothing(x)", "nothing"),
        ("x[3, N, 4] -> x.shape", "not part of the language"),
        ("x[3, N, 4] -> linear(x, w[5, 9])", "linear"),
        ("x[3, N, 4] -> y = x * 2", "one expression at the end"),
        ("x[3, N, 4] -> lif(x, 0.5)", "takes x alone by position"),
        ("x[3, N, 4] -> x ** 2", "not part of the language"),
        ("x[3, N, 4] -> linear(linear(x, w[4, 4]), w[5, 4])", "has shape"),
        ("x[3, N, 4] -> __import__('os')", "import"),
    ],
)
def test_text_that_is_no_graph(text: str, message: str) -> None:
    with pytest.raises(GraphParseError, match=message):
        parse(text)


# -- check ---------------------------------------------------------------------------------------------------------------------


def find(graph: SpikingGraph, target: Any) -> Any:
    return next(n for n in graph.nodes if is_op(n, target))


def test_check_refuses_mutation_and_unknown_operators() -> None:
    graph = parse("x[3, N, 4] -> relu(x) * 2.0")
    find(graph, torch.ops.aten.relu.default).target = torch.ops.aten.relu_.default
    with pytest.raises(GraphCheckError, match=r"in place(.|\n)*> relu"):
        graph.check()
    graph = parse("x[3, N, 4] -> relu(x) * 2.0")
    find(graph, torch.ops.aten.relu.default).target = torch.relu
    with pytest.raises(GraphCheckError, match="no ATen or snn operator"):
        graph.check()


def test_check_refuses_inconsistent_shapes() -> None:
    graph = parse("x[3, N, 4] -> relu(x) * 2.0")
    node = find(graph, torch.ops.aten.relu.default)
    node.meta["val"] = node.meta["val"].new_empty(3, 2, 5)
    with pytest.raises(GraphCheckError, match=r"the recorded shape is .*5.* the operator gives .*4"):
        graph.check()
    node.target, node.args = torch.ops.aten.linear.default, (node.args[0], node.args[0])
    with pytest.raises(GraphCheckError, match="does not accept its arguments"):
        graph.check()


def test_check_refuses_two_time_lengths() -> None:
    with pytest.raises(GraphCheckError, match="it runs over 2 steps, the graph has 4"):
        parse("x[4, N, 6] -> lif(reshape(x, [2, -1, 12])).s")


def test_check_refuses_parameters_that_do_not_broadcast() -> None:
    graph = parse("x[4, N, 6] -> lif(x, threshold=w[6]).s")
    with graph.graph.inserting_before(find(graph, LIF)):
        other = graph.add_tensor("other", torch.ones(4, 1, 6, dtype=torch.float64))
    node = find(graph, LIF)
    node.args = (*node.args[:3], other)
    with pytest.raises(GraphCheckError, match="does not broadcast"):
        graph.check()


def test_check_refuses_a_state_with_two_owners() -> None:
    with pytest.raises(GraphCheckError, match="its state is read by 2 neurons"):
        parse("x[4, N, 6] -> c = select(x, 0, 0); a = lif_step(c); b = lif_step(c, v=a.v); d = lif_step(c, v=a.v); b.s + d.s")
    lines = "; ".join(f"s{t} = lif_step(c{f', v=s{t - 1}.v' if t else ''})" for t in range(3))
    with pytest.raises(GraphCheckError, match="longer than the 2 time steps"):
        parse(f"x[2, N, 6] -> c = select(x, 0, 0); {lines}; s2.s")


def test_check_refuses_a_dangling_use() -> None:
    graph = parse("x[3, N, 4] -> relu(x) * 2.0")
    other = parse("x[3, N, 4] -> sigmoid(x)")
    find(graph, torch.ops.aten.mul.Tensor).args = (find(other, torch.ops.aten.sigmoid.default), 2.0)
    with pytest.raises(GraphCheckError, match="dangling"):
        graph.check()


def test_a_fixed_batch_has_no_other_shapes() -> None:
    graph = parse("x[3, N, 4] -> relu(x)")
    graph.facts = type(graph.facts)(**{f: getattr(graph.facts, f) for f in graph.facts.__slots__} | {"free_batch": False})
    with pytest.raises(GraphError, match="batch 2 only"):
        graph.at_batch(3)
