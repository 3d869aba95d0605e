"""Scores of both stages over simulated splits, by kind of known geometry."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from wristworld_ros.data.knowledge import GEOMETRY, restrict
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.baselines import (
    copied_view,
    cropped_view,
    flat_colour,
    inpainted_splat,
    mean_colour,
    true_condition,
)
from wristworld_ros.evaluation.metrics import fit_truth, pose_error_mm_deg
from wristworld_ros.evaluation.reliability import Reliability, ViewScores
from wristworld_ros.evaluation.robots import simulated_robot
from wristworld_ros.evaluation.scores import Means, percentiles, regions, score_frame, spread
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
    steps: Sequence[int] = (1,),
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
        steps: of the generator; with several, all but the first are scored beside it.
        seed: of the generator.
        model: folder of the weights; the shipped ones when None.
        mean_image: mean wrist picture of training, for that baseline.

    Returns:
        geometry -> ``scores`` (picture -> metric -> mean; ``previous_true`` is the frame before
        among the scored ones, which are far apart), ``pose_mm``, ``pose_deg``,
        ``coverage``, ``imagined_fraction``, ``score`` and ``domain_distance``; ``confidence`` (of
        ``Reliability``), ``view_score`` (of ``ViewScores``); and ``steps``: number of steps ->
        scores of the generated view, and ``seconds`` per frame (``percentiles``) in stage 2.
    """
    reconstructor = Reconstructor.from_pretrained(model)
    generators = {n: Generator.from_pretrained(model, steps=n, seed=seed) for n in steps}
    tallies = {g: _Tally() for g in geometries}
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
                made = {n: make(result.condition, frame) for n, make in generators.items()}
                pictures = _pictures(episode, t, frame, result, mean_image)
                tallies[g].add(episode, t, result, made, pictures, lpips)
    return {g: tally.summary() for g, tally in tallies.items()}


class _Tally:
    """What adds up over the frames of one kind of geometry."""

    def __init__(self) -> None:
        self.means = Means()
        self.trust, self.view_scores = Reliability(), ViewScores()
        self.values: dict[str, list[float]] = defaultdict(list)
        self.seconds: dict[int, list[float]] = defaultdict(list)

    def add(
        self,
        episode: SimulatedEpisode,
        t: int,
        result: Reconstruction,
        made: Mapping[int, WristFrame],
        pictures: Mapping[str, Image],
        lpips: bool,
    ) -> None:
        """Add one frame: ``made`` maps steps -> view, ``pictures`` are the baselines."""
        truth = episode.wrist_rgb[t]
        first = next(iter(made.values()))
        for n, view in made.items():
            self.seconds[n].append(sum(view.latency.values()))
        compared = {_name(n, made): view.image for n, view in made.items()}
        parts = regions(result.condition.mask, episode.wrist_depth[t], first.confidence)
        scores = score_frame({**compared, **pictures}, truth, parts, with_lpips=lpips)
        self.means.add(scores)
        self.trust.add(first.confidence, first.image, truth)
        self.view_scores.add(first.score, first.image, truth, scores["generated"])
        mm, deg = pose_error_mm_deg(*in_first_anchor(episode, t, result))
        for name, value in {
            "pose_mm": mm,
            "pose_deg": deg,
            "coverage": result.condition.coverage,
            "imagined_fraction": first.imagined_fraction,
            "score": first.score,
            "domain_distance": result.estimate.domain_distance,
        }.items():
            self.values[name].append(value)

    def summary(self) -> dict[str, Any]:
        """As of ``evaluate_split``."""
        scores = self.means.summary()
        steps = {
            str(n): {
                **(scores["generated"] if i == 0 else scores.pop(f"steps_{n}")),
                "seconds": percentiles(self.seconds[n]),
            }
            for i, n in enumerate(self.seconds)
        }
        return {
            "scores": scores,
            "confidence": self.trust.summary(),
            "view_score": self.view_scores.summary(),
            "steps": steps,
            **{k: spread(v) for k, v in self.values.items()},
        }


def _name(steps: int, made: Mapping[int, WristFrame]) -> str:
    return "generated" if steps == next(iter(made)) else f"steps_{steps}"


def _pictures(
    episode: SimulatedEpisode,
    t: int,
    frame: AnchorFrame,
    result: Reconstruction,
    mean_image: Image | None,
) -> dict[str, Image]:
    """What a generated view of this frame has to beat."""
    truth = episode.wrist_rgb[t]
    h, w = truth.shape[:2]
    condition = result.condition
    full = episode.anchor_frame(t, with_depth=True)
    full = replace(full, views=full.views[: len(frame.views)])
    true_map = true_condition(full, episode.T_world_wrist[t], episode.wrist_camera)
    assert true_map is not None
    mean = mean_colour(frame.views)
    pictures = {
        "splat_estimated": inpainted_splat(condition.image, condition.mask, mean),
        "splat_true": inpainted_splat(true_map.image, true_map.mask, mean),
        "copied_view": copied_view(frame.views[0], w, h),
        "cropped_view": cropped_view(frame.views[0], w, h),
        "flat_colour_oracle": flat_colour(truth),
    }
    if mean_image is not None:
        pictures["mean_image"] = fit_truth(mean_image, w, h)
    if t > 0:
        pictures["first_true"] = episode.wrist_rgb[0]
        pictures["previous_true"] = episode.wrist_rgb[t - 1]
    return pictures
