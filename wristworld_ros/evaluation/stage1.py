"""How right stage 1 is, and how right it is about itself: pose, depth, condition map, confidence.

Every figure is measured against the truth of a simulated episode, or against as much of it as a
recording has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr
from tqdm import tqdm

from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames, WristTruth
from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.errors import BagError, InvalidInputError
from wristworld_ros.evaluation.baselines import flat_colour, inpainted_splat, mean_colour
from wristworld_ros.evaluation.fusion import share_inside, wrong_mount
from wristworld_ros.evaluation.metrics import fit_truth, pose_error_mm_deg
from wristworld_ros.evaluation.robots import robot_of, simulated_robot
from wristworld_ros.evaluation.scores import NEAR, Means, regions, score_frame, spread
from wristworld_ros.evaluation.steadiness import Moment, Truth, steadiness, true_map, true_pose
from wristworld_ros.geometry.camera import pixel_rays, project, rectify
from wristworld_ros.geometry.depth_fusion import expected_error
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.types import (
    AnchorFrame,
    AnchorView,
    CameraModel,
    FloatArray,
    Reconstruction,
)

#: What stage 1 is told: the kinds of ``data.knowledge``, and ``fused``: calibration, and kinematics
#: with a mount that is off (``evaluation.fusion.START``).
KINDS = ("true", "robot", "kinematic", "calibrated", "estimated", "fused")
#: A pixel of the condition map is wrong when its depth is farther off than this (relative).
WRONG = 0.05
#: Points this close to the base plane z = 0 are the table's, those above it and nearer to the base
#: than ``WORKSPACE`` stand on it, the others are far [m].
TABLE_HEIGHT, WORKSPACE = 0.01, 1.2
#: The pixels of a frame that go into the calibration of confidence, per view.
SAMPLES = 512
#: Shares of errors that pose bounds are checked at.
LEVELS = (0.5, 0.9)
#: A bag's wrist pictures are scored at no more than this many pixels a side.
LARGEST_SIDE = 256


def kind_of(source: str, calibrated: bool) -> str:
    """The kind of ``KINDS`` that a pose source and known anchor calibration stand for.

    Raises:
        InvalidInputError: no such source.
    """
    if source == "auto":
        return "kinematic" if calibrated else "estimated"
    if source == "learned":
        return "calibrated" if calibrated else "estimated"
    if source in ("kinematic", "fused"):
        return source
    raise InvalidInputError(f"pose source '{source}' is none of auto, kinematic, learned, fused.")


class Stage1Scores:
    """Collects the scores of frames; ``summary`` gives their means and distributions."""

    def __init__(self) -> None:
        self._lists: dict[str, list[float]] = defaultdict(list)
        self._pictures = Means()
        self._depth: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._samples: list[NDArray] = []
        self._pose_errors: list[FloatArray] = []
        self._covariances: list[FloatArray] = []
        self._drawn: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(
        self,
        result: Reconstruction,
        truth: Truth,
        depths: Sequence[NDArray],
        confidences: Sequence[NDArray],
    ) -> None:
        """Score one frame.

        Args:
            depths, confidences: per view H x W predicted depth [m] and confidence in [0, 1].
        """
        self._lists["coverage"].append(result.condition.coverage)
        pose = true_pose(result, truth)
        if pose is not None:
            self._add_pose(result, pose)
        for view, depth, confidence in zip(truth.anchors.views, depths, confidences, strict=True):
            if view.depth is not None:
                self._add_depth(truth, view, depth, confidence)
        if truth.image is not None:
            self._add_pictures(result, truth)
        if truth.depth is not None and result.condition.depth.shape == truth.depth.shape:
            drawn, true = result.condition.depth, truth.depth
            both = result.condition.mask & (true > 0)
            wrong = both & (np.abs(drawn - true) > WRONG * true)
            for name, part in {"all": both, "near": both & (true < NEAR)}.items():
                self._drawn[name][0] += int((wrong & part).sum())
                self._drawn[name][1] += int(part.sum())

    def _add_pose(self, result: Reconstruction, true: FloatArray) -> None:
        estimate = result.estimate
        mm, deg = pose_error_mm_deg(estimate.T_world_wrist, true)
        self._lists["pose_mm"].append(mm)
        self._lists["pose_deg"].append(deg)
        turn = Rotation.from_matrix(estimate.T_world_wrist[:3, :3] @ true[:3, :3].T).as_rotvec()
        off = np.concatenate([estimate.T_world_wrist[:3, 3] - true[:3, 3], turn])
        self._pose_errors.append(off)
        self._covariances.append(estimate.covariance)

    def _add_depth(
        self, truth: Truth, view: AnchorView, depth: NDArray, confidence: NDArray
    ) -> None:
        assert view.depth is not None
        true, camera = view.depth, view.camera
        if camera is not None:
            true, camera = rectify(true, camera)
        true = np.nan_to_num(true, posinf=0.0)
        size = (true.shape[1], true.shape[0])
        # Inverse depth is linear over planes in the image, depth is not.
        predicted = 1 / cv2.resize(1 / depth.astype(np.float32), size)
        error = np.abs(predicted - true) / np.where(true > 0, true, 1)
        for name, part in _classes(true, camera, view.T_world_camera, truth).items():
            self._depth[name][0] += float(error[part].sum())
            self._depth[name][1] += int(part.sum())
        expected = expected_error(np.maximum(cv2.resize(confidence.astype(np.float32), size), 0))
        known = np.flatnonzero(true > 0)
        chosen = known[:: (len(known) // SAMPLES) | 1]  # odd: no column of the picture repeats
        self._samples.append(np.stack([expected.ravel()[chosen], error.ravel()[chosen]]))

    def _add_pictures(self, result: Reconstruction, truth: Truth) -> None:
        assert truth.image is not None
        condition = result.condition
        h, w = condition.mask.shape
        image = fit_truth(truth.image, w, h)
        mean = mean_colour(truth.anchors.views)
        pictures = {"splat_estimated": inpainted_splat(condition.image, condition.mask, mean)}
        ideal = true_map(truth)
        if ideal is not None and ideal.mask.shape == (h, w):
            pictures["splat_true"] = inpainted_splat(ideal.image, ideal.mask, mean)
        pictures["mean_colour"] = inpainted_splat(condition.image, np.zeros((h, w), bool), mean)
        pictures["flat_colour_oracle"] = flat_colour(image)
        depth = truth.depth
        parts = {"covered": condition.mask, "holes": ~condition.mask}
        if depth is not None and depth.shape == (h, w):
            parts = regions(condition.mask, depth)
        self._pictures.add(score_frame(pictures, image, parts, with_lpips=False))

    def add_step(self, before: Moment, after: Moment) -> None:
        """Score what happens between two consecutive frames (``steadiness``)."""
        for name, value in steadiness(before, after).items():
            self._lists[name].append(value)

    def summary(self) -> dict[str, Any]:
        """See ``evaluate_stage1``; what could not be scored is left out."""
        out: dict[str, Any] = {"frames": len(self._lists["coverage"])}
        if scores := self._pictures.summary():
            out["scores"] = scores
        for name in ("pose_mm", "pose_deg", "coverage"):
            if (values := spread(self._lists[name])) is not None:
                out[name] = values
        if self._pose_errors:
            errors, covariances = np.array(self._pose_errors), np.array(self._covariances)
            out["pose_bounds"] = {
                name: {
                    f"{level:.0%}": share_inside(errors[:, i], covariances[:, i, i], level)
                    for level in LEVELS
                }
                for name, i in {"translation": slice(0, 3), "rotation": slice(3, 6)}.items()
            }
        if self._depth:
            out["depth"] = {
                name: {"abs_rel": total / count, "pixels": int(count)}
                for name, (total, count) in self._depth.items()
                if count
            }
            out["confidence"] = reliability(*np.concatenate(self._samples, 1))
        if self._drawn["all"][1]:
            out["wrong_share"] = {n: a / b for n, (a, b) in self._drawn.items() if b}
        steps = {n: spread(self._lists[n]) for n in _STEPS if self._lists[n]}
        if steps:
            out["stability"] = steps
            flicker, ideal = steps.get("flicker_estimated"), steps.get("flicker_true")
            if flicker and ideal and ideal["mean"] > 0:
                out["stability"]["flicker_ratio"] = flicker["mean"] / ideal["mean"]
        return out


_STEPS = ("jitter_mm", "jitter_deg", "motion_mm", "flicker_estimated", "flicker_true")


def _classes(
    depth: NDArray, camera: CameraModel | None, T: FloatArray | None, truth: Truth
) -> dict[str, NDArray[np.bool_]]:
    """Which pixels of a view show what: H x W each."""
    known = depth > 0
    out = {"all": known}
    if camera is None or T is None:
        return out
    points = apply(T, pixel_rays(camera) * depth[..., None])
    here = np.hypot(points[..., 0], points[..., 1]) < WORKSPACE
    height = points[..., 2]
    out["table"] = known & here & (np.abs(height) < TABLE_HEIGHT)
    out["above"] = known & here & (height >= TABLE_HEIGHT)
    out["far"] = known & ~out["table"] & ~out["above"]
    if truth.T_world_wrist is not None and truth.camera is not None:
        pixels, z = project(apply(invert(truth.T_world_wrist), points.reshape(-1, 3)), truth.camera)
        size = [truth.camera.width, truth.camera.height]
        seen = (z > 0) & (z < NEAR) & ((pixels >= 0) & (pixels < size)).all(1)
        out["near"] = known & seen.reshape(known.shape)
    return out


def reliability(expected: NDArray, actual: NDArray, bins: int = 10) -> dict[str, Any]:
    """How well expected errors foretell actual ones.

    Args:
        expected, actual: N relative depth errors.
        bins: of equal numbers of pixels, by expected error.

    Returns:
        ``rank_correlation`` (Spearman; None when one of them is constant), ``expected`` and
        ``actual`` (means), and ``table``: expected and actual mean error per bin and its pixels.
    """
    order = np.argsort(expected, kind="stable")
    table = [
        {
            "expected": float(expected[part].mean()),
            "actual": float(actual[part].mean()),
            "pixels": len(part),
        }
        for part in np.array_split(order, bins)
        if len(part)
    ]
    constant = len(expected) < 2 or np.ptp(expected) == 0 or np.ptp(actual) == 0
    return {
        "rank_correlation": None if constant else float(spearmanr(expected, actual)[0]),
        "expected": float(np.mean(expected)),
        "actual": float(np.mean(actual)),
        "table": table,
    }


# --- drivers --------------------------------------------------------------------------------------


def evaluate_stage1(
    split: str,
    seeds: Iterable[int],
    *,
    kinds: Sequence[str] = ("robot", "kinematic", "calibrated", "estimated"),
    anchors: int | None = None,
    frames: int = 6,
    sequences: int = 3,
    model: str | None = None,
) -> dict[str, Any]:
    """Score stage 1 over simulated episodes.

    Args:
        split, seeds: which episodes.
        kinds: of ``KINDS``, what stage 1 is told; each is scored apart.
        anchors: number of views; all when None.
        frames: per episode, evenly spread over it.
        sequences: steadiness is measured on all frames, in order, of this many of the episodes.
        model: folder of the weights; the shipped ones when None.

    Returns:
        kind -> ``pose_mm``, ``pose_deg`` (mean, median, p90, max), ``pose_bounds`` (share of errors
        inside the stated 50 % and 90 % bounds), ``depth`` (class of pixel -> ``abs_rel``),
        ``coverage``, ``wrong_share`` (of the drawn pixels, those more than 5 % off the true depth),
        ``scores`` (picture -> metric -> mean), ``confidence`` (``reliability``), ``stability``.
    """
    if unknown := set(kinds) - set(KINDS):
        raise InvalidInputError(f"{sorted(unknown)} is none of {', '.join(KINDS)}.")
    reconstructors = {kind: _reconstructor(model, kind) for kind in kinds}
    scores = {kind: Stage1Scores() for kind in kinds}
    seeds = sorted(seeds)

    def play(episode: SimulatedEpisode, kind: str) -> _Moments:
        if kind == "fused":  # it remembers what it saw
            reconstructors[kind] = _reconstructor(model, kind)
        reconstructors[kind].robot = simulated_robot(episode.robot) if kind == "robot" else None
        return _moments(episode, kind, anchors, reconstructors[kind])

    for seed in tqdm(seeds, desc=split, unit="episode", mininterval=2.0):
        episode = simulate_episode(seed, split, n_frames=frames)
        for kind in kinds:
            for result, truth, told in play(episode, kind):
                depth = reconstructors[kind].predict_depth(told, result.estimate)
                scores[kind].add(result, truth, *depth)
    for seed in tqdm(seeds[:sequences], desc="every frame", unit="episode", mininterval=2.0):
        episode = simulate_episode(seed, split)
        for kind in kinds:
            for before, after in pairwise(play(episode, kind)):
                scores[kind].add_step(before[:2], after[:2])
    return {kind: score.summary() for kind, score in scores.items()}


def evaluate_stage1_bag(
    path: str | Path,
    *,
    source: str = "auto",
    calibrated: bool = False,
    anchors: int | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Score stage 1 over a recording, by what the recording knows.

    The truth is: the wrist camera's pose from TF and its pictures from ``wrist_true``, and the
    anchors' recorded depth, which stage 1 is not given.

    Args:
        path: the bag.
        source, calibrated: what stage 1 is told (``kind_of``).
        anchors: number of views; all when None.
        model: folder of the weights; the shipped ones when None.

    Returns:
        ``results``: kind -> scores as of ``evaluate_stage1``; ``unscored``: score -> why it is
        missing; ``notes``: what of the bag could not be used.

    Raises:
        BagError: no frame can be made, or ``calibrated`` is asked of a bag that is not.
        CalibrationError: a kinematic pose is asked for and the bag has none.
    """
    kind = kind_of(source, calibrated)
    reconstructor = _reconstructor(model, kind)
    scores = Stage1Scores()
    with BagReader(path) as bag:
        has_depth = any(t.endswith("/depth/image_raw") for t in bag.topics)
        source_frames = BagFrames(bag, use_depth=has_depth)
        if kind == "kinematic" and (robot := robot_of(source_frames)) is not None:
            kind, reconstructor.robot = "robot", robot
        before: Moment | None = None
        progress = tqdm(total=source_frames.expected, desc=bag.path.stem, unit="frame")
        for frame, recorded in source_frames.with_truth():
            frame = _first_views(frame, anchors)
            if kind in ("calibrated", "fused") and not frame.calibrated:
                missing = ", ".join(v.name for v in frame.views if not v.calibrated)
                raise BagError(
                    f"{bag.path}: calibrated anchors are asked for, and {missing} have no "
                    "camera_info or no TF. Leave --calibrated out."
                )
            truth = _recorded_truth(frame, recorded)
            told = replace(restrict(frame, _told(kind)), wrist_camera=truth.camera)
            result = reconstructor(told)
            scores.add(result, truth, *reconstructor.predict_depth(told, result.estimate))
            if before is not None:
                scores.add_step(before, (result, truth))
            before = result, truth
            progress.update()
        progress.close()
        if before is None:
            raise BagError(f"{bag.path}: no frame with all cameras could be made. Check the bag.")
        notes = source_frames.notes + bag.damage
    summary = scores.summary()
    return {"results": {kind: summary}, "unscored": _unscored(summary), "notes": notes}


def _unscored(summary: Mapping[str, Any]) -> dict[str, str]:
    """Score -> why a recording does not give it."""
    no_depth = "the true wrist camera's depth is not recorded"
    reasons = {
        "pose_mm": "TF does not connect the true wrist camera with the anchors' world",
        "depth": "no anchor has a depth topic",
        "confidence": "no anchor has a depth topic",
        "scores": "there is no wrist_true/image_raw",
    }
    out = {name: why for name, why in reasons.items() if name not in summary}
    if "scores" in summary and "splat_true" not in summary["scores"]:
        out["splat_true"] = "needs depth and calibration of every anchor, and the true wrist pose"
    return {**out, "wrong_share": no_depth, "flicker": no_depth, "psnr_near": no_depth}


def _recorded_truth(frame: AnchorFrame, recorded: WristTruth | None) -> Truth:
    if recorded is None:
        return Truth(frame)
    image, camera = recorded.image, recorded.camera
    if camera is not None:
        image, camera = rectify(image, camera)
        scale = min(1.0, LARGEST_SIDE / max(camera.width, camera.height))
        camera = camera.resized(round(camera.width * scale), round(camera.height * scale))
        image = fit_truth(image, camera.width, camera.height)
    return Truth(frame, recorded.T_world_camera, camera, image)


def _told(kind: str) -> str:
    return "kinematic" if kind == "fused" else kind


def _first_views(frame: AnchorFrame, anchors: int | None) -> AnchorFrame:
    if anchors is not None and not 1 <= anchors <= len(frame.views):
        raise InvalidInputError(f"{anchors} anchors; there are {len(frame.views)}.")
    return replace(frame, views=frame.views[:anchors])


def _reconstructor(model: str | None, kind: str) -> Reconstructor:
    source = kind if kind in ("kinematic", "fused") else "auto"
    return Reconstructor.from_pretrained(model, pose_source=source)


_Moments = Iterator[tuple[Reconstruction, Truth, AnchorFrame]]


def _moments(
    episode: SimulatedEpisode, kind: str, anchors: int | None, reconstructor: Reconstructor
) -> _Moments:
    """Every frame of an episode, in order: what stage 1 made of it, the truth, what it was told."""
    for t in range(len(episode)):
        full = _first_views(episode.anchor_frame(t, with_depth=True), anchors)
        truth = Truth(
            full,
            episode.T_world_wrist[t],
            episode.wrist_camera,
            episode.wrist_rgb[t],
            episode.wrist_depth[t],
        )
        told = restrict(full, _told(kind))
        if kind == "fused":
            mount = wrong_mount(episode.T_hand_wrist, episode.seed).T
            told = replace(told, T_world_wrist=episode.T_world_hand[t] @ mount)
        yield reconstructor(told), truth, told
