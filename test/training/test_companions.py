"""The verb that trains the networks which correct one stage 1, and whose weights they go with."""

import json

import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.errors import WeightsError
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.reconstruction.fine_depth import FineDepth, FineDepthConfig
from wristworld_ros.reconstruction.hand_depth import HandDepth, HandDepthConfig
from wristworld_ros.weights import read_config, save_weights

KINDS = {
    "hand-depth": (HandDepth, HandDepthConfig(size=32, widths=(16, 16, 16, 16))),
    "fine-depth": (FineDepth, FineDepthConfig(widths=(16, 16, 16), steps=(1, 2))),
}


@pytest.mark.parametrize("name", KINDS)
def test_weights_belong_to_one_stage_1(tmp_path, name):
    kind, config = KINDS[name]
    torch.manual_seed(0)
    network = kind(config)
    folder = tmp_path / name.replace("-", "_")
    assert load_companion(folder, kind, sha256="ab") is None
    digest = save_weights(folder, network, network.config_dict(), {"stage1": "ab" * 32})
    loaded = load_companion(folder, kind, sha256="ab" * 32)
    assert loaded.config == config and loaded.sha256 == digest
    with pytest.raises(WeightsError, match=f"stage1 abababababab.*cdcd.*Train it.*train {name}"):
        load_companion(folder, kind, sha256="cd" * 32)


@pytest.mark.parametrize(
    ("name", "scored"),
    [("hand-depth", "calibrated/mm_median"), ("fine-depth", "calibrated/absrel_before")],
)
def test_the_verb_trains_for_one_stage_1(
    companion_shards, tiny_stage1, tmp_path, capsys, name, scored
):
    digest = save_weights(tmp_path / "stage1", tiny_stage1, tiny_stage1.config_dict())
    arguments = [
        "train", name, "--shards", companion_shards, "--val", companion_shards, "--stage1",
        tmp_path / "stage1", "--work", tmp_path / "work", "--out", tmp_path / "out",
        "--steps", "2", "--batch-size", "1",
    ]  # fmt: skip
    assert main([str(a) for a in arguments]) == 0
    assert json.loads(capsys.readouterr().out)[scored] > 0
    document = read_config(tmp_path / "out")
    assert document["stage1"] == digest and document["training"]["loop"]["steps"] == 2
    assert load_companion(tmp_path / "out", KINDS[name][0], sha256=digest) is not None
    assert main([str(a) for a in arguments[:6] + arguments[8:]]) == 2
    assert f"{name} needs --stage1" in capsys.readouterr().err
