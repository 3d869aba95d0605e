"""Clouds and splats against an exhaustive painter and against closed-form scenes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.cloud import cloud_from_depth, depth_edges
from wristworld_ros.geometry.splatting import OVERLAP, SURFACE_THICKNESS, splat
from wristworld_ros.types import CameraModel, PointCloud

CAMERA = CameraModel.from_fov(np.deg2rad(60), 64, 48)


def make_cloud(points, colors, footprint=0.0):
    n = len(points)
    return PointCloud(
        np.asarray(points, np.float32).reshape(n, 3),
        np.asarray(colors, np.uint8).reshape(n, 3),
        np.ones(n, np.float32),
        np.full(n, footprint, np.float32),
        np.arange(n, dtype=np.uint8) % 3,
    )


def painter(cloud, camera, near=0.02, max_radius=6.0):
    """The definition, pixel by pixel: the front surface, then the closest centre."""
    f = np.sqrt(camera.K[0, 0] * camera.K[1, 1])
    depth = np.zeros((camera.height, camera.width))
    best = np.full((camera.height, camera.width, 2), np.inf)
    for p, size in zip(cloud.points.astype(np.float64), cloud.footprint, strict=True):
        if p[2] <= near:
            continue
        u, v = camera.K[:2, :2] @ p[:2] / p[2] + camera.K[:2, 2]
        r = np.clip(0.5 * OVERLAP * f * size / p[2], 0.5, max_radius)
        for row in range(camera.height):
            for column in range(camera.width):
                du, dv = abs(column + 0.5 - u), abs(row + 0.5 - v)
                if du <= r and dv <= r:
                    surface = int(np.log(p[2] / near) / SURFACE_THICKNESS)
                    key = (surface, min(int(16 * (du**2 + dv**2)), 255))
                    if key < tuple(best[row, column]):
                        best[row, column] = key
                        depth[row, column] = p[2]
    return depth


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_splat_equals_the_painter(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform([-0.4, -0.3, -0.1], [0.4, 0.3, 1.0], (12, 3))
    cloud = make_cloud(points, rng.integers(1, 255, (12, 3)), footprint=0.03)
    small = CameraModel.from_fov(1.0, 24, 20)
    condition = splat(cloud, np.eye(4), small)
    expected = painter(cloud, small)
    agree = np.isclose(condition.depth, expected, rtol=1e-5)
    # Rounding may decide a border pixel either way; nothing else may differ.
    assert agree.mean() > 0.99
    assert (condition.mask == (condition.depth > 0)).all()


def test_the_nearer_point_hides_the_farther():
    cloud = make_cloud([[0, 0, 1.0], [0, 0, 0.5]], [[255, 0, 0], [0, 255, 0]], 0.05)
    condition = splat(cloud, np.eye(4), CAMERA)
    centre = condition.image[24, 32]
    assert centre.tolist() == [0, 255, 0]
    assert condition.depth[24, 32] == pytest.approx(0.5)
    assert condition.view[24, 32] == 1


def test_holes_are_not_black_objects():
    cloud = make_cloud([[0, 0, 1.0]], [[0, 0, 0]], 0.1)
    condition = splat(cloud, np.eye(4), CAMERA)
    assert condition.mask[24, 32] and condition.image[24, 32].tolist() == [0, 0, 0]
    assert not condition.mask[0, 0] and condition.view[0, 0] == -1
    assert 0 < condition.coverage < 0.1


def test_points_behind_and_beside_the_camera_are_not_drawn():
    cloud = make_cloud([[0, 0, -1.0], [0, 0, 0.01], [9, 0, 1.0]], [[255] * 3] * 3, 0.1)
    assert splat(cloud, np.eye(4), CAMERA).coverage == 0


def test_an_empty_cloud_gives_an_empty_map():
    empty = make_cloud(np.zeros((0, 3)), np.zeros((0, 3)))
    condition = splat(empty, np.eye(4), CAMERA)
    assert condition.coverage == 0 and condition.image.shape == (48, 64, 3)


def test_a_dense_plane_leaves_no_holes_at_any_zoom():
    source = CameraModel.from_fov(np.deg2rad(80), 160, 160)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (160, 160, 3), dtype=np.uint8)
    cloud = cloud_from_depth([image], [np.full((160, 160), 1.0)], [source], [np.eye(4)])
    for distance in (0.0, 0.4, 0.7):
        T = np.eye(4)
        T[2, 3] = distance  # the new camera stands closer
        assert splat(cloud, T, CAMERA).coverage == 1.0


def test_the_source_view_comes_back_exactly():
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    depth = np.random.default_rng(1).uniform(0.5, 0.6, (48, 64)).astype(np.float32)
    condition = splat(cloud_from_depth([image], [depth], [CAMERA], [np.eye(4)]), np.eye(4), CAMERA)
    assert condition.coverage == 1
    assert (condition.image == image).mean() > 0.9  # a nearer neighbour's edge may win a pixel


def test_cloud_leaves_out_invalid_and_doubtful_depth():
    depth = np.ones((48, 64), np.float32)
    depth[0, 0], depth[0, 1], depth[0, 2] = 0, np.nan, 99
    confidence = np.ones((48, 64), np.float32)
    confidence[1] = 0.1
    image = np.zeros((48, 64, 3), np.uint8)
    cloud = cloud_from_depth(
        [image], [depth], [CAMERA], [np.eye(4)], [confidence], min_confidence=0.5
    )
    assert len(cloud) == 48 * 64 - 3 - 64
    np.testing.assert_allclose(cloud.footprint, 1 / CAMERA.K[0, 0], rtol=1e-6)
    with pytest.raises(InvalidInputError, match="differ in size"):
        cloud_from_depth([image], [depth[:10]], [CAMERA], [np.eye(4)])


def test_depth_edges_mark_both_sides_of_a_jump():
    depth = np.ones((4, 6), np.float32)
    depth[:, 3:] = 1.5
    edges = depth_edges(depth, 0.04)
    assert edges[:, 2:4].all() and not edges[:, [0, 1, 4, 5]].any()
