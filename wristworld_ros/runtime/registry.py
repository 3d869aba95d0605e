"""Backends by name."""

from __future__ import annotations

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.runtime.backends import Backend, OnnxRuntime, OpenVino
from wristworld_ros.runtime.tensorrt import TensorRT

#: Name -> backend, in the order in which ``auto`` prefers them among those for a device.
BACKENDS: dict[str, Backend] = {
    b.name: b for b in (OpenVino(), OnnxRuntime(), TensorRT("tensorrt"), TensorRT("tensorrt_rtx"))
}


def get_backend(name: str) -> Backend:
    """A backend by name.

    Raises:
        InvalidInputError: there is none of that name.
    """
    if name not in BACKENDS:
        raise InvalidInputError(f"backend '{name}' is not one of {', '.join(BACKENDS)}.")
    return BACKENDS[name]
