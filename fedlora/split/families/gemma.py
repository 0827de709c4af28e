"""Gemma, Gemma 2, VaultGemma and the text model of Gemma 3: Llama's layout, scaled embedding."""

from __future__ import annotations

import math

from torch import nn

from fedlora.split.families.llama import Llama
from fedlora.split.family import Config, Loader
from fedlora.split.norms import RMSNorm


class Gemma(Llama):
    """``GemmaModel``, ``Gemma2Model``, ``Gemma3TextModel``, ``VaultGemmaModel``."""

    tied = True

    def misfit(self, config: Config) -> str:
        """See ``Family``; only Gemma 3 attends in both directions however a batch is padded."""
        if config.get("use_bidirectional_attention") and config["model_type"] != "gemma3_text":
            return (
                "use_bidirectional_attention true, with which transformers' result for a row "
                "depends on whether its batch is padded; set it to false, or take Gemma 3"
            )
        return ""

    def embedding_scale(self, config: Config) -> float:
        """See ``Family``."""
        return math.sqrt(config["hidden_size"])

    def logit_cap(self, config: Config) -> float:
        """See ``Family``; those that cap by default do so at 30."""
        default = 30.0 if config["model_type"] in ("gemma2", "vaultgemma") else None
        return float(config.get("final_logit_softcapping", default) or 0.0)

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        return RMSNorm(load("norm.weight"), config.get("rms_norm_eps", 1e-6), offset=1.0)
