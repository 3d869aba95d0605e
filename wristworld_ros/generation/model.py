"""The stage-2 network: a Wan transformer on latents, conditioned on map, mask, anchors and text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from diffusers import ModelMixin, WanTransformer3DModel
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.anchor_encoder import AnchorEncoder, AnchorEncoderConfig
from wristworld_ros.generation.component import Component
from wristworld_ros.generation.refiner import LatentRefiner
from wristworld_ros.generation.text import TEXT_DIM

MASK_CHANNELS = 4
RAY_CHANNELS = 2


@dataclass(frozen=True)
class Stage2Config:
    """Sizes of the transformer, and what its output means.

    Attributes:
        latent_channels: of the autoencoder.
        heads, head_dim, ffn_dim, layers, patch: of the Wan transformer.
        text_tokens: length of the text context.
        refiner: width of the convolutional branch on latents, 0 for none (as Wan).
        prediction: ``correction``: the output is added to the condition latents to give the clean
            latents (a strong prior where little data is to be had); ``velocity``: plain flow
            matching, as Wan.
        anchors: the anchor encoder.
    """

    latent_channels: int = 16
    heads: int = 6
    head_dim: int = 48
    ffn_dim: int = 1024
    layers: int = 5
    patch: tuple[int, int, int] = (1, 2, 2)
    text_tokens: int = 24
    refiner: int = 96
    prediction: str = "correction"
    anchors: AnchorEncoderConfig = field(default_factory=AnchorEncoderConfig)


@dataclass(frozen=True)
class Context:
    """Conditions of one clip that do not change over denoising steps.

    Attributes:
        latents: B x C x F x h x w latents of the hole-filled condition maps.
        mask: B x 4 x F x h x w coverage.
        rays: B x 2 x F x h x w, where each cell looks, x / z and y / z in the wrist camera. Without
            them the transformer, which knows positions only relative to one another, cannot tell
            where in the picture the gripper has to be.
        tokens: B x L x 384 text and anchor tokens.
    """

    latents: Tensor
    mask: Tensor
    rays: Tensor
    tokens: Tensor

    def without(self, drops: Mapping[str, Tensor], negative: Tensor, nothing: Tensor) -> Context:
        """The same with conditions dropped.

        Args:
            drops: for some of ``text``, ``anchors`` and ``map``, B bool: which clips lose it.
            negative: B x L x D token states in the place of the text's, which come first.
            nothing: latents of condition maps that show nothing, in the place of theirs.
        """

        def chosen(name: str, instead: Tensor, value: Tensor) -> Tensor:
            if name not in drops:
                return value
            return torch.where(drops[name].view(-1, *(1,) * (value.ndim - 1)), instead, value)

        length = negative.shape[1]
        text, anchors = self.tokens[:, :length], self.tokens[:, length:]
        text = chosen("text", negative, text)
        anchors = chosen("anchors", torch.zeros_like(anchors), anchors)
        return Context(
            chosen("map", nothing, self.latents),
            chosen("map", torch.zeros_like(self.mask), self.mask),
            self.rays,
            torch.cat([text, anchors], 1),
        )


class Stage2Model(Component, ModelMixin):
    """Predicts clean latents from noisy ones (t = 1: pure noise) and the context."""

    def __init__(self, config: Stage2Config | None = None) -> None:
        super().__init__()
        c = self.config = config or Stage2Config()
        if c.prediction not in ("correction", "velocity"):
            raise InvalidInputError(f"prediction '{c.prediction}' is not correction or velocity.")
        self.anchors = AnchorEncoder(c.anchors)
        self.transformer = WanTransformer3DModel(
            patch_size=c.patch,
            num_attention_heads=c.heads,
            attention_head_dim=c.head_dim,
            in_channels=2 * c.latent_channels + MASK_CHANNELS + RAY_CHANNELS,
            out_channels=c.latent_channels,
            text_dim=TEXT_DIM,
            freq_dim=128,
            ffn_dim=c.ffn_dim,
            num_layers=c.layers,
            cross_attn_norm=True,
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=128,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)
        self.refiner = None
        if c.refiner:
            channels = 3 * c.latent_channels + MASK_CHANNELS + RAY_CHANNELS
            self.refiner = LatentRefiner(channels, c.latent_channels, TEXT_DIM, c.refiner)
        #: Run the networks in bfloat16 (training).
        self.bf16 = False

    def context(
        self,
        latents: Tensor,
        mask: Tensor,
        rays: Tensor,
        text: Tensor,
        anchors: Tensor | None,
    ) -> Context:
        """Bring all conditions together.

        Args:
            latents, mask, rays: as in ``Context``.
            text: B x text_tokens x 384.
            anchors: B x F x V x 3 x H x W in [0, 1], or None.
        """
        tokens = text.new_zeros(len(text), 1, text.shape[2])  # stands for "no anchors"
        if anchors is not None:
            tokens = self.anchors(anchors)
        return Context(latents, mask, rays, torch.cat([text, tokens], 1))

    def forward(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        """Clean latents.

        Args:
            noisy: B x C x F x h x w, (1 - t) clean + t noise.
            t: B in (0, 1].
        """
        x = torch.cat([noisy, context.latents, context.mask, context.rays], 1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.transformer(x, t * 1000, context.tokens, return_dict=False)[0].float()
            if self.refiner is not None:
                summary = context.tokens[:, self.config.text_tokens :].mean(1)
                out = out + self.refiner(torch.cat([x, out], 1), t, summary).float()
        if self.config.prediction == "correction":
            return context.latents + out
        return noisy - t.view(-1, 1, 1, 1, 1) * out

    def config_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the model by ``from_config``."""
        return asdict(self.config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Stage2Model:
        """Rebuild from ``config_dict``."""
        values = dict(config)
        values["anchors"] = AnchorEncoderConfig(**values["anchors"])
        values["patch"] = tuple(values["patch"])
        return cls(Stage2Config(**values))
