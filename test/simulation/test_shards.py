from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.data.simulation.shards import DEPTH_STEP, read_shard, shard_path, write_shards
from wristworld_ros.errors import InvalidInputError

SETTINGS = {
    "frames_per_episode": 3,
    "wrist_size": (32, 24),
    "anchor_size": (48, 32),
    "shadows": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    assert write_shards("val", [100_004, 100_003], out, processes=2, **SETTINGS) == [
        out / "100003.npz",
        out / "100004.npz",
    ]
    return out


def test_a_shard_is_the_episode(folder):
    shard = read_shard(shard_path(folder, 100_003))
    episode = simulate_episode(
        100_003, "val", wrist_size=(32, 24), anchor_size=(48, 32), n_frames=3, shadows=False
    )
    for field in dataclasses.fields(shard):
        if hasattr(episode, field.name) and "depth" not in field.name:
            np.testing.assert_array_equal(
                getattr(shard, field.name), getattr(episode, field.name), err_msg=field.name
            )
    assert shard.wrist_depth.dtype == shard.anchor_depth.dtype == np.uint16
    np.testing.assert_allclose(
        shard.wrist_depth * DEPTH_STEP, episode.wrist_depth, atol=DEPTH_STEP / 2 + 1e-6
    )
    np.testing.assert_allclose(
        shard.anchor_depth * DEPTH_STEP, episode.anchor_depth, atol=DEPTH_STEP / 2 + 1e-6
    )
    np.testing.assert_array_equal(shard.wrist_camera.K, episode.wrist_camera.K)
    assert shard.anchor_camera(2).width == 48
    assert len(shard) == 3 and shard.T_world_wrist.dtype == np.float64


def test_running_again_makes_only_what_is_missing(folder):
    kept, removed = shard_path(folder, 100_003), shard_path(folder, 100_004)
    before = kept.stat().st_mtime_ns
    content = removed.read_bytes()
    removed.unlink()
    write_shards("val", [100_003, 100_004], folder, processes=1, **SETTINGS)
    assert kept.stat().st_mtime_ns == before
    assert read_shard(removed).seed == 100_004
    assert len(removed.read_bytes()) == len(content)
    assert not list(folder.glob("*.partial"))


def test_other_settings_in_the_same_folder_are_refused(folder):
    with pytest.raises(InvalidInputError, match="shadows False there, True now"):
        write_shards("val", [100_003], folder, **{**SETTINGS, "shadows": True})


def test_seeds_of_another_split_are_refused_before_any_work(tmp_path):
    with pytest.raises(InvalidInputError, match="0 to 99999"):
        write_shards("train", [1, 100_000], tmp_path / "new", **SETTINGS)
    assert not (tmp_path / "new").exists()


def test_errors_in_a_worker_reach_the_caller(tmp_path):
    with pytest.raises(InvalidInputError, match="16 to 1024"):
        write_shards("val", [100_003], tmp_path, **{**SETTINGS, "wrist_size": (4, 4)})


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_truncated_shard_is_named(folder, tmp_path, keep):
    cut = tmp_path / "cut.npz"
    cut.write_bytes(shard_path(folder, 100_003).read_bytes()[:keep])
    with pytest.raises(InvalidInputError, match=r"cut\.npz cannot be read.*Delete it"):
        read_shard(cut)


def test_a_file_that_is_no_shard_is_named(tmp_path):
    other = tmp_path / "other.npz"
    np.savez(other, a=np.zeros(3))
    with pytest.raises(InvalidInputError, match=r"other\.npz"):
        read_shard(other)
    with pytest.raises(InvalidInputError, match=r"none\.npz"):
        read_shard(tmp_path / "none.npz")
