"""The training loop: a killed run continues as if it had never stopped."""

import json

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
    assert [r["step"] for r in rows if "val/weight" in r] == [60, 120, 120]
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
