"""Words and phrases of the quickstart world: intents, slot values and contrast frames.

A phrase is a template: ``(a|b)`` picks one alternative, ``{slot}`` a value of the slot, and
``{other}`` the phrase of another intent. Whatever is called held out is used in the test file and
in unlabelled pretraining text, never in the labelled training file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

T = TypeVar("T")
Part = Literal["common", "held_out", "all"]


@dataclass(frozen=True)
class Choices:
    """Phrases or slot values to choose from.

    Parameters
    ----------
    common : tuple of str
        For training and test.
    held_out : tuple of str
        For test and pretraining only.
    """

    common: tuple[str, ...]
    held_out: tuple[str, ...]

    def among(self, part: Part) -> tuple[str, ...]:
        """Return the choices of one part."""
        return {
            "common": self.common,
            "held_out": self.held_out,
            "all": self.common + self.held_out,
        }[part]


@dataclass(frozen=True)
class Intent:
    """What a speaker may want, and the ways to say it.

    Parameters
    ----------
    rivals : tuple of str
        Intents that are easily taken for this one.
    orders : Choices
        Imperative verb phrases.
    remarks : Choices
        Statements and questions that mean the same without an imperative.
    deeds : tuple of str
        What somebody did to fulfil the wish, in the past tense; pretraining text only.
    outcomes : tuple of str
        What is true afterwards; pretraining text only.
    """

    rivals: tuple[str, ...]
    orders: Choices
    remarks: Choices
    deeds: tuple[str, ...]
    outcomes: tuple[str, ...]


def pick(rng: Random, items: Sequence[T]) -> T:
    """Choose one item from ``rng.random()``, the only draw Python promises never to change.

    Parameters
    ----------
    rng : random.Random
        Source of randomness.
    items : sequence
        What to choose from.

    Returns
    -------
    object
        The chosen item.
    """
    return items[int(rng.random() * len(items))]


def fill(template: str, rng: Random, bound: MutableMapping[str, str], part: Part = "common") -> str:
    """Turn a template into text.

    Parameters
    ----------
    template : str
        Text with ``(a|b)`` and ``{slot}``.
    rng : random.Random
        Source of randomness.
    bound : mutable mapping
        Values of slots already chosen; newly chosen values are added, so that phrases filled with
        the same mapping speak of the same things.
    part : {"common", "held_out", "all"}
        Which slot values to choose from.

    Returns
    -------
    str
        The text.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        if name not in bound:
            bound[name] = pick(rng, SLOTS[name].among(part))
        return bound[name]

    text = re.sub(r"\(([^()]*)\)", lambda match: pick(rng, match[1].split("|")), template)
    return " ".join(re.sub(r"\{(\w+)\}", value, text).split())


SLOTS: Mapping[str, Choices] = {
    "room": Choices(
        (
            "kitchen",
            "bedroom",
            "living room",
            "bathroom",
            "hall",
            "garage",
            "office",
            "nursery",
            "car",
            "van",
            "guest room",
            "workshop",
        ),
        ("attic", "dining room", "basement", "camper", "laundry room"),
    ),
    "light": Choices(
        ("light", "lamp", "ceiling light", "reading lamp", "spotlight", "main light"),
        ("floor lamp", "night light", "chandelier"),
    ),
    "heat": Choices(
        ("heating", "thermostat", "temperature", "climate control"), ("radiator", "heater")
    ),
    "degrees": Choices(
        ("eighteen degrees", "nineteen degrees", "twenty degrees", "twenty two degrees"),
        ("twenty one degrees", "seventeen degrees"),
    ),
    "audio": Choices(
        ("radio", "music", "tv", "speaker", "podcast", "audio book"), ("stereo", "sound bar")
    ),
    "opening": Choices(
        ("window", "left window", "rear window", "skylight", "big window"),
        ("sunroof", "front window"),
    ),
    "door": Choices(
        ("front door", "back door", "garage door", "driver door", "garden gate", "boot"),
        ("side door", "cellar door", "patio door"),
    ),
    "duration": Choices(
        ("two minutes", "five minutes", "ten minutes", "half an hour", "an hour", "three hours"),
        ("twenty minutes", "two hours", "forty seconds"),
    ),
    "dish": Choices(
        ("eggs", "pasta", "rice", "bread", "cake", "tea"), ("soup", "pizza", "potatoes")
    ),
    "genre": Choices(
        ("jazz", "rock", "some piano music", "the news channel", "my morning songs", "the blues"),
        ("folk music", "an opera", "my party songs"),
    ),
    "place": Choices(
        (
            "the airport",
            "the office",
            "the station",
            "my mother",
            "the harbour",
            "school",
            "the city centre",
            "the hospital",
            "the market",
            "the gym",
        ),
        ("the museum", "the stadium", "the library", "the beach"),
    ),
    "road": Choices(
        ("the motorway", "the ring road", "the bridge", "main street"),
        ("the tunnel", "the coast road"),
    ),
    "person": Choices(
        ("anna", "tom", "my sister", "my boss", "grandma", "the neighbour", "maria", "my wife"),
        ("peter", "my brother", "the plumber", "aunt rosa"),
    ),
    "excuse": Choices(
        ("i will be late", "dinner is ready", "the train is delayed", "i am on my way"),
        ("i forgot the keys", "the meeting is over"),
    ),
}

# How a request names what is NOT wanted beside what is: the words of two intents meet in one text,
# and only the structure of the sentence tells which one counts.
ORDER_FRAMES = Choices(
    (
        "{other}, no wait, {core}",
        "{other}, oh no, i mean {core}",
        "do not {other}, {core}",
        "{core}, do not {other}",
        "{core} but do not {other}",
        "rather than {other}, {core}",
        "{core} rather than {other}",
        "i asked {person} to {other}, now {core}",
        "{core}, {person} will {other}",
        "i will {other} myself, so {core}",
        "{core}, i can {other} myself",
    ),
    (
        "{other}, wait, no, {core}",
        "do not {other} now, just {core}",
        "{core} and do not {other}",
        "{person} will {other}, so {core}",
        "{core}, i will {other} later",
    ),
)
# The same for statements, which cannot follow "but do not" or "rather than".
REMARK_FRAMES = Choices(
    (
        "do not {other}, {core}",
        "{core}, but do not {other}",
        "i asked {person} to {other}, but {core}",
        "{core}, and {person} will {other}",
        "{other}, no wait, {core}",
    ),
    ("do not {other} now, {core}", "{core}, but i will {other} myself"),
)
