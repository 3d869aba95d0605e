"""Heads on the backbone: anchor cameras, dense depth, located points, and the wrist head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.backbone import BackboneConfig, Features
from wristworld_ros.reconstruction.heatmaps import HeatPeaks, draw, locate
from wristworld_ros.reconstruction.layers import Block, Mlp
from wristworld_ros.reconstruction.multi_view import CostVolume

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

    def __init__(self, dim: int, blocks: int = 1, heads: int = 6, iterations: int = 4) -> None:
        super().__init__()
        self.iterations = iterations
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

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """B x N x dim tokens, one per camera -> per iteration B x N x 9, camera-to-base."""
        pose: Tensor | None = None
        poses: list[Tensor] = []
        for _ in range(self.iterations):
            previous = self.empty.expand(*tokens.shape[:2], 9) if pose is None else pose.detach()
            shift, scale, gate = self.modulation(self.embed(previous.to(tokens.dtype))).chunk(3, -1)
            x = gate * (self.norm(tokens) * (1 + scale) + shift) + tokens
            delta = self.out(self.trunk_norm(self.trunk(x))).float()
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

    The paper's variant, a 3-layer transformer decoder, then a refiner as the release has it
    (method.md, 2, wrist head). ``wrist_head.py`` has both variants at VGGT's size.
    """

    def __init__(self, config: BackboneConfig, layers: int = 3) -> None:
        super().__init__()
        dim = 2 * config.dim
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 1e-3)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(
            nn.TransformerDecoderLayer(
                dim, config.heads, 2 * dim, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.refiner = PoseRefiner(dim, heads=config.heads)

    def forward(self, features: Features) -> list[Tensor]:
        """Per iteration B x 9, wrist camera to base."""
        memory = self.norm(features.tokens[-1].flatten(1, 2))
        query = self.query.expand(len(memory), -1, -1)
        for layer in self.layers:
            query = layer(query, memory)
        return [pose[:, 0] for pose in self.refiner(query)]


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
#: Points fixed to the robot's base [m], on the table and above it. Where a picture shows them says
#: where its camera is; none of them has to be a feature of the scene.
BASE_LANDMARKS = tuple(
    (x, y, z) for z in (0.0, 0.3) for x in (0.0, 0.3, 0.6) for y in (-0.3, 0.0, 0.3)
)
#: Keeps the gradient of ``fit_keypoints`` finite for shapeless points [m^2].
DAMPING = 0.005
#: How far a keypoint is trusted along the ray of a view [m], and at best across it [m].
ALONG_SIGMA, ACROSS_SIGMA = 0.05, 0.003


@dataclass(frozen=True)
class Keypoints:
    """Wrist keypoints.

    Attributes:
        peaks: B x V x K places in every view.
        depth: B x V x K [m].
        points: B x K x 3 in the base frame [m], fused over the views.
    """

    peaks: HeatPeaks
    depth: Tensor
    points: Tensor


def fuse_keypoints(peaks: HeatPeaks, depth: Tensor, K: Tensor, T_base_camera: Tensor) -> Keypoints:
    """Points in 3-D from their places and depths in every view.

    Across the ray a view is as sure as its heat map is narrow, along it less.

    Args:
        peaks: B x V x K; depth: B x V x K [m].
        K, T_base_camera: B x V x 3 x 3 [px] and B x V x 4 x 4.
    """
    pixels = peaks.pixels
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[:, :, None]
    xy = (pixels - K[:, :, None, :2, 2]) / focal
    rays = torch.cat([xy, torch.ones_like(depth)[..., None]], -1)
    R, t = T_base_camera[..., :3, :3], T_base_camera[..., :3, 3]
    points = (rays * depth[..., None]) @ R.transpose(-1, -2) + t[:, :, None]
    directions = F.normalize(rays, dim=-1) @ R.transpose(-1, -2)
    along = directions[..., :, None] * directions[..., None, :]
    eye = torch.eye(3, device=pixels.device)
    across = (peaks.sigma * depth / focal[..., 0]).square() + ACROSS_SIGMA**2
    trust = peaks.visible.clamp_min(1e-3)[..., None, None]
    weight = trust * ((eye - along) / across[..., None, None] + along / ALONG_SIGMA**2)
    total = weight.sum(1) + 1e-3 * eye
    fused = torch.linalg.solve(total, (weight @ points[..., None]).sum(1))[..., 0]
    return Keypoints(peaks, depth, fused)


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


class PointHead(nn.Module):
    """Heat maps of base landmarks and wrist keypoints, and the keypoints' depth, in every view."""

    def __init__(self, channels: int, cell: int) -> None:
        super().__init__()
        self.cell = cell
        self.sizes = (len(BASE_LANDMARKS), len(WRIST_KEYPOINTS), len(WRIST_KEYPOINTS))
        hidden = 96
        self.net = nn.Sequential(
            nn.Conv2d(channels, hidden, 3, 1, 1),
            nn.GroupNorm(8, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, 1, 1),
            nn.GroupNorm(8, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, sum(self.sizes), 1),
        )
        self.absent = nn.Parameter(torch.zeros(sum(self.sizes[:2])))

    def forward(self, maps: Tensor) -> tuple[HeatPeaks, HeatPeaks, Tensor]:
        """Landmarks and keypoints B x V x K, and log depth B x V x K of the keypoints.

        Args:
            maps: B x V x C x h x w, output of ``net``, one cell per ``cell`` input pixels.
        """
        base, wrist, depth = maps.split(self.sizes, 2)
        landmarks = locate(base, self.absent[: self.sizes[0]], self.cell)
        keypoints = locate(wrist, self.absent[self.sizes[0] :], self.cell)
        heat = F.softmax(wrist.flatten(-2), -1)
        log_depth = (heat * depth.flatten(-2).clamp(*LOG_DEPTH_RANGE)).sum(-1)
        return landmarks, keypoints, log_depth


#: Edge of the cut-out around the wrist: metres on each side of its middle, and pixels.
CROP_REACH, CROP_SIZE = 0.24, 80


class CropHead(nn.Module):
    """Wrist keypoints again, in a cut-out around their first estimate at full resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        K = len(WRIST_KEYPOINTS)
        self.first = conv(3, 32, 2)
        self.enter = conv(32 + K, 40)
        self.down = conv(40, 64, 2)
        self.context = nn.Conv2d(channels, 32, 1)
        self.middle = conv(96, 96)
        self.low = nn.Sequential(conv(96, 128, 2), conv(128, 128))
        self.up = conv(128 + 96, 80)
        self.fine = conv(80 + 40, 48)
        self.out = nn.Conv2d(48, 2 * K, 1)
        self.absent = nn.Parameter(torch.zeros(K))

    def forward(
        self, images: Tensor, dense: Tensor, points: Tensor, K: Tensor, T_base_camera: Tensor
    ) -> tuple[HeatPeaks, Tensor, Tensor]:
        """Locate.

        Args:
            images: B x V x 3 x H x W in [0, 1] at full resolution.
            dense: B x V x channels x h x w features of the whole pictures.
            points: B x K x 3 first estimate of the keypoints in the base frame [m].
            K: B x V x 3 x 3 [px of ``images``]; T_base_camera: B x V x 4 x 4.

        Returns:
            Keypoints in pixels of the cut-outs, their depth [m], both B x V x K, and the
            intrinsics of the cut-outs, B x V x 3 x 3.
        """
        B, V, _, H, W = images.shape
        K_crop, grid = cut_out(points.mean(1), K, T_base_camera, (H, W))
        flat = grid.flatten(0, 1)
        crop = F.grid_sample(images.flatten(0, 1), flat, align_corners=False)
        coarse = F.avg_pool2d(flat.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
        context = F.grid_sample(
            dense.flatten(0, 1).float(), coarse, padding_mode="border", align_corners=False
        )
        local, z = project(points, K_crop, T_base_camera)
        cells = CROP_SIZE // 2
        drawn = draw(local, (cells, cells), 2.0).flatten(0, 1)
        x = self.enter(torch.cat([self.first(2 * crop - 1), drawn.to(crop)], 1))
        y = self.middle(torch.cat([self.down(x), self.context(context)], 1))
        low = F.interpolate(self.low(y), scale_factor=2, mode="nearest")
        y = self.up(torch.cat([low, y], 1))
        y = F.interpolate(y, scale_factor=2, mode="nearest")
        maps = self.out(self.fine(torch.cat([y, x], 1))).float().unflatten(0, (B, V))
        heat, offset = maps.chunk(2, 2)
        peaks = locate(heat, self.absent, 2.0)
        change = (F.softmax(heat.flatten(-2), -1) * offset.flatten(-2)).sum(-1)
        log_depth = torch.log(z.detach().clamp_min(0.05)) + 0.1 * change
        return peaks, log_depth.clamp(*LOG_DEPTH_RANGE).exp(), K_crop


def cut_out(
    middle: Tensor,
    K: Tensor,
    T_base_camera: Tensor,
    size: tuple[int, int],
    reach: float = CROP_REACH,
    pixels: int = CROP_SIZE,
) -> tuple[Tensor, Tensor]:
    """Square cut-outs around a point.

    Args:
        middle: B x 3 in the base frame [m].
        K, T_base_camera: B x V x 3 x 3 [px], B x V x 4 x 4; size: (H, W).
        reach: to each side of the middle [m]; pixels: edge of the cut-outs, S.

    Returns:
        Intrinsics of the cut-outs B x V x 3 x 3, and sampling grids B x V x S x S x 2 in [-1, 1].
    """
    with torch.no_grad():
        pixel, half = window(middle, K, T_base_camera, size, reach)
        scale = pixels / (2 * half)
        K_crop = K.clone()
        K_crop[..., :2, :] = K[..., :2, :] * scale[..., None, None]
        K_crop[..., :2, 2] = (K[..., :2, 2] - pixel + half[..., None]) * scale[..., None]
        return K_crop, window_grid(pixel, half, size, pixels)


def window(
    middle: Tensor, K: Tensor, T_base_camera: Tensor, size: tuple[int, int], reach: float
) -> tuple[Tensor, Tensor]:
    """Where the square around a point is: its middle B x V x 2 and half its edge B x V [px].

    Args:
        middle, K, T_base_camera, size, reach: as of ``cut_out``.
    """
    pixel, z = project(middle[:, None], K, T_base_camera)
    # A point far outside still gives a finite cut-out, which is black.
    far = float(max(size))
    half = reach * K[..., 0, 0] / z[:, :, 0].clamp_min(0.1)
    return pixel[:, :, 0].clamp(-far, 2 * far), half.clamp(8, 2 * far)


def window_grid(middle: Tensor, half: Tensor, size: tuple[int, int], pixels: int) -> Tensor:
    """Sampling grids ... x S x S x 2 in [-1, 1] of squares of S = ``pixels``.

    Args:
        middle, half: ... x 2 and ... [px]; size: (H, W) of the pictures.
    """
    steps = (torch.arange(pixels, device=half.device) + 0.5) / pixels * 2 - 1
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    place = middle[..., None, None, :] + torch.stack([u, v], -1) * half[..., None, None, None]
    return place / place.new_tensor([size[1], size[0]]) * 2 - 1


def project(points: Tensor, K: Tensor, T_base_camera: Tensor) -> tuple[Tensor, Tensor]:
    """B x N x 3 points in the base frame -> B x V x N x 2 pixels and B x V x N depths [m].

    Pixels of points less than 0.05 m before the camera are those of 0.05 m.
    """
    R, t = T_base_camera[..., :3, :3], T_base_camera[..., :3, 3]
    x = (points[:, None] - t[:, :, None]) @ R
    z = x[..., 2]
    focal = torch.stack([K[..., 0, 0], K[..., 1, 1]], -1)[:, :, None]
    uv = x[..., :2] / z.clamp_min(0.05)[..., None] * focal + K[:, :, None, :2, 2]
    return uv, z


def conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """3 x 3 convolution, group norm, GELU."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1), nn.GroupNorm(8, c_out), nn.GELU())


def double_conv(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Twice ``conv``; the first one has the stride."""
    return nn.Sequential(*conv(c_in, c_out, stride), *conv(c_out, c_out))


def down_and_up(x: Tensor, down: nn.ModuleList, up: nn.ModuleList) -> Tensor:
    """Through a U-net: each layer of ``up`` sees the doubled output of the last one, and what went
    into the layer of ``down`` at its size."""
    levels = [x]
    for layer in down:
        levels.append(layer(levels[-1]))
    x = levels.pop()
    for layer in up:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = layer(torch.cat([x, levels.pop()], 1))
    return x


class DepthHead(nn.Module):
    """Depth along z and its confidence.

    Tokens are fused with the stem's finer features to a first estimate at a quarter of the
    resolution, which views then compare with one another (``CostVolume``). Both are factors on the
    depth of the base plane along each ray, which is exact where the anchors are calibrated.
    """

    def __init__(self, config: BackboneConfig, width: int = 32) -> None:
        super().__init__()
        c2, c4, c8 = config.stem
        self.channels = 2 * width
        self.tokens = nn.Linear(2 * config.dim * len(config.kept), 4 * width)
        self.up8 = double_conv(4 * width + c8, 4 * width)
        self.up4 = double_conv(4 * width + c4, 2 * width)
        self.first = nn.Conv2d(2 * width, 1, 1)
        self.volume = CostVolume(2 * width)
        self.compare = double_conv(2 * width + self.volume.channels + 2, 2 * width)
        self.up2 = double_conv(2 * width + c2 + 2, width)
        self.out = nn.Conv2d(width, 8, 3, 1, 1)
        self.shuffle = nn.PixelShuffle(2)

    def decode(self, features: Features) -> Tensor:
        """Features B x V x channels x H/4 x W/4 for this and other dense heads."""
        B, V = features.tokens[-1].shape[:2]
        h, w = features.grid
        _, s4, s8 = features.stem
        x = torch.cat([t[:, :, features.first_patch :] for t in features.tokens], -1)
        x = self.tokens(x).flatten(0, 1).transpose(1, 2).reshape(B * V, -1, h, w)
        x = self.up8(torch.cat([_double(x), s8], 1))
        return self.up4(torch.cat([_double(x), s4], 1)).unflatten(0, (B, V))

    def forward(
        self, features: Features, dense: Tensor, plane: Tensor, K: Tensor, T_base_camera: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Dense predictions.

        Args:
            features: of the backbone.
            dense: of ``decode``.
            plane: B x V x H x W depth of the base plane [m].
            K: B x V x 3 x 3 [px of H x W]; T_base_camera: B x V x 4 x 4.

        Returns:
            Depth [m] and confidence (1 + exp, as VGGT), both B x V x H x W float32, and the first
            estimate of depth, B x V x H/4 x W/4.
        """
        B, V = dense.shape[:2]
        s2 = features.stem[0]
        H, W = s2.shape[-2:]
        log_plane = torch.log(plane.clamp_min(0.05))
        quarter = F.avg_pool2d(log_plane, 4)
        factor = self.first(dense.flatten(0, 1)).float().unflatten(0, (B, V))[:, :, 0]
        first = (quarter + factor).clamp(*LOG_DEPTH_RANGE)
        scale = K.new_tensor([0.25, 0.25, 1.0])[:, None]
        volume = self.volume(dense, first.detach(), K * scale, T_base_camera)
        shape = torch.stack([quarter, factor.detach()], 2).to(dense)
        x = self.compare(torch.cat([dense, volume.to(dense), shape], 2).flatten(0, 1))
        low = F.avg_pool2d(log_plane, 2).flatten(0, 1)[:, None].to(x)
        x = self.up2(torch.cat([_double(x), s2, low, torch.ones_like(low)], 1))
        x = self.shuffle(self.out(x)).float().reshape(B, V, 2, 2 * H, 2 * W)
        ratio = F.interpolate(factor, scale_factor=4, mode="bilinear", align_corners=False)
        depth = (log_plane + ratio + x[:, :, 0]).clamp(*LOG_DEPTH_RANGE).exp()
        return depth, 1 + x[:, :, 1].clamp(-8, 8).exp(), first.exp()


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
