"""Networks that correct what one stage 1 says: their weights belong to its weights."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from wristworld_ros.errors import WeightsError
from wristworld_ros.reconstruction.fine_depth import FineDepth
from wristworld_ros.reconstruction.hand_depth import HandDepth
from wristworld_ros.weights import load_weights, read_config

Companion = TypeVar("Companion", HandDepth, FineDepth)


def load_companion(folder: Path, kind: type[Companion], stage1_sha256: str) -> Companion | None:
    """Weights for use with a stage 1 of that sha256; None where the folder is missing.

    Raises:
        WeightsError: they are truncated, altered, do not fit, or were trained with another stage 1.
    """
    if not folder.exists():
        return None
    document = read_config(folder)
    model = kind.from_config(document["config"])
    model.sha256 = load_weights(folder, model)
    if document.get("stage1") != stage1_sha256:
        raise WeightsError(
            f"{folder} was trained with the stage 1 {str(document.get('stage1'))[:12]}, and this "
            f"model has {stage1_sha256[:12]}: it would correct errors that are not made. Train it "
            f"again (wristworld train {folder.name.replace('_', '-')} --stage1 ...), or remove the "
            "folder."
        )
    return model
