"""One connected client."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fedlora.link import ClientLink

BookFrame = Callable[[str, str, Mapping[str, torch.Tensor], int], None]


@dataclass
class Member:
    """One connected client.

    Attributes
    ----------
    link
        The connection.
    rows, held_out_rows
        Training and evaluation rows, as the client told.
    seq
        Number of the last request.
    asked
        Its kind.
    """

    link: ClientLink
    rows: int
    held_out_rows: int
    seq: int = 0
    asked: str = ""


def natural(name: str) -> tuple[int, int, str]:
    """Return a key that sorts numeric names by value, before all others."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)
