"""Best, median and worst clips beside the truth, and the worst frames with the reason for each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.baselines import inpainted_splat, mean_colour, true_condition
from wristworld_ros.evaluation.drawing import (
    GENERATED,
    MUTED,
    TRUE,
    Canvas,
    confidence_map,
    show_holes,
)
from wristworld_ros.evaluation.failure import Diagnosis, diagnose
from wristworld_ros.evaluation.metrics import pose_error_mm_deg, psnr
from wristworld_ros.evaluation.robots import simulated_robot
from wristworld_ros.evaluation.splits import in_first_anchor
from wristworld_ros.generation import Generator
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.types import Image

#: Frames of a clip, from the middle of the episode, and their duration when played [ms].
LENGTH, DURATION = 16, 200
#: Failures that are shown, at most one of a clip.
FAILURES = 6
TILE, GAP, HEAD = 128, 6, 22
RESULTS = "gallery.json"
KNOWN = {
    "true": "measured depth, calibration and kinematics",
    "robot": "calibration, kinematics and the robot's URDF",
    "kinematic": "calibration and kinematics",
    "calibrated": "calibration of the cameras",
    "estimated": "pictures only",
}


@dataclass(frozen=True)
class Moment:
    """One frame of a clip.

    Attributes:
        panels: label -> picture, in the order in which they are shown.
        psnr, splat_psnr: of the generated view and of the inpainted splat [dB].
        score, coverage: of the view.
        pose_error: mm and degrees.
        diagnosis: where the error lies.
    """

    panels: Mapping[str, Image]
    psnr: float
    splat_psnr: float
    score: float
    coverage: float
    pose_error: tuple[float, float]
    diagnosis: Diagnosis


@dataclass(frozen=True)
class Clip:
    """Consecutive frames of one episode with one kind of geometry."""

    seed: int
    geometry: str
    instruction: str
    moments: tuple[Moment, ...]

    @property
    def psnr(self) -> float:
        """Mean over the frames [dB]."""
        return float(np.mean([m.psnr for m in self.moments]))

    @property
    def splat_psnr(self) -> float:
        """The same of the inpainted splat."""
        return float(np.mean([m.splat_psnr for m in self.moments]))


def make_clips(
    split: str,
    seeds: Iterable[int],
    geometries: Sequence[str],
    *,
    seed: int = 0,
    length: int = LENGTH,
    model: str | None = None,
) -> list[Clip]:
    """A clip of every episode and geometry.

    Args:
        split, seeds: which simulated episodes.
        seed: of the noise; length: frames of a clip; model: folder of the weights.
    """
    reconstructor = Reconstructor.from_pretrained(model)
    generator = Generator.from_pretrained(model, seed=seed)
    clips = []
    for number in tqdm(sorted(seeds), desc="clips", unit="episode", mininterval=2.0):
        episode = simulate_episode(number, split)
        first = max(0, (len(episode) - length) // 2)
        chosen = range(first, min(first + length, len(episode)))
        for g in geometries:
            reconstructor.robot = simulated_robot(episode.robot) if g == "robot" else None
            generator.reset()
            moments = tuple(_moment(episode, t, g, reconstructor, generator) for t in chosen)
            clips.append(Clip(number, g, episode.instruction, moments))
    return clips


def _moment(
    episode: SimulatedEpisode,
    t: int,
    geometry: str,
    reconstructor: Reconstructor,
    generator: Generator,
) -> Moment:
    full = episode.anchor_frame(t, with_depth=True)
    frame = restrict(full, geometry)
    result = reconstructor(frame)
    view = generator(result.condition, frame)
    truth = episode.wrist_rgb[t]
    condition = result.condition
    true_map = true_condition(full, episode.T_world_wrist[t], episode.wrist_camera)
    assert true_map is not None
    error = pose_error_mm_deg(*in_first_anchor(episode, t, result))
    splat = inpainted_splat(condition.image, condition.mask, mean_colour(frame.views))
    return Moment(
        panels={
            f"anchor (1 of {len(frame.views)})": frame.views[0].image,
            "condition map": show_holes(condition.image, condition.mask),
            "generated": view.image,
            "confidence": confidence_map(view.confidence),
            "true": truth,
        },
        psnr=psnr(view.image, truth),
        splat_psnr=psnr(splat, truth),
        score=view.score,
        coverage=condition.coverage,
        pose_error=error,
        diagnosis=diagnose(view.image, truth, condition, true_map, episode.wrist_depth[t], error),
    )


def chosen_clips(clips: Sequence[Clip]) -> dict[str, Clip]:
    """``best``, ``median`` and ``worst`` by mean PSNR; of two in the middle the lower one.

    Raises:
        InvalidInputError: fewer than three.
    """
    if len(clips) < 3:
        raise InvalidInputError(f"{len(clips)} clips; best, median and worst need at least 3.")
    ranked = sorted(clips, key=lambda c: (c.psnr, c.seed))
    return {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}


def chosen_failures(clips: Iterable[Clip], count: int = FAILURES) -> list[tuple[Clip, int]]:
    """The frames of lowest PSNR, at most one of an episode: clip and index, the worst first."""
    worst: dict[int, tuple[float, Clip, int]] = {}
    for clip in clips:
        i = int(np.argmin([m.psnr for m in clip.moments]))
        found = (clip.moments[i].psnr, clip, i)
        if clip.seed not in worst or found[0] < worst[clip.seed][0]:
            worst[clip.seed] = found
    ranked = sorted(worst.values(), key=lambda f: (f[0], f[1].seed))
    return [(clip, i) for _, clip, i in ranked[:count]]


def strip(moment: Moment, head: bool = True, title: str = "") -> Image:
    """The panels of one moment beside one another.

    Args:
        head: with a label above each; title: that of the first one, in place of its own.
    """
    names = list(moment.panels)
    top = HEAD if head else 0
    canvas = Canvas(len(names) * (TILE + GAP) + GAP, TILE + top + 2 * GAP)
    colours = {"generated": GENERATED, "true": TRUE}
    for i, name in enumerate(names):
        x = GAP + i * (TILE + GAP)
        if head:
            label = title if title and i == 0 else name
            canvas.text(label, x, GAP, 13, colours.get(name, MUTED), width=TILE)
        canvas.tile(moment.panels[name], x, GAP + top, TILE, TILE)
    return canvas.array()


def write_gallery(
    clips: Sequence[Clip], out: Path, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Animations, sheets, failures and ``gallery.json`` in ``out``; returns the latter's content.

    Args:
        clips: of one or more kinds of geometry, three or more of each.
    """
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.webp"):
        old.unlink()
    frames = max(len(c.moments) for c in clips)
    document: dict[str, Any] = {"frames": frames, "clips": {}, "failures": []}
    for geometry in dict.fromkeys(c.geometry for c in clips):
        own = [c for c in clips if c.geometry == geometry]
        chosen = chosen_clips(own)
        sheet = f"{geometry}.webp"
        entries: dict[str, Any] = {"of": len(own), "sheet": sheet}
        document["clips"][geometry] = entries
        rows: list[Image] = []
        for rank, clip in chosen.items():
            name = f"{geometry}_{rank}.webp"
            _animate([strip(m) for m in clip.moments], out / name)
            last = len(clip.moments) - 1
            rows.append(strip(clip.moments[0], title=f"{rank}: {clip.seed}"))
            rows += [strip(clip.moments[i], head=False) for i in (last // 2, last)]
            entries[rank] = {
                "file": name,
                "episode": clip.seed,
                "instruction": clip.instruction,
                "psnr": clip.psnr,
                "splat_psnr": clip.splat_psnr,
                "score": float(np.mean([m.score for m in clip.moments])),
                "coverage": float(np.mean([m.coverage for m in clip.moments])),
            }
        _save(np.concatenate(rows), out / sheet)
    for clip, i in chosen_failures(clips):
        moment = clip.moments[i]
        name = f"failure_{len(document['failures']) + 1}.webp"
        _save(strip(moment), out / name)
        document["failures"].append(
            {
                "file": name,
                "episode": clip.seed,
                "geometry": clip.geometry,
                "frame_of_clip": i,
                "psnr": moment.psnr,
                "splat_psnr": moment.splat_psnr,
                "score": moment.score,
                "coverage": moment.coverage,
                "pose_mm": moment.pose_error[0],
                "pose_deg": moment.pose_error[1],
                "shift_px": moment.diagnosis.shift_px,
                "cause": moment.diagnosis.cause,
                "shares": dict(moment.diagnosis.shares),
                "reason": moment.diagnosis.text,
            }
        )
    document["provenance"] = dict(provenance)
    (out / RESULTS).write_text(json.dumps(document, indent=1) + "\n")
    return document


def gallery_page(document: Mapping[str, Any], folder: str) -> str:
    """The page (Markdown) that shows a gallery.

    Args:
        document: content of ``gallery.json``; folder: where its pictures are, from the page on.
    """
    lines = [
        "# Gallery",
        "",
        f"Written by `{document['provenance']['command']}`, like the pictures. Clips are "
        f"{document['frames']} frames from the middle of each episode, chosen by the mean PSNR of "
        "the generated view; nothing is chosen by hand. From left to right: a third-person view, "
        "the condition map (hatched: nothing known), the generated view, its confidence (green: "
        "measured and right, orange: imagined), and the true view.",
    ]
    for geometry, entries in document["clips"].items():
        lines += ["", f"## Known: {KNOWN[geometry]}", ""]
        for rank in ("best", "median", "worst"):
            e = entries[rank]
            lines += [
                f"**{rank.capitalize()}** of {entries['of']}: episode {e['episode']}, "
                f"“{e['instruction']}”, {e['psnr']:.1f} dB (inpainted splat "
                f"{e['splat_psnr']:.1f}), {e['coverage']:.0%} of the view seen, expected share of "
                f"right pixels {e['score']:.0%}.",
                "",
                f"![{rank} clip]({folder}/{e['file']})",
                "",
            ]
        lines += [
            f"First, middle and last frame of each: [{entries['sheet']}]"
            f"({folder}/{entries['sheet']}).",
        ]
    lines += [
        "",
        "## Failures",
        "",
        "The frames of lowest PSNR of all these clips, at most one of an episode. The reason is "
        "measured: every pixel's squared error is counted for what was known there "
        "(`evaluation/failure.py`), and the cause with the largest share is named.",
    ]
    for f in document["failures"]:
        others = ", ".join(
            f"{cause.replace('_', ' ')} {share:.0%}"
            for cause, share in sorted(f["shares"].items(), key=lambda s: -s[1])
            if cause != f["cause"] and share >= 0.05
        )
        lines += [
            "",
            f"![failure]({folder}/{f['file']})",
            "",
            f"Episode {f['episode']}, known: {KNOWN[f['geometry']]}; {f['psnr']:.1f} dB (inpainted "
            f"splat {f['splat_psnr']:.1f}), expected share of right pixels {f['score']:.0%}. "
            f"**{f['reason'][0].upper()}{f['reason'][1:]}.** Other causes: {others or 'none'}. "
            f"{f['coverage']:.0%} of the view seen, pose off by {f['pose_mm']:.0f} mm and "
            f"{f['pose_deg']:.1f} degrees ({f['shift_px']:.1f} px).",
        ]
    return "\n".join(lines) + "\n"


def _animate(frames: Sequence[Image], path: Path) -> None:
    first, *rest = (PILImage.fromarray(f) for f in frames)
    first.save(
        path, save_all=True, append_images=rest, duration=DURATION, loop=0, quality=60, method=4
    )


def _save(image: Image, path: Path) -> None:
    PILImage.fromarray(image).save(path, quality=85, method=4)
