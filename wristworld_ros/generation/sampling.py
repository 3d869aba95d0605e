"""Sampling: from noise to latents, by flow matching (method.md, 3), with or without guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.model import Context

MAX_STEPS = 1000
#: What can be dropped, in the order in which guidance drops it.
CONDITIONS = ("text", "anchors", "map")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance with one scale for each condition.

    Let c1 ... cn be the conditions of which the scale s is not 1, in the order text, anchors, map,
    and let D_k be the prediction without the first k of them. What is used is

        D_n + s1 (D_0 - D_1) + ... + sn (D_(n-1) - D_n),

    the nested form of InstructPix2Pix (arXiv 2211.09800). A scale of 1 is neutral: its condition
    stays in every evaluation and costs none. Each other scale costs one more evaluation at most:
    equal scales share theirs, so that text and anchors at 5 are plain guidance at 5 with both
    dropped (method.md, 3). 0 takes a condition away.

    Raises:
        InvalidInputError: a scale is negative or not finite.
    """

    text: float = 1.0
    anchors: float = 1.0
    map: float = 1.0

    def __post_init__(self) -> None:
        for name, scale in asdict(self).items():
            if not math.isfinite(scale) or scale < 0:
                raise InvalidInputError(
                    f"guidance scale {scale} for {name}; choose 0 or more, where 1 is no guidance."
                )

    def branches(self) -> list[tuple[float, tuple[str, ...]]]:
        """Weight and dropped conditions of every evaluation; the weights add up to 1."""
        names = [c for c in CONDITIONS if getattr(self, c) != 1]
        scales = [*(getattr(self, c) for c in names), 1.0]
        weights = [s - before for s, before in zip(scales, [0.0, *scales], strict=False)]
        return [(w, tuple(names[:k])) for k, w in enumerate(weights) if w]


def scheduler_for(steps: int, shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Euler schedule from t = 1 (noise) to 0 (picture) in equal steps, then shifted.

    Raises:
        InvalidInputError: ``steps`` is not in 1..1000.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    set_steps(scheduler, steps)
    return scheduler


def set_steps(scheduler: FlowMatchEulerDiscreteScheduler, steps: int) -> None:
    """As ``scheduler_for``, for a scheduler that exists."""
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidInputError(f"{steps} denoising steps; choose 1 to {MAX_STEPS}.")
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])


@torch.inference_mode()
def sample(
    model: Callable[[Tensor, Tensor, Context], Tensor],
    branches: Sequence[tuple[float, Context]],
    noise: Tensor,
    scheduler: FlowMatchEulerDiscreteScheduler,
    on_step: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Denoise.

    Args:
        model: gives clean latents: ``Stage2Model``, or what runs it.
        branches: weight and conditions of every evaluation of the model (``Guidance``); without
            guidance one of weight 1.
        noise: the same shape as the contexts' ``latents``; equal noise gives equal pictures.
        scheduler: with its timesteps set.
        on_step: is given the number of the step, its timestep and the latents after it, and gives
            the latents to go on with.

    Returns:
        Clean latents, B x C x F x h x w.
    """
    latents = branches[0][1].latents
    if noise.shape != latents.shape:
        raise InvalidInputError(
            f"noise of shape {tuple(noise.shape)} for latents {tuple(latents.shape)}."
        )
    x = noise
    for i, timestep in enumerate(scheduler.timesteps):
        t = (timestep / scheduler.config.num_train_timesteps).to(x).expand(len(x))
        clean = torch.zeros_like(x)
        for weight, context in branches:
            clean = clean + weight * model(x, t, context)
        velocity = (x - clean) / t.view(-1, 1, 1, 1, 1)
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        if on_step is not None:
            x = on_step(i, timestep, x)
    return x
