"""Catalogue of objects: coloured procedural shapes and packed meshes, for training or held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.simulation.backend import mujoco
from wristworld_ros.data.simulation.packs import load_pack

FloatArray = NDArray[np.float64]
_Geom = mujoco.mjtGeom

COLOURS = {
    "red": (0.85, 0.1, 0.1),
    "green": (0.1, 0.65, 0.2),
    "blue": (0.1, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.5, 0.15, 0.7),
    "orange": (0.95, 0.5, 0.05),
    "white": (0.92, 0.92, 0.92),
    "black": (0.08, 0.08, 0.08),
    "cyan": (0.1, 0.75, 0.8),
    "pink": (0.95, 0.5, 0.65),
    "brown": (0.4, 0.25, 0.12),
}


@dataclass(frozen=True)
class Solid:
    """Shape of one object in its own frame, which has z up.

    Attributes:
        lower, upper: corners of the bounding box [m].
        geom_type, geom_size: MuJoCo primitive, or None for a mesh.
        lying: the primitive's axis points along y instead of z.
        vertices, faces: V x 3 [m] and F x 3 of a procedural mesh, or None.
        pack: name of a pack with the meshes, or None.
        support_height: height above its bottom at which another object can rest [m], or None.
        support_word: ``on`` or ``in``.
    """

    lower: FloatArray
    upper: FloatArray
    geom_type: int | None = None
    geom_size: tuple[float, ...] = ()
    lying: bool = False
    vertices: FloatArray | None = None
    faces: NDArray[np.int64] | None = None
    pack: str | None = None
    support_height: float | None = None
    support_word: str = "on"

    @property
    def extent(self) -> FloatArray:
        """Edge lengths of the bounding box [m]."""
        return self.upper - self.lower

    @property
    def is_round(self) -> bool:
        """Whether its outline from above is (nearly) a circle."""
        box = self.geom_type == int(_Geom.mjGEOM_BOX)
        return not box and abs(self.extent[0] - self.extent[1]) < 0.1 * self.extent[0]

    @property
    def radius(self) -> float:
        """Radius of the upright cylinder that holds the object [m]."""
        if self.is_round:
            return float(self.extent[:2].max() / 2)
        return float(np.linalg.norm(self.extent[:2]) / 2)


@dataclass(frozen=True)
class ObjectKind:
    """An entry of the catalogue; ``make`` draws its size."""

    name: str
    make: Callable[[np.random.Generator], Solid]
    colour: str | None = None


def _primitive(
    geom_type: int,
    size: Sequence[float],
    half: Sequence[float],
    *,
    lying: bool = False,
    flat_top: bool = False,
) -> Solid:
    half_extent = np.array(half, np.float64)
    return Solid(
        lower=-half_extent,
        upper=half_extent,
        geom_type=int(geom_type),
        geom_size=tuple(float(s) for s in size),
        lying=lying,
        support_height=float(2 * half_extent[2]) if flat_top else None,
    )


def _cube(rng: np.random.Generator) -> Solid:
    edge = rng.uniform(0.018, 0.03)
    return _primitive(_Geom.mjGEOM_BOX, [edge] * 3, [edge] * 3, flat_top=True)


def _block(rng: np.random.Generator) -> Solid:
    edge = rng.uniform(0.018, 0.03)
    half = [edge, rng.uniform(0.03, 0.06), edge]
    return _primitive(_Geom.mjGEOM_BOX, half, half, flat_top=True)


def _cylinder(rng: np.random.Generator) -> Solid:
    radius, half = rng.uniform(0.018, 0.03), rng.uniform(0.02, 0.05)
    return _primitive(
        _Geom.mjGEOM_CYLINDER, [radius, half, 0], [radius, radius, half], flat_top=True
    )


def _ball(rng: np.random.Generator) -> Solid:
    radius = rng.uniform(0.018, 0.032)
    return _primitive(_Geom.mjGEOM_SPHERE, [radius, 0, 0], [radius] * 3)


def _egg(rng: np.random.Generator) -> Solid:
    half = [rng.uniform(0.018, 0.028), rng.uniform(0.03, 0.042), rng.uniform(0.018, 0.026)]
    return _primitive(_Geom.mjGEOM_ELLIPSOID, half, half)


def _capsule(rng: np.random.Generator) -> Solid:
    radius, half = rng.uniform(0.014, 0.024), rng.uniform(0.02, 0.045)
    return _primitive(
        _Geom.mjGEOM_CAPSULE, [radius, half, 0], [radius, half + radius, radius], lying=True
    )


def lathe(profile: Sequence[tuple[float, float]], segments: int = 28) -> Solid:
    """Solid of revolution about z.

    Args:
        profile: (radius, height) pairs [m] along the surface, from axis to axis, so that the
            surface is closed; walking along it, the solid is on the left.
        segments: corners of each ring.
    """
    angles = np.arange(segments) * 2 * np.pi / segments
    circle = np.stack([np.cos(angles), np.sin(angles), np.zeros(segments)], axis=1)
    rings: list[FloatArray] = []
    starts: list[int] = []
    count = 0
    for radius, height in profile:
        ring = np.zeros((1, 3)) if radius == 0 else circle * radius
        rings.append(ring + np.array([0.0, 0.0, height]))
        starts.append(count)
        count += len(ring)
    faces: list[tuple[int, int, int]] = []
    for a, b in zip(range(len(profile) - 1), range(1, len(profile)), strict=True):
        for i in range(segments):
            j = (i + 1) % segments
            a0, a1 = (starts[a] + (k if len(rings[a]) > 1 else 0) for k in (i, j))
            b0, b1 = (starts[b] + (k if len(rings[b]) > 1 else 0) for k in (i, j))
            if a0 != a1:
                faces.append((a0, a1, b1))
            if b0 != b1:
                faces.append((a0, b1, b0))
    vertices = np.concatenate(rings)
    return Solid(
        lower=vertices.min(axis=0),
        upper=vertices.max(axis=0),
        vertices=vertices,
        faces=np.array(faces, np.int64),
    )


def _with_support(solid: Solid, height: float, word: str) -> Solid:
    return Solid(
        lower=solid.lower,
        upper=solid.upper,
        vertices=solid.vertices,
        faces=solid.faces,
        support_height=height,
        support_word=word,
    )


def _cone(rng: np.random.Generator) -> Solid:
    radius, height = rng.uniform(0.022, 0.034), rng.uniform(0.05, 0.09)
    return lathe([(0, 0), (radius, 0), (radius * 0.08, height), (0, height)])


def _bowl(rng: np.random.Generator) -> Solid:
    radius, height = rng.uniform(0.055, 0.075), rng.uniform(0.035, 0.05)
    wall, floor = 0.004, 0.007
    steps = np.linspace(0, 1, 6)
    foot = 0.5 * radius
    outer = [(foot + (radius - foot) * np.sin(s * np.pi / 2), height * s) for s in steps]
    inner = [(r - wall, max(floor, h)) for r, h in reversed(outer)]
    solid = lathe([(0, 0), *outer, *inner, (0, floor)])
    return _with_support(solid, floor, "in")


def _cup(rng: np.random.Generator) -> Solid:
    radius, height = rng.uniform(0.028, 0.036), rng.uniform(0.07, 0.095)
    wall, floor, foot = 0.003, 0.005, 0.75 * radius
    profile = [(0, 0), (foot, 0), (radius, height), (radius - wall, height)]
    return lathe([*profile, (foot - wall, floor), (0, floor)])


def _plate(rng: np.random.Generator) -> Solid:
    radius, height, floor = rng.uniform(0.07, 0.085), rng.uniform(0.012, 0.018), 0.005
    profile = [(0, 0), (0.6 * radius, 0), (radius, height), (radius - 0.005, height)]
    return _with_support(lathe([*profile, (0.6 * radius, floor), (0, floor)]), floor, "on")


def _hexagon(rng: np.random.Generator) -> Solid:
    radius, height = rng.uniform(0.022, 0.034), rng.uniform(0.03, 0.07)
    solid = lathe([(0, 0), (radius, 0), (radius, height), (0, height)], segments=6)
    return _with_support(solid, height, "on")


def _spool(rng: np.random.Generator) -> Solid:
    radius, height = rng.uniform(0.025, 0.034), rng.uniform(0.045, 0.07)
    lip, core = 0.18 * height, 0.6 * radius
    profile = [(0, 0), (radius, 0), (radius, lip), (core, lip), (core, height - lip)]
    solid = lathe([*profile, (radius, height - lip), (radius, height), (0, height)])
    return _with_support(solid, height, "on")


def _packed(name: str) -> Callable[[np.random.Generator], Solid]:
    def make(rng: np.random.Generator) -> Solid:
        lower, upper = load_pack(name).bounds()
        return Solid(lower=lower, upper=upper, pack=name)

    return make


def _shapes(
    shapes: Mapping[str, Callable[[np.random.Generator], Solid]], colours: Mapping[str, str]
) -> tuple[ObjectKind, ...]:
    return tuple(
        ObjectKind(f"{colour} {shape}", make, colour)
        for shape, make in shapes.items()
        for colour in colours[shape].split()
    )


_TRAIN_SHAPES = {
    "cube": _cube,
    "block": _block,
    "cylinder": _cylinder,
    "ball": _ball,
    "egg": _egg,
    "capsule": _capsule,
    "cone": _cone,
    "bowl": _bowl,
}
_TRAIN_COLOURS = {
    "cube": "red green blue yellow purple orange white black",
    "block": "red green blue yellow purple orange",
    "cylinder": "red green blue yellow white black",
    "ball": "red blue yellow orange white",
    "egg": "white orange purple",
    "capsule": "green red white",
    "cone": "orange yellow purple",
    "bowl": "white blue red black",
}
_HELD_OUT_SHAPES = {
    "cube": _cube,
    "cylinder": _cylinder,
    "cup": _cup,
    "plate": _plate,
    "hexagon": _hexagon,
    "spool": _spool,
}
_HELD_OUT_COLOURS = {
    "cube": "cyan pink brown",
    "cylinder": "cyan pink",
    "cup": "cyan pink brown white",
    "plate": "white cyan",
    "hexagon": "brown cyan pink",
    "spool": "brown pink",
}

TRAIN_OBJECTS: tuple[ObjectKind, ...] = _shapes(_TRAIN_SHAPES, _TRAIN_COLOURS) + tuple(
    ObjectKind(name, _packed(f"obj_rs_{pack}"))
    for name, pack in (
        ("bottle", "bottle"),
        ("can", "can"),
        ("cereal box", "cereal"),
        ("milk carton", "milk"),
    )
)
HELD_OUT_OBJECTS: tuple[ObjectKind, ...] = _shapes(_HELD_OUT_SHAPES, _HELD_OUT_COLOURS) + tuple(
    ObjectKind(name, _packed(f"obj_rs_{name}")) for name in ("bread", "lemon")
)


def catalogue(held_out: bool) -> tuple[ObjectKind, ...]:
    """The objects of training, or the held-out ones; no object is in both."""
    return HELD_OUT_OBJECTS if held_out else TRAIN_OBJECTS
