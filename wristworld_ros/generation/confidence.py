"""Which pixels were measured and which were imagined, and what that says of the whole picture."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Share of imagined pixels that count as right in the score of a view: what is right on val of
#: views from pictures alone, which are imagined as a whole.
IMAGINED_RIGHT = 0.3
#: Colour difference (mean absolute, in [0, 1]) at which a kept pixel counts as half measured.
HALF_DIFFERENCE = 0.12
#: Neighbourhood [px] in which colours are compared, so that a shift of a pixel does not count.
WINDOW = 5


def measured_confidence(picture: Tensor, condition: Tensor, mask: Tensor) -> Tensor:
    """Confidence per pixel: 1 measured, 0 imagined.

    A pixel is measured as far as anchor points cover it *and* the generator kept what they showed:
    coverage of its neighbourhood times exp2(-difference / HALF_DIFFERENCE), where the difference is
    the smallest over shifts of up to 2 px.

    Args:
        picture: B x 3 x H x W generated, in [0, 1].
        condition: B x 3 x H x W condition map, in [0, 1].
        mask: B x 1 x H x W, 1 where the condition map was measured.

    Returns:
        B x H x W in [0, 1]; exactly 0 where the mask is 0.
    """
    pad = WINDOW // 2
    H, W = mask.shape[-2:]
    padded = F.pad(condition, (pad,) * 4, mode="replicate")
    known = F.pad(mask, (pad,) * 4)
    best = torch.full_like(mask, float("inf"))
    for dy in range(WINDOW):
        for dx in range(WINDOW):
            shifted = padded[..., dy : dy + H, dx : dx + W]
            difference = (picture - shifted).abs().mean(1, keepdim=True)
            there = known[..., dy : dy + H, dx : dx + W] > 0
            best = torch.minimum(best, torch.where(there, difference, torch.inf))
    coverage = F.avg_pool2d(known, WINDOW, 1)
    kept = torch.exp2(-best / HALF_DIFFERENCE)
    return (mask * coverage * kept)[:, 0]


def view_score(confidence: NDArray[np.floating]) -> float:
    """Expected share of right pixels of a picture, in [0, 1].

    Mean of the confidence, where an imagined pixel counts as ``IMAGINED_RIGHT``. On val it ranks
    pictures by PSNR and by their share of right pixels better than the plain mean, which calls a
    hole in a good picture as bad as one in a bad picture.

    Args:
        confidence: H x W in [0, 1], 0 imagined.
    """
    return float(np.where(confidence > 0, confidence, IMAGINED_RIGHT).mean())
