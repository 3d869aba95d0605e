"""The simulated robots as URDF, as a real robot would publish it."""

from __future__ import annotations

import base64
import warnings
from xml.etree import ElementTree

import numpy as np
from scipy.spatial.transform import Rotation

from wristworld_ros.data.simulation.backend import mujoco
from wristworld_ros.data.simulation.packs import load_pack
from wristworld_ros.data.simulation.robots import Robot, get_robot
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.types import FloatArray

_JOINT_TYPES = {
    int(mujoco.mjtJoint.mjJNT_HINGE): "revolute",
    int(mujoco.mjtJoint.mjJNT_SLIDE): "prismatic",
}


def robot_urdf(robot: str | Robot, root: str = "base_link") -> str:
    """URDF of a simulated robot; joint names as in ``joint_states``.

    Its meshes are part of the text (``data:`` URIs), so that a bag carries its robot along.

    Args:
        root: name of the root link, the world of the simulation.
    """
    robot = get_robot(robot) if isinstance(robot, str) else robot
    pack = load_pack(robot.name)
    tree = ElementTree.Element("robot", name=robot.name)
    ElementTree.SubElement(tree, "link", name=root)
    published = set(robot.joint_names)
    joints = {j.body: j for j in pack.joints if _published_name(j.name) in published}
    # A body whose joint is off its origin becomes two links: one in the joint, one in the body.
    for number, body in enumerate(pack.bodies, 1):
        parent = root if body.parent == 0 else pack.bodies[body.parent - 1].name
        rotation = Rotation.from_quat(body.quaternion_wxyz, scalar_first=True)
        if robot.adapter is not None and body.name == robot.adapter[0]:
            rotation = rotation * Rotation.from_euler("z", robot.adapter[1], degrees=True)
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = rotation.as_matrix(), body.position
        joint = joints.get(number)
        if joint is None:
            _add_joint(tree, f"{body.name}_fixed", "fixed", parent, body.name, T)
            ElementTree.SubElement(tree, "link", name=body.name)
            continue
        to_joint = np.eye(4)
        to_joint[:3, 3] = joint.position
        moving = f"{body.name}_joint_frame" if np.any(joint.position) else body.name
        kind = _JOINT_TYPES[joint.joint_type]
        name = _published_name(joint.name)
        element = _add_joint(tree, name, kind, parent, moving, T @ to_joint)
        ElementTree.SubElement(element, "axis", xyz=_text(joint.axis))
        lower, upper = joint.limits if joint.limited else (-2 * np.pi, 2 * np.pi)
        ElementTree.SubElement(
            element, "limit", lower=f"{lower:g}", upper=f"{upper:g}", effort="1", velocity="1"
        )
        ElementTree.SubElement(tree, "link", name=moving)
        if moving != body.name:
            back = invert(to_joint)
            _add_joint(tree, f"{body.name}_fixed", "fixed", moving, body.name, back)
            ElementTree.SubElement(tree, "link", name=body.name)
    links = {element.get("name"): element for element in tree.iter("link")}
    for number, mesh in enumerate(pack.meshes):
        visual = _add_visual(links[pack.bodies[mesh.body - 1].name], np.eye(4), mesh.rgba, number)
        ElementTree.SubElement(visual, "mesh", filename=_stl_uri(mesh.vertices[mesh.faces]))
    for number, part in enumerate(pack.primitives, len(pack.meshes)):
        assert part.geom_type == int(mujoco.mjtGeom.mjGEOM_BOX), "packs hold boxes only"
        T = np.eye(4)
        T[:3, :3] = Rotation.from_quat(part.quaternion_wxyz, scalar_first=True).as_matrix()
        T[:3, 3] = part.position
        visual = _add_visual(links[pack.bodies[part.body - 1].name], T, part.rgba, number)
        ElementTree.SubElement(visual, "box", size=_text(2 * np.array(part.size)))
    ElementTree.indent(tree)
    return ElementTree.tostring(tree, encoding="unicode") + "\n"


def _published_name(joint: str) -> str:
    """As in ``joint_states``; a joint that is not published rests at zero, as in the simulation."""
    return joint[2:] if joint.startswith(("g_", "h_")) else joint


def _add_joint(
    tree: ElementTree.Element, name: str, kind: str, parent: str, child: str, T: FloatArray
) -> ElementTree.Element:
    joint = ElementTree.SubElement(tree, "joint", name=name, type=kind)
    ElementTree.SubElement(joint, "parent", link=parent)
    ElementTree.SubElement(joint, "child", link=child)
    _add_origin(joint, T)
    return joint


def _add_visual(
    link: ElementTree.Element, T: FloatArray, rgba: tuple[float, ...], number: int
) -> ElementTree.Element:
    """Add a visual with its material; returns its geometry, still empty."""
    visual = ElementTree.SubElement(link, "visual", name=f"visual_{number}")
    _add_origin(visual, T)
    geometry = ElementTree.SubElement(visual, "geometry")
    material = ElementTree.SubElement(visual, "material", name=f"material_{number}")
    ElementTree.SubElement(material, "color", rgba=_text(rgba))
    return geometry


def _add_origin(element: ElementTree.Element, T: FloatArray) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Gimbal lock")  # any of the solutions will do
        rpy = Rotation.from_matrix(T[:3, :3]).as_euler("xyz")
    ElementTree.SubElement(element, "origin", xyz=_text(T[:3, 3]), rpy=_text(rpy))


def _text(values: object) -> str:
    return " ".join(f"{v:.9g}" for v in np.asarray(values, np.float64))


def _stl_uri(triangles: FloatArray) -> str:
    """F x 3 x 3 corners [m] as a binary STL in a ``data:`` URI."""
    facets = np.zeros(
        len(triangles), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("_", "<u2")]
    )
    facets["corners"] = triangles
    content = bytes(80) + np.uint32(len(triangles)).tobytes() + facets.tobytes()
    return "data:model/stl;base64," + base64.b64encode(content).decode()
