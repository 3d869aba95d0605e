"""``wristworld train``: the networks of the shipped model, on simulated shards."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wristworld_ros.errors import WristWorldError

if TYPE_CHECKING:
    from wristworld_ros.training.loop import LoopConfig
    from wristworld_ros.training.stage2 import DropRates

HELP = "train one network of a model on simulated shards"

#: The paper's model in the place of ours (``--preset``).
PRESETS = ("wan2.1-1.3b",)
#: Defaults that differ by network or preset: steps, batch size, learning rate.
DEFAULTS = {
    "autoencoder": (2500, 16, 1e-3),
    "stage1": (4000, 8, 4e-4),
    "hand-depth": (4000, 4, 1e-3),
    "fine-depth": (2500, 4, 2e-3),
    "locator": (4000, 8, 1e-3),
    "plane-sweep": (4000, 4, 1e-3),
    "stage2": (6000, 16, 5e-4),
    "wan2.1-1.3b": (6000, 1, 1e-5),
    "detail": (4000, 16, 1e-3),
    "domain": (1, 1, 1.0),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("network", choices=sorted(set(DEFAULTS) - set(PRESETS)))
    parser.add_argument("--shards", type=Path, help="folder of training shards")
    parser.add_argument("--val", type=Path, help="folder of validation shards")
    parser.add_argument(
        "--recordings",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="stage1, in place of --shards: folders or bags with a wrist video; the wrist is then "
        "learned from projection alone (SPC), from --init on",
    )
    parser.add_argument(
        "--val-recordings", type=Path, nargs="+", metavar="PATH", help="the same, to score on"
    )
    parser.add_argument("--stride", type=int, default=1, help="take every so many moments of them")
    parser.add_argument("--work", type=Path, required=True, help="checkpoints, log and curves")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trained weights")
    parser.add_argument("--steps", type=int, help="optimiser steps")
    parser.add_argument("--minutes", type=float, default=0.0, help="wall-time limit; 0: none")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bf16", action="store_true", help="stage1, locator, plane-sweep, stage2, detail: bfloat16"
    )
    parser.add_argument("--init", type=Path, help="all but autoencoder: weights to start from")
    parser.add_argument(
        "--episodes",
        type=int,
        help="plane-sweep, stage2, detail, domain: use so many of the shards",
    )
    parser.add_argument("--stage1", type=Path, help="all but autoencoder, locator: its weights")
    parser.add_argument("--autoencoder", type=Path, help="stage2, detail: its weights")
    parser.add_argument("--stage2", type=Path, help="detail: its weights")
    for name in ("text", "anchors", "map"):
        parser.add_argument(
            f"--drop-{name}",
            type=float,
            metavar="RATE",
            help=f"stage2: share of clips without {name}",
        )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="stage2: train LoRA and the new modules on published weights",
    )
    parser.add_argument(
        "--wan", type=Path, help="--preset: folder of Wan2.1 T2V, diffusers' layout"
    )
    parser.add_argument("--clip-model", default="ViT-H-14", help="--preset: name in open_clip")
    parser.add_argument("--clip-weights", type=Path, help="--preset: its weights")
    parser.add_argument("--lora-rank", type=int, default=4, help="--preset: (4)")


def run(args: argparse.Namespace) -> int:
    """Train; a killed run continues from its last checkpoint when started again."""
    from wristworld_ros.training.loop import LoopConfig, leave_processes

    if args.preset and args.network != "stage2":
        raise WristWorldError(f"--preset is for stage2, not for {args.network}")
    steps, batch_size, rate = DEFAULTS[args.preset or args.network]
    loop = LoopConfig(
        steps=args.steps or steps,
        batch_size=args.batch_size or batch_size,
        learning_rate=args.learning_rate or rate,
        minutes=args.minutes,
        seed=args.seed,
        bf16=args.bf16,
    )
    scores = _from_recordings(args, loop) if args.recordings else _from_shards(args, loop)
    print(json.dumps(scores, indent=2))
    leave_processes()
    return 0


def _from_shards(args: argparse.Namespace, loop: LoopConfig) -> dict[str, Any]:
    if args.shards is None or args.val is None:
        raise WristWorldError("train needs --shards and --val (wristworld simulate makes them)")
    if args.network == "stage1":
        from wristworld_ros.training.stage1 import train_stage1

        return train_stage1(args.shards, args.val, args.work, args.out, loop, init=args.init)
    if args.network == "autoencoder":
        from wristworld_ros.training.autoencoder import train_autoencoder

        return train_autoencoder(args.shards, args.val, args.work, args.out, loop)
    if args.network in ("hand-depth", "fine-depth", "locator"):
        from wristworld_ros.training.companions import train_companion

        return train_companion(
            args.network,
            args.shards,
            args.val,
            args.work,
            args.out,
            loop,
            args.stage1,
            init=args.init,
        )
    if args.network == "plane-sweep":
        from wristworld_ros.training.plane_sweep import train_plane_sweep

        if args.stage1 is None:
            raise WristWorldError("train plane-sweep needs --stage1 (trained weights)")
        folders = (args.shards, args.val, args.work, args.out)
        return train_plane_sweep(*folders, loop, args.stage1, args.episodes, init=args.init)
    if args.preset:
        return _preset(args, loop)
    if args.network == "domain":
        from wristworld_ros.training.domain import train_domain

        if args.stage1 is None:
            raise WristWorldError("train domain needs --stage1 (trained weights)")
        return train_domain(args.shards, args.val, args.out, loop, args.stage1, args.episodes)
    if args.stage1 is None or args.autoencoder is None:
        raise WristWorldError(
            f"train {args.network} needs --stage1 and --autoencoder (trained weights)"
        )
    given = (args.shards, args.val, args.work, args.out, loop, args.stage1, args.autoencoder)
    if args.network == "detail":
        from wristworld_ros.training.detail import train_detail

        if args.stage2 is None:
            raise WristWorldError("train detail needs --stage2 (trained weights)")
        return train_detail(*given, args.stage2, args.episodes, init=args.init)
    from wristworld_ros.training.stage2 import train_stage2

    return train_stage2(*given, args.episodes, init=args.init, drops=_drop_rates(args))


def _drop_rates(args: argparse.Namespace) -> DropRates:
    from wristworld_ros.training.stage2 import DropRates

    rates = {"text": args.drop_text, "anchors": args.drop_anchors, "map": args.drop_map}
    return DropRates(**{name: rate for name, rate in rates.items() if rate is not None})


def _preset(args: argparse.Namespace, loop: LoopConfig) -> dict[str, Any]:
    from wristworld_ros.training.wan import WanSource, train_wan

    if args.stage1 is None or args.wan is None or args.clip_weights is None:
        raise WristWorldError(
            f"train stage2 --preset {args.preset} needs --stage1 (trained weights), --wan and "
            "--clip-weights (published weights)"
        )
    return train_wan(
        args.shards,
        args.val,
        args.work,
        args.out,
        loop,
        args.stage1,
        WanSource(args.wan, args.clip_model, args.clip_weights, args.lora_rank),
        args.episodes,
        init=args.init,
        drops=_drop_rates(args),
    )


def _from_recordings(args: argparse.Namespace, loop: LoopConfig) -> dict[str, Any]:
    from wristworld_ros.reconstruction.matching import XFeatSource
    from wristworld_ros.training.wrist_video import read_recording, train_wrist_video

    if args.network != "stage1" or args.init is None or not args.val_recordings:
        raise WristWorldError(
            "--recordings is for stage1, and needs --val-recordings and --init (weights to start "
            "from, e.g. models/mini/stage1)"
        )
    source = XFeatSource()
    recordings, val = (
        [read_recording(path, source, stride=args.stride) for path in paths]
        for paths in (args.recordings, args.val_recordings)
    )
    return train_wrist_video(recordings, val, args.work, args.out, loop, args.init)
