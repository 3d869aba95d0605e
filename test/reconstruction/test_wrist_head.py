"""The wrist head in both variants."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.wrist_head import VARIANTS, VggtWristHead, WristHeadConfig

sys.path.insert(0, str(Path(__file__).parent))

from seeded import random_values, seed_weights


def head_of(variant):
    config = WristHeadConfig(
        variant, token_dim=32, dim=16, heads=2, refine_blocks=1, refine_heads=2
    )
    head = VggtWristHead(config).eval()
    seed_weights(head)
    return head


def tokens(views, batch=2, count=7):
    shape = (batch, views, count, 32)
    return torch.from_numpy(random_values(f"tokens {views}", shape)).float()


@pytest.mark.parametrize(("variant", "billions"), [("paper", 0.107), ("release", 0.37)])
def test_number_of_parameters_at_the_size_of_vggt_1b(variant, billions):
    with torch.device("meta"):
        head = VggtWristHead(WristHeadConfig(variant))
    assert sum(p.numel() for p in head.parameters()) / 1e9 == pytest.approx(billions, rel=0.05)
    assert head.token_query.shape == (1, 1, 1024 if variant == "paper" else 2048)


def test_query_starts_at_almost_nothing():
    torch.manual_seed(0)
    query = VggtWristHead(WristHeadConfig(token_dim=512, heads=2, refine_blocks=1)).token_query
    assert float(query.std()) == pytest.approx(1e-6, rel=0.2)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("views", [1, 2, 5, 8])
def test_one_pose_from_any_number_of_views(variant, views):
    poses = head_of(variant)([tokens(3), tokens(views)])  # only the last layer is used
    assert [tuple(p.shape) for p in poses] == [(2, 9)] * 4
    assert all(bool((p[:, 7:] >= 0).all()) for p in poses)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_token_of_every_view_counts_and_their_order_does_not(variant):
    head, x = head_of(variant), tokens(3)
    pose = head([x])[-1]
    for view, token in ((0, 0), (1, 6), (2, 3)):
        changed = x.clone()
        changed[:, view, token] += 1
        assert float((head([changed])[-1] - pose).abs().max()) > 1e-3
    torch.testing.assert_close(head([x[:, :, [3, 0, 6, 5, 4, 1, 2]]])[-1], pose)
    torch.testing.assert_close(head([x[:, [2, 0, 1]]])[-1], pose)


def test_release_layer_is_a_post_norm_encoder_layer():
    head = head_of("release")
    ours = head.token_aggregation_layers[0]
    theirs = nn.TransformerEncoderLayer(32, 2, 128, 0.1, "gelu", batch_first=True).eval()
    renames = (("attention.", "self_attn."), ("mlp.fc1", "linear1"), ("mlp.fc2", "linear2"))
    state = ours.state_dict()
    for old, new in renames:
        state = {k.replace(old, new): v for k, v in state.items()}
    theirs.load_state_dict(state, strict=True)
    x = tokens(1)[:, 0]
    torch.testing.assert_close(ours(x), theirs(x))


def test_release_lets_tokens_attend_to_one_another_and_paper_does_not():
    # With a second layer what the query reads from a token depends on the others only if they do.
    x = tokens(2, count=3)
    changed = x.clone()
    changed[:, 1, 2] += 1
    for variant, expected in (("paper", False), ("release", True)):
        head = head_of(variant)
        seen = []
        layer = head.token_aggregation_layers[1]
        layer.register_forward_pre_hook(
            lambda _, inputs, seen=seen: seen.append(inputs[-1][:, -6:-1])
        )
        head([x]), head([changed])
        a, b = seen
        assert bool((a - b).abs().max() > 1e-3) is expected, variant


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_iteration_learns_from_its_own_step_alone(variant):
    head = head_of(variant)
    head([tokens(2)])[-1].square().sum().backward()
    assert float(head.token_query.grad.abs().max()) > 0
    # The learned first pose acts on the first step only, whose result is detached for the others.
    assert head.empty_pose_tokens.grad is None
    head([tokens(2)])[0].square().sum().backward()
    assert float(head.empty_pose_tokens.grad.abs().max()) > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_can_learn(variant):
    torch.manual_seed(0)
    config = WristHeadConfig(
        variant, token_dim=32, dim=32, heads=2, refine_blocks=1, refine_heads=2
    )
    head = VggtWristHead(config)
    head.train()
    x = tokens(2, batch=4)
    goal = torch.from_numpy(random_values("goal", (4, 9))).float().abs() / 2
    optimizer = torch.optim.Adam(head.parameters(), 2e-3)
    errors = []
    for _ in range(60):
        error = sum(0.6 ** (3 - i) * (p - goal).abs().mean() for i, p in enumerate(head([x])))
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.4 * errors[0]


def test_bad_input_is_refused():
    head = head_of("release")
    with pytest.raises(InvalidInputError, match="1 to 8 views"):
        head([tokens(9)])
    with pytest.raises(InvalidInputError, match="need B x V x N x 32"):
        head([torch.zeros(1, 2, 5, 31)])
    with pytest.raises(InvalidInputError, match="variant 'mine' is not one of paper, release"):
        WristHeadConfig("mine")
