"""Statistics of training pictures: the verb, and what they are worth."""

import json

import numpy as np
import pytest

from wristworld_ros.cli.main import main
from wristworld_ros.data.simulation.shards import read_shard
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.reconstruction.domain import Domain
from wristworld_ros.training import domain as module
from wristworld_ros.training.conditions import shard_frame
from wristworld_ros.weights import read_config, save_weights


@pytest.fixture
def arguments(companion_shards, tiny_stage1, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "DIRECTIONS", 2)
    save_weights(tmp_path / "stage1", tiny_stage1, tiny_stage1.config_dict())
    return [
        "train", "domain", "--shards", companion_shards, "--val", companion_shards, "--work",
        tmp_path, "--out", tmp_path / "domain", "--stage1", tmp_path / "stage1",
    ]  # fmt: skip


def run(arguments) -> int:
    return main([str(a) for a in arguments])


def test_the_verb_makes_statistics_of_one_stage_1(arguments, companion_shards, tmp_path, capsys):
    assert run(arguments) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["frames"] == scores["val_frames"] == 2
    assert 0 < scores["val_median"] <= 1.0 <= scores["val_max"] < 1.2
    document = read_config(tmp_path / "domain")
    digest = read_config(tmp_path / "stage1")["sha256"]
    assert document["stage1"] == digest
    domain = load_companion(tmp_path / "domain", Domain, sha256=digest)
    reconstructor = Reconstructor.from_pretrained(tmp_path)
    assert reconstructor.domain.sha256 == domain.sha256 == reconstructor.sha256s["domain"]
    frame = shard_frame(read_shard(next(companion_shards.glob("0*.npz"))), 0)
    distance = reconstructor.domain_distance(frame)
    assert 0 < distance < 3
    assert reconstructor(frame).estimate.domain_distance == pytest.approx(distance)


def test_the_same_seed_gives_the_same_statistics(arguments, tmp_path):
    digests = []
    for seed in (0, 0, 1):
        assert run([*arguments, "--seed", seed]) == 0
        digests.append(read_config(tmp_path / "domain")["sha256"])
    assert digests[0] == digests[1]
    assert len(np.unique(digests)) <= 2


def test_what_is_missing_is_named(arguments, capsys, monkeypatch):
    assert run(arguments[:-2]) == 2
    assert "train domain needs --stage1" in capsys.readouterr().err
    monkeypatch.setattr(module, "DIRECTIONS", 32)
    assert run(arguments) == 2
    assert "need more than 32. Simulate more episodes" in capsys.readouterr().err
