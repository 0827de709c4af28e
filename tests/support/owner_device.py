"""A device with a strict owner, and a hostile server that asks it directly."""

from __future__ import annotations

import csv
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import clients.device
from clients.device import take_part
from fedlora.config import Scenario, scenario_to_toml, with_overrides
from fedlora.link import Frame, Words, decode_frame, encode_frame
from fedlora.link.stream.client.answer import answer
from fedlora.link.stream.client.session import ClientSession
from fedlora.privacy.ledger import Ledger

MODEL = "package:simulations/quickstart/decoder"
WIDTH = 128
WORDS = ("cat", "sat", "mat", "saw", "one", "dog", "run", "far")
Ask = Callable[..., Frame]


def scenario(*overrides: str) -> Scenario:
    """Return a noised run in which a strict owner takes part."""
    defaults = [
        f"model.path={MODEL}",
        'task.labels=["neg","pos"]',
        "task.max_length=24",
        'data.train="package:simulations/quickstart/requests.csv"',
        "train.rounds=1",
        "train.steps=1",
        "train.batch_size=40",
        "evaluate.baseline=false",
        "evaluate.report=true",
        "head.share=step",
        "privacy.release=logits",
        "privacy.epsilon=1.0",
    ]
    return with_overrides(Scenario(), [*defaults, *overrides])


class Device:
    """A device's files and its owner's keys."""

    def __init__(self, folder: Path, rows: int = 40, **keys: Any) -> None:
        rng = random.Random(0)
        self.folder = folder
        self.rows = [
            (f"{' '.join(rng.choices(WORDS, k=6))} {number}", rng.choice(("neg", "pos")))
            for number in range(rows)
        ]
        self.write("own.csv", self.rows)
        self.keys: dict[str, Any] = {
            "partition-id": 0,
            "data": str(folder / "own.csv"),
            "text": "text",
            "label": "label",
            "model": MODEL,
            "state": str(folder / "states"),
            "privacy-epsilon": 1.0,
            "privacy-ledger": str(folder / "ledger"),
            **{key.replace("_", "-"): value for key, value in keys.items()},
        }

    def write(self, name: str, rows: Sequence[tuple[str, str]]) -> Path:
        """Write a file of texts and labels."""
        with (self.folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        return self.folder / name

    def ledger(self) -> Ledger:
        """Open the owner's ledger."""
        return Ledger(self.folder / "ledger", "0")

    def rho(self) -> float:
        """Return what the record has spent that has spent most."""
        with self.ledger() as ledger:
            return ledger.rho


def attack(
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    asked: Scenario | str,
    serve: Callable[[Ask, Frame], None],
    **session: Any,
) -> Mapping[str, Any]:
    """Let a server talk to the device's real code; return what the device told Flower.

    Parameters
    ----------
    serve
        Is given a way to ask, by kind, fields and tensors, and the hello.
    session
        Parts of the session message in place of honest ones.
    """

    class Stream:
        def __init__(self, *_: Any, words: Words, **__: Any) -> None:
            self._words = words

        def probe(self, *_: Any) -> float:
            return 0.1

        def serve(self, handlers: Any, hellos: Sequence[Frame], **_: Any) -> None:
            (hello,) = hellos
            opened = ClientSession(hello.client, handlers[hello.client], hello)
            number, errors = 0, list[BaseException]()

            def ask(kind: str, fields: Any = None, tensors: Any = None) -> Frame:
                nonlocal number
                number += 1
                request = encode_frame(
                    Frame(kind, hello.client, number, fields or {}, tensors or {})
                )
                given = answer(opened, request, 1 << 26, self._words)
                if given.error is not None:
                    errors.append(given.error)
                return decode_frame(given.data, 1 << 26)

            serve(ask, hello)
            for error in errors:  # the first of them ended the session
                raise error

    monkeypatch.setattr(clients.device, "StreamClient", Stream)
    text = asked if isinstance(asked, str) else scenario_to_toml(asked)
    message = {
        "scenario": text,
        "address": "127.0.0.1:1",
        "certificate": b"",
        "token": "token",
        "client": 0,
        "clients": 1,
        "run": "0123456789abcdef",
    }
    return take_part({**message, **session}, device.keys)
