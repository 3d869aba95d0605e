"""The stage-1 network: backbone, camera head, depth head and wrist head."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wristworld_ros.reconstruction.backbone import (
    Backbone,
    BackboneConfig,
    base_plane_depth,
)
from wristworld_ros.reconstruction.heads import (
    CameraHead,
    DepthHead,
    KeypointHead,
    Keypoints,
    WristHead,
)
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    intrinsics_from_fov,
)


@dataclass(frozen=True)
class Stage1Output:
    """Predictions; pose lists hold one entry per refinement iteration.

    Attributes:
        depth, confidence: B x V x H x W [m], and VGGT's confidence (>= 1).
        cameras: B x V x 9 anchors, camera-to-base (centre [m], quaternion xyzw, FoV [rad]).
        wrist: B x 9 wrist camera, the same; the pose that fits the keypoints comes first.
        wrist_pose: B x 9, the one of them to use.
        T_base_anchor: B x V x 4 x 4 that the wrist and the keypoints were placed by: the known
            poses, else the estimated ones.
        keypoints: the wrist keypoints that the wrist pose starts from.
    """

    depth: Tensor
    confidence: Tensor
    cameras: list[Tensor]
    wrist: list[Tensor]
    wrist_pose: Tensor
    T_base_anchor: Tensor
    keypoints: Keypoints

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
    """Anchor images to depth, anchor cameras and the wrist camera; world = first anchor."""

    def __init__(self, config: BackboneConfig | None = None) -> None:
        super().__init__()
        self.config = config or BackboneConfig()
        self.backbone = Backbone(self.config)
        self.camera_head = CameraHead(self.config)
        self.depth_head = DepthHead(self.config)
        self.keypoint_head = KeypointHead(self.depth_head.channels)
        self.wrist_head = WristHead(self.config)
        #: Run backbone and dense heads in bfloat16 (training); geometry stays in float32.
        self.bf16 = False

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
        H, W = images.shape[-2:]
        rays = None
        if K is not None and known is not None:
            p = self.config.patch_size
            rays = pixel_rays(K, (H // p, W // p), p)
        half = torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16)
        with half:
            features = self.backbone(images, rays, T_world_camera, known)
        features = replace(features, tokens=[t.float() for t in features.tokens])
        cameras = self.camera_head(features)
        anchor_K, T_base_anchor = self._anchors(cameras[-1], images, K, T_world_camera, known)
        plane = base_plane(anchor_K, T_base_anchor, (H, W))
        with half:
            depth, confidence, dense = self.depth_head(features, plane)
            heat = self.keypoint_head.net(dense.flatten(0, 1)).float().unflatten(0, plane.shape[:2])
        keypoints = self.keypoint_head(heat, anchor_K, T_base_anchor)
        wrist = self.wrist_head(features, keypoints.points)
        chosen = wrist[-1]
        if not self.config.refined_wrist:
            chosen = torch.cat([wrist[0][:, :7], wrist[-1][:, 7:]], 1)
        return Stage1Output(depth, confidence, cameras, wrist, chosen, T_base_anchor, keypoints)

    @staticmethod
    def _anchors(
        estimate: Tensor,
        images: Tensor,
        K: Tensor | None,
        T_world_camera: Tensor | None,
        known: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Intrinsics, and poses in the base frame: the known ones, else the estimated."""
        poses, fov = decode_pose(estimate.detach())
        intrinsics = intrinsics_from_fov(fov, *images.shape[-2:])
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
        """Rebuild from ``config_dict``; lists become tuples again."""
        values: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config.items()
        }
        return cls(BackboneConfig(**values))


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
