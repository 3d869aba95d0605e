"""Pairs of anchor and wrist pixels that see the same point: records, filters, and exact pairs.

``ExactSource`` takes them from known depth and poses (simulation). The learned sources of
``matching.py`` find them in pictures; all three give the same record and count what they drop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import InvalidInputError

#: Most pairs per picture pair (release; method.md, 2).
MAX_PAIRS = 1024
#: What pairs that pass the stages of ``PairCounts`` did, for messages.
STAGES = ("were proposed", "are visible", "are confident", "fit one rigid scene")


@dataclass(frozen=True)
class PairCounts:
    """How many pairs are left after each stage, per sample and view (B x V int64 each).

    Attributes:
        candidates: pairs that the source proposed.
        visible: of these, with the point visible in both pictures.
        confident: of these, with enough confidence.
        epipolar: of these, consistent with one rigid scene.
        kept: of these, what is handed out: at most ``MAX_PAIRS``, none when there are too few.
        reasons: B x V, why ``kept`` is 0; empty where it is not.
    """

    candidates: Tensor
    visible: Tensor
    confident: Tensor
    epipolar: Tensor
    kept: Tensor
    reasons: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Correspondences:
    """Pairs per view.

    Attributes:
        anchor: B x V x M x 2 pixels in each anchor.
        wrist: B x M x 2 pixels in the wrist image, the same for all views.
        valid: B x V x M bool: the pair may be used; elsewhere pixels have no meaning.
        confidence: B x V x M in [0, 1], 0 where not valid; 1 for exact pairs.
        counts: what each stage kept.
    """

    anchor: Tensor
    wrist: Tensor
    valid: Tensor
    confidence: Tensor
    counts: PairCounts


@dataclass(frozen=True)
class PairGeometry:
    """Cameras of B wrist pictures and their V anchors, true or estimated; depth where known.

    Attributes:
        wrist_K, T_world_wrist: B x 3 x 3 [px], B x 4 x 4.
        anchor_K, T_world_anchor: B x V x 3 x 3 [px], B x V x 4 x 4.
        wrist_depth, anchor_depth: B x h x w and B x V x H x W along z [m], 0 where unknown.
    """

    wrist_K: Tensor
    T_world_wrist: Tensor
    anchor_K: Tensor
    T_world_anchor: Tensor
    wrist_depth: Tensor | None = None
    anchor_depth: Tensor | None = None


@dataclass(frozen=True)
class PairFilters:
    """Limits of the filters.

    Attributes:
        visibility, confidence: pairs need more than these, in [0, 1] (release: 0.5 and 0.2).
        epipolar: largest Sampson distance [px] from the epipolar geometry of known cameras, or of
            a fundamental matrix fitted robustly (MAGSAC) when they are unknown; None: no check
            (release).
        min_pairs: fewer than this are no evidence and are all dropped, when cameras are known.
        min_fitted: the same when the fundamental matrix is fitted. More, because that checks less:
            some matrix always fits, and a matcher's false pairs hang together, so that two dozen of
            them may agree.
    """

    visibility: float = 0.5
    confidence: float = 0.2
    epipolar: float | None = 2.0
    min_pairs: int = 8
    min_fitted: int = 30


class CorrespondenceSource(Protocol):
    """Finds pairs between wrist pictures and anchor pictures of the same moments."""

    def __call__(
        self, wrist: Tensor, anchors: Tensor, geometry: PairGeometry | None = None
    ) -> Correspondences:
        """Pairs of B x 3 x h x w wrist and B x V x 3 x H x W anchor pictures in [0, 1].

        Raises:
            InvalidInputError: shapes do not fit, or the source needs geometry that is missing.
        """


class ExactSource:
    """Pairs of a grid of wrist pixels from true depth and poses; the pictures are not looked at.

    Args:
        grid: points per side, at most 32.
        tolerance: as in ``exact_correspondences``.
    """

    def __init__(self, *, grid: int = 32, tolerance: float = 0.015) -> None:
        if not 1 <= grid <= 32:
            raise InvalidInputError(f"grid of {grid} points per side; use 1 to 32 (1024 pairs).")
        self.grid, self.tolerance = grid, tolerance

    def __call__(
        self, wrist: Tensor, anchors: Tensor, geometry: PairGeometry | None = None
    ) -> Correspondences:
        """See ``CorrespondenceSource``."""
        check_pictures(wrist, anchors)
        if geometry is None or geometry.wrist_depth is None or geometry.anchor_depth is None:
            raise InvalidInputError(
                "exact correspondences need the cameras and the depth of wrist and anchors. "
                "Give them, or use the source 'track' or 'xfeat'."
            )
        return exact_correspondences(
            geometry.wrist_depth,
            geometry.wrist_K,
            geometry.T_world_wrist,
            geometry.anchor_depth,
            geometry.anchor_K,
            geometry.T_world_anchor,
            grid=self.grid,
            tolerance=self.tolerance,
        )


def exact_correspondences(
    wrist_depth: Tensor,
    wrist_K: Tensor,
    T_world_wrist: Tensor,
    anchor_depth: Tensor,
    anchor_K: Tensor,
    T_world_anchor: Tensor,
    *,
    grid: int = 16,
    tolerance: float = 0.015,
) -> Correspondences:
    """Correspondences of a grid of wrist pixels from true geometry.

    Args:
        wrist_depth: B x h x w along z [m].
        wrist_K, T_world_wrist: B x 3 x 3, B x 4 x 4.
        anchor_depth: B x V x H x W [m].
        anchor_K, T_world_anchor: B x V x 3 x 3, B x V x 4 x 4.
        grid: points per side.
        tolerance: a point is visible when it is at most this [m] behind the anchor's depth.
    """
    B, h, w = wrist_depth.shape
    device = wrist_depth.device
    pixels = grid_pixels(grid, h, w, device)
    u, v = pixels.long().unbind(-1)
    centres = torch.stack([u, v], -1).float() + 0.5
    wrist = centres.expand(B, -1, -1)
    geometry = PairGeometry(
        wrist_K, T_world_wrist, anchor_K, T_world_anchor, wrist_depth, anchor_depth
    )
    anchor, visible = transfer(wrist, wrist_depth[:, v, u], geometry, tolerance)
    count = visible.sum(-1)
    reasons = tuple(
        tuple("" if n else "no point of the wrist's grid is visible in this anchor" for n in row)
        for row in count.tolist()
    )
    candidates = torch.full_like(count, grid * grid)
    counts = PairCounts(candidates, count, count, count, count, reasons)
    return Correspondences(anchor, wrist, visible, visible.float(), counts)


def grid_pixels(grid: int, h: int, w: int, device: torch.device) -> Tensor:
    """(grid * grid) x 2 points spread evenly over a picture of h x w [px]."""
    steps = (torch.arange(grid, device=device) + 0.5) / grid
    v, u = torch.meshgrid(steps * h, steps * w, indexing="ij")
    return torch.stack([u, v], -1).reshape(-1, 2)


def transfer(
    pixels: Tensor, z: Tensor, geometry: PairGeometry, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Where wrist pixels of depth z appear in the anchors, and whether they are visible there.

    Args:
        pixels: B x M x 2 in the wrist image.
        z: B x M depth [m], 0 where unknown.
        geometry: with ``anchor_depth``.
        tolerance: how far [m] a visible point may lie behind the anchor's depth; three times as far
            before it.

    Returns:
        B x V x M x 2 pixels and B x V x M bool.
    """
    depth_map = geometry.anchor_depth
    assert depth_map is not None
    B, V, H, W = depth_map.shape
    K, T = geometry.wrist_K, geometry.T_world_wrist
    rays = (pixels - K[:, None, :2, 2]) / _focal(K)[:, None]
    local = torch.cat([rays * z[..., None], z[..., None]], -1)
    world = local @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]
    R, t = geometry.T_world_anchor[..., :3, :3], geometry.T_world_anchor[..., :3, 3]
    x = (world[:, None] - t[:, :, None]) @ R  # B, V, M, 3
    depth = x[..., 2]
    anchor_K = geometry.anchor_K
    uv = x[..., :2] / depth.clamp_min(1e-3)[..., None] * _focal(anchor_K)[:, :, None]
    uv = uv + anchor_K[:, :, None, :2, 2]
    column, row = uv.floor().long().unbind(-1)
    inside = (depth > 0) & (column >= 0) & (column < W) & (row >= 0) & (row < H) & (z > 0)[:, None]
    index = row.clamp(0, H - 1) * W + column.clamp(0, W - 1)
    seen = depth_map.reshape(B, V, -1).gather(2, index)
    return uv, inside & (depth < seen + tolerance) & (depth > seen - 3 * tolerance)


def select_pairs(
    anchor: Tensor,
    wrist: Tensor,
    visibility: Tensor,
    confidence: Tensor,
    filters: PairFilters,
    geometry: PairGeometry | None = None,
    *,
    candidates: Tensor | None = None,
    refused: tuple[tuple[str, ...], ...] | None = None,
) -> Correspondences:
    """Filter proposed pairs and count what each filter leaves.

    Args:
        anchor, wrist: B x V x M x 2 and B x M x 2 [px].
        visibility, confidence: B x V x M in [0, 1].
        filters: the limits.
        geometry: cameras for the epipolar check; a fundamental matrix is fitted when None.
        candidates: B x V x M bool, which of the slots are pairs; all when None.
        refused: B x V, why the source proposes nothing; empty where it does.
    """
    B, V, M = confidence.shape
    finite = anchor.isfinite().all(-1) & wrist.isfinite().all(-1)[:, None]
    proposed = finite if candidates is None else finite & candidates
    visible = proposed & (visibility > filters.visibility)
    confident = visible & (confidence > filters.confidence)
    consistent = confident
    minimum = filters.min_pairs
    if filters.epipolar is not None:
        if geometry is not None:
            distance, in_front = epipolar_error(anchor, wrist, geometry)
            consistent = confident & in_front & (distance < filters.epipolar)
        else:
            consistent = _fitted(anchor, wrist, confident, filters.epipolar, filters.min_fitted)
            minimum = filters.min_fitted
    masks = (proposed, visible, confident, consistent)
    totals = [mask.sum(-1) for mask in masks]
    valid = consistent & (consistent.sum(-1) >= minimum)[..., None]
    if M > MAX_PAIRS:
        best = torch.where(valid, confidence, -1.0).topk(MAX_PAIRS, -1).indices
        valid = valid & torch.zeros_like(valid).scatter_(-1, best, True)
    reasons = []
    for b in range(B):
        row = []
        for v in range(V):
            reason = refused[b][v] if refused else ""
            for name, count in zip(STAGES, totals, strict=True):
                if not reason and int(count[b, v]) < minimum:
                    reason = f"{int(count[b, v])} pairs {name}, at least {minimum} are needed"
            row.append(reason)
        reasons.append(tuple(row))
    counts = PairCounts(totals[0], totals[1], totals[2], totals[3], valid.sum(-1), tuple(reasons))
    zero = torch.zeros((), device=anchor.device)
    return Correspondences(
        torch.where(finite[..., None], anchor, zero),
        torch.where(wrist.isfinite(), wrist, zero),
        valid,
        torch.where(valid, confidence, zero),
        counts,
    )


def epipolar_error(anchor: Tensor, wrist: Tensor, geometry: PairGeometry) -> tuple[Tensor, Tensor]:
    """Sampson distance of pairs from known cameras, and whether they meet before both cameras.

    Args:
        anchor, wrist: B x V x M x 2 and B x M x 2 [px].
        geometry: the cameras.

    Returns:
        B x V x M distance [px] and bool. Where the cameras share their centre nothing can be
        checked: the distance is 0 and no pair counts as in front.
    """
    T = (
        torch.linalg.inv(geometry.T_world_anchor.double())
        @ geometry.T_world_wrist[:, None].double()
    )
    R, t = T[..., :3, :3], T[..., :3, 3]
    inverse_a = torch.linalg.inv(geometry.anchor_K.double())
    inverse_w = torch.linalg.inv(geometry.wrist_K.double())[:, None]
    cross = torch.zeros_like(R)
    cross[..., 0, 1], cross[..., 0, 2], cross[..., 1, 2] = -t[..., 2], t[..., 1], -t[..., 0]
    cross = cross - cross.transpose(-1, -2)
    F = inverse_a.transpose(-1, -2) @ cross @ R @ inverse_w
    a, w = _homogeneous(anchor), _homogeneous(wrist)[:, None].expand(*anchor.shape[:3], 3)
    distance = sampson_distance(a, w, F)
    ray_a = a @ inverse_a.transpose(-1, -2)
    ray_w = w @ (R @ inverse_w).transpose(-1, -2)
    # z_a ray_a = z_w ray_w + t; crossing it with either ray gives the sign of both depths.
    normal = torch.linalg.cross(ray_a, ray_w)
    shift = t[..., None, :].expand_as(ray_a)
    z_w = -(normal * torch.linalg.cross(ray_a, shift)).sum(-1)
    z_a = -(normal * torch.linalg.cross(ray_w, shift)).sum(-1)
    return distance.to(anchor.dtype), (z_w > 0) & (z_a > 0)


def sampson_distance(a: Tensor, w: Tensor, F: Tensor) -> Tensor:
    """First-order distance [px] of pairs from a^T F w = 0 (Hartley and Zisserman, eq. 11.9).

    Args:
        a, w: ... x M x 3 homogeneous pixels.
        F: ... x 3 x 3.
    """
    line_a, line_w = w @ F.transpose(-1, -2), a @ F
    slope = line_a[..., :2].square().sum(-1) + line_w[..., :2].square().sum(-1)
    tiny = torch.finfo(slope.dtype).tiny
    return (a * line_a).sum(-1).abs() / slope.clamp_min(tiny).sqrt()


def _fitted(anchor: Tensor, wrist: Tensor, pairs: Tensor, threshold: float, minimum: int) -> Tensor:
    """Which pairs agree with the fundamental matrix that most of them agree with."""
    out = torch.zeros_like(pairs)
    for b, v in pairs.any(-1).nonzero().tolist():
        index = pairs[b, v].nonzero()[:, 0]
        if len(index) < max(minimum, 8):
            out[b, v, index] = True  # too few to fit: dropped by their number
            continue
        a = anchor[b, v, index].double().cpu().numpy()
        w = wrist[b, index].double().cpu().numpy()
        F, inlier = cv2.findFundamentalMat(w, a, cv2.USAC_MAGSAC, threshold, 0.999, 10_000)
        if F is not None:
            out[b, v, index] = torch.from_numpy(inlier[:, 0].astype(np.bool_)).to(pairs.device)
    return out


def check_pictures(wrist: Tensor, anchors: Tensor) -> None:
    """Raise InvalidInputError unless they are B x 3 x h x w and B x V x 3 x H x W floats."""
    if (
        wrist.ndim != 4
        or anchors.ndim != 5
        or len(wrist) != len(anchors)
        or wrist.shape[1] != 3
        or anchors.shape[2] != 3
        or not (wrist.is_floating_point() and anchors.is_floating_point())
    ):
        raise InvalidInputError(
            f"wrist pictures {wrist.dtype} {tuple(wrist.shape)} and anchor pictures "
            f"{anchors.dtype} {tuple(anchors.shape)}; need floats in [0, 1] of shapes "
            "B x 3 x h x w and B x V x 3 x H x W."
        )


def _focal(K: Tensor) -> Tensor:
    return torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)


def _homogeneous(pixels: Tensor) -> Tensor:
    pixels = pixels.double()
    return torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
