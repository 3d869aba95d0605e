"""package.xml, CMakeLists.txt, setup.py and the requirement files agree with the code."""

from __future__ import annotations

import ast
import re
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest import mock

import pytest
import yaml

import wristworld_ros

ROOT = Path(__file__).resolve().parents[2]
#: Import name -> name on PyPI, where they differ.
DISTRIBUTIONS = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "open_clip": "open_clip_torch",
    "skimage": "scikit-image", "yaml": "pyyaml", "tensorrt_rtx": "tensorrt-rtx",
    "backports": "backports.zstd",
}  # fmt: skip
#: Imported only if installed, and for a stated reason not required.
OPTIONAL = {
    "torchvision",  # comes with open_clip_torch
    "compression",  # standard library from Python 3.14 on
}
ROS_IN_CODE = {
    "rclpy", "launch", "launch_ros", "cv_bridge", "tf2_ros", "sensor_msgs_py", "rcl_interfaces",
    "builtin_interfaces", "ament_index_python",
}  # fmt: skip


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(line: str) -> str:
    return canonical(re.split(r"[<>=!;\[ ]", line, maxsplit=1)[0])


def read_requirements(name: str) -> dict[str, str]:
    """Canonical name -> rest of the line."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    return {requirement_name(line): line for line in lines if line}


def imports_below(*folders: str) -> set[str]:
    """Top-level names that the modules below these folders import, inside functions too."""
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.split(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
    return found


def is_ros(name: str) -> bool:
    return name in ROS_IN_CODE or name.endswith(("_msgs", "_srvs"))


@pytest.fixture(scope="module")
def setup_arguments() -> dict:
    """What setup.py passes to setuptools.setup."""
    with mock.patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


@pytest.fixture(scope="module")
def package_xml() -> ElementTree.Element:
    return ElementTree.parse(ROOT / "package.xml").getroot()


def test_one_version_everywhere(setup_arguments, package_xml) -> None:
    changelog = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert wristworld_ros.__version__ == setup_arguments["version"]
    assert wristworld_ros.__version__ == package_xml.findtext("version")
    assert wristworld_ros.__version__ == changelog[1]


def test_license_is_apache_2(setup_arguments, package_xml) -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert len(text.splitlines()) == 202
    assert package_xml.findtext("license") == setup_arguments["license"] == "Apache-2.0"


def test_package_xml_builds_as_an_interface_package(package_xml) -> None:
    assert package_xml.findtext("export/build_type") == "ament_cmake"
    assert package_xml.findtext("member_of_group") == "rosidl_interface_packages"


def test_every_ros_import_is_declared(package_xml) -> None:
    declared = {e.text for e in package_xml if e.tag in ("depend", "exec_depend")}
    imported = {name for name in imports_below("wristworld_ros", "launch") if is_ros(name)}
    assert imported - declared == set()


def test_every_cmake_dependency_is_declared(package_xml) -> None:
    declared = {e.text for e in package_xml if e.tag.endswith("depend")}
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert set(re.findall(r"find_package\((\w+)", cmake)) - declared == set()


def test_every_python_import_is_declared(setup_arguments) -> None:
    extras = [r for lines in setup_arguments["extras_require"].values() for r in lines]
    declared = {requirement_name(r) for r in (*setup_arguments["install_requires"], *extras)}
    third_party = {
        name
        for name in imports_below("wristworld_ros") - OPTIONAL - {"wristworld_ros"}
        if name not in sys.stdlib_module_names and not is_ros(name)
    }
    needed = {canonical(DISTRIBUTIONS.get(name, name)) for name in third_party}
    assert needed - declared == set()


def test_no_ros_package_is_required_from_pypi(setup_arguments) -> None:
    extras = [r for lines in setup_arguments["extras_require"].values() for r in lines]
    names = {re.split(r"[<>=!;\[ ]", r)[0] for r in (*setup_arguments["install_requires"], *extras)}
    assert [name for name in names if is_ros(name.replace("-", "_"))] == []


def test_requirement_files_pin_what_setup_py_requires(setup_arguments) -> None:
    pinned = read_requirements("base.txt") | read_requirements("torch.txt")
    required = {requirement_name(r) for r in setup_arguments["install_requires"]}
    assert required - pinned.keys() == set()


@pytest.mark.parametrize(
    "name",
    ["base.txt", "dev.txt", "runtimes.txt", "torch.txt", "weights.txt", "ros-jazzy.txt",
     "ros-kilted.txt", "constraints.txt", "constraints-ros-jazzy.txt"],
)  # fmt: skip
def test_requirement_files_pin_exactly(name) -> None:
    lines = read_requirements(name).values()
    assert [line for line in lines if not re.match(r"[\w.-]+==[\w.+]+(;|$| )", line)] == []


def test_constraints_agree_with_the_requirement_files() -> None:
    locked = {
        line
        for name in ("constraints.txt", "constraints-ros-jazzy.txt")
        for line in (ROOT / "requirements" / name).read_text().splitlines()
        if "==" in line
    }
    versions: dict[str, set[str]] = {}
    for line in locked:
        versions.setdefault(requirement_name(line), set()).add(line.split("==")[1].split(";")[0])
    for file in ("torch.txt", "base.txt", "dev.txt", "runtimes.txt", "ros-jazzy.txt"):
        for line in (ROOT / "requirements" / file).read_text().splitlines():
            requirement = line.split("#")[0].strip()
            if requirement:
                name, version = requirement_name(requirement), requirement.split("==")[1]
                assert version.split(";")[0] in versions[name], requirement


def test_cmake_lists_every_message() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    listed = set(re.findall(r'"(msg/\w+\.msg)"', cmake))
    assert listed == {f"msg/{path.name}" for path in (ROOT / "msg").glob("*.msg")}
    assert "GLOB" not in cmake


def test_every_executable_has_a_main_and_every_node_an_executable() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    executables = dict(re.findall(r"^\s+(\w+)=([\w.]+)\)?$", cmake, re.MULTILINE))
    for module in executables.values():
        path = ROOT / "wristworld_ros" / Path(*module.split(".")).with_suffix(".py")
        functions = {
            node.name for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef)
        }  # fmt: skip
        assert "main" in functions, path
    nodes = {path.stem for path in (ROOT / "wristworld_ros/nodes").glob("*_node.py")}
    assert nodes == {name for name in executables if name.endswith("_node")}


def test_every_data_file_of_the_package_is_installed_by_pip(setup_arguments) -> None:
    package = ROOT / "wristworld_ros"
    patterns = [
        (package / Path(*name.split(".")[1:]), pattern)
        for name, entries in setup_arguments["package_data"].items()
        if ".share." not in name
        for pattern in entries
    ]
    installed = {p for folder, pattern in patterns for p in folder.glob(pattern)}
    data = {
        p for p in package.rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc") and "__pycache__" not in p.parts
    }  # fmt: skip
    assert data - installed == set()


def test_every_folder_with_modules_is_a_package(setup_arguments) -> None:
    package = ROOT / "wristworld_ros"
    folders = {p.parent for p in package.rglob("*.py")}
    names = {".".join(f.relative_to(ROOT).parts) for f in folders}
    assert names - set(setup_arguments["packages"]) == set()


def test_the_rviz_view_shows_topics_that_the_nodes_publish() -> None:
    view = yaml.safe_load((ROOT / "resource/virtual_wrist.rviz").read_text())
    displays = view["Visualization Manager"]["Displays"]
    topics = {d["Topic"]["Value"].removeprefix("/") for d in displays if "Topic" in d}
    nodes = "".join(p.read_text() for p in (ROOT / "wristworld_ros/nodes").glob("*_node.py"))
    assert len(topics) == 4
    assert [topic for topic in topics if f'"{topic}"' not in nodes] == []
