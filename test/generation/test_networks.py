"""Graphs of stage 2: engines give the pictures that torch gives, and say that they ran."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from wristworld_ros.cli.main import main
from wristworld_ros.errors import EngineError
from wristworld_ros.generation import Generator
from wristworld_ros.generation.detail import DetailConfig, DetailRestorer
from wristworld_ros.runtime.dispatch import Dispatcher
from wristworld_ros.runtime.engines import EngineKey, EngineStore
from wristworld_ros.runtime.parity import relative_errors
from wristworld_ros.runtime.registry import get_backend

sys.path.insert(0, str(Path(__file__).parent))
from test_generator import moment

ORT, OPENVINO = get_backend("onnxruntime"), get_backend("openvino")
NAMES = {"encoder", "anchors", "denoiser", "decoder", "detail"}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return EngineStore(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def shipped():
    return Generator.from_pretrained()


@pytest.mark.slow
def test_graphs_of_the_shipped_model_run_elsewhere_as_in_torch(shipped, store):
    graphs = shipped.networks.graphs(1, 3, 128, 128)
    assert {g.name for g in graphs} == (NAMES if shipped.detail else NAMES - {"detail"})
    for graph in graphs:
        assert len(graph.weights) == 64
        for backend in (ORT, OPENVINO):
            store.build(graph, backend, "fp32")
            runner = store.load(EngineKey.of(graph, backend, "fp32"), backend)
            assert max(relative_errors(runner, graph).values()) < 2e-5, (graph.name, backend.name)


def test_a_picture_by_engines_is_torchs_picture(folder, store):
    plain = Generator.from_pretrained(folder)
    runs = Dispatcher("onnxruntime", strict=True, store=store)
    generator = plain.with_dispatcher(runs)
    with pytest.raises(EngineError, match="strict: no engine of encoder"):
        generator(*moment())
    condition, frame = moment()
    for graph in plain.networks.graphs(1, 2, 48, 64):
        store.build(graph, ORT, "fp32")
    generator = plain.with_dispatcher(Dispatcher("onnxruntime", strict=True, store=store))
    expected, found = plain(condition, frame), generator(condition, frame)
    assert expected.backend == "torch" and found.backend == "onnxruntime"
    assert np.abs(expected.image.astype(int) - found.image).max() <= 1
    np.testing.assert_allclose(expected.confidence, found.confidence, atol=1e-3)
    # A moment of another number of anchors has no engine: torch runs what depends on it.
    mixed = plain.with_dispatcher(Dispatcher("onnxruntime", store=store))
    assert mixed(*moment(views=1)).backend == "onnxruntime+torch"
    assert mixed.networks.dispatcher.providers["denoiser"] == "torch"
    assert mixed.networks.dispatcher.providers["decoder"].startswith("onnxruntime")


def test_a_detail_restorer_is_a_graph_too(folder, store):
    plain = Generator.from_pretrained(folder)
    detail = DetailRestorer(DetailConfig(widths=(8, 8, 8, 8))).eval()
    model = Generator(plain.model, plain.autoencoder, plain.text, detail=detail)
    (graph,) = [g for g in model.networks.graphs(1, 1, 48, 80) if g.name == "detail"]
    assert graph.outputs == ("restored", "right")
    store.build(graph, ORT, "fp32")
    runner = store.load(EngineKey.of(graph, ORT, "fp32"), ORT)
    assert max(relative_errors(runner, graph).values()) < 1e-5


def test_the_verb_builds_lists_verifies_and_cleans(
    folder,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("WRISTWORLD_ENGINES", str(tmp_path / "engines"))
    options = [
        "--backend",
        "onnxruntime",
        "--model",
        str(folder),
        "--size",
        "64x48",
        "--views",
        "2",
    ]
    assert main(["engine", "build", *options]) == 0
    assert "[4/4] decoder latents 1x16x6x8" in capsys.readouterr().out
    assert main(["engine", "list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("onnxruntime  fp32") == 4 and "anchors 1x1x2x3x32x32" in listed
    report = tmp_path / "report.json"
    assert main(["engine", "verify", *options, "--json", str(report)]) == 0
    rows = json.loads(report.read_text())
    assert len(rows) == 4 and all(r["ok"] for r in rows.values())
    assert all(e < 1e-4 for r in rows.values() for e in r["errors"].values())
    # An engine of other weights that has been put in this one's place.
    other = Generator.from_pretrained(folder)
    other.autoencoder.synthesis.weight.data.mul_(0.5)
    store = EngineStore()
    (decoder,) = [g for g in other.networks.graphs(1, 2, 48, 64) if g.name == "decoder"]
    store.build(decoder, ORT, "fp32", force=True)
    assert main(["engine", "verify", *options]) == 1
    assert "WRONG   decoder" in capsys.readouterr().out
    assert main(["engine", "clean"]) == 0
    assert store.all() == []
    assert main(["engine", "verify", *options]) == 1
    assert "FAILED  encoder" in capsys.readouterr().out
    assert main(["engine", "build", *options, "--networks", "painter"]) == 2
    assert "no networks ['painter']; this model has anchors, decoder" in capsys.readouterr().err
    assert main(["engine", "build", *options[:4], "--size", "60x48"]) == 2
    assert "multiples of 16" in capsys.readouterr().err


@pytest.mark.slow
def test_the_bench_times_every_runtime_beside_torch(
    folder,
    tmp_path,
    monkeypatch,
    capsys,
):
    monkeypatch.setenv("WRISTWORLD_ENGINES", str(tmp_path / "engines"))
    report = tmp_path / "bench.json"
    options = ["--model", str(folder), "--size", "64x48", "--views", "2", "--repeats", "3"]
    assert main(["bench", "runtime", *options, "--json", str(report)]) == 0
    printed = capsys.readouterr().out
    document = json.loads(report.read_text())
    assert set(document["networks"]) == NAMES - {"detail"}
    for rows in document["networks"].values():
        assert {"torch", "torch bf16", "openvino fp32", "onnxruntime fp32"} <= set(rows)
        assert rows["torch"]["ratio"] == 1
        for name, row in rows.items():
            assert row["ms"] > 0
            assert row["ratio"] == pytest.approx(rows["torch"]["ms"] / row["ms"])
            assert row.get("error", 0) < (0.1 if "bf16" in name else 1e-4)
    frame = document["frame"]
    assert frame["torch"]["psnr_db"] is None and frame["onnxruntime fp32"]["p50_ms"] > 0
    exact = frame["onnxruntime fp32"]["psnr_db"]
    assert exact is None or exact > 50
    assert "frame      onnxruntime fp32" in printed
    assert document["settings"]["steps"] == 2
