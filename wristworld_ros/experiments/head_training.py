"""One run: a small wrist head of the paper's kind, trained on frozen tokens, and its errors."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wristworld_ros.experiments.features import FrozenSet, load, thinned, with_pairs
from wristworld_ros.reconstruction.backbone import BackboneConfig, Features
from wristworld_ros.reconstruction.heads import WristHead
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
)
from wristworld_ros.reconstruction.spc import spc_loss
from wristworld_ros.training.loop import LoopConfig, train
from wristworld_ros.training.stage1 import pose_errors, pose_l1

#: Width to which tokens are brought first, so that a run takes seconds: the head itself is the
#: shipped one's code.
WIDTH = 96
#: Poses (centre [m], quaternion xyzw) that the head's iterations start from, in the base frame.
STARTS = {
    # As shipped: at the robot's base, looking up.
    "base": (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    # Half a metre over the table, looking down, as any wrist camera does more or less.
    "above": (0.5, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0),
}
#: Errors per pair beyond this share of the picture's diagonal grow linearly only, as in training.
MAX_ERROR = 0.5


@dataclass(frozen=True)
class HeadLosses:
    """Weights of the losses; in the release projection 1, pose 0, FoV 10 (method.md, 2).

    Attributes:
        projection: SPC, with ``lambda_u`` and ``lambda_depth`` inside it.
        pose: L1 of translation [m] and quaternion: direct supervision.
        fov: L1 of the field of view [rad].
        gamma: weight of earlier iterations.
    """

    projection: float = 1.0
    lambda_u: float = 1.0
    lambda_depth: float = 1.0
    pose: float = 0.0
    fov: float = 1.0
    gamma: float = 0.6


@dataclass(frozen=True)
class Run:
    """One training: features by folder, losses, and the loop, whose seed is the run's.

    Attributes:
        name: of the kind of run; runs of one name differ by seed alone.
        train: features to learn from.
        tests: name -> features to measure errors on.
        kind: of pairs, see ``with_pairs``.
        pairs, sigma: keep so many pairs per frame, with noise on their pixels [px]; all when None.
        start: of ``STARTS``.
    """

    name: str
    train: Path
    tests: dict[str, Path]
    losses: HeadLosses = field(default_factory=HeadLosses)
    loop: LoopConfig = field(default_factory=LoopConfig)
    kind: str = "all"
    pairs: int | None = None
    sigma: float = 0.0
    start: str = "above"


class SmallHead(nn.Module):
    """Tokens to ``WIDTH`` channels, then the wrist head."""

    def __init__(self, token_dim: int, start: str = "above") -> None:
        super().__init__()
        self.narrow = nn.Linear(token_dim, WIDTH)
        self.head = WristHead(BackboneConfig(dim=WIDTH // 2, heads=4))
        self.head.refiner.initial[:7] = torch.tensor(STARTS[start])

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """B x V x n x C -> per iteration B x 9, wrist camera to base."""
        x = self.narrow(tokens)
        none = x.new_zeros(0)
        return self.head(Features([x], (none, none, none), (0, 0), 0))


@dataclass(frozen=True)
class HeadBatch:
    """Frames as float tensors; fields as in ``FrozenSet``."""

    tokens: Tensor
    points: Tensor
    pixels: Tensor
    valid: Tensor
    T_base_wrist: Tensor
    wrist_K: Tensor
    size: tuple[int, int]


def frames(data: FrozenSet, index: np.ndarray) -> HeadBatch:
    """Frames ``index``."""
    h, w = (int(n) for n in data.size)
    names = ("tokens", "points", "pixels", "valid", "T_base_wrist", "wrist_K")
    parts = {name: torch.from_numpy(getattr(data, name)[index]) for name in names}
    return HeadBatch(**{**parts, "tokens": parts["tokens"].float()}, size=(h, w))


def head_loss(
    poses: list[Tensor], batch: HeadBatch, weights: HeadLosses
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum over the iterations, and the figures of the last one.

    Args:
        poses: per iteration B x 9, wrist camera to base.
    """
    truth = encode_pose(batch.T_base_wrist, fov_from_intrinsics(batch.wrist_K, *batch.size))
    total = truth.new_zeros(())
    for i, pose in enumerate(poses):
        spc = spc_loss(
            batch.points,
            batch.pixels,
            batch.valid,
            torch.linalg.inv(decode_pose(pose)[0]),
            batch.wrist_K,
            batch.size,
            lambda_u=weights.lambda_u,
            lambda_depth=weights.lambda_depth,
            max_error=MAX_ERROR,
        )
        direct = pose_l1([pose], truth, 1.0, slice(0, 7))
        fov = pose_l1([pose], truth, 1.0, slice(7, 9))
        loss = weights.projection * spc.total + weights.pose * direct + weights.fov * fov
        total = total + weights.gamma ** (len(poses) - 1 - i) * loss
    return total, {
        "reprojection": spc.reprojection.item(),
        "behind": spc.depth.item(),
        "direct": direct.item(),
        "fov": fov.item(),
    }


@torch.no_grad()
def head_errors(head: nn.Module, data: FrozenSet, size: int = 32) -> dict[str, float]:
    """Median errors over all frames: pose [mm] and [deg], and reprojection of the pairs [px]."""
    head.eval()
    rows = []
    for start in range(0, len(data), size):
        batch = frames(data, np.arange(start, min(start + size, len(data))))
        rows.append(_errors(decode_pose(head(batch.tokens)[-1])[0], batch))
    return _medians(rows)


def constant_errors(train: FrozenSet, test: FrozenSet) -> dict[str, float]:
    """The same errors of one pose for all frames: mean centre, mean rotation of ``train``."""
    T = torch.from_numpy(np.array(train.T_base_wrist)).mean(0)
    U, _, Vh = torch.linalg.svd(T[:3, :3])
    T[:3, :3] = U @ torch.diag(torch.tensor([1.0, 1.0, float(torch.det(U @ Vh))])) @ Vh
    batch = frames(test, np.arange(len(test)))
    return _medians([_errors(T.expand(len(test), 4, 4), batch)])


def _errors(T_base_wrist: Tensor, batch: HeadBatch) -> Tensor:
    """3 x B: centre [m], rotation [rad], median distance of pairs [px] (NaN without pairs)."""
    T = torch.linalg.inv(T_base_wrist)
    metres, radians = pose_errors(T, torch.linalg.inv(batch.T_base_wrist))
    x = batch.points @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]
    z = x[..., 2:]
    uv = ((x / z.clamp_min(1e-3)) @ batch.wrist_K.transpose(1, 2))[..., :2]
    diagonal = float(np.hypot(*batch.size))  # for pairs behind the camera too
    error = (uv - batch.pixels).norm(dim=-1).clamp_max(diagonal)
    error = torch.where(z[..., 0] > 0, error, diagonal)
    pixels = torch.where(batch.valid, error, torch.nan).nanmedian(1).values
    return torch.stack([metres, radians, pixels])


def _medians(rows: list[Tensor]) -> dict[str, float]:
    metres, radians, pixels = torch.cat(rows, 1)
    return {
        "mm": 1e3 * metres.median().item(),
        "deg": torch.rad2deg(radians.median()).item(),
        "px": pixels.nanmedian().item(),
    }


def execute(run: Run) -> dict[str, dict[str, float]]:
    """Train one head; errors of its averaged weights per test set."""
    data = with_pairs(load(run.train), run.kind)
    if run.pairs is not None:
        data = thinned(data, pairs=run.pairs, sigma=run.sigma, seed=run.loop.seed)
    torch.manual_seed(run.loop.seed)
    head = SmallHead(data.tokens.shape[-1], run.start)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = torch.randint(len(data), (run.loop.batch_size,), generator=generator).numpy()
        batch = frames(data, index)
        return head_loss(net(batch.tokens), batch, run.losses)

    with tempfile.TemporaryDirectory() as work:
        ema = train(head, compute, Path(work), run.loop, resume=False)
    head.load_state_dict(ema.state)
    return {name: head_errors(head, load(folder)) for name, folder in run.tests.items()}
