"""``link.keep``: some tokens' gradients, unbiased, in fewer bits; refused where it would tell."""

from __future__ import annotations

import pytest
import torch
from support.federation import Federation, same, scenario

from clients.kept_tokens import keep_tokens, probabilities
from fedlora.check import check_scenario
from fedlora.errors import FedloraError
from fedlora.link import Frame, create_codec, messages as m, pack
from fedlora.server.exchange.uploads import read_gradient

LANGUAGE = ["task.kind=causal_lm", "data.prompt_separator=w5"]


def gradients(rows: int = 40, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, width, generator=generator) * torch.logspace(-3, 1, rows)[:, None]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_probabilities_add_up_and_none_is_0(share):
    norms = gradients().double().norm(dim=1)
    norms[3] = 0.0
    chance = probabilities(norms, share)
    assert float(chance.mean()) == pytest.approx(share, rel=1e-6)
    assert float(chance.min()) >= 0.1 * share and float(chance.max()) <= 1
    order = norms.argsort()
    assert torch.equal(chance[order], chance.sort().values)


@pytest.mark.parametrize("norms", [torch.zeros(4), torch.tensor([1.0, float("inf")])])
def test_where_norms_tell_nothing_all_tokens_are_alike(norms):
    assert torch.equal(probabilities(norms, 0.5), torch.full_like(norms, 0.5))


def test_the_mean_over_draws_is_the_gradient():
    true, draws = gradients(), 800
    total = torch.zeros_like(true, dtype=torch.float64)
    sent = 0
    for draw in range(draws):
        kept = keep_tokens(true, 0.3, draw.to_bytes(32, "big"))
        frame = Frame(m.GRADIENT, "0", 0, {}, pack("gradient", kept.gradient, create_codec("fp32")))
        frame.tensors["kept"] = kept.mask
        total += read_gradient(frame, create_codec("fp32"), (40, 6), some=True)
        sent += len(kept.gradient)
    chance = probabilities(true.double().norm(dim=1), 0.3)
    spread = (true.double().square() * ((1 - chance) / chance)[:, None] / draws).sqrt()
    off = (total / draws - true) / (spread + 1e-7 * true.abs())
    assert float(off.abs().max()) < 5
    assert sent / draws / 40 == pytest.approx(0.3, rel=0.02)


def test_a_run_sends_fewer_gradients_repeats_itself_and_learns(tiny, records):
    whole = Federation(scenario(tiny["gpt2"], records, *LANGUAGE, "train.rounds=3")).run()
    config = scenario(tiny["gpt2"], records, *LANGUAGE, "train.rounds=3", "link.keep=0.5")
    first, second = Federation(config).run(), Federation(config).run()
    assert same(first.server.engine.adapter(), second.server.engine.adapter())
    assert not same(first.server.engine.adapter(), whole.server.engine.adapter())
    assert first.recorder.losses() == pytest.approx(whole.recorder.losses(), rel=0.05)
    some, all_ = (r.server.air.ledger.totals()["bits"]["up"]["gradient"] for r in (first, whole))
    assert some == pytest.approx(all_ / 2, rel=0.25)


def test_bits_that_do_not_say_which_are_sent_are_refused():
    codec = create_codec("fp32")
    for kept in (None, torch.zeros(2, dtype=torch.uint8), torch.zeros(1)):
        tensors = pack("gradient", torch.zeros(0, 6), codec)
        frame = Frame(m.GRADIENT, "0", 0, {}, tensors | ({} if kept is None else {"kept": kept}))
        with pytest.raises(Exception, match="a bit for each"):
            read_gradient(frame, codec, (8, 6), some=True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "task.kind classification has no tokens that are learnt; set it to 1"),
        ([*LANGUAGE, "privacy.epsilon=8", "privacy.release=full"], "privacy would have to pay"),
        ([*LANGUAGE, "link.keep=0"], "link.keep is 0"),
    ],
)
def test_where_it_tells_or_means_nothing_it_is_refused(tiny, records, more, said):
    with pytest.raises(FedloraError, match=said):
        check_scenario(scenario(tiny["gpt2"], records, "link.keep=0.5", *more))
