"""Record what test_vggt.py expects, from the reference implementation.

It is not installed here. With a copy of https://github.com/facebookresearch/vggt (main, 2025-06)
and einops in a folder DIR: ``PYTHONPATH=DIR python test/reconstruction/record_vggt.py`` writes
``vggt_1b_keys.txt`` (names and shapes of all parameters) and ``vggt_expected.json``, and prints
the greatest difference of ours from the reference over all outputs, at several sizes.
``--wide`` compares at the width of VGGT-1B and little depth as well, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from seeded import images, pack_keys, sample, seed_weights
from torch import Tensor, nn

from wristworld_ros.reconstruction.vggt import PRESETS, Vggt, VggtConfig

HERE = Path(__file__).parent
#: Batch, views, height and width [px] of the cases.
CASES = ((1, 1, 70, 70), (1, 3, 42, 98), (2, 2, 84, 56))
WIDE = replace(
    PRESETS["vggt-1b"], encoder_depth=1, depth=4, kept=(0, 1, 2, 3), camera_depth=1, track_depth=2
)


def queries(batch: int, height: int, width: int) -> Tensor:
    """B x 5 x 2 points in the first view, some at and between pixels, one on the border."""
    places = torch.tensor([[0.1, 0.2], [0.5, 0.5], [0.73, 0.31], [0.25, 0.9], [0.0, 0.99]])
    return (places * torch.tensor([width, height])).expand(batch, -1, -1).contiguous()


@contextmanager
def linspace_on_cpu():
    """The reference reads values of a linspace while it is built, which the meta device forbids."""
    original = torch.linspace
    with mock.patch("torch.linspace", lambda *a, **k: original(*a, **{"device": "cpu", **k})):
        yield


def reference(config: VggtConfig) -> nn.Module:
    """The reference implementation at the sizes of ``config``."""
    from vggt.heads.camera_head import CameraHead
    from vggt.heads.dpt_head import DPTHead
    from vggt.heads.track_head import TrackHead
    from vggt.heads.track_modules.base_track_predictor import BaseTrackerPredictor
    from vggt.layers.vision_transformer import DinoVisionTransformer
    from vggt.models.aggregator import Aggregator
    from vggt.models.vggt import VGGT

    c = config
    model = VGGT.__new__(VGGT)
    nn.Module.__init__(model)
    model.aggregator = Aggregator(
        c.image_size, c.patch_size, c.dim, c.depth, c.heads,
        num_register_tokens=c.registers, patch_embed="conv",
    )  # fmt: skip
    model.aggregator.patch_embed = DinoVisionTransformer(
        c.image_size, c.patch_size, embed_dim=c.dim, depth=c.encoder_depth, num_heads=c.heads,
        init_values=1.0, block_chunks=0, num_register_tokens=c.registers,
        interpolate_antialias=True, interpolate_offset=0.0,
    )  # fmt: skip
    model.camera_head = CameraHead(2 * c.dim, c.camera_depth, num_heads=c.heads)
    dense = {
        "patch_size": c.patch_size,
        "out_channels": list(c.dense_channels),
        "intermediate_layer_idx": list(c.kept),
    }
    features = c.dense_features
    model.point_head = DPTHead(
        2 * c.dim, output_dim=4, activation="inv_log", features=features, **dense
    )
    model.depth_head = DPTHead(
        2 * c.dim, output_dim=2, activation="exp", features=features, **dense
    )
    model.track_head = TrackHead(2 * c.dim, c.patch_size)
    model.track_head.feature_extractor = DPTHead(
        2 * c.dim, features=c.track_features, feature_only=True, down_ratio=2, pos_embed=False,
        **dense,
    )  # fmt: skip
    model.track_head.tracker = BaseTrackerPredictor(
        stride=2, corr_levels=c.track_levels, latent_dim=c.track_features,
        hidden_size=c.track_hidden, depth=c.track_depth,
    )  # fmt: skip
    return model.eval()


def outputs_of_reference(model: nn.Module, pictures: Tensor, query: Tensor) -> dict[str, Tensor]:
    """All outputs, with the names of ``outputs``."""
    tokens, first = model.aggregator(pictures)
    poses = model.camera_head(tokens)
    depth, depth_confidence = model.depth_head(tokens, pictures, first)
    points, points_confidence = model.point_head(tokens, pictures, first)
    tracks, visibility, confidence = model.track_head(tokens, pictures, first, query)
    return {
        "tokens": tokens[-1],
        "pose 0": poses[0],
        "pose 3": poses[3],
        "depth": depth[..., 0],
        "depth confidence": depth_confidence,
        "points": points,
        "points confidence": points_confidence,
        "motion 0": tracks[0] - query[:, None],
        "motion 3": tracks[3] - query[:, None],
        "visibility": visibility,
        "track confidence": confidence,
    }


def outputs(model: Vggt, pictures: Tensor, query: Tensor) -> dict[str, Tensor]:
    """All outputs of ours."""
    out = model(pictures, query)
    return {
        "tokens": out.tokens[-1],
        "pose 0": out.poses[0],
        "pose 3": out.poses[3],
        "depth": out.depth,
        "depth confidence": out.depth_confidence,
        "points": out.points,
        "points confidence": out.points_confidence,
        "motion 0": out.tracks.points[0] - query[:, None],
        "motion 3": out.tracks.points[3] - query[:, None],
        "visibility": out.tracks.visibility,
        "track confidence": out.tracks.confidence,
    }


@torch.no_grad()
def compare(config: VggtConfig, cases: tuple[tuple[int, ...], ...]) -> dict[str, dict]:
    """Print the differences; return samples of the reference's outputs per case."""
    theirs, ours = reference(config), Vggt(config).eval()
    seed_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    expected = {}
    for case in cases:
        pictures, query = images(*case), queries(case[0], *case[2:])
        a, b = outputs_of_reference(theirs, pictures, query), outputs(ours, pictures, query)
        for name in a:
            assert a[name].shape == b[name].shape, (name, a[name].shape, b[name].shape)
            error = (a[name] - b[name]).abs()
            relative = float((error / a[name].abs().clamp_min(1)).max())
            print(f"{case} {name}: spread {float(a[name].std()):.3g}, error {relative:.2g}")
        expected[str(case)] = {name: sample(value) for name, value in a.items()}
    return expected


def main() -> None:
    """Compare, and write the fixtures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wide", action="store_true")
    if parser.parse_args().wide:
        compare(WIDE, ((1, 2, 140, 182),))
        return
    from vggt.models.vggt import VGGT

    expected = compare(PRESETS["vggt-tiny"], CASES)
    (HERE / "vggt_expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    with linspace_on_cpu(), torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in VGGT().state_dict().items()}
    (HERE / "vggt_1b_keys.txt").write_text(pack_keys(shapes))
    print(f"{len(shapes)} parameters")


if __name__ == "__main__":
    main()
