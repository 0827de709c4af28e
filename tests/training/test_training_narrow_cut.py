"""``link.r_cut`` and ``model.server_norm`` move work to the server, and change no result."""

from __future__ import annotations

import pytest
import torch
from support.federation import Federation, scenario

from fedlora.batch_order import BatchStream
from fedlora.check import check_scenario
from fedlora.errors import FedloraError

STEP = ["head.share=step", "evaluate.scores=true"]


def close(first: Federation, second: Federation) -> None:
    """Hold two runs to the same losses, metrics, adapter and head."""
    assert second.recorder.losses() == pytest.approx(first.recorder.losses(), rel=2e-6)
    for a, b in zip(first.recorder.rounds, second.recorder.rounds, strict=True):
        assert b["metric"] == pytest.approx(a["metric"], rel=1e-5)
    one, other = first.server.engine.adapter(), second.server.engine.adapter()
    for name, factor in one.items():
        # Adam divides by the size of a gradient, so where that is 0 rounding decides the sign
        torch.testing.assert_close(other[name], factor, rtol=1e-3, atol=3e-4)
    for own, theirs in zip(first.head(1), second.head(1), strict=True):
        torch.testing.assert_close(theirs, own, rtol=1e-3, atol=3e-4)


def test_the_directions_of_a_head_alone_train_what_all_of_them_train(tiny, records):
    more = ["evaluate.baseline=true", "train.accumulate=2", "train.steps=2"]
    whole = Federation(scenario(tiny["bert"], records, *STEP, *more)).run()
    narrow = Federation(scenario(tiny["bert"], records, *STEP, *more, "link.r_cut=2")).run()
    close(whole, narrow)
    full, cut = (run.server.air.ledger.totals()["bits"] for run in (whole, narrow))
    width = whole.server.engine.geometry.representation_width
    assert cut["up"]["gradient"] * width == full["up"]["gradient"] * 2
    assert cut["down"]["representation"] * width == full["down"]["representation"] * 2
    head = 32 * sum(part.numel() for part in whole.head())
    assert cut["up"]["head"] == 3 * head, "each client hands in what it begins with"
    assert cut["down"]["head"] == 3 * 2 * head, "all are given the head at the end of two rounds"


def test_rounds_tell_what_the_raw_cut_would_take(tiny, records):
    """Held to the lengths of the texts, as the clients have them: 9 rows a round, of 16 padded."""
    run = Federation(scenario(tiny["gpt2"], records, "train.rounds=1")).run()
    raw = 0
    for client in run.clients:
        order = BatchStream(client.train, 3, 0, int(client.name))
        lengths = [client.train.lengths[i] for _ in range(3) for i in order.indices()]
        raw += 32 * 3 * 32 * len(lengths) * max(lengths)
    assert run.recorder.rounds[0]["raw_bits"] == raw
    geometry = run.server.engine.geometry
    assert geometry.raw_bits([1] * 16 + [5, 2]) == 32 * 3 * 32 * (16 + 10)


def test_what_limits_hostile_rows_limits_them_alike_at_a_narrow_cut(tiny, records):
    config = scenario(
        tiny["gpt2"], records, *STEP, "link.r_cut=2", "robust.row_clip=0.1", "robust.head_clip=0.1"
    )
    whole = Federation(scenario(tiny["gpt2"], records, *STEP, "robust.row_clip=0.1",
                                "robust.head_clip=0.1")).run()  # fmt: skip
    close(whole, Federation(config).run())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["head.share=step"], r"link.r_cut is 4, and a head of 3 classes tells 2.*set it to 2"),
        (["head.share=round"], r"head.share round; set head.share to step, or link.r_cut to 0"),
        (["head.share=step", "head.train=no"], r"does not train; set"),
        (["head.share=step", "model.client_back=1"], r"only a classifier that the server pools"),
        (["task.kind=causal_lm"], r"only a classifier that the server pools"),
        (
            ["head.share=step", "privacy.epsilon=8", "privacy.release=row_space"],
            r"needs the head for privacy.release row_space; set that to logits or labels",
        ),
    ],
)
def test_a_width_that_would_lose_something_is_refused(tiny, records, more, words):
    with pytest.raises(FedloraError, match=words):
        check_scenario(scenario(tiny["gpt2"], records, "link.r_cut=4", *more))


@pytest.mark.parametrize("family", ["opt-350m-layout", "gemma2"])
def test_a_final_norm_on_the_server_trains_what_one_on_the_client_trains(tiny, records, family):
    task = ["task.kind=causal_lm", "train.rounds=1", "train.steps=2"]
    there = Federation(scenario(tiny[family], records, *task)).run()
    here = Federation(scenario(tiny[family], records, *task, "model.server_norm=true")).run()
    close(there, here)


def test_a_norm_before_blocks_on_the_client_is_refused(tiny, records):
    with pytest.raises(FedloraError, match=r"model.server_norm is true.*leaves 1 blocks"):
        scenario(tiny["gpt2"], records, "model.client_back=1", "model.server_norm=true")


@pytest.mark.parametrize("release", ["logits", "labels"])
def test_labels_that_are_noised_once_need_no_head_on_the_device(tiny, records, release):
    """What leaves depends on no representation, so the adapter is the same to the bit."""
    private = [*STEP[:1], "privacy.epsilon=8", f"privacy.release={release}"]
    private += ["privacy.insecure_noise_seed=3", "evaluate.report=true"]
    whole = Federation(scenario(tiny["bert"], records, *private)).run()
    narrow = Federation(scenario(tiny["bert"], records, *private, "link.r_cut=2")).run()
    one, other = (run.server.engine.adapter() for run in (whole, narrow))
    for name, factor in one.items():
        if release == "logits":
            assert torch.equal(other[name], factor), name
        torch.testing.assert_close(other[name], factor, rtol=1e-3, atol=3e-4)
    for a, b in zip(whole.recorder.rounds, narrow.recorder.rounds, strict=True):
        assert b["metric"] == pytest.approx(a["metric"], rel=1e-5)
        assert b["bits"]["down"]["representation"] * 16 == a["bits"]["down"]["representation"]
        assert b["bits"]["down"]["head"] * 2 < a["bits"]["down"]["head"]
