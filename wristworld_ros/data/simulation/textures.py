"""Procedural surface textures in two disjoint families: for training and held out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

TEXTURE_SIZE = 128
_Pattern = NDArray[np.float64]  # H x W x 1 or H x W x 3 in [0, 1]


def _pixel_grid() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.indices((TEXTURE_SIZE, TEXTURE_SIZE))
    return rows, columns


def _normalised(field: NDArray[np.float64]) -> NDArray[np.float64]:
    return (field - field.min()) / max(float(np.ptp(field)), 1e-9)


def _smooth_noise(
    rng: np.random.Generator, octaves: range, falloff: float = 0.7, stretch: int = 1
) -> NDArray[np.float64]:
    """Fractal value noise in [0, 1]; ``stretch`` > 1 draws it out along the columns."""
    field = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE))
    for octave in octaves:
        cells = 2**octave + 1
        coarse = rng.random((cells, max(2, cells // stretch))).astype(np.float32)
        image = Image.fromarray(coarse).resize(
            (TEXTURE_SIZE, TEXTURE_SIZE), Image.Resampling.BICUBIC
        )
        field += np.asarray(image, np.float64) / 2 ** (octave * falloff)
    return _normalised(field)


def _checker(rng: np.random.Generator) -> _Pattern:
    rows, columns = _pixel_grid()
    cell = int(rng.integers(8, 32))
    return ((rows // cell + columns // cell) % 2)[..., None].astype(np.float64)


def _stripes(rng: np.random.Generator) -> _Pattern:
    rows, _ = _pixel_grid()
    return (rows // int(rng.integers(4, 24)) % 2)[..., None].astype(np.float64)


def _clouds(rng: np.random.Generator) -> _Pattern:
    return _smooth_noise(rng, range(2, 7))[..., None]


def _colour_clouds(rng: np.random.Generator) -> _Pattern:
    return np.stack([_smooth_noise(rng, range(2, 7)) for _ in range(3)], axis=-1)


def _grain(rng: np.random.Generator) -> _Pattern:
    return _smooth_noise(rng, range(3, 8), falloff=0.4, stretch=8)[..., None]


def _plain(rng: np.random.Generator) -> _Pattern:
    return 0.15 * _smooth_noise(rng, range(1, 4))[..., None]


def _dots(rng: np.random.Generator) -> _Pattern:
    rows, columns = _pixel_grid()
    pitch = int(rng.integers(10, 28))
    radius = pitch * rng.uniform(0.2, 0.42)
    distance = np.hypot(rows % pitch - pitch / 2, columns % pitch - pitch / 2)
    return (distance < radius)[..., None].astype(np.float64)


def _rings(rng: np.random.Generator) -> _Pattern:
    rows, columns = _pixel_grid()
    centre = rng.uniform(-0.5, 0.5, 2) * TEXTURE_SIZE
    radius = np.hypot(rows - centre[0], columns - centre[1])
    bend = 12.0 * _smooth_noise(rng, range(1, 4))
    return (0.5 + 0.5 * np.sin((radius + bend) * rng.uniform(0.2, 0.6)))[..., None]


def _bricks(rng: np.random.Generator) -> _Pattern:
    rows, columns = _pixel_grid()
    height = int(rng.integers(10, 24))
    course = rows // height
    along = (columns + course % 2 * height) % (2 * height)
    mortar = (rows % height < 2) | (along < 2)
    return (1.0 - mortar)[..., None].astype(np.float64)


def _plaid(rng: np.random.Generator) -> _Pattern:
    rows, columns = _pixel_grid()
    frequencies = rng.uniform(0.1, 0.5, 2)
    weave = (np.sin(rows * frequencies[0]) > 0) * 0.5 + (np.sin(columns * frequencies[1]) > 0) * 0.5
    return weave[..., None]


def _random_colours(rng: np.random.Generator) -> NDArray[np.float64]:
    """Two colours (2 x 3) of random saturation: real rooms are duller than the RGB cube."""
    colours = rng.uniform(0.05, 1.0, (2, 3))
    grey = colours.mean(axis=1, keepdims=True)
    return grey + rng.uniform(0.1, 1.0) * (colours - grey)


_Family = tuple[Callable[[np.random.Generator], _Pattern], ...]
TRAIN_FAMILY: _Family = (_checker, _stripes, _clouds, _colour_clouds, _grain, _plain)
HELD_OUT_FAMILY: _Family = (_dots, _rings, _bricks, _plaid)


def random_texture(rng: np.random.Generator, *, held_out: bool = False) -> NDArray[np.uint8]:
    """Draw a texture, ``TEXTURE_SIZE`` x ``TEXTURE_SIZE`` x 3 uint8, from one family."""
    family = HELD_OUT_FAMILY if held_out else TRAIN_FAMILY
    pattern = family[int(rng.integers(len(family)))](rng)
    first, second = _random_colours(rng)
    image = first * pattern + second * (1 - pattern)
    image = image + rng.normal(0, 0.02, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)
