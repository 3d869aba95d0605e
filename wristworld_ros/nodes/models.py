"""Where the models compute."""

from __future__ import annotations

from wristworld_ros.errors import InvalidInputError


def check_device(device: str) -> None:
    """Raise unless torch can compute on ``device``.

    Raises:
        InvalidInputError: names the device and what to set instead.
    """
    import torch

    kind, _, index = device.partition(":")
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    if not available[kind]:
        raise InvalidInputError(
            f"device '{device}' is not there: torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices. Set device to cpu, or install the driver "
            "and torch's CUDA build."
        )


def limit_threads(threads: int) -> None:
    """CPU threads that torch uses; 0 leaves its own choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)
