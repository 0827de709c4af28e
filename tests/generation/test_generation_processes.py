"""Servers and devices as real processes over TLS, and what a kill in mid-sentence leaves."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.patience import patient
from support.relay import Relay
from support.served import RANKS, served_run

from fedlora.commands.slice import slice_model
from fedlora.launch.keys import write_keys

LENGTH = 90
DELAY_S = 0.01  # each way, so that there is a middle of a sentence
EARLY = ("--leave-after", "1", "--leave-at", "0.0031")  # some of the tokens
DRAWN = ("--temperature", "0.9", "--seed", "5", "--max-new-tokens", str(LENGTH))


def start(home: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the command line in a process of its own, whose home is a folder of the test."""
    home.mkdir(exist_ok=True)
    environment = {**os.environ, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "fedlora", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=(home / "err.txt").open("w"),
        text=True,
        env=environment,
    )


class World:
    """A run, its package on devices, and its servers, each behind a relay."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, served_run(root)
        self.certs, self.package = root / "certs", root / "package"
        write_keys(self.certs, ["localhost"], len(RANKS))
        slice_model(str(self.run), self.package, 0, 0, task="", overwrite=False)
        self.relays = [Relay(0, delay_s=DELAY_S) for _ in range(2)]
        self.servers: dict[int, subprocess.Popen[str]] = {}
        self.count = 0

    def begin(self, number: int) -> None:
        """Start a server's process; ``listens`` waits until devices reach it."""
        stats = self.root / f"stats-{number}.json"
        self.servers[number] = start(
            self.root / f"server-{number}",
            *("serve", self.run, "--certs", self.certs, "--port", 0),
            *("--leave-after", 1, "--stats", stats, "--overwrite"),
        )

    def listens(self, number: int) -> None:
        """Wait until a server listens, and let its relay lead there."""
        server = self.servers[number]
        assert server.stdout is not None
        told = server.stdout.readline()
        port = re.search(r"port (\d+)", told)
        assert port, told + (self.root / f"server-{number}" / "err.txt").read_text()
        self.relays[number].target, self.relays[number].refusing = int(port[1]), False

    def kill(self, number: int) -> None:
        """Kill a server, whose port is closed then."""
        self.relays[number].refusing = True
        self.servers[number].kill()
        self.servers.pop(number).wait()

    def write(self, client: str, *arguments: object, home: Path | None = None) -> Any:
        """Start a device that writes."""
        self.count += 1
        addresses = [x for r in self.relays for x in ("--server", f"localhost:{r.port}")]
        keys = ("--root-certificates", self.certs / "ca.crt")
        keys += ("--node-key", self.certs / f"node{client}")
        home = home or self.root / f"device-{self.count}"
        return start(home, "generate", self.package, *arguments, *addresses, *keys)

    def whole(self, client: str, *arguments: object, home: Path | None = None) -> str:
        """Return what a device writes whom nothing happens to."""
        device = self.write(client, *arguments, home=home)
        text, _ = device.communicate(timeout=patient(60))
        return text


@contextlib.contextmanager
def world(root: Path) -> Iterator[World]:
    found = World(root)
    with found.relays[0], found.relays[1]:
        try:
            for number in range(2):
                found.begin(number)
            for number in range(2):
                found.listens(number)
            yield found
        finally:
            for server in found.servers.values():
                server.kill()
                server.wait()


def left_early(home: Path) -> int:
    """Return how many tokens of a text left early, as its device's ``--stats`` says."""
    told = re.search(r", (\d+) left early", (home / "err.txt").read_text())
    assert told
    return int(told[1])


def begun(device: Any, characters: int) -> str:
    """Return the first characters of what a device writes."""
    text = ""
    while len(text) < characters:
        piece = device.stdout.read(1)
        assert piece, f"it ended after {text!r}"
        text += piece
    return text


def rest_of(device: Any) -> str:
    """Return what a device writes to its end, read as ``begun`` reads, which may read ahead."""
    try:
        return device.stdout.read()
    finally:
        device.wait(patient(90))


@pytest.mark.e2e
def test_a_server_a_link_and_a_device_that_are_killed_in_mid_sentence_change_no_text(tmp_path):
    with world(tmp_path) as all_:
        prompts = dict.fromkeys(RANKS, ("dog 1?", *DRAWN, *EARLY))
        prompts["1"] = ("dog 1?", *DRAWN)
        expected = {
            client: all_.whole(client, *prompt, "--stats", home=tmp_path / f"whole-{client}")
            for client, prompt in prompts.items()
        }
        assert all(5 < left_early(tmp_path / f"whole-{client}") < LENGTH - 5 for client in "02")
        assert len(set(expected.values())) == 3
        homes = {client: tmp_path / f"home-{client}" for client in RANKS}
        devices = {
            client: all_.write(client, *prompts[client], home=homes[client]) for client in RANKS
        }
        found = {client: begun(device, 20) for client, device in devices.items()}
        devices["2"].kill()  # the device; its text is on its disk
        devices["2"].wait()
        (kept,) = (homes["2"] / ".fedlora" / "states" / "texts").iterdir()
        assert kept.stat().st_mode & 0o777 == 0o600
        all_.relays[0].reset()  # the link
        found["0"] += begun(devices["0"], 10)
        all_.kill(0)  # the server
        for client in "01":
            assert found[client] + rest_of(devices[client]) == expected[client]
        assert all_.whole("2", "--resume", home=homes["2"]) == expected["2"]
        assert not list((homes["2"] / ".fedlora" / "states" / "texts").iterdir())
        top = start(tmp_path / "top", "top", all_.run, "--once").communicate(timeout=patient(30))[0]
        assert re.search(r"served on port \d+: \d devices, \d sessions", top)
        all_.servers[1].send_signal(signal.SIGTERM)
        told, _ = all_.servers[1].communicate(timeout=patient(30))
        assert all_.servers[1].returncode == 0
        assert re.search(
            r"\d+ tokens in \d+ exchanges; a token .* up, .* down, .* ms on the air", told
        )
        stats = json.loads((tmp_path / "stats-1.json").read_text())
        assert stats["clients"]["2"]["tokens"] > 0
        assert stats["a_token"]["energy_joules"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_random_kills_leave_twenty_identical_texts(tmp_path):
    rng = random.Random(19)
    with world(tmp_path) as all_:
        ways = DRAWN, (*DRAWN, *EARLY)
        texts = [
            all_.whole("0", "dog 1?", *way, "--stats", home=tmp_path / "whole") for way in ways
        ]
        assert 5 < left_early(tmp_path / "whole") < LENGTH - 5
        for trial in range(20):
            way, expected = ways[trial % 2], texts[trial % 2]
            victim = rng.choice(["server", "device", "link"])
            home = tmp_path / f"trial-{trial}"
            device = all_.write("0", "dog 1?", *way, home=home)
            found = begun(device, rng.randint(1, 3 * len(expected) // 4))
            time.sleep(rng.uniform(0, 2 * DELAY_S))
            if victim == "link":
                for relay in all_.relays:
                    relay.reset()
            elif victim == "server":
                used = max(all_.servers, key=lambda n: all_.relays[n].bytes["up"])
                all_.kill(used)
                all_.begin(used)
            else:
                device.kill()
            text = found + rest_of(device)
            if victim == "device":
                text = all_.whole("0", "--resume", home=home)
            assert text == expected, (trial, victim)
            for number in range(2):
                all_.relays[number].bytes.update(up=0, down=0)
            if victim == "server":
                all_.listens(used)
