"""Networks beside those of a stage; the weights of those that correct it belong to its weights."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import nn

from wristworld_ros.errors import WeightsError
from wristworld_ros.weights import config_from, load_weights, read_config


class Companion(nn.Module):
    """Such a network.

    Attributes:
        config: its sizes, of the dataclass ``sizes``, which the constructor takes.
        sha256: of the weights, when they come from a file.
    """

    sizes: ClassVar[type]
    config: Any
    sha256: str = ""

    def __init__(self, config: Any = None) -> None:
        super().__init__()

    def config_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the model by ``from_config``."""
        return asdict(self.config)

    @classmethod
    def from_config(cls: type[Kind], config: dict[str, Any]) -> Kind:
        """Rebuild from ``config_dict``."""
        return cls(config_from(cls.sizes, config))


Kind = TypeVar("Kind", bound=Companion)


def load_companion(
    folder: Path, kind: type[Kind], stage: str = "stage1", sha256: str | None = None
) -> Kind | None:
    """Weights for use with the weights ``sha256`` of a stage, or with any; None without the folder.

    Args:
        stage: ``stage1`` or ``stage2``.

    Raises:
        WeightsError: they are truncated, altered, do not fit, or were trained with other weights
            of that stage.
    """
    if not folder.exists():
        return None
    document = read_config(folder)
    model = kind.from_config(document["config"])
    model.sha256 = load_weights(folder, model)
    if sha256 is not None and document.get(stage) != sha256:
        raise WeightsError(
            f"{folder} was trained with the {stage} {str(document.get(stage))[:12]}, and this "
            f"model has {sha256[:12]}: it would correct errors that are not made. Train it "
            f"again (wristworld train {folder.name.replace('_', '-')} --{stage} ...), or remove "
            "the folder."
        )
    return model
