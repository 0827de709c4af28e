"""From a file to a recording: which format it is in, found in its content or named by a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from fedlora.channel.traces import bytes_logs, drives, fcc, own, packets, sessions
from fedlora.channel.traces.text import read_text
from fedlora.channel.traces.track import Recording
from fedlora.errors import FedloraError
from fedlora.split import resolve_path


@dataclass(frozen=True)
class TraceFormat:
    """How recordings of one kind are known and read.

    Attributes
    ----------
    fits
        Tells of a text whether it may be one.
    read
        Makes a recording of path and text.
    """

    fits: Callable[[str], bool]
    read: Callable[[Path, str], Recording]


def _formats(step_s: float) -> Mapping[str, TraceFormat]:
    return {
        "fedlora": TraceFormat(own.fits, own.read),
        "irish": TraceFormat(drives.fits, drives.read),
        "hsdpa": TraceFormat(bytes_logs.fits_hsdpa, bytes_logs.read_hsdpa),
        "ghent": TraceFormat(bytes_logs.fits_ghent, bytes_logs.read_ghent),
        "mahimahi": TraceFormat(packets.fits, packets.read),
        "oboe": TraceFormat(sessions.fits_oboe, sessions.read_oboe),
        "fcc": TraceFormat(fcc.fits, partial(fcc.read, step_s=step_s)),
        "pensieve": TraceFormat(sessions.fits_pensieve, sessions.read_pensieve),
    }


TRACE_FORMATS: Final = tuple(_formats(0.0))


def read_recording(
    path: str, format: str = "", *, step_s: float = 0.0, key: str = "channel.options.path"
) -> Recording:
    """Read a recording of a link.

    Parameters
    ----------
    path
        The file; ``package:NAME/FILE`` is one in an installed package, and variables are expanded.
    format
        One of ``TRACE_FORMATS``; empty finds it in the content.
    step_s
        How long a line stands for, in seconds, where the file does not say (``fcc``).
    key
        What names the file, for messages.

    Raises
    ------
    FedloraError
        When the file cannot be read, is in no format or may be in two, or a line is not what its
        format has.
    """
    place = resolve_path(path, "trace", key) if "$" in path or ":" in path else Path(path)
    place = place.expanduser()
    text = read_text(place, key)
    formats = _formats(step_s)
    if format and format not in formats:
        raise FedloraError(
            f"channel.trace_format is {format!r:.80}; choose one of {', '.join(formats)}, or leave "
            "it out"
        )
    found = [format] if format else [name for name, one in formats.items() if one.fits(text)]
    if len(found) > 1:
        raise FedloraError(
            f"trace {place} may be {' or '.join(found)}; say which with channel.trace_format"
        )
    if not found:
        first = text.lstrip().partition("\n")[0]
        raise FedloraError(
            f"trace {place} begins with {first!r:.80}, which is none of {', '.join(formats)}; "
            "name its format with channel.trace_format, or write it as fedlora's"
        )
    return formats[found[0]].read(place, text)
