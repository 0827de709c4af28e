"""A sample's next representation goes down as what is left of its last one: no bit changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.federation import Federation, same, scenario
from test_training_stragglers import SLOW, Slow, deployed, let_go, when_step

from clients.edge_client import EdgeClient
from clients.owner import OwnerTerms
from clients.state_store import ClientStateStore
from fedlora.config import Scenario
from fedlora.link import Frame, messages as m
from fedlora.server.checkpoint import Checkpoints
from fedlora.storage.state import RoundStates
from simulations import in_process
from simulations.in_process import Handler, Record

LANGUAGE = ["task.kind=causal_lm", "link.representation=entropy"]
LONG = ["train.rounds=5", "train.steps=4", "data.max_rows=24"]
WHOLE = "link.residual_mib=0"


def down(federation: Any) -> int:
    found: int = federation.server.air.ledger.totals()["bits"]["down"]["representation"]
    return found


def held_to_whole(config: Scenario, **options: Any) -> tuple[Any, Any]:
    """Hold adapter and losses to those of a run that writes all whole; return both runs."""
    whole = dataclasses.replace(config, link=dataclasses.replace(config.link, residual_mib=0))
    first, second = Federation(config, **options).run(), Federation(whole).run()
    assert same(first.server.engine.adapter(), second.server.engine.adapter())
    losses = [[(r["loss"], r["metric"]) for r in f.recorder.rounds] for f in (first, second)]
    assert losses[0] == losses[1]
    return first, second


def watching(look: Callable[[EdgeClient, Frame, Frame], Frame | None]) -> Any:
    def wrap(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = client.handle(frame)
            return look(client, frame, reply) or reply

        return handle

    return wrap


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("gpt2", [*LANGUAGE, "data.prompt_separator=w5"]),
        ("llama", [*LANGUAGE, "train.overlap=true", "evaluate.baseline=true"]),
        ("bert", ["head.share=step", "link.representation=entropy", "link.reuse_mib=1"]),
    ],
    ids=["targets", "halves", "pooled"],
)
def test_adapter_and_losses_are_those_of_a_run_that_writes_all_whole(tiny, records, family, more):
    left, whole = held_to_whole(scenario(tiny[family], records, *more, *LONG, "train.lr=1e-3"))
    assert down(left) < 0.9 * down(whole)


NOISE = ["privacy.epsilon=50", "privacy.insecure_noise_seed=1", "privacy.activation_sigma=40"]


@pytest.mark.parametrize(
    "more",
    [
        [*LANGUAGE, "privacy.release=full"],
        ["head.share=step", "link.representation=entropy", "privacy.release=row_space"],
    ],
    ids=["language", "pooled"],
)
def test_under_noise_all_that_goes_up_is_that_of_a_run_that_writes_all_whole(tiny, records, more):
    """But for the digests, which the server can compute; what is charged is in the fields."""
    config, runs = scenario(tiny["gpt2"], records, *more, *LONG, *NOISE), []
    for mib in (64, 0):
        sent: list[Any] = []

        def look(client: EdgeClient, frame: Frame, reply: Frame, sent: list[Any] = sent) -> None:
            kept = {n: t.tolist() for n, t in reply.tensors.items() if n not in ("ids", "held")}
            sent.append((client.name, frame.kind, reply.kind, reply.fields, kept))

        own = dataclasses.replace(config, link=dataclasses.replace(config.link, residual_mib=mib))
        run = Federation(own, wrap=watching(look)).run()
        runs.append((sent, down(run)))
    assert runs[0][0] == runs[1][0] and runs[0][1] < 0.95 * runs[1][1]
    assert any("rho" in fields for _, _, _, fields, _ in runs[0][0])


def test_who_is_late_goes_on_with_what_is_left(tiny, records):
    """It misses steps, and takes up what it has when it is back."""
    found = []
    for mib in (64, 0):
        slow, seen = Slow(m.STEP, 10), set[str]()

        def watched(edge: EdgeClient, slow: Slow = slow, seen: set[str] = seen) -> Handler:
            own = slow(edge)

            def handle(frame: Frame) -> Frame:
                seen.update(n[-2:] for n in frame.tensors if slow.gate.is_set())
                return own(frame)

            return handle if edge.name == SLOW else own

        more = ["link.representation=entropy", f"link.residual_mib={mib}", "data.max_rows=24"]
        more += ["train.rounds=2", "train.steps=8"]
        run = deployed(tiny, records, slow, *more, wrap=watched)
        when_step(run, 11, partial(let_go, slow))
        run.run()
        assert run.recorder.rounds[1]["missed"] == {SLOW: 2} and ("-r" in seen) == (mib > 0)
        found.append(run.server.engine.adapter())
    assert same(*found)


def test_what_either_end_loses_or_holds_damaged_is_sent_whole(tiny, records):
    """Before a client says what it holds, it forgets, or a bit flips there or at the server."""
    config, count, seen = scenario(tiny["gpt2"], records, *LANGUAGE, *LONG), [0], set[str]()

    def harmed(client: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            seen.update(name[-2:] for name in frame.tensors)
            if frame.kind == m.STEP:
                count[0] += 1
                theirs = federation.server.training.batches.representations._own[client.name][1]
                for kept in (client._cut.representations._kept, theirs)[: count[0] % 3]:
                    own = [n for n in kept._own if kept is theirs or n not in client._batch]
                    for place, sample in enumerate(own):
                        if (count[0] + place) % 4 == 1:
                            del kept._own[sample]
                        elif (count[0] + place) % 4 == 2:
                            kept._own[sample] = _flipped(kept._own[sample])
            return client.handle(frame)

        return handle

    federation = Federation(config, wrap=harmed, workers=1)
    federation.run()
    whole = Federation(scenario(tiny["gpt2"], records, *LANGUAGE, *LONG, WHOLE)).run()
    assert same(federation.server.engine.adapter(), whole.server.engine.adapter())
    assert not federation.server.cohort.lost and "-r" in seen and count[0] == 60


@pytest.mark.parametrize(
    "lie",
    [
        lambda held: torch.full_like(held, 12345),
        lambda held: held.flip(0),
        torch.zeros_like,
    ],
    ids=["made up", "of other rows", "none"],
)
def test_a_client_that_says_it_holds_what_it_does_not_reads_and_poisons_nothing(tiny, records, lie):
    config = scenario(tiny["gpt2"], records, *LANGUAGE, *LONG)
    sent: dict[str, list[bytes]] = {}

    def hostile(client: EdgeClient, frame: Frame, reply: Frame) -> Frame | None:
        if frame.kind == m.STEP:
            parts = [t.view(torch.uint8).numpy().tobytes() for t in frame.tensors.values()]
            sent.setdefault(client.name, []).extend(parts)
        if client.name == "1" and "held" in reply.tensors:
            told = {**reply.tensors, "held": lie(reply.tensors["held"])}
            return dataclasses.replace(reply, tensors=told)
        return None

    lying = Federation(config, wrap=watching(hostile)).run()
    first, sent = sent, {}
    honest = Federation(
        config, wrap=watching(lambda c, f, r: (hostile(c, f, r), r)[1] if c.name != "1" else None)
    ).run()
    assert not lying.server.cohort.lost
    assert same(lying.server.engine.adapter(), honest.server.engine.adapter())
    assert {c: own for c, own in first.items() if c != "1"} == sent  # the others' bytes are theirs


@pytest.mark.parametrize(
    "held",
    [
        torch.zeros(3),
        torch.zeros(2, dtype=torch.int32),
        torch.zeros(9, dtype=torch.int32),
        torch.zeros(1, 3, dtype=torch.int32),
    ],
)
def test_what_a_client_holds_is_told_by_a_number_for_each_row(tiny, records, held):
    def hostile(client: EdgeClient, frame: Frame, reply: Frame) -> Frame | None:
        if client.name == "1" and "ids" in reply.tensors:
            return dataclasses.replace(reply, tensors={**reply.tensors, "held": held})
        return None

    run = Federation(scenario(tiny["gpt2"], records, *LANGUAGE), wrap=watching(hostile)).run()
    assert "an int32 for each identifier" in run.server.cohort.lost["1"]


def test_nothing_is_kept_on_either_side_where_the_owner_forbids_it(tiny, records):
    config, told = scenario(tiny["gpt2"], records, *LANGUAGE, *LONG), set[str]()

    def look(client: EdgeClient, frame: Frame, reply: Frame) -> None:
        if client.name == "0":
            told.update({*reply.tensors, *(name[-2:] for name in frame.tensors)})
            assert not client._cut.representations._kept.nbytes

    terms = {0: OwnerTerms(retention=False)}
    run = in_process.Federation(config, Record(), 1, watching(look), terms)
    run.server.training.run()
    own = run.server.training.batches.representations._own
    assert "held" not in told and "-r" not in told
    assert "0" not in own and own["1"][1].nbytes > 0


def test_what_is_kept_ends_with_the_client_and_with_the_run(tiny, records):
    run = Federation(scenario(tiny["gpt2"], records, *LANGUAGE)).run()
    kept = run.server.training.batches.representations
    assert set(kept._own) == {"0", "1", "2"}
    run.server.cohort.drop("1", "gone")
    kept.retain(run.server.cohort.clients)
    assert set(kept._own) == {"0", "2"}
    run.server.training.batches.close()
    assert not kept._own


def test_states_of_before_there_were_residuals_are_taken_up(tiny, records, tmp_path):
    config = scenario(tiny["gpt2"], records, *LANGUAGE, *LONG)
    checkpoints = Checkpoints(tmp_path / "server")

    def federation() -> Federation:
        keep = lambda edge: ClientStateStore(edge, tmp_path / edge.name).handle  # noqa: E731
        return Federation(config, wrap=keep)

    def die() -> None:
        checkpoints.save(first.server.training)
        raise InterruptedError

    first = federation()
    first.server.training.after_round = die
    with pytest.raises(InterruptedError):
        first.run()
    for client in first.clients:
        _without_levels(tmp_path / client.name)
    resumed, state = federation(), {**checkpoints.latest()}
    del state["levels"]
    resumed.server.training.run(partial(checkpoints.restore, resumed.server.training, state))
    assert len(resumed.recorder.rounds) == 4 and not resumed.server.cohort.lost
    assert same(resumed.server.engine.adapter(), Federation(config).run().server.engine.adapter())


def _without_levels(folder: Path) -> None:
    states = RoundStates(folder)
    for number in states.rounds():
        states.write(number, {k: v for k, v in states.read(number).items() if k != "levels"})


def test_both_ends_keep_the_same_within_the_bound(tiny, records, monkeypatch):
    limit = 3000
    monkeypatch.setattr(
        "fedlora.config.system.LinkConfig.residual_bytes", lambda self, clients: limit
    )
    config = scenario(tiny["gpt2"], records, *LANGUAGE, *LONG)
    run = Federation(config).run()
    theirs = run.server.training.batches.representations._own
    for client in run.clients:
        own, other = client._cut.representations._kept, theirs[client.name][1]
        assert limit / 2 < own.nbytes == other.nbytes <= limit
        assert sorted(own._own.values()) == sorted(other._own.values())


def _flipped(levels: bytes) -> bytes:
    """Return levels with the last bit flipped."""
    return levels[:-1] + bytes([levels[-1] ^ 1])
