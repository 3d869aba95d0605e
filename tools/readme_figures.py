#!/usr/bin/env python3
"""Write the figures of README.md and of pages in docs from the results in docs/results/.

`make figures` measures everything again and then runs this. What stands between the markers
``<!-- figures: NAME -->`` and ``<!-- /figures -->`` is replaced; the rest of the page is kept.
``--check`` writes nothing and fails when the page does not say what the results say.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
README, CONFIDENCE = ROOT / "README.md", ROOT / "docs" / "confidence.md"
FINETUNE = ROOT / "docs" / "finetune.md"
GEOMETRY = {
    "true": "measured depth, calibration, kinematics",
    "robot": "calibration, kinematics, joint states and the robot's URDF",
    "kinematic": "calibration and kinematics",
    "calibrated": "camera calibration only",
    "estimated": "pictures only",
}
SPLITS = {
    "test-iid": "new scenes of the training kind",
    "test-objects": "new objects and textures",
    "test-cameras": "cameras at the side and behind",
    "test-mount": "wrist camera mounted elsewhere",
    "test-robot": "another robot (UR5e)",
    "test-all": "all of these at once",
}
#: Results of ``make calibrations``.
CALIBRATIONS = [f"calibration_{seed}" for seed in range(100_000, 100_004)]
#: Trivial pictures on the real recordings at 160 x 96 px: mean wrist image of other episodes, first
#: wrist frame copied, flat colour.
REAL_FLOORS = "mean wrist image of other episodes 12.3 / 0.40, first wrist frame copied 11.1 / 0.35"


def read(name: str) -> dict[str, Any]:
    """One result; an error says which command makes it."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        sys.exit(
            f"error: {path} is missing; `make figures`, `make station`, `make finetune` or `make "
            "calibrations` makes it."
        )
    return json.loads(path.read_text())


def row(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(str(c) for c in cells) + " |"


def score(scores: dict[str, float]) -> str:
    """PSNR / SSIM / LPIPS."""
    return f"{scores['psnr']:.1f} / {scores['ssim']:.2f} / {scores['lpips']:.2f}"


def iid() -> list[str]:
    """What the model makes of each kind of input, and what it has to beat."""
    document = read("test-iid")
    first, last = document["seeds"]
    steps = document["provenance"]["steps"]
    lines = [
        f"Simulation, split test-iid, {last - first} unseen episodes x "
        f"{document['frames_per_episode']} evenly spread frames, 3 anchors of 256 px, wrist "
        f"view of 128 px, {steps} denoising step{'s' * (steps > 1)}. PSNR [dB] / SSIM / LPIPS:",
        "",
        row("what is known", "generated", "inpainted splat, same geometry", "wrist pose, median"),
        row("---", "---", "---", "---"),
    ]
    for name, words in GEOMETRY.items():
        result = document["results"][name]
        pose = "known"
        if name in ("calibrated", "estimated"):
            pose = f"{result['pose_mm']['median']:.0f} mm / {result['pose_deg']['median']:.1f} deg"
        scores = result["scores"]
        lines.append(
            row(words, f"**{score(scores['generated'])}**", score(scores["splat_estimated"]), pose)
        )
    scores = document["results"]["true"]["scores"]
    trust = "; ".join(
        f"{words} {r['rank_correlation']:.2f} ({r['gap']:.2f})"
        for name, words in GEOMETRY.items()
        for r in [document["results"][name]["confidence"]]
    )
    lines += [
        "",
        f"Floors: cropped third-person view {score(scores['cropped_view'])}, mean wrist image "
        f"{score(scores['mean_image'])}, the one flat colour that fits best "
        f"{score(scores['flat_colour_oracle'])}.",
        "",
        "Confidence: its rank correlation with the error (and how far the stated share of right "
        f"pixels is off where anchors show them): {trust}.",
    ]
    return lines


def clips() -> list[str]:
    """The views as video."""
    document = read("clips")
    results = {n: r["clips"] for n, r in document["results"].items()}
    one = next(iter(results.values()))
    lines = [
        f"As video ({one['clips']} clips of 16 frames at 5 Hz, from {document['sequences']} of "
        "these episodes): Frechet video distance (I3D; to be compared between equally many clips "
        "only), and flicker, the mean difference of consecutive pictures [grey levels] once the "
        f"camera's motion is taken out; the true videos' is {one['flicker']['truth']:.1f}:",
        "",
        row("what is known", "FVD generated", "inpainted splat", "flicker generated", "splat"),
        row("---", "---", "---", "---", "---"),
    ]
    for name, words in GEOMETRY.items():
        if name in results:
            fvd, flicker = results[name]["fvd"], results[name]["flicker"]
            lines.append(
                row(
                    words,
                    f"**{fvd['generated']:.0f}**",
                    f"{fvd['splat_estimated']:.0f}",
                    f"**{flicker['generated']:.1f}**",
                    f"{flicker['splat_estimated']:.1f}",
                )
            )
    return lines


def stage1() -> list[str]:
    """Stage 1 alone: pose, depth, and what it says of itself."""
    document, fused = read("stage1"), read("fused")
    lines = [
        "Stage 1 alone, the same episodes (`wristworld evaluate stage1`): pose error median and "
        "90th percentile; depth error (AbsRel) over all pixels, and over those above the table; "
        "share of the drawn pixels whose depth is more than 5 % wrong, and near the wrist "
        "(< 12 cm):",
        "",
        row("what is known", "wrist pose", "depth", "drawn depth wrong", "pose inside 90 % bound"),
        row("---", "---", "---", "---", "---"),
    ]
    for name, words in list(GEOMETRY.items())[1:]:
        r = document["results"][name]
        pose = inside = "known"
        if name in ("calibrated", "estimated"):
            mm, deg = r["pose_mm"], r["pose_deg"]
            pose = (
                f"{mm['median']:.0f} ({mm['p90']:.0f}) mm / {deg['median']:.1f} "
                f"({deg['p90']:.1f}) deg"
            )
            bounds = r["pose_bounds"]
            inside = " / ".join(f"{bounds[k]['90%']:.0%}" for k in ("translation", "rotation"))
        depth, wrong = r["depth"], r["wrong_share"]
        lines.append(
            row(
                words,
                pose,
                f"{depth['all']['abs_rel']:.1%}, above {depth['above']['abs_rel']:.1%}",
                f"{wrong['all']:.0%}, near {wrong['near']:.0%}",
                inside,
            )
        )
    first, last = fused["seeds"]
    mount = fused["mount"]
    error, placing = mount["60"], fused["placing"]["30"]
    return [
        *lines,
        "",
        f"`fused` from a mount that is 20 mm / 4 deg off, after 60 frames ({last - first} "
        f"episodes): {error['mm']['median']:.1f} ({error['mm']['p90']:.1f}) mm / "
        f"{error['deg']['median']:.1f} ({error['deg']['p90']:.1f}) deg, "
        f"{error['inside']:.0%} inside the stated 90 % bound. Anchors without a pose "
        f"(`fused`, mount known to 2 mm / 0.5 deg): {placing['placed']:.0%} placed after 30 "
        f"frames, the wrist's pose in them then off by {placing['mm']['median']:.0f} "
        f"({placing['mm']['p90']:.0f}) mm / {placing['deg']['median']:.1f} "
        f"({placing['deg']['p90']:.1f}) deg.",
    ]


def station() -> list[str]:
    """The real station: how well the calibration predicts held-out recordings."""
    document = read("station")
    lines = [
        "`make station`, real recordings of one station (seven to calibrate on, two held out; "
        "320 x 192 px), reprojection error on the held-out ones, median (90th percentile):",
        "",
        row("held out", "camera", "tracks [px]", "outline of the arm [px]"),
        row("---", "---", "---", "---"),
    ]
    for name, wrist in document["wrist"]["held_out"].items():
        lines.append(row(name, "wrist", f"{wrist['median']:.2f} ({wrist['p90']:.2f})", ""))
        for camera, placed in document["held_out"][name].items():
            tracks, edge = placed["tracks"], placed["outline"]
            outline = f"{edge['median_px']:.2f} ({edge['p90_px']:.2f})" if edge else "-"
            cells = (name, camera, f"{tracks['median']:.2f} ({tracks['p90']:.2f})", outline)
            lines.append(row(*cells))
    found = []
    for end, words in (("", "from pictures alone"), ("_calibrated", "with known cameras")):
        documents = [read(f"station_{name}{end}") for name in document["wrist"]["held_out"]]
        poses = [next(iter(d["results"].values())) for d in documents]
        found.append(
            f"{words} "
            + " and ".join(
                f"{p['pose_mm']['median']:.0f} mm / {p['pose_deg']['median']:.0f} deg"
                for p in poses
            )
        )
    return [
        *lines,
        "",
        "Against this calibration the learned wrist pose of the shipped model, which has seen no "
        f"real picture, is off by (medians of the two recordings) {', '.join(found)}: of no use. "
        "The fixed cameras see 103 by 72 degrees from half a metre; those of the training scenes "
        "see 42 to 58 degrees from 0.75 m on.",
    ]


def calibrations() -> list[str]:
    """Simulated stations: how far calibrated cameras are from where they truly are."""
    off: dict[str, list[dict[str, float]]] = {"wrist": [], "fixed": []}
    stated: list[float] = []
    for name in CALIBRATIONS:
        document = read(name)
        (cameras,) = document["differences"].values()
        for camera, by in cameras.items():
            found = document["wrist"] if camera == "wrist" else document["fixed"][camera]
            sigma = sum(d * d for d in found["poses"][0]["deviation_m"]) ** 0.5
            stated.append(by["translation_m"] / sigma)
            off["wrist" if camera == "wrist" else "fixed"].append(by)

    def words(rows: list[dict[str, float]]) -> str:
        parts = []
        for key, unit, factor in (
            ("translation_m", "mm", 1e3), ("rotation_deg", "deg", 1), ("focal_percent", "%", 1),
        ):  # fmt: skip
            values = [factor * r[key] for r in rows]
            digits = 0 if unit == "mm" else 1
            parts.append(f"{median(values):.{digits}f} ({max(values):.{digits}f}) {unit}")
        return f"{parts[0]} / {parts[1]}, focal length {parts[2]}"

    return [
        f"`make calibrations`, {len(off['wrist'])} simulated stations whose hand looks around for "
        "40 s (wrist 256 x 192, fixed cameras 320 x 240 px), distance from the truth, median "
        f"(largest): wrist camera on the hand {words(off['wrist'])}; the "
        f"{len(off['fixed'])} fixed cameras {words(off['fixed'])}. In the mean these distances are "
        f"{(sum(r * r for r in stated) / len(stated)) ** 0.5:.1f} times the stated standard "
        "deviation.",
    ]


def splits() -> list[str]:
    """How much is lost away from the training distribution."""
    sizes = {name: read(name) for name in SPLITS}
    counts = {
        name: f"{d['seeds'][1] - d['seeds'][0]} episodes x {d['frames_per_episode']} frames"
        for name, d in sizes.items()
    }
    others = {words for name, words in counts.items() if name != "test-iid"}
    lines = [
        "The same with calibration, kinematics and URDF, away from what it was trained on; and the "
        "median error of the wrist pose when only the cameras' calibration is known "
        f"({' or '.join(sorted(others))}, test-iid {counts['test-iid']}; to be compared with the "
        "splat of the same row: the fewer frames, the more of them are the first and last of an "
        "episode, which are easier):",
        "",
        row("split", "", "generated", "inpainted splat", "learned pose"),
        row("---", "---", "---", "---", "---"),
    ]
    for name, words in SPLITS.items():
        results = read(name)["results"]
        scores, pose = results["robot"]["scores"], results["calibrated"]
        lines.append(
            row(
                name,
                words,
                score(scores["generated"]),
                score(scores["splat_estimated"]),
                f"{pose['pose_mm']['median']:.0f} mm / {pose['pose_deg']['median']:.1f} deg",
            )
        )
    return lines


def live() -> list[str]:
    """The demo: what the two nodes published."""
    m = read("demo")
    rate, latency = m["live"]["rate_hz"], m["live"]["latency_s"]
    dropped = ", ".join(f"{n} {cause}" for cause, n in m["frames"]["dropped"].items()) or "none"
    baselines = m["baselines"]
    hardware = m["provenance"]["hardware"]
    return [
        f"`make demo` ({m['title']}: calibration, joints and URDF known, depth estimated; through "
        f"the two ROS 2 nodes at the bag's own rate, {hardware['cores']} cores of "
        f"{hardware['cpu']}, no GPU): generated {score(m['generated'])}, inpainted splat with the "
        f"same geometry {score(baselines['splat_estimated'])}, with true geometry "
        f"{score(baselines['splat_true'])}. {rate:.1f} pictures per second, p50 "
        f"{latency['p50'] * 1e3:.0f} ms and p99 {latency['p99'] * 1e3:.0f} ms from the last anchor "
        f"image sent to the picture received; {m['frames']['in']} sets of images in, "
        f"{m['frames']['out']} pictures out, dropped: {dropped}.",
    ]


def runtime() -> list[str]:
    """The generator by every runtime."""
    document = read("runtime")
    settings, hardware = document["settings"], document["provenance"]["hardware"]
    lines = [
        f"One streamed frame, condition map in, picture out ({settings['steps']} denoising steps, "
        f"{settings['views']} anchors, {hardware['cores']} cores of {hardware['cpu']}; "
        "`wristworld bench runtime`, by turns in one run), and the denoiser alone:",
        "",
        row("runtime", "frame, p50", "times torch", "denoiser", "times torch"),
        row("---", "---", "---", "---", "---"),
    ]
    for name, frame in document["frame"].items():
        denoiser = document["networks"]["denoiser"][name]
        lines.append(
            row(
                name,
                f"{frame['p50_ms']:.0f} ms",
                f"{frame['ratio']:.1f}",
                f"{denoiser['ms']:.1f} ms",
                f"{denoiser['ratio']:.1f}",
            )
        )
    worst = min(f["psnr_db"] for f in document["frame"].values() if f["psnr_db"] is not None)
    return [*lines, "", f"The pictures are torch's to {worst:.0f} dB or better."]


def real() -> list[str]:
    """Real recordings, uncalibrated: how far it is from being of use there."""
    lines = [
        "Real recordings (DROID, two uncalibrated exterior views, no training on real pictures); "
        "PSNR [dB] / SSIM / LPIPS at 160 x 96 px or near:",
        "",
        row("episode", "generated", "inpainted splat", "mean image (of simulation)", "flat colour"),
        row("---", "---", "---", "---", "---"),
    ]
    for path in sorted(RESULTS.glob("real_*.json")):
        m = json.loads(path.read_text())
        b = m["baselines"]
        lines.append(
            row(
                m["title"],
                score(m["generated"]),
                score(b["splat_estimated"]),
                score(b["mean_image"]),
                score(b["flat_colour_oracle"]),
            )
        )
    lines += ["", f"Floors over these recordings (PSNR / SSIM): {REAL_FLOORS}."]
    return lines


def domain() -> list[str]:
    """How well pictures unlike those of training are told."""
    document = read("domain")
    lines = [
        f"{document['episodes']} episodes of each split, {document['frames_per_episode']} frames "
        "of each episode or recording; beyond: out of domain by the shipped limit; caught: beyond "
        "what 1 % or 5 % of the frames of test-iid exceed; AUC: how often a frame is farther than "
        "one of test-iid.",
        "",
        row("pictures", "", "distance, median", "beyond", "caught at 1 % / 5 %", "AUC"),
        row(*["---"] * 6),
    ]
    for name, r in document["results"].items():
        if name == "by_recording":
            continue
        words = SPLITS.get(name, f"{len(document['results']['by_recording'])} real recordings")
        caught = " / ".join(f"{share:.0%}" for share in r["caught"].values())
        cells = (f"{r['median']:.2f}", f"{r['beyond']:.0%}", caught, f"{r['auc']:.3f}")
        lines.append(row(name, words, *cells))
    return lines


def steps() -> list[str]:
    """Quality and time by the number of denoising steps."""
    document = read("steps")
    first, last = document["seeds"]
    hardware = document["provenance"]["hardware"]
    lines = [
        f"Split test-iid, {last - first} episodes x {document['frames_per_episode']} frames; PSNR "
        "[dB] / SSIM / LPIPS, and time of stage 2 for a frame, median, in torch on "
        f"{hardware['cores']} cores of {hardware['cpu']}:",
        "",
        row("steps", *(GEOMETRY[g] for g in document["results"]), "time"),
        row(*["---"] * (len(document["results"]) + 2)),
    ]
    results = [r["steps"] for r in document["results"].values()]
    for n in results[0]:
        seconds = median(r[n]["seconds"]["p50"] for r in results)
        lines.append(row(n, *(score(r[n]) for r in results), f"{seconds * 1e3:.0f} ms"))
    losses = ", ".join(
        f"{GEOMETRY[g]} {r['20']['psnr'] - r['2']['psnr']:.2f} dB"
        for g, r in zip(document["results"], results, strict=True)
    )
    return [*lines, "", f"PSNR that 2 steps lose against 20 (negative: they gain): {losses}."]


def finetune() -> list[str]:
    """The station model on held-out real recordings."""
    document = read("finetune")
    kinds = {
        "station": "station model",
        "mean_image": "mean image",
        "nearest_frame": "nearest training frame",
        "first_frame": "first frame",
        "flat_colour": "one colour",
    }
    hardware, trust = document["provenance"]["hardware"], document["confidence"]
    width, height = document["size"]
    lines = [
        f"`make finetune`, {len(document['trained_on'])} recordings of a real station "
        f"({document['training_frames']} moments), {document['minutes']:.0f} minutes on "
        f"{hardware['cores']} cores of {hardware['cpu']}; held-out recordings at {width} x "
        f"{height} px, PSNR [dB] / SSIM / LPIPS:",
        "",
        row("held out", "moments", *kinds.values()),
        row(*["---"] * (len(kinds) + 2)),
    ]
    frames = document["frames"]
    rows = [(n, frames[n], r) for n, r in document["results"].items()]
    for name, count, r in [*rows, ("all moments", sum(frames.values()), document["all"])]:
        lines.append(row(name, count, *(score(r[k]) for k in kinds)))
    return [
        *lines,
        "",
        f"Confidence: rank correlation with the error {trust['rank_correlation']:.2f}, the stated "
        f"share of right pixels is off by {trust['gap']:.2f}.",
    ]


PAGES = {
    README: {
        "iid": iid,
        "clips": clips,
        "stage1": stage1,
        "splits": splits,
        "live": live,
        "runtime": runtime,
        "real": real,
        "station": station,
        "calibrations": calibrations,
    },
    CONFIDENCE: {"domain": domain, "steps": steps},
    FINETUNE: {"finetune": finetune},
}


def filled(path: Path) -> str:
    """The page with all its sections replaced."""
    page = path.read_text()
    for name, make in PAGES[path].items():
        pattern = rf"(<!-- figures: {name} -->\n).*?(<!-- /figures -->)"
        text = "\n".join(make()) + "\n"
        page, count = re.subn(
            pattern, lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL
        )
        if count != 1:
            sys.exit(f"error: {path} has {count} sections '{name}'; need one.")
    return page


def main() -> int:
    """Write or check the pages."""
    for path in PAGES:
        new = filled(path)
        if "--check" not in sys.argv[1:]:
            path.write_text(new)
        elif new != path.read_text():
            print(f"error: {path.name} does not say what docs/results says: run "
                  "tools/readme_figures.py", file=sys.stderr)  # fmt: skip
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
