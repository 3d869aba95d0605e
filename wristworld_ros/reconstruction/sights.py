"""What stage 1 saw of the wrist camera, as observations for the pose source ``fused``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wristworld_ros.reconstruction.bundle import KeypointSight, WristObservation
from wristworld_ros.reconstruction.model import Stage1Output
from wristworld_ros.types import FloatArray

#: Points that are less probably in the picture than this were not seen.
MIN_VISIBLE = 0.3


def observe(
    output: Stage1Output, names: Sequence[str], T_base_hand: FloatArray, stamp_ns: int
) -> WristObservation:
    """The wrist keypoints in the cut-outs of every view of one moment (batch of 1).

    Args:
        output: of the network; the intrinsics of the views were known to it.
        names: of the views, in order.
        T_base_hand: 4 x 4 pose of the hand at ``stamp_ns`` [ns].
    """
    peaks = output.close.peaks
    pixels = peaks.pixels[0].double().cpu().numpy()
    visible = peaks.visible[0].double().cpu().numpy()
    sigma = peaks.sigma[0].double().cpu().numpy() / np.sqrt(np.maximum(visible, 1e-3))
    sigma = np.where(visible >= MIN_VISIBLE, sigma, np.inf)
    K = output.crop_K[0].double().cpu().numpy()
    sights = {name: KeypointSight(pixels[v], sigma[v], K[v]) for v, name in enumerate(names)}
    return WristObservation(stamp_ns, T_base_hand, sights)
