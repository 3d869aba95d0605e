"""Layout of the video frame and of the contact sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.evaluation.drawing import (
    GENERATED,
    IMAGINED,
    MUTED,
    TRUE,
    Canvas,
    confidence_map,
    error_map,
    font,
    show_holes,
    show_imagined,
)
from wristworld_ros.types import Image

PAD, GAP, LABEL = 16, 10, 24
#: Heights of the large tiles and of the strip below them [px].
MAIN, STRIP, HEAD = 336, 132, 44
#: Largest width of a large tile [px]; wide pictures become less high instead.
MAIN_WIDTH = 440
#: Height of a tile of the contact sheet [px], and its rows.
SHEET_TILE, SHEET_ROWS = 150, 6


@dataclass(frozen=True)
class Panels:
    """What is shown of one moment.

    Attributes:
        seconds: since the first frame.
        anchors: camera name -> third-person picture.
        condition, mask: condition map, and where something was drawn.
        coverage: share of measured pixels, in [0, 1].
        generated, confidence: the generated view.
        truth: true wrist picture at the size of the generated one, or None.
        scores: metric -> value of the generated view, may be empty.
        reference: the same of the inpainted splat, may be empty.
        pose_error: mm and degrees, or None.
        source: where the wrist pose comes from.
    """

    seconds: float
    anchors: Mapping[str, Image]
    condition: Image
    mask: NDArray[np.bool_]
    coverage: float
    generated: Image
    confidence: NDArray[np.floating]
    truth: Image | None
    scores: Mapping[str, float]
    reference: Mapping[str, float]
    pose_error: tuple[float, float] | None
    source: str


def video_frame(panels: Panels, title: str, instruction: str) -> Image:
    """One frame: anchors left, condition map, generated view, true view; confidence below."""
    h, w = panels.generated.shape[:2]
    main_w = min(round(MAIN * w / h), MAIN_WIDTH)
    main_h = min(MAIN, round(main_w * h / w))
    columns = 1 if len(panels.anchors) <= 2 else 2
    rows = ceil(len(panels.anchors) / columns)
    tile_h = (main_h - (rows - 1) * (LABEL + 4)) // rows
    first = next(iter(panels.anchors.values()))
    tile_w = round(tile_h * first.shape[1] / first.shape[0])
    left_w = max(columns * tile_w + (columns - 1) * GAP, 270)
    tiles = 3 if panels.truth is not None else 2
    width = 2 * PAD + left_w + tiles * (main_w + GAP)
    width += width % 2
    height = HEAD + LABEL + main_h + LABEL + STRIP + 2 * PAD
    height += height % 2
    canvas = Canvas(width, height)
    canvas.text(title, PAD, 12, 19, bold=True)
    if instruction:
        start = round(PAD + 24 + font(19, True).getlength(title))
        canvas.text(f"“{instruction}”", start, 14, 16, MUTED, width=width - start - 120)
    canvas.text(f"t = {panels.seconds:.1f} s", width - PAD, 14, 16, MUTED, anchor="ra")
    top = HEAD + LABEL
    for i, (name, image) in enumerate(panels.anchors.items()):
        x = PAD + (i % columns) * (tile_w + GAP)
        y = top + (i // columns) * (tile_h + LABEL + 4)
        canvas.tile(image, x, y, tile_w, tile_h, name)
    x0 = PAD + left_w + GAP
    below = top + main_h + LABEL
    holes = show_holes(panels.condition, panels.mask)
    canvas.tile(holes, x0, top, main_w, main_h, "condition map (hatched: unseen)")
    x1 = x0 + main_w + GAP
    canvas.tile(panels.generated, x1, top, main_w, main_h, "generated wrist view", GENERATED)
    imagined = show_imagined(panels.generated, panels.confidence)
    half = (main_w - GAP) // 2
    canvas.tile(imagined, x0, below, half, STRIP, "imagined tinted", IMAGINED)
    _legend(canvas, panels, x0 + half + GAP, below, half)
    canvas.tile(confidence_map(panels.confidence), x1, below, main_w, STRIP, "confidence")
    if panels.truth is not None:
        x2 = x1 + main_w + GAP
        canvas.tile(panels.truth, x2, top, main_w, main_h, "true wrist view", TRUE)
        error = error_map(panels.generated, panels.truth)
        canvas.tile(error, x2, below, main_w, STRIP, "difference to the true view")
    _numbers(canvas, panels, PAD, below, left_w)
    return canvas.array()


def _legend(canvas: Canvas, panels: Panels, x: int, y: int, width: int) -> None:
    canvas.text(f"covered {panels.coverage:.0%}", x, y + 4, 15)
    canvas.bar(x, y + 28, width, 8, panels.coverage, GENERATED)
    imagined = float((panels.confidence < 0.5).mean())
    canvas.text(f"imagined {imagined:.0%}", x, y + 56, 15)
    canvas.bar(x, y + 80, width, 8, imagined, IMAGINED)
    canvas.text(f"pose: {panels.source}", x, y + 106, 15, MUTED, width=width)


def _numbers(canvas: Canvas, panels: Panels, x: int, y: int, width: int) -> None:
    if panels.scores:
        rows = [["", "PSNR dB", "SSIM", "LPIPS"], ["generated", *_cells(panels.scores)]]
        if panels.reference:
            rows.append(["inpainted splat", *_cells(panels.reference)])
        y = canvas.table(rows, x, y, (width - 200, 76, 58, 66), highlight=1, size=14)
    else:
        canvas.text("no true wrist view to compare with", x, y, 14, MUTED, width=width)
        y += 24
    if panels.pose_error is not None:
        mm, deg = panels.pose_error
        canvas.text(f"pose error {mm:.0f} mm, {deg:.1f}°", x, y + 10, 15, MUTED, width=width)


def _cells(scores: Mapping[str, float]) -> list[str]:
    return [
        f"{scores.get('psnr', np.nan):.1f}",
        f"{scores.get('ssim', np.nan):.2f}",
        f"{scores.get('lpips', np.nan):.2f}",
    ]


def contact_sheet(
    rows: Sequence[Panels], title: str, instruction: str, table: Sequence[Sequence[str]]
) -> Image:
    """Moments of an episode below one another, and the table of scores."""
    first = rows[0]
    columns: list[tuple[str, tuple[int, int, int]]] = [(n, MUTED) for n in first.anchors]
    columns += [("condition map", MUTED), ("generated", GENERATED), ("imagined tinted", IMAGINED)]
    if first.truth is not None:
        columns.append(("true wrist view", TRUE))
    widths = [round(SHEET_TILE * i.shape[1] / i.shape[0]) for i in first.anchors.values()]
    h, w = first.generated.shape[:2]
    widths += [round(SHEET_TILE * w / h)] * (len(columns) - len(widths))
    margin = 104
    table_columns = (250, *([104] * (len(table[0]) - 1))) if table else (0,)
    width = max(PAD * 2 + margin + sum(widths) + GAP * (len(widths) - 1), sum(table_columns) + 64)
    height = 84 + LABEL + len(rows) * (SHEET_TILE + GAP) + 24 * (len(table) + 1) + PAD
    canvas = Canvas(width, height)
    canvas.text(title, PAD, 14, 20, bold=True, width=width - 2 * PAD)
    canvas.text(f"“{instruction}”" if instruction else "", PAD, 44, 16, MUTED, width=width - PAD)
    y = 76
    x = PAD + margin
    for (label, colour), tile_w in zip(columns, widths, strict=True):
        canvas.text(label, x, y, 14, colour, width=tile_w)
        x += tile_w + GAP
    y += LABEL
    for panels in rows:
        canvas.text(f"{panels.seconds:.1f} s", PAD, y + 4, 16)
        if panels.scores:
            canvas.text(f"{panels.scores['psnr']:.1f} dB", PAD, y + 30, 15, GENERATED)
        canvas.text(f"{panels.coverage:.0%} seen", PAD, y + 54, 14, MUTED)
        tiles = [*panels.anchors.values(), show_holes(panels.condition, panels.mask)]
        tiles += [panels.generated, show_imagined(panels.generated, panels.confidence)]
        if panels.truth is not None:
            tiles.append(panels.truth)
        x = PAD + margin
        for tile, tile_w in zip(tiles, widths, strict=True):
            canvas.tile(tile, x, y, tile_w, SHEET_TILE)
            x += tile_w + GAP
        y += SHEET_TILE + GAP
    if table:
        canvas.table(table, PAD, y + 10, table_columns, highlight=1)
    return canvas.array()
