#!/usr/bin/env python3
"""Let this virtual environment use the package from the source tree, beside the built messages.

    <venv>/source/wristworld_ros           symbolic link to the tree (the tree alone on the path
                                           would bring launch/, test/, ... along as packages)
    <venv>/lib/wristworld_messages/        generated modules, installed by CMakeLists.txt with
                                           -DWRISTWORLD_MESSAGES_ONLY=ON
    <venv>/lib/.../wristworld_source.pth   puts both on the path
    <venv>/bin/wristworld                  the command

``wristworld_ros/__init__.py`` joins the two folders into one package. An edit of the tree is in
force at once, from any working directory. Run it with the environment's own python.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

PACKAGE = "wristworld_ros"
COMMAND = """\
#!{python}
import sys

from wristworld_ros.cli.main import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
"""


def main() -> int:
    """Write the link, the path file and the command."""
    if sys.prefix == sys.base_prefix:
        print(
            f"error: {sys.executable} is not the python of a virtual environment.", file=sys.stderr
        )
        return 1
    root, prefix = Path(__file__).resolve().parents[1], Path(sys.prefix)
    site_packages = Path(sysconfig.get_paths()["purelib"])
    if (site_packages / PACKAGE).exists():
        print(
            f"error: {site_packages / PACKAGE} is an installed copy that would hide the source "
            "tree. Remove it (`pip uninstall wristworld_ros`, or the folder).",
            file=sys.stderr,
        )
        return 1

    link = prefix / "source" / PACKAGE
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(root / PACKAGE, target_is_directory=True)

    paths = [link.parent, prefix / "lib" / "wristworld_messages"]
    (site_packages / "wristworld_source.pth").write_text("".join(f"{path}\n" for path in paths))

    command = prefix / "bin" / "wristworld"
    command.write_text(COMMAND.format(python=prefix / "bin" / "python"))
    command.chmod(0o755)
    print(f"{command} runs the code in {root / PACKAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
