"""Baselines: exact on pictures whose answer is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.baselines import (
    FADE,
    cropped_view,
    flat_colour,
    inpainted_splat,
    load_mean_image,
    mean_colour,
    mean_image,
    true_condition,
)
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel


def gradient(width=64, height=48):
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x * 3, y * 4, np.full_like(x, 50)], -1).astype(np.uint8)


def test_mean_image_and_flat_colour(tmp_path):
    images = [np.full((8, 8, 3), level, np.uint8) for level in (10, 20, 60)]
    assert np.unique(mean_image(images, 4, 4)).tolist() == [30]
    image = np.zeros((2, 2, 3), np.uint8)
    image[0] = 10, 20, 30
    assert flat_colour(image).tolist() == [[[5, 10, 15]] * 2] * 2
    cv2.imwrite(str(tmp_path / "mean.png"), images[2])
    assert load_mean_image(tmp_path / "mean.png", 16, 8).shape == (8, 16, 3)
    with pytest.raises(InvalidInputError, match=r"missing\.png is missing or no picture"):
        load_mean_image(tmp_path / "missing.png", 8, 8)
    with pytest.raises(InvalidInputError, match="no pictures"):
        mean_image([], 4, 4)


def test_the_crop_is_the_middle_of_an_uncalibrated_view():
    view = AnchorView("a", gradient(), 0)
    assert np.array_equal(cropped_view(view, 24, 24), view.image[12:36, 20:44])


def test_the_crop_of_a_calibrated_view_follows_the_wrist():
    camera = CameraModel.from_fov(1.0, 64, 48)
    view = AnchorView("a", gradient(), 0, camera, np.eye(4))
    T_world_wrist = np.eye(4)
    T_world_wrist[:3, 3] = 0, 0, 0.85  # looks at (0, 0, 1), the middle of the view
    centre = cropped_view(view, 24, 24, T_world_wrist)
    assert np.array_equal(centre, view.image[12:36, 20:44])
    T_world_wrist[0, 3] = 10 / camera.K[0, 0]  # 10 px to the right at that depth
    assert np.array_equal(cropped_view(view, 24, 24, T_world_wrist), view.image[12:36, 30:54])
    T_world_wrist[0, 3] = 5.0  # far outside: the crop stays inside the picture
    assert np.array_equal(cropped_view(view, 24, 24, T_world_wrist), view.image[12:36, 40:64])


def test_inpainting_keeps_what_was_measured_and_closes_the_rest():
    image = np.full((20, 20, 3), 100, np.uint8)
    mask = np.ones((20, 20), bool)
    mask[8:12, 8:12] = False
    image[~mask] = 0
    out = inpainted_splat(image, mask)
    assert np.array_equal(out[mask], image[mask])
    assert np.abs(out.astype(int) - 100).max() <= 3
    nothing = inpainted_splat(image, np.zeros((20, 20), bool))
    assert np.unique(nothing).tolist() == [127]
    with pytest.raises(InvalidInputError, match="does not fit"):
        inpainted_splat(image, mask[:5])


def test_the_middle_of_a_large_hole_takes_the_mean_colour():
    image = np.full((80, 80, 3), 100, np.uint8)
    mask = np.zeros((80, 80), bool)
    mask[:, :4] = True
    image[~mask] = 0
    views = [AnchorView(f"at_{c}", np.full((4, 4, 3), c, np.uint8), 0) for c in (10, 30)]
    mean = mean_colour(views)
    assert mean.tolist() == [20, 20, 20]
    out = inpainted_splat(image, mask, mean)
    assert np.array_equal(out[mask], image[mask])
    assert np.abs(out[:, 4].astype(int) - (20 + 80 * np.exp(-1 / FADE))).max() <= 2
    assert np.abs(out[:, -1].astype(int) - 20).max() <= 1
    assert np.unique(inpainted_splat(image, np.zeros_like(mask), mean)).tolist() == [20]


def test_true_geometry_of_a_plane_seen_from_the_anchor_itself():
    camera = CameraModel.from_fov(1.0, 64, 48)
    depth = np.full((48, 64), 0.8, np.float32)
    view = AnchorView("a", gradient(), 0, camera, np.eye(4), depth)
    condition = true_condition(AnchorFrame(0, (view,)), np.eye(4), camera)
    assert condition.mask.all()
    # Means over neighbours keep a slope; at the rim they see one side of it only.
    assert np.abs(condition.image.astype(int) - view.image).max() <= 1
    assert np.allclose(condition.depth, 0.8)
    blind = AnchorView("a", gradient(), 0, camera, np.eye(4))
    assert true_condition(AnchorFrame(0, (blind,)), np.eye(4), camera) is None
