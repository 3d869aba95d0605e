"""Transformer parts that the backbone and the heads share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rope_2d(positions: Tensor, head_dim: int, frequency: float = 100.0) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2-D rotary position embedding.

    Args:
        positions: N x 2 integer (row, column); special tokens sit at (0, 0), patches start at 1.
        head_dim: multiple of 4: half rotates with the row, half with the column.

    Returns:
        Two N x head_dim tensors.
    """
    quarter = head_dim // 4
    inverse = frequency ** (-torch.arange(quarter, device=positions.device) / quarter)
    angles = positions[:, :, None].float() * inverse  # N, 2, quarter
    angles = torch.cat([angles, angles], -1).flatten(1)  # N, head_dim
    return angles.cos(), angles.sin()


def apply_rope_2d(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x`` (B, heads, N, head_dim) by ``rope_2d`` angles of N tokens."""
    rows, columns = x.chunk(2, -1)
    rotated = []
    for part in (rows, columns):
        a, b = part.chunk(2, -1)
        rotated.append(torch.cat([-b, a], -1))
    return x * cos.to(x.dtype) + torch.cat(rotated, -1) * sin.to(x.dtype)


class Attention(nn.Module):
    """Self-attention with QK-norm and optional 2-D RoPE."""

    def __init__(self, dim: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.q_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // heads) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)  # B, heads, N, head_dim
        if rope is not None:
            q, k = apply_rope_2d(q, *rope), apply_rope_2d(k, *rope)
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(out.transpose(1, 2).reshape(B, N, C))


class Mlp(nn.Sequential):
    """Linear, GELU, Linear."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, out or dim))


class LayerScale(nn.Module):
    """Per-channel gain that starts small."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    def __init__(self, dim: int, heads: int, *, qk_norm: bool, layer_scale: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, heads, qk_norm)
        self.ls1 = LayerScale(dim, layer_scale)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim, layer_scale)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        return x + self.ls2(self.mlp(self.norm2(x)))
