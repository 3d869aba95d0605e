"""Small repairs of third-party packages, each with its reason."""

from __future__ import annotations

import importlib.util
import sys

_kept: list[object] = []


def repair_torchvision() -> None:
    """Make torchvision importable where its compiled operators do not fit the installed torch.

    PyPI's torchvision is built against a CUDA torch. Beside a CPU torch its extension does not
    load, and then its import fails on the two operators declared here; open_clip, transformers and
    diffusers import it only for transforms and layers, never for those operators. Does nothing
    where torchvision works, is not installed, or was repaired before.
    """
    if _kept or "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torch

        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # the operators live as long as this object
