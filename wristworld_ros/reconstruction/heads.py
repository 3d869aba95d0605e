"""Heads on the backbone's tokens: anchor cameras, dense depth, and the wrist head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.backbone import BackboneConfig, Features
from wristworld_ros.reconstruction.layers import Block, Mlp
from wristworld_ros.reconstruction.pose_encoding import encode_pose

#: Bounds of predicted depth [m]: exp of a clamped logarithm stays finite whatever the weights do.
LOG_DEPTH_RANGE = (-4.0, 3.0)


class PoseRefiner(nn.Module):
    """Iterative refinement of a 9-D pose from one token, as VGGT's camera head (method.md, 2).

    Each iteration embeds the previous pose (detached), modulates the token by AdaLN, runs a small
    trunk and adds an MLP's output to the pose.

    Unlike in VGGT the pose is camera-to-base (centre, quaternion xyzw, FoV), in the robot's base
    frame, which every view shows. World-to-camera translations are -R c: with a camera 1 m away
    from the origin each degree of rotation error would move the camera by 17 mm.
    """

    def __init__(
        self, dim: int, blocks: int = 2, heads: int = 6, iterations: int = 4, step: float = 1.0
    ) -> None:
        """``step`` scales what an iteration adds; small where the start is good already."""
        super().__init__()
        self.iterations = iterations
        self.step = step
        self.empty = nn.Parameter(torch.zeros(9))
        self.embed = nn.Linear(9, dim)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.trunk = nn.Sequential(
            *(Block(dim, heads, qk_norm=False, layer_scale=0.1) for _ in range(blocks))
        )
        self.trunk_norm = nn.LayerNorm(dim)
        self.out = Mlp(dim, dim // 2, 9)
        for parameter in self.out[-1].parameters():
            nn.init.zeros_(parameter)
        # A quaternion of zeros has no direction: start at identity, 60 degrees of view.
        self.initial: Tensor
        self.register_buffer(
            "initial", torch.tensor([0, 0, 0, 0, 0, 0, 1.0, 1.05, 1.05]), persistent=False
        )

    def forward(self, tokens: Tensor, initial: Tensor | None = None) -> list[Tensor]:
        """Refine.

        Args:
            tokens: B x N x dim, one per camera.
            initial: B x N x 9 camera-to-base pose to start from; a learned "no pose yet" when None.

        Returns:
            Per iteration B x N x 9, camera-to-base.
        """
        pose = initial
        poses = []
        for _ in range(self.iterations):
            previous = self.empty.expand(*tokens.shape[:2], 9) if pose is None else pose.detach()
            shift, scale, gate = self.modulation(self.embed(previous.to(tokens.dtype))).chunk(3, -1)
            x = gate * (self.norm(tokens) * (1 + scale) + shift) + tokens
            delta = self.step * self.out(self.trunk_norm(self.trunk(x))).float()
            pose = delta + (self.initial if pose is None else pose.detach())
            poses.append(pose)
        return poses


class CameraHead(nn.Module):
    """Poses of the anchors in the robot's base frame, from their camera tokens."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * config.dim)
        self.refiner = PoseRefiner(2 * config.dim, heads=config.heads)

    def forward(self, features: Features) -> list[Tensor]:
        """Per iteration B x V x 9, camera-to-base."""
        return self.refiner(self.norm(features.tokens[-1][:, :, 0]))


class WristHead(nn.Module):
    """Wrist pose from a learnable query that attends to all tokens of all views.

    The paper's variant: a 3-layer transformer decoder; then a refiner as the release has it
    (method.md, 2, wrist head). Beyond both, the refinement does not start from nothing but from the
    pose that fits the wrist keypoints of ``KeypointHead``, which learns from far fewer scenes.
    """

    def __init__(self, config: BackboneConfig, layers: int = 3) -> None:
        super().__init__()
        dim = 2 * config.dim
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 1e-3)
        self.keypoints = nn.Linear(3 * len(WRIST_KEYPOINTS), dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, config.heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.refiner = PoseRefiner(dim, heads=config.heads, step=0.1)

    def forward(self, features: Features, keypoints: Tensor) -> list[Tensor]:
        """Estimate.

        Args:
            features: of the backbone.
            keypoints: B x K x 3 wrist keypoints in the base frame [m].

        Returns:
            Per iteration B x 9, wrist camera to base; the pose that fits the keypoints, which the
            refinement starts from, comes first.
        """
        memory = self.norm(features.tokens[-1].flatten(1, 2))
        query = self.query + self.keypoints(keypoints.detach().flatten(1))[:, None]
        for layer in self.layers:
            query = layer(query, memory)
        T_base_wrist = fit_keypoints(keypoints)
        fov = self.refiner.initial[7:].expand(len(T_base_wrist), 2)
        initial = encode_pose(T_base_wrist, fov)
        return [initial, *(pose[:, 0] for pose in self.refiner(query, initial[:, None]))]


#: Points fixed to the wrist camera [m]: its centre, between the fingers and beyond, behind the
#: camera, and to all four sides. The wider they lie, the less their errors turn the pose.
WRIST_KEYPOINTS = (
    (0.0, 0.0, 0.0),
    (0.0, 0.02, 0.15),
    (0.0, 0.04, 0.25),
    (0.0, 0.0, -0.1),
    (0.12, 0.0, 0.05),
    (-0.12, 0.0, 0.05),
    (0.0, 0.12, 0.05),
    (0.0, -0.12, 0.05),
)
#: Keeps the gradient of ``fit_keypoints`` finite for shapeless points [m^2].
DAMPING = 0.005
#: How far a keypoint is trusted across and along the ray of a view [m].
ACROSS_SIGMA, ALONG_SIGMA = 0.01, 0.05


def fit_keypoints(points: Tensor) -> Tensor:
    """Poses B x 4 x 4 (wrist to base) that best map ``WRIST_KEYPOINTS`` to B x K x 3 points.

    Least squares by SVD (Kabsch). The gradient does not go through the SVD, where it is infinite
    for equal singular values, but through one Newton step on the rotation, which is zero in value.
    """
    model = points.new_tensor(WRIST_KEYPOINTS)
    centre = points.mean(1, keepdim=True)
    covariance = (points - centre).transpose(1, 2) @ (model - model.mean(0))
    with torch.no_grad():
        U, _, Vh = torch.linalg.svd(covariance)
        sign = torch.ones_like(points[:, 0])
        sign[:, 2] = torch.det(U @ Vh)
        R = U @ (sign[..., None] * Vh)
    A = R.transpose(1, 2) @ covariance  # symmetric in value
    skew = torch.stack(
        [A[:, 2, 1] - A[:, 1, 2], A[:, 0, 2] - A[:, 2, 0], A[:, 1, 0] - A[:, 0, 1]], -1
    )
    S = 0.5 * (A + A.transpose(1, 2)).detach()
    eye = torch.eye(3, dtype=points.dtype, device=points.device)
    trace = S.diagonal(dim1=1, dim2=2).sum(-1)[:, None, None]
    omega = torch.linalg.solve((trace + DAMPING) * eye - S, skew[..., None])[..., 0]
    x, y, z = (omega - omega.detach()).unbind(-1)
    zero = torch.zeros_like(x)
    turn = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)
    R = R @ (eye + turn)
    T = torch.eye(4, dtype=points.dtype, device=points.device).repeat(len(points), 1, 1)
    T[:, :3, :3] = R
    T[:, :3, 3] = centre[:, 0] - R @ model.mean(0)
    return T


class KeypointHead(nn.Module):
    """Wrist keypoints: a heat map and a depth per view and point, then fused in 3-D."""

    def __init__(self, channels: int, cell: int = 4) -> None:
        super().__init__()
        self.cell = cell
        K = len(WRIST_KEYPOINTS)
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 1, 1),
            nn.GroupNorm(8, channels),
            nn.GELU(),
            nn.Conv2d(channels, 2 * K, 1),
        )

    def forward(self, maps: Tensor, K: Tensor, T_base_camera: Tensor) -> Keypoints:
        """Locate.

        Args:
            maps: B x V x 2 K x h x w, output of ``net``: logits of heat and log depths, one cell
                per ``cell`` input pixels.
            K: B x V x 3 x 3 intrinsics [px of the input].
            T_base_camera: B x V x 4 x 4 poses of the anchors.
        """
        B, V, _, h, w = maps.shape
        out = maps.reshape(B, V, 2, -1, h * w)
        log_heat = F.log_softmax(out[:, :, 0], -1)  # B, V, points, cells
        heat = log_heat.exp()
        v, u = torch.meshgrid(
            (torch.arange(h, device=heat.device) + 0.5) * self.cell,
            (torch.arange(w, device=heat.device) + 0.5) * self.cell,
            indexing="ij",
        )
        pixels = heat @ torch.stack([u, v], -1).reshape(-1, 2)  # B, V, points, 2
        depth = (heat * out[:, :, 1].clamp(*LOG_DEPTH_RANGE)).sum(-1).exp()
        focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[:, :, None]
        xy = (pixels - K[:, :, None, :2, 2]) / focal
        rays = torch.cat([xy, torch.ones_like(depth)[..., None]], -1)
        R, t = T_base_camera[..., :3, :3], T_base_camera[..., :3, 3]
        points = (rays * depth[..., None]) @ R.transpose(-1, -2) + t[:, :, None]
        directions = F.normalize(rays, dim=-1) @ R.transpose(-1, -2)
        # Across the ray a view is sure, along it less; a spread-out heat map counts less.
        along = directions[..., :, None] * directions[..., None, :]
        eye = torch.eye(3, device=heat.device)
        peak = heat.square().sum(-1)[..., None, None]
        weight = peak * ((eye - along) / ACROSS_SIGMA**2 + along / ALONG_SIGMA**2)
        total = weight.sum(1) + 1e-3 * eye
        fused = torch.linalg.solve(total, (weight @ points[..., None]).sum(1))[..., 0]
        return Keypoints(log_heat.reshape(B, V, -1, h, w), pixels, depth, fused)


@dataclass(frozen=True)
class Keypoints:
    """Wrist keypoints.

    Attributes:
        log_heat: B x V x K x h x w, log of a distribution over cells.
        pixels: B x V x K x 2 [px of the input].
        depth: B x V x K [m].
        points: B x K x 3 in the base frame [m].
    """

    log_heat: Tensor
    pixels: Tensor
    depth: Tensor
    points: Tensor


class DepthHead(nn.Module):
    """Depth along z and its confidence, by fusing tokens with the stem's finer features.

    The depth of the base plane along each ray is one more input: exact where the anchors are
    calibrated, by their estimated poses where they are not.
    """

    def __init__(self, config: BackboneConfig, width: int = 32) -> None:
        super().__init__()
        c2, c4, c8 = config.stem
        self.channels = 2 * width
        self.tokens = nn.Linear(2 * config.dim * len(config.kept), 4 * width)
        self.up8 = self._fuse(4 * width + c8, 4 * width)
        self.up4 = self._fuse(4 * width + c4, 2 * width)
        self.up2 = self._fuse(2 * width + c2 + 2, width)
        self.out = nn.Conv2d(width, 8, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(2)

    @staticmethod
    def _fuse(c_in: int, c_out: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, 1, 1),
            nn.GroupNorm(8, c_out),
            nn.GELU(),
            nn.Conv2d(c_out, c_out, 3, 1, 1),
            nn.GroupNorm(8, c_out),
            nn.GELU(),
        )

    def forward(
        self, features: Features, plane: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Dense predictions.

        Args:
            features: of the backbone.
            plane: B x V x H x W depth of the base plane [m], 0 where not known; or None.

        Returns:
            Depth [m] and confidence (1 + exp, as VGGT), both B x V x H x W float32, and features
            B x V x channels x H/4 x W/4 for other dense heads.
        """
        B, V = features.tokens[-1].shape[:2]
        h, w = features.grid
        s2, s4, s8 = features.stem
        x = torch.cat([t[:, :, features.first_patch :] for t in features.tokens], -1)
        x = self.tokens(x).flatten(0, 1).transpose(1, 2).reshape(B * V, -1, h, w)
        x = self.up8(torch.cat([_double(x), s8], 1))
        x = quarter = self.up4(torch.cat([_double(x), s4], 1))
        H, W = s2.shape[-2:]
        prior = x.new_zeros(B * V, 2, H, W)
        if plane is not None:
            low = F.interpolate(plane.flatten(0, 1)[:, None].to(x.dtype), (H, W), mode="area")
            prior = torch.cat([torch.log(low.clamp_min(0.05)) * (low > 0), (low > 0).to(low)], 1)
        x = self.up2(torch.cat([_double(x), s2, prior], 1))
        x = self.shuffle(self.out(x)).float().reshape(B, V, 2, 2 * H, 2 * W)
        log_depth = x[:, :, 0]
        if plane is not None:  # the head then says by how much a pixel differs from the plane
            log_depth = log_depth + torch.log(plane.clamp_min(0.05)) * (plane > 0)
        depth = log_depth.clamp(*LOG_DEPTH_RANGE).exp()
        return depth, 1 + x[:, :, 1].clamp(-8, 8).exp(), quarter.unflatten(0, (B, V))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
