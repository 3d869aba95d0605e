"""What experiments share: settings, frozen features, runs side by side, and summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from wristworld_ros.data.simulation.shards import write_shards
from wristworld_ros.data.simulation.splits import get_split
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.experiments.features import stored
from wristworld_ros.experiments.frames import (
    BATCH,
    UNSEEN,
    FrameSource,
    from_shards,
    side_by_side,
)
from wristworld_ros.experiments.head_training import Run, execute
from wristworld_ros.reconstruction.correspondence import CorrespondenceSource
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.resources import model_dir
from wristworld_ros.training.loop import LoopConfig
from wristworld_ros.weights import load_weights, read_config

#: What is measured of every run: name -> unit.
FIGURES = {"mm": "mm", "deg": "deg", "px": "px"}


@dataclass(frozen=True)
class Settings:
    """How an experiment is done.

    Attributes:
        cache: folder of simulated shards and of frozen features.
        seeds: number of trainings of each kind (of noise directions where nothing is trained).
        steps: of each training.
        episodes, val_episodes: to train on and to test on, of 6 frames each.
        shards, val: folders of shards in place of simulating.
        batch_size, learning_rate: of each training.
        processes: side by side, of one thread each.
    """

    cache: Path
    seeds: int = 3
    steps: int = 300
    episodes: int = 120
    val_episodes: int = 40
    shards: Path | None = None
    val: Path | None = None
    batch_size: int = 8
    learning_rate: float = 1e-3
    processes: int = 2

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "episodes", "val_episodes", "processes"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; need at least 1.")


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        rows: for the table and for ``results.json``.
        findings: sentences, made of the figures.
        setup: sentences that say what was compared, and how.
        extra: further values for ``results.json``.
    """

    rows: list[dict[str, Any]]
    findings: list[str]
    setup: list[str]
    extra: dict[str, Any] = field(default_factory=dict)


class Lab:
    """Frozen features and runs of one experiment."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.weights_folder = model_dir("mini") / "stage1"

    @cached_property
    def sha256(self) -> str:
        """Of the backbone's weights."""
        return str(read_config(self.weights_folder)["sha256"])

    @cached_property
    def model(self) -> Stage1Model:
        """The shipped stage 1."""
        model = Stage1Model.from_config(read_config(self.weights_folder)["config"])
        load_weights(self.weights_folder, model)
        return model

    def train_frames(self) -> FrameSource:
        """Both pandas: the first episodes of the given shards, else of seeds that the backbone has
        not seen."""
        folder = self.settings.shards or self._simulated("train", UNSEEN, self.settings.episodes)
        return from_shards(folder, self.settings.episodes)

    def val_frames(self) -> FrameSource:
        """Both pandas, held out."""
        first = get_split("val").first_seed
        folder = self.settings.val or self._simulated("val", first, self.settings.val_episodes)
        return from_shards(folder, self.settings.val_episodes)

    def _simulated(self, split: str, first: int, episodes: int) -> Path:
        folder = self.settings.cache / f"shards-{split}"
        write_shards(
            split,
            range(first, first + episodes),
            folder,
            frames_per_episode=BATCH,
            processes=self.settings.processes,
        )
        return folder

    def features(
        self,
        frames: FrameSource,
        views: int = 3,
        matcher: tuple[str, CorrespondenceSource] | None = None,
    ) -> Path:
        """Folder of frozen features, computed or from the cache."""
        s = self.settings
        return stored(s.cache, self.model, self.sha256, frames, views, matcher, s.processes)

    def execute(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Every run with every seed; one row per run and test set, see ``summary``."""
        s = self.settings
        loop = LoopConfig(
            steps=s.steps,
            batch_size=s.batch_size,
            learning_rate=s.learning_rate,
            warmup=min(40, s.steps // 5),
            ema=0.98,
            checkpoint_every=s.steps + 1,
        )
        jobs = [replace(r, loop=replace(loop, seed=i)) for r in runs for i in range(s.seeds)]
        bar = tqdm(
            side_by_side(execute, jobs, s.processes), total=len(jobs), unit="run", mininterval=1.0
        )
        errors: dict[tuple[str, str], list[dict[str, float]]] = {}
        for run, tests in zip(jobs, bar, strict=True):
            for test, values in tests.items():
                errors.setdefault((run.name, test), []).append(values)
        return [summary(name, test, values) for (name, test), values in errors.items()]


def summary(name: str, test: str, values: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A row: per figure the median over seeds, smallest, largest, and every seed's value."""
    row: dict[str, Any] = {"name": name, "test": test}
    for figure in FIGURES:
        each = [v[figure] for v in values]
        row[figure] = {
            "median": float(np.median(each)),
            "min": min(each),
            "max": max(each),
            "seeds": each,
        }
    return row


def find(rows: Sequence[dict[str, Any]], name: str, test: str = "val") -> dict[str, Any]:
    """The row of a run and a test set."""
    return next(r for r in rows if (r["name"], r["test"]) == (name, test))


def pose(row: dict[str, Any]) -> str:
    """``12 mm / 3.4 deg`` of a row."""
    return f"{row['mm']['median']:.0f} mm / {row['deg']['median']:.1f} deg"


def clearly_better(a: dict[str, Any], b: dict[str, Any], figure: str) -> bool:
    """Whether every seed of ``a`` beats every seed of ``b``."""
    return bool(a[figure]["max"] < b[figure]["min"])


def compare(a: dict[str, Any], b: dict[str, Any]) -> str:
    """One sentence: which of two rows has the smaller errors, and whether all seeds agree."""
    parts = []
    for figure, unit in FIGURES.items():
        x, y = a[figure]["median"], b[figure]["median"]
        if clearly_better(a, b, figure) or clearly_better(b, a, figure):
            word = "better" if x < y else "worse"
        else:
            word = "within the spread of seeds"
        parts.append(f"{x:.1f} against {y:.1f} {unit} ({word})")
    return f"'{a['name']}' against '{b['name']}' on {a['test']}: " + ", ".join(parts) + "."
