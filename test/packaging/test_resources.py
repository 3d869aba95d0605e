"""Weights and configuration are found in every layout that an installation has."""

from __future__ import annotations

from pathlib import Path

import pytest

from wristworld_ros import resources
from wristworld_ros.errors import InvalidInputError, WeightsError

ROOT = Path(__file__).resolve().parents[2]


def first(kind: str, package_folder: Path, environment: dict[str, str]) -> Path:
    """First candidate that exists."""
    folders = resources.candidate_folders(kind, package_folder, environment)
    return next(folder for folder in folders if folder.is_dir())


def test_source_tree() -> None:
    assert resources.candidate_folders("models", ROOT / "wristworld_ros", {}) == [ROOT / "models"]


def test_link_to_the_source_tree(tmp_path) -> None:
    """The layout of `make`: a linked package folder."""
    (tmp_path / "wristworld_ros").symlink_to(ROOT / "wristworld_ros")
    found = resources.candidate_folders("config", tmp_path / "wristworld_ros", {})
    assert found == [ROOT / "config"]


def test_links_to_the_files_of_the_source_tree(tmp_path) -> None:
    """The layout of `colcon build --symlink-install`."""
    package = tmp_path / "lib/python3.12/site-packages/wristworld_ros"
    package.mkdir(parents=True)
    (package / "resources.py").symlink_to(ROOT / "wristworld_ros/resources.py")
    assert resources.candidate_folders("models", package, {}) == [ROOT / "models"]


@pytest.mark.parametrize(
    "modules", ["lib/python3.12/site-packages", "local/lib/python3.10/dist-packages"]
)
def test_colcon_install(tmp_path, modules) -> None:
    package = tmp_path / modules / "wristworld_ros"
    package.mkdir(parents=True)
    models = tmp_path / "share/wristworld_ros/models"
    models.mkdir(parents=True)
    assert first("models", package, {}) == models


def test_pip_install(tmp_path) -> None:
    package = tmp_path / "lib/python3.11/site-packages/wristworld_ros"
    (package / "share/models").mkdir(parents=True)
    (tmp_path / "share/wristworld_ros/models").mkdir(parents=True)
    assert first("models", package, {}) == package / "share/models"


def test_the_environment_comes_first(tmp_path) -> None:
    environment = {"WRISTWORLD_MODELS": str(tmp_path)}
    assert first("models", ROOT / "wristworld_ros", environment) == tmp_path


def test_model_dir_and_names(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WRISTWORLD_MODELS", str(tmp_path))
    for name in ("zebra", "ant"):
        (tmp_path / name / "stage1").mkdir(parents=True)
        (tmp_path / name / "stage1" / "config.json").write_text("{}")
    assert resources.model_dir("ant") == tmp_path / "ant"
    assert {"ant", "zebra"} <= set(resources.model_names())


def test_missing_weights_name_the_places_and_the_cure(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WRISTWORLD_MODELS", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        resources.model_dir("no-such-model")
    message = str(error.value)
    assert "'no-such-model'" in message
    assert str(tmp_path) in message and str(ROOT / "models") in message
    assert "WRISTWORLD_MODELS" in message


def test_config_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WRISTWORLD_CONFIG", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    assert resources.config_file("mine.yaml") == tmp_path / "mine.yaml"
    with pytest.raises(InvalidInputError, match=r"no configuration file 'none\.yaml'"):
        resources.config_file("none.yaml")
