"""TensorRT and TensorRT for RTX: one class, given the module that it calls.

``tensorrt`` is for datacentre and Jetson GPUs and builds on the GPU that it builds for;
``tensorrt_rtx`` is for desktop GPUs and builds ahead of time, on machines without one as well.

The precision is in the graph (``runtime/half.py``): networks are strongly typed.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from wristworld_ros.errors import EngineError, InvalidInputError
from wristworld_ros.runtime.backends import Backend, Runner
from wristworld_ros.runtime.half import half_precision

#: GPUs that TensorRT for RTX builds for on any machine: compute capabilities.
RTX_TARGETS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
#: CUDA releases whose libraries the packages bring, by the names of these packages.
CUDA = ("cu13", "cu12")
#: Bounds of one build [s] and of the memory that its engine may take while it runs [bytes].
BUILD_SECONDS, WORKSPACE = 3600, 4 << 30
#: Counts up when ``build_plan`` makes other engines of the same graph.
RECIPE = "1"


class TensorRT(Backend):
    """Engines on an NVIDIA GPU.

    Args:
        module: ``tensorrt`` or ``tensorrt_rtx``.
        target: compute capability to build for, such as ``8.6``; None: that of the GPU here.

    Raises:
        InvalidInputError: that library does not build for that GPU.
    """

    precisions = ("fp16", "fp32")
    device = "cuda"
    FILE = "model.plan"
    EXTRAS: ClassVar[dict[str, str]] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}

    def __init__(self, module: str, target: str | None = None) -> None:
        self.name = self.package = module  # type: ignore[misc]
        self.extra = self.EXTRAS[module]  # type: ignore[misc]
        self.ahead_of_time = module == "tensorrt_rtx"
        self.target = target
        if target is not None and not self.ahead_of_time:
            raise InvalidInputError(
                f"target {target}: {module} builds for the GPU that it runs on alone. Build there "
                "without a target, or for desktop GPUs by backend 'tensorrt_rtx'."
            )
        if target is not None and target not in RTX_TARGETS:
            raise InvalidInputError(
                f"target {target}: {module} builds for compute capability "
                f"{', '.join(RTX_TARGETS)}. Other GPUs take backend 'tensorrt', built there."
            )

    def targeting(self, target: str) -> TensorRT:
        """As ``Backend.targeting``."""
        return TensorRT(self.name, target)

    def cannot_run(self) -> str | None:
        """As ``Backend.cannot_run``: asks torch, as TensorRT's runtime crashes without a driver."""
        return self.missing() or no_gpu()

    def identity(self) -> dict[str, str]:
        """As ``Backend.identity``: also CUDA, the GPU, exporters and settings of the builder."""
        gpu = self.target
        here = no_gpu() is None
        if gpu is None and here:
            gpu = ".".join(map(str, torch.cuda.get_device_capability()))
        name = torch.cuda.get_device_name() if here and not self.ahead_of_time else "any"
        tools = ("torch", "onnx", "onnxscript", "onnxruntime")
        return {
            "flavour": self.name,
            "version": _version(self.package),
            "cuda": next((c for c in CUDA if _version(f"{self.package}_{c}") != "none"), "none"),
            "compute_capability": gpu or "none",
            "gpu": name,
            "exporters": " ".join(f"{tool} {_version(tool)}" for tool in tools),
            "flags": f"strongly typed, workspace {WORKSPACE}, recipe {RECIPE}",
        }

    def build(self, onnx: Path, folder: Path, precision: str) -> None:
        """As ``Backend.build``, in a process of its own, which may crash.

        Raises:
            EngineError: no GPU is named and none is here, or the network does not compile.
        """
        if self.target is None and (reason := no_gpu()):
            cure = " Or name the GPU to build for: --target 8.6." if self.ahead_of_time else ""
            raise EngineError(f"backend '{self.name}' cannot build: {reason}.{cure}")
        with tempfile.TemporaryDirectory() as workspace:
            if precision == "fp16":
                onnx = half_precision(onnx, Path(workspace) / "half.onnx")
            command = [sys.executable, "-m", __name__, self.name, str(onnx)]
            command += [str(folder / self.FILE), self.target or "here"]
            try:
                done = subprocess.run(
                    command, stderr=subprocess.PIPE, text=True, timeout=BUILD_SECONDS, check=False
                )
            except subprocess.TimeoutExpired:
                raise EngineError(
                    f"{self.name} did not finish within {BUILD_SECONDS} s. Build a smaller shape."
                ) from None
        if done.returncode:
            lines = done.stderr.strip().splitlines()[-4:] or ["it said nothing"]
            raise EngineError(
                f"{self.name} {_version(self.package)} did not compile the network for "
                f"{self.target or 'this GPU'} (exit {done.returncode}): {' | '.join(lines)}. "
                "Leave it to torch, or try precision 'fp32'."
            )

    def load(self, folder: Path, precision: str) -> Runner:
        """As ``Backend.load``."""
        self.check(precision, run=True)
        trt = importlib.import_module(self.package)
        return TensorRTRunner(trt, folder / self.FILE, precision, torch.device("cuda"))


def no_gpu() -> str | None:
    """Why no CUDA GPU can be used here; None when one can."""
    if torch.cuda.is_available():
        return None
    return (
        f"torch {torch.__version__} sees no CUDA GPU; use backend 'openvino', or a machine with an "
        "NVIDIA driver and a CUDA build of torch (make setup TORCH=cu128)"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def is_rtx(trt: Any) -> bool:
    """Whether a module is TensorRT for RTX."""
    return hasattr(trt, "ComputeCapability")


def build_plan(trt: Any, onnx: Path, target: str | None, *, progress: bool = False) -> bytes:
    """The engine of an ONNX file, whose shapes are static.

    Args:
        trt: ``tensorrt`` or ``tensorrt_rtx``.
        target: compute capability; None: of the GPU here.
        progress: print what the builder is at, where it tells.

    Raises:
        EngineError: it cannot be read or compiled; says why.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # Jetson's 10.x also knows weakly typed networks; later ones and RTX strongly typed ones alone.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{trt.__name__} cannot read {onnx}: {reasons}")
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        if -1 in tuple(tensor.shape):
            raise EngineError(
                f"input {tensor.name} has shape {tuple(tensor.shape)}; engines have fixed ones. "
                "Export the network with examples of the shape."
            )
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
    if target is not None:
        config.num_compute_capabilities = 1
        chosen = getattr(trt.ComputeCapability, "SM" + target.replace(".", ""))
        config.set_compute_capability(chosen, 0)
    if progress and hasattr(trt, "IProgressMonitor"):
        monitor = _monitor(trt)
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{trt.__name__} {trt.__version__} cannot compile {onnx} for {target}")
    return bytes(plan)


def _monitor(trt: Any) -> Any:
    """Prints the phases of a build, those without a parent."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            if parent is None:
                print(f"    {phase}: {steps} steps", flush=True)

        def step_complete(self, phase: str, step: int) -> bool:
            return True

        def phase_finish(self, phase: str) -> None:
            pass

    return Monitor()


class TensorRTRunner(Runner):
    """An engine with torch tensors as its buffers, replayed as a CUDA graph.

    Args:
        trt: the module.
        path: of the engine.
        precision: for ``provider``.
        device: of the buffers, a CUDA GPU (the CPU only with a module that needs no GPU).

    Raises:
        EngineError: the engine is of another version or GPU.
    """

    def __init__(self, trt: Any, path: Path, precision: str, device: torch.device) -> None:
        self._logger = trt.Logger(trt.Logger.ERROR)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"{trt.__name__} {trt.__version__} refuses {path}: it was built by another version "
                "or for another GPU. Build it again: wristworld engine build --force."
            )
        rtx = is_rtx(trt)
        if rtx:  # compiles kernels when it is loaded and captures graphs itself
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            config.set_runtime_cache(config.create_runtime_cache())
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{trt.__name__} has no memory left for {path} on {device}. Use a smaller shape, "
                "or end what else runs there."
            )
        self.provider = f"{trt.__name__} {trt.__version__} {device} {precision}"
        self._device = device
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            shape = tuple(self._engine.get_tensor_shape(name))
            if self._engine.get_tensor_dtype(name) != trt.float32:
                raise EngineError(f"{path}: tensor {name} is not float32. Build it again.")
            buffer = torch.zeros(shape, device=device)
            self._context.set_tensor_address(name, buffer.data_ptr())
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (self._inputs if is_input else self._outputs).append(buffer)
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._graph: torch.cuda.CUDAGraph | None = None
        if self._cuda and not rtx:
            self._capture()

    def _enqueue(self, stream: int) -> None:
        if not self._context.execute_async_v3(stream):
            raise EngineError(f"{self.provider}: the engine did not run; TensorRT said why above.")

    def _capture(self) -> None:
        """A run before lets TensorRT set itself up, which a graph must not contain."""
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            self._enqueue(self._stream.cuda_stream)
        self._stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=self._stream):
            self._enqueue(self._stream.cuda_stream)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """As ``Runner.__call__``; the outputs are copies."""
        if self._stream is None:
            self._fill(inputs)
            self._enqueue(0)
            return tuple(x.clone() for x in self._outputs)
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._fill(inputs)
            if self._graph is not None:
                self._graph.replay()
            else:
                self._enqueue(self._stream.cuda_stream)
            found = tuple(x.clone() for x in self._outputs)
        current.wait_stream(self._stream)
        for x in found:
            x.record_stream(current)
        return found

    def _fill(self, inputs: tuple[Tensor, ...]) -> None:
        for buffer, x in zip(self._inputs, inputs, strict=True):
            if buffer.shape != x.shape:
                raise EngineError(
                    f"{self.provider}: input of shape {tuple(x.shape)}; the engine was built for "
                    f"{tuple(buffer.shape)}."
                )
            buffer.copy_(x)


def main(arguments: list[str]) -> int:
    """``MODULE ONNX PLAN TARGET``: build, as a process of its own; TARGET may be ``here``."""
    module, onnx, plan, target = arguments
    if find_spec(module) is None:
        print(f"{module} is not installed", file=sys.stderr)
        return 1
    trt = importlib.import_module(module)
    try:
        content = build_plan(trt, Path(onnx), None if target == "here" else target, progress=True)
    except EngineError as error:
        print(error, file=sys.stderr)
        return 1
    Path(plan).write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
