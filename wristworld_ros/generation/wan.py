"""The paper's stage 2: Wan2.1, conditioned on map, mask and anchors (method.md, 3)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, ConfigMixin, ModelMixin, WanTransformer3DModel
from diffusers.configuration_utils import register_to_config
from diffusers.utils.torch_utils import randn_tensor
from open_clip.transformer import VisionTransformer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, UMT5EncoderModel

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.generation.confidence import measured_confidence
from wristworld_ros.generation.model import MASK_CHANNELS, Context
from wristworld_ros.generation.presets import Clip, check_count
from wristworld_ros.generation.sampling import Guidance
from wristworld_ros.generation.text import token_states
from wristworld_ros.reconstruction.geometry_prediction import load_published
from wristworld_ros.weights import check_fit

#: Tokens of text and anchors together, as Wan was trained.
CONTEXT_TOKENS = 512
#: Of the sampler (method.md, 3).
SHIFT, STEPS, SCALE = 5.0, 50, 5.0
#: ``transformer/config.json`` of Wan-AI/Wan2.1-T2V-1.3B-Diffusers.
WAN_1_3B: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
}


class WanAnchorEncoder(ModelMixin, ConfigMixin):
    """Anchor pictures to context tokens: the CLS token of an open_clip image encoder for each frame
    and view + temporal embedding + view embedding, then Linear, GELU, Linear.

    The image encoder is frozen. The last layer starts at zero: the tokens are then what pads Wan's
    context, and change nothing.

    Args:
        clip: ``embed_dim``, ``vision_cfg`` and maybe ``quick_gelu`` of an open_clip configuration.
        text_dim: width of the context.
        max_views, max_frames: sizes of the embeddings.

    Attributes:
        image_size: of the square pictures that the image encoder sees [px].
    """

    @register_to_config
    def __init__(
        self,
        clip: dict[str, Any],
        text_dim: int = 4096,
        max_views: int = 8,
        max_frames: int = 81,
    ) -> None:
        super().__init__()
        self.vision = open_clip.CLIP(text_cfg=_NO_TEXT, **clip).visual
        width = int(clip["embed_dim"])
        if isinstance(self.vision, VisionTransformer):
            width = self.vision.ln_post.normalized_shape[0]
        self.vision.requires_grad_(False)
        size = self.vision.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)
        self.view = nn.Parameter(torch.randn(max_views, width) * 0.02)
        self.time = nn.Parameter(torch.randn(max_frames, width) * 0.02)
        self.project = nn.Sequential(
            nn.Linear(width, text_dim), nn.GELU(), nn.Linear(text_dim, text_dim)
        )
        for parameter in self.project[2].parameters():
            nn.init.zeros_(parameter)
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @classmethod
    def from_open_clip(
        cls, name: str, weights: str | Path, *, text_dim: int = 4096, max_views: int = 8
    ) -> WanAnchorEncoder:
        """With the image encoder of a model that open_clip offers, as published.

        Args:
            name: of the model, such as ``ViT-H-14``.
            weights: the file of the model, of which the text encoder is not used.

        Raises:
            InvalidInputError: open_clip knows no such model.
            WeightsError: the file does not fit; see ``load_published``.
        """
        config = open_clip.get_model_config(name)
        if config is None:
            raise InvalidInputError(
                f"open_clip has no model '{name}'; python -c 'import open_clip; "
                "print(open_clip.list_models())' lists them."
            )
        clip = {k: config[k] for k in ("embed_dim", "vision_cfg", "quick_gelu") if k in config}
        encoder = cls(clip, text_dim, max_views)
        load_published(weights, encoder.vision, "visual.", part=True)
        encoder.vision.float()
        return encoder

    def forward(self, anchors: Tensor) -> Tensor:
        """B x F x V x 3 x H x W in [0, 1] -> B x (F * V) x text_dim."""
        B, T, V = anchors.shape[:3]
        size = (self.image_size, self.image_size)
        x = anchors.flatten(0, 2)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(0, 1)
        features = self._features(((x - self.mean) / self.std).to(self.dtype))
        features = features.unflatten(0, (B, T, V)) + self.view[:V] + self.time[:T, None]
        tokens: Tensor = self.project(features.flatten(1, 2))
        return tokens

    @torch.no_grad()
    def _features(self, x: Tensor) -> Tensor:
        """N x width: before the projection to what pictures and texts share, where there is one."""
        if not isinstance(self.vision, VisionTransformer):
            features: Tensor = self.vision(x)
            return features
        projection, self.vision.proj = self.vision.proj, None
        try:
            out = self.vision(x)
        finally:
            self.vision.proj = projection
        return out[0] if isinstance(out, tuple) else out


#: The text encoder of a CLIP of which only the image encoder is kept.
_NO_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}


class WanPreset:
    """See ``Preset``. The text has the tokens of the context that the anchors leave."""

    multiple = 16
    steps, guidance = STEPS, Guidance(SCALE, SCALE, 1.0)

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        vae: AutoencoderKLWan,
        anchor_encoder: WanAnchorEncoder,
        tokenizer: Any,
        text_encoder: Any,
    ) -> None:
        self.transformer, self.vae, self.anchor_encoder = transformer, vae, anchor_encoder
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.anchor_size = anchor_encoder.image_size

    def check(self, frames: int, views: int, intrinsics: bool) -> None:
        config = self.anchor_encoder.config
        check_count("frames", frames, config.max_frames)
        check_count("anchor views", views, config.max_views)
        if (frames - 1) % 4:
            raise InvalidInputError(
                f"{frames} frames; Wan takes 4 k + 1, such as {frames - (frames - 1) % 4}."
            )
        if frames * views >= CONTEXT_TOKENS:
            raise InvalidInputError(
                f"{frames} frames x {views} anchor views are {frames * views} tokens, and the "
                f"context has {CONTEXT_TOKENS} with the text. Give fewer frames or views."
            )

    def text(self, prompts: Sequence[str], frames: int, views: int) -> Tensor:
        length = CONTEXT_TOKENS - frames * views
        out = torch.zeros(len(prompts), length, self.text_encoder.config.d_model)
        for row, prompt in zip(out, prompts, strict=True):
            prompt = " ".join(prompt.split())
            count = len(self.tokenizer(prompt).input_ids)
            if count > length:
                raise InvalidInputError(
                    f"the text '{prompt[:40]}...' has {count} tokens; {frames} frames x {views} "
                    f"anchor views leave {length} of {CONTEXT_TOKENS}. Shorten it."
                )
            row[:count] = token_states(self.tokenizer, self.text_encoder, prompt, length)
        return out

    def context(self, clip: Clip, text: Tensor, anchors: Tensor | None) -> Context:
        return self.assemble(self.encode(clip.filled), temporal_mask(clip.mask), text, anchors)

    def assemble(
        self, latents: Tensor, mask: Tensor, text: Tensor, anchors: Tensor | None
    ) -> Context:
        """``context`` of what is encoded already."""
        if anchors is not None:
            text = torch.cat([text, self.anchor_encoder(anchors).float()], 1)
        return Context(latents, mask, latents[:, :0], text)

    def nothing(self, context: Context) -> Tensor:
        f, h, w = context.latents.shape[2:]
        grey = context.latents.new_full((1, 4 * f - 3, 3, 8 * h, 8 * w), 0.5)
        return self.encode(grey).expand_as(context.latents)

    def noise(
        self, shape: Sequence[int], generator: torch.Generator | list[torch.Generator] | None
    ) -> Tensor:
        return randn_tensor(tuple(shape), generator)

    def velocity(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        """What the transformer predicts: noise - clean."""
        x = torch.cat([noisy, context.latents, context.mask], 1).to(self.transformer.dtype)
        tokens = context.tokens.to(self.transformer.dtype)
        out: Tensor = self.transformer(x, t * 1000, tokens, return_dict=False)[0].float()
        return out

    def denoise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        return noisy - t.view(-1, 1, 1, 1, 1) * self.velocity(noisy, t, context)

    def encode(self, images: Tensor) -> Tensor:
        """B x F x 3 x H x W in [0, 1] -> B x C x f x h x w, normalised; f = (F + 3) / 4."""
        x = (images.transpose(1, 2) * 2 - 1).to(self.vae.dtype)
        latents = self.vae.encode(x).latent_dist.mode().float()
        mean, std = self._moments(latents)
        return (latents - mean) / std

    def decode(self, latents: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
        mean, std = self._moments(latents)
        video = self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0]
        picture = (video.float() * 0.5 + 0.5).clamp(0, 1).transpose(1, 2)
        confidence = measured_confidence(
            *(x.flatten(0, 1) for x in (picture, clip.image, clip.measured))
        )
        return picture, confidence.unflatten(0, picture.shape[:2])

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        config = self.vae.config
        mean, std = (
            torch.tensor(v, device=latents.device).view(1, -1, 1, 1, 1)
            for v in (config.latents_mean, config.latents_std)
        )
        return mean, std


def temporal_mask(mask: Tensor, factor: int = 8) -> Tensor:
    """Coverage per latent cell, the frames of one latent as channels; Wan's image-to-video form.

    The first frame is a latent by itself and counts four times.

    Args:
        mask: B x F x 1 x H x W, F = 4 k + 1.

    Returns:
        B x 4 x (k + 1) x H/factor x W/factor in [0, 1].
    """
    B, frames = mask.shape[:2]
    cells = F.avg_pool2d(mask.flatten(0, 1), factor).view(
        B, frames, *(s // factor for s in mask.shape[-2:])
    )
    cells = torch.cat([cells[:, :1].expand(-1, MASK_CHANNELS - 1, -1, -1), cells], 1)
    return cells.unflatten(1, (-1, MASK_CHANNELS)).transpose(1, 2)


def widen(transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """The same transformer with input channels for condition latents and mask.

    Their weights are zero, so that it gives what it gave.

    Raises:
        WeightsError: it is no text-to-video transformer, whose input are the latents alone.
    """
    config = transformer.config
    latents = config.in_channels
    if latents != config.out_channels or config.image_dim is not None:
        raise WeightsError(
            f"the transformer has {latents} input and {config.out_channels} output channels and "
            f"image_dim {config.image_dim}: it is no text-to-video model. Use Wan2.1 T2V."
        )
    wide = 2 * latents + MASK_CHANNELS
    old = transformer.patch_embedding
    new = nn.Conv3d(wide, old.out_channels, old.kernel_size, old.stride).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, :latents] = old.weight
        assert new.bias is not None
        new.bias.copy_(old.bias)
    transformer.patch_embedding = new
    transformer.register_to_config(in_channels=wide)
    return transformer


def load_wan(
    folder: Path, clip_model: str, clip_weights: Path, max_views: int, dtype: torch.dtype
) -> dict[str, Any]:
    """Components of ``WristWorldPipeline`` but the scheduler; see ``from_wan``."""
    check_folder(folder)
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", torch_dtype=dtype)
    encoder = WanAnchorEncoder.from_open_clip(
        clip_model, clip_weights, text_dim=transformer.config.text_dim, max_views=max_views
    )
    parts = {
        "transformer": widen(transformer),
        # Wan's autoencoder overflows in half precision; diffusers' examples keep it in float32 too.
        "vae": AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        "text_encoder": text_encoder,
        "anchor_encoder": encoder if dtype == torch.float32 else encoder.to(dtype),
    }
    for part in parts.values():
        part.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    return {**parts, "tokenizer": tokenizer}


def check_folder(folder: Path) -> None:
    """Compare all keys and shapes of a folder in diffusers' layout with those of its models.

    diffusers and transformers themselves go on with random values where weights are missing.

    Raises:
        WeightsError: something is missing, unknown, of wrong shape, or cannot be read.
    """
    for name in ("tokenizer", "transformer", "vae", "text_encoder"):
        if not (folder / name).is_dir():
            raise WeightsError(
                f"{folder} has no folder {name}. Give a folder as published under "
                "Wan-AI/Wan2.1-T2V-1.3B-Diffusers, or one that save_pretrained wrote."
            )
    check_component(folder / "transformer", WanTransformer3DModel)
    check_component(folder / "vae", AutoencoderKLWan)
    check_component(folder / "text_encoder", UMT5EncoderModel)
    if (folder / "anchor_encoder").is_dir():
        check_component(folder / "anchor_encoder", WanAnchorEncoder)


def check_component(folder: Path, kind: Any) -> None:
    """The same for one of them.

    Args:
        kind: its class, of diffusers or transformers.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder} has no config.json that can be read ({error}).") from None
    with torch.device("meta"):
        if issubclass(kind, PreTrainedModel):
            model = kind(kind.config_class.from_dict(config))
        else:
            model = kind.from_config(config)
    check_fit(folder, model, _shapes(folder))


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Name -> shape of all tensors of a folder, by the headers of its files."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"no weights at {folder}: there is no .safetensors file in it.")
    shapes = {}
    for file in files:
        try:
            with safe_open(file, "pt") as stream:
                for key in stream.keys():  # noqa: SIM118
                    shapes[key] = stream.get_slice(key).get_shape()
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{file} is truncated or altered ({error}). Restore it.") from None
    return shapes
