"""The simulated robots' URDF against the simulation itself."""

from __future__ import annotations

import numpy as np
import pytest

from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.data.simulation.robots import ROBOTS
from wristworld_ros.data.simulation.urdf import robot_urdf
from wristworld_ros.geometry.splatting import splat
from wristworld_ros.reconstruction.robot_model import RobotModel


@pytest.mark.parametrize("name", sorted(ROBOTS))
def test_links_and_surface_are_where_the_simulation_draws_them(name):
    episode = simulate_episode(
        200000, "test-iid", robot=name, n_frames=2, n_anchors=1, shadows=False
    )
    robot = RobotModel.from_urdf(robot_urdf(name))
    assert set(robot.joints) == set(episode.joint_names)
    for t in range(2):
        joints = dict(zip(episode.joint_names, episode.joint_positions[t], strict=True))
        hand = robot.link_pose(ROBOTS[name].hand_body, joints)
        np.testing.assert_allclose(hand, episode.T_world_hand[t], atol=1e-6)
        pose, camera = episode.T_world_wrist[t], episode.wrist_camera
        drawn = splat(
            robot.surface_in_view(joints, None, pose, camera, 0.03), pose, camera, near=0.03
        )
        error = np.abs(drawn.depth - episode.wrist_depth[t])[drawn.mask]
        assert drawn.mask.mean() > 0.03
        # the rest: outlines, and what the gripper holds
        assert (error < 0.005).mean() > 0.7
