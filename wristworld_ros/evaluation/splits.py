"""Scores of both stages over simulated splits, by kind of known geometry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from wristworld_ros.data.knowledge import GEOMETRY, restrict
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.baselines import (
    cropped_view,
    flat_colour,
    inpainted_splat,
    mean_colour,
    true_condition,
)
from wristworld_ros.evaluation.metrics import fit_truth, pose_error_mm_deg
from wristworld_ros.evaluation.reliability import Reliability
from wristworld_ros.evaluation.robots import simulated_robot
from wristworld_ros.evaluation.scores import Means, regions, score_frame, spread
from wristworld_ros.generation import Generator
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.types import AnchorFrame, Image, Reconstruction, WristFrame


def in_first_anchor(episode: SimulatedEpisode, t: int, result: Reconstruction) -> tuple[Any, Any]:
    """Estimated and true wrist pose in one frame: the robot's base, or the first anchor's."""
    truth = episode.T_world_wrist[t]
    if result.world_frame != "base_link":
        truth = np.linalg.inv(episode.T_world_camera[0]) @ truth
    return result.estimate.T_world_wrist, truth


def evaluate_split(
    split: str,
    seeds: Iterable[int],
    *,
    geometries: Sequence[str] = GEOMETRY,
    anchors: int | None = None,
    frames: int = 6,
    steps: int = 1,
    seed: int = 0,
    model: str | None = None,
    mean_image: Image | None = None,
    lpips: bool = True,
) -> dict[str, Any]:
    """Means over ``frames`` frames of every episode.

    Args:
        split, seeds: which simulated episodes.
        geometries: of ``GEOMETRY``; each is scored apart.
        anchors: number of views; all when None.
        steps, seed: of the generator.
        model: folder of the weights; the shipped ones when None.
        mean_image: mean wrist picture of training, for that baseline.

    Returns:
        geometry -> ``scores`` (picture -> metric -> mean), ``pose_mm``, ``pose_deg``,
        ``coverage``, ``imagined_fraction``, and ``confidence`` (of ``Reliability``).
    """
    reconstructor = Reconstructor.from_pretrained(model)
    generator = Generator.from_pretrained(model, steps=steps, seed=seed)
    means = {g: Means() for g in geometries}
    trust = {g: Reliability() for g in geometries}
    values: dict[str, dict[str, list[float]]] = {
        g: {k: [] for k in ("pose_mm", "pose_deg", "coverage", "imagined_fraction")}
        for g in geometries
    }
    for number in tqdm(sorted(seeds), desc=split, unit="episode", mininterval=2.0):
        episode = simulate_episode(number, split, n_frames=frames)
        if anchors is not None and not 1 <= anchors <= len(episode.anchor_names):
            raise InvalidInputError(f"{anchors} anchors; there are {len(episode.anchor_names)}.")
        views = None if anchors is None else range(anchors)
        for t in range(len(episode)):
            for g in geometries:
                frame = restrict(episode.anchor_frame(t, with_depth=True), g, views)
                reconstructor.robot = simulated_robot(episode.robot) if g == "robot" else None
                result = reconstructor(frame)
                pose, true_pose = in_first_anchor(episode, t, result)
                mm, deg = pose_error_mm_deg(pose, true_pose)
                values[g]["pose_mm"].append(mm)
                values[g]["pose_deg"].append(deg)
                values[g]["coverage"].append(result.condition.coverage)
                scores, made = _score(episode, t, frame, result, generator, mean_image, lpips)
                means[g].add(scores)
                values[g]["imagined_fraction"].append(made.imagined_fraction)
                trust[g].add(made.confidence, made.image, episode.wrist_rgb[t])
    return {
        g: {
            "scores": means[g].summary(),
            "confidence": trust[g].summary(),
            **{k: spread(v) for k, v in values[g].items() if v},
        }
        for g in geometries
    }


def _score(
    episode: SimulatedEpisode,
    t: int,
    frame: AnchorFrame,
    result: Reconstruction,
    generator: Generator,
    mean_image: Image | None,
    lpips: bool,
) -> tuple[dict[str, dict[str, float]], WristFrame]:
    """Pictures of one frame against the truth, and the generated one."""
    truth = episode.wrist_rgb[t]
    h, w = truth.shape[:2]
    condition = result.condition
    full = episode.anchor_frame(t, with_depth=True)
    full = replace(full, views=full.views[: len(frame.views)])
    true_map = true_condition(full, episode.T_world_wrist[t], episode.wrist_camera)
    assert true_map is not None
    mean = mean_colour(frame.views)
    pictures: dict[str, Image] = {
        "splat_estimated": inpainted_splat(condition.image, condition.mask, mean),
        "splat_true": inpainted_splat(true_map.image, true_map.mask, mean),
        "cropped_view": cropped_view(frame.views[0], w, h),
        "flat_colour_oracle": flat_colour(truth),
    }
    if mean_image is not None:
        pictures["mean_image"] = fit_truth(mean_image, w, h)
    made = generator(condition, frame)
    pictures = {"generated": made.image, **pictures}
    parts = regions(condition.mask, episode.wrist_depth[t], made.confidence)
    return score_frame(pictures, truth, parts, with_lpips=lpips), made
