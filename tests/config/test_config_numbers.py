"""Every number of a scenario has a range, and whatever is written for it is taken or refused."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator

import pytest

from fedlora.config import ComputeConfig, Scenario, scenario_from_toml, with_overrides
from fedlora.config.ranges import Range, range_of
from fedlora.errors import FedloraError

OWN_RULE = {"privacy.epsilon", "privacy.delta"}  # ``check_epsilon`` and ``check_delta``
ODD = [
    *(
        "0",
        "-1",
        "nan",
        "-nan",
        "inf",
        "-inf",
        "1e30",
        "-1e30",
        "1e308",
        "1e-300",
        "5e-324",
        "-0.0",
    ),
    *(str(2**63), str(-(2**63)), "1" + "0" * 400, "9" * 5000, "true", '"text"', "[]", "{}", "1.5"),
    *("[[[1]]]", "1979-05-27", "{a = 1}"),
]


def numbers(
    cls: type = Scenario, prefix: str = ""
) -> Iterator[tuple[str, typing.Any, Range | None]]:
    """Yield name, type and range of every key that is a number, or several."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from numbers(typing.cast(type, hint), f"{prefix}{field.name}.")
        elif {hint, *typing.get_args(hint)} & {int, float}:
            yield prefix + field.name, hint, range_of(field)


KEYS = {name: (hint, allowed) for name, hint, allowed in numbers()}


def test_there_are_numbers():
    assert {"seed", "train.lr", "channel.snr_db", "channel.report.delay_s", "privacy.sigma"} <= set(
        KEYS
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_number_has_a_range(key):
    assert KEYS[key][1] is not None or key in OWN_RULE, (
        f"declare {key} by fedlora.config.ranges.within, so that what no run can use is refused"
    )


@pytest.mark.parametrize("key", KEYS)
def test_an_odd_number_is_taken_or_refused_in_a_sentence_with_key_and_value(key):
    section, _, name = key.rpartition(".")
    for value in ODD:
        text = f"[{section}]\n{name} = {value}" if section else f"{name} = {value}"
        is_taken_or_refused(key, lambda text=text: scenario_from_toml(text))
        change = [f"{key}={value}"]
        is_taken_or_refused(key, lambda change=change: with_overrides(Scenario(), change))


def is_taken_or_refused(key: str, read: Callable[[], Scenario]) -> None:
    try:
        scenario = read()
    except FedloraError as error:
        said = str(error)
        endless = "has a number of 5000 digits" in said and "line" in said
        assert endless or (f"{key} is " in said and "; " in said), said
        assert len(said) < 300 and "\n" not in said
        return
    own: typing.Any = scenario
    for part in key.split("."):
        own = getattr(own, part)
    allowed = KEYS[key][1]
    for number in own if isinstance(own, tuple) else (own,):
        assert number is None or math.isfinite(number)
        assert number is None or allowed is None or number in allowed


@pytest.mark.parametrize("key", [key for key in KEYS if key not in OWN_RULE])
def test_both_ends_of_a_range_are_in_it_and_what_is_beyond_is_not(key):
    allowed = KEYS[key][1]
    low, high = allowed.low, allowed.high
    assert low in allowed and high in allowed
    assert not any(nothing in allowed for nothing in (math.nan, -math.nan))
    assert math.nextafter(low, -math.inf) not in allowed or (allowed.zero and low == 5e-324)
    assert math.nextafter(high, math.inf) not in allowed or high >= 2**53
    assert (0 in allowed) == (low <= 0 <= high or bool(allowed.zero))


def test_the_sentence_names_what_zero_means():
    with pytest.raises(FedloraError) as caught:
        with_overrides(Scenario(), ["compute.threads=-1"])
    assert str(caught.value) == "compute.threads is -1; set 0 for all cores, or 1 to 1024"
    with pytest.raises(FedloraError) as caught:
        with_overrides(Scenario(), ["channel.snr_db=[0.0, 201.0]"])
    assert str(caught.value) == "an entry of channel.snr_db is 201.0; set -200 to 200"


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ({"cpu": ",".join(["0-999999"] * 3)}, "which are over 1000000; name each block once"),
        ({"cpu": "0-9, 4"}, r"names block \[4\] twice"),
        ({"cpu": "0-9", "disk": "9-12"}, r"names block \[9\] twice"),
    ],
)
def test_few_bytes_do_not_name_more_blocks_than_memory_holds(blocks, words):
    """Every device reads the scenario that a server sends."""
    with pytest.raises(FedloraError, match=words):
        ComputeConfig(device_map=blocks, checkpoint=True)
