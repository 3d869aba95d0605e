"""The station model: the wrist view of one station whose cameras are calibrated.

A few recordings with a real wrist camera teach it (``wristworld finetune``). For each wrist pixel,
planes at known heights above the table are cut by the pixel's ray and looked up in the fixed
cameras' pictures (a plane sweep in the robot's base frame). A U-net decides which plane and view a
pixel shows, where the hand is, and how far to trust the result.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.station_episode import StationEpisode
from wristworld_ros.geometry.camera import pixel_rays
from wristworld_ros.reconstruction.heads import double_conv, down_and_up
from wristworld_ros.types import CameraModel, Image
from wristworld_ros.weights import config_from, load_weights, read_config, save_weights

#: Rays that meet no plane in front of the camera, or farther away, are looked up there [m].
FAR_M = 1.5
#: Nearest distance along a ray [m].
NEAR_M = 0.03


@dataclass(frozen=True)
class StationConfig:
    """Sizes of the station model.

    Attributes:
        width, height: of the wrist picture [px], multiples of 8.
        views: number of fixed cameras.
        heights: of the planes [m] above ``table``, from low to high.
        table: height of the table in the robot's base frame [m].
        widths: channels of the U-net, from full resolution to an eighth.
        features: learned channels of the fixed cameras' pictures.
        hand: learned channels of the hand's still picture, open and closed.
    """

    width: int = 160
    height: int = 96
    views: int = 2
    heights: tuple[float, ...] = (-0.03, 0.0, 0.025, 0.05, 0.08, 0.12, 0.17, 0.23, 0.3)
    table: float = 0.0
    widths: tuple[int, ...] = (40, 64, 96, 128)
    features: int = 4
    hand: int = 6


class StationOutput(NamedTuple):
    """``picture`` B x 3 x h x w in [0, 1]; ``logit`` of being right, B x h x w, not yet
    calibrated; ``hand`` B x h x w, share of the picture that is painted and not looked up."""

    picture: Tensor
    logit: Tensor
    hand: Tensor


class StationInput(NamedTuple):
    """``views`` B x V x 3 x H x W in [0, 1]; ``K`` B x V x 3 x 3 [px]; ``T_view_base`` B x V x 4
    x 4; ``T_base_wrist`` B x 4 x 4; ``gripper`` B."""

    views: Tensor
    K: Tensor
    T_view_base: Tensor
    T_base_wrist: Tensor
    gripper: Tensor


class StationModel(nn.Module):
    """Wrist view of a station from its fixed cameras and the robot's pose; see the module.

    Attributes:
        rays: h x w x 3, directions with z = 1 of the wrist picture's pixels.
        still: 2 x 4 x h x w, mean wrist picture of the training frames with an open and a closed
            gripper, and how much it varies.
        trust: scale and shift of the confidence's logit, found on recordings that were left out.
        bf16: whether the convolutions run in bfloat16.
    """

    rays: Tensor
    still: Tensor
    trust: Tensor
    planes: Tensor

    def __init__(self, config: StationConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or StationConfig()
        self.bf16 = False
        h, w, p = c.height, c.width, len(c.heights)
        self.register_buffer("rays", torch.zeros(h, w, 3))
        self.register_buffer("still", torch.zeros(2, 4, h, w))
        self.register_buffer("trust", torch.tensor([1.0, 0.0]))
        self.register_buffer("planes", torch.tensor(c.heights) + c.table)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2), nn.SiLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.SiLU(),
            nn.Conv2d(24, c.features, 3, 1, 1),
        )  # fmt: skip
        self.hand = nn.Parameter(torch.randn(2, c.hand, h, w) * 0.1)
        count = p * c.views * (4 + c.features) + 4 + c.hand + 3 + 2
        self.enter = double_conv(count, c.widths[0])
        steps = list(pairwise(c.widths))
        self.down = nn.ModuleList(double_conv(a, b, 2) for a, b in steps)
        self.up = nn.ModuleList(double_conv(a + b, a) for a, b in reversed(steps))
        self.leave = nn.Conv2d(c.widths[0], p * c.views + 3 + 1 + 3 + 1, 1)
        # Colours of the fixed cameras in those of the wrist camera.
        self.balance = nn.Parameter(torch.eye(3, 4).repeat(c.views, 1, 1))

    def fit_wrist(self, camera: CameraModel) -> None:
        """Take over the wrist camera, lens included, at the model's size."""
        c = self.config
        if (camera.width, camera.height) != (c.width, c.height):
            raise InvalidInputError(
                f"wrist camera of {camera.width} x {camera.height} px for a model of {c.width} x "
                f"{c.height} px; bring it to that size with output_camera."
            )
        self.rays.copy_(torch.from_numpy(pixel_rays(camera)))

    def look_up(self, x: StationInput, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the fixed cameras show where the rays cut the planes.

        Args:
            features: (B V) x C x any size.

        Returns:
            Colours B x P x V x 3 x h x w, whether a view shows the place B x P x V x 1 x h x w,
            features B x P x V x C x h x w.
        """
        c = self.config
        b, v, _, H, W = x.views.shape
        p, h, w = len(c.heights), c.height, c.width
        turn, centre = x.T_base_wrist[:, :3, :3], x.T_base_wrist[:, :3, 3]
        ray = torch.einsum("bij,hwj->bhwi", turn, self.rays)
        drop = self.planes[None, :, None, None] - centre[:, None, None, None, 2]
        down = ray[..., 2][:, None]
        far = drop / torch.where(down.abs() < 1e-6, 1e-6, down)
        far = torch.where(far > 0, far, FAR_M).clamp(NEAR_M, FAR_M)
        place = centre[:, None, None, None] + far[..., None] * ray[:, None]  # b p h w 3
        T = x.T_view_base
        seen = torch.einsum("bvij,bphwj->bvphwi", T[..., :3, :3], place)
        seen = seen + T[:, :, None, None, None, :3, 3]
        z = seen[..., 2].clamp_min(1e-3)
        focal = torch.stack([x.K[..., 0, 0], x.K[..., 1, 1]], -1)
        pixel = seen[..., :2] / z[..., None] * focal[:, :, None, None, None]
        pixel = pixel + x.K[:, :, None, None, None, :2, 2]
        grid = (pixel / pixel.new_tensor([W, H]) * 2 - 1).clamp(-3, 3)
        inside = ((grid.abs() < 1).all(-1) & (seen[..., 2] > 0.02)).float()
        grid = grid.reshape(b * v, p * h, w, 2)

        def sample(pictures: Tensor) -> Tensor:
            found = F.grid_sample(pictures, grid, align_corners=False, padding_mode="border")
            return found.reshape(b, v, -1, p, h, w).permute(0, 3, 1, 2, 4, 5)

        shown = inside.reshape(b, v, 1, p, h, w).permute(0, 3, 1, 2, 4, 5)
        return sample(x.views.flatten(0, 1)), shown, sample(features)

    def forward(self, x: StationInput) -> StationOutput:
        """The wrist view of each sample."""
        c = self.config
        b, v = x.views.shape[:2]
        if v != c.views:
            raise InvalidInputError(
                f"{v} fixed cameras for a station model of {c.views}; give those it was trained on."
            )
        low = torch.autocast(x.views.device.type, torch.bfloat16) if self.bf16 else nullcontext()
        with low:
            features = self.encoder(x.views.flatten(0, 1) - 0.5).float()
        colour, shown, feature = self.look_up(x, features)
        g = x.gripper[:, None, None, None]
        still = torch.lerp(self.still[:1], self.still[1:], g)
        hand = torch.lerp(self.hand[:1], self.hand[1:], g)
        size = (b, -1, c.height, c.width)
        ray = torch.einsum("bij,hwj->bihw", x.T_base_wrist[:, :3, :3], self.rays)
        state = torch.stack([x.gripper, x.T_base_wrist[:, 2, 3] - c.table], 1)[..., None, None]
        swept = torch.cat([(colour - 0.5) * shown, shown, feature * shown], 3).reshape(size)
        y = torch.cat([swept, still, hand, ray, state.expand(size[0], 2, *size[2:])], 1)
        with low:
            y = self.leave(down_and_up(self.enter(y), self.down, self.up)).float()
        n = len(c.heights) * v
        weight = y[:, :n].reshape(b, -1, v, 1, *size[2:]) - 8 * (1 - shown)
        weight = weight.flatten(1, 2).softmax(1).reshape(shown.shape)
        tuned = torch.einsum("vij,bpvjhw->bpvihw", self.balance[:, :, :3], colour)
        tuned = tuned + self.balance[:, :, 3, None, None]
        found = (weight * tuned).sum((1, 2)) + 0.2 * y[:, n + 4 : n + 7].tanh()
        mask = y[:, n + 3 : n + 4].sigmoid()
        painted = still[:, :3] + y[:, n : n + 3]
        picture = mask * painted + (1 - mask) * found
        return StationOutput(picture, y[:, n + 7], mask[:, 0])

    def confidence(self, logit: Tensor) -> Tensor:
        """How likely pixels are right, in [0, 1], from ``StationOutput.logit``."""
        return (logit * self.trust[0] + self.trust[1]).sigmoid()


def station_input(episode: StationEpisode, frames: NDArray[np.integer]) -> StationInput:
    """The chosen moments of a recording as the model's input."""
    n = len(frames)
    views = torch.from_numpy(episode.views[:, frames]).permute(1, 0, 4, 2, 3).float() / 255

    def same(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values).float().expand(n, *values.shape)

    return StationInput(
        views,
        same(episode.K),
        same(episode.T_view_base),
        torch.from_numpy(episode.T_base_wrist[frames]).float(),
        torch.from_numpy(episode.gripper[frames]).float(),
    )


@torch.inference_mode()
def station_pictures(
    model: StationModel, episode: StationEpisode, batch: int = 8
) -> tuple[list[Image], NDArray[np.float32]]:
    """All wrist pictures of a recording (h x w x 3 uint8) and their confidence, T x h x w."""
    model.eval()
    pictures: list[Image] = []
    confidence = []
    for start in range(0, len(episode), batch):
        out = model(station_input(episode, np.arange(start, min(start + batch, len(episode)))))
        levels = (out.picture.clamp(0, 1) * 255).round().byte()
        pictures += list(levels.permute(0, 2, 3, 1).numpy())
        confidence.append(model.confidence(out.logit).numpy())
    return pictures, np.concatenate(confidence)


def save_station(folder: Path, model: StationModel, info: dict[str, Any]) -> str:
    """Write the folder ``station`` of a model; returns the sha256 of its weights."""
    return save_weights(folder, model, asdict(model.config), info, dtype=torch.float32)


def load_station(folder: Path) -> StationModel:
    """Read what ``save_station`` wrote.

    Raises:
        WeightsError: as ``load_weights``.
    """
    model = StationModel(config_from(StationConfig, read_config(folder)["config"]))
    load_weights(folder, model)
    return model.eval().requires_grad_(False)
