"""How many of torch's threads a thread of ours computes with: bits depend on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def compute_with(threads: int) -> None:
    """Let this thread compute with so many of torch's threads, whatever others are told later.

    torch looks up the number that any thread was told last when a thread first computes. It does so
    when it is asked, too, so that what is set then stays.
    """
    torch.get_num_threads()
    torch.set_num_threads(threads)


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    """Do something with so many of torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
