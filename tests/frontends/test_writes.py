from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

import snngraph
from snngraph.errors import CaptureMismatchError
from snngraph.frontends.writes import rewrite_writes
from tests.frontends.handwritten import FEATURES, IMAGES, SHAPE, STEPS, Net, assert_engines, captured, count, net

aten = torch.ops.aten
WRITES = {aten.select_scatter.default, aten.slice_scatter.default, aten.index_put.default, aten.copy.default}


def rewritten(function: Callable[[Tensor], Any], x: Tensor) -> fx.GraphModule:
    """What a function computes as functional operators, with its writes rewritten, known to give the function's bits."""
    traced = make_fx(functionalize(function), tracing_mode="fake")(x)
    tensors = {str(n.target): getattr(traced, str(n.target)) for n in traced.graph.nodes if n.op == "get_attr"}
    rewrite_writes(traced.graph, tensors)
    traced.graph.lint()
    traced.recompile()
    found, wanted = traced(x), function(x)
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    return traced


def operators(traced: fx.GraphModule) -> list[Any]:
    return [n.target for n in traced.graph.nodes if n.op == "call_function" and n.target is not operator.getitem]


X = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))


# -- single spellings ----------------------------------------------------------------------------------------------------------


def test_every_entry_written_is_a_stack() -> None:
    def fill(dim: int, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for k in range(x.shape[dim]):
            out.select(dim, k).copy_(x.select(dim, k) * 2)
        return out

    for dim in range(3):
        found = operators(rewritten(partial(fill, dim), X))
        assert found == [aten.select.int, aten.mul.Tensor] * X.shape[dim] + [aten.stack.default]


def test_some_entries_written_leave_the_others() -> None:
    def fill(x: Tensor) -> Tensor:
        out = torch.ones(5, 4, 5)
        out[1], out[2] = x[0], x[1]
        return out

    assert operators(rewritten(fill, X))[-4:] == [aten.slice.Tensor, aten.stack.default, aten.slice.Tensor, aten.cat.default]


def test_what_was_written_is_read() -> None:
    def carry(x: Tensor) -> Any:
        memory = torch.zeros(4, 4, 5)
        for t in range(3):
            memory[t + 1] = memory[t] * 0.5 + x[t]
        return memory[3], memory[1:3], memory[0]

    found = operators(rewritten(carry, X))
    assert not WRITES & set(found)
    assert found.count(aten.stack.default) == 1, "the two entries that are read together"


def test_writes_into_parts_of_entries() -> None:
    def fill(x: Tensor) -> Tensor:
        out = torch.ones(3, 4, 10)
        for t in range(3):
            out[t, :, :5] = x[t]
            out[t, :, 5:] += out[t, :, :5] * 2 - out[t, :, 5:]
            out[t, 1] = 0.5
        return out

    assert not WRITES & set(operators(rewritten(fill, X)))


def test_writes_through_views() -> None:
    def fill(x: Tensor) -> Any:
        out, other = torch.zeros(4, 3, 5), torch.zeros(12, 5)
        for t in range(3):
            out.transpose(0, 1)[t] = x[t]
            other.view(3, 4, 5)[t] = x[t]
            out[None].squeeze(0)[0, t] += 1
        return out, other

    assert not WRITES & set(operators(rewritten(fill, X)))


def test_positions_given_as_tensors() -> None:
    def fill(x: Tensor) -> Any:
        out, last = x.new_zeros(3, 4, 5), x.new_zeros(4, 5, 3)
        for t in range(3):
            out[torch.tensor(t)] = x[t]
            last[:, :, torch.tensor(t)] = x[t]
        chosen = out[torch.tensor(1)]
        out[[0, 2]] = x[:2]
        out.index_copy_(1, torch.tensor([3]), x[:, :1])
        out.index_fill_(2, torch.tensor([0, 4]), 7.0)
        return out, last, chosen

    assert not WRITES & set(operators(rewritten(fill, X)))


def test_of_two_values_for_one_entry_none_is_chosen() -> None:
    def fill(x: Tensor) -> Tensor:
        out = x.clone()
        out[torch.tensor([1, 1])] = x[:2].mean(0, keepdim=True)
        return out

    assert aten.index_put.default in operators(rewritten(fill, X))


def test_writes_of_slices_with_steps_and_of_everything() -> None:
    def fill(x: Tensor) -> Any:
        out = torch.zeros_like(x)
        out[::2] += x[::2]
        out[-1] = 3
        out[:, 1:3] = 2.5
        out[..., -2:].mul_(x[..., :2])
        out[2:1] = 1.0
        doubled = out.clone()
        doubled.copy_(out * 2)
        doubled[:] = doubled + 1
        whole = torch.empty(3, 4, 5, dtype=torch.float64)
        whole[...] = x
        return out, doubled, whole

    assert not WRITES & set(operators(rewritten(fill, X)))


def test_writes_under_a_condition() -> None:
    def reset(x: Tensor) -> Any:
        v, w, rows = x * 1, x * 2, x[0] * 1
        v[x > 1] = 0.0
        v[x > 0.5] -= 0.5
        w[v > 0] = v[v > 0] * 0.25 + 1
        w[:, x[0] > 0] = -1.0
        rows[x[0, :, 0] > 0] = x[1, 2]
        w.index_put_((x < -1,), torch.tensor(5.0), accumulate=True)
        return v, w, rows

    found = operators(rewritten(reset, X))
    assert not WRITES & set(found)
    assert found.count(aten.where.self) == 6
    assert aten.index.Tensor not in found


def test_lists_that_grow_are_one_cat() -> None:
    def grow(x: Tensor) -> Any:
        out, other = torch.empty(0, 4, 5), x[0][None]
        for frame in x:
            out, other = torch.cat([out, frame[None]]), torch.cat((frame[None], other))
        return out, other

    found = operators(rewritten(grow, X))
    assert found.count(aten.cat.default) == 2


def test_entries_that_were_never_written_are_nan() -> None:
    def some(x: Tensor) -> Any:
        out = torch.empty(3, 4, 5)
        out[1] = x[0]
        return out[1] * 2, torch.cat([out[1:2], out[1:2]])

    assert aten.empty.memory_format not in operators(rewritten(some, X))

    def forward(net: Net, x: Tensor) -> Tensor:
        out = torch.empty(STEPS + 1, x.shape[1], FEATURES)
        for t in range(STEPS):
            out[t] = net.n(net.fc(x[t]))
        return out

    with pytest.raises(CaptureMismatchError):
        snngraph.trace(net(forward), torch.randn(SHAPE))


# -- whole networks ------------------------------------------------------------------------------------------------------------


def test_buffers_of_all_layouts_are_one_neuron_over_time() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        T, N, C = x.shape
        first, second, last = torch.zeros(T, N, C), torch.empty(N, T, C), x.new_zeros(N, C, T)
        same = torch.zeros_like(x[0])[None].expand(T, -1, -1).clone()
        view, total, grown = torch.zeros(N, T, C), torch.zeros(N, C), torch.empty(0, N, C)
        for t in range(T):
            s = net.n(net.fc(x[t]))
            first[t], second[:, t], last[..., t], same[t], view.transpose(0, 1)[t] = (s,) * 5
            total += s
            grown = torch.cat([grown, s[None]])
        return first, second, last, same, view, total / T, grown

    graph = captured(forward)
    assert count(graph, "lif") == count(graph, "linear") == count(graph, "sum.dim_IntList") == 1
    assert not any(count(graph, name) for name in ("select.int", "stack", "cat", "add.Tensor"))
    assert_engines(graph)


def test_a_buffer_longer_than_time_and_two_layers_in_one() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        T, N, C = x.shape
        padded, both = torch.ones(T + 3, N, C), torch.zeros(T, N, 2 * C)
        for t in range(T):
            both[t, :, :C] = net.n(net.fc(x[t]))
            both[t, :, C:] = net.n2(net.rec(both[t, :, :C]))
            padded[t + 1] = both[t, :, C:]
        return padded, both

    graph = captured(forward)
    assert count(graph, "lif") == 2
    assert count(graph, "lif_step") == 0
    assert_engines(graph)


def test_neurons_written_out_with_buffers_and_masks() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        T, N, C = x.shape
        v, u = torch.zeros(N, C), torch.zeros_like(x[0])
        spikes, membrane = torch.zeros_like(x), torch.zeros(T + 1, N, C)
        for t in range(T):
            v = 0.9 * v + net.fc(x[t])
            fired = (v > 0.3).float()
            v[fired > 0] = 0.0
            spikes[t] = fired
            u = u + fired
            u[u >= 2] -= 2.0
            membrane[t + 1] = 0.5 * membrane[t] + u
        return spikes, membrane, v

    graph = captured(forward)
    assert count(graph, "linear") == 1
    assert_engines(graph)


def test_circular_padding_copies_only_what_it_pads_with() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        uneven = F.pad(x.flatten(2), (1, 2), mode="circular")
        return torch.stack([net.n(net.circular(frame)) for frame in x]).mean(0), uneven

    graph = captured(forward, IMAGES)
    assert (count(graph, "slice.Tensor"), count(graph, "cat"), count(graph, "lif")) == (6, 3, 1)
    assert_engines(graph)


# -- random ones ---------------------------------------------------------------------------------------------------------------


def _read(out: Tensor, how: str, k: int) -> Tensor:
    if how == "entry":
        return out[k]
    if how == "column":
        return out[:, k]
    return out[..., k] if how == "last" else out[k : k + 2].sum(0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_writes_and_reads(data: st.DataObject) -> None:
    """On a cube, so that any part of it may be written anywhere."""
    size = 3
    index = st.integers(-size, size - 1)
    kinds = st.sampled_from(["entry", "column", "last", "slice", "steps", "mask", "add", "tensor", "corner", "all"])
    program = data.draw(st.lists(st.tuples(kinds, index, index, st.sampled_from(["entry", "column", "last", "sum"])), max_size=8))
    base = data.draw(st.sampled_from(["zeros", "empty", "input"]))

    def run(x: Tensor) -> Any:
        out = {"zeros": torch.zeros_like(x), "empty": torch.empty(size, size, size), "input": x * 1}[base]
        if base == "empty":
            out[:] = x[0]
        found = [x[1]]
        for kind, a, b, how in program:
            value = found[-1] * 0.5 + x[a]
            if kind == "entry":
                out[a] = value
            elif kind == "column":
                out[:, a] = value
            elif kind == "last":
                out.permute(2, 0, 1)[a] = value
            elif kind == "slice":
                out[min(a, b) : max(a, b)] = value
            elif kind == "steps":
                out[:, a % 2 :: 2] = value[:, None]
            elif kind == "mask":
                out[x > 0.2] -= 1.0
            elif kind == "add":
                out[a] += value
            elif kind == "tensor":
                out[torch.tensor(a % size)] = value
            elif kind == "corner":
                out[a, :2, b] = value[:2, 0]
            else:
                out.copy_(value)
            found.append(_read(out, how, a % size))
        return (out, *found)

    traced = rewritten(run, torch.randn(size, size, size, generator=torch.Generator().manual_seed(len(program))))
    assert not WRITES & set(operators(traced))
