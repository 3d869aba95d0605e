"""The networks of stage 2, each a graph that an engine may run in torch's place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wristworld_ros.generation.autoencoder import Autoencoder
from wristworld_ros.generation.conditioning import mask_channels, ray_channels
from wristworld_ros.generation.detail import DetailRestorer
from wristworld_ros.generation.model import Context, Stage2Model
from wristworld_ros.runtime.dispatch import Dispatcher
from wristworld_ros.runtime.graphs import Graph

#: Names of the graphs; the last one only where the model has a detail restorer.
GRAPHS = ("encoder", "anchors", "denoiser", "decoder", "detail")


class _Encoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.net = autoencoder

    def forward(self, images: Tensor) -> Tensor:
        return self.net.encode(images)


class _Decoder(nn.Module):
    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.net = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        return self.net.decode(latents).clamp(0, 1)


class _Denoiser(nn.Module):
    def __init__(self, model: Stage2Model) -> None:
        super().__init__()
        self.net = model

    def forward(
        self, noisy: Tensor, t: Tensor, latents: Tensor, mask: Tensor, rays: Tensor, tokens: Tensor
    ) -> Tensor:
        clean: Tensor = self.net(noisy, t, Context(latents, mask, rays, tokens))
        return clean


class Stage2Networks:
    """Stage 2 as calls.

    Args:
        model, autoencoder, detail: the networks, in evaluation mode.
        weights: sha256 of ``stage2``, ``autoencoder`` and ``detail``.
        dispatcher: what runs them.
    """

    def __init__(
        self,
        model: Stage2Model,
        autoencoder: Autoencoder,
        detail: DetailRestorer | None,
        weights: dict[str, str],
        dispatcher: Dispatcher,
    ) -> None:
        self.model, self.autoencoder, self.detail = model, autoencoder, detail
        self.dispatcher = dispatcher
        self._weights = {
            "encoder": weights.get("autoencoder", ""),
            "anchors": weights.get("stage2", ""),
            "denoiser": weights.get("stage2", ""),
            "decoder": weights.get("autoencoder", ""),
            "detail": weights.get("detail", ""),
        }
        self._modules: dict[str, nn.Module] = {
            "encoder": _Encoder(autoencoder),
            "anchors": model.anchors,
            "denoiser": _Denoiser(model),
            "decoder": _Decoder(autoencoder),
        }
        if detail is not None:
            self._modules["detail"] = detail

    def _run(self, name: str, **inputs: Tensor) -> tuple[Tensor, ...]:
        return self.dispatcher(name, self._weights[name], self._modules[name], inputs)

    def encode(self, images: Tensor) -> Tensor:
        """As ``Autoencoder.encode``."""
        return self._run("encoder", images=images)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """As ``Autoencoder.decode``, clamped to [0, 1]."""
        return self._run("decoder", latents=latents)[0]

    def context(
        self, latents: Tensor, mask: Tensor, rays: Tensor, text: Tensor, anchors: Tensor
    ) -> Context:
        """As ``Stage2Model.context``, where nothing is dropped."""
        (tokens,) = self._run("anchors", anchors=anchors)
        return Context(latents, mask, rays, torch.cat([text, tokens], 1))

    def denoise(self, noisy: Tensor, t: Tensor, context: Context) -> Tensor:
        """As ``Stage2Model``."""
        c = context
        inputs = {"latents": c.latents, "mask": c.mask, "rays": c.rays, "tokens": c.tokens}
        return self._run("denoiser", noisy=noisy, t=t, **inputs)[0]

    def restore(self, picture: Tensor, condition: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """As ``DetailRestorer``, which there has to be."""
        picture, right = self._run("detail", picture=picture, condition=condition, mask=masks)
        return picture, right

    def graphs(self, frames: int, views: int, height: int, width: int) -> list[Graph]:
        """All graphs for clips of one shape, with examples that resemble what they get.

        Args:
            frames: 1 for streaming; views: anchors; height, width: of the wrist picture [px].
        """
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def uniform(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        images = uniform(frames, 3, height, width)
        mask = (uniform(frames, 1, height, width) < 0.7).float()
        size = self.model.config.anchors.image_size
        anchors = uniform(1, frames, views, 3, size, size)
        K = torch.tensor([[[width / 1.2, 0, width / 2], [0, width / 1.2, height / 2], [0, 0, 1]]])
        with torch.inference_mode():
            latents = self.autoencoder.encode(images)
            tokens = self.model.anchors(anchors)
        context = {
            "latents": latents.transpose(0, 1)[None].clone(),
            "mask": mask_channels(mask).transpose(0, 1)[None].clone(),
            "rays": ray_channels(K, height, width).transpose(0, 1)[None].repeat(1, 1, frames, 1, 1),
            "tokens": torch.cat(
                [noise(1, self.model.config.text_tokens, tokens.shape[2]), tokens], 1
            ),
        }
        examples: dict[str, dict[str, Tensor]] = {
            "encoder": {"images": images},
            "anchors": {"anchors": anchors},
            "denoiser": {
                "noisy": noise(*context["latents"].shape), "t": torch.ones(1), **context,
            },
            "decoder": {"latents": latents.clone()},
            "detail": {
                "picture": images, "condition": uniform(*images.shape),
                "mask": mask.repeat(1, 2, 1, 1),
            },
        }  # fmt: skip
        outputs = {"denoiser": ("clean",), "detail": ("restored", "right")}
        return [
            Graph(name, module, examples[name], outputs.get(name, ("out",)), self._weights[name])
            for name, module in self._modules.items()
        ]
