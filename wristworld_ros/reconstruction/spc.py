"""Spatial Projection Consistency (SPC) loss of WristWorld (arXiv 2510.07313; method.md, 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from wristworld_ros.errors import InvalidInputError


@dataclass(frozen=True)
class SpcLoss:
    """The parts of the loss, each a scalar; ``total`` is what is minimised."""

    total: Tensor
    reprojection: Tensor
    depth: Tensor


def spc_loss(
    points: Tensor,
    pixels: Tensor,
    valid: Tensor,
    T_wrist_world: Tensor,
    K: Tensor,
    image_size: tuple[int, int],
    *,
    lambda_u: float = 1.0,
    lambda_depth: float = 1.0,
    normalisation: Literal["per_set", "joint"] = "per_set",
    min_depth: float = 0.02,
    max_error: float | None = None,
    weight: Tensor | None = None,
) -> SpcLoss:
    """L_proj = lambda_u L_u + lambda_depth L_depth over corresponding points.

    With x = R X + t: L_u is the mean squared pixel error of pairs with z > 0, scaled by
    30 / (H^2 + W^2) as in the release; L_depth is the mean -z of pairs with z <= 0 [m]. Both are 0,
    with zero gradient, where there is no such pair.

    Args:
        points: B x M x 3 anchor points X lifted to the world [m].
        pixels: B x M x 2 where each is seen in the wrist image [px].
        valid: B x M bool; other pairs are ignored.
        T_wrist_world: B x 4 x 4 world-to-wrist-camera estimate.
        K: B x 3 x 3 wrist intrinsics [px].
        image_size: (H, W) of the wrist image.
        normalisation: ``per_set`` takes each mean over its own set (paper), ``joint`` one mean
            over all pairs together (release).
        min_depth: z [m] below which the projection's divisor is held, so that a point at the lens
            does not give an infinite gradient.
        max_error: cap on the error per pair, as a multiple of the image diagonal; none when None.
        weight: B x M, what each pair counts in the means, at least 0; 1 each when None.

    Raises:
        InvalidInputError: shapes disagree or the normalisation is unknown.
    """
    if points.shape[:2] != pixels.shape[:2] or points.shape[:2] != valid.shape:
        raise InvalidInputError(
            f"SPC pairs: points {tuple(points.shape)}, pixels {tuple(pixels.shape)}, valid "
            f"{tuple(valid.shape)} must agree in their first two sizes."
        )
    if weight is not None and weight.shape != valid.shape:
        raise InvalidInputError(
            f"SPC weights of shape {tuple(weight.shape)} for pairs of {tuple(valid.shape)}; "
            "give one weight per pair."
        )
    if normalisation not in ("per_set", "joint"):
        raise InvalidInputError(f"normalisation '{normalisation}' is not 'per_set' or 'joint'.")
    H, W = image_size
    # What is not a pair may hold anything; its gradient would be 0 * inf.
    points = torch.where(valid[..., None], points, 0.0)
    pixels = torch.where(valid[..., None], pixels, 0.0)
    x = points @ T_wrist_world[:, :3, :3].transpose(1, 2) + T_wrist_world[:, None, :3, 3]
    z = x[..., 2]
    share = valid.to(z.dtype) if weight is None else torch.where(valid, weight, 0.0).to(z.dtype)
    front, behind = share * (z > 0), share * (z <= 0)
    focal = torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)[:, None]
    uv = x[..., :2] / z.clamp_min(min_depth)[..., None] * focal + K[:, None, :2, 2]
    squared = (uv - pixels).square().sum(-1)
    if max_error is not None:  # linear growth beyond the cap: far misses pull, but do not explode
        cap = max_error**2 * (H * H + W * W)
        squared = torch.where(squared < cap, squared, 2 * (squared * cap + 1e-12).sqrt() - cap)
    scaled = 30.0 / (H * H + W * W) * squared
    total_front, total_behind = front.sum(), behind.sum()
    if normalisation == "joint":
        total_front = total_behind = total_front + total_behind
    # An empty set is divided by 1: by the least float, the gradient of a large lambda would be inf.
    reprojection = (front * scaled).sum() / torch.where(total_front > 0, total_front, 1.0)
    depth = (behind * -z).sum() / torch.where(total_behind > 0, total_behind, 1.0)
    return SpcLoss(lambda_u * reprojection + lambda_depth * depth, reprojection, depth)
