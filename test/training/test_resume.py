"""A training of stage 1 that is killed (SIGKILL) ends where an undisturbed one does."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from wristworld_ros.data.simulation.shards import write_shard
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.training.loop import LoopConfig, train
from wristworld_ros.training.shard_data import ShardSet
from wristworld_ros.training.stage1 import (
    Stage1Losses,
    evaluate_stage1,
    random_batch,
    stage1_loss,
)

LOOP = LoopConfig(steps=4, batch_size=1, warmup=2, checkpoint_every=1, log_every=2)
TINY = BackboneConfig(dim=24, pairs=2, heads=2, stem=(16, 16, 16), kept=(0, 1))


def work(folder: Path, name: str, kill_at: int) -> None:
    """Train in this process; with ``kill_at`` it dies while it writes that checkpoint."""
    seen = []

    def watch(event, arguments):
        if event == "os.rename" and Path(arguments[1]).name == "checkpoint.pt":
            seen.append(event)
            if len(seen) == kill_at:  # written, but not yet under its name
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    torch.manual_seed(LOOP.seed)
    model = Stage1Model(TINY)
    data = ShardSet(folder / "shards", anchor_size=128)

    def compute(net, generator):
        batch, known = random_batch(data, LOOP.batch_size, generator)
        output = net(batch.anchors, batch.anchor_K, batch.T_world_anchor, known)
        return stage1_loss(output, batch, Stage1Losses())

    def evaluate(net):
        return evaluate_stage1(net, data, (True, True))

    train(model, compute, folder / name, LOOP, evaluate=evaluate)


def start(folder, name, kill_at=0):
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), name, str(kill_at)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    (folder / "shards").mkdir()
    write_shard(
        0, "train", folder / "shards", frames_per_episode=2, wrist_size=(32, 32),
        anchor_size=(128, 128), n_anchors=3, shadows=False,
    )  # fmt: skip
    unbroken, killed = start(folder, "unbroken"), start(folder, "killed", kill_at=2)
    _, errors = killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL, errors[-3000:]
    left = torch.load(folder / "killed" / "checkpoint.pt", weights_only=True)["step"]
    torn = (folder / "killed" / "log.jsonl").read_text()
    again = start(folder, "killed")
    for process in (unbroken, again):
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    return folder, left, torn


def test_the_kill_lost_a_checkpoint_and_left_rows_behind(runs):
    _, left, torn = runs
    assert left == 1
    assert [json.loads(line)["step"] for line in torn.splitlines()] == [2]


def test_weights_are_the_same(runs):
    folder, *_ = runs
    a, b = (
        torch.load(folder / name / "checkpoint.pt", weights_only=True)
        for name in ("unbroken", "killed")
    )
    torch.manual_seed(LOOP.seed)
    first = Stage1Model(TINY).state_dict()
    moved = 0.0
    for part in ("model", "ema"):
        for key, value in a[part].items():
            torch.testing.assert_close(value, b[part][key], atol=1e-6, rtol=0)
            moved = max(moved, (value - first[key]).abs().max().item())
    assert moved > 1e-4  # there was something to lose


def test_logs_are_the_same(runs):
    folder, *_ = runs
    rows = []
    for name in ("unbroken", "killed"):
        lines = (folder / name / "log.jsonl").read_text().splitlines()
        rows.append([{"seconds": 0, **json.loads(line)} for line in lines])
    assert [r["step"] for r in rows[0]] == [2, 4, 4]
    for a, b in zip(*rows, strict=True):
        del a["seconds"], b["seconds"]
        assert a == pytest.approx(b, abs=1e-6)


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
