"""A model folder at tiny size."""

import pytest
import torch
from torch import nn

from wristworld_ros.generation.anchor_encoder import AnchorEncoderConfig
from wristworld_ros.generation.autoencoder import MINI_AUTOENCODER, Autoencoder
from wristworld_ros.generation.model import Stage2Config, Stage2Model
from wristworld_ros.weights import save_weights


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder with random weights whose output does depend on every condition."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model")
    anchors = AnchorEncoderConfig(image_size=32, width=32, layers=1, heads=2)
    config = Stage2Config(heads=2, head_dim=16, ffn_dim=32, layers=1, refiner=16, anchors=anchors)
    model, autoencoder = Stage2Model(config), Autoencoder(MINI_AUTOENCODER)
    nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    save_weights(path / "stage2", model, model.config_dict())
    save_weights(path / "autoencoder", autoencoder, autoencoder.config_dict())
    return path
