"""Who holds which head, and who is drawn, under each way of sharing."""

from __future__ import annotations

import pytest
import torch
from support.federation import Federation, Handler, scenario

from clients.edge_client import EdgeClient
from fedlora.link import Frame, messages as m

DRAWN = ["federation.clients=5", "federation.clients_per_round=2", "train.rounds=3"]


def drawn(federation: Federation) -> list[list[str]]:
    return [sorted(record["clients"]) for record in federation.recorder.rounds]


@pytest.mark.parametrize("share", ["step", "round"])
def test_shared_head_reaches_clients_that_were_not_drawn(tiny, records, share):
    config = scenario(tiny["gpt2"], records, f"head.share={share}", *DRAWN, "train.rounds=1")
    federation = Federation(config)
    before = federation.head()[0]
    federation.run()
    assert len(drawn(federation)[0]) == 2
    assert not torch.equal(federation.head()[0], before)
    for client in range(1, 5):
        assert torch.equal(federation.head(client)[0], federation.head()[0])


def test_clients_of_one_step_hold_the_head_of_that_step(tiny, records):
    """With ``step`` every drawn client works out a step with the same weights."""
    seen: dict[int, list[torch.Tensor]] = {}

    def wrap(edge: EdgeClient) -> Handler:
        def handle(frame: Frame) -> Frame:
            reply = edge.handle(frame)
            if frame.kind == m.STEP:
                weight = edge.head.module.get_parameter("weight").detach().clone()
                seen.setdefault(frame.fields["step"], []).append(weight)
            return reply

        return handle

    Federation(scenario(tiny["gpt2"], records, "head.share=step", *DRAWN), wrap=wrap).run()
    assert sorted(seen) == list(range(9))
    for first, second in seen.values():
        assert torch.equal(first, second)
    assert not torch.equal(seen[0][0], seen[8][0])


def test_personal_heads_stay_apart_and_rest_while_their_client_is_not_drawn(tiny, records):
    config = scenario(tiny["gpt2"], records, *DRAWN, "train.rounds=1")
    federation = Federation(config)
    before = [federation.head(client)[0] for client in range(5)]
    federation.run()
    took_part = drawn(federation)[0]
    for client in range(5):
        same = torch.equal(federation.head(client)[0], before[client])
        assert same == (str(client) not in took_part)
    first, second = (federation.head(int(client))[0] for client in took_part)
    assert not torch.equal(first, second)


def test_untrained_head_stays_as_it_was(tiny, records):
    config = scenario(tiny["gpt2"], records, "head.share=step", "head.train=no")
    federation = Federation(config)
    before = federation.head()[0]
    federation.run()
    assert all(torch.equal(federation.head(client)[0], before) for client in range(3))
    bits = federation.server.air.ledger.totals()["bits"]
    rows = 2 * 3 * 3 * 3
    sent = sum(len(own.rows) for own in federation.server.training.batches.kept._own.values())
    sent -= sum(len(client.held_out) for client in federation.clients)
    assert bits["up"]["control"] == rows * 72 + sent * 32  # names, lengths, and no head


def test_draws_follow_from_the_seed(tiny, records):
    def draws(*overrides: str) -> list[list[str]]:
        config = scenario(tiny["gpt2"], records, *DRAWN, "train.steps=1", *overrides)
        return drawn(Federation(config).run())

    first = draws()
    assert first == draws()
    assert first == draws("evaluate.baseline=true")
    assert all(len(clients) == 2 for clients in first)
    assert len({tuple(clients) for clients in [*first, *draws("seed=1"), *draws("seed=2")]}) > 3


def test_clients_that_are_not_drawn_keep_their_place_in_the_data(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records, *DRAWN)).run()
    for client in federation.clients:
        rounds = sum(client.name in clients for clients in drawn(federation))
        assert client.batches.position == rounds * 3 * 3


def test_baseline_trains_the_same_head_on_the_same_batches(tiny, records):
    """Adapters whose learning rate is next to nothing leave training on the bare backbone."""
    config = scenario(
        tiny["gpt2"],
        records,
        "head.share=step",
        "train.lr=1e-30",
        "train.head_lr=0.05",
        "evaluate.baseline=true",
    )
    federation = Federation(config).run()
    recorder = federation.recorder
    assert recorder.losses("baseline") == pytest.approx(recorder.losses("train"), rel=1e-6)
    assert federation.server.training.outcome.before == recorder.rounds[-1]["metric"]


def test_scheduled_clients_train_and_the_others_get_the_head(tiny, records):
    schedule = ["channel.schedule.scheduler=random_k", "channel.schedule.options.clients=2"]
    config = scenario(tiny["gpt2"], records, "head.share=step", "federation.clients=5", *schedule)
    federation = Federation(config).run()
    for client in federation.clients:
        rounds = sum(client.name in clients for clients in drawn(federation))
        assert client.batches.position == rounds * 3 * 3
        assert torch.equal(federation.head(int(client.name))[0], federation.head()[0])
    assert all(len(clients) == 2 for clients in drawn(federation))
