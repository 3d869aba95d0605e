"""Compilers and runtimes of networks behind one interface.

A backend turns an ONNX file into files of an engine (``build``, slow, done once) and these into a
runner (``load``, fast). None falls back to anything: the runner says what really runs.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import EngineError, InvalidInputError


class Runner(ABC):
    """A loaded engine.

    Attributes:
        provider: what really runs, as the runtime itself reports it.
    """

    provider: str

    @abstractmethod
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Outputs, float32 on the device of the first input."""


class Backend(ABC):
    """One runtime.

    Attributes:
        name: as users write it.
        package, extra: what has to be installed, and the extra of this package that does it.
        precisions: the first is the default.
        device: of the tensors that it runs on, ``cpu`` or ``cuda``.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]
    precisions: ClassVar[tuple[str, ...]]
    device: ClassVar[str] = "cpu"

    def missing(self) -> str | None:
        """Why it cannot build here, and the cure; None when it can."""
        if find_spec(self.package) is None:
            return f"{self.package} is not installed: pip install 'wristworld_ros[{self.extra}]'"
        return None

    def cannot_run(self) -> str | None:
        """Why it cannot run engines here, and the cure; None when it can.

        Engines may be built on machines that cannot run them.
        """
        return self.missing()

    def targeting(self, target: str) -> Backend:
        """The same that builds for a GPU that need not be here.

        Args:
            target: compute capability, such as ``8.6``.

        Raises:
            InvalidInputError: it cannot.
        """
        raise InvalidInputError(
            f"target {target}: backend '{self.name}' runs on the CPU. Leave the target out, or use "
            "backend 'tensorrt_rtx'."
        )

    def unsupported(self, precision: str) -> str | None:
        """Why this machine does not run that precision; None when it does."""
        return None

    def default_precision(self) -> str:
        """The first that this machine runs."""
        return next(p for p in self.precisions if self.unsupported(p) is None)

    def check(self, precision: str, *, run: bool = False) -> None:
        """Raise unless it can build here with that precision.

        Args:
            run: also unless it can run here.

        Raises:
            EngineError: it is not installed, or this machine does not run the precision.
            InvalidInputError: it does not have the precision.
        """
        if reason := self.cannot_run() if run else self.missing():
            raise EngineError(f"backend '{self.name}' cannot be used: {reason}.")
        if precision not in self.precisions:
            raise InvalidInputError(
                f"backend '{self.name}' has no precision '{precision}'; use one of "
                f"{', '.join(self.precisions)}."
            )
        if reason := self.unsupported(precision):
            raise EngineError(
                f"backend '{self.name}', precision '{precision}': {reason}. Use "
                f"'{self.default_precision()}'."
            )

    def identity(self) -> dict[str, str]:
        """What an engine depends on beside the network: versions, and the hardware if it does."""
        try:
            return {"version": version(self.package)}
        except PackageNotFoundError:
            return {"version": "unknown"}

    @abstractmethod
    def build(self, onnx: Path, folder: Path, precision: str) -> None:
        """Write the engine's files into an empty folder."""

    @abstractmethod
    def load(self, folder: Path, precision: str) -> Runner:
        """The engine of a folder, ready to run.

        Raises:
            EngineError: this machine cannot run it as it is meant to.
        """


class OnnxRuntime(Backend):
    """ONNX Runtime on the CPU."""

    name, package, extra = "onnxruntime", "onnxruntime", "onnx"
    precisions = ("fp32",)
    FILE = "model.onnx"

    def build(self, onnx: Path, folder: Path, precision: str) -> None:
        """As ``Backend.build``: the file as it is; it is optimised when it is loaded."""
        shutil.copyfile(onnx, folder / self.FILE)

    def load(self, folder: Path, precision: str) -> Runner:
        """As ``Backend.load``."""
        return _OnnxRuntimeRunner(folder / self.FILE)


class _OnnxRuntimeRunner(Runner):
    PROVIDER = "CPUExecutionProvider"

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        # Several engines take turns with torch: threads that wait must leave it the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=[self.PROVIDER])
        runs = self._session.get_providers()[0]
        if runs != self.PROVIDER:
            raise EngineError(f"ONNX Runtime runs {path} by {runs}, not by {self.PROVIDER}.")
        self.provider = f"onnxruntime {onnxruntime.__version__} {runs} fp32"
        self._names = [i.name for i in self._session.get_inputs()]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values = {n: x.cpu().numpy() for n, x in zip(self._names, inputs, strict=True)}
        return tuple(torch.from_numpy(x) for x in self._session.run(None, values))


class OpenVino(Backend):
    """OpenVINO on the CPU, in bf16 only where the processor has it."""

    name, package, extra = "openvino", "openvino", "openvino"
    precisions = ("bf16", "fp32")
    FILE = "model.xml"
    _HINT: ClassVar[dict[str, str]] = {"fp32": "f32", "bf16": "bf16"}

    def unsupported(self, precision: str) -> str | None:
        """As ``Backend.unsupported``."""
        if precision != "bf16" or self.missing() or "BF16" in _openvino_capabilities():
            return None
        return "this processor has no bfloat16 instructions"

    def build(self, onnx: Path, folder: Path, precision: str) -> None:
        """As ``Backend.build``."""
        import openvino

        model = openvino.Core().read_model(onnx)
        openvino.save_model(model, folder / self.FILE, compress_to_fp16=False)

    def load(self, folder: Path, precision: str) -> Runner:
        """As ``Backend.load``."""
        return _OpenVinoRunner(folder / self.FILE, self._HINT[precision], precision)


@lru_cache(maxsize=1)
def _openvino_capabilities() -> tuple[str, ...]:
    import openvino

    return tuple(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class _OpenVinoRunner(Runner):
    def __init__(self, path: Path, hint: str, precision: str) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": hint,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
        runs = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if runs != hint:
            raise EngineError(f"OpenVINO runs {path} in {runs}, not in {hint}.")
        devices = "+".join(compiled.get_property("EXECUTION_DEVICES"))
        self.provider = f"openvino {version('openvino')} {devices} {precision}"
        self._request = compiled.create_infer_request()
        self._outputs = list(compiled.outputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        found = self._request.infer([x.cpu().numpy() for x in inputs])
        return tuple(torch.from_numpy(np.array(found[o])) for o in self._outputs)
