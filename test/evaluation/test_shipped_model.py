"""The weights in models/mini fit the code, say where they come from, and do what they are for."""

import json

import numpy as np
import pytest
import torch

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.evaluation.baselines import flat_colour, inpainted_splat
from wristworld_ros.evaluation.fusion import START, evaluate_fusion, evaluate_placing
from wristworld_ros.evaluation.metrics import psnr
from wristworld_ros.generation import Generator
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.pose_encoding import decode_pose
from wristworld_ros.reconstruction.views import network_inputs
from wristworld_ros.resources import model_dir
from wristworld_ros.weights import STAGE1_PARTS, STAGE2_PARTS

SEED, SPLIT = 100_900, "val"  # not among the episodes that training looked at
LIMIT_MB = 60


@pytest.fixture(scope="module")
def views():
    """Frames of unseen episodes, and what the shipped model makes of them from calibrated pictures
    and kinematics alone."""
    reconstructor, generator = Reconstructor.from_pretrained(), Generator.from_pretrained()
    out = []
    for seed in range(SEED, SEED + 4):
        episode = simulate_episode(seed, SPLIT, n_frames=2)
        for t in range(len(episode)):
            frame = restrict(episode.anchor_frame(t), "kinematic")
            condition = reconstructor(frame).condition
            out.append((episode.wrist_rgb[t], condition, generator(condition, frame)))
    return out


def test_the_generated_view_beats_geometry_alone_and_one_flat_colour(views):
    generated = np.mean([psnr(made.image, truth) for truth, _, made in views])
    splat = np.mean([psnr(inpainted_splat(c.image, c.mask), truth) for truth, c, _ in views])
    flat = np.mean([psnr(flat_colour(truth), truth) for truth, _, _ in views])
    assert generated > splat + 0.4
    assert generated > flat + 1


def test_confidence_separates_good_pixels_from_bad_ones(views):
    measured, imagined = [], []
    for truth, _, made in views:
        error = np.abs(made.image.astype(float) - truth).mean(2)
        measured.append(error[made.confidence >= 0.5])
        imagined.append(error[made.confidence < 0.5])
    assert np.concatenate(measured).mean() < 0.7 * np.concatenate(imagined).mean()


def test_the_plane_sweep_brings_maps_closer_to_the_truth():
    with_sweep, without = Reconstructor.from_pretrained(), Reconstructor.from_pretrained()
    without.plane_sweep = None
    scores = {"with": [], "without": []}
    for seed in (SEED, SEED + 1, SEED + 2):
        episode = simulate_episode(seed, SPLIT, n_frames=2)
        for t in range(len(episode)):
            frame = restrict(episode.anchor_frame(t), "kinematic")
            for name, reconstructor in (("with", with_sweep), ("without", without)):
                condition = reconstructor(frame).condition
                picture = inpainted_splat(condition.image, condition.mask)
                scores[name].append(psnr(picture, episode.wrist_rgb[t]))
    assert np.mean(scores["with"]) > np.mean(scores["without"]) + 0.3


@pytest.mark.parametrize("part", [*STAGE1_PARTS, "domain", *STAGE2_PARTS])
def test_every_part_says_how_it_was_made(part):
    document = json.loads((model_dir("mini") / part / "config.json").read_text())
    assert document["training"]["command"].startswith(f"wristworld train {part.replace('_', '-')} ")
    assert isinstance(document["training"]["loop"]["seed"], int)
    assert len(document["training"]["commit"]) >= 12
    assert document["training"]["hardware"]["cores"] >= 1
    assert document["scores"]["split"] == "val"


def test_depth_around_the_hand_brings_near_things_into_the_map():
    """More of what is near the wrist camera is drawn, and at the right depth, without a URDF."""
    with_hand = Reconstructor.from_pretrained(pose_source="kinematic")
    without = Reconstructor.from_pretrained(pose_source="kinematic")
    without.hand_depth = None
    right = {"with": [], "without": []}
    for seed in (SEED, SEED + 1, SEED + 2):
        episode = simulate_episode(seed, SPLIT, n_frames=3)
        for t in range(len(episode)):
            frame = restrict(episode.anchor_frame(t), "kinematic")
            true = episode.wrist_depth[t]
            near = (true > 0) & (true < 0.15)
            for name, reconstructor in (("with", with_hand), ("without", without)):
                depth = reconstructor(frame).condition.depth
                right[name].append((np.abs(depth - true) < 0.02)[near])
    share = {name: np.concatenate(parts).mean() for name, parts in right.items()}
    assert share["with"] > 0.3
    assert share["with"] > 2 * share["without"]


def test_what_all_anchors_see_together_places_the_wrist_better():
    """From pictures alone: the joint fit against stage 1's own, one after the other."""
    together = Reconstructor.from_pretrained(pose_source="learned")
    errors = {"together": [], "apart": []}
    for seed in range(SEED, SEED + 6):
        episode = simulate_episode(seed, SPLIT, n_frames=2)
        frame = restrict(episode.anchor_frame(1), "estimated")
        true = invert(episode.T_world_camera[0]) @ episode.T_world_wrist[1]
        apart = together.model(*network_inputs(frame, 256, 16, torch.device("cpu")))
        first, wrist = apart.T_base_anchor[0, 0], decode_pose(apart.wrist_pose)[0][0]
        pose = together(frame).estimate.T_world_wrist
        for name, T in (
            ("together", pose),
            ("apart", (torch.linalg.inv(first) @ wrist).double().numpy()),
        ):
            errors[name].append(np.linalg.norm(T[:3, 3] - true[:3, 3]))
    assert np.median(errors["together"]) < 0.8 * np.median(errors["apart"])


def test_anchors_without_a_pose_are_placed_by_the_hand():
    """Three times better than cameras that are estimated from the pictures alone."""
    result = evaluate_placing(SPLIT, [SEED], frames=20)
    assert list(result) == ["1", "5", "15", "20"]
    assert result["1"] == {"placed": 0.0}
    assert result["20"]["placed"] == 1.0
    assert result["20"]["mm"]["median"] < 45
    assert result["20"]["deg"]["median"] < 6


def test_fused_finds_most_of_a_mount_that_is_off():
    result = evaluate_fusion(SPLIT, [SEED], frames=12)
    assert START[0] == 0.02 and START[1] == pytest.approx(np.deg2rad(4))
    error = result["12"]
    assert error["mm"]["median"] < 10 and error["deg"]["median"] < 3
    assert result["refused"] == result["false_bumps"] == 0


def test_all_weights_together_are_small():
    size = sum(file.stat().st_size for file in model_dir("mini").rglob("*") if file.is_file())
    assert size < LIMIT_MB * 1e6
