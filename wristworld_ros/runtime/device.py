"""Which processor runs the networks."""

from __future__ import annotations

import torch

from wristworld_ros.errors import InvalidInputError


def select_device(name: str) -> torch.device:
    """``auto`` (a CUDA GPU where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        InvalidInputError: the name is unknown, or that GPU is not there; never falls back silently.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise InvalidInputError(f"device '{name}' is not auto, cpu, cuda or cuda:N.")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise InvalidInputError(
                f"device '{name}' asked for, but torch {torch.__version__} sees {count} CUDA "
                "GPUs. Use device 'cpu' or 'auto', or a CUDA build (make setup TORCH=cu128)."
            )
    return torch.device(name)
