"""``wristworld evaluate``: scores over simulated splits, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from wristworld_ros.errors import InvalidInputError

HELP = "score stage 1 or both stages over a simulated split"
GEOMETRY = ("true", "kinematic", "calibrated", "estimated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("stage", choices=("stage1", "stage2"), help="stage2 includes stage 1")
    parser.add_argument("--split", required=True, help="val, test-iid, test-objects, ...")
    parser.add_argument("--seeds", required=True, metavar="A:B", help="episodes A to B-1")
    parser.add_argument(
        "--geometry",
        nargs="+",
        choices=GEOMETRY,
        default=list(GEOMETRY),
        help="what stage 1 is told: true depth and pose; camera calibration and kinematics; "
        "camera calibration; pictures only. Default: each in turn",
    )
    parser.add_argument("--anchors", type=int, metavar="N", help="third-person views, default all")
    parser.add_argument("--frames", type=int, default=6, help="frames per episode, default 6")
    parser.add_argument("--steps", type=int, default=1, help="denoising steps, default 1")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, default 0")
    parser.add_argument("--model", metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument("--no-lpips", action="store_true", help="leave out LPIPS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def parse_seeds(text: str) -> range:
    """``A:B`` -> range(A, B).

    Raises:
        InvalidInputError: not of that form, or empty.
    """
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise InvalidInputError(f"seeds '{text}': write them as A:B with A < B, e.g. 200000:200020")
    return range(int(first), int(last))


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write the JSON; returns 0."""
    seeds = parse_seeds(args.seeds)
    from wristworld_ros.evaluation.baselines import load_mean_image
    from wristworld_ros.evaluation.splits import evaluate_split
    from wristworld_ros.provenance import provenance
    from wristworld_ros.resources import model_dir
    from wristworld_ros.weights import read_config

    folder = Path(args.model) if args.model else model_dir("mini")
    mean = folder / "mean_wrist.png"
    results = evaluate_split(
        args.split,
        seeds,
        geometries=args.geometry,
        anchors=args.anchors,
        frames=args.frames,
        steps=args.steps,
        seed=args.seed,
        model=str(folder),
        generate=args.stage == "stage2",
        mean_image=load_mean_image(mean, 128, 128) if mean.exists() else None,
        lpips=not args.no_lpips,
    )
    print(table(results))
    if args.json:
        hashes = {
            part: read_config(folder / part)["sha256"]
            for part in ("stage1", "autoencoder", "stage2")
            if (folder / part).exists()
        }
        document = {
            "split": args.split,
            "seeds": [seeds.start, seeds.stop],
            "frames_per_episode": args.frames,
            "anchors": args.anchors,
            "results": results,
            "provenance": provenance(seed=args.seed, steps=args.steps, weights=hashes),
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def table(results: dict) -> str:
    """One line per geometry and picture."""
    lines = [f"{'geometry':<11} {'picture':<19} {'PSNR':>6} {'SSIM':>6} {'LPIPS':>6}  pose error"]
    for geometry, result in results.items():
        pose = f"{result['pose_mm']['median']:.0f} mm / {result['pose_deg']['median']:.1f} deg"
        for name, score in result["scores"].items():
            lines.append(
                f"{geometry:<11} {name:<19} {score['psnr']:6.2f} {score['ssim']:6.3f} "
                f"{score.get('lpips', float('nan')):6.3f}  {pose}"
            )
            pose = ""
    return "\n".join(lines)
