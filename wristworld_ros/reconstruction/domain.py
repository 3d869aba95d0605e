"""Do the anchor pictures look like those that stage 1 was trained on?

A network does not say that it sees what it has never seen: the condition map of a real laboratory
looks no less sure than that of a simulated table. Its tokens do: those of unlike pictures leave the
few directions in which tokens of training pictures vary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.model import Stage1Model

#: Distance that 1 % of the frames of val exceed: those beyond count as out of domain.
OUT_OF_DOMAIN = 1.0


@dataclass(frozen=True)
class DomainConfig:
    """Sizes.

    Attributes:
        features: of a view, ``view_features``.
        directions: in which training pictures vary.
    """

    features: int = 768
    directions: int = 32


class Domain(Companion):
    """A Gaussian of the tokens of training pictures: some principal directions, and one variance
    for all others (probabilistic principal components, Tipping and Bishop 1999).

    Attributes:
        centre, spread: mean and standard deviation of each feature.
        basis: features x directions, orthonormal; variance: along them, of the scaled features.
        rest: variance in every other direction.
        limit: mean squared distance per feature that 1 % of the frames of val exceed.
    """

    config: DomainConfig
    sizes = DomainConfig
    centre: Tensor
    spread: Tensor
    basis: Tensor
    variance: Tensor
    rest: Tensor
    limit: Tensor

    def __init__(self, config: DomainConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or DomainConfig()
        self.register_buffer("centre", torch.zeros(c.features))
        self.register_buffer("spread", torch.ones(c.features))
        self.register_buffer("basis", torch.eye(c.features, c.directions))
        self.register_buffer("variance", torch.ones(c.directions))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("limit", torch.ones(()))

    def fit(self, features: Tensor) -> None:
        """Take N x features of training pictures; ``limit`` stays.

        N has to exceed ``directions``.
        """
        x = features.double()
        self.centre.copy_(x.mean(0))
        self.spread.copy_(x.std(0).clamp_min(1e-6))
        scaled = (x - self.centre) / self.spread
        _, values, directions = torch.linalg.svd(scaled, full_matrices=False)
        variance = values.square() / (len(x) - 1)
        k = self.config.directions
        self.basis.copy_(directions[:k].T)
        self.variance.copy_(variance[:k].clamp_min(1e-4))
        rest = (scaled.square().sum() / (len(x) - 1) - variance[:k].sum()) / (x.shape[1] - k)
        self.rest.copy_(rest.clamp_min(1e-4))

    def squared(self, features: Tensor) -> Tensor:
        """Mean squared distance per feature (...) of features (... x features)."""
        x = (features - self.centre) / self.spread
        along = x @ self.basis
        aside = (x.square().sum(-1) - along.square().sum(-1)).clamp_min(0) / self.rest
        return ((along.square() / self.variance).sum(-1) + aside) / self.config.features

    def forward(self, model: Stage1Model, images: Tensor) -> Tensor:
        """Distance of frames from the training pictures; more than ``OUT_OF_DOMAIN`` is outside.

        Args:
            model: the stage 1 that this belongs to.
            images: B x V x 3 x H x W in [0, 1], as ``Stage1Model`` takes them.

        Returns:
            B, root of the mean squared distance over the views.
        """
        squared = self.squared(view_features(model, images)).mean(1)
        return (squared / self.limit).sqrt()

    def distance(self, model: Stage1Model, images: Tensor) -> float:
        """The same of one frame."""
        with torch.inference_mode():
            return float(self(model, images)[0])


def view_features(model: Stage1Model, images: Tensor) -> Tensor:
    """B x V x features: camera token and mean patch token of every view.

    Without calibration, which may be known or not and would be seen in the tokens.

    Args:
        images: B x V x 3 x H x W in [0, 1].
    """
    halved = F.avg_pool2d(images.flatten(0, 1), 2).unflatten(0, images.shape[:2])
    found = model.backbone(halved)
    tokens = found.tokens[-1].float()
    return torch.cat([tokens[:, :, 0], tokens[:, :, found.first_patch :].mean(2)], -1)
