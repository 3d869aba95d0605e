"""The detail restorer: which pixels it takes from the condition map, and whose it is."""

import numpy as np
import pytest
import torch

from wristworld_ros.errors import WeightsError
from wristworld_ros.generation.detail import DetailConfig, DetailRestorer, is_right
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.weights import save_weights

TINY = DetailConfig(widths=(8, 8, 8, 8))


@pytest.fixture
def pictures():
    """Decoded 0.2, condition 0.8, drawn and measured in the left half; sides that are no multiples
    of 16."""
    mask = torch.zeros(1, 2, 24, 40)
    mask[..., :20] = 1
    return torch.full((1, 3, 24, 40), 0.2), torch.full((1, 3, 24, 40), 0.8), mask


def test_without_training_it_takes_a_little_of_what_was_drawn(pictures):
    net = DetailRestorer(TINY)
    out, right = net(*pictures)
    assert (right == 0).all()
    taken = 1 / (1 + np.exp(2))
    assert torch.allclose(out[..., :20], torch.full((), float(0.2 + taken * 0.6)), atol=1e-6)
    assert torch.equal(out[..., 20:], pictures[0][..., 20:])


def test_what_it_takes_is_said_per_pixel(pictures):
    """The first of the four pixels of a cell, and none of the others."""
    net = DetailRestorer(TINY)
    with torch.no_grad():
        net.out.bias[12:16] = torch.tensor([100.0, -100, -100, -100])
    out, _ = net(*pictures)
    expected = torch.full((24, 20), 0.2)
    expected[::2, ::2] = 0.8
    torch.testing.assert_close(out[0, 1, :, :20], expected)
    assert torch.equal(out[..., 20:], pictures[0][..., 20:])


def test_guessed_colours_are_told_from_measured_ones(pictures):
    picture, condition, mask = pictures
    torch.manual_seed(0)
    net = DetailRestorer(TINY)
    torch.nn.init.normal_(net.out.weight, std=0.1)
    guessed = torch.cat([mask[:, :1], torch.zeros_like(mask[:, 1:])], 1)
    with torch.no_grad():
        difference = (net(picture, condition, mask)[0] - net(picture, condition, guessed)[0]).abs()
    assert difference[..., :20].mean() > 0.01


def test_bfloat16_training_stays_close_to_float32(pictures):
    torch.manual_seed(0)
    net = DetailRestorer(TINY)
    torch.nn.init.normal_(net.out.weight, std=0.1)
    with torch.no_grad():
        exact = torch.cat(net(*pictures), 1)
        net.bf16 = True
        half = torch.cat(net(*pictures), 1)
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().mean() < 0.1 * exact.std()


def test_a_map_that_shows_next_to_nothing_corrects_nothing(pictures):
    """Of 24 x 40 pixels 2 % are 19.2, 10 % are 96."""
    picture, condition, _ = pictures
    net = DetailRestorer(TINY)
    with torch.no_grad():
        net.out.bias[:12] = 0.1
        net.out.bias[12:16] = -100
    for drawn, expected in ((0, 0), (19, 0), (58, 0.1 * (58 / 960 - 0.02) / 0.08), (96, 0.1)):
        mask = torch.zeros(1, 2, 24 * 40)
        mask[..., :drawn] = 1
        out, _ = net(picture, condition, mask.reshape(1, 2, 24, 40))
        torch.testing.assert_close(out - picture, torch.full_like(out, expected))


def test_right_is_a_small_mean_error_of_the_colours():
    truth = torch.full((1, 3, 1, 3), 0.5)
    off = torch.tensor([[0.07, 0.2, 0.09], [0.07, 0.0, 0.09], [0.07, 0.0, 0.09]])
    assert is_right(truth - off[None, :, None], truth).flatten().tolist() == [1, 1, 0]


def test_it_belongs_to_one_stage_2(tmp_path):
    net = DetailRestorer(TINY)
    save_weights(tmp_path / "detail", net, net.config_dict(), {"stage2": "ab" * 32})
    loaded = load_companion(tmp_path / "detail", DetailRestorer, "stage2", "ab" * 32)
    assert loaded is not None and loaded.config == TINY
    with pytest.raises(WeightsError, match="stage2 abab.* --stage2 "):
        load_companion(tmp_path / "detail", DetailRestorer, "stage2", "cd" * 32)
