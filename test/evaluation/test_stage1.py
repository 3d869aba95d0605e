"""Scores of stage 1 on scenes whose errors are known."""

import argparse
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from wristworld_ros.cli import evaluate as verb
from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.messages import image_fields
from wristworld_ros.data.simulation.bag import write_bag
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.errors import BagError, InvalidInputError
from wristworld_ros.evaluation.baselines import true_condition
from wristworld_ros.evaluation.stage1 import (
    Stage1Scores,
    evaluate_stage1,
    evaluate_stage1_bag,
    kind_of,
    reliability,
)
from wristworld_ros.evaluation.steadiness import Truth, steadiness
from wristworld_ros.geometry.depth_fusion import confidence_of
from wristworld_ros.geometry.transforms import from_quaternion, invert
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.types import (
    AnchorFrame,
    AnchorView,
    CameraModel,
    PointCloud,
    Reconstruction,
    WristEstimate,
)
from wristworld_ros.weights import save_weights

WRIST = CameraModel.from_fov(1.2, 64, 64)
#: Downward-looking cameras: x right, y back, z down.
ANCHORS = tuple(from_quaternion([x, 0, 0.9], [1, 0, 0, 0]) for x in (0.4, 0.5))
POSE = from_quaternion([0.45, 0.01, 0.2], [1, 0, 0, 0])
TINY = BackboneConfig(dim=48, pairs=2, heads=4, stem=(16, 16, 16), kept=(0, 1))


def look(T, camera):
    """Picture and depth of the plane z = 0, painted by place."""
    u, v = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(camera.K).T @ T[:3, :3].T
    depth = -T[2, 3] / rays[..., 2]
    x, y = (T[i, 3] + rays[..., i] * depth for i in (0, 1))
    image = 128 + 60 * np.stack([np.sin(9 * x), np.cos(9 * y), np.sin(7 * (x + y))], -1)
    return image.astype(np.uint8), depth.astype(np.float32)


def scene(pose=POSE):
    camera = CameraModel.from_fov(0.9, 96, 96)
    views = []
    for i, T in enumerate(ANCHORS):
        image, depth = look(T, camera)
        views.append(AnchorView(f"anchor_{i}", image, 0, camera, T, depth))
    image, depth = look(pose, WRIST)
    anchors = AnchorFrame(0, tuple(views), T_world_wrist=pose, wrist_camera=WRIST)
    return Truth(anchors, pose, WRIST, image, depth)


def result_of(truth, pose=None, covariance=None, **condition):
    """What a stage 1 would give that estimates ``pose`` from true depth."""
    pose = truth.T_world_wrist if pose is None else pose
    drawn = true_condition(truth.anchors, pose, WRIST)
    covariance = np.diag([1e-6] * 6) if covariance is None else covariance
    estimate = WristEstimate(pose, WRIST, covariance, "learned", 1.0, drawn.coverage, 1, 1.0)
    empty = PointCloud(
        np.zeros((0, 3), np.float32),
        np.zeros((0, 3), np.uint8),
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.uint8),
    )
    return Reconstruction(0, estimate, empty, replace(drawn, **condition), "base_link")


def predicted(truth, factor=1.0):
    return [v.depth * factor for v in truth.anchors.views]


def trust(truth, confidence):
    return [np.full(v.depth.shape, confidence) for v in truth.anchors.views]


def test_a_perfect_stage1_scores_perfectly():
    scores, truth = Stage1Scores(), scene()
    scores.add(result_of(truth), truth, predicted(truth), trust(truth, 1.0))
    s = scores.summary()
    assert s["pose_mm"]["max"] == s["pose_deg"]["max"] == 0 and s["frames"] == 1
    assert s["depth"]["all"]["abs_rel"] == pytest.approx(0, abs=1e-5)
    assert s["depth"]["table"]["pixels"] == 2 * 96 * 96 and "above" not in s["depth"]
    assert s["wrong_share"] == {"all": 0}
    assert s["scores"]["splat_estimated"] == s["scores"]["splat_true"]
    assert s["scores"]["splat_true"]["psnr"] > 25 > s["scores"]["flat_colour_oracle"]["psnr"]
    assert s["pose_bounds"]["translation"] == {"50%": 1, "90%": 1}


def test_errors_come_out_as_they_were_put_in():
    truth = scene()
    condition = true_condition(truth.anchors, POSE, WRIST)
    depth = condition.depth.copy()
    depth[:16] *= 1.06  # a quarter of the picture
    depth[16:32] *= 1.04
    turned = from_quaternion([0.003, 0.004, 0], [0, 0, np.sin(0.01), np.cos(0.01)]) @ POSE
    pose = turned.copy()
    pose[:3, 3] = POSE[:3, 3] + [0.003, 0.004, 0]
    scores = Stage1Scores()
    scores.add(
        replace(result_of(truth, pose), condition=replace(condition, depth=depth)),
        truth,
        predicted(truth, 1.03),
        trust(truth, confidence_of(0.03)),
    )
    s = scores.summary()
    assert s["pose_mm"]["median"] == pytest.approx(5) and s["pose_deg"]["p90"] == pytest.approx(
        np.rad2deg(0.02)
    )
    assert s["depth"]["table"]["abs_rel"] == pytest.approx(0.03, rel=1e-3)
    assert s["wrong_share"]["all"] == pytest.approx(0.25)
    assert s["confidence"]["expected"] == pytest.approx(0.03, rel=1e-3)
    assert s["confidence"]["actual"] == pytest.approx(0.03, rel=1e-3)


def test_classes_of_pixels():
    truth = scene(from_quaternion([0.42, -0.32, 0.1], [1, 0, 0, 0]))
    views = list(truth.anchors.views)
    depth = views[0].depth.copy()
    depth[:48] = 0.9 - 0.2  # 20 cm above the table
    depth[48:60] = 0.9 + 0.5  # the floor
    depth[60:70] = 0  # nothing comes back
    views[0] = replace(views[0], depth=depth)
    truth = replace(truth, anchors=replace(truth.anchors, views=tuple(views[:1])))
    scores = Stage1Scores()
    guess = [np.where(depth > 0, depth * 1.1, 7.0)]
    scores.add(result_of(truth), truth, guess, trust(truth, 0.0))
    parts = scores.summary()["depth"]
    assert parts["above"]["pixels"] == 48 * 96 and parts["far"]["pixels"] == 12 * 96
    assert parts["table"]["pixels"] == 26 * 96 and parts["all"]["pixels"] == 86 * 96
    # The wrist camera stands 10 cm above the table: what it sees there counts as near.
    assert 0 < parts["near"]["pixels"] < parts["table"]["pixels"]
    assert parts["above"]["abs_rel"] == pytest.approx(0.1, rel=0.05)


def test_a_pose_in_the_first_anchors_frame_is_compared_there():
    truth = scene()
    result = result_of(truth)
    moved = replace(result.estimate, T_world_wrist=invert(ANCHORS[0]) @ POSE)
    scores = Stage1Scores()
    scores.add(
        replace(result, estimate=moved, world_frame="anchor_0_optical_frame"),
        truth,
        predicted(truth),
        trust(truth, 1.0),
    )
    assert scores.summary()["pose_mm"]["max"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("claimed", "inside"), [(1.0, (0.5, 0.9)), (0.5, (0.10, 0.33))])
def test_bounds_hold_the_share_of_errors_that_they_state(claimed, inside):
    rng = np.random.default_rng(0)
    base, truth = result_of(scene()), scene()
    blind = replace(truth.anchors.views[0], depth=None)  # the pose alone is scored
    truth = Truth(replace(truth.anchors, views=(blind,)), POSE)
    sigma = np.array([0.002, 0.004, 0.008, 0.01, 0.02, 0.03])
    scores = Stage1Scores()
    for _ in range(400):
        e = rng.standard_normal(6) * sigma
        angle = np.linalg.norm(e[3:])
        turn = from_quaternion([0, 0, 0], [*(np.sin(angle / 2) * e[3:] / angle), np.cos(angle / 2)])
        pose = turn @ POSE
        pose[:3, 3] = POSE[:3, 3] + e[:3]
        estimate = replace(
            base.estimate, T_world_wrist=pose, covariance=np.diag((claimed * sigma) ** 2)
        )
        scores.add(replace(base, estimate=estimate), truth, [None], [None])
    for part in ("translation", "rotation"):
        shares = scores.summary()["pose_bounds"][part]
        assert shares["50%"] == pytest.approx(inside[0], abs=0.06)
        assert shares["90%"] == pytest.approx(inside[1], abs=0.06)


def test_reliability_of_expected_errors():
    expected = np.linspace(0.001, 0.05, 1000)
    honest = reliability(expected, 2 * expected)
    assert honest["rank_correlation"] == pytest.approx(1)
    assert [row["pixels"] for row in honest["table"]] == [100] * 10
    for row in honest["table"]:
        assert row["actual"] == pytest.approx(2 * row["expected"])
    assert honest["table"][0]["expected"] < honest["table"][-1]["expected"]
    assert reliability(expected, expected[::-1])["rank_correlation"] == pytest.approx(-1)
    assert reliability(np.ones(9), expected[:9])["rank_correlation"] is None


def test_steadiness_is_the_motion_that_the_estimate_adds():
    before = scene()
    after = scene(from_quaternion([0.46, 0.01, 0.2], [1, 0, 0, 0]))
    steady = steadiness((result_of(before), before), (result_of(after), after))
    assert steady["jitter_mm"] == pytest.approx(0, abs=1e-9)
    assert steady["motion_mm"] == pytest.approx(10)
    assert steady["flicker_estimated"] == steady["flicker_true"] < 3
    off = after.T_world_wrist.copy()
    off[0, 3] += 0.02
    jumpy = steadiness((result_of(before), before), (result_of(after, off), after))
    assert jumpy["jitter_mm"] == pytest.approx(20)
    assert jumpy["flicker_estimated"] > 2 * steady["flicker_true"] == 2 * jumpy["flicker_true"]
    both = before.T_world_wrist.copy()
    both[0, 3] += 0.02  # the same error in both frames is no jitter
    bias = steadiness((result_of(before, both), before), (result_of(after, off), after))
    assert bias["jitter_mm"] == pytest.approx(0, abs=1e-9)


@pytest.fixture(scope="module")
def episode():
    return simulate_episode(100_000, "val", n_frames=2, anchor_size=(64, 64), wrist_size=(64, 64))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights, as a model folder."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = Stage1Model(TINY)
    save_weights(folder / "stage1", model, model.config_dict(), {"scores": {}})
    return folder


def test_a_split_is_scored_by_kind_of_knowledge(weights):
    results = evaluate_stage1(
        "val", [100_000], kinds=("kinematic", "estimated"), anchors=2, frames=1, sequences=0,
        model=str(weights),
    )  # fmt: skip
    known, guessed = results["kinematic"], results["estimated"]
    assert known["pose_mm"]["max"] == 0 < 1 < guessed["pose_mm"]["median"]
    for r in (known, guessed):
        assert r["frames"] == 1 and 0 <= r["coverage"]["mean"] <= 1
        assert {"all", "table", "above", "far"} <= set(r["depth"])
        assert r["scores"]["splat_true"]["psnr"] > 15
        assert sum(row["pixels"] for row in r["confidence"]["table"]) > 1000
    ideal = [r["scores"]["splat_true"]["psnr"] for r in (known, guessed)]
    assert ideal[0] == ideal[1]
    with pytest.raises(InvalidInputError, match="9 anchors"):
        evaluate_stage1("val", [100_000], anchors=9, frames=1, model=str(weights))


def test_a_recording_is_scored_by_what_it_knows(episode, weights, tmp_path):
    bag = write_bag(episode, tmp_path / "full.mcap")
    scored = evaluate_stage1_bag(bag, source="learned", calibrated=True, model=str(weights))
    r = scored["results"]["calibrated"]
    assert r["frames"] == 2 and r["pose_mm"]["median"] > 1
    assert r["depth"]["all"]["abs_rel"] > 0 and "splat_true" in r["scores"]
    assert r["stability"]["motion_mm"]["mean"] > 0 and "flicker_estimated" not in r["stability"]
    assert "not recorded" in scored["unscored"]["wrong_share"]
    bare = write_bag(episode, tmp_path / "bare.mcap", with_depth=False)
    scored = evaluate_stage1_bag(bare, anchors=1, model=str(weights))
    assert "depth" not in scored["results"]["estimated"]
    assert {"depth", "confidence", "splat_true"} <= set(scored["unscored"])


def test_sources_stand_for_kinds_of_knowledge():
    assert kind_of("auto", True) == "kinematic" and kind_of("auto", False) == "estimated"
    assert kind_of("learned", True) == "calibrated" and kind_of("learned", False) == "estimated"
    with pytest.raises(InvalidInputError, match="'odometry'"):
        kind_of("odometry", False)


def options(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args(words)


def test_seeds_default_to_the_first_of_the_split():
    assert verb.split_seeds("test-iid", None) == range(200_000, 200_020)
    assert verb.split_seeds("val", "100005:100007") == range(100_005, 100_007)
    with pytest.raises(InvalidInputError, match="does not belong"):
        verb.split_seeds("val", "5:7")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage1"], "either"),
        (["stage1", "--split", "val", "--bag", "x"], "either"),
        (["stage2", "--split", "val", "--calibrated"], "are for stage1"),
        (["stage1", "--split", "val", "--source", "auto", "--geometry", "true"], "not both"),
        (["stage1", "--split", "vall"], "no split 'vall'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(InvalidInputError, match=message):
        verb.run(options(*words))


def test_the_verb_writes_and_prints_what_it_measured(episode, weights, tmp_path, capsys):
    bag = write_bag(episode, tmp_path / "bag.mcap")
    out = tmp_path / "new" / "scores.json"
    words = ["stage1", "--bag", str(bag), "--model", str(weights), "--source", "kinematic"]
    assert verb.run(options(*words, "--json", str(out))) == 0
    document = json.loads(out.read_text())
    assert document["results"]["robot"]["pose_mm"]["max"] < 0.01
    assert len(document["provenance"]["weights"]["stage1"]) == 64
    printed = capsys.readouterr().out
    assert "robot: 2 frames" in printed and "not scored: wrong_share" in printed


def test_calibration_is_not_assumed(episode, weights, tmp_path):
    path = tmp_path / "pictures.mcap"
    with BagWriter(path) as writer:
        writer.add_topic("/anchor_0/image_raw", "sensor_msgs/msg/Image", "image")
        fields = image_fields(episode.anchor_rgb[0, 0], "rgb8", 1, "anchor_0_optical_frame")
        writer.write("/anchor_0/image_raw", fields, 1)
    with pytest.raises(BagError, match="anchor_0 have no camera_info or no TF"):
        evaluate_stage1_bag(path, source="learned", calibrated=True, model=str(weights))
    scored = evaluate_stage1_bag(path, model=str(weights))
    assert scored["results"]["estimated"]["frames"] == 1
    assert {"pose_mm", "depth", "scores"} <= set(scored["unscored"])
