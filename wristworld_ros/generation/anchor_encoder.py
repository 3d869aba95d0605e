"""Semantics of the anchor views: an open_clip vision transformer and a projector to the context."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn


@dataclass(frozen=True)
class AnchorEncoderConfig:
    """Sizes of the anchor encoder.

    Attributes:
        image_size: anchors are resized to this square [px].
        patch_size, width, layers, heads: of the open_clip vision transformer.
        max_views, max_frames: sizes of the view and temporal embeddings.
        context_dim: width of the text context that the tokens join.
        tokens: ``all`` (CLS and patches) or ``cls`` (the paper's one token per view).
    """

    image_size: int = 64
    patch_size: int = 16
    width: int = 128
    layers: int = 3
    heads: int = 4
    max_views: int = 8
    max_frames: int = 32
    context_dim: int = 384
    tokens: str = "all"


class AnchorEncoder(nn.Module):
    """Anchor pictures to context tokens: features + temporal + view embedding, then an MLP."""

    def __init__(self, config: AnchorEncoderConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or AnchorEncoderConfig()
        self.vision = VisionTransformer(
            image_size=c.image_size,
            patch_size=c.patch_size,
            width=c.width,
            layers=c.layers,
            heads=c.heads,
            mlp_ratio=4.0,
            output_dim=c.width,
            output_tokens=True,
        )
        self.view = nn.Parameter(torch.randn(c.max_views, c.width) * 0.02)
        self.time = nn.Parameter(torch.randn(c.max_frames, c.width) * 0.02)
        self.project = nn.Sequential(
            nn.LayerNorm(c.width),
            nn.Linear(c.width, 2 * c.context_dim),
            nn.GELU(),
            nn.Linear(2 * c.context_dim, c.context_dim),
        )

    def forward(self, anchors: Tensor) -> Tensor:
        """B x F x V x 3 x H x W in [0, 1] -> B x (F * V * tokens) x context_dim."""
        B, T, V = anchors.shape[:3]
        size = self.config.image_size
        x = anchors.flatten(0, 2)
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="area")
        pooled, tokens = self.vision(x * 4 - 2)
        features = pooled[:, None]
        if self.config.tokens == "all":
            features = torch.cat([features, tokens], 1)
        features = features.reshape(B, T, V, *features.shape[1:])
        features = features + self.view[:V, None] + self.time[:T, None, None]
        return self.project(features.flatten(1, 3))
