"""Depth around the hand: cut-outs, pasting, weights that belong to a stage 1."""

import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.hand_depth import (
    CloseDepth,
    HandDepth,
    HandDepthConfig,
    likeness,
)
from wristworld_ros.reconstruction.heads import cut_out
from wristworld_ros.reconstruction.model import SceneOutput, Stage1Model, pixel_rays
from wristworld_ros.reconstruction.posed_views import paste

sys.path.insert(0, str(Path(__file__).parent))

from test_reconstructor import TINY, frame

CONFIG = HandDepthConfig(size=32, widths=(16, 16, 16, 16))
SIZE = 64


@pytest.fixture
def network():
    torch.manual_seed(0)
    return HandDepth(CONFIG).eval()


def look_down(x, height):
    T = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    T[:3, 3] = torch.tensor([x, 0.0, height])
    return T


@pytest.fixture
def scene():
    """Two cameras over the plane z = 0, by 0.8 m and 1 m."""
    K = torch.tensor([[70.0, 0, 32], [0, 70, 32], [0, 0, 1]])
    depth = torch.ones(1, 2, SIZE // 2, SIZE // 2) * torch.tensor([0.8, 1.0])[:, None, None]
    T = torch.stack([look_down(0.0, 0.8), look_down(0.1, 1.0)])
    return SceneOutput(
        depth,
        torch.full_like(depth, 2.0),
        depth[..., ::4, ::4],
        T[None],
        K[None, None].expand(1, 2, 3, 3),
    )


WRIST = look_down(0.05, 0.3)[None]


def hand_only(network, gate):
    """Weights by which every pixel is the hand's (gate > 0), or what is behind it."""
    with torch.no_grad():
        network.out.weight.zero_()
        network.out.bias.zero_()
        network.out.bias[:4] = gate  # a group of 4 channels is one map of twice the size
        network.out.bias[12:] = 3.0
    return network


def test_the_cut_out_is_around_the_hand(network, scene):
    close = network(torch.rand(1, 2, 3, SIZE, SIZE), scene, WRIST, torch.tensor([True]))
    assert close.depth.shape == close.confidence.shape == (1, 2, 32, 32)
    np.testing.assert_allclose(close.middle[0], [0.05, 0, 0.2], atol=1e-6)
    # The middle of the cut-out shows the middle of the hand in both views.
    for view, T in enumerate(scene.T_base_anchor[0]):
        seen = torch.linalg.inv(T) @ torch.tensor([0.05, 0, 0.2, 1.0])
        pixel = close.K[0, view] @ seen[:3] / seen[2]
        np.testing.assert_allclose(pixel[:2], [16, 16], atol=1e-4)


@pytest.mark.parametrize(("gate", "expected"), [(30.0, (0.6, 0.8)), (-30.0, (0.8, 1.0))])
def test_a_pixel_is_the_hand_or_what_is_behind_it(network, scene, gate, expected):
    close = hand_only(network, gate)(
        torch.rand(1, 2, 3, SIZE, SIZE), scene, WRIST, torch.tensor([True])
    )
    for view, depth in enumerate(expected):
        np.testing.assert_allclose(close.depth[0, view].detach(), depth, rtol=1e-5)


def test_one_view_needs_no_other(network, scene):
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    both = network(images, scene, WRIST, torch.tensor([True])).depth
    second = SceneOutput(*(getattr(scene, f.name)[:, 1:] for f in fields(scene)[:-1]))
    alone = network(images[:, 1:], second, WRIST, torch.tensor([True])).depth
    # Views are compared by a part of the network that begins at zero.
    torch.testing.assert_close(both[:, 1:], alone, rtol=1e-4, atol=1e-5)


def test_what_another_view_shows_counts(network, scene):
    torch.manual_seed(1)
    with torch.no_grad():
        network.compare[2].weight.normal_(0, 0.1)
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    changed = torch.cat([images[:, :1], 1 - images[:, 1:]], 1)
    first, second = (
        network(i, scene, WRIST, torch.tensor([True])).depth[0, 0] for i in (images, changed)
    )
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize("plane", [3, 9])
def test_views_are_most_alike_at_the_depth_of_what_they_see(scene, plane):
    """Features are waves painted on a level surface, as each camera sees it."""
    s, planes, reach = 32, 13, 0.12
    middle = torch.tensor([[0.0, 0.0, 0.2]])
    T = torch.stack([look_down(x, 0.8) for x in (-0.4, 0.4)])[None]
    K, _ = cut_out(middle, scene.anchor_K, T, (SIZE, SIZE), 0.15, s)
    height = 0.2 - torch.linspace(-reach, reach, planes)[plane]
    rays = torch.einsum("bvij,bvhwj->bvhwi", T[..., :3, :3], pixel_rays(K, (s, s), 1))
    origin = T[:, :, None, None, :3, 3]
    place = origin + rays * ((height - origin[..., 2]) / rays[..., 2])[..., None]
    waves = [f(k * place[..., i]) for k in (20, 40) for i in (0, 1) for f in (torch.sin, torch.cos)]
    features = torch.stack(waves, 2).unflatten(2, (2, 4))
    found = likeness(features, T, K, middle, planes, reach).reshape(2, 2, 2, planes, s, s)
    right = found[:, :, :, plane]
    seen = right > 0.9  # the rest lies outside the other cut-out
    assert seen.float().mean() > 0.5
    best = found.argmax(3)[seen]
    assert (best == plane).float().mean() > 0.9
    assert (best - plane).abs().max() <= 1


def test_whether_the_pose_is_known_is_seen(network, scene):
    images = torch.rand(1, 2, 3, SIZE, SIZE)
    given = network(images, scene, WRIST, torch.tensor([True])).depth
    estimated = network(images, scene, WRIST, torch.tensor([False])).depth
    assert (given - estimated).abs().max() > 1e-4


@pytest.mark.parametrize("size", [(SIZE, SIZE), (48, 40)])
def test_pasted_values_lie_where_the_cut_out_saw_them(scene, size):
    """The cut-out holds its own pixel's ray; so does every pixel that it is pasted into."""
    S, K = 32, torch.tensor([[140.0, 0, -12.3], [0, 140, 7.1], [0, 0, 1]])
    v, u = torch.meshgrid(torch.arange(S) + 0.5, torch.arange(S) + 0.5, indexing="ij")
    ray_x = (u - K[0, 2]) / K[0, 0]
    ray_y = (v - K[1, 2]) / K[1, 1]
    for ray, axis in ((ray_x, 0), (ray_y, 1)):
        close = CloseDepth(
            ray[None, None].expand(1, 2, S, S),
            torch.full((1, 2, S, S), 0.5),
            K[None, None].expand(1, 2, 3, 3),
            torch.zeros(1, 2, S, S, 2),
            torch.zeros(1, 3),
        )
        W, H = size
        depth, confidence = np.full((H, W), 9.0), np.zeros((H, W))
        paste(depth, confidence, close, scene, 1)
        inside = depth < 9
        assert 0.05 < inside.mean() < 0.6
        assert (confidence[inside] == np.float32(0.45)).all() and (confidence[~inside] == 0).all()
        rows, columns = np.nonzero(inside)
        place = (columns if axis == 0 else rows) + 0.5
        true = (place * SIZE / (W if axis == 0 else H) - 32) / 70
        np.testing.assert_allclose(depth[inside], true, atol=0.5 / 140 + 1e-6)


def test_reconstructor_takes_the_depth_of_the_cut_outs(network):
    torch.manual_seed(0)
    model = Stage1Model(TINY)
    one = frame()
    bare = [type(v)(v.name, v.image, v.stamp_ns, v.camera, v.T_world_camera) for v in one.views]
    one = frame(views=tuple(bare))
    whole = Reconstructor(model, pose_source="kinematic")(one)
    near = Reconstructor(model, pose_source="kinematic", hand_depth=hand_only(network, 30.0))
    result = near(one)
    assert near.sha256s == {"stage1": "", "hand_depth": ""}
    # All pixels of a cut-out lie at the depth of the point 0.1 m before the wrist camera.
    T = one.views[0].T_world_camera
    middle = one.T_world_wrist @ np.array([0, 0, 0.1, 1.0])
    expected = (np.linalg.inv(T) @ middle)[2]

    def at_depth(cloud):
        local = (cloud.points - T[:3, 3]) @ T[:3, :3]
        return int((np.abs(local[:, 2] - expected) < 1e-4).sum())

    assert at_depth(result.cloud) > 100
    assert at_depth(whole.cloud) < 10


def test_more_likely_right_than_not_is_drawn():
    half = torch.tensor([[[[0.0, 0.25, 0.49, 0.51, 0.75, 1.0]]]])
    close = CloseDepth(half, half, half, half, half)
    expected = [0, 0.225, 0.441, 0.457, 0.625, 0.8]
    np.testing.assert_allclose(close.confidence[0, 0, 0], expected, atol=1e-6)


def test_uncalibrated_anchors_have_no_depth_around_the_hand(network):
    """Estimated cameras see the hand elsewhere: it would be drawn where it is not."""
    torch.manual_seed(0)
    views = tuple(type(v)(v.name, v.image, v.stamp_ns) for v in frame().views)
    bare = frame(views=views)
    plain = Reconstructor(Stage1Model(TINY))
    with_network = Reconstructor(plain.model, hand_depth=hand_only(network, 30.0))
    a, b = plain(bare), with_network(bare)
    np.testing.assert_array_equal(a.cloud.points, b.cloud.points)
    depths = with_network.predict_depth(bare, b.estimate)[0]
    np.testing.assert_array_equal(depths, plain.predict_depth(bare, a.estimate)[0])


def test_predicted_depth_includes_that_of_the_cut_outs(network):
    torch.manual_seed(0)
    reconstructor = Reconstructor(Stage1Model(TINY), pose_source="kinematic")
    one = frame()
    estimate = reconstructor(one).estimate
    whole, _ = reconstructor.predict_depth(one, estimate)
    scene = reconstructor.predict(one)
    np.testing.assert_allclose(whole[1], scene.depth[0, 1], rtol=1e-4)
    reconstructor.hand_depth = hand_only(network, 30.0)
    depths, confidences = reconstructor.predict_depth(one, estimate)
    for view, depth, confidence, before in zip(one.views, depths, confidences, whole, strict=True):
        middle = one.T_world_wrist @ np.array([0, 0, 0.1, 1.0])
        near = np.isclose(depth, (np.linalg.inv(view.T_world_camera) @ middle)[2], rtol=1e-4)
        assert 0.05 < near.mean() < 1
        np.testing.assert_array_equal(depth[~near], before[~near])
        right = np.isclose(confidence[near], 0.45 + 0.35 * (2 / (1 + np.exp(-3)) - 1), rtol=1e-4)
        assert right.mean() > 0.99  # the whole picture's depth can be the same by chance
