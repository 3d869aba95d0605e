"""Training of the plane sweep, on what a frozen stage 1 says of all views."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.generation.detail import is_right
from wristworld_ros.generation.lpips import LPIPS
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.reconstruction.plane_sweep import PlaneSweep, SweepInputs, drawn_pixels
from wristworld_ros.training.loop import (
    LoopConfig,
    is_main_process,
    start_from,
    train,
    training_record,
)
from wristworld_ros.training.stage2 import psnr_db
from wristworld_ros.training.sweep_data import (
    SweepEpisode,
    SweepTruth,
    build_sweep_data,
    sweep_batch,
)
from wristworld_ros.weights import COMPACT, read_config, save_weights


@dataclass(frozen=True)
class PlaneSweepLosses:
    """What counts.

    Attributes:
        window: edge of the part of the wrist picture that is rendered of each frame [px].
        depth: weight of the errors of log depth, by the planes and at the end.
        small: errors of log depth below this hardly count any more.
        l1, squared, edges, perceptual, right: of the colours, as ``DetailLosses``.
    """

    window: int = 64
    depth: float = 1.0
    small: float = 0.02
    l1: float = 1.0
    squared: float = 5.0
    edges: float = 0.5
    perceptual: float = 0.15
    right: float = 0.1


class SweepBatches:
    """Random batches of frames; those of one batch have equally many anchors."""

    def __init__(self, episodes: list[SweepEpisode]) -> None:
        self.groups: dict[int, list[tuple[SweepEpisode, int]]] = {}
        for episode in episodes:
            frames = [(episode, t) for t in range(len(episode))]
            self.groups.setdefault(episode.views, []).extend(frames)

    def draw(self, size: int, generator: torch.Generator) -> tuple[SweepInputs, SweepTruth]:
        """A batch of ``size`` frames, in other colours."""
        counts = torch.tensor([float(len(frames)) for frames in self.groups.values()])
        group = list(self.groups.values())[int(counts.multinomial(1, generator=generator))]
        index = torch.randint(len(group), (size,), generator=generator).tolist()
        return recoloured(*sweep_batch([group[i] for i in index]), generator)


def recoloured(
    inputs: SweepInputs, truth: SweepTruth, generator: torch.Generator
) -> tuple[SweepInputs, SweepTruth]:
    """The same frames with colour channels in other places and of other brightness."""
    B = len(truth.image)
    order = torch.rand(B, 3, generator=generator).argsort(1)
    gain = 0.8 + 0.35 * torch.rand(B, 3, generator=generator)

    def change(x: Tensor) -> Tensor:
        shape = (B, *[1] * (x.ndim - 4), 3, 1, 1)
        return (x.take_along_dim(order.view(shape), -3) * gain.view(shape)).clamp(0, 1)

    return (
        replace(inputs, images=change(inputs.images), map_image=change(inputs.map_image)),
        replace(truth, image=change(truth.image)),
    )


def depth_error(depth: Tensor, truth: Tensor, small: float) -> Tensor:
    """Mean error of log depth, Huber-like below ``small``, where the truth (B x h x w [m], else 0)
    is known."""
    known = truth > 0
    error = (depth.log() - truth.clamp_min(1e-3).log()).clamp(-1, 1)
    smooth = F.smooth_l1_loss(error, torch.zeros_like(error), beta=small, reduction="none")
    return (smooth * known).sum() / known.sum().clamp_min(1)


def plane_sweep_step(
    net: nn.Module,
    data: SweepBatches,
    perceptual: LPIPS,
    size: int,
    losses: PlaneSweepLosses,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one random batch of ``size`` frames."""
    inputs, truth = data.draw(size, generator)
    h, w = truth.image.shape[-2:]
    edge = min(losses.window, h, w)
    top, left = (int(torch.randint(side - edge + 1, (1,), generator=generator)) for side in (h, w))
    window = (slice(top, top + edge), slice(left, left + edge))
    out = net(inputs, window)
    image, true_depth = truth.image[..., window[0], window[1]], truth.depth[:, window[0], window[1]]
    error = out.image - image
    squared = error.square().mean()
    edges = sum(error.diff(dim=d).abs().mean() for d in (-1, -2))
    distance = perceptual(2 * out.image - 1, 2 * image - 1).mean()
    doubt = F.binary_cross_entropy_with_logits(out.right, is_right(out.image.detach(), image))
    coarse = depth_error(out.coarse, truth.depth, losses.small)
    depth = depth_error(out.depth, true_depth, losses.small)
    total = (
        losses.depth * (coarse + depth)
        + losses.l1 * error.abs().mean()
        + losses.squared * squared
        + losses.edges * edges
        + losses.perceptual * distance
        + losses.right * doubt
    )
    before = (inputs.map_image[..., window[0], window[1]] - image).square().mean()
    return total, {
        "psnr": -10 * torch.log10(squared).item(),
        "psnr_map": -10 * torch.log10(before).item(),
        "lpips": distance.item(),
        "doubt": doubt.item(),
        "log_error_coarse": coarse.item(),
        "log_error": depth.item(),
    }


@torch.no_grad()
def evaluate_plane_sweep(
    net: PlaneSweep, episodes: list[SweepEpisode], perceptual: LPIPS, every: int = 1
) -> dict[str, float]:
    """Scores over every ``every``-th frame, by kind of geometry and in the mean over frames.

    Returns:
        ``psnr`` [dB] and ``lpips`` of the map with its holes filled, of what the sweep shows of
        every pixel (``_all``) and of the splatted map (``_map``); ``covered``, the share of pixels
        that are drawn; where the wrist pose is known, ``near``: the share of drawn pixels with
        depth within 3 % of the truth, and the same of the splatted map.
    """
    net.eval()
    rows: dict[str, list[float]] = {}
    for episode in episodes:
        inputs, truth = sweep_batch([(episode, t) for t in range(0, len(episode), every)])
        out = net(inputs)
        drawn = drawn_pixels(out)[:, None].float()
        whole = out.image.clamp(0, 1)
        pictures = {"": fill_holes(whole * drawn, drawn), "_all": whole, "_map": inputs.map_image}
        values: dict[str, Tensor] = {"covered": drawn.mean((1, 2, 3))}
        values["covered_map"] = inputs.map_mask[:, 0].mean((1, 2))
        for name, picture in pictures.items():
            picture = (picture * 255).round() / 255
            values[f"psnr{name}"] = psnr_db(picture, truth.image)
            values[f"lpips{name}"] = perceptual(2 * picture - 1, 2 * truth.image - 1)
        masks = {"": (out.depth, drawn[:, 0]), "_map": (inputs.map_depth, inputs.map_mask[:, 0])}
        if truth.depth.any():
            for name, (depth, mask) in masks.items():
                near = (depth / truth.depth.clamp_min(1e-3) - 1).abs() < 0.03
                values[f"near{name}"] = (near * mask).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
        for name, value in values.items():
            for key in (name, f"{episode.kind}/{name}"):
                rows.setdefault(key, []).extend(value.tolist())
    return {name: float(np.mean(value)) for name, value in rows.items()}


def train_plane_sweep(
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    stage1: Path,
    limit: int | None = None,
    init: Path | None = None,
) -> dict[str, float]:
    """Reconstruct (the first ``limit`` episodes), train, evaluate, write.

    Args:
        stage1: weights that it will go with; those of stage 1's other parts are beside it.
        init: folder of weights to start from.

    Raises:
        WeightsError: any of these weights, or those of LPIPS, are missing or altered.
    """
    perceptual = LPIPS()
    losses = PlaneSweepLosses()
    record = training_record(loop, {"losses": asdict(losses), "episodes": str(train_folder)})
    torch.manual_seed(loop.seed)
    model = PlaneSweep()
    start_from(init, model, record)
    val = build_sweep_data(val_folder, stage1, work / "data_val")
    data = SweepBatches(build_sweep_data(train_folder, stage1, work / "data_train", limit=limit))

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return plane_sweep_step(net, data, perceptual, loop.batch_size, losses, generator)

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, PlaneSweep)
        return evaluate_plane_sweep(net, val, perceptual, every=6)

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=200)
    model.load_state_dict(ema.state)
    scores = evaluate_plane_sweep(model, val, perceptual)
    if is_main_process():
        info = {
            "stage1": read_config(stage1)["sha256"],
            "training": record,
            "scores": {"split": "val", **scores},
        }
        save_weights(out, model, model.config_dict(), info, compact=COMPACT)
    return scores
