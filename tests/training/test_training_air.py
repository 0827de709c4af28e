"""What a run books on the air, and what a client works with when its adapter comes late."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.federation import Federation, Handler, scenario
from support.unsplit import SampleStream, Unsplit

from clients.edge_client import EdgeClient
from fedlora.channel import ChannelState, build_channel
from fedlora.link import Frame
from fedlora.ranks import ClientReport
from fedlora.report import PhaseProgress, Summary

RANKS = [[1, 3, 1, 2], [3, 3, 1, 1], [3, 1, 1, 3]]
ARRIVES = [[True, False, True, True], [False, False, True, True], [False, True, True, False]]
WIDTH, FLOAT = 32, 32
SNR_DB, DEADLINE_S = 10.0, 0.5
LAYER = [(32, 96), (32, 32), (32, 128), (128, 32)]  # GPT-2's linear maps at width 32
RANK_BITS = 4 * sum(d_in + d_out for d_in, d_out in LAYER) * FLOAT
# Shannon's capacity lets rank 2 through within the deadline, and rank 3 not.
BANDWIDTH_HZ = 2.5 * RANK_BITS / DEADLINE_S / math.log2(1 + 10 ** (SNR_DB / 10))

DELIVERY = [
    "channel.deliver_every=1",
    f"channel.snr_db=[{SNR_DB}]",
    f"channel.bandwidth_hz=[{BANDWIDTH_HZ}]",
    f"channel.deadline_s={DEADLINE_S}",
    "federation.clients=4",
    "train.rounds=3",
    "train.lr=0.05",
    "head.share=step",
    "ranks.strategy=support.rank_cycles:RankTable",
    f"ranks.options.table={RANKS}",
]


def held_out_loss(
    unsplit: Unsplit, federation: Federation, client: int, adapter: Any, rank: int
) -> float:
    """Work out a client's held-out loss in the undivided model with the first components."""
    with torch.no_grad():
        for name, factor in unsplit.factors.items():
            components = torch.arange(3) < rank
            mask = components[:, None] if name.endswith(".A") else components
            factor.copy_(adapter[name] * mask)
        unsplit.heads[0].copy_(federation.head()[0])
        loss, counts = unsplit.loss(
            [federation.clients[client].door.truth(federation.clients[client].held_out)]
        )
    return loss.item() / sum(counts)


def test_late_adapter_leaves_the_client_with_the_one_before(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records, *DELIVERY))
    unsplit = Unsplit(federation)
    engine, training = federation.server.engine, federation.server.training
    assert [(p.d_in, p.d_out) for p in engine.projections] == LAYER * 4
    adapters: list[Any] = []
    holds: list[tuple[int, int] | None] = [None] * 4  # round and rank of what each client has

    def check_round() -> None:
        number = len(adapters)
        adapters.append(engine.adapter())
        record = federation.recorder.rounds[-1]
        for client in range(4):
            rank, arrives = RANKS[number][client], ARRIVES[number][client]
            own = record["clients"][str(client)]
            assert own["delivered"] == arrives
            sent = rank * RANK_BITS if arrives else math.floor(2.5 * RANK_BITS)
            assert own["adapter_bits"] == pytest.approx(sent, abs=1)
            if arrives:
                holds[client] = number, rank
            number_had, rank_had = holds[client] or (number, 0)
            expected = held_out_loss(unsplit, federation, client, adapters[number_had], rank_had)
            assert own["loss"] == pytest.approx(expected, rel=1e-5), (number, client)
        assert record["late_deliveries"] == 4 - sum(ARRIVES[number])

    training.after_round = check_round
    federation.run()
    assert len(adapters) == 3
    assert training.air.ledger.totals()["late_deliveries"] == 5
    row = training.air.ledger.row(0, 1)
    assert row is not None
    assert row.seconds["down"]["adapter"] == pytest.approx(DEADLINE_S)


def test_a_round_without_delivery_leaves_no_strategy_with_adapters_that_nobody_got(tiny, records):
    """The first channel carries more than the second, and only in the second is anything sent."""
    config = scenario(
        tiny["gpt2"],
        records,
        *DELIVERY,
        *("channel.deliver_every=2", "channel.snr_db=[10.0, 5.0]", "train.rounds=2"),
        *("federation.clients=1", "ranks.strategy=hold", "ranks.options={}"),
    )
    wanted = [10.0, 5.0]
    seed = next(
        seed
        for seed in range(100)
        if [build_channel(config.channel, seed).report(0, n).down_snr_db for n in (0, 1)] == wanted
    )
    federation = Federation(dataclasses.replace(config, seed=seed)).run()
    first, second = (own["clients"]["0"] for own in federation.recorder.rounds)
    assert (first["delivered"], second["delivered"]) == (None, True)
    assert 1 <= second["mean_rank"] < first["mean_rank"]


def test_no_delivery_evaluates_with_the_present_adapter_at_no_cost(tiny, records):
    overrides = [*DELIVERY, "channel.deliver_every=0"]
    federation = Federation(scenario(tiny["gpt2"], records, *overrides))
    unsplit = Unsplit(federation)
    federation.run()
    last = federation.recorder.rounds[-1]
    adapter = federation.server.engine.adapter()
    for client in range(4):
        expected = held_out_loss(unsplit, federation, client, adapter, RANKS[2][client])
        assert last["clients"][str(client)]["loss"] == pytest.approx(expected, rel=1e-5)
    assert federation.server.air.ledger.totals()["bits"]["down"]["adapter"] == 0


def tokens_of(samples: Any) -> int:
    return sum(len(sample.ids) for sample in samples)


@pytest.mark.parametrize("reuse", [False, True], ids=["sent again", "sent once"])
@pytest.mark.parametrize("pooled", [True, False], ids=["classification", "language"])
def test_bits_are_what_a_count_by_hand_gives(tiny, records: Path, pooled, reuse):
    task = ["head.share=step"] if pooled else ["task.kind=causal_lm"]
    task += ["evaluate.baseline=true", "train.accumulate=2"]
    if not reuse:
        task += ["link.reuse=false", "link.targets_only=false"]
    config = scenario(tiny["gpt2"], records, *task)
    federation = Federation(config).run()
    ledger, train = federation.server.air.ledger, config.train
    exchanges = train.total_steps * train.accumulate
    tokens, masks = 0, 0
    seen: set[tuple[int, ...]] = set()
    for number, client in enumerate(federation.clients):
        own = client.door.truth(client.train)
        stream = SampleStream(own, train.batch_size, config.seed, number)
        batches = [stream.next() for _ in range(exchanges)]
        tokens += sum(map(tokens_of, batches))
        for batch in batches:
            fresh = {(number, id(own), len(own.ids)) for own in batch} - seen
            masks += 8 * math.ceil(sum(length for *_, length in fresh) / 8)
            seen |= fresh
    rows = 3 * exchanges * train.batch_size
    names = rows * (64 + 8) * reuse
    # What comes down and what goes back up: of a text's tokens all but the last are learnt.
    vectors = rows if pooled else tokens - rows * reuse
    head = 3 * WIDTH * FLOAT if pooled else 0
    bits = ledger.totals()["bits"]
    once = sum(length for *_, length in seen)
    assert bits["up"]["activation"] == (once if reuse else tokens) * WIDTH * FLOAT
    assert bits["up"]["gradient"] == vectors * WIDTH * FLOAT
    assert bits["up"]["head"] == 3 * (exchanges + 1) * head  # and the initial ones
    fresh = len(seen) if reuse else rows
    lengths = 32 * fresh + names + (0 if pooled or not reuse else masks)
    assert bits["up"]["control"] == lengths
    assert bits["down"]["representation"] == vectors * WIDTH * FLOAT
    assert bits["down"]["head"] == 3 * (exchanges + train.rounds) * head
    assert bits["down"]["control"] == 0
    assert bits["down"]["adapter"] == 0

    held = [
        sample for client in federation.clients for sample in client.door.truth(client.held_out)
    ]
    evaluated = len(held) if pooled else tokens_of(held) - len(held) * reuse
    up = tokens_of(held) * WIDTH * FLOAT + 32 * len(held)
    outside = ledger.outside_bits()
    named = len(held) * (64 + 8)
    own = [tokens_of(client.door.truth(client.held_out)) for client in federation.clients]
    told = 0 if pooled or not reuse else sum(8 * math.ceil(count / 8) for count in own)
    later = up + told + train.rounds * named if reuse else train.rounds * up
    assert outside["evaluation"]["up"] == later
    assert outside["evaluation"]["down"] == train.rounds * evaluated * WIDTH * FLOAT
    # The baseline trains the head alone, so no gradient of the cut goes up, and evaluates once.
    sent = once if reuse else tokens
    labels = names + 32 * (len(seen) if reuse else rows)
    training = sent * WIDTH * FLOAT + labels + 3 * (exchanges + 1) * head if pooled else 0
    assert outside["baseline"]["up"] == up + named * reuse + told + training


def test_air_time_is_bits_over_the_rate(tiny, records):
    config = scenario(tiny["gpt2"], records, *DELIVERY, "federation.clients_per_round=2")
    federation = Federation(config).run()
    ledger = federation.server.air.ledger
    rate_bps = BANDWIDTH_HZ * math.log2(1 + 10 ** (SNR_DB / 10))
    for number, record in enumerate(federation.recorder.rounds):
        seconds = []
        for client in range(4):
            row = ledger.row(number, client)
            if row is not None:
                bits = sum(sum(kinds.values()) for kinds in row.bits.values())
                assert row.air_seconds == pytest.approx(bits / rate_bps, rel=1e-6)
                seconds.append(row.air_seconds)
        assert record["air_seconds"] == pytest.approx(max(seconds))
        assert record["client_seconds"] == pytest.approx(sum(seconds))


def test_a_measured_link_decides_what_is_late_and_silent_clients_leave(tiny, records):
    rates_bps = {"0": 2.5 * RANK_BITS / DEADLINE_S, "1": 0.5 * RANK_BITS / DEADLINE_S}

    def silent(reply: Frame) -> Frame:
        told = {name: value for name, value in reply.fields.items() if name != "channel"}
        return dataclasses.replace(reply, fields=told)

    def measuring(client: EdgeClient) -> Handler:
        rate = rates_bps.get(client.name, 1.0)
        client.report = lambda round_: ChannelState(None, None, 1e6, rate, rate, derived=True)
        if client.name in rates_bps:
            return client.handle
        return lambda frame: silent(client.handle(frame))

    config = scenario(
        tiny["gpt2"],
        records,
        "channel.model=measured",
        "channel.deliver_every=1",
        f"channel.deadline_s={DEADLINE_S}",
        "head.share=step",
        "ranks.options.r=2",
        "federation.min_clients=2",
    )
    federation = Federation(config, wrap=measuring).run()
    record = federation.recorder.rounds[-1]
    assert {c: own["delivered"] for c, own in record["clients"].items()} == {"0": True, "1": False}
    assert record["clients"]["0"]["snr_db"] is None
    assert record["clients"]["0"]["rate_bps"] == pytest.approx(rates_bps["0"])
    assert "reports no measured link" in federation.server.cohort.lost["2"]
    # The heads' first weights travel before anything was measured, and take no time.
    first = federation.server.air.row(1, "0")
    assert first is not None
    assert first.bits["up"]["control"] > 0
    sent_s = {way: sum(first.bits[way].values()) / rates_bps["0"] for way in ("up", "down")}
    assert first.direction_seconds("down") == pytest.approx(sent_s["down"], rel=1e-2)


def test_energy_is_transmit_power_times_air_time_at_both_ends(tiny, records):
    config = scenario(
        tiny["gpt2"], records, *DELIVERY, "channel.up_power_w=0.5", "channel.down_power_w=3.0"
    )
    federation = Federation(config).run()
    total = 0.0
    for record in federation.recorder.rounds:
        for client, own in record["clients"].items():
            row = federation.server.air.row(record["round"], client)
            assert row is not None
            joules = 0.5 * row.direction_seconds("up") + 3.0 * row.direction_seconds("down")
            assert own["energy_joules"] == pytest.approx(joules)
            total += joules
    rounds = federation.recorder.rounds
    assert sum(record["energy_joules"] for record in rounds) == pytest.approx(total)
    facts = {**federation.server.training.summary_fields(), "clients": 4, "seed": 0}
    assert Summary.from_rounds(rounds, **facts).to_dict()["energy_joules"] == pytest.approx(total)


def test_a_scheduler_goes_on_from_a_checkpoint_with_its_queue_and_its_loads(tiny, records):
    options = "channel.schedule.options={mean_delay_s = 0.01, trade_off = 0.05}"
    overrides = [*DELIVERY, "channel.schedule.scheduler=lyapunov", options]
    federation = Federation(scenario(tiny["gpt2"], records, *overrides)).run()
    state = json.loads(json.dumps(federation.server.air.state_dict()))
    again = Federation(scenario(tiny["gpt2"], records, *overrides)).server.air
    again.load_state_dict(state)
    assert again.state_dict() == state
    assert state["scheduler"]["queue_s"] > 0
    reports = {str(k): ClientReport(channel=again.channel.report(k, 3)) for k in range(4)}
    both = [air.schedule(4, reports, pytest.fail) for air in (again, federation.server.air)]
    assert both[0] == both[1]


FADES = [
    *("channel.model=rayleigh", "channel.snr_db=[0.0]", "channel.bandwidth_hz=[5e3]"),
    *("channel.coherence_s=0.1", "channel.deliver_every=1", "federation.clients=2"),
    *("train.rounds=2", "train.steps=2", "link.gradient=int8"),
]


def told_of_the_air(config) -> list[dict[str, Any]]:
    rounds = json.loads(json.dumps(Federation(config, workers=2).run().recorder.rounds))
    return [{k: v for k, v in own.items() if k != "seconds"} for own in rounds]


def test_air_time_and_energy_of_links_that_fade_repeat_to_the_last_digit(tiny, records):
    """Payloads of a frame follow each other, so that their order decides what each one meets."""
    config = scenario(tiny["gpt2"], records, *FADES)
    first = told_of_the_air(config)
    assert all(own["air_seconds"] > 1 for own in first)
    for _ in range(3):
        assert told_of_the_air(config) == first


def test_the_order_of_a_frames_tensors_does_not_matter(tiny, records):
    seconds = set()
    for turn in (1, -1):
        air = Federation(scenario(tiny["gpt2"], records, *FADES)).server.air
        air.begin_round(1)
        names = ("gradient.int8", "gradient.scale", "activation", "lengths")[::turn]
        air.book("0", "up", {name: torch.zeros(40) for name in names}, 640)
        row = air.row(1, "0")
        assert row is not None
        seconds.add(json.dumps(row.seconds, sort_keys=True))
    assert len(seconds) == 1


def test_what_is_told_at_the_end_of_a_round_has_the_heads_and_adapters_that_follow_its_steps(
    tiny, records
):
    federation = Federation(scenario(tiny["gpt2"], records, *DELIVERY)).run()
    events = [e for e in federation.recorder.events if e.get("phase") == "train"]
    ends = [event for event in events if event["event"] == "round"]
    booked = {"up": 0, "down": 0}
    for event, record in zip(ends, federation.recorder.rounds, strict=True):
        for way in booked:
            booked[way] += sum(record["bits"][way].values())
        assert record["bits"]["down"]["adapter"] > 0 and record["bits"]["down"]["head"] > 0
        assert {way: event[f"bits_{way}"] for way in booked} == booked
    phase = PhaseProgress({"name": "train", "rounds": 3, "steps": 1})
    for event in events:
        if event["event"] in ("step", "round"):
            phase.apply(event)
    assert (phase.bits_up, phase.bits_down) == (booked["up"], booked["down"])
