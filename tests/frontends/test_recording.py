"""Idioms of Python that a tracer does not see: each model is captured, and computes what the model computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

import snngraph
from snngraph import neurons


class Policy(nn.Module):
    """An actor and a critic; the distribution checks the probabilities that it is given."""

    scale: Tensor

    def __init__(self, reads: bool = False) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 8)
        self.lif = neurons.LIF(threshold=0.3)
        self.actor, self.critic = nn.Linear(8, 3), nn.Linear(8, 1)
        self.register_buffer("scale", torch.tensor(0.5))
        self.reads = reads

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rate = self.lif(self.fc(x)).mean(0)
        scale = self.scale.item() if self.reads else 0.5  # a number that only a recorded run can read
        policy = Categorical(torch.softmax(self.actor(rate) * scale, 1))
        return policy.entropy(), self.critic(rate)


def test_a_distribution_is_captured_without_the_checks_of_its_arguments() -> None:
    for reads in (False, True):
        torch.manual_seed(0)
        model = Policy(reads).eval()
        graph = snngraph.trace(model, torch.randn(5, 2, 4))
        assert graph.free_batch
        x = torch.randn(5, 3, 4)
        for found, expected in zip(graph(x), model(x), strict=True):
            torch.testing.assert_close(found.float(), expected)
    assert Distribution._validate_args, "the checks are back after a capture"
