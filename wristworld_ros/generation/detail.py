"""The decoded picture, corrected by what the condition map shows of the same pixels, and how likely
each pixel is right.

The autoencoder keeps 16 numbers for 8 x 8 pixels, and an average over what might be there is all
that a small generator can say of them; texture that the anchors did see need not go through either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, nn

from wristworld_ros.generation.component import Component
from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.heads import double_conv, down_and_up

#: Sides of the picture are padded to a multiple of this [px].
_MULTIPLE = 16
#: Logit that a pixel of the condition map is taken, before training.
_START = -2.0
#: Mean absolute error over the colours, in [0, 1], up to which a pixel is right.
RIGHT = 0.08
#: Share of the view that the condition map has to show: up to the first there is nothing to correct
#: by, the decoded picture stays as it is, and no pixel is trusted; from the second on, corrections
#: and confidence count in full. A loss that rewards texture invents some where nothing is known,
#: and where stage 1 trusts next to nothing, the little that it does trust is mostly wrong.
SHOWN = (0.02, 0.1)


@dataclass(frozen=True)
class DetailConfig:
    """Sizes.

    Attributes:
        widths: channels at 1/2, 1/4, 1/8 and 1/16 of the picture, multiples of 8.
    """

    widths: tuple[int, int, int, int] = (64, 96, 128, 192)


class DetailRestorer(Companion, Component, ModelMixin):
    """A U-net that says, for each pixel, how far the condition map is to be taken, adds what both
    pictures lack, and knows how likely the result is right (to ``RIGHT``). It belongs to one stage
    2, on whose pictures it was trained.

    Attributes:
        bf16: run the convolutions in bfloat16.
    """

    config: DetailConfig
    sizes = DetailConfig

    def __init__(self, config: DetailConfig | None = None) -> None:
        super().__init__()
        self.config = config or DetailConfig()
        self.bf16 = False
        a, b, c, d = self.config.widths
        self.enter = double_conv(4 * (3 + 3 + 2), a)
        self.down = nn.ModuleList(
            [double_conv(a, b, 2), double_conv(b, c, 2), double_conv(c, d, 2)]
        )
        self.up = nn.ModuleList(
            [double_conv(d + c, c), double_conv(c + b, b), double_conv(b + a, a)]
        )
        self.out = nn.Conv2d(a, 4 * (3 + 1 + 1), 3, padding=1)
        assert self.out.bias is not None
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, picture: Tensor, condition: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Restore.

        Args:
            picture: B x 3 x H x W decoded, in [0, 1].
            condition: B x 3 x H x W hole-filled condition map, in [0, 1].
            mask: B x 2 x H x W, 1 where it was drawn, and where what was drawn is measured
                (``ConditionMap.measured``): colours of the robot's own body may be guessed.

        Returns:
            B x 3 x H x W, not clamped, and B x 1 x H x W logits that the pixel is right.
        """
        H, W = picture.shape[-2:]
        x = torch.cat([picture * 2 - 1, condition * 2 - 1, mask], 1)
        x = F.pad(x, (0, -W % _MULTIPLE, 0, -H % _MULTIPLE), mode="replicate")
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            x = self.enter(F.pixel_unshuffle(x, 2))
            x = F.pixel_shuffle(self.out(down_and_up(x, self.down, self.up)), 2)
        x = x.float()[..., :H, :W]
        taken = torch.sigmoid(x[:, 3:4] + _START) * mask[:, :1]
        change = taken * (condition - picture) + x[:, :3]
        return picture + shown(mask[:, :1]) * change, x[:, 4:]


def shown(mask: Tensor) -> Tensor:
    """B x 1 x 1 x 1 in [0, 1]: how far a map with the mask B x 1 x H x W is to be trusted."""
    low, high = SHOWN
    return ((mask.mean((2, 3), keepdim=True) - low) / (high - low)).clamp(0, 1)


def is_right(picture: Tensor, truth: Tensor) -> Tensor:
    """B x 1 x H x W, 1 where a picture (B x 3 x H x W in [0, 1]) is right to ``RIGHT``."""
    return ((picture - truth).abs().mean(1, keepdim=True) < RIGHT).to(picture.dtype)
