"""Environment of every test process, marks that skip what the machine cannot do, fixtures."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import settings

#: Shared cores make single examples slow at times; how long a test takes is not what it asserts.
settings.register_profile("wristworld", deadline=None)
settings.load_profile("wristworld")

ROOT = Path(__file__).resolve().parents[1]
#: Domains up to 101 leave the operating system's ephemeral ports alone.
DOMAINS = range(1, 101)


def _claim_domain() -> tuple[int, TextIO]:
    """A ROS domain that no other test process on this machine has; held as long as the file."""
    start = os.getpid()
    for offset in range(len(DOMAINS)):
        domain = DOMAINS[(start + offset) % len(DOMAINS)]
        lock = Path(tempfile.gettempdir(), f"wristworld-ros-domain-{domain}.lock").open("a")  # noqa: SIM115
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        return domain, lock
    raise RuntimeError(f"all ROS domains {DOMAINS} are taken by other test processes")


def _folder(name: str) -> str:
    """A folder for this process alone, removed with it."""
    path = tempfile.mkdtemp(prefix=f"wristworld-{name}-")
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


# Before anything imports rclpy or torch.
_domain, _domain_lock = _claim_domain()
os.environ.update(
    ROS_DOMAIN_ID=str(_domain),
    ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
    ROS_PYTHON_CHECK_FIELDS="1",  # without it a wrong field type aborts the process
    ROS_LOG_DIR=_folder("ros-log"),
    OMP_WAIT_POLICY="PASSIVE",  # idle threads must not spin: workers share the cores
    HF_HUB_OFFLINE="1",
    WRISTWORLD_ENGINES=_folder("engines"),  # none of the user's own
    MPLBACKEND="Agg",
)
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def realdata_folder() -> Path | None:
    """Folder of the real recordings (it holds droid/ and station/), or None."""
    named = os.environ.get("WRISTWORLD_REALDATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "realdata"
    return folder if (folder / "droid").is_dir() else None


def _missing_for(mark: str) -> str | None:
    """Why tests with this mark cannot run here, or None."""
    if mark == "real" and realdata_folder() is None:
        return "no real recordings: set WRISTWORLD_REALDATA to the folder that holds droid/"
    if mark == "ros":
        if find_spec("rclpy") is None:
            return "no rclpy: run `make test`, or source a ROS 2 installation"
        if find_spec("wristworld_ros.msg") is None:
            return "the messages are not built: run `make setup` or colcon build"
    if mark == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "no CUDA device"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests whose marks ask for what is not there."""
    reasons = {
        mark: _missing_for(mark)
        for mark in ("gpu", "real", "ros")
        if any(item.get_closest_marker(mark) for item in items)
    }
    for item in items:
        for mark, reason in reasons.items():
            if reason and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def root() -> Path:
    """Root of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def realdata() -> Path:
    """Folder of the real recordings; use it together with the mark ``real``."""
    folder = realdata_folder()
    assert folder is not None, "mark this test with pytest.mark.real"
    return folder


@pytest.fixture(scope="session")
def ros_domain_id() -> int:
    """ROS domain of this test process, for the environment of processes that a test starts."""
    return _domain
