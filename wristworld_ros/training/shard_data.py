"""Simulated shards in memory, and batches of them as tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wristworld_ros.data.simulation.shards import DEPTH_STEP, Shard, read_shard
from wristworld_ros.errors import InvalidInputError


@dataclass(frozen=True)
class Batch:
    """Frames as tensors; world: the robot's base.

    Attributes:
        anchors: B x V x 3 x H x W in [0, 1].
        anchor_depth: B x V x H/2 x W/2 (or H x W) [m], 0 where unknown.
        anchor_K: B x V x 3 x 3 [px of H x W]; T_world_anchor: B x V x 4 x 4.
        wrist: B x 3 x h x w in [0, 1]; wrist_depth: B x h x w [m].
        wrist_K: B x 3 x 3 [px]; T_world_wrist: B x 4 x 4.
    """

    anchors: Tensor
    anchor_depth: Tensor
    anchor_K: Tensor
    T_world_anchor: Tensor
    wrist: Tensor
    wrist_depth: Tensor
    wrist_K: Tensor
    T_world_wrist: Tensor

    @property
    def depth_K(self) -> Tensor:
        """B x V x 3 x 3 intrinsics of ``anchor_depth``."""
        scale = self.anchor_depth.shape[-1] / self.anchors.shape[-1]
        return self.anchor_K * self.anchor_K.new_tensor([scale, scale, 1.0])[:, None]


def shard_files(folder: str | Path, limit: int | None = None) -> list[Path]:
    """Shards of a folder in order of seed.

    Raises:
        InvalidInputError: there are none; the message gives the command that makes them.
    """
    files = sorted(Path(folder).glob("[0-9]*.npz"))[:limit]
    if not files:
        raise InvalidInputError(
            f"no shards in {folder}. Make them: wristworld simulate --split train --seeds 0:600 "
            f"--shards {folder} --frames 8"
        )
    return files


class ShardSet:
    """All frames of a folder of shards in memory: anchors at ``anchor_size``, depth at half of it,
    or the same with ``full_depth``."""

    def __init__(
        self,
        folder: str | Path,
        anchor_size: int = 256,
        limit: int | None = None,
        full_depth: bool = False,
    ) -> None:
        parts: dict[str, list[np.ndarray]] = {}
        self.instructions: list[str] = []
        self.episode: list[int] = []
        for path in tqdm(shard_files(folder, limit), desc=f"reading {folder}", mininterval=5.0):
            shard = read_shard(path)
            for name, value in _frames(shard, anchor_size, full_depth).items():
                parts.setdefault(name, []).append(value)
            self.instructions += [shard.instruction] * len(shard)
            self.episode += [shard.seed] * len(shard)
        # The parts of one array go before the next is joined: both would not fit into memory.
        self.arrays = {name: np.concatenate(parts.pop(name)) for name in list(parts)}

    def __len__(self) -> int:
        return len(self.instructions)

    def batch(self, index: np.ndarray, views: np.ndarray) -> Batch:
        """Frames ``index``, their anchors ``views`` (in that order: the first is the world of the
        learned pose)."""
        a = self.arrays

        def pick(name: str) -> Tensor:
            return torch.from_numpy(a[name][index])

        def pick_views(name: str) -> Tensor:
            return torch.from_numpy(a[name][index][:, views])

        return Batch(
            anchors=pick_views("anchor_rgb").permute(0, 1, 4, 2, 3).float() / 255,
            anchor_depth=pick_views("anchor_depth").to(torch.int32).float() * DEPTH_STEP,
            anchor_K=pick_views("anchor_K"),
            T_world_anchor=pick_views("T_world_anchor"),
            wrist=pick("wrist_rgb").permute(0, 3, 1, 2).float() / 255,
            wrist_depth=pick("wrist_depth").to(torch.int32).float() * DEPTH_STEP,
            wrist_K=pick("wrist_K"),
            T_world_wrist=pick("T_world_wrist"),
        )


def _frames(shard: Shard, size: int, full_depth: bool) -> dict[str, np.ndarray]:
    """Frame-major arrays of one shard (T first)."""
    _, T, H, W = shard.anchor_depth.shape
    if H % size or H != W or size % 2:
        raise InvalidInputError(
            f"anchors of {W} x {H} px cannot be reduced to {size} px; simulate them square, at a "
            f"multiple of {size} px, and take an even size."
        )
    step = H // size
    rgb = shard.anchor_rgb
    if step > 1:
        rgb = np.stack(
            [
                [cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA) for image in view]
                for view in shard.anchor_rgb
            ]
        )
    scale = np.diag([1 / step, 1 / step, 1.0])
    # One measured depth per cell rather than a mean, which would invent depths at edges.
    cell = step if full_depth else 2 * step
    middles = slice(cell // 2, None, cell)
    return {
        "anchor_rgb": rgb.transpose(1, 0, 2, 3, 4),
        "anchor_depth": shard.anchor_depth[:, :, middles, middles].transpose(1, 0, 2, 3),
        "anchor_K": np.repeat((scale @ shard.anchor_K)[None], T, 0).astype(np.float32),
        "T_world_anchor": np.repeat(shard.T_world_camera[None], T, 0).astype(np.float32),
        "wrist_rgb": shard.wrist_rgb,
        "wrist_depth": shard.wrist_depth,
        "wrist_K": np.repeat(shard.wrist_K[None], T, 0).astype(np.float32),
        "T_world_wrist": shard.T_world_wrist.astype(np.float32),
    }
