"""Files of the libraries that write NIR, read back with the arguments of docs/nir.md: the spikes of the library's own net."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snngraph

nir = pytest.importorskip("nir", reason="NIR is not installed")
pytest.importorskip("nirtorch", reason="NIRTorch is not installed")

pytestmark = pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph is being deprecated:DeprecationWarning")

T, N = 16, 8
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "nir.md"
Run = Callable[[nn.Module, Tensor], Tensor]


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight *= gain
    return layer


def steps(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.stack([net(frame) for frame in x])


def inputs(*shape: int) -> Tensor:
    return torch.randn(T, N, *shape, generator=torch.Generator().manual_seed(1)) * 2


def written(graph: Any, path: Path) -> Path:
    nir.write(path, graph)
    return path


def assert_reads_as(source: Any, expected: Tensor, x: Tensor, **arguments: Any) -> None:
    """The graph read from `source` emits what the library did, in float32 there and in float64 here."""
    graph = snngraph.from_nir(source, time_steps=T, **arguments)
    found = graph(x.double())
    assert found.shape == expected.shape
    rate = float((expected != 0).double().mean())
    assert 0.02 <= rate <= 0.7, f"the net fires in {rate:.1%} of its steps"
    flips = int((found != expected).sum())
    assert flips == 0, f"{flips} of {found.numel()} spikes differ"
    back = (
        snngraph.to_nir(graph, dt=arguments["dt"], allow=("soft reset", "delayed reset", "counts", "floor"))
        if _exports(graph)
        else None
    )
    if back is not None:
        assert torch.equal(snngraph.from_nir(back)(x.double()), found)


def _exports(graph: Any) -> bool:
    return not any(layer.nodes[0].kwargs.get("reset") == "none" for layer in graph.neurons)


def documented(library: str, *neurons: str) -> dict[str, Any]:
    """The arguments that docs/nir.md gives for neurons of a library."""
    rows = [line.split(" | ") for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| {library} ")]
    found = [row[2] for row in rows if sorted(re.sub(r"[`()]|its default", "", row[1]).strip().split(", ")) == sorted(neurons)]
    assert len(found) == 1, f"docs/nir.md has {len(found)} rows for {neurons} of {library}"
    arguments: dict[str, Any] = eval(f"dict({found[0].strip(' |`')})", {"dict": dict})
    return arguments


# -- snnTorch: dt 1e-4, whatever the net's own; per-neuron beta and threshold, as its exporter fails on numbers ----------------

FIRST = 'reset_mechanism="subtract"'
LEAKY = {
    "subtract": ("Leaky", FIRST),
    "zero": ("Leaky", '"zero"'),
    "none": ("Leaky", '"none"'),
    "subtract at once": ("Leaky", '"subtract"', "reset_delay=False"),
    "zero at once": ("Leaky", '"zero"', "reset_delay=False"),
}
OTHERS = {reset: ("Synaptic", "RLeaky", "RSynaptic", f'"{reset}"') for reset in ("subtract", "zero")}


def snntorch_neuron(kind: str, reset: str, shape: tuple[int, ...], **options: Any) -> Any:
    snn = pytest.importorskip("snntorch", reason="snnTorch is not installed")
    kept = {"beta": torch.full(shape, 0.9), "threshold": torch.full(shape, 1.0), "init_hidden": True, **options}
    if kind in ("Synaptic", "RSynaptic"):
        kept["alpha"] = torch.full(shape, 0.7)
    return getattr(snn, kind)(**kept, reset_mechanism=reset.removesuffix(" at once"), reset_delay=not reset.endswith("at once"))


def snntorch_graph(net: nn.Module, *shape: int) -> Any:
    from snntorch.export_nir import export_to_nir

    return export_to_nir(net, torch.randn(1, *shape), ignore_dims=[0])


@pytest.mark.parametrize(
    ("kind", "reset"), [*(("Leaky", reset) for reset in LEAKY), *(("Synaptic", r) for r in ("subtract", "zero"))]
)
def test_snntorch(kind: str, reset: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    neurons = [snntorch_neuron(kind, reset, (n,)) for n in (20, 6)]
    net = nn.Sequential(linear(10, 20), neurons[0], linear(20, 6, 2.0), neurons[1]).eval()
    path = written(snntorch_graph(net, 10), tmp_path / "net.nir")
    for neuron in neurons:
        neuron.reset_mem()
    x = inputs(10)
    row = (LEAKY if kind == "Leaky" else OTHERS)[reset]
    assert_reads_as(path, steps(net, x), x, **documented("snnTorch", *row))


@pytest.mark.parametrize(("kind", "reset"), [("RLeaky", "subtract"), ("RLeaky", "zero"), ("RSynaptic", "subtract")])
def test_snntorch_recurrent(kind: str, reset: str, tmp_path: Path) -> None:
    """The bias of the recurrent layer acts from the first step on."""
    torch.manual_seed(0)
    neuron = snntorch_neuron(kind, reset, (20,), linear_features=20)
    net = nn.Sequential(linear(10, 20), neuron).eval()
    with torch.no_grad():
        neuron.recurrent.bias += 0.5
    path = written(snntorch_graph(net, 10), tmp_path / "net.nir")
    neuron.reset_mem()
    x = inputs(10)
    assert_reads_as(path, steps(net, x), x, **documented("snnTorch", *OTHERS[reset]))


def test_snntorch_convolution(tmp_path: Path) -> None:
    torch.manual_seed(0)
    neurons = [snntorch_neuron("Leaky", "subtract", shape) for shape in ((4, 4, 4), (6,))]
    layers = [nn.Conv2d(2, 4, 3), neurons[0], nn.AvgPool2d(2), nn.Flatten(), linear(16, 6, 10.0), neurons[1]]
    net = nn.Sequential(*layers).eval()
    path = written(snntorch_graph(net, 2, 6, 6), tmp_path / "net.nir")
    for neuron in neurons:
        neuron.reset_mem()
    x = inputs(2, 6, 6)
    assert_reads_as(path, steps(net, x), x, **documented("snnTorch", *LEAKY["subtract"]))


def test_snntorch_default_read_as_nir_says_differs() -> None:
    """Why the arguments have no defaults: the reset to zero, at once, that a plain reading gives is another neuron."""
    torch.manual_seed(0)
    neuron = snntorch_neuron("Leaky", "subtract", (20,))
    net = nn.Sequential(linear(10, 20, 2.0), neuron).eval()
    graph = snntorch_graph(net, 10)
    neuron.reset_mem()
    x = inputs(10)
    plain = snngraph.from_nir(graph, time_steps=T, **documented("snnTorch", *LEAKY["zero at once"]))
    assert float((plain(x.double()) != steps(net, x)).double().mean()) > 0.02


# -- Norse: dt is that of the cells times that of to_nir, 1e-6 by default ------------------------------------------------------


def norse_cells() -> Any:
    return pytest.importorskip("norse.torch", reason="Norse is not installed")


def norse_steps(net: nn.Module, x: Tensor) -> Tensor:
    state, out = None, []
    with torch.no_grad():
        for frame in x:
            y, state = net(frame, state)
            out.append(y)
    return torch.stack(out)


def norse_graph(net: nn.Module) -> Any:
    from norse.torch.utils.export_nir import to_nir

    return to_nir(net, torch.randn(10))


@pytest.mark.parametrize(
    ("row", "gain"), [(("LIFBoxCell", "LIBoxCell"), 10.0), (("LIFCell",), 6.0), (("IAFCell",), 1.0)], ids=str
)
def test_norse(row: tuple[str, ...], gain: float) -> None:
    torch.manual_seed(0)
    norse = norse_cells()
    cell = getattr(norse, row[0])
    net = norse.SequentialState(linear(10, 20, gain), cell(), linear(20, 6, 3 * gain), cell()).eval()
    x = inputs(10)
    assert_reads_as(norse_graph(net), norse_steps(net, x), x, **documented("Norse", *row))


def test_norse_per_neuron(tmp_path: Path) -> None:
    """Potentials that are not 0, different for every neuron; through a file, which nir writes only for arrays."""
    torch.manual_seed(0)
    norse = norse_cells()
    make = norse.LIFBoxParameters
    shape = (20,)
    parameters = make(
        tau_mem_inv=torch.rand(shape) * 100 + 100,
        v_leak=torch.rand(shape) * 0.3,
        v_th=torch.rand(shape) * 0.3 + 0.5,
        v_reset=torch.zeros(shape),
    )
    net = norse.SequentialState(linear(10, 20, 10.0), norse.LIFBoxCell(parameters)).eval()
    path = written(norse_graph(net), tmp_path / "net.nir")
    x = inputs(10)
    assert_reads_as(path, norse_steps(net, x), x, **documented("Norse", "LIFBoxCell", "LIBoxCell"), v_init="v_leak")


def test_norse_leaky_integrator() -> None:
    torch.manual_seed(0)
    norse = norse_cells()
    net = norse.SequentialState(linear(10, 20, 10.0), norse.LIFBoxCell(), linear(20, 6), norse.LIBoxCell()).eval()
    x = inputs(10)
    graph = snngraph.from_nir(norse_graph(net), time_steps=T, **documented("Norse", "LIFBoxCell", "LIBoxCell"))
    expected = norse_steps(net, x)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(graph(x.double()), expected.double(), rtol=0, atol=1e-6)


# -- sinabs: steps of 1; the time axis stays in the input's shape, unless the layers squeeze it --------------------------------


def sinabs_layers() -> Any:
    return pytest.importorskip("sinabs.layers", reason="sinabs is not installed")


def sinabs_graph(net: nn.Sequential, x: Tensor) -> Any:
    from sinabs.nir import to_nir

    graph = to_nir(net, x)
    for layer in net:
        reset: Any = getattr(layer, "reset_states", lambda: None)
        reset()
    return graph


@pytest.mark.parametrize(
    ("row", "options", "more"),
    [
        (("IAF",), {}, {}),
        (("LIF",), {"tau_mem": 3.0}, {}),
        (("LIF", "norm_input=False"), {"tau_mem": 3.0, "norm_input": False}, {}),
        (("LIF", "SingleSpike", "MembraneReset"), {"tau_mem": 3.0}, {}),
        (("IAF",), {"min_v_mem": -0.2}, {"floor": -0.2}),
    ],
)
def test_sinabs(row: tuple[str, ...], options: dict[str, Any], more: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layers = sinabs_layers()
    from sinabs import activation

    if "SingleSpike" in row:
        options = {**options, "spike_fn": activation.SingleSpike, "reset_fn": activation.MembraneReset()}
    neurons = [getattr(layers, row[0])(spike_threshold=torch.tensor(0.5), **options) for _ in range(2)]
    net = nn.Sequential(linear(10, 20, 2.0), neurons[0], linear(20, 6, 5.0), neurons[1]).eval()
    x = inputs(10)
    graph = sinabs_graph(net, x.transpose(0, 1)[:1])
    with torch.no_grad():
        expected = net(x.transpose(0, 1)).transpose(0, 1)
    assert_reads_as(graph, expected, x, **documented("sinabs", *row), **more, extra_dims=1)


def test_sinabs_squeezed_convolution() -> None:
    """Not through a file: nir can not write the Flatten without a shape that sinabs makes."""
    torch.manual_seed(0)
    layers = sinabs_layers()
    neurons = [layers.IAFSqueeze(batch_size=1, spike_threshold=torch.tensor(0.5)) for _ in range(2)]
    net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), neurons[0], layers.SumPool2d(2), nn.Flatten(), linear(16, 6), neurons[1])
    x = inputs(2, 6, 6)[:, :1]
    graph = sinabs_graph(net.eval(), x[:, 0])
    with torch.no_grad():
        expected = net(x[:, 0]).unsqueeze(1)
    assert_reads_as(graph, expected, x, **documented("sinabs", "IAF"))


# -- SpikingJelly: dt 1e-4, as its exporter was told ---------------------------------------------------------------------------

SPIKINGJELLY = ("IFNode", "LIFNode", "ParametricLIFNode", "CUBALIFNode")


@pytest.mark.parametrize(
    ("kind", "options", "arguments"),
    [
        ("IFNode", {}, {}),
        ("LIFNode", {"tau": 3.0}, {}),
        ("LIFNode", {"tau": 3.0, "decay_input": False}, {}),
        ("LIFNode", {"tau": 3.0, "v_reset": -0.2}, {"v_init": "v_reset"}),
        ("ParametricLIFNode", {}, {}),
        ("CUBALIFNode", {"c_decay": 0.5, "v_decay": 0.75}, {}),
    ],
)
def test_spikingjelly(kind: str, options: dict[str, Any], arguments: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    torch.manual_seed(0)
    make = getattr(neuron, kind)
    net = nn.Sequential(linear(10, 20, 4.0), make(**options), linear(20, 6, 8.0), make(**options)).eval()
    export_to_nir(net, torch.randn(1, 10), tmp_path / "net.nir")
    functional.reset_net(net)
    x = inputs(10)
    assert_reads_as(tmp_path / "net.nir", steps(net, x), x, **documented("SpikingJelly", *SPIKINGJELLY), **arguments)


def test_spikingjelly_convolution(tmp_path: Path) -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    from spikingjelly.activation_based import functional, neuron
    from spikingjelly.activation_based.nir_exchange import export_to_nir

    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), neuron.IFNode(), nn.AvgPool2d(2), nn.Flatten(), linear(16, 6, 16.0)]
    net = nn.Sequential(*layers, neuron.LIFNode()).eval()
    export_to_nir(net, torch.randn(1, 2, 6, 6), tmp_path / "net.nir")
    functional.reset_net(net)
    x = inputs(2, 6, 6)
    assert_reads_as(tmp_path / "net.nir", steps(net, x), x, **documented("SpikingJelly", *SPIKINGJELLY))
