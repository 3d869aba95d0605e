"""Keypoints to pose, correspondences, and the network's invariants at tiny size."""

import numpy as np
import pytest
import torch

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction.backbone import BackboneConfig, base_plane_depth
from wristworld_ros.reconstruction.correspondence import exact_correspondences
from wristworld_ros.reconstruction.heads import (
    BASE_LANDMARKS,
    CROP_REACH,
    CROP_SIZE,
    WRIST_KEYPOINTS,
    PointHead,
    cut_out,
    fit_keypoints,
    fuse_keypoints,
    project,
)
from wristworld_ros.reconstruction.model import Stage1Model, base_plane, pixel_rays
from wristworld_ros.reconstruction.pose_encoding import decode_pose

TINY = BackboneConfig(dim=48, pairs=2, heads=4, stem=(16, 16, 16), kept=(0, 1))


def random_pose(seed):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=4)
    T = from_quaternion(rng.uniform(-0.5, 0.5, 3), q / np.linalg.norm(q))
    return torch.from_numpy(T).float()


def two_views():
    """A tiny model, two pictures, and their calibration."""
    torch.manual_seed(0)
    K = torch.tensor([[60.0, 0, 32], [0, 60, 32], [0, 0, 1]]).expand(1, 2, 3, 3)
    T = torch.stack([random_pose(0), random_pose(1)])[None]
    return Stage1Model(TINY).eval(), torch.rand(1, 2, 3, 64, 64), K, T


@pytest.mark.parametrize("seed", range(5))
def test_keypoints_of_a_pose_give_it_back(seed):
    T = random_pose(seed)
    points = torch.tensor(WRIST_KEYPOINTS) @ T[:3, :3].T + T[:3, 3]
    torch.testing.assert_close(fit_keypoints(points[None])[0], T, atol=1e-5, rtol=0)


def test_noisy_keypoints_still_give_a_rotation():
    points = torch.randn(4, len(WRIST_KEYPOINTS), 3)
    R = fit_keypoints(points)[:, :3, :3]
    eye = torch.eye(3).expand(4, 3, 3)
    torch.testing.assert_close(R @ R.transpose(1, 2), eye, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(4))


def test_the_gradient_of_the_fitted_pose_is_right():
    """Against finite differences; the damping makes it 6 % smaller. Finite for a single point."""
    T = random_pose(1).double()
    points = (torch.tensor(WRIST_KEYPOINTS).double() @ T[:3, :3].T + T[:3, 3])[None]
    torch.manual_seed(0)
    direction = torch.randn_like(points)

    def fit(step):
        return fit_keypoints(points + step * direction)[0, :3]

    gradient = torch.autograd.functional.jacobian(fit, torch.zeros((), dtype=torch.float64))
    numeric = (fit(1e-6) - fit(-1e-6)) / 2e-6
    torch.testing.assert_close(gradient, numeric, atol=0.07 * numeric.abs().max().item(), rtol=0)
    shapeless = torch.zeros_like(points, requires_grad=True)
    fit_keypoints(shapeless).sum().backward()
    assert torch.isfinite(shapeless.grad).all()


def test_two_views_fix_a_point_that_one_view_misjudges_in_depth():
    """Across the rays two cameras at a right angle agree, along them their depth is 6 cm off."""
    head = PointHead(8, cell=4)
    K = torch.tensor([[100.0, 0, 32], [0, 100, 32], [0, 0, 1]]).expand(1, 2, 3, 3)
    side = torch.eye(4)
    side[:3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])  # looks along x
    side[:3, 3] = torch.tensor([-1.0, 0, 1])
    poses = torch.stack([torch.eye(4), side])[None]
    # Two equal peaks left and right of the middle put each keypoint at the picture's centre.
    landmarks, count = len(BASE_LANDMARKS), len(WRIST_KEYPOINTS)
    maps = torch.full((1, 2, landmarks + 2 * count, 16, 16), -30.0)
    maps[:, :, :, 7:9, 7:9] = 0
    maps[:, :, landmarks + count :] = float(np.log(1.06))
    found, peaks, log_depth = head(maps)
    torch.testing.assert_close(found.pixels, torch.full((1, 2, landmarks, 2), 32.0))
    keypoints = fuse_keypoints(peaks, log_depth.exp(), K, poses)
    torch.testing.assert_close(keypoints.peaks.pixels, torch.full((1, 2, count, 2), 32.0))
    torch.testing.assert_close(keypoints.depth, torch.full((1, 2, count), 1.06))
    truth = torch.tensor([0.0, 0, 1])
    error = (keypoints.points[0, 0] - truth).norm()
    assert error < 0.01 < 0.06


def test_a_cut_out_shows_the_point_in_its_middle_at_a_fixed_size():
    K = torch.tensor([[200.0, 0, 128], [0, 200, 128], [0, 0, 1]]).expand(1, 2, 3, 3)
    near, far = torch.eye(4), torch.eye(4)
    far[2, 3] = -1.0
    poses = torch.stack([near, far])[None]
    middle = torch.tensor([[0.1, -0.05, 1.0]])
    K_crop, grid = cut_out(middle, K, poses, (256, 256))
    for offset in (0.0, CROP_REACH):
        places, _ = project(middle[:, None] + torch.tensor([offset, 0, 0]), K_crop, poses)
        expected = CROP_SIZE / 2 * (1 + offset / CROP_REACH)
        torch.testing.assert_close(places[0, :, 0, 0], torch.full((2,), expected))
        torch.testing.assert_close(places[0, :, 0, 1], torch.full((2,), CROP_SIZE / 2))
    # The grid samples the picture where the intrinsics say: its middle is the point's pixel.
    centre = grid[0, :, CROP_SIZE // 2 - 1 : CROP_SIZE // 2 + 1].mean((1, 2))[:, 1]
    pixel, _ = project(middle[:, None], K, poses)
    torch.testing.assert_close(centre, pixel[0, :, 0, 1] / 128 - 1, atol=1e-5, rtol=0)
    # Out of sight, the cut-out is finite.
    assert torch.isfinite(cut_out(torch.tensor([[50.0, 0, 0.01]]), K, poses, (256, 256))[1]).all()


def test_exact_correspondences_see_what_is_visible():
    """A fronto-parallel wall seen by both cameras; the anchor's right half is occluded."""
    K = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])
    wrist_depth = torch.full((1, 64, 64), 1.0)
    anchor_depth = torch.full((1, 1, 64, 64), 1.0)
    anchor_depth[..., 32:] = 0.5
    eye = torch.eye(4)[None]
    pairs = exact_correspondences(
        wrist_depth, K[None], eye, anchor_depth, K[None, None], eye[:, None], grid=8
    )
    torch.testing.assert_close(pairs.anchor[0, 0], pairs.wrist[0])
    left = pairs.wrist[0, :, 0] < 32
    assert pairs.valid[0, 0, left].all()
    assert not pairs.valid[0, 0, ~left].any()


def test_base_plane_depth_reaches_z_zero():
    origin, direction = torch.tensor([0.2, 0.1, 0.8]), torch.tensor([0.3, -0.2, -0.5])
    depth = base_plane_depth(origin, direction)
    assert (origin + depth * direction)[2].abs() < 1e-6
    assert base_plane_depth(origin, torch.tensor([0.0, 0, 0.5])) == 4


@pytest.mark.parametrize("views", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_any_number_of_views_and_aspect(views, size):
    torch.manual_seed(0)
    model = Stage1Model(TINY).eval()
    with torch.no_grad():
        out = model(torch.rand(2, views, 3, *size))
    half = (size[0] // 2, size[1] // 2)
    assert out.depth.shape == out.confidence.shape == (2, views, *half)
    assert out.first_depth.shape == (2, views, size[0] // 8, size[1] // 8)
    assert out.anchor_encoding.shape == (2, views, 9) and out.wrist_encoding.shape == (2, 9)
    assert (out.depth > 0).all() and (out.confidence >= 1).all()


def test_unknown_calibration_is_not_looked_at():
    model, x, K, T = two_views()
    with torch.no_grad():
        nothing = model(x)
        unknown = model(x, K, T, torch.tensor([[False, False]]))
        known = model(x, K, T, torch.tensor([[True, True]]))
    torch.testing.assert_close(nothing.depth, unknown.depth)
    torch.testing.assert_close(nothing.wrist[-1], unknown.wrist[-1])
    assert (known.depth - unknown.depth).abs().max() > 1e-3


def test_known_poses_of_the_anchors_place_the_wrist():
    """The wrist is estimated in the base frame; the known anchors carry it to the first anchor."""
    model, x, K, T = two_views()
    with torch.no_grad():
        out = model(x, K, T, torch.tensor([[True, True]]))
    torch.testing.assert_close(out.T_base_anchor, T)
    T_base_wrist, fov = decode_pose(out.wrist_pose)
    T_wrist_first, same_fov = decode_pose(out.wrist_encoding)
    torch.testing.assert_close(
        T[:, 0] @ torch.linalg.inv(T_wrist_first), T_base_wrist, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(fov, same_fov)
    first = decode_pose(out.anchor_encoding[:, 0])[0]
    torch.testing.assert_close(first, torch.eye(4)[None], atol=1e-5, rtol=0)


def test_the_wrist_pose_fits_the_close_keypoints():
    """What the network calls its pose is the rigid fit, with the wrist head's field of view."""
    torch.manual_seed(0)
    model = Stage1Model(TINY).eval()
    with torch.no_grad():
        out = model(torch.rand(1, 2, 3, 64, 64))
    torch.testing.assert_close(decode_pose(out.wrist_pose)[0], out.wrist_fits[1])
    torch.testing.assert_close(out.wrist_pose[:, 7:], out.wrist[-1][:, 7:])  # field of view
    assert (out.wrist_fits[1] - out.wrist_fits[0]).abs().max() > 1e-5
    assert torch.linalg.eigvalsh(out.wrist_covariance).min() > 0


def test_the_scene_alone_is_the_same_scene():
    model, x, K, T = two_views()
    with torch.no_grad():
        whole = model(x, K, T, torch.tensor([[True, True]]))
        scene = model.scene(x, K, T)
    for name, value in vars(scene).items():
        torch.testing.assert_close(value, getattr(whole, name))


def test_base_plane_is_seen_from_above():
    """A camera 0.8 m above the base plane that looks straight down sees it 0.8 m away."""
    T = torch.eye(4).repeat(1, 1, 1, 1)
    T[..., :3, :3] = torch.diag(torch.tensor([1.0, -1, -1]))
    T[..., 2, 3] = 0.8
    K = torch.tensor([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]]).expand(1, 1, 3, 3)
    torch.testing.assert_close(base_plane(K, T, (48, 64)), torch.full((1, 1, 48, 64), 0.8))


def test_bfloat16_training_stays_close_to_float32():
    model, x, K, T = two_views()
    with torch.no_grad():
        exact = model.scene(x, K, T)
        model.bf16 = True
        half = model.scene(x, K, T)
    assert half.depth.dtype == torch.float32
    assert 0 < (half.depth / exact.depth - 1).abs().max() < 0.1


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InvalidInputError, match="25 x 32 px.*multiples of 16"):
        Stage1Model(TINY)(torch.rand(1, 1, 3, 64, 50))


def test_pixel_rays_are_at_cell_centres():
    K = torch.tensor([[10.0, 0, 16], [0, 20, 8], [0, 0, 1]])
    rays = pixel_rays(K, (2, 4), 8)
    torch.testing.assert_close(rays[0, 0], torch.tensor([(4 - 16) / 10, (4 - 8) / 20, 1.0]))
    torch.testing.assert_close(rays[1, 3], torch.tensor([(28 - 16) / 10, (12 - 8) / 20, 1.0]))
