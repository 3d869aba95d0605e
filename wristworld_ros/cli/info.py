"""``wristworld info``: what is installed and what of it works, for bug reports and checks."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HELP = "show versions, devices, backends, weights and what of ROS is there"

LIBRARIES = (
    "torch", "diffusers", "transformers", "open_clip_torch", "numpy", "transforms3d", "rosbags",
    "opencv-python-headless", "av", "mujoco",
)  # fmt: skip
BACKENDS = ("torch", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
ROS_PACKAGES = ("rclpy", "sensor_msgs", "tf2_msgs", "tf2_ros", "cv_bridge", "launch_ros")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--check", action="store_true", help="also compare weights to their sha256")


def run(args: argparse.Namespace) -> int:
    """Collect and print; returns 1 if ``--check`` finds damaged weights, else 0."""
    report = collect(check=args.check)
    print(json.dumps(report, indent=2) if args.json else as_table(report))
    parts = [part for model in report["weights"].values() for part in model.values()]
    return int(any(isinstance(part, dict) and part.get("intact") is False for part in parts))


def collect(check: bool = False) -> dict[str, Any]:
    """What ``info`` prints, as plain values."""
    import wristworld_ros

    return {
        "wristworld_ros": wristworld_ros.__version__,
        "code": str(Path(wristworld_ros.__file__).resolve().parent),
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.platform()}, {os.cpu_count()} CPUs",
        "cuda devices": _cuda_devices(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "backends": [name for name in BACKENDS if find_spec(name) is not None],
        "ros": {
            "distribution": os.environ.get("ROS_DISTRO", "not sourced"),
            "packages": [name for name in ROS_PACKAGES if find_spec(name) is not None],
            "messages built": find_spec("wristworld_ros.msg") is not None,
        },
        "weights": _weights(check),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cuda_devices() -> list[str]:
    if find_spec("torch") is None:
        return []
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _weights(check: bool) -> dict[str, dict[str, Any]]:
    from wristworld_ros.resources import model_dir, model_names

    if find_spec("torch") is None:
        return {name: {"folder": str(model_dir(name))} for name in model_names()}
    from wristworld_ros.weights import FILE, read_config, sha256_of

    found: dict[str, dict[str, Any]] = {}
    for name in model_names():
        found[name] = {"folder": str(model_dir(name))}
        for config in sorted(model_dir(name).glob("*/config.json")):
            expected = str(read_config(config.parent)["sha256"])
            path = config.parent / FILE
            entry: dict[str, Any] = {
                "sha256": expected,
                "megabytes": round(path.stat().st_size / 1e6, 1) if path.is_file() else 0.0,
            }
            if check:
                entry["intact"] = path.is_file() and sha256_of(path) == expected
            found[name][config.parent.name] = entry
    return found


def as_table(report: dict[str, Any]) -> str:
    """The report as lines of ``name  value``, nested names indented."""
    lines: list[str] = []

    def add(values: dict[str, Any], indent: str) -> None:
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            if isinstance(value, dict) and value:
                lines.append(f"{indent}{name}")
                add(value, indent + "  ")
                continue
            lines.append(f"{indent}{name:{width}}  {_shown(value)}")

    add(report, "")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "not installed"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, dict)):
        return ", ".join(map(str, value)) or "none"
    return str(value)
