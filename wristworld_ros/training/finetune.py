"""Training of the station model on a handful of recordings with a real wrist camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import Tensor, nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.detail import RIGHT
from wristworld_ros.generation.lpips import LPIPS
from wristworld_ros.generation.station import (
    StationInput,
    StationModel,
    station_input,
    station_pictures,
)
from wristworld_ros.generation.station_episode import StationEpisode
from wristworld_ros.training.hand_depth import perturbed
from wristworld_ros.training.loop import ComputeLoss, Metrics


@dataclass(frozen=True)
class FinetuneConfig:
    """What the loss weighs, and how training pictures are varied.

    Attributes:
        l1, l2, ssim, lpips, trust: weights of the losses.
        shift_m, turn_deg: deviations by which the wrist pose and the fixed cameras' poses are off.
        colour: deviation of gain and of offset per channel, alike in all pictures of a moment.
        view_colour: the same, in one fixed camera alone.
        drop_view: share of moments in which one fixed camera is black.
    """

    l1: float = 1.0
    l2: float = 4.0
    ssim: float = 0.25
    lpips: float = 0.25
    trust: float = 0.1
    shift_m: float = 0.004
    turn_deg: float = 0.5
    colour: float = 0.08
    view_colour: float = 0.03
    drop_view: float = 0.08


def check_episodes(episodes: Sequence[StationEpisode]) -> None:
    """Raise InvalidInputError unless there are recordings of one station with a wrist camera."""
    if not episodes:
        raise InvalidInputError("no recording to train on; name at least one.")
    for e in episodes:
        if e.wrist is None:
            raise InvalidInputError(f"{e.name} has no wrist pictures in every frame; leave it out.")
        if e.views.shape[0] != episodes[0].views.shape[0]:
            raise InvalidInputError(
                f"{e.name} has {e.views.shape[0]} fixed cameras, {episodes[0].name} "
                f"{episodes[0].views.shape[0]}; train on recordings of one station."
            )


def prepare(model: StationModel, episodes: Sequence[StationEpisode]) -> None:
    """Give the model the mean wrist pictures with an open and a closed gripper.

    A frame counts for each by how far the gripper is open or closed; where one of them never
    occurs it is the mean of all.
    """
    check_episodes(episodes)
    total = torch.zeros(2, 3, *model.rays.shape[:2], dtype=torch.float64)
    square, count = total.clone(), np.zeros(2)
    for e in episodes:
        pictures = torch.from_numpy(_wrist(e)).permute(0, 3, 1, 2).double() / 255
        for row, weight in enumerate((1 - e.gripper, e.gripper)):
            w = torch.from_numpy(weight)[:, None, None, None]
            total[row] += (w * pictures).sum(0)
            square[row] += (w * pictures.square()).sum(0)
            count[row] += weight.sum()
    rows = [i for i in range(2) if count[i] > 1] or [0]
    for row in range(2):
        take = row if row in rows else rows[0]
        mean = total[take] / max(count[take], 1e-9)
        spread = (square[take] / max(count[take], 1e-9) - mean.square()).clamp_min(0).sqrt().mean(0)
        model.still[row].copy_(torch.cat([mean, 4 * spread[None]]))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of B x 3 x H x W pictures in [0, 1]; mean over 7 x 7 windows."""
    n = 49 / 48  # as scikit-image: the unbiased covariance

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 7, 1)

    ma, mb = mean(a), mean(b)
    va, vb = n * (mean(a * a) - ma * ma), n * (mean(b * b) - mb * mb)
    cov = n * (mean(a * b) - ma * mb)
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    return value.mean()


def station_loss(
    episodes: Sequence[StationEpisode], batch_size: int, config: FinetuneConfig, lpips: LPIPS
) -> ComputeLoss:
    """The loss on random moments of ``episodes``, as ``loop.train`` takes it."""
    check_episodes(episodes)
    owner = np.concatenate([np.full(len(e), i) for i, e in enumerate(episodes)])
    frame = np.concatenate([np.arange(len(e)) for e in episodes])

    def compute(model: nn.Module, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        rows = torch.randint(len(frame), (batch_size,), generator=generator).numpy()
        parts = [station_input(episodes[owner[i]], frame[i : i + 1]) for i in rows]
        x = StationInput(*(torch.cat(p) for p in zip(*parts, strict=True)))
        images = np.stack([_wrist(episodes[owner[i]])[frame[i]] for i in rows])
        truth = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        x, truth = varied(x, truth, config, generator)
        out = model(x)
        error = out.picture - truth
        with torch.autocast(truth.device.type, torch.bfloat16, enabled=bool(model.bf16)):
            perceived = lpips(out.picture * 2 - 1, truth * 2 - 1).float().mean()
        alike = similarity(out.picture, truth)
        right = (error.detach().clamp(-1, 1).abs().mean(1) < RIGHT).float()
        trust = F.binary_cross_entropy_with_logits(out.logit, right)
        square = error.square().mean()
        loss = (
            config.l1 * error.abs().mean() + config.l2 * square + config.ssim * (1 - alike)
            + config.lpips * perceived + config.trust * trust
        )  # fmt: skip
        return loss, {
            "psnr": float(-10 * square.detach().log10()),
            "ssim": float(alike.detach()),
            "lpips": float(perceived.detach()),
            "trust": float(trust.detach()),
        }

    return compute


def varied(
    x: StationInput, truth: Tensor, config: FinetuneConfig, generator: torch.Generator
) -> tuple[StationInput, Tensor]:
    """Other light and slightly wrong poses; ``truth`` (B x 3 x h x w) takes the light alike."""
    b, v = x.views.shape[:2]

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    gain = 1 + config.colour * (noise(b, 1, 1, 1) + 0.5 * noise(b, 3, 1, 1))
    offset = 0.5 * config.colour * noise(b, 3, 1, 1)
    own_gain = 1 + config.view_colour * noise(b, v, 3, 1, 1)
    views = x.views * gain[:, None] * own_gain + offset[:, None]
    dropped = torch.rand(b, generator=generator) < config.drop_view
    which = torch.randint(v, (b,), generator=generator)
    lost = dropped[:, None] & (torch.arange(v) == which[:, None])
    views = torch.where(lost[..., None, None, None], 0.0, views.clamp(0, 1))
    sigma = (config.shift_m, float(np.deg2rad(config.turn_deg)))
    wrist = perturbed(x.T_base_wrist, sigma, generator)
    slips = perturbed(torch.eye(4).repeat(b * v, 1, 1), sigma, generator)
    placed = slips.unflatten(0, (b, v)) @ x.T_view_base
    return (
        x._replace(views=views, T_base_wrist=wrist, T_view_base=placed),
        (truth * gain + offset).clamp(0, 1),
    )


def fit_trust(model: StationModel, left_out: Sequence[StationEpisode]) -> tuple[float, float]:
    """Scale and shift that make the confidence true on recordings that the model has not seen.

    The shift is found with the scale by maximum likelihood on every fourth pixel.
    """
    check_episodes(left_out)
    logits, rights = [], []
    own = model.trust.clone()
    model.trust.copy_(torch.tensor([1.0, 0.0]))
    for e in left_out:
        pictures, stated = station_pictures(model, e)
        off = np.abs(np.stack(pictures).astype(float) - _wrist(e)).mean(3) / 255
        p = np.clip(stated[:, ::2, ::2], 1e-6, 1 - 1e-6).astype(np.float64)
        logits.append(np.log(p / (1 - p)).ravel())
        rights.append((off[:, ::2, ::2] < RIGHT).ravel())
    model.trust.copy_(own)
    x, y = np.concatenate(logits), np.concatenate(rights)

    def cost(values: np.ndarray) -> float:
        z = values[0] * x + values[1]
        return float(np.mean(np.logaddexp(0, z) - y * z))

    found = minimize(cost, [1.0, 0.0], method="L-BFGS-B", bounds=[(0.05, 5), (-8, 8)])
    return float(found.x[0]), float(found.x[1])


def _wrist(episode: StationEpisode) -> np.ndarray:
    assert episode.wrist is not None  # check_episodes
    return episode.wrist
