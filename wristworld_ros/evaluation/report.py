"""What came out of one episode: metrics.json, contact_sheet.png, virtual_wrist.mp4 and a table."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wristworld_ros.data.frames import WristTruth
from wristworld_ros.evaluation.baselines import (
    copied_view,
    cropped_view,
    flat_colour,
    inpainted_splat,
    mean_colour,
)
from wristworld_ros.evaluation.layout import SHEET_ROWS, Panels, contact_sheet, video_frame
from wristworld_ros.evaluation.metrics import fit_truth, pose_error_mm_deg
from wristworld_ros.evaluation.reliability import Reliability, ViewScores
from wristworld_ros.evaluation.scores import Means, percentiles, regions, score_frame, spread
from wristworld_ros.evaluation.video import VideoWriter
from wristworld_ros.provenance import provenance
from wristworld_ros.types import AnchorFrame, ConditionMap, FloatArray, Image

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BASELINES", "EpisodeReport", "format_table", "provenance"]

#: Baselines in the order of the table, and what they are.
BASELINES: Mapping[str, str] = {
    "splat_estimated": "inpainted splat, estimated geometry",
    "splat_true": "inpainted splat, true geometry",
    "copied_view": "copied third-person view",
    "cropped_view": "cropped third-person view",
    "mean_image": "mean wrist image (of training)",
    "flat_colour": "flat colour (of the mean image)",
    "flat_colour_oracle": "flat colour (of the true view)",
    "first_true": "first true view copied",
    "previous_true": "previous true view copied",
}
GENERATED = "generated"
_HEAD = ("", "PSNR dB", "SSIM", "LPIPS", "covered", "holes", "near", "far")
_METRICS = ("psnr", "ssim", "lpips", "psnr_covered", "psnr_holes", "psnr_near", "psnr_far")


class EpisodeReport:
    """Collects the frames of one episode, scores them, and writes the results.

    The video is written while frames come in; scores are kept as numbers, and a few moments for
    the sheet, so that memory does not grow with the length.

    Args:
        out: folder for the results; made if missing.
        title: name of the episode.
        mean_image: mean wrist picture of the training data, any size, or None (no such baseline).
        provenance: goes into metrics.json as it is.
        with_lpips: also LPIPS (needs its weights).
        note: remark for the heading, e.g. what kind of calibration there is.
    """

    def __init__(
        self,
        out: str | Path,
        title: str,
        *,
        mean_image: Image | None = None,
        provenance: Mapping[str, Any] | None = None,
        with_lpips: bool = True,
        note: str = "",
    ) -> None:
        self.out = Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.title = title
        self._heading = f"{title}  ·  {note}" if note else title
        self._mean_image = mean_image
        self._provenance = dict(provenance or {})
        self._with_lpips = with_lpips
        self._video = VideoWriter(self.out / "virtual_wrist.mp4")
        self._means = Means()
        self._trust, self._view_scores = Reliability(), ViewScores()
        self._values: dict[str, list[float]] = defaultdict(list)
        self._latency: dict[str, list[float]] = defaultdict(list)
        self._sources: dict[str, int] = defaultdict(int)
        self._psnr: list[float | None] = []
        self._panels: list[Panels] = []
        self._stride = 1
        self._first_stamp: int | None = None
        self._last_stamp = 0
        self._instruction = ""
        self._first_truth: Image | None = None
        self._previous_truth: Image | None = None
        self._saved: dict[str, Any] | None = None
        self.frames = 0

    def add(
        self,
        frame: AnchorFrame,
        condition: ConditionMap,
        image: Image,
        confidence: NDArray[np.floating],
        *,
        T_world_wrist: FloatArray | None = None,
        source: str = "",
        truth: WristTruth | None = None,
        true_map: ConditionMap | None = None,
        latency: Mapping[str, float] | None = None,
        score: float = float("nan"),
        domain_distance: float = float("nan"),
    ) -> dict[str, dict[str, float]]:
        """Take in one moment.

        Args:
            frame: the anchors.
            condition: the estimated condition map.
            image, confidence: the generated view and its confidence.
            T_world_wrist: the estimated pose, in the same world as the truth's; or None.
            source: where that pose comes from.
            truth: the true wrist view, for the scores, or None.
            true_map: condition map from true geometry, or None.
            latency: stage -> seconds.
            score, domain_distance: of ``WristFrame`` and ``WristEstimate``; NaN where unknown.

        Returns:
            Scores of this frame (``score_frame``), empty without truth.
        """
        if self._first_stamp is None:
            self._first_stamp = frame.stamp_ns
        self._last_stamp = frame.stamp_ns
        self._instruction = frame.instruction or self._instruction
        self._values["coverage"].append(condition.coverage)
        self._values["imagined_fraction"].append(float((confidence < 0.5).mean()))
        self._values["score"].append(score)
        self._values["domain_distance"].append(domain_distance)
        self._sources[source or "unknown"] += 1
        for stage, seconds in (latency or {}).items():
            self._latency[stage].append(seconds)
        if latency:
            self._latency["total"].append(sum(latency.values()))
        error = None
        if truth is not None and truth.T_world_camera is not None and T_world_wrist is not None:
            error = pose_error_mm_deg(T_world_wrist, truth.T_world_camera)
            self._values["pose_mm"].append(error[0])
            self._values["pose_deg"].append(error[1])
        scores: dict[str, dict[str, float]] = {}
        true_image = None
        if truth is not None:
            h, w = image.shape[:2]
            true_image = fit_truth(truth.image, w, h)
            scores = self._score(
                frame, condition, image, confidence, true_image, T_world_wrist, true_map
            )
            self._means.add(scores)
            self._trust.add(confidence, image, true_image)
            if np.isfinite(score):
                self._view_scores.add(score, image, true_image, scores[GENERATED])
        self._psnr.append(scores[GENERATED]["psnr"] if scores else None)
        panels = Panels(
            seconds=(frame.stamp_ns - self._first_stamp) / 1e9,
            anchors={v.name: v.image for v in frame.views},
            condition=condition.image,
            mask=condition.mask,
            coverage=condition.coverage,
            generated=image,
            confidence=confidence,
            truth=true_image,
            scores=scores.get(GENERATED, {}),
            reference=scores.get("splat_estimated", {}),
            pose_error=error,
            source=source or "unknown",
        )
        self._video.add(video_frame(panels, self._heading, self._instruction), frame.stamp_ns)
        self._remember(panels)
        self.frames += 1
        return scores

    def _score(
        self,
        frame: AnchorFrame,
        condition: ConditionMap,
        image: Image,
        confidence: NDArray[np.floating],
        truth: Image,
        T_world_wrist: FloatArray | None,
        true_map: ConditionMap | None,
    ) -> dict[str, dict[str, float]]:
        h, w = image.shape[:2]
        mean = mean_colour(frame.views)
        pictures = {
            GENERATED: image,
            "splat_estimated": inpainted_splat(condition.image, condition.mask, mean),
            "copied_view": copied_view(frame.views[0], w, h),
            "cropped_view": cropped_view(frame.views[0], w, h, T_world_wrist),
            "flat_colour_oracle": flat_colour(truth),
        }
        depth = condition.depth
        if true_map is not None and true_map.image.shape == image.shape:
            pictures["splat_true"] = inpainted_splat(true_map.image, true_map.mask, mean)
            depth = true_map.depth
        if self._mean_image is not None:
            pictures["mean_image"] = fit_truth(self._mean_image, w, h)
            pictures["flat_colour"] = flat_colour(pictures["mean_image"])
        if self._first_truth is not None and self._previous_truth is not None:
            pictures["first_true"] = self._first_truth
            pictures["previous_true"] = self._previous_truth
        else:
            self._first_truth = truth
        self._previous_truth = truth
        parts = regions(condition.mask, depth, confidence)
        return score_frame(pictures, truth, parts, with_lpips=self._with_lpips)

    def _remember(self, panels: Panels) -> None:
        """Keep every n-th moment, with n growing so that there are never many."""
        if self.frames % self._stride == 0:
            self._panels.append(panels)
        if len(self._panels) >= 4 * SHEET_ROWS:
            self._panels = self._panels[::2]
            self._stride *= 2

    # --- results ----------------------------------------------------------------------------------

    def metrics(self, **more: Any) -> dict[str, Any]:
        """The content of metrics.json; ``more`` is added at the top level."""
        scores = self._means.summary()
        seconds = (self._last_stamp - (self._first_stamp or 0)) / 1e9
        pose = None
        if self._values["pose_mm"]:
            pose = {
                "mm": spread(self._values["pose_mm"]),
                "deg": spread(self._values["pose_deg"]),
            }
        return {
            "title": self.title,
            "instruction": self._instruction,
            "frames_out": self.frames,
            "seconds": seconds,
            "generated": scores.get(GENERATED),
            "baselines": {name: scores[name] for name in BASELINES if name in scores},
            "coverage": spread(self._values["coverage"]),
            "imagined_fraction": spread(self._values["imagined_fraction"]),
            "score": spread(self._values["score"]),
            "domain_distance": spread(self._values["domain_distance"]),
            "confidence": self._trust.summary() if scores else None,
            "view_score": self._view_scores.summary() if len(self._view_scores) else None,
            "pose_error": pose,
            "pose_source": dict(self._sources),
            "latency_s": {k: percentiles(v) for k, v in self._latency.items()},
            "psnr_per_frame": [None if p is None else round(p, 3) for p in self._psnr],
            **more,
            "provenance": self._provenance,
        }

    def table(self) -> list[list[str]]:
        """Scores of the generated view and of the baselines, as text; empty without truth."""
        scores = self._means.summary()
        if GENERATED not in scores:
            return []
        names = {GENERATED: "generated wrist view", **BASELINES}
        rows = [list(_HEAD)]
        for name, label in names.items():
            if name in scores:
                rows.append([label, *(_cell(m, scores[name]) for m in _METRICS)])
        return rows

    def summary_text(self) -> str:
        """Frames, coverage, pose error, speed and drops, in a few lines."""
        m = self._saved or self.metrics()
        lines = [f"{self._heading}: {self.frames} frames, {m['seconds']:.1f} s"]
        if m["coverage"]:
            sources = ", ".join(f"{k} {n}" for k, n in m["pose_source"].items())
            lines.append(
                f"covered {m['coverage']['mean']:.1%}, "
                f"imagined {m['imagined_fraction']['mean']:.1%}"
                f", wrist pose: {sources}"
            )
        if m["score"]:
            line = f"expected share of right pixels {m['score']['mean']:.0%}"
            if m["domain_distance"]:
                line += f", distance from training pictures {m['domain_distance']['median']:.2f}"
            lines.append(line)
        refused = m.get("frames", {}).get("frames_refused", {})
        if refused:
            lines.append("views refused: " + ", ".join(f"{k} {n}" for k, n in refused.items()))
        doubted = m.get("frames", {}).get("frames_doubted", {})
        if doubted:
            lines.append("not to rely on: " + ", ".join(f"{k} {n}" for k, n in doubted.items()))
        if m["pose_error"]:
            mm, deg = m["pose_error"]["mm"], m["pose_error"]["deg"]
            lines.append(
                f"pose error median {mm['median']:.1f} mm, {deg['median']:.2f} deg; "
                f"largest {mm['max']:.1f} mm, {deg['max']:.2f} deg"
            )
        total = m["latency_s"].get("total")
        if total:
            lines.append(
                f"time per frame p50 {total['p50'] * 1e3:.0f} ms, p99 {total['p99'] * 1e3:.0f} ms"
            )
        dropped = {k: n for k, n in m.get("frames", {}).get("images_dropped", {}).items() if n}
        if dropped:
            lines.append("images dropped: " + ", ".join(f"{k} {n}" for k, n in dropped.items()))
        lines += [f"damage: {d}" for d in m.get("damage", [])]
        return "\n".join(lines)

    def save(self, **more: Any) -> dict[str, Any]:
        """Write metrics.json, contact_sheet.png and the end of the video; returns the metrics."""
        metrics = self._saved = self.metrics(**more)
        if self._panels:
            chosen = np.linspace(0, len(self._panels) - 1, min(SHEET_ROWS, len(self._panels)))
            rows = [self._panels[i] for i in np.unique(np.round(chosen).astype(int))]
            sheet = contact_sheet(rows, self._heading, self._instruction, self.table())
            bgr = cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR)
            cv2.imwrite(str(self.out / "contact_sheet.png"), bgr)
        self._video.close()
        partial = self.out / "metrics.json.partial"
        partial.write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")
        partial.replace(self.out / "metrics.json")
        return metrics

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._video.abort()


def _cell(metric: str, scores: Mapping[str, float]) -> str:
    value = scores.get(metric)
    if value is None:
        return "–"
    return f"{value:.1f}" if metric.startswith("psnr") else f"{value:.3f}"


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned text, the first one underlined."""
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)
