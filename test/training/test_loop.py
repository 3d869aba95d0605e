"""The training loop: a killed run continues as if it had never stopped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.training.loop import LoopConfig, learning_rate_at, train

CONFIG = LoopConfig(steps=12, batch_size=4, warmup=3, checkpoint_every=4, ema=0.9)


def problem():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(net, generator):
        x = torch.randn(CONFIG.batch_size, 4, generator=generator)
        value = (net(x) - x.sum(1, keepdim=True)).square().mean()
        return value, {"rmse": value.sqrt().item()}

    return model, loss


def state(model):
    return torch.cat([p.flatten() for p in model.state_dict().values()])


def test_a_killed_run_ends_where_an_unbroken_one_does(tmp_path):
    model, loss = problem()
    unbroken = train(model, loss, tmp_path / "a", CONFIG)

    def killed(net, generator, calls=[0]):  # noqa: B006  # counts calls over the whole run
        calls[0] += 1
        if calls[0] == 7:  # after the checkpoint at step 4
            raise KeyboardInterrupt
        return loss(net, generator)

    model2, _ = problem()
    with pytest.raises(KeyboardInterrupt):
        train(model2, killed, tmp_path / "b", CONFIG)
    model3, _ = problem()
    resumed = train(model3, loss, tmp_path / "b", CONFIG)
    assert torch.allclose(state(model), state(model3), atol=1e-6, rtol=0)
    for key, value in unbroken.state.items():
        assert torch.allclose(value, resumed.state[key], atol=1e-6, rtol=0)


def test_training_lowers_the_loss_and_logs_it(tmp_path):
    model, loss = problem()
    config = LoopConfig(steps=120, batch_size=4, warmup=5, learning_rate=0.02)
    train(
        model, loss, tmp_path, config, evaluate=lambda m: {"weight": state(m).norm().item()},
        evaluate_every=60,
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert losses[-1] < 0.3 * losses[0]
    assert [r["step"] for r in rows if "val/weight" in r] == [60, 120]
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_schedule_warms_up_and_decays():
    config = LoopConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate_at(s / 100, config) for s in range(101)]
    assert np.argmax(rates) == 10 and rates[10] == pytest.approx(1.0)
    assert rates[5] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.02)
    assert (np.diff(rates[10:]) <= 0).all()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(tmp_path):
    model, loss = problem()

    def explodes(net, generator, calls=[0]):  # noqa: B006
        calls[0] += 1
        value, figures = loss(net, generator)
        return (value * float("nan") if calls[0] == 6 else value), figures

    with pytest.raises(InvalidInputError, match="nan at step 5.*Lower --learning-rate"):
        train(model, explodes, tmp_path, CONFIG)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert checkpoint["step"] == 4
    assert all(v.isfinite().all() for v in checkpoint["model"].values())


def test_a_finished_run_that_is_started_again_changes_nothing(tmp_path):
    model, loss = problem()
    train(model, loss, tmp_path, CONFIG, evaluate=lambda m: {"norm": state(m).norm().item()})
    before = (tmp_path / "log.jsonl").read_text()
    again, _ = problem()
    train(again, loss, tmp_path, CONFIG, evaluate=lambda m: {"norm": state(m).norm().item()})
    assert torch.equal(state(model), state(again))
    assert (tmp_path / "log.jsonl").read_text() == before


def test_dropout_and_a_torn_log_survive_a_stop(tmp_path):
    """torch's own random numbers are part of the checkpoint, and so is a row that is half full."""

    def problem_with_dropout():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        return model, problem()[1]

    config = replace(CONFIG, log_every=3)
    model, loss = problem_with_dropout()
    train(model, loss, tmp_path / "a", config)

    def stops(net, generator, calls=[0]):  # noqa: B006
        calls[0] += 1
        if calls[0] == 8:
            raise KeyboardInterrupt
        return loss(net, generator)

    model2, _ = problem_with_dropout()
    with pytest.raises(KeyboardInterrupt):
        train(model2, stops, tmp_path / "b", config)
    with (tmp_path / "b" / "log.jsonl").open("a") as stream:
        stream.write('{"step": 7, "lo')
    model3, _ = problem_with_dropout()
    train(model3, loss, tmp_path / "b", config)
    assert torch.allclose(state(model), state(model3), atol=1e-6, rtol=0)
    logs = [
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
        for lines in ((tmp_path / n / "log.jsonl").read_text().splitlines() for n in "ab")
    ]
    assert logs[0] == logs[1] and [r["step"] for r in logs[0]] == [3, 6, 9, 12]


def test_a_checkpoint_of_another_version_is_refused(tmp_path):
    model, loss = problem()
    train(model, loss, tmp_path, CONFIG)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del checkpoint["sums"]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(InvalidInputError, match=r"lacks sums.*another --work folder"):
        train(model, loss, tmp_path, CONFIG)


def test_bf16_is_switched_on_while_it_trains_only(tmp_path):
    seen = []

    class Net(nn.Linear):
        bf16 = False

    def loss(net, generator):
        seen.append(net.bf16)
        return net(torch.ones(1, 2)).square().sum(), {}

    model = Net(2, 1)
    train(model, loss, tmp_path, replace(CONFIG, steps=2, bf16=True))
    assert seen == [True, True] and model.bf16 is False
    with pytest.raises(InvalidInputError, match="Linear has no bfloat16 mode"):
        train(nn.Linear(2, 1), loss, tmp_path / "b", replace(CONFIG, bf16=True))
