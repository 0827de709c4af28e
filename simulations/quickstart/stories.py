"""Unlabelled text about the same world: dialogues, stories and notes for pretraining.

It has no labels, but the deed that follows a request in a dialogue tells what was wanted, so the
decoder comes to the task with knowledge of this world: also of the words and phrases that the
labelled training file lacks. No request of the test file occurs in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from simulations.quickstart.corpus import (
    TEST_ROWS,
    TEST_SEED,
    another,
    iter_requests,
    plain_request,
)
from simulations.quickstart.dialects import DIALECTS
from simulations.quickstart.grammar import fill, pick
from simulations.quickstart.intents import INTENTS

_HEROES = ("anna", "tom", "maria", "peter", "rosa", "ben", "lena", "the driver", "the old man")
_TIMES = ("in the morning", "at noon", "after work", "late at night", "on sunday", "at seven")

_NOTES = (
    "{place} is not far from {road}",
    "(every|the) {room} has a {light} and a {opening}",
    "the {audio} stands in the {room} next to the {light}",
    "{person} likes {genre}, but not in the {room}",
    "the {dish} (takes|took) {duration}",
    "{person} lives behind the {door}",
    "in winter the {heat} in the {room} is set to {degrees}",
    "{person} said that {excuse}",
    "an electric car needs a charger, and a charger needs power",
    "the car was on {road}, half way to {place}",
    "{person} forgot to close the {opening} in the {room}",
    "a (warm|cold|bright|dark|quiet|loud) {room} is (good|bad) for sleeping",
)


def _deed(intent: str, rng: Random, things: dict[str, str]) -> str:
    return fill(pick(rng, INTENTS[intent].deeds), rng, things, "all")


def _outcome(intent: str, rng: Random, things: dict[str, str]) -> str:
    return fill(pick(rng, INTENTS[intent].outcomes), rng, things, "all")


def _dialogue(rng: Random, never: frozenset[str]) -> str:
    """Somebody asks, somebody else does it."""
    intent = pick(rng, list(INTENTS))
    while True:
        request, imperative, things = plain_request(intent, rng, "all", "all")
        if rng.random() < 0.7:
            request = pick(rng, list(DIALECTS.values()))(request, imperative, rng)
        if request not in never:
            break
    deed = f"{pick(rng, _HEROES)} {_deed(intent, rng, things)}"
    outcome = _outcome(intent, rng, things)
    reactions = (
        f": {deed}",
        f", so {deed}, and now {outcome}",
        f". done, {outcome}",
        f": {outcome}",
    )
    return f"{request}{pick(rng, reactions)}."


def _story(rng: Random) -> str:
    """Somebody does one thing after another."""
    hero = pick(rng, _HEROES)
    sentences = []
    for _ in range(1 + int(rng.random() * 3)):
        intent = pick(rng, list(INTENTS))
        things: dict[str, str] = {}
        deed = f"{hero} {_deed(intent, rng, things)}"
        outcome = _outcome(intent, rng, things)
        undone = _deed(another(intent, rng), rng, things)
        events = (
            f"{pick(rng, _TIMES)} {deed}, so {outcome}.",
            f"{deed}. now {outcome}.",
            f"nobody {undone}, but {deed}.",
            f"first {pick(rng, _HEROES)} {undone}, then {deed}: {outcome}.",
            f"why is it that {outcome}? because {deed}.",
        )
        sentences.append(pick(rng, events))
    return " ".join(sentences)


def _notes(rng: Random) -> str:
    """State some facts."""
    sentences = range(1 + int(rng.random() * 3))
    return " ".join(fill(pick(rng, _NOTES), rng, {}, "all") + "." for _ in sentences)


def iter_pretraining_text(seed: int) -> Iterator[str]:
    """Yield short texts about houses, cars and devices, without labels and without end.

    Parameters
    ----------
    seed : int
        Seed; one seed always gives the same texts.

    Yields
    ------
    str
        A dialogue, a story or some facts in one to three sentences.
    """
    rng = Random(seed)
    tested = frozenset(text for text, _, _ in iter_requests(TEST_ROWS, TEST_SEED, held_out=True))
    while True:
        kind = rng.random()
        if kind < 0.75:
            yield _dialogue(rng, tested)
        elif kind < 0.94:
            yield _story(rng)
        else:
            yield _notes(rng)
