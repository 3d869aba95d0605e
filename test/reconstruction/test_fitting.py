"""Heat maps to places, and places to camera and body poses, on synthetic scenes of known truth."""

import pytest
import torch

from wristworld_ros.reconstruction.fitting import exp_se3, fit_cameras, fit_rigid, log_so3
from wristworld_ros.reconstruction.heads import BASE_LANDMARKS, WRIST_KEYPOINTS, project
from wristworld_ros.reconstruction.heatmaps import draw, heat_loss, locate

N = 6


def look_at(centre, target):
    z = target - centre
    z = z / z.norm()
    x = torch.linalg.cross(z, torch.tensor([0.0, 0, 1]))
    x = x / x.norm()
    T = torch.eye(4)
    T[:3, :3] = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    T[:3, 3] = centre
    return T


@pytest.fixture(scope="module")
def cameras():
    """N cameras around a table, focal length 140 px at 128 px."""
    target = torch.tensor([0.4, 0, 0.1])
    T = torch.stack([look_at(torch.tensor([1.3, 0.3 * i - 0.8, 0.8]), target) for i in range(N)])
    K = torch.tensor([[140.0, 0, 64], [0, 140, 64], [0, 0, 1]]).expand(N, 1, 3, 3)
    return T, K


def distance(T, truth):
    return (T - truth)[..., :3, 3].norm(dim=-1)


@pytest.mark.parametrize("free", [True, False])
def test_cameras_that_are_off_are_found_again(cameras, free):
    T, K = cameras
    pixels = project(torch.tensor(BASE_LANDMARKS).expand(N, -1, -1), K, T[:, None])[0][:, 0]
    torch.manual_seed(0)
    start = exp_se3(0.08 * torch.randn(N, 6)) @ T
    fit = fit_cameras(
        torch.tensor(BASE_LANDMARKS),
        pixels,
        torch.full(pixels.shape[:2], 100.0),
        start,
        torch.full((N,), 154.0 if free else 140.0),
        torch.full((N, 2), 64.0),
        free_focal=torch.full((N,), free),
    )
    assert distance(start, T).min() > 0.02
    assert fit.valid.all()
    assert distance(fit.T_base_camera, T).max() < 2e-3
    torch.testing.assert_close(fit.focal, torch.full((N,), 140.0), atol=0.5, rtol=0)
    assert fit.residual.max() < 0.1


def test_a_wrong_landmark_hardly_counts(cameras):
    T, K = cameras
    pixels = project(torch.tensor(BASE_LANDMARKS).expand(N, -1, -1), K, T[:, None])[0][:, 0]
    pixels = pixels.clone()
    pixels[:, 4] += 30.0
    fit = fit_cameras(
        torch.tensor(BASE_LANDMARKS),
        pixels,
        torch.full(pixels.shape[:2], 1.0),
        T,
        torch.full((N,), 140.0),
        torch.full((N, 2), 64.0),
        free_focal=torch.zeros(N, dtype=torch.bool),
    )
    assert distance(fit.T_base_camera, T).max() < 0.05
    assert (log_so3(fit.T_base_camera, T).norm(dim=-1)).max() < 0.05


def test_a_camera_that_sees_too_few_landmarks_keeps_its_start(cameras):
    T, _ = cameras
    count = len(BASE_LANDMARKS)
    weight = torch.zeros(N, count)
    weight[:, :3] = 1.0
    fit = fit_cameras(
        torch.tensor(BASE_LANDMARKS),
        torch.zeros(N, count, 2),
        weight,
        T,
        torch.full((N,), 140.0),
        torch.full((N, 2), 64.0),
        free_focal=torch.ones(N, dtype=torch.bool),
    )
    assert not fit.valid.any()
    torch.testing.assert_close(fit.T_base_camera, T)
    torch.testing.assert_close(fit.focal, torch.full((N,), 140.0))


def rigid(cameras, pixels, depth, start, **changes):
    T, K = cameras
    values = {
        "model": torch.tensor(WRIST_KEYPOINTS),
        "pixels": pixels,
        "sigma": torch.full(depth.shape, 0.5),
        "depth": depth,
        "depth_sigma": 0.04,
        "visible": torch.ones_like(depth),
        "K": K[:3, 0][None],
        "T_base_camera": T[:3][None],
        "start": start,
        **changes,
    }
    return fit_rigid(**values)


@pytest.fixture(scope="module")
def body(cameras):
    """A wrist that three cameras see: pose, true pixels and depths."""
    T, K = cameras
    down = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    pose = exp_se3(torch.tensor([[0.2, -0.3, 0.4, 0.4, 0.05, 0.3]]))[0] @ down
    points = torch.tensor(WRIST_KEYPOINTS) @ pose[:3, :3].T + pose[:3, 3]
    pixels, depth = project(points[None], K[:3, 0][None], T[:3][None])
    return pose, pixels, depth


def test_a_body_seen_by_three_cameras_is_placed(cameras, body):
    pose, pixels, depth = body
    start = exp_se3(torch.tensor([[0.2, 0.1, -0.15, 0.02, -0.03, 0.03]])) @ pose
    fit = rigid(cameras, pixels, depth, start)
    assert distance(start, pose).item() > 0.05
    assert distance(fit.T, pose[None]).item() < 2e-3
    assert log_so3(fit.T, pose[None]).norm() < 5e-3


def test_the_stated_covariance_is_that_of_the_errors(cameras, body):
    """Noise of the stated size gives errors of the stated size: chi-squared of 6 per pose."""
    pose, pixels, depth = body
    torch.manual_seed(1)
    chi2 = []
    for _ in range(40):
        noisy = pixels + 0.5 * torch.randn_like(pixels)
        seen = depth * torch.exp(0.04 * torch.randn_like(depth))
        fit = rigid(cameras, noisy, seen, pose[None])
        error = torch.cat([fit.T[:, :3, 3] - pose[None, :3, 3], log_so3(fit.T, pose[None])], -1)
        chi2.append((error * torch.linalg.solve(fit.covariance, error[..., None])[..., 0]).sum())
    assert 4.5 < torch.stack(chi2).mean() < 7.5


def test_the_gradient_of_the_placed_body_is_right(cameras, body):
    """Against finite differences of the whole fit."""
    pose, pixels, depth = body
    torch.manual_seed(2)
    noisy = (pixels + 0.3 * torch.randn_like(pixels)).double()
    direction = torch.randn_like(noisy)

    def fit(step):
        return rigid(cameras, noisy + step * direction, depth, pose[None], iterations=12).T[0, :3]

    gradient = torch.autograd.functional.jacobian(fit, torch.zeros((), dtype=torch.float64))
    numeric = (fit(1e-4) - fit(-1e-4)) / 2e-4
    # Huber weights are held, and so are the second derivatives of the projection: a few percent.
    assert (gradient - numeric).norm() < 0.1 * numeric.norm()


def test_a_drawn_point_is_located_where_it_was_drawn():
    places = torch.tensor([[[20.3, 41.7], [50.0, 10.0]]])
    logits = torch.log(draw(places, (16, 16), 4.0) + 1e-9)
    peaks = locate(logits, torch.full((2,), -20.0), 4.0)
    torch.testing.assert_close(peaks.pixels, places, atol=0.1, rtol=0)
    assert peaks.sigma.max() < 1.0 and peaks.visible.min() > 0.999
    vague = locate(torch.zeros(1, 2, 16, 16), torch.full((2,), 20.0), 4.0)
    assert vague.sigma.min() > 15 and vague.visible.max() < 1e-3


def test_heat_loss_wants_the_point_or_its_absence():
    inside, outside = torch.tensor([[[20.0, 41.0]]]), torch.tensor([[[-5.0, 41.0]]])
    there = locate(torch.log(draw(inside, (16, 16), 4.0) + 1e-9), torch.full((1,), -20.0), 4.0)
    absent = locate(torch.zeros(1, 1, 16, 16), torch.full((1,), 20.0), 4.0)
    front = torch.ones(1, 1, dtype=torch.bool)
    right, seen = heat_loss(there, inside, front)
    wrong, _ = heat_loss(absent, inside, front)
    assert seen.item() and right.item() < 3.0 < 10 < wrong.item()
    right, seen = heat_loss(absent, outside, front)
    wrong, _ = heat_loss(there, outside, front)
    assert not seen.item() and right.item() < 1e-3 < 10 < wrong.item()
    assert not heat_loss(there, inside, ~front)[1].item()
