"""``train.overlap``: half of the clients compute while the server does, and all learn the same."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.federation import Federation, same, scenario
from test_training_stragglers import SLOW, Slow, deployed, let_go, when_step

from clients.state_store import ClientStateStore
from fedlora.errors import ClientLost, FedloraError
from fedlora.link import messages as m
from fedlora.server.checkpoint import Checkpoints
from fedlora.server.exchange.overlap import halves

OVERLAP = "train.overlap=true"
CYCLES = [
    "ranks.strategy=support.rank_cycles:RankCycles",
    "ranks.options.cycles=[[1],[0,3],[2]]",
]
UPPER = "ranks.strategy=support.rank_cycles:UpperHalf"
LANGUAGE = ["task.kind=causal_lm", "train.embedding=true", "train.accumulate=2"]


def gradients(federation: Federation) -> list[torch.Tensor]:
    """Return the averaged gradient of every factor in the first optimiser step."""
    update, found = federation.server.engine.update, []

    def step(number: int, shared: Any = (), own: Any = update.optimizer.step) -> None:
        if not found:
            factors = [factor for p in update.projections for factor in (p.A, p.B)]
            found.extend(torch.zeros_like(f) if f.grad is None else f.grad.clone() for f in factors)
        own(number, shared)

    update.optimizer.step = step  # type: ignore[method-assign]
    federation.run()
    return found


@pytest.mark.parametrize(
    "overrides",
    [
        [*CYCLES, "compute.checkpoint=true", "head.share=step"],
        [*LANGUAGE, "federation.clients=4", "partition.min_rows=2"],
        ["robust.average=median", "robust.hostile=1", "compute.checkpoint=true"],
        [UPPER, "compute.reuse_blocks=true", "compute.checkpoint=true"],
    ],
    ids=[
        "mixed ranks, checkpointed",
        "trained embedding, accumulated",
        "median, checkpointed",
        "lower blocks kept, checkpointed",
    ],
)
def test_a_steps_gradients_are_those_of_one_batch_of_all(tiny, records, overrides):
    few = ["train.rounds=1", "train.steps=1", *overrides]
    whole = gradients(Federation(scenario(tiny["gpt2"], records, *few)))
    parts = gradients(Federation(scenario(tiny["gpt2"], records, *few, OVERLAP)))
    assert any(gradient.any() for gradient in whole)
    assert torch.cat([g.flatten() for g in parts]).isfinite().all()
    for got, expected in zip(parts, whole, strict=True):
        assert torch.dist(got, expected) <= 1e-6 * max(expected.norm(), 1e-3)


def test_one_half_computes_while_the_server_goes_over_the_other(tiny, records):
    """Asked before the second forward, and gone back over before the second is waited for."""
    done: list[str] = []
    config = scenario(tiny["gpt2"], records, "train.rounds=1", "train.steps=1", OVERLAP)
    federation = Federation(config)
    server = federation.server
    engine, cohort = server.engine, server.cohort

    def noted(owner: Any, name: str, told: Any) -> None:
        own = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if (what := told(*arguments, **options)) is not None:
                done.append(what)
            return own(*arguments, **options)

        setattr(owner, name, call)

    def forward(rows: Any, *, train: bool, exchange: int = 0) -> str | None:
        return f"forward {' '.join(r.client for r in rows)}" if train else None

    noted(engine, "forward", forward)
    noted(engine, "backward", lambda gradients, *_: f"backward {len(gradients)}")
    noted(cohort, "_send", lambda c, request: f"send {c}" if request.KIND == m.STEP else None)
    asked = lambda c: cohort[c].asked == m.STEP  # noqa: E731
    noted(cohort, "_receive", lambda c, *_, **__: f"receive {c}" if asked(c) else None)
    federation.run()
    assert done[:10] == [
        *("forward 0", "send 0", "forward 1 2", "send 1", "send 2"),
        *("receive 0", "backward 1", "receive 1", "receive 2", "backward 2"),
    ]


def test_a_run_in_halves_is_repeated_and_resumed_bit_for_bit(tiny, records, tmp_path):
    config = scenario(
        tiny["gpt2"], records, OVERLAP, "head.share=step", "lora.dropout=0.2", *CYCLES
    )
    checkpoints = Checkpoints(tmp_path)

    def federation(workers: int = 1) -> Federation:
        keep = lambda edge: ClientStateStore(edge, tmp_path / edge.name).handle  # noqa: E731
        return Federation(config, wrap=keep, workers=workers)

    adapter = Federation(config, workers=3).run().server.engine.adapter()
    first = federation()
    first.server.training.after_round = lambda: _die_after(checkpoints, first)
    with pytest.raises(InterruptedError):
        first.run()
    resumed = federation()
    training, state = resumed.server.training, checkpoints.latest()
    training.run(partial(checkpoints.restore, training, state))
    assert len(resumed.recorder.rounds) == 1
    assert same(resumed.server.engine.adapter(), adapter)


def _die_after(checkpoints: Checkpoints, federation: Federation) -> None:
    checkpoints.save(federation.server.training)
    raise InterruptedError


def test_who_is_late_in_its_half_misses_the_steps_that_it_misses_in_a_whole(tiny, records):
    """Step 3 is taken without the client, and so is step 4, for which it is still late."""
    losses = []
    for overlap in ("true", "false"):
        slow = Slow(m.STEP, 3)
        federation = deployed(tiny, records, slow, "train.steps=5", f"train.overlap={overlap}")
        when_step(federation, 4, lambda slow=slow: let_go(slow))
        federation.run()
        [record] = federation.recorder.rounds
        assert (record["missed"], record["lost"]) == ({SLOW: 2}, [])
        rows = {client: own["rows"] for client, own in record["clients"].items()}
        assert rows == {"0": 15, "1": 15, "2": 9}
        losses.append(federation.recorder.losses())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_gradient_that_overflows_costs_its_client_alone_its_place(tiny, records):
    """The reference is a run from which the client is lost at that step, in the same halves."""

    def adapter(spoils: bool) -> dict[str, torch.Tensor]:
        def wrap(edge: Any) -> Any:
            def handle(request: Any) -> Any:
                reply = edge.handle(request)
                if edge.name == "0" and request.kind == m.STEP:
                    if not spoils:
                        raise ClientLost("client 0 went out of reach")
                    reply.tensors["gradient"].view(-1)[0] = 3.3e38
                return reply

            return handle

        config = scenario(tiny["gpt2"], records, OVERLAP, "train.rounds=1")
        federation = Federation(config, wrap=wrap)
        federation.server.cohort.deployed = True
        federation.run()
        assert list(federation.server.cohort.lost) == ["0"]
        return federation.server.engine.adapter()

    assert same(adapter(True), adapter(False))


def test_halves_are_cut_by_rows_in_the_order_of_clients():
    def cut(*rows: int) -> list[list[str]]:
        batch: Any = {
            str(number): SimpleNamespace(lengths=[5] * own) for number, own in enumerate(rows)
        }
        return [list(half) for half in halves(batch)]

    assert cut(4) == [["0"]]
    assert cut(4, 1) == [["0"], ["1"]]
    assert cut(4, 4, 4, 4) == [["0", "1"], ["2", "3"]]
    assert cut(9, 1, 1, 1) == [["0"], ["1", "2", "3"]]
    assert cut(1, 1, 1, 9) == [["0", "1", "2"], ["3"]]


@pytest.mark.parametrize("one", [["federation.clients=1"], ["federation.clients_per_round=1"]])
def test_one_client_a_round_has_no_halves(tiny, records, one):
    with pytest.raises(FedloraError, match=r"train\.overlap is true with 1 client a round"):
        scenario(tiny["gpt2"], records, OVERLAP, *one)
