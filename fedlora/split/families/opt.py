"""OPT: learned positions with an offset, optional projections between embedding and blocks."""

from __future__ import annotations

from typing import Any

from torch import nn

from fedlora.split.family import Config, Family, Loader
from fedlora.split.norms import layer_norm
from fedlora.split.passthrough import NoPosition


class Opt(Family):
    """``OPTModel``; OPT-350m has no final norm but a projection to the embedding's width."""

    prefix = "model."
    embedding = "decoder.embed_tokens"
    layers = "decoder.layers"
    packs = True
    final = ("decoder.final_layer_norm", "decoder.project_out")

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``."""
        stage = nn.Sequential()
        if config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm"):
            stage.append(_norm(config, load))
        if config.get("word_embed_proj_dim", config["hidden_size"]) != config["hidden_size"]:
            weight = load("decoder.project_out.weight")
            project = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            project.weight = nn.Parameter(weight, requires_grad=False)
            stage.append(project)
        return stage

    def skip_embedding_stage(self, model: nn.Module) -> None:
        """See ``Family``."""
        decoder: Any = model.get_submodule("decoder")
        decoder.embed_positions = NoPosition()
        decoder.project_in = None


def _norm(config: Config, load: Loader) -> nn.LayerNorm:
    """Return the final norm, which has no parameters in Galactica's layout."""
    weight = bias = None
    if config.get("layer_norm_elementwise_affine", True):
        weight = load("decoder.final_layer_norm.weight")
        bias = load("decoder.final_layer_norm.bias")
    return layer_norm(config["hidden_size"], 1e-5, weight, bias)
