"""What the plane sweep sees of simulated frames, and the truth; made once, cached on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wristworld_ros.data.simulation.shards import DEPTH_STEP, Shard, read_shard
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.plane_sweep import SweepInputs, sweep_inputs
from wristworld_ros.reconstruction.posed_views import PosedViews
from wristworld_ros.training.conditions import Draw, cached, reconstructed
from wristworld_ros.types import ConditionMap, FloatArray
from wristworld_ros.weights import STAGE1_PARTS

#: Confidence is kept in whole percents; -1 stands for depth that is not used.
_PERCENT = 100
#: Kinds of geometry whose wrist pose is the true one, so that the true depth is that of its rays.
POSED = ("true", "robot", "kinematic")


class Recorder:
    """Keeps what a plane sweep would see (``seen``), and leaves the map as it is."""

    def __init__(self) -> None:
        self.seen: list[tuple[SweepInputs, ConditionMap]] = []

    def refine(
        self, views: PosedViews, T_world_wrist: FloatArray, condition: ConditionMap
    ) -> ConditionMap:
        """As ``MapRefiner.refine``."""
        self.seen.append((sweep_inputs(views, T_world_wrist, condition), condition))
        return condition


@dataclass(frozen=True)
class SweepEpisode:
    """Frames of one episode, T of them, with V anchors.

    Attributes:
        kind: of geometry (``knowledge.GEOMETRY``).
        anchors: T x V x H x W x 3 uint8.
        depth: T x V x H x W float16 [m]; confidence: int8, in percent or -1.
        K, T_anchor_wrist, wrist_K: as in ``SweepInputs``, float32.
        image: T x h x w x 3 uint8, the map; mask: T x 2 x h x w bool; map_depth: float16 [m].
        wrist: T x h x w x 3 uint8, the truth; wrist_depth: T x h x w uint16 in ``DEPTH_STEP``.
    """

    kind: str
    anchors: NDArray[np.uint8]
    depth: NDArray[np.float16]
    confidence: NDArray[np.int8]
    K: NDArray[np.float32]
    T_anchor_wrist: NDArray[np.float32]
    wrist_K: NDArray[np.float32]
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    map_depth: NDArray[np.float16]
    wrist: NDArray[np.uint8]
    wrist_depth: NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.wrist)

    @property
    def views(self) -> int:
        """Number of anchors."""
        return self.anchors.shape[1]


def build_sweep_data(
    shards: Path,
    stage1: Path,
    cache: Path,
    *,
    seed: int = 0,
    processes: int = 2,
    limit: int | None = None,
) -> list[SweepEpisode]:
    """Every frame of ``shards``, reconstructed once with the geometry that stage 2 trains on
    (``conditions.SHARES``); arguments and errors as ``build_conditions``."""
    files = cached(
        shards,
        stage1,
        cache,
        _reconstruct,
        seed=seed,
        processes=processes,
        limit=limit,
        parts=tuple(part for part in STAGE1_PARTS if part != "plane_sweep"),
    )
    return [_episode(read_shard(file), cache / file.name) for file in files]


def _episode(shard: Shard, path: Path) -> SweepEpisode:
    with np.load(path) as arrays:
        values: dict[str, Any] = {n: arrays[n] for n in arrays.files if n not in ("meta", "views")}
        meta = json.loads(str(arrays["meta"]))
        views = arrays["views"]
    return SweepEpisode(
        kind=meta["geometry"],
        anchors=np.ascontiguousarray(shard.anchor_rgb[views].transpose(1, 0, 2, 3, 4)),
        wrist=shard.wrist_rgb,
        wrist_depth=shard.wrist_depth,
        **values,
    )


def _reconstruct(reconstructor: Reconstructor, shard: Shard, draw: Draw) -> dict[str, Any]:
    recorder = Recorder()
    reconstructor.plane_sweep = recorder
    for _ in reconstructed(reconstructor, shard, draw):
        pass
    inputs = [seen for seen, _ in recorder.seen]
    maps = [condition for _, condition in recorder.seen]

    def joined(name: str) -> NDArray[Any]:
        return torch.cat([getattr(x, name) for x in inputs]).numpy()

    confidence = np.round(joined("confidence") * _PERCENT).clip(-1, _PERCENT)
    return {
        "views": np.array(draw.views),
        "depth": joined("depth").astype(np.float16),
        "confidence": confidence.astype(np.int8),
        **{name: joined(name) for name in ("K", "T_anchor_wrist", "wrist_K")},
        "image": np.stack([m.image for m in maps]),
        "mask": np.stack([np.stack([m.mask, m.measured]) for m in maps]),
        "map_depth": np.stack([m.depth for m in maps]).astype(np.float16),
    }


@dataclass(frozen=True)
class SweepTruth:
    """What the wrist camera saw.

    Attributes:
        image: B x 3 x h x w in [0, 1].
        depth: B x h x w [m], 0 where unknown, also where the wrist pose was estimated: the true
            depth is then that of other rays.
    """

    image: Tensor
    depth: Tensor


def sweep_batch(frames: list[tuple[SweepEpisode, int]]) -> tuple[SweepInputs, SweepTruth]:
    """Frames as a batch.

    Args:
        frames: episodes with equal numbers of anchors, and which of their frames.
    """

    def stack(name: str) -> Tensor:
        return torch.from_numpy(np.stack([getattr(e, name)[t] for e, t in frames]))

    mask = stack("mask").float()
    image = stack("image").movedim(-1, -3).float() / 255
    posed = torch.tensor([e.kind in POSED for e, _ in frames])[:, None, None]
    depth = stack("wrist_depth").to(torch.int32).float() * DEPTH_STEP
    inputs = SweepInputs(
        images=stack("anchors").movedim(-1, -3).float() / 255,
        depth=stack("depth").float(),
        confidence=(stack("confidence").float() / _PERCENT).where(stack("confidence") >= 0, -1.0),
        K=stack("K"),
        T_anchor_wrist=stack("T_anchor_wrist"),
        wrist_K=stack("wrist_K"),
        map_image=fill_holes(image, mask[:, :1]),
        map_mask=mask,
        map_depth=stack("map_depth").float(),
    )
    return inputs, SweepTruth(stack("wrist").movedim(-1, -3).float() / 255, depth * posed)
