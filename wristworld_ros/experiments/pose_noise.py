"""What an error of the wrist pose costs the condition map; nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.data.simulation.splits import get_split
from wristworld_ros.errors import InvalidInputError
from wristworld_ros.evaluation.baselines import flat_colour, inpainted_splat
from wristworld_ros.evaluation.metrics import psnr
from wristworld_ros.experiments.frames import side_by_side
from wristworld_ros.experiments.lab import Lab, Result
from wristworld_ros.geometry.splatting import splat
from wristworld_ros.reconstruction.reconstructor import Reconstructor
from wristworld_ros.types import FloatArray

MILLIMETRES = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)
DEGREES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
DEPTHS = ("true", "predicted")
#: Of six frames spread evenly over an episode; in its first and last the arm rests.
FRAMES = (1, 4)


@dataclass(frozen=True)
class Grid:
    """Sizes of noise, every one with every other: [mm] and [deg]; which frames of six."""

    millimetres: tuple[float, ...] = MILLIMETRES
    degrees: tuple[float, ...] = DEGREES
    frames: tuple[int, ...] = FRAMES


def disturbed(T: FloatArray, mm: float, deg: float, rng: np.random.Generator) -> FloatArray:
    """A pose moved by ``mm`` in a random direction and turned by ``deg`` about a random axis."""
    shift, axis = rng.normal(size=(2, 3))
    out = T.copy()
    out[:3, 3] += 1e-3 * mm * shift / np.linalg.norm(shift)
    out[:3, :3] = T[:3, :3] @ cv2.Rodrigues(np.deg2rad(deg) * axis / np.linalg.norm(axis))[0]
    return out


@cache
def _reconstructor() -> Reconstructor:
    return Reconstructor.from_pretrained(pose_source="kinematic")


def episode_psnr(seed: int, split: str, seeds: int, grid: Grid = Grid()) -> tuple[NDArray, float]:
    """PSNR [dB] of inpainted condition maps of one episode, means over its frames.

    Args:
        seed: of the episode.
        seeds: number of noise directions, the same for all sizes of noise.
        grid: the sizes.

    Returns:
        depths x seeds x millimetres x degrees, and the PSNR of the true mean colour.
    """
    episode = simulate_episode(seed, split, n_frames=6)
    values = np.zeros((len(DEPTHS), seeds, len(grid.millimetres), len(grid.degrees)))
    flat = 0.0
    for t in grid.frames:
        truth = episode.wrist_rgb[t]
        flat += psnr(flat_colour(truth), truth) / len(grid.frames)
        full = episode.anchor_frame(t, with_depth=True)
        for d, name in enumerate(DEPTHS):
            geometry = "true" if name == "true" else "kinematic"
            result = _reconstructor()(restrict(full, geometry))
            for s, i, j in np.ndindex(values.shape[1:]):
                rng = np.random.default_rng([seed, t, s])
                mm, deg = grid.millimetres[i], grid.degrees[j]
                T = disturbed(episode.T_world_wrist[t], mm, deg, rng)
                drawn = splat(result.cloud, T, episode.wrist_camera)
                picture = inpainted_splat(drawn.image, drawn.mask)
                values[d, s, i, j] += psnr(picture, truth) / len(grid.frames)
    return values, flat


def pose_noise(lab: Lab) -> Result:
    """What an error of the wrist pose costs the condition map."""
    s = lab.settings
    if s.shards or s.val:
        raise InvalidInputError("pose-noise simulates its frames; leave out --shards and --val.")
    split = get_split("val")
    episodes = range(split.first_seed, split.first_seed + s.val_episodes)
    job = partial(episode_psnr, split=split.name, seeds=s.seeds)
    done = list(tqdm(side_by_side(job, episodes, s.processes), total=len(episodes), unit="episode"))
    grid = np.mean([values for values, _ in done], 0)  # depths, seeds, mm, deg
    flat = float(np.mean([flat for _, flat in done]))
    rows = [
        {
            "name": f"{mm:g} mm / {deg:g} deg",
            "mm": mm,
            "deg": deg,
            **{
                depth: {
                    "median": float(np.median(grid[d, :, i, j])),
                    "min": float(grid[d, :, i, j].min()),
                    "max": float(grid[d, :, i, j].max()),
                    "seeds": grid[d, :, i, j].tolist(),
                }
                for d, depth in enumerate(DEPTHS)
            },
        }
        for i, mm in enumerate(MILLIMETRES)
        for j, deg in enumerate(DEGREES)
    ]
    middle = np.median(grid, 1)
    loss = middle[:, :1, :1] - middle
    findings = [
        f"With {depth} depth the condition map has {middle[d, 0, 0]:.1f} dB with the true pose. "
        + ", ".join(
            f"{mm:g} mm / {deg:g} deg cost "
            f"{loss[d, MILLIMETRES.index(mm), DEGREES.index(deg)]:.1f} dB"
            for mm, deg in ((5.0, 1.0), (10.0, 2.0), (20.0, 4.0), (40.0, 8.0))
        )
        + f"; {_below(middle[d], flat)}"
        for d, depth in enumerate(DEPTHS)
    ]
    return Result(
        rows,
        findings,
        [
            f"{len(episodes)} episodes of split val, {len(FRAMES)} frames each, three calibrated "
            "anchors of 256 px, wrist picture of 128 px. The true wrist pose is moved in "
            f"{s.seeds} random directions and turned about as many random axes per frame (the "
            "seeds); the table gives the median over them and, in brackets, smallest to largest.",
            "True depth: measured by the simulated depth cameras, at the anchors' resolution, and "
            "fused as for users who have some. Predicted depth: the shipped stage 1. Both maps are "
            "inpainted (Telea) and compared with the true wrist picture.",
            f"One flat colour, the true mean of each picture, has {flat:.1f} dB.",
        ],
        {"depths": DEPTHS, "millimetres": MILLIMETRES, "degrees": DEGREES, "flat_colour_db": flat},
    )


def _below(grid: NDArray, flat: float) -> str:
    """From which noise on a flat colour is as good."""
    worse = [
        f"{mm:g} mm / {deg:g} deg"
        for k, (mm, deg) in enumerate(zip(MILLIMETRES, DEGREES, strict=True))
        if grid[k, k] < flat
    ]
    if not worse:
        return f"a flat colour ({flat:.1f} dB) stays worse throughout."
    return f"from {worse[0]} on, one flat colour ({flat:.1f} dB) is better."
