"""``wristworld bench``: how fast the networks run, against torch in the same run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HELP = "time the generator's networks by every runtime that is here, beside torch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    from wristworld_ros.cli.engine import size_of

    parser.add_argument("what", choices=("runtime",))
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument("--views", type=int, default=3, help="anchors, default 3")
    parser.add_argument("--size", type=size_of, default=(128, 128), help="default 128x128")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps, default 2")
    parser.add_argument("--repeats", type=int, default=30, help="default 30")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")


def run(args: argparse.Namespace) -> int:
    """Build what is missing, time, print, write the JSON; returns 0."""
    from wristworld_ros.evaluation.runtimes import bench_runtimes, table

    document: dict[str, Any] = bench_runtimes(
        args.model,
        views=args.views,
        size=args.size,
        steps=args.steps,
        repeats=args.repeats,
    )
    print(table(document))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0
