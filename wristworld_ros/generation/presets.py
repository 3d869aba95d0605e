"""What differs between the models that the pipeline runs, behind one interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.conditioning import mask_channels, ray_channels
from wristworld_ros.generation.confidence import measured_confidence
from wristworld_ros.generation.detail import shown
from wristworld_ros.generation.model import Context
from wristworld_ros.generation.networks import Stage2Networks
from wristworld_ros.generation.sampling import Guidance
from wristworld_ros.generation.text import TextEncoder


@dataclass(frozen=True)
class Clip:
    """Condition maps as tensors.

    Attributes:
        image: B x F x 3 x H x W in [0, 1], black holes.
        filled: the same without holes (``fill_holes``).
        mask: B x F x 1 x H x W, 1 where the map was drawn.
        measured: the same, 1 where an anchor shows what was drawn.
        intrinsics: B x F x 3 x 3 of the wrist camera [px], or None.
    """

    image: Tensor
    filled: Tensor
    mask: Tensor
    measured: Tensor
    intrinsics: Tensor | None


class Preset(Protocol):
    """A model as the pipeline sees it.

    Attributes:
        multiple: what sides of the pictures have to be multiples of [px].
        anchor_size: anchors are resized to this square [px].
        steps, guidance: defaults of sampling.
    """

    multiple: int
    anchor_size: int
    steps: int
    guidance: Guidance

    def check(self, frames: int, views: int, intrinsics: bool) -> None:
        """Raise InvalidInputError for clips that the model cannot take."""

    def text(self, prompts: Sequence[str], frames: int, views: int) -> Tensor:
        """B x L x D token states."""

    def context(self, clip: Clip, text: Tensor, anchors: Tensor | None) -> Context:
        """All conditions; anchors B x F x V x 3 x size x size in [0, 1]."""

    def nothing(self, context: Context) -> Tensor:
        """Latents, as ``context.latents``, of condition maps that show nothing."""

    def noise(
        self, shape: Sequence[int], generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        """Noise of the latents' shape, on the CPU."""

    def denoise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        """Clean latents."""

    def decode(self, latents: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
        """Pictures B x F x 3 x H x W in [0, 1] and confidence B x F x H x W."""


def check_count(name: str, count: int, most: int) -> None:
    """Raise InvalidInputError for more frames or views than a model has embeddings for."""
    if count > most:
        raise InvalidInputError(f"{count} {name}; this model takes at most {most}.")


def as_frames(x: Tensor) -> Tensor:
    """B x F x ... -> (B F) x ...

    One clip keeps its strides, which flattening would change, and by which torch chooses kernels:
    the pictures of a clip do not depend on the way it came.
    """
    return x[0] if len(x) == 1 else x.flatten(0, 1)


def as_clips(x: Tensor, batch: int) -> Tensor:
    """(B F) x ... -> B x F x ..., with the strides of ``as_frames``."""
    return x[None] if batch == 1 else x.unflatten(0, (batch, -1))


class MiniPreset:
    """Our own model, each frame encoded for itself; see ``Preset``.

    Args:
        networks: its networks, by whatever runs them.
        encoder: of the text.
    """

    multiple = 16
    steps, guidance = 1, Guidance()

    def __init__(self, networks: Stage2Networks, encoder: TextEncoder) -> None:
        self.networks, self.encoder = networks, encoder
        self.anchor_size = networks.model.config.anchors.image_size

    def check(self, frames: int, views: int, intrinsics: bool) -> None:
        config = self.networks.model.config.anchors
        check_count("frames", frames, config.max_frames)
        check_count("anchor views", views, config.max_views)
        if not intrinsics:
            raise InvalidInputError(
                "this model needs the intrinsics of the wrist camera (B x F x 3 x 3 [px]): with "
                "the map alone it cannot tell where in the picture the gripper has to be."
            )

    def text(self, prompts: Sequence[str], frames: int, views: int) -> Tensor:
        return torch.stack([self.encoder.encode(p) for p in prompts])

    def context(self, clip: Clip, text: Tensor, anchors: Tensor | None) -> Context:
        assert clip.intrinsics is not None
        B = len(clip.mask)
        H, W = clip.mask.shape[-2:]
        latents = as_clips(self.networks.encode(as_frames(clip.filled)), B).transpose(1, 2)
        mask = as_clips(mask_channels(as_frames(clip.mask)), B).transpose(1, 2)
        rays = as_clips(ray_channels(as_frames(clip.intrinsics), H, W), B).transpose(1, 2)
        if anchors is None:
            nobody = text.new_zeros(B, 1, text.shape[2])
            return Context(latents, mask, rays, torch.cat([text, nobody], 1))
        return self.networks.context(latents, mask, rays, text, anchors)

    def nothing(self, context: Context) -> Tensor:
        h, w = (8 * s for s in context.latents.shape[-2:])
        grey = context.latents.new_full((1, 3, h, w), 0.5)
        return self.networks.encode(grey)[:, :, None].expand_as(context.latents)

    def noise(
        self, shape: Sequence[int], generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        """The same for every frame, which keeps the picture steady."""
        B, C, F, h, w = shape
        return randn_tensor((B, C, 1, h, w), generator).expand(-1, -1, F, -1, -1)

    def denoise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.networks.denoise(noisy, t, context)

    def decode(self, latents: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
        B = len(latents)
        picture = self.networks.decode(as_frames(latents.transpose(1, 2)))
        mask, seen = as_frames(clip.mask), as_frames(clip.measured)
        if self.networks.detail is None:
            confidence = measured_confidence(picture, as_frames(clip.image), seen)
        else:
            masks = torch.cat([mask, seen], 1)
            picture, right = self.networks.restore(picture, as_frames(clip.filled), masks)
            picture = picture.clamp(0, 1)
            confidence = (shown(mask) * seen * right.sigmoid())[:, 0]
        return as_clips(picture, B), as_clips(confidence, B)
