"""ONNX files in half precision, inputs and outputs in float32."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

from wristworld_ros.errors import EngineError


def half_precision(source: Path, target: Path) -> Path:
    """Write ``target``: all of ``source`` in float16 but its inputs and outputs.

    Raises:
        EngineError: ONNX Runtime, which does it, is not installed; or it cannot.
    """
    if find_spec("onnxruntime") is None:
        raise EngineError(
            "onnxruntime is not installed, by which graphs get half precision: "
            "pip install 'wristworld_ros[onnx]'."
        )
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about weights that float16 rounds to its smallest number
        try:
            half = convert_float_to_float16(model, keep_io_types=True)
        except (ValueError, RuntimeError) as error:
            raise EngineError(
                f"{source} cannot be converted to float16: {error}. Use precision 'fp32'."
            ) from error
    onnx.save(half, str(target))
    return target
