"""mahimahi's packet-delivery files (Netravali and others, USENIX ATC 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlora.channel.traces.text import TIME_LIMIT_S
from fedlora.channel.traces.track import Packets, Recording
from fedlora.errors import FedloraError


def fits(text: str) -> bool:
    """Tell whether the first row is one whole number."""
    return text.split("\n", 1)[0].strip().isdecimal()


def read(path: Path, text: str) -> Recording:
    """Read the milliseconds of a packet each; all begins anew at the last of them.

    Raises
    ------
    FedloraError
        When a line is no whole number, time goes backwards, or the last line is 0, as
        ``src/frontend/link_queue.cc`` refuses them.
    """
    times: list[int] = []
    for line, row in enumerate(text.splitlines(), 1):
        cell = row.strip()
        if not (cell.isascii() and cell.isdecimal()) or int(cell[:20]) > 1000 * TIME_LIMIT_S:
            raise FedloraError(
                f"trace {path} line {line} has {row!r:.80}; mahimahi writes the millisecond of a "
                "packet on each line, a whole number and nothing else"
            )
        if times and int(cell) < times[-1]:
            raise FedloraError(
                f"trace {path} line {line} has {int(cell)} after {times[-1]}; mahimahi's times do "
                "not decrease, cut the file there"
            )
        times.append(int(cell))
    if not times:
        raise FedloraError(f"trace {path} has no line; write the millisecond of each packet")
    if not times[-1]:
        raise FedloraError(
            f"trace {path} ends at 0 ms, so that mahimahi would repeat it for ever at once; give "
            "it a later last line"
        )
    return Recording(path, "mahimahi", "packets of 1504 bytes", {None: Packets(np.array(times))})
