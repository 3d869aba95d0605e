"""How well stage 1 tells pictures that are unlike those of training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.data.simulation.splits import SPLITS, get_split
from wristworld_ros.data.video_folder import decode_video, read_video_folder
from wristworld_ros.errors import WeightsError
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.domain import OUT_OF_DOMAIN
from wristworld_ros.reconstruction.views import rectified
from wristworld_ros.types import AnchorFrame, AnchorView, Image

#: Splits that are scored; distances of the others are compared with those of the first.
TESTS = tuple(name for name in SPLITS if name.startswith("test-"))
#: Shares of false alarms for which the share of caught frames is stated.
FALSE_ALARMS = (0.01, 0.05)


def evaluate_domain(
    recordings: Iterable[Path],
    *,
    episodes: int = 10,
    frames: int = 3,
    splits: Sequence[str] = TESTS,
    model: str | None = None,
) -> dict[str, Any]:
    """Distances of held-out simulated episodes and of real recordings.

    Args:
        recordings: folders of videos (``read_video_folder``).
        episodes, frames: of every split, its first episodes; as many frames of each recording.
        splits: ``test-iid`` first.
        model: folder of the weights; the shipped ones when None.

    Returns:
        Name of a split, or ``recordings`` -> ``frames``; ``beyond``: share of the frames that
        count as out of domain; ``median``, ``p10``, ``p90`` of the distance; ``auc``: how often a
        frame is farther than one of test-iid; ``caught``: share of frames beyond what 1 % and 5 %
        of the frames of test-iid exceed. Also ``by_recording``: name -> ``beyond`` and ``median``.

    Raises:
        WeightsError: the model has no statistics of its training pictures.
        BagError: a folder is not a recording.
    """
    reconstructor = Reconstructor.from_pretrained(model)
    if reconstructor.domain is None:
        raise WeightsError(
            f"model {model or 'mini'} has no folder 'domain'. Make it: wristworld train domain."
        )
    found: dict[str, list[float]] = {}
    for split in splits:
        first = get_split(split).first_seed
        distances = found[split] = []
        seeds = range(first, first + episodes)
        for seed in tqdm(seeds, desc=split, unit="episode", mininterval=2.0):
            episode = simulate_episode(seed, split, n_frames=frames)
            for t in range(len(episode)):
                frame = restrict(episode.anchor_frame(t), "estimated")
                distances.append(_distance(reconstructor, frame))
    by_recording = {
        f"{path.parent.name}/{path.name}": [
            _distance(reconstructor, frame) for frame in _recorded(path, frames)
        ]
        for path in tqdm(list(recordings), desc="recordings", mininterval=2.0)
    }
    if by_recording:
        found["recordings"] = [d for distances in by_recording.values() for d in distances]
    reference = np.array(found[splits[0]])
    return {
        **{name: _summary(np.array(distances), reference) for name, distances in found.items()},
        "by_recording": {
            name: {"beyond": _beyond(np.array(d)), "median": float(np.median(d))}
            for name, d in by_recording.items()
        },
    }


def _distance(reconstructor: Reconstructor, frame: AnchorFrame) -> float:
    return reconstructor.domain_distance(rectified(frame))


def _beyond(distances: np.ndarray) -> float:
    return float((distances > OUT_OF_DOMAIN).mean())


def _summary(distances: np.ndarray, reference: np.ndarray) -> dict[str, Any]:
    p10, median, p90 = np.percentile(distances, (10, 50, 90))
    farther = distances[:, None] > reference
    ties = distances[:, None] == reference
    return {
        "frames": len(distances),
        "beyond": _beyond(distances),
        "median": float(median),
        "p10": float(p10),
        "p90": float(p90),
        "auc": float((farther + 0.5 * ties).mean()),
        "caught": {
            f"{share:.0%}": float((distances > np.quantile(reference, 1 - share)).mean())
            for share in FALSE_ALARMS
        },
    }


def _recorded(path: Path, frames: int) -> Iterator[AnchorFrame]:
    """Third-person views of some moments, evenly spread."""
    folder = read_video_folder(path)
    chosen = np.unique(np.linspace(0, folder.length - 1, frames).round().astype(int))
    views: dict[str, list[Image]] = {
        name: [image for t, image in enumerate(decode_video(video)) if t in set(chosen.tolist())]
        for name, video in folder.views.items()
    }
    for i, t in enumerate(chosen):
        yield AnchorFrame(
            int(t), tuple(AnchorView(name, images[i], int(t)) for name, images in views.items())
        )


def domain_table(results: dict[str, Any]) -> str:
    """A line per split and for the recordings."""
    lines = [f"{'':<14} {'frames':>6} {'beyond':>7} {'median':>7} {'AUC':>6}  caught at 1 % / 5 %"]
    for name, r in results.items():
        if name != "by_recording":
            caught = " / ".join(f"{v:.0%}" for v in r["caught"].values())
            lines.append(
                f"{name:<14} {r['frames']:>6} {r['beyond']:>7.0%} {r['median']:>7.2f} "
                f"{r['auc']:>6.3f}  {caught}"
            )
    return "\n".join(lines)
