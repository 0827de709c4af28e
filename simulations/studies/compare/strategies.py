"""Reading the strategies and SNRs of a comparison from the command line."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from typing import Any

from fedlora.errors import FedloraError
from simulations.options import read_numbers

_CONTENDER = re.compile(r"(?P<name>[^()]+)(?:\((?P<options>.*)\))?")
_COMMA_OUTSIDE = re.compile(r",(?![^()]*\))")
_MOST_RANKS = 1000
_RANGE = re.compile(r"\br=(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Contender:
    """A strategy in a comparison.

    Attributes
    ----------
    label
        As it was given; names it in tables and plots.
    name
        Registered name or ``module:Class``.
    options
        Its keyword arguments.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict, hash=False)


def parse_strategies(text: str) -> list[Contender]:
    """Read ``greedy,uniform(r=4),my_module:Mine(step=0.1)``.

    ``uniform(r=1..16)`` stands for one contender for each rank.

    Raises
    ------
    FedloraError
        When the list is empty, an entry cannot be read or names too many ranks, or one occurs
        twice.
    """
    contenders = []
    for part in _COMMA_OUTSIDE.split(text):
        span = _RANGE.search(part)
        ranks = range(int(span[1]), int(span[2]) + 1) if span else [None]
        if not ranks:
            raise FedloraError(
                f"strategy {part.strip()!r} names no rank; write the smaller one first, as in "
                "uniform(r=1..16)"
            )
        if len(ranks) > _MOST_RANKS:
            raise FedloraError(
                f"strategy {part.strip()!r} names {len(ranks)} ranks; name at most {_MOST_RANKS}"
            )
        for r in ranks:
            contenders.append(_contender(part if r is None else _RANGE.sub(f"r={r}", part)))
    labels = [contender.label for contender in contenders]
    for label in labels:
        if labels.count(label) > 1:
            raise FedloraError(f"strategy {label!r} is listed twice; list it once")
    return contenders


def parse_snrs_db(text: str) -> list[float]:
    """Read ``-5,0,5``.

    Raises
    ------
    FedloraError
        When an entry is no finite number or occurs twice.
    """
    numbers = "numbers of dB from -200 to 200"
    return read_numbers("--snr", text, numbers, "-5,0,5,10,15", lambda value: abs(value) <= 200)


def _contender(text: str) -> Contender:
    label = text.strip()
    match = _CONTENDER.fullmatch(label)
    if match is None:
        raise FedloraError(
            f"cannot read strategy {label!r}; write a name, module:Class, or either with options "
            "such as uniform(r=4)"
        )
    try:
        options = tomllib.loads(f"options = {{{match['options'] or ''}}}")["options"]
    except tomllib.TOMLDecodeError:
        raise FedloraError(
            f"cannot read the options of strategy {label!r}; write name(key=value, key=value) with "
            'values as in TOML, such as 0.5, true or "text"'
        ) from None
    return Contender(label, match["name"].strip(), options)
