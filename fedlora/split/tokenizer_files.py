"""The files of a model folder that its tokenizer needs."""

from __future__ import annotations

import shutil
from pathlib import Path

TEMPLATES = "additional_chat_templates"
"""Folder of the chat templates that have a name; the nameless one is ``chat_template.jinja``."""
TOKENIZER_FILES = (
    *("*token*", "*vocab*", "encoder.json", "merges.txt", "bpe.codes", "dict.txt", "tekken.json"),
    *("*.model", "*.spm"),  # SentencePiece
    *("*.jinja", "chat_template.json", f"{TEMPLATES}/*.jinja"),
)
"""Patterns of the files."""


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a model folder has any file of a tokenizer; tasks without texts need none."""
    return any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES)


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy a model's vocabulary, special tokens and chat templates into another folder.

    Raises
    ------
    OSError
        When one cannot be copied.
    """
    for pattern in TOKENIZER_FILES:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
                place = target / file.relative_to(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
