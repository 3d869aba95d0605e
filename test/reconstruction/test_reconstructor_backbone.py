"""Reconstructor with a large backbone in the place of its own network."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.pretrained_backbone import PretrainedBackbone
from wristworld_ros.reconstruction.vggt import PRESETS, Vggt, VggtPredictor
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel

sys.path.insert(0, str(Path(__file__).parent))

from seeded import seed_weights

POSE = from_quaternion([0.02, -0.01, 0.3], [1, 0, 0, 0])
DOWN = from_quaternion([0, 0, 0.8], [1, 0, 0, 0])


def frame(**changes):
    """One camera that looks at a floor 0.8 m below it, with measured depth."""
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
    camera, depth = CameraModel.from_fov(0.9, 64, 64), np.full((64, 64), 0.8, np.float32)
    view = AnchorView("front", image, 7, camera, DOWN, depth)
    values = {
        "views": (view,),
        "T_world_wrist": POSE,
        "wrist_camera": CameraModel.from_fov(1.2, 64, 48),
    }
    return AnchorFrame(7, **{**values, **changes})


@pytest.fixture
def backbone():
    network = Vggt(PRESETS["vggt-tiny"]).eval()
    seed_weights(network)
    return PretrainedBackbone(VggtPredictor(network, 70), name="vggt-1b")


def test_cloud_and_map_come_from_the_backbone(backbone):
    result = Reconstructor(backbone)(frame())
    assert result.estimate.source == "kinematic" and result.world_frame == "base_link"
    assert result.condition.coverage > 0.95
    np.testing.assert_allclose(result.condition.depth[result.condition.mask], 0.3, atol=5e-3)
    np.testing.assert_allclose(np.median(result.cloud.points[:, 2]), 0, atol=5e-3)


def test_what_a_backbone_cannot_give_is_refused(backbone):
    for source in ("learned", "fused"):
        with pytest.raises(InvalidInputError, match=f"'{source}' needs a wrist head"):
            Reconstructor(backbone, pose_source=source)
    reconstructor = Reconstructor(backbone)
    with pytest.raises(CalibrationError, match="pose by kinematics"):
        reconstructor(frame(T_world_wrist=None))
    with pytest.raises(CalibrationError, match="its field of view"):
        reconstructor(frame(wrist_camera=None))
    bare = dataclasses.replace(frame().views[0], camera=None, T_world_camera=None)
    with pytest.raises(CalibrationError, match="where they are in the robot's base frame"):
        reconstructor(frame(views=(bare,)))
    unscaled = dataclasses.replace(frame().views[0], depth=None)
    with pytest.raises(CalibrationError, match="no metric scale, and none is guessed"):
        reconstructor(frame(views=(unscaled,)))
    with pytest.raises(InvalidInputError, match="no wrist camera"):
        reconstructor.predict(frame())


def test_weights_and_backbone_belong_together():
    with pytest.raises(InvalidInputError, match="no backbone 'vggt-2b'; use one of mini, vggt-1b"):
        Reconstructor.from_pretrained(backbone="vggt-2b")
    with pytest.raises(InvalidInputError, match="'da3-small' needs its published weights"):
        Reconstructor.from_pretrained(backbone="da3-small")
    with pytest.raises(InvalidInputError, match="backbone_weights .* Name the backbone"):
        Reconstructor.from_pretrained(backbone_weights="model.pt")
