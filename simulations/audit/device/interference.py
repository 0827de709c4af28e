"""Two devices that differ in one record, the same hostile server: what leaves is compared.

Until the first charge everything that leaves has to be the same, byte by byte. After it a message
may differ in what its noise covers: a noised upload by at most twice its clipping norm, in the rows
of that record alone; what is computed from a randomised label where the draws differ.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fedlora.config import Scenario
from fedlora.link import Frame, decode_frame, messages as m
from fedlora.split import model_folder
from fedlora.tasks import load_tokenizer
from simulations.audit.device.differences import difference, noises_gradients
from simulations.audit.device.hostile import MODEL, HostileServer
from simulations.audit.device.spending import Left, leaving, underpaid
from simulations.audit.device.world import Row, World

_MAX_FRAME_BYTES = 1 << 26
_WORDS = ("the", "cat", "sat", "on", "a", "mat", "and", "saw", "one", "dog", "run", "far", "home")
_SESSIONS = 6
_MESSAGES = 24
_ROWS = 20


@dataclass
class Finding:
    """A difference that no charge covers, or a charge that is too small.

    Attributes
    ----------
    trial
        Seed of the trial.
    what
        What was found.
    """

    trial: int
    what: str


@dataclass
class DeviceAudit:
    """What an audit of a device came to.

    Attributes
    ----------
    messages
        Requests that a device answered, in each of the two worlds.
    sessions, taken
        Sessions, and those in which the device took part.
    charged
        Trials in which something was paid for.
    findings
        All that is wrong; empty where the audit passes.
    """

    messages: int = 0
    sessions: int = 0
    taken: int = 0
    charged: int = 0
    findings: list[Finding] = field(default_factory=list)


def audit_device(
    folder: Path,
    messages: int,
    seed: int,
    advance: Callable[[DeviceAudit], None] | None = None,
    check: Callable[[World, Left], str] | None = None,
    *,
    stop: bool = False,
) -> DeviceAudit:
    """Let a hostile server talk to pairs of devices until so many messages were answered.

    Parameters
    ----------
    folder
        Where the devices live; what is in it is removed after each trial.
    messages
        Requests to answer, at least.
    seed
        Of everything that is drawn.
    advance
        Called after every trial.
    check
        Holds a device's ledger against what left it, beside ``spending.underpaid``; returns what is
        wrong, or nothing.
    stop
        Whether to stop at the first finding.
    """
    audit = DeviceAudit()
    trial = seed * 1_000_003
    while audit.messages < messages and not (stop and audit.findings):
        trial += 1
        for what in _trial(folder / str(trial), trial, audit, check):
            audit.findings.append(Finding(trial, what))
        shutil.rmtree(folder / str(trial), ignore_errors=True)
        if advance is not None:
            advance(audit)
    return audit


def _trial(
    folder: Path, seed: int, audit: DeviceAudit, check: Callable[[World, Left], str] | None
) -> list[str]:
    """Run some sessions of one pair of devices; return what is wrong."""
    rng = random.Random(seed)
    hides_text = rng.random() < 0.25
    keys = _keys(rng, hides_text=hides_text)
    first, second = World(folder / "a", keys), World(folder / "b", keys)
    rows, place = _rows(rng)
    other = _other(rows[place], rng, text=hides_text)
    test, moved = rows[: _ROWS // 4], {**dict(enumerate(rows)), place: other}
    first.write(rows, test)
    second.write([moved[i] for i in range(len(rows))], test)
    left, known, nearness = Left(), list[Scenario](), random.Random(~seed)
    for _ in range(_SESSIONS):
        server = HostileServer(rng.getrandbits(48), keys["privacy-epsilon"], hides_text=hides_text)
        if len(known) < 2 or rng.random() < 0.3:
            drawn = server.scenario()
            known.append(server.near(known[-1]) if known and nearness.random() < 0.4 else drawn)
        scenario = rng.choice(known[-2:])  # what is kept between sessions is met again
        crash, random_seed = server.crash(), rng.getrandbits(48)
        handler = rng.choice(("session", "session", "session", "session", "hello", "collect"))
        record, requests = server.invitation(scenario), list[Frame]()
        before = len(first.sent), len(second.sent)
        with leaving(left):
            first.flower(handler, record, random_seed, crash, _asking(server, scenario, requests))
        second.flower(handler, record, random_seed, crash, _replaying(requests))
        audit.sessions += 1
        audit.taken += bool(requests)
        audit.messages += len(requests) + 1
        found = _compare(first, second, before, scenario, text=hides_text)
        if found:
            told = {k: scenario.privacy.__dict__[k] for k in ("release", "epsilon", "sigma")}
            return [f"{found} ({handler}, {told}, head.share {scenario.head.share})"]
    audit.charged += first.charges() > 0
    wrong = underpaid(first, left) if first.charges() else ""
    if not wrong and check is not None and first.charges():
        wrong = check(first, left)
    return [wrong] if wrong else []


def _compare(
    first: World, second: World, before: tuple[int, int], scenario: Scenario, *, text: bool
) -> str:
    """Return what is wrong with what left both devices in one session."""
    one, other = first.sent[before[0] :], second.sent[before[1] :]
    same_labels = _drawn(first) == _drawn(second)
    drawn = not noises_gradients(scenario) and not same_labels
    if [s.asked for s in one] != [s.asked for s in other]:
        # a step may fail for a label that was drawn, which is what the draw covers
        stepped = m.STEP in {s.asked for s in one} & {s.asked for s in other}
        if not (drawn and stepped):
            return f"one device answered {len(one)} times and the other {len(other)}"
    for a, b in zip(one, other, strict=False):
        if drawn and a.asked != b.asked:
            return ""
        if a.data == b.data and a.charges == b.charges:
            continue
        if a.charges != b.charges:
            return (
                f"one device had booked {a.charges} entries at {a.asked!r}, the other {b.charges}"
            )
        if a.asked.startswith("flower"):
            return f"{a.asked} is answered with {a.data!r} and {b.data!r}"
        if not a.charges:
            return f"before any charge the answers to {a.asked!r} differ"
        pair = tuple(decode_frame(s.data, _MAX_FRAME_BYTES) for s in (a, b))
        found = difference(pair[0], pair[1], scenario, same_labels=same_labels, text=text)
        if found:
            return f"the answers to {a.asked!r} differ in {found}"
    return ""


def _drawn(world: World) -> object:
    """Return the labels that a device has drawn, in the order of its records."""
    try:
        text = world.ledger.with_name("ledger.labels").read_text()
    except OSError:
        return None
    return [label for _, label in json.loads(text.partition(" ")[2])["labels"]]


def _asking(
    server: HostileServer, scenario: Scenario, requests: list[Frame]
) -> Callable[[Frame, Callable[[Frame], bytes | None]], None]:
    def serve(hello: Frame, ask: Callable[[Frame], bytes | None]) -> None:
        del hello

        def noted(request: Frame) -> bytes | None:
            requests.append(request)
            return ask(request)

        server.serve(scenario, noted, _MESSAGES)

    return serve


def _replaying(
    requests: Sequence[Frame],
) -> Callable[[Frame, Callable[[Frame], bytes | None]], None]:
    def serve(hello: Frame, ask: Callable[[Frame], bytes | None]) -> None:
        del hello
        for request in requests:
            ask(request)

    return serve


def _keys(rng: random.Random, *, hides_text: bool) -> dict[str, Any]:
    """Draw an owner's keys; those that leave records unprotected are not among them."""
    keys: dict[str, Any] = {
        "text": "text",
        "label": "label",
        "model": MODEL,
        "privacy-epsilon": rng.choice((1.0, 8.0)),
        "privacy-report": rng.choice(("false", "true")),
    }
    rare = {"privacy-min-sigma": 1.0, "privacy-tight": "true", "holdout": 0.3, "test": True}
    keys |= {key: value for key, value in rare.items() if rng.random() < 0.2}
    if "test" in keys:
        keys.pop("holdout", None)
    if not hides_text and rng.random() < 0.3:
        keys["privacy-statistics"] = "true"
    return keys


def _rows(rng: random.Random) -> tuple[list[Row], int]:
    """Draw records, and the place of the one that will differ."""
    rows: list[Row] = []
    for number in range(_ROWS):
        text = " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, 7)))
        rows.append({"text": f"{text} {number}", "label": rng.choice(("neg", "pos"))})
    return rows, rng.randrange(_ROWS)


def _other(row: Row, rng: random.Random, *, text: bool) -> Row:
    """Return a record with another label, and where texts are hidden another text as long."""
    label = rng.choice([label for label in ("neg", "pos", "odd", "none") if label != row["label"]])
    if not text:
        return {**row, "label": label}
    *words, number = row["text"].split()
    return {"text": " ".join([*(_like(word, rng) for word in words), number]), "label": label}


def _like(word: str, rng: random.Random) -> str:
    """Return another word of as many tokens."""
    sizes = _sizes()
    return rng.choice([w for w in _WORDS if w != word and sizes[w] == sizes[word]] or [word])


@cache
def _sizes() -> dict[str, int]:
    """Return the tokens of each word within a text."""
    tokenizer = load_tokenizer(model_folder(MODEL))
    return {word: len(tokenizer.encode(f"a {word}", 64)) for word in _WORDS}
