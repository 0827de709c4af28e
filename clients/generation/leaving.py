"""Leaving early: a token is taken where the head is sure of it before the last blocks.

The head is the device's, so the device judges. A server with the head in hand could save the answer
that says no, but the head may be trained, or personal, and then is nobody else's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fedlora.checks import number, whole
from fedlora.config import require
from fedlora.errors import FedloraError

_MOST_BLOCKS = 1 << 16


@dataclass(frozen=True)
class LeaveEarly:
    """When the next token is chosen from the representation after some of the blocks.

    The rule looks at one place alone, so a text is the same whoever shares the batch, with drafts
    or without, and when it is told again to another server.

    Attributes
    ----------
    after
        Blocks of the whole model, so many.
    at
        Probability that the head gives its likeliest token there, from which on it is sure; of the
        logits as they are, before temperature and penalties (Schuster et al. 2022, "softmax
        response" of CALM).
    """

    after: int
    at: float

    def __post_init__(self) -> None:
        whole("--leave-after", self.after, 1, _MOST_BLOCKS)
        number("--leave-at", self.at, 0.0, 1.0)
        require(
            self.at > 0,
            f"--leave-at is {self.at}, at which every token would leave; give a probability above "
            "0, at most 1",
        )

    @classmethod
    def of(cls, after: int, at: float) -> LeaveEarly | None:
        """Read two options, of which 0 is none.

        Raises
        ------
        FedloraError
            When one is there alone, or means nothing.
        """
        if not after and not at:
            return None
        if not (after and at):
            there, value = ("--leave-after", after) if after else ("--leave-at", at)
            other = "--leave-at, a probability such as 0.9" if after else "--leave-after, a block"
            raise FedloraError(f"{there} is {value} and says nothing alone; give {other}")
        return cls(after, at)

    def sure(self, logits: torch.Tensor) -> bool:
        """Tell whether the next token is taken here; ``logits`` has shape (vocabulary,)."""
        return float(logits.softmax(-1).amax()) >= self.at
