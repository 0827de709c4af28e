"""Llama's layout with a LayerNorm at the end: Cohere, OLMo, StableLM, StarCoder 2."""

from __future__ import annotations

from torch import nn

from fedlora.split.families.llama import Llama
from fedlora.split.family import Config, Loader
from fedlora.split.norms import layer_norm


class StableLm(Llama):
    """``StableLmModel``, whose attention is told nothing more than it asks for."""

    packs = False
    continues = True
    eps = "layer_norm_eps"

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        weight = load("norm.weight")
        bias = load("norm.bias") if load.name("norm.bias") else None
        return layer_norm(len(weight), config.get(self.eps, 1e-5), weight, bias)


class Starcoder2(StableLm):
    """``Starcoder2Model``, whose head is the token embedding."""

    packs = True
    eps = "norm_epsilon"
    tied = True


class Cohere(StableLm):
    """``CohereModel``, ``Cohere2Model``: a norm without bias, and a constant on the logits."""

    packs = True
    tied = True

    def logit_scale(self, config: Config) -> float:
        """See ``Family``."""
        return float(config.get("logit_scale", 0.0625))


class Olmo(Llama):
    """``OlmoModel``, whose norms have no parameters."""

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        del load
        return layer_norm(config["hidden_size"], 1e-5, None, None)
