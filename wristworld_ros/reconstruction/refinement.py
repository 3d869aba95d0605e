"""Estimated poses of stage 1 once more: all of them together, with what the locator finds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.geometry.transforms import orthonormal
from wristworld_ros.reconstruction.heads import BASE_LANDMARKS, WRIST_KEYPOINTS
from wristworld_ros.reconstruction.heatmaps import HeatPeaks
from wristworld_ros.reconstruction.locator import (
    BASE_MIDDLE,
    BASE_POINTS,
    HAND_MIDDLE,
    Locator,
    around,
    in_pictures,
)
from wristworld_ros.reconstruction.model import Stage1Model, Stage1Output
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
)
from wristworld_ros.reconstruction.scene_fit import PointSights, SceneFit, ScenePriors, fit_scene
from wristworld_ros.reconstruction.views import NetworkInputs
from wristworld_ros.types import FloatArray

#: What stated standard deviations are multiplied by, and the least that is added to them [px]. The
#: errors of one network in one picture go together, so that it counts as one witness, not as many.
LANDMARK_TRUST, KEYPOINT_TRUST, LOCATOR_TRUST = (3.0, 6.0), (1.0, 1.0), (1.0, 0.5)
#: How much larger errors of translation and rotation are than the fit says, on val: with known
#: anchors, and with estimated ones.
KNOWN_FACTORS, ESTIMATED_FACTORS = (1.65, 2.5), (1.45, 2.1)
#: Points that are less probably in the picture than this were not seen.
MIN_VISIBLE = 0.3
#: What stage 1's own cameras are known to, for a fit whose anchors are free.
PRIORS = ScenePriors(camera=(0.3, 0.2), log_focal=0.07)


def refine(
    model: Stage1Model, locator: Locator | None, inputs: NetworkInputs, output: Stage1Output
) -> Stage1Output:
    """The output (batch of 1) with anchors and wrist that fit all points, and depth by them.

    Anchors that are known stay as they are. Without a locator stage 1's own points decide.
    """
    known_K, known_T = (bool(k) for k in inputs.known[0])
    if known_T and locator is None:
        return output
    images, like = inputs.images, output.wrist_pose
    start = SceneFit(
        orthonormal(_numpy(output.T_base_anchor[0])),
        _numpy(output.anchor_K[0]),
        orthonormal(_numpy(decode_pose(like)[0][0])),
        np.eye(6),
        0.0,
    )
    # Stage 1 sees pictures of half the size.
    pixels = 2 * _numpy(output.landmarks.pixels[0])
    landmarks = _sights(BASE_LANDMARKS, output.landmarks, pixels, np.full(1, 2.0), LANDMARK_TRUST)
    base, wrist = [] if known_T else [landmarks], [_stage1_keypoints(output)]

    def fitted() -> SceneFit:
        return fit_scene(
            base,
            wrist,
            start.T_base_camera,
            start.K,
            start.T_base_wrist,
            free_poses=not known_T,
            free_focal=not known_K,
            priors=PRIORS,
        )

    if locator is not None:
        rough = start if known_T else fitted()
        if not known_T:
            base.append(_look(locator, images, rough, "base"))
        wrist.append(_look(locator, images, rough, "hand"))
    fit = fitted()
    anchor_K, T_base_anchor = like.new_tensor(fit.K[None]), like.new_tensor(fit.T_base_camera[None])
    T_fit = like.new_tensor(fit.T_base_wrist[None])
    output = replace(
        output,
        wrist_pose=encode_pose(T_fit, output.wrist[-1][:, 7:]),
        wrist_fits=(output.wrist_fits[-1], T_fit),
        wrist_covariance=like.new_tensor(_covariance(fit, known_T)[None]),
    )
    if known_T:
        return output
    scene = model.depth_by(output, anchor_K, T_base_anchor)
    fov = fov_from_intrinsics(anchor_K, images.shape[-2], images.shape[-1])
    return replace(
        output,
        depth=scene.depth,
        confidence=scene.confidence,
        first_depth=scene.first_depth,
        T_base_anchor=T_base_anchor,
        anchor_K=anchor_K,
        cameras=[*output.cameras, encode_pose(T_base_anchor, fov)],
    )


def _covariance(fit: SceneFit, known: bool) -> FloatArray:
    """6 x 6 of the wrist's pose in the axes of the base frame, with the factors of val."""
    turn = np.eye(3) if known else fit.T_base_camera[0][:3, :3]
    factors = KNOWN_FACTORS if known else ESTIMATED_FACTORS
    change = np.kron(np.diag(factors), turn)
    return np.asarray(change @ fit.covariance @ change.T)


def _look(locator: Locator, images: Tensor, fit: SceneFit, part: str) -> PointSights:
    """What the locator finds of a part, where the fit has it."""
    K, T, T_wrist = (images.new_tensor(x) for x in (fit.K, fit.T_base_camera, fit.T_base_wrist))
    model, middle = BASE_POINTS, images.new_tensor(BASE_MIDDLE)
    if part == "hand":
        model = WRIST_KEYPOINTS
        middle = T_wrist[:3, :3] @ images.new_tensor(HAND_MIDDLE) + T_wrist[:3, 3]
    size = (images.shape[-2], images.shape[-1])
    cuts = around(middle.expand(len(K), 3), K, T, size, part)
    peaks = locator(images[0], cuts, part)
    pixels, _ = in_pictures(peaks, cuts, locator.config.size)
    scale = _numpy(2 * cuts.half / locator.config.size)
    return _sights(model, peaks, _numpy(pixels), scale, LOCATOR_TRUST)


def _sights(
    model: Sequence[tuple[float, float, float]],
    peaks: HeatPeaks,
    pixels: FloatArray,
    scale: FloatArray,
    trust: tuple[float, float],
) -> PointSights:
    """Points at ``pixels`` of the pictures; one pixel of the peaks has ``scale`` (V) of them."""
    sigma, visible = (_numpy(x).reshape(-1, len(model)) for x in (peaks.sigma, peaks.visible))
    factor, floor = trust
    spread = np.hypot(factor * scale[:, None] * sigma, floor) / np.sqrt(np.maximum(visible, 1e-3))
    return PointSights(np.array(model), pixels, np.where(visible >= MIN_VISIBLE, spread, np.inf))


def _stage1_keypoints(output: Stage1Output) -> PointSights:
    """Stage 1's own keypoints in the whole pictures."""
    to_picture = output.anchor_K[0] @ torch.linalg.inv(output.crop_K[0])
    pixels = output.close.peaks.pixels[0] @ to_picture[:, :2, :2].mT + to_picture[:, None, :2, 2]
    scale = _numpy(to_picture[:, 0, 0])
    return _sights(WRIST_KEYPOINTS, output.close.peaks, _numpy(pixels), scale, KEYPOINT_TRUST)


def _numpy(x: Tensor) -> FloatArray:
    return np.asarray(x.double().cpu().numpy())
