"""Distance of pictures from those of training."""

import numpy as np
import pytest
import torch

from wristworld_ros.errors import WeightsError
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.reconstruction.domain import Domain, DomainConfig, view_features
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel
from wristworld_ros.weights import save_weights

CONFIG = DomainConfig(features=6, directions=2)


def fitted(n: int = 20_000) -> Domain:
    """Features that vary in two directions, and little in the other four."""
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    x = rng.normal(size=(n, 6)) * [3.0, 2.0, 0.1, 0.1, 0.1, 0.1] @ mixing + 5
    domain = Domain(CONFIG)
    domain.fit(torch.from_numpy(x).float())
    return domain


def test_training_features_are_at_distance_one_in_the_mean():
    domain = fitted()
    rng = np.random.default_rng(0)
    mixing = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    new = np.random.default_rng(1).normal(size=(20_000, 6)) * [3, 2, 0.1, 0.1, 0.1, 0.1]
    squared = domain.squared(torch.from_numpy(new @ mixing + 5).float())
    assert squared.mean().item() == pytest.approx(1.0, rel=0.1)


def test_leaving_the_directions_of_training_counts_more_than_going_far_in_them():
    domain = fitted()
    along = domain.basis[:, 0] * domain.spread
    aside = torch.linalg.svd(domain.basis, full_matrices=True)[0][:, -1] * domain.spread
    assert domain.squared(domain.centre) == pytest.approx(0.0, abs=1e-5)
    near, far = (domain.squared(domain.centre + way) for way in (along, aside))
    assert far > 20 * near > 0


def test_all_variance_is_kept():
    domain = fitted()
    total = domain.variance.sum() + (6 - 2) * domain.rest
    assert total.item() == pytest.approx(6.0, rel=1e-3)  # scaled features have variance 1


@pytest.fixture(scope="module")
def stage1():
    torch.manual_seed(0)
    config = BackboneConfig(dim=24, pairs=2, heads=2, stem=(16, 16, 16), kept=(0, 1))
    return Stage1Model(config).eval().requires_grad_(False)


def frame(seed: int, camera: CameraModel | None = None) -> AnchorFrame:
    image = np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    pose = None if camera is None else np.eye(4)
    return AnchorFrame(1, (AnchorView("a", image, 1, camera, pose),))


def test_calibration_does_not_count(stage1):
    domain = Domain(DomainConfig(features=96, directions=2))
    reconstructor = Reconstructor(stage1, domain=domain)
    known = reconstructor.domain_distance(frame(0, CameraModel.from_fov(0.8, 64, 64)))
    assert known == reconstructor.domain_distance(frame(0)) > 0
    assert known != reconstructor.domain_distance(frame(1))


def test_the_limit_is_distance_one(stage1):
    images = torch.rand(1, 2, 3, 64, 64)
    domain = Domain(DomainConfig(features=96, directions=2))
    squared = domain.squared(view_features(stage1, images)).mean()
    domain.limit.fill_(squared.item() / 4)
    assert domain(stage1, images)[0].item() == pytest.approx(2.0, rel=1e-5)


def test_without_statistics_nothing_is_known(stage1):
    assert np.isnan(Reconstructor(stage1).domain_distance(frame(0)))


def test_they_belong_to_one_stage_1(tmp_path):
    domain = fitted(100)
    save_weights(
        tmp_path / "domain", domain, domain.config_dict(), {"stage1": "ab" * 32}, torch.float16
    )
    loaded = load_companion(tmp_path / "domain", Domain, sha256="ab" * 32)
    torch.testing.assert_close(loaded.variance, domain.variance, rtol=1e-3, atol=0)
    with pytest.raises(WeightsError, match="train domain --stage1"):
        load_companion(tmp_path / "domain", Domain, sha256="cd" * 32)
