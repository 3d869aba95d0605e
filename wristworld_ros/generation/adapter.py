"""What is trained of the Wan preset, and nothing else: LoRA and the new modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import nn

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.generation.wan import WanAnchorEncoder
from wristworld_ros.weights import load_weights, read_config, save_weights

#: Of method.md, 3.
LORA_RANK = 4
#: Linear layers of Wan's self- and cross-attention.
LORA_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
#: Parts of transformer and anchor encoder that published weights do not have in this form.
NEW = ("patch_embedding", "view", "time", "project")


def add_lora(transformer: WanTransformer3DModel, rank: int) -> None:
    """Put LoRA layers beside the attention's linear layers; they start at no change.

    Raises:
        InvalidInputError: the rank is below 1, or there are LoRA layers already.
    """
    if rank < 1:
        raise InvalidInputError(f"LoRA rank {rank}; choose 1 or more ({LORA_RANK} in the paper).")
    if lora_rank(transformer):
        raise InvalidInputError(
            f"the transformer has LoRA layers of rank {lora_rank(transformer)} already; load it "
            "again without."
        )
    from peft import LoraConfig  # slow to import, and for training alone

    targets = list(LORA_TARGETS)
    transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))


def lora_rank(transformer: WanTransformer3DModel) -> int:
    """Rank of the LoRA layers; 0 without."""
    configs: dict[str, Any] = getattr(transformer, "peft_config", {})
    return int(next(iter(configs.values())).r) if configs else 0


class Adapter(nn.Module):
    """Holds the trained parameters under their names: the LoRA layers, the widened patch embedding,
    and view and temporal embedding and projector of the anchor encoder.

    They are those of the networks themselves, so that filling this fills them, and it alone has to
    be optimised, averaged and stored. All others of the networks are frozen by making it.

    Args:
        transformer: with LoRA layers (``add_lora``).

    Attributes:
        bf16: run the transformer in bfloat16 (training).
    """

    def __init__(
        self, transformer: WanTransformer3DModel, anchor_encoder: WanAnchorEncoder
    ) -> None:
        super().__init__()
        self.bf16 = False
        self.rank = lora_rank(transformer)
        for prefix, network in (("transformer", transformer), ("anchor_encoder", anchor_encoder)):
            for name, parameter in network.named_parameters():
                trained = ".lora_" in name or name.split(".")[0] in NEW
                parameter.requires_grad_(trained)
                if trained:
                    self._hold(f"{prefix}.{name}", parameter)

    def _hold(self, name: str, parameter: nn.Parameter) -> None:
        *path, last = name.split(".")
        module: nn.Module = self
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, parameter)

    def save(self, folder: Path, info: dict[str, Any] | None = None) -> None:
        """Write config.json and model.safetensors (``save_weights``), in float32."""
        save_weights(folder, self, {"lora_rank": self.rank}, info, dtype=torch.float32)


def load_adapter(
    transformer: WanTransformer3DModel, anchor_encoder: WanAnchorEncoder, folder: Path
) -> None:
    """Add LoRA layers and fill them and the new modules, every key and shape strictly.

    Raises:
        WeightsError: as ``load_weights``.
        InvalidInputError: there are LoRA layers already.
    """
    add_lora(transformer, int(read_config(folder)["config"]["lora_rank"]))
    adapter = Adapter(transformer, anchor_encoder)
    load_weights(folder, adapter)
    adapter.requires_grad_(False)
