"""Cameras: projection against rays, distortion against OpenCV, CameraInfo both ways."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wristworld_ros.errors import CalibrationError
from wristworld_ros.geometry.camera import (
    camera_from_ros_k,
    camera_to_ros_k,
    pixel_rays,
    project,
    rectify,
    unproject,
)
from wristworld_ros.types import CameraModel

K = np.array([[210.0, 0, 161.5], [0, 205.0, 118.2], [0, 0, 1]])
DISTORTIONS = {
    "none": (),
    "plumb_bob": (-0.21, 0.05, 0.001, -0.002, 0.003),
    "rational_polynomial": (0.1, -0.02, 0.001, 0.0005, 0.003, 0.12, -0.01, 0.001),
    "equidistant": (-0.01, 0.02, -0.004, 0.001),
}


@pytest.mark.parametrize("model", DISTORTIONS)
@given(u=st.floats(5, 315), v=st.floats(5, 235), z=st.floats(0.05, 8.0))
def test_projecting_a_ray_returns_its_pixel(model, u, v, z):
    camera = CameraModel(K, 320, 240, model, DISTORTIONS[model])
    ray = pixel_rays(camera, np.array([[u, v]]))
    pixels, depth = project(ray * z, camera)
    assert ray[0, 2] == 1
    np.testing.assert_allclose(pixels, [[u, v]], atol=1e-3)
    np.testing.assert_allclose(depth, z)


@pytest.mark.parametrize("model", ["plumb_bob", "rational_polynomial"])
def test_distortion_equals_opencv(model):
    camera = CameraModel(K, 320, 240, model, DISTORTIONS[model])
    points = np.random.default_rng(0).uniform([-0.5, -0.4, 0.8], [0.5, 0.4, 2.0], (50, 3))
    expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, np.array(camera.D))
    np.testing.assert_allclose(project(points, camera)[0], expected[:, 0], atol=1e-9)


def test_points_behind_the_camera_have_no_pixel():
    pixels, depth = project(np.array([[0, 0, -1.0], [0, 0, 1.0]]), CameraModel(K, 320, 240))
    assert np.isnan(pixels[0]).all() and depth[0] == -1
    np.testing.assert_allclose(pixels[1], K[:2, 2])


def test_unproject_is_the_inverse_of_project():
    camera = CameraModel(K, 320, 240)
    depth = np.random.default_rng(1).uniform(0.3, 3, (240, 320))
    points = unproject(depth, camera)
    pixels, z = project(points.reshape(-1, 3), camera)
    np.testing.assert_allclose(pixels.reshape(240, 320, 2)[10, 20], [20.5, 10.5])
    np.testing.assert_allclose(z.reshape(240, 320), depth)


def test_unproject_refuses_depth_of_another_size():
    with pytest.raises(CalibrationError, match=r"\(10, 10\).*\(240, 320\)"):
        unproject(np.ones((10, 10)), CameraModel(K, 320, 240))


@pytest.mark.parametrize("model", DISTORTIONS)
def test_camera_info_round_trip(model):
    camera = CameraModel(K, 320, 240, model, DISTORTIONS[model])
    k, name, d = camera_to_ros_k(camera)
    back = camera_from_ros_k(k, 320, 240, name, d)
    np.testing.assert_allclose(back.K, camera.K)
    assert (back.distortion_model, back.D) == (camera.distortion_model, camera.D)


def test_ros_counts_pixel_centres_at_integers():
    k, _, _ = camera_to_ros_k(CameraModel.from_fov(1.0, 128, 128))
    assert k[2] == 63.5 and k[5] == 63.5  # the middle of pixels 0..127


@pytest.mark.parametrize(
    ("k", "size", "message"),
    [
        ([float("nan")] + [0, 64, 0, 100, 64, 0, 0, 1], (128, 128), "nan"),
        ([0] * 9, (128, 128), "not calibrated"),
        ([100, 0, 64, 0, 100, 64, 0, 0, 1], (0, 128), "0 x 128"),
        ([100, 5, 64, 0, 100, 64, 0, 0, 1], (128, 128), "skew"),
        ([100] * 8, (128, 128), "8 values"),
    ],
)
def test_bad_camera_info_is_refused_with_its_value(k, size, message):
    with pytest.raises(CalibrationError, match=message):
        camera_from_ros_k(k, *size)


def test_unknown_distortion_names_the_choices():
    with pytest.raises(CalibrationError, match="'thin_prism'.*plumb_bob"):
        CameraModel(K, 320, 240, "thin_prism", (1.0,))


def test_rectified_image_fits_the_pinhole():
    camera = CameraModel(K, 320, 240, "plumb_bob", DISTORTIONS["plumb_bob"])
    point = np.array([[0.35, -0.25, 1.0]])
    (u, v), _ = project(point, camera)[0][0], None
    image = np.zeros((240, 320, 3), np.uint8)
    cv2.circle(image, (round(u - 0.5), round(v - 0.5)), 3, (255, 255, 255), -1)
    flat, pinhole = rectify(image, camera)
    rows, columns = np.nonzero(flat[..., 0] > 128)
    expected = project(point, pinhole)[0][0]
    assert np.hypot(columns.mean() + 0.5 - expected[0], rows.mean() + 0.5 - expected[1]) < 0.8
    assert abs(expected[0] - u) > 2  # the lens did move the point


@given(fov=st.floats(0.3, 2.5), w=st.integers(16, 512), h=st.integers(16, 512))
def test_fov_round_trip_and_resize(fov, w, h):
    camera = CameraModel.from_fov(fov, w, h)
    assert camera.fov[1] == pytest.approx(fov)
    assert camera.resized(2 * w, 2 * h).fov == pytest.approx(camera.fov)
