"""Imports point downwards only, and the core knows no ROS."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PACKAGE = "wristworld_ros"
ROOT = Path(__file__).resolve().parents[1]
BASE = {"errors", "types"}
#: What a part of the package may import from the others. Nothing else may import it.
ALLOWED = {
    "__init__": set(),
    "errors": set(),
    "types": {"errors"},
    "compat": {"errors"},
    "packaged_weights": {"errors"},
    "provenance": {"__init__"},
    "resources": {"errors"},
    "weights": {*BASE, "resources"},
    "geometry": BASE,
    "runtime": {*BASE, "resources"},
    "reconstruction": {*BASE, "geometry", "runtime", "compat", "resources", "weights"},
    "generation": {
        *BASE, "geometry", "runtime", "compat", "packaged_weights", "resources", "weights",
        "reconstruction",
    },
    "data": {*BASE, "geometry", "resources"},
    "calibration": {*BASE, "geometry", "resources", "reconstruction", "data"},
    "training": {
        *BASE, "geometry", "runtime", "compat", "provenance", "resources", "weights",
        "reconstruction", "generation", "data",
    },
    "evaluation": {
        *BASE, "geometry", "runtime", "compat", "packaged_weights", "provenance", "resources",
        "weights", "reconstruction", "generation", "data",
    },
    "experiments": {
        *BASE, "geometry", "provenance", "resources", "weights", "reconstruction", "data",
        "training", "evaluation",
    },
}  # fmt: skip
#: The drivers: they may import everything, and nothing else may import them.
DRIVERS = ("cli", "nodes")
CORE = [part for part in ALLOWED if part != "__init__"]
#: Names of ROS packages that are not recognised by their ending.
ROS_NAMES = {
    "rclpy", "launch", "launch_ros", "launch_testing", "cv_bridge", "tf2_ros", "tf2_py",
    "sensor_msgs_py", "message_filters", "diagnostic_updater", "rosbag2_py", "rcl_interfaces",
    "builtin_interfaces", "rosidl_runtime_py", "ros2cli",
}  # fmt: skip
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))


def is_ros(name: str) -> bool:
    """Whether a top-level module belongs to a ROS installation."""
    return (
        name in ROS_NAMES
        or name.startswith(("ament_", "rosidl_", "rmw_"))
        or name.endswith(("_msgs", "_srvs"))
    )


def part_of(path: Path) -> str:
    """Part of the package that a module belongs to: its first folder, or its own name."""
    return path.relative_to(ROOT / PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def imported_modules(path: Path) -> frozenset[str]:
    """Full names of all that a module imports, inside functions too."""
    package = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from wristworld_ros import data` imports the submodule.
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imported_parts(path: Path) -> set[str]:
    """Other parts of the package that a module imports."""
    parts = {
        name.split(".")[1] for name in imported_modules(path) if name.startswith(f"{PACKAGE}.")
    }
    known = {*ALLOWED, *DRIVERS, "msg"}
    return (parts & known) - {part_of(path)}


def test_every_part_of_the_package_has_a_rule() -> None:
    parts = {part_of(path) for path in MODULES}
    assert parts <= {*ALLOWED, *DRIVERS}, "name the new part in ALLOWED and say what it may import"


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_downwards(part: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(imported_parts(path) - ALLOWED[part])
        for path in MODULES
        if part_of(path) == part and imported_parts(path) - ALLOWED[part]
    }
    assert wrong == {}


def test_nodes_do_not_import_the_command_line() -> None:
    assert all("cli" not in imported_parts(p) for p in MODULES if part_of(p) == "nodes")


def test_the_order_of_the_parts_has_no_cycle() -> None:
    remaining = dict(ALLOWED)
    while free := [part for part, below in remaining.items() if not below & remaining.keys()]:
        for part in free:
            del remaining[part]
    assert remaining == {}


def test_only_nodes_import_ros() -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(ros)
        for path in MODULES
        if part_of(path) != "nodes"
        and (ros := {n for n in imported_modules(path) if is_ros(n.split(".")[0])})
    }
    assert wrong == {}


def test_the_core_imports_where_ros_is_absent() -> None:
    """Every core module is imported in a process in which ROS packages cannot be imported."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if part_of(path) in CORE
    ]
    code = f"""
        import importlib, importlib.abc, sys

        class NoRos(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                top = name.split(".")[0]
                if (top in {ROS_NAMES!r} or top.startswith(("ament_", "rosidl_", "rmw_"))
                        or top.endswith(("_msgs", "_srvs")) or name == "{PACKAGE}.msg"):
                    raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)

        sys.meta_path.insert(0, NoRos())
        for name in {modules!r}:
            importlib.import_module(name)
        print(len({modules!r}))
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip() == str(len(modules))


def test_modules_stay_below_500_lines() -> None:
    long = {p.name: n for p in MODULES if (n := len(p.read_text().splitlines())) >= 500}
    assert long == {}
