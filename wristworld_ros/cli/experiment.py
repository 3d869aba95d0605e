"""``wristworld experiment``: the paper's claims about stage 1, each put to the test."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "test the paper's claims about stage 1; figures, plot and page in a folder"
NAMES = ("spc", "lambda", "anchors", "robots", "correspondences", "pose-noise")
#: Steps of a training where they are not named.
STEPS, LAMBDA_STEPS = 300, 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind, default 3")
    parser.add_argument(
        "--steps", type=int, help=f"of each training, default {STEPS} (lambda: {LAMBDA_STEPS})"
    )
    parser.add_argument(
        "--shards", type=Path, metavar="DIR", help="train on these instead of simulating"
    )
    parser.add_argument("--val", type=Path, metavar="DIR", help="test on these instead")
    parser.add_argument("--episodes", type=int, default=120, help="to train on, default 120")
    parser.add_argument("--val-episodes", type=int, default=40, help="to test on, default 40")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("out/experiments"),
        metavar="DIR",
        help="simulated shards and frozen features, shared by all experiments; default "
        "out/experiments",
    )
    parser.add_argument("--processes", type=int, default=2, help="side by side, default 2")


def run(args: argparse.Namespace) -> int:
    """Do the experiment, print its page; returns 0."""
    from wristworld_ros.experiments.lab import Settings
    from wristworld_ros.experiments.report import run_experiment

    settings = Settings(
        cache=args.cache,
        seeds=args.seeds,
        steps=args.steps or (LAMBDA_STEPS if args.name == "lambda" else STEPS),
        episodes=args.episodes,
        val_episodes=args.val_episodes,
        shards=args.shards,
        val=args.val,
        processes=args.processes,
    )
    print(run_experiment(args.name, args.out, settings))
    return 0
