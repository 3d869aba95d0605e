"""Clouds and splats against an exhaustive painter and against closed-form scenes."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.camera import pixel_rays
from wristworld_ros.geometry.cloud import (
    cloud_from_depth,
    depth_edges,
    limit_points,
    move_points,
    select_points,
)
from wristworld_ros.geometry.splatting import (
    BLEND_RANGE,
    BLEND_REACH,
    BLEND_SIGMA,
    BLEND_THICKNESS,
    OCCLUDER_MARGIN,
    OVERLAP,
    SURFACE_THICKNESS,
    splat,
    splat_depth,
)
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.types import ROBOT_VIEW, CameraModel, PointCloud

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
    """The definition, pixel by pixel: the front surface, its closest centre, and the means."""
    f = np.sqrt(camera.K[0, 0] * camera.K[1, 1])
    depth = np.zeros((camera.height, camera.width))
    image = np.zeros((camera.height, camera.width, 3))
    for row in range(camera.height):
        for column in range(camera.width):
            best, front, guessed = (np.inf, np.inf), 0.0, False
            seen = []
            for i, p in enumerate(cloud.points.astype(np.float64)):
                if p[2] <= near:
                    continue
                u, v = camera.K[:2, :2] @ p[:2] / p[2] + camera.K[:2, 2]
                size = f * cloud.footprint[i] / p[2]
                du, dv = abs(column + 0.5 - u), abs(row + 0.5 - v)
                kind = cloud.view[i] == ROBOT_VIEW
                r = np.clip(0.5 * OVERLAP * size, 0.5, max_radius)
                if du <= r and dv <= r:
                    surface = int(np.log(p[2] / near) / SURFACE_THICKNESS)
                    key = (surface, min(int(16 * (du**2 + dv**2)), 255))
                    if key < best:
                        best, front, guessed = key, p[2], kind
                sigma = np.clip(BLEND_SIGMA * size, *BLEND_RANGE)
                reach = max(BLEND_REACH * sigma, 0.5)
                if du <= reach and dv <= reach:
                    weight = cloud.confidence[i] * np.exp(-0.5 * (du**2 + dv**2) / sigma**2)
                    seen.append((weight, p[2], kind, cloud.colors[i]))
            if front == 0:
                continue
            limit = front * (1 + BLEND_THICKNESS)
            seen = [s for s in seen if s[1] < limit and s[2] == guessed]
            weights = np.array([s[0] for s in seen])
            depth[row, column] = np.exp(weights @ np.log([s[1] for s in seen]) / weights.sum())
            image[row, column] = weights @ np.array([s[3] for s in seen], float) / weights.sum()
    return depth, image


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_splat_equals_the_painter(seed):
    rng = np.random.default_rng(seed)
    points = rng.uniform([-0.4, -0.3, -0.1], [0.4, 0.3, 1.0], (12, 3))
    points[6:] = points[:6] * rng.uniform(1, 1.15, (6, 1)) + rng.normal(0, 0.01, (6, 3))
    cloud = replace(
        make_cloud(points, rng.integers(1, 255, (12, 3)), footprint=0.03),
        confidence=rng.uniform(0.5, 1, 12).astype(np.float32),
        view=rng.choice(np.array([0, 1, ROBOT_VIEW], np.uint8), 12),
    )
    small = CameraModel.from_fov(1.0, 24, 20)
    condition = splat(cloud, np.eye(4), small)
    depth, image = painter(cloud, small)
    # Rounding may decide a border pixel either way; nothing else may differ.
    assert np.isclose(condition.depth, depth, rtol=1e-4).mean() > 0.99
    assert (np.abs(condition.image - image).max(-1) <= 0.51).mean() > 0.99
    assert (condition.mask == (condition.depth > 0)).all()


def test_views_that_err_differently_average_out():
    points = [[0, 0, 0.5], [0, 0, 0.53], [0, 0, 0.6]]
    cloud = make_cloud(points, [[200, 0, 0], [0, 100, 0], [0, 0, 255]], 0.05)
    cloud = replace(cloud, confidence=np.array([0.75, 0.25, 1.0], np.float32))
    condition = splat(cloud, np.eye(4), CAMERA)
    # The third is another surface. The second, seen from the same place, spreads a little less.
    middle = condition.image[24, 32]
    assert middle[2] == 0
    assert np.abs(middle[:2].astype(int) - [150, 25]).max() <= 2
    assert condition.depth[24, 32] == pytest.approx(0.5**0.75 * 0.53**0.25, rel=0.003)


def test_guessed_colours_do_not_reach_what_was_seen():
    cloud = make_cloud([[0, 0, 0.5], [0.01, 0, 0.501]], [[200, 0, 0], [0, 100, 0]], 0.03)
    cloud = replace(cloud, view=np.array([1, ROBOT_VIEW], np.uint8))
    condition = splat(cloud, np.eye(4), CAMERA)
    seen, guessed = condition.view == 1, condition.view == -2
    assert seen.any() and guessed.any()
    assert (condition.image[seen] == [200, 0, 0]).all()
    assert (condition.image[guessed] == [0, 100, 0]).all()


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


def test_the_source_view_comes_back():
    v, u = np.mgrid[:48, :64]
    image = np.stack([3 * u, 4 * v, 255 - 2 * (u + v)], -1).astype(np.uint8)
    depth = np.random.default_rng(1).uniform(0.5, 0.53, (48, 64)).astype(np.float32)
    condition = splat(cloud_from_depth([image], [depth], [CAMERA], [np.eye(4)]), np.eye(4), CAMERA)
    assert condition.coverage == 1
    off = np.abs(condition.image.astype(int) - image)[2:-2, 2:-2]
    assert off.max() <= 2  # slopes keep their place; noise of depth weighs a pixel's sides alike


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


def test_a_small_step_is_an_edge_and_a_plane_seen_flat_is_none():
    """From pixel to pixel the plane's depth changes by more than the step does."""
    camera = CameraModel.from_fov(np.deg2rad(60), 64, 64)
    plane = 1 / (pixel_rays(camera) @ np.array([0.0, 1.6, 1.0]))
    plane = plane.astype(np.float32)[20:]
    assert np.abs(np.diff(plane, axis=0) / plane[1:]).max() > 0.022
    assert not depth_edges(plane, 0.01).any()
    stepped = plane.copy()
    stepped[:, 32:] *= 1.02
    edges = depth_edges(stepped, 0.01)
    assert edges[:, 31:33].all() and not edges[:, :30].any() and not edges[:, 34:].any()
    assert not depth_edges(stepped, 0.03).any()


def with_confidence(cloud, confidence):
    return PointCloud(
        cloud.points,
        cloud.colors,
        np.asarray(confidence, np.float32),
        cloud.footprint,
        cloud.view,
    )


def test_an_untrusted_point_hides_what_lies_behind_it_and_is_not_drawn():
    cloud = make_cloud([[0, 0, 1.0], [0, 0, 0.5]], [[255, 0, 0], [0, 255, 0]], 0.05)
    condition = splat(with_confidence(cloud, [0.9, 0.1]), np.eye(4), CAMERA, min_confidence=0.5)
    far_alone = splat(make_cloud([[0, 0, 1.0]], [[255, 0, 0]], 0.05), np.eye(4), CAMERA)
    assert far_alone.mask[24, 32] and not condition.mask.any()  # the nearer one covers it all
    assert condition.view[24, 32] == -1 and condition.depth[24, 32] == 0
    assert (condition.image == 0).all()
    drawn = splat(with_confidence(cloud, [0.9, 0.1]), np.eye(4), CAMERA, min_confidence=0.05)
    assert drawn.image[24, 32].tolist() == [0, 255, 0]


def test_an_untrusted_point_hides_neither_its_own_surface_nor_what_lies_in_front():
    for z in (1 - 0.5 * OCCLUDER_MARGIN, 1.5):
        cloud = make_cloud([[0, 0, 1.0], [0, 0, z]], [[255, 0, 0], [0, 255, 0]], 0.05)
        condition = splat(with_confidence(cloud, [0.9, 0.1]), np.eye(4), CAMERA, min_confidence=0.5)
        assert condition.mask[24, 32] and condition.depth[24, 32] == pytest.approx(1.0)
        assert condition.image[24, 32].tolist() == [255, 0, 0]


def test_a_cloud_without_trust_gives_an_empty_map():
    cloud = with_confidence(make_cloud([[0, 0, 1.0]], [[255, 0, 0]], 0.1), [0.2])
    assert splat(cloud, np.eye(4), CAMERA, min_confidence=0.5).coverage == 0


def plane_cloud(normal, size=128):
    """A plane 1 m ahead with colours by place, and random confidence."""
    camera = CameraModel.from_fov(np.deg2rad(80), size, size)
    normal = np.asarray(normal) / np.linalg.norm(normal)
    depth = (normal[2] / (pixel_rays(camera) @ normal)).astype(np.float32)
    image = np.random.default_rng(0).integers(0, 255, (size, size, 3), dtype=np.uint8)
    confidence = np.random.default_rng(1).choice([0.2, 0.9], (size, size))
    return cloud_from_depth([image], [depth], [camera], [np.eye(4)], [confidence])


@pytest.mark.parametrize("normal", [(0, 0, 1), (0.1, 0.2, 1), (0.5, -0.3, 1)])
@pytest.mark.parametrize("limit", [4000, 500])
def test_a_limited_cloud_keeps_the_surface_closed_and_the_most_trusted_points(normal, limit):
    cloud = plane_cloud(normal)
    small = limit_points(cloud, limit)
    assert 0.8 * limit < len(small) <= limit
    for distance in (0.0, 0.5):
        T = np.eye(4)
        T[2, 3] = distance
        near = CameraModel.from_fov(0.6, 32, 24)
        assert splat(small, T, near, max_radius=30).coverage == 1
    assert small.confidence.mean() > cloud.confidence.mean() + 0.15
    again = limit_points(cloud, limit)
    np.testing.assert_array_equal(small.points, again.points)
    rows = {tuple(p) for p in cloud.points.tolist()}
    assert all(tuple(p) in rows for p in small.points.tolist())


def test_limits_of_a_cloud():
    cloud = plane_cloud((0, 0, 1), 16)
    assert limit_points(cloud, len(cloud)) is cloud
    assert len(limit_points(cloud, 1)) == 1
    twins = make_cloud([[0, 0, 1.0]] * 50, [[1, 2, 3]] * 50)  # no extent, no footprint
    assert len(limit_points(twins, 3)) == 1
    with pytest.raises(InvalidInputError, match="at least 1"):
        limit_points(cloud, 0)


def test_selected_points_keep_all_that_belongs_to_them():
    cloud = make_cloud([[0, 0, 1.0], [0, 0, 2.0], [0, 0, 3.0]], [[1] * 3, [2] * 3, [3] * 3])
    some = select_points(with_confidence(cloud, [0.1, 0.2, 0.9]), np.array([True, False, True]))
    assert some.points[:, 2].tolist() == [1, 3] and some.colors[:, 0].tolist() == [1, 3]
    np.testing.assert_allclose(some.confidence, [0.1, 0.9])
    assert some.view.tolist() == [0, 2]


def test_a_moved_cloud_looks_the_same_to_a_camera_that_moved_along():
    T = from_quaternion([0.3, -0.2, 0.5], [0.1, 0.7, 0.1, 0.7])
    cloud = plane_cloud((0.1, 0.2, 1), 64)
    there, here = splat(move_points(cloud, T), T, CAMERA), splat(cloud, np.eye(4), CAMERA)
    assert here.coverage > 0.9
    assert (there.mask == here.mask).mean() > 0.99
    np.testing.assert_allclose(there.depth[here.mask], here.depth[here.mask], rtol=0.02)


@pytest.mark.parametrize("distance", [0.3, 0.6, 1.2])
def test_depth_alone_is_that_of_the_splat(distance):
    """A ball of 4 mm points, near and far, drawn whole and by its depth alone."""
    turn, height = np.arange(8000) * np.pi * (3 - np.sqrt(5)), np.linspace(-1, 1, 8000)
    normals = np.stack([np.cos(turn), np.sin(turn), height], 1)
    normals[:, :2] *= np.sqrt(1 - height**2)[:, None]  # evenly spread, by the golden angle
    ball = make_cloud(0.1 * normals + [0.02, -0.01, distance], np.zeros((8000, 3)), 0.004)
    camera = CameraModel.from_fov(np.deg2rad(50), 256, 256)
    whole, alone = splat(ball, np.eye(4), camera).depth, splat_depth(ball, np.eye(4), camera)
    either, both = (whole > 0) | (alone > 0), (whole > 0) & (alone > 0)
    assert both.sum() > 0.93 * either.sum()
    off = np.abs(alone / np.where(both, whole, 1) - 1)[both]
    # The splat's is a mean over the surface, which bends away at the rim.
    assert np.median(off) < 0.6 * SURFACE_THICKNESS
    assert np.quantile(off, 0.95) < BLEND_THICKNESS / 2
    np.testing.assert_allclose(alone[both].min(), distance - 0.1, atol=2e-3)


def test_depth_alone_of_what_no_pixel_sees_is_none():
    unseen = make_cloud([[0, 0, -1], [5, 0, 1], [0, -5, 1], [0, 0, 0.01]], np.zeros((4, 3)), 0.01)
    for cloud in (unseen, select_points(unseen, np.zeros(4, bool))):
        assert not splat_depth(cloud, np.eye(4), CAMERA).any()


def test_depth_alone_takes_the_nearest_point_over_the_pixels_it_covers():
    f = CAMERA.K[0, 0]
    points = [[0.5 / f * z, 0.5 / f * z, z] for z in (1.0, 2.0)]  # both in the middle pixel
    cloud = make_cloud(points, np.zeros((2, 3)), 3.2 / f / OVERLAP)  # 1.6 px at 1 m
    depth = splat_depth(cloud, np.eye(4), CAMERA)
    np.testing.assert_allclose(depth[23:26, 31:34], 1.0, rtol=1e-5)
    assert (depth > 0).sum() == 9
