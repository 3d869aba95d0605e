"""Our networks as components of a diffusers pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin

from wristworld_ros.weights import load_weights, read_config, save_weights

Kind = TypeVar("Kind", bound="Component")


class Component(ModelMixin):
    """A network whose folder is one of ``weights.py``: strict, and checked by sha256.

    Kinds of it name ``ModelMixin`` as a base too: diffusers looks for that name in the module that
    a component's class comes from.

    Attributes:
        sha256: of the weights, when they come from a file.
    """

    sha256: str = ""

    def config_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the network by ``from_config``."""
        raise NotImplementedError

    @classmethod
    def from_config(cls: type[Kind], config: dict[str, Any]) -> Kind:
        """Rebuild from ``config_dict``."""
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write config.json and model.safetensors, in float32: what is read again is equal."""
        self.sha256 = save_weights(
            Path(save_directory), self, self.config_dict(), dtype=torch.float32
        )

    @classmethod
    def from_pretrained(
        cls: type[Kind], path: str | Path, torch_dtype: torch.dtype | None = None, **_: Any
    ) -> Kind:
        """Read such a folder.

        Raises:
            WeightsError: as ``load_weights``.
        """
        model = cls.from_config(read_config(Path(path))["config"])
        model.sha256 = load_weights(Path(path), model)
        model.eval().requires_grad_(False)
        return model if torch_dtype is None else model.to(torch_dtype)
