"""Pictures for people: tiles with labels, holes and confidence made visible."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from wristworld_ros.types import Image

Colour = tuple[int, int, int]
BACKGROUND: Colour = (17, 20, 26)
PANEL: Colour = (28, 33, 42)
TEXT: Colour = (232, 236, 242)
MUTED: Colour = (148, 158, 173)
GENERATED: Colour = (64, 200, 174)
IMAGINED: Colour = (240, 132, 60)
TRUE: Colour = (120, 170, 255)


@lru_cache(maxsize=32)
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, from matplotlib's own files."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def fit(image: Image, width: int, height: int) -> Image:
    """Scale into a box, keeping the aspect; the rest is panel colour."""
    h, w = image.shape[:2]
    scale = min(width / w, height / h)
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    out = np.empty((height, width, 3), np.uint8)
    out[:] = PANEL
    x, y = (width - size[0]) // 2, (height - size[1]) // 2
    out[y : y + size[1], x : x + size[0]] = cv2.resize(image, size, interpolation=kind)
    return out


def show_holes(image: Image, mask: NDArray[np.bool_], period: int = 8) -> Image:
    """A condition map whose holes are hatched: a hole is not a black object."""
    y, x = np.indices(mask.shape)
    hatch = ((x + y) // (period // 2)) % 2 == 0
    out = image.copy()
    out[~mask & hatch] = (58, 64, 76)
    out[~mask & ~hatch] = (40, 45, 55)
    return out


def show_imagined(image: Image, confidence: NDArray[np.floating]) -> Image:
    """The generated view with imagined pixels tinted, the more the less confident."""
    weight = 0.6 * (1 - np.clip(confidence, 0, 1))[..., None]
    return np.round(image * (1 - weight) + np.array(IMAGINED) * weight).astype(np.uint8)


def confidence_map(confidence: NDArray[np.floating]) -> Image:
    """Confidence from imagined (orange) over dark to measured (green)."""
    c = np.clip(confidence, 0, 1)[..., None]
    dark = np.array(PANEL, float)
    low = np.array(IMAGINED) * (1 - 2 * c) + dark * 2 * c
    high = dark * (2 - 2 * c) + np.array(GENERATED) * (2 * c - 1)
    return np.round(np.where(c < 0.5, low, high)).astype(np.uint8)


def error_map(a: Image, b: Image) -> Image:
    """Mean absolute difference of two pictures; 64 of 255 levels and more are brightest."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16)).mean(2)
    level = np.clip(difference * 4, 0, 255).astype(np.uint8)
    bgr = cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


class Canvas:
    """A picture to put tiles and text on."""

    def __init__(self, width: int, height: int) -> None:
        self._image = PILImage.new("RGB", (width, height), BACKGROUND)
        self._draw = ImageDraw.Draw(self._image)

    def tile(
        self,
        image: Image,
        x: int,
        y: int,
        width: int,
        height: int,
        label: str = "",
        colour: Colour = MUTED,
    ) -> None:
        """Place a picture, scaled into a box; its label stands above, in one line of 20 px."""
        self._image.paste(PILImage.fromarray(fit(image, width, height)), (x, y))
        if label:
            self.text(label, x, y - 21, 14, colour, width=width)

    def text(
        self,
        text: str,
        x: int,
        y: int,
        size: int = 15,
        colour: Colour = TEXT,
        *,
        bold: bool = False,
        width: int | None = None,
        anchor: str = "la",
    ) -> None:
        """Write one line; cut off with an ellipsis where it is wider than ``width``."""
        f = font(size, bold)
        if width is not None and f.getlength(text) > width:
            while text and f.getlength(text + "…") > width:
                text = text[:-1]
            text += "…"
        self._draw.text((x, y), text, colour, font=f, anchor=anchor)

    def bar(self, x: int, y: int, width: int, height: int, share: float, colour: Colour) -> None:
        """A share in [0, 1] as a bar."""
        self._draw.rounded_rectangle((x, y, x + width, y + height), height // 2, fill=PANEL)
        filled = round(width * float(np.clip(share, 0, 1)))
        if filled > height:
            box = (x, y, x + filled, y + height)
            self._draw.rounded_rectangle(box, height // 2, fill=colour)

    def line(self, x: int, y: int, width: int, colour: Colour = PANEL) -> None:
        """A horizontal rule."""
        self._draw.line((x, y, x + width, y), fill=colour, width=1)

    def table(
        self,
        rows: Sequence[Sequence[str]],
        x: int,
        y: int,
        columns: Sequence[int],
        *,
        highlight: int | None = None,
        size: int = 15,
    ) -> int:
        """Rows of text, the first as head; first column left, others right; returns the end y."""
        step = size + 9
        for i, row in enumerate(rows):
            colour = MUTED if i == 0 else GENERATED if i == highlight else TEXT
            left = x
            for j, (cell, width) in enumerate(zip(row, columns, strict=True)):
                at = left if j == 0 else left + width
                bold = i == highlight
                self.text(cell, at, y, size, colour, bold=bold, anchor="la" if j == 0 else "ra")
                left += width
            if i == 0:
                self.line(x, y + step - 5, sum(columns))
            y += step
        return y

    def array(self) -> Image:
        """The picture as H x W x 3 uint8."""
        return np.asarray(self._image, np.uint8).copy()
