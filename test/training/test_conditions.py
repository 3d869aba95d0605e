"""Varied copies of training frames stay consistent; clips stay within one episode."""

import json

import numpy as np
import pytest
import torch

from wristworld_ros.data.simulation.shards import DEPTH_STEP, read_shard, write_shard
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.resources import model_dir
from wristworld_ros.training.conditions import (
    ANCHORS,
    SHARES,
    ConditionSet,
    build_conditions,
    merged,
    varied,
)
from wristworld_ros.training.stage2 import CLIP, channel_weights, draw_clips
from wristworld_ros.weights import STAGE1_PARTS

FRAMES = 6


def make_set(episodes=4):
    rng = np.random.default_rng(0)
    n = episodes * FRAMES
    wrist = rng.integers(0, 200, (n, 8, 8, 3), dtype=np.uint8)
    mask = rng.random((n, 8, 8)) < 0.7
    return ConditionSet(
        wrist=wrist,
        image=wrist * mask[..., None],
        mask=mask,
        measured=mask & (rng.random((n, 8, 8)) < 0.8),
        wrist_K=np.repeat(np.eye(3)[None], n, 0),
        anchors=rng.integers(0, 200, (n, 3, 4, 4, 3), dtype=np.uint8),
        views=np.repeat(np.arange(episodes) % 3 + 1, FRAMES).astype(np.uint8),
        instructions=[f"push the left cube {e}" for e in range(episodes) for _ in range(FRAMES)],
        episode=np.repeat(np.arange(episodes) * 7, FRAMES),
    )


def test_truth_map_and_mask_change_together():
    data = make_set()
    other = varied(data, np.random.default_rng(1))
    assert (other.image == other.wrist * other.mask[..., None]).all()
    assert (other.wrist != data.wrist).any()
    np.testing.assert_array_equal(other.episode, data.episode)


def test_mirrored_episodes_swap_left_and_right():
    data = make_set(12)
    other = varied(data, np.random.default_rng(1))
    mirrored = np.array(["right" in text for text in other.instructions])
    same_mask = np.array([(a == b).all() for a, b in zip(other.mask, data.mask, strict=True)])
    np.testing.assert_array_equal(mirrored, ~same_mask)
    assert 0 < mirrored.mean() < 1
    i = int(np.argmax(mirrored))
    np.testing.assert_array_equal(other.mask[i], data.mask[i][:, ::-1])
    np.testing.assert_array_equal(other.measured[i], data.measured[i][:, ::-1])
    assert all("left" in text for text in data.instructions)  # the original stays


def test_merged_sets_keep_their_episodes_apart():
    data = make_set()
    both = merged([data, varied(data, np.random.default_rng(0))])
    assert len(both) == 2 * len(data)
    assert len(np.unique(both.episode)) == 2 * len(np.unique(data.episode))


def test_clips_are_consecutive_frames_of_one_episode_with_equal_views():
    data = make_set(9)
    generator = torch.Generator().manual_seed(0)
    lengths = set()
    for _ in range(60):
        index = draw_clips(data, 8, generator)
        lengths.add(index.shape[1])
        assert index.shape in ((8, 1), (8 // CLIP, CLIP))
        assert (np.diff(index, axis=1) == 1).all()
        assert (data.episode[index] == data.episode[index[:, :1]]).all()
        assert len(np.unique(data.views[index])) == 1
    assert lengths == {1, CLIP}


def test_visible_channels_count_more():
    weights = channel_weights(torch.tensor([3.0, 1.0, 0.1]))
    assert weights.argmax() == 0 and torch.isclose(weights.mean(), torch.tensor(1.0))
    assert weights.min() >= 0.5


def test_conditions_of_other_weights_are_not_taken(tmp_path):
    """Not those of another stage 1, nor those of a time before the depth around the hand."""
    model = model_dir("mini")
    cache = tmp_path / "conditions"
    with pytest.raises(InvalidInputError, match="no shards"):
        build_conditions(tmp_path, model / "stage1", cache)
    written = json.loads((cache / "weights.json").read_text())
    assert set(written) == set(STAGE1_PARTS)
    (cache / "weights.json").write_text(json.dumps({"stage1": written["stage1"]}))
    with pytest.raises(InvalidInputError, match=r"holds condition maps of .*Remove the folder"):
        build_conditions(tmp_path, model / "stage1", cache)
    with pytest.raises(InvalidInputError, match="--stage1 .*give the 'stage1' folder"):
        build_conditions(tmp_path, model, cache)
    (cache / "weights.json").unlink()
    (cache / "0.npz").touch()
    with pytest.raises(InvalidInputError, match="of the weights None"):
        build_conditions(tmp_path, model / "stage1", cache)


def test_some_maps_have_the_robots_own_body(tmp_path):
    """Near the camera, where the gripper is, they are closer to the truth than those without."""
    shards = tmp_path / "shards"
    shards.mkdir()
    write_shard(
        100_003, "val", shards, frames_per_episode=2, wrist_size=(128, 128),
        anchor_size=(256, 256), n_anchors=3, shadows=True,
    )  # fmt: skip
    file = next(shards.glob("*.npz"))
    number = read_shard(file).seed
    depth = read_shard(file).wrist_depth * DEPTH_STEP
    near = (depth > 0) & (depth < 0.15)

    def drawn(geometry):
        """The first seed that draws this geometry and all three anchors."""
        for seed in range(1000):
            rng = np.random.default_rng([seed, number])
            if rng.choice(list(SHARES), p=list(SHARES.values())) != geometry:
                continue
            if rng.choice(list(ANCHORS), p=list(ANCHORS.values())) == 3:
                return seed
        raise AssertionError

    errors = {}
    for geometry in ("robot", "kinematic"):
        cache = tmp_path / geometry
        data = build_conditions(
            shards, model_dir("mini") / "stage1", cache, seed=drawn(geometry), processes=1
        )
        assert (data.views == 3).all()
        off = np.abs(data.image.astype(float) - data.wrist).mean(-1)
        errors[geometry] = off[near].mean()
    assert errors["robot"] < 0.8 * errors["kinematic"]
