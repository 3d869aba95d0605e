"""The scripts under tools/ and the Makefile, as a user calls them."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_make_without_a_target_lists_the_targets() -> None:
    result = run("make", "--no-print-directory")
    targets = set(re.findall(r"^  ([a-z]+) ", result.stdout, re.MULTILINE))
    assert {"setup", "demo", "test", "lint", "bench", "clean"} <= targets
    assert "TORCH=cpu" in result.stdout


def test_make_venv_refuses_a_python_that_does_not_fit(tmp_path) -> None:
    old = executable(tmp_path / "python3.9", "#!/bin/sh\nexit 1\n")
    result = run(TOOLS / "make_venv.sh", tmp_path / "venv", old)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: PYTHON={old} does not run or is not Python 3.10")
    assert not (tmp_path / "venv").exists()


def test_make_venv_says_what_to_do_without_any_python(tmp_path) -> None:
    """Only interpreters that do not fit on PATH, and apt-get cannot help either."""
    for name in ("sh", "id", "tr", "sed"):
        (tmp_path / name).symlink_to(f"/bin/{name}" if name == "sh" else f"/usr/bin/{name}")
    executable(tmp_path / "python3", '#!/bin/sh\n[ "$1" = -V ] || exit 1\necho Python 3.14.0\n')
    result = run("/bin/sh", TOOLS / "make_venv.sh", tmp_path / "venv", PATH=str(tmp_path))
    assert result.returncode == 1
    assert "no Python 3.10, 3.11 or 3.12 found (python3 is Python 3.14.0" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_install_torch_never_falls_back_to_a_cuda_build(tmp_path) -> None:
    """Where the CPU build is nowhere, it fails with a sentence and asks pip for nothing else."""
    log = tmp_path / "log"
    python = executable(tmp_path / "python", f'#!/bin/sh\necho "$@" >> {log}\nexit 1\n')
    result = run(TOOLS / "install_torch.sh", python, "cpu")
    assert result.returncode == 1
    assert "error: the CPU build of torch" in result.stderr
    assert "TORCH=pypi" in result.stderr
    requests = re.findall(r"torch==\S+", log.read_text())
    assert len(requests) == 2
    assert all(request.endswith("+cpu") for request in requests)


def test_install_torch_leaves_what_is_installed(tmp_path) -> None:
    """A second run asks pip for torchvision only."""
    log = tmp_path / "log"
    torch = re.search(r"^torch==(\S+)", (ROOT / "requirements/torch.txt").read_text(), re.M)[1]
    script = f'#!/bin/sh\necho "$@" >> {log}\n[ "$1" != -c ] || echo {torch}+cpu\n'
    python = executable(tmp_path / "python", script)
    assert run(TOOLS / "install_torch.sh", python, "cpu").returncode == 0
    assert " torch==" not in log.read_text()
    assert " torchvision==" in log.read_text()


def test_fix_ros_wheels_rewrites_the_folders_of_the_container(tmp_path) -> None:
    tool = runpy.run_path(str(TOOLS / "fix_ros_wheels.py"))
    targets = tmp_path / "share/some_msgs/cmake/someExport.cmake"
    targets.parent.mkdir(parents=True)
    targets.write_text(
        'INCLUDES "/opt/python/cp311-cp311/include/python3.11;'
        '/opt/python/cp311-cp311/lib/python3.11/site-packages/numpy/_core/include;$<X:a>"\n'
    )
    assert tool["rewrite_targets"](tmp_path, "/python/include", "/numpy/include") == 1
    assert targets.read_text() == 'INCLUDES "/python/include;/numpy/include;$<X:a>"\n'
    assert tool["rewrite_targets"](tmp_path, "/python/include", "/numpy/include") == 0


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_the_setup_script_can_be_sourced_twice(tmp_path, shell) -> None:
    tool = runpy.run_path(str(TOOLS / "fix_ros_wheels.py"))
    script = tmp_path / "setup.sh"
    script.write_text(tool["setup_script"](tmp_path, "jazzy"))
    command = f". {script}; . {script}; echo $AMENT_PREFIX_PATH $ROS_DISTRO; echo $LD_LIBRARY_PATH"
    result = run(shell, "-uc", command, AMENT_PREFIX_PATH="/other", LD_LIBRARY_PATH="/libs")
    assert result.stdout.splitlines() == [f"{tmp_path}:/other jazzy", f"{tmp_path}/lib:/libs"]


def test_the_lock_marks_versions_that_differ() -> None:
    tool = runpy.run_path(str(TOOLS / "lock_requirements.py"))
    locks = {
        "3.10": {"numpy": "2.2.6", "tqdm": "4.70.1", "tomli": "2.5.0"},
        "3.11": {"numpy": "2.4.6", "tqdm": "4.70.1"},
        "3.12": {"numpy": "2.4.6", "tqdm": "4.70.1"},
    }
    assert tool["merge"](locks) == [
        'numpy==2.2.6; python_version == "3.10"',
        'numpy==2.4.6; python_version == "3.11" or python_version == "3.12"',
        "tomli==2.5.0",
        "tqdm==4.70.1",
    ]


@pytest.mark.slow
def test_pip_installs_the_part_that_needs_no_ros(tmp_path) -> None:
    """Modules, simulation packs, weights, configuration and the command, outside the tree."""
    target = tmp_path / "site"
    pip = run(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
        "--no-index", "--target", target, source_copy(tmp_path),
    )  # fmt: skip
    assert pip.returncode == 0, pip.stderr[-2000:]
    package = target / "wristworld_ros"
    assert (package / "py.typed").is_file()
    for folder, source in (
        ("models", ROOT / "models"),
        ("config", ROOT / "config"),
        ("msg", ROOT / "msg"),
    ):
        expected = {p.relative_to(source) for p in source.rglob("*") if p.is_file()}
        installed = {
            p.relative_to(package / "share" / folder)
            for p in (package / "share" / folder).rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }
        assert installed == expected
    packs = {p.name for p in (package / "data/simulation/packs").rglob("*.npz")}
    assert packs == {p.name for p in (ROOT / "wristworld_ros/data/simulation/packs").rglob("*.npz")}
    result = subprocess.run(
        [sys.executable, target / "bin/wristworld", "info"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    assert str(package) in result.stdout


def source_copy(folder: Path) -> Path:
    """The files that pip needs: building inside the tree would leave build/ and egg-info there."""
    copy = folder / "tree"
    copy.mkdir()
    for name in ("wristworld_ros", "models", "config", "msg"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def test_the_reliability_plot_is_drawn_from_the_stored_results(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(TOOLS / "reliability_plot.py"))
    bins = [
        {"pixels": 0.25, "stated": 0.0, "right": 0.6, "error": 0.1},
        {"pixels": 0.75, "stated": 0.95, "right": 0.9, "error": 0.02},
    ]
    known = {"confidence": {"rank_correlation": 0.5, "gap": 0.05, "bins": bins}}
    nothing = {"confidence": {"rank_correlation": None, "gap": None, "bins": bins[:1]}}
    path = tmp_path / "plot.png"
    script["draw"]({"true": known, "estimated": nothing}, path)
    with Image.open(path) as picture:
        wide = picture.width
    script["draw"]({"true": known}, path)
    with Image.open(path) as picture:
        assert picture.width < wide
    monkeypatch.setitem(script["main"].__globals__, "RESULTS", tmp_path / "none.json")
    assert script["main"]() == 1
    assert "none.json is missing; `make figures` makes it" in capsys.readouterr().err
