"""Depth Anything 3, Small and Base (arXiv 2511.10647), for users who have its weights.

A plain DINOv2 whose later blocks attend within and across views in turn, a dense head for depth
and rays, and a small camera decoder. Both sizes are Apache-2.0. The weights are not part of this
package. The authors' PyPI package ``depth-anything-3`` is not used, as it pins numpy < 2 and
brings xformers, open3d and a web server.

Parameter names are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.dpt import DptTrunk, add_uv, output_layers, resize_map
from wristworld_ros.reconstruction.geometry_prediction import (
    GeometryPrediction,
    check_images,
    fit_images,
    fit_intrinsics,
    fit_maps,
    invert,
    load_published,
    network_size,
    relative_to_first,
)
from wristworld_ros.reconstruction.layers import rope_2d
from wristworld_ros.reconstruction.pose_encoding import (
    decode_pose,
    encode_pose,
    fov_from_intrinsics,
    intrinsics_from_fov,
)
from wristworld_ros.reconstruction.vit import (
    Mlp,
    PatchEmbed,
    VitBlock,
    grid_rope,
    normalise,
    position_embedding,
)

PATCH = 14


@dataclass(frozen=True)
class DepthAnything3Config:
    """Sizes of Depth Anything 3; the defaults are Small.

    Attributes:
        dim, heads: width C and attention heads of the transformer.
        depth: blocks.
        alternate_from: even; from this block on every second one attends across views.
        kept: four blocks whose outputs go to the heads, all of them across views.
        dense_channels: of the four maps of the dense head, fine to coarse.
        dense_features: channels after their fusion.
        camera_heads: attention heads of the encoder of known cameras.
        image_size: side that the stored position embedding belongs to [px].
    """

    dim: int = 384
    heads: int = 6
    depth: int = 12
    alternate_from: int = 4
    kept: tuple[int, int, int, int] = (5, 7, 9, 11)
    dense_channels: tuple[int, int, int, int] = (48, 96, 192, 384)
    dense_features: int = 64
    camera_heads: int = 16
    image_size: int = 518


PRESETS = {
    "da3-small": DepthAnything3Config(),
    "da3-base": DepthAnything3Config(
        dim=768, heads=12, dense_channels=(96, 192, 384, 768), dense_features=128
    ),
    "da3-tiny": DepthAnything3Config(
        dim=32,
        heads=2,
        depth=10,
        alternate_from=2,
        kept=(3, 5, 7, 9),
        dense_channels=(8, 8, 16, 16),
        dense_features=16,
        camera_heads=2,
        image_size=70,
    ),
}


class Backbone(nn.Module):
    """DINOv2 with attention within and across views in turn."""

    def __init__(self, config: DepthAnything3Config) -> None:
        super().__init__()
        self.config = config
        C, side = config.dim, config.image_size // PATCH
        self.patch_embed = PatchEmbed(PATCH, C)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, C))
        self.camera_token = nn.Parameter(torch.randn(1, 2, C))  # reference view, the others
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side * side, C))
        self.blocks = nn.ModuleList(
            VitBlock(C, config.heads, 1.0, qk_norm=i >= config.alternate_from, eps=1e-6)
            for i in range(config.depth)
        )
        self.norm = nn.LayerNorm(C)

    def forward(self, images: Tensor, cameras: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """Compute tokens.

        Args:
            images: normalised B x V x 3 x H x W.
            cameras: B x V x C tokens of known cameras, or None.

        Returns:
            Patch tokens B x V x (h w) x 2C per kept block, and camera tokens B x V x 2C.
        """
        B, V, _, H, W = images.shape
        grid = (H // PATCH, W // PATCH)
        position = position_embedding(self.pos_embed, grid, antialias=False, offset=0.1)
        patches = self.patch_embed(images.flatten(0, 1))
        x = torch.cat([self.cls_token.expand(B * V, -1, -1), patches], 1) + position
        x = x.unflatten(0, (B, V))
        head_dim = self.config.dim // self.config.heads
        within_rope = grid_rope(grid, 1, 1, head_dim, x.device)
        # Across views only "patch or not" is told apart.
        plain = torch.ones(1 + grid[0] * grid[1], 2, dtype=torch.long, device=x.device)
        plain[0] = 0
        across_rope = rope_2d(plain.repeat(V, 1), head_dim)
        start = self.config.alternate_from
        order = torch.arange(V, device=x.device).expand(B, V)
        within = x
        kept = []
        for i, block in enumerate(self.blocks):
            if i == start - 1 and V > 2 and cameras is None:
                order = reference_first(x[:, :, 0])
                x = _take_views(x, order)
            if i == start:
                token = self.camera_token[:, [0] + [1] * (V - 1)].expand(B, -1, -1)
                token = token if cameras is None else cameras
                x = torch.cat([token[:, :, None].to(x.dtype), x[:, :, 1:]], 2)
            if i >= start and i % 2:
                x = block(x.flatten(1, 2), across_rope).unflatten(1, (V, -1))
            else:
                rope = within_rope if i >= start else None
                x = within = block(x.flatten(0, 1), rope).unflatten(0, (B, V))
            if i in self.config.kept:
                kept.append(_take_views(torch.cat([within, x], -1), order.argsort(1)))
        C = self.config.dim
        tokens = [torch.cat([k[..., :C], self.norm(k[..., C:])], -1)[:, :, 1:] for k in kept]
        return tokens, kept[-1][:, :, 0]


def reference_first(class_tokens: Tensor) -> Tensor:
    """Order of views B x V that puts the most typical one first and keeps the others' order.

    It is the one whose similarity to the others, norm and variance of B x V x C class tokens, each
    scaled to [0, 1] over the views, are nearest to 0.5 together.
    """
    V = class_tokens.shape[1]
    norm = class_tokens.norm(dim=-1, keepdim=True)
    unit = class_tokens / norm
    similarity = ((unit @ unit.mT).sum(-1) - 1) / (V - 1)
    off_centre = torch.zeros_like(similarity)
    for measure in (similarity, norm[..., 0], unit.var(-1)):
        low, high = measure.amin(1, keepdim=True), measure.amax(1, keepdim=True)
        off_centre += ((measure - low) / (high - low + 1e-8) - 0.5).abs()
    first = off_centre.argmin(1, keepdim=True)
    rank = torch.arange(V, device=first.device).expand(len(first), V) + 1
    return torch.where(rank == first + 1, 0, rank).argsort(1)


def _take_views(x: Tensor, order: Tensor) -> Tensor:
    return x[torch.arange(len(x), device=x.device)[:, None], order]


class _Permute(nn.Module):
    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.dims)


class DualDptHead(DptTrunk):
    """Depth, and rays at 8 / 14 of the image size, each with a fusion chain of its own."""

    def __init__(self, dim: int, channels: tuple[int, int, int, int], features: int) -> None:
        super().__init__(dim, channels, features, positions=True, rectified=False)
        half = features // 2
        self.scratch.output_conv1 = nn.Conv2d(features, half, 3, 1, 1)
        self.scratch.output_conv2 = output_layers(half, 2)
        self.scratch.add_chain("_aux", features, rectified=False)
        # Of the four levels only the last is read out; one norm serves all, as published.
        self.scratch.output_conv1_aux = nn.ModuleList(
            nn.Sequential(
                *(
                    nn.Conv2d(a, b, 3, 1, 1)
                    for a, b in ((features, half), (half, features)) * 2 + ((features, half),)
                )
            )
            for _ in range(4)
        )
        norm = nn.LayerNorm(32)
        self.scratch.output_conv2_aux = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(half, 32, 3, 1, 1),
                _Permute(0, 2, 3, 1),
                norm,
                _Permute(0, 3, 1, 2),
                nn.ReLU(inplace=True),
                nn.Conv2d(32, 7, 1),
            )
            for _ in range(4)
        )

    def forward(
        self, tokens: list[Tensor], grid: tuple[int, int], rays: bool
    ) -> tuple[Tensor, Tensor | None]:
        """B x V x (h w) x C per layer -> B x V x 2 x H x W, and B x V x 7 x 8h x 8w or None."""
        B, V = tokens[0].shape[:2]
        aspect = grid[1] / grid[0]
        scratch = self.scratch
        levels = self.levels([t.flatten(0, 1) for t in tokens], grid, aspect)
        x = scratch.output_conv1(scratch.fuse(levels))
        x = add_uv(resize_map(x, (PATCH * grid[0], PATCH * grid[1])), aspect)
        depth = scratch.output_conv2(x).unflatten(0, (B, V))
        if not rays:
            return depth, None
        y = scratch.output_conv1_aux[-1](scratch.fuse(levels, "_aux"))
        return depth, scratch.output_conv2_aux[-1](add_uv(y, aspect)).unflatten(0, (B, V))


class CameraEncoder(nn.Module):
    """Known cameras to the tokens that stand for them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.pose_branch = Mlp(9, dim // 2, dim)
        self.token_norm = nn.LayerNorm(dim)
        self.trunk = nn.Sequential(*(VitBlock(dim, heads, 0.01) for _ in range(4)))
        self.trunk_norm = nn.LayerNorm(dim)

    def forward(self, encoding: Tensor) -> Tensor:
        """B x V x 9 camera-to-world encodings -> B x V x C."""
        return self.trunk_norm(self.trunk(self.token_norm(self.pose_branch(encoding))))


class CameraDecoder(nn.Module):
    """Camera tokens to camera-to-world encodings."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU()
        )
        self.fc_t = nn.Linear(dim, 3)
        self.fc_qvec = nn.Linear(dim, 4)
        self.fc_fov = nn.Sequential(nn.Linear(dim, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        """B x V x dim -> B x V x 9."""
        x = self.backbone(tokens)
        return torch.cat([self.fc_t(x), self.fc_qvec(x), self.fc_fov(x)], -1)


@dataclass(frozen=True)
class DepthAnything3Output:
    """All that the network predicts; H x W is the size of the images given to it.

    Attributes:
        poses: B x V x 9, t, quaternion xyzw and FoV (h, w) as in ``absT_quaR_FoV``, but
            camera-to-world.
        depth, confidence: B x V x H x W; confidence is at least 1.
        rays, rays_confidence: B x V x 8h x 8w x 6, direction and origin in the world, and
            B x V x 8h x 8w; or None.
    """

    poses: Tensor
    depth: Tensor
    confidence: Tensor
    rays: Tensor | None
    rays_confidence: Tensor | None


class _Wrapper(nn.Module):  # its name is part of the parameters' names
    def __init__(self, pretrained: Backbone) -> None:
        super().__init__()
        self.pretrained = pretrained


class DepthAnything3(nn.Module):
    """Backbone, dense head, camera decoder and encoder."""

    def __init__(self, config: DepthAnything3Config) -> None:
        super().__init__()
        self.config = c = config
        self.backbone = _Wrapper(Backbone(c))
        self.head = DualDptHead(2 * c.dim, c.dense_channels, c.dense_features)
        self.cam_dec = CameraDecoder(2 * c.dim)
        self.cam_enc = CameraEncoder(c.dim, c.camera_heads)

    def forward(
        self, images: Tensor, cameras: Tensor | None = None, rays: bool = False
    ) -> DepthAnything3Output:
        """Predict.

        Args:
            images: B x V x 3 x H x W in [0, 1], sides multiples of 14.
            cameras: B x V x 9 known camera-to-world encodings, or None. They were trained with the
                first camera as the world and the median distance of all cameras from it as unit.
            rays: whether the ray branch runs.

        Raises:
            InvalidInputError: the images have another shape.
        """
        H, W = images.shape[-2:]
        if images.ndim != 5 or images.shape[2] != 3 or H % PATCH or W % PATCH or not H * W:
            raise InvalidInputError(
                f"images of shape {tuple(images.shape)}; need B x V x 3 x H x W with sides that "
                f"are multiples of {PATCH} px. DepthAnything3Predictor resizes any."
            )
        with torch.autocast(images.device.type, enabled=False):
            known = None if cameras is None else self.cam_enc(cameras)
        tokens, camera_tokens = self.backbone.pretrained(normalise(images), known)
        with torch.autocast(images.device.type, enabled=False):
            dtype = self.cam_dec.fc_t.weight.dtype
            grid = (H // PATCH, W // PATCH)
            depth, ray = self.head([t.to(dtype) for t in tokens], grid, rays)
            poses = self.cam_dec(camera_tokens.to(dtype))
        return DepthAnything3Output(
            poses,
            depth[:, :, 0].exp(),
            1 + depth[:, :, 1].exp(),
            None if ray is None else ray[:, :, :6].movedim(2, -1),
            None if ray is None else 1 + ray[:, :, 6].exp(),
        )


def load_depth_anything3(path: str | Path, preset: str = "da3-base") -> DepthAnything3:
    """Depth Anything 3 with the weights of a file, ready to predict.

    Args:
        path: ``model.safetensors`` of ``depth-anything/DA3-BASE`` or ``DA3-SMALL``, as published.
        preset: name of its sizes.

    Raises:
        InvalidInputError: no such preset.
        WeightsError: the file does not fit; see ``load_published``.
    """
    if preset not in PRESETS:
        raise InvalidInputError(
            f"no Depth Anything 3 preset '{preset}'; there are {', '.join(PRESETS)}."
        )
    with torch.device("meta"):
        model = DepthAnything3(PRESETS[preset])
    load_published(path, model, "model.")
    return model.eval().requires_grad_(False)


class DepthAnything3Predictor:
    """Depth Anything 3 on pictures of any size.

    Args:
        model: see ``load_depth_anything3``.
        long_side: of the pictures that the network sees [px]; 504 is its authors' default.
        autocast: dtype of the backbone on devices that are faster with it, as torch.bfloat16.
    """

    def __init__(
        self, model: DepthAnything3, long_side: int = 504, autocast: torch.dtype | None = None
    ) -> None:
        network_size(1, 1, long_side, PATCH)
        self.model, self.long_side, self.autocast = model.eval(), long_side, autocast

    @torch.inference_mode()
    def __call__(
        self,
        images: Tensor,
        T_camera_world: Tensor | None = None,
        K: Tensor | None = None,
    ) -> GeometryPrediction:
        """Predict depth and cameras.

        The scale is arbitrary and differs from call to call, with known cameras too: these guide
        the network, and what it makes of them is returned.

        Args:
            images: B x V x 3 x H x W in [0, 1], 1 to 8 views.
            T_camera_world: B x V x 4 x 4 known poses, or None.
            K: B x V x 3 x 3 known intrinsics [px], or None. Both or none.

        Raises:
            InvalidInputError: images of another shape or range, only one of pose and K, or a
                prediction that is not finite.
        """
        check_images(images)
        if (T_camera_world is None) != (K is None):
            raise InvalidInputError(
                "known cameras need both T_camera_world and K; only one is given. "
                "Leave both out, or give both."
            )
        size = (images.shape[-2], images.shape[-1])
        inner = network_size(*size, self.long_side, PATCH)
        weight = self.model.cam_dec.fc_t.weight
        known = None
        if T_camera_world is not None and K is not None:
            known = encode_known(T_camera_world, K, *size).to(weight)
        with torch.autocast(weight.device.type, self.autocast, self.autocast is not None):
            out = self.model(fit_images(images.to(weight), inner), known)
        T_world_camera, fov = decode_pose(out.poses.float())
        T_camera_first, _ = relative_to_first(invert(T_world_camera))
        return GeometryPrediction(
            fit_maps(out.depth.float(), size),
            fit_maps(out.confidence.float(), size),
            None,
            T_camera_first,
            fit_intrinsics(intrinsics_from_fov(fov, *inner), inner, size),
        )


def encode_known(T_camera_world: Tensor, K: Tensor, height: int, width: int) -> Tensor:
    """Known cameras as the network wants them: world = first camera, unit = median distance.

    Args:
        T_camera_world: B x V x 4 x 4; K: B x V x 3 x 3 [px] of a height x width image.

    Returns:
        B x V x 9 camera-to-world encodings.
    """
    T_first_camera = invert(relative_to_first(T_camera_world)[0])
    distance = T_first_camera[..., :3, 3].norm(dim=-1).median(1).values.clamp(min=0.1)
    T_first_camera = T_first_camera.clone()
    T_first_camera[..., :3, 3] /= distance[:, None, None]
    return encode_pose(T_first_camera, fov_from_intrinsics(K, height, width))
