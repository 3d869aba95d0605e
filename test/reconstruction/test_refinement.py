"""Anchors without calibration: what the joint fit changes in stage 1's output, and what not."""

import numpy as np
import pytest
import torch

from wristworld_ros.geometry.transforms import orthonormal
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.locator import Locator, LocatorConfig
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.reconstruction.pose_encoding import decode_pose
from wristworld_ros.reconstruction.refinement import refine
from wristworld_ros.reconstruction.views import NetworkInputs

SIZE = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = BackboneConfig(dim=24, pairs=2, heads=2, stem=(16, 16, 16), kept=(0, 1))
    return Stage1Model(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def locator():
    torch.manual_seed(1)
    return Locator(LocatorConfig(size=32, widths=(8, 8, 8, 8))).eval().requires_grad_(False)


def inputs_of(known, views=2):
    generator = torch.Generator().manual_seed(2)
    K = torch.tensor([[70.0, 0, 32], [0, 70, 32], [0, 0, 1]]).expand(1, views, 3, 3).clone()
    T = torch.eye(4).expand(1, views, 4, 4).clone()
    T[..., :3, :3] = torch.tensor([[0.0, 0, -1], [1, 0, 0], [0, -1, 0]])  # looks at the base
    T[..., :3, 3] = torch.tensor([1.2, 0, 0.3])
    images = torch.rand(1, views, 3, SIZE, SIZE, generator=generator)
    return NetworkInputs(images, K, T, torch.tensor([known]))


def test_known_anchors_stay(model, locator):
    inputs = inputs_of([True, True])
    with torch.no_grad():
        output = model(*inputs)
        refined = refine(model, locator, inputs, output)
    assert refine(model, None, inputs, output) is output
    for name in ("depth", "confidence", "T_base_anchor", "anchor_K", "cameras"):
        assert getattr(refined, name) is getattr(output, name)
    assert not torch.allclose(refined.wrist_pose, output.wrist_pose, atol=1e-4)


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("with_locator", [True, False])
def test_depth_and_wrist_go_with_the_fitted_anchors(model, locator, views, with_locator):
    inputs = inputs_of([False, False], views)
    with torch.no_grad():
        output = model(*inputs)
        refined = refine(model, locator if with_locator else None, inputs, output)
        scene = model.depth_by(output, refined.anchor_K, refined.T_base_anchor)
        told = model.scene(inputs.images, refined.anchor_K, refined.T_base_anchor)
        # Stage 1's own anchors give its own depth.
        same = model.depth_by(output, output.anchor_K, output.T_base_anchor)
    torch.testing.assert_close(refined.depth, scene.depth)
    torch.testing.assert_close(refined.confidence, scene.confidence)
    assert not torch.allclose(refined.confidence, told.confidence, rtol=1e-3)
    torch.testing.assert_close(same.depth, output.depth, rtol=1e-3, atol=1e-4)
    T = refined.T_base_anchor[0].double().numpy()
    np.testing.assert_allclose(T, orthonormal(T), atol=1e-5)
    assert not torch.allclose(refined.T_base_anchor, output.T_base_anchor, atol=1e-3)
    torch.testing.assert_close(
        decode_pose(refined.cameras[-1])[0], refined.T_base_anchor, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(decode_pose(refined.wrist_pose)[0], refined.wrist_fits[-1])
    covariance = refined.wrist_covariance[0].double().numpy()
    assert np.linalg.eigvalsh(0.5 * (covariance + covariance.T)).min() > 0
    assert refined.close is output.close and refined.landmarks is output.landmarks


def test_known_intrinsics_stay(model, locator):
    inputs = inputs_of([True, False])
    with torch.no_grad():
        refined = refine(model, locator, inputs, model(*inputs))
    torch.testing.assert_close(refined.anchor_K, inputs.K)
