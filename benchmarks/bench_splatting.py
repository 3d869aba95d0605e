"""Splat of 3 x 256 x 256 points to 128 x 128: ours against a plain numpy z-buffer.

And the depth of a body of 60 000 points in 256 x 256: alone, against that of the whole splat.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wristworld_ros.geometry.cloud import cloud_from_depth
from wristworld_ros.geometry.splatting import OVERLAP, splat, splat_depth
from wristworld_ros.geometry.transforms import from_quaternion, invert
from wristworld_ros.provenance import provenance
from wristworld_ros.types import CameraModel, FloatArray, PointCloud


def numpy_splat(cloud: PointCloud, T: FloatArray, camera: CameraModel) -> np.ndarray:
    """The reference: project all points at once, then paint point by point, nearest kept."""
    T = invert(T)
    points = cloud.points @ T[:3, :3].T + T[:3, 3]
    front = points[:, 2] > 0.02
    x, y, z = points[front].T
    K = camera.K
    u, v = K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]
    radius = np.clip(0.5 * OVERLAP * K[0, 0] * cloud.footprint[front] / z, 0.5, 6)
    left, right = np.ceil(u - radius - 0.5).astype(int), np.floor(u + radius - 0.5).astype(int)
    top, bottom = np.ceil(v - radius - 0.5).astype(int), np.floor(v + radius - 0.5).astype(int)
    image = np.zeros((camera.height, camera.width, 3), np.uint8)
    buffer = np.full((camera.height, camera.width), np.inf)
    colors = cloud.colors[front]
    for i in range(len(z)):
        rows = slice(max(top[i], 0), max(bottom[i] + 1, 0))
        columns = slice(max(left[i], 0), max(right[i] + 1, 0))
        nearer = buffer[rows, columns] > z[i]
        buffer[rows, columns][nearer] = z[i]
        image[rows, columns][nearer] = colors[i]
    return image


def scene() -> tuple[PointCloud, FloatArray, CameraModel]:
    """Three views of a bumpy table, and a wrist camera above it."""
    rng = np.random.default_rng(0)
    source = CameraModel.from_fov(np.deg2rad(50), 256, 256)
    tilt = [
        from_quaternion([0, 0, 0], [np.sin(a / 2), 0, 0, np.cos(a / 2)]) for a in (-0.1, 0, 0.1)
    ]
    depths = [rng.uniform(0.95, 1.0, (256, 256)).astype(np.float32) for _ in tilt]
    images = [rng.integers(0, 255, (256, 256, 3), dtype=np.uint8) for _ in tilt]
    cloud = cloud_from_depth(images, depths, [source] * 3, tilt)
    return cloud, from_quaternion([0, 0, 0.7], [0, 0, 0, 1]), CameraModel.from_fov(1.3, 128, 128)


def body() -> tuple[PointCloud, CameraModel]:
    """A ball of points 4 mm apart, 0.9 m before a camera, as large as the arm of a robot."""
    count = 60_000
    turn, height = np.arange(count) * np.pi * (3 - np.sqrt(5)), np.linspace(-1, 1, count)
    normals = np.stack([np.cos(turn), np.sin(turn), height], 1)
    normals[:, :2] *= np.sqrt(1 - height**2)[:, None]
    points = (0.27 * normals + [0, 0, 0.9]).astype(np.float32)
    ones = np.ones(count, np.float32)
    cloud = PointCloud(
        points, np.zeros((count, 3), np.uint8), ones, 0.004 * ones, np.zeros(count, np.uint8)
    )
    return cloud, CameraModel.from_fov(np.deg2rad(50), 256, 256)


def seconds(call: Callable[[], object], repeats: int) -> list[float]:
    """Durations of single calls."""
    out = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        out.append(time.perf_counter() - began)
    return out


def main() -> None:
    """Measure by turns and print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    cloud, T, camera = scene()
    ours: list[float] = []
    reference: list[float] = []
    splat(cloud, T, camera)
    for _ in range(args.rounds):
        ours += seconds(lambda: splat(cloud, T, camera), 3)
        reference += seconds(lambda: numpy_splat(cloud, T, camera), 1)
    a, b = float(np.median(ours)), float(np.median(reference))
    print(
        f"splat {len(cloud)} points: {a * 1e3:.1f} ms, numpy {b * 1e3:.1f} ms: {b / a:.1f} x faster"
    )
    surface, anchor = body()
    alone: list[float] = []
    whole: list[float] = []
    for _ in range(args.rounds):
        alone += seconds(lambda: splat_depth(surface, np.eye(4), anchor), 3)
        whole += seconds(lambda: splat(surface, np.eye(4), anchor), 3)
    c, d = float(np.median(alone)), float(np.median(whole))
    print(f"depth alone {c * 1e3:.1f} ms, whole splat {d * 1e3:.1f} ms: {d / c:.1f} x faster")
    if args.json:
        result = {
            "splat_ms": a * 1e3,
            "numpy_ms": b * 1e3,
            "ratio": b / a,
            "depth_ms": c * 1e3,
            "whole_ms": d * 1e3,
            "depth_ratio": d / c,
            **provenance(),
        }
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
