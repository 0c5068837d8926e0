from __future__ import annotations

import math
import operator
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import snngraph
from snngraph.graph import RESHAPE, SpikingGraph, is_op
from snngraph.models.pfa import PFAByRank
from snngraph.neurons import LIF
from snngraph.passes.base import Pipeline
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.compose_low_rank import ComposeLowRank
from snngraph.passes.eliminate_dead import EliminateDead
from snngraph.passes.flatten_time import FlattenTime
from snngraph.passes.fold_batch_norm import FoldBatchNorm
from snngraph.passes.hoist_static import HoistStatic
from snngraph.passes.merge_time import MergeTime
from snngraph.testing import assert_equivalent, assert_graph, parse, random_inputs

WHOLE = Pipeline(
    (
        *(Canonicalize(), MergeTime(), Canonicalize(), ComposeLowRank(), HoistStatic()),
        *(FoldBatchNorm(), FlattenTime(), Canonicalize(), EliminateDead()),
    )
)

# -- spellings of the loop -----------------------------------------------------------------------------------------------------

Map = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
SPELLINGS: list[Map] = []


def spelling(function: Map) -> Map:
    SPELLINGS.append(function)
    return function


@spelling
def by_broadcasting(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    total: Tensor | float = 0.0
    for r in range(S.shape[1]):
        total = total + w[r] * S[:, r][:, None, None] * F[:, r][:, :, None, None, None] * G[:, r][:, None, :, None, None]
    assert isinstance(total, Tensor)
    return total


@spelling
def backwards_and_in_place(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    total = torch.zeros_like(S[:, 0])[:, None, None].repeat(1, F.shape[2], G.shape[2], 1, 1)
    for s, f, g, weight in reversed(list(zip(S.unbind(1), F.unbind(1), G.unbind(1), w, strict=True))):
        pair = g.unsqueeze(1) * f.unsqueeze(2)
        total += (pair[..., None, None] * s[:, None, None]) * weight
    return total


@spelling
def by_matrices(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    height, width = S.shape[2:]
    total = torch.zeros(S.shape[0], F.shape[2], G.shape[2], height, width, dtype=S.dtype)
    for r in range(S.shape[1]):
        outer = torch.bmm(F[:, r].unsqueeze(2), G[:, r].unsqueeze(1)).flatten(1).unsqueeze(2)
        full = torch.bmm(outer, S[:, r].flatten(1).unsqueeze(1))
        total = total + w[r] * full.reshape(-1, F.shape[2], G.shape[2], height, width)
    return total


@spelling
def by_einsum(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    maps = [torch.einsum("nt,nc,nhw->ntchw", F[:, r], G[:, r], S[:, r]) * w[r] for r in range(S.shape[1])]
    return torch.stack(maps).sum(0)


@spelling
def a_stack_at_the_end(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    maps = [
        S[:, r : r + 1, None] * (F * w[:, None])[:, r, :, None, None, None] * G[:, r, None, :, None, None]
        for r in range(S.shape[1])
    ]
    return torch.stack(maps, -1).mean(-1)


@spelling
def a_tree_of_chunks(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    s, f, g = S.split(1, 1), F.split(1, 1), G.chunk(G.shape[1], 1)
    terms = [
        torch.matmul(f[r].transpose(1, 2), g[r])[..., None, None] * s[r].unsqueeze(1) / 0.5 * w[r] * 0.5
        for r in range(S.shape[1])
    ]
    while len(terms) > 1:
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + ([terms[-1]] if len(terms) % 2 else [])
    total: Tensor = terms[0]
    return total


@spelling
def a_gate_for_every_rank(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    """The factors are computed in the loop, so that there is no tensor of all of them."""
    terms = [torch.einsum("nt,nc,nhw->ntchw", F[:, r].tanh(), G[:, r].exp(), S[:, r].sigmoid()) for r in range(S.shape[1])]
    total = w[0] * terms[0]
    for r in range(1, len(terms)):
        total += w[r] * terms[r]
    return total


@spelling
def by_index_along_several_dimensions(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    batch_last, both = S.permute(1, 2, 3, 0), torch.cat([F, G], 2)
    total: Tensor | None = None
    for r in range(S.shape[1]):
        row = torch.index_select(both, 1, torch.tensor([r]))
        f, g = row[:, 0, : F.shape[2]], row[:, 0, F.shape[2] :]
        term = torch.einsum("nt,nc,hwn->ntchw", f, g, batch_last[r]) * w[torch.tensor(r)]
        total = term if total is None else term.add(total)
    assert total is not None
    return total


@spelling
def at_once(S: Tensor, F: Tensor, G: Tensor, w: Tensor) -> Tensor:
    """No loop: all maps in one tensor, R times as large as their sum."""
    maps = S[:, :, None, None] * F[:, :, :, None, None, None] * G[:, :, None, :, None, None]
    total: Tensor = (maps * w[:, None, None, None, None]).sum(1)
    return total


class Net(nn.Module):
    """A projected full attention, its map made by ``spelling``, and a neuron."""

    def __init__(self, spelling: Map, weights: str, T: int, rank: int, channels: int = 4) -> None:
        super().__init__()
        self.spelling, self.weights = spelling, weights
        self.spatial = nn.Conv2d(T, rank, 3, padding=1)
        self.temporal, self.channel = nn.Linear(channels, rank), nn.Linear(T, rank)
        self.w = nn.Parameter(torch.rand(rank))
        self.lif = LIF(tau=2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = x.transpose(0, 1)
        pooled = y.mean((3, 4))
        S = torch.sigmoid(self.spatial(y.mean(2)))
        F = torch.sigmoid(self.temporal(pooled)).transpose(1, 2)
        G = torch.sigmoid(self.channel(pooled.transpose(1, 2))).transpose(1, 2)
        w = self.w * pooled.mean() if self.weights == "computed" else self.w
        w = w if self.weights == "learned" else torch.softmax(w, 0)
        spikes: Tensor = self.lif(torch.relu(self.spelling(S, F, G, w) * y).transpose(0, 1))
        return spikes


def calls(graph: SpikingGraph, name: str) -> int:
    return graph.format().count(f" = {name}(")


def maps_of_full_size(graph: SpikingGraph, size: int) -> int:
    """The products and sums that are as large as the map or larger; views are none."""
    computed = [n for n in graph.nodes if n.op == "call_function" and isinstance(n.meta["val"], Tensor)]
    views = (RESHAPE, torch.ops.aten.permute.default, torch.ops.aten.expand.default, operator.getitem)
    return sum(n.meta["val"].numel() >= size and not is_op(n, *views) for n in computed)


@pytest.mark.parametrize("weights", ["softmax", "computed"])
@pytest.mark.parametrize("function", SPELLINGS, ids=lambda f: f.__name__)
def test_a_loop_over_the_rank_is_one_product(function: Map, weights: str) -> None:
    T, rank = (3, 5) if weights != "computed" else (4, 4)  # as many ranks as steps: merge_time merges some of the loop
    x = torch.rand(T, 2, 4, 3, 5)
    before = snngraph.trace(Net(function, weights, T, rank).eval(), x)
    assert before.free_batch
    result = ComposeLowRank()(before)
    assert result.changed
    assert [n.kind for n in result.notes] == ["rewrite"], result.notes
    assert_equivalent(before, result.graph, tolerance=1e-12, batches=(1, 3))
    size = before.batch * math.prod(x.shape) // 2
    assert maps_of_full_size(result.graph, size) == 3, result.graph.format()  # the product, the gate, the relu
    assert not ComposeLowRank()(result.graph).changed
    after = WHOLE(before).graph
    assert_equivalent(before, after, tolerance=1e-12, batches=(1, 3))
    assert not ComposeLowRank()(after).changed


def test_the_authors_loop() -> None:
    before = snngraph.trace(nn.Sequential(PFAByRank(3, 4, 6), LIF(tau=2.0)).eval(), torch.rand(3, 2, 4, 5, 5))
    result = ComposeLowRank()(before)
    assert_equivalent(before, result.graph, tolerance=1e-12)
    assert maps_of_full_size(result.graph, before.batch * 3 * 4 * 25) == 3, result.graph.format()
    assert ComposeLowRank()(result.graph).graph is result.graph


def test_a_batch_that_is_fixed() -> None:
    class Fixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = super().forward(x)
            return out * torch.arange(x.shape[1], dtype=x.dtype)[:, None, None, None]

    before = snngraph.trace(Fixed(by_broadcasting, "learned", 3, 5).eval(), torch.rand(3, 2, 4, 3, 5))
    assert not before.free_batch
    result = ComposeLowRank()(before)
    assert "bmm" in result.graph.format()
    assert_equivalent(before, result.graph, tolerance=1e-12)


@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_engine_of_the_product(target: str) -> None:
    before = snngraph.trace(Net(by_matrices, "learned", 3, 5).eval(), torch.rand(3, 2, 4, 3, 5))
    engine = snngraph.build(WHOLE(before).graph, target=target, precision="fp32", batch_size="dynamic")
    for batch in (1, 3):
        (x,) = random_inputs(before, batch)
        x = x.float()
        assert np.mean(np.asarray(engine.run(x.numpy())) != before(x).numpy()) < 0.01


# -- graphs as text ------------------------------------------------------------------------------------------------------------

HEAD = "x[3, N, 2], a[N, 4, 3], b[N, 4, 5] -> "  # time is in x alone


def outer(r: int, a: str = "a", b: str = "b") -> str:
    return f"reshape(select({a}, 1, {r}), [-1, 3, 1]) * reshape(select({b}, 1, {r}), [-1, 1, 5])"


PRODUCT = "bmm(permute(a, [0, 2, 1]), b)"


def test_a_sum_of_outer_products() -> None:
    before = parse(HEAD + f"m = {' + '.join(outer(r) for r in range(4))}; x * 1.0, m")
    result = ComposeLowRank()(before)
    assert_graph(result.graph, HEAD + f"x * 1.0, {PRODUCT}")
    assert_equivalent(before, result.graph, tolerance=1e-12)
    assert not ComposeLowRank()(result.graph).changed


def test_signs_and_weights() -> None:
    before = parse(HEAD + f"m = {outer(2)} * 2.0 - {outer(0)} * 0.5 - {outer(1)}; x * 1.0, m + neg({outer(3)})")
    result = ComposeLowRank()(before)
    assert_graph(
        result.graph,
        HEAD
        + "x * 1.0, bmm(permute(w[4] * permute(a, [0, 2, 1]), [0, 1, 2]), b)".replace(
            "permute(w[4] * permute(a, [0, 2, 1]), [0, 1, 2])", "w[4] * permute(a, [0, 2, 1])"
        ),
    )
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_one_weight_for_all() -> None:
    before = parse(HEAD + f"x * 1.0, {' + '.join(f'{outer(r)} * 0.25' for r in range(4))}")
    result = ComposeLowRank()(before)
    assert_graph(result.graph, HEAD + "x * 1.0, bmm(permute(a, [0, 2, 1]) * 0.25, b)")
    assert_equivalent(before, result.graph, tolerance=1e-12)


@pytest.mark.parametrize(
    ("ranks", "taken"),
    [((2, 1), "slice.Tensor"), ((3, 0), "index_select")],
)
def test_some_of_the_slices(ranks: tuple[int, ...], taken: str) -> None:
    before = parse(HEAD + f"x * 1.0, {' + '.join(outer(r) for r in ranks)}")
    result = ComposeLowRank()(before)
    assert calls(result.graph, taken) == 2
    assert calls(result.graph, "bmm") == 1
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_other_entries_of_every_factor() -> None:
    before = parse(HEAD + "x * 1.0, " + " + ".join(outer(r).replace(f"(b, 1, {r}", f"(b, 1, {(r + 1) % 4}") for r in range(4)))
    result = ComposeLowRank()(before)
    assert "bmm" in result.graph.format()
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_entries_of_two_dimensions_at_once() -> None:
    head = "x[3, N, 2], a[N, 2, 3, 2], b[N, 4, 5] -> "
    factor = "reshape(select(select(a, 1, {p}), 2, {q}), [-1, 3, 1]) * reshape(select(b, 1, {r}), [-1, 1, 5])"
    terms = [factor.format(p=r // 2, q=r % 2, r=r) for r in range(4)]
    before = parse(head + f"x * 1.0, {' + '.join(terms)}")
    result = ComposeLowRank()(before)
    assert calls(result.graph, "bmm") == 1
    assert_equivalent(before, result.graph, tolerance=1e-12)


SOME = f"{outer(0)} + c + {outer(1)} + 2.0 - c * c + {outer(3)}"


def test_what_does_not_belong_stays_added() -> None:
    rest = "reshape(mean(a, 2), [-1, 4, 1]) * 1.0"
    before = parse(f"x[3, N, 2], a[N, 4, 3], b[N, 4, 5], c[N, 3, 5] -> x * 1.0, {SOME}, {rest}")
    result = ComposeLowRank()(before)
    assert [calls(result.graph, name) for name in ("bmm", "sub.Tensor", "add.Tensor")] == [1, 1, 2]
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_two_sums_in_one() -> None:
    head = "x[3, N, 2], a[N, 4, 3], b[N, 4, 5], c[N, 2, 3], d[N, 2, 5] -> "
    terms = [outer(0), outer(0, "c", "d"), outer(1), outer(1, "c", "d"), outer(2)]
    before = parse(head + f"x * 1.0, {' + '.join(terms)}")
    result = ComposeLowRank()(before)
    assert calls(result.graph, "bmm") == 2
    assert_equivalent(before, result.graph, tolerance=1e-12)
    assert not ComposeLowRank()(result.graph).changed


def test_a_common_factor_is_taken_out() -> None:
    head = "x[3, N, 2], a[N, 4, 3], b[N, 4, 5], c[N, 3, 5], d[N, 1, 5] -> "
    before = parse(head + f"x * 1.0, {' + '.join(f'c * ({outer(r)}) * d' for r in range(4))}")
    result = ComposeLowRank()(before)
    assert calls(result.graph, "mul.Tensor") == 3  # x, d on the side of b, and c
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_a_factor_without_a_batch() -> None:
    before = parse("x[3, N, 2], a[N, 4, 3] -> " + "x * 1.0, " + " + ".join(outer(r, b="k[1, 4, 5]") for r in range(4)))
    result = ComposeLowRank()(before)
    assert calls(result.graph, "mm") == 1
    assert_equivalent(before, result.graph, tolerance=1e-12, batches=(1, 2, 5))


def test_groups_that_every_factor_has() -> None:
    head = "x[3, N, 2], a[N, 2, 4, 3], b[N, 2, 4, 5] -> "
    term = "reshape(select(a, 2, {r}), [-1, 2, 3, 1]) * reshape(select(b, 2, {r}), [-1, 2, 1, 5])"
    before = parse(head + "x * 1.0, " + " + ".join(term.format(r=r) for r in range(4)))
    result = ComposeLowRank()(before)
    assert calls(result.graph, "bmm") == 1
    assert_equivalent(before, result.graph, tolerance=1e-12)


def test_the_two_sums_of_a_partial_one() -> None:
    """A sum that goes on with other tensors is a sum of its own."""
    head = "x[3, N, 2], a[N, 4, 3], b[N, 4, 5], c[N, 3, 5] -> "
    before = parse(head + f"m = {outer(0)} + {outer(1)}; y = m + c; x * 1.0, y, relu(m)")
    result = ComposeLowRank()(before)
    assert calls(result.graph, "bmm") == 1
    assert_equivalent(before, result.graph, tolerance=1e-12)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (f"m = {outer(0)} + {outer(1)}; x * 1.0, m + {outer(2)} + {outer(3)}, relu(m)", "a partial sum that 2 operators read"),
        (f"m = {outer(0)}; x * 1.0, m + {outer(1)}, relu(m)", "read by others too"),
        ("x * 1.0, " + " + ".join(f"select(a, 1, {r}) * select(a, 1, {r + 2})" for r in range(2)), "hang together"),
    ],
)  # fmt: skip
def test_refusals_say_why(lines: str, reason: str) -> None:
    graph = parse(HEAD + lines)
    result = ComposeLowRank()(graph)
    assert result.graph is graph
    assert not result.changed
    (note,) = result.notes
    assert note.kind == "refused"
    assert reason in note.text


def test_a_product_that_does_not_pay_is_refused() -> None:
    terms = [f"reshape(select(a, 1, {r}), [-1, 2, 1]) * reshape(select(b, 1, {r}), [-1, 1, 2])" for r in range(3)]
    result = ComposeLowRank()(parse(f"x[3, N, 2], a[N, 3, 2], b[N, 3, 2] -> x * 1.0, {' + '.join(terms)}"))
    assert not result.changed
    assert "no larger than their factors" in result.notes[0].text


@pytest.mark.parametrize(
    "lines",
    [
        f"{outer(0)} * 2.0",
        "select(a, 1, 0) + select(a, 1, 1) * 0.5 + select(a, 1, 2)",
        "mean(a * b2, [1])",
        "a + a * b2",
        "sum.dim_IntList(a, [2])",
    ],
)
def test_other_sums_are_no_near_miss(lines: str) -> None:
    graph = parse(HEAD + f"b2 = mean(b, 2, True); x * 1.0, b2, {lines}")
    result = ComposeLowRank()(graph)
    assert result.graph is graph
    assert not result.notes


def test_many_ranks_take_linear_time() -> None:
    """Counted, not timed: every node is looked at a bounded number of times."""
    counts = []
    for rank in (40, 80):
        head = f"x[3, N, 2], a[N, {rank}, 3], b[N, {rank}, 5] -> "
        graph = parse(
            head
            + "\n".join(["m0 = " + outer(0), *(f"m{r} = m{r - 1} + {outer(r)}" for r in range(1, rank)), f"x * 1.0, m{rank - 1}"])
        )
        result = ComposeLowRank()(graph)
        assert_equivalent(graph, result.graph, tolerance=1e-12)
        counts.append(len(list(result.graph.nodes)))
    assert counts[0] == counts[1]


# -- any layout ----------------------------------------------------------------------------------------------------------------


@st.composite
def low_rank_sums(draw: st.DrawFn) -> str:
    """A loop over the rank with two to four factors: their layouts, the order of terms and factors and the views are drawn."""
    rank, sizes = draw(st.integers(2, 4)), {"t": 2, "c": 3, "h": 2, "w": 5}
    groups = draw(
        st.sampled_from([("t", "c", "hw"), ("tc", "hw"), ("t", "chw"), ("t", "c", "h", "w"), ("c", "hw"), ("tw", "ch")])
    )
    heads, factors = ["x[3, N, 2]"], []
    for k, group in enumerate(groups):
        batch = draw(st.booleans()) or k < len(groups) - 1  # two constants in one term may be folded, in others not
        layout = draw(st.permutations(["r", *group, *("N" if batch else "")]))
        name = f"f{k}"
        inside = [a for a in layout if a != "r"]
        shape = [str({"r": rank, **sizes}.get(a, a)) for a in layout]
        if batch:
            heads.append(f"{name}[{', '.join(shape)}]")
        source = name if batch else f"{name}[{', '.join(shape)}]"
        order = [inside.index(a) for a in "Ntchw" if a in inside]
        full = [-1 if a == "N" and batch else sizes[a] if a in group else 1 for a in "Ntchw"]
        factors.append((source, layout.index("r"), order, full))
    lines = []
    for r in draw(st.permutations(range(rank))):
        parts = []
        for source, dim, order, full in draw(st.permutations(factors)):
            entry = f"select({source}, {dim}, {r})"
            parts.append(f"reshape(permute({entry}, {order}), {full})")
        if draw(st.booleans()):
            parts.append(str(draw(st.sampled_from([0.5, 2.0, -1.0]))))
        if draw(st.booleans()):
            parts[-1] = f"({' * '.join(parts[-2:])})"
            del parts[-2]
        lines.append(f"m{r} = {' * '.join(parts)}")
    names = [line.partition(" ")[0] for line in lines]
    total = draw(st.sampled_from([" + ".join(names), f"sum.dim_IntList(stack([{', '.join(names)}]), [0])"]))
    after = draw(st.sampled_from(["t", "permute(t, [1, 0, 2, 3, 4])", "t + 1.5", "relu(t)"]))
    return f"{', '.join(heads)} ->\n" + "\n".join([*lines, f"t = {total}", f"x * 1.0, {after}"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=low_rank_sums())
def test_any_layout_of_the_factors(text: str) -> None:
    before = parse(text)
    for graph in (before, Canonicalize()(before).graph):
        result = ComposeLowRank()(graph)
        assert result.changed, text
        assert calls(result.graph, "mm") + calls(result.graph, "bmm") == 1, text
        assert_equivalent(before, result.graph, tolerance=1e-12, batches=(1, 2, 3))
        again = ComposeLowRank()(result.graph)
        assert not again.changed
