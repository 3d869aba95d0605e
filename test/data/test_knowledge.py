"""What stage 1 is told by kind of geometry."""

import numpy as np
import pytest

from wristworld_ros.data.knowledge import GEOMETRY, restrict
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel


@pytest.fixture
def frame():
    camera = CameraModel.from_fov(1.0, 8, 8)
    views = tuple(
        AnchorView(
            f"c{i}",
            np.full((8, 8, 3), i, np.uint8),
            5,
            camera,
            np.eye(4),
            np.ones((8, 8), np.float32),
        )
        for i in range(3)
    )
    return AnchorFrame(
        5,
        views,
        T_world_wrist=np.eye(4),
        wrist_camera=camera,
        instruction="go",
        joints={"elbow": 1.0},
    )


def test_each_kind_knows_less(frame):
    known = {
        g: (
            restrict(frame, g).views[0].depth is not None,
            restrict(frame, g).T_world_wrist is not None,
            restrict(frame, g).calibrated,
            restrict(frame, g).joints is not None,
        )
        for g in GEOMETRY
    }
    assert known == {
        "true": (True, True, True, False),
        "robot": (False, True, True, True),
        "kinematic": (False, True, True, False),
        "calibrated": (False, False, True, False),
        "estimated": (False, False, False, False),
    }


def test_the_rest_stays_and_views_come_in_the_order_asked_for(frame):
    less = restrict(frame, "estimated", (2, 0))
    assert [v.name for v in less.views] == ["c2", "c0"]
    assert less.instruction == "go" and less.stamp_ns == 5
    assert less.wrist_camera is frame.wrist_camera


def test_unknown_kinds_and_views_are_refused(frame):
    with pytest.raises(InvalidInputError, match="'guessed'.*kinematic"):
        restrict(frame, "guessed")
    with pytest.raises(InvalidInputError, match=r"\[3\].*3 views"):
        restrict(frame, "true", (3,))
    with pytest.raises(InvalidInputError):
        restrict(frame, "true", ())
