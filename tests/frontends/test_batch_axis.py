from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.frontends.handwritten import FEATURES, IMAGES, STEPS, Forward, Net, assert_engines, captured, count


def steps_of(net: Net, x: Tensor) -> list[Tensor]:
    return [net.n(net.fc(frame)) for frame in x]


# -- what is the same for every sample -----------------------------------------------------------------------------------------


def recurrent(start: Any) -> Forward:
    """A layer whose spikes come back to it; ``start(x)`` stands for those before the first step."""

    def forward(net: Net, x: Tensor) -> Tensor:
        s, found = start(x), []
        for frame in x:
            s = net.n(net.fc(frame) + net.rec(s))
            found.append(s)
        return torch.stack(found)

    return forward


@pytest.mark.parametrize(
    "start",
    [
        lambda x: torch.zeros(x.shape[1], FEATURES),
        lambda x: torch.zeros(x.size(1), FEATURES, device=x.device, dtype=x.dtype),
        lambda x: torch.zeros(1, FEATURES).expand(x.shape[1], -1),
    ],
)
def test_a_recurrent_net_starts_from_zeros(start: Any) -> None:
    graph = captured(recurrent(start))
    assert count(graph, "linear") == 1 + STEPS - 1, "the recurrent layer of zeros is a constant"
    assert count(graph, "expand_as") == 0


def test_a_recurrent_net_starts_from_anything_else() -> None:
    """One sample may be summed otherwise than many: what is not zero goes through layers at its full size."""
    graph = captured(recurrent(lambda x: torch.full((x.shape[1], FEATURES), 0.3)))
    assert count(graph, "linear") == 1 + STEPS
    assert count(graph, "expand_as") == 1
    assert_engines(graph)


def test_a_recurrent_convolution_and_what_is_not_known_to_keep_samples_apart() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        s = torch.zeros(x.shape[1], 2, 6, 6)
        first = F.avg_pool2d(s + 0.5, 3, 1, 1)
        for frame in x:
            s = net.n(net.conv(frame) + net.conv_rec(s) + net.norm2d(s + 1.0))
        return s, first

    graph = captured(forward, IMAGES)
    assert count(graph, "convolution") == 1 + STEPS - 1
    assert_engines(graph)


def test_the_first_state_among_the_others() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        N = x.shape[1]
        spikes, v = [torch.zeros(N, FEATURES)], torch.ones(N)
        for frame in x:
            spikes.append(net.n(net.fc(frame) + spikes[-1]))
            v = v * 0.5 + spikes[-1].sum(-1)
        constant = torch.full((N,), 0.5), torch.zeros(STEPS * N, 2), torch.ones(STEPS, N, 2)
        return torch.stack(spikes), torch.stack(spikes, 1), torch.cat(spikes, -1), v, *constant

    graph = captured(forward)
    assert [spec.batch_dim for spec in graph.outputs] == [1, 0, 0, 0, 0, 0, 1]
    assert_engines(graph)


def test_learned_values_for_every_sample() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        N = x.shape[1]
        v, tiled = net.start.expand(N, -1), net.start.repeat(N).view(N, FEATURES)
        token, found = net.start.reshape(1, 1, -1).expand(N, 1, -1), []
        for frame in x:
            v = 0.5 * v + net.start.repeat(N, 1)
            y = torch.cat([token, net.fc(frame)[:, None] + v[:, None]], 1)
            found.append(net.n(net.rec(y) + net.rec(tiled)[:, None]))
        return torch.stack(found, 2), v

    graph = captured(forward)
    assert graph.outputs[0].batch_dim == 0
    assert_engines(graph)


def test_a_constant_that_meets_steps_and_samples_in_one_dimension() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        T, N, C = x.shape
        bias, table = torch.full((T * N, C), 0.1), net.start.expand(T, N, C)
        y = (net.fc(x.reshape(T * N, C)) + bias).view(T, N, C) + table
        return net.whole(y), net.rec(table.reshape(T * N, C)), bias.view(T, N, C)

    graph = captured(forward)
    assert count(graph, "lif") == 1
    assert_engines(graph)


# -- operators that are told the batch size ------------------------------------------------------------------------------------


def test_group_norm_runs_once_over_all_steps() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        T = x.shape[0]
        images = net.norm2d(net.conv(x.flatten(0, 1))).unflatten(0, (T, -1))
        y = net.whole(images).flatten(2)[:, :, :FEATURES]
        return torch.stack([net.n(net.norm(net.fc(frame))) for frame in y], -1)

    graph = captured(forward, IMAGES)
    assert count(graph, "group_norm") == 2
    assert count(graph, "lif_step") == 0
    assert_engines(graph)


def test_steps_are_taken_out_of_a_dimension_that_samples_share() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        T, N = x.shape[:2]
        first = [net.n(part) for part in net.fc(x.flatten(0, 1)).chunk(T)]
        merged = net.rec(torch.cat(first))
        second = [net.n2(merged[t * N : (t + 1) * N]) for t in range(T)]
        third = [part.squeeze(0) * 2 for part in x.split(1)]
        rows = torch.zeros(T * N, 2).split(N)
        return torch.stack(second), merged[N : 3 * N], merged[N:], torch.stack(third, 1), rows[1]

    graph = captured(forward)
    assert count(graph, "lif") == count(graph, "linear") == 2
    assert count(graph, "lif_step") == count(graph, "split_with_sizes") == 0
    assert_engines(graph)


def test_steps_and_samples_in_every_order() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        N, T, C = x.shape
        first = net.fc(x.reshape(N * T, C)).view(N, T, C).permute(1, 0, 2)
        last = first.permute(0, 2, 1).reshape(T * C, N).view(T, C, N)
        spikes = net.whole(last.permute(0, 2, 1))
        return spikes.permute(1, 0, 2).reshape(N, -1), spikes.permute(0, 2, 1), spikes.repeat(1, 2, 1).view(T, 2, N, C)[:, 1]

    captured(forward, (4, STEPS, FEATURES), time_dim=1)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_recorded_steps_are_stacked_in_any_dimension(dim: int) -> None:
    graph = captured(lambda net, x: torch.stack(steps_of(net, x), dim))
    assert count(graph, "lif") == 1
    assert count(graph, "stack") + count(graph, "cat") == 0


def test_time_is_the_last_axis() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        return torch.stack([net.n(net.fc(x[:, :, t])) for t in range(x.shape[-1])], -1)

    graph = captured(forward, (4, FEATURES, STEPS))
    assert graph.inputs[0].time_dim == graph.outputs[0].time_dim == 2
    assert count(graph, "lif") == 1


# -- what depends on the batch size for good -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda s: s * torch.arange(s.shape[1])[:, None], r"aten.arange.start_step numbers the samples of a batch, .*\.py:\d+"),
        (lambda s: s / s.shape[1], "an argument that depends on the batch size, 4 and 19"),
        (lambda s: s.mean((1, 2)).view(-1, 1, 1).expand(-1, s.shape[1], s.shape[1]), "the batch into several dimensions"),
        (lambda s: s.mean(0, keepdim=True).squeeze(), "drops the batch of a single sample too; name the dimension"),
    ],
)
def test_what_fixes_the_batch_is_told(forward: Callable[[Tensor], Tensor], reason: str) -> None:
    graph = captured(lambda net, x: forward(torch.stack(steps_of(net, x))), free=False)
    assert re.search(reason, graph.notes[0]), graph.notes
    assert count(graph, "lif") == count(graph, "linear") == 1, "time is merged at a fixed batch size too"
    assert_engines(graph)
