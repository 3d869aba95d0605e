"""The robot's body: URDF to surface, its share of depth, colours and condition map."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.cloud import join_points
from wristworld_ros.geometry.splatting import splat
from wristworld_ros.geometry.transforms import apply, from_quaternion, invert
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.reconstruction.robot_fusion import colour_surface, robot_depth, with_robot
from wristworld_ros.reconstruction.robot_model import (
    COARSE,
    FINE,
    FINE_REACH,
    MEDIUM,
    VIEW_REACH,
    RobotModel,
)
from wristworld_ros.types import (
    ROBOT_VIEW,
    AnchorFrame,
    AnchorView,
    CameraModel,
    ConditionMap,
    PointCloud,
)

#: A column of 0.2 m with a red block of 0.1 m that slides along x on top of it.
URDF = """
<robot name="slider">
  <link name="base_link">
    <visual><origin xyz="0 0 0.1"/><geometry><box size="0.04 0.04 0.2"/></geometry>
      <material name="grey"><color rgba="0.5 0.5 0.5 1"/></material></visual>
  </link>
  <link name="block">
    <visual><geometry><box size="0.1 0.1 0.1"/></geometry>
      <material name="red"><color rgba="1 0 0 1"/></material></visual>
  </link>
  <link name="tip"/>
  <joint name="slide" type="prismatic">
    <parent link="base_link"/><child link="block"/><origin xyz="0 0 0.25"/>
    <axis xyz="1 0 0"/><limit lower="-1" upper="1" effort="1" velocity="1"/>
  </joint>
  <joint name="to_tip" type="fixed">
    <parent link="block"/><child link="tip"/><origin xyz="0 0 0.05"/>
  </joint>
</robot>
"""
DOWN = from_quaternion([0.1, 0, 1.0], [1, 0, 0, 0])
CAMERA = CameraModel.from_fov(0.6, 96, 96)


@pytest.fixture(scope="module")
def robot():
    return RobotModel.from_urdf(URDF)


def test_links_follow_the_joints(robot):
    assert robot.root == "base_link" and robot.joints == ("slide",)
    tip = robot.link_pose("tip", {"slide": 0.3, "another": 1.0})
    np.testing.assert_allclose(tip[:3, 3], [0.3, 0, 0.3], atol=1e-9)
    with pytest.raises(InvalidInputError, match="no link 'hand'.*block"):
        robot.link_pose("hand", {"slide": 0.0})


def test_the_surface_is_the_boxes_and_has_their_colours(robot):
    T = from_quaternion([0, 0, 1.0], [0, 0, 0, 1])
    surface = robot.surface({"slide": 0.1}, T)
    red = surface.colors[:, 0] > 200
    block = surface.points[red] - [0.1, 0, 1.25]
    np.testing.assert_allclose(np.abs(block).max(1), 0.05, atol=1e-5)
    # about one point per COARSE^2 of the block's six sides, and none far from all others
    assert 0.9 < red.sum() / (6 * 0.1**2 / COARSE**2) < 1.5
    spacing = cKDTree(surface.points[red]).query(surface.points[red], 2)[0][:, 1]
    assert spacing.max() < 2 * COARSE
    assert set(map(tuple, surface.colors[~red])) == {(127, 127, 127)}
    assert surface.points[~red][:, 2].max() == pytest.approx(1.2, abs=1e-5)


def above_block(height, x=0.0):
    """A camera that looks straight down, so far above the block's top (which is at 0.3 m)."""
    return from_quaternion([x, 0, 0.3 + height], [1, 0, 0, 0])


@pytest.mark.parametrize("height", [0.08, 0.5 * (FINE_REACH + VIEW_REACH)])
def test_all_of_the_view_and_little_else_is_placed(robot, height):
    """The picture is that of all points; those far outside of it are left out."""
    T, camera = above_block(height, 0.03), CameraModel.from_fov(0.5, 64, 64)
    part = robot.surface_in_view({"slide": 0.0}, None, T, camera, 0.03)
    everything = robot.surface({"slide": 0.0})
    truth, drawn = splat(everything, T, camera).depth, splat(part, T, camera).depth
    assert ((drawn > 0) == (truth > 0)).mean() > 0.97  # but for the outline
    top = np.abs(truth - height) < 0.004
    assert top.mean() > 0.1
    np.testing.assert_allclose(np.median(np.abs(drawn - truth)[top]), 0, atol=5e-4)
    assert (np.abs(drawn - truth)[top] < 3e-3).mean() > 0.92  # but for the outline
    spacing = FINE if height < FINE_REACH else MEDIUM
    assert part.footprint.min() == pytest.approx(1.25 * spacing, rel=1e-3)
    local = (part.points - T[:3, 3]) @ T[:3, :3]
    beside = np.abs(local[:, :2]).max(1) - local[:, 2] * np.tan(0.25)
    assert beside.max() < 0.05
    assert np.linalg.norm(local, axis=1).max() < VIEW_REACH + 0.04


def test_what_is_behind_too_near_or_far_is_not_placed(robot):
    camera = CameraModel.from_fov(0.5, 64, 64)
    up = from_quaternion([0, 0, 0.4], [0, 0, 0, 1])
    far = above_block(VIEW_REACH + 0.2)
    for T, near in ((up, 0.03), (far, 0.03), (above_block(0.05), 0.4)):
        cloud = robot.surface_in_view({"slide": 0.0}, None, T, camera, near)
        assert splat(cloud, T, camera, near=near).mask.sum() == 0
    moved = from_quaternion([0, 0.5, 0], [0, 0, 0, 1])
    T = moved @ above_block(0.08)
    cloud = robot.surface_in_view({"slide": 0.0}, moved, T, camera, 0.03)
    assert splat(cloud, T, camera).depth[32, 32] == pytest.approx(0.08, abs=1e-3)


def test_what_is_missing_is_named(robot, tmp_path):
    with pytest.raises(InvalidInputError, match="joint states lack slide"):
        robot.surface({"elbow": 0.1})
    with pytest.raises(InvalidInputError, match="slide is at nan"):
        robot.surface({"slide": float("nan")})
    with pytest.raises(InvalidInputError, match="cannot be read"):
        RobotModel.from_urdf("<robot name='x'><link")
    with pytest.raises(InvalidInputError, match=r"no robot description .*arm.urdf"):
        RobotModel.from_urdf(tmp_path / "arm.urdf")
    mesh = URDF.replace('<box size="0.1 0.1 0.1"/>', '<mesh filename="package://arm/a.stl"/>')
    with pytest.raises(InvalidInputError, match=r"names 1 meshes .* package://arm/a.stl"):
        RobotModel.from_urdf(mesh)
    with pytest.raises(InvalidInputError, match="no visible surface"):
        RobotModel.from_urdf("<robot name='x'><link name='a'/></robot>")


def test_meshes_of_packages_are_found(tmp_path, monkeypatch):
    (tmp_path / "share/arm").mkdir(parents=True)
    vertices = "v 0 0 0\nv 0.1 0 0\nv 0 0.1 0\nf 1 2 3\n"
    (tmp_path / "share/arm/a.obj").write_text(vertices)
    urdf = URDF.replace('<box size="0.1 0.1 0.1"/>', '<mesh filename="package://arm/a.obj"/>')
    direct = RobotModel.from_urdf(urdf, {"arm": tmp_path / "share/arm"})
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/nowhere:{tmp_path}")
    for robot in (direct, RobotModel.from_urdf(urdf)):
        points = robot.surface({"slide": 0.0}).points
        top = points[points[:, 2] > 0.21]
        np.testing.assert_allclose(top[:, 2], 0.25, atol=1e-6)
        assert top[:, :2].sum(1).max() < 0.1 + 1e-6


def test_depth_of_the_body_in_a_picture(robot):
    depth = robot_depth(robot.surface({"slide": 0.1}), DOWN, CAMERA)
    assert depth[48, 48] == pytest.approx(0.7, abs=1e-3)  # top of the block, below the camera
    edge = 0.05 * CAMERA.K[0, 0] / 0.7
    block = (depth > 0) & (depth < 0.71)  # the column beside it is seen too
    assert (2 * edge) ** 2 < block.sum() < (2 * edge + 2) ** 2


def test_predicted_depth_gives_way_to_the_body_but_not_to_what_hides_it():
    robot = np.zeros((20, 20), np.float32)
    robot[5:15, 5:15] = 0.7
    depth = np.full((20, 20), 1.0, np.float32)
    depth[:, :8] = 0.6  # something before the robot
    depth[:, 8:] = 0.72
    new, confidence, shown = with_robot(depth, np.full((20, 20), 0.3, np.float32), robot)
    assert np.all(new[6:14, 8:14] == np.float32(0.7)) and np.all(new[6:14, 6:8] == np.float32(0.6))
    assert np.all(confidence[shown] == 1) and np.all(confidence[6:14, 6:8] == np.float32(0.3))
    assert np.all(confidence[4, 4:16] == -1) and np.all(confidence[5, 5:15] == -1)  # the rim
    assert confidence[0, 0] == np.float32(0.3) and shown.sum() == 8 * 6


def test_seen_points_take_the_picture_and_unseen_ones_their_likes(robot):
    surface = robot.surface({"slide": 0.1})
    depth = robot_depth(surface, DOWN, CAMERA)
    image = np.zeros((96, 96, 3), np.uint8)
    image[...] = (90, 10, 20)  # the red block, as lit
    image[:3] = (0, 255, 0)
    coloured = colour_surface(surface, [image], [depth], [depth > 0], [CAMERA], [DOWN])
    z = apply(invert(DOWN), surface.points)[:, 2]
    block = surface.colors[:, 0] > 200
    top = block & (z < 0.701)
    assert (coloured.view[top] == 0).mean() > 0.95
    below = block & (z > 0.75)
    assert np.all(coloured.view[below] == ROBOT_VIEW)
    assert np.all(coloured.colors[block] == (90, 10, 20))


def test_a_colour_of_something_else_is_not_taken(robot):
    surface = robot.surface({"slide": 0.1})
    depth = robot_depth(surface, DOWN, CAMERA)
    image = np.full((96, 96, 3), (90, 10, 20), np.uint8)
    image[48:50] = (0, 255, 0)  # a cable before the block
    coloured = colour_surface(surface, [image], [depth], [depth > 0], [CAMERA], [DOWN])
    block = surface.colors[:, 0] > 200
    assert np.all(coloured.colors[block] == (90, 10, 20))
    assert len(join_points(surface, coloured)) == 2 * len(surface)


def test_the_body_is_in_the_map_and_not_called_measured(robot):
    """Beside a wrist camera that looks down past the block, a table at z = 0 that is seen from
    above: the block's side is drawn where it is, and only the table counts as measured."""
    torch.manual_seed(0)
    model = Stage1Model(BackboneConfig(dim=48, pairs=2, heads=4, stem=(16, 16, 16), kept=(0, 1)))
    wrist = from_quaternion([0.22, 0, 0.6], [1, 0, 0, 0])
    camera = CameraModel.from_fov(1.2, 128, 128)
    image = np.full((96, 96, 3), 200, np.uint8)
    body = robot_depth(robot.surface({"slide": 0.1}), DOWN, CAMERA)
    depth = np.where(body > 0, body, 1.0).astype(np.float32)
    above = AnchorView("above", image, 1, CAMERA, DOWN, depth)
    frame = AnchorFrame(1, (above,), wrist, camera, joints={"slide": 0.1})
    with_body = Reconstructor(model, robot=robot)(frame).condition
    truth = robot_depth(
        robot.surface_in_view({"slide": 0.1}, None, wrist, camera, 0.03), wrist, camera
    )
    side = (truth > 0.36) & (truth < 0.44)  # the block's side, below its top at 0.3 m
    assert side.sum() > 20
    assert (np.abs(with_body.depth - truth)[side] < 0.03).mean() > 0.9  # seen at a grazing angle
    assert (with_body.view[side] == -2).mean() > 0.9
    assert not with_body.measured[with_body.view == -2].any()
    assert np.all(with_body.mask_image[with_body.view == -2] == 128)
    assert np.all(with_body.mask_image[with_body.measured] == 255)
    assert np.all(with_body.mask_image[~with_body.mask] == 0)
    sent = ConditionMap.from_published(with_body.image, with_body.mask_image, camera)
    assert np.array_equal(sent.measured, with_body.measured)
    assert np.array_equal(sent.mask, with_body.mask) and sent.coverage == with_body.coverage
    assert with_body.coverage == with_body.measured.mean() < with_body.mask.mean()
    less = dataclasses.replace(frame, joints=None)
    assert (Reconstructor(model, robot=robot)(less).condition.view != -2).all()


def test_a_robot_elsewhere_is_drawn_there(robot):
    T = from_quaternion([0, 0.5, 0], [0, 0, 0, 1])
    depth = robot_depth(robot.surface({"slide": 0.1}, T), DOWN, CAMERA)
    assert depth[48, 48] == 0
    with pytest.raises(Exception, match="robot's root link"):
        AnchorFrame(
            1,
            (AnchorView("a", np.zeros((8, 8, 3), np.uint8), 1),),
            T_world_robot=np.full((4, 4), np.nan),
        )


def test_point_clouds_join():
    one = PointCloud(
        np.zeros((1, 3), np.float32),
        np.ones((1, 3), np.uint8),
        np.ones(1, np.float32),
        np.ones(1, np.float32),
        np.full(1, 3, np.uint8),
    )
    two = join_points(one, dataclasses.replace(one, points=one.points + 1))
    assert two.points[:, 0].tolist() == [0, 1] and two.view.tolist() == [3, 3]
