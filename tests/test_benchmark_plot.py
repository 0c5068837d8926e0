"""The page and the plot of the attention benchmark follow from its JSON files; what is missing is said by name."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from benchmarks import plot
from benchmarks.__main__ import GROUPS, NAMES
from benchmarks.attention import CASES


def row(name: str, kind: str, ratio: float | None, **others: Any) -> dict[str, Any]:
    usual = {"exact": True, "failure": "", "median_ms": ratio and 10 * ratio, "flips": None, "flips_float32": None}
    return {"name": name, "kind": kind, "ratio": ratio, **usual, **others}


DOCUMENT = {
    "model": "MA <Gesture>",
    "rows": [
        row("PyTorch", "peer", 8.25),
        row("torch.compile", "peer", None, failure="TimeoutError: not compiled within 100 s", exact=False),
        row("OpenVINO f32", "peer", 1.5),
        row("OpenVINO default (bf16)", "peer", 0.75, exact=False),
        row("snngraph openvino fp32", "engine", 1.0, flips=3, flips_float32=4),
        row("snngraph onnxruntime fp32", "engine", 1.75),
        row("snngraph openvino fp32, attention passes off", "variant", 1.375),
    ],
    "attention": {
        "conversion": {"seconds": 12.0, "stages": {"trace": 8.0, "optimize": 3.0, "build": 1.0}, "peak_gib": 1.25},
        "memory": {
            "eager": {"model_mib": 10, "call_mib": 200, "peak_mib": 210},
            "engine": {"model_mib": 20, "call_mib": 30, "peak_mib": 50},
            "engine_off": {"model_mib": 21, "call_mib": 40, "peak_mib": 61},
        },
    },
    "problems": ["converting takes long"],
    "hardware": {"cpu": "a CPU"},
    "versions": {"torch": "2.9"},
    "threads": 2,
    "date": "2026-01-02T03:04:05+00:00",
    "busy": False,
}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "ma_gesture_tcsa.json").write_text(json.dumps(DOCUMENT))
    (folder / "pfa_vgg_r8.json").write_text(json.dumps({"model": "older", "rows": []}))
    (folder / "pfa_vgg_r64.json").write_text("{")
    return folder


def made(results: Path, out: Path, *names: str) -> tuple[str, str]:
    assert plot.main([*names, "--results", str(results), "--out", str(out)]) == 0
    return (out / "attention.md").read_text(), (out / "attention.svg").read_text()


def test_every_case_has_a_name_of_its_own() -> None:
    assert set(GROUPS["attention"]) == set(CASES) <= set(NAMES)


def test_the_page_shows_every_ratio(results: Path, tmp_path: Path) -> None:
    page, _ = made(results, tmp_path / "docs")
    assert "| MA <Gesture> | 8.25 | - | - | 1.50 | (0.75) | 1.38 | 1 (10 ms, fp32) | 3 (4) |" in page
    assert "| MA <Gesture> | 8.0 | 3.0 | 1.0 | 12.0 | 1.25 |" in page
    assert "| MA <Gesture> | 10 | 200 | 210 | 20 | 30 | 50 | 21 | 40 | 61 |" in page
    assert "- MA <Gesture>: converting takes long" in page
    assert "python -m benchmarks.plot" in page


def test_what_is_missing_is_said_by_name(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, _ = made(results, tmp_path / "docs")
    errors = capsys.readouterr().err
    assert "- MA <Gesture>: torch.compile: TimeoutError: not compiled within 100 s" in page
    assert "- MA <Gesture>: ONNX Runtime: not asked for" in page
    for name in GROUPS["attention"]:
        assert (f"`{name}`" in page) == (f"no result: {name}:" in errors) == (name != "ma_gesture_tcsa")
    assert "`pfa_vgg_loop_r64`: not measured yet" in page
    assert "`pfa_vgg_r8`: its file is not of this benchmark" in page
    assert "`pfa_vgg_r64`: its file is no JSON" in page


def test_an_unknown_name_is_refused(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        made(results, tmp_path, "ma_gesture", "pfa_vgg_r8")
    assert "no attention case is named ma_gesture; known:" in capsys.readouterr().err


def test_the_plot_has_a_bar_for_every_number(results: Path, tmp_path: Path) -> None:
    _, drawing = made(results, tmp_path / "docs")
    bars = {
        series: [bar for bar in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}rect") if bar.get("fill") == colour]
        for series, colour in plot.SERIES.items()
    }
    assert {series: len(found) - 1 for series, found in bars.items()} == {
        **dict.fromkeys(plot.SERIES, 1),
        "torch.compile": 0,
        "ONNX Runtime": 0,
    }
    widths = {series: float(found[1].attrib["width"]) for series, found in bars.items() if len(found) > 1}
    assert widths["PyTorch"] > widths["OpenVINO f32"] > widths["passes off"] > 0
    faster, slower = (float(bars[s][1].attrib["x"]) for s in ("OpenVINO default", "PyTorch"))
    assert faster < slower, "what is faster than the engine lies left of it"


def test_the_same_results_give_the_same_bytes(results: Path, tmp_path: Path) -> None:
    assert made(results, tmp_path / "a") == made(results, tmp_path / "b")


def test_without_results_there_is_a_page_too(tmp_path: Path) -> None:
    page, drawing = made(tmp_path, tmp_path / "docs")
    assert page.count("not measured yet") == len(CASES)
    assert "attention.svg" not in page
    ET.fromstring(drawing)
