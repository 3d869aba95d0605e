"""One training loop for all networks: schedule, EMA, checkpoints that resume exactly, curves."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.provenance import provenance

Metrics = dict[str, float]


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all.
        batch_size: samples per step.
        learning_rate: peak of the warm-up + cosine schedule.
        weight_decay: of AdamW, on matrices only.
        warmup: steps of linear warm-up.
        clip: gradient norm limit.
        ema: decay of the weight average that is evaluated and shipped.
        seed: of weights, batches and noise.
        checkpoint_every: steps between checkpoints.
        minutes: stop the schedule after this wall time per run; 0 for no limit. The schedule
            follows steps or time, whichever is further.
    """

    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 5e-4
    weight_decay: float = 0.02
    warmup: int = 50
    clip: float = 1.0
    ema: float = 0.995
    seed: int = 0
    checkpoint_every: int = 100
    minutes: float = 0.0


def learning_rate_at(progress: float, config: LoopConfig) -> float:
    """Linear warm-up, then cosine to 2 % of the peak; ``progress`` in [0, 1]."""
    warmup = config.warmup / max(config.steps, 1)
    if progress < warmup:
        return config.learning_rate * max(progress / warmup, 0.01)
    x = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * x)))


class Ema:
    """Exponential moving average of a model's floating-point state."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow ``model``; early on with a shorter memory."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)


def train(
    model: nn.Module,
    compute_loss: Callable[[nn.Module, torch.Generator], tuple[Tensor, Metrics]],
    folder: Path,
    config: LoopConfig,
    *,
    evaluate: Callable[[nn.Module], Metrics] | None = None,
    evaluate_every: int = 0,
    resume: bool = True,
) -> Ema:
    """Train ``model`` and keep its state in ``folder``; returns the weight average.

    Every random choice of ``compute_loss`` must come from the generator that it is given: its
    state is part of the checkpoint, so that a killed run continues as if it had never stopped.

    Args:
        compute_loss: (model, generator) -> (scalar loss, figures to log).
        folder: gets ``checkpoint.pt``, ``log.jsonl`` and ``curves.png``.
        evaluate: figures of the averaged model, logged every ``evaluate_every`` steps and at the
            end.

    Raises:
        InvalidInputError: the loss is not finite; the last good checkpoint stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    ema = Ema(model, config.ema)
    checkpoint = folder / "checkpoint.pt"
    log = folder / "log.jsonl"
    start, spent = 0, 0.0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.state = state["ema"]
        generator.set_state(state["generator"])
        start, spent = state["step"], state["seconds"]
        _truncate_log(log, start)
    elif log.exists():
        log.unlink()
    (folder / "loop.json").write_text(json.dumps(asdict(config), indent=2))

    began = time.monotonic()
    progress = tqdm(total=config.steps, initial=start, desc=folder.name, mininterval=5.0)
    sums: Metrics = {}
    count = 0
    step = start
    with log.open("a") as stream:
        while step < config.steps:
            seconds = spent + time.monotonic() - began
            done = step / config.steps
            if config.minutes:
                done = max(done, seconds / (60 * config.minutes))
                if done >= 1:
                    break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(done, config)
            model.train()
            loss, figures = compute_loss(model, generator)
            if not torch.isfinite(loss):
                raise InvalidInputError(
                    f"loss is {loss.item()} at step {step}; the last checkpoint is {checkpoint}. "
                    "Lower --learning-rate or look for bad samples."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            step += 1
            ema.update(model, step)
            for key, value in {"loss": loss.item(), **figures}.items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            progress.update()
            if step % 20 == 0 or step == config.steps:
                row = {k: v / count for k, v in sums.items()}
                progress.set_postfix(loss=f"{row['loss']:.4f}")
                _write(stream, {"step": step, "seconds": seconds, **row})
                sums, count = {}, 0
            if evaluate and evaluate_every and step % evaluate_every == 0:
                _write(stream, {"step": step, **_evaluate(model, ema, evaluate)})
            if step % config.checkpoint_every == 0:
                _save(checkpoint, model, optimizer, ema, generator, step, seconds)
                plot_curves(log, folder / "curves.png")
        if evaluate:
            _write(stream, {"step": step, **_evaluate(model, ema, evaluate)})
    progress.close()
    _save(checkpoint, model, optimizer, ema, generator, step, spent + time.monotonic() - began)
    plot_curves(log, folder / "curves.png")
    return ema


def _evaluate(model: nn.Module, ema: Ema, evaluate: Callable[[nn.Module], Metrics]) -> Metrics:
    own = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema.state)
    model.eval()
    with torch.no_grad():
        figures = evaluate(model)
    model.load_state_dict(own)
    return {f"val/{k}": v for k, v in figures.items()}


def _write(stream: Any, row: dict[str, Any]) -> None:
    stream.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")
    stream.flush()


def _save(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: Ema,
    generator: torch.Generator,
    step: int,
    seconds: float,
) -> None:
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "ema": ema.state,
            "generator": generator.get_state(),
            "step": step,
            "seconds": seconds,
        },
        partial,
    )
    os.replace(partial, path)


def _truncate_log(log: Path, step: int) -> None:
    """Drop rows that a killed run wrote after its last checkpoint."""
    if log.exists():
        rows = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= step]
        log.write_text("".join(f"{line}\n" for line in rows))


def plot_curves(log: Path, path: Path) -> None:
    """Draw every figure of ``log.jsonl`` over steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    keys = sorted({k for row in rows for k in row} - {"step", "seconds"})
    if not keys:
        return
    columns = min(4, len(keys))
    lines = math.ceil(len(keys) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 2.6 * lines), squeeze=False)
    for axis, key in zip(axes.flat, keys, strict=False):
        x, y = zip(*[(r["step"], r[key]) for r in rows if key in r], strict=True)
        axis.plot(x, y, marker="." if key.startswith("val/") else None, linewidth=1)
        axis.set_title(key, fontsize=9)
        if min(y) > 0 and max(y) > 20 * min(y):
            axis.set_yscale("log")
    for axis in list(axes.flat)[len(keys) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def training_record(loop: LoopConfig, extra: dict[str, Any]) -> dict[str, Any]:
    """What config.json says about how its weights came to be.

    To be made when training starts, while the source tree is still that of the running code.
    """
    return provenance(loop=asdict(loop), **extra)
