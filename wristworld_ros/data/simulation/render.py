"""Offscreen rendering with MuJoCo: colour and depth in one pass, on EGL or OSMesa."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.simulation.backend import make_context, mujoco
from wristworld_ros.data.simulation.scene import MAX_FRAME
from wristworld_ros.errors import InvalidInputError

_MAX_GEOMS = 500
_context: Any = None


def _shared_context() -> Any:
    """The process's OpenGL context; made once and freed at exit."""
    global _context
    if _context is None:
        _context = make_context(MAX_FRAME)
        atexit.register(free_context)
    return _context


def free_context() -> None:
    """Free the process's OpenGL context (done by itself at exit)."""
    global _context
    if _context is not None:
        _context.free()
        _context = None


class SceneRenderer:
    """Renders the cameras of one model; use as a context manager."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._gl = _shared_context()
        self._gl.make_current()
        self._render = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._render)
        self._render.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=_MAX_GEOMS)
        self._options = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self._render.free()

    def __call__(
        self, data: mujoco.MjData, camera: str, width: int, height: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Picture H x W x 3 uint8 RGB and depth H x W float32 along z [m], 0 beyond the scene."""
        model = self._model
        self._camera.fixedcamid = model.camera(camera).id
        mujoco.mjv_updateScene(
            model,
            data,
            self._options,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL.value,
            self._scene,
        )
        viewport = mujoco.MjrRect(0, 0, width, height)
        image = np.empty((height, width, 3), np.uint8)
        buffer = np.empty((height, width), np.float32)
        mujoco.mjr_render(viewport, self._scene, self._render)
        mujoco.mjr_readPixels(image, buffer, viewport, self._render)
        near = model.vis.map.znear * model.stat.extent
        far = model.vis.map.zfar * model.stat.extent
        inverse = buffer[::-1].astype(np.float64)
        depth = near * far / (near + inverse * (far - near))
        depth[inverse <= 0] = 0.0
        return image[::-1].copy(), depth.astype(np.float32)


def check_size(name: str, size: tuple[int, int]) -> None:
    """Raise InvalidInputError unless ``size`` (width, height) [px] can be rendered."""
    if len(size) != 2 or not all(16 <= side <= MAX_FRAME for side in size):
        raise InvalidInputError(
            f"{name} {size}: width and height must be 16 to {MAX_FRAME} px. Choose a smaller one."
        )
