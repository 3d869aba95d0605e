"""Training of the locator of hand and base, on cut-outs at roughly the right place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wristworld_ros.reconstruction.heads import WRIST_KEYPOINTS, project
from wristworld_ros.reconstruction.heatmaps import heat_loss
from wristworld_ros.reconstruction.locator import (
    BASE_MIDDLE,
    BASE_POINTS,
    HAND_MIDDLE,
    PARTS,
    CutOuts,
    around,
    in_pictures,
)
from wristworld_ros.training.shard_data import Batch, ShardSet
from wristworld_ros.training.stage1 import apply, coloured


@dataclass(frozen=True)
class LocatorLosses:
    """What counts, and how far off the cut-outs of the training are.

    Attributes:
        heat: weight of the cross-entropy of heat maps.
        place: weight of the distance to the true places [px of the pictures].
        wide: share of the cut-outs that are ``wide_factor`` times farther off.
        middle_noise: standard deviation of their middle, per axis, of half their edge.
        size_noise: standard deviation of the logarithm of their size.
    """

    heat: float = 1.0
    place: float = 0.3
    wide: float = 0.15
    wide_factor: float = 3.0
    middle_noise: float = 0.08
    size_noise: float = 0.08


def true_points(batch: Batch, part: str) -> tuple[Tensor, Tensor]:
    """Points B x K x 3 of a part, and the middle of its cut-outs B x 3, in the base frame [m]."""
    like = batch.T_world_wrist
    B = len(like)
    if part == "base":
        points = like.new_tensor(BASE_POINTS).expand(B, -1, -1)
        return points, like.new_tensor(BASE_MIDDLE).expand(B, 3)
    points = apply(like, like.new_tensor(WRIST_KEYPOINTS))
    return points, apply(like, like.new_tensor([HAND_MIDDLE]))[:, 0]


def rough_cut_outs(
    batch: Batch, middle: Tensor, part: str, losses: LocatorLosses, generator: torch.Generator
) -> CutOuts:
    """Cut-outs BV of all views, off by noise."""
    V = batch.anchors.shape[1]
    K, T = batch.anchor_K.flatten(0, 1), batch.T_world_anchor.flatten(0, 1)
    size = (batch.anchors.shape[-2], batch.anchors.shape[-1])
    exact = around(middle.repeat_interleave(V, 0), K, T, size, part)
    N = len(exact.half)
    wide = torch.rand(N, generator=generator) < losses.wide
    far = torch.where(wide, losses.wide_factor, 1.0)
    shift = torch.randn(N, 2, generator=generator) * (losses.middle_noise * far)[:, None]
    grown = torch.randn(N, generator=generator) * losses.size_noise * far
    return CutOuts(exact.middle + shift * exact.half[:, None], exact.half * grown.exp())


def _located(
    net: nn.Module, batch: Batch, part: str, losses: LocatorLosses, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean loss of the heat maps; errors [px of the pictures], stated deviations, and whether each
    point is in its cut-out, BV x K."""
    points, middle = true_points(batch, part)
    cuts = rough_cut_outs(batch, middle, part, losses, generator)
    peaks = net(batch.anchors.flatten(0, 1), cuts, part)
    pixels, depth = project(points, batch.anchor_K, batch.T_world_anchor)
    pixels, depth = pixels.flatten(0, 1), depth.flatten(0, 1)
    size = peaks.grid[0] * peaks.cell
    scale = (size / (2 * cuts.half))[:, None, None]
    local = (pixels - cuts.middle[:, None] + cuts.half[:, None, None]) * scale
    heat, inside = heat_loss(peaks, local, depth > 0.05)
    found, sigma = in_pictures(peaks, cuts, int(size))
    return heat.mean(), (found - pixels).norm(dim=-1), sigma, inside


def locator_loss(
    net: nn.Module, batch: Batch, losses: LocatorLosses, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss over both parts, and figures to log."""
    total = torch.zeros(())
    figures = {}
    for part in PARTS:
        heat, error, _, inside = _located(net, batch, part, losses, generator)
        place = (error.clamp_max(40.0) * inside).sum() / inside.sum().clamp_min(1)
        total = total + losses.heat * heat + losses.place * place
        figures[f"{part}_px"] = place.item()
    return total, figures


@torch.no_grad()
def evaluate_locator(
    model: nn.Module, data: ShardSet, every: int = 1, size: int = 16
) -> dict[str, float]:
    """Errors over every ``every``-th frame of ``data``, of cut-outs as rough as in training.

    Returns:
        Per part the median error [px of the pictures], its 90th percentile, and the factor that
        stated standard deviations have to be multiplied by.
    """
    model.eval()
    losses = LocatorLosses()
    generator = torch.Generator().manual_seed(0)
    errors: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    ratios: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    index = np.arange(0, len(data), every)
    for start in range(0, len(index), size):
        batch = data.batch(index[start : start + size], np.arange(3))
        for part in PARTS:
            _, error, sigma, inside = _located(model, batch, part, losses, generator)
            errors[part].append(error[inside])
            ratios[part].append((error / sigma)[inside])
    out = {}
    for part in PARTS:
        error = torch.cat(errors[part])
        out[f"{part}/px_median"] = error.median().item()
        out[f"{part}/px_p90"] = error.quantile(0.9).item()
        # The median of a Rayleigh distribution is 1.177 of its sigma.
        out[f"{part}/sigma_factor"] = torch.cat(ratios[part]).median().item() / 1.177
    return out


def locator_step(
    net: nn.Module, data: ShardSet, size: int, losses: LocatorLosses, generator: torch.Generator
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one random batch of ``size`` frames."""
    index = torch.randint(len(data), (size,), generator=generator).numpy()
    batch = coloured(data.batch(index, np.arange(3)), generator)
    return locator_loss(net, batch, losses, generator)
