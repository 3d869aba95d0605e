"""Stage 1 from recordings with a wrist video: the wrist is learned from projection (SPC) alone.

No wrist pose and no calibration is needed, as in the paper (method.md, 2): pairs of pixels between
the wrist picture and the anchors are found by a matcher, the anchors' pixels are lifted by the
model's own depth, and the wrist camera has to see them where the wrist picture shows them. What
says where the scene is (backbone, depth, anchor cameras) stays as it is; the wrist's parts learn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.data.video_folder import decode_video, read_video_folder
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.geometry.camera import rectify
from wristworld_ros.reconstruction import ReconstructorConfig
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.correspondence import CorrespondenceSource
from wristworld_ros.reconstruction.geometry_prediction import network_size
from wristworld_ros.reconstruction.model import Stage1Model, Stage1Output
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    fov_from_intrinsics,
    intrinsics_from_fov,
)
from wristworld_ros.reconstruction.spc import spc_loss
from wristworld_ros.training.loop import LoopConfig, is_main_process, train, training_record
from wristworld_ros.training.stage1 import lift
from wristworld_ros.types import AnchorView, CameraModel, Image
from wristworld_ros.weights import load_weights, read_config, save_weights

#: Long side of the network's input, and what its sides are multiples of [px].
NETWORK_SIZE, SIDE_STEP = ReconstructorConfig.network_size, 2 * BackboneConfig.patch_size
#: What does not learn: without true geometry it would drift along with the wrist.
FROZEN = ("backbone", "camera_head", "depth_head", "point_head")


@dataclass(frozen=True)
class WristVideoLosses:
    """Weights of the losses (release: 1 and 10).

    Attributes:
        projection: SPC, with ``lambda_u`` and ``lambda_depth`` inside it.
        fov: L1 of the field of view, where the wrist camera's is known.
        gamma: weight of earlier refinement iterations.
        max_error: errors per pair beyond this share of the picture's diagonal grow linearly only:
            matchers make false pairs.
    """

    projection: float = 1.0
    lambda_u: float = 1.0
    lambda_depth: float = 1.0
    fov: float = 10.0
    gamma: float = 0.6
    max_error: float = 0.25


@dataclass(frozen=True)
class Recording:
    """N moments of one recording.

    Attributes:
        name: its path.
        anchors: N x V x H x W x 3 uint8, at the network's size.
        anchor_K, T_world_anchor: N x V x 3 x 3 [px of ``anchors``], N x V x 4 x 4; or None.
        wrist_size: (h, w) of the wrist pictures, which ``wrist_pixels`` and ``wrist_K`` refer to.
        wrist_K: 3 x 3, or None where the wrist camera is unknown.
        anchor_pixels: N x V x M x 2 in ``anchors``; wrist_pixels: N x M x 2; valid: N x V x M.
        dropped: moments without a usable pair.
    """

    name: str
    anchors: NDArray[np.uint8]
    anchor_K: NDArray[np.float32] | None
    T_world_anchor: NDArray[np.float32] | None
    wrist_size: tuple[int, int]
    wrist_K: NDArray[np.float32] | None
    anchor_pixels: NDArray[np.float32]
    wrist_pixels: NDArray[np.float32]
    valid: NDArray[np.bool_]
    dropped: int

    def __len__(self) -> int:
        return len(self.anchors)


def read_recording(
    path: Path, source: CorrespondenceSource, *, stride: int = 1, wrist_fov: float | None = None
) -> Recording:
    """Read a folder of videos or a bag with ``wrist_true`` pictures, and match its pictures.

    Args:
        source: finds the pairs, in the pictures alone.
        stride: take every so many moments.
        wrist_fov: vertical field of view of the wrist camera [rad]; that of the recording when
            None, unknown when that has none.

    Raises:
        InvalidInputError: there is no wrist video, or no moment has a pair; the message says why.
        BagError: neither a readable folder of videos nor a bag.
    """
    if stride < 1:
        raise InvalidInputError(f"stride {stride}: take every 1st moment or fewer.")
    parts: dict[str, list[Any]] = {n: [] for n in ("anchors", "K", "T", "a", "w", "valid")}
    reasons: set[str] = set()
    dropped, wrist_K, size = 0, None, (0, 0)
    for i, (views, wrist, camera) in enumerate(_moments(path)):
        if i % stride:
            continue
        images = [view.image for view in views]
        if len({image.shape for image in images}) > 1:
            raise InvalidInputError(
                f"{path}: anchor pictures of {[image.shape for image in images]}; export them at "
                "one size."
            )
        pairs = source(_tensor([wrist]), _tensor(images)[None])
        if not pairs.valid.any():
            dropped += 1
            reasons |= {reason for row in pairs.counts.reasons for reason in row}
            continue
        size = wrist.shape[:2]
        wrist_K = None if camera is None else camera.K
        H, W = images[0].shape[:2]
        height, width = network_size(H, W, NETWORK_SIZE, SIDE_STEP)
        scale = np.array([width / W, height / H])
        parts["anchors"].append(
            [cv2.resize(x, (width, height), interpolation=cv2.INTER_AREA) for x in images]
        )
        if all(view.camera is not None and view.T_world_camera is not None for view in views):
            parts["K"].append([np.diag([*scale, 1]) @ v.camera.K for v in views if v.camera])
            parts["T"].append([v.T_world_camera for v in views])
        parts["a"].append(pairs.anchor[0].numpy() * scale)
        parts["w"].append(pairs.wrist[0].numpy())
        parts["valid"].append(pairs.valid[0].numpy())
    count = len(parts["anchors"])
    if not count:
        raise InvalidInputError(
            f"{path}: none of {dropped} moments with a wrist picture has a usable pair between "
            f"wrist and anchors ({'; '.join(sorted(reasons)) or 'no wrist video'}). Give "
            "recordings with a wrist video whose pictures overlap."
        )
    if wrist_fov is not None:
        wrist_K = CameraModel.from_fov(wrist_fov, size[1], size[0]).K
    calibrated = len(parts["K"]) == count
    return Recording(
        str(path),
        np.asarray(parts["anchors"], np.uint8),
        np.asarray(parts["K"], np.float32) if calibrated else None,
        np.asarray(parts["T"], np.float32) if calibrated else None,
        size,
        None if wrist_K is None else np.asarray(wrist_K, np.float32),
        _padded(parts["a"], 1).astype(np.float32),
        _padded(parts["w"], 0).astype(np.float32),
        _padded(parts["valid"], 1),
        dropped,
    )


def _moments(path: Path) -> Iterator[tuple[Sequence[AnchorView], Image, CameraModel | None]]:
    """Anchor views, wrist picture and wrist camera of every moment that has a wrist picture."""
    if path.is_dir() and next(path.glob("*.mp4"), None):
        folder = read_video_folder(path)
        if folder.wrist is None:
            return
        for i, (wrist, *images) in enumerate(
            zip(*map(decode_video, (folder.wrist, *folder.views.values())), strict=True)
        ):
            yield (
                [AnchorView(n, x, i) for n, x in zip(folder.views, images, strict=True)],
                wrist,
                None,
            )
        return
    with BagReader(path) as bag:
        for frame, truth in BagFrames(bag).with_truth():
            if truth is None:
                continue
            views = []
            for view in frame.views:
                image, camera, pose = view.image, view.camera, view.T_world_camera
                if camera is not None:
                    image, camera = rectify(image, camera)
                views.append(AnchorView(view.name, image, view.stamp_ns, camera, pose))
            image, camera = truth.image, truth.camera
            if camera is not None:
                image, camera = rectify(image, camera)
            yield views, image, camera


def _tensor(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def _padded(arrays: list[NDArray], axis: int) -> NDArray:
    """Arrays that differ in length along ``axis``, stacked; zeros (False) where one is shorter."""
    longest = max(a.shape[axis] for a in arrays)
    return np.stack(
        [
            np.pad(a, [(0, longest - n if k == axis else 0) for k, n in enumerate(a.shape)])
            for a in arrays
        ]
    )


@dataclass(frozen=True)
class Sample:
    """Moments of one recording as tensors; fields as in ``Recording``, with B for N."""

    anchors: Tensor
    anchor_K: Tensor | None
    T_world_anchor: Tensor | None
    wrist_size: tuple[int, int]
    wrist_K: Tensor | None
    anchor_pixels: Tensor
    wrist_pixels: Tensor
    valid: Tensor


def sample_of(recording: Recording, index: NDArray[np.int64], device: torch.device) -> Sample:
    """Moments ``index`` of a recording."""

    def pick(array: NDArray | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array[index]).to(device)

    anchors = torch.from_numpy(recording.anchors[index]).to(device)
    K = recording.wrist_K
    return Sample(
        anchors.permute(0, 1, 4, 2, 3).float() / 255,
        pick(recording.anchor_K),
        pick(recording.T_world_anchor),
        recording.wrist_size,
        None if K is None else torch.from_numpy(K).to(device).expand(len(index), 3, 3),
        torch.from_numpy(recording.anchor_pixels[index]).to(device),
        torch.from_numpy(recording.wrist_pixels[index]).to(device),
        torch.from_numpy(recording.valid[index]).to(device),
    )


def predict(model: Stage1Model, sample: Sample) -> Stage1Output:
    """The model's output, with calibration where the recording has it."""
    known = None
    if sample.anchor_K is not None:
        known = torch.ones(len(sample.anchors), 2, dtype=torch.bool, device=sample.anchors.device)
    output: Stage1Output = model(sample.anchors, sample.anchor_K, sample.T_world_anchor, known)
    return output


def wrist_video_loss(
    output: Stage1Output, sample: Sample, weights: WristVideoLosses
) -> tuple[Tensor, dict[str, float]]:
    """SPC of all wrist poses that the model gives, and the field of view where it is known."""
    points, pixels, valid = _pairs(output, sample)
    h, w = sample.wrist_size
    last = len(output.wrist) - 1
    poses = [(e, weights.gamma ** (last - i)) for i, e in enumerate(output.wrist)]
    total = points.new_zeros(())
    for encoding, share in (*poses, (output.wrist_pose, 1.0)):
        T_base_wrist, fov = decode_pose(encoding)
        K = intrinsics_from_fov(fov, h, w) if sample.wrist_K is None else sample.wrist_K
        spc = spc_loss(
            points,
            pixels,
            valid,
            torch.linalg.inv(T_base_wrist),
            K,
            (h, w),
            lambda_u=weights.lambda_u,
            lambda_depth=weights.lambda_depth,
            max_error=weights.max_error,
        )
        total = total + share * weights.projection * spc.total
        if sample.wrist_K is not None:
            error = (fov - fov_from_intrinsics(sample.wrist_K, h, w)).abs().mean()
            total = total + share * weights.fov * error
    return total, {
        "spc_reprojection": spc.reprojection.item(),
        "spc_depth": spc.depth.item(),
        "pairs": valid.sum().item() / len(valid),
    }


def _pairs(output: Stage1Output, sample: Sample) -> tuple[Tensor, Tensor, Tensor]:
    """B x VM x 3 points in the base frame, B x VM x 2 wrist pixels, B x VM valid."""
    B, V, M = sample.valid.shape
    scale = output.depth.shape[-1] / sample.anchors.shape[-1]
    K = output.anchor_K * output.anchor_K.new_tensor([scale, scale, 1.0])[:, None]
    points = lift(
        sample.anchor_pixels * scale, output.depth.detach(), K.detach(), output.T_base_anchor
    )
    pixels = sample.wrist_pixels[:, None].expand(B, V, M, 2)
    return points.reshape(B, -1, 3), pixels.reshape(B, -1, 2), sample.valid.reshape(B, -1)


@torch.no_grad()
def evaluate_wrist_video(
    model: Stage1Model, recordings: Sequence[Recording], size: int = 8
) -> dict[str, float]:
    """Reprojection error of the estimated wrist pose over all pairs.

    Returns:
        ``reprojection_px_median`` and ``_p90``, and ``behind``: share of pairs behind the camera.
    """
    errors, behind = [], []
    device = next(model.parameters()).device
    for recording in recordings:
        for start in range(0, len(recording), size):
            index = np.arange(start, min(start + size, len(recording)))
            sample = sample_of(recording, index, device)
            output = predict(model, sample)
            points, pixels, valid = _pairs(output, sample)
            T_base_wrist, fov = decode_pose(output.wrist_pose)
            K = sample.wrist_K
            if K is None:
                K = intrinsics_from_fov(fov, *sample.wrist_size)
            T = torch.linalg.inv(T_base_wrist)
            x = points @ T[:, :3, :3].transpose(1, 2) + T[:, None, :3, 3]
            z = x[..., 2:]
            uv = (x / z.clamp_min(1e-3)) @ K.transpose(1, 2)
            errors.append((uv[..., :2] - pixels).norm(dim=-1)[valid & (z[..., 0] > 0)])
            behind.append((z[..., 0] <= 0)[valid])
    error = torch.cat(errors)
    if not len(error):
        return {"behind": 1.0}
    return {
        "reprojection_px_median": error.median().item(),
        "reprojection_px_p90": float(np.percentile(error.cpu().numpy(), 90)),
        "behind": torch.cat(behind).float().mean().item(),
    }


def train_wrist_video(
    recordings: Sequence[Recording],
    val: Sequence[Recording],
    work: Path,
    out: Path,
    loop: LoopConfig,
    init: Path,
    losses: WristVideoLosses | None = None,
) -> dict[str, dict[str, float]]:
    """Fine-tune the wrist's parts of the model in ``init`` and write weights to ``out``.

    Args:
        recordings, val: to learn from and to score on, from ``read_recording``.
        init: folder of stage-1 weights; the geometry of the scene comes from them.

    Returns:
        ``before`` and ``after``: figures of ``evaluate_wrist_video`` on ``val``.
    """
    losses = losses or WristVideoLosses()
    document = read_config(init)
    model = Stage1Model.from_config(document["config"])
    load_weights(init, model)
    record = training_record(
        loop,
        {
            "losses": asdict(losses),
            "recordings": {r.name: {"moments": len(r), "dropped": r.dropped} for r in recordings},
            "init": {k: document[k] for k in ("sha256", "training") if k in document},
        },
    )
    scores = {"before": evaluate_wrist_video(model.eval(), val)}
    freeze_scene(model)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(net, Stage1Model)
        return wrist_video_loss(
            *predict_batch(net, recordings, loop.batch_size, generator), weights=losses
        )

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, Stage1Model)
        return evaluate_wrist_video(net, val)

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=200)
    model.load_state_dict(ema.state)
    scores["after"] = evaluate_wrist_video(model.eval(), val)
    if is_main_process():
        save_weights(
            out, model, model.config_dict(), {"training": record, "wrist_video_scores": scores}
        )
    return scores


def freeze_scene(model: Stage1Model) -> None:
    """Leave only the wrist's parts to learn."""
    for name, part in model.named_children():
        part.requires_grad_(name not in FROZEN)


def predict_batch(
    model: Stage1Model, recordings: Sequence[Recording], size: int, generator: torch.Generator
) -> tuple[Stage1Output, Sample]:
    """Output and sample of random moments of one recording, drawn by its number of moments."""
    lengths = torch.tensor([float(len(r)) for r in recordings])
    which = int(torch.multinomial(lengths, 1, generator=generator))
    recording = recordings[which]
    index = torch.randint(len(recording), (size,), generator=generator).numpy()
    sample = sample_of(recording, index, next(model.parameters()).device)
    return predict(model, sample), sample
