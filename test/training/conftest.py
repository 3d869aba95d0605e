"""Shards and a stage 1, both small, for the networks that correct a stage 1."""

import pytest
import torch

from wristworld_ros.data.simulation.shards import write_shard
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.model import Stage1Model


@pytest.fixture(scope="module")
def companion_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write_shard(
        0, "train", folder, frames_per_episode=2, wrist_size=(32, 32), anchor_size=(256, 256),
        n_anchors=3, shadows=False,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tiny_stage1():
    torch.manual_seed(0)
    config = BackboneConfig(dim=24, pairs=2, heads=2, stem=(16, 16, 16), kept=(0, 1))
    return Stage1Model(config).eval().requires_grad_(False)
