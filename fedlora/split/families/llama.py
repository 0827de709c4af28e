"""Llama and the families that share its layout and end in an RMS norm."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedlora.split.family import Config, Family, Loader
from fedlora.split.norms import RMSNorm


class Llama(Family):
    """``LlamaModel`` and others with ``embed_tokens``, ``layers`` and an RMS ``norm``.

    Apertus, Arcee, CWM, EXAONE 4, GLM, GLM 4, Hunyuan, Ministral, Mistral, Phi 3, Qwen 2, Qwen 3,
    Seed-OSS.
    """

    prefix = "model."
    embedding = "embed_tokens"
    layers = "layers"
    final = ("norm",)
    tied = False
    packs = True

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        return RMSNorm(load("norm.weight"), config.get("rms_norm_eps", 1e-6))

    def skip_embedding_stage(self, model: nn.Module) -> None:
        """See ``Family``; rotary positions belong to the blocks, so nothing is to be skipped."""


class TiedLlama(Llama):
    """``Ernie4_5Model``, ``SmolLM3Model``: tied unless their configuration says no."""

    tied = True


class Olmo2(Llama):
    """``Olmo2Model``, ``Olmo3Model``, ``HeliumModel``: the norm's gain is applied in fp32."""

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        return RMSNorm(load("norm.weight"), config.get("rms_norm_eps", 1e-5), wide=True)


class Granite(Llama):
    """``GraniteModel``: constants on embedding (the server's) and logits."""

    def logit_scale(self, config: Config) -> float:
        """See ``Family``."""
        return 1.0 / float(config.get("logits_scaling", 1.0))

    def skip_embedding_stage(self, model: nn.Module) -> None:
        """See ``Family``."""
        part: Any = model
        part.embedding_multiplier = 1.0
