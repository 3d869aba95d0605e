"""Frames that experiments train and test on: shards, or episodes simulated on the spot."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.training.shard_data import Batch, ShardSet, shard_files

#: First seed of split ``train`` that experiments simulate. The shipped backbone has not seen these
#: episodes: a head that learns from tokens of known pictures meets others when it is tested.
UNSEEN = 50_000
#: Frames that go through the backbone together.
BATCH = 6

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class FrameSource:
    """Which frames: the first ``episodes`` of a folder of shards, or of ``robot`` simulated.

    Attributes:
        split, first: split, and seed of the first episode.
        episodes: how many.
        robot: drives the simulated episodes.
        shards: folder to read instead of simulating.
    """

    split: str
    first: int
    episodes: int
    robot: str | None = None
    shards: str | None = None


def from_shards(folder: Path, episodes: int) -> FrameSource:
    """The first episodes of a folder of shards.

    Raises:
        InvalidInputError: there are fewer.
    """
    files = shard_files(folder)
    if len(files) < episodes:
        raise InvalidInputError(
            f"{folder} has {len(files)} shards, and {episodes} are wanted. Make more (wristworld "
            "simulate), or ask for fewer episodes."
        )
    return FrameSource("shards", int(files[0].stem), episodes, shards=str(folder.resolve()))


def batches(source: FrameSource, processes: int = 2) -> Iterator[Batch]:
    """All frames of ``source`` in order, up to ``BATCH`` at a time, with all anchors."""
    if source.shards is not None:
        data = ShardSet(source.shards, limit=source.episodes)
        views = np.arange(data.arrays["anchor_rgb"].shape[1])
        for start in range(0, len(data), BATCH):
            yield data.batch(np.arange(start, min(start + BATCH, len(data))), views)
        return
    job = partial(simulated_batch, split=source.split, robot=source.robot)
    yield from side_by_side(job, range(source.first, source.first + source.episodes), processes)


def side_by_side(job: Callable[[In], Out], inputs: Iterable[In], processes: int) -> Iterator[Out]:
    """``job`` of every input, in order, in worker processes of one thread each; one process is this
    one."""
    if processes == 1:
        yield from map(job, inputs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, _one_thread) as pool:
        yield from pool.map(job, inputs)


def _one_thread() -> None:
    """Mesa reads its variable when it starts."""
    os.environ["LP_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def simulated_batch(seed: int, split: str, robot: str | None = None, frames: int = BATCH) -> Batch:
    """One episode as tensors: 128-px wrist, three anchors of 256 px, as shards have them."""
    from wristworld_ros.data.simulation.episode import simulate_episode

    episode = simulate_episode(seed, split, n_frames=frames, robot=robot)

    def pictures(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).movedim(-1, -3).float() / 255

    def repeated(array: np.ndarray) -> Tensor:
        return torch.tensor(array, dtype=torch.float32).repeat(
            len(episode), *[1] * (array.ndim - 1)
        )

    return Batch(
        anchors=pictures(episode.anchor_rgb).transpose(0, 1),
        anchor_depth=torch.from_numpy(episode.anchor_depth[:, :, 1::2, 1::2]).transpose(0, 1),
        anchor_K=repeated(np.stack([camera.K for camera in episode.anchor_cameras])[None]),
        T_world_anchor=repeated(episode.T_world_camera[None]),
        wrist=pictures(episode.wrist_rgb),
        wrist_depth=torch.from_numpy(episode.wrist_depth),
        wrist_K=repeated(episode.wrist_camera.K[None]),
        T_world_wrist=torch.from_numpy(episode.T_world_wrist).float(),
    )
