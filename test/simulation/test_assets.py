from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.data.simulation.objects import (
    HELD_OUT_OBJECTS,
    TRAIN_OBJECTS,
    Solid,
    lathe,
)
from wristworld_ros.data.simulation.packs import PACK_DIR, load_pack
from wristworld_ros.data.simulation.robots import ROBOTS
from wristworld_ros.data.simulation.textures import TEXTURE_SIZE, random_texture
from wristworld_ros.errors import InvalidInputError

ALL_OBJECTS = TRAIN_OBJECTS + HELD_OUT_OBJECTS


def volume(solid: Solid) -> float:
    """Volume inside a closed mesh, positive when its faces look outwards [m^3]."""
    assert solid.vertices is not None and solid.faces is not None
    a, b, c = (solid.vertices[solid.faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def test_every_pack_has_its_source_and_licence_named():
    text = (PACK_DIR / "LICENSES.md").read_text()
    packs = sorted(path.name for path in PACK_DIR.glob("*.npz"))
    assert len(packs) == 9
    for name in packs:
        assert f"`{name}`" in text
    for owner in ("Franka Emika GmbH", "2013, ROS-Industrial", "2018 ROS Industrial", "Stanford"):
        assert owner in text


def test_pack_bounds_come_from_its_vertices():
    lower, upper = load_pack("obj_rs_bottle").bounds()
    np.testing.assert_allclose(upper - lower, [0.055106, 0.05855, 0.16], atol=1e-6)


def test_unknown_pack_lists_the_known_ones():
    with pytest.raises(InvalidInputError, match=r"obj_rs_can.*ur5e"):
        load_pack("obj_rs_cup")


@pytest.mark.parametrize("robot", ROBOTS.values(), ids=lambda r: r.name)
def test_robot_names_exist_in_its_pack(robot):
    pack = load_pack(robot.name)
    joints = {joint.name: joint for joint in pack.joints}
    assert set(robot.arm_joints) | set(robot.finger_joints) <= set(joints)
    assert robot.hand_body in {body.name for body in pack.bodies}
    for joint, home in zip(robot.arm_joints, robot.home, strict=True):
        low, high = joints[joint].limits
        assert low <= home <= high
    assert not any(name.startswith(("g_", "h_")) for name in robot.joint_names)


def test_panda_fingers_open_by_the_width():
    robot = ROBOTS["panda"]
    assert sum(robot.finger_positions(0.05).values()) == pytest.approx(0.05)
    assert sum(robot.finger_positions(1.0).values()) == pytest.approx(robot.max_width)


@pytest.mark.parametrize("kind", ALL_OBJECTS, ids=lambda k: k.name)
def test_objects_fit_the_table_and_meshes_are_closed(kind):
    solid = kind.make(np.random.default_rng(3))
    assert (solid.extent > 0.015).all() or kind.name.endswith("plate")
    assert (solid.extent < 0.2).all()
    if solid.faces is None:
        return
    edges = Counter(
        (int(face[i]), int(face[(i + 1) % 3])) for face in solid.faces for i in range(3)
    )
    assert set(edges.values()) == {1}
    assert all((b, a) in edges for a, b in edges)
    assert 0 < volume(solid) < np.prod(solid.extent)


@settings(deadline=None)  # the machine may be busy
@given(radius=st.floats(0.005, 0.1), height=st.floats(0.005, 0.2), segments=st.integers(3, 40))
def test_lathe_makes_a_prism_of_the_right_volume(radius, height, segments):
    solid = lathe([(0, 0), (radius, 0), (radius, height), (0, height)], segments)
    base = 0.5 * segments * radius**2 * np.sin(2 * np.pi / segments)
    assert volume(solid) == pytest.approx(base * height, rel=1e-9)


@pytest.mark.parametrize("held_out", [False, True])
def test_textures_are_pictures_and_repeat_for_a_seed(held_out):
    for seed in range(12):
        first = random_texture(np.random.default_rng(seed), held_out=held_out)
        again = random_texture(np.random.default_rng(seed), held_out=held_out)
        assert first.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3) and first.dtype == np.uint8
        assert first.std() > 1
        np.testing.assert_array_equal(first, again)
