"""Labelled requests to household and vehicle assistants, in eight dialects.

``python -m simulations.quickstart.corpus`` writes both files beside this module again.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from random import Random

from simulations.quickstart.dialects import DIALECTS
from simulations.quickstart.grammar import ORDER_FRAMES, REMARK_FRAMES, Part, fill, pick
from simulations.quickstart.intents import INTENTS

FOLDER = Path(__file__).parent
TRAIN_ROWS, TRAIN_SEED = 3200, 1
TEST_ROWS, TEST_SEED = 800, 2

# Where paraphrases and slot values of a request come from.
COMMON: tuple[Part, Part] = ("common", "common")
HELD_OUT: tuple[tuple[Part, Part], ...] = (("held_out", "common"), ("common", "held_out"))

# Share of requests that also name what is not wanted.
FRAMED = 0.4
# Share of easily confused intents among those named beside the wanted one.
RIVAL = 0.7


def another(intent: str, rng: Random) -> str:
    """Return an intent other than the given one, mostly one that is easily taken for it."""
    if rng.random() < RIVAL:
        return pick(rng, INTENTS[intent].rivals)
    return pick(rng, [name for name in INTENTS if name != intent])


def _order(intent: str, rng: Random, things: dict[str, str], values: Part) -> str:
    """Return an imperative phrase of the common kind."""
    return fill(pick(rng, INTENTS[intent].orders.common), rng, things, values)


def plain_request(
    intent: str, rng: Random, phrases: Part = "common", values: Part = "common"
) -> tuple[str, bool, dict[str, str]]:
    """Say a wish in plain words.

    Parameters
    ----------
    intent : str
        What is wanted.
    rng : random.Random
        Source of randomness.
    phrases, values : {"common", "held_out", "all"}
        Which paraphrases and which slot values to choose from.

    Returns
    -------
    text : str
        The request.
    imperative : bool
        Whether it begins with an imperative.
    things : dict of str to str
        Slot values it speaks of.
    """
    errand = pick(rng, [name for name in INTENTS if name != "send_message"])
    things = {"other": _order(errand, rng, {}, values)}
    imperative = rng.random() < 0.7
    wish = INTENTS[intent].orders if imperative else INTENTS[intent].remarks
    core = fill(pick(rng, wish.among(phrases)), rng, things, values)
    if rng.random() >= FRAMED:
        return core, imperative, things

    # Half of the time both phrases speak of the same room, door or person.
    about = dict(things) if rng.random() < 0.5 else {"other": things["other"]}
    other = _order(another(intent, rng), rng, about, values)
    frame = pick(rng, (ORDER_FRAMES if imperative else REMARK_FRAMES).among(phrases))
    text = fill(frame, rng, {"core": core, "other": other}, values)
    starts = frame.startswith("{other}") or (imperative and frame.startswith("{core}"))
    return text, starts, things


def iter_requests(rows: int, seed: int, held_out: bool = False) -> Iterator[tuple[str, str, str]]:
    """Yield labelled requests, one dialect after the other.

    Every dialect has every intent, with frequencies of its own.

    Parameters
    ----------
    rows : int
        Number of requests; no text occurs twice.
    seed : int
        Seed; one seed always gives the same requests.
    held_out : bool
        Whether each request has either a paraphrase or slot values that are held out.

    Yields
    ------
    text, intent, dialect : str
        One request.
    """
    rng = Random(seed)
    habits = Random(0)  # the speakers are the same in every file
    wishes = {
        dialect: [name for name in INTENTS for _ in range(pick(habits, (1, 1, 2, 4)))]
        for dialect in DIALECTS
    }
    seen: set[str] = set()
    for dialect in cycle(DIALECTS):
        if len(seen) == rows:
            return
        intent = pick(rng, wishes[dialect])
        phrases, values = pick(rng, HELD_OUT) if held_out else COMMON
        plain, imperative, _ = plain_request(intent, rng, phrases, values)
        text = DIALECTS[dialect](plain, imperative, rng)
        if text not in seen:
            seen.add(text)
            yield text, intent, dialect


def write_dataset(path: str | Path, rows: int, seed: int, held_out: bool = False) -> None:
    """Write labelled requests as CSV with the columns ``text,intent,dialect``.

    Parameters
    ----------
    path : path
        File to write.
    rows : int
        Number of requests.
    seed : int
        Seed; one seed always gives the same bytes.
    held_out : bool
        Whether each request has either a paraphrase or slot values that are held out.
    """
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "intent", "dialect"))
        writer.writerows(iter_requests(rows, seed, held_out))


def main() -> None:
    """Write the training and test files beside this module."""
    write_dataset(FOLDER / "requests.csv", TRAIN_ROWS, TRAIN_SEED)
    write_dataset(FOLDER / "requests-test.csv", TEST_ROWS, TEST_SEED, held_out=True)


if __name__ == "__main__":
    main()
