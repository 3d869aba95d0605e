"""Training of depth at full resolution, on what a frozen stage 1 says of the halved pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.geometry.depth_fusion import ERROR_SCALE
from wristworld_ros.reconstruction.model import SceneOutput, Stage1Model
from wristworld_ros.training.shard_data import Batch, ShardSet
from wristworld_ros.training.stage1 import KNOWLEDGE, above_table, random_batch


@dataclass(frozen=True)
class FineDepthLosses:
    """What counts.

    Attributes:
        small: errors of log depth below this hardly count any more.
        above_table: weight of pixels that show something standing above the table.
        judged: weight of the confidence's loss.
    """

    small: float = 0.003
    above_table: float = 3.0
    judged: float = 0.1


def fine_depth_loss(
    depth: Tensor, confidence: Tensor, batch: Batch, losses: FineDepthLosses
) -> tuple[Tensor, dict[str, float]]:
    """Loss of depth and confidence (B x V x H x W, as of ``FineDepth``), and figures to log."""
    true = batch.anchor_depth
    valid = true > 0.05
    above = above_table(batch)
    weight = valid * (1 + (losses.above_table - 1) * above)
    error = (torch.log(depth) - torch.log(true.clamp_min(0.05))).abs()
    smooth = F.smooth_l1_loss(error, torch.zeros_like(error), beta=losses.small, reduction="none")
    depth_loss = (smooth * weight).sum() / weight.sum().clamp_min(1)
    # As of stage 1: least where the expected error is ERROR_SCALE / confidence.
    follow = confidence * error.detach() - ERROR_SCALE * torch.log(confidence)
    judged = (follow * valid).sum() / valid.sum().clamp_min(1)
    return 10 * (depth_loss + losses.judged * judged), {
        "log_error": _mean(error, valid),
        "above_log_error": _mean(error, valid & above),
    }


def _mean(values: Tensor, where: Tensor) -> float:
    return ((values * where).sum() / where.sum().clamp_min(1)).item()


@torch.no_grad()
def predict_scene(stage1: Stage1Model, batch: Batch, known: Tensor) -> SceneOutput:
    """What stage 1 says of a batch; ``known`` B x 2 as of ``random_batch``."""
    if bool(known.all()):
        return stage1.scene(batch.anchors, batch.anchor_K, batch.T_world_anchor)
    return stage1(batch.anchors, batch.anchor_K, batch.T_world_anchor, known)


@torch.no_grad()
def evaluate_fine_depth(
    model: nn.Module, stage1: Stage1Model, data: ShardSet, every: int = 1, size: int = 8
) -> dict[str, float]:
    """AbsRel over every ``every``-th frame of ``data`` with 3 views, by kind of input.

    Returns:
        ``KIND/absrel`` and ``KIND/above`` (of what stands on the table), and the same ``before``:
        of stage 1's depth, brought to full resolution in inverse depth.
    """
    model.eval()
    rows: dict[str, list[Tensor]] = {}
    index = np.arange(0, len(data), every)
    for start in range(0, len(index), size):
        batch = data.batch(index[start : start + size], np.arange(3))
        true = batch.anchor_depth
        masks = {"absrel": true > 0.05, "above": (true > 0.05) & above_table(batch)}
        for kind in ("calibrated", "rgb"):
            known = torch.tensor(KNOWLEDGE[kind]).expand(len(true), 2)
            scene = predict_scene(stage1, batch, known)
            whole = 1 / F.interpolate(1 / scene.depth, scale_factor=2.0, mode="bilinear")
            for when, depth in (("", model(batch.anchors, scene)[0]), ("_before", whole)):
                error = (depth - true).abs() / true.clamp_min(0.05)
                for name, mask in masks.items():
                    rows.setdefault(f"{kind}/{name}{when}", []).append(error[mask])
    return {name: torch.cat(values).mean().item() for name, values in rows.items()}


def fine_depth_step(
    net: nn.Module,
    stage1: Stage1Model,
    data: ShardSet,
    size: int,
    losses: FineDepthLosses,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one random batch of ``size`` frames."""
    batch, known = random_batch(data, size, generator)
    depth, confidence = net(batch.anchors, predict_scene(stage1, batch, known))
    return fine_depth_loss(depth, confidence, batch, losses)
