"""From a condition map to the tensors that condition the generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import ConditionMap, check_image


def condition_tensors(conditions: Sequence[ConditionMap]) -> tuple[Tensor, Tensor]:
    """Stack condition maps: B x 3 x H x W in [0, 1] (black holes) and B x 1 x H x W masks."""
    image = torch.from_numpy(np.stack([c.image for c in conditions])).permute(0, 3, 1, 2)
    mask = torch.from_numpy(np.stack([c.mask for c in conditions]))[:, None]
    return image.float() / 255, mask.float()


def mask_channels(mask: Tensor, factor: int = 8, parts: int = 2) -> Tensor:
    """Coverage per latent cell, in ``parts`` x ``parts`` sub-cells.

    Args:
        mask: B x 1 x H x W.

    Returns:
        B x parts^2 x H/factor x W/factor in [0, 1].
    """
    return F.pixel_unshuffle(F.avg_pool2d(mask, factor // parts), parts)


def ray_channels(K: Tensor, height: int, width: int, factor: int = 8) -> Tensor:
    """Where each latent cell looks: x / z and y / z of its centre in the camera frame.

    Args:
        K: B x 3 x 3 [px of the height x width picture].

    Returns:
        B x 2 x height/factor x width/factor.
    """
    v, u = torch.meshgrid(
        (torch.arange(height // factor, device=K.device) + 0.5) * factor,
        (torch.arange(width // factor, device=K.device) + 0.5) * factor,
        indexing="ij",
    )
    K = K[:, :, :, None, None]
    return torch.stack([(u - K[:, 0, 2]) / K[:, 0, 0], (v - K[:, 1, 2]) / K[:, 1, 1]], 1)


def video_tensor(value: Any, name: str) -> Tensor:
    """Videos of pictures or masks in one form.

    Args:
        value: (B x) F x H x W (x 3), uint8 pictures or bool masks as arrays or lists of pictures;
            or a tensor (B x) F x C x H x W in [0, 1] or a bool one (B x) F x H x W.
        name: for messages; ``condition`` has 3 channels, masks have 1.

    Returns:
        B x F x C x H x W float.

    Raises:
        InvalidInputError: another shape or type.
    """
    channels = 3 if name == "condition" else 1
    x = value if isinstance(value, Tensor) else torch.from_numpy(_stacked(value))
    if channels == 1 and x.dtype == torch.bool:
        x = x[..., None, :, :]
    elif not isinstance(value, Tensor):
        if channels == 1 or x.dtype != torch.uint8 or x.ndim not in (4, 5):
            kind = "H x W bool masks" if channels == 1 else "H x W x 3 uint8 pictures"
            raise InvalidInputError(
                f"{name}: got {x.dtype} of shape {tuple(x.shape)}; need (B x) F x {kind}, or a "
                f"tensor (B x) F x {channels} x H x W in [0, 1]."
            )
        x = x.movedim(-1, -3).float() / 255
    x = x[None] if x.ndim == 4 else x
    if x.ndim != 5 or x.shape[2] != channels:
        raise InvalidInputError(
            f"{name} of shape {tuple(value.shape)}; need (B x) F x {channels} x H x W."
        )
    return x.float()


def _stacked(value: Any) -> np.ndarray:
    """Nested lists of pictures (arrays or PIL) as one array."""
    if isinstance(value, list | tuple):
        return np.stack([_stacked(v) for v in value])
    return np.array(value)  # arrays of ``ConditionMap`` are not writable, which torch dislikes


def anchor_tensor(anchors: Any, size: int) -> Tensor:
    """Anchor views at the size that the encoder sees.

    Args:
        anchors: (B x) F x V pictures, H x W x 3 uint8 of any sizes (nested lists of arrays or PIL
            pictures, or one array), or a tensor (B x) F x V x 3 x H x W in [0, 1].
        size: of the square that pictures are resized to by area [px].

    Returns:
        B x F x V x 3 x H x W in [0, 1]; a tensor keeps its size.

    Raises:
        InvalidInputError: frames of different numbers of views, or other shapes.
    """
    if isinstance(anchors, Tensor):
        x = anchors[None] if anchors.ndim == 5 else anchors
        if x.ndim != 6 or x.shape[3] != 3:
            raise InvalidInputError(
                f"anchors of shape {tuple(anchors.shape)}; need (B x) F x V x 3 x H x W."
            )
        return x.float()
    clips = [anchors] if np.ndim(anchors[0][0]) == 3 else anchors
    counts = {len(views) for clip in clips for views in clip}
    if len(counts) > 1 or len({len(clip) for clip in clips}) > 1:
        raise InvalidInputError(
            f"anchors: frames with {sorted(counts)} views; all frames of all clips need the same."
        )
    stack = [
        [[_resized(np.asarray(view), size) for view in views] for views in clip] for clip in clips
    ]
    return torch.from_numpy(np.array(stack)).permute(0, 1, 2, 5, 3, 4).float() / 255


def _resized(image: NDArray, size: int) -> NDArray:
    check_image(image, "anchor view")
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
