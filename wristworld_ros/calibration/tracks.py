"""Point tracks through a video: corners followed from frame to frame, checked backwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.types import FloatArray

_WINDOW, _LEVELS = (15, 15), 3  # of the flow: [px], and pyramid levels above the image
_QUALITY, _BLOCK = 0.01, 5


@dataclass(frozen=True)
class Tracks:
    """Observations of points, sorted by track.

    Attributes:
        track: N, number of the point, 0 to P - 1.
        frame: N, index of the frame that it was seen in.
        pixel: N x 2 [px], pixel centres at integer + 0.5.
    """

    track: NDArray[np.int64]
    frame: NDArray[np.int64]
    pixel: FloatArray

    def __len__(self) -> int:
        return len(self.track)

    @property
    def count(self) -> int:
        """Number of tracks."""
        return int(self.track[-1]) + 1 if len(self.track) else 0

    def select(self, keep: NDArray[np.bool_]) -> Tracks:
        """The observations chosen by ``keep`` (N), tracks numbered anew."""
        _, track = np.unique(self.track[keep], return_inverse=True)
        return Tracks(track.astype(np.int64), self.frame[keep], self.pixel[keep])


def follow_points(
    frames: NDArray[np.uint8],
    masks: Sequence[NDArray[np.bool_]] | None = None,
    *,
    max_points: int = 200,
    spacing: float = 5.0,
    max_length: int = 25,
    min_length: int = 4,
    max_return_px: float = 0.5,
) -> Tracks:
    """Follow corners with pyramidal Lucas-Kanade flow.

    A point is lost when following it backwards misses its start by more than ``max_return_px``,
    when it leaves the mask or the image, or after ``max_length`` frames, which bounds the drift.

    Args:
        frames: T x H x W x 3 uint8.
        masks: T masks, H x W, True where points may be; everywhere when None.
        max_points: points followed at a time.
        spacing: least distance between points [px].
        min_length: shorter tracks are left out.
    """
    height, width = frames[0].shape[:2]
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    points = np.zeros((0, 2), np.float32)
    names = np.zeros(0, np.int64)
    rows: list[tuple[NDArray[np.int64], int, NDArray[np.float32]]] = []
    born: list[int] = []
    for i in range(len(grey)):
        if i and len(points):
            ahead, missed = _flow(grey[i - 1], grey[i], points)
            good = missed < max_return_px
            good &= ((ahead >= 2) & (ahead <= [width - 3, height - 3])).all(1)
            good &= i - np.array(born, np.int64)[names] < max_length
            if masks is not None:
                x, y = np.clip(np.round(ahead), 0, [width - 1, height - 1]).astype(int).T
                good &= masks[i][y, x]
            points, names = ahead[good], names[good]
        room = max_points - len(points)
        if room > 0:
            allowed = np.full((height, width), 255, np.uint8)
            if masks is not None:
                allowed[~masks[i]] = 0
            for x, y in points:
                cv2.circle(allowed, (round(float(x)), round(float(y))), int(spacing), 0, -1)
            new = cv2.goodFeaturesToTrack(
                grey[i], room, _QUALITY, spacing, mask=allowed, blockSize=_BLOCK
            )
            if new is not None and len(new):
                names = np.concatenate([names, len(born) + np.arange(len(new))])
                born += [i] * len(new)
                points = np.concatenate([points, new.reshape(-1, 2)]).astype(np.float32)
        rows.append((names, i, points))
    track = np.concatenate([names for names, _, _ in rows])
    frame = np.concatenate([np.full(len(names), i, np.int64) for names, i, _ in rows])
    pixel = np.concatenate([p for _, _, p in rows]).astype(np.float64) + 0.5
    order = np.lexsort((frame, track))
    result = Tracks(track[order], frame[order], pixel[order])
    if not len(result):
        return result
    return result.select(np.bincount(result.track)[result.track] >= min_length)


def moving(tracks: Tracks, least_px: float) -> Tracks:
    """Tracks whose pixels spread over at least ``least_px``; the rest stands still in the image."""
    low, high = np.full((2, tracks.count, 2), np.inf)
    np.minimum.at(low, tracks.track, tracks.pixel)
    np.minimum.at(high, tracks.track, -tracks.pixel)
    return tracks.select((np.linalg.norm(-high - low, axis=1) >= least_px)[tracks.track])


def moving_masks(frames: NDArray[np.uint8], least: float = 10.0) -> NDArray[np.bool_]:
    """T x H x W: pixels that differ from the median over time, and their surroundings.

    Args:
        frames: T x H x W x 3 uint8.
        least: difference in brightness that counts (0 to 255).
    """
    grey = np.stack([cv2.GaussianBlur(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (0, 0), 1.5)
                     for f in frames]).astype(np.float32)  # fmt: skip
    changed = np.abs(grey - np.median(grey, 0)) > least
    kernel = np.ones((7, 7), np.uint8)
    return np.stack([cv2.dilate(c.astype(np.uint8), kernel) > 0 for c in changed])


def still_pixels(videos: Sequence[NDArray[np.uint8]], share: float = 0.6) -> NDArray[np.bool_]:
    """H x W: pixels that hardly change, such as the gripper before the wrist camera; dilated.

    Args:
        videos: frames of each, T x H x W x 3 uint8.
        share: of the median standard deviation; less is still.
    """
    every = [
        cv2.GaussianBlur(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (0, 0), 1.0).astype(np.float32)
        for video in videos
        for f in video[:: max(1, sum(map(len, videos)) // 300)]
    ]
    spread = np.std(every, axis=0)
    still = (spread < share * np.median(spread)).astype(np.uint8)
    still = cv2.morphologyEx(still, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    return cv2.dilate(still, np.ones((11, 11), np.uint8)) > 0


def background_shift(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Median displacement [px] of what stands still in two videos of one camera.

    Corners of the median picture of ``a`` are followed into that of ``b``; infinite when fewer
    than 20 are found again, as after a large move.
    """
    first, second = (
        cv2.cvtColor(np.median(v[:: max(1, len(v) // 40)], 0).astype(np.uint8), cv2.COLOR_RGB2GRAY)
        for v in (a, b)
    )
    corners = cv2.goodFeaturesToTrack(first, 300, _QUALITY, 5, blockSize=_BLOCK)
    if corners is None:
        return float("inf")
    points = corners.reshape(-1, 2)
    ahead, missed = _flow(first, second, points)
    good = missed < 0.3
    if good.sum() < 20:
        return float("inf")
    return float(np.median(np.linalg.norm(ahead - points, axis=1)[good]))


def _flow(a: Any, b: Any, points: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    """Points of grey image ``a`` found in ``b`` (N x 2), and by how much the way back misses [px].

    The miss is infinite where a point is lost.
    """
    there: Any = cv2.calcOpticalFlowPyrLK(
        a, b, points, points.copy(), winSize=_WINDOW, maxLevel=_LEVELS
    )
    back: Any = cv2.calcOpticalFlowPyrLK(
        b, a, there[0], points.copy(), winSize=_WINDOW, maxLevel=_LEVELS
    )
    found = (there[1][:, 0] == 1) & (back[1][:, 0] == 1)
    return there[0], np.where(found, np.linalg.norm(back[0] - points, axis=1), np.inf)
