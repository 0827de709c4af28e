"""transformers' class for sequence classification, where it computes what a run computes.

A run's classifier is one linear map without bias of a pooled state. Classes of decoders are the
same, with the last token pooled; those of encoders have a dense layer between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedlora.errors import FedloraError
from fedlora.split import Checkpoint, Loader, find_family

HEAD = "score"
"""What transformers calls the linear map in classes of decoders."""


@dataclass(frozen=True)
class Head:
    """A linear map without bias.

    Attributes
    ----------
    weight
        Shape (classes, width), or (vocabulary, width) of a language model; fp32.
    labels
        Names of the classes; empty for a language model.
    """

    weight: torch.Tensor
    labels: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each class."""
        return self.labels or tuple(f"LABEL_{number}" for number in range(len(self.weight)))

    def settings(self) -> dict[str, Any]:
        """Return what a ``config.json`` says of it; of the two tables each needs the other."""
        return {
            "num_labels": len(self.weight),
            "id2label": dict(enumerate(self.names)),
            "label2id": {name: number for number, name in enumerate(self.names)},
            "problem_type": "single_label_classification",
        }


@dataclass(frozen=True)
class Classifier:
    """A class of transformers that holds a head.

    Attributes
    ----------
    name
        Such as ``LlamaForSequenceClassification``.
    prefix
        What it puts before the names of the base model's modules.
    """

    name: str
    prefix: str

    @classmethod
    def of(cls, folder: Path, pool: str, width: int) -> Classifier:
        """Find the class for a checkpoint.

        Parameters
        ----------
        folder
            The checkpoint.
        pool
            The task's pooling.
        width
            Numbers that the head is given.

        Raises
        ------
        FedloraError
            When there is none that pools and answers as the run does, with the reason.
        """
        model, base = empty_classifier(folder)
        name, prefix = type(model).__name__, f"{model.base_model_prefix}."
        inner = {f"{prefix}{own}" for own, _ in base.named_parameters()}
        inner = {own for own in inner if not own.startswith(f"{prefix}pooler.")}
        more = {own for own, _ in model.named_parameters()} - inner - {f"{HEAD}.weight"}
        if more:
            parts = sorted({own.removesuffix(".weight").removesuffix(".bias") for own in more})
            raise FedloraError(
                f"transformers' {name} computes {', '.join(parts)} on what it pools, and this "
                "run's head is one linear map"
            )
        if pool != "last":
            raise FedloraError(
                f"transformers' {name} pools the last token, and this run's task.pool is {pool!r}"
            )
        score = getattr(model, HEAD, None)
        if not isinstance(score, nn.Linear) or score.in_features != width:
            raise FedloraError(f"transformers' {name} has no head of this run's width {width}")
        return cls(name, prefix)


def empty_classifier(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """Return a checkpoint's class for classification and its base model, both without memory.

    Raises
    ------
    FedloraError
        When transformers has no such class.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(folder, **settings)
    with init_empty_weights():
        try:
            model = AutoModelForSequenceClassification.from_config(config)
        except ValueError:
            raise FedloraError(
                f"transformers has no class for classification with a {config.model_type}"
            ) from None
        return model, AutoModel.from_config(config)


def with_head(base: Any, folder: Path, head: Head) -> Any:
    """Return transformers' class for classification around a base model.

    Parameters
    ----------
    base
        The base model, which becomes a part of the result.
    folder
        The checkpoint that it was made from.
    head
        The head; it gets the base model's type.
    """
    model, _ = empty_classifier(folder, **head.settings())
    setattr(model, model.base_model_prefix, base)
    score = nn.Linear(head.weight.shape[1], len(head.weight), bias=False, device="meta")
    score.weight = nn.Parameter(head.weight.to(base.dtype))
    setattr(model, HEAD, score)
    return model.eval()


@dataclass(frozen=True)
class Padding:
    """How a class that looks for the last token which is no padding finds it.

    Attributes
    ----------
    token, token_id
        A padding token in which no text ends; None where the tokenizer has none.
    declared
        ``pad_token_id`` of the model's configuration.
    always_wrong
        Whether every row ends in the declared token, so that the one before would be pooled.
    """

    token: str | None
    token_id: int | None
    declared: int | None
    always_wrong: bool

    @classmethod
    def of(cls, folder: Path) -> Padding:
        """Look at a checkpoint's tokenizer and configuration."""
        from transformers import AutoConfig, AutoTokenizer

        from fedlora.tasks import load_tokenizer

        own = load_tokenizer(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        declared = getattr(AutoConfig.from_pretrained(folder), "pad_token_id", None)
        number = tokenizer.pad_token_id
        in_texts = {own.bos_id, own.eos_id, own.unk_id, *own.opening, *own.closing}
        added = tokenizer.added_tokens_decoder.get(number)
        usable = number is not None and number not in in_texts
        if not (usable and added is not None and added.special):
            number = None
        return cls(
            tokenizer.pad_token if number is not None else None,
            number,
            declared,
            declared is not None and declared in own.closing[-1:],
        )


def write_padding(model: Any, source: Path, folder: Path, padding: Padding) -> None:
    """Make a classifier find the last token of every row, and write its tokenizer.

    Where the tokenizer has no padding token of its own (where it is the end token too, for
    example), it gets one, and the embedding a row for it where there is none to spare.

    Parameters
    ----------
    model
        The classifier.
    source
        Where the tokenizer is.
    folder
        Where to write it.
    padding
        What there is.

    Raises
    ------
    FedloraError
        When the tokenizer would no longer give the same ids.
    """
    from transformers import AutoTokenizer

    from fedlora.split import copy_tokenizer

    copy_tokenizer(source, folder)
    number = padding.token_id
    if number is None:
        tokenizer = AutoTokenizer.from_pretrained(source)
        vocabulary = tokenizer.get_vocab()
        name = next(name for name in _padding_names() if name not in vocabulary)
        before = [tokenizer(text).input_ids for text in _PROBES]
        tokenizer.add_special_tokens({"pad_token": name})
        tokenizer.save_pretrained(str(folder))
        found = AutoTokenizer.from_pretrained(folder)
        if [found(text).input_ids for text in _PROBES] != before:
            raise FedloraError(
                f"the tokenizer in {source} changes when a padding token is added; export as peft"
            )
        number = int(found.pad_token_id)
        if number >= model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(number + 1, mean_resizing=False)
    model.config.pad_token_id = number


_PROBES = ("", "a", " A text, with 12 words; and more.\n", "w9 w10  w11", "é 漢字 \U0001f600")


def _padding_names() -> Sequence[str]:
    return ["<|pad|>", *(f"<|pad_{number}|>" for number in range(1000))]


def embedding_stored(folder: Path) -> bool:
    """Tell whether a checkpoint has its token embedding under that name, where transformers looks.

    One that stores the tied matrix as the language head's alone does not, and a class for
    classification would begin with random numbers.
    """
    checkpoint = Checkpoint(folder)
    family = find_family(checkpoint)
    loader = Loader(checkpoint, family, torch.float32)
    return loader.name(f"{family.embedding}.weight") is not None


def require_same(model: Any, head: Head) -> None:
    """Refuse a classifier that does not answer as base model, last token and head do.

    Raises
    ------
    FedloraError
        When transformers pools or answers otherwise than this release was made for.
    """
    ids = torch.arange(4)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        states = getattr(model, model.base_model_prefix)(input_ids=ids).last_hidden_state[0, -1]
        own = states.float() @ head.weight.T
        found = model(input_ids=ids).logits[0].float()
    limit = 1e-4 if model.dtype == torch.float32 else 0.05
    if not torch.dist(found, own) <= limit * own.norm().clamp_min(1e-6):
        raise FedloraError(
            f"{type(model).__name__} of the installed transformers does not answer as this run "
            "does; export as peft and use head.safetensors"
        )
