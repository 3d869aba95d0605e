"""Frechet video distance (Unterthiner et al. 2018, arXiv 1812.01717), offline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.i3d import I3D, SIZE
from wristworld_ros.types import FloatArray


@lru_cache(maxsize=1)
def _network() -> I3D:
    return I3D()


def video_features(video: NDArray[np.uint8]) -> FloatArray:
    """400 logits of I3D for one video, T x H x W x 3 uint8 RGB, T at least 9.

    Raises:
        WeightsError: the weights of I3D are not installed, or altered.
    """
    x = torch.from_numpy(np.ascontiguousarray(video)).permute(0, 3, 1, 2).float()
    x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=False) / 127.5 - 1
    with torch.inference_mode():
        return _network()(x.transpose(0, 1)[None])[0].double().numpy()


def frechet_distance(a: Sequence[FloatArray], b: Sequence[FloatArray]) -> float:
    """Squared Frechet distance of the normal distributions with the means and covariances of two
    sets of features; 0 for equal sets.

    It is biased upwards for few samples: compare values of equally many. The trace of the root of
    the covariances' product is the nuclear norm of the product of the centred samples, which needs
    no root of a matrix of less than full rank.

    Args:
        a, b: features of at least two videos each.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise InvalidInputError(
            f"Frechet distance of features {x.shape} and {y.shape}; need two videos or more each, "
            "and as many features."
        )
    cx, cy = (z - z.mean(0) for z in (x, y))
    spread = np.square(cx).sum() / (len(x) - 1) + np.square(cy).sum() / (len(y) - 1)
    shared = np.linalg.norm(cx @ cy.T, "nuc") / np.sqrt((len(x) - 1) * (len(y) - 1))
    distance = np.square(x.mean(0) - y.mean(0)).sum() + spread - 2 * shared
    return max(0.0, float(distance))
