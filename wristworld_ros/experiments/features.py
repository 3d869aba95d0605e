"""What a frozen backbone sees in simulated frames, computed once and kept on disk.

As in the paper the backbone does not learn (method.md, 2). Its tokens, and the anchors' pixels
lifted by its depth, then are the same in every run of an experiment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.experiments.frames import FrameSource, batches
from wristworld_ros.reconstruction.backbone import Features
from wristworld_ros.reconstruction.correspondence import (
    Correspondences,
    CorrespondenceSource,
    PairFilters,
    select_pairs,
)
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.training.shard_data import Batch
from wristworld_ros.training.stage1 import exact_pairs, lift

#: A matched pair is right when the true wrist camera sees its point within this [px].
RIGHT = 8.0


@dataclass(frozen=True)
class FrozenSet:
    """N frames as a wrist head sees them, in the robot's base frame.

    Attributes:
        tokens: N x V x n x C float16, of the backbone's last layer.
        points: N x P x 3 anchor pixels of the pairs, lifted by predicted depth [m].
        pixels: N x P x 2 where the wrist picture shows them [px].
        valid: N x P bool.
        checked: N x P bool, of these those that fit one fundamental matrix per view, which is all
            that can be checked without cameras; the same as ``valid`` for exact pairs.
        T_base_wrist: N x 4 x 4 true pose of the wrist camera.
        wrist_K: N x 3 x 3 [px].
        size: (h, w) of the wrist pictures.
    """

    tokens: NDArray[np.float16]
    points: NDArray[np.float32]
    pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    checked: NDArray[np.bool_]
    T_base_wrist: NDArray[np.float32]
    wrist_K: NDArray[np.float32]
    size: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.tokens)


_NAMES = tuple(f.name for f in fields(FrozenSet))
_PAIRS = ("points", "pixels", "valid", "checked")


@torch.no_grad()
def compute_features(
    model: Stage1Model,
    frames: Iterable[Batch],
    views: int,
    matcher: CorrespondenceSource | None = None,
) -> FrozenSet:
    """Run the frozen model over frames, with the first ``views`` anchors, calibrated.

    Args:
        matcher: finds the pairs in the pictures, with no check of its own; exact ones when None.

    Raises:
        InvalidInputError: there are no frames, or fewer views.
    """
    model.eval()
    seen: list[Features] = []

    def keep(module: nn.Module, inputs: Any, output: Features) -> None:
        seen.append(output)

    parts: list[dict[str, NDArray]] = []
    handle = model.backbone.register_forward_hook(keep)
    try:
        for whole in tqdm(frames, desc="frozen backbone", unit="batch", mininterval=5.0):
            batch = first_views(whole, views)
            depth = model.scene(batch.anchors, batch.anchor_K, batch.T_world_anchor).depth
            row = _row(batch, seen.pop().tokens[-1], depth, *_pairs(batch, matcher))
            parts.append({name: value.numpy() for name, value in row.items()})
    finally:
        handle.remove()
    if not parts:
        raise InvalidInputError("features of no frames; give at least one.")
    longest = max(part["valid"].shape[1] for part in parts)
    rows: dict[str, Any] = {
        name: np.concatenate(
            [_padded(part[name], longest) if name in _PAIRS else part[name] for part in parts]
        )
        for name in parts[0]
    }
    return FrozenSet(**rows, size=np.array(batch.wrist_depth.shape[-2:]))


def first_views(batch: Batch, views: int) -> Batch:
    """The same frames with the first ``views`` anchors.

    Raises:
        InvalidInputError: there are fewer.
    """
    available = batch.anchors.shape[1]
    if not 1 <= views <= available:
        raise InvalidInputError(f"{views} anchors; the frames have {available}.")
    names = ("anchors", "anchor_depth", "anchor_K", "T_world_anchor")
    return replace(batch, **{name: getattr(batch, name)[:, :views] for name in names})


def _pairs(batch: Batch, matcher: CorrespondenceSource | None) -> tuple[Correspondences, Tensor]:
    """Pairs with anchor pixels of the depth's resolution, and which of them are ``checked``."""
    if matcher is None:
        exact = exact_pairs(batch)
        return exact, exact.valid
    found = matcher(batch.wrist, batch.anchors)
    fitted = select_pairs(
        found.anchor,
        found.wrist,
        found.valid.float(),
        found.confidence,
        PairFilters(),
        candidates=found.valid,
    )
    scale = batch.anchor_depth.shape[-1] / batch.anchors.shape[-1]
    return replace(found, anchor=found.anchor * scale), fitted.valid


def _row(
    batch: Batch, tokens: Tensor, depth: Tensor, pairs: Correspondences, checked: Tensor
) -> dict[str, Tensor]:
    points = lift(pairs.anchor, depth, batch.depth_K, batch.T_world_anchor)
    B, V, M = pairs.valid.shape
    return {
        "tokens": tokens.half(),
        "points": points.reshape(B, V * M, 3),
        "pixels": pairs.wrist[:, None].expand(B, V, M, 2).reshape(B, V * M, 2),
        "valid": pairs.valid.reshape(B, V * M),
        "checked": checked.reshape(B, V * M),
        "T_base_wrist": batch.T_world_wrist,
        "wrist_K": batch.wrist_K,
    }


def _padded(array: NDArray, length: int) -> NDArray:
    missing = length - array.shape[1]
    return np.pad(array, [(0, missing if axis == 1 else 0) for axis in range(array.ndim)])


def distances(data: FrozenSet) -> NDArray[np.float64]:
    """N x P distance [px] of each pair from where the true wrist camera sees its point."""
    R, t = data.T_base_wrist[:, :3, :3], data.T_base_wrist[:, :3, 3]
    x = (data.points - t[:, None]) @ R
    uv = (x / np.maximum(x[..., 2:], 1e-3)) @ data.wrist_K.transpose(0, 2, 1)
    error = np.linalg.norm(uv[..., :2] - data.pixels, axis=-1)
    return np.where(x[..., 2] > 0, error, np.inf)


def with_pairs(data: FrozenSet, kind: str) -> FrozenSet:
    """The same frames with ``all`` pairs, the ``checked`` ones, or the ``right`` ones, which only
    simulation can tell."""
    if kind not in ("all", "checked", "right"):
        raise InvalidInputError(f"pairs '{kind}' are not 'all', 'checked' or 'right'.")
    if kind == "checked":
        return replace(data, valid=data.checked)
    return data if kind == "all" else replace(data, valid=data.valid & (distances(data) < RIGHT))


def thinned(data: FrozenSet, pairs: int, sigma: float, seed: int = 0) -> FrozenSet:
    """The same frames with fewer and noisier pairs.

    Args:
        pairs: at most so many per frame are kept, drawn evenly.
        sigma: standard deviation of Gaussian noise on the wrist pixels [px, per axis].
        seed: of draw and noise.
    """
    rng = np.random.default_rng(seed)
    draw = np.where(data.valid, rng.uniform(size=data.valid.shape), 2.0)
    rank = draw.argsort(1).argsort(1)
    pixels = data.pixels + sigma * rng.standard_normal(data.pixels.shape, dtype=np.float32)
    return replace(data, pixels=pixels.astype(np.float32), valid=data.valid & (rank < pairs))


def stored(
    cache: Path,
    model: Stage1Model,
    weights: str,
    frames: FrameSource,
    views: int,
    matcher: tuple[str, CorrespondenceSource] | None = None,
    processes: int = 2,
) -> Path:
    """Folder with the set of these frames under ``cache``; computed when it is not there.

    Args:
        weights: sha256 of the model's.
        matcher: name and source of pairs; exact ones when None.
        processes: that simulate side by side where frames are simulated.
    """
    name, source = matcher or ("exact", None)
    key = {"weights": weights, "frames": asdict(frames), "views": views, "pairs": name}
    text = json.dumps(key, sort_keys=True)
    folder = cache / hashlib.sha256(text.encode()).hexdigest()[:16]
    if not folder.exists():
        save(folder, compute_features(model, batches(frames, processes), views, source), key)
    return folder


def save(folder: Path, data: FrozenSet, key: Mapping[str, Any]) -> None:
    """Write a set, under its name only when it is complete."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _NAMES:
        np.save(partial / f"{name}.npy", getattr(data, name))
    (partial / "key.json").write_text(json.dumps(key, indent=1) + "\n")
    os.replace(partial, folder)


def load(folder: Path) -> FrozenSet:
    """The set that ``save`` wrote, memory-mapped."""
    return FrozenSet(**{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in _NAMES})
