"""What a pretrained multi-view geometry network says about pictures, whichever network it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.weights import check_fit


@dataclass(frozen=True)
class GeometryPrediction:
    """Depth and cameras of B sets of V views; all lengths in one unknown unit unless ``metric``.

    Attributes:
        depth: B x V x H x W along z, positive.
        confidence: B x V x H x W, at least 1; larger is better, without a unit.
        points: B x V x H x W x 3 in the frame of the first camera, or None where the network has
            no point head (then depth, K and T_camera_first give them).
        T_camera_first: B x V x 4 x 4, maps points in the first camera's frame to each camera's.
        K: B x V x 3 x 3 in pixels of the pictures that were given.
        metric: whether lengths are metres.

    Raises:
        InvalidInputError: shapes do not agree, or a value is not finite.
    """

    depth: Tensor
    confidence: Tensor
    points: Tensor | None
    T_camera_first: Tensor
    K: Tensor
    metric: bool = False

    def __post_init__(self) -> None:
        size = tuple(self.depth.shape)
        expected = {
            "confidence": size,
            "points": (*size, 3),
            "T_camera_first": (*size[:2], 4, 4),
            "K": (*size[:2], 3, 3),
        }
        for name, shape in expected.items():
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != shape:
                raise InvalidInputError(
                    f"geometry prediction: {name} has shape {tuple(value.shape)}, depth {size} "
                    f"needs {shape}."
                )
        for name in ("depth", *expected):
            value = getattr(self, name)
            if value is not None and not value.isfinite().all():
                raise InvalidInputError(
                    f"geometry prediction: {int((~value.isfinite()).sum())} values of {name} are "
                    "not finite. Run the network in float32 or bfloat16, not float16, and check "
                    "that its weights are the published ones."
                )


def check_images(images: Tensor) -> None:
    """Raise InvalidInputError unless ``images`` is B x (1 to 8) x 3 x H x W in [0, 1]."""
    shape = tuple(images.shape)
    if len(shape) != 5 or shape[2] != 3 or min(shape) < 1 or not 1 <= shape[1] <= 8:
        raise InvalidInputError(
            f"images of shape {shape}; need B x V x 3 x H x W with 1 to 8 views. "
            "Stack the views of one moment."
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise InvalidInputError(
            f"images hold values from {low:g} to {high:g}; need [0, 1]. Divide 8-bit ones by 255."
        )


def network_size(height: int, width: int, long_side: int, patch: int) -> tuple[int, int]:
    """(height, width) for the network: long side as given, the other the nearest multiple.

    As in VGGT's own preprocessing, which keeps the aspect ratio up to half a patch.

    Raises:
        InvalidInputError: ``long_side`` is not a positive multiple of ``patch``.
    """
    if long_side < patch or long_side % patch:
        raise InvalidInputError(
            f"long side {long_side} px must be a positive multiple of the patch, {patch} px."
        )
    scale = long_side / max(height, width)
    sides = [max(patch, round(n * scale / patch) * patch) for n in (height, width)]
    return sides[0], sides[1]


def fit_images(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize B x V x 3 x H x W bicubically, low-pass filtered, within [0, 1]."""
    flat = F.interpolate(images.flatten(0, 1), size, mode="bicubic", antialias=True)
    return flat.clamp(0, 1).unflatten(0, images.shape[:2])


def fit_maps(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize B x V x h x w to ``size`` by the nearest pixel, so that no surfaces are mixed."""
    return F.interpolate(maps, size, mode="nearest-exact")


def fit_intrinsics(K: Tensor, of: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """K [px] of an image of (height, width) ``of`` -> K of the same image resized to ``to``."""
    return K * K.new_tensor([to[1] / of[1], to[0] / of[0], 1.0])[:, None]


def invert(T: Tensor) -> Tensor:
    """Inverse of rigid transforms ... x 4 x 4."""
    out = torch.zeros_like(T)
    out[..., :3, :3] = T[..., :3, :3].mT
    out[..., :3, 3:] = -T[..., :3, :3].mT @ T[..., :3, 3:]
    out[..., 3, 3] = 1
    return out


def relative_to_first(T_camera_world: Tensor) -> tuple[Tensor, Tensor]:
    """B x V x 4 x 4 world-to-camera -> T_camera_first (B x V) and T_first_world (B x 1)."""
    T_first_world = T_camera_world[:, :1]
    return T_camera_world @ invert(T_first_world), T_first_world


def load_published(
    path: str | Path, model: nn.Module, prefix: str = "", *, part: bool = False
) -> None:
    """Fill ``model`` from somebody else's weight file, every key and shape strictly.

    Args:
        path: ``.safetensors``, or a state dict written by ``torch.save``.
        model: takes the file's tensors as its own, in their dtype if floating; may be on the meta
            device, so that the weights are in memory once.
        prefix: that all keys of the file start with and the model's do not.
        part: keys that start otherwise are not the model's, and left alone.

    Raises:
        WeightsError: the file is missing, is not a weight file, does not fit the model (it says
            which keys are missing, unknown or of wrong shape), or holds values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(
            f"no weights at {path}: the file is missing. Download the published weights (their "
            "licence is their authors') and give the path of the file."
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        raise WeightsError(
            f"{path} is not a weight file that can be read ({str(error)[:200]}). Download it again."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(
            f"{path} holds more than weights. Give a file with the plain state dict: "
            "names and tensors."
        )
    if part:
        state = {k: v for k, v in state.items() if k.startswith(prefix)}
    check_fit(path, model, {k: v.shape for k, v in state.items()}, prefix)
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.isfinite().all()]
    if bad:
        raise WeightsError(f"{path} holds values that are not finite in {bad[:3]}.")
    own = model.state_dict(keep_vars=True)
    # Tied ones may be in the file once.
    stored = {id(v): prefix + k for k, v in own.items() if prefix + k in state}
    filled = {k: state[stored[id(v)]] for k, v in own.items()}
    model.load_state_dict(filled, strict=True, assign=True)
