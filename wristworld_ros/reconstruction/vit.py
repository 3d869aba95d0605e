"""Vision transformer parts with the parameter names of DINOv2, VGGT and Depth Anything 3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.layers import Attention, LayerScale, rope_2d

#: Mean and standard deviation of RGB in [0, 1] that these networks were trained with.
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """``... x 3 x H x W`` in [0, 1] to the networks' range."""
    mean, std = (images.new_tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    return (images - mean) / std


class Mlp(nn.Module):
    """Linear, GELU, Linear, with dropout after both."""

    def __init__(self, dim: int, hidden: int, out: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, out or dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class VitBlock(nn.Module):
    """Pre-norm transformer block with layer scale.

    Args:
        dim, heads: width and attention heads.
        layer_scale: its initial value.
        qk_norm: whether queries and keys are normalised.
        eps: of both layer norms: 1e-6 in DINOv2, 1e-5 in VGGT's own blocks.
    """

    def __init__(
        self, dim: int, heads: int, layer_scale: float, qk_norm: bool = False, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """Images N x 3 x H x W to tokens N x (h w) x C by one strided convolution."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


def position_embedding(
    stored: Tensor, grid: tuple[int, int], *, antialias: bool, offset: float
) -> Tensor:
    """Fit DINOv2's learned position embedding to another grid by bicubic interpolation.

    Args:
        stored: 1 x (1 + m * m) x C, class token first.
        grid: (h, w) wanted.
        antialias: whether shrinking is low-pass filtered.
        offset: added to (h, w) when the scale is computed. DINOv2 uses 0.1, VGGT 0.

    Returns:
        1 x (1 + h * w) x C.
    """
    h, w = grid
    m = round((stored.shape[1] - 1) ** 0.5)
    if (h, w) == (m, m):
        return stored
    patches = stored[:, 1:].float().unflatten(1, (m, m)).permute(0, 3, 1, 2)
    if offset:
        scale = ((h + offset) / m, (w + offset) / m)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic", antialias=antialias)
    else:
        patches = F.interpolate(patches, size=(h, w), mode="bicubic", antialias=antialias)
    patches = patches.flatten(2).transpose(1, 2)
    return torch.cat([stored[:, :1], patches.to(stored.dtype)], 1)


def grid_rope(
    grid: tuple[int, int], special: int, views: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """``rope_2d`` of views with ``special`` tokens at (0, 0) and patches from (1, 1) on."""
    rows, columns = torch.meshgrid(
        torch.arange(1, grid[0] + 1, device=device),
        torch.arange(1, grid[1] + 1, device=device),
        indexing="ij",
    )
    patches = torch.stack([rows, columns], -1).reshape(-1, 2)
    positions = torch.cat([patches.new_zeros(special, 2), patches])
    return rope_2d(positions.repeat(views, 1), head_dim)
