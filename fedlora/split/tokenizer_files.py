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
