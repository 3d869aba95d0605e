"""``wristworld evaluate``: scores over simulated splits, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from wristworld_ros.errors import InvalidInputError

HELP = "score stage 1, both stages, or the test of what is out of domain"
GEOMETRY = ("true", "robot", "kinematic", "calibrated", "estimated")
SOURCES = ("auto", "kinematic", "learned", "fused")
#: Episodes that are scored when no seeds are named.
EPISODES = 20
#: Of these, how many have stage 1 scored on every frame.
SEQUENCES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument(
        "stage",
        choices=("stage1", "stage2", "domain"),
        help="stage2 includes stage 1; domain: how well stage 1 tells pictures unlike those of "
        "training, over all test splits",
    )
    parser.add_argument("--split", help="val, test-iid, test-objects, ...; domain: only this")
    parser.add_argument(
        "--seeds", metavar="A:B", help=f"episodes A to B-1; default: the split's first {EPISODES}"
    )
    parser.add_argument(
        "--geometry",
        nargs="+",
        choices=GEOMETRY,
        help="what stage 1 is told: true depth and pose; camera calibration, kinematics and the "
        "robot's description; without the description; camera calibration; pictures only. "
        "Default: each in turn (stage1: without 'true')",
    )
    parser.add_argument("--anchors", type=int, metavar="N", help="third-person views, default all")
    parser.add_argument("--frames", type=int, default=6, help="frames per episode, default 6")
    parser.add_argument(
        "--sequences",
        type=int,
        metavar="N",
        help="every frame of this many episodes is scored too, in order: steadiness of stage 1 "
        "(default 3), Frechet video distance and flicker of stage 2 (default 0)",
    )
    parser.add_argument("--model", metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    parser.add_argument(
        "--bag", type=Path, help="in place of --split: a recording, scored by what it knows"
    )
    one = parser.add_argument_group("stage1")
    one.add_argument(
        "--source",
        choices=SOURCES,
        help="in place of --geometry: where the wrist pose comes from; 'fused' starts from a mount "
        "that is 20 mm / 4 deg off",
    )
    one.add_argument(
        "--calibrated",
        action="store_true",
        help="with --source: intrinsics and extrinsics of the anchors are known",
    )
    two = parser.add_argument_group("stage2")
    two.add_argument(
        "--steps",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="denoising steps, default 1; with several a table of quality and time",
    )
    two.add_argument("--seed", type=int, default=0, help="of the noise, default 0")
    two.add_argument("--no-lpips", action="store_true", help="leave out LPIPS")
    three = parser.add_argument_group("domain")
    three.add_argument(
        "--recordings",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="real ones, as `wristworld import` takes them",
    )
    three.add_argument(
        "--episodes", type=int, default=10, metavar="N", help="of every split, default 10"
    )


def parse_seeds(text: str) -> range:
    """``A:B`` -> range(A, B).

    Raises:
        InvalidInputError: not of that form, or empty.
    """
    first, _, last = text.partition(":")
    if not (first.isdigit() and last.isdigit() and int(first) < int(last)):
        raise InvalidInputError(f"seeds '{text}': write them as A:B with A < B, e.g. 200000:200020")
    return range(int(first), int(last))


def split_seeds(split: str, text: str | None) -> range:
    """Episodes of a split: those of ``A:B``, else its first ``EPISODES``.

    Raises:
        InvalidInputError: no such split, or seeds that are not its own.
    """
    from wristworld_ros.data.simulation.splits import get_split

    known = get_split(split)
    if text is None:
        return range(known.first_seed, known.first_seed + EPISODES)
    seeds = parse_seeds(text)
    for seed in (seeds[0], seeds[-1]):
        known.check_seed(seed)
    return seeds


def run(args: argparse.Namespace) -> int:
    """Evaluate, print a table, write the JSON; returns 0.

    Raises:
        InvalidInputError: options that do not go together.
    """
    if args.stage == "domain":
        document = _domain(args)
    else:
        _check(args)
        document = _stage1(args) if args.stage == "stage1" else _stage2(args)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    if (args.bag is None) == (args.split is None):
        raise InvalidInputError("name either a simulated split (--split) or a recording (--bag).")
    if args.stage == "stage2" and (args.source or args.calibrated):
        raise InvalidInputError(
            "--source and --calibrated are for stage1; stage2 takes --geometry, or of a recording "
            "what it knows."
        )
    if min(args.steps) < 1 or len(set(args.steps)) < len(args.steps):
        raise InvalidInputError(f"--steps {args.steps}: need different numbers of at least 1.")
    if args.geometry and (args.source or args.calibrated or args.bag):
        raise InvalidInputError("give --geometry, or --source and --calibrated, not both.")


def _folder(args: argparse.Namespace) -> Path:
    from wristworld_ros.resources import model_dir

    return Path(args.model) if args.model else model_dir("mini")


def _domain(args: argparse.Namespace) -> dict[str, Any]:
    from wristworld_ros.evaluation.domain import TESTS, domain_table, evaluate_domain

    folder = _folder(args)
    results = evaluate_domain(
        args.recordings,
        episodes=args.episodes,
        frames=args.frames,
        splits=[args.split] if args.split else TESTS,
        model=str(folder),
    )
    print(domain_table(results))
    record = {"episodes": args.episodes, "frames_per_episode": args.frames, "results": results}
    return {**record, "provenance": _provenance(folder, ("stage1", "domain"))}


def _stage1(args: argparse.Namespace) -> dict[str, Any]:
    from wristworld_ros.evaluation.stage1 import evaluate_stage1, evaluate_stage1_bag, kind_of
    from wristworld_ros.weights import STAGE1_PARTS

    folder = _folder(args)
    sequences = SEQUENCES if args.sequences is None else args.sequences
    record = {"anchors": args.anchors}
    if args.bag:
        source = args.source or "auto"
        scored = evaluate_stage1_bag(
            args.bag,
            source=source,
            calibrated=args.calibrated,
            anchors=args.anchors,
            model=str(folder),
        )
        record |= {"bag": args.bag.name, **scored}
    else:
        seeds = split_seeds(args.split, args.seeds)
        kinds = args.geometry or GEOMETRY[1:]
        if args.source or args.calibrated:
            kinds = [kind_of(args.source or "auto", args.calibrated)]
        results = evaluate_stage1(
            args.split,
            seeds,
            kinds=kinds,
            anchors=args.anchors,
            frames=args.frames,
            sequences=sequences,
            model=str(folder),
        )
        record |= {
            "split": args.split,
            "seeds": [seeds.start, seeds.stop],
            "frames_per_episode": args.frames,
            "sequences": sequences,
            "results": results,
        }
        if kinds == ["fused"]:
            from wristworld_ros.evaluation.fusion import evaluate_fusion, evaluate_placing

            record["mount"] = evaluate_fusion(
                args.split, seeds, anchors=args.anchors, model=str(folder)
            )
            record["placing"] = evaluate_placing(
                args.split, seeds, anchors=args.anchors, model=str(folder)
            )
    print(stage1_table(record["results"]))
    if "mount" in record:
        print(mount_table(record["mount"]))
        print(placing_table(record["placing"]))
    for name, why in record.get("unscored", {}).items():
        print(f"not scored: {name}: {why}")
    return {**record, "provenance": _provenance(folder, STAGE1_PARTS)}


def _stage2(args: argparse.Namespace) -> dict[str, Any]:
    from wristworld_ros.evaluation.baselines import load_mean_image
    from wristworld_ros.evaluation.splits import evaluate_split
    from wristworld_ros.weights import STAGE1_PARTS, STAGE2_PARTS

    folder = _folder(args)
    if args.bag:
        return _stage2_bag(args, folder)
    seeds = split_seeds(args.split, args.seeds)
    mean = folder / "mean_wrist.png"
    settings = {
        "geometries": args.geometry or GEOMETRY,
        "anchors": args.anchors,
        "steps": args.steps,
        "seed": args.seed,
        "model": str(folder),
    }
    results = evaluate_split(
        args.split,
        seeds,
        frames=args.frames,
        mean_image=load_mean_image(mean, 128, 128) if mean.exists() else None,
        lpips=not args.no_lpips,
        **settings,
    )
    if args.sequences:
        from wristworld_ros.evaluation.clips import evaluate_clips

        settings["steps"] = args.steps[0]
        for geometry, scores in evaluate_clips(
            args.split, seeds[: args.sequences], **settings
        ).items():
            results[geometry]["clips"] = scores
    print(table(results))
    return {
        "split": args.split,
        "seeds": [seeds.start, seeds.stop],
        "frames_per_episode": args.frames,
        "sequences": args.sequences or 0,
        "anchors": args.anchors,
        "results": results,
        "provenance": _provenance(
            folder,
            (*STAGE1_PARTS, *STAGE2_PARTS),
            seed=args.seed,
            steps=args.steps[0],
        ),
    }


def _stage2_bag(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A recording by `wristworld run`, of which the scores are kept."""
    import tempfile

    from wristworld_ros.data.bags import BagReader
    from wristworld_ros.data.frames import find_cameras
    from wristworld_ros.evaluation.bag_run import RunOptions, run_bag
    from wristworld_ros.evaluation.report import format_table

    if len(args.steps) > 1 or args.seeds or args.sequences:
        raise InvalidInputError("--bag takes one number of --steps, no --seeds, no --sequences.")
    cameras = None
    if args.anchors is not None:
        with BagReader(args.bag) as bag:
            known = list(find_cameras(bag, None))
        if not 1 <= args.anchors <= len(known):
            raise InvalidInputError(f"{args.anchors} anchors; the bag has {len(known)}.")
        cameras = known[: args.anchors]
    options = RunOptions(
        cameras=cameras,
        steps=args.steps[0],
        seed=args.seed,
        model=folder,
        lpips=not args.no_lpips,
    )
    with tempfile.TemporaryDirectory() as out:
        report = run_bag(args.bag, out, options)
        metrics = json.loads((Path(out) / "metrics.json").read_text())
    print(report.summary_text())
    print(format_table(report.table()) or "no true wrist view in the bag: nothing to compare with")
    return {"bag": args.bag.name, "anchors": args.anchors, **metrics}


def _provenance(folder: Path, parts: tuple[str, ...], **more: Any) -> dict[str, Any]:
    from wristworld_ros.provenance import provenance
    from wristworld_ros.weights import read_digests

    return provenance(weights=read_digests(folder, parts), **more)


def stage1_table(results: dict[str, Any]) -> str:
    """A paragraph per kind of geometry; scores that are missing are left out."""
    lines = []
    for kind, r in results.items():
        lines.append(f"{kind}: {r['frames']} frames")
        if "pose_mm" in r:
            mm, deg = r["pose_mm"], r["pose_deg"]
            lines.append(
                "  pose error median / p90 / max     "
                + " / ".join(f"{mm[k]:.1f} mm {deg[k]:.1f} deg" for k in ("median", "p90", "max"))
            )
            for name, shares in r["pose_bounds"].items():
                found = ", ".join(f"{share:.0%} in {level}" for level, share in shares.items())
                lines.append(f"  {name + ' in stated bounds':<34}{found}")
        if "depth" in r:
            parts = ", ".join(f"{n} {100 * v['abs_rel']:.2f} %" for n, v in r["depth"].items())
            lines.append(f"  predicted depth, AbsRel           {parts}")
            c = r["confidence"]
            rank = "none" if c["rank_correlation"] is None else f"{c['rank_correlation']:.2f}"
            lines.append(
                f"  depth error expected / actual     {100 * c['expected']:.2f} % / "
                f"{100 * c['actual']:.2f} %, rank correlation {rank}"
            )
        lines.append(f"  coverage                          {r['coverage']['mean']:.0%}")
        if "wrong_share" in r:
            parts = ", ".join(f"{n} {v:.0%}" for n, v in r["wrong_share"].items())
            lines.append(f"  drawn depth wrong by over 5 %     {parts}")
        for name, score in r.get("scores", {}).items():
            parts = ", ".join(
                f"{k.removeprefix('psnr_')} {score[k]:.2f}"
                for k in ("psnr", "psnr_near", "psnr_far")
                if k in score
            )
            lines.append(f"  {name:<34}{parts} dB")
        if "stability" in r:
            parts = ", ".join(
                f"{n} {v['mean'] if isinstance(v, dict) else v:.2f}"
                for n, v in r["stability"].items()
            )
            lines.append(f"  between frames                    {parts}")
    return "\n".join(lines)


def mount_table(mount: dict[str, Any]) -> str:
    """Error of the mount over the number of frames."""
    lines = ["mount, from 20 mm / 4 deg off: error median (p90), share inside the 90 % bound"]
    for name, r in mount.items():
        if name.isdigit():
            mm, deg = r["mm"], r["deg"]
            lines.append(
                f"  after {name:>2} frames  {mm['median']:5.1f} ({mm['p90']:.1f}) mm  "
                f"{deg['median']:.1f} ({deg['p90']:.1f}) deg  {r['inside']:.0%}"
            )
    lines.append(f"  refused in {mount['refused']} episodes, false bumps {mount['false_bumps']}")
    return "\n".join(lines)


def placing_table(placing: dict[str, Any]) -> str:
    """Pose of the wrist camera in anchors without a pose, over the number of frames."""
    lines = ["anchors of unknown place: share placed, error of the wrist's pose in them"]
    for frames, r in placing.items():
        line = f"  after {frames:>2} frames  {r['placed']:4.0%}"
        if "mm" in r:
            mm, deg = r["mm"], r["deg"]
            line += (
                f"  {mm['median']:5.1f} ({mm['p90']:.1f}) mm  "
                f"{deg['median']:.1f} ({deg['p90']:.1f}) deg"
            )
        lines.append(line)
    return "\n".join(lines)


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
    for geometry, result in results.items():
        trust = result["confidence"]
        if trust["rank_correlation"] is not None and trust["gap"] is not None:
            lines.append(
                f"{geometry:<11} confidence: rank correlation with the error "
                f"{trust['rank_correlation']:.2f}, off by {trust['gap']:.2f} on measured pixels"
            )
        whole = result["view_score"]
        ranks = ", ".join(
            f"{name} {whole[f'rank_{name}']:.2f}"
            for name in ("psnr", "lpips", "right")
            if whole[f"rank_{name}"] is not None
        )
        lines.append(
            f"{geometry:<11} view score {whole['stated']:.2f}, right {whole['right']:.2f}; rank "
            f"correlation with {ranks or 'nothing'}"
        )
        for n, score in result["steps"].items() if len(result["steps"]) > 1 else ():
            lines.append(
                f"{geometry:<11} {n:>2} steps {score['psnr']:6.2f} {score['ssim']:6.3f} "
                f"{score.get('lpips', float('nan')):6.3f}  {score['seconds']['p50'] * 1e3:.0f} ms"
            )
        clips = result.get("clips", {})
        for measure in ("fvd", "flicker") if clips else ():
            found = ", ".join(f"{name} {value:.2f}" for name, value in clips[measure].items())
            lines.append(f"{geometry:<11} {measure} of {clips['clips']} clips: {found}")
    return "\n".join(lines)
