"""Gradients that one backward keeps apart by client equal those of clients run alone."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from test_engine_equals_peft import (
    ALPHA,
    LENGTHS,
    R_MAX,
    client_gradient,
    close,
    mixed_ranks,
    peft_at,
    tokens,
    unsplit_loss,
)

from fedlora.config import LoraConfig, RobustConfig, Scenario, TaskConfig, TrainConfig
from fedlora.server.compute import ClientRows, SplitEngine
from fedlora.split import Back, Checkpoint, Cut, Front


def make_engine(
    folder, pools: bool, average: str = "median", embedding: bool = True, **lora: float
) -> SplitEngine:
    scenario = Scenario(
        lora=LoraConfig(r_max=R_MAX, alpha=ALPHA, **lora),
        task=TaskConfig(kind="classification" if pools else "causal_lm", pool="mean"),
        train=TrainConfig(embedding=embedding),
        robust=RobustConfig(average=average),
    )
    engine = SplitEngine(Checkpoint(folder), scenario)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for projection in engine.projections:
            projection.B.normal_(std=0.05, generator=generator)
    return engine


def uploads(engine: SplitEngine, folder, ranks) -> dict[str, ClientRows]:
    front = Front(Checkpoint(folder), Cut.of(Checkpoint(folder), 0, 0), torch.float32)
    return {
        c: ClientRows(front(torch.cat(rows), LENGTHS[c]).detach(), LENGTHS[c], ranks[c], c)
        for c, rows in tokens().items()
    }


def random_gradients(z: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(part.shape, generator=generator) for part in z]


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama", "bert"])
def test_each_clients_gradient_equals_that_of_peft_on_its_rows_alone(checkpoints, family):
    folder, data = checkpoints[family], tokens()
    checkpoint, engine = Checkpoint(folder), make_engine(folder, pools=True)
    ranks = mixed_ranks(engine)
    back = Back(checkpoint, Cut.of(checkpoint, 0, 0), torch.float32, final=False)
    head = 0.3 * torch.randn(101, 32, generator=torch.Generator().manual_seed(9))
    z = engine.forward(list(uploads(engine, folder, ranks).values()), train=True)
    answers = [
        client_gradient(back, head, part, rows, True)[1]
        for part, rows in zip(z, data.values(), strict=True)
    ]
    engine.backward(answers, [float(len(rows)) for rows in data.values()])
    blocks, weights, clients = engine.update.by_client.take()
    assert (clients, weights.tolist()) == (list(data), [2.0, 1.0, 3.0])
    for slot, (client, rows) in enumerate(data.items()):
        model, chosen = peft_at(folder, engine, ranks[client])
        unsplit_loss(model, head, rows, "mean").backward()
        own = {n: p.grad / len(rows) for n, p in model.named_parameters() if p.grad is not None}
        for index, projection in enumerate(engine.projections):
            r = chosen.get(projection.name, 0)
            A, B = blocks[2 * index : 2 * index + 2]
            assert A.present[slot].sum() == B.present[slot].sum() == r
            assert not A.values[slot, r:].any() and not B.values[slot, r:].any()
            if r:
                prefix = f"base_model.model.{projection.name}."
                assert close(A.values[slot, :r], own[prefix + "lora_A.default.weight"])
                assert close(B.values[slot, :r].T, own[prefix + "lora_B.default.weight"])


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_they_add_up_to_the_factors_gradients_over_several_exchanges(checkpoints, family):
    """With dropout, clients that give no gradient, and others that only come later."""
    folder = checkpoints[family]
    engine = make_engine(folder, pools=False, dropout=0.3)
    ranks = mixed_ranks(engine)
    rows = uploads(engine, folder, ranks)
    totals = dict.fromkeys(LENGTHS, 0.0)
    for exchange, clients in enumerate((["0", "2"], ["0", "1", "2"], ["1"])):
        z = engine.forward([rows[c] for c in clients], train=True, exchange=exchange)
        gradients: list[torch.Tensor | None] = list(random_gradients(z, exchange))
        if exchange == 1:
            gradients[2] = None
        engine.backward(gradients, [float(len(part)) for part in z])
        for client, gradient in zip(clients, gradients, strict=True):
            totals[client] += 0 if gradient is None else len(gradient)
    blocks, weights, clients = engine.update.by_client.take()
    order = ["0", "2", "1"]  # as they came
    assert weights.tolist() == [totals[c] for c in order]
    for index, projection in enumerate(engine.projections):
        A, B = (block.values for block in blocks[2 * index : 2 * index + 2])
        assert close((A * weights[:, None, None]).sum(0), projection.A.grad)
        assert close((B * weights[:, None, None]).sum(0), projection.B.grad.T)


def test_what_is_kept_is_one_adapter_for_each_client(checkpoints):
    """Memory is linear in the clients, whatever the number of their rows."""
    engine = make_engine(checkpoints["llama"], pools=False)
    rows = [
        dataclasses.replace(own, client=str(k), activation=own.activation.repeat(3, 1))
        for k, own in enumerate(uploads(engine, checkpoints["llama"], mixed_ranks(engine)).values())
    ]
    rows = [dataclasses.replace(own, lengths=[*own.lengths] * 3) for own in rows]
    z = engine.forward(rows, train=True)
    engine.backward(random_gradients(z, 0), [1.0] * len(rows))
    blocks, *_ = engine.update.by_client.take()
    adapter = sum(p.A.numel() + p.B.numel() for p in engine.projections)
    assert sum(block.values.numel() for block in blocks) == len(rows) * adapter


def test_median_of_honest_and_hostile_clients_lies_among_the_honest(checkpoints):
    """The step that is taken is bounded by the honest clients' gradients on every coordinate."""
    folder = checkpoints["gpt2"]
    engine = make_engine(folder, pools=True)
    full = dict.fromkeys(LENGTHS, engine.full_ranks())
    rows = list(uploads(engine, folder, full).values())
    many = [dataclasses.replace(rows[k % 3], client=str(k)) for k in range(5)]
    z = engine.forward(many, train=True)
    gradients = random_gradients(z, 3)
    gradients[4] = gradients[4] * 1e30
    engine.backward(gradients, [float(len(part)) for part in z])
    blocks, weights, clients = engine.update.by_client.take()
    engine.update.by_client.take = lambda: (blocks, weights, clients)
    before = [p.A.detach().clone() for p in engine.projections]
    engine.update.step(0)
    checked = 0
    for block, projection, old in zip(blocks[::2], engine.projections, before, strict=True):
        signs = block.values[:4].sign()
        agree = (signs == signs[0]).all(0) & (block.values[:4].abs().amin(0) > 1e-6)
        moved = projection.A.detach() - old
        # Adam's first step goes against the sign of the gradient
        assert torch.equal(moved.sign()[agree], -signs[0][agree])
        checked += int(agree.sum())
    assert checked > 50


@pytest.mark.parametrize("average", ["mean", "median"])
def test_a_step_after_going_back_knows_nothing_of_the_one_that_was_abandoned(checkpoints, average):
    folder = checkpoints["gpt2"]
    fresh, again = (make_engine(folder, True, average, embedding=False) for _ in range(2))
    rows = list(uploads(again, folder, mixed_ranks(again)).values())
    start = copy.deepcopy(again.state_dict())

    def exchange(engine: SplitEngine, rows: list[ClientRows], seed: int) -> None:
        z = engine.forward(rows, train=True)
        noise = random_gradients(z, seed + 1)
        engine.backward(random_gradients(z, seed), [1.0] * len(rows), noise)

    exchange(again, rows, 1)
    again.update.step(0)
    exchange(again, rows[1:], 3)
    again.forward(rows[:2], train=True)
    again.load_state_dict(start)
    told = []
    for engine in (fresh, again):
        for seed in (5, 7):
            exchange(engine, rows, seed)
        engine.update.step(0)
        told.append((engine.round_snr(), engine.update.sensitivity.take()))
    assert told[0] == told[1]
    for name, factor in fresh.adapter().items():
        assert torch.equal(factor, again.adapter()[name]), name
