"""Build one randomised tabletop scene as a MuJoCo model.

The world is the robot's base frame: x forward, y left, z up, metres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.simulation.backend import mujoco
from wristworld_ros.data.simulation.objects import COLOURS, ObjectKind, Solid, catalogue
from wristworld_ros.data.simulation.packs import Pack, load_pack
from wristworld_ros.data.simulation.robots import CameraMount, Robot
from wristworld_ros.data.simulation.splits import Split
from wristworld_ros.data.simulation.textures import random_texture

FloatArray = NDArray[np.float64]
_Geom = mujoco.mjtGeom

WRIST_CAMERA = "wrist"
TOOL_SITE = "tool_centre"
NEAR, FAR = 0.01, 6.0  # clipping planes [m]
#: Area where objects stand, relative to the workspace: x and y ranges [m].
TABLE_X, TABLE_Y = (0.36, 0.60), (-0.24, 0.24)
_SHADOW_MAP_SIZE = 1024
MAX_FRAME = 1024  # largest side of a rendered picture [px]


def anchor_name(index: int) -> str:
    """Name of anchor camera ``index``."""
    return f"anchor_{index}"


def body_of_object(index: int) -> str:
    """Name of the body of object ``index``."""
    return f"object_{index}"


@dataclass(frozen=True)
class PlacedObject:
    """An object at its starting place: ``position`` (3,) [m] of its frame, ``yaw`` [rad]."""

    name: str
    solid: Solid
    position: FloatArray
    yaw: float

    @property
    def centre(self) -> FloatArray:
        """Centre of the bounding box in the table plane (2,) [m]."""
        x, y = (self.solid.lower + self.solid.upper)[:2] / 2
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return self.position[:2] + np.array([c * x - s * y, s * x + c * y])

    def reach(self, direction: FloatArray) -> float:
        """Distance from ``centre`` to the bounding surface along ``direction`` (2,) [m]."""
        half = self.solid.extent[:2] / 2
        if self.solid.is_round:
            return float(half.max())
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        local = np.array([c * direction[0] + s * direction[1], c * direction[1] - s * direction[0]])
        return float(np.abs(local) @ half)


@dataclass(frozen=True)
class Scene:
    """A compiled scene: the robot, its objects and the cameras' names."""

    model: mujoco.MjModel
    data: mujoco.MjData
    robot: Robot
    objects: tuple[PlacedObject, ...]
    anchors: tuple[str, ...]


@dataclass(frozen=True)
class SceneStreams:
    """Independent random streams of one seed, so that one choice does not shift the others."""

    seed: int

    def stream(self, purpose: str, index: int = 0) -> np.random.Generator:
        """The generator for ``purpose`` (and its ``index``)."""
        return np.random.default_rng([self.seed, index, *purpose.encode()])


def build_scene(
    seed: int, split: Split, robot: Robot, *, anchor_count: int, shadows: bool
) -> Scene:
    """Build and compile the scene of ``seed``."""
    streams = SceneStreams(seed)
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    _set_visuals(spec, streams.stream("ambient"))
    _add_lights(spec, streams.stream("lights"), robot.workspace_x, shadows)
    _add_room(spec, streams.stream("room"), robot.workspace_x, split.held_out_textures)
    hand = _add_robot(spec, robot)
    _add_wrist_camera(hand, streams.stream("mount"), robot.mount, split.moved_mount)
    for index in range(anchor_count):
        sector = split.sectors[index % len(split.sectors)]
        _add_anchor(spec, streams.stream("anchor", index), index, sector, robot.workspace_x)
    objects = _place_objects(
        streams.stream("objects"), catalogue(split.held_out_objects), robot.workspace_x
    )
    for index, (kind, placed) in enumerate(objects):
        _add_object(spec, streams.stream("surface", index), index, kind, placed, split)
    model = spec.compile()
    return Scene(
        model=model,
        data=mujoco.MjData(model),
        robot=robot,
        objects=tuple(placed for _, placed in objects),
        anchors=tuple(anchor_name(i) for i in range(anchor_count)),
    )


def _quaternion(rotation: FloatArray) -> FloatArray:
    wxyz = np.zeros(4)
    mujoco.mju_mat2Quat(wxyz, np.ascontiguousarray(rotation).ravel())
    return wxyz


def _turned_about_z(wxyz: FloatArray, angle: float) -> FloatArray:
    """Orientation ``wxyz`` turned by ``angle`` [rad] about its own z axis."""
    turned = np.zeros(4)
    mujoco.mju_mulQuat(turned, wxyz, np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)]))
    return turned


def _set_visuals(spec: mujoco.MjSpec, rng: np.random.Generator) -> None:
    visual = spec.visual
    visual.global_.offwidth = visual.global_.offheight = MAX_FRAME
    visual.quality.shadowsize = _SHADOW_MAP_SIZE
    visual.quality.offsamples = 0
    visual.map.znear, visual.map.zfar = NEAR, FAR
    spec.stat.extent, spec.stat.center, spec.stat.meansize = 1.0, [0.4, 0, 0.2], 0.1
    # The headlight rides on each camera: anything but ambient would differ between the views.
    visual.headlight.ambient = [rng.uniform(0.3, 0.5)] * 3
    visual.headlight.diffuse = visual.headlight.specular = [0.0] * 3


def _add_lights(spec: mujoco.MjSpec, rng: np.random.Generator, shift: float, shadows: bool) -> None:
    for index in range(int(rng.integers(1, 3))):
        position = rng.uniform([-0.5, -1.2, 1.4], [1.5, 1.2, 2.2]) + np.array([shift, 0, 0])
        direction = np.array([0.5 + shift, 0, 0]) - position
        spec.worldbody.add_light(
            pos=position,
            dir=direction / np.linalg.norm(direction),
            diffuse=rng.uniform(0.4, 0.75) * rng.uniform(0.85, 1, 3),
            specular=[0.15] * 3,
            ambient=[0.0] * 3,
            castshadow=shadows and index == 0,
        )


def _add_texture(spec: mujoco.MjSpec, name: str, image: NDArray[np.uint8]) -> None:
    texture = spec.add_texture(
        name=name,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        width=image.shape[1],
        height=image.shape[0],
        nchannel=3,
    )
    texture.data = np.ascontiguousarray(image).tobytes()


def _add_material(
    spec: mujoco.MjSpec,
    name: str,
    rgba: Sequence[float],
    texture: str | None = None,
    repeat: tuple[int, int] = (1, 1),
) -> None:
    material = spec.add_material(
        name=name, rgba=rgba, texrepeat=repeat, texuniform=False, specular=0.3, shininess=0.3
    )
    if texture is not None:
        roles = [""] * int(mujoco.mjtTextureRole.mjNTEXROLE)
        roles[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = texture
        material.textures = roles


def _add_room(spec: mujoco.MjSpec, rng: np.random.Generator, shift: float, held_out: bool) -> None:
    """Table, pedestal, floor and four walls."""
    table_repeat = int(rng.integers(1, 4))
    for name, repeat in (("table", table_repeat), ("floor", 4), ("wall", 2)):
        _add_texture(spec, name, random_texture(rng, held_out=held_out))
        _add_material(spec, name, (*rng.uniform(0.7, 1, 3), 1), name, (repeat, repeat))
    world = spec.worldbody
    world.add_geom(
        type=_Geom.mjGEOM_BOX,
        size=[0.45, 0.65, 0.02],
        pos=[0.45 + shift, 0, -0.02],
        material="table",
    )
    world.add_geom(
        type=_Geom.mjGEOM_BOX, size=[0.12, 0.12, 0.35], pos=[0, 0, -0.36], rgba=[0.3, 0.3, 0.32, 1]
    )
    world.add_geom(type=_Geom.mjGEOM_PLANE, size=[4, 4, 0.1], pos=[0, 0, -0.75], material="floor")
    for position, size in (
        ([-1.4, 0, 0.5], [0.02, 3, 1.8]),
        ([2.4, 0, 0.5], [0.02, 3, 1.8]),
        ([0.4, 1.9, 0.5], [3, 0.02, 1.8]),
        ([0.4, -1.9, 0.5], [3, 0.02, 1.8]),
    ):
        world.add_geom(type=_Geom.mjGEOM_BOX, size=size, pos=position, material="wall")


def _add_pack_geoms(
    spec: mujoco.MjSpec, pack: Pack, bodies: Sequence[mujoco.MjsBody], prefix: str
) -> None:
    """Attach the meshes and primitives of ``pack`` to ``bodies`` (index 0: the pack's root)."""
    for number, image in enumerate(pack.textures):
        _add_texture(spec, f"{prefix}_texture_{number}", image)
    for number, part in enumerate(pack.meshes):
        name = f"{prefix}_mesh_{number}"
        mesh = spec.add_mesh(name=name)
        mesh.uservert = part.vertices.ravel().tolist()
        mesh.userface = part.faces.ravel().tolist()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        texture = None
        if part.texcoords is not None and part.texcoord_faces is not None:
            mesh.usertexcoord = part.texcoords.ravel().tolist()
            mesh.userfacetexcoord = part.texcoord_faces.ravel().tolist()
            texture = f"{prefix}_texture_{part.texture}"
        _add_material(spec, name, part.rgba, texture)
        _add_visual(bodies[part.body], type=_Geom.mjGEOM_MESH, meshname=name, material=name)
    for primitive in pack.primitives:
        _add_visual(
            bodies[primitive.body],
            type=_Geom(primitive.geom_type),
            size=primitive.size,
            pos=primitive.position,
            quat=primitive.quaternion_wxyz,
            rgba=primitive.rgba,
        )


def _add_visual(body: mujoco.MjsBody, **geom: object) -> None:
    body.add_geom(contype=0, conaffinity=0, mass=0, **geom)


def _add_robot(spec: mujoco.MjSpec, robot: Robot) -> mujoco.MjsBody:
    """Add the robot with its base at the origin; returns the hand's body."""
    pack = load_pack(robot.name)
    bodies = [spec.worldbody]
    for link in pack.bodies:
        quaternion = np.array(link.quaternion_wxyz)
        if robot.adapter is not None and link.name == robot.adapter[0]:
            quaternion = _turned_about_z(quaternion, np.deg2rad(robot.adapter[1]))
        body = bodies[link.parent].add_body(
            name=link.name,
            pos=link.position,
            quat=quaternion,
            mass=1,
            inertia=[1e-3] * 3,
        )
        body.explicitinertial = True
        bodies.append(body)
    for joint in pack.joints:
        bodies[joint.body].add_joint(
            name=joint.name,
            type=mujoco.mjtJoint(joint.joint_type),
            axis=joint.axis,
            pos=joint.position,
            range=joint.limits,
            limited=joint.limited,
        )
    _add_pack_geoms(spec, pack, bodies, "robot")
    hand = next(body for body in bodies[1:] if body.name == robot.hand_body)
    hand.add_site(name=TOOL_SITE, pos=robot.tool_centre, group=5)
    return hand


def _add_wrist_camera(
    hand: mujoco.MjsBody, rng: np.random.Generator, nominal: CameraMount, moved: bool
) -> None:
    jitter = rng.normal(0, 0.004, 3)
    tilt_jitter = rng.normal(0, 2.0)
    fov_deg = float(rng.uniform(68, 82))
    side = float(rng.choice([-1.0, 1.0]))
    mount = nominal.moved((0.025, 0.025 * side, -0.025), 8.0) if moved else nominal
    position = np.array(mount.position) + jitter
    tilt = np.deg2rad(mount.tilt_deg + tilt_jitter)
    # MuJoCo's cameras look along -z with y up; the hand's z runs along the fingers.
    backward = np.array([np.sin(tilt), 0, -np.cos(tilt)])
    right = np.array([0.0, 1.0, 0.0])
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    hand.add_camera(name=WRIST_CAMERA, pos=position, quat=_quaternion(rotation), fovy=fov_deg)
    _add_visual(
        hand,
        type=_Geom.mjGEOM_BOX,
        size=[0.012, 0.03, 0.012],
        pos=position - [0.004, 0, 0.022],
        rgba=[0.12, 0.12, 0.13, 1],
    )


def _add_anchor(
    spec: mujoco.MjSpec,
    rng: np.random.Generator,
    index: int,
    sector_deg: tuple[float, float],
    shift: float,
) -> None:
    """A fixed camera that looks at the middle of the workspace from ``sector_deg``."""
    azimuth, elevation = np.deg2rad(rng.uniform(*sector_deg)), np.deg2rad(rng.uniform(22, 55))
    distance = rng.uniform(0.75, 1.15)
    target = np.array([0.47 + shift, 0, 0.08]) + rng.normal(0, 0.04, 3)
    backward = np.array(
        [
            np.cos(azimuth) * np.cos(elevation),
            np.sin(azimuth) * np.cos(elevation),
            np.sin(elevation),
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], backward)
    right /= np.linalg.norm(right)
    level = np.stack([right, np.cross(backward, right), backward], axis=1)
    roll = rng.normal(0, 0.03)
    turn = np.array(
        [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1.0]]
    )
    spec.worldbody.add_camera(
        name=anchor_name(index),
        pos=target + distance * backward,
        quat=_quaternion(level @ turn),
        fovy=float(rng.uniform(42, 58)),
    )


def _place_objects(
    rng: np.random.Generator, kinds: Sequence[ObjectKind], shift: float
) -> list[tuple[ObjectKind, PlacedObject]]:
    """Choose 3 to 6 different objects and put them on the table without overlap."""
    chosen = rng.choice(len(kinds), size=int(rng.integers(3, 7)), replace=False)
    placed: list[tuple[ObjectKind, PlacedObject]] = []
    for number in chosen:
        kind = kinds[int(number)]
        solid = kind.make(rng)
        yaw = rng.uniform(-np.pi, np.pi)
        for _ in range(200):
            x, y = rng.uniform(*TABLE_X) + shift, rng.uniform(*TABLE_Y)
            candidate = PlacedObject(kind.name, solid, np.array([x, y, -solid.lower[2]]), yaw)
            gaps = [
                np.linalg.norm(candidate.centre - other.centre) - solid.radius - other.solid.radius
                for _, other in placed
            ]
            if not gaps or min(gaps) > 0.01:
                placed.append((kind, candidate))
                break
    return placed


def _add_object(
    spec: mujoco.MjSpec,
    rng: np.random.Generator,
    index: int,
    kind: ObjectKind,
    placed: PlacedObject,
    split: Split,
) -> None:
    name = body_of_object(index)
    body = spec.worldbody.add_body(
        name=name,
        mocap=True,
        pos=placed.position,
        quat=[np.cos(placed.yaw / 2), 0, 0, np.sin(placed.yaw / 2)],
    )
    solid = placed.solid
    if solid.pack is not None:
        _add_pack_geoms(spec, load_pack(solid.pack), [body], name)
        return
    rgba = (*COLOURS[kind.colour or "white"], 1.0)
    if solid.geom_type is not None:
        textured = rng.random() < 0.25
        if textured:
            _add_texture(
                spec, f"{name}_texture", random_texture(rng, held_out=split.held_out_textures)
            )
        _add_material(spec, name, rgba, f"{name}_texture" if textured else None)
        lying = [np.sqrt(0.5), np.sqrt(0.5), 0, 0]
        _add_visual(
            body,
            type=_Geom(solid.geom_type),
            size=solid.geom_size,
            material=name,
            quat=lying if solid.lying else [1, 0, 0, 0],
        )
        return
    assert solid.vertices is not None and solid.faces is not None
    mesh = spec.add_mesh(name=name)
    mesh.uservert = solid.vertices.ravel().tolist()
    mesh.userface = solid.faces.ravel().tolist()
    mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    _add_material(spec, name, rgba)
    _add_visual(body, type=_Geom.mjGEOM_MESH, meshname=name, material=name)
