"""Condition maps that remember: what earlier frames showed of the same surfaces steadies this one.

Depth is estimated anew in every frame, and wrong in another way each time, so that a surface moves
back and forth in the wrist view while the scene stands still. Where the last map, brought here by
the motion of the wrist camera, has the same surface, both are averaged, and where this map has a
hole, what was seen there before is drawn. What moves, the gripper too, agrees in place or colour
only by chance, and is left as it is. Causal; part of the paper's 4-D point cloud.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.geometry.camera import unproject
from wristworld_ros.geometry.splatting import visible_points
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.geometry.warping import warped
from wristworld_ros.types import REMEMBERED_VIEW, CameraModel, ConditionMap, FloatArray, PointCloud

#: Two maps show one surface where they differ by less than this: depth (relative), and the mean of
#: the colours [grey levels].
SAME_DEPTH, SAME_COLOUR = 0.1, 60.0
#: Frames in which a surface has to be seen before it is remembered in holes, and seconds that it is
#: remembered for.
MIN_SEEN, MAX_AGE = 2, 2.0
#: Least share of drawn pixels in an interpolated colour: holes have none.
_WHOLE = 0.99
#: A gap between frames that is longer [s] ends all memory.
MAX_GAP = 0.5


@dataclass(frozen=True)
class _Memory:
    """The last map: H x W x 4, colours and whether anything is drawn, depth [m], in how many frames
    the pixel's surface was seen, and when last [ns]."""

    colours: NDArray[np.float32]
    depth: NDArray[np.float32]
    seen: NDArray[np.float32]
    last_ns: NDArray[np.int64]
    T_world_wrist: FloatArray
    camera: CameraModel
    stamp_ns: int
    world: str


class MapMemory:
    """Averages each map with the ones before it.

    Args:
        frames: how many frames an average is over at most; 1 remembers nothing.
    """

    def __init__(self, frames: int = 4) -> None:
        self.frames = frames
        self._memory: _Memory | None = None

    def __call__(
        self, condition: ConditionMap, T_world_wrist: FloatArray, stamp_ns: int, world: str
    ) -> ConditionMap:
        """The map of one moment, averaged with what is remembered.

        Memory ends where time stands still, jumps back or jumps by more than ``MAX_GAP``, and with
        another camera or world.

        Args:
            condition: as splatted; T_world_wrist: 4 x 4 pose that it was drawn for.
            world: name of the world frame.

        Returns:
            A map for the same camera. Pixels that only earlier frames showed have the view
            ``REMEMBERED_VIEW`` and do not count as measured.
        """
        if self.frames <= 1:
            return condition
        old = self._memory
        if old is not None and not _follows(old, condition.camera, stamp_ns, world):
            old = None
        colours = condition.image.astype(np.float32)
        depth, view, mask = condition.depth.copy(), condition.view.copy(), condition.mask.copy()
        seen = mask.astype(np.float32)
        last_ns = np.full(mask.shape, stamp_ns, np.int64)
        if old is not None:
            motion = invert(T_world_wrist) @ old.T_world_wrist
            there, z = warped(old.colours, motion, old.camera, depth)
            earlier, _ = warped(old.depth, motion, old.camera, depth)
            count, _ = warped(old.seen, motion, old.camera, depth)
            before = there[..., :3]
            same = mask & (there[..., 3] > _WHOLE) & (np.abs(earlier - z) < SAME_DEPTH * z)
            same &= np.abs(before - colours).mean(2) < SAME_COLOUR
            weight = np.minimum(count, self.frames - 1)[same]
            share = (weight / (1 + weight)).astype(np.float32)
            colours[same] += share[:, None] * (before - colours)[same]
            depth[same] *= ((earlier[same] / z[same]) ** share).astype(np.float32)
            seen[same] = weight + 1
            index, at = _recalled(old, T_world_wrist, stamp_ns)
            empty = (index >= 0) & ~mask
            index = index[empty]
            colours[empty] = old.colours[..., :3].reshape(-1, 3)[index]
            depth[empty] = at[empty]
            seen[empty], last_ns[empty] = old.seen.ravel()[index], old.last_ns.ravel()[index]
            view[empty] = REMEMBERED_VIEW
            mask |= empty
        self._memory = _Memory(
            np.dstack([colours, mask.astype(np.float32)]),
            depth,
            seen,
            last_ns,
            T_world_wrist,
            condition.camera,
            stamp_ns,
            world,
        )
        image = colours.round().astype(np.uint8) * mask[..., None]
        return replace(condition, image=image, mask=mask, depth=depth, view=view)


def _recalled(
    old: _Memory, T_world_wrist: FloatArray, stamp_ns: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What may fill holes now: which pixel of the memory each pixel shows, -1 where none, and its
    depth [m]."""
    good = (old.seen >= MIN_SEEN) & (stamp_ns - old.last_ns <= MAX_AGE * 1e9)
    kept = np.flatnonzero(good)
    n = len(kept)
    points = apply(old.T_world_wrist, unproject(old.depth, old.camera).reshape(-1, 3)[kept])
    cloud = PointCloud(
        points=points.astype(np.float32),
        colors=np.zeros((n, 3), np.uint8),
        confidence=np.ones(n, np.float32),
        footprint=old.depth.ravel()[kept] / np.float32(old.camera.K[0, 0]),
        view=np.zeros(n, np.uint8),
    )
    index, depth = visible_points(cloud, T_world_wrist, old.camera)
    return np.where(index >= 0, np.append(kept, -1)[index], -1), depth


def _follows(old: _Memory, camera: CameraModel, stamp_ns: int, world: str) -> bool:
    same = old.world == world and old.depth.shape == (camera.height, camera.width)
    gap = (stamp_ns - old.stamp_ns) / 1e9
    return same and np.array_equal(old.camera.K, camera.K) and 0 < gap <= MAX_GAP
