"""Outline of the arm: where a known robot's silhouette is, and where the picture shows it.

Tracks alone leave a direction that they fix badly: all points on the arm and the camera shifted
together. The outline of the arm's meshes fixes it. Edges are searched along the outline's normals
(as in model-based tracking by Harris and Stennett, RAPID, BMVC 1990), in the difference of the
picture from its median over time, so that edges of the background do not attract it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.recordings import Recording
from wristworld_ros.data.simulation.packs import load_pack
from wristworld_ros.geometry.camera import pixel_rays, project
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.types import CameraModel, FloatArray

#: Links whose meshes are drawn: numbers of ``panda_linkN``; they are rows 0 to 4 of ``bodies``.
_LINKS = range(2, 7)
_SCALE = 2  # pixels drawn per pixel of the picture
_NEAREST = 0.25  # nearer points are cut off by the image or the lens [m]
_HAND_RADIUS = 0.10  # here the gripper, which differs between robots, covers the outline [m]
_SPACING = 4  # between points of the outline [px]
_LEAST_STEP = 12.0  # of brightness at an edge
_EDGE_PX = 1.5  # edges farther from the outline count less [px]
_FRAMES = 10
_OUTSIDE = 1.6  # times half the image's diagonal
_INFLATION = 2.5
#: Points on the outlines whose errors are alike: neighbours, and shadows in every frame. Errors in
#: simulation are larger than stated still (``make calibrations``): the focal length is held here.
_CORRELATED = 40


@dataclass(frozen=True)
class ArmMeshes:
    """Triangles of the arm's links.

    Attributes:
        vertices: V x 3 [m], in the link's frame; link: V, row in ``Recording.bodies``.
        faces: F x 3.
    """

    vertices: FloatArray
    link: NDArray[np.int64]
    faces: NDArray[np.int64]


@dataclass(frozen=True)
class Outline:
    """Points on the outline of the arm in one picture.

    Attributes:
        points: N x 3 in the robot's base [m].
        pixels: N x 2; normals: N x 2, outwards, unit length.
        offsets: N, where the picture shows the edge, along the normal [px].
    """

    points: FloatArray
    pixels: FloatArray
    normals: FloatArray
    offsets: FloatArray


def franka_meshes() -> ArmMeshes:
    """Links 2 to 6 of the Franka arm, from the simulation's pack."""
    pack = load_pack("panda")
    vertices, link, faces = [], [], []
    count = 0
    for mesh in pack.meshes:
        name = pack.bodies[mesh.body - 1].name
        for row, number in enumerate(_LINKS):
            if name == f"panda_link{number}":
                vertices.append(mesh.vertices)
                link.append(np.full(len(mesh.vertices), row))
                faces.append(mesh.faces + count)
                count += len(mesh.vertices)
    return ArmMeshes(np.concatenate(vertices), np.concatenate(link), np.concatenate(faces))


def changes(video: NDArray[np.uint8]) -> NDArray[np.float32]:
    """T x H x W: absolute difference in brightness from the median over time, smoothed."""
    grey = np.stack([cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in video]).astype(np.float32)
    change = np.abs(grey - np.median(grey, 0))
    return np.stack([cv2.GaussianBlur(c, (0, 0), 0.8) for c in change])


def draw(
    meshes: ArmMeshes, bodies: FloatArray, camera: CameraModel, X: FloatArray
) -> tuple[NDArray[np.int32], FloatArray]:
    """Number of the triangle at each pixel (0: none) at ``_SCALE``, and depths of triangles [m]."""
    T = invert(X) @ bodies
    R, t = T[meshes.link, :3, :3], T[meshes.link, :3, 3]
    q = (R @ meshes.vertices[..., None])[..., 0] + t
    pixels, z = project(q, camera)
    depth = z[meshes.faces].mean(1)
    corners = np.round(pixels * _SCALE - 0.5)[meshes.faces]
    low, high = corners.min(1), corners.max(1)
    # Far outside the image the distortion polynomial may lead back into it.
    reach = np.linalg.norm(pixel_rays(camera, np.zeros((1, 2)))[0, :2])
    valid = (z > 0.05) & (np.linalg.norm(q[:, :2], axis=1) < _OUTSIDE * reach * z)
    seen = valid[meshes.faces].all(1)
    size = (camera.width * _SCALE, camera.height * _SCALE)
    seen &= ((high >= 0) & (low < size)).all(1)
    image = np.zeros(size[::-1], np.int32)
    order = np.argsort(-depth)
    shapes = np.nan_to_num(corners).clip(-1e4, 1e4).astype(np.int32)
    for i in order[seen[order]]:
        cv2.fillConvexPoly(image, shapes[i], int(i) + 1)
    return image, depth


def outline(
    meshes: ArmMeshes,
    bodies: FloatArray,
    camera: CameraModel,
    X: FloatArray,
    change: NDArray[np.float32],
    reach: float,
) -> Outline:
    """Outline of the arm at a pose, with the edges found within ``reach`` [px]."""
    image, depth = draw(meshes, bodies, camera, X)
    inside = (image > 0).astype(np.uint8)
    edge = inside - cv2.erode(inside, np.ones((3, 3), np.uint8), borderValue=1)
    y, x = np.nonzero(edge)
    order = np.random.default_rng(0).permutation(len(x))[: len(x) // _SPACING]
    x, y = x[order], y[order]
    slope = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), 3.0)
    normals = -np.stack([cv2.Sobel(slope, cv2.CV_32F, 1, 0)[y, x],
                         cv2.Sobel(slope, cv2.CV_32F, 0, 1)[y, x]], 1)  # fmt: skip
    length = np.linalg.norm(normals, axis=1)
    pixels = (np.stack([x, y], 1) + 0.5) / _SCALE
    z = depth[image[y, x] - 1]
    points = apply(X, pixel_rays(camera, pixels) * z[:, None])
    margin = reach + 3
    kept = (length > 1e-4) & (z > _NEAREST)
    kept &= ((pixels > margin) & (pixels < [camera.width - margin, camera.height - margin])).all(1)
    kept &= np.linalg.norm(points - bodies[-1, :3, 3], axis=1) > _HAND_RADIUS
    points, pixels = points[kept], pixels[kept]
    normals = (normals[kept] / length[kept, None]).astype(np.float64)
    offsets, steps = _edges(change, pixels, normals, reach)
    found = (steps > _LEAST_STEP) & (np.abs(offsets) < reach)
    return Outline(points[found], pixels[found], normals[found], offsets[found])


def _edges(
    change: NDArray[np.float32], pixels: FloatArray, normals: FloatArray, reach: float
) -> tuple[FloatArray, FloatArray]:
    """Offset of the largest fall of ``change`` outwards along each normal, and the fall."""
    width = 2.0
    s = np.arange(-reach - width, reach + width + 0.25, 0.5)
    at = (pixels[:, None] + s[None, :, None] * normals[:, None] - 0.5).astype(np.float32)
    if not len(at):
        return np.zeros(0), np.zeros(0)
    profile = cv2.remap(change, at[..., 0], at[..., 1], cv2.INTER_LINEAR)
    n = int(width / 0.5)
    total = np.cumsum(np.pad(profile, ((0, 0), (1, 0))), 1)
    mean = (total[:, n:] - total[:, :-n]) / n
    fall = mean[:, :-n] - mean[:, n:]  # of the n samples before and after s[n + i - 1/2]
    best = fall.argmax(1)
    return s[n + best] - 0.25, fall[np.arange(len(fall)), best]


def outlines(
    meshes: ArmMeshes,
    recordings: Sequence[Recording],
    changed: Sequence[NDArray[np.float32]],
    camera: CameraModel,
    X: FloatArray,
    latency: float,
    reach: float,
) -> list[Outline]:
    """Outlines in ``_FRAMES`` pictures of each recording, evenly spread; ``changed``: of each."""
    found = []
    for r, change in zip(recordings, changed, strict=True):
        for i in np.unique(np.linspace(1, len(r) - 2, _FRAMES).astype(int)):
            found.append(outline(meshes, _shifted(r, i, latency), camera, X, change[i], reach))
    return found


def _shifted(r: Recording, i: int, latency: float) -> FloatArray:
    """Poses of the links ``latency`` [s] after frame ``i``, linearly from its neighbour."""
    share = abs(latency) / r.period
    j = int(np.clip(i + np.sign(latency), 0, len(r) - 1))
    out = r.bodies[i].copy()
    out[:, :3, 3] += share * (r.bodies[j, :, :3, 3] - out[:, :3, 3])
    turn = Rotation.from_matrix(r.bodies[j, :, :3, :3] @ np.swapaxes(out[:, :3, :3], 1, 2))
    out[:, :3, :3] = Rotation.from_rotvec(share * turn.as_rotvec()).as_matrix() @ out[:, :3, :3]
    return out


def has_outline(recording: Recording) -> bool:
    """Whether the links of a Franka arm are known, which the outline needs."""
    return recording.bodies.shape[1] == len(_LINKS) + 1


def align(
    recordings: Sequence[Recording],
    name: str,
    camera: CameraModel,
    X0: FloatArray,
    covariance: FloatArray,
    latency: float,
) -> tuple[FloatArray, FloatArray]:
    """Pose of a fixed camera from the arm's outline, and its covariance.

    Args:
        recordings: with the camera in one place.
        X0, covariance: pose from tracks and its covariance, 4 x 4 and 6 x 6.
    """
    meshes, X = franka_meshes(), X0
    # Tracks of one motion drift alike: they are less exact than their residuals say.
    prior = _INFLATION**2 * covariance
    changed = [changes(r.views[name]) for r in recordings]
    for reach in (8.0, 8.0, 8.0, 5.0, 5.0):
        found = outlines(meshes, recordings, changed, camera, X, latency, reach)
        X, posterior = fit_pose(found, camera, X, X0, prior)
    return X, posterior


def outline_offsets(
    recordings: Sequence[Recording], name: str, camera: CameraModel, X: FloatArray, latency: float
) -> FloatArray:
    """Distances of the edges from the outline [px], those within 6 px."""
    changed = [changes(r.views[name]) for r in recordings]
    found = outlines(franka_meshes(), recordings, changed, camera, X, latency, 6.0)
    return np.concatenate([o.offsets for o in found])


def fit_pose(
    found: Sequence[Outline], camera: CameraModel, X: FloatArray, X0: FloatArray, prior: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Pose of the camera that brings the outline onto the edges, and its covariance.

    Args:
        X: start; the edges were found there.
        X0, prior: mean and 6 x 6 covariance before any edge was seen: translation [m], rotation
            about the base's axes [rad].
    """
    if not any(len(o.points) for o in found):
        return X, prior
    points = np.concatenate([o.points for o in found])
    normals = np.concatenate([o.normals for o in found])
    offsets = np.concatenate([o.offsets for o in found])
    targets = np.concatenate([o.pixels for o in found]) + offsets[:, None] * normals
    # Cauchy weights; neighbours on an outline err together.
    weight = 1 / (_EDGE_PX * np.sqrt(_CORRELATED * (1 + (offsets / _EDGE_PX) ** 2)))
    whiten = np.linalg.inv(np.linalg.cholesky(prior))

    def pose(theta: FloatArray) -> FloatArray:
        moved = X0.copy()
        moved[:3, 3] += theta[:3]
        moved[:3, :3] = Rotation.from_rotvec(theta[3:]).as_matrix() @ X0[:3, :3]
        return moved

    def residuals(theta: FloatArray) -> FloatArray:
        pixels, _ = project(apply(invert(pose(theta)), points), camera)
        across = ((np.nan_to_num(pixels, nan=1e3) - targets) * normals).sum(1)
        return np.concatenate([weight * across, whiten @ theta])

    start = np.concatenate(
        [X[:3, 3] - X0[:3, 3], Rotation.from_matrix(X[:3, :3] @ X0[:3, :3].T).as_rotvec()]
    )
    result = least_squares(residuals, start, x_scale=np.sqrt(np.diag(prior)))
    posterior = np.linalg.inv(result.jac.T @ result.jac)
    return pose(result.x), (posterior + posterior.T) / 2
