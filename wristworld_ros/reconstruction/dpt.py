"""Dense prediction from transformer tokens (DPT, arXiv 2103.13413), as in VGGT and its kin.

Tokens of four layers become maps of 4, 2, 1 and 1/2 times the patch grid, which are fused from
coarse to fine. Parameter names are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_map(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, the one that all DPT heads use."""
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def uv_embedding(channels: int, size: tuple[int, int], aspect: float, like: Tensor) -> Tensor:
    """Sines and cosines of the place in the picture (first half: column, second half: row).

    Args:
        channels: multiple of 4.
        size: (h, w) of the map.
        aspect: width / height of the image; coordinates are in half diagonals of it.
        like: gives dtype and device.

    Returns:
        channels x h x w.
    """
    h, w = size
    diagonal = (aspect**2 + 1) ** 0.5
    quarter = channels // 4
    omega = 100.0 ** -(torch.arange(quarter, dtype=torch.float64, device=like.device) / quarter)
    halves = []
    for n, span in ((w, aspect / diagonal), (h, 1 / diagonal)):
        end = span * (n - 1) / n
        at = torch.linspace(-end, end, n, dtype=like.dtype, device=like.device)
        angles = at[:, None] * omega
        halves.append(torch.cat([angles.sin(), angles.cos()], 1).T.to(like.dtype))
    return torch.cat(
        [halves[0][:, None].expand(-1, h, -1), halves[1][:, :, None].expand(-1, -1, w)]
    )


def add_uv(x: Tensor, aspect: float) -> Tensor:
    """Add a tenth of ``uv_embedding`` to maps N x C x h x w."""
    return x + 0.1 * uv_embedding(x.shape[1], (x.shape[2], x.shape[3]), aspect, x)


class ResidualUnit(nn.Module):
    """Two convolutions around a shortcut.

    ``rectified``: whether the shortcut carries relu(x) instead of x. In VGGT it does, since its
    first ReLU works in place; its weights were trained so.
    """

    def __init__(self, features: int, rectified: bool) -> None:
        super().__init__()
        self.rectified = rectified
        self.conv1 = nn.Conv2d(features, features, 3, 1, 1)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x)
        out = self.conv2(F.relu(self.conv1(active)))
        return out + (active if self.rectified else x)


class FusionBlock(nn.Module):
    """Add a finer level, smooth, enlarge."""

    def __init__(self, features: int, rectified: bool, lateral: bool = True) -> None:
        super().__init__()
        if lateral:
            self.resConfUnit1 = ResidualUnit(features, rectified)
        self.resConfUnit2 = ResidualUnit(features, rectified)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor, lateral: Tensor | None, size: tuple[int, int]) -> Tensor:
        if lateral is not None:
            x = x + self.resConfUnit1(lateral)
        return self.out_conv(resize_map(self.resConfUnit2(x), size))


class Scratch(nn.Module):
    """Level adapters and the fusion chain; heads add their output layers here."""

    output_conv1: nn.Module
    output_conv2: nn.Module
    output_conv1_aux: nn.ModuleList
    output_conv2_aux: nn.ModuleList

    def __init__(self, channels: Sequence[int], features: int, rectified: bool) -> None:
        super().__init__()
        for i, c in enumerate(channels, 1):
            setattr(self, f"layer{i}_rn", nn.Conv2d(c, features, 3, 1, 1, bias=False))
        self.add_chain("", features, rectified)

    def add_chain(self, suffix: str, features: int, rectified: bool) -> None:
        """Add a fusion chain whose blocks are named ``refinenet<level><suffix>``."""
        for i in range(1, 5):
            block = FusionBlock(features, rectified, lateral=i < 4)
            setattr(self, f"refinenet{i}{suffix}", block)

    def adapt(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps to one number of channels."""
        return [getattr(self, f"layer{i}_rn")(m) for i, m in enumerate(maps, 1)]

    def fuse(self, levels: list[Tensor], suffix: str = "") -> Tensor:
        """Four adapted maps, fine to coarse -> one of twice the finest's size."""
        x, lateral = levels[3], None
        for i in (4, 3, 2, 1):
            finer = levels[i - 2].shape[2:] if i > 1 else [2 * n for n in levels[0].shape[2:]]
            x = getattr(self, f"refinenet{i}{suffix}")(x, lateral, (finer[0], finer[1]))
            lateral = levels[i - 2]
        return x


class DptTrunk(nn.Module):
    """Tokens to four adapted maps.

    Args:
        dim: token width.
        channels: of the four maps, fine to coarse.
        features: channels after adaptation.
        positions: whether ``uv_embedding`` is added.
        rectified: see ``ResidualUnit``.
    """

    def __init__(
        self, dim: int, channels: Sequence[int], features: int, positions: bool, rectified: bool
    ) -> None:
        super().__init__()
        self.positions = positions
        self.norm = nn.LayerNorm(dim)
        self.projects = nn.ModuleList(nn.Conv2d(dim, c, 1) for c in channels)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(channels[0], channels[0], 4, 4),
                nn.ConvTranspose2d(channels[1], channels[1], 2, 2),
                nn.Identity(),
                nn.Conv2d(channels[3], channels[3], 3, 2, 1),
            ]
        )
        self.scratch = Scratch(channels, features, rectified)

    def levels(self, tokens: list[Tensor], grid: tuple[int, int], aspect: float) -> list[Tensor]:
        """Patch tokens of four layers, each N x (h w) x C -> four maps, fine to coarse."""
        maps = []
        for x, project, resize in zip(tokens, self.projects, self.resize_layers, strict=True):
            x = project(self.norm(x).transpose(1, 2).unflatten(2, grid))
            maps.append(resize(add_uv(x, aspect) if self.positions else x))
        return self.scratch.adapt(maps)


class DptHead(DptTrunk):
    """VGGT's dense head: ``outputs`` channels per pixel, or features at half size when None.

    ``forward`` takes B x V x P x C tokens of four layers.
    """

    def __init__(
        self,
        dim: int,
        channels: Sequence[int],
        features: int,
        outputs: int | None,
        patch_size: int,
    ) -> None:
        super().__init__(dim, channels, features, positions=outputs is not None, rectified=True)
        self.dense = outputs is not None
        self.pixels = patch_size if outputs is not None else patch_size / 2
        if outputs is None:
            self.scratch.output_conv1 = nn.Conv2d(features, features, 3, 1, 1)
        else:
            self.scratch.output_conv1 = nn.Conv2d(features, features // 2, 3, 1, 1)
            self.scratch.output_conv2 = output_layers(features // 2, outputs)

    def forward(self, tokens: list[Tensor], first_patch: int, grid: tuple[int, int]) -> Tensor:
        """Tokens -> B x V x outputs x H x W, or B x V x features x H/2 x W/2."""
        B, V = tokens[0].shape[:2]
        aspect = grid[1] / grid[0]
        patches = [t[:, :, first_patch:].flatten(0, 1) for t in tokens]
        x = self.scratch.output_conv1(self.scratch.fuse(self.levels(patches, grid, aspect)))
        x = resize_map(x, (int(grid[0] * self.pixels), int(grid[1] * self.pixels)))
        if self.dense:
            x = self.scratch.output_conv2(add_uv(x, aspect))
        return x.unflatten(0, (B, V))


def output_layers(features: int, outputs: int) -> nn.Sequential:
    """The last two convolutions of a dense head."""
    return nn.Sequential(
        nn.Conv2d(features, 32, 3, 1, 1), nn.ReLU(inplace=True), nn.Conv2d(32, outputs, 1)
    )
