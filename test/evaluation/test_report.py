"""Reports: the figures in metrics.json, the sheet and the video."""

from __future__ import annotations

import json

import av
import cv2
import numpy as np
import pytest

from wristworld_ros.data.frames import WristTruth
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.drawing import (
    Canvas,
    confidence_map,
    error_map,
    fit,
    show_holes,
    show_imagined,
)
from wristworld_ros.evaluation.report import EpisodeReport, format_table
from wristworld_ros.evaluation.scores import Means, percentiles, regions, spread
from wristworld_ros.evaluation.video import VideoWriter
from wristworld_ros.provenance import provenance
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel, ConditionMap

CAMERA = CameraModel.from_fov(1.0, 48, 32)
SHAPE = (32, 48)


def flat(level):
    return np.full((*SHAPE, 3), level, np.uint8)


def condition(level=100):
    mask = np.zeros(SHAPE, bool)
    mask[:16] = True
    depth = np.where(mask, np.float32(0.5), np.float32(0))
    depth[:8] = 0.05
    return ConditionMap(
        flat(level) * mask[..., None], mask, depth, np.where(mask, 0, -1).astype(np.int8), CAMERA
    )


def anchors(i, count=2):
    views = tuple(AnchorView(f"cam_{c}", flat(50 * c), i) for c in range(count))
    return AnchorFrame(10**18 + i * 250_000_000, views, instruction="lift it")


def fill(report, frames=3, truth=True):
    T = np.eye(4)
    for i in range(frames):
        image = flat(100)
        image[16:] = 130
        true_pose = np.eye(4)
        true_pose[0, 3] = 0.001 * (i + 1)
        report.add(
            anchors(i),
            condition(),
            image,
            condition().mask.astype(np.float32),
            T_world_wrist=T,
            source="learned",
            truth=WristTruth(flat(110 + i), None, true_pose) if truth else None,
            latency={"network": 0.1 * (i + 1), "splat": 0.1},
        )


def test_figures_follow_from_the_pictures(tmp_path):
    with EpisodeReport(
        tmp_path, "test", mean_image=flat(90), provenance={"seed": 7}, with_lpips=False
    ) as report:
        fill(report)
        report.save(frames={"in": 3, "out": 3})
    metrics = json.loads((tmp_path / "metrics.json").read_text())

    def decibel(*differences):
        squares = [np.mean(np.square(d, dtype=float)) for d in differences]
        return pytest.approx(np.mean([20 * np.log10(255) - 10 * np.log10(s) for s in squares]))

    generated = metrics["generated"]
    assert generated["psnr"] == decibel([10, 20], [11, 19], [12, 18])
    assert generated["psnr_covered"] == decibel([10], [11], [12])
    assert generated["psnr_holes"] == decibel([20], [19], [18])
    assert generated["psnr_near"] == generated["psnr_far"] == generated["psnr_covered"]
    assert generated["psnr_imagined"] == generated["psnr_holes"]
    assert generated["frames"] == 3
    assert metrics["baselines"]["mean_image"]["psnr"] == decibel([20], [21], [22])
    assert metrics["baselines"]["previous_true"]["psnr"] == decibel([1], [1])
    assert metrics["baselines"]["first_true"]["psnr"] == decibel([1], [2])
    assert metrics["baselines"]["splat_estimated"]["psnr_covered"] == decibel([10], [11], [12])
    assert metrics["baselines"]["flat_colour_oracle"]["psnr"] == 100.0
    assert "splat_true" not in metrics["baselines"]
    assert metrics["coverage"]["mean"] == 0.5
    assert metrics["imagined_fraction"]["mean"] == 0.5
    assert metrics["pose_error"]["mm"]["median"] == pytest.approx(2.0)
    assert metrics["pose_error"]["mm"]["max"] == pytest.approx(3.0)
    assert metrics["latency_s"]["total"]["p50"] == pytest.approx(0.3)
    assert metrics["pose_source"] == {"learned": 3}
    assert metrics["seconds"] == 0.5
    assert (metrics["frames_out"], metrics["frames"]) == (3, {"in": 3, "out": 3})
    assert metrics["provenance"] == {"seed": 7}
    assert metrics["instruction"] == "lift it"


def test_without_truth_there_are_no_scores_and_nothing_is_made_up(tmp_path):
    with EpisodeReport(tmp_path, "test") as report:
        fill(report, truth=False)
        metrics = report.save()
    assert metrics["generated"] is None
    assert metrics["baselines"] == {}
    assert metrics["pose_error"] is None
    assert metrics["psnr_per_frame"] == [None] * 3
    assert report.table() == []
    assert format_table([]) == ""
    assert cv2.imread(str(tmp_path / "contact_sheet.png")) is not None


def test_video_and_sheet_show_every_part(tmp_path):
    with EpisodeReport(tmp_path, "test", with_lpips=False) as report:
        fill(report, frames=30)
        report.save()
    with av.open(str(tmp_path / "virtual_wrist.mp4")) as video:
        frames = list(video.decode(video=0))
    assert [round(f.time, 3) for f in frames] == [round(0.25 * i, 3) for i in range(30)]
    assert (frames[0].width % 2, frames[0].height % 2) == (0, 0)
    sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))
    assert sheet.shape[0] > 6 * 150
    green = (np.abs(sheet.astype(int) - [174, 200, 64]) < 12).all(2)
    assert green.sum() > 200  # the row of the generated view
    assert not list(tmp_path.glob("*.partial"))


def test_after_an_error_no_half_results_stay(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), EpisodeReport(tmp_path, "test") as report:
        fill(report, frames=1, truth=False)
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []


def test_the_table_is_aligned(tmp_path):
    with EpisodeReport(tmp_path, "test", with_lpips=False) as report:
        fill(report)
        report.save()
    lines = format_table(report.table()).splitlines()
    assert lines[0].split() == ["PSNR", "dB", "SSIM", "LPIPS", "covered", "holes", "near", "far"]
    assert lines[2].startswith("generated wrist view")
    assert lines[2].split()[3] == "24.3"
    assert len({len(line) for line in lines}) == 1
    assert "pose error median 2.0 mm, 0.00 deg" in report.summary_text()


def test_regions_means_and_percentiles():
    mask = np.array([[True, True], [False, False]])
    depth = np.array([[0.05, 0.3], [0.0, 0.12]])
    parts = regions(mask, depth, np.array([[0.9, 0.5], [0.4, 0.0]]))
    assert parts["near"].tolist() == [[True, False], [False, False]]
    assert parts["far"].tolist() == [[False, True], [False, True]]
    assert parts["measured"].tolist() == [[True, True], [False, False]]
    means = Means()
    means.add({"a": {"psnr": 10.0, "x": float("nan")}})
    means.add({"a": {"psnr": 20.0, "x": 4.0}})
    assert means.summary() == {"a": {"psnr": 15.0, "x": 4.0, "frames": 2.0}}
    assert spread([]) is None
    assert spread([1.0, 2.0, 6.0])["median"] == 2.0
    assert percentiles([]) is None
    assert percentiles([1.0, 3.0])["p50"] == 2.0


def test_provenance_names_commit_and_machine():
    record = provenance(seed=3, model_sha256="ab")
    assert record["commit"]
    assert (record["seed"], record["model_sha256"]) == (3, "ab")
    assert record["hardware"]["cores"] >= 1
    assert record["hardware"]["cpu"]


def test_holes_confidence_and_error_are_visible():
    mask = np.zeros(SHAPE, bool)
    mask[:, :24] = True
    shown = show_holes(flat(0), mask)
    assert np.array_equal(shown[:, :24], flat(0)[:, :24])
    assert (shown[:, 24:] > 30).all()
    tinted = show_imagined(flat(0), mask.astype(np.float32))
    assert (tinted[:, :24] == 0).all()
    assert (tinted[:, 24:, 0] > 100).all()
    assert confidence_map(np.array([[0.0, 1.0]])).tolist() == [[[240, 132, 60], [64, 200, 174]]]
    assert error_map(flat(10), flat(10)).max() < 10
    assert error_map(flat(0), flat(255)).mean() > 150
    assert fit(flat(9), 100, 100).shape == (100, 100, 3)
    canvas = Canvas(200, 60)
    canvas.text("a very long text that cannot fit", 0, 0, width=60)
    written = (canvas.array() != canvas.array()[-1, -1]).any(2)
    assert written[:, :62].any()
    assert not written[:, 62:].any()


def test_videos_have_one_size(tmp_path):
    with VideoWriter(tmp_path / "a.mp4") as video:
        video.add(flat(3), 0)
        with pytest.raises(InvalidInputError, match=r"\(48, 32\) px got a picture of \(10, 10\)"):
            video.add(np.zeros((10, 10, 3), np.uint8), 1)
    with VideoWriter(tmp_path / "none.mp4"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
