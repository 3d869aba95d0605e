"""``wristworld gallery``: clips and failures of simulated test episodes, and the page for them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from wristworld_ros.cli.evaluate import GEOMETRY, split_seeds

HELP = "show best, median and worst clips of a split beside the truth, and why views fail"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--split", default="test-iid", help="default: test-iid")
    parser.add_argument(
        "--seeds", metavar="A:B", help="episodes A to B-1; default: the split's first 20"
    )
    parser.add_argument(
        "--geometry",
        nargs="+",
        choices=GEOMETRY,
        default=["robot", "calibrated"],
        help="what stage 1 is told, as of `wristworld evaluate`; default: robot calibrated",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise, default 0")
    parser.add_argument("--length", type=int, default=16, metavar="N", help="frames of a clip")
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the pictures")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write a page (Markdown) for them"
    )


def run(args: argparse.Namespace) -> int:
    """Generate, choose, draw; prints the failures; returns 0.

    Raises:
        InvalidInputError: fewer than three episodes, or clips without a frame.
    """
    from wristworld_ros.errors import InvalidInputError
    from wristworld_ros.evaluation.gallery import gallery_page, make_clips, write_gallery
    from wristworld_ros.provenance import provenance
    from wristworld_ros.resources import model_dir
    from wristworld_ros.weights import STAGE1_PARTS, STAGE2_PARTS, read_digests

    seeds = split_seeds(args.split, args.seeds)
    if len(seeds) < 3 or args.length < 1:
        raise InvalidInputError(
            f"{len(seeds)} episodes of {args.length} frames: best, median and worst need at least "
            "3 episodes, and a clip one frame."
        )
    model = args.model or model_dir("mini")
    digests = read_digests(model, (*STAGE1_PARTS, *STAGE2_PARTS))
    record = provenance(seed=args.seed, weights=digests)
    clips = make_clips(
        args.split, seeds, args.geometry, seed=args.seed, length=args.length, model=str(model)
    )
    document = write_gallery(clips, args.out, record)
    if args.page:
        folder = os.path.relpath(args.out, args.page.parent)
        args.page.write_text(gallery_page(document, folder))
    for failure in document["failures"]:
        print(f"episode {failure['episode']} {failure['geometry']}: {failure['psnr']:.1f} dB, "
              f"{failure['reason']}")  # fmt: skip
    print(f"{sum(p.stat().st_size for p in args.out.iterdir()) / 1e6:.1f} MB in {args.out}")
    return 0
