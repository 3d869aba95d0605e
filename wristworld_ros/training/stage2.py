"""Training of stage 2: flow matching on latents, with frozen stage 1 and autoencoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.conditioning import mask_channels, ray_channels
from wristworld_ros.generation.model import Context, Stage2Model
from wristworld_ros.generation.sampling import sample, scheduler_for
from wristworld_ros.generation.text import TextEncoder
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.training.conditions import ConditionSet, build_conditions, merged, varied
from wristworld_ros.training.loop import (
    LoopConfig,
    is_main_process,
    start_from,
    train,
    training_record,
)
from wristworld_ros.weights import COMPACT, load_weights, read_config, save_weights

CLIP = 4  # frames of a training clip
CLIP_SHARE = 0.3  # of batches; the others hold single frames
SHARE_OF_NOISE = 0.7
#: Copies of the training frames with other colours and, half of them, mirrored.
COPIES = 1


@dataclass(frozen=True)
class DropRates:
    """Shares of the training clips that lose a condition, for guidance and robustness.

    Attributes:
        text, anchors, map: of the conditions; where the map is dropped it shows nothing.

    Raises:
        InvalidInputError: a rate is not in [0, 1).
    """

    text: float = 0.1
    anchors: float = 0.1
    map: float = 0.0

    def __post_init__(self) -> None:
        for name, rate in asdict(self).items():
            if not 0 <= rate < 1:
                raise InvalidInputError(f"drop rate {rate} of {name}; choose 0 or more, below 1.")

    def draw(self, clips: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Condition -> which clips lose it, each drawn for itself."""
        return {k: torch.rand(clips, generator=generator) < v for k, v in asdict(self).items()}


@dataclass
class LatentSet:
    """Conditions and truths as latents, kept in memory.

    Attributes:
        clean, condition: N x C x h x w float16 latents; mask: N x 4 x h x w float16.
        rays: N x 2 x h x w.
        data: the frames they come from.
        texts: instruction -> token states.
        nothing: C x h x w float16 latents of a condition map that shows nothing.
    """

    clean: Tensor
    condition: Tensor
    mask: Tensor
    rays: Tensor
    data: ConditionSet
    texts: dict[str, Tensor]
    nothing: Tensor


@torch.inference_mode()
def encode_set(data: ConditionSet, autoencoder: Autoencoder, text: TextEncoder) -> LatentSet:
    """Encode every frame once."""
    clean, condition, masks = [], [], []
    for start in tqdm(range(0, len(data), 32), desc="latents", mininterval=5.0):
        s = slice(start, start + 32)
        wrist = torch.from_numpy(data.wrist[s]).permute(0, 3, 1, 2).float() / 255
        image = torch.from_numpy(data.image[s]).permute(0, 3, 1, 2).float() / 255
        mask = torch.from_numpy(data.mask[s])[:, None].float()
        clean.append(autoencoder.encode(wrist).half())
        condition.append(autoencoder.encode(fill_holes(image, mask)).half())
        masks.append(mask_channels(mask).half())
    texts = {t: text.encode(t).clone() for t in sorted(set(data.instructions))}
    K = torch.from_numpy(data.wrist_K.astype(np.float32))
    rays = ray_channels(K, *data.wrist.shape[1:3])
    grey = torch.full((1, 3, *data.wrist.shape[1:3]), 0.5)
    return LatentSet(
        torch.cat(clean),
        torch.cat(condition),
        torch.cat(masks),
        rays,
        data,
        texts,
        autoencoder.encode(grey)[0].half(),
    )


def clip_context(
    model: Stage2Model,
    latents: LatentSet,
    index: np.ndarray,
    drops: Mapping[str, Tensor] | None = None,
) -> Context:
    """Context of clips.

    Args:
        index: B x F frames; all frames of a clip have the same instruction and views.
        drops: conditions to drop, see ``Context.without``.
    """
    views = int(latents.data.views[index].max())
    anchors = torch.from_numpy(latents.data.anchors[index][:, :, :views])
    context = model.context(
        latents.condition[index].float().transpose(1, 2),
        latents.mask[index].float().transpose(1, 2),
        latents.rays[index].transpose(1, 2),
        torch.stack([latents.texts[latents.data.instructions[i]] for i in index[:, 0]]),
        anchors.permute(0, 1, 2, 5, 3, 4).float() / 255,
    )
    if drops is None:
        return context
    no_text = torch.zeros(len(index), model.config.text_tokens, context.tokens.shape[2])
    nothing = latents.nothing.float()[None, :, None].expand_as(context.latents)
    return context.without(drops, no_text, nothing)


def draw_clips(data: ConditionSet, size: int, generator: torch.Generator) -> np.ndarray:
    """B x F indices: single frames, or consecutive frames of one episode; one number of views."""

    def integer(high: int) -> int:
        return int(torch.randint(high, (1,), generator=generator))

    views = data.views[integer(len(data))]
    frames = CLIP if torch.rand(1, generator=generator).item() < CLIP_SHARE else 1
    last = np.roll(data.episode, -(frames - 1))
    starts = np.flatnonzero((data.views == views) & (data.episode == last))
    starts = starts[starts + frames <= len(data)]
    chosen = starts[[integer(len(starts)) for _ in range(max(1, size // frames))]]
    return chosen[:, None] + np.arange(frames)


def channel_weights(latent_std: Tensor) -> Tensor:
    """How much each latent channel's error counts; mean 1.

    Normalised channels are not equally visible: an error in a principal component of patches shows
    in the picture in proportion to its variance. Half of the weight follows the variance, half is
    equal, so that fine detail is not given up.
    """
    variance = latent_std.square()
    return 0.5 + 0.5 * variance / variance.mean()


def flow_matching_loss(
    model: Stage2Model,
    context: Context,
    clean: Tensor,
    weights: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the predicted clean latents, at times that few-step samplers visit.

    Flow matching (x_t = (1 - t) x_0 + t noise) with the error in x_0 rather than in the velocity,
    which is the same error over t: the weight 1 / t^2 would spend training on nearly clean inputs.
    ``SHARE_OF_NOISE`` of the samples are at t = 1, where samplers start and most is left to do.
    """
    B = len(clean)
    t = torch.rand(B, generator=generator)
    start_here = torch.rand(B, generator=generator) < SHARE_OF_NOISE
    t = torch.where(start_here, 1.0, t.clamp_min(0.05))
    noise = torch.randn(clean.shape, generator=generator)
    weight = t.view(-1, 1, 1, 1, 1)
    predicted = model((1 - weight) * clean + weight * noise, t, context)
    weights = weights.view(1, -1, 1, 1, 1)
    error = (weights * (predicted - clean).square()).mean()
    start = (weights * (context.latents - clean).square()).mean()
    return error, {"x0_error_over_condition": (error / start).item()}


@torch.inference_mode()
def generate(
    model: Stage2Model,
    latents: LatentSet,
    autoencoder: Autoencoder,
    index: np.ndarray,
    noise: Tensor,
    steps: int,
) -> Tensor:
    """Decoded pictures of single frames (B indices).

    Returns:
        B x 3 x H x W in [0, 1].
    """
    context = clip_context(model, latents, index[:, None])
    noise = noise.expand(len(index), -1, -1, -1, -1)
    clean = sample(model, [(1.0, context)], noise, scheduler_for(steps))
    return autoencoder.decode(clean[:, :, 0]).clamp(0, 1)


def pixels(images: np.ndarray) -> Tensor:
    """B x H x W x 3 uint8 -> B x 3 x H x W in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def condition_pixels(data: ConditionSet, index: np.ndarray) -> tuple[Tensor, Tensor]:
    """Hole-filled condition maps B x 3 x H x W, and B x 2 x H x W: drawn, and measured."""
    masks = torch.from_numpy(np.stack([data.mask[index], data.measured[index]], 1)).float()
    return fill_holes(pixels(data.image[index]), masks[:, :1]), masks


def batches_by_views(data: ConditionSet, size: int = 32) -> Iterator[np.ndarray]:
    """Every frame once, in batches with one number of views."""
    for views in np.unique(data.views):
        index = np.flatnonzero(data.views == views)
        for start in range(0, len(index), size):
            yield index[start : start + size]


@torch.inference_mode()
def evaluate_latents(
    model: Stage2Model, latents: LatentSet, autoencoder: Autoencoder, steps: int = 2
) -> dict[str, float]:
    """Mean PSNR [dB] over frames of decoded pictures and of hole-filled condition maps."""
    psnr: dict[str, list[Tensor]] = {"psnr": [], "psnr_condition": []}
    _, C, h, w = latents.clean.shape
    noise = torch.randn(1, C, 1, h, w, generator=torch.Generator().manual_seed(0))
    for index in batches_by_views(latents.data, 16):
        truth = pixels(latents.data.wrist[index])
        decoded = generate(model, latents, autoencoder, index, noise, steps)
        filled, _ = condition_pixels(latents.data, index)
        for values, picture in zip(psnr.values(), (decoded, filled), strict=True):
            values.append(psnr_db(picture, truth))
    return {name: torch.cat(values).mean().item() for name, values in psnr.items()}


def psnr_db(a: Tensor, b: Tensor) -> Tensor:
    """PSNR [dB] of B pairs of pictures in [0, 1]."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)))


def train_stage2(
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    stage1: Path,
    autoencoder_folder: Path,
    limit: int | None = None,
    init: Path | None = None,
    drops: DropRates | None = None,
) -> dict[str, float]:
    """Build conditions (of the first ``limit`` episodes), train, evaluate, write the weights.

    Args:
        init: folder of weights to start from.
        drops: of conditions; the defaults when None.
    """
    drops = drops or DropRates()
    autoencoder = Autoencoder.from_config(read_config(autoencoder_folder)["config"])
    load_weights(autoencoder_folder, autoencoder)
    autoencoder.eval().requires_grad_(False)
    record = training_record(
        loop,
        {
            "episodes": str(train_folder),
            "stage1_sha256": read_config(stage1)["sha256"],
            "autoencoder_sha256": read_config(autoencoder_folder)["sha256"],
            "drop_rates": asdict(drops),
        },
    )
    torch.manual_seed(loop.seed)
    model = Stage2Model()
    start_from(init, model, record)
    text = TextEncoder(model.config.text_tokens)

    def load(name: str, folder: Path, limit: int | None = None) -> ConditionSet:
        return build_conditions(folder, stage1, work / f"conditions_{name}", limit=limit)

    val = encode_set(load("val", val_folder), autoencoder, text)
    original = load("train", train_folder, limit)
    rng = np.random.default_rng(loop.seed)
    copies = [original, *(varied(original, rng) for _ in range(COPIES))]
    data = encode_set(merged(copies), autoencoder, text)
    weights = channel_weights(autoencoder.latent_std)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        assert isinstance(net, Stage2Model)
        index = draw_clips(data.data, loop.batch_size, generator)
        context = clip_context(net, data, index, drops.draw(len(index), generator))
        clean = data.clean[index].float().transpose(1, 2)
        return flow_matching_loss(net, context, clean, weights, generator)

    def evaluate(net: nn.Module) -> dict[str, float]:
        assert isinstance(net, Stage2Model)
        return evaluate_latents(net, val, autoencoder)

    ema = train(model, compute, work, loop, evaluate=evaluate, evaluate_every=1000)
    model.load_state_dict(ema.state)
    model.eval().requires_grad_(False)
    scores = {
        f"steps_{steps}": evaluate_latents(model, val, autoencoder, steps) for steps in (1, 2, 4, 8)
    }
    if is_main_process():
        save_weights(
            out,
            model,
            model.config_dict(),
            {
                "training": record,
                "scores": {"split": "val", **scores},
            },
            compact=COMPACT,
        )
    return scores["steps_2"]
