"""A checkpoint as one undivided Hugging Face model, with nothing in it that it does not hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fedlora.errors import FedloraError
from fedlora.split.checkpoint import Checkpoint
from fedlora.split.embeddings import token_embedding

_UNUSED = ("pooler.",)  # fedlora pools by itself


def load_whole(folder: Path, *, pooled: bool, **options: Any) -> Any:
    """Return a checkpoint's undivided model.

    transformers gives a tensor that a checkpoint lacks random values, with a warning. The token
    embedding of a checkpoint that stores its tied matrix as the language head's alone is such a one
    for the base model; it is filled in here, and whatever else is lacking is refused.

    Parameters
    ----------
    folder
        The checkpoint.
    pooled
        Whether the base model alone is wanted, as for a pooled task, or the one with a language
        head.
    options
        Passed on to ``from_pretrained``.

    Raises
    ------
    FedloraError
        When the checkpoint lacks tensors of the model.
    OSError, ValueError, TypeError, RuntimeError
        Those of transformers, where it cannot be loaded.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    cls = AutoModel if pooled else AutoModelForCausalLM
    model, found = cls.from_pretrained(folder, output_loading_info=True, **options)
    missing = {name for name in found["missing_keys"] if not name.startswith(_UNUSED)}
    embedding = model.get_input_embeddings().weight
    (name,) = (name for name, value in model.named_parameters() if value is embedding)
    if name in missing:
        with torch.no_grad():
            embedding.copy_(token_embedding(Checkpoint(folder), embedding.dtype))
        missing.remove(name)
    if missing:
        raise FedloraError(
            f"{folder} lacks {', '.join(sorted(missing)[:3])}, which would be random numbers; "
            "finish the download, or save the model again with save_pretrained"
        )
    return model


def take_embedding(model: Any, weight: torch.Tensor) -> None:
    """Give a model another token embedding in place; a head that was tied to its own stays.

    Parameters
    ----------
    model
        As ``load_whole`` returns it.
    weight
        Of the token embedding, shape (vocabulary, width); it gets the type of the model's.

    Raises
    ------
    FedloraError
        When it has another shape than the model's.
    """
    own = model.get_input_embeddings()
    if weight.shape != own.weight.shape:
        raise FedloraError(
            f"the run's token embedding has shape {tuple(weight.shape)}, the model's "
            f"{tuple(own.weight.shape)}; give the backbone of the run"
        )
    own.weight = torch.nn.Parameter(weight.to(own.weight.dtype), requires_grad=False)
    if model.get_output_embeddings() is not None:
        model.config.tie_word_embeddings = False
