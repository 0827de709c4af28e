"""Values of a node configuration as a person types them, read strictly from what Flower makes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Literal, TypeAlias

from fedlora.errors import FedloraError

Report: TypeAlias = Literal["false", "true", "unprotected"]


def _refused(key: str, value: Any, mend: str) -> FedloraError:
    return FedloraError(f"node config {key} is {value!r}; {mend}")


def _text(key: str, value: Any) -> str:
    if isinstance(value, (bool, float)) or not str(value):
        raise _refused(key, value, "set a text in quotes")
    return str(value)


def _any_text(key: str, value: Any) -> str:
    if isinstance(value, (bool, int, float)):
        raise _refused(key, value, "set a text in quotes")
    return str(value)


def _number(key: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        raise _refused(key, value, "set a number")
    return number


def _seconds(key: str, value: Any) -> float:
    try:
        return _number(key, value)
    except FedloraError:
        raise _refused(key, value, "set seconds above 0") from None


def _whole(key: str, value: Any) -> int:
    text = str(value)
    if isinstance(value, bool) or not (text.isascii() and text.isdecimal()):
        raise _refused(key, value, "set a whole number from 0")
    return int(text)


def _own_number(key: str, value: Any) -> int:
    try:
        return _whole(key, value)
    except FedloraError:
        raise _refused(key, value, "set the device's number, from 0, each its own") from None


def _truth(key: str, value: Any) -> bool:
    """Read a Boolean, also where the configuration only carries text."""
    word = str(value).lower()
    if word not in ("true", "false"):
        raise _refused(key, value, "set true or false")
    return word == "true"


def _report(key: str, value: Any) -> Report:
    match str(value).lower():
        case "true":
            return "true"
        case "false":
            return "false"
        case "unprotected":
            return "unprotected"
    raise _refused(key, value, "set true, false or unprotected")


def _list(key: str, value: Any) -> tuple[str, ...]:
    names = tuple(name.strip() for name in str(value).split(","))
    if not all(names) or len(set(names)) < len(names):
        raise _refused(key, value, "set names separated by commas, each once")
    return names


def _chat(key: str, value: Any) -> str:
    word = str(value).lower()
    if word not in ("auto", "yes", "no"):
        raise _refused(key, value, "set auto, yes or no")
    return word


_READ: Final[Mapping[str, Callable[[str, Any], Any]]] = {
    **dict.fromkeys(("columns", "classes", "server", "values", "axes"), _list),
    **dict.fromkeys(("scenario_data", "retention", "tokens", "generate_allowed"), _truth),
    **dict.fromkeys(("privacy_tight", "privacy_personal_head"), _truth),
    **dict.fromkeys(("privacy_statistics", "privacy_scores"), _truth),
    "privacy_mechanisms": _list,
    "partition_id": _own_number,
    "num_partitions": _whole,
    "record_separator": _any_text,
    "pattern": _any_text,
    "prompt_separator": _any_text,
    "chat": _chat,
    "holdout": _number,
    "segment": _whole,
    "idle_limit_s": _seconds,
    "privacy_epsilon": _number,
    "privacy_delta": _number,
    "privacy_min_sigma": _number,
    "privacy_report": _report,
    "privacy_report_limit": _whole,
}


def read_value(name: str, key: str, value: Any) -> Any:
    """Return the value of a key.

    Parameters
    ----------
    name
        Of the field of ``NodeKeys``.
    key
        As it is typed.
    value
        As Flower hands it over.

    Raises
    ------
    FedloraError
        When it is of the wrong kind.
    """
    read: Callable[[str, Any], Any] = _READ.get(name, _text)
    return read(key, value)


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
