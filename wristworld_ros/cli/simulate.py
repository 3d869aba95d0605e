"""``wristworld simulate``: episodes from seeds, as ROS 2 bags or as shards for training."""

from __future__ import annotations

import argparse
from pathlib import Path

from wristworld_ros.data.simulation.splits import SPLITS, get_split
from wristworld_ros.errors import InvalidInputError

HELP = "simulate episodes from seeds; write ROS 2 bags or training shards"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--split", default="train", choices=list(SPLITS), help="which distribution")
    parser.add_argument(
        "--seeds",
        required=True,
        metavar="A:B",
        help="seeds A to B-1, or one seed A; each split has its own range",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="DIR", help="write one bag per seed to DIR")
    target.add_argument("--shards", type=Path, metavar="DIR", help="write training shards to DIR")
    parser.add_argument("--wrist-size", default="128", metavar="WxH", help="wrist picture [px]")
    parser.add_argument("--anchor-size", default="256", metavar="WxH", help="anchor pictures [px]")
    parser.add_argument(
        "--size", default=None, metavar="WxH", help="size of all pictures [px], instead of both"
    )
    parser.add_argument("--anchors", type=int, default=3, help="third-person cameras, 1 to 8")
    parser.add_argument("--no-shadows", action="store_true", help="2 to 5 times faster")
    parser.add_argument("--compressed", action="store_true", help="bags: PNG instead of raw images")
    parser.add_argument("--no-depth", action="store_true", help="bags: leave out anchors' depth")
    parser.add_argument("--overwrite", action="store_true", help="bags: replace those that exist")
    parser.add_argument(
        "--motion",
        default="task",
        help="bags: task, with words, or look-around, to calibrate the cameras by",
    )
    parser.add_argument("--frames", type=int, default=12, help="shards: frames per episode")
    parser.add_argument("--processes", type=int, default=2, help="shards: processes side by side")


def run(args: argparse.Namespace) -> int:
    """Simulate and write; returns 0."""
    seeds = parse_seeds(args.seeds)
    for seed in (seeds[0], seeds[-1]):
        get_split(args.split).check_seed(seed)
    wrist_size = parse_size(args.size or args.wrist_size)
    anchor_size = parse_size(args.size or args.anchor_size)
    if args.shards is not None and args.motion != "task":
        raise InvalidInputError(f"--motion {args.motion} is for bags (--out); shards hold tasks.")
    if args.shards is not None:
        from wristworld_ros.data.simulation.shards import write_shards

        paths = write_shards(
            args.split,
            seeds,
            args.shards,
            frames_per_episode=args.frames,
            wrist_size=wrist_size,
            anchor_size=anchor_size,
            n_anchors=args.anchors,
            shadows=not args.no_shadows,
            processes=args.processes,
        )
        print(f"{len(paths)} shards of split '{args.split}' in {args.shards}")
        return 0
    from wristworld_ros.data.simulation.bag import write_bags

    paths = write_bags(
        args.split,
        seeds,
        args.out,
        wrist_size=wrist_size,
        anchor_size=anchor_size,
        n_anchors=args.anchors,
        shadows=not args.no_shadows,
        compressed=args.compressed,
        with_depth=not args.no_depth,
        overwrite=args.overwrite,
        motion=args.motion,
    )
    for path in paths:
        print(path)
    return 0


def parse_seeds(text: str) -> range:
    """``A:B`` as the seeds from A to B-1, ``A`` as one seed.

    Raises:
        InvalidInputError: it is neither, or the range is empty.
    """
    try:
        first, _, end = text.partition(":")
        seeds = range(int(first), int(end) if end else int(first) + 1)
    except ValueError as error:
        raise InvalidInputError(
            f"--seeds '{text}' is neither A:B nor a number; write for example 0:600."
        ) from error
    if not seeds:
        raise InvalidInputError(f"--seeds '{text}' is empty: B must be larger than A.")
    return seeds


def parse_size(text: str) -> tuple[int, int]:
    """``WxH`` or ``N`` (square) as (width, height) [px].

    Raises:
        InvalidInputError: it is neither.
    """
    try:
        width, _, height = text.lower().partition("x")
        return int(width), int(height or width)
    except ValueError as error:
        raise InvalidInputError(
            f"size '{text}' is neither WxH nor a number; write for example 320x240."
        ) from error
