from __future__ import annotations

from dataclasses import replace

import pytest

from snngraph import pipelines
from snngraph.graph import SpikingGraph
from snngraph.passes.canonicalize import Canonicalize
from snngraph.passes.merge_time import MergeTime
from snngraph.passes.unroll_time import UnrollTime
from snngraph.testing import assert_equivalent, assert_graph, parse


def neuron(name: str, x: str, count: int = 3) -> list[str]:
    return [f"{name}{t} = lif_step({x}{t}, decay=0.5{f', v={name}{t - 1}.v' if t else ''})" for t in range(count)]


def test_a_layer_and_its_neuron() -> None:
    lines = [f"c{t} = linear(select(x, 0, {t}), w[4, 6])" for t in range(3)] + neuron("s", "c")
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "stack([s0.s, s1.s, s2.s])"]))
    result = pipelines.capture()(before)
    assert result.changed
    assert_graph(result.graph, "x[3, N, 6] -> c = linear(flatten_time(x), w[4, 6]); lif(split_time(c), decay=0.5).s")
    assert_equivalent(before, result.graph)


def test_batch_first_input_and_output() -> None:
    lines = [f"c{t} = linear(select(x, 1, {t}), w[4, 6])" for t in range(3)] + neuron("s", "c")
    before = parse("x[N, T=3, 6] -> " + "\n".join([*lines, "stack([s0.s, s1.s, s2.s], 1)"]))
    after = pipelines.capture()(before).graph
    assert_graph(
        after,
        "x[N, T=3, 6] -> c = linear(reshape(permute(x, [1, 0, 2]), [-1, 6]), w[4, 6]);"
        "permute(lif(reshape(c, [3, -1, 4]), decay=0.5).s, [1, 0, 2])",
    )
    assert_equivalent(before, after)


def test_a_second_layer_reads_the_stack_of_the_first() -> None:
    lines = [f"c{t} = linear(select(x, 0, {t}), w[4, 6])" for t in range(3)] + neuron("s", "c")
    lines += ["y = stack([s0.s, s1.s, s2.s])"]
    lines += [f"d{t} = linear(select(y, 0, {t}), u[5, 4])" for t in range(3)] + neuron("o", "d")
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "stack([o0.s, o1.s, o2.s])"]))
    after = pipelines.capture()(before).graph
    assert after.format().count("lif(") == 2
    assert "lif_step" not in after.format()
    assert_equivalent(before, after)


@pytest.mark.parametrize("total", ["s0.s + s1.s + s2.s", "(s0.s + 0.0) + s1.s + s2.s"])
def test_a_running_sum_is_a_sum_over_time(total: str) -> None:
    before = parse("x[3, N, 6] -> " + "\n".join([*(f"c{t} = select(x, 0, {t})" for t in range(3)), *neuron("s", "c"), total]))
    after = pipelines.capture()(before).graph
    assert_graph(after, "x[3, N, 6] -> sum.dim_IntList(lif(x, decay=0.5).s, [0])")
    assert_equivalent(before, after)


def test_the_state_after_the_last_step() -> None:
    lines = [f"c{t} = select(x, 0, {t})" for t in range(3)] + neuron("s", "c")
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "s2.s, s2.v"]))
    after = pipelines.capture()(before).graph
    assert_graph(after, "x[3, N, 6] -> l = lif(x, decay=0.5); select(l.s, 0, 2), l.v")
    assert_equivalent(before, after)


def test_a_static_input_is_the_same_at_every_step() -> None:
    lines = ["c = linear(x, w[4, 6])"] + [f"s{t} = lif_step(c, decay=0.5{f', v=s{t - 1}.v' if t else ''})" for t in range(3)]
    before = parse("k[3, N, 1], x[N, 6] -> " + "\n".join([*lines, "stack([s0.s, s1.s, s2.s]), k * 1.0"]))
    after = pipelines.capture()(before).graph
    assert after.format().count("linear(") == 1
    assert "lif_step" not in after.format()
    assert_equivalent(before, after)


def test_the_membrane_before_the_threshold() -> None:
    lines = [f"c{t} = select(x, 0, {t})" for t in range(3)] + neuron("s", "c")
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "stack([s0.h, s1.h, s2.h])"]))
    after = pipelines.capture()(before).graph
    assert_graph(after, "x[3, N, 6] -> lif(x, decay=0.5, with_h=True).h")
    assert_equivalent(before, after)


def test_a_recurrent_connection_stays_stepped() -> None:
    lines = ["c0 = select(x, 0, 0)", "s0 = lif_step(c0, decay=0.5)"]
    for t in (1, 2):
        lines += [f"c{t} = select(x, 0, {t}) + s{t - 1}.s * 0.5", f"s{t} = lif_step(c{t}, decay=0.5, v=s{t - 1}.v)"]
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "stack([s0.s, s1.s, s2.s])"]))
    after = pipelines.capture()(before).graph
    assert after.format().count("lif_step(") == 3
    assert_equivalent(before, after)


def test_a_recurrent_layer_between_others() -> None:
    """The layer before and the layer after merge; the recurrent one between them stays stepped."""
    lines = [f"a{t} = linear(select(x, 0, {t}), w[6, 6])" for t in range(3)] + neuron("p", "a")
    lines += ["s0 = lif_step(p0.s, decay=0.5)"]
    for t in (1, 2):
        lines += [f"c{t} = p{t}.s + s{t - 1}.s * 0.5", f"s{t} = lif_step(c{t}, decay=0.5, v=s{t - 1}.v)"]
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "linear(flatten_time(stack([s0.s, s1.s, s2.s])), u[5, 6])"]))
    after = pipelines.capture()(before).graph
    text = after.format()
    assert (text.count("lif("), text.count("lif_step("), text.count("linear(")) == (1, 3, 2)
    assert_equivalent(before, after)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["s0 = lif_step(select(x, 0, 0), decay=0.5)", "s1 = lif_step(select(x, 0, 1), decay=0.25, v=s0.v)"], "decay differs"),
        (
            ["s0 = lif_step(select(x, 0, 0))", "s1 = lif_step(select(x, 0, 1), v=s0.v)", "q = s0.v * 2.0"],
            "state v after a step is read",
        ),
    ],
)
def test_refusals_say_why(lines: list[str], reason: str) -> None:
    output = "stack([s0.s, s1.s])" + (", q" if len(lines) == 3 else "")
    before = parse("x[2, N, 6] -> " + "\n".join([*lines, output]))
    result = MergeTime()(Canonicalize()(before).graph)
    assert any(reason in n.text for n in result.notes if n.kind == "refused")
    assert_equivalent(before, result.graph)


def test_a_synapse_that_does_not_go_on_is_refused() -> None:
    steps = [f"s{t} = lif_step(select(x, 0, {t}), syn_decay=0.9{f', v=s{t - 1}.v' if t else ''})" for t in range(3)]
    before = parse("x[3, N, 6] -> " + "\n".join([*steps, "stack([s0.s, s1.s, s2.s])"]))
    result = MergeTime()(Canonicalize()(before).graph)
    assert any("synaptic current does not go on" in n.text for n in result.notes)
    assert_equivalent(before, result.graph)
    steps = [f"s{t} = lif_step(select(x, 0, {t}), syn_decay=0.9{f', v=s{t - 1}.v, i=s{t - 1}.i' if t else ''})" for t in range(3)]
    before = parse("x[3, N, 6] -> " + "\n".join([*steps, "stack([s0.s, s1.s, s2.s])"]))
    after = pipelines.capture()(before).graph
    assert_graph(after, "x[3, N, 6] -> lif(x, syn_decay=0.9).s")
    assert_equivalent(before, after)


def test_a_layer_fed_with_the_membrane_of_another_is_refused() -> None:
    lines = [f"a{t} = lif_step(select(x, 0, {t}), decay=0.5{f', v=a{t - 1}.v' if t else ''})" for t in range(3)]
    lines += [f"b{t} = lif_step(a{t}.v, decay=0.5, threshold=0.3{f', v=b{t - 1}.v' if t else ''})" for t in range(3)]
    before = parse("x[3, N, 6] -> " + "\n".join([*lines, "stack([b0.s, b1.s, b2.s])"]))
    result = pipelines.capture()(before)
    assert any("state v after a step is read by" in n.text for n in result.notes)
    assert_equivalent(before, result.graph)


@pytest.mark.parametrize("body", ["a{t} + reshape(a{t}, [-1])", "linear(a{t}, a{t})"])
def test_operators_that_mix_samples_are_refused(body: str) -> None:
    lines = [f"a{t} = select(x, 0, {t})" for t in range(3)] + [f"c{t} = " + body.replace("{t}", str(t)) for t in range(3)]
    before = parse("x[3, N, 1] -> " + "\n".join([*lines, "stack([c0, c1, c2])"]))
    result = MergeTime()(before)
    assert any("may mix samples" in n.text for n in result.notes)
    assert_equivalent(before, result.graph)


def test_unrolling_a_gain_of_all_steps() -> None:
    before = parse("x[2, N, 6] -> lif(x, decay=0.5, gain=g[1, 1, 6]).s")
    assert_equivalent(before, UnrollTime()(before).graph, tolerance=0.0)


def test_unrolling_writes_every_step_out() -> None:
    before = parse("x[2, N, 6] -> lif(x, decay=0.5, gain=g[2, 1, 6]).s")
    result = UnrollTime()(before)
    lines = ["s0 = lif_step(select(x, 0, 0), decay=0.5, gain=select(g[2, 1, 6], 0, 0))"]
    lines += ["s1 = lif_step(select(x, 0, 1), decay=0.5, gain=select(g[2, 1, 6], 0, 1), v=s0.v)", "stack([s0.s, s1.s])"]
    assert_graph(result.graph, "x[2, N, 6] -> " + "\n".join(lines))
    assert_equivalent(before, result.graph, tolerance=0.0)
    assert not UnrollTime()(result.graph).changed


def test_the_size_does_not_grow_with_time() -> None:
    sizes = set()
    for count in (2, 7):
        lines = [f"c{t} = linear(select(x, 0, {t}), w[4, 6])" for t in range(count)] + neuron("s", "c", count)
        stack = f"stack([{', '.join(f's{t}.s' for t in range(count))}])"
        graph = parse(f"x[{count}, N, 6] -> " + "\n".join([*lines, f"mean({stack}, 0)"]))
        sizes.add(len(list(pipelines.capture()(graph).graph.nodes)))
    assert len(sizes) == 1


# -- at a fixed batch size -----------------------------------------------------------------------------------------------------


def fixed(text: str) -> SpikingGraph:
    graph = parse(text)
    graph.facts = replace(graph.facts, free_batch=False)
    return graph


@pytest.mark.parametrize("batch", [1, 2, 3])  # 3: as many samples as steps
@pytest.mark.parametrize(
    ("step", "operators"),
    [
        ("linear({x}, w[4, 6])", 6),
        ("linear({x} + q[3, 6], w[4, 6])", 9),  # with numbers for every sample
        ("linear(cat([{x}, p * 2.0], 1), w[4, 12])", 11),
        ("reshape(bmm(reshape({x}, [-1, 2, 3]), reshape(p, [-1, 3, 2])), [-1, 4])", 12),
        ("linear({x} * k[1, 6] + amax({x}, [1], True), w[4, 6])", 9),
    ],
)
def test_steps_share_a_dimension_with_what_leads_in_them(step: str, operators: int, batch: int) -> None:
    step = step.replace("q[3, 6]", f"q[{batch}, 6]")
    lines = [f"c{t} = " + step.replace("{x}", f"select(x, 0, {t})") for t in range(3)] + neuron("s", "c")
    before = fixed(f"x[T=3, {batch}, 6] -> p = mean.dim(x, [0])\n" + "\n".join([*lines, "stack([s0.s, s1.s, s2.s])"]))
    after = pipelines.capture()(before).graph
    assert "lif_step" not in after.format()
    assert after.format().count(" = ") <= operators
    assert_equivalent(before, after)


def test_frames_without_a_batch() -> None:
    lines = [f"c{t} = reshape(conv2d(slice(x, 0, {t}, {t + 1}), w[4, 2, 3, 3], None, padding=1), [4, 6, 6])" for t in range(3)]
    text = "x[T=3, 2, 6, 6] -> " + "\n".join([*lines, *neuron("s", "c"), "stack([s0.s, s1.s, s2.s])"])
    before = fixed(text)
    after = pipelines.capture()(before).graph
    assert_graph(after, "x[T=3, 2, 6, 6] -> lif(conv2d(x, w[4, 2, 3, 3], None, padding=1), decay=0.5).s")
    assert_equivalent(before, after)


@pytest.mark.parametrize(
    "body", ["{x} - mean.dim({x}, [0], True)", "{x} * amax({x}, [0])", "linear({x}, {x})", "softmax({x}, 0)"]
)
def test_what_mixes_samples_stays_apart_at_a_fixed_batch(body: str) -> None:
    lines = [f"c{t} = " + body.replace("{x}", f"select(x, 0, {t})") for t in range(3)] + neuron("s", "c")
    before = fixed("x[T=3, 4, 4] -> " + "\n".join([*lines, "stack([s0.s, s1.s, s2.s])"]))
    after = pipelines.capture()(before).graph
    assert after.format().count("lif_step(") == 3
    assert_equivalent(before, after)
