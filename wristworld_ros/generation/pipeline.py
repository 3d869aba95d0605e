"""Stage 2 in the form of a diffusers pipeline: condition maps, anchor views and text to video."""

# No `from __future__ import annotations`: diffusers reads the types of the constructor.
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from torch import Tensor
from transformers import BertModel, PreTrainedModel, PreTrainedTokenizerBase

from wristworld_ros.errors import InvalidInputError, WristWorldError
from wristworld_ros.generation.adapter import load_adapter, lora_rank
from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.conditioning import anchor_tensor, video_tensor
from wristworld_ros.generation.detail import DetailRestorer
from wristworld_ros.generation.model import Context, Stage2Model
from wristworld_ros.generation.networks import Stage2Networks
from wristworld_ros.generation.presets import Clip, MiniPreset, Preset, as_clips, as_frames
from wristworld_ros.generation.sampling import Guidance, sample, scheduler_for, set_steps
from wristworld_ros.generation.text import TextEncoder, load_minilm
from wristworld_ros.generation.wan import (
    SHIFT,
    WanAnchorEncoder,
    WanPreset,
    check_component,
    check_folder,
    load_wan,
)
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.resources import model_dir
from wristworld_ros.runtime.dispatch import Dispatcher
from wristworld_ros.weights import read_config, save_weights

OUTPUT_TYPES = ("np", "pil", "pt", "latent")


@dataclass
class WristWorldPipelineOutput(BaseOutput):
    """What a wrist camera would have seen.

    Attributes:
        frames: ``np``: B x F x H x W x 3 float32 in [0, 1]; ``pt``: B x F x 3 x H x W; ``pil``: a
            list of lists of pictures; ``latent``: B x C x f x h x w.
        confidence: B x F x H x W in [0, 1], array or tensor as ``frames``: 0 where the picture is
            imagined. None with ``latent``.
    """

    frames: Any
    confidence: Any


class WristWorldPipeline(DiffusionPipeline):
    """Condition maps, masks, anchor views and text to the wrist video (docs/pipeline.md).

    ``from_pretrained()`` gives the shipped model ``mini``; ``from_wan`` builds the paper's model on
    published weights of Wan2.1; ``save_pretrained`` and ``from_pretrained`` write and read either
    in diffusers' layout, strictly.

    Args:
        scheduler: of the flow.
        transformer: ``Stage2Model`` (mini) or a Wan transformer of 36 input channels.
        vae: ``Autoencoder`` (mini) or Wan's.
        text_encoder, tokenizer: MiniLM (mini) or UMT5.
        anchor_encoder: of Wan; mini has its own in ``transformer``.
        detail: of mini, or None.
    """

    model_cpu_offload_seq = "text_encoder->anchor_encoder->transformer->vae->detail"
    _optional_components = ["anchor_encoder", "detail"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        transformer: Union[Stage2Model, WanTransformer3DModel],  # noqa: UP007
        vae: Union[Autoencoder, AutoencoderKLWan],  # noqa: UP007
        text_encoder: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        anchor_encoder: Optional[WanAnchorEncoder] = None,  # noqa: UP045
        detail: Optional[DetailRestorer] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        self.register_modules(
            scheduler=scheduler,
            transformer=transformer,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            anchor_encoder=anchor_encoder,
            detail=detail,
        )
        #: What runs the networks, where it is not torch (``Generator``).
        self.runner: Preset | None = None

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, **kwargs: Any) -> "WristWorldPipeline":
        """Load a folder that ``save_pretrained`` wrote, or a model folder (None: the shipped
        ``mini``) with ``stage2``, ``autoencoder`` and maybe ``detail``.

        Args:
            kwargs: as of diffusers (``torch_dtype``, ...), for what ``save_pretrained`` wrote.

        Raises:
            WeightsError: weights are missing, truncated, altered or do not fit: every key and
                shape is compared.
        """
        folder = Path(path) if path is not None else model_dir("mini")
        index = folder / DiffusionPipeline.config_name
        if index.is_file():
            if Stage2Model.__name__ in json.loads(index.read_text())["transformer"]:
                check_component(folder / "text_encoder", BertModel)
                digest = read_config(folder / "transformer")["sha256"]
                detail = load_companion(folder / "detail", DetailRestorer, "stage2", digest)
                return super().from_pretrained(folder, detail=detail, **kwargs)
            check_folder(folder)
            return super().from_pretrained(folder, **kwargs)
        model = Stage2Model.from_pretrained(folder / "stage2")
        tokenizer, text_encoder = load_minilm()
        return cls(
            scheduler_for(1),
            model,
            Autoencoder.from_pretrained(folder / "autoencoder"),
            text_encoder,
            tokenizer,
            detail=load_companion(folder / "detail", DetailRestorer, "stage2", model.sha256),
        )

    @classmethod
    def from_wan(
        cls,
        folder: str | Path,
        *,
        clip_model: str,
        clip_weights: str | Path,
        max_views: int = 8,
        torch_dtype: torch.dtype = torch.float32,
    ) -> "WristWorldPipeline":
        """The paper's model at its start, on published weights.

        It gives what Wan gives for the text alone: the new input channels and the last layer of the
        anchors' projector are zero until they are trained (``wristworld train stage2 --preset``) or
        loaded (``load_adapter``).

        Args:
            folder: ``Wan-AI/Wan2.1-T2V-1.3B-Diffusers``, or another Wan2.1 T2V model in diffusers'
                layout: ``transformer``, ``vae``, ``text_encoder``, ``tokenizer``.
            clip_model: name of an open_clip model, such as ``ViT-H-14`` (the paper's).
            clip_weights: its weights as published, such as open_clip_model.safetensors.
            max_views: anchors that there are view embeddings for.

        Raises:
            InvalidInputError: open_clip knows no such model.
            WeightsError: files are missing, or some key or shape is not the model's.
        """
        parts = load_wan(Path(folder), clip_model, Path(clip_weights), max_views, torch_dtype)
        return cls(FlowMatchEulerDiscreteScheduler(shift=SHIFT), **parts)

    def load_adapter(self, folder: str | Path) -> None:
        """Fill what ``wristworld train stage2 --preset`` trained: LoRA and the new modules.

        Raises:
            InvalidInputError: this is not Wan, or has LoRA layers already.
            WeightsError: weights are missing, truncated, altered or do not fit.
        """
        if self.anchor_encoder is None:
            raise InvalidInputError(
                "adapters are for Wan (from_wan); this is mini, which has none."
            )
        load_adapter(self.transformer, self.anchor_encoder, Path(folder))

    def fuse_adapter(self) -> None:
        """Add the LoRA layers to the weights that they stand beside, so that they cost no time and
        ``save_pretrained`` stores the sum."""
        self.transformer.fuse_lora()
        self.transformer.unload_lora()

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write all components and ``model_index.json``; kwargs as of diffusers.

        Raises:
            InvalidInputError: there are LoRA layers.
        """
        if self.anchor_encoder is not None and lora_rank(self.transformer):
            raise InvalidInputError(
                "a transformer with LoRA layers cannot be stored as a model: call fuse_adapter() "
                "first, or keep the folder of the adapter."
            )
        super().save_pretrained(save_directory, **kwargs)
        if self.detail is not None:  # it belongs to the weights of stage 2 as they are stored now
            save_weights(
                Path(save_directory) / "detail",
                self.detail,
                self.detail.config_dict(),
                {"stage2": self.transformer.sha256},
                dtype=torch.float32,
            )

    @property
    def preset(self) -> Preset:
        """The networks behind one interface."""
        if self.runner is not None:
            return self.runner
        if not isinstance(self.transformer, Stage2Model):
            return WanPreset(
                self.transformer,
                self.vae,
                self.anchor_encoder,
                self.tokenizer,
                self.text_encoder,
            )
        networks = Stage2Networks(self.transformer, self.vae, self.detail, {}, Dispatcher())
        length = self.transformer.config.text_tokens
        return MiniPreset(networks, TextEncoder(length, self.tokenizer, self.text_encoder))

    def check_inputs(
        self,
        prompt: list[str],
        condition: Tensor,
        mask: Tensor,
        measured: Tensor,
        intrinsics: Tensor | None,
        anchors: Tensor | None,
        output_type: str,
        callback_on_step_end_tensor_inputs: Sequence[str],
    ) -> None:
        """Raise InvalidInputError for what ``__call__`` cannot work with; shapes as it says."""
        B, F, _, H, W = condition.shape
        for name, drawn in (("mask", mask), ("measured", measured)):
            if drawn.shape != (B, F, 1, H, W):
                raise InvalidInputError(
                    f"{name} of shape {tuple(drawn.shape)} for {B} x {F} condition maps of {W} x "
                    f"{H} px; need {(B, F, 1, H, W)}."
                )
        for name, x in (("condition", condition), ("anchors", anchors), ("mask", mask)):
            if x is not None and not (x.isfinite().all() and x.min() >= 0 and x.max() <= 1):
                raise InvalidInputError(
                    f"{name} holds values outside [0, 1], or that are no numbers."
                )
        multiple = self.preset.multiple
        if H % multiple or W % multiple:
            raise InvalidInputError(
                f"condition maps of {W} x {H} px: both sides must be multiples of {multiple}. "
                "Choose another size of the virtual wrist camera."
            )
        if len(prompt) != B:
            raise InvalidInputError(f"{len(prompt)} prompts for {B} clips; give one each.")
        if anchors is not None and anchors.shape[:2] != (B, F):
            raise InvalidInputError(
                f"anchors of {anchors.shape[0]} clips of {anchors.shape[1]} frames for {B} clips "
                f"of {F} condition maps; need the same."
            )
        if intrinsics is not None and intrinsics.shape != (B, F, 3, 3):
            raise InvalidInputError(
                f"intrinsics of shape {tuple(intrinsics.shape)}; need {(B, F, 3, 3)} [px]."
            )
        views = 0 if anchors is None else anchors.shape[2]
        self.preset.check(F, views, intrinsics is not None)
        if output_type not in OUTPUT_TYPES:
            raise InvalidInputError(f"output_type '{output_type}' is not in {OUTPUT_TYPES}.")
        unknown = set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InvalidInputError(
                f"callback_on_step_end_tensor_inputs {sorted(unknown)}; there are "
                f"{self._callback_tensor_inputs}."
            )

    @torch.inference_mode()
    def denoise(
        self,
        branches: Sequence[tuple[float, Context]],
        noise: Tensor,
        steps: int,
        on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Clean latents; ``branches``, ``noise`` and ``on_step`` as of ``sample``."""
        set_steps(self.scheduler, steps)
        return sample(self.preset.denoise, branches, noise, self.scheduler, on_step)

    @torch.inference_mode()
    def decode(self, latents: Tensor, clip: Clip) -> tuple[Tensor, Tensor]:
        """Pictures B x F x 3 x H x W in [0, 1] and confidence B x F x H x W.

        Raises:
            WristWorldError: the networks gave values that are not finite.
        """
        picture, confidence = self.preset.decode(latents, clip)
        if not bool(torch.isfinite(picture).all()):
            raise WristWorldError(
                "the generator gave values that are not finite; no picture is published. Check "
                "the weights (wristworld info) and the condition map."
            )
        return picture, confidence

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | list[str],
        condition: Any,
        mask: Any,
        anchors: Any = None,
        intrinsics: Any = None,
        measured: Any = None,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_scale_anchors: float | None = None,
        guidance_scale_map: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> WristWorldPipelineOutput | tuple[Any, Any]:
        """Generate one wrist picture for each condition map.

        Every array may lack its first dimension, if there is one clip.

        Args:
            prompt: instruction of each clip.
            condition: condition maps: B x F x H x W x 3 uint8 (array, or lists of pictures), or a
                tensor B x F x 3 x H x W in [0, 1].
            mask: B x F x H x W bool (array or tensor), where they are drawn.
            anchors: pictures of the other cameras: lists of views, one for each frame, of H x W x 3
                uint8 pictures of any sizes, or a tensor B x F x V x 3 x H x W in [0, 1]. None: not
                known.
            intrinsics: B x F x 3 x 3 of the wrist camera [px]. Wan does not look at them.
            measured: as ``mask``, where an anchor shows what is drawn (``ConditionMap.measured``);
                the mask when None.
            negative_prompt: what stands for no text where guidance drops it.
            num_inference_steps: 1 for mini and 50 for Wan, when None.
            guidance_scale, guidance_scale_anchors, guidance_scale_map: of text, anchors and
                condition map; see ``Guidance``. None: 1 for mini; 5, 5 and 1 for Wan.
            generator: of the noise, for equal pictures each time.
            latents: the noise itself, B x C x f x h x w.
            output_type: ``np``, ``pil``, ``pt`` or ``latent``.
            return_dict: False: a tuple of frames and confidence.
            callback_on_step_end: is called with pipeline, step, timestep and the tensors that
                ``callback_on_step_end_tensor_inputs`` names (``latents``), and returns those that
                it changes.

        Raises:
            InvalidInputError: see ``check_inputs``; the text is too long for Wan; a scale or number
                of steps that does not work.
            WristWorldError: the networks gave values that are not finite.
        """
        preset, device = self.preset, self._execution_device

        # 1. Bring the inputs to one form and check them
        prompt = [prompt] if isinstance(prompt, str) else list(prompt)
        image = video_tensor(condition, "condition").to(device)
        drawn = video_tensor(mask, "mask").to(device)
        seen = drawn if measured is None else video_tensor(measured, "measured").to(device)
        K = None
        if intrinsics is not None:
            if not isinstance(intrinsics, Tensor):
                intrinsics = torch.from_numpy(np.array(intrinsics))
            K = intrinsics.to(device, torch.float32)
            K = K[None] if K.ndim == 3 else K
        views = None if anchors is None else anchor_tensor(anchors, preset.anchor_size).to(device)
        self.check_inputs(
            prompt, image, drawn, seen, K, views, output_type, callback_on_step_end_tensor_inputs
        )
        scales = {
            "text": guidance_scale, "anchors": guidance_scale_anchors, "map": guidance_scale_map,
        }  # fmt: skip
        guidance = replace(preset.guidance, **{k: s for k, s in scales.items() if s is not None})

        # 2. Encode the conditions
        B, frames = image.shape[:2]
        count = 0 if views is None else views.shape[2]
        filled = as_clips(fill_holes(as_frames(image), as_frames(drawn)), B)
        clip = Clip(image, filled, drawn, seen, K)
        text = preset.text(prompt, frames, count).to(device)
        context = preset.context(clip, text, views)

        # 3. The same with conditions dropped, as far as guidance asks for it
        branches = [(1.0, context)]
        if guidance != Guidance():
            everywhere = torch.ones(B, dtype=torch.bool, device=device)
            negative = preset.text([negative_prompt] * B, frames, count).to(device)
            nothing = preset.nothing(context) if guidance.map != 1 else context.latents
            branches = [
                (weight, context.without(dict.fromkeys(names, everywhere), negative, nothing))
                for weight, names in guidance.branches()
            ]

        # 4. Draw the noise
        if latents is None:
            latents = preset.noise(context.latents.shape, generator)
        latents = latents.to(device, torch.float32)

        # 5. Denoise
        steps = preset.steps if num_inference_steps is None else num_inference_steps
        with self.progress_bar(total=steps) as progress:

            def on_step(i: int, timestep: Tensor, latents: Tensor) -> Tensor:
                progress.update()
                if callback_on_step_end is None:
                    return latents
                kwargs = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                changed: Tensor = callback_on_step_end(self, i, timestep, kwargs).pop(
                    "latents", latents
                )
                return changed

            latents = self.denoise(branches, latents, steps, on_step)

        # 6. Decode
        output: tuple[Any, Any] = (latents, None)
        if output_type != "latent":
            picture, confidence = self.decode(latents, clip)
            output = (picture, confidence)
            if output_type != "pt":
                videos: Any = picture.float().permute(0, 1, 3, 4, 2).cpu().numpy()
                if output_type == "pil":
                    videos = [VideoProcessor.numpy_to_pil(video) for video in videos]
                output = (videos, confidence.float().cpu().numpy())
        self.maybe_free_model_hooks()
        return WristWorldPipelineOutput(*output) if return_dict else output
