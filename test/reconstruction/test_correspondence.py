"""Exact pairs, epipolar checks and filters, on scenes whose numbers are known."""

import numpy as np
import pytest
import torch

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction.correspondence import (
    MAX_PAIRS,
    ExactSource,
    PairFilters,
    PairGeometry,
    epipolar_error,
    exact_correspondences,
    sampson_distance,
    select_pairs,
)

SIZE = 64
K = torch.tensor([[64.0, 0, 32], [0, 64, 32], [0, 0, 1]])
DOWN = [1.0, 0, 0, 0]  # optical axis along -z, x to the right


def pose(t, q=DOWN):
    return torch.from_numpy(from_quaternion(t, np.array(q) / np.linalg.norm(q))).float()


@pytest.fixture
def table():
    """Wrist 0.5 m and anchor 1 m above the plane z = 0, the anchor 0.125 m to the right."""
    return PairGeometry(
        K[None],
        pose([0, 0, 0.5])[None],
        K[None, None],
        pose([0.125, 0, 1.0])[None, None],
        torch.full((1, SIZE, SIZE), 0.5),
        torch.full((1, 1, SIZE, SIZE), 1.0),
    )


def exact(g, **options):
    return exact_correspondences(
        g.wrist_depth, g.wrist_K, g.T_world_wrist, g.anchor_depth, g.anchor_K, g.T_world_anchor,
        **options,
    )  # fmt: skip


def random_scene(n, seed=0):
    """n points in a box, seen by a wrist camera and an anchor that looks from the side."""
    rng = np.random.default_rng(seed)
    points = torch.from_numpy(rng.uniform([-0.2, -0.2, 0], [0.2, 0.2, 0.2], (n, 3))).float()
    geometry = PairGeometry(
        K[None],
        pose([0, 0, 0.6])[None],
        K[None, None],
        pose([0.5, 0, 0.9], [1, 0, 0.3, 0])[None, None],
    )

    def project(T):
        x = (points - T[:3, 3]) @ T[:3, :3]
        assert (x[:, 2] > 0.1).all()
        return x[:, :2] / x[:, 2:] * 64 + 32

    return (
        project(geometry.T_world_anchor[0, 0])[None, None],
        project(geometry.T_world_wrist[0])[None],
        geometry,
    )


def ones(n):
    return torch.ones(1, 1, n)


def test_exact_pairs_by_hand(table):
    """A wrist pixel (u, v) sees x = (u - 32) / 128, which the anchor has at 64 (x - 0.125) + 32."""
    pairs = exact(table, grid=8)
    u, v = pairs.wrist[0].unbind(-1)
    assert u.unique().tolist() == [4.5, 12.5, 20.5, 28.5, 36.5, 44.5, 52.5, 60.5]
    expected = torch.stack([(u - 32) / 2 - 8 + 32, (v - 32) / 2 + 32], -1)
    torch.testing.assert_close(pairs.anchor[0, 0], expected, atol=1e-4, rtol=0)
    assert pairs.valid.all()
    assert (pairs.confidence == 1).all()
    assert pairs.counts.candidates.item() == pairs.counts.kept.item() == 64
    assert pairs.counts.reasons == (("",),)


def test_points_hidden_in_an_anchor_are_not_valid(table):
    """Something 10 cm high covers the left half of the anchor; the wrist does not see it."""
    table.anchor_depth[..., :24] = 0.9
    pairs = exact(table, grid=8)
    hidden = pairs.anchor[0, 0, :, 0] < 24
    assert hidden.sum() == 32
    assert (pairs.valid[0, 0] == ~hidden).all()
    assert pairs.counts.visible.item() == 32


def test_an_anchor_that_looks_elsewhere_gives_no_pairs_and_says_so(table):
    away = PairGeometry(
        table.wrist_K,
        table.T_world_wrist,
        table.anchor_K,
        pose([0, 0, 1.0], [0, 0, 0, 1])[None, None],  # up
        table.wrist_depth,
        table.anchor_depth,
    )
    pairs = ExactSource(grid=4)(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8), away)
    assert not pairs.valid.any()
    assert pairs.counts.reasons == (("no point of the wrist's grid is visible in this anchor",),)


def test_the_exact_source_needs_depth(table):
    pictures = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 3, 8, 8)
    assert ExactSource(grid=32)(*pictures, table).valid.sum() == 1024
    with pytest.raises(InvalidInputError, match="'xfeat'"):
        ExactSource()(*pictures)
    with pytest.raises(InvalidInputError, match="33"):
        ExactSource(grid=33)
    with pytest.raises(InvalidInputError, match=r"\(3, 8, 8\)"):
        ExactSource()(pictures[0][0], pictures[1], table)


def test_sampson_distance_by_hand():
    """Cameras side by side: rows must agree; one pixel off is shared by both pictures."""
    F = torch.tensor([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    a, w = torch.tensor([[10.0, 20, 1], [10, 26, 1]]), torch.tensor([[50.0, 20, 1], [3, 20, 1]])
    torch.testing.assert_close(sampson_distance(a, w, F), torch.tensor([0.0, 6 / 2**0.5]))


def test_true_pairs_have_no_epipolar_error_and_wrong_ones_have():
    anchor, wrist, geometry = random_scene(50)
    distance, in_front = epipolar_error(anchor, wrist, geometry)
    assert distance.max() < 1e-3
    assert in_front.all()
    moved, _ = epipolar_error(anchor + torch.tensor([0.0, 5.0]), wrist, geometry)
    assert (moved > 2).all()


def test_pairs_that_would_meet_behind_a_camera_are_found(table):
    """Side by side, a point moves against the camera; with it, it would lie behind."""
    side = PairGeometry(
        K[None], pose([0, 0, 0.5])[None], K[None, None], pose([0.1, 0, 0.5])[None, None]
    )
    wrist = torch.tensor([40.0, 32.0]).expand(1, 12, 2)
    anchor = torch.tensor([36.0, 32.0]).repeat(1, 1, 12, 1)
    anchor[..., 10:, 0] = 44.0
    distance, in_front = epipolar_error(anchor, wrist, side)
    assert distance.max() < 1e-3
    assert in_front[0, 0].tolist() == [True] * 10 + [False] * 2
    pairs = select_pairs(anchor, wrist, ones(12), ones(12), PairFilters(), side)
    assert pairs.valid.equal(in_front)


def test_each_stage_is_counted():
    anchor, wrist, geometry = random_scene(40)
    visibility, confidence = ones(40), ones(40)
    visibility[..., :5] = 0.5  # not more than the limit
    confidence[..., 3:9] = 0.2
    anchor[..., 9:12, 1] += 6.0
    anchor[..., 12, :] = torch.nan
    pairs = select_pairs(anchor, wrist, visibility, confidence, PairFilters(), geometry)
    counts = pairs.counts
    got = [x.item() for x in (counts.candidates, counts.visible, counts.confident, counts.epipolar)]
    assert got == [39, 34, 30, 27]
    assert counts.kept.item() == 27
    assert pairs.valid[0, 0].nonzero()[:, 0].tolist() == list(range(13, 40))
    assert pairs.anchor.isfinite().all()
    assert (pairs.confidence > 0).equal(pairs.valid)


@pytest.mark.parametrize(
    ("visible", "confident", "reason"),
    [
        (0.1, 1.0, "0 pairs are visible, at least 8 are needed"),
        (1.0, 0.1, "0 pairs are confident, at least 8 are needed"),
    ],
)
def test_an_empty_result_says_which_stage_emptied_it(visible, confident, reason):
    anchor, wrist, geometry = random_scene(40)
    pairs = select_pairs(
        anchor, wrist, visible * ones(40), confident * ones(40), PairFilters(), geometry
    )
    assert not pairs.valid.any()
    assert pairs.counts.reasons == ((reason,),)


def test_too_few_consistent_pairs_are_all_dropped():
    anchor, wrist, geometry = random_scene(20)
    anchor[..., 7:, 1] += 6.0
    pairs = select_pairs(anchor, wrist, ones(20), ones(20), PairFilters(), geometry)
    assert pairs.counts.epipolar.item() == 7
    assert pairs.counts.kept.item() == 0
    assert pairs.counts.reasons == (("7 pairs fit one rigid scene, at least 8 are needed",),)


def test_the_most_confident_pairs_are_kept_at_the_cap():
    n = MAX_PAIRS + 76
    anchor, wrist, geometry = random_scene(n)
    confidence = torch.linspace(0.9, 0.3, n)[None, None]
    pairs = select_pairs(anchor, wrist, ones(n), confidence, PairFilters(), geometry)
    assert pairs.counts.epipolar.item() == n
    assert pairs.counts.kept.item() == MAX_PAIRS == pairs.valid.sum()
    assert pairs.valid[0, 0, :MAX_PAIRS].all()


def test_without_cameras_a_fitted_matrix_drops_wrong_pairs():
    anchor, wrist, _ = random_scene(90)
    rng = np.random.default_rng(1)
    anchor[0, 0, 60:] = torch.from_numpy(rng.uniform(0, SIZE, (30, 2))).float()
    pairs = select_pairs(anchor, wrist, ones(90), ones(90), PairFilters(epipolar=1.0))
    assert pairs.valid[0, 0, :60].sum() >= 57
    assert pairs.valid[0, 0, 60:].sum() <= 6


@pytest.mark.parametrize("n", [0, 5, 12, 30])
def test_random_pairs_without_cameras_give_nothing(n):
    rng = np.random.default_rng(n)
    anchor = torch.from_numpy(rng.uniform(0, 256, (1, 1, n, 2))).float()
    wrist = torch.from_numpy(rng.uniform(0, 256, (1, n, 2))).float()
    pairs = select_pairs(anchor, wrist, ones(n), ones(n), PairFilters())
    assert pairs.counts.kept.item() == 0
    assert "at least 30 are needed" in pairs.counts.reasons[0][0]
