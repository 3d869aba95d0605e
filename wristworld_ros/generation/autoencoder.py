"""The image autoencoder of stage 2: principal components of patches, refined by a small network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC, ModelMixin
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.component import Component

#: 8 x spatial compression to 16 channels, the latent shape of Wan2.1 for one frame.
MINI_AUTOENCODER: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 16,
    "attention_head_dim": 16,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": (32, 32, 64, 128),
    "decoder_block_out_channels": (32, 32, 64, 128),
    "encoder_layers_per_block": (0, 1, 1, 2),
    "decoder_layers_per_block": (0, 1, 1, 2),
    "encoder_qkv_multiscales": ((), (), (), ()),
    "decoder_qkv_multiscales": ((), (), (), ()),
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "decoder_norm_types": "rms_norm",
    "decoder_act_fns": "silu",
    "encoder_out_shortcut": False,
    "scaling_factor": 1.0,
}


class Autoencoder(Component, ModelMixin):
    """Pictures to latents of zero mean and unit deviation per channel, and back.

    A linear part maps each 8 x 8 patch to its leading principal components and back
    (``fit_linear``); diffusers' AutoencoderDC adds what the linear part misses, in both directions.
    Its last layers start at zero, so that training starts from principal components (29 dB on wrist
    pictures) rather than from noise.

    Attributes:
        factor: pixels per latent cell edge.
        channels: latent channels.
    """

    factor = 8

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.config = dict(config or MINI_AUTOENCODER)
        self.net = AutoencoderDC(**self.config)
        self.channels = int(self.config["latent_channels"])
        f = self.factor
        self.analysis = nn.Conv2d(3, self.channels, f, f)
        self.synthesis = nn.ConvTranspose2d(self.channels, 3, f, f)
        for layer in (self.net.encoder.conv_out, self.net.decoder.conv_out.conv):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.latent_mean: Tensor
        self.latent_std: Tensor
        self.register_buffer("latent_mean", torch.zeros(self.channels))
        self.register_buffer("latent_std", torch.ones(self.channels))

    @torch.no_grad()
    def fit_linear(self, images: Tensor) -> None:
        """Set the linear part to the principal components of patches of B x 3 x H x W in [0, 1]."""
        f = self.factor
        patches = F.unfold(images * 2 - 1, f, stride=f).transpose(1, 2).reshape(-1, 3 * f * f)
        mean = patches.mean(0)
        _, vectors = torch.linalg.eigh(torch.cov((patches - mean).T.double()))
        basis = vectors.flip(1)[:, : self.channels].T.to(images.dtype)  # channels, 3 f f
        self.analysis.weight.copy_(basis.reshape(-1, 3, f, f))
        assert self.analysis.bias is not None and self.synthesis.bias is not None
        self.analysis.bias.copy_(-basis @ mean)
        self.synthesis.weight.copy_(basis.reshape(-1, 3, f, f))
        # One bias per colour cannot hold the mean of each place in the patch: the mean colour does.
        self.synthesis.bias.copy_(mean.reshape(3, -1).mean(1))

    def encode(self, images: Tensor) -> Tensor:
        """B x 3 x H x W in [0, 1] -> B x channels x H/8 x W/8, normalised.

        Raises:
            InvalidInputError: a side is not a multiple of 8.
        """
        H, W = images.shape[-2:]
        if H % self.factor or W % self.factor:
            raise InvalidInputError(
                f"pictures of {W} x {H} px: both sides must be multiples of {self.factor}. "
                "Choose another size of the virtual wrist camera."
            )
        x = images * 2 - 1
        latents = self.analysis(x) + self.net.encode(x).latent
        return (latents - self.latent_mean.view(1, -1, 1, 1)) / self.latent_std.view(1, -1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """B x channels x h x w -> B x 3 x 8h x 8w, nominally in [0, 1], not clamped."""
        latents = latents * self.latent_std.view(1, -1, 1, 1) + self.latent_mean.view(1, -1, 1, 1)
        return (self.synthesis(latents) + self.net.decode(latents).sample) * 0.5 + 0.5

    def config_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the model."""
        return dict(self.config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Autoencoder:
        """Rebuild from ``config_dict``; lists become tuples again."""
        return cls({k: _tuples(v) for k, v in config.items()})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
