"""``wristworld calibrate``: wrist camera mount, intrinsics and fixed cameras from robot motion."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wristworld_ros.calibration.station import Accuracy

HELP = "find the wrist camera's mount and the fixed cameras from recordings of the moving robot"


def add_recordings(parser: argparse.ArgumentParser, what: str) -> None:
    """Declare which recordings a verb learns from, and which it is scored on."""
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RECORDING", help=what)
    parser.add_argument(
        "--hold-out",
        type=Path,
        nargs="+",
        default=[],
        metavar="RECORDING",
        help="recordings to score the result on, never used for it",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    add_recordings(parser, "bag or folder of videos with robot states, all of one station")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML to write: the station as in the last RECORDING; where a fixed camera was moved "
        "between recordings, FILE's folder gets one <recording>.yaml each",
    )
    parser.add_argument(
        "--aspect",
        type=float,
        metavar="FY/FX",
        help="ratio of the focal lengths, when known (1 for square pixels); default: estimated",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="draw the robot over the held-out videos"
    )


def run(args: argparse.Namespace) -> int:
    """Read the recordings, calibrate, score, write; returns 0."""
    from PIL import Image

    from wristworld_ros.calibration.recordings import read_recording
    from wristworld_ros.calibration.report import (
        calibrate_station,
        differences,
        held_out_pictures,
        metrics,
        station_file,
    )
    from wristworld_ros.errors import InvalidInputError
    from wristworld_ros.provenance import provenance
    from wristworld_ros.reconstruction.calibration_file import save_calibration

    if args.aspect is not None and not 0.2 < args.aspect < 5:
        raise InvalidInputError(f"--aspect {args.aspect:g} is fy / fx; it must lie in 0.2 to 5.")
    recordings = [read_recording(path) for path in args.recordings]
    held_out = [read_recording(path) for path in args.hold_out]
    result = calibrate_station(recordings, held_out, aspect=args.aspect, say=print)
    made = f"wristworld calibrate {' '.join(r.name for r in recordings)}"
    if held_out:
        made += f" --hold-out {' '.join(r.name for r in held_out)}"
    for name, score in result.wrist_held_out.items():
        print(f"held out {name}, wrist: {_score(score)}")
    for name, cameras in result.held_out.items():
        for camera, placed in cameras.items():
            print(f"held out {name}, {camera}: {_score(placed.tracks)}")
            if placed.edges:
                print(
                    f"  outline of the arm: median {placed.outline_median:.2f} px, "
                    f"p90 {placed.outline_p90:.2f} px, {placed.edges} edges"
                )
            print(f"  {placed.how}")
    apart = {
        r.name: differences(r.stated, station_file(result, r.name, made))
        for r in (*recordings, *held_out)
    }
    for name, by_camera in apart.items():
        for camera, by in by_camera.items():
            focal = by.focal_percent
            print(
                f"{name} itself states {camera}: {1e3 * by.translation_m:.1f} mm and "
                f"{by.rotation_deg:.2f} deg from what was found"
                + ("" if focal is None else f", focal length {focal:.2f} %")
            )
    save_calibration(args.out, station_file(result, recordings[-1].name, made))
    print(f"{args.out}: as in {recordings[-1].name}")
    if any(len(c.solution.X) > 1 for c in result.fixed.values()) or held_out:
        for r in (*recordings, *held_out):
            save_calibration(
                args.out.with_name(f"{r.name}.yaml"), station_file(result, r.name, made)
            )
        print(f"{args.out.parent}/<recording>.yaml: as in each recording")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps(
                {
                    **metrics(result),
                    "differences": {
                        name: {camera: asdict(by) for camera, by in cameras.items()}
                        for name, cameras in apart.items()
                    },
                    "provenance": provenance(),
                },
                indent=1,
            )
            + "\n"
        )
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
        for name, sheet in held_out_pictures(result, held_out).items():
            Image.fromarray(sheet).save(args.pictures / f"{name}.png")
    return 0


def _score(score: Accuracy) -> str:
    return (
        f"median {score.median:.2f} px, p90 {score.p90:.2f} px over {score.observations} "
        f"observations of {score.tracks} tracks ({score.left_out} left out)"
    )
