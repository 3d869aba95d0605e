"""`wristworld run` on a small bag, with both real stages at tiny size and random weights."""

from __future__ import annotations

import json

import av
import cv2
import numpy as np
import pytest
import torch

from wristworld_ros.cli.main import main
from wristworld_ros.cli.run import parse_size
from wristworld_ros.data.augment import RECORD
from wristworld_ros.data.bags import BagReader
from wristworld_ros.errors import BagError, CalibrationError, InvalidInputError
from wristworld_ros.evaluation.bag_run import RunOptions, _model_size, run_bag
from wristworld_ros.generation.anchor_encoder import AnchorEncoderConfig
from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.model import Stage2Config, Stage2Model
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.weights import save_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    anchors = AnchorEncoderConfig(image_size=32, width=32, layers=1, heads=2)
    parts = {
        "stage1": Stage1Model(BackboneConfig(dim=48, pairs=2, heads=2, kept=(0, 1))),
        "stage2": Stage2Model(
            Stage2Config(heads=2, head_dim=16, ffn_dim=32, layers=1, anchors=anchors)
        ),
        "autoencoder": Autoencoder(),
    }
    torch.nn.init.normal_(parts["stage2"].transformer.proj_out.weight, std=0.1)
    for name, part in parts.items():
        save_weights(path / name, part, part.config_dict())
    cv2.imwrite(str(path / "mean_wrist.png"), np.full((16, 16, 3), 90, np.uint8))
    return path


def messages(path, generated):
    with BagReader(path) as bag:
        return [
            (m.connection, m.sequence, m.log_time_ns, m.publish_time_ns, bytes(m.raw))
            for m in bag.messages()
            if bool(m.connection.metadata.get("wristworld")) == generated
        ]


@pytest.mark.parametrize("mode", ["stream", "chunk"])
def test_a_calibrated_bag_gives_all_results(make_bag, model, tmp_path, capsys, mode):
    bag, out = make_bag(frames=3), tmp_path / "out"
    arguments = ["run", str(bag), "--out", str(out), "--model", str(model), "--mode", mode]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "scene  ·  calibrated: 3 frames" in text
    assert "pose error median 0.0 mm" in text

    assert messages(out / "augmented.mcap", False) == messages(bag, False)
    with BagReader(out / "augmented.mcap") as augmented:
        assert augmented.counts["/wrist/image_raw"] == 3
        [record] = [pairs for name, pairs in augmented.metadata if name == RECORD]
    metrics = json.loads((out / "metrics.json").read_text())
    assert record["model_sha256"] == json.dumps(metrics["provenance"]["model_sha256"]) or (
        record["model_sha256"] == metrics["provenance"]["model_sha256"]["stage2"]
    )
    assert metrics["frames"] == {
        "images_in": 6,
        "frames_in": 3,
        "frames_out": 3,
        "frames_refused": {},
        "frames_doubted": {"low_coverage": 3},  # random weights trust next to none of their depth
        "images_dropped": dict.fromkeys(metrics["frames"]["images_dropped"], 0),
    }
    assert metrics["pose_source"] == {"kinematic": 3}
    assert metrics["pose_error"]["mm"]["max"] == pytest.approx(0, abs=1e-6)
    assert metrics["wrist_camera"]["width"] == 48
    assert set(metrics["baselines"]) == {
        "splat_estimated",
        "splat_true",
        "copied_view",
        "cropped_view",
        "mean_image",
        "flat_colour",
        "flat_colour_oracle",
        "first_true",
        "previous_true",
    }
    for scores in (metrics["generated"], *metrics["baselines"].values()):
        assert 0 < scores["psnr"] < 100
        assert -1 <= scores["ssim"] <= 1
    assert metrics["generated"]["frames"] == 3
    assert metrics["provenance"]["seed"] == 0
    assert metrics["provenance"]["hardware"]["torch"] == torch.__version__
    assert len(metrics["psnr_per_frame"]) == 3
    assert 0 < metrics["score"]["mean"] < 1 and metrics["domain_distance"] is None
    assert "not to rely on: low_coverage 3" in text
    assert set(metrics["latency_s"]) >= {"total", "stage1_network", "stage2_denoise"}
    with av.open(str(out / "virtual_wrist.mp4")) as video:
        times = [float(frame.time) for frame in video.decode(video=0)]
    assert times == pytest.approx([0, 0.2, 0.4])
    assert cv2.imread(str(out / "contact_sheet.png")).shape[1] > 600

    assert main(arguments) == 2
    assert "has an augmented.mcap already" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["stream", "chunk"])
def test_a_refused_bag_has_condition_maps_and_no_picture(make_bag, model, tmp_path, capsys, mode):
    bag, out = make_bag(frames=2), tmp_path / "out"
    arguments = ["run", str(bag), "--out", str(out), "--model", str(model), "--mode", mode]
    assert main([*arguments, "--refuse-below-coverage", "1"]) == 0
    text = capsys.readouterr().out
    assert "views refused: low_coverage 2" in text and "every view was refused: aug" in text
    with BagReader(out / "augmented.mcap") as augmented:
        counts = augmented.counts
        statuses = [m.decode() for m in augmented.messages(["/wrist/status"])]
    assert (counts.get("/wrist/image_raw", 0), counts["/wrist/condition/image"]) == (0, 2)
    assert [(s.state, s.error_code) for s in statuses] == [(3, 6), (3, 6)]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["frames"]["frames_refused"] == {"low_coverage": 2}
    assert metrics["frames"]["frames_out"] == 0 and not (out / "virtual_wrist.mp4").exists()


def test_limits_of_refusal_are_checked(model, tmp_path, capsys):
    for option, value in (("coverage", "1.5"), ("coverage", "nan"), ("domain", "-1")):
        name = f"--refuse-{'below' if option == 'coverage' else 'beyond'}-{option}"
        assert main(["run", "x.mcap", "--out", str(tmp_path), name, value]) == 2
        assert f"{name} {value}: need" in capsys.readouterr().err


def test_runs_are_repeatable_and_the_seed_matters(make_bag, model, tmp_path):
    bag = make_bag(frames=2)
    pictures = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = RunOptions(model=model, seed=seed, lpips=False)
        run_bag(bag, tmp_path / name, options)
        with BagReader(tmp_path / name / "augmented.mcap") as augmented:
            topic = ["/wrist/image_raw"]
            pictures.append([bytes(m.decode().data) for m in augmented.messages(topic)])
    assert pictures[0] == pictures[1]
    assert pictures[0] != pictures[2]


def test_an_uncalibrated_bag_without_truth_runs_through(make_bag, model, tmp_path, capsys):
    skip = ("/wrist_true/image_raw", "/wrist_true/camera_info", "/tf", "/tf_static")
    skip += ("/anchor_0/camera_info", "/anchor_1/camera_info")
    bag, out = make_bag(frames=2, skip=skip, depth=False), tmp_path / "out"
    assert main(["run", str(bag), "--out", str(out), "--model", str(model)]) == 0
    assert "no true wrist view in the bag" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["generated"] is None
    assert metrics["pose_error"] is None
    assert metrics["pose_source"] == {"learned": 2}
    assert (metrics["wrist_camera"]["width"], metrics["wrist_camera"]["height"]) == (128, 128)
    assert any("is uncalibrated: no topic '/anchor_0/camera_info'" in n for n in metrics["notes"])


def test_the_wrist_camera_can_be_given(make_bag, model, tmp_path):
    bag = make_bag(frames=1)
    options = RunOptions(model=model, wrist_fov_y=1.0, wrist_size=(48, 32), lpips=False)
    run_bag(bag, tmp_path / "fov", options)
    camera = json.loads((tmp_path / "fov" / "metrics.json").read_text())["wrist_camera"]
    assert (camera["width"], camera["height"]) == (48, 32)
    assert camera["K"][1][1] == pytest.approx(16 / np.tan(0.5))
    options = RunOptions(
        model=model, wrist_camera_topic="/anchor_0/camera_info", wrist_size=(32, 32), lpips=False
    )
    run_bag(bag, tmp_path / "topic", options)
    camera = json.loads((tmp_path / "topic" / "metrics.json").read_text())["wrist_camera"]
    assert camera["K"][0][0] == pytest.approx(12 / np.tan(0.5))


def test_a_truncated_bag_runs_to_the_cut_and_says_so(make_bag, model, tmp_path, capsys):
    data = make_bag(frames=60).read_bytes()
    part = tmp_path / "part.mcap"
    part.write_bytes(data[: len(data) // 4])
    out = tmp_path / "out"
    assert main(["run", str(part), "--out", str(out), "--model", str(model), "--no-lpips"]) == 0
    assert "damage: part.mcap: at byte" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert 0 < metrics["frames_out"] < 60
    assert metrics["damage"]


@pytest.mark.parametrize(
    ("scene_options", "run_options", "error", "text"),
    [
        ({}, {"cameras": ["left"]}, BagError, "no camera 'left'; cameras"),
        ({"skew_ns": 90_000_000}, {}, BagError, r"no frame .*'unmatched': 8.*larger --slop"),
        ({"camera_k": np.full(9, np.nan)}, {}, CalibrationError, "/anchor_0/camera_info"),
        ({"skip": ("/tf",)}, {"pose_source": "kinematic"}, CalibrationError, "no wrist pose"),
        ({}, {"wrist_camera_topic": "/nothing"}, BagError, "no topic '/nothing'"),
        ({}, {"wrist_camera_topic": "/tf"}, BagError, "not a camera_info topic"),
    ],
)
def test_bad_input_is_named_and_leaves_no_results(
    make_bag, model, tmp_path, scene_options, run_options, error, text
):
    bag = make_bag(**scene_options)
    with pytest.raises(error, match=text):
        run_bag(bag, tmp_path / "out", RunOptions(model=model, **run_options))
    assert not (tmp_path / "out" / "augmented.mcap").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_arguments_are_checked(make_bag, tmp_path, capsys):
    bag = str(make_bag())
    for options, text in (
        (["--wrist-fov", "0"], "--wrist-fov 0: need 1 to 170 degrees"),
        (["--steps", "0"], "--steps 0: need at least 1"),
        (["--wrist-size", "100x100"], "multiples of 16"),
        (["--wrist-size", "big"], "write it as WIDTHxHEIGHT"),
    ):
        assert main(["run", bag, "--out", str(tmp_path / "out"), *options]) == 2
        assert text in capsys.readouterr().err
    assert main(["run", str(tmp_path / "no.mcap"), "--out", str(tmp_path)]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_sizes():
    assert parse_size("160X96") == (160, 96)
    assert parse_size(None) is None
    with pytest.raises(InvalidInputError, match="multiples of 16"):
        parse_size("2048x128")
    assert _model_size(128, 128) == (128, 128)
    assert _model_size(256, 160) == (256, 160)
    assert _model_size(320, 192) == (160, 96)
    assert _model_size(640, 480) == (144, 112)
