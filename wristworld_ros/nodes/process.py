"""What a node's process needs before, around and after ``spin``: memory, DDS profile, shutdown."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import traceback
from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, NoReturn

from wristworld_ros.errors import WristWorldError
from wristworld_ros.resources import config_file

if TYPE_CHECKING:
    from wristworld_ros.nodes.base import WristNode

PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
PROFILE_NAME = "fastdds_large_messages.xml"

# glibc's mallopt parameters: large buffers stay on the heap instead of being mapped and unmapped
# for every image, which halves the latency of raw images.
_MALLOPT = {-3: 64 << 20, -1: 256 << 20, -2: 32 << 20}


def dds_environment(environment: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Variables that make Fast DDS carry large messages; empty when the user has set a profile."""
    environment = os.environ if environment is None else environment
    if any(environment.get(name) for name in PROFILE_VARIABLES):
        return {}
    return dict.fromkeys(PROFILE_VARIABLES, str(config_file(PROFILE_NAME)))


def prepare_process() -> None:
    """Set allocator and DDS profile; has to run before ``rclpy.init``."""
    os.environ.update(dds_environment())
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in _MALLOPT.items():
            mallopt(parameter, value)


def run_node(factory: Callable[[], WristNode], args: Sequence[str] | None = None) -> NoReturn:
    """Spin one node until a signal ends it, then end the process.

    The exit code is 0 after a signal, 2 when the parameters are wrong (with one line on stderr).
    Once node, worker and context are down the process leaves at once: taking torch apart object by
    object costs seconds, and threads that still hold C++ objects can abort it.
    """
    try:
        code = _spin(factory, args)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _spin(factory: Callable[[], WristNode], args: Sequence[str] | None) -> int:
    prepare_process()
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    rclpy.init(args=args)
    node = None
    executor = SingleThreadedExecutor()
    try:
        node = factory()
        executor.add_node(node)
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except WristWorldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        if node is not None:
            node.close()
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown()
        rclpy.try_shutdown()
    return 0
