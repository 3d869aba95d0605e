"""Depth at full resolution: choices among neighbours, sharp edges in the cloud, and its weights."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.fine_depth import FineDepth, FineDepthConfig
from wristworld_ros.reconstruction.hand_depth import HandDepth, HandDepthConfig
from wristworld_ros.reconstruction.model import SceneOutput, Stage1Model
from wristworld_ros.reconstruction.reconstructor import ReconstructorConfig

sys.path.insert(0, str(Path(__file__).parent))

from test_reconstructor import TINY, frame

CONFIG = FineDepthConfig(widths=(16, 16, 16))
SIZE = 32


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FineDepth(CONFIG).eval()


def choose(network, choice, correction=0.0):
    """Weights by which every pixel takes one of its choices, and is corrected alike."""
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.zero_()
        network.out.bias.view(-1, 4)[choice] = 30.0
        network.out.bias.view(-1, 4)[-2] = correction
    return network


@pytest.fixture
def scene():
    """Two views of a camera 1 m above the plane, whose depth differs from pixel to pixel."""
    T = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    T[2, 3] = 1.0
    K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
    torch.manual_seed(1)
    depth = 0.8 + 0.4 * torch.rand(1, 2, SIZE // 2, SIZE // 2)
    return SceneOutput(
        depth,
        1 + torch.rand(1, 2, SIZE // 2, SIZE // 2) * 4,
        depth[..., ::4, ::4],
        T.expand(1, 2, 4, 4),
        K.expand(1, 2, 3, 3),
    )


@pytest.mark.parametrize(
    ("choice", "offset"),
    # As ``steps`` has it: itself, 8 neighbours at 1 px, 8 at 3 px, each row by row.
    [(0, (0, 0)), (1, (-1, -1)), (2, (-1, 0)), (5, (0, 1)), (9, (-3, -3)), (16, (3, 3))],
)
def test_a_pixel_takes_the_depth_of_the_neighbour_it_chose(network, scene, choice, offset):
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    depth, confidence = choose(network, choice)(images, scene)
    assert depth.shape == confidence.shape == (1, 2, SIZE, SIZE)
    rows = (torch.arange(SIZE // 2) + offset[0]).clamp(0, SIZE // 2 - 1)
    columns = (torch.arange(SIZE // 2) + offset[1]).clamp(0, SIZE // 2 - 1)
    expected = scene.depth[:, :, rows][..., columns]
    torch.testing.assert_close(depth[..., ::2, ::2], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(depth[..., 1::2, 1::2], expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(confidence[..., ::2, 1::2], scene.confidence, rtol=1e-3, atol=1e-3)


def test_corrections_are_factors_of_depth(network, scene):
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    depth, _ = choose(network, 0, correction=0.5)(images, scene)
    torch.testing.assert_close(
        depth[..., ::2, ::2], scene.depth * float(np.exp(0.05)), rtol=1e-4, atol=0
    )


def test_four_pixels_of_one_depth_are_told_apart(network, scene):
    """The depth of stage 1 has one value for them, the picture four."""
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    depth, _ = network(images, scene)
    cells = depth.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2)
    assert (cells.amax(-1) - cells.amin(-1)).min() > 0


def test_the_refined_scene_keeps_its_cameras(network, scene):
    fine = network.refine(torch.rand(1, 2, 3, SIZE, SIZE), scene)
    assert scene.size == fine.size == (SIZE, SIZE)
    assert fine.depth.shape[-2:] == (SIZE, SIZE) and scene.depth.shape[-2:] == (SIZE // 2,) * 2
    assert fine.T_base_anchor is scene.T_base_anchor and fine.anchor_K is scene.anchor_K


def test_reconstructor_takes_the_fine_depth(network):
    torch.manual_seed(0)
    model = Stage1Model(TINY)
    one = frame()
    bare = [type(v)(v.name, v.image, v.stamp_ns, v.camera, v.T_world_camera) for v in one.views]
    one = frame(views=tuple(bare))
    half = Reconstructor(model, pose_source="kinematic")
    fine = Reconstructor(
        model,
        pose_source="kinematic",
        fine_depth=choose(network, 0, 2.0),
        config=ReconstructorConfig(edge_threshold=1.0),  # an untrained network has edges only
    )
    assert fine.sha256s == {"stage1": "", "fine_depth": ""}
    estimate = fine(one).estimate
    before, _ = half.predict_depth(one, estimate)
    after, _ = fine.predict_depth(one, estimate)
    for a, b in zip(before, after, strict=True):
        assert b.shape == (2 * a.shape[0], 2 * a.shape[1])
        np.testing.assert_allclose(b[::2, ::2], a * np.exp(0.2), rtol=1e-4)
    # Points of the cloud lie at depths that were predicted, none in between.
    cloud, T = fine(one).cloud, one.views[0].T_world_camera
    z = ((cloud.points[cloud.view == 0] - T[:3, 3]) @ T[:3, :3])[:, 2]
    predicted = np.sort(after[0].ravel())
    place = np.searchsorted(predicted, z).clip(1, predicted.size - 1)
    gap = np.minimum(np.abs(predicted[place] - z), np.abs(predicted[place - 1] - z))
    assert len(z) > 100 and (gap < 1e-4).mean() > 0.99


def test_the_hand_lies_over_the_fine_depth(network):
    """Cut-outs are pasted where their pixels are, whatever resolution lies below."""
    torch.manual_seed(0)
    model = Stage1Model(TINY)
    hand = HandDepth(HandDepthConfig(size=32, widths=(16, 16, 16, 16)))
    with torch.no_grad():
        hand.out.weight.zero_()
        hand.out.bias.zero_()
        hand.out.bias[:4] = 30.0
        hand.out.bias[12:] = 3.0
    one = frame()
    shares = []
    for fine in (None, choose(network, 0)):
        reconstructor = Reconstructor(
            model, pose_source="kinematic", hand_depth=hand, fine_depth=fine
        )
        depths, _ = reconstructor.predict_depth(one, reconstructor(one).estimate)
        middle = one.T_world_wrist @ np.array([0, 0, 0.1, 1.0])
        z = (np.linalg.inv(one.views[0].T_world_camera) @ middle)[2]
        shares.append(np.isclose(depths[0], z, rtol=1e-4).mean())
    assert shares[0] > 0.05 and shares[1] == pytest.approx(shares[0], rel=0.1)
