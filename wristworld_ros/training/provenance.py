"""Where a result comes from: command, commit, seed, hardware, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from wristworld_ros.training.loop import LoopConfig


def git_commit() -> str:
    """Commit of the source tree, with ``-dirty`` when it was changed; ``unknown`` outside git."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def hardware() -> dict[str, Any]:
    """Processor, cores and library versions."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def training_record(loop: LoopConfig, extra: dict[str, Any]) -> dict[str, Any]:
    """What config.json says about how its weights came to be."""
    command = " ".join(["wristworld", *sys.argv[1:]])
    return {
        "command": command,
        "commit": git_commit(),
        "loop": asdict(loop),
        "hardware": hardware(),
        **extra,
    }
