"""Nets with the neurons of the libraries, in the styles that each library asks for."""

from __future__ import annotations

import importlib
import itertools
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.compatibility.case import FEATURES, Built, Case, N, T
from tests.compatibility.handwritten import built


def driven(model: nn.Module, *shape: int) -> Built:
    """The net with weights large enough for its neurons to fire."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(3)
    return built(model, *shape)


# -- SpikingJelly --------------------------------------------------------------------------------------------------------------


def _spikingjelly(neuron: str, style: str, **options: Any) -> Built:
    sj = {name: importlib.import_module(f"spikingjelly.activation_based.{name}") for name in ("neuron", "layer", "functional")}
    make = getattr(sj["neuron"], neuron)
    options = {"v_threshold": 0.3, **options}
    if style == "containers":
        model = nn.Sequential(
            sj["layer"].SeqToANNContainer(nn.Linear(FEATURES, 16), nn.LayerNorm(16)),
            make(**options),
            sj["layer"].MultiStepContainer(nn.Sequential(nn.Linear(16, 8), make(**options))),
        )
        sj["functional"].set_step_mode(model[1], "m")
    else:
        model = nn.Sequential(sj["layer"].Linear(FEATURES, 16), make(**options), sj["layer"].Linear(16, 8), make(**options))
        sj["functional"].set_step_mode(model, "m" if style == "multi-step" else "s")
    return driven(model)


def _spikingjelly_cases() -> list[Case]:
    charge: dict[str, list[dict[str, Any]]] = {
        "IFNode": [{}],
        "LIFNode": [{"decay_input": True}, {"decay_input": False}],
        "ParametricLIFNode": [{"decay_input": True}, {"decay_input": False}],
        "CUBALIFNode": [{"c_decay": 0.5, "v_decay": 0.6}],
    }
    cases = []
    for name, variants in charge.items():
        for variant, v_reset, style in itertools.product(
            variants, (0.0, None, -0.1), ("multi-step", "single-step", "containers")
        ):
            if style != "multi-step" and (v_reset != 0.0 or variant.get("decay_input") is False):
                continue  # what a neuron computes and how it is called are independent
            words = [name, *(f"{k}={v}" for k, v in variant.items() if k == "decay_input"), f"v_reset={v_reset}"]
            build = partial(_spikingjelly, name, style, **variant, v_reset=v_reset)
            called = {"time_steps": T} if style == "single-step" else {}
            cases.append(Case("spikingjelly", ", ".join(words), style, build, called))
    return cases


# -- snnTorch ------------------------------------------------------------------------------------------------------------------


class _SnnTorch(nn.Module):
    """The library's tutorials: states from `reset_mem`, passed by hand, spikes and potentials recorded in lists."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.a, self.n1, self.b, self.n2 = nn.Linear(FEATURES, 16), make(16), nn.Linear(16, 8), make(8)

    def forward(self, x: Tensor) -> Any:
        states: list[Any] = [n.reset_mem() for n in (self.n1, self.n2)]
        spikes, potentials = [], []
        for frame in x:
            s, states[0] = self._step(self.n1, self.a(frame), states[0])
            s, states[1] = self._step(self.n2, self.b(s), states[1])
            spikes.append(s)
            potentials.append(states[1][-1] if isinstance(states[1], tuple) else states[1])
        return torch.stack(spikes), torch.stack(potentials)

    @staticmethod
    def _step(neuron: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        if not isinstance(state, tuple):
            return neuron(x, state)  # type: ignore[no-any-return]
        s, *rest = neuron(x, *state)
        return s, ((s, *rest) if type(neuron).__name__.startswith("R") else tuple(rest))


def _snntorch(neuron: str, style: str, **options: Any) -> Built:
    library = importlib.import_module("snntorch")

    def make(features: int, **more: Any) -> Any:
        keywords = {"threshold": 0.3, **options, **more}
        if keywords.pop("per_neuron", False):
            keywords |= {"beta": torch.linspace(0.5, 0.9, features), "threshold": torch.linspace(0.2, 0.4, features)}
        if neuron.startswith("R"):
            keywords |= {"linear_features": features}
        return getattr(library, neuron)(**keywords)

    if style == "state by hand":
        return driven(_SnnTorch(make))
    hidden = {"init_hidden": True}
    return driven(
        nn.Sequential(nn.Linear(FEATURES, 16), make(16, **hidden), nn.Linear(16, 8), make(8, **hidden, output=True)),
    )


def _snntorch_cases() -> list[Case]:
    variants: list[tuple[str, dict[str, Any]]] = [
        *(
            ("Leaky", {"beta": 0.8, "reset_mechanism": r, "reset_delay": d})
            for r in ("subtract", "zero", "none")
            for d in (True, False)
        ),
        ("Leaky", {"per_neuron": True}),
        *(("Lapicque", {"beta": 0.8, "reset_mechanism": r}) for r in ("subtract", "zero", "none")),
        *(("Synaptic", {"alpha": 0.6, "beta": 0.8, "reset_mechanism": r}) for r in ("subtract", "zero", "none")),
        *(("RLeaky", {"beta": 0.8, "reset_mechanism": r}) for r in ("subtract", "zero")),
        ("RSynaptic", {"alpha": 0.6, "beta": 0.8}),
        ("Alpha", {"alpha": 0.9, "beta": 0.8}),
    ]
    cases = []
    for (name, options), style in itertools.product(variants, ("state by hand", "init_hidden, Sequential, stepped")):
        if style != "state by hand" and options.get("reset_mechanism", "subtract") != "subtract":
            continue  # what a neuron computes and how it is called are independent
        words = [name, *(f"{k}={v}" for k, v in options.items() if k.startswith(("reset", "per")))]
        cases.append(
            Case(
                "snntorch",
                ", ".join(words),
                style,
                partial(_snntorch, name, style, **options),
                {} if style == "state by hand" else {"time_steps": T},
                kept="" if name == "Alpha" else None,
                stepped=name.startswith("R")
                or (name == "Synaptic" and style != "state by hand"),  # that returns the current, too
            )
        )
    return cases


# -- Norse ---------------------------------------------------------------------------------------------------------------------


class _NorseLoop(nn.Module):
    """Cells stepped by hand, their states carried as named tuples."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.a, self.n1, self.b, self.n2 = nn.Linear(FEATURES, 16), make(), nn.Linear(16, 8), make()

    def forward(self, x: Tensor) -> Tensor:
        first = second = None
        out = []
        for frame in x:
            s, first = self.n1(4 * self.a(frame), first)
            s, second = self.n2(4 * self.b(s), second)
            out.append(s)
        return torch.stack(out)


def _norse(neuron: str, style: str) -> Built:
    norse = importlib.import_module("norse.torch")

    def make() -> Any:
        name = neuron.removesuffix("Cell") + "Parameters"
        return getattr(norse, neuron)(getattr(norse, name)(v_th=torch.tensor(0.2)))

    if style == "cells, states by hand":
        return driven(_NorseLoop(make))
    parts = (nn.Linear(FEATURES, 16), make(), nn.Linear(16, 8), make())
    driven(nn.ModuleList(parts))  # twice: these neurons take a tenth of their input
    if style == "SequentialState, stepped":
        return driven(norse.SequentialState(*parts))
    return driven(norse.Lift(norse.SequentialState(*parts)))


def _norse_cases() -> list[Case]:
    styles = {"cells, states by hand": {}, "SequentialState, stepped": {"time_steps": T}}
    return [
        Case("norse", neuron, style, partial(_norse, neuron, style), options, kept=kept)
        for (neuron, kept), (style, options) in itertools.product(
            (("LIFCell", None), ("LIFBoxCell", None), ("IAFCell", None)), styles.items()
        )
    ]


# -- sinabs --------------------------------------------------------------------------------------------------------------------


def _sinabs(neuron: str, **options: Any) -> Built:
    layers = importlib.import_module("sinabs.layers")
    activation = importlib.import_module("sinabs.activation")
    spike = options.pop("spike", "MultiSpike")
    keywords = {"spike_threshold": torch.tensor(0.3), "spike_fn": getattr(activation, spike), **options}
    if neuron.endswith("Squeeze"):
        keywords["batch_size"] = N
    make = getattr(layers, neuron)
    model = nn.Sequential(nn.Linear(FEATURES, 16), make(**keywords), nn.Linear(16, 8), make(**keywords))
    return driven(model, *((N * T, FEATURES) if neuron.endswith("Squeeze") else (N, T, FEATURES)))


def _sinabs_cases() -> list[Case]:
    variants: list[tuple[str, dict[str, Any]]] = [
        ("IAF", {}),
        ("IAF", {"spike": "SingleSpike"}),
        ("IAF", {"min_v_mem": -0.2}),
        ("LIF", {"tau_mem": 5.0}),
        ("LIF", {"tau_mem": 5.0, "norm_input": False, "spike": "SingleSpike"}),
        ("ALIF", {"tau_mem": 5.0, "tau_adapt": 5.0, "adapt_scale": 1.2}),
    ]
    cases = []
    for name, options in variants:
        words = [name, *(f"{k}={v}" for k, v in options.items() if k not in ("tau_mem", "tau_adapt", "adapt_scale"))]
        cases.append(
            Case(
                "sinabs",
                ", ".join(words),
                "[N, T, ...]",
                partial(_sinabs, name, **options),
                {"time_dim": 1},
                kept="" if name == "ALIF" else None,
            )
        )
    return cases


CASES = [*_spikingjelly_cases(), *_snntorch_cases(), *_norse_cases(), *_sinabs_cases()]
