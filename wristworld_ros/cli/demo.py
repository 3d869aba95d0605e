"""``wristworld demo``: a simulated episode through the two running ROS 2 nodes, and its scores."""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

from wristworld_ros.cli.ros import require_ros
from wristworld_ros.errors import InvalidInputError

HELP = "play a simulated episode into the two nodes; write video, sheet, metrics, augmented bag"
DEFAULT_SPLIT, DEFAULT_SEED = "test-iid", 200_000
TRUE_INFO = "/wrist_true/camera_info"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument(
        "--out", type=Path, default=Path("out/demo"), metavar="DIR", help="default: out/demo"
    )
    parser.add_argument("--split", default=DEFAULT_SPLIT, help=f"default: {DEFAULT_SPLIT}")
    parser.add_argument(
        "--seed", type=int, help="of the episode; default: the first one of the split"
    )
    parser.add_argument("--bag", type=Path, help="play this bag instead of a simulated episode")
    parser.add_argument("--mode", default="stream", choices=("stream", "chunk"))
    parser.add_argument(
        "--pose-source", default="auto", choices=("auto", "kinematic", "learned", "fused"),
        help="where the wrist pose comes from",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=1, help="denoising steps, default 1")
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--rate", type=float, default=1.0, help="of playback, default 1")
    parser.add_argument("--no-lpips", action="store_true", help="leave out LPIPS")


def run(args: argparse.Namespace) -> int:
    """Simulate, play, record, score; prints the table and returns 0."""
    if not 0.01 <= args.rate <= 100:
        raise InvalidInputError(f"--rate {args.rate:g}: need 0.01 to 100.")
    require_ros("wristworld demo")
    bag = args.bag or _episode(args)
    from wristworld_ros.evaluation.report import format_table

    report, metrics = _run(bag, args)
    print()
    print(report.summary_text())
    live, frames = metrics["live"], metrics["frames"]
    total = live["latency_s"]
    print(
        f"live: {live['rate_hz']:.1f} pictures per second, from the last anchor image sent to the "
        f"picture received p50 {total['p50'] * 1e3:.0f} ms, p99 {total['p99'] * 1e3:.0f} ms"
    )
    for node, counts in frames["nodes"].items():
        causes = ", ".join(f"{n} {cause}" for cause, n in counts["dropped"].items()) or "none"
        print(f"{node}: {counts['in']} sets in, {counts['out']} out, dropped: {causes}")
    print()
    print(format_table(report.table()))
    print()
    print(
        f"results in {args.out}: virtual_wrist.mp4, contact_sheet.png, metrics.json, augmented.mcap"
    )
    return 0


def _episode(args: argparse.Namespace) -> Path:
    """The bag of the episode, simulated unless it is there already."""
    from wristworld_ros.data.simulation.bag import bag_path, write_bags
    from wristworld_ros.data.simulation.splits import get_split

    seed = get_split(args.split).first_seed if args.seed is None else args.seed
    get_split(args.split).check_seed(seed)
    path = bag_path(args.out / "episodes", args.split, seed)
    if path.exists():
        print(f"episode {path} is there already")
        return path
    print(f"simulating episode {seed} of split {args.split}")
    return write_bags(args.split, [seed], path.parent)[0]


def _run(bag: Path, args: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    from wristworld_ros.data.bags import BagReader
    from wristworld_ros.data.frames import BagFrames, find_cameras
    from wristworld_ros.evaluation.baselines import load_mean_image
    from wristworld_ros.evaluation.report import EpisodeReport
    from wristworld_ros.nodes import live_report
    from wristworld_ros.nodes.graph import NODES, build_graph
    from wristworld_ros.nodes.session import Session
    from wristworld_ros.provenance import provenance
    from wristworld_ros.resources import model_dir
    from wristworld_ros.weights import STAGE1_PARTS, STAGE2_PARTS, read_digests

    weights = args.model or model_dir("mini")
    sha256 = read_digests(weights, (*STAGE1_PARTS, *STAGE2_PARTS))
    with BagReader(bag) as source:
        cameras = find_cameras(source, None)
        compressed = all(topic.endswith("/compressed") for topic in cameras.values())
        specs = build_graph(
            {
                "cameras": ",".join(cameras),
                "mode": args.mode,
                "pose_source": args.pose_source,
                "device": args.device,
                "image_transport": "compressed" if compressed else "raw",
                "wrist_camera_info_topic": TRUE_INFO if TRUE_INFO in source.topics else "",
            },
            {
                NODES[0]: {"input_reliability": "reliable", "model_path": _text(args.model)},
                NODES[1]: {
                    "input_reliability": "reliable",
                    "model_path": _text(args.model),
                    "steps": args.steps,
                },
            },
        )
        session = Session(
            specs,
            list(cameras.values()),
            [f"/{name}/camera_info" for name in cameras],
            args.out / "nodes.log",
        )
        with contextlib.closing(_Progress(sum(source.counts.values()))) as progress:
            result = session.run(bag, rate=args.rate, progress=progress.advance)
        recorded = live_report.only_virtual(
            result.recorded, source.types, "wrist_camera_virtual_optical_frame"
        )
        record = provenance(
            seed=specs[-1].parameters.get("seed", 0),
            episode=bag.name,
            steps=args.steps,
            mode=args.mode,
            pose_source=args.pose_source,
            model_id=weights.name,
            model_sha256=sha256,
        )
        live_report.write_augmented(
            source,
            args.out / "augmented.mcap",
            recorded,
            result.times,
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()},
        )
        frames = live_report.live_frames(recorded, source.types, specs[0].namespace)
        reader = BagFrames(source, list(cameras), use_depth=True)
        first = next(iter(frames.values()), None)
        mean = weights / "mean_wrist.png"
        report = EpisodeReport(
            args.out,
            bag.stem,
            mean_image=load_mean_image(
                mean,
                first.parts["wrist/image_raw"].width,
                first.parts["wrist/image_raw"].height,
            )
            if first is not None and mean.exists()
            else None,
            provenance=record,
            with_lpips=not args.no_lpips,
            note="live, through the ROS 2 nodes",
        )
        with report:
            live = live_report.report_live(report, reader, frames, result.times)
        counts = live_report.account(result.frames)
        metrics = report.save(
            live=live,
            frames={
                **live_report.through_both(counts, *NODES),
                "all_accounted_for": result.drained,
                "nodes": counts,
            },
            node_exit_codes=result.exit_codes,
            notes=reader.notes,
            damage=source.damage,
        )
    return report, metrics


class _Progress:
    """Progress bar that appears with the first message, not while the nodes start."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: Any = None

    def advance(self) -> None:
        """One message was played."""
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(total=self._total, unit="msg", desc="playing")
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def _text(path: Path | None) -> str:
    return str(path.resolve()) if path else ""
