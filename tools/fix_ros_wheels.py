#!/usr/bin/env python3
"""Make PyPI's ROS 2 wheels in this virtual environment usable like an installed distribution.

The wheels were built in a container: their exported CMake targets name its include folders, which
CMake refuses, and they bring no setup script. This rewrites the folders to those of this
environment and writes setup.{sh,bash,zsh} (and local_setup.*, for colcon) into it.

Run it with the environment's own python after every installation of ROS wheels; running it again
changes nothing.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

DISTRIBUTIONS = ("jazzy", "kilted")
#: An include folder of the container's Python, as it stands in the exported targets.
CONTAINER_PATH = re.compile(r'/opt/python/cp\d+-cp\d+/[^;">]*')

SETUP = """\
# Written by tools/fix_ros_wheels.py: the ROS wheels of this environment as a colcon underlay.
_prefix="{prefix}"
case ":${{AMENT_PREFIX_PATH:-}}:" in
  *":$_prefix:"*) ;;
  *)
    export AMENT_PREFIX_PATH="$_prefix${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}"
    export CMAKE_PREFIX_PATH="$_prefix${{CMAKE_PREFIX_PATH:+:$CMAKE_PREFIX_PATH}}"
    export LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
    export PATH="$_prefix/bin:$PATH"
    ;;
esac
unset _prefix
export ROS_DISTRO={distribution} ROS_VERSION=2 ROS_PYTHON_VERSION=3
# The wheels start every python twice to set LD_LIBRARY_PATH; it is set already.
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
"""


def rewrite_targets(prefix: Path, python_include: str, numpy_include: str) -> int:
    """Replace the container's include folders in ``share/*/cmake``; return the files changed."""
    changed = 0
    for path in sorted((prefix / "share").glob("*/cmake/*.cmake")):
        old = path.read_text()
        new = CONTAINER_PATH.sub(
            lambda match: numpy_include if "numpy" in match[0] else python_include, old
        )
        if new != old:
            path.write_text(new)
            changed += 1
    return changed


def setup_script(prefix: Path, distribution: str) -> str:
    """Text of the setup script, valid in sh, bash and zsh."""
    folders = sorted(prefix.glob("lib/python*/site-packages/ros_*.libs"))
    libraries = ":".join(str(folder) for folder in (prefix / "lib", *folders))
    return SETUP.format(prefix=prefix, libraries=libraries, distribution=distribution)


def main() -> int:
    """Repair the environment that runs this file."""
    if sys.prefix == sys.base_prefix:
        print(
            f"error: {sys.executable} is not the python of a virtual environment; run this with "
            "the one that the ROS wheels are installed in.",
            file=sys.stderr,
        )
        return 1
    installed = {d.metadata["Name"].lower() for d in distributions() if d.metadata["Name"]}
    found = [name for name in DISTRIBUTIONS if f"ros-{name}-rclpy" in installed]
    if len(found) != 1:
        print(
            f"error: found the ROS wheels of {' and '.join(found) or 'no distribution'} in "
            f"{sys.prefix}, need those of one. Install requirements/ros-jazzy.txt or "
            "ros-kilted.txt into a new environment.",
            file=sys.stderr,
        )
        return 1
    import numpy

    prefix = Path(sys.prefix)
    changed = rewrite_targets(prefix, sysconfig.get_paths()["include"], numpy.get_include())
    script = setup_script(prefix, found[0])
    for name in ("setup", "local_setup"):
        for shell in ("sh", "bash", "zsh"):
            (prefix / f"{name}.{shell}").write_text(script)
    print(
        f"ROS 2 {found[0]}: {changed} CMake files repaired; `source {prefix}/setup.bash` for colcon"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
