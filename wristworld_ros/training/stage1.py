"""Training of stage 1: losses, batches with and without calibration, evaluation."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.correspondence import Correspondences, exact_correspondences
from wristworld_ros.reconstruction.fitting import log_so3
from wristworld_ros.reconstruction.heads import BASE_LANDMARKS, WRIST_KEYPOINTS, project
from wristworld_ros.reconstruction.heatmaps import HeatPeaks, heat_loss
from wristworld_ros.reconstruction.model import (
    Stage1Model,
    Stage1Output,
    pixel_rays,
    relative_encoding,
)
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
)
from wristworld_ros.reconstruction.spc import SpcLoss, spc_loss
from wristworld_ros.training.loop import (
    LoopConfig,
    is_main_process,
    start_from,
    train,
    training_record,
)
from wristworld_ros.training.shard_data import Batch, ShardSet
from wristworld_ros.weights import save_weights


@dataclass(frozen=True)
class Stage1Losses:
    """Weights of the losses.

    Attributes:
        depth: |log depth| error, of the first estimate and of the last, and its confidence.
        above_table: how much more pixels above the base plane count than those on it.
        camera: L1 of the camera head's pose encodings.
        wrist_pose: direct L1 of the wrist's translation and rotation (0 in the release).
        wrist_fov: L1 of the wrist's field of view.
        projection: SPC loss; lambda_u and lambda_depth inside it.
        heat: cross-entropy of landmarks' and keypoints' heat maps.
        place: L1 of where they are, in cells.
        keypoint: L1 of the keypoints' log depth and fused place [m].
        gamma: weight of earlier refinement iterations.
        confidence: weight of the log-confidence reward.
    """

    depth: float = 8.0
    above_table: float = 3.0
    camera: float = 1.0
    wrist_pose: float = 1.0
    wrist_fov: float = 0.5
    projection: float = 0.02
    lambda_u: float = 1.0
    lambda_depth: float = 1.0
    heat: float = 0.3
    place: float = 0.1
    keypoint: float = 2.0
    gamma: float = 0.6
    confidence: float = 0.05


#: Errors of log depth below this hardly count any more.
SMALL_ERROR = 0.01
#: Points higher than this above the base plane [m] are not the table.
TABLE_HEIGHT = 0.008
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
    batch = coloured(data.batch(index, views), generator)
    draw = uniform(size)
    known = torch.stack([draw < CALIBRATED + INTRINSICS_ONLY, draw < CALIBRATED], 1)
    return batch, known


def coloured(batch: Batch, generator: torch.Generator) -> Batch:
    """The batch with colours, brightness and contrast of each frame's anchors varied."""
    size = len(batch.anchors)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    gain = 1 + 0.2 * (uniform(size, 1, 3, 1, 1) - 0.5) + 0.3 * (uniform(size, 1, 1, 1, 1) - 0.5)
    anchors = (batch.anchors * gain).clamp(0, 1) ** (0.8 + 0.4 * uniform(size, 1, 1, 1, 1))
    return replace(batch, anchors=anchors)


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
    H, W = batch.anchors.shape[-2:]
    h, w = batch.wrist_depth.shape[-2:]
    T_anchors, T_wrist = relative_poses(batch)
    true_anchor = encode_pose(batch.T_world_anchor, fov_from_intrinsics(batch.anchor_K, H, W))
    # The wrist is right when it is right for the anchors as they are known or were estimated.
    T_base_wrist = output.T_base_anchor[:, 0] @ torch.linalg.inv(T_wrist)
    true_wrist = encode_pose(T_base_wrist, fov_from_intrinsics(batch.wrist_K, h, w))

    depth_loss, depth_error = _depth_loss(output, batch, weights)
    camera_loss = pose_l1(output.cameras[:-1], true_anchor, weights.gamma)
    pose_loss = pose_l1(output.wrist, true_wrist, weights.gamma, slice(0, 7))
    fov_loss = pose_l1(output.wrist, true_wrist, weights.gamma, slice(7, 9))
    fits = [encode_pose(T, true_wrist[:, 7:]) for T in output.wrist_fits]
    fit_loss = pose_l1(fits, true_wrist, 1.0, slice(0, 7))

    landmarks = batch.T_world_wrist.new_tensor(BASE_LANDMARKS).expand(len(T_wrist), -1, -1)
    base = _point_losses(output.landmarks, landmarks, batch.depth_K, batch.T_world_anchor)
    true_points = apply(batch.T_world_wrist, true_wrist.new_tensor(WRIST_KEYPOINTS))
    points = apply(T_base_wrist, true_wrist.new_tensor(WRIST_KEYPOINTS))
    heat, place, keypoint_loss = base.heat, base.place, true_wrist.new_zeros(())
    for found, K in ((output.keypoints, batch.depth_K), (output.close, output.crop_K)):
        # The cut-outs of estimated cameras are at estimated places; their intrinsics take the true
        # point to the cut-out only by the true camera's own pixel.
        if found is output.close:
            K = output.crop_K @ torch.linalg.inv(output.anchor_K) @ batch.anchor_K
        part = _point_losses(found.peaks, true_points, K, batch.T_world_anchor)
        heat = heat + part.heat
        place = place + part.place
        z = torch.log(part.depth.clamp_min(0.05))
        error = (torch.log(found.depth) - z).abs()
        count = part.inside.sum().clamp_min(1)
        keypoint_loss = (
            keypoint_loss
            + (error * part.inside).sum() / count
            + (found.points - points).abs().clamp_max(0.5).mean()
        )

    projection, spc = _projection_loss(output, batch, T_anchors, weights)
    loss = (
        weights.depth * depth_loss
        + weights.camera * camera_loss
        + weights.wrist_pose * (pose_loss + fit_loss)
        + weights.wrist_fov * fov_loss
        + weights.projection * projection
        + weights.heat * heat
        + weights.place * place
        + weights.keypoint * keypoint_loss
    )
    return loss, {
        "depth_log_error": depth_error.item(),
        "camera": camera_loss.item(),
        "wrist_pose": pose_loss.item(),
        "wrist_fit": fit_loss.item(),
        "spc_reprojection": spc.reprojection.item(),
        "spc_depth": spc.depth.item(),
        "heat": heat.item(),
        "place": place.item(),
        "keypoint": keypoint_loss.item(),
    }


def _depth_loss(output: Stage1Output, batch: Batch, weights: Stage1Losses) -> tuple[Tensor, Tensor]:
    """Loss of both depth estimates and of the confidence; mean error of log depth, unweighted."""
    true = batch.anchor_depth
    weight = 1 + (weights.above_table - 1) * above_table(batch)
    total = true.new_zeros(())
    step = true.shape[-1] // output.first_depth.shape[-1]
    middle = slice(step // 2, None, step)
    for depth, target, share in (
        (output.first_depth, true[..., middle, middle], weight[..., middle, middle]),
        (output.depth, true, weight),
    ):
        valid = (target > 0.05) * share
        error = (torch.log(depth) - torch.log(target.clamp_min(0.05))).abs()
        smooth = F.smooth_l1_loss(
            error, torch.zeros_like(error), beta=SMALL_ERROR, reduction="none"
        )
        total = total + (smooth * valid).sum() / valid.sum().clamp_min(1)
    valid = true > 0.05
    # VGGT multiplies the error itself by the confidence. On table tops the easy plane
    # then outweighs objects and gripper, which stay wrong; here confidence only follows.
    confidence, error = output.confidence[valid], error[valid]
    follow = confidence * error.detach() - weights.confidence * torch.log(confidence)
    return total + follow.mean(), error.detach().mean()


def above_table(batch: Batch) -> Tensor:
    """B x V x H/2 x W/2 bool: the pixel shows something that stands above the base plane."""
    true = batch.anchor_depth
    rays = pixel_rays(batch.depth_K, (true.shape[-2], true.shape[-1]), 1)
    world = apply(batch.T_world_anchor, (rays * true[..., None]).flatten(2, 3))
    return world[..., 2].reshape(true.shape) > TABLE_HEIGHT


def exact_pairs(batch: Batch) -> Correspondences:
    """Pairs by true depth and poses; anchor pixels at the depth's resolution."""
    return exact_correspondences(
        batch.wrist_depth,
        batch.wrist_K,
        batch.T_world_wrist,
        batch.anchor_depth,
        batch.depth_K,
        batch.T_world_anchor,
    )


def _projection_loss(
    output: Stage1Output, batch: Batch, T_anchors: Tensor, weights: Stage1Losses
) -> tuple[Tensor, SpcLoss]:
    """SPC: the anchors' pixels lifted by the predicted depth, seen by the estimated wrist camera.

    Over the wrist head's iterations, with decay, and over both fits; the last one's parts.
    """
    pairs = exact_pairs(batch)
    points = lift(pairs.anchor, output.depth.detach(), batch.depth_K, torch.linalg.inv(T_anchors))
    B, V, M = pairs.valid.shape
    pixels = pairs.wrist[:, None].expand(B, V, M, 2).reshape(B, V * M, 2)
    total = torch.zeros(())
    last = len(output.wrist) - 1
    poses = [(decode_pose(e)[0], weights.gamma ** (last - i)) for i, e in enumerate(output.wrist)]
    for T_base_camera, share in (*poses, *((T, 1.0) for T in output.wrist_fits)):
        spc = spc_loss(
            points.reshape(B, V * M, 3),
            pixels,
            pairs.valid.reshape(B, V * M),
            torch.linalg.inv(T_base_camera) @ output.T_base_anchor[:, 0],
            batch.wrist_K,
            (batch.wrist_depth.shape[-2], batch.wrist_depth.shape[-1]),
            lambda_u=weights.lambda_u,
            lambda_depth=weights.lambda_depth,
            max_error=0.5,
        )
        total = total + share * spc.total
    return total, spc


@dataclass(frozen=True)
class _PointLosses:
    heat: Tensor
    place: Tensor
    inside: Tensor
    depth: Tensor


def _point_losses(
    peaks: HeatPeaks, points: Tensor, K: Tensor, T_base_camera: Tensor
) -> _PointLosses:
    """Losses of located points, means; which are in the picture, and their true depth [m].

    Args:
        peaks: B x V x K, in pixels of ``K``.
        points: B x K x 3 true points in the base frame [m].
    """
    pixels, depth = project(points, K, T_base_camera)
    heat, inside = heat_loss(peaks, pixels, depth > 0.05)
    # Heat maps have a sample each, wherever the point is; places count where it is seen.
    error = ((peaks.pixels - pixels) / peaks.cell).abs().sum(-1).clamp_max(10.0)
    place = (error * inside).sum() / inside.sum().clamp_min(1)
    return _PointLosses(heat.mean(), place, inside, depth)


def apply(T: Tensor, points: Tensor) -> Tensor:
    """... x 4 x 4 transforms of ... x N x 3 points."""
    return points @ T[..., :3, :3].transpose(-1, -2) + T[..., None, :3, 3]


def pose_l1(
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
        Medians and 90th percentiles of the wrist pose error [mm, deg], the same before the
        cut-outs (``coarse``) and of the wrist head alone (``head``), depth AbsRel (``first``:
        before views were compared; ``above_table``: of what stands on the table), anchor pose
        error against the first anchor [mm] and against the base [mm, deg], field-of-view error
        [deg], and the factors by which the stated standard deviations have to be multiplied.
    """
    model.eval()
    rows: dict[str, list[Tensor]] = {}

    def add(**values: Tensor) -> None:
        for name, value in values.items():
            rows.setdefault(name, []).append(value.flatten())

    for start in range(0, len(data), size):
        batch = data.batch(np.arange(start, min(start + size, len(data))), np.arange(views))
        flags = torch.tensor(known).expand(len(batch.anchors), 2)
        output = model(batch.anchors, batch.anchor_K, batch.T_world_anchor, flags)
        T_anchors, T_wrist = relative_poses(batch)
        T, fov_hw = decode_pose(output.wrist_encoding)
        t, r = pose_errors(T, T_wrist)
        add(wrist_t=t, wrist_r=r)
        first = output.T_base_anchor[:, 0]
        coarse = torch.linalg.inv(output.wrist_fits[0]) @ first
        add(coarse_t=pose_errors(coarse, T_wrist)[0], coarse_r=pose_errors(coarse, T_wrist)[1])
        head, _ = decode_pose(relative_encoding(output.wrist[-1], first))
        add(head_t=pose_errors(head, T_wrist)[0], head_r=pose_errors(head, T_wrist)[1])
        truth = first @ torch.linalg.inv(T_wrist)
        fit = output.wrist_fits[1]
        for name, part, error in (
            ("sigma_t", slice(0, 3), fit[:, :3, 3] - truth[:, :3, 3]),
            ("sigma_r", slice(3, 6), log_so3(fit, truth)),
        ):
            covariance = output.wrist_covariance[:, part, part]
            add(**{name: (error * torch.linalg.solve(covariance, error)).sum(-1)})
        h, w = batch.wrist_depth.shape[-2:]
        add(fov=(fov_hw - fov_from_intrinsics(batch.wrist_K, h, w)).abs().mean(-1))
        if views > 1:
            add(anchor=pose_errors(decode_pose(output.anchor_encoding)[0], T_anchors)[0][:, 1:])
        base = torch.linalg.inv(decode_pose(output.cameras[-1])[0])
        t, r = pose_errors(base, torch.linalg.inv(batch.T_world_anchor))
        add(camera_t=t, camera_r=r)
        true = batch.anchor_depth
        valid = true > 0.05
        relative = (output.depth - true).abs() / true.clamp_min(0.05)
        above = valid & above_table(batch)
        add(absrel=_mean(relative, valid), above=_mean(relative, above))
        step = true.shape[-1] // output.first_depth.shape[-1]
        middle = (..., slice(step // 2, None, step), slice(step // 2, None, step))
        relative = (output.first_depth - true[middle]).abs() / true[middle].clamp_min(0.05)
        add(first=_mean(relative, valid[middle]))
    all_ = {name: torch.cat(values) for name, values in rows.items()}
    figures = {
        "wrist_mm_median": 1e3 * all_["wrist_t"].median().item(),
        "wrist_mm_p90": 1e3 * all_["wrist_t"].quantile(0.9).item(),
        "wrist_deg_median": math.degrees(all_["wrist_r"].median().item()),
        "wrist_deg_p90": math.degrees(all_["wrist_r"].quantile(0.9).item()),
        "coarse_mm_median": 1e3 * all_["coarse_t"].median().item(),
        "coarse_deg_median": math.degrees(all_["coarse_r"].median().item()),
        "head_mm_median": 1e3 * all_["head_t"].median().item(),
        "head_deg_median": math.degrees(all_["head_r"].median().item()),
        "depth_absrel": all_["absrel"].mean().item(),
        "depth_absrelabove_table": all_["above"].mean().item(),
        "depth_absrel_first": all_["first"].mean().item(),
        "camera_mm_median": 1e3 * all_["camera_t"].median().item(),
        "camera_deg_median": math.degrees(all_["camera_r"].median().item()),
        "fov_deg": math.degrees(all_["fov"].mean().item()),
        "sigma_factor_t": (all_["sigma_t"].median().item() / CHI2_3_MEDIAN) ** 0.5,
        "sigma_factor_r": (all_["sigma_r"].median().item() / CHI2_3_MEDIAN) ** 0.5,
    }
    if views > 1:
        figures["anchor_mm_median"] = 1e3 * all_["anchor"].median().item()
    return figures


#: Median of the chi-squared distribution with 3 degrees of freedom.
CHI2_3_MEDIAN = 2.366


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Means per sample over the places where ``where``."""
    parts = tuple(range(1, values.ndim))
    return (values * where).sum(parts) / where.sum(parts).clamp_min(1)


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

    ``init`` is a folder of weights to start from, instead of random ones; parts that they do not
    have, or have in another shape, start from random ones and are named in the record.

    The pose errors on val become the covariance that the learned source reports.
    """
    losses = losses or Stage1Losses()
    record = training_record(loop, {"losses": asdict(losses), "episodes": str(train_folder)})
    torch.manual_seed(loop.seed)
    model = Stage1Model()
    start_from(init, model, record)
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
    scores = {
        f"{name}/{views}": evaluate_stage1(model, val, known, views)
        for name, known in KNOWLEDGE.items()
        for views in (1, 2, 3)
    }
    if is_main_process():
        info = {"training": record, "scores": {"split": "val", **scores}}
        save_weights(out, model, model.config_dict(), info)
    return scores["calibrated/3"]
