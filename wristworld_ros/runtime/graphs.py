"""A network as compilers want it: tensors in, tensors out, one fixed shape."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wristworld_ros.errors import EngineError

#: Counts up when a graph of this package changes although its weights do not: older engines then
#: no longer fit.
REVISION = 1
#: A bound on what one ONNX file holds [bytes].
_PROTOBUF_LIMIT = 2 << 30


@dataclass(frozen=True)
class Graph:
    """A network with a fixed shape.

    Attributes:
        name: what it is to its owner, e.g. ``denoiser``.
        module: called with the inputs in order; gives a tensor, or a tuple of them.
        inputs: name -> example, float32.
        outputs: names.
        weights: sha256 of the weights.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    weights: str

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input -> shape."""
        return {name: tuple(x.shape) for name, x in self.inputs.items()}

    def reference(self) -> tuple[Tensor, ...]:
        """What the module makes of the examples."""
        return call(self.module, tuple(self.inputs.values()))


def call(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs of a module as a tuple."""
    with torch.inference_mode():
        out = module(*inputs)
    return out if isinstance(out, tuple) else (out,)


def exporters() -> dict[str, str]:
    """Versions of what writes ONNX files.

    Raises:
        EngineError: one of them is not installed.
    """
    found: dict[str, str] = {"torch": str(torch.__version__)}
    for name in ("onnx", "onnxscript"):
        try:
            found[name] = version(name)
        except ModuleNotFoundError:
            raise EngineError(
                f"{name} is not installed, by which networks are exported: "
                "pip install 'wristworld_ros[onnx]'."
            ) from None
    return found


def export_onnx(graph: Graph, path: Path) -> str:
    """Write ``path`` by torch's exporter (dynamo, its default opset); return the file's sha256.

    Raises:
        EngineError: exporters are missing, or cannot write this network.
    """
    exporters()
    size = sum(p.numel() * p.element_size() for p in graph.module.parameters())
    if size > _PROTOBUF_LIMIT:
        raise EngineError(
            f"{graph.name} has {size / 2**30:.1f} GiB of weights; one ONNX file holds 2."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program: Any = torch.onnx.export(
                graph.module,
                tuple(graph.inputs.values()),
                dynamo=True,
                input_names=list(graph.inputs),
                output_names=list(graph.outputs),
                verbose=False,
            )
        except Exception as error:
            raise EngineError(
                f"{graph.name} cannot be exported to ONNX: {error}. Leave it to torch (backend "
                "'torch', or 'auto' without its engine)."
            ) from error
    program.save(str(path))
    return hashlib.sha256(path.read_bytes()).hexdigest()
