"""Training of the paper's stage 2: LoRA and the new modules on published weights of Wan2.1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from tqdm import tqdm

from wristworld_ros.generation import WristWorldPipeline
from wristworld_ros.generation.adapter import LORA_RANK, Adapter, add_lora
from wristworld_ros.generation.wan import SHIFT, WanPreset, temporal_mask
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.training.conditions import ConditionSet, build_conditions
from wristworld_ros.training.loop import LoopConfig, is_main_process, train, training_record
from wristworld_ros.training.stage2 import DropRates
from wristworld_ros.weights import load_weights, read_config


@dataclass(frozen=True)
class WanSource:
    """Published weights to start from; see ``WristWorldPipeline.from_wan``.

    Attributes:
        folder: of Wan2.1 T2V in diffusers' layout.
        clip_model, clip_weights: name of an open_clip model, and its file.
        lora_rank: of the LoRA layers.
    """

    folder: Path
    clip_model: str
    clip_weights: Path
    lora_rank: int = LORA_RANK

    def load(self) -> WristWorldPipeline:
        """The model with LoRA layers, at its start."""
        pipe = WristWorldPipeline.from_wan(
            self.folder, clip_model=self.clip_model, clip_weights=self.clip_weights
        )
        add_lora(pipe.transformer, self.lora_rank)
        return pipe


@dataclass(frozen=True)
class EncodedClip:
    """What does not change while a clip is trained on.

    Attributes:
        clean, condition: C x f x h x w float16 latents; mask: 4 x f x h x w float16.
        anchors: F x V x 3 x size x size uint8.
        instruction: the text.
    """

    clean: Tensor
    condition: Tensor
    mask: Tensor
    anchors: Tensor
    instruction: str


def clip_starts(data: ConditionSet) -> tuple[list[int], int]:
    """First frames of the training clips, and frames per clip.

    A clip has as many frames of one episode as Wan takes (4 k + 1, at most 81) and the shortest
    episode has; clips of one episode do not overlap.
    """
    episodes, counts = np.unique(data.episode, return_counts=True)
    frames = int(min(81, (counts.min() - 1) // 4 * 4 + 1))
    starts = [
        int(start)
        for episode in episodes
        for start in np.flatnonzero(data.episode == episode)[::frames]
        if start + frames <= len(data) and data.episode[start + frames - 1] == episode
    ]
    return starts, frames


@torch.inference_mode()
def encode_clips(data: ConditionSet, preset: WanPreset) -> list[EncodedClip]:
    """Encode every clip once, by the frozen autoencoder."""
    starts, frames = clip_starts(data)
    device = preset.vae.device

    def video(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).movedim(-1, 1).to(device).float()

    out = []
    for start in tqdm(starts, desc="latents", mininterval=5.0):
        s, views = slice(start, start + frames), int(data.views[start])
        preset.check(frames, views, False)
        image, mask = video(data.image[s]) / 255, video(data.mask[s][..., None])
        out.append(
            EncodedClip(
                preset.encode(video(data.wrist[s])[None] / 255)[0].half().cpu(),
                preset.encode(fill_holes(image, mask)[None])[0].half().cpu(),
                temporal_mask(mask[None])[0].half().cpu(),
                torch.from_numpy(data.anchors[s][:, :views]).permute(0, 1, 4, 2, 3),
                data.instructions[start],
            )
        )
    return out


class WanLoss:
    """Flow matching as Wan does it: squared error of the velocity, noise - clean, at times that are
    uniform and then shifted towards noise as those of the sampler (method.md, 3).

    Args:
        preset: the networks.
        drops: rates of dropped conditions.
    """

    def __init__(self, preset: WanPreset, drops: DropRates) -> None:
        self.preset, self.drops = preset, drops
        self._texts: dict[tuple[str, int, int], Tensor] = {}
        self._nothing: Tensor | None = None

    def __call__(
        self,
        clips: Sequence[EncodedClip],
        generator: torch.Generator,
        *,
        drop: bool = True,
        bf16: bool = False,
    ) -> Tensor:
        """Loss of clips of one shape and number of views.

        Args:
            drop: conditions, as in training.
            bf16: run the transformer in bfloat16.
        """
        device = self.preset.vae.device

        def batch(name: str) -> Tensor:
            return torch.stack([getattr(c, name) for c in clips]).to(device).float()

        clean, anchors = batch("clean"), batch("anchors") / 255
        frames, views = anchors.shape[1:3]
        text = torch.cat([self._text(c.instruction, frames, views) for c in clips])
        context = self.preset.assemble(batch("condition"), batch("mask"), text, anchors)
        if drop:
            drops = self.drops.draw(len(clips), generator)
            if self._nothing is None:
                with torch.no_grad():
                    self._nothing = self.preset.nothing(context)[:1]
            context = context.without(
                {k: v.to(device) for k, v in drops.items()},
                self._text("", frames, views).expand(len(clips), -1, -1),
                self._nothing.expand_as(clean),
            )
        t = torch.rand(len(clips), generator=generator)
        t = (SHIFT * t / (1 + (SHIFT - 1) * t)).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        weight = t.view(-1, 1, 1, 1, 1)
        noisy = (1 - weight) * clean + weight * noise
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            predicted = self.preset.velocity(noisy, t, context)
        return (predicted - (noise - clean)).square().mean()

    @torch.no_grad()
    def _text(self, text: str, frames: int, views: int) -> Tensor:
        key = (text, frames, views)
        if key not in self._texts:
            self._texts[key] = self.preset.text([text], frames, views).to(self.preset.vae.device)
        return self._texts[key]


def draw(clips: Sequence[EncodedClip], size: int, generator: torch.Generator) -> list[EncodedClip]:
    """So many clips with one number of views, which the first that is drawn decides."""

    def one(among: Sequence[EncodedClip]) -> EncodedClip:
        return among[int(torch.randint(len(among), (1,), generator=generator))]

    first = one(clips)
    alike = [c for c in clips if c.anchors.shape == first.anchors.shape]
    return [first, *(one(alike) for _ in range(size - 1))]


def train_wan(
    train_folder: Path,
    val_folder: Path,
    work: Path,
    out: Path,
    loop: LoopConfig,
    stage1: Path,
    source: WanSource,
    limit: int | None = None,
    *,
    init: Path | None = None,
    drops: DropRates | None = None,
) -> dict[str, float]:
    """Build conditions (of the first ``limit`` episodes), train, evaluate, write the adapter.

    Args:
        init: folder of an adapter to start from.
        drops: of conditions; the defaults when None.

    Returns:
        Losses on val before and after, nothing dropped.
    """
    drops = drops or DropRates()
    record = training_record(
        loop,
        {
            "episodes": str(train_folder),
            "stage1_sha256": read_config(stage1)["sha256"],
            "source": {k: str(v) for k, v in asdict(source).items()},
            "drop_rates": asdict(drops),
        },
    )
    torch.manual_seed(loop.seed)
    pipe = source.load().to(PartialState().device)
    pipe.transformer.enable_gradient_checkpointing()
    adapter = Adapter(pipe.transformer, pipe.anchor_encoder)
    if init is not None:
        load_weights(init, adapter)
        record["init"] = {k: read_config(init)[k] for k in ("sha256", "training")}
    preset = WanPreset(
        pipe.transformer, pipe.vae, pipe.anchor_encoder, pipe.tokenizer, pipe.text_encoder
    )
    loss = WanLoss(preset, drops)

    def load(name: str, folder: Path, limit: int | None = None) -> list[EncodedClip]:
        data = build_conditions(folder, stage1, work / f"conditions_{name}", limit=limit)
        return encode_clips(data, preset)

    val, data = load("val", val_folder), load("train", train_folder, limit)

    def compute(net: nn.Module, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        clips = draw(data, loop.batch_size, generator)
        return loss(clips, generator, bf16=adapter.bf16), {}

    @torch.no_grad()
    def evaluate(net: nn.Module) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        losses = [loss([clip], generator, drop=False) for clip in val for _ in range(4)]
        return {"velocity_error": torch.stack(losses).mean().item()}

    before = evaluate(adapter)["velocity_error"]
    ema = train(adapter, compute, work, loop, evaluate=evaluate, evaluate_every=1000)
    adapter.load_state_dict(ema.state)
    scores = {"before": before, "after": evaluate(adapter)["velocity_error"]}
    if is_main_process():
        adapter.save(out, {"training": record, "scores": {"split": "val", **scores}})
    return scores
