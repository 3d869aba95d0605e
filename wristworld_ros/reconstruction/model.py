"""The stage-1 network: backbone, camera, depth and point heads, wrist head, and pose fits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.backbone import (
    Backbone,
    BackboneConfig,
    Features,
    base_plane_depth,
)
from wristworld_ros.reconstruction.fitting import RigidFit, fit_cameras, fit_rigid
from wristworld_ros.reconstruction.heads import (
    BASE_LANDMARKS,
    WRIST_KEYPOINTS,
    CameraHead,
    CropHead,
    DepthHead,
    Keypoints,
    PointHead,
    WristHead,
    fit_keypoints,
    fuse_keypoints,
)
from wristworld_ros.reconstruction.heatmaps import HeatPeaks
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
    intrinsics_from_fov,
)
from wristworld_ros.weights import config_from

#: Factors of the rows of K when a picture is reduced to half its size.
HALVE = (0.5, 0.5, 1.0)
#: Relative standard deviation of a keypoint's depth.
DEPTH_SIGMA = 0.04
#: Landmarks are trusted at most to this [cells]: their errors within a picture go together.
LANDMARK_SIGMA = 0.3
#: Standard deviation of the wrist fit's start [m, rad], by which points are seen in no view.
START_SIGMA = (0.1, 0.35)


@dataclass(frozen=True)
class SceneOutput:
    """Depth, and the cameras that it was placed by.

    Attributes:
        depth, confidence: B x V x H/2 x W/2 [m], and VGGT's confidence (>= 1); or at another
            fraction of the pictures' H x W, 1 / ``scale``.
        first_depth: B x V x H/8 x W/8 [m], before the views were compared.
        T_base_anchor, anchor_K: B x V x 4 x 4 and B x V x 3 x 3 [px of H x W] that depth,
            keypoints and wrist were placed by: the known ones, else the estimated.
    """

    depth: Tensor
    confidence: Tensor
    first_depth: Tensor
    T_base_anchor: Tensor
    anchor_K: Tensor
    scale: int = field(default=2, kw_only=True)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the pictures [px]."""
        return self.scale * self.depth.shape[-2], self.scale * self.depth.shape[-1]


@dataclass(frozen=True)
class Stage1Output(SceneOutput):
    """All predictions; pose lists hold one entry per refinement iteration.

    Attributes:
        cameras: B x V x 9 anchors, camera-to-base (centre [m], quaternion xyzw, FoV [rad]); the
            last one fits the landmarks.
        landmarks: B x V x L places of ``BASE_LANDMARKS`` [px of H/2 x W/2].
        wrist: B x 9 wrist camera by the wrist head, the same encoding.
        keypoints: wrist keypoints in the whole pictures [px of H/2 x W/2].
        close: the same in the cut-outs [px of the cut-out], ``crop_K`` B x V x 3 x 3.
        wrist_pose: B x 9, the pose that fits them, with the wrist head's field of view.
        wrist_fits: B x 4 x 4 wrist to base that fit ``keypoints`` and ``close``.
        wrist_covariance: B x 6 x 6 of (translation [m], rotation [rad]) in the base frame, up to
            the factors that ``scores`` of the weights hold.
        features, dense: of the pictures, for ``Stage1Model.depth_by``.
    """

    cameras: list[Tensor]
    landmarks: HeatPeaks
    wrist: list[Tensor]
    keypoints: Keypoints
    close: Keypoints
    crop_K: Tensor
    wrist_pose: Tensor
    wrist_fits: tuple[Tensor, Tensor]
    wrist_covariance: Tensor
    features: Features
    dense: Tensor

    @property
    def anchor_encoding(self) -> Tensor:
        """B x V x 9 ``absT_quaR_FoV``: world-to-camera, world = first anchor."""
        return relative_encoding(self.cameras[-1], decode_pose(self.cameras[-1][:, :1])[0])

    @property
    def wrist_encoding(self) -> Tensor:
        """B x 9 ``absT_quaR_FoV`` of the wrist camera: world-to-camera, world = first anchor."""
        return relative_encoding(self.wrist_pose, self.T_base_anchor[:, 0])


def relative_encoding(camera_to_base: Tensor, T_base_first: Tensor) -> Tensor:
    """(..., 9) camera-to-base poses -> (..., 9) world-to-camera, world = first anchor."""
    T_base_camera, fov = decode_pose(camera_to_base)
    return encode_pose(torch.linalg.inv(T_base_camera) @ T_base_first.to(T_base_camera), fov)


class Stage1Model(nn.Module):
    """Anchor images to depth, anchor cameras and the wrist camera, in the robot's base frame.

    Backbone and dense heads see the pictures at half their size, the cut-outs of the wrist at full.
    """

    def __init__(self, config: BackboneConfig | None = None) -> None:
        super().__init__()
        self.config = config or BackboneConfig()
        self.backbone = Backbone(self.config)
        self.camera_head = CameraHead(self.config)
        self.depth_head = DepthHead(self.config)
        self.point_head = PointHead(self.depth_head.channels, cell=4)
        self.crop_head = CropHead(self.depth_head.channels)
        self.wrist_head = WristHead(self.config)
        #: Run the backbone and the decoding of its tokens in bfloat16 (training); all that is
        #: geometry stays in float32.
        self.bf16 = False

    @property
    def side_step(self) -> int:
        """Sides of the input are multiples of this [px]."""
        return 2 * self.config.patch_size

    def forward(
        self,
        images: Tensor,
        K: Tensor | None = None,
        T_world_camera: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Stage1Output:
        """Predict from images, and from calibration where it is known.

        Args:
            images: B x V x 3 x H x W in [0, 1].
            K: B x V x 3 x 3 [px of ``images``].
            T_world_camera: B x V x 4 x 4 poses in the robot's base frame (z up, metres).
            known: B x 2 bool: intrinsics known, extrinsics known (only with intrinsics).
        """
        B, V = images.shape[:2]
        halve = images.new_tensor(HALVE)[:, None]
        K_reduced = None if K is None else K * halve
        features, dense, (H, W) = self._features(images, K_reduced, T_world_camera, known)
        cameras = self.camera_head(features)
        maps = self.point_head.net(dense.flatten(0, 1)).float().unflatten(0, (B, V))
        landmarks, places, log_depth = self.point_head(maps)
        cameras = [*cameras, self._fit_cameras(cameras[-1], landmarks, (H, W), K_reduced, known)]
        anchor_K, T_base_anchor = self._anchors(
            cameras[-1], (H, W), K_reduced, T_world_camera, known
        )
        scene = self._depth(features, dense, anchor_K, T_base_anchor, (H, W))
        wrist = self.wrist_head(features)
        seen = log_depth.clamp(-3.0, 2.0).exp()
        keypoints = fuse_keypoints(places, seen, anchor_K, T_base_anchor)
        coarse = _fit(keypoints, anchor_K, T_base_anchor, fit_keypoints(keypoints.points))
        wrist_points = _wrist_points(coarse.T)
        peaks, close_depth, crop_K = self.crop_head(
            images, dense, wrist_points.detach(), anchor_K / halve, T_base_anchor
        )
        close = fuse_keypoints(peaks, close_depth, crop_K, T_base_anchor)
        fine = _fit(close, crop_K, T_base_anchor, coarse.T)
        return Stage1Output(
            **vars(scene),
            cameras=cameras,
            landmarks=landmarks,
            wrist=wrist,
            keypoints=keypoints,
            close=close,
            crop_K=crop_K,
            wrist_pose=encode_pose(fine.T, wrist[-1][:, 7:]),
            wrist_fits=(coarse.T, fine.T),
            wrist_covariance=fine.covariance,
            features=features,
            dense=dense,
        )

    def scene(self, images: Tensor, K: Tensor, T_world_camera: Tensor) -> SceneOutput:
        """Depth alone, for calibrated anchors: the same as ``forward``'s, in less time.

        Args:
            images, K, T_world_camera: as of ``forward``.
        """
        known = torch.ones(len(images), 2, dtype=torch.bool, device=images.device)
        K = K * images.new_tensor(HALVE)[:, None]
        features, dense, size = self._features(images, K, T_world_camera, known)
        return self._depth(features, dense, K, T_world_camera, size)

    def depth_by(self, output: Stage1Output, K: Tensor, T_base_anchor: Tensor) -> SceneOutput:
        """Depth again, by better estimates of the anchors than those of ``output``.

        Args:
            K, T_base_anchor: B x V x 3 x 3 [px of the pictures], B x V x 4 x 4.
        """
        K = K * K.new_tensor(HALVE)[:, None]
        size = (output.depth.shape[-2], output.depth.shape[-1])
        return self._depth(output.features, output.dense, K, T_base_anchor, size)

    def _features(
        self, images: Tensor, K: Tensor | None, T_world_camera: Tensor | None, known: Tensor | None
    ) -> tuple[Features, Tensor, tuple[int, int]]:
        """Tokens and dense features of the pictures at half their size, which is (H, W)."""
        reduced = F.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, images.shape[:2])
        H, W = reduced.shape[-2:]
        rays = None
        if K is not None and known is not None:
            p = self.config.patch_size
            rays = pixel_rays(K, (H // p, W // p), p)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.backbone(reduced, rays, T_world_camera, known)
            dense = self.depth_head.decode(features)
        features = Features(
            [t.float() for t in features.tokens],
            tuple(s.float() for s in features.stem),
            features.grid,
            features.first_patch,
        )
        return features, dense.float(), (H, W)

    def _depth(
        self,
        features: Features,
        dense: Tensor,
        K: Tensor,
        T_base_camera: Tensor,
        size: tuple[int, int],
    ) -> SceneOutput:
        plane = base_plane(K, T_base_camera, size)
        depth, confidence, first = self.depth_head(features, dense, plane, K, T_base_camera)
        return SceneOutput(
            depth, confidence, first, T_base_camera, K / K.new_tensor(HALVE)[:, None]
        )

    @staticmethod
    def _fit_cameras(
        estimate: Tensor,
        landmarks: HeatPeaks,
        size: tuple[int, int],
        K: Tensor | None,
        known: Tensor | None,
    ) -> Tensor:
        """B x V x 9 cameras that fit the landmarks, by known intrinsics where there are any."""
        B, V = estimate.shape[:2]
        T, fov = decode_pose(estimate.detach())
        K_fit = intrinsics_from_fov(fov, *size)
        K_fit[..., 0, 0] = K_fit[..., 1, 1]  # square pixels
        free = torch.ones(B, dtype=torch.bool, device=T.device)
        if K is not None and known is not None:
            free = ~known[:, 0]
            K_fit = torch.where(free[:, None, None, None], K_fit, K.to(K_fit))
        sigma = (landmarks.sigma**2 + (LANDMARK_SIGMA * landmarks.cell) ** 2).sqrt()
        fit = fit_cameras(
            T.new_tensor(BASE_LANDMARKS),
            landmarks.pixels.detach().flatten(0, 1),
            (landmarks.visible / sigma**2).detach().flatten(0, 1),
            T.flatten(0, 1),
            K_fit[..., 0, 0].flatten(),
            K_fit[..., :2, 2].flatten(0, 1),
            free_focal=free.repeat_interleave(V),
            aspect=(K_fit[..., 1, 1] / K_fit[..., 0, 0]).flatten(),
        )
        scale = (fit.focal / K_fit[..., 0, 0].flatten()).reshape(B, V, 1, 1)
        fitted = torch.cat([K_fit[..., :2, :2] * scale, K_fit[..., :2, 2:]], -1)
        K_out = torch.cat([fitted, K_fit[..., 2:, :]], -2)
        return encode_pose(
            fit.T_base_camera.unflatten(0, (B, V)), fov_from_intrinsics(K_out, *size)
        )

    @staticmethod
    def _anchors(
        estimate: Tensor,
        size: tuple[int, int],
        K: Tensor | None,
        T_world_camera: Tensor | None,
        known: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Intrinsics, and poses in the base frame: the known ones, else the estimated."""
        poses, fov = decode_pose(estimate.detach())
        intrinsics = intrinsics_from_fov(fov, *size)
        if known is not None and K is not None:
            intrinsics = torch.where(known[:, 0, None, None, None], K.to(poses), intrinsics)
            if T_world_camera is not None:
                T = T_world_camera.to(poses)
                poses = torch.where(known[:, 1, None, None, None], T, poses)
        return intrinsics, poses

    def config_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the model by ``from_config``."""
        return asdict(self.config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Stage1Model:
        """Rebuild from ``config_dict``."""
        return cls(config_from(BackboneConfig, config))


def _wrist_points(T_base_wrist: Tensor) -> Tensor:
    """B x K x 3 wrist keypoints in the base frame [m]."""
    model = T_base_wrist.new_tensor(WRIST_KEYPOINTS)
    return model @ T_base_wrist[:, :3, :3].transpose(1, 2) + T_base_wrist[:, None, :3, 3]


def _fit(found: Keypoints, K: Tensor, T_base_camera: Tensor, start: Tensor) -> RigidFit:
    floor = 0.25 * found.peaks.cell
    return fit_rigid(
        start.new_tensor(WRIST_KEYPOINTS),
        found.peaks.pixels,
        (found.peaks.sigma.square() + floor**2).sqrt().detach(),
        found.depth,
        DEPTH_SIGMA,
        found.peaks.visible.detach(),
        K,
        T_base_camera,
        start,
        start_sigma=START_SIGMA,
    )


def base_plane(K: Tensor, T_base_camera: Tensor, size: tuple[int, int]) -> Tensor:
    """Depth [m] of the base plane z = 0 in every pixel, B x V x H x W.

    Args:
        K, T_base_camera: B x V x 3 x 3 [px], B x V x 4 x 4.
        size: (H, W).
    """
    rays = pixel_rays(K, size, 1)
    directions = torch.einsum("bvij,bvhwj->bvhwi", T_base_camera[..., :3, :3], rays)
    origins = T_base_camera[:, :, None, None, :3, 3].expand_as(directions)
    return base_plane_depth(origins, directions)[..., 0]


def pixel_rays(K: Tensor, grid: tuple[int, int], cell: int) -> Tensor:
    """Rays with z = 1 through the centres of a grid of square cells.

    Args:
        K: ... x 3 x 3 [px].
        grid: (h, w) cells.
        cell: edge of a cell [px].

    Returns:
        ... x h x w x 3 in the camera frame.
    """
    h, w = grid
    v, u = torch.meshgrid(
        (torch.arange(h, device=K.device) + 0.5) * cell,
        (torch.arange(w, device=K.device) + 0.5) * cell,
        indexing="ij",
    )
    x = (u - K[..., 0, 2, None, None]) / K[..., 0, 0, None, None]
    y = (v - K[..., 1, 2, None, None]) / K[..., 1, 1, None, None]
    return torch.stack([x, y, torch.ones_like(x)], -1)
