"""VGGT (arXiv 2503.11651) in full, for users who have its weights.

Sizes, layers and parameter names are those of ``facebook/VGGT-1B``, so that the file loads as it
is. The weights are not part of this package: the original ones are CC BY-NC, a gated checkpoint
allows commercial use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.dpt import DptHead
from wristworld_ros.reconstruction.geometry_prediction import (
    GeometryPrediction,
    check_images,
    fit_images,
    fit_intrinsics,
    fit_maps,
    load_published,
    network_size,
    relative_to_first,
)
from wristworld_ros.reconstruction.pose_encoding import decode_pose, intrinsics_from_fov
from wristworld_ros.reconstruction.vggt_heads import CameraHead, Tracker, TrackHead, Tracks
from wristworld_ros.reconstruction.vit import (
    PatchEmbed,
    VitBlock,
    grid_rope,
    normalise,
    position_embedding,
)


@dataclass(frozen=True)
class VggtConfig:
    """Sizes of VGGT; the defaults are VGGT-1B.

    Attributes:
        image_size: side that the stored position embedding belongs to [px].
        patch_size: [px].
        dim: token width C of the encoder and of the aggregator.
        heads: attention heads of both, and of the camera head.
        encoder_depth: blocks of the DINOv2 encoder.
        depth: (frame, global) block pairs of the aggregator.
        registers: register tokens per view, next to one camera token.
        kept: four pairs whose outputs go to the dense heads; the last is the last pair.
        camera_depth: blocks of the camera head.
        dense_channels: of the four maps of the dense heads, fine to coarse.
        dense_features: channels after their fusion.
        track_features: channels that tracks are matched by.
        track_hidden, track_depth, track_heads: transformer of the track head.
        track_levels: levels of the correlation pyramid; each halves the map of half image size.

    Raises:
        InvalidInputError: ``kept`` does not fit ``depth``, or widths do not fit the heads.
    """

    image_size: int = 518
    patch_size: int = 14
    dim: int = 1024
    heads: int = 16
    encoder_depth: int = 24
    depth: int = 24
    registers: int = 4
    kept: tuple[int, int, int, int] = (4, 11, 17, 23)
    camera_depth: int = 4
    dense_channels: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    dense_features: int = 256
    track_features: int = 128
    track_hidden: int = 384
    track_depth: int = 6
    track_heads: int = 8
    track_levels: int = 7

    def __post_init__(self) -> None:
        if list(self.kept) != sorted(self.kept) or self.kept[-1] != self.depth - 1:
            raise InvalidInputError(
                f"kept layers {self.kept} must ascend and end with the last, {self.depth - 1}."
            )
        if self.dim % (4 * self.heads):
            raise InvalidInputError(
                f"width {self.dim} must be a multiple of 4 x {self.heads} heads (2-D RoPE)."
            )


PRESETS = {
    "vggt-1b": VggtConfig(),
    "vggt-tiny": VggtConfig(
        image_size=70,
        dim=32,
        heads=2,
        encoder_depth=2,
        depth=4,
        registers=2,
        kept=(0, 1, 2, 3),
        camera_depth=2,
        dense_channels=(8, 8, 16, 16),
        dense_features=16,
        track_features=16,
        track_hidden=32,
        track_depth=2,
        track_levels=3,
    ),
}


class Dinov2(nn.Module):
    """DINOv2 with registers (arXiv 2309.16588): images to patch tokens."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        C, side = config.dim, config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, C)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + side * side, C))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, C))
        self.mask_token = nn.Parameter(torch.zeros(1, C), requires_grad=False)  # of its training
        self.blocks = nn.ModuleList(
            VitBlock(C, config.heads, 1.0, eps=1e-6) for _ in range(config.encoder_depth)
        )
        self.norm = nn.LayerNorm(C, eps=1e-6)

    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Normalised N x 3 x H x W -> N x (h w) x C."""
        N = len(images)
        position = position_embedding(self.pos_embed, grid, antialias=True, offset=0)
        x = torch.cat([self.cls_token.expand(N, -1, -1), self.patch_embed(images)], 1) + position
        registers = self.register_tokens.expand(N, -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + registers.shape[1] :]


class Aggregator(nn.Module):
    """Frame and global attention in turn over the tokens of all views."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        self.config = config
        C = config.dim
        self.patch_embed = Dinov2(config)
        # One set for the first view, one for all others.
        self.camera_token = nn.Parameter(1e-6 * torch.randn(1, 2, 1, C))
        self.register_token = nn.Parameter(1e-6 * torch.randn(1, 2, config.registers, C))

        def blocks() -> nn.ModuleList:
            return nn.ModuleList(
                VitBlock(C, config.heads, 0.01, qk_norm=True) for _ in range(config.depth)
            )

        self.frame_blocks, self.global_blocks = blocks(), blocks()

    def forward(self, images: Tensor, grid: tuple[int, int]) -> list[Tensor]:
        """B x V x 3 x H x W in [0, 1] -> tokens B x V x (1 + registers + h w) x 2C per kept layer.

        The camera token is first; frame attention's output is in the first C channels.
        """
        B, V = images.shape[:2]
        patches = self.patch_embed(normalise(images).flatten(0, 1), grid).unflatten(0, (B, V))
        special = torch.cat([self.camera_token, self.register_token], 2)
        special = special[:, [0] + [1] * (V - 1)].expand(B, -1, -1, -1)
        tokens = torch.cat([special.to(patches.dtype), patches], 2)
        size = (grid, special.shape[2])
        head_dim = self.config.dim // self.config.heads
        frame_rope = grid_rope(*size, 1, head_dim, images.device)
        global_rope = grid_rope(*size, V, head_dim, images.device)
        kept = []
        for i, (frame, glob) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            within = frame(tokens.flatten(0, 1), frame_rope).unflatten(0, (B, V))
            tokens = glob(within.flatten(1, 2), global_rope).unflatten(1, (V, -1))
            if i in self.config.kept:
                kept.append(torch.cat([within, tokens], -1))
        return kept


@dataclass(frozen=True)
class VggtOutput:
    """All that VGGT predicts; H x W is the size of the images given to the network.

    Attributes:
        tokens: per kept layer B x V x (1 + registers + h w) x 2C, for further heads.
        poses: per iteration B x V x 9 ``absT_quaR_FoV``, world-to-camera, world = first view.
        depth, depth_confidence: B x V x H x W; confidence is at least 1.
        points, points_confidence: B x V x H x W x 3 in the world, and B x V x H x W; or None.
        tracks: where the query points are, or None.
    """

    tokens: list[Tensor]
    poses: list[Tensor]
    depth: Tensor
    depth_confidence: Tensor
    points: Tensor | None
    points_confidence: Tensor | None
    tracks: Tracks | None


class Vggt(nn.Module):
    """Aggregator with camera, depth, point and track heads."""

    def __init__(self, config: VggtConfig) -> None:
        super().__init__()
        self.config = c = config
        self.aggregator = Aggregator(c)
        self.camera_head = CameraHead(2 * c.dim, c.camera_depth, c.heads)

        def dense(features: int, outputs: int | None) -> DptHead:
            return DptHead(2 * c.dim, c.dense_channels, features, outputs, c.patch_size)

        self.point_head = dense(c.dense_features, 4)
        self.depth_head = dense(c.dense_features, 2)
        self.track_head = TrackHead(
            dense(c.track_features, None),
            Tracker(c.track_features, c.track_hidden, c.track_depth, c.track_heads, c.track_levels),
        )

    def grid(self, images: Tensor) -> tuple[int, int]:
        """(h, w) of the patches of B x V x 3 x H x W.

        Raises:
            InvalidInputError: the shape is another, or a side is not a multiple of the patch.
        """
        H, W = images.shape[-2:]
        p = self.config.patch_size
        if images.ndim != 5 or images.shape[2] != 3 or H % p or W % p or not H * W:
            raise InvalidInputError(
                f"images of shape {tuple(images.shape)}; need B x V x 3 x H x W with sides that "
                f"are multiples of {p} px. VggtPredictor resizes any."
            )
        return H // p, W // p

    def forward(
        self, images: Tensor, query: Tensor | None = None, points: bool = True
    ) -> VggtOutput:
        """Predict.

        The heads run in the dtype of their weights whatever the autocast around, as published.

        Args:
            images: B x V x 3 x H x W in [0, 1], sides multiples of the patch size.
            query: B x N x 2 (x, y) in the first view to track [px, pixel centres at integers].
            points: whether the point head runs.

        Raises:
            InvalidInputError: the images have another shape, or are too small to track in.
        """
        grid = self.grid(images)
        first = 1 + self.config.registers
        tokens = self.aggregator(images, grid)
        with torch.autocast(images.device.type, enabled=False):
            tokens = [t.to(self.camera_head.embed_pose.weight.dtype) for t in tokens]
            poses = self.camera_head(tokens)
            depth = self.depth_head(tokens, first, grid)
            cloud = self.point_head(tokens, first, grid) if points else None
            tracks = None
            if query is not None:
                self._check_query(images, query)
                tracks = self.track_head(tokens, first, grid, query)
        return VggtOutput(
            tokens,
            poses,
            depth[:, :, 0].exp(),
            1 + depth[:, :, 1].exp(),
            None if cloud is None else inverse_log(cloud[:, :, :3].movedim(2, -1)),
            None if cloud is None else 1 + cloud[:, :, 3].exp(),
            tracks,
        )

    def _check_query(self, images: Tensor, query: Tensor) -> None:
        least = 2**self.config.track_levels
        if min(images.shape[-2:]) < least:
            raise InvalidInputError(
                f"images of {images.shape[-1]} x {images.shape[-2]} px are too small to track in: "
                f"{self.config.track_levels} pyramid levels need sides of at least {least} px."
            )
        if query.shape != (len(images), query.shape[1], 2) or not query.isfinite().all():
            raise InvalidInputError(
                f"query points of shape {tuple(query.shape)}; need {len(images)} x N x 2 finite "
                "values (x, y) in pixels of the first view."
            )


def inverse_log(x: Tensor) -> Tensor:
    """sign(x) (exp|x| - 1): the point head's output to coordinates."""
    return x.sign() * x.abs().expm1()


def load_vggt(path: str | Path, preset: str = "vggt-1b") -> Vggt:
    """VGGT with the weights of a file, ready to predict.

    Args:
        path: ``model.safetensors`` or ``model.pt`` of ``facebook/VGGT-1B``, as published.
        preset: name of its sizes.

    Raises:
        InvalidInputError: no such preset.
        WeightsError: the file does not fit; see ``load_published``.
    """
    if preset not in PRESETS:
        raise InvalidInputError(f"no VGGT preset '{preset}'; there are {', '.join(PRESETS)}.")
    with torch.device("meta"):
        model = Vggt(PRESETS[preset])
    load_published(path, model)
    return model.eval().requires_grad_(False)


class VggtPredictor:
    """VGGT on pictures of any size.

    Args:
        model: see ``load_vggt``.
        long_side: of the pictures that the network sees [px]; 518 is what it was trained with.
        autocast: dtype of the aggregator on devices that are faster with it, as torch.bfloat16.
    """

    def __init__(
        self, model: Vggt, long_side: int = 518, autocast: torch.dtype | None = None
    ) -> None:
        network_size(1, 1, long_side, model.config.patch_size)
        self.model, self.long_side, self.autocast = model.eval(), long_side, autocast

    @torch.inference_mode()
    def __call__(self, images: Tensor, points: bool = False) -> GeometryPrediction:
        """Predict depth and cameras.

        The scale is arbitrary and differs from call to call. Poses and points are turned so that
        the first camera is the identity, which VGGT meets only nearly.

        Args:
            images: B x V x 3 x H x W in [0, 1], 1 to 8 views.
            points: whether the point head runs; depth and cameras are the more exact way.

        Raises:
            InvalidInputError: images of another shape or range, or a prediction that is not finite.
        """
        check_images(images)
        size = (images.shape[-2], images.shape[-1])
        inner = network_size(*size, self.long_side, self.model.config.patch_size)
        weight = self.model.camera_head.embed_pose.weight
        with torch.autocast(weight.device.type, self.autocast, self.autocast is not None):
            out = self.model(fit_images(images.to(weight), inner), points=points)
        T_camera_world, fov = decode_pose(out.poses[-1].float())
        T_camera_first, T_first_world = relative_to_first(T_camera_world)
        cloud = None
        if out.points is not None:
            T = T_first_world[:, None, None]
            moved = (T[..., :3, :3] @ out.points.float()[..., None])[..., 0] + T[..., :3, 3]
            cloud = fit_maps(moved.movedim(-1, 2).flatten(1, 2), size)
            cloud = cloud.unflatten(1, (-1, 3)).movedim(2, -1)
        return GeometryPrediction(
            fit_maps(out.depth.float(), size),
            fit_maps(out.depth_confidence.float(), size),
            cloud,
            T_camera_first,
            fit_intrinsics(intrinsics_from_fov(fov, *inner), inner, size),
        )
