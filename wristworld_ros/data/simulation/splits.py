"""Named splits: each has its own range of seeds and changes known factors against ``train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wristworld_ros.errors import InvalidInputError

#: Range of azimuths [deg] for anchors 0, 1, 2 as seen from the workspace; 0 faces the robot.
#: Further anchors start again at the first sector.
FRONT_SECTORS = ((-75.0, -25.0), (25.0, 75.0), (-22.0, 22.0))
SIDE_AND_REAR_SECTORS = ((-120.0, -80.0), (80.0, 120.0), (150.0, 210.0))

_TRAIN_ROBOTS = ("panda_2f85", "panda")
_SEEDS_PER_SPLIT = 100_000


@dataclass(frozen=True)
class Split:
    """One distribution of episodes.

    Attributes:
        name: of the split.
        first_seed, last_seed: range of its seeds, both included.
        robots: alternate by seed.
        sectors: azimuth ranges of the anchors [deg].
        held_out_objects, held_out_textures: use the families that ``train`` never shows.
        moved_mount: the wrist camera is mounted 3-5 cm and 8 deg away from its nominal place.
    """

    name: str
    first_seed: int
    robots: tuple[str, ...] = _TRAIN_ROBOTS
    sectors: tuple[tuple[float, float], ...] = FRONT_SECTORS
    held_out_objects: bool = False
    held_out_textures: bool = False
    moved_mount: bool = False

    @property
    def last_seed(self) -> int:
        """Last seed that belongs to this split."""
        return self.first_seed + _SEEDS_PER_SPLIT - 1

    def robot_of(self, seed: int) -> str:
        """Name of the robot that ``seed`` uses; checks the seed."""
        self.check_seed(seed)
        return self.robots[seed % len(self.robots)]

    def check_seed(self, seed: int) -> None:
        """Raise InvalidInputError unless ``seed`` belongs to this split."""
        if not self.first_seed <= seed <= self.last_seed:
            raise InvalidInputError(
                f"seed {seed} does not belong to split '{self.name}', whose seeds are "
                f"{self.first_seed} to {self.last_seed}. Splits never share seeds."
            )


SPLITS: Mapping[str, Split] = {
    split.name: split
    for split in (
        Split("train", 0),
        Split("val", 100_000),
        Split("test-iid", 200_000),
        Split("test-objects", 300_000, held_out_objects=True, held_out_textures=True),
        Split("test-cameras", 400_000, sectors=SIDE_AND_REAR_SECTORS),
        Split("test-mount", 500_000, moved_mount=True),
        Split("test-robot", 600_000, robots=("ur5e",)),
        Split(
            "test-all",
            700_000,
            robots=("ur5e",),
            sectors=SIDE_AND_REAR_SECTORS,
            held_out_objects=True,
            held_out_textures=True,
            moved_mount=True,
        ),
    )
}


def get_split(name: str) -> Split:
    """The split called ``name``.

    Raises:
        InvalidInputError: it is not one of ``SPLITS``.
    """
    if name not in SPLITS:
        raise InvalidInputError(f"no split '{name}'; use one of {', '.join(SPLITS)}.")
    return SPLITS[name]
