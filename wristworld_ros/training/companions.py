"""Training of the networks that correct what a frozen stage 1 says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.fine_depth import FineDepth
from wristworld_ros.reconstruction.hand_depth import HandDepth
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.training.fine_depth import (
    FineDepthLosses,
    evaluate_fine_depth,
    fine_depth_step,
)
from wristworld_ros.training.hand_depth import (
    HandDepthLosses,
    evaluate_hand_depth,
    hand_depth_step,
)
from wristworld_ros.training.loop import LoopConfig, is_main_process, train, training_record
from wristworld_ros.training.shard_data import ShardSet
from wristworld_ros.weights import load_matching, load_weights, read_config, save_weights


class Recipe(NamedTuple):
    """What differs: the network, its losses, a step, and its scores (``every``-th frame)."""

    network: Callable[[], Companion]
    losses: Any
    step: Callable[..., tuple[Tensor, dict[str, float]]]
    evaluate: Callable[..., dict[str, float]]


#: By name in ``wristworld train``.
RECIPES = {
    "hand-depth": Recipe(HandDepth, HandDepthLosses(), hand_depth_step, evaluate_hand_depth),
    "fine-depth": Recipe(FineDepth, FineDepthLosses(), fine_depth_step, evaluate_fine_depth),
}


def train_companion(
    name: str,
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    stage1_folder: Path,
    init: Path | None = None,
    evaluate_every: int = 1000,
) -> dict[str, float]:
    """Train on shards with the stage 1 of ``stage1_folder``, score on val, write to ``out``.

    Args:
        name: of ``RECIPES``.
        init: folder of weights to start from.
    """
    recipe = RECIPES[name]
    losses = {"losses": asdict(recipe.losses), "episodes": str(train_folder)}
    record = training_record(loop, losses)
    torch.manual_seed(loop.seed)
    stage1 = Stage1Model.from_config(read_config(stage1_folder)["config"])
    digest = load_weights(stage1_folder, stage1)
    stage1.eval().requires_grad_(False)
    model = recipe.network()
    if init is not None:
        record["init_from_scratch"] = load_matching(init, model)
        record["init"] = {k: read_config(init)[k] for k in ("sha256", "training")}
    data, val = ShardSet(train_folder, full_depth=True), ShardSet(val_folder, full_depth=True)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return recipe.step(net, stage1, data, loop.batch_size, recipe.losses, generator)

    def evaluate(net: nn.Module) -> dict[str, float]:
        return recipe.evaluate(net, stage1, val, every=4)

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=evaluate_every)
    model.load_state_dict(ema.state)
    scores = recipe.evaluate(model, stage1, val)
    if is_main_process():
        info = {"stage1": digest, "training": record, "scores": {"split": "val", **scores}}
        save_weights(out, model, model.config_dict(), info)
    return scores
