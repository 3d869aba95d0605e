"""Training of the networks beside stage 1's own, most of which correct what a frozen one says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.fine_depth import FineDepth
from wristworld_ros.reconstruction.hand_depth import HandDepth
from wristworld_ros.reconstruction.locator import Locator
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
from wristworld_ros.training.locator import (
    LocatorLosses,
    evaluate_locator,
    locator_step,
)
from wristworld_ros.training.loop import (
    LoopConfig,
    is_main_process,
    start_from,
    train,
    training_record,
)
from wristworld_ros.training.shard_data import ShardSet
from wristworld_ros.weights import COMPACT, load_weights, read_config, save_weights


class Recipe(NamedTuple):
    """What differs: the network, its losses, a step, its scores (``every``-th frame), whether it
    goes with a stage 1, which steps and scores then take, and ``compact`` of ``save_weights``."""

    network: Callable[[], Companion]
    losses: Any
    step: Callable[..., tuple[Tensor, dict[str, float]]]
    evaluate: Callable[..., dict[str, float]]
    of_stage1: bool = True
    compact: int | None = None


#: By name in ``wristworld train``.
RECIPES = {
    "hand-depth": Recipe(HandDepth, HandDepthLosses(), hand_depth_step, evaluate_hand_depth),
    "fine-depth": Recipe(FineDepth, FineDepthLosses(), fine_depth_step, evaluate_fine_depth),
    "locator": Recipe(
        Locator, LocatorLosses(), locator_step, evaluate_locator, of_stage1=False, compact=COMPACT
    ),
}


def train_companion(
    name: str,
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    stage1_folder: Path | None = None,
    init: Path | None = None,
    evaluate_every: int = 1000,
) -> dict[str, float]:
    """Train on shards, score on val, write to ``out``.

    Args:
        name: of ``RECIPES``.
        stage1_folder: weights of the stage 1 that it will go with; not for all of them.
        init: folder of weights to start from.

    Raises:
        InvalidInputError: it goes with a stage 1, and none is given.
    """
    recipe = RECIPES[name]
    if recipe.of_stage1 and stage1_folder is None:
        raise InvalidInputError(f"train {name} needs --stage1 (weights that it will work on)")
    losses = {"losses": asdict(recipe.losses), "episodes": str(train_folder)}
    record = training_record(loop, losses)
    torch.manual_seed(loop.seed)
    info: dict[str, Any] = {}
    given: tuple[Stage1Model, ...] = ()
    if recipe.of_stage1 and stage1_folder is not None:
        stage1 = Stage1Model.from_config(read_config(stage1_folder)["config"])
        info["stage1"] = load_weights(stage1_folder, stage1)
        given = (stage1.eval().requires_grad_(False),)
    model = recipe.network()
    start_from(init, model, record)
    data, val = (ShardSet(f, full_depth=recipe.of_stage1) for f in (train_folder, val_folder))

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return recipe.step(net, *given, data, loop.batch_size, recipe.losses, generator)

    def evaluate(net: nn.Module) -> dict[str, float]:
        return recipe.evaluate(net, *given, val, every=4)

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=evaluate_every)
    model.load_state_dict(ema.state)
    scores = recipe.evaluate(model, *given, val)
    if is_main_process():
        info |= {"training": record, "scores": {"split": "val", **scores}}
        save_weights(out, model, model.config_dict(), info, compact=recipe.compact)
    return scores
