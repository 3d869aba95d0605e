"""Scores of a station model on recordings that it was not trained on, with the floors beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from wristworld_ros.evaluation.drawing import confidence_map
from wristworld_ros.evaluation.metrics import psnr, ssim
from wristworld_ros.evaluation.reliability import Reliability
from wristworld_ros.generation.lpips import lpips
from wristworld_ros.generation.station_episode import StationEpisode
from wristworld_ros.types import Image

#: Pictures and confidence of a recording, as ``station_pictures`` returns them.
Made = tuple[list[Image], NDArray[np.float32]]
#: Distance [m] that counts as much as a turn of one radian when the nearest pose is sought.
_REACH_M = 0.3


def _scores(pictures: Sequence[Image], truth: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    pairs = list(zip(pictures, truth, strict=True))
    return {
        "psnr": np.array([psnr(a, b) for a, b in pairs]),
        "ssim": np.array([ssim(a, b) for a, b in pairs]),
        "lpips": np.array(lpips(pictures, list(truth))),
    }


def nearest_frames(
    episode: StationEpisode, training: Sequence[StationEpisode]
) -> NDArray[np.uint8]:
    """The training picture whose wrist pose and gripper are nearest, T x h x w x 3."""
    poses = np.concatenate([e.T_base_wrist for e in training])
    grips = np.concatenate([e.gripper for e in training])
    pictures = np.concatenate([e.wrist for e in training if e.wrist is not None])
    out = []
    for T, g in zip(episode.T_base_wrist, episode.gripper, strict=True):
        turn = Rotation.from_matrix(np.swapaxes(poses[:, :3, :3], 1, 2) @ T[:3, :3]).magnitude()
        shift = np.linalg.norm(poses[:, :3, 3] - T[:3, 3], axis=1)
        out.append(pictures[np.argmin(shift / _REACH_M + turn + np.abs(grips - g))])
    return np.stack(out)


def evaluate_station(
    made: Sequence[Made], held_out: Sequence[StationEpisode], training: Sequence[StationEpisode]
) -> dict[str, Any]:
    """Scores per recording and over all their frames.

    Args:
        made: what ``station_pictures`` made of each recording.

    Returns:
        ``results``: recording -> kind of picture -> means of psnr [dB], ssim and lpips; ``all``:
        the same over all frames; ``confidence``: of ``Reliability``; ``frames``. The kinds are
        ``station`` (the model's), and as floors ``mean_image``, ``nearest_frame``, ``first_frame``
        (of the recording itself) and ``flat_colour`` (the one that fits each true picture best).
    """
    mean = np.concatenate([e.wrist for e in training if e.wrist is not None]).mean(0)
    results: dict[str, dict[str, dict[str, float]]] = {}
    every: dict[str, list[dict[str, NDArray[Any]]]] = {}
    trust = Reliability()
    for e, (pictures, confidence) in zip(held_out, made, strict=True):
        assert e.wrist is not None
        for p, c, t in zip(pictures, confidence, e.wrist, strict=True):
            trust.add(c, p, t)
        flat = e.wrist.mean((1, 2), keepdims=True).round().astype(np.uint8)
        kinds: Mapping[str, Sequence[Image]] = {
            "station": pictures,
            "mean_image": [mean.round().astype(np.uint8)] * len(e),
            "nearest_frame": list(nearest_frames(e, training)),
            "first_frame": [e.wrist[0]] * len(e),
            "flat_colour": list(np.broadcast_to(flat, e.wrist.shape).copy()),
        }
        results[e.name] = {}
        for kind, images in kinds.items():
            scores = _scores(images, e.wrist)
            every.setdefault(kind, []).append(scores)
            results[e.name][kind] = {k: float(v.mean()) for k, v in scores.items()}
    return {
        "frames": {e.name: len(e) for e in held_out},
        "results": results,
        "all": {
            kind: {k: float(np.concatenate([s[k] for s in rows]).mean()) for k in rows[0]}
            for kind, rows in every.items()
        },
        "confidence": trust.summary(),
    }


def station_sheet(made: Sequence[Made], held_out: Sequence[StationEpisode], rows: int = 4) -> Image:
    """Per recording ``rows`` moments: fixed cameras, wrist view made, true one, confidence."""
    lines = []
    for e, (pictures, confidence) in zip(held_out, made, strict=True):
        assert e.wrist is not None
        h, w = pictures[0].shape[:2]
        for i in np.linspace(0, len(e) - 1, rows + 2).astype(int)[1:-1]:
            views = [_small(view[i], w, h) for view in e.views]
            cells = [*views, pictures[i], e.wrist[i], confidence_map(confidence[i])]
            lines.append(np.concatenate(cells, 1))
    return np.concatenate(lines, 0)


def _small(image: Image, width: int, height: int) -> Image:
    import cv2

    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
