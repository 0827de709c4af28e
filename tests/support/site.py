"""A device that has taken part, refused, spent its budget, or died, and what it wrote down."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedlora.config import Scenario
from fedlora.link import Frame, create_codec, messages as m, pack
from support.owner_device import WIDTH, Ask, Device, attack, scenario

KIND = {
    "activation": "activations",
    "lengths": "lengths",
    "targets": "lengths",
    "gradient": "gradients",
    "head_gradient": "head",
    "head_weight": "head",
}


class Server:
    """Asks a device for an honest run, and sums up what it is sent."""

    def __init__(
        self,
        rounds: int = 2,
        then: Callable[[Ask], None] = lambda ask: None,
        phase: str = "train",
    ) -> None:
        self.rounds, self.then, self.phase = rounds, then, phase
        self.received: Counter[str] = Counter()
        self.replies: list[Frame] = []

    def __call__(self, ask: Ask, hello: Frame) -> None:
        def asked(kind: str, fields: Any = None, tensors: Any = None) -> Frame:
            reply = ask(kind, fields, tensors)
            self.replies.append(reply)
            for name, tensor in reply.tensors.items():
                self.received[KIND[name.partition(".")[0]]] += tensor.nbytes
            return reply

        self.replies.append(hello)
        asked(m.PHASE, {"name": self.phase})
        for round_ in range(1, self.rounds + 1):
            asked(m.ROUND, {"round": round_})
            begun = asked(m.BATCH)
            rows = len(begun.tensors["lengths"])
            z = pack("representation", torch.eye(rows, WIDTH), create_codec("fp32"))
            if asked(m.STEP, {"step": round_ - 1}, z).kind == m.LEAVE:
                return
            asked(m.ROUND_END, {"weights": True})
        self.then(asked)
        asked(m.END)


class Site:
    """A device and what it wrote down."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
        self.device = Device(folder, **keys)
        self.states = folder / "states"
        self._monkeypatch = monkeypatch

    def invite(self, *overrides: str, server: Any = None, **session: Any) -> dict[str, Any]:
        """Let a server invite the device; return what the device told Flower."""
        asked = asking(*overrides)
        return dict(attack(self.device, self._monkeypatch, asked, server or Server(), **session))

    def invite_and_kill(self, *overrides: str, rounds: int) -> None:
        """Let the device's process die after so many rounds."""
        child = os.fork()
        if child == 0:
            die = Server(rounds, then=lambda _: os.kill(os.getpid(), signal.SIGKILL))
            self.invite(*overrides, server=die)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    def events(self) -> list[dict[str, Any]]:
        """Return the audit file's lines."""
        text = (self.states / "audit.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def log(self) -> str:
        """Return the log."""
        return (self.states / "device.log").read_text()


def asking(*overrides: str) -> Scenario:
    """Return a run of two rounds that pays for each record once."""
    defaults = ("train.rounds=2", "evaluate.report=false", "name=study")
    return scenario(*defaults, *overrides)


def kinds(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return what happened, in order."""
    return [event["event"] for event in events]
