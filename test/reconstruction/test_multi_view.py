"""The cost volume: the right depth is the one on which the views agree."""

import pytest
import torch

from wristworld_ros.reconstruction.multi_view import HYPOTHESES, CostVolume


@pytest.fixture(scope="module")
def scene():
    """Two cameras 0.2 m apart before a wall 1 m away; the first estimate is right for both."""
    K = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]]).expand(1, 2, 3, 3)
    T = torch.eye(4).repeat(1, 2, 1, 1)
    T[:, 1, 0, 3] = 0.2
    return K, T, torch.zeros(1, 2, 32, 32)


def agreement(volume, out):
    """B x V x hypotheses x h x w: the last group of the volume, and the views that see it."""
    groups = volume.groups + 1
    return out[:, :, : HYPOTHESES * groups].unflatten(2, (groups, HYPOTHESES))[:, :, -1], out[
        :, :, -1
    ]


def test_hypotheses_next_to_the_other_views_depth_agree(scene):
    K, T, log_depth = scene
    volume = CostVolume(8).eval()
    with torch.no_grad():
        agree, seen = agreement(volume, volume(torch.randn(1, 2, 8, 32, 32), log_depth, K, T))
    middle = agree[0, 0, :, 16, 20]  # seen by both
    best = int(middle.argmax())
    assert best in (HYPOTHESES // 2 - 1, HYPOTHESES // 2)
    assert middle[0] < 0.01 and middle[-1] < 0.01
    # A disparity of 8 px: the left edge of the first picture is not in the second.
    assert seen[0, 0, 16, 2] == 0 and seen[0, 0, 16, 20] == 1


def test_a_depth_that_the_other_view_denies_is_found_at_another_hypothesis(scene):
    K, T, log_depth = scene
    off = log_depth.clone()
    off[:, 0] = 0.1  # the first view thinks the wall is 10 % farther
    volume = CostVolume(8).eval()
    with torch.no_grad():
        agree, _ = agreement(volume, volume(torch.randn(1, 2, 8, 32, 32), off, K, T))
    best = int(agree[0, 0, :, 16, 20].argmax())
    assert volume.offsets[best].item() == pytest.approx(-0.1, abs=0.02)


def test_one_view_compares_with_nothing(scene):
    K, T, log_depth = scene
    volume = CostVolume(8)
    out = volume(torch.randn(1, 1, 8, 32, 32), log_depth[:, :1], K[:, :1], T[:, :1])
    assert out.shape == (1, 1, volume.channels, 32, 32) and (out == 0).all()
