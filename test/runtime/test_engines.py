"""Engines: built whole or not at all, found by what they are made of, refused when damaged."""

import json
import threading

import pytest
import torch
from torch import nn

from wristworld_ros.errors import EngineError, InvalidInputError
from wristworld_ros.runtime.dispatch import Dispatcher
from wristworld_ros.runtime.engines import RECORD, EngineKey, EngineStore, default_folder
from wristworld_ros.runtime.graphs import Graph, export_onnx
from wristworld_ros.runtime.parity import relative_errors
from wristworld_ros.runtime.registry import BACKENDS, get_backend

ORT = get_backend("onnxruntime")


class Net(nn.Module):
    """Two outputs of two inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.norm(self.conv(x)) * y
        return z.mean((2, 3)), z


def graph(size: int = 8, weights: str = "ab" * 32, module: nn.Module | None = None) -> Graph:
    generator = torch.Generator().manual_seed(1)
    inputs = {
        "x": torch.randn(1, 3, size, size, generator=generator),
        "y": torch.randn(1, 8, 1, 1, generator=generator),
    }
    return Graph("net", module or Net().eval(), inputs, ("mean", "map"), weights)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """With one engine by every backend and precision that runs here."""
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    for backend in BACKENDS.values():
        for precision in backend.precisions:
            if backend.cannot_run() is None and backend.unsupported(precision) is None:
                store.build(graph(), backend, precision)
    return store


def test_engines_compute_what_the_network_does(store):
    tolerance = {"fp32": 1e-5, "bf16": 0.02}
    seen = set()
    for folder, record in store.all():
        key = record["key"]
        backend = get_backend(key["backend"])
        runner = store.load(EngineKey.of(graph(), backend, key["precision"]), backend)
        errors = relative_errors(runner, graph())
        assert errors.keys() == {"mean", "map"}
        assert max(errors.values()) < tolerance[key["precision"]], (folder, errors)
        assert runner.provider.startswith(key["backend"])
        assert runner.provider.endswith(key["precision"])
        seen.add((key["backend"], key["precision"]))
    assert {("onnxruntime", "fp32"), ("openvino", "fp32")} <= seen


def test_bfloat16_is_not_full_precision(store):
    """Were the hint ignored, the engine would be as exact as fp32, and as slow."""
    backend = get_backend("openvino")
    if backend.unsupported("bf16"):
        pytest.skip(backend.unsupported("bf16"))
    runner = store.load(EngineKey.of(graph(), backend, "bf16"), backend)
    assert max(relative_errors(runner, graph()).values()) > 1e-4


def test_another_network_has_another_engine(store):
    key = EngineKey.of(graph(), ORT, "fp32")
    assert store.has(key)
    for other in (graph(size=16), graph(weights="cd" * 32)):
        assert not store.has(EngineKey.of(other, ORT, "fp32"))
        with pytest.raises(
            EngineError, match="no engine of net for onnxruntime fp32 .*engine build"
        ):
            store.load(EngineKey.of(other, ORT, "fp32"), ORT)
    older = EngineKey(**{**key.__dict__, "identity": {"version": "1.0"}})
    revised = EngineKey(**{**key.__dict__, "revision": key.revision + 1})
    assert not store.has(older) and not store.has(revised)


def test_what_was_built_is_not_built_again(tmp_path):
    store = EngineStore(tmp_path)
    first = store.build(graph(), ORT, "fp32") / RECORD
    stamp = first.stat().st_mtime_ns
    assert store.build(graph(), ORT, "fp32") / RECORD == first
    assert first.stat().st_mtime_ns == stamp
    store.build(graph(), ORT, "fp32", force=True)
    assert first.stat().st_mtime_ns > stamp
    record = json.loads(first.read_text())
    assert record["key"]["shapes"] == {"x": [1, 3, 8, 8], "y": [1, 8, 1, 1]}
    assert set(record["files"]) == {"model.onnx"} and len(record["graph_sha256"]) == 64


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    class Unknown(nn.Module):
        def forward(self, x, y):
            return torch.linalg.eigvals(x).real, y

    store = EngineStore(tmp_path)
    with pytest.raises(EngineError, match="net cannot be exported to ONNX"):
        store.build(graph(module=Unknown()), ORT, "fp32")
    assert store.all() == []
    assert [p.name for p in (tmp_path / "onnxruntime").iterdir()] == []


def test_damaged_engines_are_refused(tmp_path):
    store = EngineStore(tmp_path)
    key = EngineKey.of(graph(), ORT, "fp32")
    folder = store.build(graph(), ORT, "fp32")
    model = folder / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(EngineError, match="model.onnx is missing or altered.*build --force"):
        store.load(key, ORT)
    assert "altered" in store.all()[0][1]["error"]
    model.unlink()
    with pytest.raises(EngineError, match="missing or altered"):
        store.load(key, ORT)
    (folder / RECORD).write_text("{")
    with pytest.raises(EngineError, match="cannot be read"):
        store.load(key, ORT)
    store.build(graph(), ORT, "fp32", force=True)
    assert max(relative_errors(store.load(key, ORT), graph()).values()) < 1e-5


def test_two_builders_at_once_build_one_engine(tmp_path):
    store, found = EngineStore(tmp_path), []
    threads = [
        threading.Thread(target=lambda: found.append(store.build(graph(), ORT, "fp32")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and len(set(found)) == 1 and len(store.all()) == 1


def test_cleaning_keeps_what_is_named(tmp_path):
    store = EngineStore(tmp_path)
    kept = EngineKey.of(graph(), ORT, "fp32")
    store.build(graph(), ORT, "fp32")
    gone = store.build(graph(size=16), ORT, "fp32")
    (tmp_path / "onnxruntime" / ".partial-killed").mkdir()
    assert {p.name for p in store.clean(keep=[kept])} == {gone.name, ".partial-killed"}
    assert store.has(kept) and not gone.exists()
    assert EngineStore(tmp_path / "none").clean() == []


def test_the_folder_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("WRISTWORLD_ENGINES", str(tmp_path))
    assert default_folder() == tmp_path
    monkeypatch.delenv("WRISTWORLD_ENGINES")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_folder() == tmp_path / "cache" / "wristworld" / "engines"


# --- dispatcher -----------------------------------------------------------------------------------


def run(dispatcher: Dispatcher, of: Graph) -> tuple[torch.Tensor, ...]:
    return dispatcher(of.name, of.weights, of.module, dict(of.inputs))


def test_auto_takes_the_best_engine_and_torch_where_there_is_none(store):
    runs = Dispatcher("auto", store=store)
    for a, b in zip(run(runs, graph()), graph().reference(), strict=True):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0)
    assert runs.providers["net"].startswith("openvino") and runs.summary == "openvino"
    other = graph(size=16)
    for a, b in zip(run(runs, other), other.reference(), strict=True):
        assert torch.equal(a, b)
    assert runs.providers == {"net": "torch"} and runs.summary == "torch"


def test_torch_uses_no_engine(store):
    runs = Dispatcher("torch", strict=True, store=store)
    for a, b in zip(run(runs, graph()), graph().reference(), strict=True):
        assert torch.equal(a, b)
    assert runs.summary == "torch"


def test_strict_refuses_what_has_no_engine(store):
    runs = Dispatcher("onnxruntime", strict=True, store=store)
    run(runs, graph())
    assert runs.providers["net"].startswith("onnxruntime")
    with pytest.raises(EngineError, match="strict: no engine of net by 'onnxruntime' for inputs"):
        run(runs, graph(size=16))


def test_unknown_backends_and_precisions_are_refused(store):
    with pytest.raises(InvalidInputError, match="'tvm' is not one of auto, torch, openvino"):
        Dispatcher("tvm", store=store)
    with pytest.raises(InvalidInputError, match="'tvm' is not one of openvino, onnxruntime"):
        get_backend("tvm")
    with pytest.raises(InvalidInputError, match="'onnxruntime' has no precision 'int4'"):
        Dispatcher("onnxruntime", precision="int4", store=store)


def test_a_backend_that_is_not_installed_says_how_to_get_it(monkeypatch, tmp_path):
    backend = get_backend("openvino")
    monkeypatch.setattr(type(backend), "package", "no_such_package")
    message = r"'openvino' cannot be used: no_such_package is not .*wristworld_ros\[openvino\]"
    with pytest.raises(EngineError, match=message):
        Dispatcher("openvino", store=EngineStore(tmp_path))
    with pytest.raises(EngineError, match=message):
        EngineStore(tmp_path).build(graph(), backend, "fp32")
    runs = Dispatcher("auto", store=EngineStore(tmp_path))
    run(runs, graph())
    assert runs.summary == "torch"


def test_an_exported_file_is_that_of_the_network(tmp_path):
    digest = export_onnx(graph(), tmp_path / "a.onnx")
    assert digest == export_onnx(graph(), tmp_path / "b.onnx")
    changed = Net().eval()
    with torch.no_grad():
        changed.conv.bias += 1
    assert digest != export_onnx(graph(module=changed), tmp_path / "c.onnx")
