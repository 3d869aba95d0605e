"""What the tests of published networks and the recorders of their expected values share."""

from __future__ import annotations

import re
import zlib
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn


def random_values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal values that depend on the name alone (a frozen numpy stream)."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)


def seed_weights(model: nn.Module) -> None:
    """Fill a model with weights that depend on the parameters' names alone, and are not small.

    Published initial values would hide errors: layer scales of 0.01 silence whole blocks.
    """
    state = {}
    for name, value in model.state_dict().items():
        x = random_values(name, tuple(value.shape))
        if name.endswith("gamma"):
            x = 0.4 + 0.1 * x
        elif "flow_head.weight" in name:  # its output goes through sines of up to 1000 rad/px
            x *= 0.02 / value.shape[1] ** 0.5
        elif value.ndim > 1 and "token" not in name and "embed" not in name.split(".")[-1]:
            x /= (value.numel() / value.shape[0]) ** 0.5
        elif name.endswith("weight") and value.ndim == 1:
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x *= 0.1
        else:
            x *= 0.5
        state[name] = torch.from_numpy(np.asarray(x, np.float32))
    model.load_state_dict(state, strict=True)


def images(batch: int, views: int, height: int, width: int) -> Tensor:
    """B x V x 3 x H x W of noise in [0, 1]."""
    x = random_values(f"images {batch} {views} {height} {width}", (batch, views, 3, height, width))
    return torch.from_numpy((0.5 + 0.2 * x).clip(0, 1).astype(np.float32))


def sample(value: Tensor, count: int = 12) -> list[float]:
    """Some values of a tensor, spread over it."""
    flat = value.detach().double().flatten()
    places = np.random.RandomState(0).randint(0, len(flat), count)
    return [float(f"{float(flat[i]):.7g}") for i in places]


def pack_keys(shapes: dict[str, tuple[int, ...]]) -> str:
    """One line per parameter; runs of equal shape under ascending numbers share one line."""
    lines = []
    split = [(*_around_number(k), v) for k, v in shapes.items()]
    for (head, tail, shape), run in groupby(
        sorted(split, key=lambda e: (e[0], e[2], e[3], int(e[1] or -1))),
        key=lambda e: (e[0], e[2], e[3]),
    ):
        numbers = [e[1] for e in run]
        gaps = numbers[0] and int(numbers[-1]) - int(numbers[0]) != len(numbers) - 1
        listed = ",".join(numbers) if gaps else f"{numbers[0]}-{numbers[-1]}"
        name = head + (f"{{{listed}}}" if numbers[0] else "") + tail
        lines.append(f"{name} {' '.join(map(str, shape))}".rstrip())
    return "\n".join(lines) + "\n"


def unpack_keys(text: str) -> dict[str, tuple[int, ...]]:
    """Inverse of ``pack_keys``."""
    shapes = {}
    for line in text.splitlines():
        name, *shape = line.split()
        head, listed, tail = re.fullmatch(r"([^{]*)(?:\{([\d,-]+)\})?(.*)", name).groups()
        numbers = (listed or "").split(",")
        if "-" in numbers[0]:
            first, last = numbers[0].split("-")
            numbers = range(int(first), int(last) + 1)
        for number in numbers:
            shapes[f"{head}{number}{tail}"] = tuple(map(int, shape))
    return shapes


def _around_number(key: str) -> tuple[str, str, str]:
    """(before, number, after) of the first number in a key, number empty if there is none."""
    match = re.search(r"(?<=\.)\d+(?=\.)", key)
    return (key[: match.start()], match[0], key[match.end() :]) if match else (key, "", "")
