"""Training shards: one uncompressed npz file per simulated episode, quick to write and to read.

Depth is stored in steps of 0.1 mm. Store seeds, not shards: they can be made again at any time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import zipfile
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wristworld_ros.data.simulation.splits import get_split
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import CameraModel, FloatArray

DEPTH_STEP = 1e-4  # [m]
_ARRAYS = (
    "frame_index",
    "wrist_rgb",
    "T_world_wrist",
    "T_world_hand",
    "anchor_rgb",
    "T_world_camera",
    "joint_positions",
    "gripper_width",
)


@dataclass(frozen=True)
class Shard:
    """Some frames of one episode; fields as in ``SimulatedEpisode``.

    Attributes:
        wrist_rgb: T x H x W x 3 uint8.
        wrist_depth: T x H x W uint16 in steps of ``DEPTH_STEP`` metres, 0 where nothing is.
        wrist_K: 3 x 3 [px].
        anchor_rgb: V x T x H x W x 3 uint8.
        anchor_depth: V x T x H x W uint16 in steps of ``DEPTH_STEP`` metres.
        anchor_K: V x 3 x 3 [px].
        T_world_wrist, T_world_hand: T x 4 x 4; T_world_camera: V x 4 x 4.
        joint_positions: T x J [rad or m]; gripper_width: T [m].
    """

    seed: int
    split: str
    robot: str
    instruction: str
    joint_names: tuple[str, ...]
    frame_index: NDArray[np.int64]
    wrist_rgb: NDArray[np.uint8]
    wrist_depth: NDArray[np.uint16]
    wrist_K: FloatArray
    T_world_wrist: FloatArray
    T_world_hand: FloatArray
    anchor_rgb: NDArray[np.uint8]
    anchor_depth: NDArray[np.uint16]
    anchor_K: FloatArray
    T_world_camera: FloatArray
    joint_positions: FloatArray
    gripper_width: FloatArray

    def __len__(self) -> int:
        return len(self.wrist_rgb)

    @property
    def wrist_camera(self) -> CameraModel:
        """Intrinsics of the wrist pictures."""
        return CameraModel(self.wrist_K, self.wrist_rgb.shape[2], self.wrist_rgb.shape[1])

    def anchor_camera(self, view: int) -> CameraModel:
        """Intrinsics of the pictures of anchor ``view``."""
        return CameraModel(self.anchor_K[view], self.anchor_rgb.shape[3], self.anchor_rgb.shape[2])


def shard_path(out_dir: str | Path, seed: int) -> Path:
    """File of ``seed`` in ``out_dir``."""
    return Path(out_dir) / f"{seed:06d}.npz"


def read_shard(path: str | Path) -> Shard:
    """Read one shard.

    Raises:
        InvalidInputError: the file is missing, truncated or not a shard.
    """
    try:
        with np.load(path) as arrays:
            values = {name: arrays[name] for name in arrays.files if name != "meta"}
            meta = json.loads(str(arrays["meta"]))
        meta["joint_names"] = tuple(meta["joint_names"])
        return Shard(**meta, **values)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            f"shard {path} cannot be read ({error}). Delete it and run the same "
            "`wristworld simulate --shards` again; it makes only what is missing."
        ) from error


def write_shard(
    seed: int,
    split: str,
    out_dir: str | Path,
    *,
    frames_per_episode: int,
    wrist_size: tuple[int, int],
    anchor_size: tuple[int, int],
    n_anchors: int,
    shadows: bool,
) -> Path:
    """Simulate one episode and write its shard, under its name only when it is complete."""
    from wristworld_ros.data.simulation.episode import simulate_episode

    episode = simulate_episode(
        seed,
        split,
        wrist_size=wrist_size,
        anchor_size=anchor_size,
        n_anchors=n_anchors,
        n_frames=frames_per_episode,
        shadows=shadows,
    )
    meta = {
        "seed": seed,
        "split": split,
        "robot": episode.robot,
        "instruction": episode.instruction,
        "joint_names": list(episode.joint_names),
    }
    path = shard_path(out_dir, seed)
    partial_path = path.with_suffix(".npz.partial")
    with partial_path.open("wb") as file:
        np.savez(
            file,
            meta=np.array(json.dumps(meta)),
            wrist_K=episode.wrist_camera.K,
            anchor_K=np.stack([camera.K for camera in episode.anchor_cameras]),
            wrist_depth=_quantised(episode.wrist_depth),
            anchor_depth=_quantised(episode.anchor_depth),
            **{name: getattr(episode, name) for name in _ARRAYS},
        )
    partial_path.replace(path)
    return path


def write_shards(
    split: str,
    seeds: Iterable[int],
    out_dir: str | Path,
    *,
    frames_per_episode: int = 12,
    wrist_size: tuple[int, int] = (128, 128),
    anchor_size: tuple[int, int] = (256, 256),
    n_anchors: int = 3,
    shadows: bool = True,
    processes: int = 2,
) -> list[Path]:
    """Write the shards of ``seeds``; those that exist are kept, so it can be run again.

    Args:
        split: name of the split that the seeds belong to.
        seeds: which episodes.
        out_dir: folder for the files; made if missing.
        frames_per_episode: frames per shard, evenly spread over the episode.
        wrist_size, anchor_size: (width, height) [px].
        processes: number of processes, each with one rendering thread.

    Returns:
        The files, one per seed.

    Raises:
        InvalidInputError: a seed is not of the split, or the folder holds shards that were made
            with other settings.
    """
    chosen = sorted(set(seeds))
    for seed in chosen:
        get_split(split).check_seed(seed)
    if processes < 1:
        raise InvalidInputError(f"processes is {processes}; need at least 1.")
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "frames_per_episode": frames_per_episode,
        "wrist_size": list(wrist_size),
        "anchor_size": list(anchor_size),
        "n_anchors": n_anchors,
        "shadows": shadows,
    }
    _check_settings(folder, settings)
    missing = [seed for seed in chosen if not shard_path(folder, seed).exists()]
    job = partial(
        write_shard,
        split=split,
        out_dir=folder,
        frames_per_episode=frames_per_episode,
        wrist_size=wrist_size,
        anchor_size=anchor_size,
        n_anchors=n_anchors,
        shadows=shadows,
    )
    bar = tqdm(total=len(chosen), initial=len(chosen) - len(missing), unit="episode", desc=split)
    with bar:
        if missing:
            _run_all(job, missing, processes, bar)
    return [shard_path(folder, seed) for seed in chosen]


def _run_all(job: Callable[[int], Path], seeds: list[int], processes: int, bar: tqdm) -> None:
    """Run ``job`` for every seed in worker processes; the first error ends it."""
    executor = ProcessPoolExecutor(
        min(processes, len(seeds)), multiprocessing.get_context("spawn"), _use_one_thread
    )
    try:
        for future in as_completed([executor.submit(job, seed) for seed in seeds]):
            future.result()
            bar.update()
    finally:
        executor.shutdown(cancel_futures=True)


def _use_one_thread() -> None:
    """Read by Mesa and the BLAS when they start in a worker; workers run side by side instead."""
    os.environ["LP_NUM_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"


def _check_settings(folder: Path, settings: dict[str, object]) -> None:
    """Keep the settings beside the shards, and refuse to mix shards of different ones."""
    path = folder / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            f"{name} {before.get(name)} there, {value} now"
            for name, value in settings.items()
            if before.get(name) != value
        ]
        if changed:
            raise InvalidInputError(
                f"{folder} holds shards of other settings: {'; '.join(changed)}. "
                "Use another folder or the same settings."
            )
    else:
        path.write_text(json.dumps(settings, indent=1) + "\n")


def _quantised(depth: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.clip(np.round(depth / DEPTH_STEP), 0, 65535).astype(np.uint16)
