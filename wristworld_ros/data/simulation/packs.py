"""Packs: robots and objects as one npz file each (kinematic tree, visual meshes, textures).

``packs/LICENSES.md`` names the source and the licence of every file.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wristworld_ros.errors import InvalidInputError

PACK_DIR = Path(__file__).parent / "packs"


@dataclass(frozen=True)
class PackBody:
    """A link; ``parent`` counts bodies from 1, 0 is the world."""

    name: str
    parent: int
    position: tuple[float, ...]
    quaternion_wxyz: tuple[float, ...]


@dataclass(frozen=True)
class PackJoint:
    """A hinge or slide joint (``joint_type`` as MuJoCo's mjtJoint) of body number ``body``."""

    name: str
    body: int
    joint_type: int
    axis: tuple[float, ...]
    position: tuple[float, ...]
    limits: tuple[float, ...]
    limited: bool


@dataclass(frozen=True)
class PackPrimitive:
    """A primitive geom (``geom_type`` as MuJoCo's mjtGeom) on body number ``body``."""

    body: int
    geom_type: int
    size: tuple[float, ...]
    position: tuple[float, ...]
    quaternion_wxyz: tuple[float, ...]
    rgba: tuple[float, ...]


@dataclass(frozen=True)
class PackMesh:
    """A visual mesh in the frame of body number ``body``.

    Attributes:
        vertices: V x 3 float [m].
        faces: F x 3 int.
        rgba: 4 float in [0, 1].
        texcoords, texcoord_faces, texture: V' x 2, F x 3 and the texture's number, or None.
    """

    body: int
    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]
    rgba: tuple[float, ...]
    texcoords: NDArray[np.float64] | None = None
    texcoord_faces: NDArray[np.int64] | None = None
    texture: int | None = None


@dataclass(frozen=True)
class Pack:
    """Everything MuJoCo needs to show a robot or an object; textures are H x W x 3 uint8."""

    name: str
    bodies: tuple[PackBody, ...]
    joints: tuple[PackJoint, ...]
    primitives: tuple[PackPrimitive, ...]
    meshes: tuple[PackMesh, ...]
    textures: tuple[NDArray[np.uint8], ...]

    def bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Lower and upper corner of the meshes [m]; for packs without bodies (objects)."""
        vertices = np.concatenate([mesh.vertices for mesh in self.meshes])
        return vertices.min(axis=0), vertices.max(axis=0)


@cache
def load_pack(name: str) -> Pack:
    """Load the pack called ``name`` (a file of ``packs/`` without its suffix).

    Raises:
        InvalidInputError: there is no such pack.
    """
    path = PACK_DIR / f"{name}.npz"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PACK_DIR.glob("*.npz")))
        raise InvalidInputError(f"no pack '{name}' in {PACK_DIR}; use one of {known}.")
    with np.load(path) as arrays:
        tree = json.loads(str(arrays["tree"]))
        mesh_count, texture_count = (int(n) for n in arrays["n"])
        meshes = tuple(_read_mesh(arrays, f"m{i}_") for i in range(mesh_count))
        textures = tuple(_read_jpeg(arrays[f"t{i}"]) for i in range(texture_count))
    return Pack(
        name=name,
        bodies=tuple(
            PackBody(body_name, parent, tuple(position), tuple(quaternion))
            for body_name, parent, position, quaternion in tree["bodies"]
        ),
        joints=tuple(
            PackJoint(joint_name, body, kind, tuple(axis), tuple(position), tuple(limits), limited)
            for joint_name, body, kind, axis, position, limits, limited in tree["joints"]
        ),
        primitives=tuple(
            PackPrimitive(body, kind, tuple(size), tuple(position), tuple(quaternion), tuple(rgba))
            for body, kind, size, position, quaternion, rgba in tree["prims"]
        ),
        meshes=meshes,
        textures=textures,
    )


def _read_mesh(arrays: Any, prefix: str) -> PackMesh:
    textured = f"{prefix}tc" in arrays
    return PackMesh(
        body=int(arrays[f"{prefix}body"]),
        vertices=arrays[f"{prefix}v"].astype(np.float64),
        faces=arrays[f"{prefix}f"].astype(np.int64),
        rgba=tuple(float(c) for c in arrays[f"{prefix}rgba"]),
        texcoords=arrays[f"{prefix}tc"].astype(np.float64) if textured else None,
        texcoord_faces=arrays[f"{prefix}ft"].astype(np.int64) if textured else None,
        texture=int(arrays[f"{prefix}tex"]) if textured else None,
    )


def _read_jpeg(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(data.tobytes())).convert("RGB"))
