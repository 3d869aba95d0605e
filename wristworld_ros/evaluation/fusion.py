"""How fast and how well the pose source ``fused`` finds a mount that is wrong by a known amount."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.transforms import invert, pose_error
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.bundle import ErrorModel, Prior, Source, WristObservation
from wristworld_ros.reconstruction.calibration_file import MOUNT
from wristworld_ros.reconstruction.fused_pose import FusedPose
from wristworld_ros.reconstruction.fusion import MountEstimator
from wristworld_ros.reconstruction.hand_eye import difference, perturb
from wristworld_ros.reconstruction.heads import WRIST_KEYPOINTS
from wristworld_ros.reconstruction.sights import observe
from wristworld_ros.types import FloatArray

#: How far the first mount is off [m, rad].
START = (0.02, float(np.deg2rad(4.0)))
#: How far a known mount is off [m, rad].
KNOWN = (0.002, float(np.deg2rad(0.5)))
#: The error is reported after so many frames.
AFTER = (1, 5, 15, 30, 60)
#: Share of the errors that the stated bound should hold.
LEVEL = 0.9


def wrong_mount(mount: FloatArray, seed: int, size: tuple[float, float] = START) -> Prior:
    """``mount`` moved by ``size`` [m, rad] in a direction drawn by ``seed``, and its sigma."""
    directions = np.random.default_rng(seed).normal(size=(2, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    start = perturb(mount, np.concatenate([directions[0] * size[0], directions[1] * size[1]]))
    root = float(np.sqrt(3))  # from the length of the vector to each of its axes
    return Prior.from_sigma(start, (size[0] / root, size[1] / root))


def share_inside(
    errors: Sequence[NDArray] | NDArray,
    covariances: Sequence[NDArray] | NDArray,
    level: float = LEVEL,
) -> float:
    """Share of errors inside the ellipsoid that should hold ``level`` of them; NaN for none.

    Args:
        errors: N x d, true minus estimated.
        covariances: N x d x d, as stated.
    """
    if len(errors) != len(covariances):
        raise InvalidInputError(f"{len(errors)} errors but {len(covariances)} covariances.")
    if not 0 < level < 1:
        raise InvalidInputError(f"level {level} must lie in (0, 1).")
    if not len(errors):
        return float("nan")
    e, C = np.asarray(errors, np.float64), np.asarray(covariances, np.float64)
    squared = np.einsum("ni,ni->n", e, np.linalg.solve(C, e[..., None])[..., 0])
    return float((squared <= chi2.ppf(level, e.shape[1])).mean())


def evaluate_fusion(
    split: str,
    seeds: Iterable[int],
    *,
    reconstructor: Reconstructor | None = None,
    model: str | None = None,
    frames: int = 60,
    anchors: int | None = None,
    errors: ErrorModel | None = None,
) -> dict[str, Any]:
    """Mount error against the number of frames, over simulated episodes with calibrated anchors.

    Args:
        split, seeds: which episodes; each starts from a mount that is off by ``START``.
        reconstructor: whose network to use; else that of ``model``, else the shipped one.
        frames: per episode, evenly spread; short episodes have fewer, and their last frame counts
            for all later ones.
        anchors: number of views; all when None.
        errors: what errors the estimator expects.

    Returns:
        ``frames`` -> median and p90 of ``mm`` and ``deg``, and ``inside``, the share inside the
        stated bound of ``LEVEL``; ``kept``, the mean number of frames in the window at the end;
        ``refused``, episodes without an estimate; ``false_bumps``; ``lasting``, the RMS over
        episodes and cameras of the keypoints' lasting error at the true mount, in stated sigmas
        (measured on val, it is what ``ErrorModel.lasting`` should be).
    """
    reconstructor = reconstructor or Reconstructor.from_pretrained(model, pose_source="learned")
    after = _counts(frames)
    changes: dict[int, list[FloatArray]] = {n: [] for n in after}
    covariances: dict[int, list[FloatArray]] = {n: [] for n in after}
    kept, refused, bumps = [], 0, 0
    lasting: list[float] = []
    for seed in tqdm(list(seeds), desc=f"fused {split}", unit="episode", mininterval=2.0):
        episode = simulate_episode(seed, split, n_frames=frames)
        truth = episode.T_hand_wrist
        fused = FusedPose(wrong_mount(truth, seed), errors=errors)
        observations = []
        for ends, seen, estimator in _watched(episode, reconstructor, fused, anchors, after):
            observations.append(seen)
            for n in ends:
                estimate = estimator.estimate()
                changes[n].append(difference(estimate.T_hand_wrist, truth))
                covariances[n].append(estimate.covariance)
        known = dict(zip(episode.anchor_names, episode.T_world_camera, strict=True))
        for name in observations[0].sights:
            source = Source(name, observations, np.array(WRIST_KEYPOINTS))
            lasting += lasting_error(source, {MOUNT: truth, **known})
        assert fused.estimator is not None
        kept.append(fused.estimator.estimate().frames)
        refused += bool(fused.estimator.estimate().reason)
        bumps += len(fused.estimator.bumps)
    return {
        **{str(n): _summary(changes[n], covariances[n]) for n in after},
        "kept": float(np.mean(kept)) if kept else float("nan"),
        "refused": refused,
        "false_bumps": bumps,
        "lasting": float(np.sqrt(np.mean(np.square(lasting)))) if lasting else float("nan"),
    }


def evaluate_placing(
    split: str,
    seeds: Iterable[int],
    *,
    reconstructor: Reconstructor | None = None,
    model: str | None = None,
    frames: int = 30,
    anchors: int | None = None,
) -> dict[str, Any]:
    """How well anchors are placed that nothing gives a pose of, by the known motion of the hand.

    Their intrinsics are known, and the mount as well as URDFs usually know it (``KNOWN``).

    Args:
        split, seeds, reconstructor, model, frames, anchors: see ``evaluate_fusion``.

    Returns:
        ``frames`` -> share of the anchors that are ``placed`` by then, and of those the median and
        p90 of the error of the wrist camera's pose in the anchor's frame, ``mm`` and ``deg``.
    """
    reconstructor = reconstructor or Reconstructor.from_pretrained(model, pose_source="learned")
    after = _counts(frames)
    errors: dict[int, list[tuple[float, float]]] = {n: [] for n in after}
    total = 0
    for seed in tqdm(list(seeds), desc=f"placing {split}", unit="episode", mininterval=2.0):
        episode = simulate_episode(seed, split, n_frames=frames)
        fused = FusedPose(wrong_mount(episode.T_hand_wrist, seed, KNOWN))
        known = dict(zip(episode.anchor_names, episode.T_world_camera, strict=True))
        total += len(known) if anchors is None else anchors
        moments = _watched(episode, reconstructor, fused, anchors, after, placed=False)
        for t, (ends, seen, estimator) in enumerate(moments):
            for n in ends:
                wrist, _ = estimator.estimate().wrist_pose(seen.T_base_hand)
                true_wrist = episode.T_world_wrist[t]
                for name in fused.placed:
                    T = invert(estimator.estimate().cameras[name]) @ wrist
                    errors[n].append(pose_error(T, invert(known[name]) @ true_wrist))
    out: dict[str, Any] = {}
    for n in after:
        found: dict[str, Any] = {"placed": len(errors[n]) / max(total, 1)}
        if errors[n]:
            metres, radians = np.transpose(errors[n])
            found["mm"], found["deg"] = _spread(1e3 * metres), _spread(np.rad2deg(radians))
        out[str(n)] = found
    return out


def _counts(frames: int) -> list[int]:
    return sorted({n for n in AFTER if n < frames} | {frames})


def _watched(
    episode: SimulatedEpisode,
    reconstructor: Reconstructor,
    fused: FusedPose,
    anchors: int | None,
    after: Sequence[int],
    placed: bool = True,
) -> Iterator[tuple[list[int], WristObservation, MountEstimator]]:
    """Every moment: which counts of ``after`` end with it, what was seen, and the estimator."""
    views = range(len(episode.anchor_names) if anchors is None else anchors)
    names = [episode.anchor_names[v] for v in views]
    for t in range(len(episode)):
        frame = restrict(episode.anchor_frame(t), "kinematic", views)
        hand, shown = episode.T_world_hand[t], frame.views
        if not placed:
            shown = tuple(replace(v, T_world_camera=None) for v in shown)
        frame = fused.place(replace(frame, T_world_wrist=hand, views=shown))
        seen = observe(reconstructor.predict(frame), names, hand, frame.stamp_ns)
        fused.wrist_pose(frame, seen)
        last = t == len(episode) - 1
        assert fused.estimator is not None
        yield [n for n in after if n == t + 1 or (last and n > t + 1)], seen, fused.estimator


def lasting_error(source: Source, poses: Mapping[str, FloatArray]) -> list[float]:
    """RMS over points of the median error over frames, in stated sigmas; none if none was seen."""
    error = source.residuals(poses)[0]
    often = source.seen.sum(0) >= max(1, len(error) // 2)
    if not often.any():
        return []
    error = np.where(source.seen[..., None], error, np.nan)[:, often]
    return [float(np.sqrt(np.mean(np.nanmedian(error, axis=0) ** 2)))]


def _summary(changes: list[FloatArray], covariances: list[FloatArray]) -> dict[str, Any]:
    if not changes:
        return {"episodes": 0}
    d = np.array(changes)
    return {
        "episodes": len(d),
        "mm": _spread(1e3 * np.linalg.norm(d[:, :3], axis=1)),
        "deg": _spread(np.rad2deg(np.linalg.norm(d[:, 3:], axis=1))),
        "inside": share_inside(d, covariances),
    }


def _spread(values: NDArray) -> dict[str, float]:
    return {"median": float(np.median(values)), "p90": float(np.percentile(values, 90))}
