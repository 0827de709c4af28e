"""What was typed as a node configuration beside what arrived: Flower drops some pairs in silence.

``--node-config 'privacy-epsilon = 1'``, with blanks round the equals sign, arrives without the pair
and without a word (Flower 1.42). A limit would be gone, so the device looks at the command line of
the SuperNode that started it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

import psutil

from fedlora.config import lost_keys
from fedlora.errors import FedloraError

_OPTION = "--node-config"


def check_arrived(arrived: Collection[str]) -> None:
    """Refuse a node configuration of which a typed pair is missing.

    Parameters
    ----------
    arrived
        The keys as Flower handed them over.

    Raises
    ------
    FedloraError
        When the SuperNode's command line names another key.
    """
    for text in typed():
        lost = lost_keys(text, arrived)
        if lost:
            raise FedloraError(lost)


def typed() -> Iterator[str]:
    """Yield what the commands that started this process were given as a node configuration."""
    try:
        commands = [parent.cmdline() for parent in psutil.Process().parents()]
    except psutil.Error:  # another user's process; then there is nothing to compare with
        return
    for command in commands:
        yield from options_in(command)


def options_in(command: Sequence[str]) -> Iterator[str]:
    """Yield the node configurations in a command line."""
    for place, word in enumerate(command):
        if word == _OPTION and place + 1 < len(command):
            yield command[place + 1]
        elif word.startswith(_OPTION + "="):
            yield word.removeprefix(_OPTION + "=")
