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


def doubles():
    """The same in float64, for gradients."""
    points, pixels, valid, T, camera, size = pairs()
    return points.double(), pixels.double(), valid, T.double(), camera.double(), size


def test_per_set_normalisation_by_hand():
    loss = spc_loss(*pairs(), lambda_u=2.0, lambda_depth=3.0)
    assert loss.reprojection.item() == pytest.approx(SCALE * (25 + 100) / 2, rel=1e-5)
    assert loss.depth.item() == pytest.approx(0.3)
    assert loss.total.item() == pytest.approx(2 * SCALE * 62.5 + 3 * 0.3, rel=1e-5)


def test_joint_normalisation_by_hand():
    loss = spc_loss(*pairs(), normalisation="joint", lambda_u=2.0, lambda_depth=3.0)
    assert loss.reprojection.item() == pytest.approx(SCALE * 125 / 3, rel=1e-5)
    assert loss.depth.item() == pytest.approx(0.1)
    assert loss.total.item() == pytest.approx(2 * SCALE * 125 / 3 + 3 * 0.1, rel=1e-5)


def test_a_turned_and_shifted_camera_by_hand():
    """Camera z looks along world x, camera x along -y, camera y along -z; half a metre back.

    X = (1.5, 0.2, 0.1) becomes x = (-0.2, -0.1, 1.5 + 0.5): u = 50 - 10, v = 40 - 5; seen at
    (43, 31) that is 3-4-5 px off.
    """
    T = torch.tensor([[[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0.5], [0, 0, 0, 1]]])
    points, pixels = torch.tensor([[[1.5, 0.2, 0.1]]]), torch.tensor([[[43.0, 31.0]]])
    loss = spc_loss(points, pixels, torch.tensor([[True]]), T, K, SIZE)
    assert loss.reprojection.item() == pytest.approx(SCALE * 25, rel=1e-4)
    assert loss.depth.item() == 0


def test_the_pose_is_applied_world_to_camera():
    points, pixels, valid, T, *rest = pairs()
    T = T.clone()
    T[:, 2, 3] = 1.0  # one metre further away
    loss = spc_loss(points, pixels, valid, T, *rest)
    # (0,0,2) -> (50,40): 25; (0.1,0,3) -> (53.33,40): 102.8; (0,0,0.7) -> (50,40): 4100
    expected = SCALE * (25 + (55 - 50 - 10 / 3) ** 2 + 100 + 4100) / 3
    assert loss.reprojection.item() == pytest.approx(expected, rel=1e-4)
    assert loss.depth.item() == 0


def test_weights_by_hand():
    weight = torch.tensor([[0.5, 0.25, 0.25, 9.0]])
    loss = spc_loss(*pairs(), weight=weight)
    assert loss.reprojection.item() == pytest.approx(SCALE * (12.5 + 25) / 0.75, rel=1e-5)
    assert loss.depth.item() == pytest.approx(0.3)
    loss = spc_loss(*pairs(), weight=weight, normalisation="joint")
    assert loss.reprojection.item() == pytest.approx(SCALE * (12.5 + 25) / 1.0, rel=1e-5)
    assert loss.depth.item() == pytest.approx(0.25 * 0.3)


@pytest.mark.parametrize("normalisation", ["per_set", "joint"])
@pytest.mark.parametrize("max_error", [None, 0.05])
def test_gradient_is_correct(normalisation, max_error):
    """In float64, in the pose, the points and the intrinsics, with pairs before and behind."""
    points, pixels, valid, T, camera, size = doubles()
    weight = torch.tensor([[1.0, 0.5, 2.0, 1.0]]).double()

    def total(t, x, k):
        options = {"normalisation": normalisation, "max_error": max_error, "weight": weight}
        return spc_loss(x, pixels, valid, t, k, size, **options).total

    inputs = [value.clone().requires_grad_() for value in (T, points, camera)]
    assert torch.autograd.gradcheck(total, inputs)


def test_points_behind_the_camera_pull_it_back_until_they_are_in_front():
    """A camera that faces away from all points ends with every point before it, and on its pixel.

    At first the only gradient is that of the depth term: along the optical axis.
    """
    points = torch.tensor([[[-0.2, -0.1, 0.0], [0.2, -0.1, 0.1], [0.0, 0.2, 0.05]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    truth = torch.tensor([0.0, 0.0, 0.8])
    x = points[0] + truth
    pixels = (x[:, :2] / x[:, 2:] * 100 + torch.tensor([50.0, 40.0]))[None]
    t = torch.tensor([0.0, 0.0, -0.5], requires_grad=True)

    def loss_of(t):
        T = torch.eye(4)[None].repeat(1, 1, 1)
        T[:, :3, 3] = t
        return spc_loss(points, pixels, valid, T, K, SIZE, max_error=0.5)

    (gradient,) = torch.autograd.grad(loss_of(t).total, t)
    torch.testing.assert_close(gradient, torch.tensor([0.0, 0.0, -1.0]))
    optimiser = torch.optim.Adam([t], lr=0.02, betas=(0.9, 0.9))
    for _ in range(300):
        optimiser.zero_grad()
        loss_of(t).total.backward()
        optimiser.step()
    assert (points[0, :, 2] + t[2] > 0).all()
    torch.testing.assert_close(t.detach(), truth, atol=0.02, rtol=0)


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


@pytest.mark.parametrize("normalisation", ["per_set", "joint"])
def test_no_pairs_give_zero_with_zero_gradient(normalisation):
    points, pixels, valid, T, *rest = pairs()
    T = T.clone().requires_grad_()
    none = torch.zeros_like(valid)
    loss = spc_loss(points, pixels, none, T, *rest, normalisation=normalisation)
    loss.total.backward()
    assert loss.total == 0
    assert (T.grad == 0).all()
    empty = spc_loss(points[:, :0], pixels[:, :0], valid[:, :0], T, *rest)
    assert empty.total == 0
    assert spc_loss(*pairs(), weight=torch.zeros(1, 4)).total == 0


def test_what_invalid_pairs_hold_is_of_no_matter_not_even_nan():
    points, pixels, valid, T, *rest = pairs()
    points[0, 3], pixels[0, 3] = torch.nan, torch.inf
    weight = torch.tensor([[1.0, 1, 1, torch.nan]])
    T = T.clone().requires_grad_()
    loss = spc_loss(points, pixels, valid, T, *rest, weight=weight, max_error=0.5)
    loss.total.backward()
    torch.testing.assert_close(loss.total, spc_loss(*pairs()).total)
    assert T.grad.isfinite().all()
    assert T.grad.abs().max() > 0


def test_a_point_at_the_lens_gives_a_finite_gradient():
    points, pixels, valid, T, *rest = pairs()
    points[0, 0] = torch.tensor([0.001, 0, 1e-9])
    T = T.clone().requires_grad_()
    spc_loss(points, pixels, valid, T, *rest).total.backward()
    assert T.grad.isfinite().all()


def test_bad_input_is_refused():
    points, pixels, valid, *rest = pairs()
    with pytest.raises(InvalidInputError, match="must agree"):
        spc_loss(points, pixels[:, :2], valid, *rest)
    with pytest.raises(InvalidInputError, match=r"weights of shape \(1, 3\)"):
        spc_loss(*pairs(), weight=torch.ones(1, 3))
    with pytest.raises(InvalidInputError, match="'sum'"):
        spc_loss(*pairs(), normalisation="sum")


@pytest.mark.parametrize("z", [0.5, -0.5])
def test_an_empty_set_has_zero_gradient_whatever_its_weight(z):
    T = torch.eye(4).expand(1, 4, 4).clone().requires_grad_()
    K = torch.tensor([[[100.0, 0, 64], [0, 100, 64], [0, 0, 1]]])
    points = torch.tensor([[[0.1, 0.0, z]]])
    valid = torch.ones(1, 1, dtype=torch.bool)
    gradients = []
    for empty in (1.0, 100.0):
        weights = {"lambda_depth" if z > 0 else "lambda_u": empty}
        loss = spc_loss(points, torch.full((1, 1, 2), 64.0), valid, T, K, (128, 128), **weights)
        gradients.append(torch.autograd.grad(loss.total, T)[0])
    assert gradients[0].isfinite().all() and gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[1], gradients[0])
