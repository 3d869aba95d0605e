"""One small episode of each robot, rendered once for all tests."""

from __future__ import annotations

import pytest

from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode

WRIST_SIZE, ANCHOR_SIZE = (64, 48), (128, 96)


@pytest.fixture(scope="session")
def episode() -> SimulatedEpisode:
    """Panda with the Robotiq gripper, three anchors, eight frames."""
    return simulate_episode(
        100_000, "val", wrist_size=WRIST_SIZE, anchor_size=ANCHOR_SIZE, n_frames=8
    )


@pytest.fixture(scope="session")
def panda_episode() -> SimulatedEpisode:
    """Panda with its own hand, without shadows."""
    return simulate_episode(
        1, "train", wrist_size=WRIST_SIZE, anchor_size=ANCHOR_SIZE, n_frames=6, shadows=False
    )


@pytest.fixture(scope="session")
def ur5e_episode() -> SimulatedEpisode:
    """The held-out robot with everything else held out too."""
    return simulate_episode(
        700_001, "test-all", wrist_size=WRIST_SIZE, anchor_size=ANCHOR_SIZE, n_frames=4
    )
