"""A forecast is the account that the run then books: exact where shapes decide, else within 2%."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from support import values
from support.federation import Federation, scenario

from fedlora.config import Scenario
from fedlora.errors import FedloraError
from fedlora.planning import Forecast, forecast
from fedlora.preview import view_rows
from fedlora.split import Checkpoint, model_folder
from simulations.rehearsal import InProcess

FADING = [
    "channel.model=rayleigh",
    "channel.snr_db=[3,12]",
    "channel.draw=client",
    "channel.bandwidth_hz=[2e5]",
    "channel.deliver_every=1",
    "channel.deadline_s=0.5",
]
LANGUAGE = ["task.kind=causal_lm", "data.prompt_separator=w5"]


def planned(config: Scenario, rehearse: int = 0) -> Forecast:
    checkpoint = Checkpoint(model_folder(config.model.path))
    rows = view_rows(config, checkpoint)
    assert rows is not None
    return forecast(config, checkpoint, rows, InProcess() if rehearse else None, rehearse)


def held_to_a_run(config: Scenario, *, rel: float, rehearse: int = 0) -> None:
    plan, run = planned(config, rehearse), Federation(config).run()
    ledger = run.server.air.ledger
    totals = ledger.totals()
    followed = tuple(sum(kinds.values()) for kinds in totals["bits"].values())
    assert run.server.air.bits_so_far() == followed  # what who follows a run is told of it
    for way, kinds in totals["bits"].items():
        for kind, bits in kinds.items():
            assert plan.totals["bits"][way][kind] == pytest.approx(bits, rel=rel), (way, kind)
    for name in ("air_seconds", "client_seconds", "energy_joules"):
        assert plan.totals[name] == pytest.approx(totals[name], rel=max(rel, 1e-9)), name
    assert plan.totals["late_deliveries"] == totals["late_deliveries"]
    rows = ledger.rows()
    for client, own in plan.clients.items():
        mine = [row for row in rows if row["client"] == int(client)]
        for way in ("up", "down"):
            booked = sum(sum(row["bits"][way].values()) for row in mine)
            assert sum(own["bits"][way].values()) == pytest.approx(booked, rel=rel)
    outside = ledger.outside_bits()["evaluation"]
    assert plan.evaluation == pytest.approx(outside, rel=rel)
    assert plan.raw_bits == sum(record["raw_bits"] for record in run.recorder.rounds)
    told = run.recorder.rounds
    assert plan.samples == sum(c["rows"] for record in told for c in record["clients"].values())
    kept = run.server.training.batches.kept
    if kept is not None:
        assert plan.kept_bytes == sum(own.nbytes for own in kept._own.values())


@pytest.mark.parametrize(
    "more",
    [
        ["head.share=step", *FADING],
        ["head.share=round", "link.activation=int8", "federation.clients_per_round=2"],
        ["head.share=step", "link.r_cut=2", "train.accumulate=2", "train.steps=2"],
        [*LANGUAGE, "link.gradient=bf16", "train.rounds=3", "link.activation=distinct"],
        [*LANGUAGE, "link.activation=tokens"],
        [*LANGUAGE, "train.embedding=true", "evaluate.every=2"],
        ["head.share=step", "privacy.epsilon=8", "privacy.release=logits", "link.reuse=false"],
        ["head.share=personal", "ranks.statistics=true", "partition.kind=dirichlet"],
    ],
    ids=["fading", "round", "narrow", "language", "tokens", "embedding", "private", "personal"],
)
def test_what_shapes_decide_is_foreseen_to_the_bit(tiny, records, more):
    held_to_a_run(scenario(tiny["gpt2"], records, *more), rel=0.0)


@pytest.mark.parametrize("share", ["round", "step", "step in few bits"])
def test_ends_that_clients_share_are_foreseen_to_the_bit(checkpoints, tmp_path, share):
    series = np.random.default_rng(0).normal(size=(24, 20, 2))
    np.save(tmp_path / "x.npy", series)
    more = ["task.kind=forecast", f"data.train={tmp_path / 'x.npy'}", "task.forecast.features=2"]
    if share == "step in few bits":
        more, share = [*more, "link.end_weight=int8", "link.end_gradient=bf16"], "step"
    more += ["train.embedding=true", f"front.share={share}", f"head.share={share}"]
    held_to_a_run(values.scenario(checkpoints["gpt2"], *more), rel=0.0)


def test_what_a_codec_makes_shorter_is_foreseen_within_two_percent(tiny, records):
    coded = [f"link.{name}=rotated" for name in ("activation", "representation", "gradient")]
    more = ["link.gradient_bits=3", "link.group=32", "train.batch_size=6"]
    held_to_a_run(scenario(tiny["gpt2"], records, *LANGUAGE, *coded, *more, *FADING), rel=0.02)


def test_what_is_left_of_representations_is_foreseen_whole_and_all_else_to_the_bit(tiny, records):
    """How much is left depends on how training goes, so that the plan is a bound and says so."""
    more = ["link.representation=entropy", "link.representation_bits=5", "train.rounds=6"]
    config = scenario(tiny["gpt2"], records, *LANGUAGE, *more)
    plan, run = planned(config), Federation(config).run()
    booked = run.server.air.ledger.totals()["bits"]
    assert plan.totals["bits"]["up"] == booked["up"]
    whole, took = (bits["down"]["representation"] for bits in (plan.totals["bits"], booked))
    assert 0.5 * whole < took < 0.9 * whole
    assert any("representations are counted whole" in note for note in plan.notes)
    own = run.server.training.batches.representations._own
    assert plan.remembered_bytes == sum(kept.nbytes for _, kept in own.values()) > 0
    off = Federation(scenario(tiny["gpt2"], records, *LANGUAGE, *more, "link.residual_mib=0")).run()
    booked = off.server.air.ledger.totals()["bits"]
    assert booked["down"]["representation"] == pytest.approx(
        whole, rel=0.03
    )  # by clients of few rows


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_a_rehearsal_tells_what_is_left_of_representations_within_two_percent(
    tiny, records, schedule
):
    """Each round is a pass; four of six are trained beforehand."""
    more = ["link.representation=entropy", "link.representation_bits=5", "link.gradient=entropy"]
    more += ["train.rounds=6", "train.steps=5", "data.max_rows=60", "partition.kind=iid"]
    more += ["train.lr=1e-3", f"train.schedule={schedule}"]
    config = scenario(tiny["gpt2"], records, *LANGUAGE, *more, *FADING)
    held_to_a_run(config, rel=0.02, rehearse=4)


def test_rounds_that_were_rehearsed_are_foreseen_to_the_bit_a_payload(tiny, records):
    coded = [f"link.{name}=rotated" for name in ("activation", "representation", "gradient")]
    config = scenario(tiny["gpt2"], records, *LANGUAGE, *coded, "train.embedding=true")
    booked = Federation(config).run().server.air.ledger.totals()["bits"]
    for way, kinds in planned(config, rehearse=2).totals["bits"].items():
        assert kinds == pytest.approx(booked[way], abs=2 * 3 * 3)  # rounds, steps, clients


def test_a_rehearsal_leaves_held_out_rows_the_room_that_they_take_among_kept_ones(
    tiny, records, monkeypatch
):
    """Of rows whose bits follow from shapes a rehearsal then says what the plan says without."""
    config = scenario(tiny["gpt2"], records, "train.rounds=8")
    for which in ("server.exchange.kept_rows.KeptRows", "planning.client.PlannedClient"):
        owner, name = f"fedlora.{which}".rsplit(".", 1)
        made = getattr(importlib.import_module(owner), name)

        def small(self, *given, make=made.__init__, **more) -> None:
            make(self, *given, **more)
            for limit in ("limit_bytes", "_limit"):
                if hasattr(self, limit):
                    setattr(self, limit, 18_000)

        monkeypatch.setattr(made, "__init__", small)
    held_to_a_run(config, rel=0.0)
    held_to_a_run(config, rel=0.0, rehearse=4)


def test_a_rehearsal_that_sees_no_row_twice_is_refused_with_the_rounds_that_it_takes(tiny, records):
    config = scenario(tiny["gpt2"], records, "link.representation=entropy", "train.rounds=8")
    with pytest.raises(FedloraError, match=r"--rehearse is 1, and the first round.*; rehearse 4$"):
        planned(config, rehearse=1)


def test_of_tokens_that_are_drawn_the_mean_is_foreseen(tiny, records):
    config = scenario(tiny["gpt2"], records, *LANGUAGE, "link.keep=0.5", "train.rounds=8")
    plan = planned(config).totals["bits"]["up"]
    booked = Federation(config).run().server.air.ledger.totals()["bits"]["up"]
    assert plan["control"] == booked["control"] and plan["activation"] == booked["activation"]
    assert plan["gradient"] == pytest.approx(booked["gradient"], rel=0.15)


def test_the_rounds_of_a_long_run_are_taken_to_be_like_the_last_that_is_walked(
    tiny, records, monkeypatch
):
    config = scenario(tiny["gpt2"], records, "train.rounds=9", "head.share=step")
    whole = planned(config)
    monkeypatch.setattr("fedlora.planning.walk._MOST_BATCHES", 6 * 3 * 3)
    short = planned(config)
    assert any("rounds from 7 on are taken to be like round 6" in note for note in short.notes)
    for way, bits in whole.totals["bits"].items():
        assert short.totals["bits"][way] == pytest.approx(bits, rel=0.05)
    assert short.samples == whole.samples


def test_a_measured_channel_cannot_be_foreseen(tiny, records):
    with pytest.raises(FedloraError, match=r"channel.model is measured.*plan with a simulated"):
        planned(scenario(tiny["gpt2"], records, "channel.model=measured"))
