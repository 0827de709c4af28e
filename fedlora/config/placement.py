"""How a scenario writes which blocks are where."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from fedlora.errors import FedloraError, require, shown

_MOST = 1_000_000
_RANGE = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")


def parse_blocks(text: object) -> list[int]:
    """Return the blocks that a text such as ``"0-3, 7"`` names.

    Raises
    ------
    FedloraError
        When it is no such text.
    """
    blocks: list[int] = []
    for part in str(text).split(","):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        require(
            isinstance(text, str) and first <= last,
            f"compute.device_map has the blocks {text!r}; write numbers and ranges like '0-3, 7'",
        )
        require(
            len(blocks) + last - first < _MOST,  # a few bytes could name more than memory holds
            f"compute.device_map has the blocks {shown(text)}, which are over {_MOST}; name each "
            "block once",
        )
        blocks.extend(range(first, last + 1))
    return blocks


def place_blocks(
    device_map: Mapping[str, str], device: str, numbers: Sequence[int]
) -> dict[int, str]:
    """Return the place of each block of the server.

    Parameters
    ----------
    device_map
        ``compute.device_map``.
    device
        Where blocks are that it does not name.
    numbers
        The server's blocks, as they are numbered in the whole model.

    Raises
    ------
    FedloraError
        When it names a block that the server does not hold.
    """
    places = dict.fromkeys(numbers, device)
    for place, text in device_map.items():
        for number in parse_blocks(text):
            if number not in places:
                raise FedloraError(
                    f"compute.device_map puts block {number} in {place}, and the server holds "
                    f"blocks {numbers[0]} to {numbers[-1]}; mend the range"
                )
            places[number] = place
    return places


def is_away(place: str, device: str) -> bool:
    """Tell whether blocks in a place are brought to the compute device when they are needed."""
    return place == "disk" or (place == "cpu" and device != "cpu")
