"""The robot's own body from its URDF and joint states: where it is, in every picture, exactly.

Beyond WristWorld, for robots whose joints are known. The gripper fills the near field of a wrist
camera, third-person pictures show it from the far side, and predicted depth is at its worst there;
the URDF knows it to a millimetre.
"""

from __future__ import annotations

import base64
import hashlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.types import CameraModel, FloatArray, Image, PointCloud

logger = logging.getLogger(__name__)

#: Distance of the points on the surface [m]: for third-person pictures, and for what is far from
#: and close to the wrist camera.
COARSE, MEDIUM, FINE = 0.004, 0.003, 0.0012
#: Where fine points end, and where all points for the wrist view do [m from the wrist camera].
FINE_REACH, VIEW_REACH = 0.15, 0.4
#: Edge of the cubes of points that are in the wrist view, or not, as a whole [m].
CELL = 0.02
#: Points this far outside a picture [px] may still reach into it.
EDGE = 8
#: Random points per kept one.
OVERSAMPLING = 3
#: Footprint of a point, so that a surface closes, in distances of points.
REACH = 1.25
#: Most random points on one mesh: a robot of a kilometre is a mistake of units.
MOST_POINTS = 20_000_000
#: Keeps grid coordinates positive in 21 bits each.
_OFFSET = 1 << 20
DEFAULT_COLOUR = (160, 160, 160)


class _Cells:
    """Points on a link's surface in the cubes of a grid in its frame."""

    def __init__(self, points: NDArray[np.float32], colours: Image) -> None:
        cube = np.floor(points / CELL).astype(np.int64)
        order = np.lexsort(cube.T)
        self.points, self.colours = points[order], colours[order]
        cubes, self.counts = np.unique(cube[order][:, ::-1], axis=0, return_counts=True)
        #: Their middles, C x 3 [m].
        self.middles = ((cubes[:, ::-1] + 0.5) * CELL).astype(np.float32)


class _Link:
    """Surface of one link, in its frame; finer points are drawn when they are first asked for."""

    def __init__(self, name: str, meshes: Sequence[tuple[FloatArray, Any]]) -> None:
        self.name = name
        self._meshes = meshes
        self.coarse, self.coarse_colours = _sample(name, meshes, COARSE)
        low, high = self.coarse.min(0), self.coarse.max(0)
        #: Sphere around the link: middle (3,) and radius [m].
        self.middle = (low + high).astype(np.float64) / 2
        self.radius = float(np.linalg.norm(high - low)) / 2 + COARSE

    @cached_property
    def medium(self) -> _Cells:
        """Points at a distance of ``MEDIUM``."""
        return _Cells(*_sample(self.name, self._meshes, MEDIUM))

    @cached_property
    def fine(self) -> _Cells:
        """Points at a distance of ``FINE``."""
        return _Cells(*_sample(self.name, self._meshes, FINE))


class RobotModel:
    """Surface of a robot, placed by joint states.

    Attributes:
        root: name of the root link, whose frame the joints move the robot in.
        joints: names of the joints that have to be known.
        links: names of all links.
    """

    def __init__(self, urdf: Any) -> None:
        """``urdf``: a ``yourdfpy.URDF`` with meshes; ``from_urdf`` makes it."""
        self._urdf = urdf
        self.root: str = urdf.base_link
        self.joints: tuple[str, ...] = tuple(urdf.actuated_joint_names)
        self.links: tuple[str, ...] = tuple(urdf.link_map)
        self._links = _links_of(urdf)
        if not self._links:
            raise InvalidInputError(
                "the robot description has no visible surface: no mesh of its links was found. "
                "Check the paths of its meshes (package:// needs the package, file:// the file)."
            )

    @classmethod
    def from_urdf(
        cls, source: str | Path, packages: Mapping[str, str | Path] | None = None
    ) -> RobotModel:
        """Load a URDF.

        Args:
            source: a file, or the XML itself (topic ``robot_description``).
            packages: name -> folder, for ``package://`` paths; installed ROS packages are found by
                ``AMENT_PREFIX_PATH``.

        Raises:
            InvalidInputError: not a URDF, or a mesh is missing; the message names it.
        """
        text = str(source)
        folder = Path.cwd()
        if not text.lstrip().startswith("<"):
            path = Path(source)
            if not path.is_file():
                raise InvalidInputError(f"there is no robot description {path}. Check the path.")
            text, folder = path.read_text(), path.parent
        with tempfile.TemporaryDirectory() as embedded:
            return cls(_parsed(text, _mesh_finder(folder, packages or {}, Path(embedded))))

    def missing(self, joints: Mapping[str, float]) -> list[str]:
        """Names of the joints that ``joints`` lacks."""
        return [name for name in self.joints if name not in joints]

    def link_pose(self, link: str, joints: Mapping[str, float]) -> FloatArray:
        """``T_root_link`` (4 x 4) at joint positions [rad or m].

        Raises:
            InvalidInputError: no such link, or a joint is missing or not finite.
        """
        self._move(joints)
        if link not in self.links:
            raise InvalidInputError(
                f"the robot has no link '{link}'; it has {', '.join(self.links)}."
            )
        return np.asarray(self._urdf.get_transform(link), np.float64)

    def surface(
        self, joints: Mapping[str, float], T_world_root: FloatArray | None = None
    ) -> PointCloud:
        """Coarse points on the robot's surface in the world, coloured as its description says.

        Args:
            joints: name -> position [rad or m].
            T_world_root: 4 x 4; identity when None.

        Raises:
            InvalidInputError: a joint is missing or not finite.
        """
        self._move(joints)
        T_world_root = np.eye(4) if T_world_root is None else T_world_root
        parts = []
        for link in self._links:
            T = T_world_root @ self._urdf.get_transform(link.name)
            parts.append((_placed(T, link.coarse), link.coarse_colours, COARSE))
        return _cloud(parts)

    def surface_in_view(
        self,
        joints: Mapping[str, float],
        T_world_root: FloatArray | None,
        T_world_camera: FloatArray,
        camera: CameraModel,
        near: float,
    ) -> PointCloud:
        """Points of the parts within ``VIEW_REACH`` of a camera that may be in its picture.

        Those closer than ``FINE_REACH`` are finer. The cloud is in the world; points to all sides
        of the picture that share a cube of ``CELL`` with one in it are part of it.

        Args:
            joints, T_world_root: see ``surface``.
            T_world_camera: 4 x 4 pose of the camera; camera: its intrinsics.
            near: what is closer to it than this along its axis is left out [m].
        """
        self._move(joints)
        T_camera_root = invert(T_world_camera)
        if T_world_root is not None:
            T_camera_root = T_camera_root @ T_world_root
        walls = _walls(camera)
        half = np.float32(CELL * np.sqrt(3) / 2)
        parts = []
        for link in self._links:
            T = T_camera_root @ self._urdf.get_transform(link.name)
            middle = apply(T, link.middle[None])[0]
            if (
                np.linalg.norm(middle) > VIEW_REACH + link.radius
                or (walls @ middle < -link.radius).any()
            ):
                continue
            for cells, spacing, low, high in (
                (link.fine, FINE, 0.0, FINE_REACH),
                (link.medium, MEDIUM, FINE_REACH, VIEW_REACH + half),
            ):
                middles = _placed(T, cells.middles)
                away = np.linalg.norm(middles, axis=1)
                chosen = (away >= low) & (away < high) & (middles[:, 2] > near - half)
                chosen &= (middles @ walls.T > -half).all(1)
                if chosen.any():
                    kept = np.repeat(chosen, cells.counts)
                    points = _placed(T_world_camera @ T, cells.points[kept])
                    parts.append((points, cells.colours[kept], spacing))
        return _cloud(parts)

    def _move(self, joints: Mapping[str, float]) -> None:
        if missing := self.missing(joints):
            raise InvalidInputError(
                f"joint states lack {', '.join(missing)}, which the robot description moves. "
                "Publish them on joint_states (the gripper's too)."
            )
        values = {name: float(joints[name]) for name in self.joints}
        if bad := [name for name, value in values.items() if not np.isfinite(value)]:
            raise InvalidInputError(f"joint {bad[0]} is at {values[bad[0]]}; need a finite value.")
        self._urdf.update_cfg(values)


def _walls(camera: CameraModel) -> NDArray[np.float32]:
    """Inward unit normals (4 x 3) of the sides of what a camera sees, ``EDGE`` pixels wider."""
    (fx, _, cx), (_, fy, cy) = camera.K[0], camera.K[1]
    left, right = (-EDGE - cx) / fx, (camera.width + EDGE - cx) / fx
    top, bottom = (-EDGE - cy) / fy, (camera.height + EDGE - cy) / fy
    walls = np.array([[1, 0, -left], [-1, 0, right], [0, 1, -top], [0, -1, bottom]], np.float32)
    return walls / np.linalg.norm(walls, axis=1, keepdims=True)


def _cloud(parts: Sequence[tuple[NDArray[np.float32], Image, float]]) -> PointCloud:
    """Points, colours and the points' distance, of several parts, as a cloud."""
    xyz = np.concatenate([p for p, _, _ in parts] or [np.zeros((0, 3), np.float32)])
    rgb = np.concatenate([c for _, c, _ in parts] or [np.zeros((0, 3), np.uint8)])
    sizes = [np.full(len(p), REACH * s, np.float32) for p, _, s in parts]
    footprint = np.concatenate(sizes or [np.zeros(0, np.float32)])
    one, none = np.ones(len(xyz), np.float32), np.zeros(len(xyz), np.uint8)
    return PointCloud(xyz, rgb, one, footprint, none)


def _placed(T: FloatArray, points: NDArray[np.float32]) -> NDArray[np.float32]:
    """In single precision, which is a micrometre here."""
    return points @ T[:3, :3].T.astype(np.float32) + T[:3, 3].astype(np.float32)


def _parsed(text: str, find: Callable[..., str]) -> Any:
    """A ``yourdfpy.URDF`` with its meshes."""
    import yourdfpy
    from lxml import etree

    try:
        tree = etree.fromstring(text.encode())
        names = [
            str(mesh.get("filename", ""))
            for mesh in tree.iter("mesh")
            if mesh.getparent().getparent().tag == "visual"
        ]
        if missing := [name for name in names if not Path(find(name)).is_file()]:
            raise InvalidInputError(
                f"the robot description names {len(missing)} meshes that are not there, first "
                f"{missing[0]} ({find(missing[0])}). Install or source the package they are of, "
                "or say where it is."
            )
        return yourdfpy.URDF.load(io.BytesIO(text.encode()), filename_handler=find)
    except InvalidInputError:
        raise
    except Exception as error:  # readers of XML and of meshes raise whatever they like
        raise InvalidInputError(
            f"the robot description cannot be read: {error}. Look for the fault with `check_urdf`."
        ) from error


def _mesh_finder(
    folder: Path, packages: Mapping[str, str | Path], embedded: Path
) -> Callable[..., str]:
    """Resolves the ``filename`` of a URDF's mesh to a path, which may not exist.

    Meshes that are part of the text (``data:`` URIs) are written to ``embedded``.
    """

    def find(fname: str) -> str:
        if fname.startswith("data:"):
            kind, _, content = fname.partition(";base64,")
            path = embedded / f"{hashlib.sha256(fname.encode()).hexdigest()}.{Path(kind).name}"
            if not path.exists():
                path.write_bytes(base64.b64decode(content))
            return str(path)
        parsed = urlparse(fname)
        if parsed.scheme == "file":
            return unquote(parsed.path)
        if parsed.scheme == "package":
            package, rest = parsed.netloc, unquote(parsed.path).lstrip("/")
            if package in packages:
                return str(Path(packages[package]) / rest)
            prefixes = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
            shares = [Path(p) / "share" / package / rest for p in prefixes if p]
            return str(next((p for p in shares if p.is_file()), Path(package) / rest))
        return str(folder / fname)

    return find


def _links_of(urdf: Any) -> list[_Link]:
    """The links that have visual meshes."""
    import trimesh

    graph = urdf.scene.graph
    parts: dict[str, list[tuple[FloatArray, Any]]] = {}
    for node in graph.nodes_geometry:
        link = graph.transforms.parents[node]
        T, name = graph.get(node, link)
        mesh = urdf.scene.geometry[name]
        if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces):
            parts.setdefault(link, []).append((np.asarray(T, np.float64), mesh))
    return [_Link(name, meshes) for name, meshes in parts.items()]


def _sample(
    link: str, meshes: Sequence[tuple[FloatArray, Any]], spacing: float
) -> tuple[NDArray[np.float32], Image]:
    """Evenly spread points (N x 3, in the link's frame [m]) on meshes, and their colours."""
    from trimesh.sample import sample_surface

    points, colours = [], []
    for T, mesh in meshes:
        count = int(OVERSAMPLING * float(mesh.area) / spacing**2) + OVERSAMPLING
        if count > MOST_POINTS:
            raise InvalidInputError(
                f"link {link} has a surface of {mesh.area:g} m2. Check the scale of its meshes."
            )
        placed, face = sample_surface(mesh, count, seed=np.random.default_rng(0))
        # One point for each cube of a grid: random points alone leave holes.
        cube = np.floor(placed / spacing).astype(np.int64) + _OFFSET
        key = (cube[:, 0] << 42) + (cube[:, 1] << 21) + cube[:, 2]
        kept = np.unique(key, return_index=True)[1]
        points.append(apply(T, placed[kept]).astype(np.float32))
        colours.append(_face_colours(mesh)[face[kept]])
    return np.concatenate(points), np.concatenate(colours)


def _face_colours(mesh: Any) -> Image:
    """F x 3 uint8; grey where the mesh has none."""
    try:
        visual = mesh.visual if mesh.visual.kind != "texture" else mesh.visual.to_color()
        colours = np.asarray(visual.face_colors)[:, :3]
        if len(colours) == len(mesh.faces):
            return colours.astype(np.uint8)
    except (AttributeError, IndexError, ValueError) as error:
        logger.debug("colours of a mesh are left out: %s", error)
    return np.tile(np.array(DEFAULT_COLOUR, np.uint8), (len(mesh.faces), 1))
