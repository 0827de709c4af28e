"""Llama and the families that share its layout: Mistral, Qwen2, Qwen3, SmolLM."""

from __future__ import annotations

from torch import nn

from fedlora.split.family import Config, Family, Loader
from fedlora.split.norms import RMSNorm


class Llama(Family):
    """``LlamaModel`` and others with ``embed_tokens``, ``layers`` and an RMS ``norm``."""

    prefix = "model."
    embedding = "embed_tokens"
    layers = "layers"
    final = ("norm",)

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        return RMSNorm(load("norm.weight"), config.get("rms_norm_eps", 1e-6))

    def skip_embedding_stage(self, model: nn.Module) -> None:
        """See ``Family``; rotary positions belong to the blocks, so nothing is to be skipped."""
