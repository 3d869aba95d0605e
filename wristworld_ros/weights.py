"""Weight files: bf16 safetensors with a config.json beside it; loading is strict or fails."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from wristworld_ros.errors import WeightsError

Config = TypeVar("Config")
FILE, CONFIG = "model.safetensors", "config.json"
#: Folders of a model that stage 1 is made of; all but the first may be missing.
STAGE1_PARTS = ("stage1", "hand_depth", "fine_depth", "locator", "plane_sweep")
#: Size from which on tensors of weights that are shipped are stored in 8 bits (``save_weights``).
COMPACT = 50_000
#: And those that stage 2 is made of.
STAGE2_PARTS = ("autoencoder", "stage2", "detail")


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_weights(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    info: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    compact: int | None = None,
) -> str:
    """Write ``model.safetensors`` and ``config.json``, each atomically; return the sha256.

    Args:
        folder: made if missing.
        model: its whole state dict is stored; floating tensors as ``dtype``.
        config: what rebuilds the model.
        info: training command, seed, scores and the like.
        compact: floating tensors of at least so many values are stored in 8 bits (float8_e4m3fn),
            for models whose size counts; None: none.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def stored(v: torch.Tensor) -> torch.Tensor:
        if not v.is_floating_point():
            return v
        small = compact is not None and v.numel() >= compact
        return v.to(torch.float8_e4m3fn if small else dtype)

    state = {k: stored(v.detach()).cpu().contiguous() for k, v in model.state_dict().items()}
    partial = folder / (FILE + ".partial")
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors makes it readable by its owner only
    digest = sha256_of(partial)
    os.replace(partial, folder / FILE)
    document = {"class": type(model).__name__, "config": config, "sha256": digest, **(info or {})}
    partial = folder / (CONFIG + ".partial")
    partial.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(partial, folder / CONFIG)
    return digest


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a weight folder.

    Raises:
        WeightsError: missing or not valid JSON.
    """
    path = folder / CONFIG
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise WeightsError(
            f"no weights at {folder}: {CONFIG} is missing. Give the folder of a trained model, or "
            "reinstall the package to get the shipped one back."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not valid JSON ({error}). Restore it.") from None
    if not isinstance(document, dict) or not {"class", "config", "sha256"} <= set(document):
        raise WeightsError(f"{path} lacks 'class', 'config' or 'sha256'. Restore it.")
    return document


def read_digests(model: Path, parts: Iterable[str]) -> dict[str, str]:
    """Part of a model folder -> sha256 of its weights, of those of ``parts`` that are there."""
    return {p: read_config(model / p)["sha256"] for p in parts if (model / p).exists()}


def config_from(kind: type[Config], values: dict[str, Any]) -> Config:
    """A dataclass of sizes from plain values; lists, which JSON knows, become tuples again."""
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _read_state(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    """Tensors of a weight folder and their sha256, checked as ``load_weights`` says."""
    expected = read_config(folder)["sha256"]
    path = folder / FILE
    if not path.is_file():
        raise WeightsError(f"no weights at {path}: the file is missing. Restore or retrain it.")
    digest = sha256_of(path)
    if digest != expected:
        raise WeightsError(
            f"{path} is truncated or altered: its sha256 is {digest[:16]}..., config.json says "
            f"{str(expected)[:16]}... ({path.stat().st_size} bytes). Restore the file "
            "(git checkout, or reinstall)."
        )
    try:
        state = load_file(path)
    except (SafetensorError, ValueError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}). Restore it.") from None
    bad = [k for k, v in state.items() if v.is_floating_point() and not v.float().isfinite().all()]
    if bad:
        raise WeightsError(f"{path} holds values that are not finite in {bad[:3]}. Retrain it.")
    return state, digest


def load_weights(folder: Path, model: nn.Module) -> str:
    """Fill ``model`` from ``folder``, every key and shape strictly; return the sha256.

    Raises:
        WeightsError: the file is missing, truncated, altered (sha256 against config.json), does
            not fit the model, or holds values that are not finite.
    """
    state, digest = _read_state(folder)
    path = folder / FILE
    check_fit(path, model, {k: v.shape for k, v in state.items()})
    model.load_state_dict(state, strict=True)
    return digest


def check_fit(
    path: Path, model: nn.Module, found: Mapping[str, Sequence[int]], prefix: str = ""
) -> None:
    """Raise WeightsError unless weights fit a model, which may be on the meta device.

    Args:
        path: where they come from, for the message.
        found: name -> shape of all of them. Parameters that a model has under several names need
            to be there once.
        prefix: that all found names start with and the model's do not.
    """
    own = {prefix + k: v for k, v in model.state_dict(keep_vars=True).items()}
    names: dict[int, set[str]] = {}
    for key, value in own.items():
        names.setdefault(id(value), set()).add(key)
    missing = sorted(min(keys) for keys in names.values() if not keys & found.keys())
    extra = sorted(found.keys() - own.keys())
    wrong = [
        f"{k} {tuple(found[k])} for {tuple(own[k].shape)}"
        for k in sorted(own.keys() & found.keys())
        if tuple(own[k].shape) != tuple(found[k])
    ]
    if missing or extra or wrong:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: {len(missing)} keys missing "
            f"{missing[:3]}, {len(extra)} unknown {extra[:3]}, {len(wrong)} of wrong shape "
            f"{wrong[:3]}. Use the weights that belong to this configuration."
        )


def load_matching(folder: Path, model: nn.Module) -> list[str]:
    """Start a training from ``folder``: fill what fits by name and shape.

    Returns:
        Names of the tensors that keep their random start. Never use the model as it is then.

    Raises:
        WeightsError: as ``load_weights``, or nothing fits.
    """
    state, _ = _read_state(folder)
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fitting:
        raise WeightsError(f"{folder} has nothing that fits {type(model).__name__}. Start without.")
    model.load_state_dict(fitting, strict=False)
    return sorted(own.keys() - fitting.keys())
