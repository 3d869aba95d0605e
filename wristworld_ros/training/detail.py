"""Training of the detail restorer, on pictures that a frozen stage 2 generates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.detail import DetailRestorer, is_right
from wristworld_ros.generation.lpips import LPIPS
from wristworld_ros.generation.model import Stage2Model
from wristworld_ros.generation.text import TextEncoder
from wristworld_ros.training.conditions import ConditionSet, build_conditions
from wristworld_ros.training.loop import (
    LoopConfig,
    is_main_process,
    start_from,
    train,
    training_record,
)
from wristworld_ros.training.stage2 import (
    LatentSet,
    batches_by_views,
    condition_pixels,
    encode_set,
    generate,
    pixels,
    psnr_db,
)
from wristworld_ros.weights import COMPACT, load_weights, read_config, save_weights

#: Denoising steps of the pictures that are corrected: what users get by default.
STEPS = 1


@dataclass(frozen=True)
class DetailLosses:
    """What counts.

    Attributes:
        l1, squared: weights of the errors of colours in [0, 1].
        edges: of the errors of their differences between neighbours.
        perceptual: of LPIPS (AlexNet). Means over what might be there have the least error of the
            other kinds, and look blurred.
        right: of the cross entropy of what is said to be right.
    """

    l1: float = 1.0
    squared: float = 5.0
    edges: float = 0.5
    perceptual: float = 0.25
    right: float = 0.05


def decode_set(
    model: Stage2Model, latents: LatentSet, autoencoder: Autoencoder, seed: int = 0
) -> NDArray[np.uint8]:
    """N x H x W x 3 uint8: the pictures that stage 2 makes of every frame."""
    decoded = np.empty_like(latents.data.wrist)
    _, C, h, w = latents.clean.shape
    generator = torch.Generator().manual_seed(seed)
    for index in tqdm(list(batches_by_views(latents.data)), desc="pictures", mininterval=5.0):
        noise = torch.randn(1, C, 1, h, w, generator=generator)
        picture = generate(model, latents, autoencoder, index, noise, STEPS)
        decoded[index] = (picture * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return decoded


def varied_alike(
    pictures: Tensor, mask: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Views mirrored and with other colours: channels change places and brightness.

    Args:
        pictures: B x P x 3 x H x W in [0, 1], P pictures of each view, which stay alike.
        mask: B x 2 x H x W.
    """
    B = len(pictures)
    order = torch.rand(B, 3, generator=generator).argsort(1)
    pictures = pictures.take_along_dim(order[:, None, :, None, None], 2)
    gain = 0.8 + 0.35 * torch.rand(B, 1, 3, 1, 1, generator=generator)
    flip = torch.rand(B, generator=generator) < 0.5
    pictures, mask = (
        torch.where(flip.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x) for x in (pictures, mask)
    )
    return (pictures * gain).clamp(0, 1), mask


def detail_loss(
    picture: Tensor, right: Tensor, truth: Tensor, perceptual: LPIPS, losses: DetailLosses
) -> tuple[Tensor, dict[str, float]]:
    """Loss, and figures to log.

    Args:
        picture, right: of ``DetailRestorer``; truth: B x 3 x H x W in [0, 1].
    """
    error = picture - truth
    edges = sum(error.diff(dim=d).abs().mean() for d in (-1, -2))
    squared = error.square().mean()
    distance = perceptual(2 * picture - 1, 2 * truth - 1).mean()
    doubt = F.binary_cross_entropy_with_logits(right, is_right(picture.detach(), truth))
    total = (
        losses.l1 * error.abs().mean()
        + losses.edges * edges
        + losses.squared * squared
        + losses.perceptual * distance
        + losses.right * doubt
    )
    return total, {
        "psnr": -10 * torch.log10(squared).item(),
        "lpips": distance.item(),
        "doubt": doubt.item(),
    }


def detail_step(
    net: nn.Module,
    data: ConditionSet,
    decoded: NDArray[np.uint8],
    perceptual: LPIPS,
    size: int,
    losses: DetailLosses,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and figures of one random batch of ``size`` frames."""
    index = torch.randint(len(data), (size,), generator=generator).numpy()
    filled, mask = condition_pixels(data, index)
    stack = torch.stack([pixels(data.wrist[index]), pixels(decoded[index]), filled], 1)
    stack, mask = varied_alike(stack, mask, generator)
    truth, picture, condition = stack.unbind(1)
    made, right = net(picture, condition, mask)
    return detail_loss(made, right, truth, perceptual, losses)


@torch.no_grad()
def evaluate_detail(
    net: DetailRestorer, data: ConditionSet, decoded: NDArray[np.uint8], perceptual: LPIPS
) -> dict[str, float]:
    """Means over frames of PSNR [dB] and LPIPS: of restored pictures, of decoded ones, and of
    hole-filled condition maps; and the cross entropy of what is said to be right (``doubt``)."""
    net.eval()
    values: dict[str, list[Tensor]] = {}
    for start in range(0, len(data), 32):
        index = np.arange(start, min(start + 32, len(data)))
        truth, picture = pixels(data.wrist[index]), pixels(decoded[index])
        filled, mask = condition_pixels(data, index)
        made, right = net(picture, filled, mask)
        shown = {"": made.clamp(0, 1), "_decoded": picture, "_condition": filled}
        doubt = F.binary_cross_entropy_with_logits(
            right, is_right(shown[""], truth), reduction="none"
        )
        values.setdefault("doubt", []).append(doubt.mean((1, 2, 3)))
        for name, x in shown.items():
            x = (x * 255).round() / 255
            values.setdefault(f"psnr{name}", []).append(psnr_db(x, truth))
            values.setdefault(f"lpips{name}", []).append(perceptual(2 * x - 1, 2 * truth - 1))
    return {name: torch.cat(parts).mean().item() for name, parts in values.items()}


def train_detail(
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    stage1: Path,
    autoencoder_folder: Path,
    stage2: Path,
    limit: int | None = None,
    init: Path | None = None,
) -> dict[str, float]:
    """Build conditions (of the first ``limit`` episodes) and pictures, train, evaluate, write.

    Args:
        stage1, autoencoder_folder, stage2: weights that it will go with.
        init: folder of weights to start from.

    Raises:
        WeightsError: any of these weights, or those of LPIPS, are missing or altered.
    """
    perceptual = LPIPS()
    autoencoder = Autoencoder.from_config(read_config(autoencoder_folder)["config"])
    generator = Stage2Model.from_config(read_config(stage2)["config"])
    info: dict[str, Any] = {
        "stage2": load_weights(stage2, generator),
        "autoencoder": load_weights(autoencoder_folder, autoencoder),
    }
    for network in (autoencoder, generator):
        network.eval().requires_grad_(False)
    losses = DetailLosses()
    record = training_record(
        loop,
        {
            "losses": asdict(losses),
            "episodes": str(train_folder),
            "stage1_sha256": read_config(stage1)["sha256"],
        },
    )
    torch.manual_seed(loop.seed)
    model = DetailRestorer()
    start_from(init, model, record)
    text = TextEncoder(generator.config.text_tokens)

    def load(
        name: str, folder: Path, limit: int | None = None
    ) -> tuple[ConditionSet, NDArray[np.uint8]]:
        data = build_conditions(folder, stage1, work / f"conditions_{name}", limit=limit)
        latents = encode_set(data, autoencoder, text)
        return data, decode_set(generator, latents, autoencoder, loop.seed)

    val = load("val", val_folder)
    data = load("train", train_folder, limit)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return detail_step(net, *data, perceptual, loop.batch_size, losses, generator)

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, DetailRestorer)
        return evaluate_detail(net, *val, perceptual)

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=500)
    model.load_state_dict(ema.state)
    scores = evaluate_detail(model, *val, perceptual)
    if is_main_process():
        info |= {"training": record, "scores": {"split": "val", **scores}}
        save_weights(out, model, model.config_dict(), info, compact=COMPACT)
    return scores
