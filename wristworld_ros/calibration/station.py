"""Wrist camera and fixed cameras of a station, from recordings of the moving robot.

Both are found in the same way (see ``bundle``): points are tracked, a start is searched on few of
them, then the problem is solved again and again, each time with the tracks that the last solution
explains. What moves on its own (objects, cables, fingers) is left out that way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from wristworld_ros.calibration.bundle import (
    Motion,
    Sightings,
    Solution,
    solve,
    track_errors,
    triangulate,
)
from wristworld_ros.calibration.contours import align, has_outline
from wristworld_ros.calibration.recordings import Recording
from wristworld_ros.calibration.search import (
    fixed_starts,
    mount_starts,
    sample_points,
    search,
)
from wristworld_ros.calibration.tracks import (
    Tracks,
    background_shift,
    follow_points,
    moving,
    moving_masks,
    still_pixels,
)
from wristworld_ros.errors import CalibrationError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.types import FloatArray

logger = logging.getLogger(__name__)

#: A background that moves by less is that of a camera which stands still [px].
SAME_PLACE_PX = 0.75
#: Tracks that move less in the image say nothing [px].
_LEAST_MOTION_PX = 6.0
#: Tracks with a larger RMS error are not explained by robot motion, in rounds [px].
ROUNDS_PX = (5.0, 3.5, 2.5, 2.5)
#: RMS rotation of the hand about its second axis below which the mount stays open [rad].
_LEAST_TURN = np.deg2rad(2.0)


@dataclass(frozen=True)
class Accuracy:
    """Reprojection errors of points on sightings that they were not made from.

    Every second sighting of a track gives the point, the others give the error. Tracks that the
    calibration does not explain at all (RMS above the last of ``ROUNDS_PX`` with all sightings
    used) are left out and counted.

    Attributes:
        median, p90: of the errors [px].
        observations: number of errors; tracks: of tracks kept; left_out: of tracks not kept.
    """

    median: float
    p90: float
    observations: int
    tracks: int
    left_out: int


@dataclass(frozen=True)
class WristCalibration:
    """The wrist camera.

    Attributes:
        solution: ``X`` holds one pose, ``T_hand_wrist``.
        still: H x W, pixels of the gripper, where no points are taken.
    """

    solution: Solution
    still: NDArray[np.bool_]


@dataclass(frozen=True)
class FixedCalibration:
    """A fixed camera, which may have been moved between recordings.

    Attributes:
        name: of the camera.
        solution: ``X`` holds ``T_base_camera`` of each place.
        place: recording -> row of ``solution.X``.
    """

    name: str
    solution: Solution
    place: dict[str, int]


def calibrate_wrist(
    recordings: Sequence[Recording],
    *,
    aspect: float | None = None,
    free: Sequence[str] = ("focal", "k1", "latency"),
    points: int = 900,
    seed: int = 0,
) -> WristCalibration:
    """Mount and intrinsics of the wrist camera.

    Args:
        recordings: with wrist pictures of one size.
        aspect: fy / fx when known; sought when None.
        free: lens parameters that are sought, as in ``bundle.solve``.
        points: tracks that the last solution uses at most.

    Raises:
        CalibrationError: no wrist pictures, a hand that turned about one axis only, too few tracks,
            or no start that explains them.
    """
    _check_turns(recordings)
    videos = [_wrist(r) for r in recordings]
    height, width = _one_size([v.shape[1:3] for v in videos], "wrist")
    still = still_pixels(videos)
    s, motion = wrist_sightings(recordings, still)
    random = np.random.default_rng(seed)
    start = search(s, motion, mount_starts((width, height), aspect), random)
    return WristCalibration(_rounds(s, motion, start, aspect, free, points, random)[0], still)


def wrist_sightings(
    recordings: Sequence[Recording], still: NDArray[np.bool_]
) -> tuple[Sightings, Motion]:
    """Tracks of the wrist videos outside ``still``, and the motion of the hand."""
    parts, motions = [], []
    for r in recordings:
        video = _wrist(r)
        parts.append(moving(follow_points(video, [~still] * len(video)), _LEAST_MOTION_PX))
        motions.append(Motion.of(r.hand, r.period))
    return _joined(parts, [len(r) for r in recordings]), Motion.join(motions)


def calibrate_fixed(
    recordings: Sequence[Recording],
    name: str,
    *,
    aspect: float | None = None,
    free: Sequence[str] = ("focal", "k1", "latency"),
    points: int = 1200,
    seed: int = 0,
) -> FixedCalibration:
    """Intrinsics of a fixed camera and its pose in the robot's base, for every place it had.

    Tracks of moving pixels are taken for points fixed on a link of the robot: the one whose motion
    explains the track best. Where the links of a Franka arm are known, its outline then corrects
    the poses.

    Args:
        recordings: all in which the camera was at work.
        aspect, free, points: as for ``calibrate_wrist``.

    Raises:
        CalibrationError: too few tracks, or no start that explains them.
    """
    place = find_places(recordings, name)
    videos = [r.views[name] for r in recordings]
    height, width = _one_size([v.shape[1:3] for v in videos], name)
    random = np.random.default_rng(seed)
    tracks = [arm_tracks(r, name) for r in recordings]
    # The start comes from the place with the most tracks, with points on the hand only.
    counts = np.bincount([place[r.name] for r in recordings], [t.count for t in tracks])
    first = int(np.argmax(counts))
    here = [i for i, r in enumerate(recordings) if place[r.name] == first]
    s = _joined([tracks[i] for i in here], [len(recordings[i]) for i in here])
    motion = Motion.join([_link_motion(recordings[i], -1, 0) for i in here])
    solution = search(s, motion, fixed_starts((width, height), aspect), random)
    s, motion = _all_links(
        [recordings[i] for i in here], [tracks[i] for i in here], [0] * len(here)
    )
    solution, _ = _rounds(
        s, motion, solution, aspect, free, points // 2, random, links=recordings[0].bodies.shape[1]
    )
    if counts.size == 1:
        return FixedCalibration(name, _aligned(recordings, name, solution, place), place)
    # The other places start from the first one's camera.
    X = np.repeat(solution.X, counts.size, axis=0)
    for row in range(counts.size):
        if row != first:
            there = [i for i, r in enumerate(recordings) if place[r.name] == row]
            X[row] = _place_again(
                [recordings[i] for i in there], [tracks[i] for i in there], solution, random
            ).X[0]
    s, motion = _all_links(recordings, tracks, [place[r.name] for r in recordings])
    final, _ = _rounds(
        s, motion, replace(solution, X=X), aspect, free, points, random,
        links=recordings[0].bodies.shape[1], limits=ROUNDS_PX[-2:],
    )  # fmt: skip
    return FixedCalibration(name, _aligned(recordings, name, final, place), place)


def locate_fixed(recording: Recording, known: Solution, name: str, seed: int = 0) -> Solution:
    """Pose of a camera that was moved, from a recording; intrinsics and latency are kept.

    Args:
        known: intrinsics, latency, and poses of which the nearest one is the start.
    """
    tracks = [arm_tracks(recording, name)]
    found = _place_again([recording], tracks, known, np.random.default_rng(seed))
    return _aligned([recording], name, found, {recording.name: 0})


def find_places(recordings: Sequence[Recording], name: str) -> dict[str, int]:
    """Recording -> number of the place where camera ``name`` stood, by its background."""
    place: dict[str, int] = {}
    for i, r in enumerate(recordings):
        for before in recordings[:i]:
            if background_shift(r.views[name], before.views[name]) < SAME_PLACE_PX:
                place[r.name] = place[before.name]
                break
        else:
            place[r.name] = len(set(place.values()))
    return place


def wrist_accuracy(calibration: WristCalibration, recordings: Sequence[Recording]) -> Accuracy:
    """How well the wrist camera predicts tracks in recordings."""
    s, motion = wrist_sightings(recordings, calibration.still)
    return accuracy(s, motion, calibration.solution, calibration.solution.X)


def fixed_accuracy(recording: Recording, name: str, solution: Solution, X: FloatArray) -> Accuracy:
    """How well a fixed camera at ``X`` (4 x 4) predicts tracks on the arm."""
    s, motion = _all_links([recording], [arm_tracks(recording, name)], [0])
    s, _ = _assign_links(s, motion, solution, X[None], recording.bodies.shape[1])
    return accuracy(s, motion, solution, X[None])


def accuracy(s: Sightings, motion: Motion, solution: Solution, X: FloatArray) -> Accuracy:
    """Errors of predictions from every second sighting of each track; see ``Accuracy``."""
    kept = track_errors(s, motion, solution, X) < ROUNDS_PX[-1]
    if not kept.any():
        raise CalibrationError(
            f"none of {s.count} tracks agrees with the robot's motion to {ROUNDS_PX[-1]:g} px: "
            "the calibration does not belong to this recording."
        )
    used = s.points(kept)
    number = np.arange(len(used)) - np.searchsorted(used.point, used.point)
    seen = number % 2 == 0
    _, residuals = triangulate(used, motion, solution.camera, X, solution.latency, seen)
    errors = np.linalg.norm(residuals[~seen], axis=1)
    return Accuracy(
        float(np.median(errors)),
        float(np.percentile(errors, 90)),
        len(errors),
        used.count,
        s.count - used.count,
    )


def arm_tracks(recording: Recording, name: str) -> Tracks:
    """Tracks of what moves before a fixed camera."""
    video = recording.views[name]
    found = follow_points(video, list(moving_masks(video)), max_points=120, spacing=3.0)
    return moving(found, _LEAST_MOTION_PX)


# --- parts of the problem ------------------------------------------------------------------------


def _check_turns(recordings: Sequence[Recording]) -> None:
    """Raise CalibrationError unless the hand turned about two axes.

    Turning about one axis leaves the mount's translation along it open (Tsai and Lenz, 1989).
    """
    turns = []
    for r in recordings:
        rotation = Rotation.from_matrix(r.hand[:, :3, :3])
        turns.append((rotation.mean().inv() * rotation).as_rotvec())
    every = np.concatenate(turns)
    spread = np.linalg.svd(every, compute_uv=False) / np.sqrt(len(every))
    if spread[1] < _LEAST_TURN:
        raise CalibrationError(
            f"the hand turned by {np.degrees(spread[0]):.1f} deg (RMS) about one axis but "
            f"{np.degrees(spread[1]):.1f} deg about others; the mount needs "
            f"{np.degrees(_LEAST_TURN):.0f} deg. Record motion that tilts the hand."
        )


def _wrist(recording: Recording) -> NDArray[np.uint8]:
    if recording.wrist is None:
        raise CalibrationError(
            f"recording {recording.name} has no wrist pictures in every frame; leave it out."
        )
    return recording.wrist


def _one_size(sizes: Sequence[tuple[int, ...]], name: str) -> tuple[int, ...]:
    if len(set(sizes)) != 1:
        raise CalibrationError(
            f"pictures of '{name}' have the sizes {sorted(set(sizes))}; need one."
        )
    return sizes[0]


def _joined(parts: Sequence[Tracks], lengths: Sequence[int]) -> Sightings:
    """Tracks of several recordings as sightings, poses counted through."""
    points = np.cumsum([0, *(t.count for t in parts)])
    frames = np.cumsum([0, *lengths])
    return Sightings(
        np.concatenate([t.track + n for t, n in zip(parts, points, strict=False)]),
        np.concatenate([t.frame + n for t, n in zip(parts, frames, strict=False)]),
        np.concatenate([t.pixel for t in parts]),
    )


def _link_motion(recording: Recording, link: int, group: int) -> Motion:
    """Motion of the base in the frame of a link, as for points fixed there."""
    bases = np.stack([invert(T) for T in recording.bodies[:, link]])
    return Motion.of(bases, recording.period, group)


def _all_links(
    recordings: Sequence[Recording], tracks: Sequence[Tracks], groups: Sequence[int]
) -> tuple[Sightings, Motion]:
    """Sightings as if fixed on the first link; the motions of all links, one after the other."""
    links = recordings[0].bodies.shape[1]
    motions = [
        _link_motion(r, link, group)
        for link in range(links)
        for r, group in zip(recordings, groups, strict=True)
    ]
    return _joined(tracks, [len(r) for r in recordings]), Motion.join(motions)


def _assign_links(
    s: Sightings, motion: Motion, solution: Solution, X: FloatArray, links: int
) -> tuple[Sightings, FloatArray]:
    """Sightings moved to the link that explains each track best, and the RMS errors (P) there."""
    frames = len(motion.A) // links
    s = Sightings(s.point, s.pose % frames, s.pixel)
    errors = []
    for link in range(links):
        on_link = Sightings(s.point, s.pose + link * frames, s.pixel)
        errors.append(track_errors(on_link, motion, solution, X))
    best = np.argmin(errors, axis=0)
    return Sightings(s.point, s.pose + best[s.point] * frames, s.pixel), np.min(errors, axis=0)


def _rounds(
    s: Sightings,
    motion: Motion,
    solution: Solution,
    aspect: float | None,
    free: Sequence[str],
    points: int,
    random: np.random.Generator,
    *,
    links: int = 1,
    limits: Sequence[float] = ROUNDS_PX,
) -> tuple[Solution, Sightings]:
    """Solve with the tracks that the last solution explains, with more and more parameters."""
    for i, limit in enumerate(limits):
        s, rms = _assign_links(s, motion, solution, solution.X, links)
        kept = rms < max(limit, np.median(rms) if i == 0 else 0)
        if kept.sum() < 30:
            raise CalibrationError(
                f"only {int(kept.sum())} of {s.count} tracks agree with the robot's motion to "
                f"{limit:g} px. Check joint states and stamps, or record more motion."
            )
        chosen = sample_points(s.points(kept), points, random)
        early = i < len(limits) - 2
        square = solution.camera.K[1, 1] / solution.camera.K[0, 0]
        solution = solve(
            chosen, motion, solution.camera, solution.X, latency=solution.latency,
            free=[p for p in free if p in ("focal", "latency")] if early else free,
            aspect=aspect or (square if early else None), iterations=20,
        )  # fmt: skip
        logger.info(
            "%d of %d tracks below %.1f px; f %.1f px, latency %.3f s, median %.2f px",
            kept.sum(), s.count, limit, solution.camera.K[0, 0], solution.latency,
            np.median(solution.errors),
        )  # fmt: skip
    return solution, chosen


def _place_again(
    recordings: Sequence[Recording],
    tracks: Sequence[Tracks],
    known: Solution,
    random: np.random.Generator,
) -> Solution:
    """Pose of a camera with known intrinsics; the start is the best one of its known poses."""
    links = recordings[0].bodies.shape[1]
    s, motion = _all_links(recordings, tracks, [0] * len(recordings))
    on_hand = Sightings(s.point, s.pose + (links - 1) * sum(map(len, recordings)), s.pixel)
    few = sample_points(on_hand, 200, random)
    starts = [(known.camera, X[None]) for X in known.X]
    found = [
        solve(few, motion, camera, X, latency=known.latency, free=(), iterations=25)
        for camera, X in starts
    ]
    best = min(found, key=lambda solution: float(np.median(solution.errors)))
    return _rounds(s, motion, best, None, (), 400, random, links=links)[0]


def _aligned(
    recordings: Sequence[Recording], name: str, solution: Solution, place: dict[str, int]
) -> Solution:
    """The solution with poses corrected by the outline of the arm, if its meshes are known."""
    if not all(has_outline(r) for r in recordings):
        return solution
    X, covariance = solution.X.copy(), solution.covariance.copy()
    for row in range(len(X)):
        here = [r for r in recordings if place[r.name] == row]
        X[row], covariance[row] = align(
            here, name, solution.camera, X[row], covariance[row], solution.latency
        )
    return replace(solution, X=X, covariance=covariance)


def part_of(recording: Recording, frames: slice) -> Recording:
    """Some frames of a recording."""
    views = {name: video[frames] for name, video in recording.views.items()}
    wrist = None if recording.wrist is None else recording.wrist[frames]
    return Recording(recording.name, recording.period, views, wrist, recording.bodies[frames])
