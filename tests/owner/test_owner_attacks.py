"""A server that wants more than the owner allows gets nothing, whatever it sends."""

from __future__ import annotations

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from support.owner_device import WIDTH, Ask, Device, attack, scenario

from clients.owner.holdout import draw
from clients.state_store import forget_ended
from fedlora.config import Scenario
from fedlora.link import Frame, create_codec, messages as m, pack
from fedlora.privacy.accounting import upload_cost
from fedlora.privacy.mechanisms import mechanism_of

HEAD = "head_weight.weight"


def representation(rows: int, *, apart: int | None = None) -> dict[str, torch.Tensor]:
    z = torch.zeros(rows, WIDTH)
    if apart is not None:
        z[:, 0], z[apart, 0] = -50.0, 50.0
    return pack("representation", z, create_codec("fp32"))


def test_no_evaluation_answers_a_server_that_did_not_begin_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, replies = Device(tmp_path, holdout=0.5), list[Frame]()

    def serve(ask: Ask, hello: Frame) -> None:
        rows = hello.fields["held_out_rows"]
        assert rows > 5
        ask(m.PHASE)
        begun = ask(m.EVAL_BEGIN, {"rows": rows})
        assert begun.fields == {"counts": None} and not begun.tensors
        replies.append(ask(m.EVAL, {}, representation(rows, apart=0)))

    attack(device, monkeypatch, scenario(), serve)
    assert [(r.kind, dict(r.fields)) for r in replies] == [(m.LEAVE, {"reason": "protocol"})]
    assert device.rho() == 0.0


def test_counts_of_held_out_rows_are_noised_and_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, told = Device(tmp_path, privacy_report="true", holdout=0.5), list[Frame]()

    def serve(ask: Ask, hello: Frame) -> None:
        rows = hello.fields["held_out_rows"]
        ask(m.PHASE)
        for place in range(3):
            ask(m.EVAL_BEGIN, {"rows": rows})
            told.append(ask(m.EVAL, {}, representation(rows, apart=place)))

    attack(device, monkeypatch, scenario("data.holdout=0.9"), serve)
    counts = told[0].fields["counts"]
    assert set(counts) == {"samples", "correct", "loss"}
    assert counts["correct"] != round(counts["correct"])
    # one evaluation is what the run plans; the server gets no second look
    assert told[1].kind == m.LEAVE and device.rho() > 0.0
    with device.ledger() as ledger:
        assert ledger.epsilon(1e-5) <= 1.0


def test_the_owner_and_not_the_server_says_what_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def serve(ask: Ask, hello: Frame) -> None:
        del ask
        seen.append((hello.fields["rows"], hello.fields["held_out_rows"]))

    for share in (0.0, 0.5, 0.9):
        device = Device(tmp_path, privacy_report="true")
        told = attack(device, monkeypatch, scenario(f"data.holdout={share}"), serve)
        assert told == {}
        attack(device, monkeypatch, scenario("data.max_rows=1"), serve)
    assert len(set(seen)) == 1 and sum(seen[0]) == 40
    unreported = Device(tmp_path)
    attack(unreported, monkeypatch, scenario("data.holdout=0.9"), serve)
    assert seen[-1] == (40, 0)


def test_a_head_that_learnt_from_labels_leaves_in_no_later_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, privacy_personal_head="true")
    heads: list[Frame] = []

    def train(ask: Ask, hello: Frame) -> None:
        ask(m.PHASE)
        ask(m.ROUND, {"round": 1})
        ask(m.BATCH)
        z = pack("representation", torch.eye(40, WIDTH), create_codec("fp32"))
        ask(m.STEP, {"step": 0, "gradient": False}, z)
        assert ask(m.KEEP, {"round": 1}).fields == {"round": 1}
        heads.append(ask(m.ROUND_END, {"weights": True}))

    def fetch(ask: Ask, hello: Frame) -> None:
        del hello
        heads.append(ask(m.PHASE))
        assert ask(m.RESTORE, {"round": 1}).fields == {"round": 0}
        heads.append(ask(m.ROUND_END, {"weights": True}))

    personal = scenario("privacy.release=full", "head.share=personal")
    # asked for a head that has learnt, the device leaves
    assert attack(device, monkeypatch, personal, train) == {"reason": "failed"}
    assert attack(device, monkeypatch, scenario(), fetch) == {}
    trained, initial, fetched = heads
    assert not trained.tensors
    assert torch.equal(fetched.tensors[HEAD], initial.tensors[HEAD])
    assert device.rho() == 0.0


@pytest.mark.parametrize("release", ["full"])
def test_a_personal_head_takes_its_owners_consent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = scenario(f"privacy.release={release}", "head.share=personal")
    told = attack(Device(tmp_path), monkeypatch, asked, lambda ask, hello: None)
    assert told == {"reason": "terms"}
    assert 'privacy-personal-head="true"' in caplog.text


def test_a_kept_message_is_paid_before_it_leaves_whatever_came_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path, rows=12, privacy_epsilon=9.0, privacy_personal_head="true")
    dear = scenario("privacy.epsilon=8.0", "train.batch_size=12")
    cheap = scenario(
        "privacy.epsilon=none",
        "privacy.sigma=1000.0",
        "privacy.uploads=1",
        "privacy.release=full",
        "head.share=personal",
        "train.batch_size=12",
    )
    replies: list[Frame] = []

    def serve(ask: Ask, hello: Frame) -> None:
        ask(m.PHASE)
        ask(m.BATCH)
        replies.append(ask(m.STEP, {"step": 0}, representation(12)))

    child = os.fork()
    if child == 0:  # dies with the message on disk and nothing booked
        try:
            from fedlora.privacy.ledger.store import LedgerFile

            LedgerFile.append = lambda self, cost: os._exit(9)  # type: ignore[method-assign]
            attack(device, monkeypatch, dear, serve)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "ledger.noised").stat().st_size > 0
    attack(device, monkeypatch, cheap, serve)
    assert device.rho() < 1e-4 and replies[-1].kind == m.GRADIENT
    attack(device, monkeypatch, dear, serve)
    assert len(replies) == 2 and replies[-1].kind == m.GRADIENT
    assert device.rho() >= upload_cost(mechanism_of(dear.privacy).plan(dear, 12).sigma)


def test_a_host_in_the_message_means_nothing_on_a_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path)
    plain = scenario("privacy.epsilon=none", "evaluate.report=false")
    told = attack(
        device,
        monkeypatch,
        plain,
        lambda ask, hello: pytest.fail("the device took part without noise"),
        host="edge",
        keep=str(tmp_path / "theirs"),
        ledgers=str(tmp_path / "theirs"),
    )
    assert told == {"reason": "terms"}
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scenario", "[task"),
        ("scenario", 7),
        ("client", 1),
        ("client", True),
        ("clients", 0),
        ("clients", 10**12),
        ("run", "../../../etc"),
        ("certificate", "text"),
        ("token", None),
    ],
)
def test_an_odd_invitation_is_refused_without_a_word_of_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    device = Device(tmp_path)
    told = attack(device, monkeypatch, scenario(), lambda ask, hello: None, **{name: value})
    assert told["reason"] in {"invitation", "scenario", "number"} and len(told) == 1
    assert not (tmp_path / "ledger").exists()


def test_an_address_that_the_owner_has_not_named_is_not_dialled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled = []
    for server, address, goes in (
        ("fed.example.org", "fed.example.org:9000", True),
        ("fed.example.org:9000", "fed.example.org:9000", True),
        ("other.example.org, fed.example.org:9000", "fed.example.org:9000", True),
        ("fed.example.org:9000", "fed.example.org:22", False),
        ("fed.example.org", "127.0.0.1:22", False),
        ("[::1]:9000", "[::1]:9000", True),
    ):
        device = Device(tmp_path, server=server)
        told = attack(
            device, monkeypatch, scenario(), lambda ask, hello: dialled.append(1), address=address
        )
        assert told == ({} if goes else {"reason": "server"})
    assert len(dialled) == 4


def words_of(device: Device, monkeypatch: pytest.MonkeyPatch, asked: Scenario) -> dict[str, object]:
    told = dict(attack(device, monkeypatch, asked, lambda ask, hello: None))
    assert not any(isinstance(value, str) and len(value) > 12 for value in told.values())
    return told


def test_what_is_in_a_refused_record_stays_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = scenario("privacy.epsilon=none", "evaluate.report=false")
    device = Device(tmp_path)
    for key in ("privacy-epsilon",):
        del device.keys[key]
    device.write("own.csv", [*device.rows, ("a zanzibar note", "quixotic")])
    assert words_of(device, monkeypatch, plain) == {"reason": "record", "record": 41}
    assert "quixotic" in caplog.text
    device.keys["label"] = "mood"
    assert words_of(device, monkeypatch, plain) == {"reason": "data"}
    device.keys["data"] = str(tmp_path / "nowhere.csv")
    assert words_of(device, monkeypatch, plain) == {"reason": "data"}


def test_a_label_of_no_class_changes_nothing_that_leaves_under_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving it out, or refusing it, would tell the label, as the server names the classes."""
    device, replies = Device(tmp_path, rows=12), list[Frame]()

    def serve(ask: Ask, hello: Frame) -> None:
        assert hello.fields["rows"] == 12
        ask(m.PHASE)
        ask(m.BATCH)
        replies.append(ask(m.STEP, {"step": 0}, representation(12)))

    asked = scenario('task.labels=["neg","odd"]', "train.batch_size=12")
    assert attack(device, monkeypatch, asked, serve) == {}
    assert replies[0].kind == m.GRADIENT and replies[0].tensors["gradient"].isfinite().all()


def test_the_states_of_a_run_end_with_it_and_are_the_owners_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(tmp_path)

    def serve(ask: Ask, hello: Frame) -> None:
        ask(m.PHASE)
        ask(m.BATCH)
        ask(m.STEP, {"step": 0}, representation(40))
        ask(m.KEEP, {"round": 1})
        for path in tmp_path.rglob("*"):
            private = path.name.startswith(("ledger", "round-"))
            if path.is_file() and private:
                assert path.stat().st_mode & 0o077 == 0, path
        assert list((tmp_path / "states").rglob("round-*"))
        ask(m.END)

    assert attack(device, monkeypatch, scenario(), serve) == {}
    assert not list((tmp_path / "states").rglob("round-*"))
    text = (tmp_path / "ledger.noised").read_text()
    assert "class" not in text and '"target"' not in text


def test_sessions_that_begin_at_once_hold_the_same_records_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first draw of all is slow here, so that all sessions would draw lots of their own."""
    token_bytes = secrets.token_bytes

    def slow(size: int) -> bytes:
        time.sleep(0.05)
        return token_bytes(size)

    monkeypatch.setattr(secrets, "token_bytes", slow)
    contents = [f"record {number}".encode() for number in range(64)]
    with ThreadPoolExecutor(4) as sessions:
        drawn = list(sessions.map(lambda _: draw(tmp_path / "lots", contents, 0.5), range(4)))
    assert all(lots == drawn[0] for lots in drawn)
    assert draw(tmp_path / "lots", contents, 0.5) == drawn[0]
    assert (tmp_path / "lots.lock").stat().st_mode & 0o077 == 0


def test_states_of_a_long_run_are_there_while_rounds_are_stored(tmp_path: Path) -> None:
    old = time.time() - 40 * 24 * 3600
    for run in ("0" * 16, "1" * 16):
        (tmp_path / run / "0").mkdir(parents=True)
        for folder in (tmp_path / run / "0", tmp_path / run):
            os.utime(folder, (old, old))
    (tmp_path / ("1" * 16) / "0" / "round-000001.safetensors").touch()
    os.utime(tmp_path / ("1" * 16), (old, old))
    forget_ended(tmp_path, "2" * 16)
    assert [path.name for path in tmp_path.iterdir()] == ["1" * 16]
