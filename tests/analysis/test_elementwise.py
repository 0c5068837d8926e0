from __future__ import annotations

import torch
from torch import fx

from snngraph.analysis.elementwise import Elementwise, Program
from snngraph.analysis.families import Families
from snngraph.graph import SpikingGraph
from snngraph.testing import parse


def node(graph: SpikingGraph, name: str) -> fx.Node:
    return next(n for n in graph.nodes if n.name == name)


def test_a_program_runs_from_where_it_is_cut() -> None:
    graph = parse(
        "x[2, N, 3] ->\na = linear(x, w[3, 3])\nb = a * d[3]\nc = b + a\ne = relu(c) - full_like(c, 2.0)\nlinear(e, u[3, 3])"
    )
    area = Elementwise(graph)
    a, b, c, e = (node(graph, name) for name in "abce")
    assert [n in area for n in (a, b, c, e)] == [False, True, True, True]
    assert area.ancestors(e) == {a, b, c, e, node(graph, "relu")}
    program = Program(area, [e], area.ancestors(e) - {a})
    assert program.leaves == [a]
    assert program.extent == torch.Size([3])
    values = torch.tensor([1.0, -4.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    d = graph.tensors()["d"]
    found = program.run({a: values})
    assert set(found) == {e}
    assert torch.equal(found[e].squeeze(), torch.relu(values.reshape(2, 1) * d + values.reshape(2, 1)) - 2.0)


def test_ties_are_decided_as_real_numbers_are() -> None:
    graph = parse("x[2, N, 3] -> a = relu(x); b = a / 0.3 - 1.0; gt.Scalar(b, 0), ge.Scalar(b, 0), floor(a / 0.3)")
    area = Elementwise(graph)
    results = list(graph.output_nodes)
    program = Program(area, results, area.descendants(node(graph, "a")) - {node(graph, "a")})
    almost = torch.full((1, 1, 1, 1), 0.3 * (1 - 1e-15), dtype=torch.float64)
    plain = [program.run({node(graph, "a"): almost})[r].item() for r in results]
    tied = [program.run({node(graph, "a"): almost}, ties=True)[r].item() for r in results]
    assert plain == [False, False, 0.0]
    assert tied == [False, True, 1.0]


def test_what_depends_on_no_input_is_constant() -> None:
    graph = parse("x[2, N, 3] -> z = zeros_like(x); p = z * 3.0; q = x * 0.0; r = p + q; r + x")
    area = Elementwise(graph)
    assert [node(graph, name) in area for name in "zpqr"] == [False] * 4
    assert float(area.constant(node(graph, "r"))) == 0.0


def test_families_go_through_the_stack_of_a_layer() -> None:
    lines = ["x[2, N, 3] ->", *(f"a{t} = relu(select(x, 0, {t}))" for t in range(2)), "y = stack([a0, a1])"]
    lines += ["b0 = select(y, 0, 0) * 2.0", "b1 = select(y, 0, 1) * 2.0", "m = a0 + a1", "n = relu(m)"]
    graph = parse("\n".join([*lines, "b0, b1, n"]))
    families = Families(graph, {})
    b0, b1, m = (node(graph, name) for name in ("b0", "b1", "m"))
    assert families.counterpart(b1, 0, [m, b0]) is b0
    assert families.of(b0) == (0, families.of(b1)[1])  # type: ignore[index]
    assert families.of(m) is None
    assert families.of(node(graph, "y"))[0] == -1  # type: ignore[index]
