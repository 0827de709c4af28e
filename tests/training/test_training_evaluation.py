"""Held-out metrics are those of the undivided model with the adapter, over all rows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from support.federation import Federation, scenario, write_records
from support.unsplit import Unsplit

from clients.edge_client import EdgeClient


def unsplit_counts(unsplit: Unsplit, client: EdgeClient, index: int) -> tuple[float, int, int]:
    """Return loss sum, terms and correct ones of a client's held-out rows, one row at a time."""
    total, terms, correct = 0.0, 0, 0
    with torch.no_grad():
        for sample in client.door.truth(client.held_out):
            batch = [[] for _ in range(index)] + [[sample]]
            loss, counts = unsplit.loss(batch)
            total, terms = total + loss.item(), terms + sum(counts)
            if unsplit.pooled:
                states = unsplit.model(input_ids=torch.tensor([sample.ids])).last_hidden_state
                z = unsplit.pool(states, torch.ones(1, len(sample.ids), dtype=torch.long))
                head = unsplit.heads[0 if unsplit.shared else index]
                correct += int((z @ head.T).argmax()) == sample.target
            else:
                logits = unsplit.model(input_ids=torch.tensor([sample.ids])).logits[0, :-1]
                correct += int((logits.argmax(1) == torch.tensor(sample.ids[1:])).sum())
    return total, terms, correct


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("gpt2", ["head.share=step", "evaluate.batch_size=2"]),
        ("bert", ["head.share=personal", "task.pool=cls"]),
        ("opt", ["task.kind=causal_lm", "evaluate.batch_size=3"]),
        ("llama", ["task.kind=causal_lm", "model.client_back=1"]),
    ],
    ids=str,
)
def test_metrics_equal_the_undivided_models(tiny, records, family, overrides):
    federation = Federation(scenario(tiny[family], records, *overrides))
    unsplit = Unsplit(federation)
    unsplit.run()
    record = federation.run().recorder.rounds[-1]
    sums = [unsplit_counts(unsplit, c, number) for number, c in enumerate(federation.clients)]
    for (loss, terms, correct), own in zip(sums, record["clients"].values(), strict=True):
        assert own["loss"] == pytest.approx(loss / terms, rel=1e-4)
        if unsplit.pooled:
            assert own["metric"] == pytest.approx(correct / terms)
    loss, terms, correct = (sum(column) for column in zip(*sums, strict=True))
    assert record["loss"] == pytest.approx(loss / terms, rel=1e-4)
    expected = correct / terms if unsplit.pooled else math.exp(loss / terms)
    assert record["metric"] == pytest.approx(expected, rel=1e-4)
    assert record["higher_is_better"] == unsplit.pooled


def test_common_test_file_is_evaluated_once(tiny, records, tmp_path):
    test = write_records(tmp_path / "test.csv", 10, seed=1)
    federation = Federation(scenario(tiny["gpt2"], records, f"data.test={test}"))
    rows = sorted(
        sample.ids for client in federation.clients for sample in client.door.truth(client.held_out)
    )
    whole = federation.clients[0]
    from clients.build import load_parts
    from clients.simulated_data import SimulatedData

    config = federation.server.scenario
    single = SimulatedData(config, 1)
    one = single.build(load_parts(config, single.labels), 0)
    assert rows == sorted(sample.ids for sample in one.door.truth(one.held_out))
    assert len(rows) == 10
    assert len(whole.held_out) == 4


def test_evaluation_skips_rounds_but_not_the_last(tiny, records):
    config = scenario(tiny["gpt2"], records, "train.rounds=5", "train.steps=1", "evaluate.every=2")
    rounds = Federation(config).run().recorder.rounds
    assert [record["metric"] is not None for record in rounds] == [False, True, False, True, True]


def test_evaluation_leaves_training_alone(tiny, records):
    def factors(*overrides: str) -> list[torch.Tensor]:
        config = scenario(tiny["gpt2"], records, *overrides)
        return list(Federation(config).run().server.engine.adapter().values())

    often, rarely = factors("evaluate.baseline=true"), factors("evaluate.every=9")
    assert all(torch.equal(a, b) for a, b in zip(often, rarely, strict=True))


def test_nothing_held_out_leaves_metrics_empty(tiny, records):
    federation = Federation(scenario(tiny["gpt2"], records, "data.holdout=0")).run()
    record = federation.recorder.rounds[-1]
    assert record["metric"] is None
    assert record["loss"] is None
    assert F.relu(torch.tensor(record["train_loss"])) > 0
