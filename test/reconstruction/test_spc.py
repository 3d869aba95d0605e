"""SPC loss against a case worked out by hand, its two normalisations, and its gradient."""

import pytest
import torch

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.spc import spc_loss

K = torch.tensor([[[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]])
SIZE = (80, 100)
SCALE = 30 / (80**2 + 100**2)


def pairs():
    """Two in front (errors 3-4-5 px and 10 px), one 0.3 m behind, one ignored."""
    points = torch.tensor([[[0.0, 0, 1], [0.1, 0, 2], [0, 0, -0.3], [5, 5, 1]]])
    pixels = torch.tensor([[[53.0, 44], [55, 50], [0, 0], [0, 0]]])
    valid = torch.tensor([[True, True, True, False]])
    return points, pixels, valid, torch.eye(4)[None], K, SIZE


def test_per_set_normalisation_by_hand():
    loss = spc_loss(*pairs(), lambda_u=2.0, lambda_depth=3.0)
    assert loss.reprojection.item() == pytest.approx(SCALE * (25 + 100) / 2, rel=1e-5)
    assert loss.depth.item() == pytest.approx(0.3)
    assert loss.total.item() == pytest.approx(2 * SCALE * 62.5 + 3 * 0.3, rel=1e-5)


def test_joint_normalisation_by_hand():
    loss = spc_loss(*pairs(), normalisation="joint")
    assert loss.reprojection.item() == pytest.approx(SCALE * 125 / 3, rel=1e-5)
    assert loss.depth.item() == pytest.approx(0.1)


def test_the_pose_is_applied_world_to_camera():
    points, pixels, valid, T, *rest = pairs()
    T = T.clone()
    T[:, 2, 3] = 1.0  # one metre further away
    loss = spc_loss(points, pixels, valid, T, *rest)
    # (0,0,2) -> (50,40): 25; (0.1,0,3) -> (53.33,40): 102.8; (0,0,0.7) -> (50,40): 4100
    expected = SCALE * (25 + (55 - 50 - 10 / 3) ** 2 + 100 + 4100) / 3
    assert loss.reprojection.item() == pytest.approx(expected, rel=1e-4)
    assert loss.depth.item() == 0


def test_gradient_is_correct():
    points, pixels, valid, T, K_, size = (
        x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in pairs()
    )

    def total(t):
        moved = T.clone()
        moved[:, :3, 3] = t
        return spc_loss(points, pixels, valid, moved, K_, size).total

    assert torch.autograd.gradcheck(total, (torch.zeros(1, 3).double().requires_grad_(),))


def test_a_capped_error_grows_linearly_and_stays_smooth():
    points, pixels, valid, T, *rest = pairs()
    far = pixels.clone()
    far[0, 0, 0] = 1e4
    one = spc_loss(points, far, valid, T, *rest, max_error=0.5).reprojection
    far[0, 0, 0] = 2e4
    two = spc_loss(points, far, valid, T, *rest, max_error=0.5).reprojection
    assert 1.9 < two / one < 2.1
    exact = spc_loss(*pairs(), max_error=0.5).reprojection
    torch.testing.assert_close(exact, spc_loss(*pairs()).reprojection)


def test_no_pairs_give_zero_and_bad_input_is_refused():
    points, pixels, valid, *rest = pairs()
    assert spc_loss(points, pixels, torch.zeros_like(valid), *rest).total == 0
    with pytest.raises(InvalidInputError, match="must agree"):
        spc_loss(points, pixels[:, :2], valid, *rest)
    with pytest.raises(InvalidInputError, match="'sum'"):
        spc_loss(*pairs(), normalisation="sum")
