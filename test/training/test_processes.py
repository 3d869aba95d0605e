"""Training in several processes: gradients are averaged, weights stay equal, one process writes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.training.loop import LoopConfig, leave_processes, rank_seed, train

CONFIG = LoopConfig(steps=6, batch_size=4, warmup=2, checkpoint_every=3, ema=0.9, log_every=2)


class Net(nn.Module):
    """The loss uses a method that is not ``forward``, and leaves some weights unused."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        self.sometimes = nn.Linear(4, 1)
        self.never = nn.Linear(4, 1)

    def encode(self, x):
        return self.body(x)


def batch(generator):
    """A batch, and whether it uses the second part: the processes differ in that."""
    x = torch.randn(CONFIG.batch_size, 4, generator=generator)
    return x, bool(torch.rand(1, generator=generator) < 0.5)


def loss_of(net, x, second):
    error = net.encode(x) - x.sum(1, keepdim=True) + (net.sometimes(x) if second else 0)
    return error.square().mean()


def weights(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def work(folder):
    """What each process does."""
    net = Net()

    def compute(net, generator):
        loss = loss_of(net, *batch(generator))
        return loss, {"rmse": loss.sqrt().item()}

    def evaluate(net):
        return {"norm": weights(net).norm().item()}

    train(net, compute, folder / "work", CONFIG, evaluate=evaluate)
    torch.save(weights(net), folder / f"rank_{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    return folder


def test_processes_end_with_the_same_weights(two_processes):
    first, second = (torch.load(two_processes / f"rank_{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)


def test_two_processes_equal_one_with_both_batches(two_processes, tmp_path):
    other = torch.Generator().manual_seed(rank_seed(CONFIG.seed, 1))

    def both(net, generator):
        losses = [loss_of(net, *batch(g)) for g in (generator, other)]
        return torch.stack(losses).mean(), {"rmse": sum(v.sqrt().item() for v in losses) / 2}

    net = Net()
    train(net, both, tmp_path, CONFIG, evaluate=lambda n: {"norm": weights(n).norm().item()})
    moved = (weights(net) - weights(Net())).abs().max()
    torch.testing.assert_close(
        torch.load(two_processes / "rank_0.pt"), weights(net), atol=1e-6, rtol=0
    )
    assert moved > 1e-3
    for line, expected in zip(rows(two_processes / "work"), rows(tmp_path), strict=True):
        del line["seconds"], expected["seconds"]
        assert line == pytest.approx(expected, abs=2e-6)


def rows(folder):
    """Rows of the log; evaluations have no time."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{"seconds": 0, **json.loads(line)} for line in lines]


def test_only_one_process_writes(two_processes):
    assert [r["step"] for r in rows(two_processes / "work")] == [2, 4, 6, 6]
    checkpoint = torch.load(two_processes / "work" / "checkpoint.pt", weights_only=True)
    states = [state[0] for state in checkpoint["random"]]
    assert len(states) == 2 and not torch.equal(*states)


def test_a_checkpoint_of_two_processes_is_not_continued_by_one(two_processes):
    with pytest.raises(InvalidInputError, match="written by 2 processes, and there are 1 now"):
        train(Net(), lambda n, g: (loss_of(n, *batch(g)), {}), two_processes / "work", CONFIG)


def test_seeds_of_processes_differ():
    seeds = {rank_seed(s, r) for s in range(4) for r in range(8)}
    assert len(seeds) == 32 and rank_seed(5, 0) == 5


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    leave_processes()
