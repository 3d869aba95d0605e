"""Scores of the wrist *video*: does it look like one, and does it hold still."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.evaluation.baselines import inpainted_splat, mean_colour
from wristworld_ros.evaluation.fvd import frechet_distance, video_features
from wristworld_ros.evaluation.robots import simulated_robot
from wristworld_ros.evaluation.steadiness import SAME_DEPTH
from wristworld_ros.generation import Generator
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.geometry.warping import warped
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.types import FloatArray, Image

#: Frames of a clip.
LENGTH = 16
TRUTH = "truth"


def flicker(video: Sequence[Image], episode: SimulatedEpisode, first: int) -> list[float]:
    """Mean absolute difference [grey levels] of consecutive pictures, the earlier one warped by
    true depth and motion, where both show the same point of a scene that stands still.

    What moves by itself (the gripper before the camera, what it holds) has another depth than it
    was to have, and is left out.

    Args:
        video: pictures of the frames from ``first`` on.
    """
    out = []
    camera = episode.wrist_camera
    for i in range(1, len(video)):
        t = first + i
        motion = invert(episode.T_world_wrist[t]) @ episode.T_world_wrist[t - 1]
        depth = episode.wrist_depth[t]
        old_depth, z = warped(episode.wrist_depth[t - 1], motion, camera, depth)
        same: NDArray[np.bool_] = (z > 0) & (np.abs(old_depth - z) < SAME_DEPTH * z)
        if same.any():
            moved, _ = warped(video[i - 1], motion, camera, depth)
            difference = np.abs(moved.astype(np.float32) - video[i]).mean(2)
            out.append(float(difference[same].mean()))
    return out


def evaluate_clips(
    split: str,
    seeds: Iterable[int],
    *,
    geometries: Sequence[str],
    anchors: int | None = None,
    steps: int = 1,
    seed: int = 0,
    model: str | None = None,
) -> dict[str, Any]:
    """Frechet video distance and flicker of streamed views, in clips of ``LENGTH`` frames at 5 Hz.

    Args:
        split, seeds: which simulated episodes; every frame counts but those of a last part that is
            too short for a clip.
        geometries, anchors, steps, seed, model: as of ``evaluate_split``.

    Returns:
        geometry -> ``clips``, their number; ``fvd``: of ``generated`` and ``splat_estimated``
        (inpainted) against the true clips; ``flicker`` [grey levels]: mean of these two and of
        ``truth``.
    """
    reconstructor = Reconstructor.from_pretrained(model)
    generator = Generator.from_pretrained(model, steps=steps, seed=seed)
    features: dict[str, dict[str, list[FloatArray]]] = {g: defaultdict(list) for g in geometries}
    steady: dict[str, dict[str, list[float]]] = {g: defaultdict(list) for g in geometries}
    true_features, true_flicker = [], []
    for number in tqdm(sorted(seeds), desc="clips", unit="episode", mininterval=2.0):
        episode = simulate_episode(number, split)
        for first in range(0, len(episode) - LENGTH + 1, LENGTH):
            truth = [episode.wrist_rgb[first + i] for i in range(LENGTH)]
            true_features.append(video_features(np.stack(truth)))
            true_flicker += flicker(truth, episode, first)
            for g in geometries:
                reconstructor.robot = simulated_robot(episode.robot) if g == "robot" else None
                videos = _clip(episode, first, g, anchors, reconstructor, generator)
                for name, video in videos.items():
                    features[g][name].append(video_features(np.stack(video)))
                    steady[g][name] += flicker(video, episode, first)
    means = {g: {n: float(np.mean(v)) for n, v in found.items()} for g, found in steady.items()}
    return {
        g: {
            "clips": len(true_features),
            "fvd": {n: frechet_distance(f, true_features) for n, f in features[g].items()},
            "flicker": {**means[g], TRUTH: float(np.mean(true_flicker))},
        }
        for g in geometries
    }


def _clip(
    episode: SimulatedEpisode,
    first: int,
    geometry: str,
    anchors: int | None,
    reconstructor: Reconstructor,
    generator: Generator,
) -> dict[str, list[Image]]:
    """Name -> pictures of one clip."""
    generator.reset()
    out: dict[str, list[Image]] = {"generated": [], "splat_estimated": []}
    views = None if anchors is None else range(anchors)
    for i in range(LENGTH):
        frame = restrict(episode.anchor_frame(first + i, with_depth=True), geometry, views)
        condition = reconstructor(frame).condition
        out["generated"].append(generator(condition, frame).image)
        mean = mean_colour(frame.views)
        out["splat_estimated"].append(inpainted_splat(condition.image, condition.mask, mean))
    return out
