"""SPC loss of 2 x 1024 pairs, forward and backward: ours against a loop over the points."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.provenance import provenance
from wristworld_ros.reconstruction.spc import spc_loss

SIZE = (128, 128)
B, M = 2, 1024


def looped_loss(points: Tensor, pixels: Tensor, valid: Tensor, T: Tensor, K: Tensor) -> Tensor:
    """The reference: each point is projected and compared by itself; one mean over all pairs."""
    total, count = torch.zeros(()), 0
    scale = 30.0 / (SIZE[0] ** 2 + SIZE[1] ** 2)
    for b in range(len(points)):
        for m in range(points.shape[1]):
            if not valid[b, m]:
                continue
            x = T[b, :3, :3] @ points[b, m] + T[b, :3, 3]
            if x[2] > 0:
                u = K[b] @ (x / x[2])
                total = total + scale * (u[:2] - pixels[b, m]).square().sum()
            else:
                total = total - x[2]
            count += 1
    return total / max(count, 1)


def vectorised_loss(points: Tensor, pixels: Tensor, valid: Tensor, T: Tensor, K: Tensor) -> Tensor:
    """Ours, normalised as the reference."""
    return spc_loss(points, pixels, valid, T, K, SIZE, normalisation="joint").total


def pairs() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Points before and behind the camera, one in ten not valid."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(B, M, 3, generator=generator) * 2 - 1
    points[..., 2] = torch.where(points[..., 2].abs() < 0.05, 0.5, points[..., 2])
    pixels = torch.rand(B, M, 2, generator=generator) * 128
    valid = torch.rand(B, M, generator=generator) > 0.1
    K = torch.tensor([[90.0, 0, 64], [0, 90, 64], [0, 0, 1]]).expand(B, 3, 3)
    return points, pixels, valid, torch.eye(4).repeat(B, 1, 1), K


def main() -> None:
    """Measure by turns and print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    points, pixels, valid, T, K = pairs()
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    results: dict[str, tuple[Tensor, Tensor]] = {}
    for _ in range(args.rounds):
        for name, loss, repeats in (("ours", vectorised_loss, 20), ("loop", looped_loss, 1)):
            for _ in range(repeats):
                pose = T.clone().requires_grad_()
                began = time.perf_counter()
                value = loss(points, pixels, valid, pose, K)
                value.backward()
                seconds[name].append(time.perf_counter() - began)
                assert pose.grad is not None
                results[name] = value.detach(), pose.grad
    torch.testing.assert_close(results["ours"], results["loop"], rtol=1e-3, atol=1e-3)
    ours, loop = (float(np.median(seconds[name])) for name in ("ours", "loop"))
    print(
        f"SPC of {B} x {M} pairs: {ours * 1e3:.2f} ms, loop {loop * 1e3:.0f} ms: "
        f"{loop / ours:.0f} x faster, same value and gradient"
    )
    if args.json:
        result = {"spc_ms": ours * 1e3, "loop_ms": loop * 1e3, "ratio": loop / ours, **provenance()}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
