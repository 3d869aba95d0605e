"""Rigid transforms: round trips and composition as properties."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wristworld_ros.errors import CalibrationError
from wristworld_ros.geometry.transforms import (
    apply,
    from_quaternion,
    interpolate,
    invert,
    orthonormal,
    pose_error,
    to_quaternion,
)

vectors = arrays(np.float64, 3, elements=st.floats(-10, 10))
quaternions = (
    arrays(np.float64, 4, elements=st.floats(-1, 1))
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: q / np.linalg.norm(q))
)
poses = st.builds(from_quaternion, vectors, quaternions)


@given(vectors, quaternions)
def test_quaternion_round_trip(t, q):
    t2, q2 = to_quaternion(from_quaternion(t, q))
    np.testing.assert_allclose(t2, t)
    assert abs(q2 @ q) == pytest.approx(1, abs=1e-9)
    assert q2[3] >= 0


@given(poses, poses, vectors)
def test_composition_and_inverse(A, B, p):
    np.testing.assert_allclose(apply(A @ B, p), apply(A, apply(B, p)), atol=1e-9)
    np.testing.assert_allclose(apply(invert(A), apply(A, p)), p, atol=1e-9)


@given(poses, poses)
def test_interpolation_ends_and_middle(A, B):
    assert pose_error(interpolate(A, B, 0.0), A)[0] < 1e-9
    assert pose_error(interpolate(A, B, 1.0), B)[1] < 1e-6
    middle = interpolate(A, B, 0.5)
    whole = pose_error(A, B)
    half_a, half_b = pose_error(A, middle), pose_error(middle, B)
    assert half_a[0] == pytest.approx(whole[0] / 2, abs=1e-9)
    assert half_a[1] == pytest.approx(half_b[1], abs=1e-6)
    assert half_a[1] == pytest.approx(whole[1] / 2, abs=1e-6)


def test_ninety_degrees_about_z_maps_x_to_y():
    T = from_quaternion([1, 2, 3], [0, 0, np.sqrt(0.5), np.sqrt(0.5)])
    np.testing.assert_allclose(apply(T, np.array([1.0, 0, 0])), [1, 3, 3], atol=1e-12)


@given(st.floats(1e-6, 3.1))
def test_pose_error_is_exact_at_any_angle(angle):
    T = from_quaternion([0, 0, 0], [0, np.sin(angle / 2), 0, np.cos(angle / 2)])
    assert pose_error(np.eye(4), T)[1] == pytest.approx(angle, rel=1e-6)


@pytest.mark.parametrize(
    ("t", "q", "message"),
    [
        ([0, 0, float("nan")], [0, 0, 0, 1], "nan"),
        ([0, 0, 0], [0, 0, 0, 0.5], "norm 0.5"),
        ([0, 0], [0, 0, 0, 1], "3 and 4"),
    ],
)
def test_bad_poses_are_refused(t, q, message):
    with pytest.raises(CalibrationError, match=message):
        from_quaternion(t, q)


@given(poses, arrays(np.float64, (4, 4), elements=st.floats(-0.01, 0.01)))
def test_rounded_rotations_become_rotations_again(T, noise):
    exact = orthonormal(np.stack([T, T + noise]))
    np.testing.assert_allclose(exact[0], T, atol=1e-9)
    R = exact[1, :3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(R) == pytest.approx(1)
    assert np.abs(R - T[:3, :3]).max() < 0.05
    np.testing.assert_allclose(exact[1, :3, 3], (T + noise)[:3, 3])
    np.testing.assert_array_equal(exact[1, 3], [0, 0, 0, 1])
