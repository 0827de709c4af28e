"""GPT-2: learned positions, LayerNorm, fused attention projection stored as Conv1D."""

from __future__ import annotations

from torch import nn

from fedlora.split.family import Config, Family, Loader
from fedlora.split.norms import layer_norm
from fedlora.split.passthrough import NoPosition


class Gpt2(Family):
    """``GPT2Model``, ``GPTBigCodeModel``."""

    prefix = "transformer."
    embedding = "wte"
    layers = "h"
    packs = True
    final = ("ln_f",)

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        eps = config.get("layer_norm_epsilon", 1e-5)
        weight = load("ln_f.weight")
        return layer_norm(len(weight), eps, weight, load("ln_f.bias"))

    def still_token(self, config: Config) -> int | None:
        """See ``Family``; all of ``wte`` trains."""
        return None

    def skip_embedding_stage(self, model: nn.Module) -> None:
        """See ``Family``."""
        model.wpe = NoPosition()
