"""The tokens that end a text: what tokenizer, model and its generation settings say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedlora.split import Checkpoint
from fedlora.tasks.auto_tokenizer.settings import read_table
from fedlora.tasks.tokenizer import Tokenizer


def end_tokens(tokenizer: Tokenizer, checkpoint: Checkpoint) -> frozenset[int]:
    """Return the ids of all tokens that end a text.

    transformers' ``generate`` goes by ``generation_config.json``, or by ``config.json`` where there
    is none; a chat model's turn ends with its tokenizer's end token as well.

    Parameters
    ----------
    tokenizer, checkpoint
        Of one model folder.
    """
    saved = read_table(checkpoint.folder / "generation_config.json")
    named = (*(table.get("eos_token_id") for table in (checkpoint.config, saved)), tokenizer.eos_id)
    return frozenset(number for value in named for number in _ids(value))


def _ids(value: Any) -> Iterator[int]:
    for number in value if isinstance(value, list) else [value]:
        if type(number) is int and number >= 0:
            yield number
