"""What fedlora must know of a model family in order to cut it.

A family names the modules of Hugging Face's base model (``AutoModel``) and rebuilds, in plain
torch, the two parts that an edge process needs: token embedding and output stage. Everything
between runs Hugging Face's own code on the server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Final

import torch
from torch import nn

from fedlora.blame import blaming, is_ours
from fedlora.errors import FedloraError, shown
from fedlora.registry import names, resolve
from fedlora.split.checkpoint import Checkpoint

Config = Mapping[str, Any]


# Padding tokens of transformers' configurations where config.json does not say; others have none.
_PADS: Final[Mapping[str, int]] = {
    **dict.fromkeys(("bert", "cohere", "cohere2", "ernie4_5", "hunyuan_v1_dense"), 0),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "vaultgemma"), 0),
    **dict.fromkeys(("camembert", "roberta", "xlm-roberta", "opt", "seed_oss"), 1),
    **dict.fromkeys(("olmo", "olmo2", "olmo3"), 1),
    **dict.fromkeys(("apertus", "helium"), 3),
    **dict.fromkeys(("glm", "glm4"), 151329),
    **{"ministral3": 11, "phi3": 32000, "smollm3": 128004},
}


class Family(ABC):
    """Names and parts of one architecture.

    Attributes
    ----------
    prefix
        What a task checkpoint puts before the base model's tensor names.
    embedding
        Base-model name of the token embedding module.
    layers
        Base-model name of the list of blocks.
    final
        Base-model names of the modules after the last block, in order; absent ones are skipped.
    causal
        Whether the model can be trained as a language model.
    tied
        Whether the head is the token embedding where the configuration does not say.
    packs
        Whether Hugging Face's blocks compute rows right that lie one after the other: they take
        positions, and hand keywords on to attention. Else rows are padded.
    continues
        Whether they take positions and ask transformers' interface for attention, so that rows can
        be continued by generation. Those that pack do.
    """

    prefix: ClassVar[str]
    embedding: ClassVar[str]
    layers: ClassVar[str]
    final: ClassVar[tuple[str, ...]] = ()
    causal: ClassVar[bool] = True
    tied: ClassVar[bool] = True
    packs: ClassVar[bool] = False
    continues: ClassVar[bool] = False

    @property
    def generates(self) -> bool:
        """Whether a model of this family can generate."""
        return self.causal and (self.packs or self.continues)

    def misfit(self, config: Config) -> str:
        """Return what in a configuration transformers computes otherwise, and the mend, or ""."""
        return ""

    def ties(self, config: Config) -> bool:
        """Tell whether a configuration makes the token embedding the head as well."""
        return bool(config.get("tie_word_embeddings", self.tied))

    def still_token(self, config: Config) -> int | None:
        """Return the token whose embedding never trains, as ``padding_idx`` of Hugging Face's.

        That is the padding token's, which some checkpoints also begin or end texts with.
        """
        pad = config.get("pad_token_id", _PADS.get(str(config.get("model_type"))))
        return None if pad is None else int(pad)

    def embedding_scale(self, config: Config) -> float:
        """Return the constant that multiplies a token embedding."""
        return 1.0

    def first_position(self, config: Config) -> int:
        """Return the number of a row's first position."""
        return 0

    def logit_cap(self, config: Config) -> float:
        """Return the soft cap c in ``c tanh(x / c)`` of the logits, or 0 for none."""
        return 0.0

    def logit_scale(self, config: Config) -> float:
        """Return the constant that multiplies the logits, before a soft cap."""
        return 1.0

    @abstractmethod
    def final_stage(self, config: Config, load: Loader) -> nn.Module:
        """Build the modules between the last block and the head, in plain torch."""

    @abstractmethod
    def skip_embedding_stage(self, model: nn.Module) -> None:
        """Make a base model's blocks take what earlier blocks give, without positions."""


class Loader:
    """Finds base-model tensors in a checkpoint, whatever prefix it was saved with.

    Parameters
    ----------
    checkpoint
        The files.
    family
        Supplies the prefix.
    dtype
        What tensors are cast to.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.family = family
        self.dtype = dtype

    def name(self, base_name: str) -> str | None:
        """Return the checkpoint's name of a base-model tensor, or None when it has none.

        Raises
        ------
        FedloraError
            When it has two.
        """
        # Early BERT checkpoints call a LayerNorm's weight and bias gamma and beta.
        old = base_name.replace("LayerNorm.weight", "LayerNorm.gamma")
        old = old.replace("LayerNorm.bias", "LayerNorm.beta")
        possible = [start + end for end in (base_name, old) for start in (self.family.prefix, "")]
        found = sorted({name for name in possible if name in self.checkpoint.entries})
        if len(found) > 1:
            raise FedloraError(
                f"{self.checkpoint.folder} holds both {found[0]} and {found[1]}, which are one "
                "tensor of the model; save it again with save_pretrained"
            )
        return found[0] if found else None

    def __call__(self, base_name: str) -> torch.Tensor:
        """Return a base-model tensor."""
        return self.checkpoint.load(self.name(base_name) or base_name, self.dtype)


def final_stage(family: Family, checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Module:
    """Build the modules between the last block and the head.

    Raises
    ------
    FedloraError
        When the family makes anything else.
    """
    title = title_of(type(family), checkpoint)
    with blaming(title, type(family)):
        made: object = family.final_stage(checkpoint.config, Loader(checkpoint, family, dtype))
    if not isinstance(made, nn.Module):
        raise FedloraError(
            f"{title} returns a {type(made).__name__} from final_stage(); expected a module"
        )
    return made


def title_of(cls: type, checkpoint: Checkpoint) -> str:
    """Return how a sentence names a checkpoint's family."""
    return f"the family {cls.__module__}:{cls.__name__} of model_type {checkpoint.model_type!r}"


_CLAIMS: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(("prefix", "embedding", "layers"), (str,)),
        "final": (tuple, list),
        **dict.fromkeys(("causal", "tied", "packs", "continues"), (bool,)),
        "misfit": (str,),
        "ties": (bool,),
        "still_token": (int, type(None)),
        "first_position": (int,),
        **dict.fromkeys(("embedding_scale", "logit_cap", "logit_scale"), (int, float)),
    }
)
"""What a family says of itself, or of a configuration, by type."""


def _check_claims(family: Family, checkpoint: Checkpoint) -> None:
    """Refuse what a stranger's family says in another form than is read."""
    for name, kinds in _CLAIMS.items():
        value = getattr(family, name, None)
        if callable(value):
            value = value(checkpoint.config)
        if not isinstance(value, kinds):
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise FedloraError(
                f"{title_of(type(family), checkpoint)} has {shown(value)} as {name}; expected "
                f"{expected}"
            )


def find_family(checkpoint: Checkpoint) -> Family:
    """Return the family of a checkpoint.

    Raises
    ------
    FedloraError
        When no registered family covers its ``model_type``, or not with this configuration.
    """
    kind = checkpoint.model_type
    if kind not in names("families"):
        raise FedloraError(
            f"model_type {kind!r} in {checkpoint.folder} is of no supported family; supported: "
            f"{', '.join(names('families'))} (a plug-in can add one)"
        )
    cls: type[Family] = resolve("families", kind, Family)
    with blaming(title_of(cls, checkpoint), cls):
        family = cls()
        if not is_ours(cls):
            _check_claims(family, checkpoint)
    if misfit := family.misfit(checkpoint.config):
        raise FedloraError(f"{checkpoint.folder / 'config.json'} has {misfit}")
    return family
