"""Statistics of training pictures for the test whether pictures are like them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.shards import read_shard
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.reconstruction.domain import Domain, DomainConfig, view_features
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.reconstruction.reconstructor import ReconstructorConfig
from wristworld_ros.reconstruction.views import network_inputs
from wristworld_ros.training.conditions import ANCHORS, shard_frame
from wristworld_ros.training.loop import LoopConfig, training_record
from wristworld_ros.training.shard_data import shard_files
from wristworld_ros.weights import load_weights, read_config, save_weights

#: Frames that are taken of every episode.
FRAMES = 3
#: Directions in which training pictures vary (``DomainConfig``).
DIRECTIONS = DomainConfig().directions
#: Share of the frames of val that may count as out of domain.
FALSE_ALARMS = 0.01


def train_domain(
    train_folder: Path,
    val_folder: Path,
    out: Path,
    loop: LoopConfig,
    stage1_folder: Path,
    episodes: int | None = None,
) -> dict[str, float]:
    """Fit to the tokens of a stage 1 on shards, set the limit on val, write to ``out``.

    Args:
        loop: of it only the seed counts, which draws how many views there are and in which order.
        episodes: use so many of the training shards.

    Returns:
        Frames used, and how far those of val are (median, 99th percentile, of the limit).

    Raises:
        InvalidInputError: fewer training views than directions.
    """
    record = training_record(loop, {"episodes": str(train_folder)})
    stage1 = Stage1Model.from_config(read_config(stage1_folder)["config"])
    digest = load_weights(stage1_folder, stage1)
    stage1.eval().requires_grad_(False)
    rng = np.random.default_rng(loop.seed)
    train = list(_features(stage1, train_folder, rng, episodes))
    val = list(_features(stage1, val_folder, rng, None))
    features = torch.cat(train)
    domain = Domain(DomainConfig(features=features.shape[1], directions=DIRECTIONS))
    if len(features) <= domain.config.directions:
        raise InvalidInputError(
            f"{len(features)} views in {train_folder}; the statistics need more than "
            f"{domain.config.directions}. Simulate more episodes."
        )
    domain.fit(features)
    squared = np.array([float(domain.squared(f).mean()) for f in val])
    domain.limit.fill_(float(np.quantile(squared, 1 - FALSE_ALARMS)))
    distance = np.sqrt(squared / float(domain.limit))
    scores = {
        "frames": float(len(train)),
        "val_frames": float(len(val)),
        "val_median": float(np.median(distance)),
        "val_max": float(distance.max()),
    }
    info = {"stage1": digest, "training": record, "scores": {"split": "val", **scores}}
    save_weights(out, domain, domain.config_dict(), info, dtype=torch.float16)
    return scores


def _features(
    stage1: Stage1Model, folder: Path, rng: np.random.Generator, episodes: int | None
) -> Iterator[Tensor]:
    """Views x features of some frames of every shard, with as many views as users have."""
    side = ReconstructorConfig().network_size
    for path in tqdm(shard_files(folder, episodes), desc=f"{folder}", mininterval=5.0):
        shard = read_shard(path)
        for t in np.unique(np.linspace(0, len(shard) - 1, FRAMES).round().astype(int)):
            count = int(rng.choice(list(ANCHORS), p=list(ANCHORS.values())))
            views = tuple(int(v) for v in rng.permutation(len(shard.anchor_rgb))[:count])
            frame = restrict(shard_frame(shard, int(t)), "estimated", views)
            inputs = network_inputs(frame, side, stage1.side_step, torch.device("cpu"))
            with torch.inference_mode():
                yield view_features(stage1, inputs.images)[0]
