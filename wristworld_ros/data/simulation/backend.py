"""MuJoCo and its offscreen OpenGL (EGL or OSMesa), with errors that say what to install."""

from __future__ import annotations

import ctypes.util
import os
from typing import Any

from wristworld_ros.errors import WristWorldError

#: Value of MUJOCO_GL -> name of the library that it needs.
BACKENDS = {"egl": "EGL", "osmesa": "OSMesa"}
_CURE = (
    "On Debian or Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri, or libosmesa6 "
    "with MUJOCO_GL=osmesa. MUJOCO_GL may also stay unset."
)


class RenderingError(WristWorldError):
    """MuJoCo or an offscreen OpenGL context is not to be had on this machine."""


try:
    import mujoco
except ModuleNotFoundError as error:
    raise RenderingError(
        f"simulation needs MuJoCo ({error}). Install it: pip install mujoco==4.0.0"
    ) from error
except (AttributeError, OSError, RuntimeError) as error:  # from PyOpenGL, for MUJOCO_GL
    raise RenderingError(
        f"MUJOCO_GL is '{os.environ.get('MUJOCO_GL', '')}', which does not work here ({error}). "
        + _CURE
    ) from error

__all__ = ["BACKENDS", "RenderingError", "make_context", "mujoco"]


def _choose_backend() -> str:
    """MUJOCO_GL if it names an offscreen backend, else the first whose library is installed."""
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    if asked in BACKENDS:
        return asked
    for backend, library in BACKENDS.items():
        if ctypes.util.find_library(library):
            return backend
    raise RenderingError("no offscreen OpenGL: neither libEGL nor libOSMesa is installed. " + _CURE)


def make_context(max_side: int) -> Any:
    """An offscreen OpenGL context for pictures up to ``max_side`` px; the caller frees it.

    Raises:
        RenderingError: there is no usable OpenGL.
    """
    backend = _choose_backend()
    try:
        if backend == "egl":
            from mujoco.egl import GLContext
        else:
            from mujoco.osmesa import GLContext
        return GLContext(max_side, max_side)
    except Exception as error:  # PyOpenGL and the drivers raise many unrelated types
        raise RenderingError(
            f"the OpenGL backend '{backend}' does not start ({error}). {_CURE}"
        ) from error
