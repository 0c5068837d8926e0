"""``compare``: every peer runs and is judged, one that fails is shown, and only what is as right as float32 is to be beaten."""

import json
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import snngraph
from benchmarks import attention, integer, nets
from snngraph import benchmark, peers, pipelines
from snngraph.benchmark import BenchmarkError, BenchmarkReport, Row, compare
from snngraph.models.calibration import calibrate
from snngraph.neurons import LIF
from snngraph.passes.integer_synapses import IntegerSynapses
from snngraph.peers import Contender, PlainModel
from snngraph.runtime.backends import backend_class


class Net(nn.Module):
    """Two layers of neurons, ``[T, N, 6] -> [N, 3]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(6, 16), LIF(2.0), nn.Linear(16, 3), LIF(2.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif2(self.fc2(self.lif1(self.fc1(x)))).mean(0)
        return out


@pytest.fixture(scope="module")
def net(x: Tensor) -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    calibrate(net, x, 0.05, 0.4)
    return net


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(4, 2, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def report(net: Net, x: Tensor) -> BenchmarkReport:
    """Every peer and both engines."""
    return compare(net, x, rounds=2)


def row(report: BenchmarkReport, name: str) -> Row:
    return next(row for row in report.rows if row.name.startswith(name))


def test_every_peer_and_engine_has_a_row(report: BenchmarkReport) -> None:
    assert [r.name.partition(" (")[0] for r in report.rows] == [
        "PyTorch",
        "torch.compile",
        "ONNX Runtime",
        "OpenVINO f32",
        "OpenVINO default",
        "snngraph openvino fp32",
        "snngraph onnxruntime fp32",
    ]
    assert [r.kind for r in report.rows] == ["peer"] * 5 + ["engine"] * 2
    assert not [r.failure for r in report.rows if r.failure]


def test_every_row_is_timed_and_judged(report: BenchmarkReport) -> None:
    for r in report.rows:
        assert r.samples >= report.rounds
        assert r.median_ms is not None
        assert r.p99_ms is not None
        assert r.best_ms is not None
        assert 0 < r.best_ms <= r.median_ms <= r.p99_ms
        assert r.ratio is not None
        assert r.ratio > 0
        assert r.build_seconds is not None
        assert r.error is not None
        assert r.settings
    assert report.engine.ratio == 1.0
    assert report.checked == benchmark.CHECKED


def test_float32_is_exact_and_what_computes_below_it_is_not(report: BenchmarkReport) -> None:
    assert all(r.exact == (r.precision == "f32") for r in report.rows)
    default = row(report, "OpenVINO default")
    assert default.name == f"OpenVINO default ({default.precision})"
    assert default.exact or default.remark.startswith(f"computes in {default.precision}")
    assert report.to_beat is not None
    assert report.to_beat.exact
    assert report.to_beat.kind == "peer"
    assert report.ok


def test_spikes_of_engines_are_counted(report: BenchmarkReport) -> None:
    for r in report.rows:
        assert (r.flips is None) == (r.kind == "peer")
    assert set(report.firing_rates) == {"lif1", "lif2"}
    assert all(0.05 <= rate <= 0.4 for rate in report.firing_rates.values()), "a net that hardly fires proves nothing"


def test_the_report_says_where_and_when(report: BenchmarkReport) -> None:
    assert {"cpu", "flags", "usable_cores", "memory_gb"} <= report.hardware.keys()
    assert {"python", "torch", "openvino", "onnxruntime", "numpy"} <= report.versions.keys()
    assert report.date.endswith("+00:00")
    assert len(report.load) == 2
    assert report.peak_rss_mb > 0
    assert report.others is None or 0 <= report.others < 1000


def test_a_busy_machine_is_said(report: BenchmarkReport) -> None:
    assert "busy with something else" in str(replace(report, others=1.5))
    assert "busy with something else" not in str(replace(report, others=0.0))
    assert not replace(report, others=None).busy


def test_the_report_prints_and_is_written_as_json(report: BenchmarkReport, tmp_path: Path) -> None:
    text, table = str(report), report.markdown()
    for r in report.rows:
        assert r.name in text
        assert f"| {r.name}" in table
    assert table.splitlines()[2].startswith("|  | ratio |")
    path = tmp_path / "bench.json"
    path.write_text("older")
    report.save(path)
    found = json.loads(path.read_text())
    assert found == report.to_dict()
    assert found["ok"] is True
    assert [r["name"] for r in found["rows"]] == [r.name for r in report.rows]


def test_numbers_that_are_not_finite_are_no_json_numbers(report: BenchmarkReport) -> None:
    broken = replace(report, rows=(replace(report.rows[0], error=float("nan")), *report.rows[1:]))
    assert broken.to_dict()["rows"][0]["error"] is None


def test_a_peer_that_can_not_be_built_is_shown_with_its_reason(net: Net, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(plain: PlainModel, threads: int) -> Contender:
        raise RuntimeError("no compiler found\nand more")

    monkeypatch.setitem(peers.PEERS, "torch.compile", fails)
    report = compare(net, x, peers=["torch.compile", "PyTorch"], rounds=1, targets=["openvino"])
    failed = row(report, "torch.compile")
    assert failed.failure == "RuntimeError: no compiler found"
    assert failed.median_ms is None
    assert not failed.exact
    assert "no compiler found" in str(report)
    assert "torch.compile (failed)" in report.markdown()
    assert report.ok, "a peer's failure is not the engine's"


def peer_that_gives(change: Callable[[Any], Any]) -> Callable[[PlainModel, int], Contender]:
    def build(plain: PlainModel, threads: int) -> Contender:
        def call(inputs: tuple[Tensor, ...]) -> list[Tensor]:
            with torch.no_grad():
                return [change(plain.model(*inputs))]

        return Contender("PyTorch", "peer", call, lambda inputs: inputs, "f32", "changed")

    return build


@pytest.mark.parametrize("change", [lambda y: y + 0.1, lambda y: y * float("nan")], ids=["off", "nan"])
def test_a_peer_that_is_wrong_is_not_the_one_to_beat(
    net: Net, x: Tensor, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]
) -> None:
    monkeypatch.setitem(peers.PEERS, "PyTorch", peer_that_gives(change))
    report = compare(net, x, peers=["PyTorch"], rounds=1, targets=["openvino"])
    wrong = row(report, "PyTorch")
    assert not wrong.exact
    assert "outputs off" in wrong.remark
    assert report.to_beat is None
    assert "not exact" in str(report)


def test_a_peer_that_fails_when_run_is_shown(net: Net, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "PyTorch", peer_that_gives(lambda y: y[:1]))
    report = compare(net, x, peers=["PyTorch"], rounds=1, targets=["openvino"])
    assert "has shape (1, 3), expected (2, 3)" in row(report, "PyTorch").failure


def test_an_engine_of_ones_own_is_timed_and_stays_open(net: Net, x: Tensor) -> None:
    before = torch.get_num_threads()
    with snngraph.convert(net, x, target="onnxruntime", threads=1) as engine:
        report = compare(net, x, engine=engine, peers=[], rounds=1)
        assert [r.name for r in report.rows] == ["snngraph onnxruntime fp32"]
        assert report.threads == 1
        assert engine.run(x.numpy()).shape == (2, 3)
        other = compare(net, x, engine=engine, peers=[], rounds=1, threads=2)
        assert other.threads == 2
    assert torch.get_num_threads() == before


def test_an_engine_of_another_net_is_not_right(net: Net, x: Tensor) -> None:
    other = Net().eval()
    other.load_state_dict({name: 1.3 * tensor for name, tensor in net.state_dict().items()})
    with snngraph.convert(other, x) as engine:
        report = compare(net, x, engine=engine, peers=["PyTorch"], rounds=1)
    assert not report.ok
    assert row(report, "PyTorch").exact
    assert "flips" in row(report, "snngraph openvino").remark


def test_progress_is_told(net: Net, x: Tensor) -> None:
    told: list[tuple[str, int, int]] = []
    compare(net, x, peers=["eager"], rounds=2, targets=["openvino"], progress=lambda *what: told.append(what))
    done, totals = [d for _, d, _ in told], {t for _, _, t in told}
    assert done == sorted(done)
    assert totals == {done[-1]}
    assert any("round 2 of 2" in what for what, _, _ in told)


def test_inputs_of_ones_own_are_checked(net: Net, x: Tensor) -> None:
    report = compare(net, x, peers=["PyTorch"], rounds=1, check=[x, 1 - x, x.flip(0)])
    assert report.checked == 3
    with pytest.raises(BenchmarkError, match="the example's shape"):
        compare(net, x, peers=["PyTorch"], rounds=1, check=[x[:, :1]])


@pytest.mark.parametrize("given", ["OpenVINO f32", "openvino-f32", "openvino_f32"])
def test_peers_may_be_spelled_in_many_ways(net: Net, x: Tensor, given: str) -> None:
    assert benchmark._peer_names([given]) == ["OpenVINO f32"]
    assert benchmark._peer_names(["OpenVINO default (bf16)", "onnxruntime"]) == ["OpenVINO default", "ONNX Runtime"]


def test_an_engine_of_another_pipeline_is_a_row_of_its_own() -> None:
    outcome = attention.run("tcja_dvs128", 2, ["PyTorch"], small=True)
    rows = {row["name"]: row for row in outcome.document["rows"]}
    peer, engine, variant = rows
    assert peer == "PyTorch"
    assert engine in ("snngraph openvino exact", "snngraph openvino fp32"), "the default of this machine"
    assert variant.endswith(", attention passes off")
    off = rows[variant]
    assert off["kind"] == "variant"
    assert off["flips"] is not None
    assert off["exact"]
    assert off["samples"] >= 2 * (1 + benchmark.CLOSER), "it and the engine are timed more often than the peers"
    assert outcome.document["to_beat"] == "PyTorch"
    found = outcome.document["attention"]
    assert found["off_over_on"] == off["ratio"] > 0
    assert found["over_eager"] == rows["PyTorch"]["ratio"] > 0
    assert found["conversion"]["peak_gib"] > 0
    assert set(found["conversion"]["stages"]) == {"trace", "optimize", "build"}
    assert outcome.document["ok"], outcome.problems


def test_the_attention_passes_are_left_out_by_name() -> None:
    names = [p.name for p in pipelines.default().passes]
    assert set(attention.ATTENTION_PASSES) <= set(names)
    assert [p.name for p in attention.passes_off(precision="fp32")] == [
        name for name in names if name not in attention.ATTENTION_PASSES
    ]
    exact = [p.name for p in attention.passes_off(precision="exact")]
    assert "integer_synapses" in exact
    assert not set(attention.ATTENTION_PASSES) & set(exact)


def test_a_missed_bar_is_said() -> None:
    case = attention.Case(1, off_over_on=1.2, over_eager=5.0, less_memory=True)
    found: dict[str, Any] = {
        "off_over_on": 1.1,
        "over_eager": None,
        "conversion": {"seconds": 130.0, "peak_gib": 8.5},
        "memory": {"eager": {"peak_mib": 100.0}, "engine": {"peak_mib": 150.0}},
    }
    assert attention._missed(case, found) == [
        "time without the attention passes / time with them is 1.100, the bar is 1.2",
        "PyTorch's time / the engine's is unknown, the bar is 5",
        "converting takes 130.0 s, the bar is 120",
        "converting takes 8.5 GiB at the peak, the bar is 8",
        "the engine and its calls take 150 MiB, the eager loop over ranks 100",
    ]
    good: dict[str, Any] = {
        "off_over_on": 1.2,
        "over_eager": 5.0,
        "conversion": {"seconds": 10.0, "peak_gib": 1.0},
        "memory": {"eager": {"peak_mib": 100.0}, "engine": {"peak_mib": 50.0}},
    }
    assert attention._missed(case, good) == []


class Wide(nn.Module):
    """A layer that is large enough for integers, ``[T, N, 6] -> [N, 640]``."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.lif1, self.fc2, self.lif2 = nn.Linear(6, 640), LIF(2.0), nn.Linear(640, 640), LIF(2.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lif2(self.fc2(self.lif1(self.fc1(x)))).mean(0)
        return out


@pytest.fixture(scope="module")
def by_precision(x: Tensor) -> BenchmarkReport:
    """An engine of every precision, and none of a peer."""
    torch.manual_seed(0)
    net = Wide().eval()
    calibrate(net, x, 0.05, 0.4)
    precisions = {"openvino": ["exact", "fp32", "int8"]}
    return compare(net, x, peers=[], rounds=1, targets=["openvino"], precisions=precisions, check=[x, 1 - x])


def test_every_precision_has_a_row(by_precision: BenchmarkReport) -> None:
    assert [(r.name, r.kind) for r in by_precision.rows] == [
        ("snngraph openvino exact", "engine"),
        ("snngraph openvino fp32", "engine"),
        ("snngraph openvino int8", "engine"),
    ]
    assert by_precision.engine.name == "snngraph openvino exact"
    assert by_precision.engine.ratio == 1.0
    assert "integer layers: 1" in by_precision.engine.settings


def test_the_error_before_the_threshold_is_shown_beside_float32s(by_precision: BenchmarkReport) -> None:
    for r in by_precision.rows:
        assert r.membrane_error is not None
        assert r.membrane_error_float32
        assert r.membrane_ratio == r.membrane_error / r.membrane_error_float32
        assert r.exact == (r.membrane_ratio <= 1.25) == (not r.approximate)
    head, _, *table = [line for line in by_precision.markdown().splitlines() if line.startswith("|")]
    assert head.endswith("| flips | membrane |")
    assert len(table) == 3


def test_an_approximate_engine_is_not_exact_and_is_no_failure(by_precision: BenchmarkReport) -> None:
    int8 = by_precision.rows[2]
    assert int8.approximate
    assert not int8.exact
    assert by_precision.ok
    assert f"{int8.flips} flips, float32 has {int8.flips_float32}" in int8.remark
    assert f"{int8.predictions_equal} of 2 inputs keep their prediction" in int8.remark
    assert "int8: approximate, as asked" in str(by_precision)
    broken = replace(int8, error=float("nan"))
    assert not replace(by_precision, rows=(*by_precision.rows[:2], broken)).ok
    failed = replace(int8, failure="it can not be built")
    assert not replace(by_precision, rows=(*by_precision.rows[:2], failed)).ok


def test_a_net_without_integers_is_timed_once(net: Net, x: Tensor) -> None:
    told: list[str] = []
    report = compare(
        net,
        x,
        peers=[],
        rounds=1,
        targets=["openvino"],
        precisions=["exact", "fp32"],
        check=[x],
        progress=lambda what, done, total: told.append(what),
    )
    assert [r.name for r in report.rows] == ["snngraph openvino fp32"]
    assert "snngraph openvino: nothing is in integers, so fp32 is there already" in told


def test_default_precisions_are_the_targets_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend_class("openvino"), "default_precision", lambda: "exact")
    assert benchmark._wanted(("openvino", "onnxruntime"), None) == [
        ("openvino", "exact"),
        ("openvino", "fp32"),
        ("onnxruntime", "fp32"),
    ]
    assert benchmark._wanted(("openvino", "onnxruntime"), {"onnxruntime": ["int8"]})[-1] == ("onnxruntime", "int8")
    assert benchmark._wanted(("openvino",), "int8") == [("openvino", "int8")]


def test_the_number_of_digits_is_that_of_the_pipeline() -> None:
    for count in (1, 2, 4):
        assert [p.digits for p in integer.with_digits(count) if isinstance(p, IntegerSynapses)] == [count]


def test_bars_of_integer_engines(by_precision: BenchmarkReport) -> None:
    peer = replace(by_precision.rows[0], name="OpenVINO f32", kind="peer", ratio=3.0)
    exact, fp32, int8 = by_precision.rows
    report = replace(by_precision, rows=(peer, exact, fp32, replace(int8, ratio=0.5)))
    assert integer.Bar("exact", None, 1.5).value(report) == 3.0
    assert integer.Bar("int8", "OpenVINO f32", 5.0).value(report) == 6.0
    assert integer.Bar("exact", "PyTorch", 8.0).value(report) is None
    found = {
        "bars": [{"of": "time of PyTorch / time of exact", "least": 8.0, "found": None}, {"of": "b", "least": 2, "found": 2.0}],
        "memory": {"ratio": 1.625},
    }
    off = replace(exact, membrane_error=1.5, membrane_error_float32=1.0)
    assert integer._missed([off, int8], found) == [
        "time of PyTorch / time of exact is unknown, the bar is 8",
        "snngraph openvino exact: error before the threshold is 1.5 times float32's, the bar is 1.25",
        "the exact engine takes 1.62 times the memory of OpenVINO f32, the bar is 1.5",
    ]


def test_inputs_to_check_are_independent_draws() -> None:
    for net in nets.NETS.values():
        first, second = nets.inputs(net, 2, small=True)
        assert first.shape == second.shape
        assert not torch.equal(first.sort().values, second.sort().values), "one is not the other in another order"


def test_a_pipeline_that_can_not_be_built_is_shown(net: Net, x: Tensor) -> None:
    report = compare(net, x, peers=[], rounds=1, check=[x], targets=["openvino"], variants={"nonsense": ["no_such_pass"]})
    failed = report.rows[-1]
    assert failed.name == "snngraph openvino, nonsense"
    assert "no pass is named 'no_such_pass'" in failed.failure
    assert not report.ok


def test_a_compiler_that_takes_too_long_is_shown(net: Net, x: Tensor) -> None:
    report = compare(net, x, peers=["torch.compile"], rounds=1, targets=["openvino"], patience=0.05)
    assert row(report, "torch.compile").failure == "TimeoutError: not compiled within 0.05 s"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_what_can_not_be_compared_is_refused(net: Net, x: Tensor) -> None:
    with pytest.raises(BenchmarkError, match=r"no peer is named 'onxruntime'; did you mean 'ONNX Runtime'\?"):
        compare(net, x, peers=["onxruntime"])
    with pytest.raises(BenchmarkError, match="rounds=0"):
        compare(net, x, rounds=0)
    with pytest.raises(BenchmarkError, match="threads=0"):
        compare(net, x, threads=0)
    with pytest.raises(BenchmarkError, match="targets: expected at least one"):
        compare(net, x, targets=[])
    with pytest.raises(BenchmarkError, match="no precision is named 'fp31'"):
        compare(net, x, precisions=["fp31"])
    with pytest.raises(BenchmarkError, match="no engine is built for onnxruntime"):
        compare(net, x, targets=["openvino"], precisions={"onnxruntime": ["fp32"]})
    with pytest.raises(BenchmarkError, match="precisions of openvino: expected at least one"):
        compare(net, x, targets=["openvino"], precisions=[])


def test_peers_compute_what_the_model_computes(net: Net, x: Tensor) -> None:
    plain = PlainModel(net, (x,))
    with torch.no_grad():
        expected = net(x).numpy()
    for name in ("PyTorch", "ONNX Runtime", "OpenVINO f32"):
        with peers.quiet():
            (found,) = peers.build_peer(name, plain, 1).outputs((x,))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    names = {str(node.target) for node in plain.program.graph.nodes}
    assert not [name for name in names if name.startswith("snn.")], "a peer sees ordinary operators alone"
