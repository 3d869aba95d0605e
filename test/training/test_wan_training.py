"""Training of the paper's model at tiny size: the loss falls, and only the adapter changes."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.generation import WristWorldPipeline
from wristworld_ros.generation.adapter import Adapter
from wristworld_ros.resources import model_dir
from wristworld_ros.training.conditions import build_conditions
from wristworld_ros.training.loop import LoopConfig, train
from wristworld_ros.training.stage2 import DropRates
from wristworld_ros.training.wan import WanLoss, WanSource, clip_starts, draw, encode_clips

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))
from stripes import SIZE, frames
from tiny_wan import CLIP, write_clip, write_wan


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    weights, _ = write_clip(folder)
    return WanSource(write_wan(folder / "wan"), CLIP, weights, lora_rank=2)


@pytest.fixture(scope="module")
def pipe(source):
    return source.load()


@pytest.fixture(scope="module")
def clips(pipe):
    return encode_clips(frames(), pipe.preset)


def test_clips_have_4_k_plus_1_frames_of_one_episode():
    data = frames()  # episodes of 6
    assert clip_starts(data) == ([0, 6], 5)
    ten = replace(data, episode=np.repeat([0, 1], [10, 2]))
    assert clip_starts(ten) == (list(range(12)), 1)
    assert clip_starts(replace(data, episode=np.zeros(12, int))) == ([0], 9)


def test_clips_hold_latents_masks_and_the_views_that_there_are(clips):
    h = SIZE // 8
    assert [c.clean.shape for c in clips] == [(16, 2, h, h)] * 2
    assert [c.mask.shape for c in clips] == [(4, 2, h, h)] * 2
    assert [c.anchors.shape for c in clips] == [(5, 2, 3, 32, 32), (5, 3, 3, 32, 32)]
    assert not torch.equal(clips[0].clean, clips[0].condition)  # the map has a hole
    drawn = draw(clips, 8, torch.Generator().manual_seed(0))
    assert len(drawn) == 8 and len({c.anchors.shape for c in drawn}) == 1


def test_the_loss_falls_and_only_the_adapter_changes(source, clips, tmp_path):
    pipe = source.load()
    pipe.transformer.enable_gradient_checkpointing()
    frozen = {
        (part, name): value.clone()
        for part in ("transformer", "anchor_encoder", "vae", "text_encoder")
        for name, value in getattr(pipe, part).named_parameters()
    }
    adapter = Adapter(pipe.transformer, pipe.anchor_encoder)
    names = set(adapter.state_dict())
    loss = WanLoss(pipe.preset, DropRates(0.1, 0.1, 0.1))

    def error():
        with torch.no_grad():
            generator = torch.Generator().manual_seed(1)
            return np.mean(
                [loss([c], generator, drop=False).item() for c in clips for _ in range(8)]
            )

    def compute(_, generator):
        return loss(draw(clips, 4, generator), generator), {}

    before = error()
    loop = LoopConfig(steps=60, learning_rate=3e-2, warmup=5, ema=0.5)
    adapter.load_state_dict(train(adapter, compute, tmp_path, loop).state)
    nothing = 1 + np.mean([c.clean.float().square().mean() for c in clips])  # no velocity at all
    assert error() < 0.7 * before and error() < 0.9 * nothing
    for (part, name), value in frozen.items():
        now = getattr(pipe, part).get_parameter(name)
        trained = f"{part}.{name}" in names
        assert torch.equal(now, value) != trained, (part, name)


@pytest.mark.parametrize("name", ["text", "anchors", "map"])
def test_dropped_conditions_do_not_matter(pipe, clips, name):
    """With a rate that drops always, the condition's value makes no difference."""
    rates = DropRates(**{**dict.fromkeys(("text", "anchors", "map"), 0.0), name: 1 - 1e-9})
    torch.manual_seed(0)
    torch.nn.init.normal_(pipe.anchor_encoder.project[2].weight, std=5.0)
    torch.nn.init.normal_(pipe.transformer.patch_embedding.weight, std=0.2)
    clip = clips[0]
    other = {
        "text": replace(clip, instruction="put blue ball"),
        "anchors": replace(clip, anchors=255 - clip.anchors),
        "map": replace(clip, condition=-clip.condition, mask=1 - clip.mask),
    }[name]
    loss = WanLoss(pipe.preset, rates)
    with torch.no_grad():
        found = [
            [loss([c], torch.Generator().manual_seed(0), drop=drop).item() for c in (clip, other)]
            for drop in (True, False)
        ]
    assert found[0][0] == found[0][1] and abs(found[1][0] - found[1][1]) > 1e-6


@pytest.mark.slow
def test_the_verb_trains_an_adapter_that_the_pipeline_loads(
    source, companion_shards, tmp_path, capsys
):
    mini = model_dir("mini")
    command = (
        f"train stage2 --preset wan2.1-1.3b --shards {companion_shards} --val {companion_shards} "
        f"--steps 2 --batch-size 2 --work {tmp_path / 'work'} --out {tmp_path / 'adapter'} "
        f"--stage1 {mini / 'stage1'} --clip-model {CLIP} --lora-rank 3 --drop-map 0.2 --bf16"
    )
    assert main(command.split()) == 2
    assert "needs --stage1 (trained weights), --wan and --clip-weights" in capsys.readouterr().err
    assert main(command.replace("train stage2", "train detail").split()) == 2
    assert "--preset is for stage2, not for detail" in capsys.readouterr().err
    whole = f"{command} --wan {source.folder} --clip-weights {source.clip_weights}".split()
    assert main([*whole, "--drop-text", "1.5"]) == 2
    assert "drop rate 1.5 of text" in capsys.readouterr().err
    cache = tmp_path / "work" / "conditions_train"
    build_conditions(companion_shards, mini / "stage1", cache)
    shutil.copytree(cache, cache.with_name("conditions_val"))
    assert main(whole) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() == {"before", "after"} and scores["after"] != scores["before"]
    document = json.loads((tmp_path / "adapter" / "config.json").read_text())
    assert document["config"] == {"lora_rank": 3}
    assert document["training"]["drop_rates"] == {"text": 0.1, "anchors": 0.1, "map": 0.2}
    loaded = WristWorldPipeline.from_wan(
        source.folder, clip_model=CLIP, clip_weights=source.clip_weights
    )
    loaded.load_adapter(tmp_path / "adapter")
