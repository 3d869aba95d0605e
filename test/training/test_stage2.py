"""Stage-2 training at tiny size: what is trained lowers the error of what users get."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.model import Stage2Model
from wristworld_ros.training.stage2 import (
    DropRates,
    batches_by_views,
    clip_context,
    encode_set,
    evaluate_latents,
    flow_matching_loss,
)

sys.path.insert(0, str(Path(__file__).parent))
from stripes import FRAMES, SIZE, TINY, Words, frames, tiny_autoencoder


@pytest.fixture(scope="module")
def latents():
    return encode_set(frames(), tiny_autoencoder(), Words())


def test_batches_by_views_hold_every_frame_once(latents):
    batches = list(batches_by_views(latents.data, 4))
    assert sorted(np.concatenate(batches)) == list(range(FRAMES))
    assert all(len(set(latents.data.views[b])) == 1 for b in batches)


def test_conditions_are_dropped_by_clip_as_rates_say(latents):
    torch.manual_seed(0)
    model = Stage2Model(TINY).eval()
    index = np.arange(4)[:, None]
    whole = clip_context(model, latents, index)
    drops = {
        "text": torch.tensor([True, False, False, False]),
        "anchors": torch.tensor([False, True, False, False]),
        "map": torch.tensor([False, False, True, False]),
    }
    found = clip_context(model, latents, index, drops)
    L = TINY.text_tokens
    assert whole.tokens[:, :L].abs().amax((1, 2)).min() > 0
    assert found.tokens[0, :L].abs().max() == 0 and found.tokens[1, L:].abs().max() == 0
    assert found.mask[2].abs().max() == 0 and whole.mask[2].max() == 1
    grey = tiny_autoencoder().encode(torch.full((1, 3, SIZE, SIZE), 0.5))[0]
    torch.testing.assert_close(found.latents[2, :, 0], grey, atol=1e-2, rtol=1e-2)
    for clip, kept in enumerate(("anchors map", "text map", "text anchors", "text anchors map")):
        for name, a, b in (
            ("text", found.tokens[clip, :L], whole.tokens[clip, :L]),
            ("anchors", found.tokens[clip, L:], whole.tokens[clip, L:]),
            ("map", found.latents[clip], whole.latents[clip]),
        ):
            assert torch.equal(a, b) == (name in kept), (clip, name)


def test_drop_rates_are_shares_of_the_clips_and_independent():
    drawn = DropRates(0.2, 0.5, 0).draw(20_000, torch.Generator().manual_seed(0))
    shares = {name: drop.float().mean().item() for name, drop in drawn.items()}
    assert shares == pytest.approx({"text": 0.2, "anchors": 0.5, "map": 0}, abs=0.01)
    both = (drawn["text"] & drawn["anchors"]).float().mean().item()
    assert both == pytest.approx(0.1, abs=0.01)
    with pytest.raises(InvalidInputError, match=r"drop rate 1.0 of anchors; choose 0 or more, bel"):
        DropRates(anchors=1.0)


def test_the_verb_takes_drop_rates(tmp_path, capsys):
    folders = ("shards", "val", "work", "out", "stage1", "autoencoder")
    command = ["train", "stage2", "--drop-map", "1.5"]
    for name in folders:
        command += [f"--{name}", str(tmp_path / name)]
    assert main(command) == 2
    assert "drop rate 1.5 of map; choose 0 or more, below 1" in capsys.readouterr().err


def test_flow_matching_is_learned(latents):
    torch.manual_seed(0)
    model = Stage2Model(TINY)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)
    weights = torch.ones(16)
    index = np.arange(FRAMES // 2)[:, None]
    errors = []
    for _ in range(30):
        loss, figures = flow_matching_loss(
            model,
            clip_context(model, latents, index),
            latents.clean[index].float().transpose(1, 2),
            weights,
            generator,
        )
        errors.append(figures["x0_error_over_condition"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert errors[0] == pytest.approx(1, abs=1e-4)  # the correction starts at zero
    assert np.mean(errors[-5:]) < 0.7


def test_an_untrained_generator_shows_its_condition(latents):
    """Its correction starts at zero, so that only the autoencoder is between the two."""
    torch.manual_seed(0)
    scores = evaluate_latents(Stage2Model(TINY).eval(), latents, tiny_autoencoder())
    assert scores["psnr"] > 20 and scores["psnr_condition"] > 20
    assert scores["psnr"] == pytest.approx(scores["psnr_condition"], abs=6)
