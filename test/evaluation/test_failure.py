"""The reason why a view is wrong: each cause is found where it was put."""

import numpy as np
import pytest

from wristworld_ros.evaluation.failure import REASONS, diagnose
from wristworld_ros.types import CameraModel, ConditionMap

SIZE = 16
CAMERA = CameraModel.from_fov(1.0, SIZE, SIZE)
LEFT = np.arange(SIZE)[None].repeat(SIZE, 0) < SIZE // 2
ALL = np.ones((SIZE, SIZE), bool)


def drawn(mask: np.ndarray, depth: float | np.ndarray = 0.3) -> ConditionMap:
    image = np.where(mask[..., None], np.full((SIZE, SIZE, 3), 100, np.uint8), np.uint8(0))
    depths = np.where(mask, depth, 0).astype(np.float32)
    return ConditionMap(image, mask, depths, np.where(mask, 0, -1).astype(np.int8), CAMERA)


def case(condition, true_map, depth=0.3, pose=(0.0, 0.0)):
    """An error of 50 levels in the left half, of 10 in the right."""
    truth = np.full((SIZE, SIZE, 3), 100, np.uint8)
    picture = np.where(LEFT[..., None], 150, 110).astype(np.uint8).repeat(3, -1)[..., :3]
    return diagnose(picture, truth, condition, true_map, np.full((SIZE, SIZE), depth), pose)


SHARE = 50**2 / (50**2 + 10**2)


@pytest.mark.parametrize(
    ("cause", "given"),
    [
        ("unreachable", (drawn(~LEFT), drawn(~LEFT))),
        ("left_out", (drawn(~LEFT), drawn(ALL))),
        ("far_depth", (drawn(ALL, np.where(LEFT, 0.33, 0.3)), drawn(ALL))),
        ("near_depth", (drawn(ALL, np.where(LEFT, 0.11, 0.1)), drawn(ALL), 0.1)),
    ],
)
def test_the_cause_is_what_is_wrong_where_the_error_lies(cause, given):
    found = case(*given)
    assert found.cause == cause
    assert found.shares[cause] == pytest.approx(SHARE)
    assert found.shares["colour"] == pytest.approx(1 - SHARE)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.text == f"{REASONS[cause]} ({SHARE:.0%} of the squared error)"


def test_where_place_and_depth_are_right_it_is_the_colours():
    found = case(drawn(ALL), drawn(ALL))
    assert found.cause == "colour" and found.shares["colour"] == pytest.approx(1)


def test_a_displaced_view_blames_the_pose_and_not_depth():
    wrong = drawn(ALL, 0.5)
    focal = CAMERA.K[0, 0]
    found = case(wrong, drawn(ALL), pose=(60.0, 3.0))
    assert found.shift_px == pytest.approx(focal * (0.06 / 0.3 + np.deg2rad(3)))
    assert found.cause == "pose" and found.shares["pose"] == pytest.approx(1)
    assert case(wrong, drawn(ALL), pose=(1.0, 0.1)).cause == "far_depth"


def test_a_picture_without_error_has_no_shares():
    truth = np.zeros((SIZE, SIZE, 3), np.uint8)
    found = diagnose(truth, truth, drawn(ALL), drawn(ALL), np.full((SIZE, SIZE), 0.3), (0, 0))
    assert set(found.shares.values()) == {0}
