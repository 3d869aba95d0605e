"""The wrist head of WristWorld (arXiv 2510.07313) on VGGT tokens, as published and as released.

One learnable query gathers what all tokens of the last layer, of all anchor views, say about the
wrist camera; VGGT's pose refinement turns it into a pose. Both variants share that; they differ in
how the query gathers:

===========  =====================================  ==========================================
             ``paper``                              ``release``
===========  =====================================  ==========================================
gathering    transformer decoder: the query         transformer encoder: the query is put in
             attends to the tokens, which stay      front of the tokens and all of them attend
             as they are                            to one another
layers       3, 1024 wide, 8 heads                  3, 2048 wide (2C), 8 heads, post-norm
tokens       brought to 1024 by a linear layer      used as they are
cost         linear in the number of tokens         quadratic in it
parameters   0.11 billion                           0.37 billion
===========  =====================================  ==========================================

The paper says no more than "3-layer, 1024-d, 8-head transformer decoder" and that the pose comes
from its query. Post-norm, MLP x 4, GELU and dropout 0.1 are therefore taken from the release for
both, as is the refinement. The release was run with two views; both variants here take 1 to 8, as
attention does not mind how many there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.vggt_heads import PoseRefinement
from wristworld_ros.reconstruction.vit import Mlp

VARIANTS = ("paper", "release")


@dataclass(frozen=True)
class WristHeadConfig:
    """Sizes; the defaults fit VGGT-1B.

    Attributes:
        variant: ``paper`` or ``release``.
        token_dim: width of the tokens, 2C of the backbone.
        dim: width of the ``paper`` variant; the ``release`` has that of the tokens.
        layers, heads, dropout: of the layers that gather.
        refine_blocks, refine_heads: of the refinement.
        iterations: refinements.
    """

    variant: str = "release"
    token_dim: int = 2048
    dim: int = 1024
    layers: int = 3
    heads: int = 8
    dropout: float = 0.1
    refine_blocks: int = 4
    refine_heads: int = 16
    iterations: int = 4

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise InvalidInputError(
                f"wrist head variant '{self.variant}' is not one of {', '.join(VARIANTS)}."
            )

    @property
    def width(self) -> int:
        """Width of the query."""
        return self.dim if self.variant == "paper" else self.token_dim


class EncoderLayer(nn.Module):
    """Post-norm self-attention and MLP, with the parameter names of the release."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim, dropout=dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(x, x, x, need_weights=False)[0]
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.mlp(x)))


class VggtWristHead(PoseRefinement):
    """Pose and field of view of the wrist camera from VGGT tokens; see the top of this module."""

    def __init__(self, config: WristHeadConfig) -> None:
        super().__init__(config.width, config.refine_blocks, config.refine_heads)
        self.config = c = config
        self.token_query = nn.Parameter(1e-6 * torch.randn(1, 1, c.width))
        layers: list[nn.Module]
        if c.variant == "paper":
            self.token_projection = nn.Linear(c.token_dim, c.width)
            layers = [
                nn.TransformerDecoderLayer(
                    c.width, c.heads, 4 * c.width, c.dropout, "gelu", batch_first=True
                )
                for _ in range(c.layers)
            ]
        else:
            layers = [EncoderLayer(c.width, c.heads, c.dropout) for _ in range(c.layers)]
        self.token_aggregation_layers = nn.ModuleList(layers)

    def forward(self, tokens: list[Tensor]) -> list[Tensor]:
        """Estimate.

        Args:
            tokens: per layer B x V x N x 2C, of which the last is used; 1 to 8 views.

        Returns:
            Per iteration B x 9 ``absT_quaR_FoV``: world-to-camera, world = the first anchor
            camera, in the backbone's unit of length; FoV (h, w) [rad], at least 0.

        Raises:
            InvalidInputError: another number of views or width.
        """
        last = tokens[-1]
        if last.ndim != 4 or not 1 <= last.shape[1] <= 8 or last.shape[3] != self.config.token_dim:
            raise InvalidInputError(
                f"tokens of shape {tuple(last.shape)}; need B x V x N x {self.config.token_dim} "
                "with 1 to 8 views."
            )
        memory = last.flatten(1, 2)
        query = self.token_query.expand(len(memory), -1, -1)
        if self.config.variant == "paper":
            memory = self.token_projection(memory)
            for layer in self.token_aggregation_layers:
                query = layer(query, memory)
        else:
            x = torch.cat([query, memory], 1)
            for layer in self.token_aggregation_layers:
                x = layer(x)
            query = x[:, :1]
        return [pose[:, 0] for pose in self.refine(query, self.config.iterations)]
