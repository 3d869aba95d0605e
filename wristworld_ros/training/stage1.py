"""Training of stage 1: losses, batches with and without calibration, evaluation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.correspondence import exact_correspondences
from wristworld_ros.reconstruction.heads import WRIST_KEYPOINTS, Keypoints
from wristworld_ros.reconstruction.model import Stage1Model, Stage1Output, relative_encoding
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
)
from wristworld_ros.reconstruction.spc import spc_loss
from wristworld_ros.training.loop import LoopConfig, train, training_record
from wristworld_ros.training.shard_data import Batch, ShardSet
from wristworld_ros.weights import load_weights, read_config, save_weights


@dataclass(frozen=True)
class Stage1Losses:
    """Weights of the losses.

    Attributes:
        depth: |log depth| error, and its confidence (as in VGGT; alpha below).
        camera: L1 of the anchors' pose encodings.
        wrist_pose: direct L1 of the wrist's translation and rotation (0 in the release).
        wrist_fov: L1 of the wrist's field of view.
        projection: SPC loss; lambda_u and lambda_depth inside it.
        heat: cross-entropy of the keypoints' heat maps; keypoint: L1 of their depth and 3-D place.
        gamma: weight of earlier refinement iterations.
        confidence: weight of the log-confidence reward.
    """

    depth: float = 8.0
    camera: float = 1.0
    wrist_pose: float = 2.0
    wrist_fov: float = 0.5
    projection: float = 0.02
    lambda_u: float = 1.0
    lambda_depth: float = 1.0
    heat: float = 0.5
    keypoint: float = 2.0
    gamma: float = 0.6
    confidence: float = 0.05


#: Errors of log depth below this hardly count any more.
SMALL_ERROR = 0.01
#: Share of training batches by number of views, and of samples by what is known.
VIEWS = ((1, 0.15), (2, 0.3), (3, 0.55))
CALIBRATED, INTRINSICS_ONLY = 0.6, 0.1


def random_batch(data: ShardSet, size: int, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """A batch with a random choice and order of views, colour jitter, and what is known (B x 2)."""

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    index = torch.randint(len(data), (size,), generator=generator).numpy()
    count = int(np.searchsorted(np.cumsum([p for _, p in VIEWS]), uniform(1).item())) + 1
    views = torch.randperm(3, generator=generator)[:count].numpy()
    batch = data.batch(index, views)
    gain = 1 + 0.2 * (uniform(size, 1, 3, 1, 1) - 0.5) + 0.3 * (uniform(size, 1, 1, 1, 1) - 0.5)
    anchors = (batch.anchors * gain).clamp(0, 1) ** (0.8 + 0.4 * uniform(size, 1, 1, 1, 1))
    draw = uniform(size)
    known = torch.stack([draw < CALIBRATED + INTRINSICS_ONLY, draw < CALIBRATED], 1)
    return Batch(**{**batch.__dict__, "anchors": anchors}), known


def relative_poses(batch: Batch) -> tuple[Tensor, Tensor]:
    """World-to-camera of anchors (B x V x 4 x 4) and wrist (B x 4 x 4), world = first anchor."""
    first = batch.T_world_anchor[:, 0]
    return (
        torch.linalg.inv(batch.T_world_anchor) @ first[:, None],
        torch.linalg.inv(batch.T_world_wrist) @ first,
    )


def stage1_loss(
    output: Stage1Output, batch: Batch, weights: Stage1Losses
) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of the losses and the figures to log."""
    H, W = batch.anchor_depth.shape[-2:]
    h, w = batch.wrist_depth.shape[-2:]
    T_anchors, T_wrist = relative_poses(batch)
    true_anchor = encode_pose(batch.T_world_anchor, fov_from_intrinsics(batch.anchor_K, H, W))
    # The wrist is right when it is right for the anchors as they are known or were estimated.
    T_base_wrist = output.T_base_anchor[:, 0] @ torch.linalg.inv(T_wrist)
    true_wrist = encode_pose(T_base_wrist, fov_from_intrinsics(batch.wrist_K, h, w))

    valid = batch.anchor_depth > 0.05
    log_true = torch.log(batch.anchor_depth.clamp_min(0.05))
    error = (torch.log(output.depth) - log_true).abs()[valid]
    confidence = output.confidence[valid]
    # VGGT multiplies the error itself by the confidence. On table tops the easy plane
    # then outweighs objects and gripper, which stay wrong; here confidence only follows.
    depth_loss = (
        F.smooth_l1_loss(error, torch.zeros_like(error), beta=SMALL_ERROR)
        + (confidence * error.detach() - weights.confidence * torch.log(confidence)).mean()
    )

    camera_loss = _pose_loss(output.cameras, true_anchor, weights.gamma)
    pose_loss = _pose_loss(output.wrist, true_wrist, weights.gamma, slice(0, 7))
    fov_loss = _pose_loss(output.wrist[1:], true_wrist, weights.gamma, slice(7, 9))
    heat_loss, keypoint_loss = _keypoint_losses(output.keypoints, batch, T_base_wrist)

    # SPC: the anchors' pixels lifted by the predicted depth, seen by the estimated wrist camera.
    pairs = exact_correspondences(
        batch.wrist_depth,
        batch.wrist_K,
        batch.T_world_wrist,
        batch.anchor_depth,
        batch.anchor_K,
        batch.T_world_anchor,
    )
    points = lift(pairs.anchor, output.depth.detach(), batch.anchor_K, torch.linalg.inv(T_anchors))
    B, V, M = pairs.valid.shape
    pixels = pairs.wrist[:, None].expand(B, V, M, 2).reshape(B, V * M, 2)
    spc_total = torch.zeros(())
    iterations = len(output.wrist)
    for i, encoding in enumerate(output.wrist):
        T_base_camera, _ = decode_pose(encoding)
        T = torch.linalg.inv(T_base_camera) @ output.T_base_anchor[:, 0]
        spc = spc_loss(
            points.reshape(B, V * M, 3),
            pixels,
            pairs.valid.reshape(B, V * M),
            T,
            batch.wrist_K,
            (h, w),
            lambda_u=weights.lambda_u,
            lambda_depth=weights.lambda_depth,
            max_error=0.5,
        )
        spc_total = spc_total + weights.gamma ** (iterations - 1 - i) * spc.total

    loss = (
        weights.depth * depth_loss
        + weights.camera * camera_loss
        + weights.wrist_pose * pose_loss
        + weights.wrist_fov * fov_loss
        + weights.projection * spc_total
        + weights.heat * heat_loss
        + weights.keypoint * keypoint_loss
    )
    return loss, {
        "depth_log_error": error.mean().item(),
        "camera": camera_loss.item(),
        "wrist_pose": pose_loss.item(),
        "spc_reprojection": spc.reprojection.item(),
        "spc_depth": spc.depth.item(),
        "heat": heat_loss.item(),
        "keypoint": keypoint_loss.item(),
    }


def _keypoint_losses(
    keypoints: Keypoints, batch: Batch, T_base_wrist: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the heat maps where a keypoint is in the picture; L1 of depth and place."""
    points = apply(T_base_wrist, T_base_wrist.new_tensor(WRIST_KEYPOINTS))  # B, K, 3
    true_points = apply(batch.T_world_wrist, points.new_tensor(WRIST_KEYPOINTS))
    local = apply(torch.linalg.inv(batch.T_world_anchor), true_points[:, None])
    z = local[..., 2].clamp_min(0.05)
    K = batch.anchor_K
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[:, :, None]
    pixels = local[..., :2] / z[..., None] * focal + K[:, :, None, :2, 2]
    h, w = keypoints.log_heat.shape[-2:]
    cell = batch.anchors.shape[-1] / w
    inside = ((pixels > 0) & (pixels < torch.tensor([w, h]) * cell)).all(-1)
    u, v = (pixels / cell - 0.5).unbind(-1)
    across = torch.exp(-0.5 * (torch.arange(w) - u[..., None]) ** 2)
    down = torch.exp(-0.5 * (torch.arange(h) - v[..., None]) ** 2)
    target = down[..., :, None] * across[..., None, :]
    target = target / target.sum((-1, -2), keepdim=True).clamp_min(1e-6)
    entropy = -(target * keypoints.log_heat).sum((-1, -2))
    depth = (torch.log(keypoints.depth) - torch.log(z)).abs()
    count = inside.sum().clamp_min(1)
    place = (keypoints.points - points).abs().mean()
    return (entropy * inside).sum() / count, (depth * inside).sum() / count + place


def apply(T: Tensor, points: Tensor) -> Tensor:
    """... x 4 x 4 transforms of ... x N x 3 points."""
    return points @ T[..., :3, :3].transpose(-1, -2) + T[..., None, :3, 3]


def _pose_loss(
    predictions: list[Tensor], target: Tensor, gamma: float, part: slice = slice(0, 9)
) -> Tensor:
    """L1 over iterations with decay; quaternions are compared up to sign.

    They are not normalised first, so that their norm stays near one and gradients alive.
    """
    total = target.new_zeros(())
    for i, prediction in enumerate(predictions):
        dot = (prediction[..., 3:7] * target[..., 3:7]).sum(-1, keepdim=True)
        sign = torch.where(dot < 0, -1.0, 1.0)
        aligned = torch.cat([target[..., :3], target[..., 3:7] * sign, target[..., 7:]], -1)
        error = (prediction - aligned)[..., part].abs().mean()
        total = total + gamma ** (len(predictions) - 1 - i) * error
    return total


def lift(pixels: Tensor, depth: Tensor, K: Tensor, T_world_camera: Tensor) -> Tensor:
    """Pixels to world points by depth.

    Args:
        pixels: B x V x M x 2 [px].
        depth: B x V x H x W [m]; the nearest pixel's is taken.
        K, T_world_camera: B x V x 3 x 3, B x V x 4 x 4.

    Returns:
        B x V x M x 3 [m].
    """
    B, V, H, W = depth.shape
    column = pixels[..., 0].floor().long().clamp(0, W - 1)
    row = pixels[..., 1].floor().long().clamp(0, H - 1)
    z = depth.reshape(B, V, -1).gather(2, row * W + column)
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[:, :, None]
    xy = (pixels - K[:, :, None, :2, 2]) / focal * z[..., None]
    local = torch.cat([xy, z[..., None]], -1)
    R, t = T_world_camera[..., :3, :3], T_world_camera[..., :3, 3]
    return local @ R.transpose(-1, -2) + t[:, :, None]


@torch.no_grad()
def evaluate_stage1(
    model: Stage1Model, data: ShardSet, known: tuple[bool, bool], views: int = 3, size: int = 8
) -> dict[str, float]:
    """Errors over all frames of ``data`` with a fixed kind of input.

    Returns:
        Medians and 90th percentiles of the wrist pose error [mm, deg], depth AbsRel, anchor pose
        error [mm], field-of-view error [deg], and the wrist's error after refinement [mm].
    """
    model.eval()
    translation, rotation, refined, absrel, anchor, fov = [], [], [], [], [], []
    for start in range(0, len(data), size):
        batch = data.batch(np.arange(start, min(start + size, len(data))), np.arange(views))
        flags = torch.tensor(known).expand(len(batch.anchors), 2)
        output = model(batch.anchors, batch.anchor_K, batch.T_world_anchor, flags)
        T_anchors, T_wrist = relative_poses(batch)
        T, fov_hw = decode_pose(output.wrist_encoding)
        t, r = pose_errors(T, T_wrist)
        translation.append(t)
        rotation.append(r)
        last, _ = decode_pose(relative_encoding(output.wrist[-1], output.T_base_anchor[:, 0]))
        refined.append(pose_errors(last, T_wrist)[0])
        h, w = batch.wrist_depth.shape[-2:]
        fov.append((fov_hw - fov_from_intrinsics(batch.wrist_K, h, w)).abs().mean(-1))
        if views > 1:
            anchor.append(pose_errors(decode_pose(output.anchor_encoding)[0], T_anchors)[0][:, 1:])
        valid = batch.anchor_depth > 0.05
        relative = (output.depth - batch.anchor_depth).abs() / batch.anchor_depth.clamp_min(0.05)
        absrel.append((relative * valid).sum((1, 2, 3)) / valid.sum((1, 2, 3)))
    t, r = torch.cat(translation) * 1e3, torch.rad2deg(torch.cat(rotation))
    figures = {
        "wrist_mm_median": t.median().item(),
        "wrist_mm_p90": t.quantile(0.9).item(),
        "wrist_deg_median": r.median().item(),
        "wrist_deg_p90": r.quantile(0.9).item(),
        "refined_mm_median": (torch.cat(refined) * 1e3).median().item(),
        "depth_absrel": torch.cat(absrel).mean().item(),
        "fov_deg": torch.rad2deg(torch.cat(fov)).mean().item(),
    }
    if anchor:
        figures["anchor_mm_median"] = (torch.cat(anchor) * 1e3).median().item()
    return figures


def pose_errors(T_a: Tensor, T_b: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of camera centres [m] and rotation angle [rad] of world-to-camera transforms."""
    centre_a = -(T_a[..., :3, :3].transpose(-1, -2) @ T_a[..., :3, 3:])[..., 0]
    centre_b = -(T_b[..., :3, :3].transpose(-1, -2) @ T_b[..., :3, 3:])[..., 0]
    R = T_a[..., :3, :3].transpose(-1, -2) @ T_b[..., :3, :3]
    cosine = (R.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2
    return (centre_a - centre_b).norm(dim=-1), torch.arccos(cosine.clamp(-1, 1))


#: What is known at inference: name -> (intrinsics, extrinsics).
KNOWLEDGE = {"rgb": (False, False), "intrinsics": (True, False), "calibrated": (True, True)}


def train_stage1(
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    losses: Stage1Losses | None = None,
    evaluate_every: int = 1000,
    init: Path | None = None,
) -> dict[str, float]:
    """Train, evaluate on val for each kind of knowledge, and write weights to ``out``.

    ``init`` is a folder of weights to start from, instead of random ones.

    The pose errors on val become the covariance that the learned source reports.
    """
    losses = losses or Stage1Losses()
    record = training_record(loop, {"losses": asdict(losses), "episodes": str(train_folder)})
    torch.manual_seed(loop.seed)
    model = Stage1Model()
    if init is not None:
        model = Stage1Model.from_config(read_config(init)["config"])
        load_weights(init, model)
        record["init"] = {k: read_config(init)[k] for k in ("sha256", "training")}
    model.bf16 = True
    data, val = ShardSet(train_folder), ShardSet(val_folder)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        batch, known = random_batch(data, loop.batch_size, generator)
        return stage1_loss(
            net(batch.anchors, batch.anchor_K, batch.T_world_anchor, known), batch, losses
        )

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, Stage1Model)
        return {
            f"{name}/{key}": value
            for name, known in KNOWLEDGE.items()
            for key, value in evaluate_stage1(net, val, known).items()
            if name != "intrinsics"
        }

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=evaluate_every)
    model.load_state_dict(ema.state)
    model.bf16 = False  # as it runs for users
    scores = {
        f"{name}/{views}": evaluate_stage1(model, val, known, views)
        for name, known in KNOWLEDGE.items()
        for views in (1, 2, 3)
    }
    save_weights(
        out, model, model.config_dict(), {"training": record, "scores": {"split": "val", **scores}}
    )
    return scores["calibrated/3"]
