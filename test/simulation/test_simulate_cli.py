from __future__ import annotations

import argparse
import shutil
import subprocess
import sysconfig

import pytest

from wristworld_ros.cli import simulate
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.simulation.shards import read_shard
from wristworld_ros.errors import InvalidInputError

BIN = sysconfig.get_path("scripts")


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    simulate.add_arguments(parser)
    return simulate.run(parser.parse_args(arguments))


def test_bags(tmp_path, capsys):
    out = tmp_path / "bags"
    arguments = ("--split", "test-robot", "--seeds", "600001", "--out", str(out), "--size", "32x24")
    assert run(*arguments, "--no-shadows", "--anchors", "1", "--compressed") == 0
    path = out / "test-robot_600001.mcap"
    assert str(path) in capsys.readouterr().out
    with BagReader(path) as reader:
        assert "/anchor_0/image_raw/compressed" in reader.topics
        assert "/anchor_1/camera_info" not in reader.topics
        info = next(iter(reader.messages(["/wrist_true/camera_info"]))).decode()
        assert (info.width, info.height) == (32, 24)
    before = path.read_bytes()
    assert run(*arguments, "--no-shadows", "--anchors", "1", "--compressed", "--overwrite") == 0
    assert path.read_bytes() == before


@pytest.mark.skipif(shutil.which("wristworld", path=BIN) is None, reason="command not installed")
def test_the_installed_command_starts_workers(tmp_path):
    """Worker processes import the command's own file again, which must not start it again."""
    command = ["wristworld", "simulate", "--split", "val", "--seeds", "100000:100002"]
    command += ["--shards", str(tmp_path), "--size", "16", "--frames", "1", "--no-shadows"]
    command[0] = str(shutil.which("wristworld", path=BIN))
    subprocess.run(command, check=True, timeout=250, capture_output=True)
    assert sorted(p.name for p in tmp_path.glob("*.npz")) == ["100000.npz", "100001.npz"]


def test_shards(tmp_path, capsys):
    arguments = ("--split", "val", "--seeds", "100000:100002", "--shards", str(tmp_path))
    sizes = ("--wrist-size", "16", "--anchor-size", "32x16", "--frames", "2", "--no-shadows")
    assert run(*arguments, *sizes) == 0
    assert "2 shards of split 'val'" in capsys.readouterr().out
    shard = read_shard(tmp_path / "100001.npz")
    assert shard.wrist_rgb.shape == (2, 16, 16, 3)
    assert shard.anchor_rgb.shape == (3, 2, 16, 32, 3)


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", range(7, 8)), ("0:600", range(600)), ("3:5", range(3, 5))]
)
def test_seeds(text, seeds):
    assert simulate.parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a:b", "5:5", "9:3", ":4", "1:2:3"])
def test_impossible_seeds_are_refused(text):
    with pytest.raises(InvalidInputError, match="--seeds"):
        simulate.parse_seeds(text)


def test_sizes():
    assert simulate.parse_size("128") == (128, 128)
    assert simulate.parse_size("320x240") == (320, 240)
    with pytest.raises(InvalidInputError, match="320x240"):
        simulate.parse_size("big")


def test_seeds_of_another_split_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="100000 to 199999"):
        run("--split", "val", "--seeds", "0:3", "--out", str(tmp_path))
    with pytest.raises(InvalidInputError, match="100000 to 199999"):
        run("--split", "val", "--seeds", "199999:200001", "--out", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_bags_or_shards_must_be_chosen(tmp_path):
    with pytest.raises(SystemExit):
        run("--seeds", "0")
    with pytest.raises(SystemExit):
        run("--seeds", "0", "--out", str(tmp_path), "--shards", str(tmp_path))
