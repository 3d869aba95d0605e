"""Speed of the generator's networks by runtime, as ratios to torch eager in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.generation import Generator
from wristworld_ros.provenance import provenance
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.runtime.dispatch import TORCH, Dispatcher
from wristworld_ros.runtime.engines import EngineKey, EngineStore
from wristworld_ros.runtime.graphs import call
from wristworld_ros.runtime.parity import relative_errors
from wristworld_ros.runtime.registry import BACKENDS
from wristworld_ros.types import AnchorFrame, ConditionMap

#: The frame that is streamed: split, seed and frame.
MOMENT = ("val", 100_000, 8)
BFLOAT16 = "torch bf16"


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds that each call takes, by turns, after one warm-up each."""
    for run in calls.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, run in calls.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def moment(views: int, size: tuple[int, int]) -> tuple[ConditionMap, AnchorFrame]:
    """A condition map of simulated pictures, with calibration and kinematics."""
    split, seed, t = MOMENT
    episode = simulate_episode(seed, split, n_anchors=views, wrist_size=size, stride=1)
    frame = restrict(episode.anchor_frame(t, with_depth=True), "kinematic", None)
    return Reconstructor.from_pretrained()(frame).condition, frame


def bench_runtimes(
    model: Path | None,
    *,
    views: int = 3,
    size: tuple[int, int] = (128, 128),
    steps: int = 2,
    repeats: int = 30,
) -> dict[str, Any]:
    """Median times by turns in one process, and errors, of every runtime that can run here.

    Engines that are missing are built first.

    Args:
        model: folder of weights; the shipped ones when None.
        views: anchors; size: (width, height) of the wrist view [px]; steps: denoising steps.

    Returns:
        ``networks``: graph -> runtime -> ``ms``, ``ratio`` (torch's time over this one's) and
        ``error`` (relative); ``frame``: runtime -> ``p50_ms``, ``p99_ms`` and ``ratio`` of one
        streamed frame, condition map in, picture out, and ``psnr_db`` to torch's picture.
    """
    plain = Generator.from_pretrained(model, steps=steps)
    graphs = plain.networks.graphs(1, views, size[1], size[0])
    store = EngineStore()
    kinds = [
        (b, precision)
        for b in BACKENDS.values()
        if b.cannot_run() is None
        for precision in b.precisions
        if b.unsupported(precision) is None
    ]
    networks: dict[str, Any] = {}
    for graph in graphs:
        inputs = tuple(graph.inputs.values())
        calls: dict[str, Callable[[], Any]] = {
            TORCH: partial(call, graph.module, inputs),
            BFLOAT16: partial(_half, graph.module, inputs),
        }
        errors = {TORCH: 0.0}
        for backend, precision in kinds:
            store.build(graph, backend, precision)
            runner = store.load(EngineKey.of(graph, backend, precision), backend)
            name = f"{backend.name} {precision}"
            errors[name] = max(relative_errors(runner, graph).values())
            calls[name] = partial(runner, *inputs)
        times = {n: float(np.median(s)) for n, s in interleaved(calls, repeats).items()}
        networks[graph.name] = {
            name: {
                "ms": 1e3 * t, "ratio": times[TORCH] / t,
                **({"error": errors[name]} if name in errors else {}),
            }
            for name, t in times.items()
        }  # fmt: skip
    condition, frame = moment(views, size)
    generators = {TORCH: plain}
    for backend, precision in kinds:
        runs = Dispatcher(backend.name, precision=precision, strict=True, store=store)
        generators[f"{backend.name} {precision}"] = plain.with_dispatcher(runs)
    seconds = interleaved({n: partial(g, condition, frame) for n, g in generators.items()}, repeats)
    reference = plain(condition, frame).image.astype(np.float64)
    streamed = {}
    for name, values in seconds.items():
        difference = generators[name](condition, frame).image - reference
        mse = float(np.square(difference / 255).mean())
        streamed[name] = {
            "p50_ms": 1e3 * float(np.percentile(values, 50)),
            "p99_ms": 1e3 * float(np.percentile(values, 99)),
            "ratio": float(np.median(seconds[TORCH]) / np.median(values)),
            "psnr_db": None if mse == 0 else -10 * float(np.log10(mse)),
        }
    return {
        "networks": networks,
        "frame": streamed,
        "settings": {
            "views": views, "size": list(size), "steps": steps, "repeats": repeats,
            "threads": torch.get_num_threads(), "moment": list(MOMENT),
        },
        "provenance": provenance(weights=plain.sha256s),
    }  # fmt: skip


def _half(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    with torch.autocast("cpu", torch.bfloat16):
        return call(module, inputs)


def table(document: dict[str, Any]) -> str:
    """A line per network and runtime."""
    lines = [f"{'network':<10} {'runtime':<18} {'ms':>8} {'x torch':>8} {'error':>9}"]
    for network, rows in document["networks"].items():
        for name, r in rows.items():
            error = f"{r['error']:9.1e}" if "error" in r else ""
            lines.append(f"{network:<10} {name:<18} {r['ms']:8.2f} {r['ratio']:8.2f} {error}")
    for name, r in document["frame"].items():
        psnr = "" if r["psnr_db"] is None else f"  {r['psnr_db']:.1f} dB to torch's picture"
        lines.append(
            f"{'frame':<10} {name:<18} {r['p50_ms']:8.2f} {r['ratio']:8.2f}  "
            f"p99 {r['p99_ms']:.0f} ms{psnr}"
        )
    return "\n".join(lines)
