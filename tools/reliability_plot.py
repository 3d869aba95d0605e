#!/usr/bin/env python3
"""Draw docs/reliability.png: what confidence states against what is right, per kind of geometry.

From docs/results/test-iid.json, which `make figures` measures. Above, the share of right pixels at
each tenth of confidence, of which the diagonal is the truth told; below, how many pixels state it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "test-iid.json"
PLOT = ROOT / "docs" / "reliability.png"
TITLES = {
    "true": "measured depth",
    "robot": "calibration, kinematics, URDF",
    "kinematic": "calibration, kinematics",
    "calibrated": "calibration",
    "estimated": "pictures only",
}
MEASURED, IMAGINED = "#1f9e89", "#f0843c"


def draw(results: dict[str, Any], path: Path) -> None:
    """A column per kind of geometry.

    Args:
        results: geometry -> result of `wristworld evaluate stage2`.
    """
    figure, axes = plt.subplots(
        2, len(results), figsize=(2.6 * len(results), 4.2), squeeze=False, sharex=True,
        sharey="row", height_ratios=(3, 1), layout="constrained",
    )  # fmt: skip
    for (name, result), above, below in zip(results.items(), axes[0], axes[1], strict=True):
        bins = result["confidence"]["bins"]
        above.plot((0, 1), (0, 1), color="0.7", linewidth=1)
        measured = [b for b in bins if b["stated"] > 0]
        above.plot(
            [b["stated"] for b in measured], [b["right"] for b in measured], "o-", color=MEASURED,
            markersize=4,
        )  # fmt: skip
        for b in bins:
            imagined = b["stated"] == 0
            if imagined:
                above.plot(0, b["right"], "o", color=IMAGINED, markersize=6, clip_on=False)
            low = 0.0 if imagined else min(int(b["stated"] * 10), 9) / 10
            below.bar(low + 0.05, b["pixels"], width=0.09, color=IMAGINED if imagined else MEASURED)
        rank, gap = result["confidence"]["rank_correlation"], result["confidence"]["gap"]
        told = [
            f"{word} {value:.2f}"
            for word, value in (("rank corr.", rank), ("off by", gap))
            if value is not None
        ]
        above.set_title(TITLES[name] + "\n" + ", ".join(told), fontsize=9)
        above.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        below.set(ylim=(0, 1), xlabel="stated confidence")
    axes[0][0].set_ylabel("share of pixels right")
    axes[1][0].set_ylabel("share of\npixels")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> int:
    """Draw from the stored results."""
    if not RESULTS.exists():
        print(f"error: {RESULTS} is missing; `make figures` makes it.", file=sys.stderr)
        return 1
    draw(json.loads(RESULTS.read_text())["results"], PLOT)
    print(PLOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
