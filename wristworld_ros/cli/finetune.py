"""``wristworld finetune``: adapt the wrist view to a station, from a few real recordings."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wristworld_ros.cli.calibrate import add_recordings
from wristworld_ros.cli.simulate import parse_size

if TYPE_CHECKING:
    from wristworld_ros.calibration.recordings import Recording
    from wristworld_ros.generation.station_episode import StationEpisode

HELP = "adapt the wrist view to your station, from recordings with a real wrist camera"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    add_recordings(
        parser, "bag or folder of videos with robot states and a wrist video, all of one station"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        required=True,
        metavar="JSON",
        help="file that `wristworld calibrate --json` wrote of this station",
    )
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, log and curves")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained weights")
    parser.add_argument("--minutes", type=float, default=20.0, help="time to train, all in all")
    parser.add_argument("--steps", type=int, help="optimiser steps instead, for a repeatable end")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="convolutions in bfloat16")
    parser.add_argument("--size", default="160x96", metavar="WxH", help="of the wrist view [px]")
    parser.add_argument(
        "--table", type=float, default=0.0, metavar="M", help="height of the table in the base [m]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="scores on --hold-out")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="sheet of --hold-out")


def run(args: argparse.Namespace) -> int:
    """Read, train on a part to calibrate the confidence, train on all, score; returns 0."""
    import torch
    from PIL import Image

    from wristworld_ros.calibration.placing import camera_solution, read_station
    from wristworld_ros.calibration.recordings import read_recording
    from wristworld_ros.errors import InvalidInputError
    from wristworld_ros.evaluation.station import evaluate_station, station_sheet
    from wristworld_ros.generation.lpips import LPIPS
    from wristworld_ros.generation.station import (
        StationConfig,
        StationModel,
        save_station,
        station_pictures,
    )
    from wristworld_ros.generation.station_episode import output_camera
    from wristworld_ros.provenance import provenance
    from wristworld_ros.training.finetune import (
        FinetuneConfig,
        fit_trust,
        prepare,
        station_loss,
    )
    from wristworld_ros.training.loop import LoopConfig, train, training_record

    size = parse_size(args.size)
    width, height = size
    if not args.minutes > 0 or (args.steps is not None and args.steps < 1):
        raise InvalidInputError(
            f"--minutes {args.minutes:g} and --steps {args.steps}: both must be positive."
        )
    names = [p.stem for p in (*args.recordings, *args.hold_out)]
    if len(set(names)) != len(names):
        raise InvalidInputError(f"recordings {names} are not unique; a held-out one is not used.")
    document = read_station(args.calibration)
    recordings = [read_recording(p) for p in args.recordings]
    held_out = [read_recording(p) for p in args.hold_out]
    known = [r for r in recordings if any(r.name in c["place"] for c in document["fixed"].values())]
    training = [_episode(document, r, known, size) for r in recordings]
    scored = [_episode(document, r, known, size) for r in held_out]
    wrist = recordings[0].wrist
    assert wrist is not None  # _episode
    own = camera_solution(document["wrist"], (wrist.shape[2], wrist.shape[1])).camera
    camera = output_camera(own, width, height)
    torch.manual_seed(args.seed)
    config = StationConfig(width, height, len(training[0].views), table=args.table)
    recipe, lpips = FinetuneConfig(), LPIPS()
    by_clock = args.steps is None
    loop = LoopConfig(
        steps=100_000 if by_clock else args.steps, batch_size=args.batch_size, seed=args.seed,
        learning_rate=args.learning_rate, minutes=args.minutes if by_clock else 0.0,
        bf16=args.bf16, ema=0.998, warmup=20, checkpoint_every=200,
    )  # fmt: skip
    record = training_record(loop, {"finetune": asdict(recipe), "recordings": names})

    def learn(episodes: list[StationEpisode], folder: Path, share: float) -> StationModel:
        model = StationModel(config)
        model.fit_wrist(camera)
        prepare(model, episodes)
        part = replace(
            loop, minutes=loop.minutes * share,
            steps=loop.steps if by_clock else max(1, round(loop.steps * share)),
        )  # fmt: skip
        print(f"{len(episodes)} recordings, {sum(map(len, episodes))} moments: {folder}")
        ema = train(model, station_loss(episodes, args.batch_size, recipe, lpips), folder, part)
        model.load_state_dict(ema.state)
        return model.eval()

    # What the confidence says has to hold on recordings that the network has not seen.
    trust = None
    if len(training) > 2:
        left = max(1, len(training) // 4)
        part = learn(training[:-left], args.work / "left_out", 0.3)
        trust = fit_trust(part, training[-left:])
        record["trust"] = {"left_out": [e.name for e in training[-left:]], "scale_shift": trust}
        print(f"confidence: scale {trust[0]:.2f}, shift {trust[1]:.2f} by what was left out")
    model = learn(training, args.work / "all", 1.0 if trust is None else 0.7)
    if trust is not None:
        model.trust.copy_(torch.tensor(trust))
    made = [station_pictures(model, e) for e in scored]
    result = evaluate_station(made, scored, training) if scored else {}
    for kind, s in result.get("all", {}).items():
        print(f"held out, {kind}: {s['psnr']:.2f} dB / {s['ssim']:.3f} / {s['lpips']:.3f}")
    digest = save_station(args.out, model, {"training": record, "scores": result.get("all", {})})
    if args.json and scored:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        more = {
            "size": [width, height],
            "trained_on": [e.name for e in training],
            "training_frames": sum(map(len, training)),
            "minutes": args.minutes if by_clock else None,
            "trust": record.get("trust"),
            "provenance": provenance(seed=args.seed, sha256=digest),
        }
        args.json.write_text(json.dumps({**result, **more}, indent=1) + "\n")
    if args.picture and scored:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(station_sheet(made, scored)).save(args.picture, optimize=True)
    return 0


def _episode(
    document: dict[str, Any],
    recording: Recording,
    known: list[Recording],
    size: tuple[int, int],
) -> StationEpisode:
    from wristworld_ros.calibration.placing import place_recording
    from wristworld_ros.errors import InvalidInputError
    from wristworld_ros.generation.station_episode import make_episode

    if recording.wrist is None:
        raise InvalidInputError(
            f"{recording.name} has no wrist pictures in every frame; leave it out."
        )
    height, width = recording.wrist.shape[1:3]
    calibration, poses, how = place_recording(document, recording, known, (width, height))
    print(f"{recording.name}: {len(recording)} moments, cameras {how}")
    return make_episode(
        recording.name, recording.views, calibration, poses, recording.gripper, recording.wrist,
        size,
    )  # fmt: skip
