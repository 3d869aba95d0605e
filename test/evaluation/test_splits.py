"""`wristworld evaluate stage2` with the shipped weights: repeatable, complete, and its options."""

import argparse
import json

import pytest

from wristworld_ros.cli import evaluate as verb
from wristworld_ros.data.simulation.bag import write_bag
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.splits import evaluate_split


def options(*words) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return parser.parse_args([str(w) for w in words])


def without_times(results: dict) -> dict:
    for result in results.values():
        for steps in result["steps"].values():
            del steps["seconds"]
    return results


def run(seed: int) -> dict:
    given = {"geometries": ["kinematic"], "frames": 2, "seed": seed, "lpips": False}
    return without_times(evaluate_split("val", [100_000], steps=(2, 1), **given))


@pytest.fixture(scope="module")
def first() -> dict:
    return run(0)


def test_equal_seeds_give_equal_bits(first):
    assert json.dumps(run(0)) == json.dumps(first)
    assert run(1)["kinematic"]["steps"] != first["kinematic"]["steps"]


def test_every_baseline_and_every_part_of_the_picture_is_scored(first):
    result = first["kinematic"]
    assert set(result["scores"]) == {
        "generated", "splat_estimated", "splat_true", "copied_view", "cropped_view",
        "flat_colour_oracle", "first_true", "previous_true",
    }  # fmt: skip
    assert result["scores"]["generated"]["frames"] == 2
    assert result["scores"]["previous_true"]["frames"] == 1
    generated = result["scores"]["generated"]
    assert {f"psnr_{p}" for p in ("covered", "holes", "near", "far")} <= set(generated)
    assert generated["psnr"] > result["scores"]["copied_view"]["psnr"] + 3
    assert list(result["steps"]) == ["2", "1"]
    assert result["steps"]["2"]["psnr"] == generated["psnr"] != result["steps"]["1"]["psnr"]
    assert 0.3 < result["view_score"]["stated"] < 1
    assert result["domain_distance"]["max"] < 1.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "val", "--steps", "1", "1"], "different numbers"),
        (["--split", "val", "--steps", "0"], "at least 1"),
        (["--bag", "x.mcap", "--steps", "1", "2"], "one number of --steps"),
        (["--bag", "x.mcap", "--seeds", "1:2"], "no --seeds"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, message):
    with pytest.raises(InvalidInputError, match=message):
        verb.run(options("stage2", *words))


def test_a_recording_is_scored_by_what_it_knows(tmp_path, capsys):
    small = {"wrist_size": (48, 48), "anchor_size": (64, 64), "n_anchors": 2, "n_frames": 2}
    bag = write_bag(simulate_episode(100_000, "val", **small), tmp_path / "small.mcap")
    out = tmp_path / "scores.json"
    words = ["stage2", "--bag", bag, "--anchors", 1, "--no-lpips", "--json", out]
    assert verb.run(options(*words)) == 0
    document = json.loads(out.read_text())
    assert document["bag"] == bag.name and document["anchors"] == 1
    assert document["generated"]["psnr"] > 8 and document["generated"]["frames"] == 2
    assert document["confidence"]["bins"] and document["view_score"]["right"] > 0
    assert "inpainted splat, estimated geometry" in capsys.readouterr().out
    with pytest.raises(InvalidInputError, match="3 anchors; the bag has 2"):
        verb.run(options("stage2", "--bag", bag, "--anchors", 3))
