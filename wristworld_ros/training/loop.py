"""One training loop for all networks: schedule, EMA, many processes, exact resume, curves.

``accelerate launch -m wristworld_ros.cli.main train ...`` runs it in several processes (GPUs or
cores): each draws its own batches, gradients are averaged, and the first one alone writes.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from tqdm import tqdm

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.provenance import provenance
from wristworld_ros.weights import load_matching, read_config

Metrics = dict[str, float]
#: (model, generator) -> (scalar loss, figures to log).
ComputeLoss = Callable[[nn.Module, torch.Generator], tuple[Tensor, Metrics]]


@dataclass(frozen=True)
class LoopConfig:
    """How to train.

    Attributes:
        steps: optimiser steps in all.
        batch_size: samples per step and process.
        learning_rate: peak of the warm-up + cosine schedule.
        weight_decay: of AdamW, on matrices only.
        warmup: steps of linear warm-up.
        clip: gradient norm limit.
        ema: decay of the weight average that is evaluated and shipped.
        seed: of weights, batches and noise.
        checkpoint_every: steps between checkpoints.
        log_every: steps that a row of the log is the mean of.
        minutes: stop the schedule after this wall time per run; 0 for no limit. The schedule
            follows steps or time, whichever is further. A clock cannot be resumed exactly: only
            schedules by steps end with the same weights after a kill.
        bf16: run the large parts of the network in bfloat16 while it trains, those that its own
            switch ``bf16`` covers; weights and geometry stay in float32. For GPUs and processors
            with bfloat16 instructions.
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
    log_every: int = 20
    minutes: float = 0.0
    bf16: bool = False


def is_main_process() -> bool:
    """Whether this process is the one that writes files; True unless several were launched."""
    return bool(PartialState().is_main_process)


def leave_processes() -> None:
    """To be called last of all in every process; a process that just ends can be aborted."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


def rank_seed(seed: int, rank: int) -> int:
    """Seed of a process: ``seed`` itself for the first, unrelated ones for the others."""
    return seed if rank == 0 else int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


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

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the values of ``state``."""
        for key, value in self.state.items():
            value.copy_(state[key])


class _Step(nn.Module):
    """The loss as a module: DistributedDataParallel then serves losses that call any method of
    the model, and not its ``forward`` alone."""

    def __init__(self, model: nn.Module, compute_loss: ComputeLoss) -> None:
        super().__init__()
        self.model = model
        self.compute_loss = compute_loss

    def forward(self, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        return self.compute_loss(self.model, generator)


def train(
    model: nn.Module,
    compute_loss: ComputeLoss,
    folder: Path,
    config: LoopConfig,
    *,
    evaluate: Callable[[nn.Module], Metrics] | None = None,
    evaluate_every: int = 0,
    resume: bool = True,
) -> Ema:
    """Train ``model`` and keep its state in ``folder``; returns the weight average.

    Every random choice of ``compute_loss`` must come from the generator that it is given, or from
    torch's global one (dropout): the states of both are part of the checkpoint, so that a killed
    run continues as if it had never stopped. In several processes each has a generator of its own,
    and the model moves to the device of its process.

    Args:
        compute_loss: (model, generator) -> (scalar loss, figures to log).
        folder: gets ``checkpoint.pt``, ``log.jsonl`` and ``curves.png``.
        evaluate: figures of the averaged model, logged every ``evaluate_every`` steps and at the
            end, by the first process.

    Raises:
        InvalidInputError: the loss is not finite (the last good checkpoint stays), or the
            checkpoint was written by another number of processes or another version, or bf16 is
            asked of a model without that switch.
    """
    switches = [m for m in model.modules() if hasattr(m, "bf16")] if config.bf16 else []
    if config.bf16 and not switches:
        raise InvalidInputError(f"{type(model).__name__} has no bfloat16 mode; leave out --bf16.")
    for module in switches:
        module.__dict__["bf16"] = True
    # accelerate's own mixed precision would take the geometry along.
    accelerator = Accelerator(
        mixed_precision="no",
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    main, processes = accelerator.is_main_process, accelerator.num_processes
    step_module = accelerator.prepare_model(_Step(model, compute_loss))
    seed = rank_seed(config.seed, accelerator.process_index)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
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
    step, spent, evaluated = 0, 0.0, -1
    sums: Metrics = {}
    count = 0
    if main:
        folder.mkdir(parents=True, exist_ok=True)
    if resume and checkpoint.exists():
        state = _load(checkpoint, processes)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        ema.load(state["ema"])
        _set_random_state(generator, state["random"][accelerator.process_index])
        step, spent, evaluated = state["step"], state["seconds"], state["evaluated"]
        sums, count = state["sums"], state["count"]
    if main:
        _truncate_log(log, step)
        (folder / "loop.json").write_text(json.dumps(asdict(config), indent=2))
    began = time.monotonic()

    def save() -> None:
        random = gather_object([_random_state(generator)])
        if main:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "ema": ema.state,
                "random": random,
                "step": step,
                "seconds": spent + time.monotonic() - began,
                "evaluated": evaluated,
                "sums": sums,
                "count": count,
            }
            _save(checkpoint, state)
            plot_curves(log, folder / "curves.png")

    progress = tqdm(
        total=config.steps, initial=step, desc=folder.name, mininterval=5.0, disable=not main
    )
    with log.open("a") if main else nullcontext() as stream:
        while step < config.steps:
            seconds = spent + time.monotonic() - began
            done = step / config.steps
            if config.minutes:
                # One clock for all processes: they have to stop at the same step.
                done = max(done, seconds / (60 * config.minutes))
                done = broadcast_object_list([done])[0] if processes > 1 else done
                if done >= 1:
                    break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(done, config)
            model.train()
            loss, figures = step_module(generator)
            if not torch.isfinite(loss):
                raise InvalidInputError(
                    f"loss is {loss.item()} at step {step}; the last checkpoint is {checkpoint}. "
                    "Lower --learning-rate or look for bad samples."
                )
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            optimizer.step()
            step += 1
            ema.update(model, step)
            for key, value in {"loss": loss.item(), **figures}.items():
                sums[key] = sums.get(key, 0.0) + value
            count += 1
            progress.update()
            if step % config.log_every == 0 or step == config.steps:
                row = _mean_over_processes({k: v / count for k, v in sums.items()})
                progress.set_postfix(loss=f"{row['loss']:.4f}")
                _write(stream, {"step": step, "seconds": seconds, **row})
                sums, count = {}, 0
            due = step == config.steps or (evaluate_every and step % evaluate_every == 0)
            if evaluate and due:
                _evaluate(stream, model, ema, evaluate, step)
                evaluated = step
            if step % config.checkpoint_every == 0:
                save()
        if evaluate and evaluated != step:  # the time was up
            _evaluate(stream, model, ema, evaluate, step)
            evaluated = step
    progress.close()
    save()
    for module in switches:  # as it runs for users
        module.__dict__["bf16"] = False
    return ema


def _mean_over_processes(row: Metrics) -> Metrics:
    rows: list[Metrics] = gather_object([row])
    return {k: sum(r[k] for r in rows) / len(rows) for k in row}


def _evaluate(
    stream: TextIO | None,
    model: nn.Module,
    ema: Ema,
    evaluate: Callable[[nn.Module], Metrics],
    step: int,
) -> None:
    """Log the figures of the averaged model; only where there is a log."""
    if stream is None:
        return
    own = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema.state)
    model.eval()
    with torch.no_grad():
        figures = evaluate(model)
    model.load_state_dict(own)
    _write(stream, {"step": step, **{f"val/{k}": v for k, v in figures.items()}})


def _write(stream: TextIO | None, row: dict[str, Any]) -> None:
    if stream is not None:
        stream.write(json.dumps({k: round(v, 6) for k, v in row.items()}) + "\n")
        stream.flush()


def _random_state(generator: torch.Generator) -> list[Tensor]:
    """States of the batches' generator, of torch's own, and of the GPU's where there is one."""
    states = [generator.get_state(), torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state()] if torch.cuda.is_available() else states


def _set_random_state(generator: torch.Generator, states: list[Tensor]) -> None:
    generator.set_state(states[0])
    torch.set_rng_state(states[1])
    if torch.cuda.is_available() and len(states) > 2:
        torch.cuda.set_rng_state(states[2])


def _load(path: Path, processes: int) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    if missing := {"random", "evaluated", "sums", "count"} - state.keys():
        raise InvalidInputError(
            f"{path} was written by another version (it lacks {', '.join(sorted(missing))}). "
            "Continue with that version, or start again in another --work folder."
        )
    if len(state["random"]) != processes:
        raise InvalidInputError(
            f"{path} was written by {len(state['random'])} processes, and there are {processes} "
            "now. Continue with as many, or start again in another --work folder."
        )
    return state


def _save(path: Path, state: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def _truncate_log(log: Path, step: int) -> None:
    """Drop what a killed run wrote after its checkpoint at ``step``; all of it without one."""
    rows = []
    for line in log.read_text().splitlines(keepends=True) if log.exists() and step else []:
        # A kill can tear the last line.
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            rows.append(line)
    log.write_text("".join(rows))


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


def start_from(init: Path | None, model: nn.Module, record: dict[str, Any]) -> None:
    """Fill ``model`` from the weights in ``init``, if any, and say so in the training's record.

    Raises:
        WeightsError: as ``load_matching``.
    """
    if init is not None:
        record["init_from_scratch"] = load_matching(init, model)
        record["init"] = {k: read_config(init)[k] for k in ("sha256", "training")}
