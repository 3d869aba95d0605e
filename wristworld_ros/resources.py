"""Where the shipped weights and configuration files are, in every kind of installation.

``models/`` and ``config/`` stand at the root of the source tree. They are looked for, in this
order, in: the folder that WRISTWORLD_MODELS or WRISTWORLD_CONFIG names; the source tree (also
through links: ``colcon build --symlink-install``, ``make``); the package itself (``pip install``);
``<prefix>/share/wristworld_ros`` (``colcon build``).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from wristworld_ros.errors import InvalidInputError, WeightsError

PACKAGE_FOLDER = Path(__file__).parent


def candidate_folders(
    kind: str, package_folder: Path = PACKAGE_FOLDER, environment: Mapping[str, str] = os.environ
) -> list[Path]:
    """Folders that may hold the resources of one kind, best first, whether they exist or not.

    Args:
        kind: ``models`` or ``config``.
        package_folder: folder of the installed ``wristworld_ros`` modules.
        environment: environment variables.
    """
    folders = []
    if override := environment.get(f"WRISTWORLD_{kind.upper()}"):
        folders.append(Path(override).expanduser())
    root = (package_folder / "resources.py").resolve().parents[1]
    if (root / "package.xml").is_file():
        return [*folders, root / kind]
    folders.append(package_folder / "share" / kind)
    # <prefix>/lib/python3.X/site-packages, or Debian's <prefix>/local/lib/python3.X/dist-packages
    for prefix in list(package_folder.parents)[3:5]:
        folders.append(prefix / "share" / "wristworld_ros" / kind)
    return folders


def model_dir(name: str) -> Path:
    """Folder of the shipped model called ``name``; each network has a folder in it.

    Raises:
        WeightsError: no such folder; the message names the places searched.
    """
    searched = candidate_folders("models")
    for folder in searched:
        if (folder / name).is_dir():
            return folder / name
    available = model_names()
    raise WeightsError(
        f"no weights called '{name}': looked in {', '.join(map(str, searched))}; "
        + (f"there are {', '.join(available)}. " if available else "none of them has any weights. ")
        + "Give the folder of the weights instead, or set WRISTWORLD_MODELS to the folder that "
        "holds them."
    )


def model_names() -> list[str]:
    """Names that ``model_dir`` takes, sorted."""
    return sorted(
        {
            config.parent.parent.name
            for folder in candidate_folders("models")
            for config in folder.glob("*/*/config.json")
        }
    )


def config_file(name: str) -> Path:
    """Path of the shipped configuration file ``name``, such as ``virtual_wrist.yaml``.

    Raises:
        InvalidInputError: no such file; the message names the places searched.
    """
    searched = candidate_folders("config")
    for folder in searched:
        if (folder / name).is_file():
            return folder / name
    raise InvalidInputError(
        f"no configuration file '{name}': looked in {', '.join(map(str, searched))}. Reinstall the "
        "package, or set WRISTWORLD_CONFIG to the folder that holds it."
    )
