"""Stage 2 as one call: condition map and anchors in, wrist picture out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.conditioning import anchor_tensor, condition_tensors
from wristworld_ros.generation.confidence import view_score
from wristworld_ros.generation.detail import DetailRestorer
from wristworld_ros.generation.model import Stage2Model
from wristworld_ros.generation.networks import Stage2Networks
from wristworld_ros.generation.pipeline import WristWorldPipeline
from wristworld_ros.generation.presets import Clip, MiniPreset
from wristworld_ros.generation.sampling import scheduler_for
from wristworld_ros.generation.text import TextEncoder
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.resources import model_dir
from wristworld_ros.runtime.device import select_device
from wristworld_ros.runtime.dispatch import Dispatcher
from wristworld_ros.types import AnchorFrame, ConditionMap, WristFrame

MODES = ("stream", "chunk")
#: Frames per chunk and how many of them two chunks share.
CHUNK, OVERLAP = 8, 2


class Generator:
    """Condition maps to wrist pictures.

    ``stream``: one frame in, one frame out, causal; equal noise for every frame keeps the picture
    steady. ``chunk``: overlapping windows of frames that attend to one another, for recordings.

    Args:
        model, autoencoder, text: the networks of stage 2.
        detail: the network that corrects the decoded picture by the condition map, or None.
        steps: denoising steps; seed: of the noise.
        model_id: name of the model; sha256s: part of it -> sha256 of its weights.
        dispatcher: what runs the networks; torch when None.
    """

    def __init__(
        self,
        model: Stage2Model,
        autoencoder: Autoencoder,
        text: TextEncoder,
        *,
        detail: DetailRestorer | None = None,
        steps: int = 1,
        seed: int = 0,
        mode: str = "stream",
        model_id: str = "custom",
        sha256s: Mapping[str, str] | None = None,
        device: str = "cpu",
        dispatcher: Dispatcher | None = None,
    ) -> None:
        if mode not in MODES:
            raise InvalidInputError(f"mode '{mode}' is not in {MODES}.")
        self.device = select_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.autoencoder = autoencoder.to(self.device).eval().requires_grad_(False)
        self.detail = None
        if detail is not None:
            self.detail = detail.to(self.device).eval().requires_grad_(False)
        self.text = text
        self.steps, self.seed, self.mode = steps, seed, mode
        self.model_id, self.sha256s = model_id, dict(sha256s or {})
        self.networks = Stage2Networks(
            self.model,
            self.autoencoder,
            self.detail,
            self.sha256s,
            dispatcher or Dispatcher(),
        )
        self._preset = MiniPreset(self.networks, text)
        self._pipeline = WristWorldPipeline(
            scheduler_for(steps), self.model, self.autoencoder, text.model, text.tokenizer,
            detail=self.detail,
        )  # fmt: skip
        self._pipeline.runner = self._preset
        self._noise: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        steps: int = 1,
        seed: int = 0,
        mode: str = "stream",
        device: str = "cpu",
        backend: str = "torch",
        precision: str | None = None,
        strict: bool = False,
    ) -> Generator:
        """Load a model folder (the shipped ``mini`` when None).

        It has the folders ``stage2`` and ``autoencoder``, and may have ``detail``.

        Args:
            backend, precision, strict: what runs the networks (``Dispatcher``).

        Raises:
            WeightsError: weights are missing, truncated, altered or do not fit.
            InvalidInputError: no such backend or precision, or another kind of model.
            EngineError: the backend is not installed.
        """
        dispatcher = Dispatcher(backend, precision=precision, strict=strict)
        folder = Path(path) if path else model_dir("mini")
        pipeline = WristWorldPipeline.from_pretrained(folder)
        if not isinstance(pipeline.transformer, Stage2Model):
            raise InvalidInputError(
                f"{folder} is not of mini's kind, which is what runs frame by frame. Use "
                "WristWorldPipeline for it (docs/pipeline.md)."
            )
        model, autoencoder, detail = pipeline.transformer, pipeline.vae, pipeline.detail
        digests = {"stage2": model.sha256, "autoencoder": autoencoder.sha256}
        if detail is not None:
            digests["detail"] = detail.sha256
        return cls(
            model,
            autoencoder,
            TextEncoder(model.config.text_tokens, pipeline.tokenizer, pipeline.text_encoder),
            detail=detail,
            steps=steps,
            seed=seed,
            mode=mode,
            model_id=folder.name,
            sha256s=digests,
            device=device,
            dispatcher=dispatcher,
        )

    @property
    def sha256(self) -> str:
        """Of the weights of ``stage2``."""
        return self.sha256s.get("stage2", "")

    def with_dispatcher(self, dispatcher: Dispatcher) -> Generator:
        """The same generator, its networks run by something else."""
        return Generator(
            self.model,
            self.autoencoder,
            self.text,
            detail=self.detail,
            steps=self.steps,
            seed=self.seed,
            mode=self.mode,
            model_id=self.model_id,
            sha256s=self.sha256s,
            device=str(self.device),
            dispatcher=dispatcher,
        )

    def reset(self) -> None:
        """Forget everything that was carried from frame to frame."""
        self._noise.clear()

    def __call__(self, condition: ConditionMap, frame: AnchorFrame) -> WristFrame:
        """One frame, causal."""
        return self._generate([condition], [frame], "stream")[0]

    def chunk(
        self, conditions: Sequence[ConditionMap], frames: Sequence[AnchorFrame]
    ) -> list[WristFrame]:
        """A recording, in windows of ``CHUNK`` frames that share ``OVERLAP``; shared frames are
        cross-faded."""
        if len(conditions) != len(frames):
            raise InvalidInputError(
                f"{len(conditions)} condition maps for {len(frames)} frames; need one each."
            )
        results: list[WristFrame] = []
        start = 0
        while start < len(frames):
            end = min(start + CHUNK, len(frames))
            window = self._generate(conditions[start:end], frames[start:end], "chunk")
            shared = len(results) - start
            for i in range(shared):
                weight = (i + 1) / (shared + 1)
                results[start + i] = _blend(results[start + i], window[i], weight)
            results += window[shared:]
            if end == len(frames):
                break
            start = end - OVERLAP
        return results

    def _generate(
        self, conditions: Sequence[ConditionMap], frames: Sequence[AnchorFrame], mode: str
    ) -> list[WristFrame]:
        began = time.perf_counter()
        image, mask = (x.to(self.device) for x in condition_tensors(conditions))
        seen = torch.from_numpy(np.stack([c.measured for c in conditions]))[:, None].to(mask)
        intrinsics = np.stack([c.camera.K for c in conditions])
        K = torch.tensor(intrinsics, dtype=torch.float32, device=self.device)
        views = [[view.image for view in frame.views] for frame in frames]
        with torch.inference_mode():
            filled = fill_holes(image, mask)
            clip = Clip(image[None], filled[None], mask[None], seen[None], K[None])
            text = self._preset.text([frames[0].instruction], len(frames), len(views[0]))
            anchors = anchor_tensor(views, self._preset.anchor_size).to(self.device)
            context = self._preset.context(clip, text.to(self.device), anchors)
            encoded = time.perf_counter()
            noise = self._noise_for(context.latents.shape)
            clean = self._pipeline.denoise([(1.0, context)], noise, self.steps)
            denoised = time.perf_counter()
            picture, confidence = (x[0] for x in self._pipeline.decode(clean, clip))
        pixels = (picture * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        confidences = confidence.float().cpu().numpy()
        decoded = time.perf_counter()
        latency = {
            "encode": (encoded - began) / len(frames),
            "denoise": (denoised - encoded) / len(frames),
            "decode": (decoded - denoised) / len(frames),
        }
        return [
            WristFrame(
                stamp_ns=frames[i].stamp_ns,
                image=pixels[i],
                confidence=confidences[i],
                camera=conditions[i].camera,
                coverage=conditions[i].coverage,
                imagined_fraction=float((confidences[i] < 0.5).mean()),
                score=view_score(confidences[i]),
                steps=self.steps,
                seed=self.seed,
                mode=mode,
                model_id=self.model_id,
                model_sha256=self.sha256,
                backend=self.networks.dispatcher.summary,
                latency=latency,
            )
            for i in range(len(frames))
        ]

    def _noise_for(self, shape: Sequence[int]) -> Tensor:
        """1 x C x F x h x w, the same in every call."""
        key = tuple(shape)
        if key not in self._noise:
            generator = torch.Generator().manual_seed(self.seed)
            self._noise[key] = self._preset.noise(shape, generator).to(self.device)
        return self._noise[key]


def _blend(a: WristFrame, b: WristFrame, weight: float) -> WristFrame:
    """Cross-fade two versions of one frame; ``weight`` is that of ``b``."""
    image = np.round(a.image * (1 - weight) + b.image * weight).astype(np.uint8)
    confidence = (a.confidence * (1 - weight) + b.confidence * weight).astype(np.float32)
    values = {
        **b.__dict__,
        "image": image,
        "confidence": confidence,
        "imagined_fraction": float((confidence < 0.5).mean()),
        "score": view_score(confidence),
    }
    return WristFrame(**values)
