"""Footprint-sized, z-buffered splatting of a point cloud to a condition map and validity mask.

Each point covers the pixels that its source pixel covers in the new view, so that a dense source
leaves no pinholes between points and real holes stay holes (mask False), unlike the release's
fixed 2-px discs on black (method.md, 2 and 5.3). Points that are not trusted are not drawn, but
what lies behind them is not drawn either: it would count as measured where it cannot be seen.

Which pixels are covered, and by which view, the nearest point decides. Their colour and depth are
means over all points of that surface, weighted by confidence and by a Gaussian of the footprint's
size, as in surface splatting (Zwicker et al. 2001): views that err differently average out, and
enlarged source pixels do not show as blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from wristworld_ros.geometry.transforms import invert
from wristworld_ros.types import ROBOT_VIEW, CameraModel, ConditionMap, FloatArray, PointCloud

#: Relative depth within which two points count as one surface; the nearer pixel centre then wins.
SURFACE_THICKNESS = 0.02
#: A little more than the footprint, so that slanted surfaces close.
OVERLAP = 1.15
#: An untrusted point hides what lies behind it by more than this, relative to the depth. Less than
#: that is the same surface with another error.
OCCLUDER_MARGIN = 0.05
#: Standard deviation of the Gaussian that colours are averaged by, in footprints; at least and at
#: most this [px]; where it is cut off, in standard deviations. Chosen on val.
BLEND_SIGMA, BLEND_RANGE, BLEND_REACH = 0.6, (0.3, 3.5), 2.0
#: Points are averaged with the nearest one when they lie less than this behind it, relative to the
#: depth: views put the same surface several percent apart.
BLEND_THICKNESS = 0.1
#: Points closer than this are dropped [m], and the largest half edge of a splat [px].
NEAR, MAX_RADIUS = 0.02, 6.0
#: A square of whole pixels reaches as far as the splat's edge less this [px]: half a pixel would
#: never be too small, three quarters keep outlines where they are in the mean.
_ROUNDING = 0.75
_FAR = torch.iinfo(torch.int64).max


def splat(
    cloud: PointCloud,
    T_world_camera: FloatArray,
    camera: CameraModel,
    *,
    min_confidence: float = 0.0,
    near: float = NEAR,
    max_radius: float = MAX_RADIUS,
    device: str | torch.device = "cpu",
) -> ConditionMap:
    """Draw a cloud as seen by ``camera`` (without lens distortion).

    Args:
        cloud: points in the world frame.
        T_world_camera: 4 x 4 pose of the camera's optical frame.
        camera: the wrist camera; its distortion is ignored, since the virtual view is a pinhole.
        min_confidence: points below it only hide: a pixel where one lies in front of the nearest
            trusted point by more than ``OCCLUDER_MARGIN`` becomes a hole.
        near: points closer than this [m] are dropped.
        max_radius: largest half edge of a splat [px].

    Returns:
        ConditionMap of the camera's size.
    """
    H, W = camera.height, camera.width
    T = torch.as_tensor(invert(T_world_camera), dtype=torch.float32, device=device)
    K = torch.as_tensor(camera.K.copy(), dtype=torch.float32, device=device)
    points = torch.as_tensor(cloud.points, device=device) @ T[:3, :3].T + T[:3, 3]
    footprint = torch.as_tensor(cloud.footprint, device=device)
    confidence = torch.as_tensor(cloud.confidence, device=device)
    seen = _project(points, footprint, K, H, W, near, max_radius)
    trusted = confidence[seen.point] >= min_confidence
    index, depth = _nearest_points(seen.of(trusted), len(cloud), H, W, near, max_radius)
    if not trusted.all():
        _, occluder = _nearest_points(seen.of(~trusted), len(cloud), H, W, near, max_radius)
        hidden = (occluder > 0) & (occluder < depth * (1 - OCCLUDER_MARGIN))
        index[hidden], depth[hidden] = -1, 0.0

    mask = index >= 0
    safe = index.clamp_min(0)
    colors = torch.as_tensor(cloud.colors, device=device)
    view = torch.as_tensor(cloud.view, device=device)
    if len(cloud) == 0:
        image = torch.zeros(H, W, 3, dtype=torch.uint8)
        source = torch.full((H, W), -1, dtype=torch.int8)
    else:
        guessed = view == ROBOT_VIEW
        image = colors[safe] * mask[:, None]
        # Colours that were seen are not mixed with those that were guessed.
        for kind in (False, True):
            front = torch.where(mask & (guessed[safe] == kind), depth, 0.0)
            if not front.any():
                continue
            chosen = seen.of(trusted & (guessed[seen.point] == kind))
            mean, mean_depth, found = _blended(chosen, colors, confidence, front, H, W)
            image[found], depth[found] = mean[found], mean_depth[found]
        source = torch.where(view == ROBOT_VIEW, -2, view.to(torch.int16)).to(torch.int8)
        source = torch.where(mask, source[safe], -1)
    return ConditionMap(
        image=image.reshape(H, W, 3).cpu().numpy(),
        mask=mask.reshape(H, W).cpu().numpy(),
        depth=depth.reshape(H, W).cpu().numpy(),
        view=source.reshape(H, W).to(torch.int8).cpu().numpy(),
        camera=camera,
    )


def visible_points(
    cloud: PointCloud, T_world_camera: FloatArray, camera: CameraModel
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which point of a cloud each pixel shows.

    Returns:
        H x W indices, -1 in holes, and H x W depth [m], 0 in holes.
    """
    H, W = camera.height, camera.width
    T, K = (torch.tensor(x, dtype=torch.float32) for x in (invert(T_world_camera), camera.K))
    points = torch.as_tensor(cloud.points) @ T[:3, :3].T + T[:3, 3]
    seen = _project(points, torch.as_tensor(cloud.footprint), K, H, W, NEAR, MAX_RADIUS)
    index, depth = _nearest_points(seen, len(cloud), H, W, NEAR, MAX_RADIUS)
    return index.reshape(H, W).numpy(), depth.reshape(H, W).numpy()


class _Seen(NamedTuple):
    """Points before the camera that may reach the picture: which ones (N), where [px], how far [m],
    and their footprint [px]."""

    point: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor
    z: torch.Tensor
    size: torch.Tensor

    def of(self, chosen: torch.Tensor) -> _Seen:
        """Those of them that ``chosen`` (N bool) says."""
        return _Seen(*(column[chosen] for column in self))


def _project(
    points: torch.Tensor,
    footprint: torch.Tensor,
    K: torch.Tensor,
    height: int,
    width: int,
    near: float,
    max_radius: float,
) -> _Seen:
    z = points[:, 2]
    index = torch.nonzero(z > near)[:, 0]
    z = z[index]
    u = K[0, 0] * points[index, 0] / z + K[0, 2]
    v = K[1, 1] * points[index, 1] / z + K[1, 2]
    size = torch.sqrt(K[0, 0] * K[1, 1]) * footprint[index] / z
    far = max(max_radius, BLEND_REACH * BLEND_RANGE[1])
    inside = (u > -far) & (u < width + far) & (v > -far) & (v < height + far)
    return _Seen(index, u, v, z, size).of(inside)


def _fragments(
    seen: _Seen, reach: torch.Tensor, height: int, width: int
) -> Iterator[tuple[torch.Tensor, ...]]:
    """The pixels whose centres lie within ``reach`` (N) [px] of points, along either axis.

    Yields:
        For n points that reach k pixels: which ones (n), the pixels (n x k x k), whether each is
        reached and in the picture, and the distances of their centres, n x k x 1 and n x 1 x k.
    """
    steps = torch.ceil(reach - 0.5).to(torch.int64)
    for r in torch.unique(steps).tolist():
        s = torch.nonzero(steps == r)[:, 0]
        offset = torch.arange(-r, r + 1, device=reach.device)
        column = torch.floor(seen.u[s]).to(torch.int64)[:, None] + offset
        row = torch.floor(seen.v[s]).to(torch.int64)[:, None] + offset
        du, dv = column + 0.5 - seen.u[s, None], row + 0.5 - seen.v[s, None]
        in_column = (du.abs() <= reach[s, None]) & (column >= 0) & (column < width)
        in_row = (dv.abs() <= reach[s, None]) & (row >= 0) & (row < height)
        target = row[:, :, None] * width + column[:, None, :]
        yield s, target, in_row[:, :, None] & in_column[:, None, :], dv[:, :, None], du[:, None, :]


def _blended(
    seen: _Seen,
    colors: torch.Tensor,
    confidence: torch.Tensor,
    depth: torch.Tensor,
    height: int,
    width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean colours (H*W x 3 uint8) and depth (H*W) of the points that lie on the surface of
    ``depth`` (H*W, 0 where nothing is to be drawn), and where there are any (H*W bool).

    Depth is a mean of logarithms: errors of depth are relative to it.
    """
    sigma = (BLEND_SIGMA * seen.size).clamp(*BLEND_RANGE)
    values = torch.cat(
        [colors[seen.point].float(), torch.log(seen.z)[:, None], torch.ones_like(sigma)[:, None]], 1
    )
    values *= confidence[seen.point, None]
    total = torch.zeros(height * width, 5, device=depth.device)
    limit = depth * (1 + BLEND_THICKNESS)
    reach = (BLEND_REACH * sigma).clamp_min(0.5)
    for s, target, inside, dv, du in _fragments(seen, reach, height, width):
        keep = torch.nonzero(inside.flatten())[:, 0]
        target = target.flatten()[keep]
        point = s[keep.div(inside[0].numel(), rounding_mode="floor")]
        visible = torch.nonzero(seen.z[point] < limit[target])[:, 0]
        keep, target, point = keep[visible], target[visible], point[visible]
        across, down = (torch.exp(-0.5 * (d / sigma[s, None, None]).square()) for d in (du, dv))
        weight = (down * across).flatten()[keep]
        total.index_add_(0, target, weight[:, None] * values[point])
    found = (total[:, 4] > 0) & (depth > 0)
    mean = total[:, :4] / total[:, 4:].clamp_min(1e-12)
    return mean[:, :3].round().to(torch.uint8), torch.exp(mean[:, 3]), found


def splat_depth(
    cloud: PointCloud, T_world_camera: FloatArray, camera: CameraModel
) -> NDArray[np.float32]:
    """Depth alone, H x W [m], 0 in holes; faster than ``splat`` (benchmarks/bench_splatting.py).

    It is that of the nearest points rather than a mean over their surface. Points are drawn as
    squares of whole pixels, so that outlines can be off by half a pixel.
    """
    H, W = camera.height, camera.width
    T, K = invert(T_world_camera).astype(np.float32), camera.K.astype(np.float32)
    local = cloud.points @ T[:3, :3].T + T[:3, 3]
    z = np.maximum(local[:, 2], NEAR)
    radius = 0.5 * OVERLAP * np.sqrt(K[0, 0] * K[1, 1]) * cloud.footprint / z
    reach = np.ceil(radius.clip(0.5, MAX_RADIUS) - _ROUNDING).astype(np.int64)
    border = int(reach.max(initial=0))
    column = np.floor(K[0, 0] * local[:, 0] / z + K[0, 2]).astype(np.int64) + border
    row = np.floor(K[1, 1] * local[:, 1] / z + K[1, 2]).astype(np.int64) + border
    height, width = H + 2 * border, W + 2 * border
    inside = (local[:, 2] > NEAR) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    nearest = np.full((height, width), np.inf, np.float32)
    for r in np.unique(reach[inside]):
        s = np.flatnonzero(inside & (reach == r))
        layer = torch.full((height * width,), torch.inf)
        layer.scatter_reduce_(
            0, torch.from_numpy(row[s] * width + column[s]), torch.from_numpy(z[s]), "amin"
        )
        square = np.ones((2 * r + 1, 2 * r + 1), np.uint8)
        grown = cv2.erode(layer.reshape(height, width).numpy(), square, borderValue=np.inf)
        nearest = np.minimum(nearest, grown)
    seen = nearest[border : border + H, border : border + W]
    return np.where(np.isinf(seen), np.float32(0), seen)


def _nearest_points(
    seen: _Seen, count: int, height: int, width: int, near: float, max_radius: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Index of the visible point per pixel (H*W, -1 in holes) and its depth (H*W, 0 in holes).

    One integer per fragment holds (surface, distance to the pixel centre, point), so that a single
    scatter-min resolves visibility and then sharpness.

    Args:
        count: points of the cloud.
    """
    radius = (0.5 * OVERLAP * seen.size).clamp(0.5, max_radius)
    surface = (torch.log(seen.z / near) / SURFACE_THICKNESS).to(torch.int64)
    best = torch.full((height * width,), _FAR, dtype=torch.int64, device=radius.device)
    for s, target, inside, dv, du in _fragments(seen, radius, height, width):
        # 8 bits are enough for the distance: splats reach 6 px, steps of 1/16 px^2 saturate.
        distance = (16 * (du**2 + dv**2)).clamp_max(255)
        key = (
            (surface[s] << 40)[:, None, None]
            | (distance.to(torch.int64) << 32)
            | seen.point[s][:, None, None]
        )
        best.scatter_reduce_(0, target[inside], key[inside], "amin")
    hit = best != _FAR
    index = torch.where(hit, best & 0xFFFFFFFF, -1)
    distances = torch.zeros(count, device=radius.device)
    distances[seen.point] = seen.z
    depth = torch.zeros(height * width, device=radius.device)
    depth[hit] = distances[index[hit]]
    return index, depth
