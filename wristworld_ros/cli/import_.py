"""``wristworld import``: a folder of videos and robot states becomes a ROS 2 bag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wristworld_ros.data.video_folder import VideoCalibration

HELP = "make a ROS 2 bag from a folder of videos and robot states (DROID-like)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder with *.mp4 and, if any, episode.json"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="bag to write: a file OUT.mcap, or a folder"
    )
    parser.add_argument(
        "--fps", type=float, metavar="HZ", help="frame rate, when the videos do not tell it"
    )
    parser.add_argument(
        "--compressed", action="store_true", help="store images as PNG instead of raw"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="calibration of the station (wristworld calibrate): camera_info and TF of the cameras",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a bag that exists")


def run(args: argparse.Namespace) -> int:
    """Check the folder, write the bag, say what is in it; returns 0."""
    from wristworld_ros.data.video_folder import import_video_folder, read_video_folder

    folder = read_video_folder(args.folder, args.fps)
    calibration = None if args.calibration is None else _calibration(args.calibration)
    frames = import_video_folder(
        folder,
        args.out,
        calibration=calibration,
        compressed=args.compressed,
        overwrite=args.overwrite,
    )
    print(f"{args.out}: {frames} frames at {folder.fps:g} Hz of {', '.join(folder.views)}")
    print(f"  true wrist view: {'wrist_true' if folder.wrist else 'none'}")
    if folder.poses:
        print(f"  hand poses: {len(folder.poses)} at {folder.state_rate:g} Hz")
    if folder.joints:
        print(f"  joint states agree with the hand poses to {folder.fk_error * 1e3:.2g} mm")
    print(f"  instruction: {folder.instruction or '(none)'}")
    if calibration is None:
        print("  no camera calibration: views are uncalibrated, the wrist pose has to be learned")
    else:
        named = [*calibration.cameras, *(["wrist_true"] if calibration.mount is not None else [])]
        print(f"  calibrated: {', '.join(named) or 'nothing'}")
    return 0


def _calibration(path: Path) -> VideoCalibration:
    from wristworld_ros.data.video_folder import VideoCalibration
    from wristworld_ros.reconstruction.calibration_file import load_calibration

    station = load_calibration(path)
    end = "_latency_s"
    return VideoCalibration(
        dict(station.cameras),
        station.wrist_camera,
        station.mount,
        {k.removesuffix(end): v for k, v in station.residuals.items() if k.endswith(end)},
    )
