"""Sampling: from a clip's context to latents, by flow matching (method.md, 3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.model import Context

MAX_STEPS = 1000


def scheduler_for(steps: int, shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Euler schedule from t = 1 (noise) to 0 (picture) in equal steps, then shifted.

    Raises:
        InvalidInputError: ``steps`` is not in 1..1000.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise InvalidInputError(f"{steps} denoising steps; choose 1 to {MAX_STEPS}.")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    return scheduler


@torch.inference_mode()
def sample(
    model: Callable[[Tensor, Tensor, Context], Tensor],
    context: Context,
    noise: Tensor,
    *,
    steps: int,
    shift: float = 1.0,
    unconditional: Context | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Denoise.

    Args:
        model: ``Stage2Model``, or what runs it.
        context: B x C x F x h x w conditions.
        noise: the same shape as ``context.latents``; equal noise gives equal pictures.
        steps: Euler steps.
        unconditional: context of the negative branch (same map, other conditions dropped).
        guidance: classifier-free guidance scale; 1 uses ``context`` alone.

    Returns:
        Clean latents, B x C x F x h x w.
    """
    if noise.shape != context.latents.shape:
        raise InvalidInputError(
            f"noise of shape {tuple(noise.shape)} for latents {tuple(context.latents.shape)}."
        )
    scheduler = scheduler_for(steps, shift)
    x = noise
    for timestep in scheduler.timesteps:
        t = (timestep / scheduler.config.num_train_timesteps).to(x).expand(len(x))
        clean = model(x, t, context)
        if unconditional is not None and guidance != 1.0:
            negative = model(x, t, unconditional)
            clean = negative + guidance * (clean - negative)
        velocity = (x - clean) / t.view(-1, 1, 1, 1, 1)
        x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
    return x
