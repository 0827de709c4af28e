"""A node configuration as a person types it, beside what Flower makes of it."""

from __future__ import annotations

import re
from collections.abc import Collection

_PAIR = re.compile(r"""([A-Za-z0-9_.-]+)\s*=\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s"']+)""")
_FILE = ".toml"


def lost_keys(text: str, arrived: Collection[str]) -> str:
    """Return the sentence for pairs that Flower dropped; empty where it dropped none.

    Parameters
    ----------
    text
        What was typed for ``--node-config``: pairs, or the name of a ``.toml`` file.
    arrived
        The keys as Flower handed them over.
    """
    lost = [key for key in keys_in(text) if key not in arrived]
    if not lost:
        return ""
    return (
        f"--node-config names {', '.join(lost)}, and Flower handed over "
        f"{', '.join(sorted(arrived)) or 'nothing'}: it drops a pair with blanks round =; "
        "write key=value without blanks"
    )


def is_file(text: str) -> bool:
    """Tell whether Flower reads this as the name of a file with the configuration."""
    return text.endswith(_FILE)


def keys_in(text: str) -> list[str]:
    """Return the keys that a person means who types this; none of a file's name."""
    return [] if is_file(text) else [match[1] for match in _PAIR.finditer(text)]
