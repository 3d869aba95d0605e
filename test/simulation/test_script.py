from __future__ import annotations

import numpy as np
import pytest

from wristworld_ros.data.simulation.scene import Scene, build_scene
from wristworld_ros.data.simulation.script import Kinematics, Script, evenly_spaced, make_script
from wristworld_ros.data.simulation.splits import get_split

SEEDS = range(100_000, 100_016)


@pytest.fixture(scope="module")
def scripts() -> list[tuple[Scene, Script]]:
    from wristworld_ros.data.simulation.robots import get_robot

    split = get_split("val")
    out = []
    for seed in SEEDS:
        robot = get_robot(split.robot_of(seed))
        scene = build_scene(seed, split, robot, anchor_count=1, shadows=False)
        out.append((scene, make_script(scene, seed)))
    return out


def tool_positions(scene: Scene, script: Script) -> np.ndarray:
    kinematics = Kinematics(scene)
    positions = []
    for arm, width in zip(script.arm_positions, script.gripper_width, strict=True):
        kinematics.set(arm, float(width))
        positions.append(kinematics.tool_pose()[0])
    return np.array(positions)


def test_all_four_tasks_occur_and_name_their_object(scripts):
    verbs = {script.instruction.split()[0] for _, script in scripts}
    assert verbs == {"pick", "move", "put", "push"}
    for scene, script in scripts:
        assert scene.objects[script.target].name in script.instruction


def test_objects_stand_on_the_table_without_overlap(scripts):
    for scene, _ in scripts:
        for i, one in enumerate(scene.objects):
            assert one.position[2] + one.solid.lower[2] == pytest.approx(0)
            for other in scene.objects[:i]:
                gap = np.linalg.norm(one.centre - other.centre)
                assert gap > one.solid.radius + other.solid.radius


def test_motion_is_smooth_and_inside_the_limits(scripts):
    for scene, script in scripts:
        limits = np.array([scene.model.joint(name).range for name in scene.robot.arm_joints])
        assert (script.arm_positions >= limits[:, 0] - 1e-9).all()
        assert (script.arm_positions <= limits[:, 1] + 1e-9).all()
        assert np.abs(np.diff(script.arm_positions, axis=0)).max() < 0.6
        assert script.gripper_width.min() >= 0
        assert script.gripper_width.max() <= scene.robot.max_width + 1e-9
        tool = tool_positions(scene, script)
        assert tool[:, 2].min() > 0.005
        assert np.linalg.norm(np.diff(tool, axis=0), axis=1).max() < 0.12


def test_picked_objects_are_lifted_with_the_tool(scripts):
    for scene, script in scripts:
        if not script.instruction.startswith("pick"):
            continue
        tool = tool_positions(scene, script)
        assert script.object_poses[-1, 2] > script.object_poses[0, 2] + 0.15
        held = script.object_poses[-6:, :3] - tool[-6:]
        np.testing.assert_allclose(held - held[0], 0, atol=2e-3)


def test_moved_objects_end_upright_on_the_table(scripts):
    for _, script in scripts:
        if not script.instruction.startswith("move"):
            continue
        first, last = script.object_poses[0], script.object_poses[-1]
        assert last[2] == pytest.approx(first[2], abs=5e-3)
        assert np.linalg.norm(last[:2] - first[:2]) > 0.02
        left, forward = last[1] - first[1], last[0] - first[0]
        words = script.instruction
        if abs(left) > abs(forward) + 0.005:
            assert ("left" in words) == (left > 0) and ("left" in words or "right" in words)


def test_put_objects_end_on_their_support(scripts):
    for scene, script in scripts:
        if not script.instruction.startswith("put"):
            continue
        target = scene.objects[script.target]
        name = script.instruction.removeprefix(f"put the {target.name} ").split(maxsplit=2)[2]
        support = next(o for o in scene.objects if o.name == name)
        bottom = script.object_poses[-1, 2] + target.solid.lower[2]
        assert bottom == pytest.approx(support.solid.support_height, abs=6e-3)
        assert np.linalg.norm(script.object_poses[-1, :2] - support.centre) < 0.03


def test_pushed_objects_slide_in_the_direction_said(scripts):
    axis = {"forward": (1, 0), "left": (0, 1), "right": (0, -1)}
    for _, script in scripts:
        if not script.instruction.startswith("push"):
            continue
        moved = script.object_poses[-1] - script.object_poses[0]
        direction = np.array(axis[script.instruction.split()[-1]])
        assert 0.05 < moved[:2] @ direction < 0.14
        assert np.abs(moved[:2] - (moved[:2] @ direction) * direction).max() < 1e-9
        np.testing.assert_allclose(moved[2:], 0, atol=1e-12)


def test_frames_are_spread_from_the_first_to_the_last():
    assert evenly_spaced(47, 3, 1) == [0, 23, 46]
    assert evenly_spaced(3, 10, 1) == [0, 1, 2]
    assert list(evenly_spaced(10, None, 4)) == [0, 4, 8]
