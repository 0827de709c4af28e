"""A device's log and audit file after acceptance, refusal, a spent budget and a kill."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.site import Server, Site, asking, kinds

import clients.app
import clients.owner.diary
from clients.owner import table
from fedlora.config import scenario_to_toml
from fedlora.errors import FedloraError
from fedlora.link import messages as m
from fedlora.privacy.ledger import Ledger
from simulations.in_process import Record, run


def test_what_a_run_asked_got_and_cost_is_written_down(site: Site) -> None:
    server = Server()
    assert site.invite(server=server) == {}
    events = site.events()
    assert kinds(events) == ["asked", "accepted", "round", "round", "ended"]
    asked, accepted, first, second, ended = events
    assert asked["name"] == "study" and asked["client"] == "0" and asked["server"] == "127.0.0.1:1"
    text = scenario_to_toml(asking())
    assert asked["scenario"] == hashlib.sha256(text.encode()).hexdigest()
    assert asked["wants"]["rounds"] == 2 and asked["wants"]["epsilon"] == 1.0
    assert accepted["rows"] == {"train": 40, "held_out": 0, "left_out": 0}
    assert accepted["data"] == str(site.device.folder / "own.csv")
    assert accepted["limit"] == {"epsilon": 1.0, "delta": 1e-5, "tight": False}
    assert accepted["ledger"]["epsilon"] == 0.0
    assert (first["round"], second["round"], ended["how"]) == (1, 2, "finished")
    assert (first["samples"], ended["samples"]) == (40, 80)
    tensors = {kind: ended["left"].get(kind, 0) for kind in server.received}
    assert (
        tensors == dict(server.received) and tensors["activations"] > first["left"]["activations"]
    )
    assert {"activations", "lengths", "gradients"} <= set(tensors)
    with Ledger(site.device.folder / "ledger", "0") as ledger:
        assert ended["ledger"]["rho"] == ledger.rho > 0
        assert ended["ledger"]["epsilon"] == ledger.epsilon(1e-5) <= 1.0
        assert ended["ledger"]["charges"] == ledger.seq
    log = site.log()
    assert "called 'study', of the server at 127.0.0.1:1 asks client 0" in log
    assert "accepted: 40 records train, 0 are held out" in log
    assert "round 2 is over" in log and f"activations {tensors['activations']:,}" in log
    assert f"epsilon {ledger_epsilon(ended)} spent of 1" in log
    for name in ("audit.jsonl", "device.log"):
        assert (site.states / name).stat().st_mode & 0o777 == 0o600
    assert not list(site.states.glob("tally-*"))


def test_rounds_of_the_baseline_are_told_apart_from_those_of_the_training(site: Site) -> None:
    assert site.invite(server=Server(1, phase="baseline")) == {}
    assert "baseline round 1 is over" in site.log()
    rounds = [event for event in site.events() if event["event"] == "round"]
    assert [(event["round"], event["baseline"]) for event in rounds] == [(1, True)]


def ledger_epsilon(event: dict[str, Any]) -> str:
    return f"{event['ledger']['epsilon']:.4g}"


def test_a_refusal_has_its_whole_sentence_in_the_log_and_a_kind_alone_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, monkeypatch)
    site.device.write("own.csv", [("", "neg"), *site.device.rows])
    told = site.invite("task.kind=causal_lm", "privacy.release=full", "data.prompt_separator=sat")
    assert told["reason"] in ("record", "terms", "data")
    log, audit = site.log(), (site.states / "audit.jsonl").read_text()
    assert f"refused, this device does not take part: {told_sentence(log)}" in log
    assert kinds(site.events()) == ["asked", "refused"]
    assert site.events()[-1]["kind"] == told["reason"]
    assert told_sentence(log) not in audit
    assert not any(text in audit for text, _ in site.device.rows)


def told_sentence(log: str) -> str:
    [line] = [line for line in log.splitlines() if " ERROR " in line]
    return line.partition("does not take part: ")[2]


def test_a_record_that_cannot_be_used_is_named_in_the_log_and_numbered_in_the_audit_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, monkeypatch)
    del site.device.keys["privacy-epsilon"]
    site.device.write("own.csv", [*site.device.rows, ("secret words", "odd label")])
    told = site.invite("privacy.epsilon=none")
    assert told == {"reason": "record", "record": 41}
    assert "odd label" in site.log() and "record 41" in site.log()
    refused = site.events()[-1]
    assert (refused["kind"], refused["record"]) == ("record", 41)
    audit = (site.states / "audit.jsonl").read_text()
    assert "odd" not in audit and "secret" not in audit


def test_a_spent_budget_is_told_to_the_owner_in_full_and_to_the_server_by_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path, monkeypatch, rows=40)
    server = Server(rounds=3)
    plan = ("privacy.release=row_space", "train.batch_size=40", "privacy.uploads=2")
    told = site.invite(*plan, server=server)
    assert server.replies[-1].kind == m.LEAVE
    assert dict(server.replies[-1].fields) == told == {"reason": "budget"}
    ended = site.events()[-1]
    assert (ended["event"], ended["how"], ended["round"]) == ("ended", "budget", 3)
    with Ledger(tmp_path / "ledger", "0") as ledger:
        assert ended["ledger"]["rho"] == ledger.rho > 0
    [line] = [line for line in site.log().splitlines() if "client 0 leaves the run: " in line]
    assert "leave" in line and len(line.partition("leaves the run: ")[2]) > 40
    received = {kind: ended["left"][kind] for kind in server.received}
    assert received == dict(server.received)


def test_a_run_beyond_the_limit_is_refused_with_the_figures_in_the_log(site: Site) -> None:
    assert site.invite("privacy.epsilon=4.0") == {"reason": "terms"}
    assert "beyond its privacy-epsilon 1" in site.log()
    assert kinds(site.events()) == ["asked", "refused"]


def test_a_killed_process_has_its_figures_written_down_by_the_next(site: Site) -> None:
    site.invite_and_kill(rounds=1)
    assert kinds(site.events()) == ["asked", "accepted", "round"]
    first = site.events()[-1]
    server = Server()
    assert site.invite(server=server) == {}
    events = site.events()
    assert kinds(events)[3:] == ["interrupted", "asked", "accepted", "round", "round", "ended"]
    killed = events[3]
    assert killed["session"] == first["session"] and killed["round"] == 1
    # the round's own report is in its line, and so is all that came before it
    assert killed["left"] == first["left"] and killed["samples"] == 40


def test_keys_that_cannot_be_used_are_told_in_the_folder_that_they_name(site: Site) -> None:
    site.device.keys["privacy-epsilom"] = 3
    assert site.invite() == {"reason": "keys"}
    assert "did you mean privacy-epsilon?" in site.log()
    assert kinds(site.events()) == ["asked", "refused"]


def test_a_device_that_cannot_write_its_audit_file_takes_part_in_nothing(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.states.write_text("no folder")
    server = Server()
    assert site.invite(server=server) == {"reason": "keys"}
    assert not server.replies and "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["not = [toml", "name = 3", "\x00", "[model]\npath = 1"])
def test_a_scenario_that_cannot_be_read_is_written_down_by_its_digest(
    site: Site, text: str
) -> None:
    assert site.invite(scenario=text) == {"reason": "scenario"}
    asked, refused = site.events()
    assert asked["scenario"] == hashlib.sha256(text.encode()).hexdigest()
    assert asked["wants"] == {} and refused["kind"] == "scenario"


def test_words_of_a_server_are_cut_and_begin_no_line(site: Site) -> None:
    forged = "x\n2026-01-01T00:00:00Z INFO forged\x1b[2J" * 1000
    told = site.invite(f"name={'y' * 10_000}", run=forged, address=forged)
    assert told["reason"] == "invitation"
    assert not any(line.startswith("2026-01-01") for line in site.log().splitlines())
    assert "\x1b" not in site.log()
    assert all(len(json.dumps(event)) < 2000 for event in site.events())


def test_every_part_that_depends_on_records_is_counted_by_name() -> None:
    """A kind ``other`` would say nothing; so it holds what depends on no record's content.

    Tensors have a kind each in any case: they are what the server's ``bits_up`` counts.
    """
    for message, parts in table.TABLE.items():
        for name, part in parts.items():
            counted = table.counted_as(f"{name}.weight")
            if set(part.ways) - {"public"} or name in ("lengths", "ids", "fresh", "held"):
                assert counted != "other", (message, name)
            else:
                assert counted == "other", (message, name)


def test_fields_count_as_json_and_what_is_none_tells_nothing() -> None:
    sizes = clients.owner.diary.sizes({"loss": 0.25, "counts": None, "rho": 1.5})
    assert sizes == {"metrics": len("0.25"), "other": len("1.5")}


def asked_by_flower(handler: str, node: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(clients.app, "Message", lambda content, reply_to: content["fedlora"])
    message = SimpleNamespace(content={"fedlora": {}})
    return getattr(clients.app, handler)(message, SimpleNamespace(node_config=node))


@pytest.mark.parametrize("simulated", [False, True])
@pytest.mark.parametrize("handler", ["hello", "collect"])
def test_a_device_logs_what_it_does_not_answer_and_a_simulation_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handler: str, simulated: bool
) -> None:
    monkeypatch.setattr(clients.app, "_simulated", lambda node: simulated)
    node = {"state": str(tmp_path / "states"), "zzz": 1}
    told = dict(asked_by_flower(handler, node, monkeypatch))
    assert told["error"]
    assert (tmp_path / "states").exists() != simulated
    if not simulated:
        assert "message is not answered" in (tmp_path / "states" / "device.log").read_text()


def test_a_simulation_keeps_no_log_and_no_audit_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(asking("federation.clients=2", "task.labels=[]", "data.label=intent"), Record())
    assert not (tmp_path / ".fedlora").exists() and not list((tmp_path / "here").iterdir())


def test_a_line_that_cannot_be_written_meanwhile_is_told_and_the_next_has_all(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = clients.owner.diary.audit.append

    def full(path: Path, event: Any) -> None:
        if event["event"] == "round" and event["round"] == 1:
            raise FedloraError("cannot write it: No space left on device")
        append(path, event)

    monkeypatch.setattr(clients.owner.diary.audit, "append", full)
    server = Server()
    assert site.invite(server=server) == {}
    assert "the audit file lacks round 1" in site.log()
    assert kinds(site.events()) == ["asked", "accepted", "round", "ended"]
    assert site.events()[-1]["left"]["activations"] == server.received["activations"]
