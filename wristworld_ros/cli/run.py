"""``wristworld run``: a bag through both stages, without ROS."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from wristworld_ros.errors import InvalidInputError

HELP = "generate the wrist view for a bag: augmented bag, video, contact sheet, metrics"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("bag", type=Path, metavar="BAG", help="bag folder, .mcap or .db3 file")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for the results")
    parser.add_argument(
        "--cameras", nargs="+", metavar="NAME", help="third-person cameras; default all"
    )
    parser.add_argument(
        "--pose-source",
        default="auto",
        choices=("auto", "kinematic", "learned", "fused"),
        help="where the wrist pose comes from; auto: the best that the bag allows",
    )
    parser.add_argument("--steps", type=int, default=1, help="denoising steps, default 1")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, default 0")
    parser.add_argument(
        "--mode",
        default="stream",
        choices=("stream", "chunk"),
        help="stream: frame by frame; chunk: overlapping windows",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument(
        "--backbone",
        default="mini",
        choices=("mini", "vggt-1b", "da3-small", "da3-base"),
        help="network for depth and cameras; others than mini need --backbone-weights",
    )
    parser.add_argument(
        "--backbone-weights", type=Path, metavar="FILE", help="published weights of that network"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument(
        "--backend",
        default="torch",
        choices=("auto", "torch", "openvino", "onnxruntime"),
        help="what runs the generator: torch (default), or engines of `wristworld engine build`; "
        "auto: the best of these for which there is one",
    )
    parser.add_argument(
        "--strict", action="store_true", help="refuse what the backend has no engine for"
    )
    refusal = parser.add_argument_group("refusal: no picture instead of a made-up one")
    refusal.add_argument(
        "--refuse-below-coverage",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="where the anchors see less of the view, 0 to 1; default 0: never",
    )
    refusal.add_argument(
        "--refuse-beyond-domain",
        type=float,
        default=0.0,
        metavar="DISTANCE",
        help="where the anchors' pictures are farther from those of training; 1 is what 1 %% of "
        "validation frames exceed; default 0: never",
    )
    camera = parser.add_argument_group("wrist camera to synthesise")
    source = camera.add_mutually_exclusive_group()
    source.add_argument(
        "--wrist-camera-from",
        metavar="TOPIC",
        default="",
        help="its camera_info; default: /wrist_true/camera_info if the bag has it",
    )
    source.add_argument(
        "--wrist-fov", type=float, metavar="DEG", help="its vertical field of view; else estimated"
    )
    camera.add_argument("--wrist-size", metavar="WxH", help="size of the generated picture [px]")
    frames = parser.add_argument_group("what the bag holds")
    frames.add_argument("--world-frame", default="base_link", help="TF frame of the robot's base")
    frames.add_argument(
        "--wrist-frame", default="wrist_camera_optical_frame", help="TF frame of the wrist camera"
    )
    frames.add_argument("--slop", type=float, default=0.02, metavar="S", help="between stamps [s]")
    frames.add_argument("--use-depth", action="store_true", help="use the anchors' measured depth")
    frames.add_argument("--instruction", help="task in words, instead of the bag's")
    scores = parser.add_argument_group("scores")
    scores.add_argument("--no-compare", action="store_true", help="do not look at wrist_true")
    scores.add_argument("--no-lpips", action="store_true", help="leave out LPIPS")
    scores.add_argument("--mean-image", type=Path, metavar="PNG", help="for the mean baseline")
    parser.add_argument("--overwrite", action="store_true", help="replace results in DIR")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``160x96`` -> (160, 96).

    Raises:
        InvalidInputError: not of that form, or sides that the model does not take.
    """
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() and int(p) > 0 for p in parts):
        raise InvalidInputError(f"size '{text}': write it as WIDTHxHEIGHT, e.g. 160x96.")
    width, height = int(parts[0]), int(parts[1])
    if width % 16 or height % 16 or max(width, height) > 1024:
        raise InvalidInputError(
            f"size {width} x {height} px: both sides must be multiples of 16 up to 1024."
        )
    return width, height


def run(args: argparse.Namespace) -> int:
    """Run the bag, print the table of scores and where the results are; returns 0."""
    if args.wrist_fov is not None and not 1 <= args.wrist_fov <= 170:
        raise InvalidInputError(f"--wrist-fov {args.wrist_fov:g}: need 1 to 170 degrees.")
    if args.steps < 1:
        raise InvalidInputError(f"--steps {args.steps}: need at least 1.")
    if not 0 <= args.refuse_below_coverage <= 1:
        raise InvalidInputError(
            f"--refuse-below-coverage {args.refuse_below_coverage:g}: need a share of 0 to 1."
        )
    if not args.refuse_beyond_domain >= 0:
        raise InvalidInputError(
            f"--refuse-beyond-domain {args.refuse_beyond_domain:g}: need 0 or more."
        )
    size = parse_size(args.wrist_size)
    from wristworld_ros.evaluation.bag_run import RunOptions, run_bag
    from wristworld_ros.evaluation.report import format_table

    report = run_bag(
        args.bag,
        args.out,
        RunOptions(
            cameras=args.cameras,
            pose_source=args.pose_source,
            steps=args.steps,
            seed=args.seed,
            mode=args.mode,
            model=args.model,
            backbone=args.backbone,
            backbone_weights=args.backbone_weights,
            device=args.device,
            backend=args.backend,
            strict=args.strict,
            wrist_camera_topic=args.wrist_camera_from,
            wrist_fov_y=None if args.wrist_fov is None else math.radians(args.wrist_fov),
            wrist_size=size,
            world_frame=args.world_frame,
            wrist_frame=args.wrist_frame,
            slop_s=args.slop,
            use_depth=args.use_depth,
            instruction=args.instruction,
            mean_image=args.mean_image,
            compare=not args.no_compare,
            lpips=not args.no_lpips,
            overwrite=args.overwrite,
            refuse_below_coverage=args.refuse_below_coverage,
            refuse_beyond_domain=args.refuse_beyond_domain,
        ),
    )
    print(report.summary_text())
    if not report.frames:
        print(f"every view was refused: augmented.mcap and metrics.json in {args.out}, no picture")
        return 0
    print(format_table(report.table()) or "no true wrist view in the bag: nothing to compare with")
    print(
        f"results in {args.out}: augmented.mcap, virtual_wrist.mp4, contact_sheet.png, metrics.json"
    )
    return 0
