"""One hostile device beside three honest ones, all real processes, costs these next to nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.hostile_devices import BAD, KINDS, STEP_TIMEOUT_S

pytestmark = pytest.mark.hostile
ALLOWANCE_S = 5.0
"""For processes that start or dial again in the training of a run, on a busy machine."""
MOST_GROWTH = 150 << 20
ROUNDS = 3
REFERENCES = ("honest", "refuses", "leaves at its first batch", "leaves at its first step")
SAME_AS = {
    "claims 2^40 rows": "refuses",
    "gradient of 3.3e38": "leaves at its first step",
    "activation of 3.3e38": "leaves at its first batch",
    "says simulated": "honest",
    "class names in its last words": "honest",
    "escapes in its reason": "leaves at its first step",
    "escapes in its answer to Flower": "refuses",
}
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ +fedlora[.\w]*: ")


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    code: int | None
    folder: Path
    growth: int

    def __post_init__(self) -> None:
        words = "\n".join(p.read_text()[-1500:] for p in self.folder.glob("*.txt"))
        assert self.code == 0, words

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def events(self) -> list[dict[str, Any]]:
        return lines(self.run / "events.jsonl")

    @property
    def seconds(self) -> float:
        """From the beginning of the training to the end of the run."""
        events = self.events
        return events[-1]["time"] - next(e["time"] for e in events if e["event"] == "phase")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.run / "summary.json").read_text())

    def factors(self) -> dict[str, torch.Tensor]:
        adapter = load_file(self.run / "adapter" / "adapter_model.safetensors")
        return adapter | load_file(self.run / "head.safetensors")


class Federations:
    """The process that runs them, one after the other; a kind is run once."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "support.hostile_devices", home],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ended: dict[str, Ended] = {}

    def __getitem__(self, kind: str) -> Ended:
        return self.ended[kind] if kind in self.ended else self.anew(kind)

    def anew(self, kind: str) -> Ended:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        found = json.loads(self.process.stdout.readline())
        growth = found["peak"] - found["before"]
        self.ended[kind] = Ended(found["code"], Path(found["folder"]), growth)
        return self.ended[kind]


@pytest.fixture(scope="module")
def federations(tmp_path_factory):
    running = Federations(tmp_path_factory.mktemp("federations"))
    yield running
    running.process.stdin.close()
    running.process.kill()
    running.process.wait()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def most_s(honest: Ended) -> float:
    return 1.5 * honest.seconds + STEP_TIMEOUT_S + ALLOWANCE_S


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in REFERENCES])
def test_one_hostile_device_keeps_three_honest_ones_for_one_limit_at_most(federations, kind):
    hostile, honest = federations[kind], federations["honest"]
    if hostile.seconds > most_s(honest):  # the machine may have become busy since the other
        honest, hostile = federations.anew("honest"), federations.anew(kind)
    last = hostile.events[-1]
    assert (last["event"], last["status"]) == ("done", "finished")
    assert hostile.seconds <= most_s(honest)
    rounds = lines(hostile.run / "metrics.jsonl")
    assert [record["round"] for record in rounds] == list(range(1, ROUNDS + 1))
    for record in rounds:
        assert {"0", "1", "2"} <= set(record["clients"])
    assert set(hostile.summary["lost_clients"]) <= {BAD}
    assert (hostile.run / "report.html").stat().st_size > 0


@pytest.mark.parametrize("kind", SAME_AS)
def test_the_result_is_that_of_a_run_whose_fourth_device_left_there(federations, kind):
    found, expected = federations[kind].factors(), federations[SAME_AS[kind]].factors()
    assert found.keys() == expected.keys()
    for name, factor in found.items():
        torch.testing.assert_close(factor, expected[name], rtol=0, atol=1e-6)
    if SAME_AS[kind] != "honest":  # or the comparison would see no difference
        whole = federations["honest"].factors()
        assert any(not torch.allclose(found[n], whole[n], rtol=0, atol=1e-6) for n in found)


@pytest.mark.parametrize("kind", ["hellos without end", "streams without end"])
def test_floods_take_no_memory_of_the_server(federations, kind):
    assert federations[kind].growth < federations["honest"].growth + MOST_GROWTH
    log = (federations[kind].run / "log.txt").read_text()
    assert "its ClientApp failed (it hangs)" in log  # it was at it, and took up no session


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "escapes" in kind])
def test_a_reason_forges_no_line_of_the_log_and_no_control_code(federations, kind):
    run = federations[kind].run
    text = (run / "log.txt").read_text()
    told = text.splitlines()
    assert any("forged" in line for line in told)  # it was told, in a line of another
    assert all(LINE.match(line) for line in told)
    assert not [line for line in told if LINE.sub("", line).startswith("client 0 leaves")]
    assert all(character.isprintable() for line in told for character in line)
    for record in (*lines(run / "log.jsonl"), *lines(run / "events.jsonl")):
        assert all(str(value).isprintable() for value in record.values())
    assert "\x1b" not in (run / "report.html").read_text()


def test_class_names_in_last_words_are_nowhere_in_the_results(federations):
    run = federations["class names in its last words"].run
    assert federations["class names in its last words"].summary["label_counts"] == {}
    for name in ("summary.json", "report.html", "metrics.jsonl", "log.txt"):
        assert "alarm" not in (run / name).read_text()
    assert b"forged" not in (run / "head.safetensors").read_bytes()


def test_who_is_refused_is_named_with_the_reason(federations):
    told = {
        "claims 2^40 rows": "held_out_rows is 1099511627776",
        "says another's number": "node 13 is refused: it says partition-id 1",
        "gradient of 3.3e38": "client 3 leaves the run: its figures lead beyond",
        "activation of 3.3e38": "client 3 leaves the run: its figures lead beyond",
    }
    for kind, reason in told.items():
        assert reason in (federations[kind].run / "log.txt").read_text(), kind
