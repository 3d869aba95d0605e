"""Results of an experiment as JSON, as a plot, and as a page."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.experiments.heads import anchors, correspondences, lambdas, robots, spc
from wristworld_ros.experiments.lab import FIGURES, Lab, Result, Settings
from wristworld_ros.experiments.pose_noise import pose_noise
from wristworld_ros.provenance import provenance

EXPERIMENTS: dict[str, Callable[[Lab], Result]] = {
    "spc": spc,
    "lambda": lambdas,
    "anchors": anchors,
    "robots": robots,
    "correspondences": correspondences,
    "pose-noise": pose_noise,
}


def run_experiment(name: str, out: Path, settings: Settings) -> str:
    """Do one experiment of ``EXPERIMENTS``; write results.json, plot.png and README.md to ``out``.

    Returns:
        The page.
    """
    lab = Lab(settings)
    record = provenance(seeds=list(range(settings.seeds)), weights={"stage1": lab.sha256})
    experiment = EXPERIMENTS[name]
    result = experiment(lab)
    out.mkdir(parents=True, exist_ok=True)
    question = (experiment.__doc__ or "").strip()
    document = {
        "experiment": name,
        "question": question,
        "settings": {k: _plain(v) for k, v in asdict(settings).items()},
        "rows": result.rows,
        "findings": result.findings,
        **result.extra,
        "provenance": record,
    }
    (out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(name, result, out / "plot.png")
    text = page(name, question, result, settings, record)
    (out / "README.md").write_text(text)
    return text


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def page(
    name: str, question: str, result: Result, settings: Settings, record: dict[str, Any]
) -> str:
    """README.md of an experiment."""
    hardware = record["hardware"]
    what = f"{settings.seeds} seeds"
    if name != "pose-noise":
        what += f", {settings.steps} steps of {settings.batch_size} frames each"
    lines = [
        f"# Experiment {name}",
        question,
        "",
        "<!-- Written by the command below; do not edit. -->",
        "",
        "## What came out",
        *(f"- {line}" for line in result.findings),
        "",
        *_table(result.rows),
        "",
        "![plot](plot.png)",
        "",
        "## How",
        *(f"- {line}" for line in result.setup),
        f"- {what}. `results.json` has every seed's figures.",
        f"- `{record['command']}`, commit {record['commit']}, {hardware['cpu']}, "
        f"{hardware['cores']} cores, torch {hardware['torch']}.",
        "",
    ]
    return "\n".join(lines)


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    trained = "test" in rows[0]
    figures = list(FIGURES) if trained else ["true", "predicted"]
    head = [f"{n} [{FIGURES[n]}]" if trained else f"{n} depth [dB]" for n in figures]
    head[:2] = ["centre [mm]", "rotation [deg]"] if trained else head
    head[2:] = ["pairs [px]"] if trained else []
    columns = ["run", "tested on", *head] if trained else ["noise", *head]
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = [row["name"], *([row["test"]] if trained else [])]
        lines.append("| " + " | ".join([*cells, *(_cell(row[f]) for f in figures)]) + " |")
    return lines


def _cell(value: dict[str, Any]) -> str:
    if len(value["seeds"]) == 1:
        return f"{value['median']:.1f}"
    return f"{value['median']:.1f} ({value['min']:.1f} to {value['max']:.1f})"


def plot(name: str, result: Result, path: Path) -> None:
    """Heat maps of sweeps over two factors; else a bar per run, with the range of its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    if name == "lambda":
        figure, axes = plt.subplots(1, 3, figsize=(14, 4.2))
        sizes = (len(result.extra["lambda_u"]), len(result.extra["lambda_depth"]))
        for axis, (key, unit) in zip(axes, FIGURES.items(), strict=True):
            sweep = result.rows[: sizes[0] * sizes[1]]  # other runs follow
            grid = np.array([r[key]["median"] for r in sweep]).reshape(sizes)
            _heat(axis, grid, result.extra["lambda_u"], result.extra["lambda_depth"], "viridis_r")
            axis.set(xlabel="lambda_depth", ylabel="lambda_u", title=f"median error [{unit}]")
    elif name == "pose-noise":
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.6))
        sizes = (len(result.extra["millimetres"]), len(result.extra["degrees"]))
        for axis, key in zip(axes, result.extra["depths"], strict=True):
            grid = np.array([r[key]["median"] for r in result.rows]).reshape(sizes)
            _heat(axis, grid, result.extra["millimetres"], result.extra["degrees"], "viridis")
            axis.set(xlabel="rotation [deg]", ylabel="translation [mm]")
            axis.set_title(f"condition map, {key} depth: PSNR [dB]")
    else:
        tests = sorted({r["test"] for r in result.rows})
        names = list(dict.fromkeys(r["name"] for r in result.rows))
        figure, axes = plt.subplots(
            1, 3, figsize=(14, 1.2 + 0.32 * len(names) * len(tests)), sharey=True
        )
        for axis, (key, unit) in zip(axes, FIGURES.items(), strict=True):
            for k, test in enumerate(tests):
                rows = {r["name"]: r[key] for r in result.rows if r["test"] == test}
                places = np.array([names.index(n) for n in rows]) + 0.8 * (k + 0.5) / len(tests)
                middle = np.array([v["median"] for v in rows.values()])
                low, high = (np.array([v[e] for v in rows.values()]) for e in ("min", "max"))
                axis.barh(
                    places,
                    middle,
                    0.75 / len(tests),
                    xerr=np.stack([middle - low, high - middle]),
                    label=f"tested on {test}",
                )
            axis.set_title(f"median error [{unit}]", fontsize=10)
            axis.set_yticks(np.arange(len(names)) + 0.4, names, fontsize=8)
        axes[0].invert_yaxis()
        if len(tests) > 1:
            axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _heat(
    axis: Any, grid: NDArray, rows: Sequence[float], columns: Sequence[float], colours: str
) -> None:
    image = axis.imshow(grid, cmap=colours, aspect="auto")
    axis.set_yticks(range(len(rows)), [f"{x:g}" for x in rows])
    axis.set_xticks(range(len(columns)), [f"{x:g}" for x in columns])
    for i, j in np.ndindex(grid.shape):
        bright = sum(image.cmap(image.norm(grid[i, j]))[:3]) > 1.5
        colour = "black" if bright else "white"
        axis.text(j, i, f"{grid[i, j]:.1f}", ha="center", va="center", fontsize=8, color=colour)
