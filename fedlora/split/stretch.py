"""Running some of a model's blocks: the others are passed by, in Hugging Face's own loop.

The list of blocks is replaced for the time of a call. What a family computes before the first block
is computed still, on whatever is handed in, and dropped; what comes after the last, likewise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class Place(nn.Module):
    """A block's place in the loop, with the attributes that loops ask blocks for."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


class _PassedBy(Place):
    """Gives what came in, or the states that the stretch begins with."""

    states: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.states is not None:
            return self.states
        return args[0] if args else kwargs["hidden_states"]


class Last(Place):
    """Computes the block that the stretch ends with, and notes what comes out.

    Attributes
    ----------
    output
        Of the last call.
    """

    output: torch.Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the block."""
        found = self.layer(*args, **kwargs)
        self.output = found[0] if isinstance(found, tuple) else found
        return found


@contextmanager
def stretch(
    parent: nn.Module, attribute: str, first: int, last: int, states: torch.Tensor
) -> Iterator[Last | None]:
    """Let a model's loop compute blocks ``first`` to ``last - 1`` alone.

    Parameters
    ----------
    parent, attribute
        Where the model has its list of blocks.
    first, last
        Places in that list.
    states
        What the first of them gets, where it is not the model's first, shaped as the model hands
        states on.

    Yields
    ------
    Last or None
        Holds the states after the stretch; None where it reaches the model's end, and the model's
        own output is what is wanted.
    """
    whole = getattr(parent, attribute)
    places: list[nn.Module] = list(whole)
    for index, layer in enumerate(whole):
        if not first <= index < last:
            places[index] = _PassedBy(layer)
    if first > 0:
        places[first - 1].states = states
    end = None
    if last < len(places):
        places[last - 1] = end = Last(whole[last - 1])
    setattr(parent, attribute, nn.ModuleList(places))
    try:
        yield end
    finally:
        setattr(parent, attribute, whole)
