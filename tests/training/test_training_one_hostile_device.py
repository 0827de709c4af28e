"""One hostile device beside three honest ones neither stops, nor slows, nor steers them."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.federation import Federation, Handler, Recorder, relative, same, scenario
from support.patience import patient

from clients.build import hello, load_parts
from clients.edge_client import EdgeClient
from clients.simulated_data import SimulatedData
from fedlora.errors import ClientLost, ProtocolError
from fedlora.link import Frame, messages as m
from fedlora.server.checkpoint import Checkpoints
from fedlora.server.run import ServerRun

BAD = "3"
LIMIT_S = 1.0
Answer = Callable[[Frame, Frame], Frame]
"""What the hostile device makes of a request and its honest answer."""


def hostile(change: Answer) -> Callable[[EdgeClient], Handler]:
    def wrap(edge: EdgeClient) -> Handler:
        if edge.name != BAD:
            return edge.handle
        return lambda request: change(request, edge.handle(request))

    return wrap


def honest(request: Frame, reply: Frame) -> Frame:
    del request
    return reply


def config(tiny: Any, records: Any, *overrides: str) -> Any:
    return scenario(
        tiny["gpt2"],
        records,
        "federation.clients=4",
        "head.share=step",
        f"link.step_timeout_s={LIMIT_S}",
        *overrides,
    )


def deployed(config: Any, change: Answer) -> tuple[Federation, float]:
    """Run a federation as a deployment; return it, and how long it took.

    Workers suffice for all that a device is asked while it holds its answers back.
    """
    federation = Federation(config, wrap=hostile(change), workers=40)
    federation.server.cohort.deployed = True
    began = time.monotonic()
    federation.run()
    return federation, time.monotonic() - began


def put(name: str, value: float) -> Callable[[Frame], Frame]:
    def change(frame: Frame) -> Frame:
        tensor = frame.tensors[name].clone()
        tensor.view(-1)[0] = value
        return dataclasses.replace(frame, tensors={**frame.tensors, name: tensor})

    return change


def when(kind: str, act: Callable[[Frame], Frame]) -> Answer:
    return lambda request, reply: act(reply) if request.kind == kind else reply


def lose(frame: Frame) -> Frame:
    raise ClientLost("client 3 went out of reach")


SPOILERS = {
    "gradient": (m.STEP, "gradient", 3.3e38),
    "gradient whose square overflows": (m.STEP, "gradient", 1e25),
    "head gradient": (m.STEP, "head_gradient.weight", -3.3e38),
    "head gradient whose square overflows": (m.STEP, "head_gradient.weight", 1e25),
    "activation": (m.BATCH, "activation", 3.3e38),
}
WAYS = {
    "plain": [],
    "clipped": ["train.clip_norm=1.0"],
    "accumulated": ["train.accumulate=2"],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_one_figure_that_overflows_costs_its_client_its_place_and_nobody_a_bit(
    tiny, records, spoiler, way
):
    """The reference is a run from which the fourth is lost at that step."""
    kind, name, value = SPOILERS[spoiler]
    setup = config(tiny, records, *WAYS[way])
    federation, _ = deployed(setup, when(kind, put(name, value)))
    without, _ = deployed(setup, when(kind, lose))
    assert list(federation.server.cohort.lost) == [BAD]
    adapter = federation.server.engine.adapter()
    assert all(bool(factor.isfinite().all()) for factor in adapter.values())
    assert same(adapter, without.server.engine.adapter())
    assert torch.equal(federation.head()[0], without.head()[0])
    assert federation.recorder.losses() == without.recorder.losses()
    second = federation.server.engine.update.optimizer.state_dict()
    assert all(bool(moment.isfinite().all()) for moment in second.values())


def test_an_activation_whose_rows_overflow_only_in_backward_is_left_out_to_rounding(tiny, records):
    setup = config(tiny, records)
    federation, _ = deployed(setup, when(m.BATCH, put("activation", 1e25)))
    without, _ = deployed(setup, when(m.BATCH, lose))
    adapter, expected = (f.server.engine.adapter() for f in (federation, without))
    assert all(bool(factor.isfinite().all()) for factor in adapter.values())
    if BAD in federation.server.cohort.lost:
        assert max(relative(adapter[n], expected[n]) for n in adapter) < 1e-4


@pytest.mark.parametrize("value", [3.3e38, 1e25])
def test_head_weights_that_no_head_has_are_not_averaged(tiny, records, value):
    setup = config(tiny, records, "head.share=round")
    spoil = when(m.ROUND_END, put("head_weight.weight", value))
    federation, _ = deployed(setup, spoil)
    without, _ = deployed(setup, when(m.ROUND_END, lose))
    assert "beyond" in federation.server.cohort.lost[BAD]
    assert same(federation.server.engine.adapter(), without.server.engine.adapter())
    assert torch.equal(federation.head()[0], without.head()[0])


def test_nobody_is_asked_twice_for_a_step_that_was_spoilt(tiny, records):
    asked: list[tuple[str, int]] = []

    def wrap(edge: EdgeClient) -> Handler:
        def handle(request: Frame) -> Frame:
            asked.append((edge.name, request.seq))
            reply = edge.handle(request)
            spoilt = edge.name == BAD and request.kind == m.STEP
            return put("gradient", 3.3e38)(reply) if spoilt else reply

        return handle

    federation = Federation(config(tiny, records), wrap=wrap).run()
    assert list(federation.server.cohort.lost) == [BAD]
    assert len(asked) == len(set(asked))


def slow(seconds: float, *kinds: str) -> Answer:
    def change(request: Frame, reply: Frame) -> Frame:
        if not kinds or request.kind in kinds:
            time.sleep(seconds)
        return reply

    return change


@pytest.mark.parametrize("kinds", [(m.STEP,), ()], ids=["steps", "everything"])
def test_answers_just_below_the_limit_cost_the_others_one_limit_in_all(tiny, records, kinds):
    setup = config(tiny, records, "train.steps=10", "train.rounds=2")
    _, honest_s = deployed(setup, honest)
    federation, hostile_s = deployed(setup, slow(0.9 * LIMIT_S, *kinds))
    assert len(federation.recorder.rounds) == 2
    # 20 steps of 0.9 s; a busy machine may take the honest run's time another time
    assert hostile_s < patient(2.5 * honest_s + 2 * LIMIT_S)
    for client in "012":
        assert federation.recorder.rounds[-1]["clients"][client]["rows"] == 30


def test_a_silent_device_costs_the_others_one_limit_in_all(tiny, records):
    setup = config(tiny, records, "train.steps=10", "train.rounds=2")
    _, honest_s = deployed(setup, honest)
    federation, hostile_s = deployed(setup, slow(12 * LIMIT_S, m.STEP))
    assert len(federation.recorder.rounds) == 2
    assert hostile_s < patient(2.5 * honest_s + 2 * LIMIT_S)


def test_a_device_whose_hardware_is_slow_keeps_its_place_and_takes_part(tiny, records):
    setup = config(tiny, records, "train.steps=60", "train.rounds=2", "link.step_timeout_s=2")
    federation, _ = deployed(setup, slow(0.02, m.STEP))
    assert federation.server.cohort.lost == {}
    rounds = federation.recorder.rounds
    assert all(record["clients"][BAD]["rows"] > 0 for record in rounds)


def test_who_comes_back_and_goes_back_slowly_costs_the_others_one_limit_in_all(
    tiny, records, tmp_path
):
    """Time after time: it was lost, and answers just in time to where the run stands."""

    def wrap(edge: EdgeClient) -> Handler:
        def handle(request: Frame) -> Frame:
            if request.kind != m.RESTORE:
                return edge.handle(request)
            time.sleep(0.9 * setup.link.step_timeout_s)
            return Frame(m.READY, edge.name, request.seq, {"round": 0})

        return handle

    setup = config(tiny, records, "link.step_timeout_s=0.2", "link.patience=0")
    federation = Federation(setup, wrap=wrap, workers=40)
    cohort, checkpoints = federation.server.cohort, Checkpoints(tmp_path)
    cohort.deployed = True
    for _ in range(4):
        checkpoints.restore_clients(federation.server.training, [BAD])
    assert "late to begin again" in cohort.lost[BAD]
    assert cohort.may_return == {BAD}
    assert cohort.clients == ["0", "1", "2"]


@pytest.mark.parametrize("rows", [100_001, 1 << 39])
def test_who_claims_more_held_out_rows_than_agreed_is_refused(tiny, records, rows):
    setup = config(tiny, records)
    server = ServerRun(setup, Recorder())
    data = SimulatedData(setup, 4)
    parts = load_parts(setup, data.labels)
    opening = hello(parts, data.build(parts, 3))
    server.admit(opening)
    greedy = dataclasses.replace(opening, fields={**opening.fields, "held_out_rows": rows})
    with pytest.raises(ProtocolError, match=r"held_out_rows is .* evaluate\.max_rows is 100000"):
        server.admit(greedy)


def test_who_evaluates_without_end_is_left_out_of_the_evaluation(tiny, records):
    """It answers at once and never comes to an end; the others' metric is whole."""
    first: list[Frame] = []

    def without_end(request: Frame, reply: Frame) -> Frame:
        if request.kind == m.EVAL_BEGIN:
            first[:] = [reply]
        if request.kind == m.EVAL:
            return dataclasses.replace(first[0], seq=reply.seq)
        return reply

    setup = config(tiny, records, "train.rounds=2", "train.steps=20")
    setup_honest, honest_s = deployed(setup, honest)
    federation = Federation(setup, wrap=hostile(without_end), workers=40)
    cohort = federation.server.cohort
    cohort.deployed = True
    cohort[BAD].held_out_rows = 100_000
    began = time.monotonic()
    federation.run()
    assert time.monotonic() - began < patient(2.5 * honest_s + 2 * LIMIT_S)
    record, whole = federation.recorder.rounds[0], setup_honest.recorder.rounds[0]
    for client in "012":
        assert record["clients"][client]["loss"] == whole["clients"][client]["loss"]


def names_what_was_never_sent(pause_s: float) -> Callable[[EdgeClient], Handler]:
    """Name the rows of each batch under new numbers, and hand them in when they are asked for."""
    held: list[Frame] = []
    numbers = itertools.count(1)

    def named(reply: Frame) -> Frame:
        held[:] = [reply]
        ids = torch.tensor([next(numbers) for _ in reply.tensors["lengths"]])
        told = {
            "ids": ids,
            "fresh": torch.zeros(len(ids), dtype=torch.uint8),
            "lengths": torch.zeros(0, dtype=torch.int32),
        }
        rest = {n: t for n, t in reply.tensors.items() if n not in ("activation", *told)}
        return dataclasses.replace(reply, tensors=rest | told)

    def wrap(edge: EdgeClient) -> Handler:
        if edge.name != BAD:
            return edge.handle

        def handle(request: Frame) -> Frame:
            if request.kind == m.AGAIN:
                time.sleep(pause_s)
                own = {name: held[0].tensors[name] for name in ("activation", "lengths")}
                ids = request.tensors["ids"]
                own |= {"ids": ids, "fresh": torch.ones(len(ids), dtype=torch.uint8)}
                return Frame(m.ACTIVATION, BAD, request.seq, {}, own)
            plain = {name: v for name, v in request.fields.items() if name != "kept"}
            reply = edge.handle(dataclasses.replace(request, fields=plain))
            trains = request.kind in (m.BATCH, m.STEP)
            return named(reply) if trains and "lengths" in reply.tensors else reply

        return handle

    return wrap


@pytest.mark.parametrize("share", [0.9, 12.0], ids=["just below the limit", "never"])
def test_rows_that_are_named_and_kept_back_cost_the_others_one_limit_in_all(tiny, records, share):
    setup = config(tiny, records, "train.steps=10", "train.rounds=2")
    _, honest_s = deployed(setup, honest)
    federation = Federation(setup, wrap=names_what_was_never_sent(share * LIMIT_S), workers=40)
    federation.server.cohort.deployed = True
    began = time.monotonic()
    federation.run()
    hostile_s = time.monotonic() - began
    assert len(federation.recorder.rounds) == 2
    assert hostile_s < patient(2.5 * honest_s + 2 * LIMIT_S)
    for client in "012":
        assert federation.recorder.rounds[-1]["clients"][client]["rows"] == 30


def test_a_device_that_is_late_with_rows_that_were_lost_goes_on_with_its_batch(tiny, records):
    """Its answer completes the batch that is open there, and is no batch of its own."""
    setup = config(tiny, records, "train.steps=40", "train.rounds=1", "link.step_timeout_s=0.2")
    late: list[int] = []
    after: list[str] = []

    def wrap(edge: EdgeClient) -> Handler:
        def handle(request: Frame) -> Frame:
            if edge.name == BAD and late:
                after.append(request.kind)
            if edge.name == BAD and request.kind == m.AGAIN and not late:
                late.append(len(request.tensors["ids"]))
                time.sleep(0.3)
            elif request.kind == m.STEP:
                time.sleep(0.015)
            return edge.handle(request)

        return handle

    federation = Federation(setup, wrap=wrap, workers=40)
    federation.server.cohort.deployed = True
    batches = federation.server.training.batches
    fill = batches._take

    def one_lost(client: str, reply: Frame, max_rows: int) -> Any:
        own = fill(client, reply, max_rows)
        if client == BAD and not late and own.ids is not None and "activation" not in reply.tensors:
            own.rows[0] = None
        return own

    batches._take = one_lost  # type: ignore[method-assign]
    federation.run()
    assert late == [1]
    assert federation.server.cohort.lost == {}
    assert after[0] == m.STEP, "no other batch was asked for, and this one went on"
