"""Points found as heat maps: where each is in a picture, how surely, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: Standard deviation of the target heat maps [cells].
TARGET_SIGMA = 1.0
#: Smallest standard deviation of a located point [cells].
MIN_SIGMA = 0.1


@dataclass(frozen=True)
class HeatPeaks:
    """Points located in each of several pictures.

    Attributes:
        log_heat: ... x K x (h*w + 1), log of a distribution over cells; the last entry stands for
            "not in this picture".
        pixels: ... x K x 2 [px].
        sigma: ... x K, standard deviation per axis [px], without the targets' own width.
        visible: ... x K probability that the point is in the picture.
        grid: (h, w).
        cell: edge of a cell [px].
    """

    log_heat: Tensor
    pixels: Tensor
    sigma: Tensor
    visible: Tensor
    grid: tuple[int, int]
    cell: float


def locate(logits: Tensor, absent: Tensor, cell: float) -> HeatPeaks:
    """Mean, spread and presence of each point.

    Args:
        logits: ... x K x h x w.
        absent: K logits of "not in this picture".
        cell: edge of a cell [px].
    """
    h, w = logits.shape[-2:]
    flat = logits.flatten(-2)
    none = absent.expand(flat.shape[:-1])[..., None].to(flat)
    log_heat = F.log_softmax(torch.cat([flat, none], -1), -1)
    heat = F.softmax(flat, -1)
    cells = cell_centres(h, w, cell, heat)
    pixels = heat @ cells
    variance = (heat @ cells.square() - pixels.square()).sum(-1) / 2
    floor = (MIN_SIGMA * cell) ** 2
    sigma = (variance - (TARGET_SIGMA * cell) ** 2).clamp_min(floor).sqrt()
    return HeatPeaks(log_heat, pixels, sigma, 1 - log_heat[..., -1].exp(), (h, w), cell)


def cell_centres(h: int, w: int, cell: float, like: Tensor) -> Tensor:
    """(h*w) x 2 centres (u, v) [px] of a grid of cells."""
    v, u = torch.meshgrid(
        (torch.arange(h, device=like.device, dtype=like.dtype) + 0.5) * cell,
        (torch.arange(w, device=like.device, dtype=like.dtype) + 0.5) * cell,
        indexing="ij",
    )
    return torch.stack([u, v], -1).reshape(-1, 2)


def draw(pixels: Tensor, grid: tuple[int, int], cell: float, sigma: float = TARGET_SIGMA) -> Tensor:
    """... x K x h x w Gaussians of height 1 around ... x K x 2 pixels; ``sigma`` in cells."""
    h, w = grid
    u, v = (pixels / cell - 0.5).unbind(-1)
    x = torch.arange(w, device=pixels.device, dtype=pixels.dtype)
    y = torch.arange(h, device=pixels.device, dtype=pixels.dtype)
    across = torch.exp(-0.5 * ((x - u[..., None]) / sigma) ** 2)
    down = torch.exp(-0.5 * ((y - v[..., None]) / sigma) ** 2)
    return down[..., :, None] * across[..., None, :]


def heat_loss(peaks: HeatPeaks, pixels: Tensor, in_front: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy per point against a Gaussian at the truth, or against "not in this picture".

    Args:
        peaks: ... x K.
        pixels: ... x K x 2 true places [px].
        in_front: ... x K bool: the point lies before the camera.

    Returns:
        ... x K loss, and ... x K bool: the point is in the picture.
    """
    h, w = peaks.grid
    size = pixels.new_tensor([w, h]) * peaks.cell
    inside = in_front & ((pixels > 0) & (pixels < size)).all(-1)
    target = draw(pixels, peaks.grid, peaks.cell).flatten(-2)
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-6)
    there = -(target * peaks.log_heat[..., :-1]).sum(-1)
    return torch.where(inside, there, -peaks.log_heat[..., -1]), inside
