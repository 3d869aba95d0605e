"""Conditions of stage 2 from shards, by the very Reconstructor that runs live; cached on disk.

Each frame is reconstructed once, with geometry drawn at random from what users have, so that the
generator learns to forgive stage 1: true depth with the true pose, predicted depth with the
kinematic pose, with or without the robot's own body, or with a learned one, or everything from RGB
alone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.shards import DEPTH_STEP, Shard, read_shard
from wristworld_ros.data.simulation.urdf import robot_urdf
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction import Reconstructor, ReconstructorConfig
from wristworld_ros.reconstruction.robot_model import RobotModel
from wristworld_ros.training.shard_data import shard_files
from wristworld_ros.types import AnchorFrame, AnchorView, Reconstruction
from wristworld_ros.weights import STAGE1_PARTS, read_digests

#: Kinds of geometry and their share in training.
SHARES = {"true": 0.2, "robot": 0.2, "kinematic": 0.3, "calibrated": 0.2, "estimated": 0.1}
#: Share of training samples by number of anchors.
ANCHORS = {1: 0.15, 2: 0.25, 3: 0.6}
MIRRORED = {"left": "right", "right": "left"}
SMALL = 64  # anchors as the anchor encoder sees them [px]


@dataclass(frozen=True)
class ConditionSet:
    """Frames with their conditions.

    Attributes:
        wrist: N x H x W x 3 uint8, the truth.
        image, mask, measured: N x H x W x 3 uint8 and twice N x H x W bool, the condition map.
        wrist_K: N x 3 x 3 [px of the wrist pictures].
        anchors: N x 3 x 64 x 64 x 3 uint8; views beyond ``views`` are zero.
        views: N, how many anchors.
        instructions: N texts.
        episode: N seeds; frames of one episode follow one another.
    """

    wrist: NDArray[np.uint8]
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    measured: NDArray[np.bool_]
    wrist_K: NDArray[np.float64]
    anchors: NDArray[np.uint8]
    views: NDArray[np.uint8]
    instructions: list[str]
    episode: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.wrist)


def shard_frame(shard: Shard, t: int) -> AnchorFrame:
    """Frame ``t`` of a shard with everything that is known of it."""
    depth = (shard.anchor_depth[:, t] * np.float32(DEPTH_STEP)).astype(np.float32)
    anchors = tuple(
        AnchorView(
            name=f"anchor_{v}",
            image=shard.anchor_rgb[v, t],
            stamp_ns=t,
            camera=shard.anchor_camera(v),
            T_world_camera=shard.T_world_camera[v],
            depth=depth[v],
        )
        for v in range(len(shard.anchor_rgb))
    )
    return AnchorFrame(
        stamp_ns=t,
        views=anchors,
        T_world_wrist=shard.T_world_wrist[t],
        wrist_camera=shard.wrist_camera,
        instruction=shard.instruction,
        joints=dict(zip(shard.joint_names, shard.joint_positions[t].tolist(), strict=True)),
    )


def build_conditions(
    shards: Path,
    stage1: Path,
    cache: Path,
    *,
    seed: int = 0,
    processes: int = 2,
    limit: int | None = None,
) -> ConditionSet:
    """Reconstruct every frame of ``shards`` once; parts already in ``cache`` are kept.

    Args:
        shards: folder of shards, of which the first ``limit`` are used.
        stage1: folder of stage 1's weights; its networks' other parts are beside it.
        cache: one file per shard.

    Raises:
        InvalidInputError: ``cache`` holds conditions that other weights made, or ``stage1`` has
            another name.
    """
    files = cached(shards, stage1, cache, _reconstruct, seed=seed, processes=processes, limit=limit)
    parts: dict[str, list[Any]] = {}
    instructions: list[str] = []
    for file in files:
        with np.load(cache / file.name) as arrays:
            meta = json.loads(str(arrays["meta"]))
            for name in arrays.files:
                if name != "meta":
                    parts.setdefault(name, []).append(arrays[name])
        instructions += [meta["instruction"]] * meta["frames"]
        parts.setdefault("wrist_K", []).append(np.repeat(_wrist_K(file), meta["frames"], 0))
    merged = {name: np.concatenate(values) for name, values in parts.items()}
    return ConditionSet(instructions=instructions, **merged)


def _claim(cache: Path, weights: dict[str, str], model: Path) -> None:
    """Write down whose conditions these are, or check it."""
    record = cache / "weights.json"
    known = json.loads(record.read_text()) if record.exists() else None
    if known != weights and (known is not None or any(cache.glob("*.npz"))):
        raise InvalidInputError(
            f"{cache} holds condition maps of the weights {known}, and {model} has {weights}. "
            "Remove the folder, or take another --work."
        )
    record.write_text(json.dumps(weights))


def _wrist_K(file: Path) -> NDArray[np.float64]:
    """1 x 3 x 3 intrinsics of a shard's wrist camera, without reading its pictures."""
    with np.load(file) as arrays:
        return np.asarray(arrays["wrist_K"], np.float64)[None]


@dataclass(frozen=True)
class Draw:
    """What stage 1 is told of an episode: the kind of geometry, and which views in which order."""

    geometry: str
    views: tuple[int, ...]


#: Reconstructs an episode: arrays to keep of it.
Work = Callable[[Reconstructor, Shard, Draw], dict[str, Any]]

_worker: dict[str, Any] = {}


def cached(
    shards: Path,
    stage1: Path,
    cache: Path,
    work: Work,
    *,
    seed: int,
    processes: int,
    limit: int | None,
    parts: Sequence[str] = STAGE1_PARTS,
) -> list[Path]:
    """Run ``work`` on every shard that has no file in ``cache`` yet, and write its arrays there.

    Args:
        shards: folder of shards, of which the first ``limit`` are used.
        stage1: folder of stage 1's weights; its networks' other parts are beside it.
        cache: one file per shard, of the same name.
        parts: of the model, those that ``work`` depends on.

    Returns:
        The shards.

    Raises:
        InvalidInputError: ``cache`` holds what other weights made, or ``stage1`` has another name.
    """
    if stage1.name != "stage1":
        raise InvalidInputError(f"--stage1 {stage1}: give the 'stage1' folder of a model.")
    model = stage1.parent
    cache.mkdir(parents=True, exist_ok=True)
    _claim(cache, read_digests(model, parts), model)
    files = shard_files(shards, limit)
    missing = [f for f in files if not (cache / f.name).exists()]
    if not missing:
        return files
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(processes, _start, (str(model), str(cache), seed, work)) as pool:
        for _ in tqdm(
            pool.imap_unordered(_keep, missing),
            total=len(missing),
            desc="conditions",
            mininterval=5.0,
        ):
            pass
        pool.close()
        pool.join()
    return files


def _start(model: str, cache: str, seed: int, work: Work) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    # Frames of a shard are far apart; their stamps are not.
    config = ReconstructorConfig(memory_frames=1)
    reconstructor = Reconstructor.from_pretrained(model, config=config)
    _worker.update(reconstructor=reconstructor, cache=Path(cache), seed=seed, work=work)


def _keep(file: Path) -> None:
    shard = read_shard(file)
    rng = np.random.default_rng([_worker["seed"], shard.seed])
    # One kind of geometry per episode, as a user has it; clips then stay consistent.
    geometry = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    count = int(rng.choice(list(ANCHORS), p=list(ANCHORS.values())))
    draw = Draw(geometry, tuple(int(v) for v in rng.permutation(3)[:count]))
    arrays = _worker["work"](_worker["reconstructor"], shard, draw)
    meta = {"instruction": shard.instruction, "frames": len(shard), "geometry": geometry}
    target = _worker["cache"] / file.name
    partial = target.with_suffix(".npz.partial")
    with partial.open("wb") as stream:
        np.savez(stream, meta=np.array(json.dumps(meta)), **arrays)
    os.replace(partial, target)


@lru_cache
def _robot(name: str) -> RobotModel:
    return RobotModel.from_urdf(robot_urdf(name))


def reconstructed(
    reconstructor: Reconstructor, shard: Shard, draw: Draw
) -> Iterator[Reconstruction]:
    """What stage 1 makes of every frame of an episode, by what ``draw`` tells it."""
    reconstructor.robot = _robot(shard.robot) if draw.geometry == "robot" else None
    for t in range(len(shard)):
        yield reconstructor(restrict(shard_frame(shard, t), draw.geometry, draw.views))


def _reconstruct(reconstructor: Reconstructor, shard: Shard, draw: Draw) -> dict[str, Any]:
    images, masks, measured, anchors = [], [], [], []
    for t, reconstruction in enumerate(reconstructed(reconstructor, shard, draw)):
        condition = reconstruction.condition
        images.append(condition.image)
        masks.append(condition.mask)
        measured.append(condition.measured)
        small = np.zeros((3, SMALL, SMALL, 3), np.uint8)
        for i, v in enumerate(draw.views):
            small[i] = cv2.resize(
                shard.anchor_rgb[v, t], (SMALL, SMALL), interpolation=cv2.INTER_AREA
            )
        anchors.append(small)
    return {
        "wrist": shard.wrist_rgb,
        "image": np.stack(images),
        "mask": np.stack(masks),
        "measured": np.stack(measured),
        "anchors": np.stack(anchors),
        "views": np.full(len(shard), len(draw.views), np.uint8),
        "episode": np.full(len(shard), shard.seed, np.int64),
    }


def varied(data: ConditionSet, rng: np.random.Generator) -> ConditionSet:
    """A copy of the frames in which each episode has other colours and may be mirrored.

    Colour channels change places and brightness, the same in the truth, the condition map and the
    anchors; mirroring also swaps "left" and "right" in the instruction. The cameras' principal
    points are at the centre, so that intrinsics stay.
    """
    out = {n: getattr(data, n).copy() for n in ("wrist", "image", "mask", "measured", "anchors")}
    instructions = list(data.instructions)
    for episode in np.unique(data.episode):
        index = np.flatnonzero(data.episode == episode)
        order = rng.permutation(3)
        gain = rng.uniform(0.8, 1.15, 3)
        for name in ("wrist", "image", "anchors"):
            pixels = out[name][index][..., order] * gain
            out[name][index] = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
        if rng.random() < 0.5:
            for name, values in out.items():
                values[index] = np.flip(values[index], 3 if name == "anchors" else 2)
            for i in index:
                words = re.split(r"\b(left|right)\b", instructions[i])
                instructions[i] = "".join(MIRRORED.get(w, w) for w in words)
    return replace(data, instructions=instructions, **out)


def merged(sets: Sequence[ConditionSet]) -> ConditionSet:
    """Several sets as one; episodes of later sets get numbers of their own."""
    arrays: dict[str, Any] = {
        n: np.concatenate([getattr(s, n) for s in sets])
        for n in ("wrist", "image", "mask", "measured", "wrist_K", "anchors", "views")
    }
    step = max(int(s.episode.max()) for s in sets) + 1
    episode = np.concatenate([s.episode + k * step for k, s in enumerate(sets)])
    instructions = [text for s in sets for text in s.instructions]
    return ConditionSet(instructions=instructions, episode=episode, **arrays)
