"""Noise on poses, the command, and what it writes."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from wristworld_ros.cli import experiment as verb
from wristworld_ros.cli.main import main
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.metrics import pose_error_mm_deg
from wristworld_ros.experiments import pose_noise
from wristworld_ros.experiments.lab import Result, Settings, summary
from wristworld_ros.experiments.report import EXPERIMENTS, page, plot


def test_the_command_knows_every_experiment():
    assert tuple(EXPERIMENTS) == verb.NAMES
    assert all(f.__doc__ and f.__doc__.count("\n") == 0 for f in EXPERIMENTS.values())


@pytest.mark.parametrize("mm, deg", [(0.0, 0.0), (5.0, 1.0), (40.0, 8.0)])
def test_a_disturbed_pose_is_as_far_off_as_asked(mm, deg):
    T = np.diag([1.0, -1, -1, 1])
    off = pose_noise.disturbed(T, mm, deg, np.random.default_rng(0))
    assert pose_error_mm_deg(off, T) == pytest.approx((mm, deg), abs=1e-4)
    other = pose_noise.disturbed(T, mm, deg, np.random.default_rng(1))
    assert (mm == 0) == np.allclose(off, other)


def test_noise_on_the_pose_costs_the_condition_map():
    grid = pose_noise.Grid((0.0, 40.0), (0.0, 8.0), (1,))
    values, flat = pose_noise.episode_psnr(100_000, "val", 2, grid)
    assert values.shape == (2, 2, 2, 2) and 10 < flat < 25
    np.testing.assert_array_equal(values[:, 0, 0, 0], values[:, 1, 0, 0])
    true, predicted = values[:, 0, 0, 0]
    assert true > predicted
    assert (values[0, :, 1, 1] < true - 2).all()
    assert values[0, 0, 1, 0] != values[0, 1, 1, 0]


def sweep():
    """A result like that of ``lambda``."""
    rows = [
        summary(f"{u} x {d}", "val", [{"mm": u + d, "deg": 1.0, "px": 2.0 + s} for s in range(3)])
        for u in (1, 2)
        for d in (1, 2)
    ]
    return Result(
        rows, ["one finding"], ["one set-up"], {"lambda_u": (1, 2), "lambda_depth": (1, 2)}
    )


@pytest.mark.parametrize("name", ["lambda", "spc"])
def test_plots_show_something(tmp_path, name):
    plot(name, sweep(), tmp_path / "plot.png")
    picture = cv2.imread(str(tmp_path / "plot.png"))
    assert picture.shape[1] > 800 and picture.std() > 10


def test_the_page_has_findings_table_and_origin(tmp_path):
    record = {"command": "wristworld experiment x", "commit": "abc", "hardware": {
        "cpu": "a processor", "cores": 2, "torch": "2"}}  # fmt: skip
    text = page("lambda", "Why?", sweep(), Settings(tmp_path, seeds=3, steps=7), record)
    assert "| 1 x 2 | val | 3.0 (3.0 to 3.0) | 1.0 (1.0 to 1.0) | 3.0 (2.0 to 4.0) |" in text
    assert "- one finding" in text and "7 steps" in text and "commit abc, a processor" in text


def test_pose_noise_by_the_command_writes_json_plot_and_page(tmp_path):
    arguments = ["experiment", "pose-noise", "--out", str(tmp_path / "out")]
    arguments += ["--cache", str(tmp_path), "--val-episodes", "1", "--seeds", "1"]
    arguments += ["--processes", "1"]
    assert main(arguments) == 0
    document = json.loads((tmp_path / "out/results.json").read_text())
    assert document["provenance"]["seeds"] == [0]
    assert {"commit", "hardware", "weights"} <= document["provenance"].keys()
    assert len(document["rows"]) == 36
    best = document["rows"][0]
    assert best["name"] == "0 mm / 0 deg"
    assert best["true"]["median"] > document["rows"][-1]["true"]["median"] + 2
    page_text = (tmp_path / "out/README.md").read_text()
    assert f"| 0 mm / 0 deg | {best['true']['median']:.1f} |" in page_text
    assert (tmp_path / "out/plot.png").stat().st_size > 5000


def test_values_that_make_no_sense_are_refused(tmp_path, capsys):
    with pytest.raises(InvalidInputError, match="seeds is 0; need at least 1"):
        Settings(tmp_path, seeds=0)
    arguments = ["experiment", "pose-noise", "--out", str(tmp_path), "--shards", "x"]
    assert main(arguments) == 2
    assert "leave out --shards" in capsys.readouterr().err
