"""LoRA and the new modules: what is trained, saved and loaded, and nothing else."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.generation import WristWorldPipeline
from wristworld_ros.generation.adapter import Adapter, add_lora, lora_rank

sys.path.insert(0, str(Path(__file__).parent))
from test_wan import load, run
from tiny_wan import TRANSFORMER, write_clip, write_wan


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    return write_wan(folder), *write_clip(folder)


def trained(pipe, rank=4):
    """An adapter as after a training."""
    add_lora(pipe.transformer, rank)
    adapter = Adapter(pipe.transformer, pipe.anchor_encoder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return adapter


def test_lora_starts_at_no_change_and_has_rank_times_width(files):
    pipe = load(files)
    before = run(pipe)
    add_lora(pipe.transformer, 4)
    torch.testing.assert_close(run(pipe), before, atol=1e-5, rtol=0)
    adapter = Adapter(pipe.transformer, pipe.anchor_encoder)
    width, layers = 24, TRANSFORMER["num_layers"]
    sizes = {k: v.numel() for k, v in adapter.state_dict().items()}
    lora = {k: n for k, n in sizes.items() if ".lora_" in k}
    # Self- and cross-attention, four linear layers each, two matrices of rank 4 each.
    assert len(lora) == layers * 2 * 4 * 2 and set(lora.values()) == {4 * width}
    assert set(sizes) - set(lora) == {
        "transformer.patch_embedding.weight", "transformer.patch_embedding.bias",
        "anchor_encoder.view", "anchor_encoder.time",
        "anchor_encoder.project.0.weight", "anchor_encoder.project.0.bias",
        "anchor_encoder.project.2.weight", "anchor_encoder.project.2.bias",
    }  # fmt: skip


def test_only_the_adapter_is_trained(files):
    pipe = load(files)
    add_lora(pipe.transformer, 2)
    adapter = Adapter(pipe.transformer, pipe.anchor_encoder)
    networks = (pipe.transformer, pipe.anchor_encoder, pipe.vae, pipe.text_encoder)
    learning = {id(p) for n in networks for p in n.parameters() if p.requires_grad}
    assert learning == {id(p) for p in adapter.parameters()}


def test_saved_and_loaded_it_gives_the_same_fused_or_not(files, tmp_path):
    pipe = load(files)
    start = run(pipe)
    adapter = trained(pipe)
    before = run(pipe)
    assert (before - start).abs().max() > 1e-2
    adapter.save(tmp_path / "adapter")
    again = load(files)
    again.load_adapter(tmp_path / "adapter")
    assert lora_rank(again.transformer) == 4
    torch.testing.assert_close(run(again), before, atol=0, rtol=0)
    with pytest.raises(InvalidInputError, match="LoRA layers of rank 4 already"):
        again.load_adapter(tmp_path / "adapter")
    with pytest.raises(InvalidInputError, match="fuse_adapter"):
        again.save_pretrained(tmp_path / "whole")
    again.fuse_adapter()
    torch.testing.assert_close(run(again), before, atol=1e-4, rtol=0)
    again.save_pretrained(tmp_path / "whole")
    whole = WristWorldPipeline.from_pretrained(tmp_path / "whole")
    whole.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(whole), run(again), atol=0, rtol=0)


def test_adapters_that_do_not_fit_are_refused(files, tmp_path, folder):
    trained(load(files), rank=2).save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"lora_rank": 2', '"lora_rank": 3'))
    with pytest.raises(WeightsError, match=r"32 of wrong shape.*lora_A.*\(2, 24\) for \(3, 24\)"):
        load(files).load_adapter(tmp_path)
    assert all(v.dtype == torch.float32 for v in load_file(tmp_path / "model.safetensors").values())
    with pytest.raises(InvalidInputError, match="rank 0; choose 1"):
        add_lora(load(files).transformer, 0)
    with pytest.raises(InvalidInputError, match="this is mini"):
        WristWorldPipeline.from_pretrained(folder).load_adapter(tmp_path)
