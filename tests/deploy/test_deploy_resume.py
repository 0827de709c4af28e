"""A run that died and was taken up again ends as if nothing had happened."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from clients.edge_client import EdgeClient
from clients.state_store import ClientStateStore
from fedlora.config import Scenario, scenario_from_toml, with_overrides
from fedlora.errors import FedloraError
from fedlora.link import Frame
from fedlora.report import RunFolder
from fedlora.server.checkpoint import Checkpoints, open_run
from fedlora.server.exchange.kept_rows import KeptRows
from fedlora.server.run import ServerRun
from fedlora.storage.state import RoundStates, read_state, write_state
from simulations import in_process
from simulations.in_process import Handler, Record

SCENARIO = """
[model]
path = "package:simulations/quickstart/decoder"
[task]
max_length = 16
[data]
label = "intent"
max_rows = 45
[federation]
clients = 3
[train]
rounds = 3
steps = 1
batch_size = 2
[lora]
r_max = 3
[evaluate]
baseline = false
"""
VOLATILE = ("seconds", "lost", "wire_bytes")  # frames hold numbers that count from the start


class Killed(Exception):
    """Stands for the end of all processes."""


def tiny(*overrides: str) -> Scenario:
    return with_overrides(scenario_from_toml(SCENARIO), overrides)


def connect(scenario: Scenario, record: Record, states: Path) -> ServerRun:
    def kept(client: EdgeClient) -> Handler:
        return ClientStateStore(client, states / client.name).handle

    return in_process.connect(scenario, record, 1, kept)


def train(scenario: Scenario, folder: Path, die_after: int = 0) -> tuple[ServerRun, Record]:
    """Train from the latest checkpoint in a folder, or from the start; die after a round."""
    record, checkpoints = Record(), Checkpoints(folder)
    server = connect(scenario, record, checkpoints.clients)
    training = server.training

    def after_round() -> None:
        checkpoints.save(training)
        if training.done == die_after:
            raise Killed

    training.after_round = after_round
    state = checkpoints.latest()
    try:
        training.run(partial(checkpoints.restore, training, state) if state else None)
        server.end()
    except Killed:
        pass
    return server, record


def plain(rounds: list) -> list[dict]:
    return [{k: v for k, v in record.items() if k not in VOLATILE} for record in rounds]


@pytest.mark.parametrize(
    "overrides",
    [
        ("head.share=personal", "ranks.strategy=bandit", "lora.dropout=0.1"),
        ("head.share=step", "ranks.strategy=importance", "channel.deliver_every=2"),
        ("head.share=step", "robust.average=median", "robust.momentum=0.9"),
        ("head.share=round", "federation.clients_per_round=2", "channel.deliver_every=1"),
        ("task.kind=causal_lm", "train.embedding=true", "train.accumulate=2"),
        ("task.kind=causal_lm", "link.representation=entropy", "data.max_rows=24"),
    ],
    ids=["personal", "step", "momentum", "round", "embedding", "what is left"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, overrides):
    scenario = tiny(*overrides)
    whole, record = train(scenario, tmp_path / "whole")
    died, first = train(scenario, tmp_path / "died", die_after=2)
    resumed, second = train(scenario, tmp_path / "died")
    assert [r["round"] for r in first.rounds] == [1, 2]
    assert [r["round"] for r in second.rounds] == [3]
    expected, half = whole.engine.adapter(), died.engine.adapter()
    found = resumed.engine.adapter()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not all(torch.equal(expected[name], half[name]) for name in expected)
    assert plain(first.rounds + second.rounds) == plain(record.rounds)
    assert plain([whole.air.ledger.totals()]) == plain([resumed.air.ledger.totals()])


KEPT = ("train.steps=6", "data.max_rows=24", "channel.model=rayleigh", "channel.snr_db=[0.0]")
"""Every sample comes in every round, and the channel decides which adapters arrive in time."""


@pytest.mark.parametrize(
    "overrides",
    [(*KEPT, "model.client_front=1"), (*KEPT, "task.kind=causal_lm")],
    ids=["classes", "language"],
)
def test_what_the_server_had_kept_is_sent_again_outside_the_air_when_it_begins_again(
    tmp_path, overrides, monkeypatch
):
    scenario = tiny(*overrides)
    held: list[int] = []
    monkeypatch.setattr(KeptRows, "close", lambda self: held.append(_bits(self)))
    whole, record = train(scenario, tmp_path / "whole")
    _, first = train(scenario, tmp_path / "died", die_after=1)
    resumed, second = train(scenario, tmp_path / "died")
    assert plain(first.rounds + second.rounds) == plain(record.rounds)
    expected, found = whole.air.ledger.outside_bits(), resumed.air.ledger.outside_bits()
    again = found.pop("resume")["up"]
    assert not expected.pop("resume")["up"] and found == expected
    assert again > held[-1] > 0  # each once, and its names


def _bits(kept: KeptRows) -> int:
    rows = [row for own in kept._own.values() for row in own.rows.values() if row is not None]
    return 8 * sum(row.packed.nbytes for row in rows)


def test_clients_that_have_lost_their_states_are_told_of_no_rows_that_are_kept(tmp_path):
    scenario = tiny(*KEPT, "head.share=round")
    train(scenario, tmp_path, die_after=1)
    for file in (tmp_path / "clients" / "1").iterdir():
        file.unlink()
    resumed, second = train(scenario, tmp_path)
    assert [r["round"] for r in second.rounds] == [2, 3] and not resumed.cohort.lost


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    scenario = tiny("head.share=personal")
    whole, _ = train(scenario, tmp_path)
    last, before = (tmp_path / f"round-00000{round_}.safetensors" for round_ in (3, 2))
    last.write_bytes(last.read_bytes()[:-100])
    resumed, record = train(scenario, tmp_path)
    assert [r["round"] for r in record.rounds] == [3]
    expected, found = whole.engine.adapter(), resumed.engine.adapter()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for file in (last, before):
        file.write_bytes(b"nothing")
    with pytest.raises(FedloraError, match="can be read"):
        Checkpoints(tmp_path).latest()


def test_a_client_without_its_state_starts_anew_and_the_others_go_on(tmp_path, caplog):
    scenario = tiny("head.share=personal")
    train(scenario, tmp_path, die_after=2)
    for file in (tmp_path / "clients" / "1").iterdir():
        file.unlink()
    server, record = train(scenario, tmp_path)
    assert "client 1 goes on from its state of round 0, not 2" in caplog.text
    assert server.cohort.clients == ["0", "1", "2"]
    assert [r["round"] for r in record.rounds] == [3]


def test_two_rounds_are_kept_on_both_sides_and_no_part_of_a_file(tmp_path):
    train(tiny("head.share=personal"), tmp_path)
    names = ["round-000002.safetensors", "round-000003.safetensors"]
    assert sorted(p.name for p in tmp_path.glob("*round*")) == names
    for client in "012":
        assert sorted(p.name for p in (tmp_path / "clients" / client).iterdir()) == names


def test_a_keeper_refuses_rounds_that_are_none(tmp_path):
    scenario = tiny()
    client = in_process.Federation(scenario, Record()).clients[0]
    store = ClientStateStore(client, tmp_path)
    for round_ in (None, -1, True, "../../x", 10**6):
        with pytest.raises(
            FedloraError, match=r"keep needs round as an integer from 0|needs a round"
        ):
            store.handle(Frame("keep", "0", 1, {"round": round_}))
    assert list(tmp_path.iterdir()) == []


def test_states_round_trip_and_cut_files_are_refused(tmp_path):
    state = {"a": torch.arange(3), "b": [1, 2.5, None, "x"], "c": {"d": torch.zeros(0)}}
    path = tmp_path / "folder" / "state.safetensors"
    write_state(path, state)
    read = read_state(path)
    assert torch.equal(read["a"], state["a"])
    assert read["b"] == state["b"]
    data = path.read_bytes()
    for size in (0, 4, 40, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FedloraError, match="cannot be read"):
            read_state(path)


def test_older_states_go_only_when_a_newer_one_is_there(tmp_path):
    states = RoundStates(tmp_path)
    for round_ in (1, 2, 3):
        states.write(round_, {"round": round_})
    assert states.rounds() == [3, 2]
    states.forget_after(2)
    assert [round_ for round_, _ in states.readable()] == [2]


def test_only_an_unfinished_run_with_a_checkpoint_is_opened(tmp_path):
    with pytest.raises(FedloraError, match="holds no run"):
        open_run(tmp_path / "nothing")
    folder = RunFolder.create(tmp_path / "run")
    from fedlora.config import scenario_to_toml

    folder.write_scenario(scenario_to_toml(tiny()))
    with pytest.raises(FedloraError, match="has no checkpoint"):
        open_run(folder.path)
    folder.checkpoint.mkdir()
    (folder.checkpoint / "round-000001.safetensors").write_bytes(b"junk")
    with pytest.raises(FedloraError, match=r"no checkpoint in .* can be read; start anew"):
        open_run(folder.path)
    RoundStates(folder.checkpoint).write(1, {"round": 1})
    with pytest.raises(FedloraError, match="still going on"):
        open_run(folder.path)
    folder.append_event("round", round=1)
    folder.append_event("done", status="interrupted")
    del folder
    scenario, again = open_run(tmp_path / "run")
    assert scenario == tiny()
    assert [event["event"] for event in again.read_events()[0]] == ["round"]
    again.summary.write_text('{"rounds": 4}')
    with pytest.raises(FedloraError, match="is finished"):
        open_run(again.path)
