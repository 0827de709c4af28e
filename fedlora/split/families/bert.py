"""BERT, MiniLM and RoBERTa: bidirectional encoders, for classification."""

from __future__ import annotations

from torch import nn

from fedlora.split.family import Config, Family, Loader
from fedlora.split.passthrough import HiddenStates


class Bert(Family):
    """``BertModel``; MiniLM has the same layout."""

    prefix = "bert."
    embedding = "embeddings.word_embeddings"
    layers = "encoder.layer"
    causal = False
    packs = True

    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """See ``Family``; the last block ends in its own norm, so nothing follows it."""
        del config, load
        return nn.Identity()

    def skip_embedding_stage(self, model: nn.Module) -> None:
        """See ``Family``."""
        model.embeddings = HiddenStates()


class Roberta(Bert):
    """``RobertaModel``, ``CamembertModel``, ``XLMRobertaModel``."""

    prefix = "roberta."

    def first_position(self, config: Config) -> int:
        """See ``Family``; positions are counted on from the padding's number."""
        return int(config.get("pad_token_id", 1)) + 1
