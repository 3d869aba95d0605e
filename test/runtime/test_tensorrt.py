"""TensorRT without a GPU: what is refused and why, calls in their order, builds ahead of time."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from wristworld_ros.cli.main import main
from wristworld_ros.errors import EngineError, InvalidInputError
from wristworld_ros.runtime.engines import EngineKey, EngineStore
from wristworld_ros.runtime.graphs import Graph, export_onnx
from wristworld_ros.runtime.half import half_precision
from wristworld_ros.runtime.registry import get_backend
from wristworld_ros.runtime.tensorrt import TensorRT, TensorRTRunner, build_plan

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        return torch.nn.functional.gelu(self.norm(self.conv(x)))


def graph():
    return Graph("net", Net().eval(), {"x": torch.randn(1, 3, 8, 8)}, ("y",), "ab" * 32)


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    export_onnx(graph(), path)
    return path


def test_half_precision_keeps_inputs_outputs_and_values(onnx_file, tmp_path):
    onnx = pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    half = half_precision(onnx_file, tmp_path / "half.onnx")
    model = onnx.load(str(half))
    types = {i.data_type for i in model.graph.initializer if i.data_type in (1, 10)}
    assert types == {onnx.TensorProto.FLOAT16}
    x = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    run = [
        ort.InferenceSession(str(p), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for p in (onnx_file, half)
    ]
    assert run[1].dtype == np.float32
    error = np.sqrt(np.mean((run[1] - run[0]) ** 2)) / run[0].std()
    assert 0 < error < 5e-3


def test_targets_that_a_library_does_not_build_for():
    with pytest.raises(InvalidInputError, match=r"target 8\.7: tensorrt_rtx builds for .*8\.6"):
        TensorRT("tensorrt_rtx", "8.7")
    with pytest.raises(InvalidInputError, match="builds for the GPU that it runs on alone"):
        get_backend("tensorrt").targeting("8.6")
    with pytest.raises(InvalidInputError, match="'openvino' runs on the CPU. Leave the target out"):
        get_backend("openvino").targeting("8.6")
    assert get_backend("tensorrt_rtx").targeting("8.9").target == "8.9"


def test_engines_of_gpus_differ_by_key():
    keys = [EngineKey.of(graph(), TensorRT("tensorrt_rtx", cc), "fp16") for cc in ("8.6", "8.9")]
    assert [k.identity["compute_capability"] for k in keys] == ["8.6", "8.9"]
    assert keys[0].identity["flavour"] == "tensorrt_rtx"
    assert f"torch {torch.__version__.split('+')[0]}" in keys[0].identity["exporters"]
    assert keys[0] != keys[1]
    assert {"version", "cuda", "gpu", "flags"} <= keys[0].identity.keys()


@WITHOUT_GPU
def test_without_a_gpu_nothing_is_loaded_and_the_cure_is_said(tmp_path):
    backend = TensorRT("tensorrt_rtx")
    assert backend.cannot_run()
    with pytest.raises(EngineError, match="not installed|sees no CUDA GPU; use backend 'openvino'"):
        backend.load(tmp_path, "fp16")
    with pytest.raises(EngineError, match=r"sees no CUDA GPU.*--target 8\.6"):
        backend.build(tmp_path / "net.onnx", tmp_path, "fp32")


def test_the_verb_says_what_it_cannot_target(capsys):
    assert main(["engine", "build", "--backend", "onnxruntime", "--target", "8.6"]) == 2
    assert "backend 'onnxruntime' runs on the CPU" in capsys.readouterr().err


class FakeContext:
    """Doubles its input, which it finds by the addresses that it was given."""

    def __init__(self, calls, buffers):
        self.calls, self.buffers, self.at = calls, buffers, {}

    def set_tensor_address(self, name, pointer):
        self.calls.append(("address", name))
        self.at[name] = pointer

    def execute_async_v3(self, stream):
        self.calls.append(("execute", stream))
        x, y = (_floats(self.at[n], 6) for n in ("x", "y"))
        y[:] = 2 * x
        return True


def _floats(pointer, count):
    import ctypes

    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(pointer))


def fake_module(rtx, engine=True):
    """The names of ``tensorrt`` that are used, over the CPU's memory; records the calls."""
    calls = []

    def context(*config):
        calls.append(("context", len(config)))
        return FakeContext(calls, {})

    def runtime_config():
        calls.append(("runtime config",))
        return SimpleNamespace(
            create_runtime_cache=lambda: "cache",
            set_runtime_cache=lambda cache: calls.append(("cache", cache)),
        )

    made = SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: "xy"[i],
        get_tensor_shape=lambda name: (2, 3),
        get_tensor_dtype=lambda name: "f32",
        get_tensor_mode=lambda name: "in" if name == "x" else "out",
        create_runtime_config=runtime_config,
        create_execution_context=context,
    )
    module = SimpleNamespace(
        __name__="tensorrt_rtx" if rtx else "tensorrt",
        __version__="1.2",
        Logger=type("Logger", (), {"ERROR": 0, "__init__": lambda self, level: None}),
        Runtime=lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda content: (
                calls.append(("deserialise", content)) or (made if engine else None)
            )
        ),
        TensorIOMode=SimpleNamespace(INPUT="in"),
        float32="f32",
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE=1),
    )
    if rtx:
        module.ComputeCapability = SimpleNamespace()
    return module, calls


@pytest.mark.parametrize("rtx", [False, True])
def test_a_runner_calls_in_order_and_reads_the_outputs(tmp_path, rtx):
    (tmp_path / "model.plan").write_bytes(b"plan")
    module, calls = fake_module(rtx)
    runner = TensorRTRunner(module, tmp_path / "model.plan", "fp16", torch.device("cpu"))
    own = [("runtime config",), ("cache", "cache")] if rtx else []
    assert calls == [
        ("deserialise", b"plan"), *own, ("context", int(rtx)), ("address", "x"), ("address", "y")
    ]  # fmt: skip
    assert runner.provider == f"{module.__name__} 1.2 cpu fp16"
    x = torch.arange(6.0).reshape(2, 3)
    (first,) = runner(x)
    (second,) = runner(x + 1)
    assert torch.equal(first, 2 * x) and torch.equal(second, 2 * (x + 1))
    assert calls[-1] == ("execute", 0)
    with pytest.raises(EngineError, match=r"shape \(3, 2\); the engine was built for \(2, 3\)"):
        runner(x.T)


def test_an_engine_of_another_version_is_refused(tmp_path):
    (tmp_path / "model.plan").write_bytes(b"plan")
    module, _ = fake_module(False, engine=False)
    with pytest.raises(EngineError, match="another version or for another GPU.*build --force"):
        TensorRTRunner(module, tmp_path / "model.plan", "fp16", torch.device("cpu"))


@pytest.mark.parametrize("target", ["8.0", "8.6", "8.9", "12.0"])
def test_ahead_of_time_builds(target, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    store, backend = EngineStore(tmp_path), TensorRT("tensorrt_rtx", target)
    plan = store.build(graph(), backend, "fp16") / "model.plan"
    assert plan.stat().st_size > 1000
    assert store.has(EngineKey.of(graph(), backend, "fp16"))


def test_a_file_that_is_no_network_does_not_compile(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    broken = tmp_path / "net.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(EngineError, match="cannot read"):
        build_plan(trt, broken, "8.6")
    with pytest.raises(EngineError, match=r"did not compile the network for 8\.6"):
        TensorRT("tensorrt_rtx", "8.6").build(broken, tmp_path, "fp32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: never run so far")
@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_on_a_gpu_the_engine_computes_what_torch_does(module, tmp_path):
    pytest.importorskip(module)
    store, backend = EngineStore(tmp_path), TensorRT(module)
    store.build(graph(), backend, "fp16")
    runner = store.load(EngineKey.of(graph(), backend, "fp16"), backend)
    for _ in range(3):
        x = torch.randn(1, 3, 8, 8, device="cuda")
        (found,) = runner(x)
        expected = Net().cuda().eval()(x)
        assert (found - expected).square().mean().sqrt() / expected.std() < 5e-3
