"""absT_quaR_FoV: round trips, also where one quaternion component dominates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
    intrinsics_from_fov,
    matrix_to_quaternion,
    quaternion_to_matrix,
)

quaternions = arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(
    lambda q: np.linalg.norm(q) > 0.1
)


@given(quaternions)
def test_rotation_round_trip_agrees_with_transforms3d(q):
    q = q / np.linalg.norm(q)
    R = quaternion_to_matrix(torch.from_numpy(q))
    np.testing.assert_allclose(R.numpy(), from_quaternion(np.zeros(3), q)[:3, :3], atol=1e-12)
    back = matrix_to_quaternion(R)
    assert back[3] >= 0
    assert abs(float(back @ torch.from_numpy(q))) == pytest.approx(1, abs=1e-7)


def test_half_turns_about_each_axis():
    for axis in range(3):
        q = torch.zeros(4, dtype=torch.float64)
        q[axis] = 1
        torch.testing.assert_close(matrix_to_quaternion(quaternion_to_matrix(q)).abs(), q)


@given(quaternions, arrays(np.float64, 3, elements=st.floats(-5, 5)))
def test_pose_round_trip(q, t):
    T = torch.from_numpy(from_quaternion(t, q / np.linalg.norm(q)))
    fov = torch.tensor([0.8, 1.1], dtype=torch.float64)
    T2, fov2 = decode_pose(encode_pose(T, fov))
    torch.testing.assert_close(T2, T, atol=1e-7, rtol=0)
    torch.testing.assert_close(fov2, fov)


@given(st.floats(0.2, 2.5), st.floats(0.2, 2.5))
def test_field_of_view_round_trip(h, w):
    fov = torch.tensor([h, w], dtype=torch.float64)
    K = intrinsics_from_fov(fov, 120, 160)
    torch.testing.assert_close(fov_from_intrinsics(K, 120, 160), fov)
    assert K[0, 2] == 80 and K[1, 2] == 60
