"""Stage 2 as one call: condition map and anchors in, wrist picture out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import InvalidInputError, WristWorldError
from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.conditioning import (
    condition_tensors,
    mask_channels,
    ray_channels,
)
from wristworld_ros.generation.confidence import measured_confidence
from wristworld_ros.generation.detail import DetailRestorer, shown
from wristworld_ros.generation.model import Stage2Model
from wristworld_ros.generation.networks import Stage2Networks
from wristworld_ros.generation.pipeline import sample, scheduler_for
from wristworld_ros.generation.text import TextEncoder
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.reconstruction.companions import load_companion
from wristworld_ros.resources import model_dir
from wristworld_ros.runtime.device import select_device
from wristworld_ros.runtime.dispatch import Dispatcher
from wristworld_ros.types import AnchorFrame, ConditionMap, WristFrame
from wristworld_ros.weights import load_weights, read_config

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
        scheduler_for(steps)
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
        self._noise: dict[tuple[int, int], Tensor] = {}

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
            InvalidInputError: no such backend or precision.
            EngineError: the backend is not installed.
        """
        dispatcher = Dispatcher(backend, precision=precision, strict=strict)
        folder = Path(path) if path else model_dir("mini")
        model = Stage2Model.from_config(read_config(folder / "stage2")["config"])
        digest = load_weights(folder / "stage2", model)
        autoencoder = Autoencoder.from_config(read_config(folder / "autoencoder")["config"])
        digests = {
            "stage2": digest,
            "autoencoder": load_weights(folder / "autoencoder", autoencoder),
        }
        detail = load_companion(folder / "detail", DetailRestorer, "stage2", digest)
        if detail is not None:
            digests["detail"] = detail.sha256
        return cls(
            model,
            autoencoder,
            TextEncoder(model.config.text_tokens),
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
        intrinsics = np.stack([c.camera.K for c in conditions])
        K = torch.tensor(intrinsics, dtype=torch.float32, device=self.device)
        with torch.inference_mode():
            filled = fill_holes(image, mask)
            latents = self.networks.encode(filled)
            text = self.text.encode(frames[0].instruction)[None].to(self.device)
            anchors = self._anchor_tensor(frames)
            context = self.networks.context(
                latents.transpose(0, 1)[None],
                mask_channels(mask).transpose(0, 1)[None],
                ray_channels(K, *mask.shape[-2:]).transpose(0, 1)[None],
                text,
                anchors,
            )
            encoded = time.perf_counter()
            h, w = latents.shape[-2:]
            noise = self._noise_for(h, w).expand(-1, -1, len(frames), -1, -1)
            clean = sample(self.networks.denoise, context, noise, steps=self.steps)
            denoised = time.perf_counter()
            picture = self.networks.decode(clean[0].transpose(0, 1))
            seen = torch.from_numpy(np.stack([c.measured for c in conditions]))[:, None].to(mask)
            if self.detail is not None:
                masks = torch.cat([mask, seen], 1)
                picture, right = self.networks.restore(picture, filled, masks)
                picture = picture.clamp(0, 1)
                confidence = (shown(mask) * seen * right.sigmoid())[:, 0]
            else:
                confidence = measured_confidence(picture, image, seen)
        if not bool(torch.isfinite(picture).all()):
            raise WristWorldError(
                "the generator gave values that are not finite; no picture is published. Check "
                "the weights (wristworld info) and the condition map."
            )
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

    def _anchor_tensor(self, frames: Sequence[AnchorFrame]) -> Tensor:
        """1 x F x V x 3 x size x size in [0, 1]."""
        size = self.model.config.anchors.image_size
        stack = [
            [
                cv2.resize(view.image, (size, size), interpolation=cv2.INTER_AREA)
                for view in frame.views
            ]
            for frame in frames
        ]
        x = torch.from_numpy(np.array(stack)).permute(0, 1, 4, 2, 3).float() / 255
        return x[None].to(self.device)

    def _noise_for(self, h: int, w: int) -> Tensor:
        """1 x C x 1 x h x w, the same for every frame."""
        if (h, w) not in self._noise:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (1, self.autoencoder.channels, 1, h, w)
            self._noise[h, w] = torch.randn(shape, generator=generator).to(self.device)
        return self._noise[h, w]


def _blend(a: WristFrame, b: WristFrame, weight: float) -> WristFrame:
    """Cross-fade two versions of one frame; ``weight`` is that of ``b``."""
    image = np.round(a.image * (1 - weight) + b.image * weight).astype(np.uint8)
    confidence = (a.confidence * (1 - weight) + b.confidence * weight).astype(np.float32)
    values = {
        **b.__dict__,
        "image": image,
        "confidence": confidence,
        "imagined_fraction": float((confidence < 0.5).mean()),
    }
    return WristFrame(**values)
