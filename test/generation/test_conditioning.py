"""Hole filling, mask channels and the confidence map, on pictures worked out by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.generation.conditioning import (
    condition_tensors,
    mask_channels,
    ray_channels,
)
from wristworld_ros.generation.confidence import HALF_DIFFERENCE, measured_confidence
from wristworld_ros.geometry.camera import pixel_rays
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.types import CameraModel, ConditionMap


@settings(max_examples=20, deadline=None)
@given(st.integers(3, 40), st.integers(3, 40), st.integers(0, 1000))
def test_measured_pixels_stay_and_holes_lie_between_their_neighbours(h, w, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(1, 3, h, w, generator=generator)
    mask = (torch.rand(1, 1, h, w, generator=generator) < 0.3).float()
    filled = fill_holes(image, mask)
    assert filled.shape == image.shape and filled.isfinite().all()
    torch.testing.assert_close(filled * mask, image * mask)
    if mask.any():
        there = image[(mask > 0).expand_as(image)]
        assert filled.min() >= there.min() - 1e-5 and filled.max() <= there.max() + 1e-5


def test_a_flat_colour_with_holes_becomes_flat():
    mask = torch.ones(1, 1, 33, 47)
    mask[..., 5:20, 8:30] = 0
    image = torch.full((1, 3, 33, 47), 0.7) * mask
    torch.testing.assert_close(fill_holes(image, mask), torch.full((1, 3, 33, 47), 0.7))


def test_nothing_measured_is_grey():
    filled = fill_holes(torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 16, 16))
    assert (filled == 0.5).all()


def test_mask_channels_hold_the_coverage_of_sub_cells():
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., :4, :4] = 1  # first sub-cell of the first cell
    mask[..., 8:16, 16:20] = 1  # left half of the last cell
    channels = mask_channels(mask)
    assert channels.shape == (1, 4, 2, 3)
    assert channels[0, :, 0, 0].tolist() == [1, 0, 0, 0]
    assert channels[0, :, 1, 2].tolist() == [1, 0, 1, 0]
    assert channels.sum() == 3


def test_condition_tensors_keep_layout():
    image = np.zeros((4, 6, 3), np.uint8)
    image[1, 2] = [255, 0, 51]
    mask = image.any(-1)
    condition = ConditionMap(
        image, mask, mask.astype(np.float32), np.full((4, 6), -1, np.int8),
        CameraModel.from_fov(1, 6, 4),
    )  # fmt: skip
    x, m = condition_tensors([condition])
    assert x.shape == (1, 3, 4, 6) and m.shape == (1, 1, 4, 6)
    assert x[0, :, 1, 2].tolist() == pytest.approx([1, 0, 0.2])
    assert m.sum() == 1 and m[0, 0, 1, 2] == 1


def test_confidence_is_one_where_kept_zero_where_unseen():
    condition = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 32, 32)
    mask[..., 20:] = 0
    confidence = measured_confidence(condition, condition * mask, mask)
    assert confidence.shape == (1, 32, 32)
    assert (confidence[0, 4:28, 4:16] == 1).all()
    assert (confidence[0, :, 20:] == 0).all()


def test_confidence_halves_when_the_generator_changed_the_colour():
    condition = torch.full((1, 3, 16, 16), 0.4)
    mask = torch.ones(1, 1, 16, 16)
    changed = measured_confidence(condition + HALF_DIFFERENCE, condition, mask)
    torch.testing.assert_close(changed[0, 8, 8], torch.tensor(0.5), atol=1e-4, rtol=0)


def test_a_shift_of_a_pixel_is_still_measured():
    condition = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(1, 1, 32, 32)
    shifted = condition.roll(1, -1)
    assert measured_confidence(shifted, condition, mask)[0, 6:26, 6:26].min() > 0.99


def test_rays_point_where_the_cells_are():
    camera = CameraModel.from_fov(1.2, 64, 48)
    rays = ray_channels(torch.tensor(camera.K.copy())[None], 48, 64)
    assert rays.shape == (1, 2, 6, 8)
    expected = pixel_rays(camera, np.array([[4.0, 4.0], [60.0, 44.0]]))
    np.testing.assert_allclose(rays[0, :, 0, 0], expected[0, :2])
    np.testing.assert_allclose(rays[0, :, 5, 7], expected[1, :2])
