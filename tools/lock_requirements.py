#!/usr/bin/env python3
"""Pin the versions of all that the requirement files pull in.

Writes requirements/constraints.txt, and constraints-ros-jazzy.txt for the ROS wheels. Every given
interpreter resolves the files by `pip install --dry-run`, which downloads metadata only; versions
that differ between them get a marker. Needs one interpreter for each supported Python:

    tools/lock_requirements.py python3.10 python3.11 python3.12
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("torch.txt", "base.txt", "dev.txt", "runtimes.txt", "ros-jazzy.txt")
#: Parts of torch's CUDA build, where pip knows no CPU build, and what venv brings.
NOT_LOCKED = re.compile(r"(nvidia-.*|cuda-.*|triton|pip)$")
HEADER = """\
# Written by tools/lock_requirements.py: versions of everything that the other files pull in.
# Use it with `pip install -c`; edit the other files and run the tool again.
"""


def resolve(python: str) -> tuple[str, dict[str, str]]:
    """Return (major.minor, canonical name -> version) as ``python`` would install the files."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", "--upgrade", "pip"], check=True)
        report = Path(folder, "report.json")
        arguments = [a for name in FILES for a in ("-r", str(ROOT / "requirements" / name))]
        subprocess.run(
            [*pip, "install", "--quiet", "--dry-run", "--report", str(report), *arguments],
            check=True,
        )
        content = json.loads(report.read_text())
    version = content["environment"]["python_version"]
    found = {}
    for item in content["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if not NOT_LOCKED.match(name):
            found[name] = item["metadata"]["version"].split("+")[0]  # any build of torch fits
    return version, found


def merge(locks: dict[str, dict[str, str]]) -> list[str]:
    """One line for each package, or one for each version of it with the Pythons that take it."""
    lines = []
    for name in sorted(set().union(*locks.values())):
        versions: dict[str, list[str]] = {}
        for python, found in locks.items():
            if name in found:
                versions.setdefault(found[name], []).append(python)
        if len(versions) == 1:
            lines.append(f"{name}=={next(iter(versions))}")
            continue
        for version, pythons in versions.items():
            marker = " or ".join(f'python_version == "{p}"' for p in pythons)
            lines.append(f"{name}=={version}; {marker}")
    return lines


def main() -> int:
    """Resolve with every interpreter given, write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("python", nargs="+", help="interpreters, one for each supported version")
    locks = dict(resolve(python) for python in parser.parse_args().python)
    lines = merge(locks)
    for name, chosen in (
        ("constraints.txt", [line for line in lines if not line.startswith("ros-")]),
        ("constraints-ros-jazzy.txt", [line for line in lines if line.startswith("ros-")]),
    ):
        (ROOT / "requirements" / name).write_text(HEADER + "\n".join(chosen) + "\n")
    print(f"{len(lines)} lines for Python {', '.join(sorted(locks))} written to requirements/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
