"""Training of the depth around the hand, on what a frozen stage 1 says of the whole pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.hand_depth import TOLERANCE, CloseDepth
from wristworld_ros.reconstruction.model import SceneOutput, Stage1Model, Stage1Output, pixel_rays
from wristworld_ros.reconstruction.pose_encoding import decode_pose, quaternion_to_matrix
from wristworld_ros.training.shard_data import Batch, ShardSet
from wristworld_ros.training.stage1 import KNOWLEDGE, random_batch


@dataclass(frozen=True)
class HandDepthLosses:
    """What counts.

    Attributes:
        small: errors of log depth below this hardly count any more.
        near, near_weight: what is nearer to the middle of the cut-outs than this [m] counts so
            much more than what is behind the hand.
        hand, hand_weight: the same of the hand itself.
        judged: weight of the cross-entropy of what is right.
        given: share of the batches whose wrist poses are known.
        pose_noise: standard deviations per axis of known poses [m, rad].
        moved: share of the frames whose camera is told to be mounted elsewhere on the hand.
        mount_noise: standard deviations per axis of its displacement there [m, rad].
    """

    small: float = 0.003
    near: float = 0.2
    near_weight: float = 5.0
    hand: float = 0.11
    hand_weight: float = 15.0
    judged: float = 0.3
    given: float = 0.4
    pose_noise: tuple[float, float] = (0.003, 0.01)
    moved: float = 0.3
    mount_noise: tuple[float, float] = (0.025, 0.15)


@dataclass(frozen=True)
class Sample:
    """What ``HandDepth`` sees of a batch, and the truth."""

    batch: Batch
    scene: SceneOutput
    T_base_wrist: Tensor
    given: Tensor


def perturbed(T: Tensor, sigma: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Poses B x 4 x 4 moved in their own frame by normal noise of ``sigma`` [m, rad] per axis."""
    shift, turn = torch.randn(2, len(T), 3, generator=generator)
    turn = 0.5 * sigma[1] * turn
    change = torch.eye(4).repeat(len(T), 1, 1)
    change[:, :3, :3] = quaternion_to_matrix(torch.cat([turn, torch.ones(len(T), 1)], 1))
    change[:, :3, 3] = sigma[0] * shift
    return T @ change


@torch.no_grad()
def draw_sample(
    stage1: Stage1Model,
    data: ShardSet,
    size: int,
    losses: HandDepthLosses,
    generator: torch.Generator,
) -> Sample:
    """A random batch as ``random_batch`` draws them, with known or with learned wrist poses.

    The anchors are calibrated, as they are wherever the network is used. A camera that is mounted
    elsewhere shows in the anchors by little but its pose, so that another pose stands for it.
    """
    batch, _ = random_batch(data, size, generator)
    if torch.rand(1, generator=generator).item() < losses.given:
        scene = stage1.scene(batch.anchors, batch.anchor_K, batch.T_world_anchor)
        T = perturbed(batch.T_world_wrist, losses.pose_noise, generator)
        sample = Sample(batch, scene, T, torch.ones(size, dtype=torch.bool))
    else:
        known = torch.ones(size, 2, dtype=torch.bool)
        output = stage1(batch.anchors, batch.anchor_K, batch.T_world_anchor, known)
        sample = learned_sample(batch, output)
    elsewhere = perturbed(sample.T_base_wrist, losses.mount_noise, generator)
    moved = torch.rand(size, generator=generator) < losses.moved
    T = torch.where(moved[:, None, None], elsewhere, sample.T_base_wrist)
    return replace(sample, T_base_wrist=T)


def learned_sample(batch: Batch, output: Stage1Output) -> Sample:
    """The same with the wrist poses that the network found."""
    T = decode_pose(output.wrist_pose)[0]
    return Sample(batch, output, T, torch.zeros(len(T), dtype=torch.bool))


def true_close_depth(batch: Batch, close: CloseDepth) -> Tensor:
    """True depth in the pixels of the cut-outs, B x V x S x S [m]; 0 where unknown or outside."""
    return _in_cut_outs(batch.anchor_depth, close)


def _in_cut_outs(maps: Tensor, close: CloseDepth) -> Tensor:
    """Nearest values of B x V x h x w maps of the whole pictures; 0 outside of them."""
    flat = F.grid_sample(
        maps.flatten(0, 1)[:, None],
        close.grid.flatten(0, 1),
        mode="nearest",
        align_corners=False,
    )
    return flat[:, 0].reshape(close.depth.shape)


def within(sample: Sample, close: CloseDepth, true: Tensor, reach: float) -> Tensor:
    """B x V x S x S bool: the pixel shows a point within ``reach`` [m] of the cut-out's middle."""
    S = true.shape[-1]
    # By the true cameras: estimated ones put the true depth elsewhere.
    K = close.K @ torch.linalg.inv(sample.scene.anchor_K) @ sample.batch.anchor_K
    local = pixel_rays(K, (S, S), 1) * true[..., None]
    T = sample.batch.T_world_anchor
    world = torch.einsum("bvij,bvhwj->bvhwi", T[..., :3, :3], local) + T[:, :, None, None, :3, 3]
    T_wrist = sample.batch.T_world_wrist
    middle = T_wrist[:, :3, 3] + torch.einsum(
        "bij,bj->bi",
        T_wrist[:, :3, :3],
        torch.einsum(
            "bji,bj->bi",
            sample.T_base_wrist[:, :3, :3],
            close.middle - sample.T_base_wrist[:, :3, 3],
        ),
    )
    distance = (world - middle[:, None, None, None]).norm(dim=-1)
    return (true > 0.05) & (distance < reach)


def hand_depth_loss(
    close: CloseDepth, sample: Sample, losses: HandDepthLosses
) -> tuple[Tensor, dict[str, float]]:
    """Loss of depth and confidence, and figures to log."""
    true = true_close_depth(sample.batch, close)
    valid = true > 0.05
    near = within(sample, close, true, losses.near)
    hand = within(sample, close, true, losses.hand)
    weight = torch.where(near, losses.near_weight, 1.0)
    weight = valid * torch.where(hand, losses.hand_weight, weight)
    error = (torch.log(close.depth) - torch.log(true.clamp_min(0.05))).abs()
    smooth = F.smooth_l1_loss(error, torch.zeros_like(error), beta=losses.small, reduction="none")
    depth_loss = (smooth * weight).sum() / weight.sum().clamp_min(1)
    is_right = (error.detach() < TOLERANCE).float()
    judged = F.binary_cross_entropy(close.right, is_right, reduction="none")
    share = (judged * weight).sum() / weight.sum().clamp_min(1)
    loss = 10 * depth_loss + losses.judged * share
    return loss, {
        "log_error": _mean(error, valid),
        "near_log_error": _mean(error, near),
        "hand_log_error": _mean(error, hand),
        "judged": share.item(),
    }


def _mean(values: Tensor, where: Tensor) -> float:
    return ((values * where).sum() / where.sum().clamp_min(1)).item()


@torch.no_grad()
def evaluate_hand_depth(
    model: nn.Module,
    stage1: Stage1Model,
    data: ShardSet,
    losses: HandDepthLosses | None = None,
    every: int = 1,
    size: int = 8,
) -> dict[str, float]:
    """Errors around the hand for 3 views over every ``every``-th frame of ``data``.

    Returns:
        By kind of input (``kinematic``: known poses, ``calibrated`` and ``rgb``: learned ones):
        AbsRel of the hand (what is within ``HandDepthLosses.hand``), of the whole pictures' depth
        (``before``) and in the cut-outs, median error [mm], the share of those pixels that are
        more likely right than not (``kept``), and the share of all pixels for which that was a
        true judgement (``judged``).
    """
    losses = losses or HandDepthLosses()
    model.eval()
    rows: dict[str, list[Tensor]] = {}
    index = np.arange(0, len(data), every)
    for start in range(0, len(index), size):
        batch = data.batch(index[start : start + size], np.arange(3))
        for kind in ("kinematic", "calibrated", "rgb"):
            if kind == "kinematic":
                scene = stage1.scene(batch.anchors, batch.anchor_K, batch.T_world_anchor)
                given = torch.ones(len(batch.anchors), dtype=torch.bool)
                sample = Sample(batch, scene, batch.T_world_wrist, given)
            else:
                known = torch.tensor(KNOWLEDGE[kind]).expand(len(batch.anchors), 2)
                output = stage1(batch.anchors, batch.anchor_K, batch.T_world_anchor, known)
                sample = learned_sample(batch, output)
            close = model(batch.anchors, sample.scene, sample.T_base_wrist, sample.given)
            true = true_close_depth(batch, close)
            hand = within(sample, close, true, losses.hand)
            before = _in_cut_outs(sample.scene.depth, close)
            for name, value in (
                ("before", (before - true).abs() / true.clamp_min(0.05)),
                ("absrel", (close.depth - true).abs() / true.clamp_min(0.05)),
                ("mm", 1e3 * (close.depth - true).abs()),
                ("kept", (close.right >= 0.5).float()),
                (
                    "judged",
                    (
                        (close.right >= 0.5) == ((close.depth - true).abs() < TOLERANCE * true)
                    ).float(),
                ),
            ):
                rows.setdefault(f"{kind}/{name}", []).append(value[hand])
    figures = {}
    for name, values in rows.items():
        joined = torch.cat(values)
        key, value = (name, joined.mean())
        if name.endswith("mm"):
            key, value = name + "_median", joined.median()
        figures[key] = value.item() if len(joined) else math.nan
    return figures


def hand_depth_step(
    net: nn.Module,
    stage1: Stage1Model,
    data: ShardSet,
    size: int,
    losses: HandDepthLosses,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one random batch of ``size`` frames."""
    sample = draw_sample(stage1, data, size, losses, generator)
    close = net(sample.batch.anchors, sample.scene, sample.T_base_wrist, sample.given)
    return hand_depth_loss(close, sample, losses)
