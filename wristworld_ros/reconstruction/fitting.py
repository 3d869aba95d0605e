"""Rigid poses from located points, by least squares: anchor cameras, and the wrist camera.

Beyond WristWorld, which regresses poses from a token. Places of points in pictures are learned
from far fewer scenes than poses, and what they say of the pose is geometry, covariance included.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Residuals beyond this many standard deviations count linearly (Huber).
HUBER = 2.0
#: Points nearer than this before a camera [m] are held there: their projection is of no use.
MIN_DEPTH = 0.05
ITERATIONS = 10


@dataclass(frozen=True)
class CameraFit:
    """Cameras fitted to points.

    Attributes:
        T_base_camera: N x 4 x 4.
        focal: N [px].
        valid: N bool; elsewhere the values are those that the fit started from.
        residual: N, RMS of the reprojection [px], weighted.
    """

    T_base_camera: Tensor
    focal: Tensor
    valid: Tensor
    residual: Tensor


def fit_cameras(
    points: Tensor,
    pixels: Tensor,
    weight: Tensor,
    T_base_camera: Tensor,
    focal: Tensor,
    centre: Tensor,
    *,
    free_focal: Tensor,
    focal_sigma: float = 0.1,
    pose_sigma: tuple[float, float] = (0.3, 0.3),
    aspect: Tensor | None = None,
) -> CameraFit:
    """Camera poses, and focal lengths where free, that project known points to located pixels.

    Levenberg-Marquardt with Huber weights, in double precision; no gradient goes through.

    Args:
        points: K x 3 in the base frame [m].
        pixels: N x K x 2.
        weight: N x K inverse variances [1/px^2], 0 where a point was not seen.
        T_base_camera, focal: N x 4 x 4 and N [px] to start from.
        centre: N x 2 principal points [px].
        free_focal: N bool.
        focal_sigma, pose_sigma: standard deviations of the start: of log focal, and [m, rad].
        aspect: N, fy / fx; 1 when None.
    """
    with torch.no_grad():
        points, pixels, weight = points.double(), pixels.double(), weight.double()
        centre, start = centre.double(), T_base_camera.double()
        ratio = torch.ones_like(focal) if aspect is None else aspect
        stretch = torch.stack([torch.ones_like(ratio), ratio], -1).double()
        T = torch.linalg.inv(start)
        log_f = log_f0 = focal.double().log()
        free = free_focal.double()
        N = len(T)
        damping = torch.full((N,), 1e-3, dtype=torch.float64, device=T.device)

        def residuals(T: Tensor, log_f: Tensor) -> tuple[Tensor, Tensor]:
            x = points @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]
            z = x[..., 2:].clamp_min(MIN_DEPTH)
            uv = x[..., :2] / z * (log_f.exp()[:, None] * stretch)[:, None] + centre[:, None]
            return x, uv - pixels

        prior = torch.tensor(
            [pose_sigma[1] ** -2] * 3 + [pose_sigma[0] ** -2] * 3 + [focal_sigma**-2],
            dtype=torch.float64,
            device=T.device,
        )
        identity = torch.eye(4, dtype=torch.float64, device=T.device).expand_as(T)

        def from_start(T: Tensor, log_f: Tensor) -> Tensor:
            moved = T @ start
            return torch.cat(
                [log_so3(moved, identity), moved[:, :3, 3], (log_f - log_f0)[:, None]], -1
            )

        def cost(r: Tensor, T: Tensor, log_f: Tensor) -> Tensor:
            norm = (r.square().sum(-1) * weight).sqrt()
            huber = torch.where(norm < HUBER, 0.5 * norm**2, HUBER * (norm - 0.5 * HUBER))
            return huber.sum(-1) + 0.5 * (prior * from_start(T, log_f).square()).sum(-1)

        x, r = residuals(T, log_f)
        best = cost(r, T, log_f)
        eye = torch.eye(7, dtype=torch.float64, device=T.device)
        for _ in range(ITERATIONS):
            f = log_f.exp()[:, None] * stretch
            z = x[..., 2].clamp_min(MIN_DEPTH)
            d_uv = torch.zeros(*r.shape, 7, dtype=torch.float64, device=T.device)
            # Columns: rotation and translation (left, in the camera frame), log focal.
            d_x = torch.cat([-cross_matrix(x), eye[:3, :3].expand(*x.shape, 3)], -1)
            for i in range(2):
                d_uv[..., i, :6] = (f[:, i, None] / z)[..., None] * (
                    d_x[..., i, :] - (x[..., i] / z)[..., None] * d_x[..., 2, :]
                )
                d_uv[..., i, 6] = f[:, i, None] * x[..., i] / z * free[:, None]
            norm = (r.square().sum(-1) * weight).sqrt()
            w = weight / (norm / HUBER).clamp_min(1)
            J = d_uv.flatten(1, 2)
            W = w[..., None].expand_as(r).flatten(1)
            H = J.transpose(1, 2) @ (W[..., None] * J)
            g = (J.transpose(1, 2) @ (W * r.flatten(1))[..., None])[..., 0]
            H = H + prior.diag()
            g = g + prior * from_start(T, log_f)
            A = H + damping[:, None, None] * (H.diagonal(dim1=1, dim2=2) + 1e-6).diag_embed()
            step = -torch.linalg.solve(A, g[..., None])[..., 0]
            T_new = exp_se3(step[:, :6].clamp(-0.5, 0.5)) @ T
            log_new = log_f + (step[:, 6] * free).clamp(-0.2, 0.2)
            x_new, r_new = residuals(T_new, log_new)
            new = cost(r_new, T_new, log_new)
            better = new < best
            T = torch.where(better[:, None, None], T_new, T)
            log_f = torch.where(better, log_new, log_f)
            x = torch.where(better[:, None, None], x_new, x)
            r = torch.where(better[:, None, None], r_new, r)
            best = torch.where(better, new, best)
            damping = torch.where(better, damping * 0.3, damping * 10).clamp(1e-9, 1e6)
        seen = (weight > 0).sum(-1)
        valid = (seen >= 4) & torch.isfinite(best) & (x[..., 2] > MIN_DEPTH).any(-1)
        total = weight.sum(-1).clamp_min(1e-12)
        rms = ((r.square().sum(-1) * weight).sum(-1) / total).sqrt()
        out = torch.where(valid[:, None, None], torch.linalg.inv(T), start)
        f_out = torch.where(valid, log_f, log_f0).exp()
    dtype = T_base_camera.dtype
    return CameraFit(out.to(dtype), f_out.to(dtype), valid, rms.to(dtype))


@dataclass(frozen=True)
class RigidFit:
    """Poses fitted to the places of their points in several views.

    Attributes:
        T: B x 4 x 4, body to base.
        covariance: B x 6 x 6 of (translation [m], rotation [rad]) in the base frame, about the
            body's origin, if the residuals were independent; they are not: see ``scores``.
        residual: B, RMS of the normalised residuals (1 when they are as large as expected).
    """

    T: Tensor
    covariance: Tensor
    residual: Tensor


def fit_rigid(
    model: Tensor,
    pixels: Tensor,
    sigma: Tensor,
    depth: Tensor,
    depth_sigma: float,
    visible: Tensor,
    K: Tensor,
    T_base_camera: Tensor,
    start: Tensor,
    *,
    start_sigma: tuple[float, float] = (0.1, 0.35),
    iterations: int = 6,
) -> RigidFit:
    """Pose of a body whose points are located in every view, with a depth each.

    Gauss-Newton with Huber weights. The gradient goes through the last step alone, from the
    located places to the pose, which is the exact derivative at the minimum.

    Args:
        model: K x 3 points of the body [m].
        pixels, sigma: B x V x K x 2 and B x V x K [px].
        depth: B x V x K [m], ``depth_sigma`` its relative standard deviation.
        visible: B x V x K probability that the place means anything.
        K, T_base_camera: B x V x 3 x 3 and B x V x 4 x 4.
        start: B x 4 x 4 body to base; a weak prior, ``start_sigma`` [m, rad].
    """
    dtype = pixels.dtype
    place, z_seen = pixels.double(), depth.double()
    model, K, start = model.double(), K.double(), start.double()
    base = torch.linalg.inv(T_base_camera.double())
    weight = visible.double() / sigma.double().square()
    z_weight = visible.double() / depth_sigma**2
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[:, :, None]
    centre = K[:, :, None, :2, 2]
    prior = torch.tensor(
        [start_sigma[0] ** -2] * 3 + [start_sigma[1] ** -2] * 3,
        dtype=torch.float64,
        device=K.device,
    )
    T = start.detach()
    eye = torch.eye(3, dtype=torch.float64, device=K.device)
    for i in range(iterations):
        last = i == iterations - 1
        arm = model @ T[:, :3, :3].transpose(1, 2)  # B, K, 3
        points = arm + T[:, None, :3, 3]
        R = base[..., :3, :3]
        x = torch.einsum("bvij,bkj->bvki", R, points) + base[:, :, None, :3, 3]
        z = x[..., 2].clamp_min(MIN_DEPTH)
        d_x = torch.einsum(
            "bvij,bkjc->bvkic", R, torch.cat([eye.expand(*arm.shape, 3), -cross_matrix(arm)], -1)
        )
        J_uv = (focal / z[..., None])[..., None] * (
            d_x[..., :2, :] - (x[..., :2] / z[..., None])[..., None] * d_x[..., 2:, :]
        )
        J_z = d_x[..., 2, :] / z[..., None]
        r_uv = x[..., :2] / z[..., None] * focal + centre - (place if last else place.detach())
        r_z = torch.log(z) - torch.log((z_seen if last else z_seen.detach()).clamp_min(MIN_DEPTH))
        with torch.no_grad():
            norm = (r_uv.square().sum(-1) * weight).sqrt()
            w = weight / (norm / HUBER).clamp_min(1)
            wz = z_weight / ((r_z.abs() * z_weight.sqrt()) / HUBER).clamp_min(1)
        J = torch.cat([J_uv, J_z[..., None, :]], -2).flatten(1, 3)
        W = torch.stack([w, w, wz], -1).flatten(1).detach()
        r = torch.cat([r_uv, r_z[..., None]], -1).flatten(1)
        H = J.transpose(1, 2) @ (W[..., None] * J) + prior.diag()
        away = torch.cat([T[:, :3, 3] - start[:, :3, 3], log_so3(T, start)], -1).detach()
        g = (J.transpose(1, 2) @ (W * r)[..., None])[..., 0] + prior * away
        step = -torch.linalg.solve(H, g[..., None])[..., 0]
        turn = exp_so3(step[:, 3:].clamp(-0.5, 0.5))
        moved = torch.cat(
            [turn @ T[:, :3, :3], (T[:, :3, 3] + step[:, :3].clamp(-0.3, 0.3))[..., None]], -1
        )
        T = torch.cat([moved, T[:, 3:]], 1)
    count = (W > 0).sum(-1).clamp_min(1)
    residual = ((W * r.detach().square()).sum(-1) / count).sqrt()
    return RigidFit(T.to(dtype), torch.linalg.inv(H).detach().to(dtype), residual.to(dtype))


def cross_matrix(v: Tensor) -> Tensor:
    """... x 3 -> ... x 3 x 3 with ``cross_matrix(v) @ w = v x w``."""
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*v.shape, 3)


def exp_so3(rotation: Tensor) -> Tensor:
    """N x 3 rotation vectors [rad] -> N x 3 x 3."""
    return torch.linalg.matrix_exp(cross_matrix(rotation))


def exp_se3(twist: Tensor) -> Tensor:
    """N x 6 (rotation vector [rad], translation [m]) -> N x 4 x 4: rotate, then translate."""
    top = torch.cat([exp_so3(twist[:, :3]), twist[:, 3:, None]], -1)
    bottom = twist.new_tensor([0, 0, 0, 1.0]).expand(len(twist), 1, 4)
    return torch.cat([top, bottom], 1)


def log_so3(T: Tensor, reference: Tensor) -> Tensor:
    """N x 3 rotation vectors of ``T`` against ``reference``, small angles, in the base frame."""
    R = T[:, :3, :3] @ reference[:, :3, :3].transpose(1, 2)
    return 0.5 * torch.stack(
        [R[:, 2, 1] - R[:, 1, 2], R[:, 0, 2] - R[:, 2, 0], R[:, 1, 0] - R[:, 0, 1]], -1
    )
